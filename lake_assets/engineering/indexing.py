"""The indexing zone: clean text in place of raw text."""

from collections.abc import Iterator

import polars as pl
from dagster import AssetExecutionContext

from lake_assets.contracts import IndexingDocuments
from lake_assets.engineering.quarantine import refuse
from lake_assets.index.names import known_ids
from lake_assets.io_manager import LakeResource, Updates, batches, table_asset
from lake_assets.lake.batches import IS_INCREMENT, Takeover
from lake_assets.lake.tables import PIECE_ROWS, Replacement, Snapshot
from lake_assets.text.documents import DocumentReader


@table_asset("indexing/documents", "engineering", ["raw/records"], IndexingDocuments)
def indexing_documents(context: AssetExecutionContext, lake: LakeResource) -> Updates:
    """Turns records into documents: decoded, parsed, repaired, markup removed, keyed and hashed.

    One row per document, partitioned by batch. A batch holds all documents of the objects it owns; in the same commit
    the rows that older batches held of those objects go. Where a source's keys are unique, the rows of older records of
    the same keys go in a second one. Records that are no document go to the quarantine, one by one.
    """
    computes = ((_documents(lake, batch), _older_records(lake, batch)) for batch in batches(context))
    return Updates(lake.lake.table("indexing/documents"), (compute for both in computes for compute in both))


def _documents(lake: LakeResource, batch: int):
    def compute(snapshot: Snapshot) -> Replacement:
        taken = lake.ledger().takeover(batch)
        replaced = [batch, *snapshot.batches_of(taken.earlier, taken.rows())]
        return Replacement(replaced, _rows(lake, snapshot, taken, replaced), taken.shared)

    return compute


def _rows(lake: LakeResource, snapshot: Snapshot, taken: Takeover, replaced: list[int]) -> Iterator[pl.DataFrame]:
    """Hands out the documents of the owned objects, then what older batches keep."""
    reader = DocumentReader(lake.sources)
    newest = _Newest(lake, snapshot, taken)
    refused = []
    for piece in lake.lake.read("raw/records").ordered_pieces(taken.batch):
        documents, failed = reader.read(
            piece.join(taken.landed, on=["path", "etag"], how="semi", maintain_order="left")
        )
        refused.append(failed)
        yield (
            newest.of(documents)
            .with_columns(batch=pl.lit(taken.batch, pl.Int64))
            .select(list(IndexingDocuments.columns()))
        )
    refuse(lake.lake, "indexing/documents", taken.batch, refused, taken)
    yield from snapshot.others(replaced, taken.rows())


class _Newest:
    """Leaves out records of which there is a newer one, where keys are unique in their source."""

    def __init__(self, lake: LakeResource, snapshot: Snapshot, taken: Takeover) -> None:
        self.scope = lake.sources.scope()
        self.is_needed = taken.has_increments
        self.seen = _keys(snapshot, taken.later, lake).select("scope", "key").collect()

    def of(self, documents: pl.DataFrame) -> pl.DataFrame:
        """Gives those of a piece that no newer batch, and no object that was read before, holds the key of."""
        if not self.is_needed:
            return documents
        scoped = documents.with_columns(scope=self.scope).unique(["scope", "key"], keep="first", maintain_order=True)
        scoped = scoped.join(self.seen, on=["scope", "key"], how="anti", maintain_order="left")
        self.seen = pl.concat([self.seen, scoped.filter(IS_INCREMENT).select("scope", "key")])
        return scoped.drop("scope")


def _older_records(lake: LakeResource, batch: int):
    """Takes out records of which a newer batch holds another, where keys are unique in their source.

    Both look, the newer batch and the older one that was written beside it: who comes last sees the other.
    """

    def compute(snapshot: Snapshot) -> Replacement | None:
        taken = lake.ledger().takeover(batch)
        if not taken.has_increments:
            return None
        newest = _keys(snapshot, [batch, *taken.later], lake).group_by("scope", "key").agg(newest=pl.col("batch").max())
        held = _keys(snapshot, [*taken.earlier, batch], lake).join(newest, on=["scope", "key"])
        older = held.filter(pl.col("batch") < pl.col("newest")).select("batch", "path", "key").collect()
        if older.is_empty():
            return None
        replaced = older["batch"].unique().sort().to_list()
        kept = snapshot.scan(replaced).join(older.lazy(), on=["batch", "path", "key"], how="anti")
        rows = kept.collect_batches(chunk_size=PIECE_ROWS, maintain_order=False, lazy=True)
        return Replacement(replaced, rows, taken.shared)

    return compute


def taken_rows(lake: LakeResource, taken: Takeover) -> pl.Expr:
    """Tells of each row of a table with ids whether a batch writes it or takes it out; by `batch`, `path` and `id`.

    What a newer batch holds the key of stays until that one takes it, so that nothing is missing meanwhile.
    """
    if not taken.has_increments:
        return taken.rows()
    documents = lake.lake.read("indexing/documents")
    found = (_keys(documents, batches, lake).collect() for batches in ([taken.batch], taken.later))
    mine, newer = (known_ids(lake.lake, names).implode() for names in found)
    return taken.rows() & ~pl.col("id").is_in(newer) | pl.col("id").is_in(mine)


def _keys(snapshot: Snapshot, batches: list[int], lake: LakeResource) -> pl.LazyFrame:
    """Gives batch, path, scope and key of each document of some batches whose key is unique in its source."""
    scoped = snapshot.scan(batches).with_columns(scope=lake.sources.scope())
    return scoped.filter(IS_INCREMENT).select("batch", "path", "scope", "key")
