"""`lake`: what it prints, its JSON, and exit codes that tell the truth."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lake_assets import cli
from lake_assets.contracts import TABLES
from lake_assets.settings import Settings, given
from lake_assets_tests.road import environment, fresh_settings, read_state
from lake_assets_tests.servers import free_port

LINES = b"""{"id": 1, "text": "The coffee here is wonderful, I love it."}
{"id": 2, "text": "Terrible coffee, the worst I ever had."}
{"id": 3, "text": "[bold]Tea[/bold] and cake on the terrace."}
{broken
"""


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Command:
    """`lake` in this process, on one lake."""

    def __init__(
        self, settings: Settings, capsys: pytest.CaptureFixture[str] | None = None, columns: int = 120, **more: str
    ) -> None:
        self.settings, self.capsys, self.columns = settings, capsys, columns
        self.environment = {**environment(settings), "COLUMNS": str(columns), **more}

    def __call__(self, *arguments: str | Path) -> Ran:
        assert self.capsys is not None
        self.capsys.readouterr()
        code = None
        with given(self.settings), pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli, "out", Console(highlight=False, width=self.columns))
            patch.setattr(sys, "argv", ["lake", *map(str, arguments)])
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code
        told = self.capsys.readouterr()
        assert isinstance(code, int | None)
        return Ran(code or 0, told.out, told.err)

    def without_opensearch(self) -> Command:
        """The same lake, and an OpenSearch that does not answer."""
        closed = self.settings.model_copy(update={"opensearch_url": f"http://127.0.0.1:{free_port()}"})
        return Command(closed, self.capsys, self.columns)

    def process(self, *arguments: str | Path) -> Ran:
        """Runs it as a user does."""
        command = [str(Path(sys.executable).with_name("lake")), *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Ran]]:
    """A lake that `lake ingest` has filled, as a process of its own."""
    folder = tmp_path_factory.mktemp("cli")
    with fresh_settings(request, "file", folder) as settings:
        (folder / "notes.jsonl").write_bytes(LINES)
        yield settings, Command(settings).process("ingest", folder / "notes.jsonl")


@pytest.fixture
def lake(filled: tuple[Settings, Ran], capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(filled[0], capsys)


@pytest.fixture
def empty(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    with fresh_settings(request, "file", tmp_path) as settings:
        yield Command(settings, capsys)


def test_ingest_says_what_it_did_and_nothing_else(filled: tuple[Settings, Ran]) -> None:
    assert filled[1] == Ran(0, "1 object: batch 1 done.\n", "")


def test_the_same_again_is_nothing_new(lake: Command, filled: tuple[Settings, Ran]) -> None:
    path = filled[0].lake_home.parent / "notes.jsonl"
    assert lake("ingest", path) == Ran(0, "1 object: nothing new.\n", "")
    assert lake("ingest", path, path, "--json").json == {"objects": 1, "batches": [], "failures": []}


def test_status_counts_tables_refusals_and_the_index(lake: Command) -> None:
    told = lake("status")
    assert told.code == 0
    assert "clean/documents" in told.out
    assert "refused: 1 indexing/documents: broken_json" in told.out
    found = lake("status", "--json").json
    assert set(TABLES) <= set(found["tables"])
    assert found["tables"]["clean/documents"] == {"rows": 3, "batches": 1}
    assert found["tables"]["raw/records"]["rows"] == 4
    assert found["refused"] == {"indexing/documents: broken_json": 1}
    assert found["index"]["documents"] == 3


def test_search_shows_hits_with_their_metrics(lake: Command) -> None:
    told = lake("search", "coffee")
    assert told.code == 0
    assert "The coffee here is wonderful" in told.out
    assert "2 found in" in told.out
    found = lake("search", "coffee", "--json").json
    assert found["total"] == 2
    assert {hit["source"]["sentiment_label"] for hit in found["hits"]} == {"positive", "negative"}


def test_text_is_shown_as_it_is_and_not_as_markup(lake: Command) -> None:
    [hit] = lake("search", "terrace", "--json").json["hits"]
    assert hit["source"]["text"] == "[bold]Tea[/bold] and cake on the terrace."
    assert hit["source"]["text"] in lake("search", "terrace").out


@pytest.mark.parametrize(
    ("where", "total"),
    [
        (["sentiment_score < -0.5"], 1),
        (["sentiment_score > 0.5"], 1),
        (["sentiment_label != positive"], 2),
        (["size_words >= 7", "language_code = en"], 3),
        (["language_is_reliable = false", "size_words > 900"], 0),
    ],
)
def test_conditions_narrow_by_metrics(lake: Command, where: list[str], total: int) -> None:
    arguments = [part for condition in where for part in ("--where", condition)]
    assert lake("search", "*", *arguments, "--json").json["total"] == total


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["search", "coffee", "--where", "sentiment"], "`sentiment` is no condition"),
        (["search", "coffee", "--where", "moood = 1"], "no field `moood`"),
        (["search", "coffee", "--where", "sentiment_score = warm"], "a number"),
        (["ingest", "nowhere.txt"], "There is no file or folder nowhere.txt"),
    ],
)
def test_a_failure_is_one_sentence_and_exit_code_1(lake: Command, arguments: list[str], told: str) -> None:
    ran = lake(*arguments)
    assert (ran.code, ran.out) == (1, "")
    assert told in ran.err
    assert "Traceback" not in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["nothing"], ["search"], ["search", "x", "--size", "0"], ["status", "--jsonn"]])
def test_a_wrong_call_is_exit_code_2(lake: Command, arguments: list[str]) -> None:
    assert lake(*arguments).code == 2


def test_a_setting_that_cannot_be_used_is_named_and_its_value_is_not(filled: tuple[Settings, Ran]) -> None:
    ran = Command(filled[0], OPENSEARCH_TIMEOUT_SECONDS="hunter2").process("status")
    assert ran.code == 1
    assert "OPENSEARCH_TIMEOUT_SECONDS" in ran.err
    assert "hunter2" not in ran.err


def test_without_opensearch_search_and_ingest_fail_with_a_sentence_and_status_says_so(
    empty: Command, tmp_path: Path
) -> None:
    down = empty.without_opensearch()
    (tmp_path / "a.txt").write_bytes(b"a text")
    for arguments in (["search", "x"], ["ingest", tmp_path / "a.txt"]):
        ran = down(*arguments)
        assert ran.code == 1
        assert down.settings.opensearch_url in ran.err
        assert "Traceback" not in ran.err
    assert read_state(empty.settings)["clean/documents"].is_empty()
    assert "does not answer" in down("status").out
    assert down("status", "--json").json["index"] is None
    done = empty("ingest", tmp_path / "a.txt", "--json")
    assert (done.code, done.json["batches"]) == (0, [1])
    assert read_state(empty.settings)["clean/documents"]["text"].to_list() == ["a text"]


def test_a_failed_ingest_tells_its_failures_in_json_too(empty: Command, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a text")
    ran = empty.without_opensearch()("ingest", tmp_path / "a.txt", "--json")
    assert ran.code == 1
    assert ran.json["failures"][0].startswith("Batch 1, opensearch/documents: ")


def test_the_node_status_of_a_home_without_a_node_is_exit_code_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lake = Command(Settings(lake_home=tmp_path / "home"), capsys)
    assert lake("opensearch", "status") == Ran(3, "No local node is running.\n", "")
    assert lake("opensearch", "status", "--json").json == {"running": False, "url": None}
    assert lake("opensearch", "stop") == Ran(0, "No local node was running.\n", "")


def test_folders_keep_their_names_hidden_files_stay_out_and_names_that_meet_are_refused(
    empty: Command, tmp_path: Path
) -> None:
    for name in ("box/a.txt", "box/.git/config", "box/.hidden.txt", "other/a.txt", "box/new\nline.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    ran = empty("ingest", tmp_path / "box" / "a.txt", tmp_path / "other" / "a.txt")
    assert ran.code == 1
    assert "would both become a.txt" in ran.err
    done = empty("ingest", tmp_path / "box", tmp_path / "box", "--json")
    assert (done.code, done.json["failures"]) == (0, [])
    state = read_state(empty.settings)
    assert sorted(state["clean/documents"]["path"]) == ["box/a.txt"]
    assert state["quarantine/records"].select("path", "reason").rows() == [("box/new\nline.txt", "bad_path")]
