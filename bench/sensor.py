"""The sensor on S3: a tick with 100,000 objects that are already in the lake, and how long until it sees a change.

The server is MiniStack, with raw zone and tables in one bucket. The daemon begins a tick every 5 seconds at best.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import obstore
from botocore.exceptions import BotoCoreError, ClientError
from rich.table import Table

from bench.nodes import OUT, STRIPPED, workspace
from lake_assets.engineering.sensors import raw_zone_sensor
from lake_assets.guard import start_guarded, stop_guarded
from lake_assets.ingest import dagster_instance
from lake_assets.io_manager import BATCHES, LakeResource
from lake_assets.lake.batches import Ledger, claim
from lake_assets.lake.raw_zone import S3RawZone, raw_zone
from lake_assets.lake.tables import Lake
from lake_assets.settings import Settings
from lake_assets.text.sources import Sources
from lake_assets_tests.servers import HOST, S3Server, free_port

OBJECTS = 100_000
TICK_SECONDS, SWEEP_SECONDS = 3.0, 60.0
RHYTHM_SECONDS = 5.0  # dagster._daemon.sensor.MIN_INTERVAL_LOOP_TIME
PUTS_AT_ONCE = 16


def main(arguments: list[str]) -> bool:
    """Measures, prints, and tells whether the targets were met."""
    parser = argparse.ArgumentParser("python -m bench sensor")
    parser.add_argument("--objects", type=int, default=OBJECTS)
    options = parser.parse_args(arguments)
    for name in [name for name in os.environ if name.startswith(STRIPPED) and name != "LAKE_BENCH_DATA"]:
        del os.environ[name]
    with workspace() as folder, _server(folder) as server:
        settings = Settings.model_validate(
            {
                "lake_home": folder / "home",
                "lake_url": f"s3://{server.bucket()}/lake",
                "opensearch_url": "http://127.0.0.1:9",  # the sensor never asks it
                "lake_batch_wait_seconds": 0,
                **server.settings(),
            }
        )
        with dagster_instance(settings) as instance:
            _fill(settings, instance, options.objects)
            return _Watch(settings, instance, options.objects).measure()


def path_of(number: int) -> str:
    """Names an object; names sort as their numbers do."""
    return f"comments/{number // 1000:04d}/{number:07d}.txt"


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[S3Server]:
    """Runs MiniStack with its objects in memory: they are put four times faster than onto a disk."""
    port = free_port()
    ours = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    told = {"BIND_HOST": HOST, "MINISTACK_HOST": HOST, "GATEWAY_PORT": str(port), "LOG_LEVEL": "WARNING"}
    with (folder / "server.log").open("wb") as output:
        program = str(Path(sys.executable).with_name("ministack"))
        guard = start_guarded([program], env={**ours, **told}, cwd=folder, output=output)
    server = S3Server("ministack", f"http://{HOST}:{port}", "test", "test")
    try:
        for _ in range(600):
            with contextlib.suppress(BotoCoreError, ClientError):
                server.client().list_buckets()
                break
            time.sleep(0.1)
        yield server
    finally:
        stop_guarded(guard)


def _fill(settings: Settings, instance: dg.DagsterInstance, objects: int) -> None:
    """Puts objects, claims them, and notes their batches as done."""
    zone = raw_zone(settings)
    assert isinstance(zone, S3RawZone)
    begun = time.perf_counter()
    asyncio.run(_put_all(zone, objects))
    OUT.print(f"  {objects:,} objects put in {time.perf_counter() - begun:.0f} s")
    begun = time.perf_counter()
    listing = zone.look()
    OUT.print(f"  listed whole in {time.perf_counter() - begun:.1f} s")
    lake = Lake(settings)
    claimed = claim(lake, Ledger(lake), listing, settings, Sources(()), rest=False)
    keys = [str(batch) for batch in claimed.batches]
    instance.add_dynamic_partitions(BATCHES.name or "", keys)
    for key in keys:
        done = dg.AssetMaterialization(["clean", "documents"], partition=key)
        instance.report_runless_asset_event(done)
    OUT.print(f"  claimed in {len(keys)} batches")


async def _put_all(zone: S3RawZone, objects: int) -> None:
    turn = asyncio.Semaphore(PUTS_AT_ONCE)

    async def put(number: int) -> None:
        async with turn:
            await obstore.put_async(zone.store, path_of(number), b"Text number %d." % number)

    for first in range(0, objects, 1000):
        await asyncio.gather(*(put(number) for number in range(first, min(objects, first + 1000))))


class _Watch:
    """The sensor as its code location has it, and the cursor that the daemon keeps for it."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance, objects: int) -> None:
        self.settings, self.instance, self.objects = settings, instance, objects
        self.sensor = raw_zone_sensor()
        self.lake = LakeResource()
        self.cursor: str | None = None

    def tick(self) -> tuple[float, int]:
        """Evaluates the sensor once: seconds, and how many runs it asked for."""
        context = dg.build_sensor_context(self.instance, self.cursor, resources={"lake": self.lake})
        begun = time.perf_counter()
        result = self.sensor(context)
        assert isinstance(result, dg.SensorResult)
        seconds = time.perf_counter() - begun
        self.cursor = result.cursor
        return seconds, len(result.run_requests or [])

    def measure(self) -> bool:
        """Ticks once around the zone, then overwrites an object in its middle and ticks until it is claimed."""
        first, _ = self.tick()
        ticks = [self.tick()[0]]
        while self.cursor and len(ticks) < 200:
            ticks.append(self.tick()[0])
        around = len(ticks) + 1
        zone = raw_zone(self.settings)
        changed = Path(self.settings.lake_home) / "changed.txt"
        changed.write_text("This text has changed.", encoding="utf-8")
        for _ in range(around // 2 + 1):  # the worst case: the slice that has just been listed
            ticks.append(self.tick()[0])
        zone.put(path_of(max(0, self._listed() - 1)), changed)
        waited, found = 0.0, 0
        while not found and waited < 20 * SWEEP_SECONDS:
            seconds, found = self.tick()
            ticks.append(seconds)
            waited += seconds if found else max(seconds, RHYTHM_SECONDS)
        waited += RHYTHM_SECONDS  # at worst a tick had just begun when the object was overwritten
        return self._report(first, ticks, around, waited)

    def _listed(self) -> int:
        return int(self.cursor.rsplit("/", 1)[1].split(".")[0]) if self.cursor else self.objects // 2

    def _report(self, first: float, ticks: list[float], around: int, waited: float) -> bool:
        table = Table("", "s", "target", title=f"The sensor with {self.objects:,} objects in the lake")
        for name, seconds, target in [
            ("first tick of a code location", first, TICK_SECONDS),
            (f"later ticks, median of {len(ticks)}", statistics.median(ticks), TICK_SECONDS),
            ("later ticks, slowest", max(ticks), TICK_SECONDS),
            (f"until an overwritten object is claimed, a sweep of {around} ticks", waited, SWEEP_SECONDS),
        ]:
            table.add_row(name, f"{seconds:.2f}", f"< {target:.0f}")
        OUT.print(table)
        is_met = max(first, *ticks) < TICK_SECONDS and waited < SWEEP_SECONDS
        OUT.print(f"{'met' if is_met else 'missed'}\n")
        return is_met
