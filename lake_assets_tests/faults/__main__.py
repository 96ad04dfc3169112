"""`python -m lake_assets_tests.faults`: every fault, ours beside opensearch-py's helpers; writes docs/faults.md.

Names of faults as arguments try only those and write nothing; `--ours` leaves out the helpers.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from lake_assets.index import node
from lake_assets.settings import Settings
from lake_assets_tests.faults.cases import CASES, COUNT, STRATEGIES, Case, Strategy
from lake_assets_tests.faults.clients import CLIENTS
from lake_assets_tests.faults.table import PAGE, Row, page, terminal_table
from lake_assets_tests.faults.trial import Restart, Trial, try_client

OURS_BESIDE, BESIDE = 3, 4
"""So many trials at once, of ours and of the helpers: they mostly wait, or only hang."""

OUT = Console(highlight=False, width=190)


@contextlib.contextmanager
def own_node() -> Iterator[tuple[str, Restart]]:
    """Runs a node of its own; gives its address, and what stops it and starts it there again."""
    with tempfile.TemporaryDirectory(prefix="lake-faults-", ignore_cleanup_errors=True) as folder:
        home = Settings(_env_file=None, lake_home=Path(folder))
        flags = ["-XX:TieredStopAtLevel=1"]
        state = node.start(home, heap="512m", owned=True, java_flags=flags)

        def restart() -> None:
            node.stop(home)
            node.start(home, port=state.port, heap="512m", owned=True, java_flags=flags)

        try:
            yield state.url, restart
        finally:
            node.stop(home)


def try_all(
    strategies: Sequence[Strategy], cases: Sequence[Case], clients: Sequence[str], count: int
) -> dict[str, list[Row]]:
    """Tries every case with every client; the restarts come last, one after the other, on a node that belongs to them.

    Returns:
        By strategy a row for each case.
    """
    trials: list[Trial] = []

    def tried(url: str, client: str, case: Case, strategy: Strategy, restart: Restart | None = None) -> None:
        trial = try_client(client, case, strategy, url, count=count, restart=restart)
        named = f"{case.name}, {strategy.name}, {client}"
        OUT.print(f"  {named}: {trial.stored} stored, {trial.told.ended}, {trial.told.seconds:.1f} s")
        trials.append(trial)

    todo = [
        (client, case, strategy)
        for case in cases
        for client in clients
        for strategy in strategies
        if client == "ours" or strategy.has_rivals
    ]
    calm = [one for one in todo if not one[1].restarts]
    if calm:
        with own_node() as (url, _):
            for is_ours, at_once in ((True, OURS_BESIDE), (False, BESIDE)):
                with ThreadPoolExecutor(at_once) as pool:
                    chosen = [one for one in calm if (one[0] == "ours") == is_ours]
                    for pending in [pool.submit(tried, url, *one) for one in chosen]:
                        pending.result()
    if len(calm) < len(todo):
        with own_node() as (url, restart):
            for one in todo:
                if one[1].restarts:
                    tried(url, *one, restart)
    found = {(trial.strategy, trial.case.name, trial.client): trial for trial in trials}
    return {
        strategy.name: [
            {client: found[key] for client in clients if (key := (strategy.name, case.name, client)) in found}
            for case in cases
        ]
        for strategy in strategies
    }


def main(arguments: list[str]) -> int:
    """Tries everything that was asked for; 1 where ours is not as promised."""
    parser = argparse.ArgumentParser("python -m lake_assets_tests.faults", description="Tries every fault.")
    names = [case.name for case in CASES]
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"only these: {'; '.join(names)}".replace("%", "%%"))
    parser.add_argument("--ours", action="store_true", help="without opensearch-py's helpers")
    parser.add_argument("--documents", type=int, default=COUNT, help="good documents of a case")
    options = parser.parse_args(arguments)
    if unknown := set(options.faults) - set(names):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}; there are: {'; '.join(names)}")
    cases = [case for case in CASES if not options.faults or case.name in options.faults]
    clients = ["ours"] if options.ours else list(CLIENTS)
    begun = time.monotonic()
    rows = try_all(list(STRATEGIES.values()), cases, clients, options.documents)
    complaints: list[str] = []
    for name, found in rows.items():
        OUT.print(terminal_table(name, found))
        for trials in found:
            complaints += [f"{name}, {trials['ours'].case.name}: {said}" for said in trials["ours"].complaints()]
    OUT.print(f"{time.monotonic() - begun:.0f} seconds")
    for complaint in complaints:
        OUT.print(f"[red]{complaint}[/]")
    if len(cases) == len(CASES) and len(clients) == len(CLIENTS) and options.documents == COUNT:
        PAGE.write_text(page(rows, COUNT), encoding="utf-8")
        OUT.print(f"written: {PAGE.relative_to(PAGE.parents[1])}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
