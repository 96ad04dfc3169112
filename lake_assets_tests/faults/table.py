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
ids and timeouts; each is killed after {limit:.0f} seconds. [ids.md](ids.md) compares the three ways to choose ids.

- **stored**: good documents that the node holds afterwards. **duplicates**: surplus copies in the node.
- **refused**: documents that came back with a reason, of those that the node or the proxy never takes.
- **reported**: how many the client says are stored; `–`: it says nothing. **true**: exactly so many are.
- *2 % poison*: 40 more documents whose date is none; the node refuses them itself. *over 1 MB: 413*: every request over
  1 MB is refused, and 10 more documents are larger than that. *node restarted*: stopped and started once, at the fifth
  request. *accepted, then timeout*, *timeout, then accepted* (the request is carried out half a second after its client
  has given it up), *slow drip* (a true answer, one byte in 50 ms) and *any of them* (all faults, by chance, with a
  seed): every client waits 1 second for an answer. *a quarter lost, then cut*: a quarter of a request's documents is
  not stored, and nothing is answered.
- With ids by `counter` the helpers would do what they do by `source`: both know the id before they send. By
  `opensearch` they send without an id, and the server makes one each time.
- **seconds**: three of ours at a time on the machine that wrote this page.
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
        cells += _foreign_cells(trials[name]) if name in trials else []
    return cells


def _headings(rows: Sequence[Row]) -> Sequence[str]:
    """Gives the headings of what was tried: ours only, or the helpers too."""
    return HEADINGS[: max(len(row_of(trials)) for trials in rows)]


def _foreign_cells(trial: Trial) -> list[str]:
    copies = f" + {trial.duplicates} copies" if trial.duplicates else ""
    reported = "–" if trial.told.reported is None else str(trial.told.reported)
    return [f"{trial.stored}{copies}", reported, trial.told.ended]


def terminal_table(strategy: str, rows: Sequence[Row]) -> Table:
    """Makes the table of one strategy for the terminal."""
    table = Table(title=f"Ids by `{strategy}`")
    for heading in _headings(rows):
        table.add_column(heading)
    for trials in rows:
        table.add_row(*row_of(trials), style="red" if trials["ours"].complaints() else "")
    return table


def page(by_strategy: dict[str, list[Row]], count: int) -> str:
    """Writes docs/faults.md."""
    text = PROSE.format(count=count, limit=LIMIT_SECONDS)
    for strategy, rows in by_strategy.items():
        headings = _headings(rows)
        lines = [headings, ["---"] * len(headings), *(row_of(trials) for trials in rows)]
        text += f"\n## Ids by `{strategy}`\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text
