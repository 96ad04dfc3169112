"""The clients that are tried, each in a process of its own: `python -m lake_assets_tests.faults.clients JOB`.

A client prints JSON, a line each time it knows more, so that one that has to be killed has said how far it came:
`reported` (how many it says are stored), `refused` (keys), `ended` (how, empty while it works), `seconds`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from lake_assets.errors import LakeError
from lake_assets.index.client import connect
from lake_assets.settings import Settings
from lake_assets_tests.faults.cases import FRAME_ROWS, IN_A_REQUEST, STRATEGIES, Case, case_named, documents


@dataclass(frozen=True)
class Job:
    """What a client has to do; on the command line as JSON."""

    client: str
    case: str
    strategy: str
    url: str
    alias: str
    count: int


@dataclass
class Told:
    """What a client says it has done."""

    reported: int | None = None
    refused: list[str] = field(default_factory=list)
    ended: str = ""
    seconds: float = 0.0

    def tell(self) -> None:
        """Prints it as one line."""
        print(json.dumps(asdict(self)), flush=True)


def send_ours(job: Job, case: Case, rows: pl.DataFrame, told: Told) -> None:
    """Sends with the product's own delivery."""
    client = connect(Settings(_env_file=None, opensearch_timeout_seconds=case.timeout_seconds), job.url)
    sent = STRATEGIES[job.strategy].deliver(
        client, job.alias, rows.iter_slices(FRAME_ROWS), case.body_bytes, case.deadline_seconds
    )
    keys = rows["key"]
    told.reported = done = 0
    for receipts in sent:
        is_refused = receipts["result"] == "refused"
        told.refused += keys.slice(done, receipts.height).filter(is_refused).to_list()
        told.reported += receipts.height - int(is_refused.sum())
        done += receipts.height
        told.tell()


def send_bulk(job: Job, case: Case, rows: pl.DataFrame, told: Told) -> None:
    """Sends with `helpers.bulk`, which says what is stored when it has ended, and only if nothing was raised."""
    from opensearchpy import OpenSearch, helpers

    client = OpenSearch(job.url, timeout=case.timeout_seconds)
    told.reported, _ = helpers.bulk(client, actions(job, rows), chunk_size=IN_A_REQUEST)


def send_parallel_bulk(job: Job, case: Case, rows: pl.DataFrame, told: Told) -> None:
    """Sends with `helpers.parallel_bulk`, which says of each document whether it is stored."""
    from opensearchpy import OpenSearch, helpers

    client = OpenSearch(job.url, timeout=case.timeout_seconds)
    told.reported = 0
    for is_stored, _ in helpers.parallel_bulk(client, actions(job, rows), chunk_size=IN_A_REQUEST):
        told.reported += is_stored
        told.tell()


CLIENTS: dict[str, Callable[[Job, Case, pl.DataFrame, Told], None]] = {
    "ours": send_ours,
    "helpers.bulk": send_bulk,
    "parallel_bulk": send_parallel_bulk,
}


def actions(job: Job, rows: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Makes documents into the actions of opensearch-py's helpers, with the id where it is known before."""
    for row in rows.drop("version", "operation").iter_rows(named=True):
        named = {"_id": row.pop("id")} if "id" in row else {}
        yield {"_index": job.alias, **named, "_source": row}


def main(arguments: list[str]) -> None:
    """Does one job."""
    warnings.simplefilter("ignore")
    job = Job(**json.loads(arguments[0]))
    case, told = case_named(job.case), Told()
    rows = STRATEGIES[job.strategy].identify(documents(case, job.count))
    begun = time.monotonic()
    try:
        CLIENTS[job.client](job, case, rows, told)
        told.ended = "normally"
    except LakeError as failure:
        told.ended = f"{type(failure).__name__}: {failure}"
    except Exception as failure:
        told.ended = type(failure).__name__
    told.seconds = time.monotonic() - begun
    told.tell()
    if job.client != "ours":
        os._exit(0)  # threads of parallel_bulk may live on; ours must end by itself


if __name__ == "__main__":
    main(sys.argv[1:])
