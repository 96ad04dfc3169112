"""Delivery: `lake_assets.index.delivery.deliver` beside opensearch-py's `helpers.parallel_bulk`, into the same node.

Both write the same documents into an index with the product's mapping, `deliver` from frames. parallel_bulk gets them
in three ways: from the same frames, whose rows its caller makes into actions on the way; as actions that are there
before the clock starts; and as those, into an index with the product's settings too. The target is for the first: both
begin with what lies in the lake.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import polars as pl
from opensearchpy import OpenSearch, helpers

from bench.nodes import OUT, Cost, Stopwatch, bench_node, comments, compare, show, workspace
from lake_assets.contracts import UTC_TIMESTAMP
from lake_assets.index.client import connect
from lake_assets.index.delivery import deliver
from lake_assets.index.ids import source_ids
from lake_assets.index.mapping import ensure_index
from lake_assets.index.whole import STATE_FIELDS, document_columns
from lake_assets.settings import Settings
from lake_assets.text.documents import DocumentReader
from lake_assets.text.records import split
from lake_assets.text.sources import Sources

TARGET = 2.0
THREADS, CHUNK_SIZE = 4, 2000  # of parallel_bulk
FRAMES, READY, ALIKE = "the same frames", "ready actions", "ready actions, our index settings"

Send = Callable[[OpenSearch, str], int]


def main(arguments: list[str]) -> bool:
    """Measures, prints, and tells whether the target was met."""
    parser = argparse.ArgumentParser("python -m bench delivery")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, taken in turn")
    options = parser.parse_args(arguments)
    frames = documents()
    actions = [action for frame in frames for action in dictionaries(frame)]
    count = len(actions)
    ours: list[Cost] = []
    theirs: dict[str, list[Cost]] = {FRAMES: [], READY: [], ALIKE: []}
    with workspace() as folder, bench_node(folder) as state:
        client = connect(Settings(lake_home=folder), state.url)
        plain = OpenSearch(state.url, timeout=60)

        def send_frames(client: OpenSearch, alias: str) -> int:
            return sum(receipts.height for receipts in deliver(client, alias, frames))

        def bulk(alias: str, todo: Iterable[dict[str, Any]]) -> int:
            addressed = ({**action, "_index": alias} for action in todo)
            sent = helpers.parallel_bulk(plain, addressed, thread_count=THREADS, chunk_size=CHUNK_SIZE)
            return sum(ok for ok, _ in sent)

        def send_plainly(todo: Callable[[], Iterable[dict[str, Any]]]) -> Send:
            def send(_: OpenSearch, alias: str) -> int:
                plain.indices.put_settings(index=alias, body={"index": {"refresh_interval": None}})
                return bulk(alias, todo())

            return send

        ways: list[tuple[Send, list[Cost]]] = [
            (send_frames, ours),
            (send_plainly(lambda: (action for frame in frames for action in dictionaries(frame))), theirs[FRAMES]),
            (send_plainly(lambda: actions), theirs[READY]),
            (lambda _, alias: bulk(alias, actions), theirs[ALIKE]),
        ]
        for _ in range(2):  # Java compiles what runs often: first runs cost it three times as much
            for number, (send, _) in enumerate(ways):
                _measure(client, state.pid, f"warm-up-{number}", send, count)
        for number in range(options.rounds):
            for send, costs in ways if number % 2 == 0 else reversed(ways):
                costs.append(_measure(client, state.pid, f"round-{number}", send, count))
    title = f"Delivery of {count:,} documents into one node, {options.rounds} runs each"
    ratios = {
        way: compare(title, count, ours, costs, ("deliver", f"parallel_bulk {THREADS} × {CHUNK_SIZE}, {way}"))
        for way, costs in theirs.items()
    }
    OUT.print(f"target ≥ {TARGET} of {FRAMES}: {'met' if ratios[FRAMES] >= TARGET else 'missed'}\n")
    return ratios[FRAMES] >= TARGET


def documents() -> list[pl.DataFrame]:
    """Makes the comments' frames as the asset opensearch/documents sends them."""
    path, sources = comments(), Sources(())
    reader = DocumentReader(sources)
    frames = []
    with path.open("rb") as file:
        chunks = iter(lambda: file.read(4 << 20), b"")
        for piece in split(chunks, path.name, sources.of(path.name)):
            found, _ = reader.read(piece.with_columns(path=pl.lit(path.name), etag=pl.lit("1")))
            found = found.with_columns(id=source_ids(found["path"], found["key"]))
            frames.append(
                document_columns(found.with_columns(whole_hash=found["document_hash"]), []).with_columns(
                    version=pl.lit(1, pl.Int64), operation=pl.lit("index")
                )
            )
    return frames


def dictionaries(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Makes the same documents as parallel_bulk takes them: without empty fields, attributes as an object."""
    made = []
    assert frame.schema["created_at"] == UTC_TIMESTAMP
    fields = frame.drop("version", "operation").with_columns(pl.col("created_at").dt.to_string("iso:strict"))
    for row in fields.iter_rows(named=True):
        document = {name: value for name, value in row.items() if value is not None and name != "id"}
        if "attributes" in document:
            document["attributes"] = orjson.loads(document["attributes"])
        made.append({"_op_type": "index", "_id": row["id"], "_source": document})
    return made


def _measure(client: OpenSearch, node_pid: int, alias: str, send: Send, count: int) -> Cost:
    """Sends everything into a fresh index, counts what is there, and removes it.

    Raises:
        SystemExit: the index does not hold every document.
    """
    index = ensure_index(client, alias, STATE_FIELDS)
    watch = Stopwatch(node_pid)
    sent = send(client, alias)
    cost = watch.stop()
    client.indices.refresh(index=alias)
    held = client.count(index=alias)["count"]
    client.indices.delete(index=index)
    if (sent, held) != (count, count):
        raise SystemExit(f"{alias}: of {count} documents {sent} were answered and {held} are in the index.")
    show(alias, cost)
    return cost
