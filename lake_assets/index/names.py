"""Names of documents and their ids: chosen once, in the lake before the first request, the same for life.

A document's name is its key and what that is unique in, its scope. `LAKE_IDS` says how an id follows: `source` computes
it from the name; `counter` reserves a number and writes it down; so does `opensearch` with what the server has made.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from lake_assets.errors import CounterFailed
from lake_assets.index.counters import counter
from lake_assets.index.ids import numbered_ids, source_ids
from lake_assets.lake.tables import Lake, Replacement, Snapshot
from lake_assets.settings import Settings

NAME = ["scope", "key"]
CHOOSING = ["lake_assets/ids"]  # what all commits of ids share: of two that race one must look again
Make = Callable[[pl.DataFrame], pl.DataFrame]


def choose_ids(lake: Lake, batch: int, names: pl.DataFrame, make: Make) -> pl.DataFrame:
    """Gives the id of each name, and has those made that are lacking; when it returns they are in the lake.

    Args:
        lake: whose opensearch/ids keeps what is not computed.
        batch: of the documents.
        names: scope and key, String, and what else `make` needs.
        make: gives scope, key and id of names that have none, or of some of them; called again when another run has
            chosen ids meanwhile.

    Returns:
        scope, key, id of every name that has one now, in no order.

    Raises:
        CounterFailed: no number can be reserved, or the counter has forgotten numbers that it gave.
    """
    chosen = names.select(*NAME, id=pl.lit(None, pl.String))

    def compute(snapshot: Snapshot) -> Replacement | None:
        nonlocal chosen
        known = snapshot.scan().select(*NAME, "id").join(names.select(NAME).lazy(), on=NAME, how="semi").collect()
        lacking = names.unique(NAME, maintain_order=True).join(known, on=NAME, how="anti", maintain_order="left")
        made = make(lacking).select(*NAME, "id") if lacking.height else known.clear()
        chosen = pl.concat([known, made])
        if made.is_empty():
            return None
        if lake.settings.lake_ids == "counter":
            _refuse_forgetful(snapshot, made)
        kept = snapshot.frame([batch])
        return Replacement(
            [batch], [kept, made.with_columns(batch=pl.lit(batch, pl.Int64)).select(kept.columns)], CHOOSING
        )

    lake.table("opensearch/ids").replace(compute)
    return chosen


def counting(settings: Settings, owner: str) -> Make:
    """Makes ids of the counter's next numbers.

    Args:
        settings: which counter.
        owner: who asks, for the counter's reservations.
    """
    opened = counter(settings, settings.lake_counter)

    def make(names: pl.DataFrame) -> pl.DataFrame:
        none_known = names.select(*NAME, id=pl.lit("")).clear()
        return numbered_ids(names.select(NAME), none_known, lambda count: opened.reserve(count, owner))

    return make


def known_ids(lake: Lake, names: pl.DataFrame) -> pl.Series:
    """Gives the ids of those names that have one, in no order."""
    if lake.settings.lake_ids == "source":
        return source_ids(names["scope"], names["key"])
    known = lake.read("opensearch/ids").scan().join(names.select(NAME).lazy(), on=NAME, how="semi")
    return known.select("id").collect()["id"]


def _refuse_forgetful(snapshot: Snapshot, fresh: pl.DataFrame) -> None:
    """Stops before a number is given twice.

    Raises:
        CounterFailed: the counter gave a number that is an id already.
    """
    taken = snapshot.scan().select(pl.col("id").cast(pl.Int64).max()).collect().item() or 0
    least = int(fresh["id"].cast(pl.Int64).min() or 0)  # ty: ignore[invalid-argument-type]
    if least <= taken:
        raise CounterFailed(
            f"The counter gave {least}, and the ids of this lake go up to {taken}: it was deleted, or is another one. "
            "Restore it, or correct LAKE_COUNTER; nothing was sent."
        )
