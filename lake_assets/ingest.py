"""`lake ingest`: copies files under the raw root, claims them, and runs their batches in this process.

The runs are those of Dagster's page, on the same instance: what was done here shows there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from lake_assets.errors import LakeError
from lake_assets.index.node import opensearch_url
from lake_assets.lake.batches import Ledger, claim
from lake_assets.lake.raw_zone import Listing, RawZone, raw_zone
from lake_assets.lake.tables import Lake
from lake_assets.settings import Settings, given
from lake_assets.text.sources import load_sources
from lake_assets.ui import prepare_dagster_home

if TYPE_CHECKING:
    import dagster as dg

REST = "group:enrich or key:opensearch/metrics or group:quarantine or key:opensearch/index"
REPLAY_TAG = {"lake_assets/replay": "true"}
Progress = Callable[..., None]  # a sentence, and how far it is, 0..1


@dataclass
class Ingested:
    """What an ingest did.

    Attributes:
        objects: copied or found under the raw root.
        batches: that were run.
        failures: a sentence for each step that failed.
    """

    objects: int = 0
    batches: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def ingest(settings: Settings, paths: Sequence[Path], progress: Progress = lambda *_: None) -> Ingested:
    """Takes files and folders into the lake, and finishes every batch and every replay that is not finished.

    Args:
        settings: OpenSearch must answer at its URL, or the local node must run.
        paths: files, and folders with all below them.
        progress: told what is being done, and how much of it is done, 0..1.

    Raises:
        LakeError: a path is not there.
    """
    done = Ingested()
    with dagster_instance(settings) as instance:
        ledger = Ledger(Lake(settings)).refresh()
        _run_batches(instance, _interrupted(instance), done, progress, REPLAY_TAG)
        _run_batches(instance, _unfinished(instance, ledger), done, progress)  # their bytes may be about to be replaced
        zone = raw_zone(settings)
        names = list(dict.fromkeys(_copy(zone, paths, progress)))
        done.objects = len(names)
        landed = zone.head(names)
        sources = load_sources(settings.lake_sources)
        claim(ledger.lake, ledger, _single(landed), settings, sources, rest=False)
        _run_batches(instance, _unfinished(instance, ledger), done, progress)
    return done


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Opens the Dagster instance of DAGSTER_HOME, made ready where new; inside, this process has these settings."""
    import dagster as dg

    home = prepare_dagster_home(settings)
    with (
        given(settings.model_copy(update={"opensearch_url": opensearch_url(settings)})),
        dg.DagsterInstance.from_config(str(home)) as instance,
    ):
        yield instance


def _single(landed: pl.DataFrame) -> Listing:
    """Makes a listing that says nothing of other objects: nothing is absent from it."""
    return Listing(landed, after="\U0010ffff", until="")


def _copy(zone: RawZone, paths: Sequence[Path], progress: Progress) -> Iterator[str]:
    """Copies what is not there yet with the same bytes, and gives each object's path.

    Hidden files of a folder are left out: names that begin with a dot are no objects.
    """
    taken: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise LakeError(f"There is no file or folder {path}; give the path of a text file.")
        for file in [path] if path.is_file() else _visible_files(path):
            name = file.name if path.is_file() else f"{path.resolve().name}/{file.relative_to(path).as_posix()}"
            name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if not taken.setdefault(name, file).samefile(file):
                raise LakeError(
                    f"{taken[name]} and {file} would both become {name}; ingest the folder that holds both."
                )
            try:
                if not zone.holds(name, file):
                    progress(f"Copying {name}")
                    zone.put(name, file)
            except OSError as error:
                raise LakeError(f"{file} cannot be copied to the raw zone: {error.strerror or error}.") from None
            yield name


def _visible_files(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def _unfinished(instance: dg.DagsterInstance, ledger: Ledger) -> list[int]:
    """Finds the claimed batches whose documents have not reached the index with their metrics."""
    import dagster as dg

    finished = instance.get_materialized_partitions(dg.AssetKey(["opensearch", "metrics"]))
    return sorted(set(ledger.rows["batch"].unique()) - {int(key) for key in finished})


def run_again(settings: Settings, batches: Sequence[int], progress: Progress = lambda *_: None) -> Ingested:
    """Runs the whole road of some batches again; what is unchanged is neither sent nor measured again.

    Args:
        settings: OpenSearch must answer at its URL, or the local node must run.
        batches: that were claimed.
        progress: told what is being done, and how much of it is done, 0..1.
    """
    done = Ingested()
    with dagster_instance(settings) as instance:
        _run_batches(instance, batches, done, progress, REPLAY_TAG)
    return done


def interrupted(settings: Settings) -> list[int]:
    """Finds the batches whose last run by `run_again` failed, or died with its process, before its end."""
    import dagster as dg

    with dg.DagsterInstance.from_config(str(prepare_dagster_home(settings))) as instance:
        return _interrupted(instance)


def _interrupted(instance: dg.DagsterInstance) -> list[int]:
    import dagster as dg

    from lake_assets.engineering.sensors import has_died

    unsuccessful = [status for status in dg.DagsterRunStatus if status != dg.DagsterRunStatus.SUCCESS]
    runs = instance.get_runs(dg.RunsFilter(tags=REPLAY_TAG, statuses=unsuccessful))
    batches = {run.tags["dagster/partition"] for run in runs}
    tags = ({**REPLAY_TAG, "dagster/partition": batch} for batch in batches)
    last = [instance.get_runs(dg.RunsFilter(tags=each), limit=1)[0] for each in tags]  # the newest comes first
    return sorted(
        int(run.tags["dagster/partition"])
        for run in last
        if not run.is_success and (run.is_finished or has_died(instance, run))
    )


def _run_batches(
    instance: dg.DagsterInstance,
    batches: Sequence[int],
    done: Ingested,
    progress: Progress,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Runs the whole road of some batches, a run each.

    Where a metric failed, a second run takes the rest of the road without it. A failed batch does not stop the others.
    """
    if not batches:
        return
    import dagster as dg

    from lake_assets.definitions import defs
    from lake_assets.engineering.sensors import process_tag
    from lake_assets.io_manager import listening

    definitions = defs()
    job = definitions.resolve_implicit_global_asset_job_def()
    rest = dg.AssetSelection.from_string(REST).resolve(definitions.resolve_asset_graph())
    instance.add_dynamic_partitions("batch", [str(batch) for batch in batches])
    _bury_dead_runs(instance)

    def run(batch: int, keys: Sequence[dg.AssetKey] | None) -> dg.ExecuteInProcessResult:
        result = job.execute_in_process(
            instance=instance,
            partition_key=str(batch),
            asset_selection=keys,
            raise_on_error=False,
            tags={**process_tag(), **(tags or {})},
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        done.failures += [f"Batch {batch}, {name}: {sentence}" for name, sentence in _failures(result)]
        return result

    assets = len(definitions.resolve_asset_graph().get_all_asset_keys())
    for number, batch in enumerate(batches, 1):
        with listening(_Meter(batch, (number - 1) / len(batches), 1 / len(batches) / assets, progress).show):
            result = run(batch, None)
        failed = [event.step_key or "" for event in result.filter_events(lambda event: event.is_step_failure)]
        if failed and all(key.startswith("metrics__") for key in failed):
            run(batch, sorted(rest))
        done.batches.append(batch)


def _bury_dead_runs(instance: dg.DagsterInstance) -> None:
    """Ends what killed processes left in Dagster: runs that look alive, and the pool slots that they hold for ever."""
    import dagster as dg

    from lake_assets.engineering.sensors import has_died

    alive = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    for run in instance.get_runs(dg.RunsFilter(statuses=alive)):
        has_died(instance, run)
    for run_id in instance.event_log_storage.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)


@dataclass
class _Meter:
    """Says how far a batch is: by the tables that were begun."""

    batch: int
    begun: float
    share: float
    progress: Progress
    keys: set[str] = field(default_factory=set)

    def show(self, key: str, rows: int) -> None:
        self.keys.add(key)
        self.progress(f"Batch {self.batch}, {key}: {rows:,} rows", self.begun + self.share * len(self.keys))


def _failures(result: dg.ExecuteInProcessResult) -> Iterator[tuple[str, str]]:
    """Gives step and sentence of each failed step; of an error that is not ours only its class."""
    for event in result.filter_events(lambda event: event.is_step_failure):
        error = event.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        known = error is not None and error.cls_name in {kind.__name__ for kind in LakeError.__subclasses__()}
        name = (event.step_key or "").replace("__", "/")
        yield (
            name,
            error.message.split(": ", 1)[-1].strip()
            if known and error
            else f"{error and error.cls_name}; the run's page has the whole.",
        )
