"""What every measurement needs: a real node, the comments, processor time, and figures that can be compared."""

from __future__ import annotations

import contextlib
import gzip
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from lake_assets.index import node
from lake_assets.settings import Settings

HEAP = "1g"
OUT = Console(highlight=False, width=120)
STRIPPED = ("AWS_", "LAKE_", "OPENSEARCH_", "DAGSTER_", "RAW_")


@dataclass(frozen=True)
class Cost:
    """What one run took: seconds on the clock, and processor seconds of the client and of the node."""

    seconds: float
    client_seconds: float
    node_seconds: float


def comments() -> Path:
    """Gives the comments, 166,288 JSON lines; LAKE_BENCH_DATA names the folder that has `comments/comments.jsonl.gz`.

    Raises:
        SystemExit: they are not there.
    """
    beside = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("LAKE_BENCH_DATA") or beside).absolute() / "comments" / "comments.jsonl.gz"
    if not path.is_file():
        raise SystemExit(f"There is no {path}; set LAKE_BENCH_DATA to the folder that has comments/comments.jsonl.gz.")
    return path


def comment_lines() -> list[bytes]:
    """Reads the comments' lines, without their ends."""
    return gzip.decompress(comments().read_bytes()).splitlines()


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Gives a folder of its own; what is in it goes with it."""
    with tempfile.TemporaryDirectory(prefix="lake-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def bench_node(folder: Path) -> Iterator[node.NodeState]:
    """Runs a node of its own with 1 GB of heap, ready for use; it ends with this process, in whatever way."""
    home = Settings(lake_home=folder / "node")
    state = node.start(home, heap=HEAP, owned=True)
    try:
        yield state
    finally:
        node.stop(home)


class Stopwatch:
    """Measures what one run takes of the clock, of this process and its ended children, and of the node."""

    def __init__(self, node_pid: int) -> None:
        self._node = psutil.Process(node_pid)
        self._begun = self._now()

    def _now(self) -> tuple[float, float, float]:
        mine, its = psutil.Process().cpu_times(), self._node.cpu_times()
        client = mine.user + mine.system + mine.children_user + mine.children_system
        return time.perf_counter(), client, its.user + its.system

    def stop(self) -> Cost:
        """Gives the cost since it was made."""
        return Cost(*(now - then for now, then in zip(self._now(), self._begun, strict=True)))


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Makes a command's environment: this one without its settings and credentials, and with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(STRIPPED)}
    cache = str(Settings(_env_file=None).cache_root)
    return {**kept, "LAKE_CACHE": cache, "AWS_EC2_METADATA_DISABLED": "true", **settings}


def run(command: Sequence[str], folder: Path, settings: Mapping[str, str]) -> str:
    """Runs a command to its end, and gives what it printed.

    Raises:
        SystemExit: it failed; what it said is shown.
    """
    done = subprocess.run(
        command, cwd=folder, env=environment(settings), capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def lake_command(*arguments: str) -> list[str]:
    """Gives the product's command line, in the environment that this process runs in."""
    return [str(Path(sys.executable).with_name("lake")), *arguments]


def show(name: str, cost: Cost) -> None:
    """Prints what one run took."""
    spent = f"client {cost.client_seconds:.1f} s, node {cost.node_seconds:.1f} s"
    OUT.print(f"  {name}: {cost.seconds:.2f} s; processor: {spent}")


def compare(title: str, documents: int, ours: Sequence[Cost], theirs: Sequence[Cost], names: tuple[str, str]) -> float:
    """Prints both, and gives the ratio of their median times: how many times faster the first is."""
    table = Table("", "median s", "best s", "documents/s", "client CPU s", "node CPU s", title=title)
    for name, costs in zip(names, (ours, theirs), strict=True):
        seconds = statistics.median(cost.seconds for cost in costs)
        table.add_row(
            name,
            f"{seconds:.2f}",
            f"{min(cost.seconds for cost in costs):.2f}",
            f"{documents / seconds:,.0f}",
            f"{statistics.median(cost.client_seconds for cost in costs):.1f}",
            f"{statistics.median(cost.node_seconds for cost in costs):.1f}",
        )
    OUT.print(table)
    ratio = statistics.median(c.seconds for c in theirs) / statistics.median(c.seconds for c in ours)
    best = min(c.seconds for c in theirs) / min(c.seconds for c in ours)
    OUT.print(f"ratio {ratio:.2f} (medians), {best:.2f} (best runs)\n")
    return ratio


def machine() -> str:
    """Describes what was measured on: cores and versions; how busy it was."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("polars", "deltalake", "dagster", "opensearch-py"))
    busy = psutil.getloadavg()[0]
    return (
        f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores, "
        f"load {busy:.1f} before; {platform.system()}, Python {platform.python_version()}, {packages}"
    )
