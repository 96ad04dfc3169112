"""Records become documents: keys, what is kept, what is refused, and that every record is one or the other."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake_assets.contracts import IndexingDocuments
from lake_assets.text.documents import DOCUMENT_COLUMNS, REFUSED_COLUMNS, DocumentReader, draft_documents
from lake_assets.text.hashing import hash_rows, hash_strings
from lake_assets.text.keys import Occurrences
from lake_assets.text.records import split
from lake_assets.text.refusals import ObjectRefused, Reason
from lake_assets.text.sources import Source, Sources
from lake_assets_tests.conftest import GIVEN

REPOSITORY = Path(__file__).parents[2]
NOTHING = Sources()
LINES = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.dictionaries(
            st.sampled_from(["id", "text", "body", "date", "author", "x"]),
            st.one_of(st.none(), st.integers(0, 3), st.text(max_size=4), st.floats(), st.lists(st.integers())),
        ).map(lambda record: json.dumps(record).encode()),
    ),
    max_size=12,
)


def pieces(objects: Mapping[str, bytes], sources: Sources = NOTHING) -> list[pl.DataFrame]:
    """Gives the records of objects as `raw/records` holds them."""
    found: list[pl.DataFrame] = []
    for path, data in objects.items():
        try:
            for frame in split([data], path, sources.of(path)):
                found.append(frame.with_columns(path=pl.lit(path), etag=pl.lit("e")))
        except ObjectRefused:
            pass
    return found


def read(objects: Mapping[str, bytes], sources: Sources = NOTHING) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Gives the documents and the refused of objects, checked against the contract."""
    records = pieces(objects, sources)
    reader = DocumentReader(sources)
    results = [reader.read(piece) for piece in records]
    documents = pl.concat([pl.DataFrame(schema=DOCUMENT_COLUMNS), *(documents for documents, _ in results)])
    refused = pl.concat([pl.DataFrame(schema=REFUSED_COLUMNS), *(refused for _, refused in results)])
    IndexingDocuments.validate(documents.with_columns(batch=pl.lit(1, pl.Int64)))
    assert len(documents) + len(refused) == sum(map(len, records))
    assert documents.select("path", "key").is_duplicated().sum() == 0
    return documents, refused


def jsonl(*records: object) -> bytes:
    return b"\n".join(json.dumps(record).encode() for record in records)


def keys(*records: object) -> list[str]:
    return read({"a.jsonl": jsonl(*records)})[0]["key"].to_list()


def test_a_line_becomes_a_document() -> None:
    line = {"id": 7, "title": "T\nt", "text": "<p>Hello &amp; <b>bye</b>", "author": " Ann ", "date": "2024-02-29"}
    line["n"] = 1
    documents, refused = read({"a.jsonl": jsonl(line)})
    assert refused.is_empty()
    row = documents.row(0, named=True)
    assert (row["key"], row["path"], row["record"], row["title"]) == ("7", "a.jsonl", 0, "T t")
    assert (row["text"], row["author"], row["attributes"]) == ("Hello & bye", "Ann", '{"n":1}')
    assert str(row["created_at"]) == "2024-02-29 00:00:00+00:00"


def test_a_broken_line_is_refused_and_the_rest_goes_on() -> None:
    data = b'{"id":1,"text":"a"}\n{"id":2,"te\n[3]\n{"id":4}\n{"id":5,"text":"<b></b>"}\n"six"\n{"text":"\xff"}\n'
    documents, refused = read({"a.jsonl": data})
    assert documents["text"].to_list() == ["a", "six"]
    assert list(zip(refused["record"], refused["reason"], strict=True)) == [
        (1, "broken_json"), (2, "not_an_object"), (3, "no_text"), (4, "no_text"), (6, "undecodable"),
    ]  # fmt: skip
    assert all(detail.endswith(".") for detail in refused["detail"])


def test_a_repeated_key_gets_its_occurrence_and_no_two_meet() -> None:
    records = [{"id": key, "text": "x"} for key in ("a", "a#2", "a", "b", "a", "a#2", "a#2#1")]
    assert keys(*records) == ["a", "a#2#1", "a#2", "b", "a#3", "a#2#2", "a#2#1#1"]


def test_a_record_without_a_key_is_named_by_its_bytes() -> None:
    one, two, three = keys({"text": "x"}, {"text": "x"}, {"text": "y"})
    assert one.startswith("blake2b:")
    assert two == one + "#2"
    assert three.startswith("blake2b:")
    assert three != one
    assert keys({"id": one, "text": "z"}, {"text": "x"})[1] == one


def test_a_declared_key_that_is_missing_falls_back_to_the_bytes() -> None:
    sources = Sources((Source(name="s", prefix="s/", format="jsonl", key="code", text="t"),))
    data = jsonl({"code": "c", "t": "x"}, {"id": 1, "t": "x"}, {"code": "d", "text": "x"})
    documents, refused = read({"s/a": data}, sources)
    assert documents["key"].to_list()[0] == "c"
    assert documents["key"].to_list()[1].startswith("blake2b:")
    assert refused["reason"].to_list() == ["no_text"]


def test_a_whole_object_keeps_its_key_when_it_changes() -> None:
    first, _ = read({"a.txt": b"one", "b.html": b"<title>t</title><p>one"})
    second, _ = read({"a.txt": b"two", "b.html": b"<title>t</title><p>two"})
    assert first["key"].to_list() == second["key"].to_list() == ["object", "object"]
    assert first["title"].to_list() == [None, "t"]
    assert first["text"].to_list() == ["one", "one"]


def test_csv_rows_are_documents_by_their_header() -> None:
    data = b'id,text,date,n,n\r\n1,"a, ""b""\r\nc",2024-01-01,x,y\r\n2,short\r\n3,too,1,2,3,4\r\n4,"br\r\n5,fine,,,\r\n'
    documents, refused = read({"a.csv": data})
    assert documents["key"].to_list() == ["1", "2", "5"]
    assert documents["text"].to_list() == ['a, "b"\nc', "short", "fine"]
    assert documents["attributes"].to_list() == ['{"n":"x","n#2":"y"}', None, '{"date":"","n":"","n#2":""}']
    assert refused["reason"].to_list() == ["too_many_fields", "unclosed_quote"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize(
    ("path", "text"),
    [("a.txt", "grüße"), ("a.html", "<p>grüße"), ("a.jsonl", '{"text":"grüße"}'), ("a.csv", "id\ttext\n1\tgrüße")],
)
def test_a_byte_order_mark_tells_the_encoding(path: str, text: str, encoding: str) -> None:
    assert read({path: text.encode(encoding)})[0]["text"].to_list() == ["grüße"]
    declared = Sources((Source(name="s", prefix="a", encoding="cp1252"),))
    assert read({path: text.encode(encoding)}, declared)[0]["text"].to_list() == ["grüße"]
    assert read({path: text.encode("cp1252")}, declared)[0]["text"].to_list() == ["grüße"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_long_number_keeps_its_digits_beside_a_line_that_is_no_text(encoding: str) -> None:
    lines = '{"text":"x","n":123456789012345678901234567890}\n'.encode(encoding)
    documents, _ = read({"a.jsonl": lines + (b"\xff\n" if encoding == "utf-8" else b"\x00\xd8")})
    assert documents["attributes"].to_list() == ['{"n":123456789012345678901234567890}']


def test_a_page_may_declare_its_charset_and_other_text_may_not() -> None:
    page = '<html><head><meta charset="iso-8859-1"></head><body><p>grüße €</p>'.encode("cp1252")
    documents, refused = read({"a.html": page, "b.txt": page})
    assert documents["text"].to_list() == ["grüße €"]
    assert refused["reason"].to_list() == ["undecodable"]


def test_a_record_over_16_mib_is_refused() -> None:
    documents, refused = read({"a.jsonl": b'{"text":"' + b"x" * (17 << 20) + b'"}\n{"text":"y"}'})
    assert documents["text"].to_list() == ["y"]
    assert refused["reason"].to_list() == [Reason.RECORD_TOO_LARGE]


@settings(deadline=None, max_examples=60)
@given(LINES, st.sampled_from(["a.jsonl", "a.csv", "a.txt", "a.html", "a"]))
def test_every_record_of_any_bytes_is_a_document_or_refused(lines: list[bytes], path: str) -> None:
    read({path: b"\n".join(lines)})


@settings(deadline=None, max_examples=60)
@given(LINES, st.integers(0, 11))
def test_a_line_removed_in_the_middle_renames_no_other(lines: list[bytes], removed: int) -> None:
    lines = [line for line in dict.fromkeys(line.replace(b"\n", b"").strip() for line in lines) if line]
    lines = [b'{"id":%d,%s' % (number, line[1:]) if line[:1] == b"{" else line for number, line in enumerate(lines)]

    def named(some: list[bytes]) -> dict[str, str]:
        documents, _ = read({"a.jsonl": b"{}\n" + b"\n".join(some)})
        return dict(zip(documents["key"], documents["document_hash"], strict=True))

    whole, part = named(lines), named([line for number, line in enumerate(lines) if number != removed])
    if len({*whole}) == len(whole) and not any("#" in key for key in whole):
        assert part.items() <= whole.items()
        assert len(whole) - len(part) <= 1


def test_pieces_count_on_and_objects_begin_anew() -> None:
    lines = {path: b"".join(b'{"id":%d,"text":"x"}\n' % (n % 7) for n in range(40)) for path in ("a.jsonl", "b.jsonl")}
    records = pl.concat(pieces(lines))
    whole = DocumentReader(Sources()).read(records)[0]
    for size in (1, 3, 39, 41):
        reader = DocumentReader(Sources())
        parts = [reader.read(records[start : start + size])[0] for start in range(0, len(records), size)]
        assert pl.concat(parts).equals(whole)
    assert whole["key"].to_list()[:9] == ["0", "1", "2", "3", "4", "5", "6", "0#2", "1#2"]
    assert whole["key"].to_list()[:40] == whole["key"].to_list()[40:]


def test_drafts_may_be_made_elsewhere_and_numbered_here() -> None:
    records = pieces({"a.jsonl": jsonl(*[{"id": n % 3, "text": "x"} for n in range(9)])})[0]
    draft = pickle.loads(pickle.dumps(partial(draft_documents, Sources((Source(name="s", prefix="b"),)))))
    reader = DocumentReader(Sources())
    numbered = pl.concat([reader.number(draft(records[start : start + 2])[0]) for start in range(0, 9, 2)])
    assert numbered.equals(DocumentReader(Sources()).read(records)[0])


def test_occurrences_are_counted_over_many_runs() -> None:
    numbers: dict[str, int] = {}
    occurrences = Occurrences()
    for piece in range(30):
        names = [str((n * n + piece) % 101) for n in range(50)]
        frame = pl.DataFrame({"path": ["p"] * 50, "etag": ["e"] * 50, "key": names})
        expected = []
        for name in names:
            numbers[name] = numbers.get(name, 0) + 1
            expected.append(name if numbers[name] == 1 else f"{name}#{numbers[name]}")
        assert occurrences.number(frame).to_list() == expected


def test_equal_documents_have_equal_hashes_and_others_do_not() -> None:
    record = {"id": 1, "text": "x", "title": "t", "author": "a", "date": "2024-01-01", "n": 1}
    changed = [record | {name: value} for name, value in
               [("text", "y"), ("title", "u"), ("author", "b"), ("date", "2024-01-02"), ("n", 2)]]  # fmt: skip
    documents, _ = read({"a.jsonl": jsonl(dict(reversed(record.items())), *changed), "b.jsonl": jsonl(record, record)})
    first, again, twin = documents["document_hash"][0], documents["document_hash"][6], documents["document_hash"][7]
    assert documents["document_hash"].n_unique() == 7
    assert first != again == twin
    assert documents["text_hash"].n_unique() == 2


def test_hashes_are_the_published_function_and_stay_what_they_are() -> None:
    assert hash_strings(pl.Series(["", "abc", None, "ä"])).to_list() == [
        -5426141060434712860, 6455300059550759896, None, hash_strings(pl.Series(["ä".encode()]))[0],
    ]  # fmt: skip
    assert hash_strings(pl.Series([], dtype=pl.String)).dtype == pl.Int64
    ambiguous = [pl.Series(["a", "ab", None, "-", ""]), pl.Series(["bc", "c", "-", None, "abc"])]
    assert hash_rows(ambiguous).n_unique() == 5


AWKWARD = [
    b"", b"\x00", b"\xff\xfe", b"\xfe\xff\x00", b"\xef\xbb\xbf{", b"{", b"}", b"[" * 3000, b'"\\',
    b'{"text":"\\ud800"}', b'{"text":1e999}', b'{"text":"<script>"}', b'{"":""}', b'{"text":"\\u0000"}', b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd\x00",
    b'a,b\n"', b'"\n"\n"', b",,,\n,,,,", b"<html", b"<title></title>", "\U0010ffff".encode(), b"\xed\xa0\x80",
]  # fmt: skip


def test_hostile_files_are_read_or_refused(pytestconfig: pytest.Config) -> None:
    data = Path(pytestconfig.stash[GIVEN].get("LAKE_TEST_DATA", os.fspath(REPOSITORY.parent / "shared" / "data")))
    files = [path.read_bytes() for path in sorted((data / "nasty").rglob("*")) if path.is_file()]
    for content in [*AWKWARD, *(content for content in files if len(content) < 300_000)]:
        for name in ("a.jsonl", "a.csv", "a.txt", "a"):
            read({name: content})
    for content in AWKWARD:
        read({"a.html": content})


def test_naughty_strings_come_through_as_texts() -> None:
    strings = [
        "Ω≈ç√∫˜µ≤≥÷",
        "ÅÍÎÏ˝ÓÔÒÚÆ☃",
        "田中さんにあげて下さい",
        "(╯°□°）╯︵ ┻━┻)",
        "ثم نفس",
        "１２３",
        "𝐓𝐡𝐞",
        "1/0",
        "NULL",
    ]
    documents, refused = read({"a.jsonl": jsonl(*[{"id": n, "text": text} for n, text in enumerate(strings)])})
    assert refused.is_empty()
    assert documents["text"].to_list() == strings
