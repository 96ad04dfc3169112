"""The index: its state as an asset, what of it differs from the lake, and the jobs that mend it."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from lake_assets.contracts import OpenSearchIndex
from lake_assets.index.compare import Compared, compare_mapping
from lake_assets.index.mapping import index_state
from lake_assets.index.repair import Repaired, compare_with_baseline, declared_fields, rebuild, repair, rollback
from lake_assets.io_manager import LakeResource, column_schema

KEY = dg.AssetKey(["opensearch", "index"])
SHOWN_BATCHES = 50
CHECKS = {
    "counts_check": "The index holds as many documents as clean.",
    "documents_check": "Every document of clean is in the index as it is in the lake, and no other is there.",
    "metrics_check": "The metric fields of every document are those of enrich.",
    "mapping_check": "The mapping is what the contracts and metrics declare.",
}


@dg.asset(
    key=KEY,
    group_name="opensearch",
    owners=["team:engineering"],
    kinds={"opensearch"},
    deps=[dg.AssetKey(["opensearch", "documents"]), dg.AssetKey(["opensearch", "metrics"])],
    metadata={"dagster/column_schema": column_schema(OpenSearchIndex)},
    check_specs=[dg.AssetCheckSpec(name, asset=KEY, description=told) for name, told in CHECKS.items()],
    automation_condition=dg.AutomationCondition.eager(),
)
def opensearch_index(lake: LakeResource) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Compares the index with the lake: where the alias points, how many documents, what differs.

    One row: the state at this moment. Reads OpenSearch, clean and enrich; writes only what it found equal, so that the
    next comparison reads less. What is on its way is no difference; `lake index repair` or the job index_repair mends.
    """
    alias = lake.settings.opensearch_alias
    client = lake.client()
    state = index_state(client, alias)
    compared = compare_with_baseline(client, alias, lake.lake) if state["index"] else None
    faults = compare_mapping(client, state["index"], declared_fields(lake.lake)) if compared else []
    yield from _checks(compared, faults)
    yield dg.MaterializeResult(
        metadata={
            **state,
            **(_differences(compared) if compared else {}),
            "dagster/row_count": state["documents"],
            "dagster/column_schema": column_schema(OpenSearchIndex),
        }
    )


def _checks(compared: Compared | None, faults: list[str]) -> Iterator[dg.AssetCheckResult]:
    """Judges a comparison; with no index yet there is nothing to differ."""
    count = compared.count if compared else lambda _: 0
    flying = count("in_flight")
    unequal = abs(compared.index_documents - compared.lake_documents) if compared else 0
    documents = count("missing") + count("changed") + count("foreign")
    told = {
        "counts_check": (unequal <= flying, f"{unequal} more or fewer than in clean, {flying} on their way."),
        "documents_check": (not documents, f"{documents} documents differ; `lake index repair` sends them."),
        "metrics_check": (not count("metrics_changed"), f"{count('metrics_changed')} documents have other metrics."),
        "mapping_check": (not faults, " ".join(faults) or "Equal."),
    }
    for name, (passed, description) in told.items():
        yield dg.AssetCheckResult(passed=passed, check_name=name, description=description, asset_key=KEY)


def _differences(compared: Compared) -> dict[str, Any]:
    """Shows how many documents differ, by kind, and in which batches."""
    differing = compared.differences.filter(pl.col("kind") != "in_flight")
    by_batch = differing.group_by("batch", "kind").len("documents").sort("batch", "kind").head(SHOWN_BATCHES)
    rows = [dg.TableRecord({name: "" if value is None else value for name, value in row.items()})
            for row in by_batch.rows(named=True)]  # fmt: skip
    names = [dg.TableColumn("batch", "int"), dg.TableColumn("kind"), dg.TableColumn("documents", "int")]
    counts = {kind: compared.count(kind) for kind in ("missing", "changed", "metrics_changed", "foreign", "in_flight")}
    return {
        **counts,
        "lake_documents": compared.lake_documents,
        "documents_read": compared.read,
        "differences": dg.MetadataValue.table(rows, dg.TableSchema(columns=names)),
    }


def _told(done: Repaired) -> dict[str, Any]:
    """Shows what a job did."""
    return {
        "index": done.left.index,
        "sent": done.sent,
        "deleted": done.deleted,
        "left": done.left.differences.filter(pl.col("kind") != "in_flight").height,
    }


@dg.op(pool="opensearch")
def repair_index(context: dg.OpExecutionContext, lake: LakeResource) -> None:
    """Sends only what differs, and deletes what the lake does not know."""
    context.add_output_metadata(_told(repair(lake.client(), lake.settings.opensearch_alias, lake.lake)))


@dg.op(pool="opensearch")
def rebuild_index(context: dg.OpExecutionContext, lake: LakeResource) -> None:
    """Writes everything into a new index, proves it equal, and moves the alias."""
    context.add_output_metadata(_told(rebuild(lake.client(), lake.settings.opensearch_alias, lake.lake)))


@dg.op(pool="opensearch")
def rollback_index(context: dg.OpExecutionContext, lake: LakeResource) -> None:
    """Moves the alias back to the index before, and repairs what that has missed."""
    context.add_output_metadata(_told(rollback(lake.client(), lake.settings.opensearch_alias, lake.lake)))


@dg.job(executor_def=dg.in_process_executor)
def index_repair() -> None:
    """Makes the index equal to the lake by the difference."""
    repair_index()


@dg.job(executor_def=dg.in_process_executor)
def index_rebuild() -> None:
    """Makes a new index of the lake beside the old one."""
    rebuild_index()


@dg.job(executor_def=dg.in_process_executor)
def index_rollback() -> None:
    """Goes back to the index before."""
    rollback_index()


INDEX_JOBS = [dg.define_asset_job("index_compare", dg.AssetSelection.assets(KEY)), index_repair, index_rebuild,
              index_rollback]  # fmt: skip
