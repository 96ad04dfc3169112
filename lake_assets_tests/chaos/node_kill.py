"""Kills the node in the middle of a load: the ingest fails with a sentence, and after the next start all is there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from opensearchpy.exceptions import OpenSearchException

from lake_assets.contracts import TABLES
from lake_assets.index import node
from lake_assets.index.client import connect
from lake_assets.index.compare import compare
from lake_assets.lake.tables import Lake
from lake_assets.settings import Settings
from lake_assets_tests.chaos.scenario import comments
from lake_assets_tests.road import METRICS, environment

ALIAS = "chaos-node"
LIMIT_SECONDS = 400.0
FLAGS = ("-XX:TieredStopAtLevel=1",)
ONCE = ("indexing/documents", "opensearch/documents", "clean/documents", "enrich/documents", "opensearch/metrics")


@dataclass(frozen=True)
class NodeKill:
    """What came of a kill of the node.

    Attributes:
        held: documents it had taken when it was killed.
        seconds: until the ingest that it was killed under ended with its sentence.
        complaints: what was wrong then, or after the next ingest.
    """

    held: int
    seconds: float
    complaints: list[str]


def kill_node(count: int, after: int) -> NodeKill:
    """Loads comments, kills the node with SIGKILL, starts it again at the same place and loads again.

    Args:
        count: of comments.
        after: the node is killed when it has taken so many of them; less than half of all.
    """
    with tempfile.TemporaryDirectory(prefix="lake-chaos-node-", ignore_cleanup_errors=True) as folder:
        home = Settings(_env_file=None, lake_home=Path(folder) / "node")
        state = node.start(home, heap="512m", owned=True, java_flags=FLAGS)
        try:
            (Path(folder) / "box.jsonl").write_text(comments(range(count)))
            settings = Settings(
                _env_file=None, lake_home=Path(folder) / "home", opensearch_url=state.url, opensearch_alias=ALIAS,
                lake_sources=Path(folder) / "sources.toml",
            )  # fmt: skip
            held, seconds, found = _kill_midway(settings, Path(folder), state.pid, count, after)
            node.start(home, port=state.port, heap="512m", owned=True, java_flags=FLAGS)
            with _ingest(settings, Path(folder)) as again:
                _, err = again.communicate(timeout=LIMIT_SECONDS)
            found += [f"the ingest after it ends with {again.returncode}: {err[-500:]}"] if again.returncode else []
            return NodeKill(held, seconds, found + _complaints(settings, count))
        finally:
            node.stop(home)


@contextlib.contextmanager
def _ingest(settings: Settings, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts `lake ingest`; it ends with the context, in whatever way."""
    command = [str(Path(sys.executable).with_name("lake")), "ingest", str(folder / "box.jsonl"), "--json"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, env=environment(settings), cwd=folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _kill_midway(settings: Settings, folder: Path, pid: int, count: int, after: int) -> tuple[int, float, list[str]]:
    held = 0
    with _ingest(settings, folder) as loading:
        while loading.poll() is None and held < after:
            time.sleep(0.005)
            with contextlib.suppress(OpenSearchException):  # the index is being made
                held = _indexed(settings)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        out, err = loading.communicate(timeout=LIMIT_SECONDS)
        seconds = time.monotonic() - killed
    found = [] if after <= held < count else [f"the node was killed when it had taken {held}: not midway"]
    if loading.returncode != 1 or "Traceback" in err or "OpenSearch" not in err:
        found.append(f"the ingest whose node was killed ends with {loading.returncode}: {err[-500:]}")
    elif not json.loads(out)["failures"]:
        found.append("the ingest whose node was killed tells no failure")
    return held, seconds, found


def _indexed(settings: Settings) -> int:
    told = connect(settings, settings.opensearch_url).indices.stats(index=f"{ALIAS}*", metric="indexing")
    return int(told["_all"]["primaries"].get("indexing", {}).get("index_total", 0))


def _complaints(settings: Settings, count: int) -> list[str]:
    lake = Lake(settings)
    found = []
    for key in (*ONCE, *METRICS):
        rows = lake.table(key, TABLES.get(key, TABLES["enrich/documents"])).snapshot()
        ids = rows.frame(columns=["key" if key == "indexing/documents" else "id"]).to_series()
        if ids.len() != count or ids.n_unique() != count:
            found.append(f"{key}: {ids.len()} rows of {ids.n_unique()} documents instead of {count}")
    compared = compare(connect(settings, settings.opensearch_url), ALIAS, lake)
    if compared.differences.height or compared.index_documents != count:
        found.append(
            f"index: {compared.index_documents} documents, {compared.differences['kind'].value_counts().rows()}"
        )
    return found
