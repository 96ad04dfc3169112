"""The clean zone: text and id, the source of truth."""

from collections.abc import Iterator

import polars as pl
from dagster import AssetExecutionContext

from lake_assets.contracts import CleanDocuments
from lake_assets.io_manager import LakeResource, Updates, batches, table_asset
from lake_assets.lake.tables import Rows, Snapshot, bucketed


@table_asset("clean/documents", "engineering", ["indexing/documents", "opensearch/documents"], CleanDocuments)
def clean_documents(context: AssetExecutionContext, lake: LakeResource) -> Updates:
    """Keeps every searchable document with its id: from here all metrics are computed and any index can be rebuilt.

    One row per document that OpenSearch accepted, partitioned by batch. Joins the indexing zone with the receipts.
    """
    return Updates(lake.lake.table("clean/documents"), (_documents(lake, batch) for batch in batches(context)))


def _documents(lake: LakeResource, batch: int):
    def compute(snapshot: Snapshot) -> tuple[list[int], Rows]:
        owned, replaced = lake.ledger().takeover(batch, snapshot)
        return replaced, _rows(lake, snapshot, owned, replaced)

    return compute


def _rows(lake: LakeResource, snapshot: Snapshot, owned: pl.DataFrame, replaced: list[int]) -> Iterator[pl.DataFrame]:
    batch = replaced[0]
    documents = lake.lake.read("indexing/documents")
    receipts = lake.lake.read("opensearch/documents")
    for part in bucketed(documents.count([batch]), "key"):
        ids = receipts.scan([batch]).filter(part).select("path", "key", "id").collect()
        fresh = documents.scan([batch]).filter(part, pl.col("path").is_in(owned["path"].implode()))
        for piece in fresh.collect_batches(chunk_size=50_000, maintain_order=False, lazy=True):
            yield piece.join(ids, on=["path", "key"], how="inner")
    yield from snapshot.others(replaced, owned["path"])
