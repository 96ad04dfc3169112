"""The clean zone: text and id, the source of truth."""

from collections.abc import Iterator
from itertools import chain

import polars as pl
from dagster import AssetExecutionContext

from lake_assets.contracts import CleanDocuments
from lake_assets.engineering.indexing import taken_rows
from lake_assets.io_manager import LakeResource, Updates, batches, table_asset
from lake_assets.lake.batches import Takeover
from lake_assets.lake.tables import PIECE_ROWS, Replacement, Snapshot, bucketed


@table_asset("clean/documents", "engineering", ["indexing/documents", "opensearch/documents"], CleanDocuments)
def clean_documents(context: AssetExecutionContext, lake: LakeResource) -> Updates:
    """Keeps every searchable document with its id: from here all metrics are computed and any index can be rebuilt.

    One row per document that OpenSearch accepted, partitioned by batch. Joins the indexing zone with the receipts.
    """
    return Updates(lake.lake.table("clean/documents"), (_documents(lake, batch) for batch in batches(context)))


def _documents(lake: LakeResource, batch: int):
    def compute(snapshot: Snapshot) -> Replacement:
        taken = lake.ledger().takeover(batch)
        documents = lake.lake.read("indexing/documents").scan([batch])
        receipts = lake.lake.read("opensearch/documents").scan([batch])
        mine = taken_rows(lake, taken)
        replaced = [batch, *snapshot.batches_of(taken.earlier, mine)]
        rows = chain(_accepted(taken, documents, receipts), snapshot.others(replaced, mine))
        return Replacement(replaced, rows, taken.shared)

    return compute


def _accepted(taken: Takeover, documents: pl.LazyFrame, receipts: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """Joins the documents of the owned objects with the ids of their receipts, a part of the keys at a time."""
    for part in bucketed(documents.select(pl.len()).collect().item(), "key"):
        ids = receipts.filter(part).select("path", "key", "id").collect()
        fresh = documents.filter(part, pl.col("path").is_in(taken.objects["path"].implode()))
        for piece in fresh.collect_batches(chunk_size=PIECE_ROWS, maintain_order=False, lazy=True):
            yield piece.join(ids, on=["path", "key"], how="inner")
