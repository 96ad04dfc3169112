"""The sensor on the raw zone: what it finds, claims once, and asks runs for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pytest

from lake_assets.engineering import sensors
from lake_assets.engineering.sensors import RawZoneWatch
from lake_assets.ingest import dagster_instance, ingest
from lake_assets.io_manager import LakeResource
from lake_assets.lake.batches import Ledger
from lake_assets.lake.tables import Lake
from lake_assets.settings import Settings, given
from lake_assets_tests.road import KINDS, Road, fresh_settings

NOW_SECONDS = {"lake_batch_wait_seconds": 0}


@dataclass
class Sensor:
    """A sensor as the daemon drives it: each tick gets the cursor that the last one left."""

    settings: Settings
    instance: dg.DagsterInstance = field(default_factory=dg.DagsterInstance.ephemeral)
    watch: RawZoneWatch = field(default_factory=RawZoneWatch)
    cursor: str | None = None

    def tick(self) -> list[str]:
        """Ticks once; gives the batches that runs are requested for, after doing what the daemon does first."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        with given(self.settings):
            result = self.watch.tick(context, LakeResource())
        self.cursor = result.cursor
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions("batch", list(request.partition_keys))
        requests = list(result.run_requests or [])
        known = set(self.instance.get_dynamic_partitions("batch"))
        assert {request.partition_key for request in requests} <= known
        assert len({request.run_key for request in requests}) == len(requests)
        return [str(request.partition_key) for request in requests]

    def finish(self, batches: list[str]) -> None:
        """Notes that the runs of batches have succeeded."""
        for batch in batches:
            self.instance.report_runless_asset_event(
                dg.AssetMaterialization(asset_key=["clean", "documents"], partition=batch)
            )

    def claimed(self) -> list[tuple[int, str]]:
        """Gives batch and path of everything that was ever claimed."""
        return sorted(Ledger(Lake(self.settings)).refresh().rows.select("batch", "path").rows())


@pytest.fixture(params=KINDS)
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """An empty lake of each kind, where objects need not rest."""
    with fresh_settings(request, request.param, tmp_path, **NOW_SECONDS) as settings:
        yield Road(settings)


@pytest.fixture
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """An empty lake in a folder, where objects need not rest."""
    with fresh_settings(request, "file", tmp_path, **NOW_SECONDS) as settings:
        yield Road(settings)


def numbered(count: int, prefix: str = "n") -> Mapping[str, bytes]:
    return {f"{prefix}/{number:05}.txt": b"x" for number in range(count)}


def test_new_objects_are_claimed_together_and_then_there_is_nothing_new(road: Road) -> None:
    sensor = Sensor(road.settings)
    assert sensor.tick() == []
    road.land({"a.txt": b"a", "b.txt": b"b"})
    assert sensor.tick() == ["1"]
    sensor.finish(["1"])
    version = road.lake.read("raw/objects").version
    assert sensor.tick() == []
    assert sensor.tick() == []
    assert road.lake.read("raw/objects").version == version
    assert sensor.claimed() == [(1, "a.txt"), (1, "b.txt")]


def test_an_object_of_the_same_second_as_the_last_one_is_found(road: Road) -> None:
    sensor = Sensor(road.settings)
    road.land({"b.txt": b"b"})
    assert sensor.tick() == ["1"]
    road.land({"a.txt": b"a", "b.txt.txt": b"c"})
    if not road.settings.raw_root.startswith("s3:"):
        seconds = (Path(road.settings.lake_home) / "lake" / "landing" / "b.txt").stat().st_mtime_ns
        os.utime(Path(road.settings.lake_home) / "lake" / "landing" / "a.txt", ns=(seconds, seconds))
    assert sensor.tick() == ["2"]
    assert sensor.claimed() == [(1, "b.txt"), (2, "a.txt"), (2, "b.txt.txt")]


def test_an_overwritten_object_of_the_same_size_is_found(road: Road) -> None:
    sensor = Sensor(road.settings)
    road.land({"a.txt": b"one", "b.txt": b"one"})
    assert sensor.tick() == ["1"]
    road.land({"a.txt": b"two"})
    assert sensor.tick() == ["2"]
    assert sensor.claimed() == [(1, "a.txt"), (1, "b.txt"), (2, "a.txt")]


def test_1001_keys_are_two_batches_and_each_key_is_in_one(road: Road) -> None:
    sensor = Sensor(road.settings)
    road.land(numbered(1001))
    assert sensor.tick() == ["1", "2"]
    claimed = sensor.claimed()
    assert [path for _, path in claimed] == sorted(numbered(1001))
    assert [sum(batch == number for batch, _ in claimed) for number in (1, 2)] == [1000, 1]


def test_of_1001_keys_that_have_just_landed_the_last_one_rests_and_is_taken_later(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with fresh_settings(request, "file", tmp_path, lake_batch_wait_seconds=600) as settings:
        sensor, road = Sensor(settings), Road(settings)
        road.land(numbered(1001))
        assert sensor.tick() == ["1"]
        assert len(sensor.claimed()) == 1000
        assert sensor.tick() == []
        last = tmp_path / ".lake" / "lake" / "landing" / "n" / "01000.txt"
        before = last.stat().st_mtime - 601
        os.utime(last, (before, before))
        assert sensor.tick() == ["2"]
        assert sensor.claimed()[-1] == (2, "n/01000.txt")


def test_batches_are_cut_by_bytes_too(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with fresh_settings(request, "file", tmp_path, lake_batch_bytes=100, **NOW_SECONDS) as settings:
        Road(settings).land({f"{number}.txt": b"x" * 40 for number in range(5)} | {"9.txt": b"x" * 500})
        sensor = Sensor(settings)
        assert sensor.tick() == ["1", "2", "3"]
        sizes = Ledger(Lake(settings)).refresh().rows.group_by("batch").len().sort("batch").rows()
        assert sum(count for _, count in sizes) == 6


def test_a_trickle_that_never_rests_is_claimed_all_the_same(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with fresh_settings(request, "file", tmp_path, lake_batch_wait_seconds=60) as settings:
        sensor, road = Sensor(settings), Road(settings)
        folder = tmp_path / ".lake" / "lake" / "landing"

        def land(count: int) -> None:
            """Lands an object each 25 seconds, the last one just now."""
            names = [f"{number:02}.txt" for number in range(count)]
            road.land(dict.fromkeys(names, b"x"))
            now = (folder / names[-1]).stat().st_mtime
            for number, name in enumerate(names):
                moment = now - 25 * (count - 1 - number)
                os.utime(folder / name, (moment, moment))

        land(20)
        assert sensor.tick() == []
        land(30)
        assert sensor.tick() == ["1"]
        assert [path for _, path in sensor.claimed()] == [f"{number:02}.txt" for number in range(27)]


def test_in_a_zone_listed_in_slices_what_lies_before_the_cursor_is_found_within_one_sweep(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "LISTING_SECONDS", 0.0)
    sensor = Sensor(road.settings)
    road.land(numbered(2100))
    sweep = 4  # three slices, and a look behind the last one
    sensor.finish([batch for _ in range(sweep) for batch in sensor.tick()])
    assert sorted(path for _, path in sensor.claimed()) == sorted(numbered(2100))
    assert sensor.tick() == []
    assert sensor.cursor == "n/00999.txt"
    road.land({"a.txt": b"before the cursor", "n/00000.txt": b"overwritten", "n/02050.txt": b"overwritten"})
    found = []
    for _ in range(sweep):
        batches = sensor.tick()
        sensor.finish(batches)
        found += batches
    claimed = {path for batch, path in sensor.claimed() if str(batch) in found}
    assert claimed == {"a.txt", "n/00000.txt", "n/02050.txt"}


def test_a_slice_may_end_at_any_name(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "LISTING_SECONDS", 0.0)
    sensor = Sensor(road.settings)
    objects = {**numbered(999, "a"), "a/00999\n.txt": b"x", **numbered(20, "b")}
    road.land(objects)
    for _ in range(3):
        sensor.tick()
    assert sorted(path for _, path in sensor.claimed()) == sorted(objects)


def test_a_deletion_counts_only_in_the_slice_that_was_listed_and_where_the_source_says_so(
    local: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "LISTING_SECONDS", 0.0)
    local.settings.lake_sources.write_text("[[source]]\nname = 'n'\nprefix = 'n/'\ndeletes = true\n")
    sensor = Sensor(local.settings)
    local.land({**numbered(1010), "kept.txt": b"x"})
    sensor.tick(), sensor.tick()
    count = len(sensor.claimed())
    for path in ("n/00005.txt", "n/01005.txt", "kept.txt"):
        local.remove(path)
    for _ in range(4):
        sensor.tick()
    assert [path for _, path in sensor.claimed()[count:]] == ["n/00005.txt", "n/01005.txt"]


def test_a_claim_whose_run_was_never_requested_gets_one_after_the_grace(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    road.land({"a.txt": b"a"})
    assert road.claim() == [1]  # and then the process died
    sensor = Sensor(road.settings)
    assert sensor.tick() == []
    monkeypatch.setattr(sensors, "CLAIM_GRACE_SECONDS", 0.0)
    assert sensor.tick() == ["1"]
    sensor.finish(["1"])
    assert sensor.tick() == []


def test_a_batch_whose_run_failed_is_tried_again_with_growing_waits(
    local: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = Sensor(local.settings)
    local.land({"a.txt": b"a"})
    assert sensor.tick() == ["1"]

    def fail() -> None:
        run = dg.DagsterRun(job_name="ingest_job", tags={"dagster/partition": "1"}, status=dg.DagsterRunStatus.STARTED)
        sensor.instance.add_run(run)
        assert sensor.tick() == []  # somebody works on it
        sensor.instance.report_run_failed(run)

    fail()
    assert sensor.tick() == []
    monkeypatch.setattr(sensors, "RETRY_SECONDS", (0, 0, 120))
    assert sensor.tick() == ["1"]
    fail()
    assert sensor.tick() == []
    monkeypatch.setattr(sensors, "RETRY_SECONDS", (0, 0, 0))
    assert sensor.tick() == ["1"]


def test_sensors_that_race_claim_each_object_once(road: Road) -> None:
    road.land(numbered(40))
    racing = [Sensor(road.settings) for _ in range(4)]
    failures: list[BaseException] = []
    start = threading.Barrier(len(racing))

    def race(sensor: Sensor) -> None:
        # The environment belongs to the process: it is set once, outside the threads.
        try:
            start.wait()
            sensor.watch.tick(dg.build_sensor_context(instance=sensor.instance), LakeResource())
        except BaseException as error:
            failures.append(error)

    with given(road.settings):
        threads = [threading.Thread(target=race, args=(sensor,)) for sensor in racing]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert sorted(path for _, path in racing[0].claimed()) == sorted(numbered(40))
    assert {batch for batch, _ in racing[0].claimed()} == {1}


def test_what_lake_ingest_has_claimed_the_sensor_leaves_alone_and_the_other_way_round(
    local: Road, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(b"by hand")
    done = ingest(local.settings, [tmp_path / "a.txt"])
    assert (done.batches, done.failures) == ([1], [])
    with dagster_instance(local.settings) as instance:
        sensor = Sensor(local.settings, instance)
        assert sensor.tick() == []
        local.land({"b.txt": b"dropped"})
        assert sensor.tick() == ["2"]
        assert sensor.claimed() == [(1, "a.txt"), (2, "b.txt")]
        (tmp_path / "b.txt").write_bytes(b"dropped")
        done = ingest(local.settings, [tmp_path / "a.txt", tmp_path / "b.txt"])
        assert (done.batches, done.failures) == ([2], [])  # the run of the sensor's batch was never started
        assert sensor.claimed() == [(1, "a.txt"), (2, "b.txt")]
        assert sensor.tick() == []


def test_a_tick_asks_for_twenty_runs_at_most_and_the_next_ones_for_the_rest(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fresh_settings(request, "file", tmp_path, lake_batch_objects=1, **NOW_SECONDS) as settings:
        Road(settings).land(numbered(25))
        monkeypatch.setattr(sensors, "CLAIM_GRACE_SECONDS", 0.0)
        sensor = Sensor(settings)
        first = sensor.tick()
        assert first == [str(number) for number in range(1, 21)]
        sensor.finish(first)
        assert sensor.tick() == [str(number) for number in range(21, 26)]
