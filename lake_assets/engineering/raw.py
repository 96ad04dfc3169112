"""The raw zone: what landed, and each record's bytes as they came."""

from collections.abc import Iterator

import polars as pl
from dagster import AssetExecutionContext

from lake_assets.contracts import RawObjects, RawRecords
from lake_assets.engineering.quarantine import refuse
from lake_assets.errors import ObjectGone
from lake_assets.io_manager import LakeResource, Updates, batches, table_asset
from lake_assets.lake.tables import Rows, Snapshot
from lake_assets.text.records import ObjectRefused, check_path, split


@table_asset("raw/objects", "engineering", [], RawObjects, kinds=("s3", "deltalake"))
def raw_objects(context: AssetExecutionContext, lake: LakeResource) -> Updates:
    """Lists the objects that landed, and the batch that claimed each.

    One row per object version, partitioned by batch. The sensor on the raw zone and `lake ingest` write it, one atomic
    commit a claim; materialising it only counts. It is the manifest, the ledger and the sensor's memory.
    """
    ledger = lake.ledger()
    claimed = pl.concat([ledger.claimed(batch) for batch in batches(context)])
    owned = sum(ledger.owned(batch).height for batch in batches(context))
    shown = {"objects": claimed.height, "objects_owned": owned, "objects_bytes": int(claimed["size_bytes"].sum())}
    return Updates(lake.lake.table("raw/objects"), [], lambda: shown)


@table_asset("raw/records", "engineering", ["raw/objects"], RawRecords)
def raw_records(context: AssetExecutionContext, lake: LakeResource) -> Updates:
    """Keeps each record of each object version, byte for byte: the backup.

    One row per record, partitioned by batch. Reads the claimed objects once; what was read is never read again. Objects
    that cannot be read (a hostile path, broken compression, nothing inside, replaced meanwhile) go to the quarantine.
    """
    return Updates(lake.lake.table("raw/records"), (_records(lake, batch) for batch in batches(context)))


def _records(lake: LakeResource, batch: int):
    def compute(snapshot: Snapshot) -> tuple[list[int], Rows] | None:
        objects = lake.ledger().claimed(batch).filter(pl.col("state") == "landed")
        seen = snapshot.scan([batch]).select("path", "etag").unique().collect()
        refused = lake.lake.read("quarantine/records").frame([batch]).filter(pl.col("stage") == "raw/records")
        seen = pl.concat([seen, refused.select("path", "etag")])
        if objects.join(seen, on=["path", "etag"], how="anti").is_empty():
            return None
        return [batch], _read(lake, batch, objects)

    return compute


def _read(lake: LakeResource, batch: int, objects: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Reads objects one after the other; what is refused is in the quarantine before the last row is handed out."""
    refused = []
    for path, etag in objects.select("path", "etag").sort("path").rows():
        try:
            check_path(path)
            for piece in split(lake.zone.read(path, etag), path, lake.sources.of(path)):
                yield piece.with_columns(batch=pl.lit(batch, pl.Int64), path=pl.lit(path), etag=pl.lit(etag)).select(
                    list(RawRecords.columns())
                )
        except (ObjectRefused, ObjectGone) as error:
            reason = error.reason if isinstance(error, ObjectRefused) else "object_gone"
            refused.append(_row(path, etag, str(reason), str(error)))
    refuse(lake.lake, "raw/records", batch, refused)


def _row(path: str, etag: str, reason: str, detail: str) -> pl.DataFrame:
    return pl.DataFrame(
        {"path": [path], "etag": [etag], "record": [None], "reason": [reason], "detail": [detail]},
        schema_overrides={"record": pl.Int64},
    )
