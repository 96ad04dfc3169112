"""Ids from a counter: in the lake before the first request, the same for life, none given twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from lake_assets.index.client import connect
from lake_assets.index.counters import counter
from lake_assets.index.repair import compare_with_baseline, rebuild
from lake_assets_tests.road import Road, assert_index_is_clean, assert_same, fresh_settings, metadata, sentence

SOURCES = "[[source]]\nname='crm'\nprefix='crm/'\nkey='id'\nunique_keys=true\n"


def lines(*texts: str) -> bytes:
    """Makes JSON lines whose ids are the first words of the texts."""
    return b"".join(json.dumps({"id": text.split()[0], "text": text}).encode() + b"\n" for text in texts)


@pytest.fixture
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """An empty lake whose ids are counted."""
    with fresh_settings(request, "file", tmp_path, lake_ids="counter") as settings:
        settings.lake_sources.write_text(SOURCES)
        yield Road(settings)


def ids(road: Road) -> dict[str, str]:
    """Gives text → id of the index, which holds what clean holds."""
    state = road.state()
    assert_index_is_clean(state)
    return {hit["_source"]["text"]: id for id, hit in state.index.items()}


def test_numbers_count_from_one_and_a_document_keeps_its_own_through_every_replacement(road: Road) -> None:
    road.take({"a.jsonl": lines("one x", "two x", "three x")})
    first = ids(road)
    assert set(first.values()) == {"1", "2", "3"}
    road.take({"a.jsonl": lines("two y", "four y", "one x")})
    second = ids(road)
    assert second == {"two y": first["two x"], "one x": first["one x"], "four y": "4"}
    road.take({"a.jsonl": lines("three z"), "b.jsonl": lines("one x")})
    assert ids(road) == {"three z": first["three x"], "one x": "5"}
    before = road.state()
    for batch in (3, 1, 2):
        assert metadata(road.run(batch), "opensearch/documents")["sent"] == 0
        assert_same(road.state(), before)
    assert road.lake.read("opensearch/ids").frame()["id"].sort().to_list() == ["1", "2", "3", "4", "5"]


def test_increments_keep_their_numbers_across_objects(road: Road) -> None:
    road.take({"crm/1.jsonl": lines("one x", "two x")})
    first = ids(road)
    road.take({"crm/2.jsonl": lines("two y", "three y")})
    assert ids(road) == {"one x": first["one x"], "two y": first["two x"], "three y": "3"}


def test_a_delivery_that_died_after_numbering_uses_the_same_numbers(road: Road) -> None:
    road.land({"a.jsonl": lines("one x", "two x")})
    [batch] = road.claim()
    assert road.run(batch, "raw/records", "indexing/documents", "opensearch/documents").success
    road.lake.table("opensearch/documents").replace(lambda _: ([batch], []))  # as if it had died before the receipts
    assert road.run(batch).success
    assert set(ids(road).values()) == {"1", "2"}


def test_a_rebuilt_index_has_the_same_numbers(road: Road) -> None:
    road.take({"a.jsonl": lines("one x", "two x")})
    before = ids(road)
    client = connect(road.settings, road.settings.opensearch_url)
    client.indices.delete(index=f"{road.settings.opensearch_alias}-000001")
    assert rebuild(client, road.settings.opensearch_alias, road.lake).left.is_equal
    assert ids(road) == before
    assert compare_with_baseline(client, road.settings.opensearch_alias, road.lake).is_equal


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


def test_every_number_is_explained_by_a_reservation(road: Road) -> None:
    road.take({"a.jsonl": lines("one x", "two x")})
    road.take({"b.jsonl": lines("one x")})
    held = counter(road.settings).reservations()
    assert held.select("first", "last", "owner").sort("first").rows() == [(1, 2, "batch 1"), (3, 3, "batch 2")]
    assert held["reserved_at"].dtype == pl.Datetime("us", "UTC")
