"""Where records begin and end: every format, compression and encoding, and what is refused of an object."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterable, Iterator

import polars as pl
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lake_assets.text.cutting import MAX_FRAME_BYTES, MAX_FRAME_ROWS, MAX_RECORD_BYTES, RECORD_SCHEMA
from lake_assets.text.records import check_path, split
from lake_assets.text.refusals import ObjectRefused, Reason
from lake_assets.text.sources import UNDECLARED, Source

MIB = 1 << 20


def records(data: bytes | Iterable[bytes], path: str, source: Source = UNDECLARED) -> tuple[pl.DataFrame, str | None]:
    """Gives all records of an object, and the reason it was refused for behind them."""
    frames: list[pl.DataFrame] = []
    reason = None
    try:
        for frame in split([data] if isinstance(data, bytes) else data, path, source):
            assert dict(frame.schema) == RECORD_SCHEMA
            frames.append(frame)
    except ObjectRefused as refused:
        reason = str(refused.reason)
    return pl.concat([pl.DataFrame(schema=RECORD_SCHEMA), *frames]), reason


def raws(data: bytes | Iterable[bytes], path: str, source: Source = UNDECLARED) -> list[bytes | None]:
    return records(data, path, source)[0]["raw"].to_list()


def test_each_line_that_is_not_blank_is_a_record_with_its_place() -> None:
    data = b'{"a":1}\r\n\n  \t\n{"b":2}\n{"c":3}'
    found, reason = records(data, "a.jsonl")
    assert reason is None
    assert found["raw"].to_list() == [b'{"a":1}', b'{"b":2}', b'{"c":3}']
    assert found["record"].to_list() == [0, 1, 2]
    for row in found.iter_rows(named=True):
        assert data[row["offset_bytes"] :][: row["length_bytes"]] == row["raw"]
    assert found["media_type"].unique().to_list() == ["application/json"]
    assert found["header"].null_count() == 3


@given(st.binary(max_size=400), st.integers(1, 50))
def test_the_records_of_any_bytes_are_its_lines_however_they_arrive(data: bytes, size: int) -> None:
    data = b"{" + data.replace(b"\xff\xfe", b"")
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    found, reason = records(chunks, "a.jsonl")
    lines = [line.removesuffix(b"\r") for line in data.split(b"\n") if line.strip(b" \t\r\n\x0b\x0c")]
    assert reason is None
    assert found["raw"].to_list() == lines
    for row in found.iter_rows(named=True):
        assert data[row["offset_bytes"] :][: row["length_bytes"]] == row["raw"]


@given(st.binary(max_size=600), st.sampled_from(["a.csv", "a.jsonl", "a.txt", "a.html", "a", "a.jsonl.gz"]))
def test_no_bytes_raise_anything_but_a_refusal(data: bytes, path: str) -> None:
    for prefix in (b"", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", b"\xff\xfe", b"\xfe\xff", b'a,b\n"'):
        records(prefix + data, path)


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_compression_is_recognised_by_its_bytes_and_members_follow_each_other(compress) -> None:
    data = compress(b'{"a":1}\n{"b"') + compress(b":2}\n") + compress(b'{"c":3}')
    expected = [b'{"a":1}', b'{"b":2}', b'{"c":3}']
    assert raws(data, "name.says.nothing") == expected
    assert raws([data[i : i + 1] for i in range(len(data))], "a.jsonl") == expected
    assert raws(gzip.compress(data), "a.jsonl.gz.gz") == expected


def test_a_gzip_padded_with_zeros_is_whole() -> None:
    assert records(gzip.compress(b'{"a":1}\n') + bytes(512), "a.jsonl.gz")[1] is None


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_of_a_stream_that_ends_early_the_complete_lines_come_first(compress) -> None:
    lines = [json.dumps({"id": n, "text": hex(n * 7919**5)}).encode() for n in range(60_000)]
    data = compress(b"\n".join(lines))
    found, reason = records(data[: len(data) // 2], "a.jsonl.gz")
    assert reason == "broken_compression"
    assert 1000 < len(found) < 60_000
    assert found["raw"].to_list() == lines[: len(found)]


def test_a_whole_object_that_ends_early_is_no_record() -> None:
    found, reason = records(gzip.compress(b"some text" * 100)[:-9], "a.txt.gz")
    assert (len(found), reason) == (0, "broken_compression")


def test_garbage_behind_a_compressed_stream_is_refused_after_the_records() -> None:
    found, reason = records(gzip.compress(b'{"a":1}\n') + b"garbage", "a.jsonl")
    assert (len(found), reason) == (1, "broken_compression")


@pytest.mark.parametrize("data", [b"", b" \r\n\t\n", gzip.compress(b""), b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("path", ["a.txt", "a.jsonl", "a.csv", "a.html", "a"])
def test_an_object_without_any_text_is_empty(data: bytes, path: str) -> None:
    found, reason = records(data, path)
    assert (len(found), reason) == (0, "empty_object")


def test_a_header_without_rows_is_empty() -> None:
    assert records(b"id,text\r\n", "a.csv")[1] == "empty_object"


def test_a_bomb_is_refused_in_bounded_memory() -> None:
    member = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    packed = member.compress(bytes(64 * MIB)) + member.flush()
    tracemalloc.start()
    _, reason = records((packed for _ in range(17)), "a.jsonl.gz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reason == "bomb"
    assert peak < 80 * MIB


def test_a_line_of_200_mb_is_a_pointer_and_memory_stays_bounded() -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"a":1}\n{"text":"'
        for _ in range(200):
            yield b"x" * MIB
        yield b'"}\r\n{"b":2}\n'

    tracemalloc.start()
    found, reason = records(chunks(), "a.jsonl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reason is None
    assert found["raw"].to_list() == [b'{"a":1}', None, b'{"b":2}']
    assert found["offset_bytes"].to_list() == [0, 8, 8 + 9 + 200 * MIB + 2 + 2]
    assert found["length_bytes"].to_list() == [7, 9 + 200 * MIB + 2, 7]
    assert peak < 80 * MIB


@pytest.mark.parametrize("size", [MAX_RECORD_BYTES, MAX_RECORD_BYTES + 1])
@pytest.mark.parametrize("path", ["a.jsonl", "a.txt"])
def test_a_record_over_16_mib_is_a_pointer_to_it(size: int, path: str) -> None:
    found, _ = records(b"{" + b"x" * (size - 1), path)
    assert found["length_bytes"].to_list() == [size]
    assert found["raw"].null_count() == (size > MAX_RECORD_BYTES)


def test_frames_are_bounded_in_rows_and_bytes() -> None:
    for data in (b"{}\n" * 120_000, (b"{" + b"y" * 3 * MIB + b"}\n") * 15):
        frames = list(split([data], "a.jsonl", UNDECLARED))
        assert all(len(frame) <= MAX_FRAME_ROWS for frame in frames)
        assert all(frame["length_bytes"].sum() <= MAX_FRAME_BYTES for frame in frames)
        assert pl.concat(frames)["record"].to_list() == list(range(data.count(b"\n")))


def test_csv_rows_span_lines_and_keep_the_header() -> None:
    data = 'id;text\r\n1;"a ""b""\r\nc; d"\r\n\r\n2;plain "quote"\r\n3;ʤ'.encode()
    found, reason = records(data, "a.csv")
    assert reason is None
    assert found["raw"].to_list() == [b'1;"a ""b""\r\nc; d"', b'2;plain "quote"', "3;ʤ".encode()]
    assert found["header"].unique().to_list() == ["id;text"]
    for row in found.iter_rows(named=True):
        assert data[row["offset_bytes"] :][: row["length_bytes"]] == row["raw"]


@pytest.mark.parametrize("broken", [b'2,"never closed', b'2,"closed" too early', b'"2,x'])
def test_a_quote_that_never_closes_costs_its_line_only(broken: bytes) -> None:
    data = b"id,text\n1,a\n" + broken + b"\n3,c\n" + b'4,"d\nd"\n' + b"5,e\n" * 1000
    expected = [b"1,a", broken, b"3,c", b'4,"d\nd"', *[b"5,e"] * 1000]
    assert raws(data, "a.csv") == expected


@pytest.mark.parametrize("line", [b"2,plain text\n" * 100_000, b"2," + b"x" * 3 * MIB + b"\n"])
def test_an_open_quote_does_not_hold_more_than_a_record(line: bytes) -> None:
    chunks = [b'id,text\n1,"open\n', *[line] * 12]
    frames = list(split(chunks, "a.csv", UNDECLARED))
    expected = b"".join(chunks).removesuffix(b"\n").split(b"\n")[1:]
    assert [raw for frame in frames for raw in frame["raw"]] == expected
    assert all(frame["length_bytes"].sum() <= MAX_FRAME_BYTES for frame in frames)


def test_a_csv_header_that_is_broken_or_endless_refuses_the_object() -> None:
    assert records(b'id,"text\n1,a\n', "a.csv")[1] == "unclosed_quote"
    assert records(b"x" * 70_000 + b"\n1,a\n", "a.csv")[1] == "record_too_large"
    assert records(b"x" * (MAX_RECORD_BYTES + MIB) + b"\n1,a\n", "a.csv")[1] == "record_too_large"
    assert records(b"id,\xff\n1,a\n", "a.csv")[1] == "undecodable"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_cut_at_its_own_newlines_and_kept_as_it_came(encoding: str) -> None:
    text = '{"a":"\u0a41\u0100 \u010a"}\r\n\n{"b":"\U0001f600"}'
    bom = "\ufeff".encode(encoding)
    found, _ = records(bom + text.encode(encoding), "a.jsonl")
    assert found["raw"].to_list() == [line.encode(encoding) for line in text.replace("\r", "").split("\n\n")]
    assert found["media_type"].unique().to_list() == [f"application/json; charset={encoding}"]
    found, _ = records(bom + 'id\ttext\r\n1\t"a\nb"\r\n'.encode(encoding), "a.csv")
    assert found["raw"].to_list() == ['1\t"a\nb"'.encode(encoding)]
    assert found["header"].to_list() == ["id\ttext"]
    assert raws(bom + "text".encode(encoding), "a.txt") == [bom + "text".encode(encoding)]


def test_the_mark_of_utf_8_is_no_part_of_the_first_line() -> None:
    found, _ = records(b'\xef\xbb\xbf{"a":1}\n', "a.jsonl")
    assert (found["raw"].to_list(), found["offset_bytes"].to_list()) == ([b'{"a":1}'], [3])


@pytest.mark.parametrize("path", ["a b/ü 😀.txt", "a", "x" * 1024, "a/.hidden/..b"])
def test_spaces_and_emoji_are_fine_in_a_path(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", "a/../b", "./a", "a\nb", "a\x00", "a\x7f", "a\\b", "\ud800", "x" * 1025, "ü" * 513],
)
def test_a_hostile_path_is_refused(path: str) -> None:
    with pytest.raises(ObjectRefused) as refused:
        check_path(path)
    assert refused.value.reason is Reason.BAD_PATH


def test_every_reason_has_a_sentence() -> None:
    assert all(reason.sentence.endswith(".") for reason in Reason)
