"""The table of all trials: on the terminal, and as docs/faults.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from lake_assets_tests.faults.trial import LIMIT_SECONDS, Trial

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"

HEADINGS = (
    "fault", "ours stored", "duplicates", "refused", "reported = true", "seconds",
    "helpers.bulk stored", "reported", "ended", "parallel_bulk stored", "reported", "ended",
)  # fmt: skip

Row = dict[str, Trial]
"""The trials of one fault by client."""

PROSE = """# What comes of a load under faults

Written by `make faults`, which ends with 1 where ours is not as promised. A proxy in front of a real node spoils every
third bulk request in one way; what it forwards is really stored. {count:,} good documents, 100 a request. Beside ours
`helpers.bulk` and `helpers.parallel_bulk` of opensearch-py, otherwise with their defaults, and with the same documents,
ids and timeouts; each is killed after {limit:.0f} seconds.

- **stored**: good documents that the node holds afterwards. **duplicates**: surplus copies in the node.
- **refused**: documents that came back with a reason, of those that the node or the proxy never takes.
- **reported**: how many the client says are stored; `–`: it says nothing. **true**: exactly so many are.
- *2 % poison*: 40 more documents whose date is none; the node refuses them itself. *over 1 MB: 413*: every request over
  1 MB is refused, and 10 more documents are larger than that. *node restarted*: stopped and started once, at the fifth
  request. *accepted, then no answer* and *slow drip* (a true answer, one byte in 50 ms): every client waits 1 second.
"""


def row_of(trials: Row) -> list[str]:
    """Makes the cells of one fault."""
    ours = trials["ours"]
    cells = [
        ours.case.name,
        f"{ours.stored}/{ours.count}",
        str(ours.duplicates),
        f"{len(ours.told.refused)} of {len(ours.bad_keys())}" if ours.bad_keys() or ours.told.refused else "–",
        "true" if ours.told.reported == ours.held else f"false: {ours.told.reported}, {ours.held} stored",
        f"{ours.told.seconds:.1f}",
    ]
    for name in ("helpers.bulk", "parallel_bulk"):
        cells += _foreign_cells(trials[name]) if name in trials else ["", "", ""]
    return cells


def _foreign_cells(trial: Trial) -> list[str]:
    copies = f" + {trial.duplicates} twice" if trial.duplicates else ""
    reported = "–" if trial.told.reported is None else str(trial.told.reported)
    return [f"{trial.stored}{copies}", reported, trial.told.ended]


def terminal_table(strategy: str, rows: Sequence[Row]) -> Table:
    """Makes the table of one strategy for the terminal."""
    table = Table(title=f"Ids by `{strategy}`")
    for heading in HEADINGS:
        table.add_column(heading)
    for trials in rows:
        table.add_row(*row_of(trials), style="red" if trials["ours"].complaints() else "")
    return table


def page(by_strategy: dict[str, list[Row]], count: int) -> str:
    """Writes docs/faults.md."""
    text = PROSE.format(count=count, limit=LIMIT_SECONDS)
    for strategy, rows in by_strategy.items():
        lines = [HEADINGS, ["---"] * len(HEADINGS), *(row_of(trials) for trials in rows)]
        text += f"\n## Ids by `{strategy}`\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text
