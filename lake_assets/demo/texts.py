"""The demo's two objects: comments that come with the product, and the descriptions of the installed packages.

What belongs here: where the demo's bytes come from. What does not: how they reach the lake.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from email.utils import getaddresses
from importlib.metadata import Distribution, distributions
from importlib.resources import files
from pathlib import Path

_SITE_FOLDERS = ("site-packages", "dist-packages")
_KNOWN_URL_LABELS = ("homepage", "home", "documentation", "docs", "source", "repository", "github")
_ABSENT = ("", "unknown", "none")  # what older build backends write for a field that was not given


def write_demo(folder: Path) -> list[Path]:
    """Writes `demo/comments.jsonl` and `demo/packages.jsonl` below a folder.

    A file that already holds the same bytes is left alone, so that its modification time does not make it a new object.

    Args:
        folder: made with its parents where it is not there.

    Returns:
        Both paths, whether they were written or left alone.

    Raises:
        OSError: the folder or a file in it cannot be written.
    """
    contents = {
        "comments.jsonl": files("lake_assets.demo").joinpath("comments.jsonl").read_bytes(),
        "packages.jsonl": package_lines(installed_packages()),
    }
    target = folder / "demo"
    target.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = target / name
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
    return [target / name for name in contents]


def installed_packages() -> Iterable[Distribution]:
    """Gives the packages installed in this environment, in the order in which Python looks for them.

    Only folders that installers write to count: what lies in the working directory is not installed. An environment
    without such folders (for instance a zipped application) gives all that Python can import from.
    """
    installed = [folder for folder in sys.path if Path(folder).name in _SITE_FOLDERS]
    return distributions(path=installed or sys.path)


def package_lines(found: Iterable[Distribution]) -> bytes:
    """Makes one JSON line a package: name, version, summary, author, description, license, url.

    Fields that a package does not give are null, except `name` and `description`: a package without either is left
    out, and so is one whose metadata is not UTF-8. Of two with the same normalised name the first counts, the one
    that Python imports.

    Args:
        found: packages in the order in which Python looks for them.

    Returns:
        UTF-8, sorted by normalised name, each line ended by a line feed; the same packages give the same bytes.
    """
    rows: dict[str, dict[str, str | None]] = {}
    for package in found:
        row = _package_row(package)
        if row is not None:
            rows.setdefault(re.sub(r"[-_.]+", "-", row["name"] or "").lower(), row)
    lines = (json.dumps(rows[name], ensure_ascii=False) + "\n" for name in sorted(rows))
    return "".join(lines).encode("utf-8", "replace")


def _package_row(package: Distribution) -> dict[str, str | None] | None:
    """Gives the fields of a package's line; None where it cannot be read, or has no name or no description."""
    try:
        metadata = package.metadata
    except UnicodeDecodeError:
        return None
    if metadata is None:  # a folder without a metadata file
        return None
    fields = {label: _texts(value) for label, value in metadata.json.items()}
    name, summary = _first(fields, "name"), _first(fields, "summary")
    description = _first(fields, "description", "summary")
    if name is None or description is None:
        return None
    return {
        "name": name,
        "version": _first(fields, "version"),
        "summary": summary,
        "author": _author(fields),
        "description": description,
        "license": _license(fields),
        "url": _url(fields),
    }


def _texts(value: object) -> list[str]:
    """Gives what a metadata field says, as a list; empty where it says nothing."""
    texts = [str(text).strip() for text in (value if isinstance(value, list) else [value])]
    return [text for text in texts if text.lower() not in _ABSENT]


def _first(fields: dict[str, list[str]], *labels: str) -> str | None:
    """Gives the first value of the first label that has one."""
    return next((fields[label][0] for label in labels if fields.get(label)), None)


def _author(fields: dict[str, list[str]]) -> str | None:
    """Gives the names of those who wrote a package, without their mail addresses."""
    for label in ("author", "author_email", "maintainer", "maintainer_email"):
        value = _first(fields, label) or ""
        names = [name for name, address in getaddresses([value]) if name and "@" in address]
        plain = value if "@" not in value else ""
        if names or plain:
            return ", ".join(names) or plain
    return None


def _license(fields: dict[str, list[str]]) -> str | None:
    """Gives the license's expression, else the last part of its classifier, else the first line of its text."""
    classified = [value for value in fields.get("classifier", []) if value.startswith("License ::")]
    expression = _first(fields, "license_expression")
    if expression or classified:
        return expression or classified[0].rsplit(" :: ", 1)[-1]
    return (_first(fields, "license") or "").partition("\n")[0].strip() or None


def _url(fields: dict[str, list[str]]) -> str | None:
    """Gives the home page, else the best known of the project's addresses, else the first of them."""
    home = _first(fields, "home_page")
    if home is not None:
        return home
    addresses: dict[str, str] = {}
    for value in fields.get("project_url", []):
        label, comma, address = value.partition(",")
        if comma:
            addresses.setdefault(label.strip().lower(), address.strip())
    known = (addresses[label] for label in _KNOWN_URL_LABELS if label in addresses)
    return next(known, None) or next(iter(addresses.values()), None)
