"""The index beside the lake at full size: damage by hand is named and repaired, and no query sees a rebuild.

The comments go the whole road. Then documents are deleted, changed and added in OpenSearch itself, the index is deleted
whole, and made anew while threads search through the alias and another object is ingested. All that is held is compared
with what was held before, field by field.
"""

from __future__ import annotations

import argparse
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import polars as pl
from opensearchpy import OpenSearch
from opensearchpy.helpers import scan
from rich.table import Table

from bench.nodes import OUT, bench_node, comment_lines, comments, lake_command, run, workspace
from lake_assets.index.client import connect
from lake_assets.index.compare import Compared
from lake_assets.index.repair import compare_with_baseline, rebuild, repair, rollback
from lake_assets.lake.tables import Lake
from lake_assets.settings import Settings

TARGET_SECONDS = 30.0
EACH = 100
SEED = 4
THREADS = 3
MORE_LINES = 20_000
METRIC = "sentiment_score"


def main(arguments: list[str]) -> bool:
    """Measures, prints, and tells whether everything was as promised."""
    parser = argparse.ArgumentParser("python -m bench index_state")
    parser.add_argument("--lines", type=int, default=None, help="how many of the comments; all by default")
    options = parser.parse_args(arguments)
    with workspace() as folder, bench_node(folder) as state:
        bench = _Bench(folder, state.url, options.lines)
        bench.compare_and_repair()
        bench.rebuild_and_go_back()
    OUT.print(bench.table)
    OUT.print(*(f"not as promised: {fault}\n" for fault in bench.faults), sep="")
    OUT.print(f"target: compared in < {TARGET_SECONDS:.0f} s, and nothing not as promised: "
              f"{'missed' if bench.faults else 'met'}\n")  # fmt: skip
    return not bench.faults


class _Bench:
    """A lake whose documents are all delivered, what was measured of it, and what was not as promised."""

    def __init__(self, folder: Path, url: str, lines: int | None) -> None:
        self.folder = folder
        self.settings = Settings(_env_file=None, lake_home=folder / "home", opensearch_url=url)
        self.alias = self.settings.opensearch_alias
        self.client = connect(self.settings, url)
        self.lake = Lake(self.settings)
        self.faults: list[str] = []
        self.table = Table("step", "s", "what came of it", title="The index beside the lake")
        landed = folder / "comments.jsonl.gz"
        if lines is None:
            shutil.copyfile(comments(), landed)
        else:
            landed = folder / "comments.jsonl"
            landed.write_bytes(b"\n".join(comment_lines()[:lines]))
        seconds, _ = _timed(lambda: self.ingest(landed))
        self.path = landed.name
        self.count = int(self.lake.read("clean/documents").scan().select(pl.len()).collect().item())
        self.note("ingested", seconds, f"{self.count:,} documents")

    def ingest(self, path: Path) -> str:
        """Takes a file down the whole road, in a process of its own."""
        names = {"LAKE_HOME": str(self.settings.lake_home), "OPENSEARCH_URL": self.settings.opensearch_url,
                 "OPENSEARCH_ALIAS": self.alias}  # fmt: skip
        return run(lake_command("ingest", str(path)), self.folder, names)

    def note(self, step: str, seconds: float, told: str) -> None:
        """Adds a row to what is printed."""
        self.table.add_row(step, f"{seconds:.2f}", told)
        OUT.print(f"  {step}: {seconds:.2f} s; {told}")

    def expect(self, promise: str, is_kept: bool) -> None:
        """Notes a promise that was not kept."""
        if not is_kept:
            self.faults.append(promise)

    def compare(self, step: str, wanted: dict[str, set[str]] | None = None) -> float:
        """Compares, and expects exactly these ids of each kind to differ."""
        seconds, found = _timed(lambda: compare_with_baseline(self.client, self.alias, self.lake))
        kinds = _kinds(found)
        counts = ", ".join(f"{len(ids)} {kind}" for kind, ids in sorted(kinds.items())) or "equal"
        self.note(step, seconds, f"{counts}; {found.read:,} of {found.index_documents:,} documents read")
        self.expect(f"{step}: exactly the damage is named", kinds == (wanted or {}))
        self.expect(f"{step}: in less than {TARGET_SECONDS:.0f} s", seconds < TARGET_SECONDS)
        return seconds

    def compare_and_repair(self) -> None:
        """Damages the index by hand, and expects that exactly the damage is named and repaired."""
        whole = _held(self.client, self.alias)
        self.compare("compared after the load")
        damage = _Damage(self.client, self.alias, sorted(whole))
        damage.do()
        before = _held(self.client, self.alias)
        ours = self.compare("compared after the damage", damage.differences)
        plain, found = _timed(lambda: _plain_compare(self.client, self.alias, self.lake))
        self.note("beside it: every text read by scan", plain, f"{found} texts differ; ratio {plain / ours:.1f}")
        seconds, done = _timed(lambda: repair(self.client, self.alias, self.lake))
        self.note("repaired", seconds, f"{done.sent} sent, {done.deleted} deleted")
        after = _held(self.client, self.alias)
        self.expect("repair sends the 200 and deletes the 100", (done.sent, done.deleted) == (2 * EACH, EACH))
        untouched = set(before) - set().union(*damage.differences.values())
        moved = [id for id in untouched if before[id][0] != after[id][0]]
        self.expect("repair leaves the sequence numbers of all others", not moved)
        self.expect("after the repair every field is as before the damage", _contents(after) == _contents(whole))
        self.compare("compared after the repair")

    def rebuild_and_go_back(self) -> None:
        """Deletes the index whole, and makes it anew: alone, beside queries, beside queries and a load; goes back."""
        whole = _contents(_held(self.client, self.alias))
        self.client.indices.delete(index=f"{self.alias}-*")
        seconds, done = _timed(lambda: rebuild(self.client, self.alias, self.lake))
        self.note("rebuilt after it was deleted whole", seconds, f"{done.sent:,} sent, {done.left.index}")
        self.expect("a deleted index comes back with every id and field", whole == self.contents())
        for step, change, beside in (
            ("rebuilt beside queries", rebuild, None),
            ("rebuilt beside queries and a load", rebuild, self.load),
            ("rolled back beside queries", rollback, None),
        ):
            with self.queries() as asked:
                loading = threading.Thread(target=beside or (lambda: None))
                loading.start()
                seconds, done = _timed(lambda change=change: change(self.client, self.alias, self.lake))
                loading.join()
                time.sleep(0.5)
            answers = f"{sum(asked.answers.values()):,} answers, the slowest {asked.slowest:.2f} s"
            self.note(step, seconds, f"{done.sent:,} sent, {done.left.index}; {answers}")
            self.expect(f"{step}: every query is answered ({asked.problems[:3]})", not asked.problems)
            self.expect(f"{step}: each kind of query was asked", len(asked.answers) == THREADS)
            self.expect(f"{step}: every id and field as before", whole == self.contents())
            self.compare(f"compared: {step}")

    def contents(self) -> dict[str, bytes]:
        """Reads what the index holds of the first object."""
        return _contents(_held(self.client, self.alias, {"term": {"path": self.path}}))

    def load(self) -> None:
        """Ingests another object, of texts that are not in the index yet."""
        path = self.folder / "more.jsonl"
        lines = comment_lines()[:MORE_LINES]
        path.write_bytes(b"\n".join(line.replace(b'"text": "', b'"text": "more ', 1) for line in lines))
        self.ingest(path)

    @contextmanager
    def queries(self) -> Iterator[_Asked]:
        """Asks through the alias, each kind of query in a thread of its own, until the block ends."""
        names = self.lake.read("clean/documents").scan().filter(path=self.path).select("id", "key").collect().rows()
        asked = _Asked()
        mine = {"term": {"path": self.path}}
        measured = {"bool": {"filter": [mine, {"exists": {"field": METRIC}}]}}
        settings = self.settings

        def count(client: OpenSearch) -> bool:
            every, enriched = (client.count(index=self.alias, body={"query": query}) for query in (mine, measured))
            whole = all(not told["_shards"]["failed"] for told in (every, enriched))
            return whole and every["count"] == enriched["count"] == self.count

        def by_term(client: OpenSearch) -> bool:
            id, key = random.choice(names)
            query = {"bool": {"filter": [mine, {"term": {"key": key}}]}}
            hits = client.search(index=self.alias, body={"query": query})["hits"]["hits"]
            return [hit["_id"] for hit in hits] == [id] and METRIC in hits[0]["_source"]

        def by_metric(client: OpenSearch) -> bool:
            query = {"bool": {"filter": [mine, {"range": {METRIC: {"gte": -1, "lte": 1}}}]}}
            told = client.search(index=self.alias, body={"query": query, "size": 5, "track_total_hits": True})
            return told["hits"]["total"]["value"] == self.count and not told["_shards"]["failed"]

        threads = [
            threading.Thread(target=asked.ask, args=(connect(settings, settings.opensearch_url), name, query))
            for name, query in {"count": count, "by term": by_term, "by metric": by_metric}.items()
        ]
        for thread in threads:
            thread.start()
        try:
            yield asked
        finally:
            asked.ended.set()
            for thread in threads:
                thread.join()


@dataclass
class _Asked:
    """What queries were answered, and which were not as they must be."""

    answers: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)

    def ask(self, client: OpenSearch, name: str, query: Callable[[OpenSearch], bool]) -> None:
        """Asks one kind of query over and over."""
        while not self.ended.is_set():
            begun = time.perf_counter()
            try:
                if not query(client):
                    self.problems.append(f"{name}: an answer that lacks documents or metrics")
            except Exception as failure:
                self.problems.append(f"{name}: {type(failure).__name__}: {str(failure)[:100]}")
            self.slowest = max(self.slowest, time.perf_counter() - begun)
            self.answers[name] += 1


class _Damage:
    """Damage by hand: 100 documents deleted, 100 changed, 100 added, and 100 written again as they were."""

    def __init__(self, client: OpenSearch, alias: str, ids: list[str]) -> None:
        self.client, self.alias = client, alias
        chosen = random.Random(SEED).sample(ids, 3 * EACH)
        self.deleted, self.changed, self.rewritten = (chosen[n : n + EACH] for n in range(0, 3 * EACH, EACH))
        self.added = [f"foreign-{n}" for n in range(EACH)]
        self.measured = self.changed[::3]  # only a metric of these
        told = {"deleted": self.deleted, "added": self.added, "measured": self.measured}
        kinds = {"missing": told["deleted"], "foreign": told["added"], "metrics_changed": told["measured"]}
        self.differences = {kind: set(found) for kind, found in kinds.items()}
        self.differences["changed"] = set(self.changed) - set(self.measured)

    def do(self) -> None:
        """Does it in one request; the hashes that documents carry stay as they were, so that they look unchanged."""
        answer = self.client.mget(index=self.alias, body={"ids": [*self.changed, *self.rewritten]})
        sources = {told["_id"]: told["_source"] for told in answer["docs"]}
        body: list[dict[str, Any]] = [{"delete": {"_id": id}} for id in self.deleted]
        for number, id in enumerate(self.changed):
            edits: list[dict[str, Any]] = [{METRIC: -0.987}, {"text": "Changed by hand."}, {"attributes": {"x": "y"}}]
            body += [{"index": {"_id": id}}, {**sources[id], **edits[number % 3]}]
        for id in self.rewritten:
            body += [{"index": {"_id": id}}, sources[id]]
        for id, like in zip(self.added, self.changed, strict=True):
            body += [{"index": {"_id": id}}, {} if id.endswith("0") else sources[like]]
        if self.client.bulk(index=self.alias, body=body, params={"refresh": "true"})["errors"]:
            raise SystemExit("The damage could not be done.")


def _held(client: OpenSearch, alias: str, query: dict[str, Any] | None = None) -> dict[str, tuple[int, bytes]]:
    """Reads everything: id → sequence number, and all fields in the order of their names."""
    client.indices.refresh(index=alias)
    body = {"query": query or {"match_all": {}}, "seq_no_primary_term": True}
    hits = scan(client, index=alias, query=body, size=5000)
    return {hit["_id"]: (hit["_seq_no"], orjson.dumps(hit["_source"], option=orjson.OPT_SORT_KEYS)) for hit in hits}


def _contents(held: dict[str, tuple[int, bytes]]) -> dict[str, bytes]:
    return {id: content for id, (_, content) in held.items()}


def _plain_compare(client: OpenSearch, alias: str, lake: Lake) -> int:
    """Counts the texts that differ as one would without any of this: every document is read and looked up."""
    wanted = dict(lake.read("clean/documents").scan().select("id", "text").collect().rows())
    held = {hit["_id"]: hit["_source"].get("text") for hit in scan(client, index=alias, query={}, size=5000)}
    return sum(wanted.get(id) != held.get(id) for id in {*wanted, *held})


def _kinds(found: Compared) -> dict[str, set[str]]:
    return {kind: set(ids) for kind, ids in found.differences.group_by("kind").agg("id").rows()}


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    done = work()
    return time.perf_counter() - begun, done
