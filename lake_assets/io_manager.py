"""Frames become a table's batch, with counts, columns and lineage as metadata.

What both code locations need of Dagster: the partitions, the lake as a resource, the shape of an asset that is a table,
and the IO manager that commits what such an asset returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import dagster as dg
import dataframely as dy
import polars as pl
from dagster import AssetExecutionContext, OutputContext

from lake_assets.contracts import Contract
from lake_assets.index.client import connect
from lake_assets.index.node import opensearch_url
from lake_assets.lake.batches import Ledger
from lake_assets.lake.raw_zone import RawZone, raw_zone
from lake_assets.lake.tables import Compute, Lake, Snapshot, Table
from lake_assets.settings import Settings, current_settings
from lake_assets.text.sources import Sources, load_sources

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

BATCHES = dg.DynamicPartitionsDefinition(name="batch")
BATCHES_A_RUN = 50
TYPE_NAMES = {"String": "string", "Int64": "int", "Float64": "float", "Boolean": "bool", "Binary": "binary"}


class LakeResource(dg.ConfigurableResource):
    """The lake, its raw zone and its sources, as the environment says."""

    @cached_property
    def settings(self) -> Settings:
        """What this process was given, else what the environment says."""
        return current_settings()

    @cached_property
    def lake(self) -> Lake:
        """All tables."""
        return Lake(self.settings)

    @cached_property
    def zone(self) -> RawZone:
        """Where objects land."""
        return raw_zone(self.settings)

    @cached_property
    def sources(self) -> Sources:
        """What lands, as declared."""
        return load_sources(self.settings.lake_sources)

    def ledger(self) -> Ledger:
        """What was claimed until now."""
        return Ledger(self.lake, self.sources).refresh()

    def client(self) -> OpenSearch:
        """A client of OPENSEARCH_URL, or of the local node that runs.

        Raises:
            IndexUnavailable: no node runs, and no other OpenSearch is set.
        """
        return connect(self.settings, opensearch_url(self.settings))


@dataclass(frozen=True)
class Updates:
    """What an asset returns: its table, a computation a batch, and what else its page should show."""

    table: Table
    computes: Iterable[Compute]
    metadata: Callable[[], Mapping[str, Any]] = dict


class Counts:
    """What an asset counts, by batch: one that is computed again, because another writer was first, counts anew."""

    def __init__(self, *names: str) -> None:
        self._zero = dict.fromkeys(names, 0)
        self._batches: dict[int, dict[str, int]] = {}

    def begin(self, batch: int, *done: str) -> dict[str, int]:
        """Gives the counts of a batch, all 0 but for those of what an earlier computation has done for good."""
        before = self._batches.get(batch, self._zero)
        self._batches[batch] = {**self._zero, **{name: before[name] for name in done}}
        return self._batches[batch]

    def total(self) -> dict[str, int]:
        """Adds up the batches."""
        return {name: sum(counts[name] for counts in self._batches.values()) for name in self._zero}


_listeners: list[Callable[[str, int], None]] = []


@contextmanager
def listening(listener: Callable[[str, int], None]) -> Iterator[None]:
    """Tells a listener, inside the block, each table and how many of its rows are ready to be written."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class LakeIOManager(dg.ConfigurableIOManager):
    """Commits each batch, then tells the catalogue what is there."""

    def handle_output(self, context: OutputContext, obj: Updates) -> None:
        """Runs the computations in order; a failed one leaves the batches after it untouched."""
        written = 0
        key = context.asset_key.to_user_string()

        def tell(rows: int) -> None:
            for listener in _listeners:
                listener(key, rows)

        tell(0)
        for compute in obj.computes:
            replaced = obj.table.replace(compute, info={"run": context.run_id}, on_rows=tell)
            written += replaced.rows if replaced else 0
        batches = [int(key) for key in context.asset_partition_keys]
        snapshot = obj.table.snapshot()
        files = snapshot.delta.get_add_actions(flatten=True) if snapshot.delta else None
        size = sum(files["size_bytes"].to_pylist()) if files is not None else 0
        context.add_output_metadata(
            {
                "dagster/row_count": snapshot.count(batches),
                "dagster/uri": obj.table.url,
                "dagster/column_schema": column_schema(obj.table.contract),
                "dagster/column_lineage": column_lineage(obj.table.contract, key),
                "rows_written": written,
                "table_rows": int(snapshot.scan().select(pl.len()).collect().item()),
                "table_bytes": int(size),
                "table_version": snapshot.version,
                **obj.metadata(),
            }
        )

    def load_input(self, context: dg.InputContext) -> Snapshot:
        """Pins the upstream table; an asset of another project says which of its batches it wants."""
        return LakeResource().lake.read(context.asset_key.to_user_string())


def table_asset(
    key: str,
    team: str,
    deps: Sequence[str],
    contract: type[Contract],
    kinds: Sequence[str] = ("deltalake", "polars"),
    **more: Any,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Makes an asset of a function that returns `Updates`: one table, in batches.

    Args:
        key: `group/name`, which is also the table's folder.
        team: who owns it.
        deps: the tables it reads.
        contract: the table's columns.
        kinds: what it is made with.
        more: handed to `dagster.asset`.
    """
    return dg.asset(
        key=key.split("/"),
        group_name=key.split("/")[0],
        owners=[f"team:{team}"],
        kinds=set(kinds),
        deps=[dg.AssetKey(dep.split("/")) for dep in deps],
        partitions_def=BATCHES,
        backfill_policy=dg.BackfillPolicy.multi_run(BATCHES_A_RUN),
        io_manager_key="lake_io",
        metadata={
            "dagster/column_schema": column_schema(contract),
            "dagster/column_lineage": column_lineage(contract, key),
        },
        **more,
    )


def build_definitions(
    location: str,
    assets: Sequence[dg.AssetsDefinition],
    sensors: Sequence[dg.SensorDefinition] = (),
    jobs: Sequence[Any] = (),
) -> dg.Definitions:
    """Builds a code location: its assets, what automates them, and the resources that the environment describes."""
    automation = dg.AutomationConditionSensorDefinition(
        f"{location}_automation_sensor",
        target=dg.AssetSelection.all(include_sources=True),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=1,
    )
    return dg.Definitions(
        assets=assets,
        sensors=[*sensors, automation],
        jobs=jobs,
        resources={"lake": LakeResource(), "lake_io": LakeIOManager()},
        executor=dg.in_process_executor,
    )


def batches(context: AssetExecutionContext) -> list[int]:
    """Gives the batches of a run, the oldest first."""
    return sorted(int(key) for key in context.partition_keys)


def column_schema(contract: type[dy.Schema]) -> dg.TableSchema:
    """Shows a contract as Dagster's column table."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=name,
                type=TYPE_NAMES.get(type(column.dtype).__name__, "timestamp"),
                description=_meaning(column),
                constraints=dg.TableColumnConstraints(nullable=column.nullable),
            )
            for name, column in contract.columns().items()
        ]
    )


def column_lineage(contract: type[Contract], key: str) -> dg.TableColumnLineage:
    """Shows which columns each column of a contract is made from."""
    return dg.TableColumnLineage(
        {
            name: [_upstream(dep) for dep in (column.metadata or {})["upstream"]]
            for name, column in contract.columns().items()
            if (column.metadata or {}).get("upstream")
        }
    )


def _meaning(column: Any) -> str:
    unit = (column.metadata or {}).get("unit")
    return f"{column.description} [{unit}]" if unit else column.description


def _upstream(dep: str) -> dg.TableColumnDep:
    table, column = dep.rsplit(".", 1)
    return dg.TableColumnDep(dg.AssetKey(table.split("/")), column)
