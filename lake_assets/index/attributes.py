"""What of a record's other fields the index can take: `attributes` as one `flat_object`.

What belongs here: cutting the copy that is sent. The lake keeps every value whole; what is cut here is counted.
The limits were tried on OpenSearch 3.6.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import polars as pl

TERM_BYTES = 32_000
"""Most bytes of a path and its value together. Lucene refuses a document for one term over 32,766 bytes, and the term
of a `flat_object` is the field's name twice, the path and the value."""

PATH_BYTES = 16_000
"""Most bytes of a path; a field below a longer one is left out. One name over 50,000 characters is refused."""

DEPTH = 20
"""Most levels of objects and lists. The mapper calls itself for each level: 900 overflow its stack, which ends the
whole node, not the request. 20 is also the default of `index.mapping.depth.limit`."""

_SURELY_SHORT_CHARS = TERM_BYTES // 4


def project_attributes(values: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """Makes of each record's other fields what a `flat_object` takes.

    What is not a JSON object becomes null; text too long for a term is cut at a character; a field whose path is too
    long is left out; what lies too deep becomes null. Each of these counts as one cut.

    Args:
        values: String; a JSON object each, or null.

    Returns:
        String, valid JSON in one line each, or null; and the number of cuts in each row, as int64.
    """
    projected: list[str | None] = []
    cuts = np.zeros(values.len(), dtype=np.int64)
    for row, text in enumerate(values.to_list()):
        if text is None:
            projected.append(None)
            continue
        try:
            parsed = orjson.loads(text)
            if type(parsed) is dict and _is_surely_fit(text):
                projected.append(orjson.dumps(parsed).decode())
                continue
        except orjson.JSONDecodeError:
            parsed = _parse_leniently(text)
        projected_text, cuts[row] = _fit_object(parsed)
        projected.append(projected_text)
    return pl.Series(values.name, projected, dtype=pl.String), cuts


def _is_surely_fit(text: str) -> bool:
    """Tells from the length and the brackets alone that nothing needs to be cut."""
    return len(text) <= _SURELY_SHORT_CHARS and text.count("{") + text.count("[") <= DEPTH


def _parse_leniently(text: str) -> Any:
    """Reads what the strict parser refuses: lone surrogates, NaN, numbers of any length. False when it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return False


def _fit_object(parsed: Any) -> tuple[str | None, int]:
    if not isinstance(parsed, dict):
        return None, int(parsed is not None)
    cuts = [0]
    fitted = _fit(parsed, 0, 1, cuts)
    return orjson.dumps(fitted).decode(), cuts[0]


def _fit(value: Any, path_bytes: int, depth: int, cuts: list[int]) -> Any:
    """Gives a value that a `flat_object` takes; adds to `cuts[0]` what was lost."""
    if isinstance(value, str):
        return _fit_text(value, TERM_BYTES - path_bytes, cuts)
    if isinstance(value, dict | list):
        if depth > DEPTH:
            cuts[0] += 1
            return None
        if isinstance(value, list):
            return [_fit(item, path_bytes, depth + 1, cuts) for item in value]
        return _fit_fields(value, path_bytes, depth, cuts)
    if isinstance(value, int) and value.bit_length() > 63:
        return _fit_text(str(value), TERM_BYTES - path_bytes, cuts)
    return value


def _fit_fields(fields: dict[str, Any], path_bytes: int, depth: int, cuts: list[int]) -> dict[str, Any]:
    fitted: dict[str, Any] = {}
    for name, value in fields.items():
        name_utf8 = name.encode("utf-8", "replace")
        below = path_bytes + len(name_utf8) + 1
        if below > PATH_BYTES:
            cuts[0] += 1
        else:
            fitted[name_utf8.decode()] = _fit(value, below, depth + 1, cuts)
    return fitted


def _fit_text(text: str, room_bytes: int, cuts: list[int]) -> str:
    utf8 = text.encode("utf-8", "replace")
    if len(utf8) > room_bytes:
        cuts[0] += 1
        return utf8[:room_bytes].decode("utf-8", "ignore")
    return utf8.decode()
