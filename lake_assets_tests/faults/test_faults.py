"""A sample of the fault table: ours, with fewer documents. The whole is `make faults`."""

from __future__ import annotations

import dataclasses

import pytest

from lake_assets_tests.faults.cases import CASES, STRATEGIES, case_named, documents
from lake_assets_tests.faults.table import page, row_of
from lake_assets_tests.faults.trial import Trial, try_client
from lake_assets_tests.index.fault_proxy import FAULTS

COUNT = 1_000
SAMPLE = [
    ("request 429", "source"), ("wrong item count", "source"),
    ("accepted, then cut", "counter"),
    ("accepted, then cut", "opensearch"), ("wrong item count", "opensearch"),
    ("a quarter lost, then cut", "opensearch"),
]  # fmt: skip
by_source = pytest.mark.parametrize("poisoned", ["source"], indirect=True)


@pytest.fixture(scope="module", params=list(STRATEGIES))
def poisoned(request: pytest.FixtureRequest, opensearch_url: str) -> Trial:
    return try_client("ours", case_named("2 % poison"), STRATEGIES[request.param], opensearch_url, count=COUNT)


@pytest.mark.parametrize(("name", "strategy"), SAMPLE)
def test_every_document_is_stored_once_and_counted_truly(opensearch_url: str, name: str, strategy: str) -> None:
    trial = try_client("ours", case_named(name), STRATEGIES[strategy], opensearch_url, count=COUNT)
    assert trial.complaints() == []
    assert trial.faults >= 2


def test_poison_is_refused_and_nothing_else(poisoned: Trial) -> None:
    assert poisoned.complaints() == []
    assert len(poisoned.told.refused) == COUNT // 50


@by_source
def test_a_trial_that_is_not_as_promised_is_told(poisoned: Trial) -> None:
    told = dataclasses.replace(poisoned.told, reported=3, refused=[], seconds=99.0)
    worse = dataclasses.replace(poisoned, stored=5, duplicates=2, held=7, told=told)
    assert worse.complaints() == [
        f"5 of {COUNT} stored", "2 duplicates", f"0 refused where {COUNT // 50} had to be",
        "3 reported where the node holds 7", "not ended within 20 s",
    ]  # fmt: skip
    failed = dataclasses.replace(poisoned, told=dataclasses.replace(poisoned.told, ended="IndexUnavailable: why"))
    assert failed.complaints() == ["IndexUnavailable: why"]


@by_source
def test_helpers_bulk_is_told_as_it_is(opensearch_url: str, poisoned: Trial) -> None:
    case = case_named("request 429")
    theirs = try_client("helpers.bulk", case, STRATEGIES[poisoned.strategy], opensearch_url, count=COUNT)
    assert (theirs.told.reported, theirs.told.ended) == (None, "TransportError")
    assert 0 < theirs.stored < COUNT
    cells = row_of({"ours": poisoned, "helpers.bulk": theirs})
    assert cells[6:9] == [str(theirs.stored), "–", "TransportError"]
    table = page({"source": [{"ours": poisoned, "helpers.bulk": theirs}], "counter": [{"ours": poisoned}]}, COUNT)
    assert f"| {' | '.join(cells)} |" in table
    assert f"| {' | '.join(row_of({'ours': poisoned}))} |\n" in table


def test_helpers_bulk_makes_copies_where_the_server_makes_ids(opensearch_url: str) -> None:
    case = case_named("accepted, then cut")
    theirs = try_client("helpers.bulk", case, STRATEGIES["opensearch"], opensearch_url, count=COUNT)
    assert (theirs.stored, theirs.told.reported, theirs.told.ended) == (COUNT, COUNT, "normally")
    assert theirs.duplicates >= 3 * 100
    assert row_of({"ours": theirs, "helpers.bulk": theirs})[6] == f"{COUNT} + {theirs.duplicates} copies"


def test_every_case_can_be_made() -> None:
    assert {case.fault for case in CASES} - set(FAULTS) == {"none"}
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        keys = documents(case, 50 if case.oversized else 200)["key"]
        assert keys.n_unique() == keys.len() >= 50
