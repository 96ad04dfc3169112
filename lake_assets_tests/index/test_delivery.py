"""Delivery to a real node, through a proxy that spoils requests."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import pytest
from opensearchpy import OpenSearch

from lake_assets.errors import ContractBroken, IndexUnavailable
from lake_assets.index import pace
from lake_assets.index.client import connect
from lake_assets.index.delivery import deliver
from lake_assets.index.mapping import ensure_index, find_index
from lake_assets.settings import Settings
from lake_assets_tests.index.fault_proxy import fault_proxy

COUNT = 600
BODY_BYTES = 6_000
SECRET = "nobody may read this in an error"


@pytest.fixture
def client(opensearch_url: str) -> OpenSearch:
    return connect(Settings(), opensearch_url)


@pytest.fixture
def alias(client: OpenSearch, fresh_alias: str) -> str:
    ensure_index(client, fresh_alias, {"size_words": {"type": "integer"}}, replicas="false")
    return fresh_alias


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("deliver-")] == []


def documents(count: int = COUNT, version: int = 1, operation: str = "index") -> pl.DataFrame:
    """Makes documents of about 200 bytes each, with the ids 0, 1, 2…"""
    number = pl.int_range(count)
    return pl.select(
        id=number.cast(pl.String),
        version=pl.lit(version, pl.Int64),
        operation=pl.lit(operation),
        path=pl.lit("comments/part-1.jsonl"),
        text=pl.format("text number {}, in version {}", number, pl.lit(version)),
        attributes=pl.concat_str(pl.lit('{"likes": '), number.cast(pl.String), pl.lit(', "a.b": {"": "x"}}')),
        size_words=number % 7,
        _carried=number,
    )


def stored(client: OpenSearch, alias: str) -> dict[str, dict[str, Any]]:
    client.indices.refresh(index=alias)
    answer = client.search(index=alias, body={"size": 10_000, "version": True})
    assert answer["hits"]["total"]["value"] == len(answer["hits"]["hits"])
    return {hit["_id"]: hit for hit in answer["hits"]["hits"]}


def results(receipts: pl.DataFrame) -> dict[str, int]:
    return dict(receipts.group_by("result").len().rows())


def test_receipts_come_in_the_order_of_the_rows(client: OpenSearch, alias: str) -> None:
    frames = [documents().slice(0, 250), documents().slice(250, 0), documents().slice(250)]
    receipts = list(deliver(client, alias, frames, body_bytes=BODY_BYTES, threads=4))
    assert [frame["id"].to_list() for frame in receipts] == [frame["id"].to_list() for frame in frames]
    assert results(pl.concat(receipts)) == {"created": COUNT}
    assert pl.concat(receipts)["reason"].null_count() == COUNT
    found = stored(client, alias)
    assert len(found) == COUNT
    assert found["17"]["_version"] == 1
    assert found["17"]["_source"] == {
        "path": "comments/part-1.jsonl", "text": "text number 17, in version 1", "size_words": 3,
        "attributes": {"likes": 17, "a.b": {"": "x"}},
    }  # fmt: skip


FAULTS = [
    "request 429", "request 503", "request 413", "a quarter of the items 429", "a quarter of the items 503",
    "accepted, then cut", "accepted, then 504", "answer cut short", "half the JSON", "HTML", "one item short",
    "nothing",
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_document_is_stored_once_and_counted_truly(
    client: OpenSearch, alias: str, opensearch_url: str, fault: str
) -> None:
    with fault_proxy(opensearch_url, fault) as proxy:
        frames = documents().iter_slices(200)
        receipts = pl.concat(deliver(connect(Settings(), proxy.url), alias, frames, body_bytes=BODY_BYTES))
    assert proxy.faults >= 3
    assert receipts["id"].to_list() == documents()["id"].to_list()
    assert set(results(receipts)) <= {"created", "updated"}
    assert set(stored(client, alias)) == set(documents()["id"])


@pytest.mark.parametrize("fault", ["none", "accepted, then cut", "a quarter of the items 429"])
def test_poison_is_refused_and_the_others_are_stored(
    client: OpenSearch, alias: str, opensearch_url: str, fault: str
) -> None:
    poisoned = pl.int_range(pl.len()) % 50 == 7
    frame = documents().with_columns(created_at=pl.when(poisoned).then(pl.lit(SECRET)).otherwise(pl.lit("2026-01-31")))
    with fault_proxy(opensearch_url, fault) as proxy:
        receipts = pl.concat(deliver(connect(Settings(), proxy.url), alias, [frame], body_bytes=BODY_BYTES))
    refused = receipts.filter(pl.col("result") == "refused")
    assert refused["id"].to_list() == [str(number) for number in range(7, COUNT, 50)]
    assert refused["reason"].unique().to_list() == ["mapping_refused"]
    assert refused["detail"].unique().to_list() == [
        "Field created_at of type date: mapper_parsing_exception, caused by illegal_argument_exception, "
        "caused by date_time_parse_exception."
    ]
    assert set(stored(client, alias)) == set(receipts.filter(pl.col("result") != "refused")["id"])


def test_what_is_older_than_the_index_holds_is_answered_newer(client: OpenSearch, alias: str) -> None:
    assert results(pl.concat(deliver(client, alias, [documents(version=5)]))) == {"created": COUNT}
    assert results(pl.concat(deliver(client, alias, [documents(version=4)]))) == {"newer": COUNT}
    assert results(pl.concat(deliver(client, alias, [documents(version=4, operation="delete")]))) == {"newer": COUNT}
    assert results(pl.concat(deliver(client, alias, [documents(version=5)]))) == {"updated": COUNT}
    assert {hit["_version"] for hit in stored(client, alias).values()} == {5}


def test_deletes_and_documents_travel_together(client: OpenSearch, alias: str) -> None:
    list(deliver(client, alias, [documents(300)]))
    is_gone = pl.int_range(pl.len()) % 2 == 0
    mixed = documents(400, version=2).with_columns(
        operation=pl.when(is_gone).then(pl.lit("delete")).otherwise(pl.lit("index"))
    )
    receipts = pl.concat(deliver(client, alias, [mixed], body_bytes=BODY_BYTES))
    assert results(receipts) == {"deleted": 150, "missing": 50, "updated": 150, "created": 50}
    assert set(stored(client, alias)) == {str(number) for number in range(1, 400, 2)}
    stale = documents(300, version=1)
    assert results(pl.concat(deliver(client, alias, [stale]))) == {"newer": 300}


def test_a_frame_of_deletes_needs_no_fields(client: OpenSearch, alias: str) -> None:
    list(deliver(client, alias, [documents(10)]))
    deletes = documents(10, version=2, operation="delete").select("id", "version", "operation")
    assert results(pl.concat(deliver(client, alias, [deletes]))) == {"deleted": 10}


def test_a_request_too_large_is_halved_until_one_document_is_left(
    client: OpenSearch, alias: str, opensearch_url: str
) -> None:
    large = pl.int_range(pl.len()) == 30
    frame = documents(100).with_columns(text=pl.when(large).then(pl.lit("word " * 1000)).otherwise(pl.lit("word")))
    with fault_proxy(opensearch_url, limit_bytes=2_000) as proxy:
        receipts = pl.concat(deliver(connect(Settings(), proxy.url), alias, [frame]))
    assert results(receipts) == {"created": 99, "refused": 1}
    refused = receipts.row(30, named=True)
    assert (refused["result"], refused["reason"]) == ("refused", "document_too_large")
    assert len(stored(client, alias)) == 99


def test_a_document_larger_than_a_body_goes_alone_and_one_over_the_limit_is_not_sent(
    client: OpenSearch, alias: str, opensearch_url: str
) -> None:
    words = pl.when(pl.col("id") == "3").then(pl.lit("word " * 4_000)).otherwise(pl.lit("word"))
    words = pl.when(pl.col("id") == "5").then(pl.lit("word " * 40_000)).otherwise(words)
    with fault_proxy(opensearch_url) as proxy:
        sent = deliver(
            connect(Settings(), proxy.url), alias, [documents(10).with_columns(text=words)],
            body_bytes=BODY_BYTES, largest_bytes=100_000,
        )  # fmt: skip
        receipts = pl.concat(sent)
    assert results(receipts) == {"created": 9, "refused": 1}
    assert receipts["reason"][5] == "document_too_large"
    assert 20_000 < proxy.largest_bytes < 21_000


def test_ids_and_versions_that_spoil_a_whole_request_are_refused_before(client: OpenSearch, alias: str) -> None:
    ids = ["good", "", None, "x" * 513, "é" * 256, "negative", "none"]
    frame = documents(7).with_columns(
        pl.Series("id", ids), pl.Series("version", [1, 1, 1, 1, 1, -1, None], dtype=pl.Int64)
    )
    receipts = pl.concat(deliver(client, alias, [frame]))
    assert receipts["result"].to_list() == ["created", "refused", "refused", "refused", "created", "refused", "refused"]
    assert receipts["reason"].to_list() == [
        None, "id_refused", "id_refused", "id_refused", None, "version_refused", "version_refused",
    ]  # fmt: skip
    assert set(stored(client, alias)) == {"good", "é" * 256}


def test_attributes_that_the_index_cannot_take_are_cut_and_counted(client: OpenSearch, alias: str) -> None:
    odd = [
        '{"": 1, "a.b": 2, "a": {"b": 3}, ".": 4, " ": 5, "_id": 6, "a..b": 7}',
        json.dumps({"a": "x" * 40_000, "b": ["é" * 20_000, "short"], "c": 1}),
        '{"a":' * 1_000 + "1" + "}" * 1_000,
        '{"a":' + "[" * 900 + "]" * 900 + "}",
        json.dumps({"k" * 60_000: 1, "l": 2}),
        '{"a": 1, "a": {"b": 2}}',
        '{"a": "\\ud800", "\\udfff": 1, "n": NaN, "i": ' + "1" * 1_500 + "}",
        '{"line":\n "break"}',
        "[1, 2]",
        "not JSON",
        None,
        json.dumps({"k" * 12_000: {"l" * 12_000: {"m" * 12_000: "deep path"}}}),
    ]
    frame = documents(len(odd)).with_columns(pl.Series("attributes", odd))
    receipts = pl.concat(deliver(client, alias, [frame]))
    assert results(receipts) == {"created": len(odd)}
    assert receipts["cut"].to_list() == [0, 2, 1, 1, 1, 0, 0, 0, 1, 1, 0, 1]
    found = stored(client, alias)
    assert found["1"]["_source"]["attributes"]["c"] == 1
    assert found["7"]["_source"]["attributes"] == {"line": "break"}
    hits = client.search(index=alias, body={"query": {"term": {"attributes.line": "break"}}})["hits"]["hits"]
    assert [hit["_id"] for hit in hits] == ["7"]


def test_a_missing_alias_stops_at_once_and_creates_nothing(client: OpenSearch, fresh_alias: str) -> None:
    for operation in ("index", "delete"):
        with pytest.raises(IndexUnavailable, match=rf"has no alias `{fresh_alias}`; create its index first"):
            list(deliver(client, fresh_alias, [documents(10, operation=operation)]))
    assert find_index(client, fresh_alias) is None


def test_an_index_in_place_of_an_alias_is_refused(client: OpenSearch, fresh_alias: str) -> None:
    client.indices.create(index=fresh_alias)
    with pytest.raises(IndexUnavailable, match="has no alias"):
        list(deliver(client, fresh_alias, [documents(10)]))


def test_a_field_that_the_mapping_lacks_stops_at_once(client: OpenSearch, alias: str) -> None:
    with pytest.raises(IndexUnavailable, match="has no field `new_metric`; extend its mapping"):
        list(deliver(client, alias, [documents().with_columns(new_metric=1)]))


def test_a_read_only_index_stops_at_once(client: OpenSearch, alias: str) -> None:
    client.indices.put_settings(index=alias, body={"index.blocks.write": True})
    begun = time.monotonic()
    with pytest.raises(IndexUnavailable, match="read-only; lift the block"):
        list(deliver(client, alias, [documents()]))
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("request 401", "does not accept the credentials"),
        ("request 403", "forbids the request"),
        ("flood stage", "its disk is nearly full"),
    ],
)
def test_what_cannot_get_better_stops_at_once(alias: str, opensearch_url: str, fault: str, sentence: str) -> None:
    begun = time.monotonic()
    with fault_proxy(opensearch_url, fault) as proxy, pytest.raises(IndexUnavailable, match=sentence):
        list(deliver(connect(Settings(), proxy.url), alias, [documents()], body_bytes=BODY_BYTES))
    assert time.monotonic() - begun < 5


def test_a_mapping_that_refuses_everything_stops_with_the_field(client: OpenSearch, alias: str) -> None:
    with pytest.raises(
        IndexUnavailable, match=r"refused all of the first \d+ documents alike: Field size_words"
    ) as told:
        list(deliver(client, alias, [documents(3_000).with_columns(size_words=pl.lit(SECRET))], body_bytes=50_000))
    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    "fault", ["request 503", "accepted, then cut", "HTML", "one item short", "a quarter of the items 429"]
)
def test_without_progress_it_gives_up_at_the_deadline(alias: str, opensearch_url: str, fault: str) -> None:
    begun = time.monotonic()
    frame = documents(1) if fault.startswith("a quarter") else documents()
    with (
        fault_proxy(opensearch_url, fault, every=1) as proxy,
        pytest.raises(IndexUnavailable, match="Nothing was settled for"),
    ):
        list(deliver(connect(Settings(), proxy.url), alias, [frame], deadline_seconds=0.5))
    assert time.monotonic() - begun < 8


@pytest.mark.parametrize("fault", ["no answer", "an answer without end"])
def test_a_server_that_never_ends_its_answer_does_not_hang_the_delivery(
    alias: str, opensearch_url: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lake_assets.index.delivery._GRACE_SECONDS", 0.5)
    monkeypatch.setattr("lake_assets.index.delivery._JOIN_SECONDS", 0.5)
    settings = Settings(opensearch_timeout_seconds=0.3 if fault == "no answer" else 60)
    with fault_proxy(opensearch_url, fault, every=1) as proxy:
        begun = time.monotonic()
        with pytest.raises(IndexUnavailable):
            list(deliver(connect(settings, proxy.url), alias, [documents(10)], deadline_seconds=0.5))
        assert time.monotonic() - begun < 8
    wait_until(lambda: not any(thread.name.startswith("deliver-") for thread in threading.enumerate()))


def test_an_answer_that_comes_too_late_is_asked_for_again(client: OpenSearch, alias: str, opensearch_url: str) -> None:
    settings = Settings(opensearch_timeout_seconds=0.5)
    with fault_proxy(opensearch_url, "no answer", every=4) as proxy:
        receipts = pl.concat(deliver(connect(settings, proxy.url), alias, [documents()], body_bytes=20_000))
    assert proxy.faults >= 1
    assert sum(results(receipts).values()) == COUNT == len(stored(client, alias))


def test_a_node_that_is_down_is_told_within_seconds(opensearch_url: str) -> None:
    with fault_proxy(opensearch_url) as proxy:
        url = proxy.url
    begun = time.monotonic()
    with pytest.raises(
        IndexUnavailable, match=f"OpenSearch at {url} does not answer; start it with `lake opensearch start`"
    ):
        list(deliver(connect(Settings(), url), "documents", [documents()]))
    assert time.monotonic() - begun < 10


def test_a_document_on_which_the_server_fails_is_refused_in_the_end(
    client: OpenSearch, alias: str, opensearch_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "LONGEST_WAIT_SECONDS", 0.05)
    with fault_proxy(opensearch_url, "one document 500", every=1) as proxy:
        receipts = pl.concat(deliver(connect(Settings(), proxy.url), alias, [documents()], body_bytes=BODY_BYTES))
    assert results(receipts) == {"created": COUNT - 1, "refused": 1}
    assert receipts.row(7, named=True)["reason"] == "server_error"
    assert len(stored(client, alias)) == COUNT - 1


def test_fewer_requests_are_under_way_after_a_429() -> None:
    turns = pace.Pace(threads=4, deadline_seconds=1)
    for _ in range(3):
        turns.enter()
    turns.leave(pushed_back=True)
    turns.leave(pushed_back=True)
    assert turns.limit == 1
    for _ in range(40):
        turns.leave(pushed_back=False)
    assert turns.limit == 4


def test_the_next_frame_is_made_while_one_is_sent_and_no_more(client: OpenSearch, alias: str) -> None:
    made: list[int] = []

    def frames() -> Iterator[pl.DataFrame]:
        for number in range(6):
            made.append(number)
            yield documents(50, version=number)

    receipts = deliver(client, alias, frames())
    assert made == []
    for number in range(6):
        assert next(receipts)["version"][0] == number
        assert len(made) == min(6, number + 2)
    assert list(receipts) == []


def test_a_delivery_can_be_left_in_the_middle(client: OpenSearch, alias: str) -> None:
    receipts = deliver(client, alias, (documents(200, version=number) for number in itertools.count()), threads=3)
    next(receipts)
    receipts.close()


def test_a_failure_in_making_the_frames_comes_out_as_it_is(client: OpenSearch, alias: str) -> None:
    def frames() -> Iterator[pl.DataFrame]:
        yield documents(50)
        raise ZeroDivisionError("made by the test")

    with pytest.raises(ZeroDivisionError, match="made by the test"):
        list(deliver(client, alias, frames()))


def test_progress_is_told_up_to_the_last_row(client: OpenSearch, alias: str) -> None:
    told: list[int] = []
    list(deliver(client, alias, documents().iter_slices(100), on_progress=told.append))
    assert told == sorted(told)
    assert told[-1] == COUNT


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda frame: frame.drop("version"), "needs a column `version`"),
        (lambda frame: frame.with_columns(pl.col("id").cast(pl.Int64)), "needs a column `id`"),
        (lambda frame: frame.with_columns(operation=pl.lit("update")), "must be `index`, `delete` or `create`"),
        (lambda frame: frame.with_columns(raw=pl.lit(b"x")), "Column `raw` of type Binary cannot be delivered"),
        (lambda frame: frame.with_columns(attributes=pl.lit(1)), "must hold a JSON object"),
    ],
)
def test_a_frame_of_the_wrong_shape_is_refused(
    client: OpenSearch, alias: str, change: Callable[[pl.DataFrame], pl.DataFrame], sentence: str
) -> None:
    with pytest.raises(ContractBroken, match=sentence):
        list(deliver(client, alias, [change(documents(5))]))


def wait_until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)
