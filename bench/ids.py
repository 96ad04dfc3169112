"""Ids: what each of the three ways to choose them costs, before, while and after the same documents are sent.

Each way does what the first delivery of a batch does with it, through the functions of lake_assets/index: `source`
computes the ids; `counter` reserves numbers and writes them down; `opensearch` asks whether an earlier run has left the
documents, creates them, writes down the ids that the server made, and counts whether there are copies. Beside these,
what is asked after a lost answer: the documents of one full request, and all of them.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from opensearchpy import OpenSearch
from rich.table import Table

from bench.delivery import documents
from bench.nodes import OUT, Stopwatch, bench_node, workspace
from lake_assets.index.client import connect
from lake_assets.index.created import create_documents
from lake_assets.index.delivery import deliver
from lake_assets.index.ids import source_ids
from lake_assets.index.mapping import ensure_index
from lake_assets.index.names import choose_ids, counting
from lake_assets.index.present import copies_of, count_in
from lake_assets.index.whole import STATE_FIELDS
from lake_assets.lake.tables import Lake
from lake_assets.settings import Settings

PARTS = ("before", "sending", "after", "all", "client CPU", "node CPU")
REQUEST_NAMES = 10_000


class Clock(defaultdict[str, float]):
    """Seconds by part."""

    def __init__(self) -> None:
        super().__init__(float)

    @contextmanager
    def measures(self, part: str) -> Iterator[None]:
        """Adds what happens inside to a part, and to all."""
        begun = time.perf_counter()
        yield
        for name in (part, "all"):
            self[name] += time.perf_counter() - begun


Way = Callable[[OpenSearch, str, Path, list[pl.DataFrame], Clock], int]


def main(arguments: list[str]) -> bool:
    """Measures and prints; there is no target."""
    parser = argparse.ArgumentParser("python -m bench ids")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, taken in turn")
    parser.add_argument("--documents", type=int, default=60_000, help="how many comments")
    options = parser.parse_args(arguments)
    frames = list(pl.concat(documents()).head(options.documents).drop("id").iter_slices(15_000))
    ways: dict[str, Way] = {"source": by_source, "counter": by_counter, "opensearch": by_opensearch}
    clocks: dict[str, list[Clock]] = {name: [] for name in ways}
    with workspace() as folder, bench_node(folder) as state:
        client = connect(Settings(lake_home=folder), state.url)
        for number in range(-2, options.rounds):  # two unmeasured: Java compiles what runs often
            for name, way in ways.items() if number % 2 == 0 else reversed(ways.items()):
                clock = _measure(client, state.pid, folder / f"{name}{number}", way, frames)
                clocks[name] += [clock] if number >= 0 else []
        asked = _measure_asking(client, frames)
    best = {name: {part: min(clock[part] for clock in found) for part in PARTS} for name, found in clocks.items()}
    OUT.print(_table(best, options.documents, options.rounds))
    for count, seconds in asked.items():
        OUT.print(f"asking for {count:,} documents after a lost answer: {seconds:.2f} s")
    return True


def by_source(client: OpenSearch, alias: str, folder: Path, frames: list[pl.DataFrame], clock: Clock) -> int:
    """Computes the ids."""
    with clock.measures("before"):
        known = [_addressed(frame, source_ids(frame["path"], frame["key"])) for frame in frames]
    with clock.measures("sending"):
        return sum(receipts.height for receipts in deliver(client, alias, known))


def by_counter(client: OpenSearch, alias: str, folder: Path, frames: list[pl.DataFrame], clock: Clock) -> int:
    """Reserves numbers and writes them down."""
    lake = Lake(Settings(lake_home=folder, lake_ids="counter"))
    names = _names(frames)
    with clock.measures("before"):
        chosen = choose_ids(lake, 1, names, counting(lake.settings, "bench")).select("key", "id")
        known = [_addressed(frame, frame.join(chosen, on="key", maintain_order="left")["id"]) for frame in frames]
    with clock.measures("sending"):
        return sum(receipts.height for receipts in deliver(client, alias, known))


def by_opensearch(client: OpenSearch, alias: str, folder: Path, frames: list[pl.DataFrame], clock: Clock) -> int:
    """Asks, creates, writes the ids down, counts."""
    lake = Lake(Settings(lake_home=folder, lake_ids="opensearch"))
    names = _names(frames)
    with clock.measures("before"):
        assert copies_of(client, alias, names).is_empty()
    with clock.measures("sending"):
        receipts = pl.concat(create_documents(client, alias, frames))
    with clock.measures("after"):
        choose_ids(lake, 1, names, lambda lacking: lacking.with_columns(receipts["id"]))
        return count_in(client, alias, names["path"].unique().to_list())


def _addressed(frame: pl.DataFrame, ids: pl.Series) -> pl.DataFrame:
    return frame.with_columns(ids, version=pl.lit(1, pl.Int64), operation=pl.lit("index"))


def _names(frames: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frame.select("path", "key", scope="path") for frame in frames)


def _measure(client: OpenSearch, node_pid: int, folder: Path, way: Way, frames: list[pl.DataFrame]) -> Clock:
    """Does it once into a fresh index, and removes that.

    Raises:
        SystemExit: the index does not hold every document.
    """
    clock, count = Clock(), sum(frame.height for frame in frames)
    with _fresh_index(client) as alias:
        watch = Stopwatch(node_pid)
        done = way(client, alias, folder, frames, clock)
        cost = watch.stop()
        clock["client CPU"], clock["node CPU"] = cost.client_seconds, cost.node_seconds
        client.indices.refresh(index=alias)
        held = client.count(index=alias)["count"]
    if (done, held) != (count, count):
        raise SystemExit(f"{folder.name}: of {count} documents {done} were answered and {held} are in the index.")
    OUT.print(f"  {folder.name}: " + ", ".join(f"{part} {clock[part]:.2f} s" for part in PARTS))
    return clock


def _measure_asking(client: OpenSearch, frames: list[pl.DataFrame]) -> dict[int, float]:
    """Gives by number of names the seconds of the best of three."""
    with _fresh_index(client) as alias:
        ids = pl.concat(create_documents(client, alias, frames))["id"]
        names = _names(frames)
        found = {}
        for asked in (names.head(REQUEST_NAMES), names):
            clocks = [Clock() for _ in range(3)]
            for clock in clocks:
                with clock.measures("asking"):
                    copies = copies_of(client, alias, asked)
                assert copies["id"].is_in(ids.implode()).sum() == asked.height
            found[asked.height] = min(clock["asking"] for clock in clocks)
    return found


@contextmanager
def _fresh_index(client: OpenSearch) -> Iterator[str]:
    index = ensure_index(client, "ids", STATE_FIELDS)
    try:
        yield "ids"
    finally:
        client.indices.delete(index=index)


def _table(best: dict[str, dict[str, float]], count: int, rounds: int) -> Table:
    title = f"{count:,} documents by each way, best of {rounds}; faster than source by"
    table = Table("ids", *(f"{part} s" for part in PARTS), "sending/s", "sending", "all", "CPU", title=title)
    cost = {name: seconds["client CPU"] + seconds["node CPU"] for name, seconds in best.items()}
    for name, seconds in best.items():
        table.add_row(
            name,
            *(f"{seconds[part]:.2f}" for part in PARTS),
            f"{count / seconds['sending']:,.0f}",
            *(f"{best['source'][part] / seconds[part]:.2f}" for part in ("sending", "all")),
            f"{cost['source'] / cost[name]:.2f}",
        )
    return table
