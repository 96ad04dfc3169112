"""Walks the road on a lake of its own, with and without kills, and tells how what came of it differs."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from lake_assets.errors import LakeError
from lake_assets.index.client import connect
from lake_assets.index.compare import compare
from lake_assets.lake.tables import Lake
from lake_assets.settings import Settings
from lake_assets_tests.chaos.kill import LIMIT_SECONDS, Instant, Ran, Watch, choose, run
from lake_assets_tests.chaos.scenario import INGEST, STEPS, Step
from lake_assets_tests.road import State, assert_index_is_clean, environment, read_state

OF_A_WALK = {"etag", "last_modified", "claimed_at", "computed_at", "refused_at", "seq_no", "version", "result", "index"}
"""Columns that differ between two walks: times, tags of files, versions, and how often something was sent."""

SLOTS = "SELECT concurrency_key, run_id, step_key FROM concurrency_slots WHERE run_id IS NOT NULL AND deleted = 0"


@dataclass(frozen=True)
class Usual:
    """What a step does and leaves when nobody kills it."""

    step: Step
    ran: Ran
    state: State


@dataclass
class Trial:
    """A kill: where it hit, and what was wrong after the plain run that followed."""

    step: str
    instant: Instant
    place: str
    was_killed: bool
    complaints: list[str] = field(default_factory=list)


class Walker:
    """A lake of its own in a folder, with an alias of its own on a node."""

    def __init__(self, folder: Path, url: str, alias: str, ids: str) -> None:
        self.folder = folder
        told: dict[str, Any] = {"lake_home": folder / "home", "lake_sources": folder / "sources.toml", "lake_ids": ids,
                                "opensearch_url": url, "opensearch_alias": alias}  # fmt: skip
        self.settings = Settings(_env_file=None, **told)
        self.environment = environment(self.settings)
        self.watch = Watch(folder / "home", url, alias)
        self.held: list[tuple[str, str, str]] = []  # slots that were complained of: each once

    def run(self, step: Step, instant: Instant | None = None) -> Ran:
        """Runs a step's command, to its end or to an instant."""
        return run(step.arguments, self.environment, self.folder, self.watch, instant)

    def complaints(self, ran: Ran, usual: State) -> list[str]:
        """Tells what is wrong after a plain run."""
        if ran.has_hung:
            return [f"not ended within {LIMIT_SECONDS:.0f} seconds", *self._lock_complaints()]
        found = [f"ends with {ran.code}: {ran.err[-500:]}{ran.out[-300:]}"] if ran.code else []
        found += [f"left running: {name}" for name in ran.left]
        state = read_state(self.settings)
        found += differences(state, usual, self.settings.lake_ids)
        try:
            assert_index_is_clean(state)
        except AssertionError as error:
            found.append(f"the index is not clean: {str(error)[:300]}")
        return [*found, *self._index_complaints(), *self._lock_complaints()]

    def end_complaints(self) -> list[str]:
        """Tells what is wrong at the end of a walk: the same again must be nothing new, and the index equal."""
        again = self.run(Step("the same again", (*INGEST, "--json")))
        found = [] if again.code == 0 and json.loads(again.out)["batches"] == [] else [f"not finished: {again.out}"]
        compared = self.run(Step("compare", ("index", "compare", "--json")))
        if compared.code or json.loads(compared.out)["counts"]:
            found.append(f"lake index compare ends with {compared.code}: {compared.out[:500]}{compared.err[-500:]}")
        return found

    def _index_complaints(self) -> list[str]:
        alias, url = self.settings.opensearch_alias, self.settings.opensearch_url
        client = connect(self.settings, url)
        found = []
        try:
            compared = compare(client, alias, Lake(self.settings))
        except LakeError as error:
            return [str(error)]
        if compared.differences.height:
            found.append(f"differ or in flight: {compared.differences['kind'].value_counts().rows()}")
        for index, told in client.indices.get_alias(index=f"{alias}*").items():
            found += [f"the alias {name} is left on {index}" for name in told["aliases"] if name != alias]
            if not told["aliases"] and index > compared.index:
                found.append(f"the index {index} is left, newer than the alias")
        return found

    def _lock_complaints(self) -> list[str]:
        """Takes the write lock of every SQLite file once, lets SQLite look whether each is whole, and looks for slots.

        Dagster keeps them: a step with a pool waits, for ever, until one of the pool's is free.
        """
        found = []
        for path in self.settings.lake_home.rglob("*.db"):
            with contextlib.closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as database:
                try:
                    database.execute("BEGIN IMMEDIATE")
                    database.execute("ROLLBACK")
                    told = database.execute("PRAGMA quick_check").fetchone()[0]
                    held = database.execute(SLOTS).fetchall() if path.name == "event_log.db" else []
                except sqlite3.Error as error:
                    told, held = str(error), []
            found += [] if told == "ok" else [f"{path.name}: {told}"]
            fresh = [each for each in held if each not in self.held]
            self.held += fresh
            found += [f"{step} of run {run} still holds a slot of the pool {pool}" for pool, run, step in fresh]
        return found


@contextlib.contextmanager
def walker(url: str, alias: str, ids: str = "source") -> Iterator[Walker]:
    """Gives an empty lake with a name of its own in the node; afterwards both are gone."""
    with tempfile.TemporaryDirectory(prefix="lake-chaos-", ignore_cleanup_errors=True) as folder:
        walking = Walker(Path(folder), url, alias, ids)
        try:
            yield walking
        finally:
            client = connect(walking.settings, url)
            for name in client.indices.get(index=f"{alias}*"):
                client.indices.delete(index=name)


def differences(state: State, usual: State, ids: str = "source") -> list[str]:
    """Tells which tables and documents differ from those of the walk that nobody killed.

    Ids that are not computed are others in every walk.
    """
    found = []
    for key, table in state.tables.items():
        columns = sorted(set(table.columns) - OF_A_WALK - ({"id"} if ids != "source" else set()))
        one, other = (frame.select(columns).sort(columns) for frame in (table, usual[key]))
        if not one.equals(other):
            surplus = _counted(one, columns).join(_counted(other, columns), on=[*columns, "len"], how="anti",
                                                  nulls_equal=True)  # fmt: skip
            found.append(f"{key}: {one.height} rows instead of {other.height}, {surplus.height} others")
    one, other = _sources(state), _sources(usual)
    wrong = sum(one.get(name) != other.get(name) for name in {*one, *other})
    if wrong or len(state.index) != len(usual.index):
        found.append(f"index: {len(state.index)} documents instead of {len(usual.index)}, {wrong} differ")
    return found


def _counted(frame: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    return frame.group_by(columns).len()


def _sources(state: State) -> dict[tuple[str, str], object]:
    return {(hit["_source"]["path"], hit["_source"]["key"]): hit["_source"] for hit in state.index.values()}


def walk_usual(url: str, alias: str, steps: Sequence[Step] = STEPS, ids: str = "source") -> list[Usual]:
    """Walks the road and kills nothing: what every other walk has to end like.

    Raises:
        RuntimeError: something is wrong even so.
    """
    usual = []
    with walker(url, alias, ids) as walking:
        for step in steps:
            step.prepare(walking.folder)
            ran = walking.run(step)
            usual.append(Usual(step, ran, read_state(walking.settings)))
            if found := walking.complaints(ran, usual[-1].state):
                raise RuntimeError(f"{step.name}, which nobody killed: {'; '.join(found)}")
    return usual


def walk_killed(
    url: str,
    alias: str,
    usual: Sequence[Usual],
    seed: str,
    tell: Callable[[Trial], None],
    most: int = len(STEPS),
    in_a_row: int = 1,
    ids: str = "source",
) -> None:
    """Walks the road, kills every command at an instant of the seed's, and runs it again plainly.

    Args:
        url: of the node.
        alias: a name that nothing of the node has.
        usual: what `walk_usual` gave.
        seed: chooses the instants.
        tell: given each kill when the plain run after it has been looked at, and what is wrong with it.
        most: commands that are killed; which are spared is the seed's choice too.
        ids: how they are chosen, as LAKE_IDS has it.
        in_a_row: kills before a plain run: of the command, of the run that should have mended it, and so on.
    """
    choice = random.Random(seed)
    spared = set(choice.sample(range(len(usual)), max(0, len(usual) - most)))
    with walker(url, alias, ids) as walking:
        for number, each in enumerate(usual):
            each.step.prepare(walking.folder)
            trials = [_kill(walking, each, choice) for _ in range(0 if number in spared else in_a_row)]
            mended = walking.run(each.step)
            found = walking.complaints(mended, each.state)
            if number == len(usual) - 1 and not mended.has_hung:
                found += walking.end_complaints()
            if not trials and found:  # an earlier kill shows only now
                trials = [Trial(each.step.name, Instant(0, 0.0, False), "spared", False)]
            for trial in trials:
                trial.complaints += found
                tell(trial)
            if mended.has_hung:
                return


def _kill(walking: Walker, usual: Usual, choice: random.Random) -> Trial:
    instant = choose(choice, usual.ran)
    killed = walking.run(usual.step, instant)
    left = [f"left running after the kill: {name}" for name in killed.left]
    return Trial(usual.step.name, instant, killed.place, killed.was_killed, left)
