"""The index beside the lake: every difference is named, only differences are sent, and a rebuild is never seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from opensearchpy import OpenSearch

from lake_assets.errors import ContractBroken, IndexUnavailable
from lake_assets.index.client import connect
from lake_assets.index.compare import Compared, compare_mapping
from lake_assets.index.mapping import index_body
from lake_assets.index.repair import compare_with_baseline, declared_fields, rebuild, repair, rollback
from lake_assets.lake.tables import Lake
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


@pytest.fixture(scope="module")
def standing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """The same lake, shared by the tests that leave it as they found it: everything delivered, index and lake equal."""
    with fresh_settings(request, "file", tmp_path_factory.mktemp("standing")) as settings:
        road = Road(settings)
        road.take({"a.jsonl": lines(0, 200)})
        road.take({"b.jsonl": lines(200, COUNT)})
        yield road


@pytest.fixture
def client(opensearch_url: str) -> OpenSearch:
    return connect(Settings(), opensearch_url)


def contents(road: Road) -> dict[str, dict[str, Any]]:
    """Gives id → all fields of what readers see."""
    return {id: hit["_source"] for id, hit in road.state().index.items()}


def checks(road: Road) -> dict[str, bool]:
    """Materialises the asset, and gives whether each of its checks has passed."""
    result = road.run(2, "opensearch/index")
    assert result.success, sentence(result)
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}


def check_states(*failed: str) -> dict[str, bool]:
    return {name: name not in failed for name in ("counts_check", "documents_check", "metrics_check", "mapping_check")}


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


def test_after_a_load_the_receipts_alone_show_that_index_and_lake_are_equal(standing: Road, client: OpenSearch) -> None:
    found = compared(standing, client)
    assert found.is_equal
    assert (found.index_documents, found.lake_documents, found.read) == (COUNT, COUNT, 0)


def test_every_edit_behind_our_back_is_named_and_repaired_and_nothing_else_is_sent(
    standing: Road, client: OpenSearch
) -> None:
    before = standing.state()
    damaged = damage(standing, client)
    found = compared(standing, client)
    assert kinds(found) == damaged
    assert found.read < COUNT / 2
    done = repair(client, standing.settings.opensearch_alias, standing.lake)
    assert (done.sent, done.deleted) == (30, 10)
    assert done.left.is_equal
    after = standing.state()
    assert {id: hit["_source"] for id, hit in after.index.items()} == {
        id: hit["_source"] for id, hit in before.index.items()
    }
    touched = set().union(*damaged.values())
    assert {id for id in after.index if after.index[id] != before.index[id]} <= touched
    assert repair(client, standing.settings.opensearch_alias, standing.lake).sent == 0
    assert compared(standing, client).read == 0


def test_edits_that_forge_what_index_and_lake_are_compared_by_are_named_by_id(
    standing: Road, client: OpenSearch
) -> None:
    alias, before = standing.settings.opensearch_alias, contents(standing)
    one, other, lost, *rest = sorted(before)
    wrong: list[Any] = [-1, -7, 4095, [1, 2], None, "5"]
    made = {one: before[other], other: before[one]}
    made |= {id: {**before[id], "bucket": bucket} for id, bucket in zip(rest, wrong, strict=False)}
    strange = {"copy": before[lost], "empty": {}, "below": {"bucket": -1}, "many": {"bucket": [3, 4]}}
    same = rest[len(wrong)]  # written again as it was
    body: list[dict[str, Any]] = [{"delete": {"_id": lost}}]
    for id, source in {**made, **strange, same: before[same]}.items():
        body += [{"index": {"_id": id}}, source]
    assert not client.bulk(index=alias, body=body)["errors"]

    found = compared(standing, client)
    assert kinds(found) == {"changed": set(made), "foreign": set(strange), "missing": {lost}}
    assert found.index_documents == COUNT - 1 + len(strange)
    done = repair(client, alias, standing.lake)
    assert (done.sent, done.deleted) == (len(made) + 1, len(strange))
    assert contents(standing) == before
    assert compared(standing, client).read == 0


def test_what_was_written_again_as_it_was_is_no_difference_and_is_read_once(standing: Road, client: OpenSearch) -> None:
    for id, source in list(contents(standing).items())[:3]:
        client.index(index=standing.settings.opensearch_alias, id=id, body=source)
    found = compared(standing, client)
    assert found.is_equal
    assert 3 <= found.read <= 9
    assert compared(standing, client).read == 0


def test_an_alias_that_was_deleted_by_hand_fails_the_checks_and_a_rebuild_makes_it_again(
    standing: Road, client: OpenSearch
) -> None:
    alias, before = standing.settings.opensearch_alias, contents(standing)
    index = compared(standing, client).index
    client.indices.delete_alias(index=index, name=alias)
    assert checks(standing) == check_states("counts_check", "documents_check")
    with pytest.raises(IndexUnavailable, match=f"no alias `{alias}`; rebuild the index"):
        repair(client, alias, standing.lake)
    assert rebuild(client, alias, standing.lake).left.is_equal
    assert contents(standing) == before
    assert checks(standing) == check_states()
    assert rollback(client, alias, standing.lake).left.index == index
    assert contents(standing) == before


def test_an_alias_that_stands_for_two_indexes_is_no_equal_index_until_it_stands_for_one(
    standing: Road, client: OpenSearch
) -> None:
    alias, before = standing.settings.opensearch_alias, contents(standing)
    index, other = compared(standing, client).index, f"{alias}-other"
    client.indices.create(index=other, body={"aliases": {alias: {}}})
    with pytest.raises(IndexUnavailable, match="name one as its write index"):
        compared(standing, client)
    client.indices.put_alias(index=index, name=alias, body={"is_write_index": True})
    found = compared(standing, client)
    assert (found.is_equal, found.beside) == (False, (other,))
    assert checks(standing) == check_states("counts_check")
    done = repair(client, alias, standing.lake)
    assert (done.sent, done.deleted, done.left.is_equal) == (0, 0, True)
    assert contents(standing) == before
    assert checks(standing) == check_states()


def test_a_mapping_that_was_changed_by_hand_is_named_field_by_field(standing: Road, client: OpenSearch) -> None:
    alias = standing.settings.opensearch_alias
    index = compared(standing, client).index
    fields = declared_fields(standing.lake)
    assert compare_mapping(client, index, fields) == []
    client.indices.put_mapping(index=index, body={"properties": {"key": {**fields["key"], "ignore_above": 5}}})
    client.indices.put_mapping(index=index, body={"properties": {"mine": {"type": "long"}}})
    told = compare_mapping(client, index, {**fields, "new": {"type": "long"}})
    assert [sentence.split("`")[1] for sentence in told] == ["new", "mine", "key"]
    assert all("rebuild the index" in sentence for sentence in told[1:])
    assert checks(standing) == check_states("mapping_check")
    rebuild(client, alias, standing.lake)
    assert checks(standing) == check_states()


def test_what_was_repaired_still_takes_later_versions_and_metrics(road: Road, client: OpenSearch) -> None:
    for _ in range(5):  # each raises the versions by hand
        damage(road, client)
    repair(client, road.settings.opensearch_alias, road.lake)
    road.take({"a.jsonl": lines(0, 200, "bad")})
    assert compared(road, client).is_equal
    assert all(
        "is bad" in hit["_source"]["text"] for hit in road.state().index.values() if hit["_source"]["path"] == "a.jsonl"
    )


def test_batches_in_flight_are_no_differences_and_repair_leaves_them_alone(road: Road, client: OpenSearch) -> None:
    road.land({"a.jsonl": lines(5, 200, "bad"), "c.jsonl": lines(0, 20)})
    [batch] = road.claim()
    flying = []
    for keys in (["raw/records"], ["indexing/documents"], ["opensearch/documents"], ["clean/documents"], METRICS[:1],
                 METRICS[1:], ["enrich/documents"], ["opensearch/metrics"]):  # fmt: skip
        assert road.run(batch, *keys).success
        done = repair(client, road.settings.opensearch_alias, road.lake)
        assert done.left.is_equal, kinds(done.left)
        assert (done.sent, done.deleted) == (0, 0), keys
        flying.append(done.left.count("in_flight"))
    assert flying == [0, 0, 220, 0, 0, 0, 215, 0]


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


def test_what_left_the_lake_while_the_alias_moved_is_not_in_the_new_index(road: Road, client: OpenSearch) -> None:
    road.land({"a.jsonl": lines(5, 200, "bad")})
    [batch] = road.claim()
    assert road.run(batch, *TO_CLEAN[1:-1]).success  # five are deleted from the old index, and still in clean
    rebuild(client, road.settings.opensearch_alias, road.lake)
    assert road.run(batch, "clean/documents", *REST).success
    assert compared(road, client).is_equal
    assert len(road.state().index) == COUNT - 5


def test_a_rebuild_beside_running_loads_loses_nothing_and_leaves_nothing(road: Road, client: OpenSearch) -> None:
    alias = road.settings.opensearch_alias
    ended, made = threading.Event(), []

    def rebuild_often() -> None:
        while not ended.is_set():
            made.append(rebuild(client, alias, road.lake).left)

    with ThreadPoolExecutor(1) as threads:
        rebuilding = threads.submit(rebuild_often)
        try:
            road.take({"c.jsonl": lines(0, 50)})
            road.take({"a.jsonl": lines(10, 200, "bad"), "c.jsonl": lines(0, 40)})
        finally:
            ended.set()
        rebuilding.result()
    assert len(made) > 1
    assert len(road.state().index) == COUNT - 10 + 40
    assert compared(road, client).is_equal


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


def test_a_deleted_index_is_rebuilt_with_the_same_ids_and_metrics(standing: Road, client: OpenSearch) -> None:
    alias, before = standing.settings.opensearch_alias, contents(standing)
    client.indices.delete(index=f"{alias}-*")
    assert rebuild(client, alias, standing.lake).left.is_equal
    assert contents(standing) == before


def test_a_batch_that_comes_to_a_deleted_index_brings_itself_and_repair_the_rest(
    road: Road, client: OpenSearch
) -> None:
    before = contents(road)
    client.indices.delete(index=compared(road, client).index)
    road.take({"c.jsonl": lines(0, 10)})
    assert checks(road) == check_states("counts_check", "documents_check")
    done = repair(client, road.settings.opensearch_alias, road.lake)
    assert (done.sent, done.deleted, done.left.is_equal) == (COUNT, 0, True)
    assert {id: source for id, source in contents(road).items() if source["path"] != "c.jsonl"} == before


def test_a_rebuild_that_was_killed_is_done_again_and_older_indexes_go(standing: Road, client: OpenSearch) -> None:
    alias, before = standing.settings.opensearch_alias, contents(standing)
    present = compared(standing, client).index
    code = "from lake_assets_tests.test_index_state import rebuild_until_killed; rebuild_until_killed()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(standing.settings), cwd=Path(__file__).parents[1], timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert client.indices.exists_alias(name=f"{alias}-rebuild")
    assert compared(standing, client).index == present
    assert contents(standing) == before
    for _ in range(2):
        present, again = compared(standing, client).index, rebuild(client, alias, standing.lake).left
        assert again.is_equal
        assert set(client.indices.get(index=f"{alias}-0*")) == {present, again.index}
    assert not client.indices.exists_alias(name=f"{alias}-rebuild")
    assert contents(standing) == before


def rebuild_until_killed() -> None:
    """Begins a rebuild, and dies of it when the first documents are in the new index."""
    settings = Settings()

    def die(settled: int) -> None:
        if settled:
            os.kill(os.getpid(), signal.SIGKILL)

    rebuild(connect(settings, settings.opensearch_url), settings.opensearch_alias, Lake(settings), die)


def test_a_field_of_another_type_than_declared_stops_the_load_until_a_rebuild(
    request: pytest.FixtureRequest, client: OpenSearch, tmp_path: Path
) -> None:
    with fresh_settings(request, "file", tmp_path) as settings:
        road, alias = Road(settings), settings.opensearch_alias
        older = {**declared_fields(road.lake), "author": {"type": "text"}}
        older.pop("title")
        client.indices.create(index=f"{alias}-000001", body={**index_body(older), "aliases": {alias: {}}})
        road.land({"a.jsonl": lines(0, 20)})
        [batch] = road.claim()
        result = road.run(batch)
        assert not result.success
        assert "`author`" in sentence(result)
        assert "rebuild the index" in sentence(result)
        assert rebuild(client, alias, road.lake).left.is_equal
        with pytest.raises(ContractBroken, match="`author`"):
            rollback(client, alias, road.lake)
        assert road.run(batch).success
        assert len(contents(road)) == 20
        assert checks(road) == check_states()


def test_the_asset_shows_what_differs_and_its_checks_say_which(standing: Road, client: OpenSearch) -> None:
    assert checks(standing) == check_states()
    shown = metadata(standing.run(2, "opensearch/index"), "opensearch/index")
    assert (shown["lake_documents"], shown["missing"]) == (COUNT, 0)
    damage(standing, client)
    client.delete(index=standing.settings.opensearch_alias, id="foreign-0")
    assert checks(standing) == check_states("counts_check", "documents_check", "metrics_check")
    shown = metadata(standing.run(2, "opensearch/index"), "opensearch/index")
    assert (shown["missing"], shown["changed"], shown["metrics_changed"], shown["foreign"]) == (10, 10, 10, 9)
    repair(client, standing.settings.opensearch_alias, standing.lake)


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
