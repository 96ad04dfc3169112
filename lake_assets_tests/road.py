"""Drives a lake under test: lands objects, claims them, runs assets of a batch in this process, looks at everything."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from lake_assets.contracts import TABLES
from lake_assets.index.client import connect
from lake_assets.lake.batches import Ledger, claim
from lake_assets.lake.raw_zone import RawZone, S3RawZone, raw_zone
from lake_assets.lake.tables import Lake, local_path
from lake_assets.science import metrics
from lake_assets.settings import Settings, given
from lake_assets.text.sources import load_sources
from lake_assets.ui import child_environment
from lake_assets_tests.servers import S3Server

KINDS = ["file", pytest.param("s3", marks=pytest.mark.storage)]
METRICS = ["metrics/language", "metrics/sentiment", "metrics/size"]
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@contextmanager
def fresh_settings(request: pytest.FixtureRequest, kind: str, folder: Path, **more: Any) -> Iterator[Settings]:
    """Gives settings of an empty lake of a kind, `file` or `s3`; its index is deleted in the end."""
    url = request.getfixturevalue("opensearch_url")
    given = {"lake_home": folder / ".lake", "opensearch_url": url, "opensearch_alias": f"test-{uuid.uuid4().hex[:12]}"}
    if kind == "s3":
        server: S3Server = request.getfixturevalue("s3")
        given |= {"lake_url": f"s3://{server.bucket()}/lake", **server.settings()}
    settings = Settings.model_validate({**given, "lake_sources": folder / "sources.toml", **more})
    yield settings
    client = connect(settings, url)
    for name in client.indices.get(index=f"{settings.opensearch_alias}*"):
        client.indices.delete(index=name)


@dataclass(frozen=True)
class State:
    """All there is at one moment: the rows of every table, their versions, and what the index holds."""

    tables: dict[str, pl.DataFrame]
    versions: dict[str, int]
    index: dict[str, dict[str, Any]]

    def __getitem__(self, key: str) -> pl.DataFrame:
        return self.tables[key]


class Road:
    """A lake under test. Runs go to a Dagster instance in memory, as the one of `lake ingest` takes seconds a run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lake = Lake(settings)
        self.instance = dg.DagsterInstance.ephemeral()

    @property
    def zone(self) -> RawZone:
        return raw_zone(self.settings)

    def land(self, objects: Mapping[str, bytes]) -> None:
        """Puts objects under the raw root, whatever their names."""
        zone = self.zone
        if isinstance(zone, S3RawZone):
            client = zone._boto()
            with ThreadPoolExecutor(4) as threads:
                put = partial(client.put_object, Bucket=zone.bucket)
                list(threads.map(lambda item: put(Key=f"{zone.prefix}/{item[0]}", Body=item[1]), objects.items()))
            return
        for path, content in objects.items():
            target = local_path(self.settings.raw_root) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def remove(self, path: str) -> None:
        """Deletes an object from the raw root."""
        zone = self.zone
        if isinstance(zone, S3RawZone):
            zone._boto().delete_object(Bucket=zone.bucket, Key=f"{zone.prefix}/{path}")
        else:
            (local_path(self.settings.raw_root) / path).unlink()

    def claim(self) -> list[int]:
        """Claims everything that is new under the raw root."""
        sources = load_sources(self.settings.lake_sources)
        return claim(self.lake, Ledger(self.lake), self.zone.look(), self.settings, sources, rest=False).batches

    def run(self, batch: int, *keys: str) -> dg.ExecuteInProcessResult:
        """Materialises assets of a batch, in their order; all of them, if none is named."""
        return run_assets(self.instance, self.settings, batch, *keys)

    def take(self, objects: Mapping[str, bytes]) -> list[int]:
        """Lands, claims and runs, and fails where a step does."""
        self.land(objects)
        batches = self.claim()
        for batch in batches:
            result = self.run(batch)
            assert result.success, sentence(result)
        return batches

    def state(self) -> State:
        """Reads everything there is."""
        return read_state(self.settings)


def run_assets(instance: dg.DagsterInstance, settings: Settings, batch: int, *keys: str) -> dg.ExecuteInProcessResult:
    """Materialises assets of a batch with an instance; all of them, if none is named."""
    instance.add_dynamic_partitions("batch", [str(batch)])
    with given(settings):
        return _job(tuple(metrics.__path__)).execute_in_process(
            instance=instance,
            partition_key=str(batch),
            asset_selection=[dg.AssetKey(key.split("/")) for key in keys] or None,
            raise_on_error=False,
            run_config=QUIET,
        )


def set_environment(patch: pytest.MonkeyPatch, wanted: Mapping[str, str]) -> None:
    """Sets variables for the Python code of this process, and for no child of it.

    The environment itself stays as it is: native threads read it at any time, and one that moves crashes them.
    """
    patch.setattr(os, "environ", {**os.environ, **wanted})


@cache
def _job(places: tuple[str, ...]) -> dg.JobDefinition:
    """Makes the job of all assets; `places` are the folders where metrics are found."""
    from lake_assets.definitions import defs

    return defs().resolve_implicit_global_asset_job_def()


def forget_metrics() -> None:
    """Forgets the job that was made of the metrics, as a code location that is loaded anew does."""
    _job.cache_clear()


def sentence(result: dg.ExecuteInProcessResult) -> str:
    """Gives the message of the first step that failed, without the names of its classes."""
    error = result.filter_events(lambda event: event.is_step_failure)[0].step_failure_data.error
    while error is not None and error.cause is not None:
        error = error.cause
    assert error is not None
    return error.message.split(": ", 1)[-1].strip()


def metadata(result: dg.ExecuteInProcessResult, key: str) -> dict[str, Any]:
    """Gives the plain values that a run's materialisation of an asset shows."""
    [event] = [e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey(key.split("/"))]
    return {name: value.value for name, value in event.materialization.metadata.items()}


def read_index(settings: Settings) -> dict[str, dict[str, Any]]:
    """Gives id → hit with _source, _version and _seq_no of everything in the index; empty when there is none."""
    client = connect(settings, settings.opensearch_url)
    alias = settings.opensearch_alias
    if not client.indices.exists_alias(name=alias):
        return {}
    client.indices.refresh(index=alias)
    answer = client.search(index=alias, body={"size": 10_000, "version": True, "seq_no_primary_term": True})
    hits = answer["hits"]["hits"]
    assert answer["hits"]["total"]["value"] == len(hits)
    return {hit["_id"]: {name: hit[name] for name in ("_source", "_version", "_seq_no")} for hit in hits}


def read_state(settings: Settings, more: tuple[str, ...] = ()) -> State:
    """Reads every table, those of the metrics with `more` of them too, and the index."""
    lake = Lake(settings)
    tables, versions = {}, {}
    for key in TABLES:
        snapshot = lake.read(key)
        tables[key] = _ordered(snapshot.frame())
        versions[key] = snapshot.version
    for key in (*METRICS, *more):
        snapshot = lake.table(key, TABLES["enrich/documents"]).snapshot()
        tables[key] = _ordered(snapshot.frame())
        versions[key] = snapshot.version
    return State(tables, versions, read_index(settings))


def assert_same(one: State, other: State, but: tuple[str, ...] = ()) -> None:
    """Compares two states: every row of every table but for some columns, and every document with its version."""
    assert {
        key for key in one.tables if not _equal(one[key].drop(but, strict=False), other[key].drop(but, strict=False))
    } == set()
    assert {id for id in {*one.index, *other.index} if one.index.get(id) != other.index.get(id)} == set()


def assert_index_is_clean(state: State) -> None:
    """Compares ids and texts of the index with those of clean; each must be there once."""
    clean = state["clean/documents"]
    assert clean["id"].is_unique().all()
    assert dict(clean.select("id", "text").rows()) == {id: hit["_source"]["text"] for id, hit in state.index.items()}
    for key in ("indexing/documents", "opensearch/documents", "enrich/documents", *METRICS):
        assert state[key].height == clean.height, key


def write_metric(folder: Path, name: str, source: str) -> None:
    """Writes the file of a metric, and forgets what Python knew of an earlier one."""
    import importlib
    import sys

    folder.mkdir(exist_ok=True)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    (folder / f"{name}.py").write_text(source)
    sys.modules.pop(f"{metrics.__name__}.{name}", None)
    importlib.invalidate_caches()
    forget_metrics()


def _ordered(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort(frame.columns) if frame.height else frame


def _equal(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    return _ordered(one).equals(_ordered(other))


def environment(settings: Settings) -> dict[str, str]:
    """Gives the environment in which a command of `lake` works on this lake and no other."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LAKE_CACHE") if name in os.environ}
    made = child_environment(settings, settings.opensearch_url)
    wanted = ("LAKE_", "AWS_", "OPENSEARCH_", "DAGSTER_", "RAW_")
    return {**kept, "PYTHONWARNINGS": "ignore", **{k: v for k, v in made.items() if k.startswith(wanted)}}
