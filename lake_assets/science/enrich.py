"""The enrich zone: every metric of a document beside its id."""

from collections.abc import Iterator, Mapping

import dagster as dg
import polars as pl
from dagster import AssetExecutionContext

from lake_assets.io_manager import LakeResource, Updates, batches, table_asset
from lake_assets.lake.tables import Replacement, Snapshot, bucketed
from lake_assets.science.metric import Metric, enrich_contract

DESCRIPTION = """Joins every metric to the documents: what the index gets as new fields.

One row per document of clean, partitioned by batch. All metric columns are optional: a metric that has failed leaves
nulls, and holds nothing back. A result of another text than the document's is left out.
"""


def enrich_asset(metrics: Mapping[str, Metric]) -> dg.AssetsDefinition:
    """Makes the asset enrich/documents of these metrics."""
    contract = enrich_contract(metrics)
    keys = [item.key for item in metrics.values()]
    optional = dg.AssetSelection.assets(*(dg.AssetKey(key.split("/")) for key in keys))
    condition = dg.AutomationCondition

    @table_asset(
        "enrich/documents",
        "science",
        ["clean/documents", *keys],
        contract,
        description=DESCRIPTION,
        automation_condition=condition.any_deps_match(condition.newly_updated()).allow(optional).since_last_handled()
        & ~condition.any_deps_missing().ignore(optional)
        & ~condition.any_deps_in_progress()
        & ~condition.in_progress(),
    )
    def enrich_documents(context: AssetExecutionContext, lake: LakeResource) -> Updates:
        return Updates(
            lake.lake.table("enrich/documents", contract),
            (_rows_of(lake, metrics, batch) for batch in batches(context)),
        )

    return enrich_documents


def _rows_of(lake: LakeResource, metrics: Mapping[str, Metric], batch: int):
    def compute(snapshot: Snapshot) -> Replacement:
        clean = lake.lake.read("clean/documents")
        taken = lake.ledger().takeover(batch)
        replaced = [batch, *snapshot.stale(taken.earlier, clean)]
        return Replacement(replaced, _join(lake, metrics, clean, replaced, [batch, *taken.earlier]), taken.shared)

    return compute


def _join(
    lake: LakeResource, metrics: Mapping[str, Metric], clean: Snapshot, replaced: list[int], measured_in: list[int]
) -> Iterator[pl.DataFrame]:
    """Joins the newest results there are: where a metric has not run since, those that older batches hold."""
    tables = {
        name: lake.lake.table(item.key, item.contract).snapshot().scan(measured_in) for name, item in metrics.items()
    }
    columns = list(enrich_contract(metrics).columns())
    for part in bucketed(clean.count(replaced), "id"):
        joined = clean.scan(replaced).filter(part).select("batch", "id", "text_hash").collect()
        for name, scan in tables.items():
            measured = scan.filter(part).select("batch", "id", "text_hash", *metrics[name].columns)
            measured = measured.join(joined.lazy(), on=["id", "text_hash"], how="semi").collect()
            newest = measured.sort("batch", descending=True).unique(["id", "text_hash"], keep="first").drop("batch")
            joined = joined.join(newest, on=["id", "text_hash"], how="left")
        yield joined.select(columns)
