"""Claims: what is new becomes batches, each object once, and the newest batch owns a path."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Sequence

import polars as pl
import pytest

from lake_assets.lake.batches import Claim, Ledger, claim
from lake_assets.lake.raw_zone import LISTING, Listing
from lake_assets.lake.tables import Lake
from lake_assets.settings import Settings
from lake_assets.text.sources import Source, Sources

ALL = Sources()
COUNTED = Sources((Source(name="n", prefix="n/", deletes=True),))


def listing(*objects: tuple[str, str], after: str = "", until: str | None = None, age_seconds: float = 3600) -> Listing:
    landed = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=age_seconds)
    rows = [(path, etag, 10, landed) for path, etag in objects]
    return Listing(pl.DataFrame(rows, schema=LISTING, orient="row"), after, until)


def take(settings: Settings, seen: Listing, sources: Sources = ALL, rest: bool = True) -> Claim:
    lake = Lake(settings)
    return claim(lake, Ledger(lake), seen, settings, sources, rest)


def ledger(settings: Settings) -> Ledger:
    return Ledger(Lake(settings)).refresh()


def rows(found: pl.DataFrame, columns: Sequence[str] = ("batch", "path", "etag", "state")) -> list[tuple]:
    return found.select(columns).sort(columns).rows()


def test_what_is_new_or_changed_is_claimed_once_and_the_newest_batch_owns_it(lake_settings: Settings) -> None:
    assert take(lake_settings, listing(("a", "1"), ("b", "1"))).batches == [1]
    assert take(lake_settings, listing(("a", "1"), ("b", "1"))).batches == []
    assert take(lake_settings, listing(("a", "2"), ("b", "1"), ("c", "1"))).batches == [2]
    assert take(lake_settings, listing(("a", "1"), ("b", "1"), ("c", "1"))).batches == [3]  # an old version is back
    found = ledger(lake_settings)
    assert rows(found.owners()) == [(1, "b", "1", "landed"), (2, "c", "1", "landed"), (3, "a", "1", "landed")]
    assert found.owned(1)["path"].to_list() == ["b"]
    assert rows(found.claimed(1), ["path"]) == [("a",), ("b",)]
    assert [found.earlier(batch) for batch in (1, 2, 3)] == [[], [], [1, 2]]
    assert found.last_batch == 3


def test_an_absent_object_is_gone_only_within_the_listing_and_where_its_source_says_so(settings: Settings) -> None:
    take(settings, listing(("m/a", "1"), ("n/a", "1"), ("n/b", "1"), ("n/c", "1")))
    assert take(settings, listing(), ALL).batches == []
    # A deletion needs no rest: this listing is taken as the sensor takes it.
    assert take(settings, listing(after="n/a", until="n/b"), COUNTED).batches == [2]
    assert rows(ledger(settings).claimed(2)) == [(2, "n/b", "1", "gone")]
    assert take(settings, listing(("n/c", "1")), COUNTED).batches == [3]
    assert rows(ledger(settings).claimed(3)) == [(3, "n/a", "1", "gone")]
    assert take(settings, listing(("n/b", "1"), ("n/c", "1")), COUNTED).batches == [4]  # it is back
    assert rows(ledger(settings).claimed(4)) == [(4, "n/b", "1", "landed")]


@pytest.mark.parametrize(("count", "cut"), [(2, [2, 2, 1]), (4, [4, 1]), (5, [5]), (6, [5])])
def test_batches_are_cut_by_count(settings: Settings, count: int, cut: list[int]) -> None:
    cutting = settings.model_copy(update={"lake_batch_objects": count})
    done = take(cutting, listing(*((name, "1") for name in "abcde")))
    assert done.batches == list(range(1, len(cut) + 1))
    assert [ledger(settings).claimed(batch).height for batch in done.batches] == cut


@pytest.mark.parametrize(("size_bytes", "cut"), [(10, [1] * 5), (20, [2, 2, 1]), (25, [3, 2]), (1000, [5])])
def test_batches_are_cut_by_bytes(settings: Settings, size_bytes: int, cut: list[int]) -> None:
    cutting = settings.model_copy(update={"lake_batch_bytes": size_bytes})
    done = take(cutting, listing(*((name, "1") for name in "abcde")))
    assert [ledger(settings).claimed(batch).height for batch in done.batches] == cut


def test_what_has_changed_a_moment_ago_rests_unless_its_batch_is_full(settings: Settings) -> None:
    resting = settings.model_copy(update={"lake_batch_wait_seconds": 60, "lake_batch_objects": 2})
    fresh = listing(("a", "1"), ("b", "1"), ("c", "1"), age_seconds=1)
    assert take(resting, fresh) == Claim([1], 1)
    assert take(resting, fresh) == Claim([], 1)
    assert take(resting, fresh, rest=False) == Claim([2], 0)
    assert ledger(settings).claimed(2)["path"].to_list() == ["c"]
    ahead = listing(("d", "1"), age_seconds=-600)  # the store's clock is ahead of ours
    assert take(resting, ahead) == Claim([3], 0)


def test_claims_that_race_claim_each_object_once(lake_settings: Settings) -> None:
    found: list[Claim] = []
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def race(number: int) -> None:
        try:
            start.wait()
            shared = [(f"shared/{item}", "1") for item in range(20)]
            found.append(take(lake_settings, listing(*shared, (f"own/{number}", "1"), until="~")))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    claimed = ledger(lake_settings).rows
    assert claimed.height == claimed["path"].n_unique() == 24
    assert sorted(batch for done in found for batch in done.batches) == [1, 2, 3, 4]


def test_a_ledger_that_is_kept_reads_only_what_is_newer_and_starts_anew_with_a_new_table(settings: Settings) -> None:
    lake = Lake(settings)
    kept = Ledger(lake)
    assert (kept.refresh().last_batch, kept.owners().height) == (0, 0)
    take(settings, listing(("a", "1")))
    take(settings, listing(("a", "2")))
    assert rows(kept.refresh().owners()) == [(2, "a", "2", "landed")]
    take(settings, listing(("a", "3")))
    assert rows(kept.refresh().owners()) == [(3, "a", "3", "landed")]
    assert kept.rows.sort("batch").equals(ledger(settings).rows.sort("batch"))
