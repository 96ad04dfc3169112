"""Versions of objects that replace each other, batches run out of order, and runs that died in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from lake_assets.lake.tables import Lake
from lake_assets.settings import Settings
from lake_assets_tests.road import Road, assert_index_is_clean, assert_same, fresh_settings, metadata, sentence
from lake_assets_tests.servers import free_port

TO_CLEAN = ["raw/objects", "raw/records", "indexing/documents", "opensearch/documents", "clean/documents"]
MEASURED = ["metrics/language", "metrics/sentiment", "metrics/size", "enrich/documents", "opensearch/metrics"]


def lines(*texts: str) -> bytes:
    """Makes JSON lines whose ids are the first words of the texts."""
    return b"".join(json.dumps({"id": text.split()[0], "text": text}).encode() + b"\n" for text in texts)


OTHER_SOURCES = """
[[source]]
name = "listed"
prefix = "listed/"
deletes = true

[[source]]
name = "crm"
prefix = "crm/"
unique_keys = true
"""
FIRST = lines("one is good", "two is good", "three is good")
SECOND = lines("one is good", "three is bad", "four is new")
THIRD = lines("one is good", "two is good")
OTHER = lines("other is here")


def texts(road: Road) -> set[str]:
    """Gives the texts of the index, when they are those of clean and of every table behind it."""
    state = road.state()
    assert_index_is_clean(state)
    assert state["opensearch/metrics"]["id"].sort().to_list() == state["clean/documents"]["id"].sort().to_list()
    for id, hit in state.index.items():
        assert hit["_source"].get("size_words") is not None, id
    return {hit["_source"]["text"] for hit in state.index.values()}


AFTER_SECOND = {"one is good", "three is bad", "four is new", "other is here"}


@pytest.fixture
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """An empty lake in a folder."""
    with fresh_settings(request, "file", tmp_path) as settings:
        yield Road(settings)


def claim_second(road: Road) -> None:
    """Batch 1 holds two objects and is done; batch 2 has claimed a new version of one of them."""
    assert road.take({"a.jsonl": FIRST, "b.jsonl": OTHER}) == [1]
    road.land({"a.jsonl": SECOND})
    assert road.claim() == [2]


def test_the_older_batch_run_again_before_the_newer_one_takes_and_loses_nothing(road: Road) -> None:
    claim_second(road)
    before = road.state()
    assert road.run(1).success
    assert_same(road.state(), before)
    assert road.run(2).success
    assert texts(road) == AFTER_SECOND


def test_a_newer_batch_that_stopped_anywhere_is_finished_after_the_older_one_has_run_again(road: Road) -> None:
    claim_second(road)
    for stop in range(1, len(TO_CLEAN)):
        assert road.run(2, *TO_CLEAN[:stop]).success
        assert road.run(1).success
    assert road.run(2).success
    assert texts(road) == AFTER_SECOND
    after = road.state()
    assert road.run(1).success
    assert_same(road.state(), after)


def test_batches_that_come_in_the_wrong_order_leave_what_the_newest_version_says(road: Road) -> None:
    road.land({"a.jsonl": FIRST, "b.jsonl": OTHER})
    assert road.claim() == [1]
    road.land({"a.jsonl": SECOND})
    assert road.claim() == [2]
    assert road.run(2).success
    assert road.run(1).success
    assert texts(road) == AFTER_SECOND
    gone = road.state()["quarantine/records"].select("batch", "stage", "path", "reason").rows()
    assert gone == [(1, "raw/records", "a.jsonl", "object_gone")]


def test_a_text_that_comes_back_gets_its_metrics_back(road: Road) -> None:
    claim_second(road)
    assert road.run(2, *TO_CLEAN).success  # the second version is searchable, and was never measured
    road.land({"a.jsonl": FIRST})
    assert road.claim() == [3]
    assert road.run(3).success
    assert texts(road) == {"one is good", "two is good", "three is good", "other is here"}


def test_documents_of_a_batch_that_died_before_its_receipts_are_deleted_when_they_vanish(road: Road) -> None:
    road.land({"a.jsonl": FIRST})
    assert road.claim() == [1]
    assert road.run(1, *TO_CLEAN[:4]).success
    Lake(road.settings).table("opensearch/documents").replace(lambda _: ([1], []))  # as if it had died in the commit
    road.land({"a.jsonl": THIRD})
    assert road.claim() == [2]
    assert road.run(2).success
    assert texts(road) == {"one is good", "two is good"}


@pytest.mark.parametrize("prefix", ["", "listed/", "crm/"])
def test_what_a_batch_sent_and_never_noted_is_undone_by_the_next_version(road: Road, prefix: str) -> None:
    road.settings.lake_sources.write_text(OTHER_SOURCES)
    path = f"{prefix}a.jsonl"
    road.take({path: lines("one is good")})
    road.land({path: lines("one is bad", "two is new")})
    assert road.claim() == [2]
    forget_receipts(road, 2)
    assert road.take({path: lines("one is good")}) == [3]
    for batch in (2, 3):
        assert road.run(batch).success
    assert texts(road) == {"one is good"} | ({"two is new"} if prefix == "crm/" else set())


def test_a_deletion_that_was_sent_and_never_noted_is_undone_when_the_object_comes_back(road: Road) -> None:
    road.settings.lake_sources.write_text(OTHER_SOURCES)
    road.take({"listed/a.jsonl": FIRST})
    road.remove("listed/a.jsonl")
    assert road.claim() == [2]
    forget_receipts(road, 2)
    assert road.take({"listed/a.jsonl": FIRST}) == [3]
    assert texts(road) == {"one is good", "two is good", "three is good"}


def forget_receipts(road: Road, batch: int) -> None:
    """Runs the first delivery of a batch as if it had died right before its receipts were committed."""
    before = Lake(road.settings).read("opensearch/documents").version
    assert road.run(batch, *TO_CLEAN[:4]).success
    delta = Lake(road.settings).read("opensearch/documents").delta
    assert delta is not None
    delta.restore(before)


def test_a_renamed_object_without_deletes_keeps_both_and_is_measured(road: Road) -> None:
    road.take({"a.jsonl": FIRST})
    road.remove("a.jsonl")
    assert road.take({"c.jsonl": FIRST}) == [2]
    assert len(road.state().index) == 6


def test_a_deleted_object_deletes_nothing_unless_its_source_says_so(road: Road) -> None:
    source = "[[source]]\nname = 'listed'\nprefix = 'listed/'\ndeletes = true\n"
    road.settings.lake_sources.write_text(source)
    road.take({"listed/a.jsonl": FIRST, "kept/a.jsonl": OTHER})
    road.remove("kept/a.jsonl")
    assert road.claim() == []
    road.remove("listed/a.jsonl")
    assert road.claim() == [2]
    assert road.claim() == []
    assert road.run(2).success
    assert texts(road) == {"other is here"}
    assert road.state()["raw/records"].height == 4  # the backup keeps them
    assert road.run(1).success
    assert texts(road) == {"other is here"}
    assert road.take({"listed/a.jsonl": FIRST}) == [3]
    assert len(texts(road)) == 4


def test_what_a_newer_version_has_repaired_is_no_longer_in_the_quarantine(road: Road) -> None:
    road.take({"a.jsonl": FIRST + b"{broken\n", "b.jsonl": OTHER + b"{broken\n"})
    assert road.state()["quarantine/records"].height == 2
    road.take({"a.jsonl": FIRST})
    refused = road.state()["quarantine/records"]
    assert refused["path"].to_list() == ["b.jsonl"]
    assert road.run(1).success
    assert road.state()["quarantine/records"].equals(refused)


def test_a_document_moved_behind_others_keeps_its_id_and_is_not_sent_again(road: Road) -> None:
    road.take({"a.jsonl": FIRST})
    before = road.state()
    road.land({"a.jsonl": lines("zero is new") + b"".join(reversed(FIRST.splitlines(keepends=True)))})
    [batch] = road.claim()
    result = road.run(batch)
    assert metadata(result, "opensearch/documents")["sent"] == 1
    assert metadata(result, "opensearch/metrics")["sent"] == 1
    after = road.state()
    assert {id: after.index[id] for id in before.index} == before.index


def test_equal_records_are_each_a_document(road: Road) -> None:
    road.take({"a.csv": b"text\nsame\nsame\nother\n"})
    assert sorted(hit["_source"]["text"] for hit in road.state().index.values()) == ["other", "same", "same"]
    road.take({"a.csv": b"text\nsame\nother\n"})
    assert sorted(hit["_source"]["text"] for hit in road.state().index.values()) == ["other", "same"]


def test_without_opensearch_the_run_fails_with_a_sentence_and_the_next_one_finishes_it(road: Road) -> None:
    road.land({"a.jsonl": FIRST})
    [batch] = road.claim()
    down = Settings.model_validate({**road.settings.model_dump(), "opensearch_url": f"http://127.0.0.1:{free_port()}"})
    failed = Road(down).run(batch)
    assert not failed.success
    assert sentence(failed).startswith(f"Nothing answers at {down.opensearch_url}") or "does not" in sentence(failed)
    state = road.state()
    assert state["indexing/documents"].height == 3
    for key in ("opensearch/documents", "clean/documents", "enrich/documents", "opensearch/metrics"):
        assert state[key].is_empty(), key
    assert road.run(batch).success
    assert len(texts(road)) == 3


def test_without_opensearch_a_replacement_leaves_the_last_good_rows_and_the_next_run_finishes_it(road: Road) -> None:
    claim_second(road)
    before = road.state()
    down = Settings.model_validate({**road.settings.model_dump(), "opensearch_url": f"http://127.0.0.1:{free_port()}"})
    assert not Road(down).run(2).success
    after = road.state()
    for key in ("opensearch/documents", "clean/documents", *MEASURED):
        assert after[key].equals(before[key]), key
    assert road.run(2).success
    assert texts(road) == AFTER_SECOND


def test_a_metric_of_another_text_is_never_delivered(road: Road) -> None:
    claim_second(road)
    assert road.run(2, *TO_CLEAN, "enrich/documents", "opensearch/metrics").success  # no metric has run
    state = road.state()
    [changed] = [hit["_source"] for hit in state.index.values() if hit["_source"]["text"] == "three is bad"]
    assert "size_words" not in changed
    [same] = [hit["_source"] for hit in state.index.values() if hit["_source"]["text"] == "one is good"]
    assert same["size_words"] == 3
    assert road.run(2, "enrich/documents", "opensearch/metrics").success
    assert road.state().index == state.index
    enriched = road.state()["enrich/documents"]
    assert enriched.equals(state["enrich/documents"])
    assert enriched.filter(pl.col("size_words").is_null()).height == 2
    assert road.run(2).success
    assert texts(road) == AFTER_SECOND
