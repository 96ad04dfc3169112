"""Two runs at the same moment: of one batch, or of two that hold the same objects or keys; they end as in a row.

A run is held in the middle of a table, with rows in hand and what it sends sent, while the other works.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lake_assets.index.client import connect
from lake_assets.index.compare import compare
from lake_assets_tests.road import Road, environment, fresh_settings
from lake_assets_tests.runner import Runner
from lake_assets_tests.test_replacing import FIRST, OTHER, SECOND, lines, texts

SENDING = ["opensearch/documents", "opensearch/metrics"]
TABLES = ["raw/records", "indexing/documents", "clean/documents", "metrics/size", "enrich/documents", *SENDING]
CASES = [("source", key) for key in TABLES] + [(ids, "opensearch/documents") for ids in ("counter", "opensearch")]
INCREMENTS = '[[source]]\nname = "crm"\nprefix = "crm/"\nunique_keys = true\n'
AFTER = {"one is good", "three is bad", "four is new", "other is here"}


@pytest.fixture
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """An empty lake in a folder."""
    more = {"lake_ids": request.param} if hasattr(request, "param") else {}
    with fresh_settings(request, "file", tmp_path, **more) as settings:
        settings.lake_sources.write_text(INCREMENTS)
        yield Road(settings)


@pytest.fixture(scope="module")
def runners() -> Iterator[tuple[Runner, Runner]]:
    """Two processes that run batches, as each run of Dagster is a process."""
    pair = Runner(), Runner()
    yield pair
    for runner in pair:
        runner.kill()


def assert_equal_to_the_lake(road: Road) -> None:
    """Compares the index with the lake, document by document."""
    alias = road.settings.opensearch_alias
    compared = compare(connect(road.settings, road.settings.opensearch_url), alias, road.lake)
    assert compared.differences.is_empty(), compared.differences


def claim(road: Road, batch: int, **objects: bytes) -> None:
    """Lands objects, a name with `_` for each `/`, and claims them."""
    road.land({f"{name.replace('_', '/')}.jsonl": content for name, content in objects.items()})
    assert road.claim() == [batch]


@pytest.mark.parametrize(("road", "key"), CASES, indirect=["road"])
def test_a_newer_batch_that_runs_while_an_older_one_is_held_has_the_last_word(
    road: Road, runners: tuple[Runner, Runner], key: str
) -> None:
    older, newer = runners
    told = environment(road.settings)
    claim(road, 1, a=FIRST, b=OTHER)
    older.begin(told, 1, hold=key)
    claim(road, 2, a=SECOND)
    newer.begin(told, 2)
    newer.end()
    older.go()
    older.end()
    assert texts(road) == AFTER
    assert_equal_to_the_lake(road)


@pytest.mark.parametrize("key", ["indexing/documents", "clean/documents", "opensearch/documents"])
def test_a_newer_batch_that_is_held_sees_what_an_older_one_has_written_meanwhile(
    road: Road, runners: tuple[Runner, Runner], key: str
) -> None:
    older, newer = runners
    told = environment(road.settings)
    claim(road, 1, a=FIRST, b=OTHER)
    older.begin(told, 1, hold=key)
    claim(road, 2, a=SECOND)
    newer.begin(told, 2, hold=key)
    older.go()
    older.end()
    newer.go()
    newer.end()
    assert texts(road) == AFTER
    assert_equal_to_the_lake(road)


@pytest.mark.parametrize(
    ("road", "key"), [(ids, key) for ids in ("source", "opensearch") for key in SENDING], indirect=["road"]
)
def test_two_runs_of_one_batch_end_as_one(road: Road, runners: tuple[Runner, Runner], key: str) -> None:
    claim(road, 1, a=FIRST, b=OTHER)
    for runner in runners:
        runner.begin(environment(road.settings), 1, hold=key)
    for runner in runners:
        runner.go()
        runner.end()
    assert texts(road) == {"one is good", "two is good", "three is good", "other is here"}
    assert_equal_to_the_lake(road)


@pytest.mark.parametrize("key", ["indexing/documents", "opensearch/documents", "clean/documents"])
@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_of_two_increments_side_by_side_the_newer_record_stays(
    road: Road, runners: tuple[Runner, Runner], key: str, order: tuple[int, int]
) -> None:
    claim(road, 1, crm_1=FIRST)
    claim(road, 2, crm_2=lines("two is bad", "four is new"))
    for runner, batch in zip(runners, order, strict=True):
        runner.begin(environment(road.settings), batch, hold=key)
    for runner in runners:
        runner.go()
        runner.end()
    assert texts(road) == {"one is good", "two is bad", "three is good", "four is new"}
    assert_equal_to_the_lake(road)
