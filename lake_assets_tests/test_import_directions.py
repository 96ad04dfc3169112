"""DESIGN.md, section 3: the tree reads from the top floor down, and nobody imports upwards."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lake_assets

PACKAGE = Path(lake_assets.__file__).parent
FLOORS = [
    ["cli"],
    ["quarantine"],
    ["demo", "ingest", "status"],
    ["ui"],
    ["definitions"],
    ["engineering", "science"],
    ["io_manager"],
    ["index"],
    ["lineage"],
    ["lake"],
    ["text"],
    ["contracts"],
    ["settings"],
    ["errors", "guard"],
]
"""From the top down; entries of one floor do not import each other."""
FLOOR_OF = {entry: number for number, floor in enumerate(FLOORS) for entry in floor}
MAY_IMPORT_DAGSTER = {"cli", "ingest", "ui", "definitions", "engineering", "science", "io_manager"}
NETWORK = {"boto3", "botocore", "http", "httpx", "obstore", "opensearchpy", "requests", "socket", "urllib3"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, source: str) -> Iterator[str]:
    """Gives the full dotted name of everything a file imports, wherever in the file, `TYPE_CHECKING` included."""
    package = ("lake_assets", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def entry_of(path: Path) -> str:
    """Gives the entry of the tree that a file belongs to, for instance `index` or `settings`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(path: Path) -> set[str]:
    """Gives the other entries that a file imports."""
    names = (name.split(".") for name in imports(path, path.read_text(encoding="utf-8")))
    return {parts[1] for parts in names if parts[0] == "lake_assets" and len(parts) > 1} - {entry_of(path)}


def test_every_entry_of_the_tree_has_its_floor() -> None:
    entries = {entry_of(path) for path in FILES} - {"__init__"}
    assert entries - set(FLOOR_OF) == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_stands_below_it(path: Path) -> None:
    floor = FLOOR_OF.get(entry_of(path), len(FLOORS))  # lake_assets/__init__.py imports nothing of the tree
    upwards = {entry for entry in own_imports(path) if FLOOR_OF.get(entry, len(FLOORS)) <= floor}
    assert upwards == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_its_floors_import_dagster_and_text_knows_no_network(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path, path.read_text(encoding="utf-8"))}
    if entry_of(path) not in MAY_IMPORT_DAGSTER:
        assert {name for name in outside if name.startswith("dagster")} == set()
    if entry_of(path) == "text":
        assert outside & NETWORK == set()


def test_an_import_is_seen_in_whatever_form_it_is_written() -> None:
    source = """
import lake_assets.cli
from lake_assets import definitions
def late():
    from ..engineering.raw import records
    from . import ids
    import dagster as dg
"""
    assert list(imports(PACKAGE / "index" / "delivery.py", source)) == [
        "lake_assets.cli",
        "lake_assets.definitions",
        "lake_assets.engineering.raw.records",
        "lake_assets.index.ids",
        "dagster",
    ]
