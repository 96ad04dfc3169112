"""Documents whose ids the server makes: each is there once, whatever answers were lost on the way.

What belongs here: what is left over when a request was carried out twice. What does not: sending and asking (`sender`),
where the ids are kept.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

import polars as pl

from lake_assets.errors import IndexUnavailable
from lake_assets.index.delivery import deliver
from lake_assets.index.mapping import find_index
from lake_assets.index.pace import Pace
from lake_assets.index.present import copies_of, delete_seen

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

LATE_SECONDS = 5.0
"""Longest wait for a request that may still be carried out though its answer was given up."""


def create_documents(
    client: OpenSearch, alias: str, frames: Iterable[pl.DataFrame], *, deadline_seconds: float = 120.0, **options: Any
) -> Generator[pl.DataFrame]:
    """Creates documents that have no id yet, each once, and gives a receipt with the server's id for each.

    A document whose answer was lost is looked for before it is sent again. The server may carry a request out after
    that, so at the end all documents in doubt are looked for again, as long after the last lost request as that took
    (at most `LATE_SECONDS`), and all copies but those of the receipts are deleted. A request that is carried out even
    later, or a process that dies before, leaves foreign documents: `lake index compare` names them and
    `lake index repair` deletes them.

    What the index held before is not asked for here: whoever calls has done so, by `copies_of`.

    Args:
        client: of `connect`.
        alias: name to write to; it must be an alias.
        frames: `path`, `key` and the other fields; `id`, `version` and `operation` are set here.
        deadline_seconds: longest time in which nothing at all is settled.
        options: further ones of `deliver`.

    Yields:
        For each frame in order its receipts, row by row, as `deliver` gives them. Surplus copies are gone when the
        receipts have come to their end.

    Raises:
        IndexUnavailable: OpenSearch does not answer, or refuses everything.
        ContractBroken: a frame lacks a column, has one that cannot be sent, or holds two documents of one name.
    """
    doubts: list[tuple[pl.DataFrame, float]] = []

    def note(names: pl.DataFrame, seconds: float) -> None:
        doubts.append((names, time.monotonic() + min(seconds, LATE_SECONDS)))

    ids: list[pl.Series] = []
    own = {"id": pl.lit(None, pl.String), "version": pl.lit(1, pl.Int64), "operation": pl.lit("create")}
    unnamed = (frame.with_columns(**own) for frame in frames)
    for receipts in deliver(client, alias, unnamed, deadline_seconds=deadline_seconds, on_doubt=note, **options):
        ids.append(receipts["id"])
        yield receipts
    if doubts:
        names = pl.concat(names for names, _ in doubts).unique()
        time.sleep(max(0.0, max(until for _, until in doubts) - time.monotonic()))
        _delete_surplus(client, alias, names, pl.concat(ids), Pace(1, deadline_seconds))


def _delete_surplus(client: OpenSearch, alias: str, names: pl.DataFrame, kept: pl.Series, pace: Pace) -> None:
    """Deletes all documents of some names but those with a kept id, until there are none."""
    begun, attempt = time.monotonic(), 0
    while True:
        try:
            index = find_index(client, alias) or alias
            copies = copies_of(client, index, names)
            surplus = copies.filter(~pl.col("id").is_in(kept.drop_nulls().implode()))
            if surplus.is_empty():
                return
            cause = f"{surplus.height} surplus copies are in {index}."
            delete_seen(client, index, surplus)
        except IndexUnavailable as failure:
            cause = str(failure)
        pace.rest(attempt, begun, cause)
        attempt += 1
