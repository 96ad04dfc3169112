"""CSV after RFC 4180, beside the standard library's reader."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_assets.text.refusals import Reason, RecordRefused
from lake_assets.text.rows import DELIMITERS, field_names, parse_row, row_ends, sniff_delimiter

CELLS = st.text(alphabet=st.sampled_from('ab ,;\t|"\n\u00e9'), max_size=6)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=4), min_size=1, max_size=6), st.sampled_from(DELIMITERS))
def test_what_the_standard_library_writes_is_read_back(table: list[list[str]], delimiter: str) -> None:
    written = io.StringIO()
    csv.writer(written, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(table)
    lines = written.getvalue().removesuffix("\n").encode().split(b"\n")
    ends = row_ends(lines, delimiter, is_last=True)
    rows = [b"\n".join(lines[begin:end]).decode() for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    assert [parse_row(row, delimiter) for row in rows] == table


@given(st.lists(st.binary(max_size=10).map(lambda line: line.replace(b"\n", b'"')), max_size=12), st.booleans())
def test_every_line_belongs_to_one_row(lines: list[bytes], is_last: bool) -> None:
    ends = row_ends(lines, ",", is_last)
    assert ends == sorted(set(ends))
    assert not ends or ends[0] > 0
    assert not is_last or not lines or ends[-1] == len(lines)


@given(st.text(alphabet='a",\n', max_size=12))
def test_a_row_is_read_as_the_strict_reader_of_the_standard_library_reads_it(row: str) -> None:
    try:
        expected = next(csv.reader(io.StringIO(row, newline=""), strict=True), [""])
    except csv.Error:
        expected = None
    if "\n" in row and (expected is None or ",".join(expected).count("\n") != row.count("\n")):
        return  # two rows to the standard library, which `row_ends` would have cut
    if expected is None:
        with pytest.raises(RecordRefused) as refused:
            parse_row(row, ",")
        assert refused.value.reason is Reason.UNCLOSED_QUOTE
    else:
        assert parse_row(row, ",") == (expected or [""])


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [("a,b;c,d", ","), ("a;b", ";"), ("a\tb,c\td", "\t"), ("a|b", "|"), ("text", ","), ('"a,b,c";"d"', ";"), ("", ",")],
)
def test_the_header_tells_the_delimiter(header: str, delimiter: str) -> None:
    assert sniff_delimiter(header) == delimiter


def test_every_column_has_a_name_of_its_own() -> None:
    assert field_names("a,a, b ,,a#2,a", ",") == ["a", "a#2", "b", "column_4", "a#2#2", "a#3"]
    assert len(set(field_names("a," * 50_000, ","))) == 50_001
