"""What the index holds of some objects, whatever the receipts say: a run may die between sending and noting it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from lake_assets.index.client import explained

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

PATHS_A_QUERY = 1000
HITS_A_PAGE = 10_000


def ids_of_objects(client: OpenSearch, alias: str, paths: Sequence[str]) -> pl.Series:
    """Gives the ids of all documents of some objects, after a refresh: what was written counts.

    Args:
        client: of `connect`.
        alias: whose index is asked; it must exist.
        paths: of the objects; without one, nothing is asked.

    Raises:
        IndexUnavailable: no answer.
    """
    from opensearchpy.helpers import scan

    found: list[str] = []
    with explained(client):
        if paths:
            client.indices.refresh(index=alias)
        for first in range(0, len(paths), PATHS_A_QUERY):
            query = {"query": {"terms": {"path": list(paths[first : first + PATHS_A_QUERY])}}, "_source": False}
            found += [hit["_id"] for hit in scan(client, index=alias, query=query, size=HITS_A_PAGE)]
    return pl.Series("id", found, dtype=pl.String)


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
