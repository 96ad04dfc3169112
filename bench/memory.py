"""Memory: a JSONL object of 1 GB goes the whole road in one process; how much of it is resident at most.

The object is the comments over and over, each time with other ids. What the process holds is sampled 20 times a second,
by step of the road; its worker processes are listed beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.table import Table

from bench.nodes import OUT, bench_node, comment_lines, environment, lake_command, workspace
from lake_assets.index.client import connect
from lake_assets.ingest import dagster_instance
from lake_assets.settings import Settings

BYTES = 1_000_000_000
LIMIT_BYTES = 1.5 * (1 << 30)
SAMPLE_SECONDS = 0.05
MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    """Resident bytes at one moment, on the wall clock: of the working process, and of all its workers together."""

    at: float
    working: int
    workers: int


def main(arguments: list[str]) -> bool:
    """Measures, prints, and tells whether the target was met."""
    parser = argparse.ArgumentParser("python -m bench memory")
    parser.add_argument("--bytes", type=int, default=BYTES, help="size of the object")
    options = parser.parse_args(arguments)
    with workspace() as folder, bench_node(folder) as state:
        home = folder / "home"
        path = home / "lake" / "landing" / "comments.jsonl"
        path.parent.mkdir(parents=True)
        count = write_object(path, options.bytes)
        settings = Settings(_env_file=None, lake_home=home, opensearch_url=state.url)
        OUT.print(f"  {path.stat().st_size / 1e6:,.0f} MB, {count:,} records")
        begun = time.time()
        samples = _ingest(path, home, state.url)
        seconds = time.time() - begun
        client = connect(settings, state.url)
        client.indices.refresh(index=settings.opensearch_alias)
        enriched = {"query": {"exists": {"field": "sentiment_score"}}}
        held = client.count(index=settings.opensearch_alias, body=enriched)["count"]
        steps = dict(_steps(settings))
    peak = max(sample.working for sample in samples)
    title = f"Memory: an object of {options.bytes / 1e6:,.0f} MB, {held:,} documents in the index, {seconds:,.0f} s"
    table = Table("step", "s", "peak of the working process, MiB", "peak of its workers, MiB", title=title)
    for step, (first, last) in {"(whole)": (0.0, float("inf")), **steps}.items():
        during = [sample for sample in samples if first <= sample.at <= last]
        if during:
            most = [max(getattr(sample, name) for sample in during) / MIB for name in ("working", "workers")]
            table.add_row(step, f"{during[-1].at - during[0].at:.1f}", f"{most[0]:,.0f}", f"{most[1]:,.0f}")
    OUT.print(table)
    is_met = peak < LIMIT_BYTES and held >= 0.999 * count
    OUT.print(
        f"peak of the working process {peak / MIB:,.0f} MiB; "
        f"target < {LIMIT_BYTES / MIB:,.0f} MiB: {'met' if is_met else 'missed'}\n"
    )
    return is_met


def write_object(path: Path, size: int) -> int:
    """Writes the comments over and over, each round with other ids and texts, until the object has its size."""
    lines = comment_lines()
    written = count = number = 0
    with path.open("wb") as file:
        while True:
            for line in lines:
                changed = line.replace(b'{"id": "', b'{"id": "%d-' % number, 1)
                changed = changed.replace(b'"text": "', b'"text": "%d: ' % number, 1) + b"\n"
                if written + len(changed) > size:
                    return count
                file.write(changed)
                written += len(changed)
                count += 1
            number += 1


def _ingest(path: Path, home: Path, url: str) -> list[Sample]:
    """Runs `lake ingest`, and samples it.

    Raises:
        SystemExit: it failed.
    """
    log = home / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            lake_command("ingest", str(path)),
            cwd=home,
            env=environment({"LAKE_HOME": str(home), "OPENSEARCH_URL": url}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        samples: list[Sample] = []
        ended = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, samples, ended), daemon=True)
        sampler.start()
        code = process.wait()
        ended.set()
        sampler.join()
    if code:
        raise SystemExit(f"lake ingest ended with {code}:\n{log.read_text(errors='replace')[-3000:]}")
    return samples


def _sample(pid: int, samples: list[Sample], ended: threading.Event) -> None:
    working = psutil.Process(pid)
    while not ended.wait(SAMPLE_SECONDS):
        try:
            workers = sum(_resident(child) for child in working.children(recursive=True))
            samples.append(Sample(time.time(), working.memory_info().rss, workers))
        except psutil.Error:
            return


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def _steps(settings: Settings) -> Iterator[tuple[str, tuple[float, float]]]:
    """Reads from Dagster's event log when each step of the run began and ended."""
    before = os.environ.get("DAGSTER_HOME")
    try:
        with dagster_instance(settings) as instance:
            for record in instance.get_run_records():
                for step in instance.get_run_step_stats(record.dagster_run.run_id):
                    if step.start_time and step.end_time:
                        yield step.step_key.replace("__", "/"), (step.start_time, step.end_time)
    finally:
        if before is not None:
            os.environ["DAGSTER_HOME"] = before
