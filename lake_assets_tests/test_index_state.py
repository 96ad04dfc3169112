"""The index beside the lake: every difference is named, only differences are sent, and a rebuild is never seen."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from opensearchpy import OpenSearch

from lake_assets.errors import IndexUnavailable
from lake_assets.index.client import connect
from lake_assets.index.compare import Compared
from lake_assets.index.repair import compare_with_baseline, rebuild, repair, rollback
from lake_assets.settings import Settings
from lake_assets_tests.index.fault_proxy import fault_proxy
from lake_assets_tests.road import METRICS, Road, environment, fresh_settings, metadata, sentence

COUNT = 300
TO_CLEAN = ["raw/objects", "raw/records", "indexing/documents", "opensearch/documents", "clean/documents"]
REST = [*METRICS, "enrich/documents", "opensearch/metrics"]


def lines(first: int, last: int, word: str = "good") -> bytes:
    """Makes JSON lines with attributes of every kind."""
    rows = (
        {"id": n, "text": f"text {n} is {word}", "likes": n, "more": {"a": [1, None, "é"]}} for n in range(first, last)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """A lake of 300 documents in two batches, all delivered with their metrics."""
    with fresh_settings(request, "file", tmp_path) as settings:
        road = Road(settings)
        road.take({"a.jsonl": lines(0, 200)})
        road.take({"b.jsonl": lines(200, COUNT)})
        yield road


@pytest.fixture
def client(road: Road) -> OpenSearch:
    return connect(road.settings, road.settings.opensearch_url)


def compared(road: Road, client: OpenSearch) -> Compared:
    return compare_with_baseline(client, road.settings.opensearch_alias, road.lake)


def kinds(found: Compared) -> dict[str, set[str]]:
    """Gives the ids of each kind of difference."""
    return {kind: set(found.differences.filter(pl.col("kind") == kind)["id"]) for kind in found.differences["kind"]}


def damage(road: Road, client: OpenSearch, count: int = 10) -> dict[str, set[str]]:
    """Deletes, changes and adds documents by hand, and gives their ids."""
    ids = sorted(road.state().index)
    missing, changed, measured = ids[:count], ids[count : 2 * count], ids[2 * count : 3 * count]
    foreign = {f"foreign-{n}" for n in range(count)}
    body: list[dict[str, Any]] = [{"delete": {"_id": id}} for id in missing]
    for n, id in enumerate(changed):
        body += [{"update": {"_id": id}}, {"doc": [{"text": "damaged"}, {"attributes": {"likes": "x"}}][n % 2]}]
    for id in measured:
        body += [{"update": {"_id": id}}, {"doc": {"sentiment_score": -9.0}}]
    for n, id in enumerate(sorted(foreign)):
        body += [{"index": {"_id": id}}, [{"text": "x"}, {"text": "x", "bucket": n}, {}][n % 3]]
    answer = client.bulk(index=road.settings.opensearch_alias, body=body)
    assert not answer["errors"]
    found = {"missing": missing, "changed": changed, "metrics_changed": measured, "foreign": foreign}
    return {kind: set(ids) for kind, ids in found.items()}


def test_after_a_load_the_receipts_alone_show_that_index_and_lake_are_equal(road: Road, client: OpenSearch) -> None:
    found = compared(road, client)
    assert found.is_equal
    assert (found.index_documents, found.lake_documents, found.read) == (COUNT, COUNT, 0)


def test_every_edit_behind_our_back_is_named_and_repaired_and_nothing_else_is_sent(
    road: Road, client: OpenSearch
) -> None:
    before = road.state()
    damaged = damage(road, client)
    found = compared(road, client)
    assert kinds(found) == damaged
    assert found.read < COUNT / 2
    done = repair(client, road.settings.opensearch_alias, road.lake)
    assert (done.sent, done.deleted) == (30, 10)
    assert done.left.is_equal
    after = road.state()
    assert {id: hit["_source"] for id, hit in after.index.items()} == {
        id: hit["_source"] for id, hit in before.index.items()
    }
    touched = set().union(*damaged.values())
    assert {id for id in after.index if after.index[id] != before.index[id]} <= touched
    assert repair(client, road.settings.opensearch_alias, road.lake).sent == 0
    assert compared(road, client).read == 0


def test_what_was_repaired_still_takes_later_versions_and_metrics(road: Road, client: OpenSearch) -> None:
    for _ in range(5):  # each raises the versions by hand
        damage(road, client)
    repair(client, road.settings.opensearch_alias, road.lake)
    road.take({"a.jsonl": lines(0, 200, "bad")})
    assert compared(road, client).is_equal
    assert all(
        "is bad" in hit["_source"]["text"] for hit in road.state().index.values() if hit["_source"]["path"] == "a.jsonl"
    )


def test_batches_in_flight_are_no_differences(road: Road, client: OpenSearch) -> None:
    road.land({"a.jsonl": lines(5, 200, "bad"), "c.jsonl": lines(0, 20)})
    [batch] = road.claim()
    flying = []
    for keys in (["raw/records", "indexing/documents"], ["opensearch/documents"], ["clean/documents"], METRICS,
                 ["enrich/documents"], ["opensearch/metrics"]):  # fmt: skip
        assert road.run(batch, *keys).success
        found = compared(road, client)
        assert found.is_equal, kinds(found)
        flying.append(found.count("in_flight"))
    assert max(flying) > 0
    assert flying[-1] == 0


def test_what_was_sent_to_the_old_index_while_the_alias_moved_is_sent_to_the_new_one(
    road: Road, client: OpenSearch
) -> None:
    alias = road.settings.opensearch_alias
    road.land({"c.jsonl": lines(0, 50)})
    [batch] = road.claim()
    assert road.run(batch, "raw/records", "indexing/documents", "opensearch/documents").success
    rebuild(client, alias, road.lake)  # what is not in clean yet is not in the new index
    assert len(road.state().index) == COUNT
    assert road.run(batch, "clean/documents", *REST).success
    assert len(road.state().index) == COUNT + 50
    assert compared(road, client).is_equal
    for again in (1, 2, batch):
        assert metadata(road.run(again, *REST), "opensearch/metrics")["sent"] == 0


def test_a_rebuild_makes_the_same_index_which_no_query_sees_and_can_be_rolled_back(
    road: Road, client: OpenSearch
) -> None:
    alias = road.settings.opensearch_alias
    before = road.state().index
    ended, seen = threading.Event(), set()
    asking = connect(road.settings, road.settings.opensearch_url)

    def ask() -> None:
        while not ended.is_set():
            seen.add(asking.count(index=alias)["count"])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        done = rebuild(client, alias, road.lake)
    finally:
        ended.set()
        thread.join()
    assert seen == {COUNT}
    assert done.left.is_equal
    assert done.left.index == f"{alias}-000002"
    after = road.state().index
    assert {id: hit["_source"] for id, hit in after.items()} == {id: hit["_source"] for id, hit in before.items()}
    damage(road, client)
    road.take({"c.jsonl": lines(0, 10)})
    back = rollback(client, alias, road.lake)
    assert back.left.is_equal
    assert back.left.index == f"{alias}-000001"
    assert len(road.state().index) == COUNT + 10
    with pytest.raises(IndexUnavailable, match="no index before"):
        rollback(client, alias, road.lake)


def test_a_deleted_index_is_rebuilt_with_the_same_ids_and_metrics(road: Road, client: OpenSearch) -> None:
    alias = road.settings.opensearch_alias
    before = road.state().index
    client.indices.delete(index=f"{alias}-000001")
    assert rebuild(client, alias, road.lake).left.is_equal
    after = road.state().index
    assert {id: hit["_source"] for id, hit in after.items()} == {id: hit["_source"] for id, hit in before.items()}


def test_a_rebuild_that_died_is_done_again(road: Road, client: OpenSearch) -> None:
    alias = road.settings.opensearch_alias
    client.indices.create(index=f"{alias}-000002", body={"aliases": {f"{alias}-rebuild": {}}})
    done = rebuild(client, alias, road.lake)
    assert done.left.is_equal
    assert sorted(client.indices.get(index=f"{alias}-*")) == [f"{alias}-000001", f"{alias}-000002"]
    assert not client.indices.exists_alias(name=f"{alias}-rebuild")


def test_the_asset_shows_what_differs_and_its_checks_say_which(road: Road, client: OpenSearch) -> None:
    def checks() -> dict[str, bool]:
        result = road.run(2, "opensearch/index")
        assert result.success
        shown.update(metadata(result, "opensearch/index"))
        return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}

    shown: dict[str, Any] = {}
    names = ("counts_check", "documents_check", "metrics_check", "mapping_check")
    assert checks() == dict.fromkeys(names, True)
    assert (shown["lake_documents"], shown["missing"]) == (COUNT, 0)
    damage(road, client)
    client.delete(index=road.settings.opensearch_alias, id="foreign-0")
    assert checks() == {"counts_check": False, "documents_check": False, "metrics_check": False, "mapping_check": True}
    assert (shown["missing"], shown["changed"], shown["metrics_changed"], shown["foreign"]) == (10, 10, 10, 9)


def test_a_slow_delivery_of_metrics_does_not_bring_a_deleted_document_back(road: Road, client: OpenSearch) -> None:
    alias = road.settings.opensearch_alias
    client.indices.put_settings(index=alias, body={"index": {"gc_deletes": "1ms"}})
    road.land({"c.jsonl": lines(0, 2)})
    [batch] = road.claim()
    assert road.run(batch, *TO_CLEAN, *METRICS, "enrich/documents").success

    def remove(number: int) -> None:
        if number == 1:
            road.land({"c.jsonl": lines(0, 1)})
            code = "from lake_assets_tests.test_index_state import take_all; take_all()"
            subprocess.run(
                [sys.executable, "-c", code],
                env=environment(road.settings),
                check=True,
                timeout=60,
                cwd=Path(__file__).parents[1],
            )
            removed.append(True)
            time.sleep(0.5)  # until the index has forgotten the deleted document's version
            client.indices.refresh(index=alias)

    removed: list[bool] = []
    with fault_proxy(road.settings.opensearch_url) as proxy:
        proxy.on_bulk = remove
        slow = Road(Settings.model_validate({**road.settings.model_dump(), "opensearch_url": proxy.url}))
        result = slow.run(batch, "opensearch/metrics")
    assert result.success, sentence(result)
    assert removed
    assert metadata(result, "opensearch/metrics")["withdrawn"] == 1
    assert len(road.state().index) == COUNT + 1
    assert compared(road, client).is_equal


def take_all() -> None:
    """Claims and runs what has landed, in a process of its own."""
    Road(Settings()).take({})
