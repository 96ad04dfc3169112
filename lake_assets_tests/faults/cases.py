"""What is tried: the faults, the documents under each, and the strategies for ids.

A new fault is one more row of `CASES`, a new strategy one more row of `STRATEGIES`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from lake_assets.index.created import create_documents
from lake_assets.index.delivery import deliver
from lake_assets.index.ids import source_ids
from lake_assets.index.names import choose_ids, counting
from lake_assets.lake.tables import Lake
from lake_assets.settings import Settings

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

COUNT = 2_000
"""Good documents of a case."""

IN_A_REQUEST = 100
"""Documents in a request: exactly so for opensearch-py's helpers, about so for ours, which counts bytes."""

PATH = "faults/part-1.jsonl"
FRAME_ROWS = 500
SMALL_CHARS, LARGE_CHARS, OVERSIZED_CHARS = 60, 12_000, 1_200_000
_ROW_BYTES = 200


@dataclass(frozen=True)
class Case:
    """One fault, and what is sent under it.

    Attributes:
        name: as the table has it.
        fault: what the proxy does with every third bulk request, one of its `FAULTS`, or `none`.
        text_chars: length of a good document's text.
        poison: further documents that the node itself refuses: their `created_at` is no date.
        oversized: further documents that are larger than any request that is let through.
        limit_bytes: larger bulk requests are answered 413.
        timeout_seconds: longest wait for an answer, for every client.
        delay_seconds: how much later every answer comes.
        restarts: the node is stopped and started again, beginning with the fifth bulk request.
        deadline_seconds: ours has to have ended by then.
    """

    name: str
    fault: str = "none"
    text_chars: int = SMALL_CHARS
    poison: int = 0
    oversized: int = 0
    limit_bytes: int = 1 << 40
    timeout_seconds: float = 10.0
    delay_seconds: float = 0.0
    restarts: bool = False
    deadline_seconds: float = 20.0

    @property
    def body_bytes(self) -> int:
        """Most bytes of one of our requests."""
        return IN_A_REQUEST * (_ROW_BYTES + self.text_chars)


CASES = (
    Case("request 429", "request 429"),
    Case("request 503", "request 503"),
    Case("a quarter of the items 429", "a quarter of the items 429"),
    Case("2 % poison", poison=COUNT // 50),
    Case("request 413", "request 413"),
    Case("accepted, then cut", "accepted, then cut"),
    Case("accepted, then 504", "accepted, then 504"),
    Case("accepted, then timeout", "no answer", timeout_seconds=1.0),
    Case("timeout, then accepted", "carried out late", timeout_seconds=1.0),
    Case("truncated answer", "answer cut short"),
    Case("truncated JSON", "half the JSON"),
    Case("HTML answer", "HTML"),
    Case("wrong item count", "one item short"),
    Case("slow drip", "slow drip", timeout_seconds=1.0),
    Case("a quarter lost, then cut", "a quarter of the items lost, then cut"),
    Case("any of them", "any", timeout_seconds=1.0, deadline_seconds=30.0),
    Case("over 1 MB: 413", text_chars=LARGE_CHARS, oversized=10, limit_bytes=1_000_000, deadline_seconds=30.0),
    Case("node restarted mid-load", delay_seconds=0.25, restarts=True, deadline_seconds=60.0),
)


def case_named(name: str) -> Case:
    """Finds a case.

    Raises:
        KeyError: there is none of that name.
    """
    return {case.name: case for case in CASES}[name]


def documents(case: Case, count: int = COUNT) -> pl.DataFrame:
    """Makes what is sent in a case, without ids: `count` good documents, and among them those that must be refused.

    Columns: `key`, which begins with `good`, `poison` or `oversized`; version, operation, and fields of the contract.
    """
    good = _rows("good", count, case.text_chars, "2026-01-31T08:00:00Z")
    poison = _rows("poison", case.poison * count // COUNT, case.text_chars, "nobody knows when")
    oversized = _rows("oversized", case.oversized * count // COUNT, OVERSIZED_CHARS, "2026-01-31T08:00:00Z")
    rows = pl.concat([good, poison, oversized]).sort("place", maintain_order=True)
    return rows.drop("place")


def _rows(kind: str, count: int, text_chars: int, created_at: str) -> pl.DataFrame:
    """Makes rows of one kind, spread evenly by `place` from 0 to 1."""
    number = pl.DataFrame({"number": range(count)}, schema={"number": pl.Int64})
    return number.select(
        place=pl.col("number") / max(count, 1),
        key=pl.format("{}-{}", pl.lit(kind), "number"),
        version=pl.lit(1, pl.Int64),
        operation=pl.lit("index"),
        path=pl.lit(PATH),
        created_at=pl.lit(created_at),
        text=pl.lit("word " * (text_chars // 5)),
    )


@dataclass(frozen=True)
class Strategy:
    """A way to choose ids.

    Attributes:
        name: as the setting has it.
        identify: adds `id` to the documents of a case; it stays away where the server makes it.
        deliver: sends frames as the product does with such ids: client, alias, frames, body bytes, seconds → receipts.
        has_rivals: opensearch-py's helpers are tried with such ids too.
    """

    name: str
    identify: Callable[[pl.DataFrame], pl.DataFrame]
    deliver: Callable[[OpenSearch, str, Iterator[pl.DataFrame], int, float], Iterator[pl.DataFrame]]
    has_rivals: bool = True


def _identify_by_source(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(source_ids(rows["path"], rows["key"]))


def _identify_by_counter(rows: pl.DataFrame) -> pl.DataFrame:
    """Reserves numbers and writes them down, in a lake that is there for nothing else."""
    with tempfile.TemporaryDirectory(prefix="lake-faults-") as folder:
        settings = Settings(_env_file=None, lake_home=Path(folder), lake_ids="counter")
        names = rows.select(scope="path", key="key")
        chosen = choose_ids(Lake(settings), 1, names, counting(settings, "faults"))
    return rows.join(chosen.select("key", "id"), on="key", maintain_order="left")


def _deliver_whole(
    client: OpenSearch, alias: str, frames: Iterator[pl.DataFrame], body_bytes: int, deadline_seconds: float
) -> Iterator[pl.DataFrame]:
    return deliver(client, alias, frames, body_bytes=body_bytes, deadline_seconds=deadline_seconds)


def _deliver_unnamed(
    client: OpenSearch, alias: str, frames: Iterator[pl.DataFrame], body_bytes: int, deadline_seconds: float
) -> Iterator[pl.DataFrame]:
    return create_documents(client, alias, frames, body_bytes=body_bytes, deadline_seconds=deadline_seconds)


STRATEGIES = {
    "source": Strategy("source", _identify_by_source, _deliver_whole),
    "counter": Strategy("counter", _identify_by_counter, _deliver_whole, has_rivals=False),
    "opensearch": Strategy("opensearch", lambda rows: rows, _deliver_unnamed),
}
