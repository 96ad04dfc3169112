"""The whole road, from the object to the enriched index: `lake ingest` beside the script one would write.

That script is `user_script`. Both are processes of their own, their interpreters' start included; the node is warm and
its index is fresh.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import sys
from pathlib import Path

import polars as pl
from opensearchpy import OpenSearch

from bench.nodes import (
    OUT,
    Cost,
    Stopwatch,
    bench_node,
    comment_lines,
    comments,
    compare,
    lake_command,
    run,
    show,
    workspace,
)
from lake_assets.index.client import connect
from lake_assets.index.mapping import ensure_index
from lake_assets.lake.tables import Lake
from lake_assets.science.metric import enrich_contract, find_metrics
from lake_assets.settings import Settings

TARGET = 1.5
PROCESSES = 2  # of the script, for its work on text
WARM_UP_LINES = 20_000


def main(arguments: list[str]) -> bool:
    """Measures, prints, and tells whether the target was met."""
    parser = argparse.ArgumentParser("python -m bench road")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, taken in turn")
    options = parser.parse_args(arguments)
    ours, theirs = [], []
    with workspace() as folder, bench_node(folder) as state:
        road = _Road(folder, state.url, state.pid)
        few = folder / "few.jsonl.gz"
        few.write_bytes(gzip.compress(b"\n".join(comment_lines()[:WARM_UP_LINES])))
        road.ours("warm-up-ours", few, WARM_UP_LINES)
        road.theirs("warm-up-theirs", few, WARM_UP_LINES)
        path, count = comments(), len(comment_lines())
        for number in range(options.rounds):
            pair = [(road.ours, ours), (road.theirs, theirs)]
            for measure, costs in pair if number % 2 == 0 else reversed(pair):
                costs.append(measure(f"{measure.__name__}-{number}", path, count))
    title = f"Road of {count:,} documents from the object to the enriched index, {options.rounds} runs each"
    ratio = compare(title, count, ours, theirs, ("lake ingest", f"script, {PROCESSES} processes"))
    OUT.print(f"target ≥ {TARGET}: {'met' if ratio >= TARGET else 'missed'}\n")
    return ratio >= TARGET


class _Road:
    """Runs one or the other on an object, and sees to it that the index holds everything afterwards."""

    def __init__(self, folder: Path, url: str, node_pid: int) -> None:
        self.folder, self.url, self.node_pid = folder, url, node_pid
        self.client = connect(Settings(lake_home=folder), url)

    def ours(self, alias: str, path: Path, count: int) -> Cost:
        """Runs `lake ingest` on an object that lies in the raw zone of a fresh lake."""
        home = self.folder / alias
        landed = home / "lake" / "landing" / path.name
        landed.parent.mkdir(parents=True)
        shutil.copyfile(path, landed)
        settings = {"LAKE_HOME": str(home), "OPENSEARCH_URL": self.url, "OPENSEARCH_ALIAS": alias}
        watch = Stopwatch(self.node_pid)
        run(lake_command("ingest", str(path)), self.folder, settings)
        cost = watch.stop()
        lake = Lake(Settings(lake_home=home))
        clean = lake.read("clean/documents").scan().select(pl.len()).collect().item()
        refused = lake.read("quarantine/records").scan().select(pl.len()).collect().item()
        if clean + refused != count:
            raise SystemExit(f"{alias}: of {count} records {clean} are in clean and {refused} in the quarantine.")
        return self._judged(alias, cost, clean)

    def theirs(self, alias: str, path: Path, _: int) -> Cost:
        """Runs the script, into an index of the same mapping; it says itself how many ids it has sent."""
        contract = enrich_contract(find_metrics())
        fields = {name: column.metadata["index"] for name, column in contract.columns().items() if column.metadata}
        ensure_index(self.client, alias, {name: field for name, field in fields.items() if field})
        script = [sys.executable, "-m", "bench.user_script", self.url, alias, str(path), str(PROCESSES)]
        watch = Stopwatch(self.node_pid)
        said = run(script, Path(__file__).parents[1], {})
        return self._judged(alias, watch.stop(), int(said))

    def _judged(self, alias: str, cost: Cost, count: int) -> Cost:
        """Counts documents with metrics, and removes the index.

        Raises:
            SystemExit: some are missing.
        """
        self.client.indices.refresh(index=alias)
        held = self.client.count(index=alias, body={"query": {"exists": {"field": "sentiment_score"}}})["count"]
        _remove(self.client, alias)
        if held != count:
            raise SystemExit(f"{alias}: of {count} documents {held} are in the index with their metrics.")
        show(alias, cost)
        return cost


def _remove(client: OpenSearch, alias: str) -> None:
    for index in client.indices.get_alias(name=alias):
        client.indices.delete(index=index)
