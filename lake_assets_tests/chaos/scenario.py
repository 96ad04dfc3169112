"""The road that is walked under kills: files that are made, and the commands of `lake` that take them, in their order.

Every object is here for what it provokes: a broken line and a row too long stay in the quarantine, letters leave it
when their encoding is declared rightly, comments are changed, removed and added, a page has no key of its own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

WRONG = '[[source]]\nname = "letters"\nprefix = "box/letters/"\nencoding = "ascii"\n'
RIGHT = WRONG.replace("ascii", "utf-8")
WORDS = {
    "good": ("wonderful", "love", "happy", "great", "light", "works"),
    "bad": ("terrible", "awful", "broken", "never", "bad", "rain"),
    "plain": ("the", "bike", "helmet", "was", "and", "my", "old", "lamp", "in", "how", "this", "with", "it", "shop"),
}
COMMENTS, ROWS, LETTERS = 300, 120, 40


@dataclass(frozen=True)
class Step:
    """A command of `lake`, and what is changed on the disk before it."""

    name: str
    arguments: tuple[str, ...]
    prepare: Callable[[Path], None] = lambda folder: None


def text(number: int, edition: int = 0) -> str:
    """Makes a text of some words; the same numbers give the same text."""
    choice = random.Random(f"{number} {edition}")
    words = (*WORDS["plain"], *WORDS[choice.choice(("good", "bad", "plain"))])
    return " ".join(choice.choices(words, k=choice.randint(4, 30)))


def comments(numbers: Iterable[int], changed: Callable[[int], bool] = lambda number: False) -> str:
    """Makes a JSON line of each number."""
    rows = ({"id": number, "text": text(number, int(changed(number))), "votes": number % 7} for number in numbers)
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(numbers: Iterable[int], edition: int = 0) -> str:
    """Makes a CSV of a row a number, and one row that has too many fields."""
    return "id,title,text\n" + "".join(f"{n},title {n},{text(n, edition)}\n" for n in numbers) + "x,y,z,one too many\n"


def _write(folder: Path, name: str, content: str) -> None:
    target = folder / "box" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content, encoding="utf-8")


def _first(folder: Path) -> None:
    (folder / "sources.toml").write_text(WRONG)
    letters = (json.dumps({"id": n, "text": f"café {text(n)}"}, ensure_ascii=False) + "\n" for n in range(LETTERS))
    _write(folder, "comments.jsonl", comments(range(COMMENTS)) + "{broken\n")
    _write(folder, "rows.csv", table(range(ROWS)))
    _write(folder, "page.html", f"<html><head><title>A page</title></head><body><p>{text(1)}</p></body></html>")
    _write(folder, "letters/all.jsonl", "".join(letters))


def _update(folder: Path) -> None:
    """Removes a tenth of the comments, changes a tenth, adds a tenth."""
    kept = (number for number in range(COMMENTS + COMMENTS // 10) if number % 10 != 3)
    _write(folder, "comments.jsonl", comments(kept, lambda number: number % 10 == 5) + "{broken\n")


def _declare(folder: Path) -> None:
    (folder / "sources.toml").write_text(RIGHT)


def _grow(folder: Path) -> None:
    _write(folder, "rows.csv", table(range(20, ROWS + 20), 1))
    _write(folder, "more.jsonl", comments(range(50)))


INGEST = ("ingest", "box")
STEPS = (
    Step("ingest", INGEST, _first),
    Step("update of an object", INGEST, _update),
    Step("index rebuild", ("index", "rebuild")),
    Step("quarantine replay", ("quarantine", "replay", "--path", "box/letters/"), _declare),
    Step("update and new object", INGEST, _grow),
)
