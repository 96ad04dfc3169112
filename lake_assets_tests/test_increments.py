"""Sources whose keys are unique across their objects: the newest record of a key wins, what increments lack stays."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from lake_assets_tests.road import METRICS, Road, assert_index_is_clean, assert_same, fresh_settings, metadata

SOURCES = """
[[source]]
name = "crm"
prefix = "crm/"
key = "id"
unique_keys = true

[[source]]
name = "crm notes"
prefix = "crm/notes/"
key = "id"
"""
TO_INDEXING = ["raw/objects", "raw/records", "indexing/documents"]
TO_RECEIPTS = [*TO_INDEXING, "opensearch/documents"]
TO_CLEAN = [*TO_RECEIPTS, "clean/documents"]


def lines(**texts: str) -> bytes:
    """Makes a JSON line of each key and text."""
    return b"".join(json.dumps({"id": key, "text": text}).encode() + b"\n" for key, text in texts.items())


FIRST = {"crm/1.jsonl": lines(one="one is good", two="two is good", three="three is good"), "b.jsonl": lines(two="B")}
SECOND = {"crm/2.jsonl": lines(two="two is bad", four="four is new")}
THIRD = {"crm/1.jsonl": lines(three="three is bad", two="two is bad"), "crm/notes/1.jsonl": lines(two="a note")}
END = {
    "one": ("crm/1.jsonl", "one is good"),
    "two": ("crm/1.jsonl", "two is bad"),
    "three": ("crm/1.jsonl", "three is bad"),
    "four": ("crm/2.jsonl", "four is new"),
}


@pytest.fixture
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """An empty lake in a folder, with a source of increments."""
    with fresh_settings(request, "file", tmp_path) as settings:
        settings.lake_sources.write_text(SOURCES)
        yield Road(settings)


def documents(road: Road) -> dict[str, tuple[str, str]]:
    """Gives key → path and text of the increments' documents, when every table and the index agree."""
    state = road.state()
    assert_index_is_clean(state)
    for id, hit in state.index.items():
        assert hit["_source"]["size_chars"] == len(hit["_source"]["text"]), id
    assert state["opensearch/metrics"]["id"].sort().to_list() == state["clean/documents"]["id"].sort().to_list()
    clean = state["clean/documents"].filter(pl.col("path").is_in(["crm/1.jsonl", "crm/2.jsonl"]))
    assert clean["key"].is_unique().all()
    return {key: (path, text) for key, path, text in clean.select("key", "path", "text").rows()}


def claim_all(road: Road) -> None:
    """Claims three increments, and reads the bytes of each before the next one lands."""
    for number, objects in enumerate((FIRST, SECOND, THIRD), 1):
        road.land(objects)
        assert road.claim() == [number]
        assert road.run(number, *TO_INDEXING[:2]).success


def test_the_newest_record_of_a_key_wins_with_its_id_and_what_an_increment_lacks_stays(road: Road) -> None:
    road.take(FIRST)
    first = road.state()
    [two] = [id for id, hit in first.index.items() if hit["_source"]["text"] == "two is good"]
    road.land(SECOND)
    assert road.claim() == [2]
    result = road.run(2)
    assert metadata(result, "opensearch/documents")["sent"] == 2
    assert metadata(result, "metrics/size")["measured"] == 2
    assert road.state().index[two]["_source"]["text"] == "two is bad"
    road.land(THIRD)
    assert road.claim() == [3]
    result = road.run(3)
    assert metadata(result, "opensearch/documents")["sent"] == 3
    assert metadata(result, "metrics/size")["measured"] == 2
    assert documents(road) == END
    after = road.state()
    others = {hit["_source"]["path"]: hit["_source"]["text"] for hit in after.index.values()}
    assert others["b.jsonl"] == "B"
    assert others["crm/notes/1.jsonl"] == "a note"
    assert len(after.index) == 6
    for batch in (1, 3, 2, 1):
        assert metadata(road.run(batch), "opensearch/documents")["sent"] == 0
        assert_same(road.state(), after)


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_increments_that_are_run_in_any_order_end_alike(road: Road, order: tuple[int, ...]) -> None:
    claim_all(road)
    for batch in order:
        assert road.run(batch).success
    assert documents(road) == END
    assert len(road.state().index) == 6


@pytest.mark.parametrize("keys", [TO_INDEXING, TO_RECEIPTS, TO_CLEAN, [*TO_CLEAN, *METRICS]])
def test_an_increment_that_stopped_midway_loses_nothing_while_older_ones_run_again(road: Road, keys: list[str]) -> None:
    claim_all(road)
    assert road.run(1).success
    assert road.run(2).success
    assert road.run(3, *keys).success
    assert road.run(1).success
    assert {key for key, _ in documents_of_index(road)} == {"one", "two", "three", "four"}
    assert road.run(2).success
    assert road.run(3).success
    assert documents(road) == END


def documents_of_index(road: Road) -> set[tuple[str, str]]:
    """Gives key and text of the increments' documents in the index."""
    sources = [hit["_source"] for hit in road.state().index.values()]
    return {(found["key"], found["text"]) for found in sources if found["path"] in ("crm/1.jsonl", "crm/2.jsonl")}


def test_of_objects_in_one_batch_the_last_name_wins(road: Road) -> None:
    objects = {f"crm/{day:02}.jsonl": lines(one=f"day {day}", **{f"only{day}": "x"}) for day in range(1, 12)}
    assert road.take(objects) == [1]
    found = {hit["_source"]["key"]: hit["_source"]["text"] for hit in road.state().index.values()}
    assert found == {"one": "day 11"} | {f"only{day}": "x" for day in range(1, 12)}
    before = road.state()
    assert road.run(1).success
    assert_same(road.state(), before)


def test_a_line_that_an_increment_repairs_leaves_older_refusals_where_they_are(road: Road) -> None:
    road.take({"crm/1.jsonl": lines(one="one") + b"{broken\n"})
    road.take({"crm/1.jsonl": lines(one="one again"), "b.jsonl": b"{broken too\n"})
    refused = road.state()["quarantine/records"]
    assert refused.select("batch", "path").sort("batch").rows() == [(1, "crm/1.jsonl"), (2, "b.jsonl")]
    for batch in (1, 2):
        assert road.run(batch).success
        assert road.state()["quarantine/records"].equals(refused)
