"""What the index holds of objects or names, whatever the receipts say: a run may die between sending and noting it.

What belongs here: asking the index, and deleting exactly what was seen. What does not: what should be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from lake_assets.index.bodies import NAME
from lake_assets.index.client import explained

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

PATHS_A_QUERY = 1000
NAMES_A_QUERY = 10_000
HITS_A_PAGE = 10_000
DELETES_A_REQUEST = 1000

UNINDEXED_KEY_BYTES = 1024
"""A key that is longer may not be indexed, because of `ignore_above`: it is compared in the document itself."""

COPIES = {"path": pl.String, "key": pl.String, "id": pl.String, "seq_no": pl.Int64, "primary_term": pl.Int64}
FIRST = ["path", "key", "seq_no", "id"]


def ids_of_objects(client: OpenSearch, alias: str, paths: Sequence[str]) -> pl.Series:
    """Gives the ids of all documents of some objects, after a refresh: what was written counts.

    Args:
        client: of `connect`.
        alias: whose index is asked; it must exist.
        paths: of the objects; without one, nothing is asked.

    Raises:
        IndexUnavailable: no answer.
    """
    with explained(client):
        hits = _hits_under(client, alias, paths, False)
        return pl.Series("id", [hit["_id"] for hit in hits], dtype=pl.String)


def copies_in(client: OpenSearch, alias: str, paths: Sequence[str]) -> pl.DataFrame:
    """Gives every document under some paths, after a refresh; as `copies_of`.

    Raises:
        IndexUnavailable: no answer.
    """
    with explained(client):
        return _copies(_hits_under(client, alias, paths, NAME))


def count_in(client: OpenSearch, alias: str, paths: Sequence[str]) -> int:
    """Counts the documents under some paths, after a refresh.

    Raises:
        IndexUnavailable: no answer.
    """
    with explained(client):
        if paths:
            _refresh(client, alias)
        queries = ({"query": {"terms": {"path": piece}}} for piece in _pieces(paths))
        return sum(client.count(index=alias, body=query)["count"] for query in queries)


def copies_of(client: OpenSearch, alias: str, names: pl.DataFrame) -> pl.DataFrame:
    """Gives every document of some names, after a refresh: what was written counts.

    Args:
        client: of `connect`.
        alias: whose index is asked; it must exist.
        names: `path` and `key`; what else is in it does not matter.

    Returns:
        `path`, `key`, `id`, `seq_no`, `primary_term`; several rows for a name with several documents, the one that was
        written first before the others.

    Raises:
        IndexUnavailable: no answer.
    """
    with explained(client):
        return read_copies(client, alias, names)


def read_copies(client: OpenSearch, alias: str, names: pl.DataFrame) -> pl.DataFrame:
    """Does what `copies_of` does, for callers that judge failures themselves.

    Raises:
        OpenSearchException: no answer.
    """
    wanted = names.select(NAME).unique().sort(NAME)
    if wanted.height:
        _refresh(client, alias)
    found = [_copies([])]
    for piece in wanted.iter_slices(NAMES_A_QUERY):
        found.append(_copies(_hits(client, alias, _query_of(piece), NAME)).join(piece, on=NAME, how="semi"))
    return pl.concat(found).sort(FIRST)


def delete_seen(client: OpenSearch, index: str, copies: pl.DataFrame) -> int:
    """Deletes exactly the documents that were seen: one that has changed since stays.

    Args:
        client: of `connect`.
        index: the physical index in which they were seen.
        copies: `id`, `seq_no`, `primary_term`.

    Returns:
        How many are known to be deleted.

    Raises:
        IndexUnavailable: no answer.
    """
    deleted = 0
    for piece in copies.select("id", "seq_no", "primary_term").iter_slices(DELETES_A_REQUEST):
        body = [
            {"delete": {"_id": id, "if_seq_no": seq_no, "if_primary_term": term}} for id, seq_no, term in piece.rows()
        ]
        with explained(client):
            answer = client.bulk(index=index, body=body, params={"filter_path": "items.*.result"})
        items = answer.get("items", []) if isinstance(answer, dict) else []
        deleted += sum(item["delete"].get("result") == "deleted" for item in items)
    return deleted


def versions_of_ids(client: OpenSearch, alias: str, ids: pl.Series) -> pl.DataFrame:
    """Gives the versions of those documents that the index behind an alias holds: id, held_version.

    Args:
        client: of `connect`.
        alias: whose index is asked; it must exist.
        ids: of the documents.

    Raises:
        IndexUnavailable: no answer.
    """
    found: list[tuple[str, int]] = []
    with explained(client):
        for piece in (ids[first : first + HITS_A_PAGE] for first in range(0, len(ids), HITS_A_PAGE)):
            answer = client.mget(index=alias, body={"ids": piece.to_list()}, params={"_source": "false"})
            found += [(told["_id"], told["_version"]) for told in answer["docs"] if told.get("found")]
    return pl.DataFrame(found, schema={"id": pl.String, "held_version": pl.Int64}, orient="row")


def _refresh(client: OpenSearch, alias: str) -> None:
    """Makes all that was written visible; that a shard could not is a failure too."""
    from opensearchpy import TransportError

    if client.indices.refresh(index=alias)["_shards"]["failed"]:
        raise TransportError(503, "A shard could not be refreshed.", {})


def _query_of(names: pl.DataFrame) -> dict[str, Any]:
    """Asks for documents of these names; others of the same objects may be among the hits."""
    is_key: dict[str, Any] = {"terms": {"key": names["key"].unique().to_list()}}
    if (names["key"].str.len_bytes() > UNINDEXED_KEY_BYTES).any():
        is_key = {"bool": {"should": [is_key, {"bool": {"must_not": {"exists": {"field": "key"}}}}]}}
    return {"bool": {"filter": [{"terms": {"path": names["path"].unique().to_list()}}, is_key]}}


def _hits_under(
    client: OpenSearch, alias: str, paths: Sequence[str], source: list[str] | bool
) -> Iterator[dict[str, Any]]:
    if paths:
        _refresh(client, alias)
    for piece in _pieces(paths):
        yield from _hits(client, alias, {"terms": {"path": piece}}, source)


def _hits(client: OpenSearch, alias: str, query: dict[str, Any], source: list[str] | bool) -> Iterator[dict[str, Any]]:
    """Reads all hits, from the primary shards: no copy may be behind, and none may be left out."""
    from opensearchpy.helpers import scan

    body = {"query": query, "_source": source, "seq_no_primary_term": True}
    only: dict[str, Any] = {"preference": "_primary", "allow_partial_search_results": "false"}
    return scan(client, index=alias, query=body, size=HITS_A_PAGE, **only)


def _copies(hits: Iterable[dict[str, Any]]) -> pl.DataFrame:
    rows = [
        (hit["_source"].get("path"), hit["_source"].get("key"), hit["_id"], hit["_seq_no"], hit["_primary_term"])
        for hit in hits
    ]
    return pl.DataFrame(rows, schema=COPIES, orient="row").sort(FIRST)


def _pieces(paths: Sequence[str]) -> Iterator[list[str]]:
    return (list(paths[first : first + PATHS_A_QUERY]) for first in range(0, len(paths), PATHS_A_QUERY))
