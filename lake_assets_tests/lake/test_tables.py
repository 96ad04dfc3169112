"""Delta tables on both kinds of lake: whole batches replaced, nothing lost between writers, contracts held."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import dataframely as dy
import polars as pl
import pytest
from deltalake import DeltaTable

from lake_assets.contracts import Contract, about
from lake_assets.errors import ContractBroken, TableConflict
from lake_assets.lake import tables
from lake_assets.lake.tables import Lake, Snapshot, Table
from lake_assets.settings import Settings


class Notes(Contract):
    """One row per note."""

    id = dy.String(**about("Which note.", unit="count"))
    words = dy.Int64(nullable=True, **about("How long it is.", index={"type": "long"}))


class MoreNotes(Notes):
    """One row per note."""

    mood = dy.String(nullable=True, **about("How it sounds."))


class OtherNotes(Contract):
    """One row per note."""

    id = dy.Int64(**about("Which note."))


@pytest.fixture
def table(lake_settings: Settings) -> Table:
    return Lake(lake_settings).table("notes/all", Notes)


def rows(batch: int, *ids: str, **more: object) -> pl.DataFrame:
    data = {"batch": [batch] * len(ids), "id": list(ids), "words": [len(id) for id in ids]}
    return pl.DataFrame(data, schema={"batch": pl.Int64, "id": pl.String, "words": pl.Int64}).with_columns(
        **{name: pl.lit(value) for name, value in more.items()}
    )


def write(table: Table, batch: int, *ids: str) -> None:
    table.replace(lambda _: ([batch], [rows(batch, *ids)]))


def held(table: Table) -> list[tuple[int, str]]:
    return sorted(table.snapshot().frame().select("batch", "id").rows())


def test_a_table_that_does_not_exist_reads_as_empty(table: Table) -> None:
    snapshot = table.snapshot()
    assert (snapshot.version, snapshot.columns) == (-1, {})
    assert snapshot.frame().schema == {"batch": pl.Int64, "id": pl.String, "words": pl.Int64}
    assert list(snapshot.pieces([1])) == []
    assert snapshot.count([1, 2]) == 0


def test_whole_batches_are_replaced_and_a_snapshot_stays_what_it_was(table: Table) -> None:
    write(table, 1, "a", "b")
    write(table, 2, "c")
    before = table.snapshot()
    replaced = table.replace(lambda _: ([1, 3], [rows(1, "d"), rows(3, "e")]), info={"run": "r1"})
    assert replaced is not None
    assert (replaced.batches, replaced.rows) == ((1, 3), 2)
    assert held(table) == [(1, "d"), (2, "c"), (3, "e")]
    assert sorted(before.frame().select("batch", "id").rows()) == [(1, "a"), (1, "b"), (2, "c")]
    table.replace(lambda _: ([2], []))
    assert held(table) == [(1, "d"), (3, "e")]
    assert table.snapshot().count([1, 2, 3]) == 2
    delta = table.snapshot().delta
    assert delta is not None
    assert [entry.get("run") for entry in delta.history(2)] == [None, "r1"]


def test_nothing_to_change_commits_nothing(table: Table) -> None:
    write(table, 1, "a")
    version = table.snapshot().version
    assert table.replace(lambda _: None) is None
    assert table.snapshot().version == version


def test_writers_of_distinct_and_of_the_same_batches_lose_nothing(lake_settings: Settings) -> None:
    """Four writers: each adds its rows to a shared batch it has read, and replaces a batch of its own."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            table = Lake(lake_settings).table("notes/all", Notes)
            for turn in range(3):
                name = f"w{number}t{turn}"

                def add(snapshot: Snapshot, name: str = name) -> tuple[Sequence[int], list[pl.DataFrame]]:
                    return [0], [snapshot.frame([0]), rows(0, name)]

                table.replace(add)
                write(table, number, name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    table = Lake(lake_settings).table("notes/all", Notes)
    shared = [(0, f"w{number}t{turn}") for number in range(1, 5) for turn in range(3)]
    assert held(table) == sorted(shared) + [(number, f"w{number}t2") for number in range(1, 5)]


def test_a_writer_that_never_wins_gives_up_with_a_sentence(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "COMMIT_TRIES", 2)
    write(table, 1, "a")
    rival = Table(table.key, table.contract, table.url, table.storage_options)

    def always_late(snapshot: Snapshot) -> tuple[Sequence[int], Iterator[pl.DataFrame]]:
        def frames() -> Iterator[pl.DataFrame]:
            yield snapshot.frame([1])
            write(rival, 1, "theirs")

        return [1], frames()

    with pytest.raises(TableConflict, match="notes/all"):
        table.replace(always_late)
    assert held(table) == [(1, "theirs")]


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (rows(1, "secret").drop("words"), "words"),
        (rows(1, "secret", extra="x"), "extra"),
        (rows(1, "secret").cast({"words": pl.Float64}), "words"),
        (rows(1, "secret").with_columns(id=pl.lit(None, pl.String)), "id"),
    ],
)
def test_a_frame_that_breaks_the_contract_is_refused_whole_and_nothing_is_written(
    table: Table, frame: pl.DataFrame, told: str
) -> None:
    write(table, 1, "a")
    version = table.snapshot().version
    with pytest.raises(ContractBroken, match=told) as refusal:
        table.replace(lambda _: ([1], [rows(1, "b"), frame]))
    assert "secret" not in str(refusal.value)
    assert "notes/all" in str(refusal.value)
    assert (held(table), table.snapshot().version) == ([(1, "a")], version)


def test_an_error_in_the_making_of_the_rows_is_raised_as_it_is_and_nothing_is_written(table: Table) -> None:
    write(table, 1, "a")

    def frames() -> Iterator[pl.DataFrame]:
        yield rows(1, "b")
        raise ZeroDivisionError("in the making")

    with pytest.raises(ZeroDivisionError, match="in the making"):
        table.replace(lambda _: ([1], frames()))
    assert held(table) == [(1, "a")]
    assert not [thread for thread in threading.enumerate() if "_make" in str(thread)]


def test_a_column_that_the_contract_gains_is_added_with_its_meaning_and_is_null_in_old_rows(
    table: Table, lake_settings: Settings
) -> None:
    write(table, 1, "a")
    newer = Lake(lake_settings).table("notes/all", MoreNotes)
    assert newer.snapshot().frame()["mood"].to_list() == [None]
    newer.replace(lambda _: ([2], [rows(2, "b", mood="calm")]))
    found = newer.snapshot()
    assert sorted(found.frame().select("id", "mood").rows()) == [("a", None), ("b", "calm")]
    assert found.columns["mood"].metadata["comment"] == "How it sounds."
    assert found.columns["words"].metadata["index"] == '{"type": "long"}'
    write(table, 3, "c")  # a process with the older contract goes on, and leaves the column empty
    assert sorted(newer.snapshot().frame().select("id", "mood").rows()) == [("a", None), ("b", "calm"), ("c", None)]


def test_a_column_of_another_type_is_refused_with_a_sentence(table: Table, lake_settings: Settings) -> None:
    write(table, 1, "a")
    with pytest.raises(ContractBroken, match=r"Column id of notes/all is string in the lake, .* long"):
        Lake(lake_settings).table("notes/all", OtherNotes).replace(lambda _: ([1], []))


def test_small_frames_are_gathered_and_large_batches_come_back_in_pieces(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "PIECE_ROWS", 100)
    table.replace(lambda _: ([1], (rows(1, f"n{number}") for number in range(250))))
    snapshot = table.snapshot()
    pieces = list(snapshot.pieces([1], ["id"]))
    assert max(piece.height for piece in pieces) <= 100
    assert sorted(pl.concat(pieces)["id"]) == sorted(f"n{number}" for number in range(250))
    delta = snapshot.delta
    assert isinstance(delta, DeltaTable)
    assert len(delta.file_uris()) == 1


ON_ONE_CORE = """
import os, sys
if hasattr(os, "sched_setaffinity"):  # Linux
    os.sched_setaffinity(0, {0})
from pathlib import Path
from lake_assets.settings import Settings
from lake_assets_tests.lake.test_tables import nested
nested(Settings(_env_file=None, lake_home=Path(sys.argv[1])))
"""


def nested(settings: Settings) -> None:
    """Writes to a table with rows whose making writes to another."""
    lake = Lake(settings)

    def frames() -> Iterator[pl.DataFrame]:
        for part in range(3):
            write(lake.table("notes/refused", Notes), part, "r")
            yield rows(1, f"n{part}")

    lake.table("notes/all", Notes).replace(lambda _: ([1], frames()))
    assert len(held(lake.table("notes/all", Notes))) == 3


def test_on_one_core_rows_whose_making_writes_to_another_table_are_written(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ON_ONE_CORE, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=root, env={"PATH": os.environ["PATH"]}, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
