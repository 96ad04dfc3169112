"""The indexing zone: clean text in place of raw text."""

from collections.abc import Iterator

import polars as pl
from dagster import AssetExecutionContext

from lake_assets.contracts import IndexingDocuments
from lake_assets.engineering.quarantine import refuse
from lake_assets.io_manager import LakeResource, Updates, batches, table_asset
from lake_assets.lake.tables import Rows, Snapshot
from lake_assets.text.documents import DocumentReader


@table_asset("indexing/documents", "engineering", ["raw/records"], IndexingDocuments)
def indexing_documents(context: AssetExecutionContext, lake: LakeResource) -> Updates:
    """Turns records into documents: decoded, parsed, repaired, markup removed, keyed and hashed.

    One row per document, partitioned by batch. A batch holds all documents of the objects it owns; in the same commit
    the rows that older batches held of those objects go. Records that are no document go to the quarantine, one by one.
    """
    return Updates(lake.lake.table("indexing/documents"), (_documents(lake, batch) for batch in batches(context)))


def _documents(lake: LakeResource, batch: int):
    def compute(snapshot: Snapshot) -> tuple[list[int], Rows]:
        owned, replaced = lake.ledger().takeover(batch, snapshot)
        return replaced, _rows(lake, snapshot, owned, replaced)

    return compute


def _rows(lake: LakeResource, snapshot: Snapshot, owned: pl.DataFrame, replaced: list[int]) -> Iterator[pl.DataFrame]:
    """Hands out the documents of the owned objects, then what older batches keep."""
    batch = replaced[0]
    reader = DocumentReader(lake.sources)
    landed = owned.filter(pl.col("state") == "landed").select("path", "etag")
    refused = []
    for piece in lake.lake.read("raw/records").ordered_pieces(batch):
        documents, failed = reader.read(piece.join(landed, on=["path", "etag"], how="semi", maintain_order="left"))
        refused.append(failed)
        yield documents.with_columns(batch=pl.lit(batch, pl.Int64)).select(list(IndexingDocuments.columns()))
    earlier = lake.ledger().earlier(batch)
    refuse(lake.lake, "indexing/documents", batch, refused, owned["path"], earlier)
    yield from snapshot.others(replaced, owned["path"])
