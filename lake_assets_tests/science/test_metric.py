"""A metric is one file: what it declares, what follows from it, and what its failure does not touch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor

from lake_assets.contracts import TABLES
from lake_assets.definitions import defs
from lake_assets.errors import ContractBroken
from lake_assets.index.client import connect
from lake_assets.index.compare import compare
from lake_assets.index.mapping import read_mapping
from lake_assets.ingest import dagster_instance, ingest
from lake_assets.science import metrics
from lake_assets.science.metric import Column, enrich_contract, find_metrics, metric
from lake_assets_tests.road import (
    METRICS,
    Road,
    State,
    assert_index_is_clean,
    forget_metrics,
    fresh_settings,
    metadata,
    read_state,
    run_assets,
    sentence,
    write_metric,
)

REST = ["enrich/documents", "opensearch/metrics"]
TEXTS = {"a.jsonl": b'{"id": 1, "text": "FINE day"}\n{"id": 2, "text": "nothing to SHOUT about"}\n'}
OTHERS = {"b.jsonl": b'{"id": 1, "text": "another FINE day"}\n'}

SHOUTING = '''
import polars as pl

from lake_assets.science.metric import Column, metric


@metric(version="{version}", shouting_words=Column("integer", "Words in capitals.", "count"){more})
def shouting(texts: pl.Series) -> pl.DataFrame:
    """Counts words in capitals. One row per document."""
    {body}
'''
COUNTS = 'return pl.DataFrame({"shouting_words": texts.str.count_matches(r"\\b[A-Z]{2,}\\b").cast(pl.Int64)})'
FAILS = 'raise ValueError("no model here")'


def shouting(body: str = COUNTS, version: str = "1", more: str = "") -> str:
    return SHOUTING.replace("{version}", version).replace("{more}", more).replace("{body}", body)


@pytest.fixture
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """An empty lake in a folder."""
    with fresh_settings(request, "file", tmp_path) as settings:
        yield Road(settings)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A second folder of the package `metrics`; what is written there is a metric like any other."""
    more = tmp_path / "more_metrics"
    metrics.__path__.append(str(more))
    yield more
    metrics.__path__.remove(str(more))
    for path in more.glob("*.py"):
        sys.modules.pop(f"{metrics.__name__}.{path.stem}", None)
    forget_metrics()


def words(road: Road) -> dict[str, int | None]:
    """Gives text → shouting_words of every document in the index."""
    return {hit["_source"]["text"]: hit["_source"].get("shouting_words") for hit in road.state().index.values()}


def unhashed(state: State) -> dict[str, dict[str, Any]]:
    """Gives id → fields of the index, without the hash of them all, which changes with a new metric."""
    hashes = {"hash_high", "hash_low"}
    return {
        id: {name: value for name, value in hit["_source"].items() if name not in hashes}
        for id, hit in state.index.items()
    }


def test_a_new_metric_brings_its_table_its_enrich_column_and_its_field_and_changes_nothing_else(
    road: Road, folder: Path
) -> None:
    client = connect(road.settings, road.settings.opensearch_url)
    road.take(TEXTS)
    before = road.state()
    write_metric(folder, "shouting", shouting())
    for _ in range(2):
        assert road.run(1, "metrics/shouting", *REST).success
        after = read_state(road.settings, ("metrics/shouting",))
        assert after["metrics/shouting"]["shouting_words"].sort().to_list() == [1, 1]
        assert after["enrich/documents"].drop("shouting_words").equals(before["enrich/documents"])
        assert words(road) == {"FINE day": 1, "nothing to SHOUT about": 1}
        fields = read_mapping(client, road.settings.opensearch_alias)
        assert fields["shouting_words"] == {"type": "long"}
        for key in (*METRICS, "clean/documents", "opensearch/documents", "indexing/documents", "raw/records"):
            assert after[key].equals(before[key]), key
            assert after.versions[key] == before.versions[key], key
        assert {id: {**fields, "shouting_words": 1} for id, fields in unhashed(before).items()} == unhashed(after)
        assert compare(client, road.settings.opensearch_alias, road.lake).is_equal
    assert metadata(road.run(1, *REST), "opensearch/metrics")["sent"] == 0


def test_old_batches_are_back_filled_in_the_index_also_after_a_newer_one_has_taken_an_object_over(
    road: Road, folder: Path
) -> None:
    road.take(TEXTS | OTHERS)
    write_metric(folder, "shouting", shouting())
    road.take({"a.jsonl": TEXTS["a.jsonl"] + b'{"id": 3, "text": "NEW WORDS"}\n'})
    assert words(road)["NEW WORDS"] == 2
    assert road.run(1, "metrics/shouting", *REST).success
    assert words(road) == {"FINE day": 1, "nothing to SHOUT about": 1, "NEW WORDS": 2, "another FINE day": 1}
    assert_index_is_clean(road.state())


def test_a_new_metric_is_asked_for_by_itself_in_every_batch_that_is_there_and_nothing_else_is(
    road: Road, folder: Path
) -> None:
    def evaluate(cursor: AssetDaemonCursor | None = None) -> dg.EvaluateAutomationConditionsResult:
        return dg.evaluate_automation_conditions(defs=defs(), instance=road.instance, cursor=cursor)

    road.take(TEXTS)
    road.take(OTHERS)
    cursor = evaluate().cursor
    settled = evaluate(cursor)
    assert settled.total_requested == 0
    write_metric(folder, "shouting", shouting())
    asked = evaluate(settled.cursor)
    assert asked.get_requested_partitions(dg.AssetKey(["metrics", "shouting"])) == {"1", "2"}
    assert asked.total_requested == 2
    assert evaluate(asked.cursor).total_requested == 0
    for batch in (1, 2):
        assert road.run(batch, "metrics/shouting").success
    then = evaluate(asked.cursor)
    assert then.get_requested_partitions(dg.AssetKey(["enrich", "documents"])) == {"1", "2"}


def test_a_metric_that_is_taken_away_leaves_the_lake_writable_and_one_that_comes_back_fills_its_column(
    road: Road, folder: Path
) -> None:
    write_metric(folder, "shouting", shouting())
    road.take(TEXTS)
    (folder / "shouting.py").unlink()
    forget_metrics()
    assert road.take(OTHERS) == [2]
    assert words(road)["another FINE day"] is None
    write_metric(folder, "shouting", shouting())
    assert road.run(2, "metrics/shouting", *REST).success
    assert words(road)["another FINE day"] == 1


def test_a_failing_metric_holds_back_nothing_and_its_column_fills_when_it_is_repaired(
    road: Road, folder: Path, tmp_path: Path
) -> None:
    write_metric(folder, "shouting", shouting(FAILS))
    for name, content in TEXTS.items():
        (tmp_path / name).write_bytes(content)
    done = ingest(road.settings, [tmp_path / name for name in TEXTS])
    assert len(done.failures) == 1
    assert done.failures[0].startswith("Batch 1, metrics/shouting: ")
    state = road.state()
    assert_index_is_clean(state)
    assert state["enrich/documents"]["shouting_words"].to_list() == [None, None]
    assert {hit["_source"]["size_words"] for hit in state.index.values()} == {2, 4}
    write_metric(folder, "shouting", shouting())
    with dagster_instance(road.settings) as instance:
        assert run_assets(instance, road.settings, 1, "metrics/shouting", *REST).success
    assert words(road) == {"FINE day": 1, "nothing to SHOUT about": 1}
    assert ingest(road.settings, []).failures == []


def test_a_raised_version_measures_everything_again_and_the_same_one_nothing(road: Road, folder: Path) -> None:
    write_metric(folder, "shouting", shouting())
    road.take(TEXTS)
    shown = metadata(road.run(1, "metrics/shouting"), "metrics/shouting")
    assert (shown["measured"], shown["carried_over"]) == (0, 2)
    write_metric(folder, "shouting", shouting(COUNTS.replace("{2,}", "{5,}"), version="2"))
    result = road.run(1, "metrics/shouting", *REST)
    shown = metadata(result, "metrics/shouting")
    assert (shown["measured"], shown["carried_over"]) == (2, 0)
    assert words(road) == {"FINE day": 0, "nothing to SHOUT about": 1}
    assert metadata(result, "opensearch/metrics")["sent"] == 1


def test_a_metric_that_gains_a_column_does_not_hold_enrich_back_before_it_has_run(road: Road, folder: Path) -> None:
    write_metric(folder, "shouting", shouting())
    road.take(TEXTS)
    more = ', shouting_is_loud=Column("boolean", "Whether there are any.")'
    body = COUNTS + '.with_columns(shouting_is_loud=pl.col("shouting_words") > 0)'
    write_metric(folder, "shouting", shouting(body, "2", more))
    assert road.run(1, *REST).success
    assert words(road)["FINE day"] == 1
    assert road.run(1, "metrics/shouting", *REST).success
    assert {hit["_source"].get("shouting_is_loud") for hit in road.state().index.values()} == {True}


@pytest.mark.parametrize(
    "body",
    [
        'return pl.DataFrame({"shouting_words": [1]})',
        'return pl.DataFrame({"other_words": texts.str.len_chars()})',
        'return pl.DataFrame({"shouting_words": texts.str.len_chars(), "shouting_more": texts})',
    ],
)
def test_a_metric_that_breaks_its_declaration_fails_with_a_sentence_and_writes_nothing(
    road: Road, folder: Path, body: str
) -> None:
    write_metric(folder, "shouting", shouting(body))
    road.land(TEXTS)
    road.claim()
    result = road.run(
        1, "raw/records", "indexing/documents", "opensearch/documents", "clean/documents", "metrics/shouting"
    )
    assert not result.success
    assert sentence(result).startswith("Metric shouting gave ")
    assert "FINE" not in sentence(result)
    assert read_state(road.settings, ("metrics/shouting",))["metrics/shouting"].is_empty()


def test_a_column_must_bear_its_metrics_name_and_be_none_of_the_documents() -> None:
    for name in ("words", "shouting", "Shouting_words", "text"):
        with pytest.raises(ContractBroken, match=name):
            metric("1", **{name: Column("integer", "Words.")})(_named("shouting"))
    with pytest.raises(ContractBroken, match="text_hash"):
        metric("1", text_hash=Column("integer", "Words."))(_named("text"))


def _named(name: str):
    def compute(texts: pl.Series) -> pl.DataFrame:
        return texts.to_frame()

    compute.__name__ = name
    return compute


def test_every_metric_of_the_package_is_found_and_its_columns_are_those_of_enrich() -> None:
    found = find_metrics()
    assert [item.key for item in found.values()] == METRICS
    columns = [name for item in found.values() for name in item.columns]
    fixed = TABLES["enrich/documents"].columns()
    assert list(enrich_contract(found).columns()) == [*fixed, *columns]
    for item in found.values():
        assert item.description.strip()
        for column in item.columns.values():
            assert column.meaning.endswith(".")


def test_every_metric_gives_a_row_a_text_whatever_the_text() -> None:
    texts = pl.Series(
        [
            "",
            " ",
            "word",
            "\x00\ud7ff\U0010ffff",
            "🙂" * 50,
            "a" * 20_000,
            "один два",
            "漢字かな交じり文。",
            "ok. " * 3000,
        ]
    )
    for item in find_metrics().values():
        frame = item.measure(texts)
        assert frame.height == len(texts)
        assert frame.columns == list(item.columns)
        assert item.measure(texts.clear()).height == 0
        assert importlib.import_module(item.module) is not None
