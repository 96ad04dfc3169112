"""Whole documents: what the index holds of a document and its metrics, and with which version."""

from __future__ import annotations

import json

import polars as pl

from lake_assets.contracts import CleanDocuments, EnrichDocuments
from lake_assets.lake.tables import Lake, Snapshot
from lake_assets.text.hashing import hash_strings

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


def document_columns(documents: pl.DataFrame, metrics: list[str] | None = None) -> pl.DataFrame:
    """Selects what is sent: the id and every indexed column; all metrics, if None."""
    fixed = set(CleanDocuments.columns())
    extra = [name for name in documents.columns if name not in fixed] if metrics is None else metrics
    return documents.select("id", *INDEXED, *(name for name in extra if name not in ("whole_hash",)))


def whole_hashes(documents: pl.DataFrame, metrics: list[str]) -> pl.Series:
    """Hashes what is sent of each document: its own hash and its metrics that have a value, by name.

    So a new metric changes nothing for a document that it says nothing of. Inside a value every quote is escaped:
    `,"name":null` is nowhere else.
    """
    parts = pl.struct("document_hash", *sorted(metrics)).struct.json_encode()
    valued = parts.str.replace_all(r',"[^"\\]+":null', "")
    return hash_strings(documents.select(valued.alias("whole")).to_series())


def version_of(lake: Lake, batch: int) -> int:
    """Makes the external version of what is sent now; it only grows with what the lake knows.

    The batch counts most: an older batch that comes late is refused by the server. Within a batch the versions of clean
    and enrich count, each commit of which raises it. 2**31 commits and 2**31 batches fit.
    """
    known = lake.read("clean/documents").version + lake.read("enrich/documents").version + 2
    return (batch << 32) + known
