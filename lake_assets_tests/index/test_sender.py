"""A small document is not too large because a request with it was refused once."""

from __future__ import annotations

import polars as pl
import pytest

from lake_assets.index import pace
from lake_assets.index.client import connect
from lake_assets.index.delivery import deliver
from lake_assets.index.mapping import ensure_index
from lake_assets.settings import Settings
from lake_assets_tests.index.fault_proxy import Proxy, fault_proxy

COUNT = 100
BODY_BYTES = 4_000


@pytest.fixture
def alias(opensearch_url: str, fresh_alias: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(pace, "LONGEST_WAIT_SECONDS", 0.1)
    ensure_index(connect(Settings(), opensearch_url), fresh_alias, replicas="false")
    return fresh_alias


def receipts(proxy: Proxy, alias: str) -> pl.DataFrame:
    frame = pl.select(
        id=pl.int_range(COUNT).cast(pl.String),
        version=pl.lit(1, pl.Int64),
        operation=pl.lit("index"),
        text=pl.lit("some words"),
    )
    sent = deliver(connect(Settings(), proxy.url), alias, [frame], threads=1, body_bytes=BODY_BYTES)
    return pl.concat(sent)


def test_it_is_sent_again_when_a_larger_request_was_taken_before(opensearch_url: str, alias: str) -> None:
    with fault_proxy(opensearch_url) as proxy:

        def refuse_for_a_while(number: int) -> None:
            proxy.limit_bytes = 10 if 2 <= number <= 10 else 1 << 40

        proxy.on_bulk = refuse_for_a_while
        got = receipts(proxy, alias)
    assert got["result"].to_list() == ["created"] * COUNT


def test_it_is_refused_in_the_end(opensearch_url: str, alias: str) -> None:
    with fault_proxy(opensearch_url, "one document 413", every=1) as proxy:
        got = receipts(proxy, alias)
    refused = got.filter(pl.col("result") == "refused")
    assert refused["id"].to_list() == ["7"]
    assert refused["reason"].to_list() == ["document_too_large"]
    assert got.filter(pl.col("result") == "created").height == COUNT - 1


def test_it_is_refused_at_once_when_nothing_larger_was_taken(opensearch_url: str, alias: str) -> None:
    with fault_proxy(opensearch_url, limit_bytes=10) as proxy:
        got = receipts(proxy, alias)
    assert got["reason"].to_list() == ["document_too_large"] * COUNT
    assert proxy.bulks < 3 * COUNT
