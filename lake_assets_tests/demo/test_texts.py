"""The demo's bytes: what the comments must contain, and that the packages' lines are the same each time."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import ftfy
import pycld2
import pytest

from lake_assets.demo.texts import installed_packages, package_lines, write_demo

FIELDS = ["name", "version", "summary", "author", "description", "license", "url"]


def rows(content: bytes) -> list[dict[str, Any]]:
    """Parses JSON lines, each ended by a line feed."""
    assert content.endswith(b"\n")
    return [json.loads(line) for line in content[:-1].split(b"\n")]


def language(text: str) -> str:
    """Gives the ISO 639-1 code (`iw` is Hebrew) that pycld2 finds, after the repair of mojibake."""
    printable = "".join(char for char in ftfy.fix_text(text) if char.isprintable() or char == "\n")
    return pycld2.detect(printable)[2][0][1]


def install(site: Path, folder: str, metadata: str | bytes) -> None:
    """Puts a package's metadata where an installer would."""
    target = site / f"{folder}.dist-info"
    target.mkdir(parents=True)
    (target / "METADATA").write_bytes(metadata if isinstance(metadata, bytes) else metadata.encode())


def found(*sites: Path) -> list[dict[str, Any]]:
    """Gives the lines of the packages in some folders."""
    return rows(package_lines(distributions(path=[str(site) for site in sites])))


@pytest.fixture(scope="module")
def comments(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return rows(write_demo(tmp_path_factory.mktemp("texts"))[0].read_bytes())


def test_there_are_320_comments_and_no_two_share_an_id_or_a_text(comments: list[dict[str, Any]]) -> None:
    assert len(comments) == 320
    assert [comment["id"] for comment in comments] == [f"c{number:03}" for number in range(1, 321)]
    assert len({comment["text"] for comment in comments}) == 320


def test_every_comment_has_the_same_fields_and_a_moment_in_utc(comments: list[dict[str, Any]]) -> None:
    assert len({tuple(comment) for comment in comments}) == 1
    for comment in comments:
        assert comment["author"].strip()
        assert comment["text"].strip()
        assert comment["created_at"].endswith("Z")
        assert datetime.fromisoformat(comment["created_at"]).tzinfo == UTC


def test_the_comments_are_in_twenty_languages_and_two_fifths_are_english(comments: list[dict[str, Any]]) -> None:
    languages = Counter(language(comment["text"]) for comment in comments)
    expected = "en de fr es it pt nl sv pl cs tr ru uk ar iw hi zh ja ko el vi"
    assert all(languages[code] >= 5 for code in expected.split()), languages
    assert 0.35 < languages["en"] / len(comments) < 0.45


def test_the_comments_praise_and_blame_and_ask(comments: list[dict[str, Any]]) -> None:
    stars = Counter(comment["stars"] for comment in comments)
    assert set(stars) == {1, 2, 3, 4, 5, None}
    assert min(stars.values()) >= 20


def test_the_comments_hold_what_cleaning_is_for(comments: list[dict[str, Any]]) -> None:
    texts = [comment["text"] for comment in comments]
    for mark in ("<b>", "<br>", "<a href=", "&amp;", "<script>", "\n", '"', "\\", "🚲", "â€™"):
        assert any(mark in text for text in texts), mark
    assert sum(ftfy.is_bad(text) for text in texts) >= 8
    assert sum(len(text) > 1800 for text in texts) == 1
    assert sum(len(text.split()) == 1 and text.isascii() for text in texts) >= 5


def test_the_file_of_comments_is_utf_8_without_escapes(tmp_path: Path) -> None:
    assert "骑车的云" in write_demo(tmp_path)[0].read_text("utf-8")


def test_two_files_are_written_below_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    paths = write_demo(tmp_path / "new" / "folder")
    assert paths == [tmp_path / "new" / "folder" / "demo" / name for name in ("comments.jsonl", "packages.jsonl")]
    assert all(path.is_file() for path in paths)


def test_the_same_bytes_are_not_written_again_and_other_bytes_are(tmp_path: Path) -> None:
    paths = write_demo(tmp_path)
    first = [(path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in paths]
    assert write_demo(tmp_path) == paths
    assert [(path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in paths] == first
    paths[0].write_bytes(b"something else")
    write_demo(tmp_path)
    assert [path.read_bytes() for path in paths] == [content for *_, content in first]


def test_the_packages_of_this_environment_are_sorted_and_each_is_there_once() -> None:
    content = package_lines(installed_packages())
    packages = rows(content)
    names = [package["name"].lower().replace("_", "-").replace(".", "-") for package in packages]
    assert names == sorted(set(names))
    assert {"dagster", "polars", "deltalake"} <= set(names)
    assert all(list(package) == FIELDS and package["description"].strip() for package in packages)
    assert content == package_lines(reversed(list(installed_packages())))


def test_what_lies_in_the_working_directory_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "mine-1", "Name: mine\nVersion: 1\nSummary: Not installed.\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "mine" not in {package["name"] for package in rows(package_lines(installed_packages()))}


def test_a_package_gives_its_long_description_and_names_without_addresses(tmp_path: Path) -> None:
    install(
        tmp_path,
        "Long_One-2",
        "Name: Long.One\nVersion: 2\nSummary: Short.\nAuthor-email: Zoë Example <zoe@one.example>, B <b@one.example>\n"
        "License-Expression: MIT\nProject-URL: Changes, https://one.example/changes\n"
        "Project-URL: Homepage, https://one.example\n\nLong and wide: 長い\n\nSecond paragraph.\n",
    )
    (package,) = found(tmp_path)
    assert package == {
        "name": "Long.One", "version": "2", "summary": "Short.", "author": "Zoë Example, B",
        "description": "Long and wide: 長い\n\nSecond paragraph.", "license": "MIT", "url": "https://one.example",
    }  # fmt: skip


def test_a_package_without_a_long_description_gives_its_summary(tmp_path: Path) -> None:
    install(tmp_path, "brief-1", "Name: brief\nVersion: 1\nSummary: Short.\nAuthor: UNKNOWN\n\nUNKNOWN\n")
    (package,) = found(tmp_path)
    assert package["description"] == "Short."
    assert package["author"] is package["license"] is package["url"] is None


def test_a_license_that_is_a_whole_text_gives_its_classifier_or_its_first_line(tmp_path: Path) -> None:
    text = "License: The Example License\n        All rights\n        reserved.\n"
    install(tmp_path, "a-1", f"Name: a\nVersion: 1\nSummary: A.\n{text}")
    install(
        tmp_path, "b-1", f"Name: b\nVersion: 1\nSummary: B.\n{text}Classifier: License :: OSI Approved :: MIT License\n"
    )
    assert [package["license"] for package in found(tmp_path)] == ["The Example License", "MIT License"]


def test_packages_without_description_or_name_or_readable_metadata_are_left_out(tmp_path: Path) -> None:
    install(tmp_path, "kept-1", "Name: kept\nVersion: 1\nSummary: Kept.\n")
    install(tmp_path, "mute-1", "Name: mute\nVersion: 1\n")
    install(tmp_path, "nameless-1", "Version: 1\nSummary: Who?\n")
    install(tmp_path, "latin-1", "Name: latin\nVersion: 1\nSummary: Café.\n".encode("latin-1"))
    (tmp_path / "empty-1.dist-info").mkdir()
    assert [package["name"] for package in found(tmp_path)] == ["kept"]


def test_of_two_packages_with_one_normalised_name_the_one_that_python_imports_counts(tmp_path: Path) -> None:
    install(tmp_path / "first", "two_names-1", "Name: two_names\nVersion: 1\nSummary: First.\n")
    install(tmp_path / "second", "Two.Names-2", "Name: Two.Names\nVersion: 2\nSummary: Second.\n")
    (package,) = found(tmp_path / "first", tmp_path / "second")
    assert package["version"] == "1"
