"""The README is true: its transcript is what the command prints, its metric works, its commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from lake_assets import cli
from lake_assets.settings import Settings
from lake_assets.ui import child_environment
from lake_assets_tests.road import Road

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Gives the README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def normalised(text: str) -> list[str]:
    """Leaves out what differs between machines: numbers, folders, the widths of columns."""
    text = re.sub(r"file:///\S+", "file:///…", text)
    text = re.sub(r"[─━┏┳┓┡╇┩└┴┘├┼┤]+", "─", text)
    lines = [re.sub(r"\s+", " ", re.sub(r"\d+", "0", line)).strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("$")]


def test_the_transcript_of_the_demo_is_what_it_prints(settings: Settings) -> None:
    environment = {**os.environ, **child_environment(settings, settings.opensearch_url), "COLUMNS": "100"}
    environment["LAKE_SOURCES"] = str(REPOSITORY / "sources.toml")
    command = [sys.executable, "-m", "lake_assets.cli", "demo"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    transcript = next(block for block in blocks("console") if block.startswith("$ make demo"))
    assert normalised(printed.stdout) == normalised(transcript)


def test_every_command_of_the_readme_and_the_docs_exists() -> None:
    group = typer.main.get_group(cli.app)
    texts = [README, *(page.read_text(encoding="utf-8") for page in (REPOSITORY / "docs").glob("*.md"))]
    named = re.findall(
        r"(?:^|`|bin/)lake ((?:(?:opensearch|quarantine|index) )?[a-z]+)", "\n".join(texts), re.MULTILINE
    )
    assert {"ingest", "search", "status", "opensearch start", "quarantine list", "index rollback"} <= set(named)
    for words in named:
        commands = group.commands
        for word in words.split():
            assert word in commands, words
            commands = getattr(commands[word], "commands", {})


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|\$ )make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 130


def test_the_metric_of_the_readme_becomes_a_column_and_a_field(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lake_assets.science import metrics

    folder = tmp_path / "more_metrics"
    folder.mkdir()
    (folder / "shouting.py").write_text(blocks("python")[0], encoding="utf-8")
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(folder)])
    road = Road(settings)
    road.take({"loud.jsonl": b'{"id": "1", "text": "HELLO you"}\n'})
    [hit] = road.state().index.values()
    assert hit["_source"]["shouting_ratio"] == 0.625
