"""The sources file: what may be declared, and what is inferred."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from lake_assets.errors import SourcesRefused
from lake_assets.text.sources import UNDECLARED, Sources, format_of_content, format_of_name, load_sources

REPOSITORY = Path(__file__).parents[2]


def declared(tmp_path: Path, text: str):
    path = tmp_path / "sources.toml"
    path.write_text(text, encoding="utf-8")
    return load_sources(path)


def test_the_file_of_the_repository_declares_the_demo() -> None:
    sources = load_sources(REPOSITORY / "sources.toml")
    comments, packages = sources.of("demo/comments/a.jsonl"), sources.of("demo/packages.jsonl.gz")
    assert (comments.name, comments.format, comments.key, comments.text) == ("comments", "jsonl", ("id",), ("text",))
    assert (packages.key, packages.title, packages.text) == (("name",), ("name",), ("description",))
    assert sources.of("elsewhere/a.txt") is UNDECLARED


def test_an_absent_file_declares_nothing(tmp_path: Path) -> None:
    assert load_sources(tmp_path / "absent.toml").of("a.txt") is UNDECLARED


def test_the_longest_prefix_wins_whatever_the_order(tmp_path: Path) -> None:
    sources = declared(
        tmp_path, '[[source]]\nname="all"\nprefix="a"\n[[source]]\nname="some"\nprefix="a/b/"\nkey=["x", "y"]\n'
    )
    assert sources.of("a/b/c.txt").name == "some"
    assert sources.of("a/b/c.txt").key == ("x", "y")
    assert sources.of("a/bc.txt").name == "all"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[source]]\nname='x'\nprefix='p'\nkeys='id'\n", "`keys` is unknown"),
        ("[[source]]\nname='x'\n", "`prefix` is missing"),
        ("[[source]]\nname='x'\nprefix='p'\nformat='parquet'\n", "`format`"),
        ("[[source]]\nname='x'\nprefix='/p'\n", "must not begin with a slash"),
        ("[[source]]\nname='x'\nprefix='p'\ntext=[]\n", "`text` must be the name of a field"),
        ("[[source]]\nname='x'\nprefix='p'\nencoding='base64'\n", "`encoding` must be"),
        ("[[source]]\nname='x'\nprefix='p'\nencoding='utf-32'\n", "`encoding` must be"),
        ("[[source]]\nname='x'\nprefix='p'\nencoding='no\\u0000'\n", "sources.toml"),
        ("[[source]]\nname='x'\nprefix='p'\n[[source]]\nname='x'\nprefix='q'\n", "the name 'x' twice"),
        ("[[source]]\nname='x'\nprefix='p'\n[[source]]\nname='y'\nprefix='p'\n", "the prefix 'p' twice"),
        ("[[source]]\nname='x'\nprefix='p'\ndeletes=true\nunique_keys=true\n", "`deletes` with `unique_keys`"),
        ("[source]\nname='x'\n", "[[source]]"),
        ("sauce = 1\n", "unknown: sauce"),
        ("[[source]\n", "is not TOML"),
    ],
)
def test_what_is_unknown_or_wrong_is_refused_by_a_sentence_that_names_it(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(SourcesRefused) as refused:
        declared(tmp_path, text)
    assert named in str(refused.value)
    assert "sources.toml" in str(refused.value)


def test_the_ending_before_the_compression_tells_the_format() -> None:
    assert format_of_name("a/b.JSONL.gz") == "jsonl"
    assert format_of_name("b.csv.zst.gz") == "csv"
    assert format_of_name("page.htm") == "html"
    assert format_of_name("README") is None
    assert format_of_name("v1.2/gz") is None


def test_the_content_tells_the_format_where_the_name_does_not() -> None:
    assert format_of_content('\n {"a": 1}\n') == "jsonl"
    assert format_of_content("<!DOCTYPE html><p>") == "html"
    assert format_of_content("Dear {name}") == "txt"
    assert format_of_content("") == "txt"


def test_the_scope_of_a_key_is_its_object_or_the_source_where_keys_are_unique(tmp_path: Path) -> None:
    paths = pl.DataFrame({"path": ["a.jsonl", "crm/1.jsonl", "crm/notes/1.jsonl", "crm/notes/old/1.jsonl", "Crm/1"]})
    unique = "unique_keys = true\n"
    sources = declared(
        tmp_path,
        f"[[source]]\nname='x'\nprefix='crm/'\n{unique}[[source]]\nname='y'\nprefix='crm/notes/'\n"
        f"[[source]]\nname='z'\nprefix='crm/notes/old/'\n{unique}",
    )
    scopes = paths.select(sources.scope()).to_series().to_list()
    assert scopes == ["a.jsonl", "crm/", "crm/notes/1.jsonl", "crm/notes/old/", "Crm/1"]
    assert paths.select(Sources().scope()).to_series().to_list() == paths["path"].to_list()
