"""A lake and an index that an earlier version has written are taken over: the columns and fields they lack come by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deltalake import write_deltalake
from opensearchpy import OpenSearch

from lake_assets.index.client import connect
from lake_assets.index.mapping import index_body
from lake_assets.index.repair import compare_with_baseline, declared_fields, repair
from lake_assets.index.whole import STATE_FIELDS
from lake_assets.quarantine import Wanted, list_refused
from lake_assets_tests.road import Road, assert_index_is_clean, fresh_settings, sentence

LATER = {
    "opensearch/documents": ["whole_hash", "seq_no"],
    "opensearch/metrics": ["seq_no", "index"],
    "quarantine/records": ["owner", "refused_at"],
}
"""The columns that a table has gained since it was first written by anybody."""

OBJECTS = {
    "a.jsonl": b'{"id": 1, "text": "the first"}\n{"id": 2, "text": "the second"}\n{broken\n',
    "b.jsonl": b'{"id": 1, "text": "of another object"}\n',
}
NEWER = {"a.jsonl": b'{"id": 2, "text": "the second"}\n{"id": 3, "text": "the third"}\n{broken\n'}


@pytest.fixture
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """A lake whose tables, and an index whose documents and mapping, lack what came later."""
    with fresh_settings(request, "file", tmp_path) as settings:
        road = Road(settings)
        road.take(OBJECTS)
        for key, later in LATER.items():
            table = road.lake.table(key)
            older = table.snapshot().frame().drop(later)
            write_deltalake(table.url, older.to_arrow(), mode="overwrite", schema_mode="overwrite")
        make_index_older(road, connect(settings, settings.opensearch_url))
        yield road


def make_index_older(road: Road, client: OpenSearch) -> None:
    """Writes the same documents with the same versions into an index of the same name."""
    held, alias = road.state().index, road.settings.opensearch_alias
    fields = {name: field for name, field in declared_fields(road.lake).items() if name not in STATE_FIELDS}
    client.indices.delete(index=f"{alias}-000001")
    client.indices.create(index=f"{alias}-000001", body={**index_body(fields), "aliases": {alias: {}}})
    lines: list[dict[str, Any]] = []
    for id, hit in held.items():
        lines.append({"index": {"_id": id, "version": hit["_version"], "version_type": "external_gte"}})
        lines.append({name: value for name, value in hit["_source"].items() if name not in STATE_FIELDS})
    assert not client.bulk(index=alias, body=lines)["errors"]


def texts(road: Road) -> set[str]:
    """Gives the texts of the index, when index and clean agree and every document has its metrics."""
    state = road.state()
    assert_index_is_clean(state)
    assert all("size_words" in hit["_source"] for hit in state.index.values())
    return {hit["_source"]["text"] for hit in state.index.values()}


def test_a_newer_version_of_an_object_takes_over_what_the_older_batch_held(road: Road) -> None:
    assert road.take(NEWER) == [2]
    assert texts(road) == {"the second", "the third", "of another object"}
    [row] = list_refused(road.settings, Wanted())["newest"]
    assert (row["batch"], row["owner"]) == (2, "team:engineering")


def test_a_batch_is_run_again_and_a_repair_makes_the_index_comparable_without_a_rebuild(road: Road) -> None:
    client = connect(road.settings, road.settings.opensearch_url)
    result = road.run(1)
    assert result.success, sentence(result)
    assert repair(client, road.settings.opensearch_alias, road.lake).left.is_equal
    assert compare_with_baseline(client, road.settings.opensearch_alias, road.lake).read == 0
    assert texts(road) == {"the first", "the second", "of another object"}
    assert list_refused(road.settings, Wanted())["refused"] == 1
