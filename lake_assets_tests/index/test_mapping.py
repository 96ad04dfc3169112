"""The index and its alias on a real node."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opensearchpy import OpenSearch

from lake_assets.contracts import CleanDocuments
from lake_assets.errors import ContractBroken, IndexUnavailable
from lake_assets.index.client import connect
from lake_assets.index.mapping import (
    KEYWORD_CHARS,
    contract_fields,
    ensure_index,
    extend_mapping,
    field_mapping,
    find_index,
    index_body,
    index_state,
    mapping_version,
    read_mapping,
)
from lake_assets.settings import Settings

METRICS = {"sentiment_score": {"type": "float"}, "language_code": {"type": "keyword"}}


@pytest.fixture
def client(opensearch_url: str) -> OpenSearch:
    return connect(Settings(), opensearch_url)


def test_the_mapping_follows_from_the_contract() -> None:
    fields = contract_fields()
    metadata = {name: column.metadata or {} for name, column in CleanDocuments.columns().items()}
    declared = {name: told["index"] for name, told in metadata.items() if told["index"]}
    assert fields.keys() == declared.keys() >= {"title", "text", "attributes", "path"}
    assert all(fields[name].items() >= declared[name].items() for name in declared)
    assert fields["path"]["ignore_above"] == KEYWORD_CHARS


def test_an_index_is_made_once_with_its_alias(client: OpenSearch, fresh_alias: str) -> None:
    assert find_index(client, fresh_alias) is None
    assert ensure_index(client, fresh_alias, METRICS) == f"{fresh_alias}-000001"
    assert ensure_index(client, fresh_alias, {}) == f"{fresh_alias}-000001"
    held = read_mapping(client, fresh_alias)
    assert held.keys() == contract_fields().keys() | METRICS.keys()
    told = client.indices.get(index=fresh_alias)[f"{fresh_alias}-000001"]
    assert told["mappings"]["dynamic"] == "strict"
    assert told["settings"]["index"]["gc_deletes"] == "1h"
    assert told["settings"]["index"]["number_of_replicas"] == "0"


def test_two_who_create_at_once_get_the_same_index(client: OpenSearch, fresh_alias: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: ensure_index(client, fresh_alias, METRICS), range(4)))
    assert set(made) == {f"{fresh_alias}-000001"}


def test_a_name_that_is_an_index_is_no_alias(client: OpenSearch, fresh_alias: str) -> None:
    client.indices.create(index=fresh_alias)
    with pytest.raises(IndexUnavailable, match=f"`{fresh_alias}` at http.* is an index, where an alias is needed"):
        ensure_index(client, fresh_alias, METRICS)


def test_an_index_left_without_its_alias_is_told(
    client: OpenSearch, fresh_alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lake_assets.index.mapping._RACE_SECONDS", 0.2)
    client.indices.create(index=f"{fresh_alias}-000001")
    with pytest.raises(
        IndexUnavailable, match=f"{fresh_alias}-000001 exists .* and the alias `{fresh_alias}` does not"
    ):
        ensure_index(client, fresh_alias, METRICS)


def test_an_alias_of_several_indexes_needs_one_to_write_to(client: OpenSearch, fresh_alias: str) -> None:
    for number in (1, 2):
        client.indices.create(index=f"{fresh_alias}-{number}", body={"aliases": {fresh_alias: {}}})
    with pytest.raises(IndexUnavailable, match="stands for 2 indexes"):
        find_index(client, fresh_alias)
    client.indices.put_alias(index=f"{fresh_alias}-2", name=fresh_alias, body={"is_write_index": True})
    assert find_index(client, fresh_alias) == f"{fresh_alias}-2"


def test_metric_fields_join_later(client: OpenSearch, fresh_alias: str) -> None:
    ensure_index(client, fresh_alias, {})
    assert extend_mapping(client, fresh_alias, METRICS) == ["language_code", "sentiment_score"]
    assert extend_mapping(client, fresh_alias, METRICS) == []
    assert read_mapping(client, fresh_alias)["sentiment_score"] == {"type": "float"}


def test_the_mapping_says_which_version_it_is_and_which_contracts_made_it(client: OpenSearch, fresh_alias: str) -> None:
    def told() -> dict[str, Any]:
        return next(iter(client.indices.get_mapping(index=fresh_alias).values()))["mappings"]["_meta"]

    ensure_index(client, fresh_alias, {})
    first = index_state(client, fresh_alias)["mapping_version"]
    assert told() == {"mapping_version": first, "contracts": ["clean/documents", "enrich/documents"]}
    extend_mapping(client, fresh_alias, METRICS)
    later = index_state(client, fresh_alias)["mapping_version"]
    assert later not in ("", first)
    declared = {name: field_mapping(field) for name, field in {**METRICS, **contract_fields()}.items()}
    assert told()["mapping_version"] == later == mapping_version(declared)


def test_a_field_that_joined_the_contract_joins_an_older_index(client: OpenSearch, fresh_alias: str) -> None:
    older = {name: field for name, field in contract_fields().items() if name != "author"}
    client.indices.create(index=f"{fresh_alias}-1", body={**index_body(older), "aliases": {fresh_alias: {}}})
    assert extend_mapping(client, fresh_alias, {}) == ["author"]


def test_a_changed_type_asks_for_a_rebuild(client: OpenSearch, fresh_alias: str) -> None:
    ensure_index(client, fresh_alias, METRICS)
    with pytest.raises(
        ContractBroken, match=r"`sentiment_score` of .* has type float, and keyword .* rebuild the index"
    ):
        extend_mapping(client, fresh_alias, {"sentiment_score": {"type": "keyword"}, "size_words": {"type": "integer"}})
    assert "size_words" not in read_mapping(client, fresh_alias)


def test_a_type_that_opensearch_does_not_know_is_told(client: OpenSearch, fresh_alias: str) -> None:
    ensure_index(client, fresh_alias, {})
    with pytest.raises(ContractBroken, match="does not take the new fields `size_words`"):
        extend_mapping(client, fresh_alias, {"size_words": {"type": "wordcount"}})
    with pytest.raises(IndexUnavailable, match="It was to create"):
        ensure_index(client, f"{fresh_alias}-other", {"size_words": {"type": "wordcount"}})


def test_an_alias_that_is_missing_cannot_be_extended(client: OpenSearch, fresh_alias: str) -> None:
    with pytest.raises(IndexUnavailable, match=f"has no alias `{fresh_alias}`"):
        extend_mapping(client, fresh_alias, METRICS)


def test_the_state_counts_what_was_just_written(client: OpenSearch, fresh_alias: str) -> None:
    assert index_state(client, fresh_alias)["documents"] == 0
    ensure_index(client, fresh_alias, METRICS)
    client.index(index=fresh_alias, id="1", body={"text": "x"})
    state = index_state(client, fresh_alias)
    assert state.pop("size_bytes") > 0
    assert state.pop("mapping_version") == mapping_version(read_mapping(client, fresh_alias))
    fields = len(contract_fields()) + 2
    assert state == {"alias": fresh_alias, "index": f"{fresh_alias}-000001", "documents": 1, "fields": fields}
