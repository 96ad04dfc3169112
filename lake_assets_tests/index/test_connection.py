"""Answers on the real connection: whole, empty, compressed, cut, and dripping."""

from __future__ import annotations

import time

import pytest
import urllib3
from opensearchpy import ConnectionTimeout, NotFoundError, OpenSearch, exceptions

from lake_assets.index.connection import TimelyConnection
from lake_assets_tests.index.fault_proxy import fault_proxy

BULK = b'{"index":{"_id":"1"}}\n{"text":"some words"}\n'


def timely(url: str, read_seconds: float = 10.0, compressed: bool = False) -> OpenSearch:
    timeout = urllib3.Timeout(connect=5.0, read=read_seconds)
    return OpenSearch(
        [url], connection_class=TimelyConnection, timeout=timeout, max_retries=0, http_compress=compressed
    )


def test_answers_of_every_kind_are_read(opensearch_url: str, fresh_alias: str) -> None:
    client = timely(opensearch_url)
    assert client.info()["version"]["distribution"] == "opensearch"
    assert not client.indices.exists(index=fresh_alias)
    client.indices.create(index=f"{fresh_alias}-1")
    assert not client.bulk(body=BULK, index=f"{fresh_alias}-1")["errors"]
    assert client.indices.exists(index=f"{fresh_alias}-1")
    with pytest.raises(NotFoundError) as told:
        client.indices.get(index=fresh_alias)
    assert told.value.error == "index_not_found_exception"


def test_a_compressed_answer_is_read(opensearch_url: str) -> None:
    client = timely(opensearch_url, compressed=True)
    assert "nodes" in client.nodes.info()


def test_one_connection_serves_many_requests(opensearch_url: str) -> None:
    client = timely(opensearch_url)
    for _ in range(10):
        client.info()
    pool = next(iter(client.transport.connection_pool.connections)).pool._pool
    assert (pool.num_requests, pool.num_connections) == (10, 1)


def test_an_answer_that_is_cut_is_a_failure(opensearch_url: str, fresh_alias: str) -> None:
    with fault_proxy(opensearch_url, "answer cut short", every=1) as proxy, pytest.raises(exceptions.ConnectionError):
        timely(proxy.url).bulk(body=BULK, index=f"{fresh_alias}-1")


@pytest.mark.parametrize("fault", ["slow drip", "an answer without end", "no answer"])
def test_an_answer_has_to_end_in_time(opensearch_url: str, fresh_alias: str, fault: str) -> None:
    timely(opensearch_url).indices.create(index=f"{fresh_alias}-1")
    begun = time.monotonic()
    with fault_proxy(opensearch_url, fault, every=1) as proxy:
        with pytest.raises(ConnectionTimeout):
            timely(proxy.url, read_seconds=0.5).bulk(body=BULK, index=f"{fresh_alias}-1")
        assert time.monotonic() - begun < 3


def test_the_time_of_one_request_may_be_another(opensearch_url: str, fresh_alias: str) -> None:
    timely(opensearch_url).indices.create(index=f"{fresh_alias}-1")
    begun = time.monotonic()
    with fault_proxy(opensearch_url, "slow drip", every=1) as proxy:
        with pytest.raises(ConnectionTimeout):
            timely(proxy.url).bulk(body=BULK, index=f"{fresh_alias}-1", params={"request_timeout": 0.5})
        assert time.monotonic() - begun < 3
