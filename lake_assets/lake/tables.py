"""Delta tables: read at a pinned version, replaced batch by batch, each commit computed from the version it follows.

What belongs here: reading and committing rows of any table. What does not: what the rows mean.
"""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import polars as pl
import pyarrow as pa
from deltalake import (
    CommitProperties,
    DeltaTable,
    Field,
    PostCommitHookProperties,
    Schema,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, SchemaMismatchError, TableNotFoundError
from deltalake.schema import PrimitiveType

from lake_assets import __version__
from lake_assets.contracts import INDEX_TABLES, TABLES, Contract
from lake_assets.errors import ContractBroken, TableConflict
from lake_assets.settings import Settings

PIECE_ROWS = 50_000  # rows of one piece: about 12 MB of short comments
PIECE_BYTES = 16 << 20
BUCKET_ROWS = 500_000  # rows of one side of a join that is held in memory
COMMIT_TRIES = 30
DELTA_TYPES = {
    pl.String: "string",
    pl.Int64: "long",
    pl.Int32: "integer",
    pl.Float64: "double",
    pl.Boolean: "boolean",
    pl.Binary: "binary",
    pl.Date: "date",
    pl.Datetime: "timestamp",
}
CONFIGURATION = {"delta.logRetentionDuration": "interval 3650 days", "delta.checkpointInterval": "100"}
Rows = Iterable[pl.DataFrame]


class Replacement(NamedTuple):
    """What a computation wants to commit.

    Attributes:
        batches: whose rows are replaced, whole.
        rows: the new rows, in pieces.
        shared: names of what others may be changing at the same time; of two commits to a table that share one, the
            later is computed again, whatever rows they hold.
    """

    batches: Sequence[int]
    rows: Rows
    shared: Sequence[str] = ()


Compute = Callable[["Snapshot"], Replacement | tuple[Sequence[int], Rows] | None]


@dataclass(frozen=True)
class Replaced:
    """What one commit did: the batches whose rows it replaced, the rows it wrote, and the table's version after it."""

    batches: tuple[int, ...]
    rows: int
    version: int


class Snapshot:
    """One version of a table, which later commits do not change. A table that does not exist yet reads as empty."""

    def __init__(self, delta: DeltaTable | None, contract: type[Contract]) -> None:
        self.delta = delta
        self.contract = contract

    @property
    def version(self) -> int:
        """The table's version; -1 before the first."""
        return self.delta.version() if self.delta else -1

    @property
    def columns(self) -> dict[str, Field]:
        """Every column the table has now, with its metadata; also those that the contract does not know."""
        return {field.name: field for field in self.delta.schema().fields} if self.delta else {}

    def scan(self, batches: Sequence[int] | None = None) -> pl.LazyFrame:
        """Gives the rows of some batches (all, if None), lazily, with every column of the contract at least."""
        empty = self.contract.create_empty().lazy()
        if self.delta is None or (batches is not None and not len(batches)):
            return empty
        frame = pl.scan_delta(self.delta)
        columns = self.columns
        lacking = {name: dtype for name, dtype in empty.collect_schema().items() if name not in columns}
        if lacking:  # the contract has gained them, and nothing has been written since
            frame = frame.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in lacking.items())
        return frame if batches is None else frame.filter(pl.col("batch").is_in(sorted(set(batches))))

    def frame(self, batches: Sequence[int] | None = None, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Reads rows of some batches into memory."""
        scan = self.scan(batches)
        return (scan.select(columns) if columns else scan).collect()

    def count(self, batches: Sequence[int]) -> int:
        """Counts the rows of some batches."""
        return int(self.scan(batches).select(pl.len()).collect().item())

    def pieces(self, batches: Sequence[int], columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """Reads rows of some batches in no order, at most PIECE_ROWS at a time."""
        scan = self.scan(batches)
        scan = scan.select(columns) if columns else scan
        for piece in scan.collect_batches(chunk_size=PIECE_ROWS, maintain_order=False, lazy=True, engine="streaming"):
            yield from piece.iter_slices(PIECE_ROWS)

    def ordered_pieces(self, batch: int) -> Iterator[pl.DataFrame]:
        """Reads one batch, the last path first and its records in order, about PIECE_ROWS at a time.

        The writer does not keep the order. Newer exports mostly have the greater names.
        """
        scan = self.scan([batch])
        paths: list[str] = []
        rows = 0
        for path, count, last in (
            scan.group_by("path").agg(pl.len(), pl.col("record").max()).sort("path", descending=True).collect().rows()
        ):
            if paths and rows + count > PIECE_ROWS:
                yield (
                    scan.filter(pl.col("path").is_in(paths)).sort("path", "record", descending=[True, False]).collect()
                )
                paths, rows = [], 0
            if count <= PIECE_ROWS:
                paths.append(path)
                rows += count
                continue
            for first in range(0, last + 1, PIECE_ROWS):
                part = pl.col("record").is_between(first, first + PIECE_ROWS, closed="left")
                yield scan.filter(pl.col("path") == path, part).collect().sort("record")
        if paths:
            yield scan.filter(pl.col("path").is_in(paths)).sort("path", "record", descending=[True, False]).collect()

    def others(self, batches: Sequence[int], taken: pl.Expr) -> Iterator[pl.DataFrame]:
        """Reads what some batches hold beside the rows that are taken: what stays when a newer batch takes those."""
        if len(batches):
            kept = self.scan(batches).filter(~taken)
            yield from kept.collect_batches(chunk_size=PIECE_ROWS, maintain_order=False, lazy=True)

    def stale(self, batches: Sequence[int], clean: Snapshot) -> list[int]:
        """Finds which batches hold ids here that they no longer hold in clean."""
        if not len(batches):
            return []
        held, wanted = (snapshot.scan(batches).select("batch", "id") for snapshot in (self, clean))
        left = held.join(wanted, on=["batch", "id"], how="anti").select(pl.col("batch").unique()).collect()
        return sorted(left.to_series().to_list())

    def batches_of(self, candidates: Sequence[int], rows: pl.Expr) -> list[int]:
        """Finds which of the candidate batches hold such rows."""
        if not len(candidates):
            return []
        found = self.scan(candidates).filter(rows).select(pl.col("batch").unique())
        return sorted(found.collect().to_series().to_list())


class Table:
    """One table of the lake: `group/name`, its contract, and where it lies."""

    def __init__(self, key: str, contract: type[Contract], url: str, storage_options: Mapping[str, str]) -> None:
        self.key = key
        self.contract = contract
        self.url = url
        self.storage_options = dict(storage_options)

    def snapshot(self) -> Snapshot:
        """Pins the newest version."""
        try:
            return Snapshot(DeltaTable(self.url, storage_options=self.storage_options), self.contract)
        except TableNotFoundError:
            return Snapshot(None, self.contract)

    def ensure(self) -> None:
        """Creates the table, or adds the columns that its contract has gained.

        Raises:
            ContractBroken: a column of the table has another type than the contract says.
        """
        wanted = {name: delta_field(name, column) for name, column in self.contract.columns().items()}
        present = self.snapshot()
        if present.delta is None:
            with suppress(CommitFailedError):  # somebody else has just created it
                DeltaTable.create(
                    self.url,
                    schema=Schema(list(wanted.values())),
                    mode="ignore",
                    name=self.key,
                    description=self.contract.__doc__,
                    configuration=CONFIGURATION,
                    storage_options=self.storage_options,
                )
            present = self.snapshot()
        columns = present.columns
        for name, field in wanted.items():
            if name in columns and columns[name].type != field.type:
                raise ContractBroken(
                    f"Column {name} of {self.key} is {columns[name].type.type} in the lake, and its contract now says "
                    f"{field.type.type}; give the new column another name, or move the table."
                )
        added = [
            Field(name, field.type, nullable=True, metadata=field.metadata)
            for name, field in wanted.items()
            if name not in columns
        ]
        if added and present.delta is not None:
            try:
                present.delta.alter.add_columns(added)
            except (CommitFailedError, SchemaMismatchError):
                self.ensure()  # somebody else has just added them

    def replace(
        self,
        compute: Compute,
        info: Mapping[str, Any] | None = None,
        on_rows: Callable[[int], None] = lambda _: None,
    ) -> Replaced | None:
        """Replaces whole batches in one commit, computed from the very version that the commit follows.

        Args:
            compute: from a snapshot of this table to what is to be replaced; None when nothing is. What else it needs
                it reads after that snapshot was taken. Called again when another writer's commit came between.
            info: kept with the commit, for instance the Dagster run.
            on_rows: told how many rows are ready, in the thread that makes them.

        Raises:
            ContractBroken: a piece lacks a column, has one too many or one of another type.
            TableConflict: another writer kept winning.
        """
        self.ensure()
        for attempt in range(COMMIT_TRIES):
            snapshot = self.snapshot()
            computed = compute(snapshot)
            if computed is None or snapshot.delta is None:
                return None
            computed = Replacement(*computed)
            batches = tuple(sorted(set(computed.batches)))
            stream = _Stream(self, computed.rows, snapshot, on_rows)
            try:
                write_deltalake(
                    snapshot.delta,
                    stream.reader(),
                    mode="overwrite",
                    predicate=f"batch IN ({', '.join(map(str, batches))})",
                    target_file_size=4 << 30,
                    writer_properties=WriterProperties(
                        compression="ZSTD", compression_level=1, max_row_group_size=65_536
                    ),
                    commit_properties=CommitProperties(
                        custom_metadata={"lake_assets": __version__, **{k: str(v) for k, v in (info or {}).items()}},
                        app_transactions=[Transaction(name, snapshot.version + 1) for name in computed.shared],
                        max_commit_retries=15,
                    ),
                    post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
                )
                return Replaced(batches, stream.rows, snapshot.version)
            except Exception as error:
                if stream.error is not None:
                    raise stream.error from None
                if not isinstance(error, (CommitFailedError, SchemaMismatchError)):
                    raise
                time.sleep(random.uniform(0, min(2.0, 0.05 * 2**attempt)))
            finally:
                stream.close()
        raise TableConflict(f"Another writer kept winning the commit of {self.key}; run the batch again.")


class Lake:
    """All tables under one root."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._tables: dict[str, Table] = {}

    def table(self, key: str, contract: type[Contract] | None = None) -> Table:
        """Gives the table `group/name`.

        Args:
            key: the asset key, which is also the folder.
            contract: of a metric's table or of enrich with its metrics; the fixed tables know theirs.
        """
        wanted = contract or TABLES.get(key) or INDEX_TABLES[key]
        table = self._tables.get(key)
        if table is None or table.contract is not wanted:
            url = f"{self.settings.lake_root}/{key}"
            if url.startswith("file:"):
                local_path(url).mkdir(parents=True, exist_ok=True)
            table = self._tables[key] = Table(key, wanted, url, self.settings.storage_options)
        return table

    def read(self, key: str) -> Snapshot:
        """Pins the newest version of the table `group/name`."""
        return self.table(key).snapshot()


class _Stream:
    """Feeds frames to the writer, checks each, and keeps the error that a frame's making raised.

    The frames are made in a thread of their own: so the next one is made while the last one is written, and their
    making may use Delta tables itself, which the writer's own threads refuse.
    """

    def __init__(self, table: Table, rows: Rows, snapshot: Snapshot, on_rows: Callable[[int], None]) -> None:
        self.table = table
        self.on_rows = on_rows
        self.rows = 0
        self.error: BaseException | None = None
        self.declared = table.contract.create_empty().to_arrow().schema
        # A column of a metric that is no longer there stays in the table, and is null in new rows.
        present = pa.schema(snapshot.delta.schema().to_arrow()) if snapshot.delta else pa.schema([])
        self.former = [field for field in present if field.name not in self.declared.names]
        self.schema = pa.schema([*self.declared, *self.former])
        self._made: queue.Queue[pl.DataFrame | None] = queue.Queue(maxsize=1)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._make, args=(rows,), daemon=True)

    def reader(self) -> pa.RecordBatchReader:
        """Starts the making, and gives what the writer reads."""
        self._thread.start()
        return pa.RecordBatchReader.from_batches(self.schema, self._batches())

    def close(self) -> None:
        """Ends the making, wherever it is."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        with suppress(queue.Empty):
            self._made.get_nowait()
        self._made.put(None)  # a writer that has failed may still wait for a frame, with a thread of its runtime

    def _make(self, rows: Rows) -> None:
        source = gathered(rows)
        try:
            for frame in source:
                checked = conform(frame, self.table.contract, self.table.key)
                self.rows += checked.height
                self.on_rows(self.rows)
                if not self._put(checked):
                    break
        except BaseException as error:
            self.error = error
        finally:
            source.close()
            self._put(None)

    def _put(self, frame: pl.DataFrame | None) -> bool:
        while not self._ended.is_set():
            try:
                self._made.put(frame, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _batches(self) -> Iterator[pa.RecordBatch]:
        while (frame := self._made.get()) is not None:
            rows = frame.to_arrow().cast(self.declared)
            for field in self.former:
                rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
            yield from rows.to_batches()
        if self.error is not None:
            raise OSError("The frames ended early.")  # the writer gives up; the error itself is raised by who called it


def gathered(frames: Rows) -> Generator[pl.DataFrame]:
    """Joins small frames until one has PIECE_ROWS rows or PIECE_BYTES bytes; a thousand small objects are one piece."""
    held: list[pl.DataFrame] = []
    rows, size = 0, 0
    for frame in frames:
        if held and frame.schema != held[0].schema:  # for the contract to judge
            yield pl.concat(held)
            held, rows, size = [], 0, 0
        held.append(frame)
        rows, size = rows + frame.height, size + frame.estimated_size()
        if rows >= PIECE_ROWS or size >= PIECE_BYTES:
            yield pl.concat(held) if len(held) > 1 else frame
            held, rows, size = [], 0, 0
    if held:
        yield pl.concat(held)


def conform(frame: pl.DataFrame, contract: type[Contract], key: str) -> pl.DataFrame:
    """Puts the columns into the contract's order, and refuses a frame that does not fulfil the contract.

    Raises:
        ContractBroken: naming the table, the columns and the rules; never the values.
    """
    wanted = {name: column.dtype for name, column in contract.columns().items()}
    wrong = [name for name, dtype in wanted.items() if frame.schema.get(name) != dtype]
    wrong += [name for name in frame.columns if name not in wanted]
    if wrong:
        raise ContractBroken(f"A frame for {key} differs from its contract in {', '.join(wrong)}; nothing is written.")
    checked, failed = contract.filter(frame.select(list(wanted)))
    if failed.counts():
        raise ContractBroken(f"A frame for {key} breaks {', '.join(failed.counts())}; nothing is written.")
    return checked


def delta_field(name: str, column: Any) -> Field:
    """Makes a column's field in the table: its type, and what the contract says of it as metadata."""
    about = column.metadata or {}
    metadata = {
        "comment": column.description or "",
        "unit": about.get("unit") or "",
        "index": json.dumps(about.get("index")),
        "upstream": json.dumps(about.get("upstream") or []),
    }
    return Field(name, PrimitiveType(DELTA_TYPES[type(column.dtype)]), nullable=column.nullable, metadata=metadata)


def bucketed(rows: int, column: str) -> list[pl.Expr]:
    """Cuts rows into parts by a hash of a column, so that a join holds at most about BUCKET_ROWS of them in memory."""
    parts = max(1, -(-rows // BUCKET_ROWS))
    return [pl.lit(True)] if parts == 1 else [pl.col(column).hash(seed=7) % parts == part for part in range(parts)]


def local_path(url: str) -> Path:
    """Turns file:///a%20b into the path it names."""
    return Path(url2pathname(urlsplit(url).path))
