"""Documents whose ids the server makes, sent to a real node through a proxy that spoils requests."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator

import polars as pl
import pytest
from opensearchpy import OpenSearch

from lake_assets.errors import ContractBroken, IndexUnavailable
from lake_assets.index.client import connect
from lake_assets.index.created import create_documents
from lake_assets.index.delivery import deliver
from lake_assets.index.mapping import ensure_index
from lake_assets.settings import Settings
from lake_assets_tests.index.fault_proxy import Proxy, fault_proxy

COUNT = 600
BODY_BYTES = 6_000
FAULTS = [
    "request 429", "request 503", "request 413", "a quarter of the items 429", "a quarter of the items 503",
    "accepted, then cut", "accepted, then 504", "answer cut short", "half the JSON", "HTML", "one item short",
    "nothing",
]  # fmt: skip


@pytest.fixture
def client(opensearch_url: str) -> OpenSearch:
    return connect(Settings(), opensearch_url)


@pytest.fixture
def alias(client: OpenSearch, fresh_alias: str) -> str:
    ensure_index(client, fresh_alias, replicas="false")
    return fresh_alias


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("deliver-")] == []


def documents(count: int = COUNT) -> pl.DataFrame:
    """Makes documents of about 100 bytes each, with the keys 0, 1, 2…"""
    number = pl.int_range(count)
    return pl.select(
        key=number.cast(pl.String), path=pl.lit("comments/part-1.jsonl"), text=pl.format("text number {}", number)
    )


def created(proxy: Proxy, alias: str, frame: pl.DataFrame, timeout_seconds: float = 10.0) -> pl.DataFrame:
    """Gives the receipts beside the documents."""
    client = connect(Settings(opensearch_timeout_seconds=timeout_seconds), proxy.url)
    frames = frame.iter_slices(200)
    receipts = pl.concat(create_documents(client, alias, frames, body_bytes=BODY_BYTES, deadline_seconds=20))
    return frame.hstack(receipts)


def held(client: OpenSearch, alias: str) -> dict[str, str]:
    """Gives id → key of all documents that the index holds."""
    client.indices.refresh(index=alias)
    answer = client.search(index=alias, body={"size": 10_000, "_source": ["key"]})
    return {hit["_id"]: hit["_source"]["key"] for hit in answer["hits"]["hits"]}


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_every_document_is_stored_once_and_has_the_id_of_its_receipt(
    client: OpenSearch, alias: str, opensearch_url: str, fault: str
) -> None:
    with fault_proxy(opensearch_url, fault) as proxy:
        receipts = created(proxy, alias, documents())
    assert fault == "none" or proxy.faults >= 3
    assert receipts["result"].unique().to_list() == ["created"]
    assert held(client, alias) == dict(receipts.select("id", "key").rows())
    numbers = {hit["_id"]: hit["_seq_no"] for hit in client.search(
        index=alias, body={"size": 10_000, "_source": False, "seq_no_primary_term": True})["hits"]["hits"]}  # fmt: skip
    assert numbers == dict(receipts.select("id", "seq_no").rows())


def test_poison_is_refused_and_the_others_are_created(client: OpenSearch, alias: str, opensearch_url: str) -> None:
    poisoned = pl.int_range(pl.len()) % 50 == 7
    frame = documents().with_columns(created_at=pl.when(poisoned).then(pl.lit("no date")).otherwise(pl.lit("2026")))
    with fault_proxy(opensearch_url, "accepted, then cut") as proxy:
        receipts = created(proxy, alias, frame)
    refused = receipts.filter(pl.col("result") == "refused")
    assert refused["key"].to_list() == [str(number) for number in range(7, COUNT, 50)]
    assert refused["id"].null_count() == refused.height
    others = receipts.filter(pl.col("result") == "created")
    assert held(client, alias) == dict(others.select("id", "key").rows())


def test_a_request_that_is_carried_out_after_it_was_sent_again_leaves_no_copy(
    client: OpenSearch, alias: str, opensearch_url: str
) -> None:
    is_sent_again = threading.Event()
    carried_out: list[int] = []

    def wait() -> None:
        is_sent_again.wait(10)
        time.sleep(0.3)

    with fault_proxy(opensearch_url, "carried out late", every=1) as proxy:

        def let_pass(number: int) -> None:
            proxy.every = COUNT
            if number == 2:
                is_sent_again.set()

        proxy.wait_late, proxy.on_late, proxy.on_bulk = wait, carried_out.append, let_pass
        receipts = created(proxy, alias, documents(20), timeout_seconds=1.5)
    assert carried_out == [200]
    assert proxy.bulks == 3, "one is late, one is sent again, one deletes"
    assert held(client, alias) == dict(receipts.select("id", "key").rows())


def test_copies_that_were_there_before_are_left_alone_unless_their_answer_was_in_doubt(
    client: OpenSearch, alias: str, opensearch_url: str
) -> None:
    with fault_proxy(opensearch_url) as proxy:
        first = created(proxy, alias, documents(10))
        second = created(proxy, alias, documents(10))
    assert Counter(held(client, alias).values()) == dict.fromkeys(documents(10)["key"], 2)
    assert not set(first["id"]) & set(second["id"])


def test_what_was_certainly_not_taken_is_not_asked_for(alias: str, opensearch_url: str) -> None:
    asked: list[str] = []
    for fault in ("request 429", "request 413", "a quarter of the items 429", "accepted, then cut"):
        with fault_proxy(opensearch_url, fault) as proxy:
            proxy.on_other = lambda path, fault=fault: asked.append(fault) if "_search" in path else None
            created(proxy, alias, documents(200))
    assert set(asked) == {"accepted, then cut"}


def test_documents_to_index_to_delete_and_to_create_travel_together(
    client: OpenSearch, alias: str, opensearch_url: str
) -> None:
    known = documents(300).with_columns(id=pl.col("key"), version=pl.lit(1, pl.Int64), operation=pl.lit("index"))
    list(deliver(client, alias, [known]))
    mixed = documents(500).with_columns(number=pl.col("key").cast(pl.Int64)).sort(pl.col("number") % 7)
    is_new, is_even = pl.col("number") >= 300, pl.col("number") % 2 == 0
    operation = pl.when(is_new).then(pl.lit("create")).when(is_even).then(pl.lit("delete")).otherwise(pl.lit("index"))
    mixed = mixed.select(
        "key", "path", "text",
        id=pl.when(~is_new).then(pl.col("key")),
        version=pl.when(is_new).then(1).otherwise(2).cast(pl.Int64),
        operation=operation,
    )  # fmt: skip
    with fault_proxy(opensearch_url, "accepted, then cut") as proxy:
        sent = deliver(connect(Settings(), proxy.url), alias, [mixed], body_bytes=BODY_BYTES)
        receipts = mixed.select("key").hstack(pl.concat(sent))
    assert proxy.faults >= 2
    left = receipts.filter(pl.col("operation") != "delete")
    assert held(client, alias) == dict(left.select("id", "key").rows())
    assert left.height == 350
    assert receipts.filter(pl.col("operation") != "create").select(pl.col("id") == pl.col("key"))["id"].all()


def test_an_index_that_has_gone_ends_the_delivery_at_once(client: OpenSearch, alias: str, opensearch_url: str) -> None:
    begun = time.monotonic()
    with fault_proxy(opensearch_url, "accepted, then cut", every=1) as proxy:
        proxy.on_other = lambda path: "_refresh" in path and client.indices.delete(index=f"{alias}-000001", ignore=404)
        with pytest.raises(IndexUnavailable, match="has no alias"):
            created(proxy, alias, documents(10))
    assert time.monotonic() - begun < 5


def test_an_index_that_may_not_be_asked_ends_the_delivery_at_once(alias: str, opensearch_url: str) -> None:
    begun = time.monotonic()
    with fault_proxy(opensearch_url, "accepted, then cut", every=1) as proxy:
        proxy.forbidden = "_refresh"
        with pytest.raises(IndexUnavailable, match="forbids the request"):
            created(proxy, alias, documents(10))
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (documents(5).drop("path"), "needs the columns `path` and `key`"),
        (documents(5).with_columns(key=pl.lit("1")), "a path and a key that no other of its frame has"),
        (documents(5).with_columns(key=pl.lit(None, pl.String)), "a path and a key that no other of its frame has"),
    ],
)
def test_a_document_without_a_name_of_its_own_is_not_created(
    client: OpenSearch, alias: str, frame: pl.DataFrame, sentence: str
) -> None:
    with pytest.raises(ContractBroken, match=sentence):
        list(create_documents(client, alias, [frame]))


def test_a_document_to_create_has_no_id(client: OpenSearch, alias: str) -> None:
    frame = documents(5).with_columns(id=pl.col("key"), version=pl.lit(1, pl.Int64), operation=pl.lit("create"))
    with pytest.raises(ContractBroken, match="A document to create has no id"):
        list(deliver(client, alias, [frame]))
