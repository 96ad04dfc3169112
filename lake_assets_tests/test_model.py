"""Random histories of a lake against a model of it; any counterexample is a bug.

LAKE_MODEL_EXAMPLES  how many histories, each another every time; otherwise a few, always the same
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lake_assets.index.client import connect
from lake_assets.index.mapping import find_index
from lake_assets.index.repair import compare_with_baseline, rebuild, repair, rollback
from lake_assets.science import metrics
from lake_assets.science.metric import enrich_contract, find_metrics
from lake_assets.settings import Settings
from lake_assets_tests.conftest import GIVEN
from lake_assets_tests.model import SOURCES, Document, Model, Refusal
from lake_assets_tests.road import (
    METRICS,
    Road,
    State,
    assert_same,
    forget_metrics,
    fresh_settings,
    read_state,
    sentence,
    write_metric,
)
from lake_assets_tests.servers import free_port

PATHS = ["plain/1.jsonl", "listed/1.jsonl", "crm/1.jsonl", "crm/2.jsonl"]
LINES = [
    *(json.dumps({"id": key, "text": text}).encode() for key in ("a", "b") for text in ("One is good.", "Two is bad!")),
    json.dumps({"id": "a", "text": "One is good.", "likes": "3"}).encode(),
    json.dumps({"id": "c", "text": "Trois"}).encode(),
    json.dumps({"id": "a#2", "text": "A key like an occurrence."}).encode(),
    json.dumps({"text": "no key"}).encode(),
    json.dumps("a bare string").encode(),
    json.dumps({"id": "b"}).encode(),
    b'{"id": "a", "text": ',
    b"[1]",
]
ROAD = ["raw/objects", "raw/records", "indexing/documents", "opensearch/documents", "clean/documents", *METRICS,
        "enrich/documents", "opensearch/metrics", "quarantine/records", "opensearch/index"]  # fmt: skip
FIRST_METRIC = ROAD.index(METRICS[0])
SENT = ROAD.index("opensearch/metrics") + 1
UNCOMMITTED = [
    "indexing/documents",
    "opensearch/documents",
    "clean/documents",
    "enrich/documents",
    "opensearch/metrics",
]
LOUD = '''
import polars as pl

from lake_assets.science.metric import Column, metric


@metric(version="{version}", loud_chars=Column("integer", "Characters, times the version.", "count"))
def loud(texts: pl.Series) -> pl.DataFrame:
    """Counts characters, times {version}. One row per document."""
    return pl.DataFrame({{"loud_chars": texts.str.len_chars().cast(pl.Int64) * {version}}})
'''
contents = st.lists(st.sampled_from(LINES), max_size=4).map(lambda lines: b"".join(line + b"\n" for line in lines))
randoms = st.integers(0, 2**16).map(Random)


class History(RuleBasedStateMachine):
    """A lake with its index, driven at random; `progress` counts the assets of each batch that have run since."""

    request: ClassVar[pytest.FixtureRequest]
    folder: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.home = self.folder / str(len(list(self.folder.iterdir())))
        self.home.mkdir()
        self.settings = self.stack.enter_context(fresh_settings(self.request, "file", self.home, lake_batch_objects=2))
        self.settings.lake_sources.write_text(SOURCES)
        self.road = Road(self.settings)
        self.client = connect(self.settings, self.settings.opensearch_url)
        self.alias = self.settings.opensearch_alias
        self.model = Model()
        self.progress: dict[int, int] = {}
        self.version = 0
        self.is_damaged = self.is_torn = False
        self.ids: dict[tuple[str, str], str] = {}
        self.more = self.home / "more_metrics"
        metrics.__path__.append(str(self.more))
        self.stack.callback(self._forget)
        forget_metrics()

    @initialize(ids=st.sampled_from(["source", "counter", "opensearch"]))
    def choose_ids(self, ids: str) -> None:
        """Every way to choose ids ends alike."""
        self.settings = self.settings.model_copy(update={"lake_ids": ids})
        self.road = Road(self.settings)

    def _forget(self) -> None:
        metrics.__path__.remove(str(self.more))
        sys.modules.pop(f"{metrics.__name__}.loud", None)
        forget_metrics()

    def teardown(self) -> None:
        """Brings every history to its end, and looks at it."""
        try:
            self.settle(pick=Random(0), again=len(self.progress))
        finally:
            self.close()

    def close(self) -> None:
        """Removes everything."""
        self.stack.close()
        shutil.rmtree(self.home)

    @property
    def names(self) -> list[str]:
        """The assets of a batch in their order, with the metric that was added."""
        return [*ROAD[:FIRST_METRIC], *(["metrics/loud"] if self.version else []), *ROAD[FIRST_METRIC:]]

    @rule(objects=st.dictionaries(st.sampled_from(PATHS), contents, min_size=1, max_size=3), is_claimed=st.booleans())
    def land(self, objects: dict[str, bytes], is_claimed: bool) -> None:
        """New objects, and new versions of those that are there."""
        self.road.land(objects)
        for path, content in objects.items():
            self.model.land(path, content)
        if is_claimed:
            self.claim()

    @precondition(lambda self: self.model.claims)
    @rule(pick=randoms)
    def land_what_was_there_before(self, pick: Random) -> None:
        """An object gets bytes that it had before."""
        claim = pick.choice([claim for claim in self.model.claims if claim.version])
        assert claim.version is not None
        self.land(objects={claim.path: claim.version.content}, is_claimed=True)

    @precondition(lambda self: self.model.landing)
    @rule(pick=randoms, is_claimed=st.booleans())
    def remove(self, pick: Random, is_claimed: bool) -> None:
        """An object disappears; only one source counts that."""
        path = pick.choice(sorted(self.model.landing))
        self.road.remove(path)
        del self.model.landing[path]
        if is_claimed:
            self.claim()

    def claim(self) -> None:
        """Claims what has changed, which is what the model says."""
        wanted = self.model.changes()
        batches = self.road.claim()
        ledger = self.road.lake.read("raw/objects").frame().select("batch", "path", "state")
        rows = ledger.filter(pl.col("batch").is_in(batches)).rows()
        assert {path: state for _, path, state in rows} == {
            path: "landed" if version else "gone" for path, version in wanted.items()
        }
        assert len(rows) == len(wanted)
        self.model.claimed([(batch, path) for batch, path, _ in rows])
        self.progress |= dict.fromkeys(batches, 0)

    def run(self, batch: int, first: int = 0, last: int | None = None) -> None:
        """Runs assets of a batch, those of `names` from one place to another."""
        last = len(self.names) if last is None else last
        if "raw/records" in self.names[first:last]:
            self.model.read(batch)
        result = self.road.run(batch, *self.names[first:last])
        assert result.success, f"batch {batch}: {sentence(result)}"
        if first <= self.progress[batch]:
            self.progress[batch] = max(self.progress[batch], last)

    @precondition(lambda self: self.progress)
    @rule(pick=randoms)
    def run_a_batch(self, pick: Random) -> None:
        """Any batch, whole; also an old one, again."""
        self.run(pick.choice(sorted(self.progress)))

    @precondition(lambda self: self.progress)
    @rule(pick=randoms, count=st.integers(1, len(ROAD) - 1))
    def run_a_batch_that_dies(self, pick: Random, count: int) -> None:
        """The first assets of a batch, or those that follow what has run: then the process has died."""
        batch = pick.choice(sorted(self.progress))
        first = pick.choice([0, self.progress[batch] % len(self.names)])
        self.run(batch, first, min(first + count, len(self.names)))

    @precondition(lambda self: self.progress)
    @rule(pick=randoms, key=st.sampled_from(UNCOMMITTED))
    def run_a_batch_that_dies_before_a_commit(self, pick: Random, key: str) -> None:
        """What an asset did outside its table stays, its rows do not: the process has died when it was to commit."""
        self.die(pick.choice(sorted(self.progress)), key)

    def die(self, batch: int, key: str) -> None:
        """Runs a batch until an asset has done all but its commit."""
        place = self.names.index(key)
        if self.progress[batch] < place:
            self.run(batch, self.progress[batch], place)
        contract = enrich_contract(find_metrics()) if key == "enrich/documents" else None
        table = self.road.lake.table(key, contract)
        before = table.snapshot().version
        self.run(batch, place, place + 1)
        if (delta := table.snapshot().delta) is not None and delta.version() > before:
            delta.restore(max(before, 0))
        self.progress[batch] = min(self.progress[batch], place)
        self.is_torn = True

    @precondition(lambda self: self.progress and self.version > 1)
    @rule(pick=randoms)
    def run_a_metric_of_an_older_version(self, pick: Random) -> None:
        """A late run of an older version of a metric; every batch is measured again by the newer one."""
        batch = pick.choice(sorted(self.progress))
        write_metric(self.more, "loud", LOUD.format(version=pick.randint(1, self.version - 1)))
        self.run(batch, FIRST_METRIC, FIRST_METRIC + pick.choice([1, len(self.names)]))
        write_metric(self.more, "loud", LOUD.format(version=self.version))
        self.progress = {batch: min(count, FIRST_METRIC) for batch, count in self.progress.items()}

    @precondition(lambda self: self.progress)
    @rule(pick=randoms)
    def run_without_opensearch(self, pick: Random) -> None:
        """A batch while nothing answers: it fails, and what it has done before stays."""
        batch = pick.choice(sorted(self.progress))
        given = {**self.settings.model_dump(), "opensearch_url": f"http://127.0.0.1:{free_port()}"}
        self.model.read(batch)
        assert not Road(Settings.model_validate(given)).run(batch).success
        self.progress[batch] = min(self.progress[batch], 3)

    @precondition(lambda self: self.progress)
    @rule(pick=randoms)
    def damage(self, pick: Random) -> None:
        """Documents of the index are deleted, changed and added by hand."""
        if find_index(self.client, self.alias) is None:
            return
        body: list[dict[str, Any]] = [{"index": {"_id": f"foreign-{pick.randrange(3)}"}}, {"text": "x", "bucket": 7}]
        for id in sorted(self.road.state().index):
            edit = pick.choice(["none", "delete", "text", "metric"])
            if edit == "delete":
                body += [{"delete": {"_id": id}}]
            elif edit != "none":
                body += [{"update": {"_id": id}}, {"doc": {"text": "damaged"} if edit == "text" else {"size_chars": 0}}]
        assert not self.client.bulk(index=self.alias, body=body)["errors"]
        self.is_damaged = True

    @precondition(lambda self: self.progress)
    @rule(way=st.sampled_from(["repair", "rebuild", "rollback", "lose"]))
    def mend(self, way: str) -> None:
        """The index is repaired, rebuilt, rolled back, or deleted and rebuilt: it is what the lake says at once."""
        index = find_index(self.client, self.alias)
        older = [name for name in self.client.indices.get(index=f"{self.alias}-*") if index and name < index]
        if way == "lose" and index:
            self.client.indices.delete(index=index)
        if index is None or way in ("lose", "rebuild"):
            done = rebuild(self.client, self.alias, self.road.lake)
        elif way == "rollback" and older:
            done = rollback(self.client, self.alias, self.road.lake)
        else:
            done = repair(self.client, self.alias, self.road.lake)
            assert self.is_damaged or self.is_torn or (done.sent, done.deleted) == (0, 0)
        assert done.left.is_equal
        self.is_damaged = False

    @rule()
    def upgrade_a_metric(self) -> None:
        """A metric is added, or gets another version: every batch is measured again."""
        self.version += 1
        write_metric(self.more, "loud", LOUD.format(version=self.version))
        self.progress = {batch: min(count, FIRST_METRIC) for batch, count in self.progress.items()}

    @invariant()
    def what_is_on_its_way_is_no_difference(self) -> None:
        """Index and lake differ by nothing but what is on its way, was done by hand, or was sent and never noted."""
        if not self.is_damaged and not self.is_torn and find_index(self.client, self.alias):
            found = compare_with_baseline(self.client, self.alias, self.road.lake)
            assert found.is_equal, found.differences.rows(named=True)

    @rule(pick=randoms, again=st.just(1))
    def settle(self, pick: Random, again: int) -> None:
        """Claims and runs whatever has not been run, in any order, and compares everything with the model."""
        self.claim()
        left = [batch for batch, count in sorted(self.progress.items()) if count < len(self.names)]
        pick.shuffle(left)
        for batch in left:
            self.run(batch, pick.choice([0, self.progress[batch]]))
        if not self.progress:
            return
        if self.is_damaged:
            repair(self.client, self.alias, self.road.lake)
            self.is_damaged = False
        found = compare_with_baseline(self.client, self.alias, self.road.lake)
        self.is_torn = False
        assert found.differences.is_empty(), found.differences.rows(named=True)
        state = self.state()
        self.check(state)
        for batch in pick.sample(sorted(self.progress), min(again, len(self.progress))):
            self.run(batch)
            assert_same(state, self.state())

    def state(self) -> State:
        """Reads everything, with the metric that was added."""
        return read_state(self.settings, ("metrics/loud",) if self.version else ())

    def check(self, state: State) -> None:
        """Compares everything there is with what the model says."""
        wanted = self.model.documents()
        clean = state["clean/documents"]
        rows = clean.select("path", "key", "text", "attributes").rows()
        assert Counter(map(tuple, rows)) == Counter(tuple(document) for document in wanted.values())
        hits = {id: hit["_source"] for id, hit in state.index.items()}
        held = dict(zip(clean["id"], (Document(*row) for row in rows), strict=True))
        assert len(held) == clean.height
        assert {id: document_of(source) for id, source in hits.items()} == held
        for key in ("indexing/documents", "opensearch/documents", "enrich/documents", "opensearch/metrics", *METRICS):
            names = ["path", "key"] if key == "indexing/documents" else ["id"]
            assert sorted(state[key].select(names).rows()) == sorted(clean.select(names).rows()), key
        self.check_metrics(hits)
        places = {document: place for place, document in wanted.items()}
        ids = {places[document]: id for id, document in held.items()}
        assert {place: id for place, id in ids.items() if self.ids.get(place, id) != id} == {}
        self.ids = ids
        refused = state["quarantine/records"].select(Refusal._fields).rows()
        assert Counter(map(tuple, refused)) == Counter(map(tuple, self.model.refusals()))
        records = state["raw/records"].select("batch", "path", "record", "raw").rows()
        assert Counter(map(tuple, records)) == self.model.records()

    def check_metrics(self, hits: dict[str, dict[str, Any]]) -> None:
        """Computes every metric of every text, and compares it with what the index holds."""
        texts = pl.Series("text", [source["text"] for source in hits.values()], dtype=pl.String)
        for item in find_metrics().values():
            for source, row in zip(hits.values(), item.measure(texts).rows(named=True), strict=True):
                assert {name: source.get(name) for name in row} == row
        for source in hits.values():
            assert source["size_chars"] == len(source["text"])
            assert source.get("loud_chars") == (len(source["text"]) * self.version or None)


def document_of(source: dict[str, Any]) -> Document:
    """Brings a document of the index into the model's form."""
    attributes = source.get("attributes")
    return Document(
        source["path"],
        source["key"],
        source["text"],
        attributes and json.dumps(attributes, sort_keys=True, separators=(",", ":")),
    )


@pytest.fixture
def history(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[History]:
    """A history to be told by hand."""
    begin(request, tmp_path)
    told = History()
    yield told
    told.close()


def begin(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Gives all histories their node and their folder."""
    History.request, History.folder = request, tmp_path / "histories"
    History.folder.mkdir()


@pytest.mark.parametrize("path", ["plain/1.jsonl", "listed/1.jsonl", "crm/1.jsonl"])
def test_what_a_batch_sent_and_never_noted_is_undone_by_the_next_version(history: History, path: str) -> None:
    first, other, added = (LINES[place] + b"\n" for place in (0, 1, 2))
    for content in (first, other + added, first):
        history.land(objects={path: content}, is_claimed=True)
        batch = max(history.progress)
        history.die(batch, "opensearch/documents") if content != first else history.run(batch)
    history.settle(pick=Random(0), again=2)


def test_a_deletion_that_was_sent_and_never_noted_is_undone_when_the_object_comes_back(history: History) -> None:
    first = {"listed/1.jsonl": LINES[0] + b"\n"}
    history.land(objects=first, is_claimed=True)
    history.run(1)
    history.remove(pick=Random(0), is_claimed=True)
    history.die(2, "opensearch/documents")
    history.land(objects=first, is_claimed=True)
    history.settle(pick=Random(0), again=2)


def test_whatever_happens_the_lake_and_the_index_end_as_the_model_says(
    request: pytest.FixtureRequest, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    more = pytestconfig.stash[GIVEN].get("LAKE_MODEL_EXAMPLES")
    begin(request, tmp_path)
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=int(more or 5),
            stateful_step_count=25 if more else 10,
            deadline=None,
            derandomize=not more,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
