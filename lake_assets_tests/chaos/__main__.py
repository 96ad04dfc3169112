"""`python -m lake_assets_tests.chaos --kills 200 --seed 1`: kills everything, everywhere, and looks what is left.

Every walk goes down the road on a lake of its own; each command is killed with SIGKILL once, at an instant of the
seed's, and then run again plainly. Ends with 1 where anything differs from the walk that nobody killed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lake_assets.index import node
from lake_assets.settings import Settings
from lake_assets_tests.chaos.node_kill import kill_node
from lake_assets_tests.chaos.scenario import STEPS
from lake_assets_tests.chaos.walk import Trial, walk_killed, walk_usual

NODE_COMMENTS = 20_000
NODE_TAKEN = 5_000
MOST_MISSES = 3
"""An instant may come after the end of its process: of so many walks as are needed times this, no more are tried."""

OUT = Console(highlight=False, width=160)


def main(arguments: list[str]) -> int:
    """Kills as often as asked for; 1 where a plain run did not end like the walk that nobody killed."""
    parser = argparse.ArgumentParser("python -m lake_assets_tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of `lake`, over the whole road")
    parser.add_argument("--seed", default="1", help="chooses the instants")
    ways = ["source", "counter", "opensearch"]
    parser.add_argument("--ids", choices=ways, default="source", help="how ids are chosen")
    parser.add_argument("--without-node", action="store_true", help="do not kill the node as well")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    trials = kill_processes(options.kills, options.seed, options.ids)
    OUT.print(table_of([trial for trial in trials if trial.was_killed]))
    OUT.print(places_of([trial for trial in trials if trial.was_killed]))
    found = [f"{trial.step}, killed at {trial.instant} ({trial.place}): {said}"
             for trial in trials for said in trial.complaints]  # fmt: skip
    kills = sum(trial.was_killed for trial in trials)
    if kills < options.kills:
        found.append(f"only {kills} of {options.kills} instants came before the end of their process")
    if not options.without_node:
        killed = kill_node(NODE_COMMENTS, NODE_TAKEN)
        OUT.print(
            f"node killed when it had taken {killed.held:,} of {NODE_COMMENTS:,}; the ingest said so after "
            f"{killed.seconds:.0f} seconds; after the next: {'; '.join(killed.complaints) or 'equal'}",
            markup=False,
        )
        found += [f"node: {said}" for said in killed.complaints]
    OUT.print(f"{kills} kills, seed {options.seed}, {time.monotonic() - begun:.0f} seconds")
    for said in found:
        OUT.print(said, style="red", markup=False)
    return 1 if found else 0


def kill_processes(kills: int, seed: str, ids: str) -> list[Trial]:
    """Walks until so many processes were killed, a walk a core, on a node of its own."""
    trials: list[Trial] = []

    def tell(trial: Trial) -> None:
        trials.append(trial)
        how = "equal" if not trial.complaints else "; ".join(trial.complaints)
        missed = "" if trial.was_killed else " (ended before)"
        OUT.print(f"  {len(trials)} {trial.step}, {trial.instant}, {trial.place}{missed}: {how}", markup=False)

    with tempfile.TemporaryDirectory(prefix="lake-chaos-", ignore_cleanup_errors=True) as folder:
        home = Settings(_env_file=None, lake_home=Path(folder))
        url = node.start(home, heap="512m", owned=True, java_flags=["-XX:TieredStopAtLevel=1"]).url
        name = f"chaos-{uuid.uuid4().hex[:8]}"
        try:
            usual = walk_usual(url, f"{name}-usual", ids=ids)

            def walk(number: int) -> None:
                left = kills - sum(trial.was_killed for trial in trials)
                if left > 0:
                    walk_killed(url, f"{name}-{number}", usual, f"{seed} {number}", tell, left, ids=ids)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(walk, range(1, MOST_MISSES * (kills // len(STEPS) + 1) + 1)))
        finally:
            node.stop(home)
    return trials


def table_of(trials: list[Trial]) -> Table:
    """Makes the table of what was killed."""
    table = Table("command", "killed", "alone", "equal after the plain run", title="kill -9 of lake")
    for step in STEPS:
        killed = [trial for trial in trials if trial.step == step.name]
        equal = sum(not trial.complaints for trial in killed)
        table.add_row(
            step.name, str(len(killed)), str(sum(trial.instant.alone for trial in killed)), str(equal),
            style="red" if equal < len(killed) else "",
        )  # fmt: skip
    return table


def places_of(trials: list[Trial]) -> Table:
    """Makes the table of where on the road the kills hit: the last that had appeared before."""
    table = Table("last that had happened", "killed", "equal", title="where on the road")
    for place in sorted({trial.place for trial in trials}):
        killed = [trial for trial in trials if trial.place == place]
        table.add_row(place, str(len(killed)), str(sum(not trial.complaints for trial in killed)))
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
