"""Bytes of an object → its records, exactly as they arrived, in frames of bounded size.

What belongs here: where a record begins and ends. What does not: what it means (`documents`).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl

from lake_assets.text.compression import decompress, peek
from lake_assets.text.cutting import MAX_RECORD_BYTES, Cutter, Form, Records, frame
from lake_assets.text.refusals import ObjectRefused, Reason
from lake_assets.text.sources import Format, Source, format_of_content, format_of_name

MAX_PATH_BYTES = 1024
MEDIA_TYPES: dict[Format, str] = {
    "txt": "text/plain",
    "html": "text/html",
    "jsonl": "application/json",
    "csv": "text/csv",
}
_HEAD_BYTES = 1 << 16
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def check_path(path: str) -> None:
    """Refuses a path that cannot name an object in every store, log and page; spaces and emoji are fine.

    Raises:
        ObjectRefused: `bad_path`: over 1024 bytes of UTF-8, not UTF-8, control characters or ends of lines, a
            backslash, or an empty, `.` or `..` segment.
    """
    try:
        size_bytes = len(path.encode())
    except UnicodeEncodeError as error:
        raise ObjectRefused(Reason.BAD_PATH, "The object's name is not UTF-8; rename it.") from error
    if size_bytes > MAX_PATH_BYTES:
        raise ObjectRefused(Reason.BAD_PATH, f"The object's name is over {MAX_PATH_BYTES} bytes; shorten it.")
    if _UNPRINTABLE.search(path) or "\\" in path:
        raise ObjectRefused(Reason.BAD_PATH, "The object's name holds a control character or a backslash; rename it.")
    if any(segment in ("", ".", "..") for segment in path.split("/")):
        raise ObjectRefused(Reason.BAD_PATH, "The object's name has an empty, `.` or `..` segment; rename it.")


def split(chunks: Iterable[bytes], path: str, source: Source) -> Iterator[pl.DataFrame]:
    """Cuts an object into records: a JSON line, a CSV row, or the whole object.

    Args:
        chunks: the object's bytes, compressed or not.
        path: its path; only the ending counts, where the source declares no format.
        source: what is declared of it.

    Yields:
        Frames of at most 50,000 rows and about 16 MiB: record (from 0), media_type, header (CSV: the header row),
        offset_bytes and length_bytes in the decompressed object, and raw: without the end of the line; null over
        16 MiB.

    Raises:
        ObjectRefused: after everything that could be read was yielded.
    """
    head, pieces = peek(decompress(chunks), _HEAD_BYTES)
    form = _form(head, path, source)
    frames = _whole(pieces, form) if form.format in ("txt", "html") else Cutter(form).cut(pieces)
    is_empty = True
    for frame_ in frames:
        is_empty = False
        yield frame_
    if is_empty:
        raise ObjectRefused(Reason.EMPTY_OBJECT)


def _form(head: bytes, path: str, source: Source) -> Form:
    """Recognises format and encoding: what is declared, then the name, then the first bytes."""
    bom, encoding = next(((bom, name) for bom, name in _BOMS if head.startswith(bom)), (b"", ""))
    encoding = encoding or codecs.lookup(source.encoding or "utf-8").name
    encoding = "utf-16-le" if encoding == "utf-16" else encoding
    content = head[len(bom) :].decode(encoding, "replace")
    form_format = source.format or format_of_name(path) or format_of_content(content)
    is_marked = encoding.startswith("utf-16") or (bom and source.encoding is not None)
    charset = f"; charset={encoding}" if is_marked else ""
    return Form(form_format, encoding, len(bom), MEDIA_TYPES[form_format] + charset)


def _whole(pieces: Iterator[bytes], form: Form) -> Iterator[pl.DataFrame]:
    """Gives the object as one record, with its byte order mark."""
    kept: list[bytes] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size <= MAX_RECORD_BYTES:
            kept.append(piece)
        else:
            kept.clear()
    raw = b"".join(kept) if size <= MAX_RECORD_BYTES else None
    if raw is None or raw[form.bom_bytes :].strip():
        yield frame(Records([raw], np.zeros(1, np.int64), np.array([size])), 0, form.media_type, None)
