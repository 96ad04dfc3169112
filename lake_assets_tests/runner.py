"""A process that runs batches and can be held in the middle of one: `python -m lake_assets_tests.runner`.

It reads a line of JSON a run (`environment`, `batch`, `hold`: the table where it is held with rows in hand, or null),
and answers lines: `held`, after which it waits for any line; and in the end `done`, or why not.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

LONGEST_SECONDS = 90


class Runner:
    """The other end: starts such a process, and talks to it."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "lake_assets_tests.runner"]
        root = Path(__file__).parents[1]
        self.process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def begin(self, environment: Mapping[str, str], batch: int, hold: str | None = None) -> None:
        """Begins a run; where it is to be held, waits until it is."""
        self._say(json.dumps({"environment": dict(environment), "batch": batch, "hold": hold}))
        if hold is not None:
            self._expect("held", f"batch {batch} had no rows for {hold}")

    def go(self) -> None:
        """Lets a run go that is held."""
        self._say("go")

    def end(self) -> None:
        """Waits until the run has succeeded."""
        self._expect("done", "the run failed")

    def kill(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _expect(self, wanted: str, otherwise: str) -> None:
        said = self._said.get(timeout=LONGEST_SECONDS)
        assert said == wanted, f"{otherwise}: {said}"

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(line.strip())
        self._said.put("its process ended")


def main() -> None:
    """Runs batches until nobody asks for more."""
    import dagster as dg

    from lake_assets.io_manager import listening
    from lake_assets.settings import Settings
    from lake_assets_tests.road import run_assets, sentence

    for line in sys.stdin:
        asked = json.loads(line)
        reached = threading.Event()

        def hold(table: str, rows: int, key: str = asked["hold"], reached: threading.Event = reached) -> None:
            if table == key and rows and not reached.is_set():
                reached.set()
                print("held", flush=True)
                sys.stdin.readline()

        settings = Settings.model_validate({name.lower(): value for name, value in asked["environment"].items()})
        with listening(hold):
            result = run_assets(dg.DagsterInstance.ephemeral(), settings, asked["batch"])
        print("done" if result.success else sentence(result), flush=True)


if __name__ == "__main__":
    main()
