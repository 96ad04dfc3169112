"""The index: its state as an asset, what of it differs from the lake, and the jobs that mend it."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from lake_assets.contracts import OpenSearchIndex
from lake_assets.index.compare import Compared, compare_mapping, nothing_held
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
def opensearch_index(lake: LakeResource) -> dg.MaterializeResult:
    """Compares the index with the lake: where the alias points, how many documents, what differs.

    One row: the state at this moment. Reads OpenSearch, clean and enrich; writes only what it found equal, so that the
    next comparison reads less. What is on its way is no difference; `lake index repair` or the job index_repair mends.
    """
    alias = lake.settings.opensearch_alias
    client = lake.client()
    state = index_state(client, alias)
    compared = compare_with_baseline(client, alias, lake.lake) if state["index"] else nothing_held(lake.lake)
    faults = compare_mapping(client, state["index"], declared_fields(lake.lake)) if state["index"] else []
    return dg.MaterializeResult(
        check_results=list(_checks(compared, faults)),
        metadata={
            **state,
            **_differences(compared),
            "dagster/row_count": state["documents"],
            "dagster/column_schema": column_schema(OpenSearchIndex),
        },
    )


def _checks(compared: Compared, faults: list[str]) -> Iterator[dg.AssetCheckResult]:
    """Judges a comparison."""
    count = compared.count
    flying = count("in_flight")
    unequal = abs(compared.index_documents - compared.lake_documents)
    counted = [f"Documents more or fewer than in clean: {unequal}; on their way: {flying}."]
    counted += [f"Readers see {other} as well; `lake index repair` takes it away." for other in compared.beside]
    mend = "`lake index repair` sends them" if compared.index else "there is no index: `lake index rebuild` makes it"
    documents = count("missing") + count("changed") + count("foreign")
    told = {
        "counts_check": (unequal <= flying and not compared.beside, " ".join(counted)),
        "documents_check": (not documents, f"Documents that differ: {documents}; {mend}." if documents else "Equal."),
        "metrics_check": (not count("metrics_changed"), f"Documents with other metrics: {count('metrics_changed')}."),
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


def _tell(context: dg.OpExecutionContext, done: Repaired) -> None:
    """Shows what a job did, and fails it where the index is not equal to the lake.

    Raises:
        Failure: something still differs.
    """
    left = done.left.differences.filter(pl.col("kind") != "in_flight").height
    told = {"index": done.left.index, "sent": done.sent, "deleted": done.deleted, "left": left}
    if not done.left.is_equal:
        raise dg.Failure("The index still differs from the lake; run the job again, or rebuild the index.", told)
    context.add_output_metadata(told)


@dg.op(pool="opensearch")
def repair_index(context: dg.OpExecutionContext, lake: LakeResource) -> None:
    """Sends only what differs, and deletes what the lake does not know."""
    _tell(context, repair(lake.client(), lake.settings.opensearch_alias, lake.lake))


@dg.op(pool="opensearch")
def rebuild_index(context: dg.OpExecutionContext, lake: LakeResource) -> None:
    """Writes everything into a new index, proves it equal, and moves the alias."""
    _tell(context, rebuild(lake.client(), lake.settings.opensearch_alias, lake.lake))


@dg.op(pool="opensearch")
def rollback_index(context: dg.OpExecutionContext, lake: LakeResource) -> None:
    """Moves the alias back to the index before, and repairs what that has missed."""
    _tell(context, rollback(lake.client(), lake.settings.opensearch_alias, lake.lake))


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


index_compare = dg.define_asset_job(
    "index_compare", dg.AssetSelection.assets(KEY), description="Compares the index with the lake, and shows how it is."
)

INDEX_JOBS = [index_compare, index_repair, index_rebuild, index_rollback]
