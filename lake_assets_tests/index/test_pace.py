"""How many requests at once: fewer when answers come slowly, as many as before when they come quickly again."""

from __future__ import annotations

import threading

import polars as pl
import pytest
from opensearchpy import OpenSearch

from lake_assets.index import pace
from lake_assets.index.client import connect
from lake_assets.index.delivery import deliver
from lake_assets.index.mapping import ensure_index
from lake_assets.index.pace import LEAST_BYTES, SLOW_SECONDS, SLOW_TIMES, USUAL_ANSWERS, Pace
from lake_assets.settings import Settings
from lake_assets_tests.index.fault_proxy import Proxy, fault_proxy

THREADS = 4
MIB = 1 << 20
BODY_BYTES = 4_000


def learned(seconds: float, size_bytes: int = MIB, threads: int = THREADS) -> Pace:
    """Gives a pace that has seen answers of this length, and no other."""
    turns = Pace(threads, deadline_seconds=1)
    for _ in range(USUAL_ANSWERS):
        turns.leave(pushed_back=False, seconds=seconds, size_bytes=size_bytes)
    return turns


def test_an_answer_several_times_slower_than_usual_halves_the_requests_at_once() -> None:
    turns = learned(seconds=0.5)
    turns.leave(pushed_back=False, seconds=0.5 * SLOW_TIMES + 0.1, size_bytes=MIB)
    assert turns.limit == THREADS // 2


def test_variations_of_a_healthy_node_do_not_count() -> None:
    turns = learned(seconds=0.5)
    for seconds in (0.05, 0.5 * SLOW_TIMES - 0.1, 1.2, 0.9):
        turns.leave(pushed_back=False, seconds=seconds, size_bytes=MIB)
        assert turns.limit == THREADS


def test_what_comes_within_a_second_is_never_slow() -> None:
    turns = learned(seconds=0.001)
    turns.leave(pushed_back=False, seconds=SLOW_SECONDS - 0.01, size_bytes=MIB)
    assert turns.limit == THREADS


def test_a_large_request_may_take_longer_than_small_ones() -> None:
    turns = learned(seconds=0.3, size_bytes=LEAST_BYTES)
    turns.leave(pushed_back=False, seconds=0.3 * 16, size_bytes=LEAST_BYTES * 16)
    assert turns.limit == THREADS
    turns.leave(pushed_back=False, seconds=0.3 * 16, size_bytes=LEAST_BYTES)
    assert turns.limit == THREADS // 2


def test_the_first_answers_are_not_judged_as_nothing_is_usual_yet() -> None:
    turns = Pace(THREADS, deadline_seconds=1)
    for _ in range(USUAL_ANSWERS // 4):
        turns.leave(pushed_back=False, seconds=30.0, size_bytes=1_000)
    assert turns.limit == THREADS


def test_a_request_lost_after_a_long_wait_counts_as_slow_and_one_lost_at_once_does_not() -> None:
    turns = Pace(THREADS, deadline_seconds=1)
    turns.leave(pushed_back=False, seconds=0.01, size_bytes=MIB, answered=False)
    assert turns.limit == THREADS
    turns.leave(pushed_back=False, seconds=SLOW_SECONDS + 0.1, size_bytes=MIB, answered=False)
    assert turns.limit == THREADS // 2


def test_lost_requests_are_not_what_is_usual() -> None:
    turns = learned(seconds=0.5)
    for _ in range(USUAL_ANSWERS):
        turns.leave(pushed_back=False, seconds=0.001, size_bytes=MIB, answered=False)
    turns.leave(pushed_back=False, seconds=1.5, size_bytes=MIB)
    assert turns.limit == THREADS


def test_slowness_for_good_becomes_usual_with_one_request_at_once_and_not_before() -> None:
    turns = learned(seconds=0.5)
    seen = []
    for _ in range(2 * USUAL_ANSWERS):
        turns.leave(pushed_back=False, seconds=10.0, size_bytes=MIB)
        seen.append(turns.limit)
    assert seen[:2] == [2, 1]
    assert seen[2 : USUAL_ANSWERS // 2] == [1] * (USUAL_ANSWERS // 2 - 2)
    assert seen[-1] == THREADS


def documents(count: int) -> pl.DataFrame:
    """Makes documents of about 100 bytes each, of which a request takes about forty."""
    number = pl.int_range(count)
    return pl.select(
        id=number.cast(pl.String), version=pl.lit(1, pl.Int64), operation=pl.lit("index"), text=pl.lit("some words")
    )


@pytest.fixture
def alias(opensearch_url: str, fresh_alias: str) -> str:
    ensure_index(connect(Settings(), opensearch_url), fresh_alias, replicas="false")
    return fresh_alias


def change_at(proxy: Proxy, delays: dict[int, float]) -> None:
    """Changes the proxy's delay when it gets the requests of these numbers."""

    def change(number: int) -> None:
        proxy.delay_seconds = delays.get(number, proxy.delay_seconds)

    proxy.on_bulk = change


def stored(client: OpenSearch, alias: str) -> int:
    client.indices.refresh(index=alias)
    return client.count(index=alias)["count"]


def test_fewer_are_sent_at_once_while_a_node_answers_slowly_and_all_again_afterwards(
    opensearch_url: str, alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "SLOW_SECONDS", 0.2)
    slow, quick = 30, 40
    with fault_proxy(opensearch_url) as proxy:
        proxy.delay_seconds = 0.02
        change_at(proxy, {slow: 0.8, quick: 0.02})
        frame = documents(4_400)
        receipts = pl.concat(
            deliver(connect(Settings(), proxy.url), alias, [frame], threads=THREADS, body_bytes=BODY_BYTES)
        )
    before, during, after = proxy.at_once[:slow], proxy.at_once[slow + THREADS : quick], proxy.at_once[quick:]
    assert max(before) == THREADS
    assert sorted(during)[len(during) // 2] == 1
    assert max(during) <= 2
    assert max(after[:10]) <= 2
    assert max(after) == THREADS
    assert set(receipts["result"]) == {"created"}
    assert stored(connect(Settings(), opensearch_url), alias) == frame.height


def test_answers_of_uneven_length_do_not_slow_a_delivery(opensearch_url: str, alias: str) -> None:
    """Every eighth takes 20 times as long as the others, and still less than a second."""
    with fault_proxy(opensearch_url) as proxy:
        change_at(proxy, {number: 0.2 if number % 8 == 0 else 0.01 for number in range(100)})
        frame = documents(2_400)
        list(deliver(connect(Settings(), proxy.url), alias, [frame], threads=THREADS, body_bytes=BODY_BYTES))
    assert len(proxy.at_once) > 40
    assert max(proxy.at_once[-15:]) == THREADS


def test_fewer_are_sent_at_once_after_a_gateway_that_waited_too_long(
    opensearch_url: str, alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "SLOW_SECONDS", 0.2)
    first = 2 * THREADS
    with fault_proxy(opensearch_url, "accepted, then 504", every=1) as proxy:
        proxy.delay_seconds = 0.3

        def end_faults(number: int) -> None:
            if number == first:
                proxy.fault = "none"

        proxy.on_bulk = end_faults
        frame = documents(1_200)
        receipts = pl.concat(
            deliver(connect(Settings(), proxy.url), alias, [frame], threads=THREADS, body_bytes=BODY_BYTES)
        )
    assert max(proxy.at_once[:first]) == THREADS
    assert max(proxy.at_once[first : first + THREADS]) <= 2
    assert set(receipts["result"]) <= {"created", "updated"}
    assert stored(connect(Settings(), opensearch_url), alias) == frame.height


def test_a_thread_that_waits_for_its_turn_gets_it_when_the_limit_grows_again() -> None:
    turns = Pace(2, deadline_seconds=1)
    turns.enter()
    turns.enter()
    turns.leave(pushed_back=True)
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (turns.enter(), entered.set()))
    thread.start()
    assert not entered.wait(0.3)
    turns.leave(pushed_back=False)
    assert entered.wait(5)
    thread.join()
