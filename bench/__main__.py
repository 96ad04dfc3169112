"""`python -m bench` measures everything; `python -m bench delivery|ids|road|memory|sensor|index_state` one thing."""

from __future__ import annotations

import importlib
import sys

NAMES = ("delivery", "ids", "road", "memory", "sensor", "index_state")


def main(arguments: list[str]) -> int:
    """Runs the named measurement with the rest of the arguments, or all; exit code 1 where a target was missed."""
    if arguments and arguments[0] not in NAMES:
        print(f"There is no measurement {arguments[0]}; there are: {', '.join(NAMES)}.", file=sys.stderr)
        return 2
    from bench.nodes import OUT, machine

    OUT.print(f"{machine()}\n")
    met = [
        importlib.import_module(f"bench.{name}").main(arguments[1:]) for name in (arguments[:1] if arguments else NAMES)
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
