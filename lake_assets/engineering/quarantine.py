"""Everything refused: written by the stage that refused it, shown by one asset."""

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import suppress

import dagster as dg
import polars as pl
from dagster import AssetExecutionContext

from lake_assets.contracts import QuarantineRecords, RawRecords, polars_schema
from lake_assets.io_manager import LakeResource, Updates, batches, table_asset
from lake_assets.lake.batches import Takeover
from lake_assets.lake.raw_zone import RawZone
from lake_assets.lake.tables import Lake, Rows, Snapshot
from lake_assets.text.records import ObjectRefused, check_path, split
from lake_assets.text.sources import Sources

STAGES = ["raw/records", "indexing/documents", "opensearch/documents", "opensearch/metrics"]
REFUSED = {"path": pl.String, "etag": pl.String, "record": pl.Int64, "reason": pl.String, "detail": pl.String}
OWNER = "team:engineering"  # of every stage that refuses
COLUMNS = list(QuarantineRecords.columns())


def refuse(
    lake: Lake,
    stage: str,
    batch: int,
    refused: Sequence[pl.DataFrame],
    taken: Takeover | None = None,
) -> None:
    """Replaces what one stage refused of one batch; nothing is committed where the same was and is refused.

    Args:
        lake: whose quarantine/records is written.
        stage: the asset that refused.
        batch: the batch it worked on.
        refused: frames of path, etag, record, reason, detail.
        taken: what the batch owns: what older batches have refused of these objects goes, as their documents do.
    """
    own = pl.col("batch") == batch
    own = own | pl.col("path").is_in(taken.whole.implode()) if taken else own
    _replace(lake, stage, batch, refused, own, taken.earlier if taken else [])


def _replace(
    lake: Lake, stage: str, batch: int, refused: Sequence[pl.DataFrame], own: pl.Expr, earlier: Sequence[int]
) -> None:
    """Puts what is refused in the place of those rows of a stage that are `own`; `earlier` batches may hold some."""
    rows = pl.concat([pl.DataFrame(schema=REFUSED), *(frame.select(list(REFUSED)) for frame in refused)])
    now = dt.datetime.now(dt.UTC)

    def compute(snapshot: Snapshot) -> tuple[list[int], Rows] | None:
        mine = (pl.col("stage") == stage) & own
        replaced = sorted({batch, *snapshot.batches_of(earlier, mine)})
        present = snapshot.frame(replaced).select(COLUMNS)
        before = present.filter(mine)
        named = _noted(rows.with_columns(batch=pl.lit(batch, pl.Int64), stage=pl.lit(stage)), before, now)
        if named.sort(COLUMNS).equals(before.sort(COLUMNS)):
            return None
        return replaced, [present.filter(~mine), named]

    lake.table("quarantine/records").replace(compute)


def _noted(rows: pl.DataFrame, before: pl.DataFrame, now: dt.datetime) -> pl.DataFrame:
    """Adds owner, state and time; what was refused before for the same reason keeps its time."""
    same = ["batch", "path", "etag", "record", "reason"]
    times = before.select(*same, "refused_at").unique(same, keep="first")
    noted = rows.join(times, on=same, how="left", nulls_equal=True, maintain_order="left")
    first = pl.coalesce("refused_at", pl.lit(now).cast(polars_schema(QuarantineRecords)["refused_at"]))
    return noted.with_columns(owner=pl.lit(OWNER), state=pl.lit("refused"), refused_at=first).select(COLUMNS)


def read_again(
    lake: Lake, zone: RawZone, sources: Sources, batch: int, objects: pl.DataFrame
) -> tuple[list[str], pl.DataFrame]:
    """Reads refused objects of a batch again; one commit of raw/records takes in those that say more than before.

    Each is tried before anything is written: where nothing has changed, nothing is written, and what the lake holds of
    an object that is refused again stays. The quarantine says what it said, until `settle`.

    Args:
        lake: whose raw/records is written.
        zone: where the objects lie.
        sources: what is declared of them now.
        batch: that claimed them.
        objects: path and etag of each.

    Returns:
        The paths that were taken in, and what is refused again: path, etag, record, reason, detail.

    Raises:
        ObjectGone: one was replaced or removed meanwhile; nothing is written.
    """
    refused = pl.DataFrame(schema=REFUSED)
    held = dict(lake.read("raw/records").scan([batch]).group_by("path").len().collect().rows())
    better: list[tuple[str, str]] = []
    for path, etag in objects.select("path", "etag").sort("path").rows():
        records = 0
        try:
            for piece in _records_of(zone, sources, path, etag):
                records += piece.height
        except ObjectRefused as error:
            row = (path, etag, None, str(error.reason), str(error))
            refused.extend(pl.DataFrame([row], schema=REFUSED, orient="row"))
            if records <= held.get(path, 0):
                continue
        better.append((path, etag))
    if better:
        lake.table("raw/records").replace(
            lambda snapshot: ([batch], _with_others(zone, sources, batch, better, snapshot)), info={"replayed": batch}
        )
    return [path for path, _ in better], refused


def _with_others(
    zone: RawZone, sources: Sources, batch: int, objects: Sequence[tuple[str, str]], snapshot: Snapshot
) -> Iterator[pl.DataFrame]:
    for path, etag in objects:
        own = {"batch": pl.lit(batch, pl.Int64), "path": pl.lit(path), "etag": pl.lit(etag)}
        with suppress(ObjectRefused):  # behind the records that could be read
            for piece in _records_of(zone, sources, path, etag):
                yield piece.with_columns(**own).select(list(RawRecords.columns()))
    yield from snapshot.others([batch], pl.col("path").is_in([path for path, _ in objects]))


def _records_of(zone: RawZone, sources: Sources, path: str, etag: str) -> Iterator[pl.DataFrame]:
    check_path(path)
    yield from split(zone.read(path, etag), path, sources.of(path))


def settle(lake: Lake, batch: int, objects: pl.DataFrame, refused: pl.DataFrame) -> None:
    """Takes objects that were read again out of the quarantine, but for what was refused again."""
    own = (pl.col("batch") == batch) & pl.col("path").is_in(objects["path"].implode())
    _replace(lake, "raw/records", batch, [refused], own, [])


@table_asset(
    "quarantine/records",
    "engineering",
    STAGES,
    QuarantineRecords,
    check_specs=[dg.AssetCheckSpec("nothing_refused_check", asset=["quarantine", "records"],
                                   description="No object, record or document of the batch was refused.")],
    automation_condition=dg.AutomationCondition.eager(),
)  # fmt: skip
def quarantine_records(context: AssetExecutionContext, lake: LakeResource):
    """Shows what was refused of a batch, by stage and reason.

    One row per refused object, record or document, partitioned by batch. The stages write it themselves, before they
    commit what they accepted; this asset counts. Its check warns where anything was refused.
    """
    found = lake.lake.read("quarantine/records").frame(batches(context), ["stage", "reason"])
    counts = {
        f"{stage}: {reason}": count
        for stage, reason, count in found.group_by("stage", "reason").len().sort("stage", "reason").rows()
    }
    yield dg.AssetCheckResult(
        passed=found.is_empty(),
        check_name="nothing_refused_check",
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{found.height} refused; see the table quarantine/records."
        if found.height
        else "Nothing was refused.",
    )
    yield dg.Output(
        Updates(lake.lake.table("quarantine/records"), [], lambda: {"refused": found.height, "by_reason": counts})
    )
