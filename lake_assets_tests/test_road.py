"""The road from raw objects to metrics in the index, on both kinds of lake, with the real node."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
import zstandard

from lake_assets.index.client import connect
from lake_assets.index.mapping import read_mapping
from lake_assets.ingest import dagster_instance, ingest
from lake_assets.settings import Settings
from lake_assets_tests.road import (
    KINDS,
    METRICS,
    State,
    assert_index_is_clean,
    assert_same,
    fresh_settings,
    read_state,
    run_assets,
)

COUNT = 300 + 60 + 2 + 1 + 40
CHANGED, REMOVED = range(100, 110), range(150, 155)
METRIC_FIELDS = {
    "language_code", "language_ratio", "language_is_reliable", "sentiment_score", "sentiment_label",
    "size_chars", "size_words", "size_sentences",
}  # fmt: skip


def comments(is_second: bool = False) -> bytes:
    """Makes 300 JSON lines; in the second version ten in the middle have changed, and five are gone."""
    lines = []
    for number in range(300):
        if is_second and number in REMOVED:
            continue
        text = f"Comment {number}: what a lovely day to read. It rained."
        text = f"Comment {number} is terrible now, I hate it." if is_second and number in CHANGED else text
        lines.append(json.dumps({"id": number, "text": text, "author": f"a{number % 7}", "likes": number}))
    return gzip.compress("\n".join(lines).encode())


def write_landing(folder: Path) -> None:
    """Writes 300 + 60 + 2 + 1 + 40 records in all formats."""
    rows = "".join(f'{n},"Review {n}, it was good",2024-01-0{n % 9 + 1}\n' for n in range(60))
    lines = "".join(json.dumps({"text": f"Das ist ein schöner Text Nummer {n}."}) + "\n" for n in range(40))
    files = {
        "comments.jsonl.gz": comments(),
        "reviews.csv": f"id,review,date\n{rows}".encode(),
        "notes/a.txt": "A quiet café in the evening 🙂".encode(),
        "notes/b c.txt": b"Another note.",
        "page.html": b"<html><head><title>A page</title></head><body><p>The body of the page is here.</p></html>",
        "more.jsonl.zst": zstandard.compress(lines.encode()),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@dataclass
class Story:
    """What was there after each step of one lake's life."""

    settings: Settings
    first: State
    again: State
    second: State
    batches: list[list[int]]
    shown: dict[str, dict[str, Any]]


@pytest.fixture(scope="module", params=KINDS)
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """`lake ingest` of a folder; the same again; once more with 10 records changed and 5 removed."""
    folder = tmp_path_factory.mktemp("story")
    write_landing(folder / "box")
    with fresh_settings(request, request.param, folder) as settings:
        batches, states = [], []
        for step in range(3):
            if step == 2:
                (folder / "box" / "comments.jsonl.gz").write_bytes(comments(is_second=True))
            done = ingest(settings, [folder / "box"])
            assert (done.failures, done.objects) == ([], 6)
            batches.append(done.batches)
            states.append(read_state(settings))
        yield Story(settings, *states, batches, _shown(settings, "2"))


def _shown(settings: Settings, partition: str) -> dict[str, dict[str, Any]]:
    """Reads what the page shows of each asset's batch."""
    keys = ["opensearch/documents", "opensearch/metrics", *METRICS]
    found = {}
    with dagster_instance(settings) as instance:
        for key in keys:
            filtered = dg.AssetRecordsFilter(dg.AssetKey(key.split("/")), asset_partitions=[partition])
            [record] = instance.fetch_materializations(filtered, limit=1).records
            assert record.asset_materialization is not None
            found[key] = {name: value.value for name, value in record.asset_materialization.metadata.items()}
    return found


def test_every_record_arrives_in_every_zone_and_in_the_index_once(story: Story) -> None:
    first = story.first
    assert story.batches[0] == [1]
    assert first["raw/objects"].height == 6
    assert first["raw/records"].height == COUNT
    assert first["clean/documents"].height == COUNT
    assert first["quarantine/records"].is_empty()
    assert_index_is_clean(first)


def test_every_format_is_read(story: Story) -> None:
    paths = dict(story.first["clean/documents"].group_by("path").len().rows())
    assert paths == {
        "box/comments.jsonl.gz": 300, "box/reviews.csv": 60, "box/notes/a.txt": 1, "box/notes/b c.txt": 1,
        "box/page.html": 1, "box/more.jsonl.zst": 40,
    }  # fmt: skip
    page = story.first["clean/documents"].filter(pl.col("path") == "box/page.html").row(0, named=True)
    assert (page["title"], page["text"]) == ("A page", "The body of the page is here.")
    note = story.first["clean/documents"].filter(pl.col("path") == "box/notes/a.txt")
    assert note["text"].to_list() == ["A quiet café in the evening 🙂"]


def test_every_metric_column_is_a_field_of_the_documents(story: Story) -> None:
    client = connect(story.settings, story.settings.opensearch_url)
    assert set(read_mapping(client, story.settings.opensearch_alias)) >= METRIC_FIELDS
    enrich = {row["id"]: row for row in story.first["enrich/documents"].iter_rows(named=True)}
    for id, hit in story.first.index.items():
        assert {name: hit["_source"].get(name) for name in METRIC_FIELDS} == {
            name: enrich[id][name] for name in METRIC_FIELDS
        }
        assert hit["_source"]["size_words"] > 0


def test_the_same_again_writes_nothing(story: Story) -> None:
    assert story.batches[1] == []
    assert story.again.versions == story.first.versions
    assert_same(story.again, story.first)


def test_of_a_new_version_only_what_changed_is_sent_measured_and_deleted(story: Story) -> None:
    assert story.batches[2] == [2]
    documents, metrics = story.shown["opensearch/documents"], story.shown["opensearch/metrics"]
    assert {name: documents[name] for name in ("sent", "deleted", "carried_over", "refused")} == {
        "sent": 10, "deleted": 5, "carried_over": 285, "refused": 0,
    }  # fmt: skip
    for key in METRICS:
        assert story.shown[key]["measured"] == 10
    assert (metrics["sent"], metrics["refused"]) == (10, 0)
    assert_index_is_clean(story.second)
    assert len(story.second.index) == COUNT - 5


def test_what_did_not_change_stays_as_it_is_to_the_byte(story: Story) -> None:
    def numbered(state: State) -> dict[str, str]:
        rows = state["clean/documents"].filter(pl.col("path") == "box/comments.jsonl.gz")
        return dict(rows.select("key", "id").rows())

    ids = numbered(story.first)
    touched = {ids[str(number)] for number in (*CHANGED, *REMOVED)}
    assert numbered(story.second) == {key: id for key, id in ids.items() if int(key) not in REMOVED}
    kept = pl.col("id").is_in(touched).not_()
    for key in ("clean/documents", "enrich/documents", "opensearch/documents", "opensearch/metrics", *METRICS):
        # The new version's record numbers have moved up behind the removed lines.
        before, after = (
            state[key].filter(kept).drop("batch", "record", strict=False).sort("id")
            for state in (story.first, story.second)
        )
        assert before.equals(after), key
    for id, hit in story.first.index.items():
        if id not in touched:
            assert story.second.index[id] == hit
    changed = [story.second.index[ids[str(number)]]["_source"] for number in CHANGED]
    assert {source["sentiment_label"] for source in changed} == {"negative"}


def test_an_object_moves_to_its_new_batch_and_the_others_stay_in_the_old_one(story: Story) -> None:
    for key in ("indexing/documents", "opensearch/documents", "clean/documents"):
        found = story.second[key].select("batch", "path").unique().rows()
        assert {path for batch, path in found if batch == 2} == {"box/comments.jsonl.gz"}
        assert {path for batch, path in found if batch == 1} == {
            "box/reviews.csv", "box/notes/a.txt", "box/notes/b c.txt", "box/page.html", "box/more.jsonl.zst",
        }  # fmt: skip
    raw = story.second["raw/records"].group_by("batch").len().sort("batch").rows()
    assert raw == [(1, COUNT), (2, 295)]  # the backup keeps every version


def test_any_batch_run_again_in_any_order_leaves_the_same_state(story: Story) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        for batch in (1, 2, 2, 1):
            assert run_assets(instance, story.settings, batch).success
            assert_same(read_state(story.settings), story.second)


def test_pool_slots_that_killed_processes_left_do_not_hold_up_the_next_run(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("Two were killed in the load before this one.")
    with fresh_settings(request, "file", tmp_path) as settings:
        with dagster_instance(settings) as instance:
            storage = instance.event_log_storage
            storage.initialize_concurrency_limit_to_default("opensearch")
            for run in ("killed-1", "killed-2"):
                assert storage.claim_concurrency_slot("opensearch", run, "opensearch__documents").is_claimed
            assert not storage.claim_concurrency_slot("opensearch", "a third", "opensearch__documents").is_claimed
        assert ingest(settings, [file]).failures == []
        with dagster_instance(settings) as instance:
            assert instance.event_log_storage.get_concurrency_run_ids() == set()
