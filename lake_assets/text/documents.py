"""Records → documents: clean text in place of raw text, a key, and the reason where there is no document.

What belongs here: whole pieces of `raw/records`. The steps are in `charset`, `fields`, `rows`, `keys`, `clean`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl

from lake_assets.contracts import IndexingDocuments, QuarantineRecords, polars_schema
from lake_assets.text.charset import decode
from lake_assets.text.clean import clean_page, clean_texts
from lake_assets.text.fields import Content, FieldReader, parse_object
from lake_assets.text.hashing import hash_rows, hash_strings
from lake_assets.text.keys import WHOLE_KEY, Occurrences, key_of_bytes
from lake_assets.text.refusals import Reason, RecordRefused
from lake_assets.text.rows import field_names, parse_row, sniff_delimiter
from lake_assets.text.sources import Sources

DOCUMENT_COLUMNS = pl.Schema(
    {name: dtype for name, dtype in polars_schema(IndexingDocuments).items() if name != "batch"}
)
REFUSED_COLUMNS = pl.Schema(
    {name: polars_schema(QuarantineRecords)[name] for name in ("path", "etag", "record", "reason", "detail")}
)
# Longer numbers than this many digits are rounded by the fast JSON reader.
_LONG_NUMBER = r"[0-9]{19}"


@dataclass
class _Reading:
    """How the records of one object are read; delimiter and names are those of a CSV header."""

    media_type: str
    encoding: str | None
    fields: FieldReader
    delimiter: str
    names: list[str]


class _Read(NamedTuple):
    """What became of the records of a piece: row numbers, and beside them documents or refusals."""

    rows: list[int]
    contents: list[Content]
    page_rows: list[int]  # places in `contents` whose text is clean already
    refusals: list[tuple[int, Reason, str]]


class DocumentReader:
    """Makes documents of records, piece by piece; remembers the keys of the object that it is reading.

    One reader reads the pieces of a table in order: by path, then record; the pieces of one object follow each other.
    To use several processes, let them call `draft_documents`, and `number` the drafts here in the order of the pieces.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._occurrences = Occurrences()

    def read(self, records: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Gives the documents of a piece, and what was refused of it; each record is in one of the two.

        Args:
            records: path, etag, record, media_type, header, raw, in order of path and record.

        Returns:
            Documents with the columns of `indexing/documents` but for batch, and the refused with path, etag, record,
            reason and detail; both in the order of the records.
        """
        drafts, refused = draft_documents(self._sources, records)
        return self.number(drafts), refused

    def number(self, drafts: pl.DataFrame) -> pl.DataFrame:
        """Gives drafts their final keys: repeated ones are told apart by their occurrence in the object."""
        return drafts.with_columns(self._occurrences.number(drafts)).select(DOCUMENT_COLUMNS.keys())


def draft_documents(sources: Sources, records: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Does all of `DocumentReader.read` but numbering the keys: depends on nothing but the piece.

    Returns:
        Drafts with the columns of `indexing/documents` but for batch, and etag; and the refused.
    """
    read = _contents(sources, records)
    drafts = pl.DataFrame({"row": pl.Series(read.rows, dtype=pl.UInt32), **_content_columns(read.contents)})
    drafts = drafts.with_columns(_cleaned(drafts["text"], read.page_rows))
    is_empty = drafts["text"] == ""
    emptied = [(row, Reason.NO_TEXT, Reason.NO_TEXT.sentence) for row in drafts["row"].filter(is_empty)]
    drafts = drafts.filter(~is_empty)
    placed = records.select("path", "etag", "record")[drafts["row"]]
    drafts = drafts.with_columns(
        *placed.get_columns(),
        _line(drafts["title"]),
        _line(drafts["author"]),
        drafts["created_at"].cast(DOCUMENT_COLUMNS["created_at"]),
        hash_strings(drafts["text"]).alias("text_hash"),
    )
    drafts = drafts.with_columns(_document_hashes(drafts)).select("etag", *DOCUMENT_COLUMNS.keys())
    return drafts.cast({**DOCUMENT_COLUMNS}), _refused(records, read.refusals + emptied)


def _contents(sources: Sources, records: pl.DataFrame) -> _Read:
    read = _Read([], [], [], [])
    readings = _Readings(sources)
    delicate = _delicate(records["raw"])
    columns = records.select("path", "media_type", "header", "raw")
    for row, (path, media_type, header, raw) in enumerate(columns.iter_rows()):
        try:
            if raw is None:
                raise RecordRefused(Reason.RECORD_TOO_LARGE)
            reading = readings.of(path, media_type, header)
            content = _content(reading, raw, delicate[row])
        except RecordRefused as refused:
            read.refusals.append((row, refused.reason, refused.detail))
            continue
        if reading.media_type == "text/html":
            read.page_rows.append(len(read.rows))
        read.rows.append(row)
        read.contents.append(content)
    return read


def _delicate(raws: pl.Series) -> list[bool]:
    """Tells of each record whether it holds a number that the fast JSON reader would round."""
    try:
        return raws.cast(pl.String).str.contains(_LONG_NUMBER).fill_null(False).to_list()
    except pl.exceptions.ComputeError:  # one is not UTF-8, which costs the others their speed and nothing else
        search = re.compile(_LONG_NUMBER.encode()).search
        return [raw is not None and search(raw) is not None for raw in raws]


class _Readings:
    """Remembers how the records of the present object are read, and the fields of each source."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._fields: dict[str, FieldReader] = {}
        self._present: tuple[str, str, str | None] | None = None
        self._reading: _Reading | None = None

    def of(self, path: str, media_type: str, header: str | None) -> _Reading:
        if self._reading is None or self._present != (path, media_type, header):
            source = self._sources.of(path)
            base, _, charset = media_type.partition("; charset=")
            delimiter = sniff_delimiter(header or "")
            names = field_names(header, delimiter) if header is not None else []
            fields = self._fields.setdefault(source.prefix, FieldReader(source))
            self._present = path, media_type, header
            self._reading = _Reading(base, charset or source.encoding, fields, delimiter, names)
        return self._reading


def _content(reading: _Reading, raw: bytes, is_delicate: bool) -> Content:
    """Reads one record.

    Raises:
        RecordRefused: it cannot become a document.
    """
    if reading.media_type == "application/json":
        line: bytes | str = raw
        if reading.encoding:
            line = decode(raw, reading.encoding)
            is_delicate = re.search(_LONG_NUMBER, line) is not None
        content = reading.fields.read(parse_object(line, is_delicate))
    elif reading.media_type == "text/csv":
        content = reading.fields.read(_row(reading, decode(raw, reading.encoding)))
    elif reading.media_type == "text/html":
        title, text = clean_page(decode(raw, reading.encoding, is_page=True))
        return Content(WHOLE_KEY, title, text, None, None, None)
    else:
        return Content(WHOLE_KEY, None, decode(raw, reading.encoding), None, None, None)
    return content if content.key is not None else content._replace(key=key_of_bytes(raw))


def _row(reading: _Reading, line: str) -> dict[str, Any]:
    values = parse_row(line, reading.delimiter)
    if len(values) > len(reading.names):
        detail = f"The row has {len(values)} fields, the header names {len(reading.names)}."
        raise RecordRefused(Reason.TOO_MANY_FIELDS, detail)
    return dict(zip(reading.names, values, strict=False))


def _content_columns(contents: list[Content]) -> dict[str, pl.Series]:
    columns = list(zip(*contents, strict=True)) or [()] * len(Content._fields)
    types = {"created_at": pl.Int64()}
    return {
        name: pl.Series(name, values, dtype=types.get(name, pl.String()))
        for name, values in zip(Content._fields, columns, strict=True)
    }


def _cleaned(texts: pl.Series, page_rows: list[int]) -> pl.Series:
    """Cleans all texts but those of pages."""
    if not page_rows:
        return clean_texts(texts)
    pages = pl.Series(page_rows, dtype=pl.UInt32)
    return clean_texts(texts.clone().scatter(pages, None)).scatter(pages, texts.gather(pages)).alias("text")


def _line(texts: pl.Series) -> pl.Series:
    """Cleans what stands on one line; null where nothing is left."""
    if texts.null_count() == len(texts):
        return texts
    cleaned = clean_texts(texts).str.replace_all(r"\s*\n\s*", " ")
    return cleaned.set(cleaned == "", None)


def _document_hashes(drafts: pl.DataFrame) -> pl.Series:
    hashed = ["title", "text", "author", "created_at", "attributes", "path"]
    columns = [drafts[name].to_physical() if name == "created_at" else drafts[name] for name in hashed]
    return hash_rows(columns).alias("document_hash")


def _refused(records: pl.DataFrame, refusals: list[tuple[int, Reason, str]]) -> pl.DataFrame:
    refusals = sorted(refusals)
    rows = pl.Series([row for row, _, _ in refusals], dtype=pl.UInt32)
    refused = records.select("path", "etag", "record")[rows].with_columns(
        pl.Series("reason", [str(reason) for _, reason, _ in refusals], dtype=pl.String),
        pl.Series("detail", [detail for _, _, detail in refusals], dtype=pl.String),
    )
    return refused.select(REFUSED_COLUMNS.keys()).cast(REFUSED_COLUMNS)
