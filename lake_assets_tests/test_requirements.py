from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
LOCKS = ["requirements.lock", "requirements-uv.txt"]


def locked(name: str) -> dict[str, list[str]]:
    """Gives package → its locked versions (more than one where they differ by Python or platform)."""
    versions: dict[str, list[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)==([\w.]+)", (REPOSITORY / name).read_text(), re.MULTILINE):
        versions.setdefault(canonicalize_name(package), []).append(version)
    return versions


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_address_and_every_package_has_a_hash(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash=)", text, re.MULTILINE)
    packages = re.split(r"^(?=[a-zA-Z0-9])", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    assert [package for package in packages if package.strip() and "--hash=sha256:" not in package] == []


def test_the_lock_holds_what_the_project_asks_for() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    versions = locked("requirements.lock")
    wanted = [Requirement(line) for line in project["project"]["dependencies"] + project["dependency-groups"]["dev"]]
    missing = [
        str(requirement)
        for requirement in wanted
        if not any(map(requirement.specifier.contains, versions.get(canonicalize_name(requirement.name), [])))
    ]
    assert missing == []


def test_all_of_dagster_is_of_one_release() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    dagster = [Requirement(line) for line in wanted if line.startswith("dagster")]
    assert {str(requirement.specifier).rpartition(".")[2] for requirement in dagster} == {"27"}
    assert all(str(requirement.specifier).startswith("==") for requirement in dagster)
