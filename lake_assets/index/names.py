"""Names of documents and their ids: chosen once, in the lake before the first request, the same for life.

A document's name is its key and what that is unique in, its scope. `LAKE_IDS` says how an id follows: `source` computes
it from the name; `counter` reserves a number and writes it down.
"""

from __future__ import annotations

import polars as pl
from deltalake import Transaction

from lake_assets.errors import CounterFailed
from lake_assets.index.counters import counter
from lake_assets.index.ids import numbered_ids, source_ids
from lake_assets.lake.tables import Lake, Rows, Snapshot

NAME = ["scope", "key"]
NUMBERING = "lake_assets/ids"  # every numbering carries it, so that of two that race one must look again


def choose_ids(lake: Lake, batch: int, names: pl.DataFrame, owner: str) -> pl.DataFrame:
    """Gives the id of each name, and chooses those that are lacking; when it returns they are in the lake.

    Args:
        lake: whose opensearch/ids keeps what is not computed.
        batch: of the documents.
        names: scope and key, String.
        owner: who asks, for the counter's reservations.

    Returns:
        scope, key, id, in the order of the names.

    Raises:
        CounterFailed: no number can be reserved, or the counter has forgotten numbers that it gave.
    """
    if lake.settings.lake_ids == "source":
        return names.select(*NAME, id=source_ids(names["scope"], names["key"]))
    opened = counter(lake.settings, lake.settings.lake_counter)
    chosen = names.select(NAME).with_columns(id=pl.lit(None, pl.String))

    def compute(snapshot: Snapshot) -> tuple[list[int], Rows] | None:
        nonlocal chosen
        wanted = names.select(NAME).lazy()
        known = snapshot.scan().select(*NAME, "id").join(wanted, on=NAME, how="semi").collect()
        chosen = numbered_ids(names.select(NAME), known, lambda count: opened.reserve(count, owner))
        fresh = chosen.filter("is_new").unique(NAME)
        if fresh.is_empty():
            return None
        _refuse_forgetful(snapshot, fresh)
        kept = snapshot.frame([batch])
        return [batch], [kept, fresh.select(pl.lit(batch, pl.Int64).alias("batch"), *NAME, "id").select(kept.columns)]

    table = lake.table("opensearch/ids")
    table.replace(compute, transaction=Transaction(NUMBERING, table.snapshot().version + 2))
    return chosen.select(*NAME, "id")


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
