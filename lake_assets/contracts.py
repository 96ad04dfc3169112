"""The fixed tables: each column declared once, with its type, unit, meaning, upstream columns and index field.

From a contract follow the Delta schema, the check of every frame before it is written, the columns and the lineage that
Dagster shows, and the mapping of the index. The contract of a metric's table is made by `metric_contract`.
What belongs here: declarations. What does not: reading, writing, Dagster, OpenSearch.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import dataframely as dy
import polars as pl

UTC_TIMESTAMP = pl.Datetime("us", "UTC")


def about(meaning: str, *upstream: str, unit: str = "", index: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Gives the keywords that describe a column.

    Args:
        meaning: one sentence.
        upstream: the columns it is made from, each `group/table.column`.
        unit: the unit or range, for instance `bytes`, `-1..1`, `UTC`.
        index: the mapping of the index field of the same name; none, if it is not indexed.
    """
    return {
        "description": meaning,
        "metadata": {"upstream": list(upstream), "unit": unit, "index": dict(index) if index else None},
    }


class Contract(dy.Schema):
    """What every table has: rows belong to a batch."""

    batch = dy.Int64(**about("Number of the batch that owns the row.", "raw/objects.batch"))


class RawObjects(Contract):
    """One row per object that landed and was claimed."""

    batch = dy.Int64(**about("Number of the batch that claimed the object; it only grows."))
    path = dy.String(**about("Path under the raw root."))
    etag = dy.String(**about("The store's tag of the object's version."))
    size_bytes = dy.Int64(**about("Size as it lies in the store.", unit="bytes"))
    last_modified = dy.Datetime(time_zone="UTC", **about("When the store received it.", unit="UTC"))
    state = dy.String(**about("`landed`, or `gone` when it was deleted from a source whose deletions count."))
    claimed_at = dy.Datetime(time_zone="UTC", **about("When the batch claimed it.", unit="UTC"))


class RawRecords(Contract):
    """One row per record of every version of every object: the backup."""

    path = dy.String(**about("Object the record came in.", "raw/objects.path"))
    etag = dy.String(**about("Version of that object.", "raw/objects.etag"))
    record = dy.Int64(**about("Ordinal number in the object, from 0: a position, not an identity.", unit="count"))
    media_type = dy.String(**about("How the bytes are to be read, for instance `application/json`."))
    header = dy.String(nullable=True, **about("CSV: the row that names the fields."))
    offset_bytes = dy.Int64(**about("Where it begins in the decompressed object.", unit="bytes"))
    length_bytes = dy.Int64(**about("How long it is, decompressed.", unit="bytes"))
    raw = dy.Binary(
        nullable=True, **about("The bytes as they came; null over 16 MiB: offset and length point to them.")
    )


class IndexingDocuments(Contract):
    """One row per document: clean text in place of raw text."""

    key = dy.String(**about("Names the record inside its object: the declared field, else a hash of its bytes.",
                            "raw/records.raw",
                            index={"type": "keyword", "ignore_above": 1024, "doc_values": False}))  # fmt: skip
    path = dy.String(**about("Object the document came in.", "raw/records.path", index={"type": "keyword"}))
    record = dy.Int64(**about("Ordinal number in that object.", "raw/records.record", unit="count"))
    title = dy.String(nullable=True, **about("Title, cleaned.", "raw/records.raw", index={"type": "text"}))
    text = dy.String(**about("Text, cleaned: decoded, repaired, NFC, markup removed.",
                             "raw/records.raw", index={"type": "text"}))  # fmt: skip
    author = dy.String(nullable=True, **about("Who wrote it, as the record says.", "raw/records.raw",
                                              index={"type": "keyword", "ignore_above": 1024}))  # fmt: skip
    created_at = dy.Datetime(nullable=True, time_zone="UTC", **about("When it was written, as the record says.",
                             "raw/records.raw", unit="UTC", index={"type": "date"}))  # fmt: skip
    attributes = dy.String(nullable=True, **about("Every other field of the record, as a JSON object.",
                                                  "raw/records.raw", index={"type": "flat_object"}))  # fmt: skip
    text_hash = dy.Int64(**about("BLAKE2b-64 of the text: equal texts need no second measuring.",
                                 "indexing/documents.text"))  # fmt: skip
    document_hash = dy.Int64(**about("BLAKE2b-64 of all that is indexed of it: equal documents need no second sending.",
                                     "indexing/documents.text", "indexing/documents.title",
                                     "indexing/documents.author", "indexing/documents.created_at",
                                     "indexing/documents.attributes"))  # fmt: skip


class OpenSearchDocuments(Contract):
    """One row per document that OpenSearch holds: its receipt."""

    id = dy.String(**about("Identity of the document, for life.", "indexing/documents.path", "indexing/documents.key"))
    key = dy.String(**about("Names the record inside its object.", "indexing/documents.key"))
    path = dy.String(**about("Object the document came in.", "indexing/documents.path"))
    document_hash = dy.Int64(**about("What was sent.", "indexing/documents.document_hash"))
    whole_hash = dy.Int64(
        nullable=True,
        **about("BLAKE2b-64 of the document and the metrics it was sent with; null in receipts older than the column.",
                "indexing/documents.document_hash"),
    )  # fmt: skip
    version = dy.Int64(**about("External version it was sent with; the index refuses lower ones."))
    result = dy.String(**about("What OpenSearch answered: `created`, `updated`, or `newer` when it held a later one."))
    seq_no = dy.Int64(nullable=True, **about("Sequence number of that write; null where the index held a later one."))
    index = dy.String(**about("The physical index that took it."))


def carried_over(contract: type[Contract], key: str) -> dict[str, dy.Column]:
    """Gives the columns of a contract as a later table carries them over: each comes from its namesake.

    Args:
        contract: of the earlier table.
        key: its name, `group/table`.
    """
    carried = {name: copy(column) for name, column in contract.columns().items()}
    for name, column in carried.items():
        column.metadata = {**(column.metadata or {}), "upstream": [f"{key}.{name}"]}
    return carried


CleanDocuments = type(
    "CleanDocuments",
    (Contract,),
    {
        "__doc__": "One row per searchable document: text and id, the source of truth.",
        **carried_over(IndexingDocuments, "indexing/documents"),
        "id": dy.String(**about("Identity of the document, for life.", "opensearch/documents.id")),
    },
)


class Measured(Contract):
    """What every metric's table has, beside the metric's own columns."""

    id = dy.String(**about("The document.", "clean/documents.id"))
    text_hash = dy.Int64(**about("The text that was measured.", "clean/documents.text_hash"))
    metric_version = dy.String(**about("Version of the function that computed it."))
    computed_at = dy.Datetime(time_zone="UTC", **about("When it was computed.", unit="UTC"))


class EnrichDocuments(Contract):
    """One row per document, with every metric there is; the metrics' columns are added by their contracts."""

    id = dy.String(**about("The document.", "clean/documents.id"))
    text_hash = dy.Int64(**about("The text that was measured.", "clean/documents.text_hash"))


class OpenSearchMetrics(Contract):
    """One row per document whose metrics were delivered: its second receipt."""

    id = dy.String(**about("The document.", "enrich/documents.id"))
    whole_hash = dy.Int64(
        **about("BLAKE2b-64 of the document and its metrics, as sent.", "clean/documents.document_hash")
    )
    version = dy.Int64(**about("External version it was sent with."))
    result = dy.String(**about("What OpenSearch answered: `created`, `updated`, or `newer`."))
    seq_no = dy.Int64(nullable=True, **about("Sequence number of that write; null where the index held a later one."))
    index = dy.String(
        nullable=True, **about("The physical index that took it; null in receipts older than the column.")
    )


class OpenSearchIndex(dy.Schema):
    """One row: the state of the index at one moment."""

    alias = dy.String(**about("The name that readers use."))
    index = dy.String(**about("The physical index behind it."))
    documents = dy.Int64(**about("Documents it holds.", unit="count"))
    size_bytes = dy.Int64(**about("Size on the server's disk.", unit="bytes"))
    fields = dy.Int64(**about("Fields of its mapping.", unit="count"))
    mapping_version = dy.String(
        **about("Hash of its mapping, which clean/documents and enrich/documents declare: changes with any field.")
    )


class OpenSearchIds(Contract):
    """One row per key that was ever given a counted id: written before its document is sent, and kept for ever."""

    scope = dy.String(
        **about("What the key is unique in: the object's path, or its source's prefix.", "raw/objects.path")
    )
    key = dy.String(**about("Names the record.", "indexing/documents.key"))
    id = dy.String(**about("Identity of the document, for life."))


class OpenSearchBaseline(Contract):
    """One row per bucket of documents that was last found equal in the index and the lake."""

    batch = dy.Int64(**about("Always 0: the baseline is of no batch."))
    index = dy.String(**about("The physical index that was compared."))
    index_uuid = dy.String(**about("What tells it from another index of the same name."))
    bucket = dy.Int64(**about("CRC-32 of path and key, modulo 4,096.", "clean/documents.path", "clean/documents.key"))
    count = dy.Int64(**about("Documents of the bucket in the index.", unit="count"))
    seq_sum = dy.Int64(**about("Sum of their sequence numbers, which every write moves."))
    seq_max = dy.Int64(**about("Greatest of their sequence numbers."))


class OpenSearchRepairs(Contract):
    """One row per repair of the index; each raises the versions of what is sent after it."""

    batch = dy.Int64(**about("Number of the repair; it is of no batch."))
    index = dy.String(**about("The physical index that was repaired."))
    repaired_at = dy.Datetime(time_zone="UTC", time_unit="us", **about("When it began.", unit="UTC"))
    missing = dy.Int64(**about("Documents of the lake that the index lacked.", unit="count"))
    changed = dy.Int64(**about("Documents that the index held otherwise.", unit="count"))
    metrics_changed = dy.Int64(**about("Documents of which it held only metrics otherwise.", unit="count"))
    foreign = dy.Int64(**about("Documents that the lake does not know.", unit="count"))


class QuarantineRecords(Contract):
    """One row per refused object, record or document: what, why, and what replays it."""

    stage = dy.String(**about("Asset that refused it, for instance `raw/records`."))
    path = dy.String(**about("Object it came in.", "raw/objects.path"))
    etag = dy.String(**about("Version of that object.", "raw/objects.etag"))
    record = dy.Int64(nullable=True, **about("Its number in the object; null: the whole object.", "raw/records.record"))
    reason = dy.String(**about("Class of the reason, for instance `broken_json`."))
    detail = dy.String(nullable=True, **about("The reason as a sentence, without text of the document."))
    owner = dy.String(nullable=True, **about("Who has to look at it: the team of the asset that refused it."))
    state = dy.String(**about("`refused`, until a replay takes it in."))
    refused_at = dy.Datetime(
        nullable=True, time_zone="UTC", **about("When it was refused first for this reason.", unit="UTC")
    )


TABLES: dict[str, type[Contract]] = {
    "raw/objects": RawObjects,
    "raw/records": RawRecords,
    "indexing/documents": IndexingDocuments,
    "opensearch/documents": OpenSearchDocuments,
    "clean/documents": CleanDocuments,
    "enrich/documents": EnrichDocuments,
    "opensearch/metrics": OpenSearchMetrics,
    "quarantine/records": QuarantineRecords,
}

INDEX_TABLES: dict[str, type[Contract]] = {
    "opensearch/ids": OpenSearchIds,
    "opensearch/baseline": OpenSearchBaseline,
    "opensearch/repairs": OpenSearchRepairs,
}
"""What is remembered of the index: no documents, and no assets."""


def metric_contract(base: type[Contract], columns: Mapping[str, dy.Column]) -> type[Contract]:
    """Makes the contract of a metric's table (base `Measured`) or of enrich (base `EnrichDocuments`).

    Args:
        base: what the table has beside the metrics.
        columns: the metrics' columns by name; each is nullable.
    """
    return type(base.__name__, (base,), {"__doc__": base.__doc__, **columns})


def polars_schema(contract: type[Contract]) -> dict[str, pl.DataType]:
    """Gives column name → polars type, in the contract's order."""
    return {name: column.dtype for name, column in contract.columns().items()}
