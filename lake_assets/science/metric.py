"""`@metric`: one decorated function, its columns declared; table, enrich column, index field and asset follow.

A metric lives in a file of its own in `metrics/`. What belongs here: declaring, finding and running metrics.
"""

import datetime as dt
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import dagster as dg
import dataframely as dy
import polars as pl
from dagster import AssetExecutionContext

from lake_assets.contracts import CleanDocuments, Contract, EnrichDocuments, Measured, about, metric_contract
from lake_assets.errors import ContractBroken
from lake_assets.io_manager import Counts, LakeResource, Updates, batches, table_asset
from lake_assets.lake.tables import Replacement, Snapshot
from lake_assets.text.workers import map_ordered

Texts = pl.Series
KINDS: dict[str, tuple[type[dy.Column], dict[str, Any]]] = {
    "keyword": (dy.String, {"type": "keyword", "ignore_above": 1024}),
    "integer": (dy.Int64, {"type": "long"}),
    "number": (dy.Float64, {"type": "double"}),
    "boolean": (dy.Bool, {"type": "boolean"}),
}
MEASURED = ["batch", "id", "text_hash", "text"]


@dataclass(frozen=True)
class Column:
    """A metric's column.

    Attributes:
        kind: `keyword`, `integer`, `number` or `boolean`; it decides the type in the lake and in the index.
        meaning: one sentence.
        unit: the unit or range, for instance `count`, `-1..1`.
    """

    kind: Literal["keyword", "integer", "number", "boolean"]
    meaning: str
    unit: str = ""

    def declare(self, upstream: str) -> dy.Column:
        """Makes the contract's column; every metric column is optional."""
        make, index = KINDS[self.kind]
        return make(nullable=True, **about(self.meaning, upstream, unit=self.unit, index=index))


@dataclass(frozen=True)
class Metric:
    """A metric: from clean texts to its declared columns, row by row."""

    name: str
    version: str
    columns: Mapping[str, Column]
    compute: Callable[[Texts], pl.DataFrame]
    description: str
    module: str

    @property
    def key(self) -> str:
        """The table `metrics/name`."""
        return f"metrics/{self.name}"

    @property
    def contract(self) -> type[Contract]:
        """The contract of the metric's table."""
        declared = {name: column.declare("clean/documents.text") for name, column in self.columns.items()}
        return metric_contract(Measured, declared)

    def measure(self, texts: Texts) -> pl.DataFrame:
        """Computes the columns of some texts.

        Returns: a frame of the declared columns and types, as many rows as texts, in their order.

        Raises:
            ContractBroken: the function gave other columns, or another number of rows.
        """
        frame = self.compute(texts)
        wanted = {name: KINDS[column.kind][0]().dtype for name, column in self.columns.items()}
        if set(frame.columns) != set(wanted) or frame.height != len(texts):
            raise ContractBroken(
                f"Metric {self.name} gave {frame.height} rows of {', '.join(frame.columns)} for {len(texts)} texts; "
                f"it declares {', '.join(wanted)}."
            )
        return frame.select(pl.col(name).cast(dtype) for name, dtype in wanted.items())


def metric(version: str, **columns: Column) -> Callable[[Callable[[Texts], pl.DataFrame]], Metric]:
    """Declares a metric: the function's name is its name, its docstring the description.

    Args:
        version: raised when the same text would give another result; old results are then computed again.
        columns: by name; each name begins with the metric's.

    Raises:
        ContractBroken: a column's name does not begin with the metric's, or belongs to engineering.
    """

    def declare(function: Callable[[Texts], pl.DataFrame]) -> Metric:
        name = getattr(function, "__name__", "")
        for column in columns:
            if not re.fullmatch(rf"{name}_[a-z0-9_]+", column) or column in CleanDocuments.columns():
                raise ContractBroken(
                    f"Column {column} of metric {name} must be named {name}_… and be no column of clean."
                )
        return Metric(name, version, columns, function, function.__doc__ or "", function.__module__)

    return declare


def find_metrics() -> dict[str, Metric]:
    """Finds every metric in `metrics/`, by name."""
    from lake_assets.science import metrics

    found = {}
    for module in sorted(entry.name for entry in pkgutil.iter_modules(metrics.__path__)):
        loaded = importlib.import_module(f"{metrics.__name__}.{module}")
        found |= {value.name: value for value in vars(loaded).values() if isinstance(value, Metric)}
    return found


def enrich_contract(metrics: Mapping[str, Metric]) -> type[Contract]:
    """Makes the contract of enrich/documents: every column of every metric."""
    columns = {
        name: column.declare(f"{item.key}.{name}") for item in metrics.values() for name, column in item.columns.items()
    }
    return metric_contract(EnrichDocuments, columns)


def metric_asset(item: Metric) -> dg.AssetsDefinition:
    """Makes the asset of a metric's table."""
    condition = dg.AutomationCondition
    wanted = condition.code_version_changed() | condition.newly_missing() | condition.any_deps_updated()

    @table_asset(
        item.key,
        "science",
        ["clean/documents"],
        item.contract,
        kinds=("python", "deltalake"),
        description=item.description,
        code_version=item.version,
        automation_condition=wanted.since(condition.newly_requested() | condition.newly_updated())
        & ~condition.any_deps_missing()
        & ~condition.any_deps_in_progress()
        & ~condition.in_progress(),
    )
    def measured(context: AssetExecutionContext, lake: LakeResource) -> Updates:
        counts = Counts("measured", "carried_over")
        return Updates(
            lake.lake.table(item.key, item.contract),
            (_rows_of(lake, item, batch, counts) for batch in batches(context)),
            counts.total,
        )

    return measured


def _rows_of(lake: LakeResource, item: Metric, batch: int, counts: Counts):
    def compute(snapshot: Snapshot) -> Replacement:
        clean = lake.lake.read("clean/documents")
        taken = lake.ledger().takeover(batch)
        replaced = [batch, *snapshot.stale(taken.earlier, clean)]
        measured = snapshot.scan([batch, *taken.earlier]).filter(pl.col("metric_version") == item.version)
        known = (
            measured.join(clean.scan(replaced), on=["id", "text_hash"], how="semi")
            .unique(["id", "text_hash"])
            .collect()
        )
        rows = _measure(item, clean, replaced, known, lake.settings.lake_workers, counts.begin(batch))
        return Replacement(replaced, rows, taken.shared)

    return compute


def _measure(
    item: Metric, clean: Snapshot, replaced: list[int], known: pl.DataFrame, workers: int, counts: dict[str, int]
) -> Iterator[pl.DataFrame]:
    """Hands out known results of unchanged texts, and computes the others on all cores."""
    columns = list(item.contract.columns())
    pending: list[pl.DataFrame] = []

    def unknown() -> Iterator[tuple[str, str, pl.DataFrame]]:
        for piece in clean.pieces(replaced, MEASURED):
            if known.height:
                pending.append(
                    piece.select("batch", "id", "text_hash").join(known.drop("batch"), on=["id", "text_hash"])
                )
                piece = piece.join(known, on=["id", "text_hash"], how="anti")
            yield item.module, item.name, piece

    for measured in map_ordered(_measure_piece, unknown(), workers, rows=lambda call: call[2].height):
        counts["measured"] += measured.height
        stamp = dt.datetime.now(dt.UTC)
        yield measured.with_columns(
            metric_version=pl.lit(item.version), computed_at=pl.lit(stamp).cast(pl.Datetime("us", "UTC"))
        ).select(columns)
        while pending:
            kept = pending.pop()
            counts["carried_over"] += kept.height
            yield kept.select(columns)
    for kept in pending:
        counts["carried_over"] += kept.height
        yield kept.select(columns)


def _measure_piece(call: tuple[str, str, pl.DataFrame]) -> pl.DataFrame:
    """Measures one piece, here or in a worker process, which finds the metric by its module and name."""
    module, name, piece = call
    item: Metric = getattr(importlib.import_module(module), name)
    return piece.drop("text").hstack(item.measure(piece["text"]))
