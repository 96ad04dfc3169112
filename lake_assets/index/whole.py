"""Whole documents: what the index holds of a document and its metrics, and with which version."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from lake_assets.contracts import CleanDocuments, EnrichDocuments
from lake_assets.lake.tables import PIECE_ROWS, Lake, Snapshot, bucketed
from lake_assets.text.hashing import hash_strings

BUCKETS = 4096
STATE_FIELDS: dict[str, dict[str, Any]] = {
    "bucket": {"type": "short"},
    "hash_high": {"type": "integer", "index": False},
    "hash_low": {"type": "integer", "index": False},
}
"""Fields that let the index be compared with the lake: `bucket`, a hash of path and key, and the document's whole hash
as two 32-bit numbers, whose sums are exact."""

REPAIR_STEP = 1024

INDEXED = [name for name, column in CleanDocuments.columns().items() if (column.metadata or {}).get("index")]


def metric_fields(enrich: Snapshot) -> dict[str, dict[str, str]]:
    """Gives the index field of each metric column, as the table's own column metadata declares it."""
    fixed = EnrichDocuments.columns()
    declared = {
        name: field.metadata.get("index", "null") for name, field in enrich.columns.items() if name not in fixed
    }
    return {name: json.loads(index) for name, index in declared.items() if index != "null"}


def with_metrics(documents: pl.DataFrame, enrich: pl.DataFrame) -> pl.DataFrame:
    """Joins metrics to documents; a metric of another text than the document's is stale and stays out."""
    return documents.join(enrich.drop("batch"), on=["id", "text_hash"], how="left", maintain_order="left")


def document_columns(documents: pl.DataFrame, metrics: Sequence[str]) -> pl.DataFrame:
    """Selects what is sent: the id, every indexed column, the metrics, and the fields of `STATE_FIELDS`.

    Args:
        documents: of clean or indexing, with id, metrics, and the `whole_hash` of `whole_hashes`.
        metrics: names of the metric columns.
    """
    whole, bucket = pl.col("whole_hash"), buckets(documents["path"], documents["key"])
    return documents.select("id", *INDEXED, *metrics, bucket, hash_high=whole // 2**32,
                            hash_low=whole - whole // 2**32 * 2**32 - 2**31)  # fmt: skip


def buckets(path: pl.Series, key: pl.Series) -> pl.Series:
    """Gives the bucket of each document, 0 to 4,095: CRC-32 of its path and key, modulo.

    It stays when rows move, and is known before there is an id. Int64, named `bucket`.
    """
    crc32 = zlib.crc32
    names = pl.select(pl.concat_str(path, pl.lit("\n"), key).cast(pl.Binary)).to_series()
    return pl.Series("bucket", [crc32(name) % BUCKETS for name in names.to_list()], dtype=pl.Int64)


def metrics_of(documents: pl.DataFrame) -> list[str]:
    """Lists the metric columns that were joined to documents."""
    fixed = {*CleanDocuments.columns(), "whole_hash"}
    return [name for name in documents.columns if name not in fixed]


def whole_hashes(documents: pl.DataFrame, metrics: Sequence[str]) -> pl.Series:
    """Hashes what is sent of each document: its own hash and its metrics that have a value, by name; Int64.

    So a new metric changes nothing for a document that it says nothing of; one without any value keeps its own hash.
    Inside a value every quote is escaped: `,"name":null` is nowhere else.
    """
    if not metrics:
        return documents["document_hash"].alias("whole_hash")
    measured = documents.select(pl.any_horizontal(pl.col(metrics).is_not_null())).to_series()
    parts = pl.struct("document_hash", *sorted(metrics)).struct.json_encode()
    valued = parts.str.replace_all(r',"[^"\\]+":null', "")
    hashes = hash_strings(documents.select(valued).to_series())
    return hashes.zip_with(measured, documents["document_hash"]).alias("whole_hash")


def version_of(lake: Lake, batch: int, clean: Snapshot | None = None, enrich: Snapshot | None = None) -> int:
    """Makes the external version of what is sent now; it only grows with what the lake knows.

    The batch counts most: an older batch that comes late is refused by the server. Within a batch the versions of clean
    and enrich count, each commit of which raises it, and the repairs of the index, each of which raises it by
    `REPAIR_STEP`, so that an edit behind our back, which raises a version by one, is overwritten. 2**31 commits and
    2**31 batches fit.

    Args:
        lake: whose tables count.
        batch: of the document.
        clean: what is sent, where it is pinned already: what is older must not get a newer version.
        enrich: as `clean`.
    """
    commits = sum((pinned or lake.read(key)).version + 1 for key, pinned in
                  (("clean/documents", clean), ("enrich/documents", enrich)))  # fmt: skip
    return (batch << 32) + commits + REPAIR_STEP * (lake.read("opensearch/repairs").version + 1)


def whole_documents(lake: Lake, rows: pl.Expr) -> Iterator[pl.DataFrame]:
    """Reads documents of clean with their metrics, as they are delivered: all columns, metrics, and `whole_hash`.

    Args:
        lake: whose clean and enrich are pinned now.
        rows: which of clean, by its columns.
    """
    clean, enrich = lake.read("clean/documents"), lake.read("enrich/documents")
    metrics = list(metric_fields(enrich))
    for joined in joined_documents(clean, enrich, None, rows):
        for piece in joined.iter_slices(PIECE_ROWS):
            yield piece.with_columns(whole_hash=whole_hashes(piece, metrics))


def joined_documents(
    clean: Snapshot, enrich: Snapshot, columns: Sequence[str] | None, rows: pl.Expr
) -> Iterator[pl.DataFrame]:
    """Reads some columns and rows of clean with their metrics, a part of the ids at a time."""
    total = int(clean.scan().select(pl.len()).collect().item())
    metrics = list(metric_fields(enrich))
    for part in bucketed(total, "id"):
        measured = enrich.scan().filter(part).select("batch", "id", "text_hash", *metrics).collect()
        scan = clean.scan().filter(part, rows)
        yield with_metrics((scan.select(columns) if columns else scan).collect(), measured)
