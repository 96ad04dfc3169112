"""Rows of CSV after RFC 4180: where one ends, and what its fields are.

What belongs here: quotes and delimiters. What does not: which field means what.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache

from lake_assets.text.refusals import Reason, RecordRefused

DELIMITERS = (",", ";", "\t", "|")
# A quote that is open over more lines than this is taken for one that never closes.
MAX_ROW_LINES = 20_000
_QUOTED = re.compile(rb'[^"]*+(?:""[^"]*+)*+"')


class _End(Enum):
    CLOSED = 1
    OPEN = 2
    BROKEN = 3


def sniff_delimiter(header: str) -> str:
    """Gives the delimiter that occurs most often in a header row outside quotes; comma where none does."""
    bare = re.sub(r'"[^"]*+"?', "", header)
    return max(DELIMITERS, key=bare.count)


def row_ends(lines: list[bytes], delimiter: str, is_last: bool) -> list[int]:
    """Finds which lines form a row together.

    A quote opens a field only at its beginning. A quote that never closes, or goes on behind its closing quote, makes
    a row of its first line alone, which `parse_row` then refuses: it does not swallow what follows.

    Args:
        lines: whole lines without their ends, in an encoding that is a superset of ASCII.
        delimiter: one character.
        is_last: nothing follows; else a row that is still open is left for later.

    Returns:
        The number of the line behind each row; the next row begins there.
    """
    ends: list[int] = []
    start, count, mark = 0, len(lines), delimiter.encode()
    while start < count:
        end = start + 1 if b'"' not in lines[start] else _row_end(lines, start, mark)
        if end is None and not is_last:
            break
        start = start + 1 if end is None else end
        ends.append(start)
    return ends


def _row_end(lines: list[bytes], start: int, delimiter: bytes) -> int | None:
    """Gives the line behind the row that begins at a line; None while its last quote is open."""
    if _complete_row(delimiter).fullmatch(lines[start]):
        return start + 1
    end = _scan(lines[start], delimiter, is_inside=False)
    for index in range(start + 1, min(start + MAX_ROW_LINES, len(lines))):
        if end is not _End.OPEN:
            break
        end = _scan(lines[index], delimiter, is_inside=True)
        if end is _End.CLOSED:
            return index + 1
    return None if end is _End.OPEN and len(lines) - start < MAX_ROW_LINES else start + 1


@lru_cache(maxsize=8)
def _complete_row(delimiter: bytes) -> re.Pattern[bytes]:
    mark = re.escape(delimiter)
    field = rb'(?:"[^"]*+(?:""[^"]*+)*+"|[^"%b][^%b]*+|)' % (mark, mark)
    return re.compile(rb"%b(?:%b%b)*+\r?" % (field, mark, field))


def _scan(line: bytes, delimiter: bytes, is_inside: bool) -> _End:
    """Tells how a line leaves a row that it entered inside or outside a quoted field."""
    position, size = 0, len(line) - line.endswith(b"\r")
    while True:
        if not is_inside:
            if line[position : position + 1] != b'"':
                position = line.find(delimiter, position) + 1
                if not position:
                    return _End.CLOSED
                continue
            position += 1
        closing = _QUOTED.match(line, position)
        if closing is None:
            return _End.OPEN
        position = closing.end()
        if position >= size:
            return _End.CLOSED
        if line[position : position + 1] != delimiter:
            return _End.BROKEN
        position, is_inside = position + 1, False


@lru_cache(maxsize=8)
def _field(delimiter: str) -> re.Pattern[str]:
    mark = re.escape(delimiter)
    return re.compile(rf'"([^"]*+(?:""[^"]*+)*+)"|([^"{mark}][^{mark}]*+|)')


def parse_row(row: str, delimiter: str) -> list[str]:
    """Gives the fields of a row, without their quotes.

    Raises:
        RecordRefused: `unclosed_quote`.
    """
    if '"' not in row:
        return row.split(delimiter)
    fields: list[str] = []
    match, position = _field(delimiter).match, 0
    while True:
        found = match(row, position)
        if found is None:
            raise RecordRefused(Reason.UNCLOSED_QUOTE)
        quoted, plain = found.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        position = found.end()
        if position == len(row):
            return fields
        if row[position] != delimiter:
            raise RecordRefused(Reason.UNCLOSED_QUOTE)
        position += 1


def field_names(header: str, delimiter: str) -> list[str]:
    """Gives the names of a header row, each once: a repeated name gets `#2`, an empty one `column_3`.

    Raises:
        RecordRefused: `unclosed_quote`.
    """
    names: dict[str, int] = {}
    for number, field in enumerate(parse_row(header, delimiter), 1):
        name = field.strip() or f"column_{number}"
        unique, occurrence = name, names.get(name, 0)
        while unique in names:
            occurrence += 1
            unique = f"{name}#{occurrence + 1}"
        names[name] = occurrence
        names.setdefault(unique, 0)
    return list(names)
