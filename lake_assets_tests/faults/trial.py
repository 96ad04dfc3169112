"""One client under one fault, in front of a real node, and what the node holds afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lake_assets.index.client import connect
from lake_assets.index.mapping import ensure_index, find_index
from lake_assets.settings import Settings
from lake_assets_tests.faults.cases import COUNT, Case, Strategy, documents
from lake_assets_tests.faults.clients import Job, Told
from lake_assets_tests.index.fault_proxy import Proxy, fault_proxy

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 20.0
"""How long a client that is not ours may take; then it is killed."""

EXIT_SECONDS = 5.0
"""How much longer than its deadline our process may live: Python's start and end."""

RESTART_AT = 5
STRIPPED = ("AWS_", "LAKE_", "OPENSEARCH_", "RAW_")

Restart = Callable[[], None]


@dataclass(frozen=True)
class Trial:
    """What came of one client under one fault.

    Attributes:
        client: its name.
        case: the fault.
        strategy: name of the way to choose ids.
        count: good documents that were sent.
        told: what the client said.
        is_killed: its time was up.
        stored: good documents that the node holds.
        duplicates: documents that the node holds more than once, each surplus copy counted.
        held: documents that the node holds, of any kind.
        faults: bulk requests that the proxy spoilt or refused.
    """

    client: str
    case: Case
    strategy: str
    count: int
    told: Told
    is_killed: bool
    stored: int
    duplicates: int
    held: int
    faults: int

    def complaints(self) -> list[str]:
        """Says what is wrong with it, measured by what ours promises; nothing when all is well."""
        found = []
        if self.stored != self.count:
            found.append(f"{self.stored} of {self.count} stored")
        if self.duplicates:
            found.append(f"{self.duplicates} duplicates")
        if sorted(self.told.refused) != self.bad_keys():
            found.append(f"{len(self.told.refused)} refused where {len(self.bad_keys())} had to be")
        if self.told.reported != self.held:
            found.append(f"{self.told.reported} reported where the node holds {self.held}")
        if self.is_killed or self.told.seconds > self.case.deadline_seconds:
            found.append(f"not ended within {self.case.deadline_seconds:.0f} s")
        elif self.told.ended != "normally":
            found.append(self.told.ended)
        return found

    def bad_keys(self) -> list[str]:
        """Gives the keys of the documents that must be refused."""
        return sorted(key for key in documents(self.case, self.count)["key"] if not key.startswith("good-"))


def try_client(
    client: str, case: Case, strategy: Strategy, url: str, *, count: int = COUNT, restart: Restart | None = None
) -> Trial:
    """Lets a client send the documents of a case through the proxy to the node, into an index of its own.

    Args:
        client: one of `CLIENTS`.
        case: the fault.
        strategy: how ids are chosen.
        url: the real node.
        count: good documents.
        restart: stops the node and starts it again at the same address; needed where the case restarts it.
    """
    alias = f"faults-{uuid.uuid4().hex[:12]}"
    settings = Settings(_env_file=None)
    index = ensure_index(connect(settings, url), alias, replicas="false")
    limit_seconds = case.deadline_seconds + EXIT_SECONDS if client == "ours" else LIMIT_SECONDS
    try:
        with fault_proxy(url, case.fault, limit_bytes=case.limit_bytes) as proxy:
            proxy.delay_seconds = case.delay_seconds
            with _restarting(proxy, restart if case.restarts else None):
                job = Job(client, case.name, strategy.name, proxy.url, alias, count)
                told, is_killed = _run(job, limit_seconds)
        keys = _held_keys(url, alias)
        good = sum(key.startswith("good-") for key in keys)
        held = sum(keys.values())
        return Trial(
            client=client,
            case=case,
            strategy=strategy.name,
            count=count,
            told=told,
            is_killed=is_killed,
            stored=good,
            duplicates=held - len(keys),
            held=held,
            faults=proxy.faults,
        )
    finally:
        connect(settings, url).indices.delete(index=index)


@contextlib.contextmanager
def _restarting(proxy: Proxy, restart: Restart | None) -> Iterator[None]:
    """Restarts the node once, beside the requests, when a number of them have come; waits until it is up again."""
    threads: list[threading.Thread] = []

    def begin(number: int) -> None:
        if number == RESTART_AT and restart is not None:
            threads.append(threading.Thread(target=restart))
            threads[0].start()

    proxy.on_bulk = begin
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
            proxy.faults += 1


def _run(job: Job, limit_seconds: float) -> tuple[Told, bool]:
    """Runs a client in a process of its own; gives what it said last, and whether it had to be killed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(STRIPPED)}
    command = [sys.executable, "-m", "lake_assets_tests.faults.clients", json.dumps(asdict(job))]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lake-faults-") as folder, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=folder, env={**kept, "PYTHONPATH": str(ROOT)}, stdout=output)
        try:
            process.wait(limit_seconds)
            is_killed = False
        except subprocess.TimeoutExpired:
            is_killed = True
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        lines = [line for line in output.read().splitlines(keepends=True) if line.endswith(b"\n")]
    told = Told(**json.loads(lines[-1])) if lines else Told()
    if is_killed:
        told.ended, told.seconds = told.ended or f"killed at {limit_seconds:.0f} s", time.monotonic() - begun
    return told, is_killed


def _held_keys(url: str, alias: str) -> Counter[str]:
    """Counts by key the documents that the node holds."""
    client = connect(Settings(_env_file=None), url)
    assert find_index(client, alias)
    client.indices.refresh(index=alias)
    answer = client.search(index=alias, body={"size": 10_000, "_source": ["key"], "track_total_hits": True})
    keys = Counter(hit["_source"]["key"] for hit in answer["hits"]["hits"])
    assert answer["hits"]["total"]["value"] == sum(keys.values()), "more documents than one page holds"
    return keys
