"""Search on a real node."""

from __future__ import annotations

import contextlib
import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opensearchpy import OpenSearch

from lake_assets.errors import IndexUnavailable, SearchRefused
from lake_assets.index.client import connect
from lake_assets.index.delivery import deliver
from lake_assets.index.mapping import contract_fields, ensure_index
from lake_assets.index.search import build_query, parse_condition, search
from lake_assets.settings import Settings

METRICS = {
    "sentiment_score": {"type": "float"}, "size_words": {"type": "integer"}, "language_code": {"type": "keyword"},
    "is_spam": {"type": "boolean"},
}  # fmt: skip


@pytest.fixture
def client(opensearch_url: str) -> OpenSearch:
    return connect(Settings(), opensearch_url)


@pytest.fixture
def alias(client: OpenSearch, fresh_alias: str) -> str:
    ensure_index(client, fresh_alias, METRICS)
    frame = pl.DataFrame(
        {
            "id": ["cats", "both", "dogs", "other"],
            "version": [1] * 4,
            "operation": ["index"] * 4,
            "path": ["a/b c.jsonl", "x", "x", "x"],
            "title": ["Cats", None, "Dogs", None],
            "text": ["a nice cat", "a dog and a cat", "a dog", "nothing"],
            "created_at": ["2026-01-31T08:00:00Z", "2026-02-01T00:00:00Z", None, None],
            "sentiment_score": [-0.9, 0.5, None, None],
            "size_words": [3, 5, 2, 1],
            "language_code": ["de", "en", "en", None],
            "is_spam": [True, False, None, None],
            "attributes": ['{"subreddit": "aww", "n": {"m": 1}}', '{"subreddit": "pets"}', None, None],
        }
    )
    list(deliver(client, fresh_alias, [frame]))
    client.indices.refresh(index=fresh_alias)
    return fresh_alias


@pytest.mark.parametrize(
    ("query", "where", "found"),
    [
        ("cat", [], {"cats", "both"}),
        ("cat dog", [], {"both"}),
        ("cat | dog", [], {"cats", "both", "dogs"}),
        ("dog -cat", [], {"dogs"}),
        ('"nice cat"', [], {"cats"}),
        ("", [], {"cats", "both", "dogs", "other"}),
        ("*", ["size_words >= 3"], {"cats", "both"}),
        ("cat", ["sentiment_score < -0.5"], {"cats"}),
        ("", ["sentiment_score>-0.5", "language_code = en"], {"both"}),
        ("", ["language_code != en"], {"cats", "other"}),
        ("", ["is_spam = true"], {"cats"}),
        ("", ["created_at = 2026-01-31"], {"cats"}),
        ("", ["created_at >= 2026-01-31 08:00:01"], {"both"}),
        ("", ["created_at <= 2026-01-31T08:00:00Z"], {"cats"}),
        ("", ["path = 'a/b c.jsonl'"], {"cats"}),
        ("", ["attributes.subreddit = aww"], {"cats"}),
        ("", ["attributes.n.m=1"], {"cats"}),
        ("", ["title = cats"], {"cats"}),
        ("", ["size_words = 2.5"], set()),
        ('"unclosed ((( ~~ \\', [], set()),
    ],
)
def test_words_and_conditions_find(
    client: OpenSearch, alias: str, query: str, where: list[str], found: set[str]
) -> None:
    answer = search(client, alias, query, where)
    assert {hit["id"] for hit in answer["hits"]} == found
    assert answer["total"] == len(found)


def test_a_hit_shows_its_fields_and_the_total_counts_all(client: OpenSearch, alias: str) -> None:
    answer = search(client, alias, "cat", size=1)
    assert answer["total"] == 2
    assert answer["took_ms"] >= 0
    (hit,) = answer["hits"]
    assert hit["id"] == "cats"
    assert hit["score"] > 0
    assert hit["source"]["attributes"] == {"subreddit": "aww", "n": {"m": 1}}


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("mood = good", "The index has no field `mood`; it has attributes, author, created_at"),
        ("size_words = many", "`size_words` of type integer is compared with a number of 32 bits, not with `many`"),
        ("size_words > 99999999999", "a number of 32 bits"),
        ("sentiment_score < nan", "compared with a number"),
        ("is_spam = maybe", "compared with true or false"),
        ("created_at < 20260131", "compared with a date as 2026-01-31"),
        ("created_at < 2026-13-01", "compared with a date as 2026-01-31"),
        ("title < a", "`title` of type text has no order; use = or !="),
        ("language_code >= de", "`language_code` of type keyword has no order"),
        ("attributes.n.m > 1", "of type flat_object has no order"),
        ("size_words", "`size_words` is no condition; write `field operator value`"),
        ("size_words >", "is no condition"),
        ("= 3", "is no condition"),
        ("size_words => 3", "a number"),
        ("a b = 3", "is no condition"),
    ],
)
def test_a_condition_that_cannot_be_meant_is_told(condition: str, sentence: str) -> None:
    with pytest.raises(SearchRefused, match=re.escape(sentence)):
        build_query("", [condition], {**contract_fields(), **METRICS})


@given(st.text())
def test_no_condition_breaks_the_reader(condition: str) -> None:
    with contextlib.suppress(SearchRefused):
        assert build_query("", [condition], {**contract_fields(), **METRICS})


@pytest.mark.parametrize("operator", ["<", "<=", ">", ">=", "=", "!="])
def test_a_condition_has_three_parts(operator: str) -> None:
    for condition in (f"size_words{operator}-3", f"  size_words {operator}  -3 "):
        assert parse_condition(condition) == ("size_words", operator, "-3")


def test_a_search_without_an_index_or_beyond_the_limit_is_told(client: OpenSearch, fresh_alias: str) -> None:
    with pytest.raises(IndexUnavailable, match="OPENSEARCH_ALIAS"):
        search(client, fresh_alias, "cat")
    with pytest.raises(SearchRefused, match="gives 0 to 10000 hits, not 10001"):
        search(client, fresh_alias, "cat", size=10_001)


@pytest.mark.parametrize("query", ["word " * 3_000, "+(a " * 60])
def test_a_query_that_could_end_the_node_is_refused(client: OpenSearch, alias: str, query: str) -> None:
    with pytest.raises(SearchRefused, match="up to 10000 characters and 50 opening brackets"):
        search(client, alias, query)
    assert search(client, alias, "+(" * 50 + "cat" + ")" * 50)["total"] == 2
