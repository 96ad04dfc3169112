"""The sensor on the raw zone: what has landed or changed is claimed into batches, one run a batch."""

from __future__ import annotations

import datetime as dt
import platform

import dagster as dg
import psutil

from lake_assets.engineering.clean import clean_documents
from lake_assets.engineering.indexing import indexing_documents
from lake_assets.engineering.opensearch import opensearch_documents
from lake_assets.engineering.quarantine import quarantine_records
from lake_assets.engineering.raw import raw_objects, raw_records
from lake_assets.io_manager import BATCHES, LakeResource
from lake_assets.lake.batches import Ledger, claim

LISTING_SECONDS = 1.8  # of one tick; a zone that takes longer is listed in slices, each tick the next one
RUNS_A_TICK = 20
RETRY_SECONDS = (0, 30, 120, 600, 3600)  # waits before a batch whose runs failed is tried again
CLAIM_GRACE_SECONDS = 30  # a claim without a run may be that of `lake ingest`, which is about to start one
PROCESS_TAG = "lake_assets/process"

ingest_job = dg.define_asset_job(
    "ingest_job",
    selection=[
        raw_objects, raw_records, indexing_documents, opensearch_documents, clean_documents, quarantine_records,
    ],
    description="One batch: from the raw zone to searchable documents.",
    executor_def=dg.in_process_executor,
)  # fmt: skip


class RawZoneWatch:
    """What the sensor does, with the ledger kept between ticks."""

    def __init__(self) -> None:
        self.ledger: Ledger | None = None

    def tick(self, context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult:
        """Lists, claims, and requests a run for each batch that needs one."""
        if self.ledger is None:
            self.ledger = Ledger(lake.lake)
        listing = lake.zone.look(context.cursor or "", LISTING_SECONDS)
        done = claim(lake.lake, self.ledger, listing, lake.settings, lake.sources, rest=True)
        wanted = unfinished(context.instance, self.ledger, set(done.batches))[:RUNS_A_TICK]
        # What was left waits in the same slice; else the next tick lists the next one.
        after = listing.after if done.left else listing.until
        known = set(context.instance.get_dynamic_partitions("batch"))
        keys = [str(batch) for batch, _ in wanted]
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(run_key=f"{batch}-{attempt}", partition_key=str(batch)) for batch, attempt in wanted
            ],
            dynamic_partitions_requests=[BATCHES.build_add_request([key for key in keys if key not in known])],
            cursor=after or "",
            skip_reason=None if wanted else _why(done.left, listing.objects.height),
        )


def unfinished(instance: dg.DagsterInstance, ledger: Ledger, fresh: set[int]) -> list[tuple[int, int]]:
    """Finds batches that were claimed and never finished, and that nobody is working on: (batch, attempts before).

    A claim whose run was never requested, because something died in between, is found here too.
    """
    finished = instance.get_materialized_partitions(dg.AssetKey(["clean", "documents"]))
    now = dt.datetime.now(dt.UTC).timestamp()
    wanted = []
    for batch in sorted(set(ledger.rows["batch"].unique()) - {int(key) for key in finished}):
        runs = instance.get_run_records(dg.RunsFilter(tags={"dagster/partition": str(batch)}), limit=20)
        mine = [record for record in runs if "clean/documents" in _selected(record.dagster_run)]
        if any(not record.dagster_run.is_finished and not has_died(instance, record.dagster_run) for record in mine):
            continue
        ended = max((record.end_time or now for record in mine), default=None)
        if ended is not None:
            ready = now - ended >= RETRY_SECONDS[min(len(mine), len(RETRY_SECONDS) - 1)]
        else:
            ready = batch in fresh or now - ledger.claimed_at(batch).timestamp() >= CLAIM_GRACE_SECONDS
        if ready:
            wanted.append((batch, len(mine)))
    return wanted


def process_tag() -> dict[str, str]:
    """Makes the tag that tells which process a run lives in, where it is not one that Dagster launched and watches."""
    me = psutil.Process()
    return {PROCESS_TAG: f"{platform.node()}/{me.pid}/{me.create_time()}"}


def has_died(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Tells whether a run's process on this machine is gone, and if so, reports the run as failed."""
    host, pid, created = (run.tags.get(PROCESS_TAG) or "//").split("/")
    if host != platform.node():
        return False
    try:
        died = str(psutil.Process(int(pid)).create_time()) != created
    except psutil.NoSuchProcess:
        died = True
    if died:
        instance.report_run_failed(run, "The process of this run has ended; the batch is run again.")
    return died


def _selected(run: dg.DagsterRun) -> set[str]:
    keys = {key.to_user_string() for key in run.asset_selection or ()}
    return keys or {"clean/documents"}


def _why(left: int, listed: int) -> str:
    return f"{left} objects rest a moment before they are claimed." if left else f"Nothing new among {listed} objects."


def raw_zone_sensor() -> dg.SensorDefinition:
    """Makes the sensor; its ledger lives as long as the code location."""
    watch = RawZoneWatch()

    @dg.sensor(
        name="raw_zone_sensor",
        job=ingest_job,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Finds new and changed objects in the raw zone, claims them into batches, requests a run a batch.",
    )
    def sensor(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult:
        return watch.tick(context, lake)

    return sensor
