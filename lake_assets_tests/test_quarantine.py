"""`lake quarantine`: what was refused is listed, shown and run again; what passes leaves, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from lake_assets.index.client import connect
from lake_assets.index.mapping import ensure_index
from lake_assets.lake.tables import Lake, local_path
from lake_assets.quarantine import Wanted, inert, list_refused
from lake_assets.science import metrics
from lake_assets.settings import Settings
from lake_assets_tests.road import (
    KINDS,
    Road,
    State,
    assert_index_is_clean,
    assert_same,
    fresh_settings,
    read_state,
    write_metric,
)
from lake_assets_tests.test_cli import Command, Ran

GOOD = b'{"id": 1, "text": "good one"}\n'
ESCAPES = b"\x1b]0;owned\x07\x1b[2J\xc2\x9b31m\xe2\x80\xaeevil"
CONTROL = "sub/\x1b[31mred\u202e[bold]loud[/bold]:skull:.txt"
BIDI = "sub/\u202egnp.\u2066[red]cod[/red].jsonl"
OBJECTS = {
    "lines.jsonl": GOOD + b'{"id": 2, "text": "' + ESCAPES + b"\n",
    "rows.csv": b"id,text\n1,fine\n2,one,two,three\n3,fine too\n",
    "empty.txt": b"",
    CONTROL: b"text",
    BIDI: b"{broken\n",
}
WRONG = """
[[source]]
name = "letters"
prefix = "letters/"
encoding = "ascii"

[[source]]
name = "mails"
prefix = "mails/"
text = "boddy"

[[source]]
name = "notes"
prefix = "notes/"
format = "csv"
"""
RIGHT = WRONG.replace("ascii", "utf-8").replace("boddy", "body").replace("csv", "txt")
DECLARED = {
    "letters/a.jsonl": '{"id": 1, "text": "café"}\n{"id": 2, "text": "plain"}\n'.encode(),
    "mails/a.jsonl": b'{"id": 1, "body": "a mail"}\n{broken\n',
    "notes/a.dat": b"one line of a note",
    "other.jsonl": GOOD,
}
ECHO = '''
import polars as pl

from lake_assets.science.metric import Column, metric


@metric(version="1", echo_label=Column("keyword", "The text itself."))
def echo(texts: pl.Series) -> pl.DataFrame:
    """Says every text again. One row per document."""
    return pl.DataFrame({"echo_label": texts})
'''
PASSED = {"café", "plain", "a mail", "one line of a note", "good one"}


def commands(settings: Settings, capsys: pytest.CaptureFixture[str]) -> Command:
    """`lake` on a lake, with a wide terminal."""
    return Command(settings, capsys, columns=200)


def refused(settings: Settings) -> pl.DataFrame:
    """All rows of the quarantine, in one order."""
    rows = Lake(settings).read("quarantine/records").frame()
    return rows.sort("batch", "stage", "path", "record").select(sorted(rows.columns))


def texts(state: State) -> set[str]:
    """The texts of the index, when index, clean and metrics agree."""
    assert_index_is_clean(state)
    assert state["opensearch/metrics"]["id"].sort().to_list() == state["clean/documents"]["id"].sort().to_list()
    for hit in state.index.values():
        assert hit["_source"]["size_words"] == len(hit["_source"]["text"].split())
    return {hit["_source"]["text"] for hit in state.index.values()}


def assert_inert(ran: Ran) -> None:
    """Nothing of what was printed acts in a terminal."""
    assert all(char.isprintable() or char == "\n" for char in ran.out + ran.err), ran.out + ran.err


@pytest.fixture(scope="module")
def bad(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A lake with a broken JSON line, a CSV row with too many fields, an empty object, and hostile names."""
    with fresh_settings(request, "file", tmp_path_factory.mktemp("refused")) as settings:
        assert Road(settings).take(OBJECTS) == [1]
        yield settings


@pytest.fixture
def lake(bad: Settings, capsys: pytest.CaptureFixture[str]) -> Command:
    return commands(bad, capsys)


@pytest.fixture
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """An empty lake, in a folder where nothing else is asked for, whose sources are wrongly declared."""
    with fresh_settings(request, getattr(request, "param", "file"), tmp_path) as settings:
        settings.lake_sources.write_text(WRONG)
        yield Road(settings)


def test_refusals_are_counted_and_the_newest_listed(lake: Command) -> None:
    found = lake("quarantine", "list", "--json").json
    counted = {(row["stage"], row["reason"], row["owner"], row["state"]): row["records"] for row in found["counts"]}
    assert counted == {
        ("indexing/documents", "broken_json", "team:engineering", "refused"): 2,
        ("indexing/documents", "too_many_fields", "team:engineering", "refused"): 1,
        ("raw/records", "bad_path", "team:engineering", "refused"): 1,
        ("raw/records", "empty_object", "team:engineering", "refused"): 1,
    }
    assert (found["refused"], found["rest"]) == (5, 0)
    assert {row["path"] for row in found["newest"]} == set(OBJECTS)
    told = lake("quarantine", "list")
    assert told.code == 0
    for word in ("broken_json", "too_many_fields", "team:engineering", "rows.csv"):
        assert word in told.out


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        (["--reason", "broken_json"], {"lines.jsonl", BIDI}),
        (["--stage", "raw/records"], {"empty.txt", CONTROL}),
        (["--path", "sub/"], {CONTROL, BIDI}),
        (["--path", "*.csv"], {"rows.csv"}),
        (["--path", r"sub/\x1b"], {CONTROL}),
        (["--reason", "broken_json", "--path", "l*"], {"lines.jsonl"}),
        (["--reason", "no_such"], set()),
    ],
)
def test_the_list_is_narrowed(lake: Command, options: list[str], paths: set[str]) -> None:
    found = lake("quarantine", "list", "--json", *options).json
    assert {row["path"] for row in found["newest"]} == paths
    assert found["refused"] == len(paths)


def test_a_long_list_ends_and_counts_the_rest(bad: Settings) -> None:
    found = list_refused(bad, Wanted(), newest=2)
    assert (len(found["newest"]), found["rest"]) == (2, 3)


def test_a_record_is_shown_with_its_reason_and_where_its_bytes_are(lake: Command) -> None:
    [row] = lake("quarantine", "show", "rows.csv", "--record", "1", "--json").json
    line = b"2,one,two,three"
    assert (row["stage"], row["reason"]) == ("indexing/documents", "too_many_fields")
    assert row["detail"] == "The row has 4 fields, the header names 2."
    assert (row["length_bytes"], row["bytes_are_in"]) == (len(line), "raw/records")
    assert row["offset_bytes"] == OBJECTS["rows.csv"].index(line)
    assert "text" not in row
    told = lake("quarantine", "show", "rows.csv")
    assert row["etag"] in told.out
    assert row["detail"] in told.out
    assert "one,two" not in told.out
    assert "text: 2,one,two,three" in lake("quarantine", "show", "rows.csv", "--text").out


def test_an_object_that_was_refused_whole_is_shown_with_its_size(lake: Command) -> None:
    [row] = lake("quarantine", "show", "empty.txt", "--json", "--text").json
    assert (row["record"], row["size_bytes"], row["bytes_are_in"], row["text"]) == (None, 0, "the object", None)


def test_hostile_names_and_bytes_are_inert_in_every_output(lake: Command) -> None:
    ran = [lake("quarantine", "list"), lake("quarantine", "list", "--json")]
    for path in OBJECTS:
        ran += [lake("quarantine", "show", inert(path), "--text", *more) for more in ([], ["--json"])]
        ran.append(lake("quarantine", "show", inert(path) + "\x1b[0m"))
        assert ran[-1].code == 1
    ran += [lake("quarantine", "replay", "--dry-run"), lake("quarantine", "replay", "--dry-run", "--json")]
    for each in ran:
        assert_inert(each)
    assert r"sub/\x1b[31mred\u202e[bold]loud[/bold]:skull:.txt" in ran[0].out
    assert r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil" in lake("quarantine", "show", "lines.jsonl", "--text").out
    for each in ran[1].json["newest"]:
        assert each["path"] in OBJECTS


def test_what_is_not_in_the_quarantine_is_said_in_a_sentence(lake: Command) -> None:
    ran = lake("quarantine", "show", "nowhere.txt")
    assert (ran.code, ran.out) == (1, "")
    assert "nowhere.txt is not in the quarantine" in ran.err
    ran = lake("quarantine", "show", "lines.jsonl", "--record", "0")
    assert "Record 0 of lines.jsonl is not in the quarantine" in ran.err
    assert "Nothing that was asked for" in lake("quarantine", "list", "--reason", "no_such").out


def test_a_dry_run_tells_what_would_be_tried_and_writes_nothing(lake: Command, bad: Settings) -> None:
    before = read_state(bad)
    found = lake("quarantine", "replay", "--dry-run", "--reason", "broken_json", "--json")
    assert found.code == 0
    assert found.json == {
        "batches": [1], "records": 2, "by_reason": {"indexing/documents: broken_json": 2}, "lost": 0,
    }  # fmt: skip
    told = lake("quarantine", "replay", "--dry-run", "--reason", "broken_json").out
    assert "2 refusals would be tried again, in batches: 1." in told
    after = read_state(bad)
    assert after.versions == before.versions
    assert_same(after, before)


def test_a_replay_in_vain_changes_no_row_and_ends_with_exit_code_1(lake: Command, bad: Settings) -> None:
    before, state = refused(bad), read_state(bad)
    ran = lake("quarantine", "replay", "--json")
    assert ran.code == 1
    assert (ran.json["asked"], ran.json["left"], ran.json["batches"], ran.json["failures"]) == (5, 0, [1], [])
    assert ran.json["refused"] == {
        "indexing/documents: broken_json": 2, "indexing/documents: too_many_fields": 1,
        "raw/records: bad_path": 1, "raw/records: empty_object": 1,
    }  # fmt: skip
    assert refused(bad).equals(before)
    after = read_state(bad)
    assert_same(after, state)
    for key in ("raw/records", "quarantine/records"):
        assert after.versions[key] == state.versions[key], key


def test_what_nobody_refused_needs_no_replay(lake: Command) -> None:
    ran = lake("quarantine", "replay", "--reason", "no_such", "--json")
    assert (ran.code, ran.json["asked"], ran.json["batches"]) == (0, 0, [])


@pytest.mark.parametrize("road", KINDS, indirect=True)
def test_corrected_sources_let_records_through_and_they_leave_the_quarantine(
    road: Road, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = commands(road.settings, capsys)
    road.take(DECLARED)
    assert refused(road.settings).select("stage", "path", "record", "reason").rows() == [
        ("indexing/documents", "letters/a.jsonl", 0, "undecodable"),
        ("indexing/documents", "mails/a.jsonl", 0, "no_text"),
        ("indexing/documents", "mails/a.jsonl", 1, "broken_json"),
        ("raw/records", "notes/a.dat", None, "empty_object"),
    ]
    before = road.state()
    road.settings.lake_sources.write_text(RIGHT)
    ran = lake("quarantine", "replay", "--reason", "undecodable", "--json")
    assert (ran.code, ran.json["asked"], ran.json["left"], ran.json["refused"]) == (0, 1, 1, {})
    ran = lake("quarantine", "replay", "--stage", "raw/records")
    assert (ran.code, ran.out) == (0, "1 of 1 refusals have left the quarantine.\n")
    ran = lake("quarantine", "replay", "--json")
    assert ran.code == 1
    assert ran.json["refused"] == {"indexing/documents: broken_json": 1}
    after = road.state()
    assert texts(after) == PASSED
    for id, hit in before.index.items():
        assert after.index[id] == hit
    kept = after["raw/records"].join(before["raw/records"], on=["path", "record", "raw"], how="semi")
    assert kept.height == before["raw/records"].height
    [row] = refused(road.settings).iter_rows(named=True)
    [old] = before["quarantine/records"].filter(pl.col("reason") == "broken_json").iter_rows(named=True)
    assert row == old


def test_a_row_keeps_its_time_until_its_reason_is_another_one(road: Road) -> None:
    road.take({"mails/a.jsonl": b'{"id": 1, "body": "\xff"}\n{broken\n'})
    first = refused(road.settings)
    assert first["refused_at"].null_count() == 0
    version = Lake(road.settings).read("quarantine/records").version
    assert road.run(1).success
    assert refused(road.settings).equals(first)
    assert Lake(road.settings).read("quarantine/records").version == version
    road.settings.lake_sources.write_text(RIGHT.replace("body", "bodies"))
    road.land({"mails/b.jsonl": b'{"id": 1, "bodies": "new"}\n{broken\n'})
    assert road.claim() == [2]
    assert road.run(2).success
    assert refused(road.settings).filter(pl.col("batch") == 1).equals(first)


def test_an_object_that_comes_back_is_read_and_its_batch_loses_nothing_of_others(
    road: Road, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lake = commands(road.settings, capsys)
    root = local_path(road.settings.raw_root)
    road.land({"away.jsonl": GOOD, "stays.jsonl": GOOD.replace(b"one", b"two")})
    assert road.claim() == [1]
    (root / "away.jsonl").rename(tmp_path / "away.jsonl")
    assert road.run(1).success
    road.take({"stays.jsonl": GOOD.replace(b"one", b"three")})
    before = road.state()
    ran = lake("quarantine", "replay", "--json")
    assert ran.code == 1
    assert (ran.json["asked"], ran.json["left"], ran.json["lost"], ran.json["batches"]) == (1, 0, 1, [])
    assert ran.json["refused"] == {"raw/records: object_gone": 1}
    assert "no longer holds" in lake("quarantine", "replay").out
    assert road.state().versions == before.versions
    (tmp_path / "away.jsonl").rename(root / "away.jsonl")
    ran = lake("quarantine", "replay", "--json")
    assert (ran.code, ran.json["left"], ran.json["batches"]) == (0, 1, [1])
    after = road.state()
    assert texts(after) == {"good one", "good three"}
    assert after["quarantine/records"].is_empty()
    assert after["raw/records"].select("batch", "path").sort("batch", "path").rows() == [
        (1, "away.jsonl"), (1, "stays.jsonl"), (2, "stays.jsonl"),
    ]  # fmt: skip


def test_a_replaced_version_stays_refused_and_a_record_too_large_is_pointed_to(
    road: Road, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = commands(road.settings, capsys)
    long = b'{"id": 2, "text": "' + b"long " * 3_500_000 + b'"}'
    road.land({"a.jsonl": GOOD, "big.jsonl": GOOD + long + b"\n"})
    assert road.claim() == [1]
    road.land({"a.jsonl": GOOD.replace(b"one", b"new one")})
    assert road.claim() == [2]
    assert road.run(2).success
    assert road.run(1).success
    before = refused(road.settings)
    [row] = lake("quarantine", "show", "big.jsonl", "--text", "--json").json
    assert (row["reason"], row["record"], row["bytes_are_in"]) == ("record_too_large", 1, "the object")
    assert (row["offset_bytes"], row["length_bytes"], row["text"]) == (len(GOOD), len(long), None)
    ran = lake("quarantine", "replay", "--json")
    assert (ran.code, ran.json["left"], ran.json["lost"]) == (1, 0, 1)
    assert ran.json["refused"] == {"indexing/documents: record_too_large": 1, "raw/records: object_gone": 1}
    assert refused(road.settings).equals(before)
    assert texts(road.state()) == {"good one", "good new one"}


def test_an_object_whose_records_are_refused_in_turn_is_no_success(
    road: Road, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = commands(road.settings, capsys)
    road.take({"notes/a.dat": b"{not json"})
    road.settings.lake_sources.write_text(RIGHT.replace("txt", "jsonl"))
    ran = lake("quarantine", "replay", "--json")
    assert (ran.code, ran.json["asked"], ran.json["left"]) == (1, 1, 1)
    assert ran.json["refused"] == {"indexing/documents: broken_json": 1}


def test_without_opensearch_a_replay_fails_and_the_next_one_finishes_it(
    road: Road, capsys: pytest.CaptureFixture[str]
) -> None:
    road.take(DECLARED)
    road.settings.lake_sources.write_text(RIGHT)
    ran = commands(road.settings, capsys).without_opensearch()("quarantine", "replay", "--json")
    assert ran.code == 1
    assert ran.json["failures"][0].startswith("Batch 1, opensearch/documents: ")
    assert "raw/records: empty_object" in ran.json["refused"]
    ran = commands(road.settings, capsys)("quarantine", "replay", "--reason", "empty_object", "--json")
    assert (ran.code, ran.json["batches"], ran.json["left"]) == (0, [1], 1)
    assert texts(road.state()) == PASSED


def kill_replay(lake: Command, road: Road, table: str) -> None:
    """Runs a replay as a process of its own, and kills it when it has committed to a table."""
    version = Lake(road.settings).read(table).version
    command = [str(Path(sys.executable).with_name("lake")), "quarantine", "replay"]
    process = subprocess.Popen(
        command, env={**os.environ, **lake.environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while Lake(road.settings).read(table).version == version and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9


@pytest.mark.parametrize("table", ["raw/records", "quarantine/records", "opensearch/documents"])
def test_a_replay_that_is_killed_is_finished_by_the_next_one(
    road: Road, capsys: pytest.CaptureFixture[str], table: str
) -> None:
    objects = {path: content.replace(b"{broken\n", b"") for path, content in DECLARED.items()}
    if table != "raw/records":
        del objects["notes/a.dat"]  # its refusal leaves last, and would tell the next replay which batch to run
    road.take(objects)
    road.settings.lake_sources.write_text(RIGHT)
    lake = commands(road.settings, capsys)
    kill_replay(lake, road, table)
    ran = lake("quarantine", "replay", "--json")
    assert (ran.code, ran.json["batches"], ran.json["failures"]) == (0, [1], [])
    assert texts(road.state()) == {text for text in PASSED if "note" not in text or table == "raw/records"}
    assert refused(road.settings).is_empty()
    assert lake("quarantine", "replay", "--json").json["batches"] == []


def test_a_replay_that_is_killed_is_finished_by_the_next_ingest_and_by_no_later_one(
    road: Road, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mail = tmp_path / "mail.jsonl"
    mail.write_bytes(b'{"id": 1, "text": "another one"}\n')
    lake = commands(road.settings, capsys)
    for name, content in DECLARED.items():
        if name.startswith("letters/"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).write_bytes(content)
    assert lake("ingest", tmp_path / "letters", "--json").json["batches"] == [1]
    road.settings.lake_sources.write_text(RIGHT)
    kill_replay(lake, road, "quarantine/records")
    assert lake("ingest", mail, "--json").json == {"objects": 1, "batches": [1, 2], "failures": []}
    assert texts(road.state()) == {"café", "plain", "another one"}
    assert lake("ingest", mail, "--json").json["batches"] == []
    assert lake("quarantine", "replay", "--json").json["batches"] == []


def cure_by_rebuild(lake: Command, road: Road) -> None:
    """Makes the index anew, with the mapping that is declared."""
    assert lake("index", "rebuild").code == 0


def cure_by_sources(lake: Command, road: Road) -> None:
    """Declares that the author is in another field."""
    road.settings.lake_sources.write_text('[[source]]\nname = "all"\nprefix = "a"\nauthor = "by"\n')


@pytest.mark.parametrize("cure", [cure_by_rebuild, cure_by_sources])
def test_a_document_that_the_index_has_refused_is_taken_in_when_the_mapping_or_the_source_is_right(
    road: Road, capsys: pytest.CaptureFixture[str], cure: Callable[[Command, Road], None]
) -> None:
    lake = commands(road.settings, capsys)
    map_without_a_limit(road, "author")
    road.take({"a.jsonl": GOOD + b'{"id": 2, "text": "by somebody", "author": "' + b"a" * 40_000 + b'"}\n'})
    assert [hit["_source"]["text"] for hit in road.state().index.values()] == ["good one"]
    ran = lake("quarantine", "replay", "--json")
    assert (ran.code, ran.json["left"]) == (1, 0)
    assert ran.json["refused"] == {"opensearch/documents: value_too_large": 1}
    cure(lake, road)
    ran = lake("quarantine", "replay", "--stage", "opensearch/documents", "--json")
    assert (ran.code, ran.json["asked"], ran.json["left"], ran.json["refused"]) == (0, 1, 1, {})
    assert texts(road.state()) == {"good one", "by somebody"}
    assert refused(road.settings).is_empty()
    assert lake("index", "compare").code == 0


def test_a_document_whose_metrics_the_index_has_refused_gets_them_when_the_mapping_is_right(
    road: Road, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "more_metrics"
    write_metric(folder, "echo", ECHO)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(folder)])
    lake = commands(road.settings, capsys)
    map_without_a_limit(road, "echo_label")
    road.take({"a.jsonl": GOOD, "b.jsonl": GOOD.replace(b"good one", b"a" * 40_000)})
    assert refused(road.settings).select("stage", "path", "record", "reason").rows() == [
        ("opensearch/metrics", "b.jsonl", 0, "value_too_large")
    ]
    state = road.state()
    assert_index_is_clean(state)
    assert sorted("echo_label" in hit["_source"] for hit in state.index.values()) == [False, True]
    ran = lake("quarantine", "replay", "--json")
    assert (ran.code, ran.json["refused"]) == (1, {"opensearch/metrics: value_too_large": 1})
    cure_by_rebuild(lake, road)
    ran = lake("quarantine", "replay", "--json")
    assert (ran.code, ran.json["left"], ran.json["refused"]) == (0, 1, {})
    assert refused(road.settings).is_empty()
    state = road.state()
    assert texts(state) == {"good one", "a" * 40_000}
    assert all(hit["_source"]["echo_label"] == hit["_source"]["text"] for hit in state.index.values())
    assert lake("index", "compare").code == 0


def map_without_a_limit(road: Road, field: str) -> None:
    """Makes the index with a keyword that refuses what is too long for a term, as by hand."""
    client = connect(road.settings, road.settings.opensearch_url)
    ensure_index(client, road.settings.opensearch_alias, {field: {"type": "keyword", "ignore_above": 10**6}})
