"""A stream of plain bytes → lines or rows → frames, never holding more than one record and one block.

What belongs here: blocks, offsets, sizes. What does not: recognising formats (`records`), quotes (`rows`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import polars as pl

from lake_assets.text.refusals import ObjectRefused, Reason
from lake_assets.text.rows import field_names, row_ends, sniff_delimiter
from lake_assets.text.sources import Format

MAX_RECORD_BYTES = 16 << 20
MAX_HEADER_BYTES = 64 << 10
MAX_FRAME_ROWS = 50_000
MAX_FRAME_BYTES = 16 << 20
BLOCK_BYTES = 4 << 20
RECORD_SCHEMA: dict[str, pl.DataType] = {
    "record": pl.Int64(),
    "media_type": pl.String(),
    "header": pl.String(),
    "offset_bytes": pl.Int64(),
    "length_bytes": pl.Int64(),
    "raw": pl.Binary(),
}


class Form(NamedTuple):
    """How an object is cut: its format, its encoding, the bytes of its byte order mark, and what its records are."""

    format: Format
    encoding: str
    bom_bytes: int
    media_type: str


class Records(NamedTuple):
    """Records in a row: their bytes (None over 16 MiB), offsets and lengths."""

    raws: list[bytes | None]
    offsets: np.ndarray
    lengths: np.ndarray


def frame(records: Records, first: int, media_type: str, header: str | None) -> pl.DataFrame:
    """Makes one frame of records, numbered from `first`."""
    count = len(records.raws)
    columns = {
        "record": np.arange(first, first + count, dtype=np.int64),
        "media_type": pl.repeat(media_type, count, dtype=pl.String, eager=True),
        "header": pl.repeat(header, count, dtype=pl.String, eager=True),
        "offset_bytes": records.offsets,
        "length_bytes": records.lengths,
        "raw": pl.Series(records.raws, dtype=pl.Binary),
    }
    return pl.DataFrame(columns, schema=RECORD_SCHEMA)


class Cutter:
    """Cuts one object into the records of its lines (JSON) or rows (CSV)."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._newline = "\n".encode(form.encoding)
        self._return = "\r".encode(form.encoding)
        self._width = len(self._newline)
        self._offset = 0  # of the present block, in the decompressed object
        self._record = 0
        self._header: str | None = None
        self._delimiter = ""
        self._long_start: int | None = None  # where a record over 16 MiB began, whose end is still to come

    def cut(self, pieces: Iterator[bytes]) -> Iterator[pl.DataFrame]:
        """Gives the frames of all pieces; raises what the pieces raise, after the complete records before it."""
        waiting: list[bytes] = []
        tail, size, is_more = b"", 0, True
        to_skip_bytes = self._form.bom_bytes
        failure: ObjectRefused | None = None
        while is_more:
            try:
                piece = next(pieces, None)
            except ObjectRefused as refused:
                failure, piece = refused, None
            is_more = piece is not None
            if piece is not None:
                waiting.append(piece)
                size += len(piece)
            if size >= BLOCK_BYTES or not is_more:
                block = b"".join([tail, *waiting])[to_skip_bytes:]
                self._offset += to_skip_bytes
                waiting, size, to_skip_bytes = [], 0, 0
                tail = yield from self._block(block, is_last=not is_more and failure is None)
        if failure:
            raise failure

    def _block(self, block: bytes, is_last: bool) -> Generator[pl.DataFrame, None, bytes]:
        """Gives the frames of a block, and returns the bytes that belong to the next one."""
        if self._long_start is not None:
            end = self._find_newline(block)
            if end is None and not is_last:
                return self._drop(block)
            end = len(block) if end is None else end
            yield from self._frames(self._long_record(block[:end]))
            block = self._advance(block, min(len(block), end + self._width))
        lines, lengths = self._lines(block, is_last)
        used = len(lines)
        if lines and self._form.format == "csv":
            ends = self._row_ends(lines, is_last)
            used = ends[-1] if ends else 0
            rest_bytes = len(block) - int(lengths[:used].sum())
            if rest_bytes > MAX_RECORD_BYTES and used < len(lines):  # an open quote has reached the limit
                ends += [end + used for end in self._row_ends(lines[used:], is_last=True)]
                used = len(lines)
            yield from self._frames(self._csv_records(lines, lengths, ends))
        elif lines:
            yield from self._frames(self._records(lines, self._starts(lengths)))
        block = self._advance(block, int(lengths[:used].sum()))
        return self._drop(block) if len(block) > MAX_RECORD_BYTES and not is_last else block

    def _advance(self, block: bytes, size: int) -> bytes:
        self._offset += size
        return block[size:]

    def _find_newline(self, block: bytes) -> int | None:
        at = block.find(self._newline)
        while at > 0 and at % self._width:
            at = block.find(self._newline, at + 1)
        return at if at >= 0 else None

    def _drop(self, block: bytes) -> bytes:
        """Forgets the bytes of a record over 16 MiB, but for its last character, which may be part of its end."""
        if self._long_start is None:
            self._long_start = self._offset
        return self._advance(block, max(0, len(block) - self._width - len(block) % self._width))

    def _long_record(self, last_bytes: bytes) -> Records:
        if self._form.format == "csv" and self._header is None:
            raise ObjectRefused(Reason.RECORD_TOO_LARGE, "The header row is over 64 KiB; declare another format.")
        start = self._long_start or 0
        self._long_start = None
        length = self._offset + len(last_bytes.removesuffix(self._return)) - start
        return Records([None], np.array([start]), np.array([length]))

    def _lines(self, block: bytes, is_last: bool) -> tuple[list[bytes], np.ndarray]:
        """Gives the complete lines of a block without their newlines, and their lengths in bytes with them."""
        if self._width == 1:
            lines = block.split(b"\n")
        else:
            units = np.frombuffer(block, ">u2" if self._form.encoding.endswith("be") else "<u2", len(block) // 2)
            ends = (np.flatnonzero(units == 10) * 2).tolist()
            starts = [0, *(end + 2 for end in ends)]
            lines = [block[start:end] for start, end in zip(starts, [*ends, None], strict=True)]
        last = lines.pop()
        lengths = np.fromiter(map(len, lines), np.int64, len(lines)) + self._width
        if last and is_last:
            lines.append(last)
            lengths = np.append(lengths, len(last))
        return lines, lengths

    def _starts(self, lengths: np.ndarray) -> np.ndarray:
        return self._offset + np.cumsum(lengths) - lengths

    def _csv_records(self, lines: list[bytes], lengths: np.ndarray, ends: list[int]) -> Records:
        join = self._newline.join
        begins = [0, *ends[:-1]] if ends else []
        spans = zip(begins, ends, strict=True)
        rows = [lines[begin] if end - begin == 1 else join(lines[begin:end]) for begin, end in spans]
        return self._records(rows, self._starts(lengths)[np.array(begins, np.int64)])

    def _records(self, raws: list[bytes], starts: np.ndarray) -> Records:
        """Takes carriage returns at the end, blank records and the header row away."""
        if any(raw.endswith(self._return) for raw in raws):
            raws = [raw.removesuffix(self._return) for raw in raws]
        if self._width == 1:
            blank = [not raw or raw.isspace() for raw in raws]
        else:
            blank = [not raw.decode(self._form.encoding, "replace").strip() for raw in raws]
        if any(blank):
            raws = [raw for raw, is_blank in zip(raws, blank, strict=True) if not is_blank]
            starts = starts[~np.array(blank)]
        if raws and self._form.format == "csv" and self._header is None:
            self._header = self._decoded_header(raws.pop(0))
            starts = starts[1:]
        lengths = np.fromiter(map(len, raws), np.int64, len(raws))
        if raws and lengths.max() > MAX_RECORD_BYTES:
            return Records([raw if len(raw) <= MAX_RECORD_BYTES else None for raw in raws], starts, lengths)
        return Records(list(raws), starts, lengths)

    def _decoded_header(self, raw: bytes) -> str:
        if len(raw) > MAX_HEADER_BYTES:
            raise ObjectRefused(Reason.RECORD_TOO_LARGE, "The header row is over 64 KiB; declare another format.")
        try:
            header = raw.decode(self._form.encoding)
        except UnicodeDecodeError as error:
            raise ObjectRefused(Reason.UNDECODABLE) from error
        field_names(header, sniff_delimiter(header))
        return header

    def _row_ends(self, lines: list[bytes], is_last: bool) -> list[int]:
        """Gives the number of the line behind each row."""
        encoding = self._form.encoding
        views = lines if self._width == 1 else [line.decode(encoding, "replace").encode() for line in lines]
        if not self._delimiter:
            first = next((view for view in views if view.strip()), b"")
            if not first:
                return list(range(1, len(lines) + 1))
            self._delimiter = sniff_delimiter(first.decode(encoding if self._width == 1 else "utf-8", "replace"))
        return row_ends(views, self._delimiter, is_last)

    def _frames(self, records: Records) -> Iterator[pl.DataFrame]:
        header_bytes = len(self._header or "")
        kept = np.where(records.lengths > MAX_RECORD_BYTES, 0, records.lengths) + header_bytes
        ends = np.cumsum(kept)
        start, count = 0, len(records.raws)
        while start < count:
            before = int(ends[start - 1]) if start else 0
            end = int(np.searchsorted(ends, before + MAX_FRAME_BYTES, "right"))
            end = min(max(end, start + 1), start + MAX_FRAME_ROWS, count)
            part = Records(records.raws[start:end], records.offsets[start:end], records.lengths[start:end])
            yield frame(part, self._record, self._form.media_type, self._header)
            self._record += end - start
            start = end
