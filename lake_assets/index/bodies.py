"""Bulk bodies: rows of a frame as NDJSON, written by polars.

What belongs here: from columns to bytes. What does not: sending them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from lake_assets.errors import ContractBroken
from lake_assets.index.attributes import project_attributes

ADDRESSING = ("id", "version", "operation")
"""Columns that say what is done with a document; all others are its fields, except those beginning with `_`."""

OPERATIONS = ("index", "delete", "create")
"""What is done with a document; `create` lets the server make its id."""

NAME = ["path", "key"]
"""Columns by which the index is asked for a document that has no id yet."""

ID_BYTES = 512
"""Longest id that OpenSearch takes; one longer refuses the whole request."""

_UNWRITABLE = (pl.Binary, pl.Object)
_ITEM_BYTES = 20


@dataclass(frozen=True)
class Lines:
    """The NDJSON of some rows: for each the action, and unless it deletes, the document.

    Attributes:
        text: all rows, end to end, in UTF-8.
        ends: where row i begins and ends is `ends[i]` and `ends[i + 1]`; int64, one longer than there are rows.
        cut: number of values cut in each row's `attributes`; int64.
    """

    text: memoryview
    ends: np.ndarray
    cut: np.ndarray

    def sizes(self) -> np.ndarray:
        """Gives the bytes of each row."""
        return np.diff(self.ends)

    def body(self, rows: np.ndarray) -> bytes:
        """Gives the body of a request for these rows, which are in growing order."""
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == len(rows):
            return bytes(self.text[self.ends[first] : self.ends[last + 1]])
        return b"".join([self.text[self.ends[row] : self.ends[row + 1]] for row in rows.tolist()])


def check_columns(frame: pl.DataFrame) -> None:
    """Checks that a frame can be delivered.

    Raises:
        ContractBroken: a column is missing, has a type that cannot be written as JSON, or an operation is unknown; a
            document to create has an id, or no name.
    """
    for name, kind in (("id", pl.String), ("version", pl.Int64), ("operation", pl.String)):
        if frame.schema.get(name) != kind:
            raise ContractBroken(f"A frame to deliver needs a column `{name}` of type {kind}.")
    for name in fields_of(frame):
        kind = frame.schema[name]
        if _holds(kind, _UNWRITABLE):
            raise ContractBroken(f"Column `{name}` of type {kind} cannot be delivered: it has no form in JSON.")
    if frame.schema.get("attributes", pl.String()) not in (pl.String, pl.Null):
        raise ContractBroken("Column `attributes` must hold a JSON object as text.")
    known = frame.get_column("operation").is_in(OPERATIONS)
    if not known.all() or known.null_count():
        raise ContractBroken("Column `operation` must be `index`, `delete` or `create` in every row.")
    if created := frame.filter(pl.col("operation") == "create").height:
        _check_created(frame, created)


def _check_created(frame: pl.DataFrame, created: int) -> None:
    """Checks that documents to create have no id, and a name of their own by which the index can be asked for them."""
    if any(frame.schema.get(name) != pl.String for name in NAME):
        raise ContractBroken("A frame with documents to create needs the columns `path` and `key` of type String.")
    named = pl.col("id").is_null() & pl.col("path").is_not_null() & pl.col("key").is_not_null()
    names = frame.filter((pl.col("operation") == "create") & named).select(NAME).unique()
    if names.height != created:
        raise ContractBroken("A document to create has no id, and a path and a key that no other of its frame has.")


def fields_of(frame: pl.DataFrame) -> list[str]:
    """Lists the columns that are fields of the document."""
    return [name for name in frame.columns if name not in ADDRESSING and not name.startswith("_")]


def refuse_rows(frame: pl.DataFrame) -> pl.Series:
    """Finds the rows that would make OpenSearch refuse the whole request they are in; `create` needs no id.

    Returns:
        String, null for rows that can be sent, else the class of the reason: `id_refused` or `version_refused`.
    """
    id_bytes = pl.col("id").str.len_bytes().fill_null(0)
    return frame.select(
        pl.when(((id_bytes == 0) & (pl.col("operation") != "create")) | (id_bytes > ID_BYTES))
        .then(pl.lit("id_refused"))
        .when(pl.col("version").fill_null(-1) < 0)
        .then(pl.lit("version_refused"))
        .alias("reason")
    ).to_series()


def estimate_bytes(frame: pl.DataFrame) -> np.ndarray:
    """Estimates the bytes of each row as NDJSON from the lengths of its text and lists; int64."""
    names = fields_of(frame)
    texts = [name for name in names if frame.schema[name] == pl.String]
    fixed = 90 + sum(len(name) + 8 for name in names) + 16 * (len(names) - len(texts))
    lengths = [pl.col(name).str.len_bytes().fill_null(0).cast(pl.Int64) for name in texts]
    lists = [name for name in names if isinstance(frame.schema[name], pl.List)]
    lengths += [pl.col(name).list.len().fill_null(0).cast(pl.Int64) * _ITEM_BYTES for name in lists]
    row_bytes = pl.sum_horizontal(pl.repeat(fixed, pl.len(), dtype=pl.Int64), *lengths)
    return frame.select(row_bytes.alias("bytes")).to_series().to_numpy()


def write_lines(frame: pl.DataFrame) -> Lines:
    """Writes rows as NDJSON for `/_bulk`, with `version_type=external_gte` where there is an id.

    Numbers that JSON does not have become null, as does the whole of a column without values: it is left out. Times
    are ISO 8601; those without a zone count as UTC.

    Args:
        frame: checked by `check_columns`; every row can be sent.
    """
    names = [name for name in fields_of(frame) if frame.get_column(name).null_count() < frame.height]
    cut = np.zeros(frame.height, dtype=np.int64)
    attributes: pl.Series | None = None
    if "attributes" in names:
        names.remove("attributes")
        attributes, cut = project_attributes(frame.get_column("attributes"))
        frame = frame.with_columns(attributes)
    action = pl.struct(
        pl.col("id").alias("_id"), "version", pl.lit("external_gte").alias("version_type")
    ).struct.json_encode()
    document = _document(frame, names, attributes is not None)
    indexing = pl.concat_str(pl.lit('{"index":'), action, pl.lit("}\n"), document, pl.lit("\n"))
    deleting = pl.concat_str(pl.lit('{"delete":'), action, pl.lit("}\n"))
    creating = pl.concat_str(pl.lit('{"create":{}}\n'), document, pl.lit("\n"))
    operation = pl.col("operation")
    line = pl.when(operation == "delete").then(deleting).when(operation == "create").then(creating).otherwise(indexing)
    lines = frame.select(line.alias("line")).to_series()
    return _contiguous(lines, cut)


def _document(frame: pl.DataFrame, names: list[str], with_attributes: bool) -> pl.Expr:
    """Writes a row's fields as one JSON object; `attributes` is JSON already and is put in as it is."""
    if not names:
        plain = pl.lit("{")
    else:
        plain = pl.struct([_writable(name, frame.schema[name]) for name in names]).struct.json_encode()
        if not with_attributes:
            return plain
        plain = pl.concat_str(plain.str.head(-1), pl.lit(","))
    if not with_attributes:
        return pl.lit("{}")
    return pl.concat_str(plain, pl.lit('"attributes":'), pl.col("attributes").fill_null("null"), pl.lit("}"))


def _writable(name: str, kind: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if isinstance(kind, pl.Datetime) and kind.time_zone is None:
        return column.dt.replace_time_zone("UTC")
    if isinstance(kind, pl.Decimal):
        return column.cast(pl.Float64)
    return column


def _contiguous(lines: pl.Series, cut: np.ndarray) -> Lines:
    array = lines.to_arrow()
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if array.type != pa.large_string():
        array = array.cast(pa.large_string())
    _, offsets, text = array.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    return Lines(memoryview(text) if text else memoryview(b""), ends, cut)


def _holds(kind: object, refused: tuple[type[pl.DataType], ...]) -> bool:
    """Tells whether a type, or one inside it, is among the refused."""
    if isinstance(kind, pl.List | pl.Array):
        return _holds(kind.inner, refused)
    if isinstance(kind, pl.Struct):
        return any(_holds(field.dtype, refused) for field in kind.fields)
    return kind in refused or isinstance(kind, refused)
