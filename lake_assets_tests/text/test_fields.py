"""JSON lines and times as the world writes them."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake_assets.text.dates import parse_time
from lake_assets.text.fields import FieldReader, parse_object
from lake_assets.text.refusals import Reason, RecordRefused
from lake_assets.text.sources import UNDECLARED, Source

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read(record: dict, source: Source = UNDECLARED):
    return FieldReader(source).read(dict(record))


def test_conventional_names_are_found_in_any_case() -> None:
    content = read({"ID": 7, "Subject": "t", "Body": "x", "User": "ann", "Created": "2024-05-01", "stars": 5})
    assert content == ("7", "t", "x", "ann", 1714521600_000000, '{"stars":5}')


def test_the_first_field_that_holds_something_counts() -> None:
    content = read({"id": None, "uuid": "u", "text": "", "body": None, "message": "hello"})
    assert (content.key, content.text) == ("u", "hello")
    assert json.loads(content.attributes or "") == {"id": None, "text": "", "body": None}


def test_without_a_conventional_name_the_longest_string_is_the_text() -> None:
    assert read({"q": "short", "a": "the longest of them", "n": 1}).text == "the longest of them"


def test_what_cannot_be_used_stays_an_attribute() -> None:
    content = read({"text": "x", "author": {"name": "ann"}, "date": "soon", "title": ["a"], "id": "k" * 513})
    assert (content.author, content.created_at, content.title) == (None, None, None)
    assert set(json.loads(content.attributes or "")) == {"author", "date", "title", "id"}
    assert (content.key or "").startswith("blake2b:")


def test_declared_names_are_the_only_ones_of_their_purpose() -> None:
    source = Source(name="s", prefix="s", key="name", title="name", text=["long", "short"])
    content = read({"name": "pkg", "id": 1, "short": "x", "text": "y"}, source)
    assert (content.key, content.title, content.text) == ("pkg", "pkg", "x")
    assert read({"id": 1, "short": "x"}, source).key is None
    with pytest.raises(RecordRefused) as refused:
        read({"name": "pkg", "text": "y"}, source)
    assert refused.value.reason is Reason.NO_TEXT


@pytest.mark.parametrize("record", [{}, {"text": ""}, {"text": None}, {"text": []}, {"n": 1}, {"text": {"a": 1}}])
def test_a_record_without_text_is_refused(record: dict) -> None:
    with pytest.raises(RecordRefused) as refused:
        read(record)
    assert refused.value.reason is Reason.NO_TEXT


@pytest.mark.parametrize(
    ("value", "key"), [(7, "7"), ("a b", "a b"), (1.5, "1.5"), (True, "true"), ({"$o": "x"}, '{"$o":"x"}'), ("", None)]
)
def test_keys_are_written_as_strings(value: object, key: str | None) -> None:
    assert read({"_id": value, "text": "x"}).key == key


@pytest.mark.parametrize("digits", ["123456789012345678901234567890", "18446744073709551616", "-9223372036854775809"])
def test_long_numbers_stay_exact(digits: str) -> None:
    line = f'{{"id":{digits},"text":"x","n":[{digits}]}}'.encode()
    content = read(parse_object(line, is_delicate=True))
    assert (content.key, content.attributes) == (digits, f'{{"n":[{digits}]}}')


def test_half_surrogates_are_repaired_and_pairs_are_kept() -> None:
    fields = parse_object(b'{"text":"a\\ud800b \\ud83d\\ude00","x\\udfff":["\\udc00"]}', is_delicate=False)
    assert fields == {"text": "a\ufffdb 😀", "x\ufffd": ["\ufffd"]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a":', Reason.BROKEN_JSON),
        (b'{"text":NaN}', Reason.BROKEN_JSON),
        (b'{"text":-Infinity}', Reason.BROKEN_JSON),
        (b"[" * 100_000, Reason.BROKEN_JSON),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, Reason.BROKEN_JSON),
        (b'{"text":"\xff"}', Reason.UNDECODABLE),
        (b"[1]", Reason.NOT_AN_OBJECT),
        (b"12", Reason.NOT_AN_OBJECT),
        (b"null", Reason.NOT_AN_OBJECT),
    ],
)
def test_a_line_that_is_no_object_is_refused_with_its_reason(line: bytes, reason: Reason) -> None:
    with pytest.raises(RecordRefused) as refused:
        parse_object(line, is_delicate=False)
    assert refused.value.reason is reason


def test_attributes_as_deep_as_the_reader_goes_are_written_or_refused() -> None:
    for depth in (200, 300, 900, 1020):
        line = b'{"text":"x","a":' + b"[" * depth + b"]" * depth + b"}"
        with contextlib.suppress(RecordRefused):
            assert read(parse_object(line, is_delicate=False)).text == "x"


def test_a_number_beyond_all_floats_is_kept_as_it_is_written() -> None:
    assert parse_object(b'{"text":"x","n":1e999}', is_delicate=False)["n"] == "1e999"
    assert len(parse_object(b'{"text":"x","n":' + b"9" * 5000 + b"}", is_delicate=True)["n"]) == 5000


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2024-02-29T12:30:00Z", "2024-02-29T12:30:00+00:00"),
        ("2024-02-29T12:30:00.123456+02:00", "2024-02-29T10:30:00.123456+00:00"),
        ("2024-02-29 12:30", "2024-02-29T12:30:00+00:00"),
        (" 20240229 ", "2024-02-29T00:00:00+00:00"),
        (20240229, "2024-02-29T00:00:00+00:00"),
        ("Thu, 29 Feb 2024 12:30:00 +0100", "2024-02-29T11:30:00+00:00"),
        (1709209800, "2024-02-29T12:30:00+00:00"),
        (1709209800.25, "2024-02-29T12:30:00.250000+00:00"),
        (1709209800123, "2024-02-29T12:30:00.123000+00:00"),
        ("1709209800123456", "2024-02-29T12:30:00.123456+00:00"),
        (1709209800123456789, "2024-02-29T12:30:00.123456+00:00"),
        ("0001-01-01", "0001-01-01T00:00:00+00:00"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59+00:00"),
    ],
)
def test_times_are_read_in_utc(value: object, moment: str) -> None:
    microseconds = parse_time(value)
    assert microseconds is not None
    assert EPOCH + timedelta(microseconds=microseconds) == datetime.fromisoformat(moment)


@pytest.mark.parametrize(
    "value",
    [None, True, "", "soon", "2024", 2024, 0, -5, 1e30, float("nan"), float("inf"), "0001-01-01T00:00:00+14:00", [], {},
     "9999-12-31T23:59:59-10:00", "2024-02-30", "9" * 30, "1" * 100, "12:30", "²⁰²⁴", 99_991_399,
     "Mon, 99 Foo 2024 25:61"],
)  # fmt: skip
def test_what_is_no_time_is_none(value: object) -> None:
    assert parse_time(value) is None


@given(
    st.one_of(st.text(max_size=40), st.floats(), st.integers(), st.datetimes().map(str), st.from_regex(r"[0-9.:T+-]+"))
)
def test_any_value_is_a_time_of_the_years_1_to_9999_or_none(value: object) -> None:
    microseconds = parse_time(value)
    if microseconds is not None:
        assert 1 <= (EPOCH + timedelta(microseconds=microseconds)).year <= 9999
