"""Hostile objects, records and names: each is refused by itself into the quarantine, and everything else is indexed."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from lake_assets.index.client import connect
from lake_assets.index.mapping import ensure_index
from lake_assets_tests.road import KINDS, Road, State, assert_index_is_clean, environment, fresh_settings, metadata

SECRET = "Kennwort"
GOOD = b'{"id": 1, "text": "good one"}\n'
WAVE = "\U0001f44b"

# name → content, the records that become documents, and the (record, reason) of what is refused
CASES: dict[str, tuple[bytes, int, list[tuple[int | None, str]]]] = {
    "plain.jsonl": (GOOD, 1, []),
    "bytes.txt": (b"\xff\xfa\x81 " + SECRET.encode(), 0, [(0, "undecodable")]),
    "bytes.jsonl": (GOOD + b'{"id": 2, "text": "' + SECRET.encode() + b'\xff"}\n' + GOOD, 2, [(1, "undecodable")]),
    "line.jsonl": (GOOD + b'{"id": 2, "text": "' + SECRET.encode() + b"\n" + GOOD, 2, [(1, "broken_json")]),
    "number.jsonl": (b"17\n" + GOOD + b"[1, 2]\n", 1, [(0, "not_an_object"), (2, "not_an_object")]),
    "deep.jsonl": (GOOD + b'{"a":' * 2000 + b"1" + b"}" * 2000 + b"\n", 1, [(1, "broken_json")]),
    "untexted.jsonl": (GOOD + b'{"id": 7}\n', 1, [(1, "no_text")]),
    "many.csv": (b"id,text\n1,fine\n2,one,two,three\n3,fine too\n", 2, [(1, "too_many_fields")]),
    "quote.csv": (b'id,text\n1,fine\n2,"never closed\n3,fine too\n', 2, [(1, "unclosed_quote")]),
    "header.csv": (b"id,text\n", 0, [(None, "empty_object")]),
    "empty.txt": (b"", 0, [(None, "empty_object")]),
    "blank.jsonl": (b"\n \n\n", 0, [(None, "empty_object")]),
    "cut.jsonl.gz": (gzip.compress(GOOD * 3)[:-9], 3, [(None, "broken_compression")]),
    "no.jsonl.gz": (b"this was never compressed", 0, [(0, "broken_json")]),
    f"a folder/with {WAVE} and ü.txt": (b"found all the same", 1, []),
    "per%20cent#and?more.txt": (b"found as well", 1, []),
    "new\nline.txt": (b"text", 0, [(None, "bad_path")]),
    "back\\slash.txt": (b"text", 0, [(None, "bad_path")]),
    "long.jsonl": (b'{"id": 1, "text": "good one", "note": "' + b"x" * 40_000 + b'"}\n', 1, []),
    "author.jsonl": (b'{"id": 1, "text": "good one", "author": "' + b"y" * 40_000 + b'"}\n', 1, []),
    "path.jsonl": (b'{"id": 1, "text": "good one", "' + b"z" * 60_000 + b'": 1}\n', 1, []),
    "word.txt": (b"w" * 100_000, 1, []),
}  # fmt: skip
# What a key may be and a path of a file system may not: versitygw, which keeps files, does not hold these.
ONLY_AS_KEYS: dict[str, tuple[bytes, int, list[tuple[int | None, str]]]] = {
    "a/../b.txt": (b"text", 0, [(None, "bad_path")]),
    "../../outside.txt": (b"text", 0, [(None, "bad_path")]),
    "a//b.txt": (b"text", 0, [(None, "bad_path")]),
}
BIG_BYTES = 200_000_000


@dataclass
class Outcome:
    """What became of all cases in one batch."""

    road: Road
    cases: dict[str, tuple[bytes, int, list[tuple[int | None, str]]]]
    result: dg.ExecuteInProcessResult
    state: State


@pytest.fixture(scope="module", params=KINDS)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """All cases, landed and run as one batch."""
    cases = dict(CASES)
    if request.param == "s3":
        is_flat = request.getfixturevalue("s3").kind == "ministack"
        cases |= {"folder/": (b"", 0, []), **(ONLY_AS_KEYS if is_flat else {})}
    with fresh_settings(request, request.param, tmp_path_factory.mktemp("bad")) as settings:
        road = Road(settings)
        road.land({name: content for name, (content, _, _) in cases.items()})
        assert road.claim() == [1]
        result = road.run(1)
        yield Outcome(road, cases, result, road.state())


def test_each_is_refused_by_itself_and_everything_else_is_indexed(outcome: Outcome) -> None:
    assert outcome.result.success
    refused = outcome.state["quarantine/records"]
    found = {
        name: (
            outcome.state["clean/documents"].filter(pl.col("path") == name).height,
            refused.filter(pl.col("path") == name).sort("record").select("record", "reason").rows(),
        )
        for name in outcome.cases
    }
    assert found == {name: (documents, reasons) for name, (_, documents, reasons) in outcome.cases.items()}
    assert set(refused["path"]) <= set(outcome.cases)
    assert_index_is_clean(outcome.state)


def test_the_quarantine_names_object_version_and_reason_and_never_text(outcome: Outcome) -> None:
    refused = outcome.state["quarantine/records"]
    etags = dict(outcome.state["raw/objects"].select("path", "etag").rows())
    assert [etags[path] for path in refused["path"]] == refused["etag"].to_list()
    assert refused["state"].unique().to_list() == ["refused"]
    for detail in refused["detail"]:
        assert detail.endswith(".")
        assert SECRET not in detail
    for stage, record in refused.select("stage", "record").rows():
        assert (stage == "raw/records") == (record is None)


def test_every_refused_record_is_kept_byte_for_byte(outcome: Outcome) -> None:
    raw = outcome.state["raw/records"]
    for path, record in outcome.state["quarantine/records"].drop_nulls("record").select("path", "record").rows():
        [kept] = raw.filter(pl.col("path") == path, pl.col("record") == record)["raw"]
        assert kept in outcome.cases[path][0]


def test_refusals_are_counted_and_the_check_turns_yellow_without_stopping_anything(outcome: Outcome) -> None:
    count = outcome.state["quarantine/records"].height
    shown = metadata(outcome.result, "quarantine/records")
    assert (shown["refused"], shown["dagster/row_count"]) == (count, count)
    assert sum(shown["by_reason"].values()) == count
    [check] = [c for c in outcome.result.get_asset_check_evaluations() if c.check_name == "nothing_refused_check"]
    assert (check.check_name, check.passed, check.severity) == (
        "nothing_refused_check", False, dg.AssetCheckSeverity.WARN,
    )  # fmt: skip
    assert check.description == f"{count} refused; see the table quarantine/records."


def test_a_value_too_long_for_the_index_is_cut_there_and_whole_in_the_lake(outcome: Outcome) -> None:
    clean = {row["path"]: row for row in outcome.state["clean/documents"].iter_rows(named=True)}
    sources = {hit["_source"]["path"]: hit["_source"] for hit in outcome.state.index.values()}
    assert json.loads(clean["long.jsonl"]["attributes"]) == {"note": "x" * 40_000}
    assert 30_000 < len(sources["long.jsonl"]["attributes"]["note"]) < 32_766
    assert len(clean["author.jsonl"]["author"]) == len(sources["author.jsonl"]["author"]) == 40_000
    assert json.loads(clean["path.jsonl"]["attributes"]) == {"z" * 60_000: 1}
    assert sources["path.jsonl"]["attributes"] == {}


def test_the_refused_run_again_change_nothing(outcome: Outcome) -> None:
    assert outcome.road.run(1).success
    again = outcome.road.state()
    assert again["quarantine/records"].equals(outcome.state["quarantine/records"])
    assert again.index == outcome.state.index


def test_a_batch_without_refusals_has_a_green_check(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with fresh_settings(request, "file", tmp_path) as settings:
        road = Road(settings)
        road.land({"plain.jsonl": GOOD})
        road.claim()
        [check] = [c for c in road.run(1).get_asset_check_evaluations() if c.check_name == "nothing_refused_check"]
        assert (check.passed, check.description) == (True, "Nothing was refused.")


@pytest.mark.parametrize("ids", ["source", "opensearch"])
def test_a_document_that_the_index_refuses_goes_to_the_quarantine_and_its_older_version_goes_too(
    request: pytest.FixtureRequest, tmp_path: Path, ids: str
) -> None:
    def records(*authors: str) -> bytes:
        return b"".join(
            b'{"id": %d, "text": "good one", "author": "%s"}\n' % (n, a.encode()) for n, a in enumerate(authors)
        )

    too_long = SECRET * 5000
    with fresh_settings(request, "file", tmp_path, lake_ids=ids) as settings:
        client = connect(settings, settings.opensearch_url)
        ensure_index(client, settings.opensearch_alias, {"author": {"type": "keyword", "ignore_above": 10**6}})
        road = Road(settings)
        assert road.take({"a.jsonl": records("5", too_long, "6")}) == [1]
        state = road.state()
        refused = state["quarantine/records"].select("stage", "path", "record", "reason").rows()
        assert refused == [("opensearch/documents", "a.jsonl", 1, "value_too_large")]
        assert SECRET not in state["quarantine/records"]["detail"][0]
        assert {hit["_source"]["author"] for hit in state.index.values()} == {"5", "6"}
        assert state["clean/documents"]["author"].sort().to_list() == ["5", "6"]
        assert road.take({"a.jsonl": records("5", "7", too_long)}) == [2]
        state = road.state()
        assert {hit["_source"]["author"] for hit in state.index.values()} == {"5", "7"}
        assert state["clean/documents"]["author"].sort().to_list() == ["5", "7"]
        assert state["quarantine/records"].select("batch", "record").rows() == [(2, 2)]
        for batch in (1, 2):
            assert road.run(batch).success
            assert road.state().index == state.index


def test_a_line_of_200_megabytes_is_refused_alone_and_never_held_in_memory(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with fresh_settings(request, "file", tmp_path) as settings:
        big = tmp_path / "box" / "big.jsonl"
        big.parent.mkdir()
        with big.open("wb") as file:
            file.write(GOOD + b'{"id": 2, "text": "')
            for _ in range(BIG_BYTES // 10_000_000):
                file.write(b"long " * 2_000_000)
            file.write(b'"}\n' + GOOD.replace(b"1", b"3"))
        measured = (
            "import resource, sys; from pathlib import Path; from lake_assets.ingest import ingest;"
            "from lake_assets.settings import Settings; done = ingest(Settings(), [Path(sys.argv[1])]);"
            "status = Path('/proc/self/status');"  # the kernel's ru_maxrss begins with what the parent held
            "peak = int(status.read_text().split('VmHWM:')[1].split()[0]) * 1024 if status.exists()"
            " else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
            "print(done.failures, peak)"
        )
        command = [sys.executable, "-c", measured, str(big.parent)]
        done = subprocess.run(
            command, env=environment(settings), capture_output=True, text=True, timeout=300, check=True
        )
        failures, peak_bytes = done.stdout.rsplit(" ", 1)
        assert failures == "[]"
        assert int(peak_bytes) < 600_000_000
        state = Road(settings).state()
        assert state["quarantine/records"].select("path", "record", "reason").rows() == [
            ("box/big.jsonl", 1, "record_too_large")
        ]
        [pointer] = state["raw/records"].filter(pl.col("record") == 1).iter_rows(named=True)
        assert (pointer["raw"], pointer["offset_bytes"]) == (None, len(GOOD))
        assert pointer["length_bytes"] == len('{"id": 2, "text": ""}') + BIG_BYTES
        assert len(state.index) == 2
