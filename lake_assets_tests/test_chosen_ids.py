"""Ids from a counter, or made by the server: written down in the lake, the same for life, none given twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from lake_assets.index.client import connect
from lake_assets.index.counters import counter
from lake_assets.index.names import choose_ids, counting
from lake_assets.index.repair import compare_with_baseline, rebuild
from lake_assets_tests.road import Road, assert_index_is_clean, assert_same, fresh_settings, metadata, sentence

SOURCES = "[[source]]\nname='crm'\nprefix='crm/'\nkey='id'\nunique_keys=true\n"


def lines(*texts: str) -> bytes:
    """Makes JSON lines whose ids are the first words of the texts."""
    return b"".join(json.dumps({"id": text.split()[0], "text": text}).encode() + b"\n" for text in texts)


def test_ids_by_the_server_need_no_counter_also_on_s3(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with fresh_settings(request, "s3", tmp_path, lake_ids="opensearch") as settings:
        road = Road(settings)
        road.take({"a.jsonl": lines("one x", "two x")})
        assert set(ids(road)) == {"one x", "two x"}


@pytest.fixture(params=["counter", "opensearch"])
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """An empty lake whose ids are counted, or made by the server."""
    with fresh_settings(request, "file", tmp_path, lake_ids=request.param) as settings:
        settings.lake_sources.write_text(SOURCES)
        yield Road(settings)


counted = pytest.mark.parametrize("road", ["counter"], indirect=True)
made = pytest.mark.parametrize("road", ["opensearch"], indirect=True)


def ids(road: Road) -> dict[str, str]:
    """Gives text → id of the index, which holds what clean holds."""
    state = road.state()
    assert_index_is_clean(state)
    return {hit["_source"]["text"]: id for id, hit in state.index.items()}


def test_a_document_keeps_its_id_through_every_replacement(road: Road) -> None:
    road.take({"a.jsonl": lines("one x", "two x", "three x")})
    first = ids(road)
    road.take({"a.jsonl": lines("two y", "four y", "one x")})
    second = ids(road)
    assert second == {"two y": first["two x"], "one x": first["one x"], "four y": second["four y"]}
    road.take({"a.jsonl": lines("three z"), "b.jsonl": lines("one x")})
    third = ids(road)
    assert third == {"three z": first["three x"], "one x": third["one x"]}
    given = {*first.values(), second["four y"], third["one x"]}
    assert len(given) == 5
    if road.settings.lake_ids == "counter":
        assert [set(first.values()), second["four y"], third["one x"]] == [{"1", "2", "3"}, "4", "5"]
    before = road.state()
    for batch in (3, 1, 2):
        assert metadata(road.run(batch), "opensearch/documents")["sent"] == 0
        assert_same(road.state(), before)
    assert set(road.lake.read("opensearch/ids").frame()["id"]) == given


def test_what_was_sent_is_counted_as_sent(road: Road) -> None:
    road.land({"a.jsonl": lines("one x", "two x")})
    [batch] = road.claim()
    counts = metadata(road.run(batch), "opensearch/documents")
    assert [counts[name] for name in ("sent", "carried_over", "deleted", "refused")] == [2, 0, 0, 0]


def test_increments_keep_their_ids_across_objects(road: Road) -> None:
    road.take({"crm/1.jsonl": lines("one x", "two x")})
    first = ids(road)
    road.take({"crm/2.jsonl": lines("two y", "three y")})
    second = ids(road)
    assert second == {"one x": first["one x"], "two y": first["two x"], "three y": second["three y"]}
    assert second["three y"] not in first.values()


def test_a_delivery_that_died_before_its_receipts_uses_the_same_ids(road: Road) -> None:
    road.land({"a.jsonl": lines("one x", "two x")})
    [batch] = road.claim()
    assert road.run(batch, "raw/records", "indexing/documents", "opensearch/documents").success
    sent = set(road.state().index)
    forget(road, "opensearch/documents", batch)
    assert road.run(batch).success
    assert set(ids(road).values()) == sent


def forget(road: Road, key: str, batch: int) -> None:
    """Empties a table of a batch, as if its delivery had died before that commit."""
    road.lake.table(key).replace(lambda _: ([batch], []))


@made
def test_a_delivery_that_died_before_its_ids_were_written_down_finds_what_it_has_created(road: Road) -> None:
    road.land({"a.jsonl": lines("one x", "two x")})
    [batch] = road.claim()
    assert road.run(batch, "raw/records", "indexing/documents", "opensearch/documents").success
    sent = set(road.state().index)
    forget(road, "opensearch/documents", batch)
    forget(road, "opensearch/ids", batch)
    assert road.run(batch).success
    assert set(ids(road).values()) == sent


@made
def test_what_it_has_created_of_an_object_that_a_newer_version_no_longer_holds_goes(road: Road) -> None:
    road.land({"a.jsonl": lines("one x", "two x")})
    [batch] = road.claim()
    assert road.run(batch, "raw/records", "indexing/documents", "opensearch/documents").success
    sent = {hit["_source"]["text"]: id for id, hit in road.state().index.items()}
    forget(road, "opensearch/documents", batch)
    forget(road, "opensearch/ids", batch)
    road.take({"a.jsonl": lines("two y", "three y")})
    assert ids(road)["two y"] == sent["two x"]
    assert len(ids(road)) == 2


@made
def test_surplus_copies_go_before_the_receipts_and_what_was_taken_for_one_is_sent_again(road: Road) -> None:
    road.land({"a.jsonl": lines("one x", "two x")})
    [batch] = road.claim()
    assert road.run(batch, "raw/records", "indexing/documents", "opensearch/documents").success
    before = road.state()
    client, alias = connect(road.settings, road.settings.opensearch_url), road.settings.opensearch_alias
    for hit in before.index.values():  # as if each request had been carried out twice
        client.index(index=alias, body=hit["_source"])
    client.delete(index=alias, id=next(iter(before.index)))
    forget(road, "opensearch/documents", batch)
    result = road.run(batch)
    assert result.success
    assert metadata(result, "opensearch/documents")["deleted"] == 2
    assert set(ids(road).values()) == set(before.index)


@counted
def test_a_run_that_chooses_at_the_same_time_gets_the_ids_of_the_first(road: Road) -> None:
    names = pl.DataFrame({"scope": ["a", "a"], "key": ["one", "two"]})
    chosen: list[pl.DataFrame] = []

    def make(lacking: pl.DataFrame) -> pl.DataFrame:
        if not chosen:
            chosen.append(choose_ids(road.lake, 1, names[:1], counting(road.settings, "the first")))
        return counting(road.settings, "the second")(lacking)

    got = choose_ids(road.lake, 2, names, make).sort("key")
    assert got["id"][0] == chosen[0]["id"].item()
    assert road.lake.read("opensearch/ids").frame().sort("key")["id"].to_list() == got["id"].to_list()


def test_a_rebuilt_index_has_the_same_ids(road: Road) -> None:
    road.take({"a.jsonl": lines("one x", "two x")})
    before = ids(road)
    client = connect(road.settings, road.settings.opensearch_url)
    client.indices.delete(index=f"{road.settings.opensearch_alias}-000001")
    assert rebuild(client, road.settings.opensearch_alias, road.lake).left.is_equal
    assert ids(road) == before
    assert compare_with_baseline(client, road.settings.opensearch_alias, road.lake).is_equal


@counted
def test_a_counter_that_has_forgotten_stops_the_run_before_anything_is_sent(road: Road) -> None:
    road.take({"a.jsonl": lines("one x", "two x")})
    before = road.state()
    for file in road.settings.lake_home.glob("counter.sqlite3*"):
        file.unlink()
    road.land({"b.jsonl": lines("one y")})
    [batch] = road.claim()
    result = road.run(batch)
    assert not result.success
    assert "ids of this lake go up to 2" in sentence(result)
    assert road.state().index == before.index


@counted
def test_every_number_is_explained_by_a_reservation(road: Road) -> None:
    road.take({"a.jsonl": lines("one x", "two x")})
    road.take({"b.jsonl": lines("one x")})
    held = counter(road.settings).reservations()
    assert held.select("first", "last", "owner").sort("first").rows() == [(1, 2, "batch 1"), (3, 3, "batch 2")]
    assert held["reserved_at"].dtype == pl.Datetime("us", "UTC")
