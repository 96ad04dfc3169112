"""Fields of a record → key, title, text, author, time, and all the others.

What belongs here: JSON, and which field means what. What does not: cleaning, and frames (`documents`).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple, NoReturn

import orjson

from lake_assets.text.dates import parse_time
from lake_assets.text.keys import HASHED, key_of_name
from lake_assets.text.refusals import Reason, RecordRefused
from lake_assets.text.sources import CONVENTIONS, ROLES, Source

_MAX_SHAPES = 1000
_TOO_DEEP = "The line is nested too deeply."
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Shape(NamedTuple):
    """Which fields, of those a record has, may serve each purpose, in order."""

    key: tuple[str, ...]
    text: tuple[str, ...]
    title: tuple[str, ...]
    author: tuple[str, ...]
    created_at: tuple[str, ...]


class Content(NamedTuple):
    """What one record says; the key is None where no field gives it."""

    key: str | None
    title: str | None
    text: str
    author: str | None
    created_at: int | None  # microseconds since 1970, UTC
    attributes: str | None


class FieldReader:
    """Reads the records of one source: which names its records have is worked out once per combination."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._shapes: dict[tuple[str, ...], Shape] = {}

    def read(self, fields: dict[str, Any]) -> Content:
        """Sorts the fields of one record; what is used is taken out of `fields`, all the rest is kept as attributes.

        Raises:
            RecordRefused: `no_text`.
        """
        names = tuple(fields)
        shape = self._shapes.get(names) or self._remember(names)
        key = title = author = created_at = None
        used: list[str] = []
        for name in shape.key:
            value = fields[name]
            if value is not None and value != "":
                key = key_of_name(value if isinstance(value, str) else _written(value))
                if not key.startswith(HASHED):  # a hash does not tell the name, which stays an attribute
                    used.append(name)
                break
        for name in shape.title:
            if (title := _scalar(fields[name])) is not None:
                used.append(name)
                break
        for name in shape.author:
            value = fields[name]
            if isinstance(value, str) and value:
                author = value
                used.append(name)
                break
        for name in shape.created_at:
            if (created_at := parse_time(fields[name])) is not None:
                used.append(name)
                break
        name, text = self._text(fields, shape, used)
        used.append(name)
        for name in used:
            fields.pop(name, None)
        return Content(key, title, text, author, created_at, dump(fields) if fields else None)

    def _text(self, fields: dict[str, Any], shape: Shape, used: list[str]) -> tuple[str, str]:
        for name in shape.text:
            text = _scalar(fields[name])
            if text is not None:
                return name, text
        if self._source.text is not None or shape.text:
            raise RecordRefused(Reason.NO_TEXT)
        others = [(name, value) for name, value in fields.items() if isinstance(value, str) and name not in used]
        name, text = max(others, key=lambda other: len(other[1]), default=("", ""))
        if not text:
            raise RecordRefused(Reason.NO_TEXT)
        return name, text

    def _remember(self, names: tuple[str, ...]) -> Shape:
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        shape = self._shapes[names] = shape_of(names, self._source)
        return shape


def shape_of(names: tuple[str, ...], source: Source) -> Shape:
    """Finds which of a record's names serve each purpose: the declared ones, else conventional ones in any case."""
    declared = {role: getattr(source, role) for role in ROLES}
    taken = {name for wanted in declared.values() for name in wanted or ()}
    lowered: dict[str, list[str]] = {}
    for name in names:
        if name not in taken:
            lowered.setdefault(name.lower(), []).append(name)
    found = {}
    for role in ROLES:
        if declared[role] is not None:
            present = set(names)
            found[role] = tuple(name for name in declared[role] if name in present)
        else:
            found[role] = tuple(name for wanted in CONVENTIONS[role] for name in lowered.get(wanted, ()))
    return Shape(**found)


def _scalar(value: object) -> str | None:
    """Gives a string or number as text; None for null, the empty string, and what has parts."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else None


def _written(value: object) -> str:
    return _scalar(value) or dump(value)


def parse_object(raw: bytes | str, is_delicate: bool) -> dict[str, Any]:
    """Reads one JSON line; a bare string counts as `{"text": …}`.

    Args:
        raw: UTF-8, or decoded.
        is_delicate: it holds a number of 19 digits or more, which the fast reader would round.

    Raises:
        RecordRefused: `broken_json`, `not_an_object` or `undecodable`.
    """
    if is_delicate:
        value = _parse_slowly(raw)
    else:
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            value = _parse_slowly(raw)
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"text": value}
    raise RecordRefused(Reason.NOT_AN_OBJECT)


def _parse_slowly(raw: bytes | str) -> Any:
    """Reads what the fast reader refuses or rounds: long numbers, half surrogates; not NaN, and not endless depth."""
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_float, parse_int=_int)
        return _repaired(value) if "\\u" in text else value
    except UnicodeDecodeError:
        raise RecordRefused(Reason.UNDECODABLE) from None
    except json.JSONDecodeError as error:
        raise RecordRefused(Reason.BROKEN_JSON, f"The line is not JSON: {error.msg}, at {error.pos}.") from None
    except RecursionError:
        raise RecordRefused(Reason.BROKEN_JSON, _TOO_DEEP) from None


def _refuse_constant(name: str) -> NoReturn:
    raise RecordRefused(Reason.BROKEN_JSON, f"The line holds {name}, which JSON does not know.")


def _float(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits


def _int(digits: str) -> int | str:
    return int(digits) if len(digits) <= 1000 else digits


def _repaired(value: Any) -> Any:
    """Replaces half surrogates, which no encoding can write, by U+FFFD."""
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_repaired(item) for item in value]
    if isinstance(value, dict):
        return {_repaired(name): _repaired(item) for name, item in value.items()}
    return value


def dump(value: object) -> str:
    """Writes a value as compact JSON with sorted names; numbers of any length stay exact.

    Raises:
        RecordRefused: `broken_json`, nested too deeply.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except orjson.JSONEncodeError:
        try:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        except RecursionError:
            raise RecordRefused(Reason.BROKEN_JSON, _TOO_DEEP) from None
