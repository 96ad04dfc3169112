"""Everything refused: written by the stage that refused it, shown by one asset."""

from collections.abc import Sequence

import dagster as dg
import polars as pl
from dagster import AssetExecutionContext

from lake_assets.contracts import QuarantineRecords
from lake_assets.io_manager import LakeResource, Updates, batches, table_asset
from lake_assets.lake.batches import Takeover
from lake_assets.lake.tables import Lake, Rows, Snapshot

STAGES = ["raw/records", "indexing/documents", "opensearch/documents", "opensearch/metrics"]
REFUSED = {"path": pl.String, "etag": pl.String, "record": pl.Int64, "reason": pl.String, "detail": pl.String}


def refuse(
    lake: Lake,
    stage: str,
    batch: int,
    refused: Sequence[pl.DataFrame],
    taken: Takeover | None = None,
) -> None:
    """Replaces what one stage refused of one batch; nothing is committed where nothing was and is refused.

    Args:
        lake: whose quarantine/records is written.
        stage: the asset that refused.
        batch: the batch it worked on.
        refused: frames of path, etag, record, reason, detail.
        taken: what the batch owns, where only that counts: what was refused of other objects stays, and what older
            batches have refused of these goes, as their documents do. All of the batch, if None.
    """
    rows = pl.concat([pl.DataFrame(schema=REFUSED), *(frame.select(list(REFUSED)) for frame in refused)])

    def compute(snapshot: Snapshot) -> tuple[list[int], Rows] | None:
        mine = (pl.col("stage") == stage) & (taken.rows() if taken else pl.col("batch") == batch)
        replaced = sorted({batch, *snapshot.batches_of(taken.earlier if taken else [], mine)})
        present = snapshot.frame(replaced).select(list(QuarantineRecords.columns()))
        others = present.filter(~mine)
        if rows.is_empty() and others.height == present.height:
            return None
        named = rows.with_columns(batch=pl.lit(batch, pl.Int64), stage=pl.lit(stage), state=pl.lit("refused"))
        return replaced, [others, named.select(others.columns)]

    lake.table("quarantine/records").replace(compute)


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
