"""Search: words in title and text, and conditions on fields.

What belongs here: from what a reader types to the query, and from the answer to hits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

from lake_assets.errors import SearchRefused
from lake_assets.index.client import explained
from lake_assets.index.mapping import read_mapping

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

MOST_HITS = 10_000
"""`index.max_result_window`: more is not a search but a scan."""

QUERY_CHARS = 10_000
QUERY_BRACKETS = 50
"""Longest query and most brackets in it: Lucene calls itself for each open bracket, and 30,000 overflow its stack,
which ends the whole node (tried on OpenSearch 3.6)."""

_CONDITION = re.compile(r"\s*([\w.@-]+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_RANGES = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
_WHOLE_NUMBERS = {"byte": 8, "short": 16, "integer": 32, "long": 64}
_NUMBERS = (*_WHOLE_NUMBERS, "unsigned_long", "float", "half_float", "double", "scaled_float")


class Hit(TypedDict):
    """One document found: its id, how well it fits (from 0; 1 for all without words), and its fields."""

    id: str
    score: float
    source: dict[str, Any]


class Found(TypedDict):
    """What a search found: how many in all, in how many milliseconds, and the best of them."""

    total: int
    took_ms: int
    hits: list[Hit]


def search(client: OpenSearch, alias: str, query: str, where: Sequence[str] = (), size: int = 10) -> Found:
    """Searches title and text, the title counting twice.

    Args:
        client: of `connect`.
        alias: the name readers use.
        query: words that must all occur; `"a phrase"`, `-without`, `one | other`, `begin*`. Empty: all documents.
        where: conditions that must all hold, each `field operator value` with < <= > >= = !=, for instance
            `sentiment_score < -0.5` or `attributes.subreddit = aww`.
        size: most hits, up to 10,000.

    Raises:
        SearchRefused: a condition or the size cannot be used.
        IndexUnavailable: OpenSearch does not answer, or has no such alias.
    """
    if not 0 <= size <= MOST_HITS:
        raise SearchRefused(f"A search gives 0 to {MOST_HITS} hits, not {size}.")
    body = {"query": build_query(query, where, read_mapping(client, alias)), "size": size, "track_total_hits": True}
    with explained(client):
        answer = client.search(index=alias, body=body)
    hits = [
        Hit(id=hit["_id"], score=hit.get("_score") or 0.0, source=hit.get("_source", {}))
        for hit in answer["hits"]["hits"]
    ]
    return Found(total=answer["hits"]["total"]["value"], took_ms=answer["took"], hits=hits)


def build_query(query: str, where: Sequence[str], fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Makes the query of words and conditions.

    Args:
        query: words, as `search` takes them.
        where: conditions, as `search` takes them.
        fields: field name → mapping.

    Raises:
        SearchRefused: a condition cannot be used, or the query is too long or too deep.
    """
    if len(query) > QUERY_CHARS or query.count("(") > QUERY_BRACKETS:
        raise SearchRefused(f"A search has up to {QUERY_CHARS} characters and {QUERY_BRACKETS} opening brackets.")
    words: dict[str, Any] = {"match_all": {}}
    if query.strip() not in ("", "*"):
        words = {
            "simple_query_string": {
                "query": query, "fields": ["title^2", "text"], "default_operator": "and", "lenient": True,
            }
        }  # fmt: skip
    wanted, unwanted = [], []
    for condition in where:
        name, operator, value = parse_condition(condition)
        clause = _clause(name, operator, value, fields)
        (unwanted if operator == "!=" else wanted).append(clause)
    return {"bool": {"must": [words], "filter": wanted, "must_not": unwanted}}


def parse_condition(condition: str) -> tuple[str, str, str]:
    """Splits `field operator value`; quotes around the value are taken off.

    Raises:
        SearchRefused: it is none.
    """
    parts = _CONDITION.fullmatch(condition)
    if parts is None or not parts[3]:
        raise SearchRefused(f"`{condition}` is no condition; write `field operator value` with < <= > >= = or !=.")
    name, operator, value = parts.groups()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    return name, operator, value


def _clause(name: str, operator: str, value: str, fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    kind = fields.get(name, {}).get("type", "")
    if "." in name and fields.get(name.split(".", 1)[0], {}).get("type") == "flat_object":
        kind = "flat_object"
    elif not kind:
        known = ", ".join(sorted(field for field in fields))
        raise SearchRefused(f"The index has no field `{name}`; it has {known}.")
    if operator in _RANGES and kind not in (*_NUMBERS, "date"):
        raise SearchRefused(f"Field `{name}` of type {kind} has no order; use = or !=.")
    typed = _typed(name, kind, value)
    if operator in _RANGES:
        return {"range": {name: {_RANGES[operator]: typed}}}
    if kind == "date":
        return {"range": {name: {"gte": typed, "lte": typed}}}
    return {"match_phrase" if kind == "text" else "term": {name: typed}}


def _typed(name: str, kind: str, value: str) -> Any:
    """Reads a value as its field's type.

    Raises:
        SearchRefused: it is none of that type.
    """
    expected = "a number"
    try:
        if kind in _WHOLE_NUMBERS:
            expected = f"a number of {_WHOLE_NUMBERS[kind]} bits"
            return _whole_number(value, -(2 ** (_WHOLE_NUMBERS[kind] - 1)), 2 ** (_WHOLE_NUMBERS[kind] - 1) - 1)
        if kind == "unsigned_long":
            return _whole_number(value, 0, 2**64 - 1)
        if kind in _NUMBERS:
            return _finite(value)
        if kind == "boolean":
            expected = "true or false"
            return {"true": True, "false": False}[value.lower()]
        if kind == "date":
            expected = "a date as 2026-01-31 or 2026-01-31T08:00:00Z"
            return _date(value)
    except (ValueError, KeyError):
        raise SearchRefused(f"Field `{name}` of type {kind} is compared with {expected}, not with `{value}`.") from None
    return value


def _whole_number(value: str, least: int, most: int) -> int | float:
    number = int(value) if re.fullmatch(r"[+-]?\d{1,20}", value) else _finite(value)
    if not least <= number <= most:
        raise ValueError(value)
    return number


def _finite(value: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _date(value: str) -> str:
    """Checks a date; a day stays a day, which OpenSearch takes as all of it."""
    if not re.match(r"\d{4}-\d\d-\d\d", value):
        raise ValueError(value)
    datetime.fromisoformat(value)
    return value.replace(" ", "T", 1)
