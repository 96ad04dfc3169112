"""What the index is asked for by name, and what is deleted of what was seen."""

from __future__ import annotations

import polars as pl
import pytest
from opensearchpy import OpenSearch

from lake_assets.errors import IndexUnavailable
from lake_assets.index import present
from lake_assets.index.client import connect
from lake_assets.index.delivery import deliver
from lake_assets.index.mapping import ensure_index
from lake_assets.index.present import copies_in, copies_of, count_in, delete_seen, ids_of_objects
from lake_assets.settings import Settings

LONG = ["x" * 1_024, "x" * 1_025, "x" * 2_000, "é" * 1_024, "é" * 1_025, "\N{CLOUD}" * 1_024, "\U0001f600" * 600]


@pytest.fixture
def client(opensearch_url: str) -> OpenSearch:
    return connect(Settings(), opensearch_url)


@pytest.fixture
def index(client: OpenSearch, fresh_alias: str) -> str:
    return ensure_index(client, fresh_alias, replicas="false")


def names(path: str, keys: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"path": path, "key": keys}, schema={"path": pl.String, "key": pl.String})


def create(client: OpenSearch, alias: str, named: pl.DataFrame) -> list[str]:
    frame = named.with_columns(
        id=pl.lit(None, pl.String), version=pl.lit(1, pl.Int64), operation=pl.lit("create"), text=pl.lit("words")
    )
    return pl.concat(deliver(client, alias, [frame], threads=1))["id"].to_list()


def test_every_copy_of_a_name_is_found_and_the_first_that_was_written_comes_first(
    client: OpenSearch, fresh_alias: str, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(present, "NAMES_A_QUERY", 2)
    monkeypatch.setattr(present, "HITS_A_PAGE", 2)
    asked = pl.concat([names("a", ["1", "2", "3"]), names("b", ["1", "4"])])
    first = create(client, fresh_alias, asked)
    create(client, fresh_alias, pl.concat([names("b", ["2", "3"]), names("c", ["1"])]))
    second = create(client, fresh_alias, names("a", ["2"]))
    found = copies_of(client, fresh_alias, pl.concat([asked, asked, names("d", ["1"])]))
    assert found["id"].to_list() == [first[0], first[1], second[0], *first[2:]]
    assert found["seq_no"].to_list() == [0, 1, 8, 2, 3, 4]
    assert found["primary_term"].unique().to_list() == [1]
    assert copies_of(client, fresh_alias, asked.clear()).is_empty()


def test_a_key_too_long_for_the_index_is_found_in_its_document(
    client: OpenSearch, fresh_alias: str, index: str
) -> None:
    asked = names("a", LONG)
    ids = create(client, fresh_alias, asked)
    create(client, fresh_alias, names("a", ["y" * 1_100]))
    create(client, fresh_alias, names("b", LONG))
    found = copies_of(client, fresh_alias, asked)
    assert asked.join(found, on=["path", "key"], maintain_order="left")["id"].to_list() == ids
    assert found.height == len(LONG)


def test_all_documents_of_some_objects_are_listed_and_counted(
    client: OpenSearch, fresh_alias: str, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(present, "PATHS_A_QUERY", 1)
    held = [*create(client, fresh_alias, names("a", ["1", "2"])), *create(client, fresh_alias, names("b", ["1"]))]
    create(client, fresh_alias, names("c", ["1"]))
    assert count_in(client, fresh_alias, ["a", "b", "d"]) == 3
    assert copies_in(client, fresh_alias, ["b", "a", "d"])["id"].to_list() == held
    assert sorted(ids_of_objects(client, fresh_alias, ["a", "b", "d"])) == sorted(held)
    assert count_in(client, fresh_alias, []) == copies_in(client, fresh_alias, []).height == 0


def test_what_has_changed_since_it_was_seen_is_not_deleted(client: OpenSearch, fresh_alias: str, index: str) -> None:
    ids = create(client, fresh_alias, names("a", ["1", "2", "3"]))
    seen = copies_in(client, fresh_alias, ["a"])
    client.index(index=index, id=ids[1], body={"path": "a", "key": "2", "text": "other words"})
    assert delete_seen(client, index, seen) == 2
    assert copies_in(client, fresh_alias, ["a"])["id"].to_list() == [ids[1]]
    assert delete_seen(client, index, seen) == 0


def test_a_missing_index_is_told(client: OpenSearch, fresh_alias: str) -> None:
    for ask in (copies_in, count_in, ids_of_objects):
        with pytest.raises(IndexUnavailable, match="does not have what was asked for"):
            ask(client, fresh_alias, ["a"])
    with pytest.raises(IndexUnavailable, match="does not have what was asked for"):
        copies_of(client, fresh_alias, names("a", ["1"]))
