"""`lake quarantine`: lists what was refused, shows one object or record of it, and runs it again.

A replay runs whole batches, as the page and `lake ingest` do: from the stage that refused, to the end of the road.
Where only some of a batch's refusals are asked for, the others of its later stages are tried again too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import polars as pl

from lake_assets.errors import LakeError, ObjectGone
from lake_assets.ingest import Progress, interrupted, run_again
from lake_assets.lake.raw_zone import raw_zone
from lake_assets.lake.tables import Lake
from lake_assets.settings import Settings
from lake_assets.text.records import ObjectRefused, check_path
from lake_assets.text.sources import load_sources

NEWEST_ROWS = 20
TEXT_BYTES = 500  # of a record, with --text
FROM_RAW = pl.col("stage") == "raw/records"
RECORD = ["batch", "path", "etag", "record"]
SHOWN = ["refused_at", "stage", "reason", "owner", "state", "batch", "path", "etag", "record", "detail"]


@dataclass(frozen=True)
class Wanted:
    """Which refusals are meant; all, where nothing is said.

    Attributes:
        reason: a class of reasons, for instance `broken_json`.
        stage: the asset that refused, for instance `indexing/documents`.
        path: the beginning of the object's path, or a pattern with `*`, `?` or `[…]`.
    """

    reason: str | None = None
    stage: str | None = None
    path: str | None = None

    def of(self, refused: pl.LazyFrame) -> pl.LazyFrame:
        """Gives the refusals that are meant."""
        for name, value in (("reason", self.reason), ("stage", self.stage)):
            refused = refused if value is None else refused.filter(pl.col(name) == value)
        return refused if self.path is None else _of_paths(refused, self._fits)

    def _fits(self, path: str) -> bool:
        wanted = self.path or ""
        return any(known.startswith(wanted) or fnmatchcase(known, wanted) for known in (path, inert(path)))


@dataclass(frozen=True)
class Plan:
    """What a replay tries.

    Attributes:
        asked: the refusals that were asked for and can be tried.
        lost: those that cannot: their object is no longer in the raw zone in that version.
    """

    asked: pl.DataFrame
    lost: pl.DataFrame

    @property
    def batches(self) -> list[int]:
        """The batches that are run again."""
        return self.asked["batch"].unique().sort().to_list()


@dataclass
class Replayed:
    """What a replay did.

    Attributes:
        batches: that were run.
        asked: refusals that were asked for.
        left: how many of them have left the quarantine.
        refused: what is still or newly refused of what was asked for, by `stage: reason`.
        lost: how many of the refused could not be tried: their object is no longer in the raw zone in that version.
        failures: a sentence for each step that failed; what left the quarantine may not have reached the index.
    """

    batches: list[int] = field(default_factory=list)
    asked: int = 0
    left: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    failures: list[str] = field(default_factory=list)


def list_refused(settings: Settings, wanted: Wanted, newest: int = NEWEST_ROWS) -> dict[str, Any]:
    """Counts refusals by stage, reason, owner and state, and gives the newest.

    Args:
        settings: whose lake is read.
        wanted: which refusals.
        newest: most of them that are given; `rest` counts the others.
    """
    refused = wanted.of(Lake(settings).read("quarantine/records").scan())
    by = ["stage", "reason", "owner", "state"]
    counts = refused.group_by(by).agg(records=pl.len()).sort(by).collect()
    order = ["refused_at", "batch", "path", "record"]
    rows = refused.sort(order, descending=[True, True, False, False], nulls_last=[True, False, False, False])
    shown = rows.head(newest).select(SHOWN).collect()
    total = int(counts["records"].sum())
    return {"refused": total, "counts": counts.to_dicts(), "newest": shown.to_dicts(), "rest": total - shown.height}


def show(settings: Settings, path: str, record: int | None = None, with_text: bool = False) -> list[dict[str, Any]]:
    """Gives every refusal of an object or of one record, with where its bytes lie and how many they are.

    Args:
        settings: whose lake is read.
        path: of the object; also as `inert` prints it.
        record: its number in the object, from 0; None: all, and the object itself.
        with_text: also gives the beginning of the record's bytes, as `inert` prints them.

    Raises:
        LakeError: nothing of it is in the quarantine.
    """
    lake = Lake(settings)
    refused = _of_paths(lake.read("quarantine/records").scan(), lambda known: path in (known, inert(known)))
    refused = refused if record is None else refused.filter(pl.col("record") == record)
    found = refused.select(SHOWN).sort("path", "batch", "record", "stage").collect()
    if found.is_empty():
        named = inert(path) if record is None else f"Record {record} of {inert(path)}"
        raise LakeError(f"{named} is not in the quarantine; `lake quarantine list` shows what is.")
    records, objects = _bytes_of(lake, found)
    rows = found.join(records, on=RECORD, how="left", maintain_order="left")
    rows = rows.join(objects, on=["batch", "path", "etag"], how="left", maintain_order="left")
    return [_told(row, with_text) for row in rows.iter_rows(named=True)]


def plan(settings: Settings, wanted: Wanted) -> Plan:
    """Finds what a replay would try; reads, and writes nothing."""
    refused = wanted.of(Lake(settings).read("quarantine/records").scan()).collect()
    objects = refused.filter(FROM_RAW).select("path", "etag").unique()
    there = raw_zone(settings).head([path for path in objects["path"].unique() if _is_path(path)])
    lost = refused.filter(FROM_RAW).join(there, on=["path", "etag"], how="anti")
    lost = lost.filter(pl.col("reason") != "bad_path")  # their name is refused, wherever they are
    return Plan(refused.join(lost, on=["stage", *RECORD], how="anti", nulls_equal=True), lost)


def replay(settings: Settings, wanted: Wanted, progress: Progress = lambda *_: None) -> Replayed:
    """Runs what was refused again, and what an earlier replay has begun and not finished.

    An object that raw/records refused is read again; for it and all else the assets of the batch run, each to its end.
    A refusal leaves the quarantine in the commit of the stage that takes it in, that of an object after the run.

    Args:
        settings: OpenSearch must answer at its URL, or the local node must run.
        wanted: which refusals.
        progress: told what is being done, and how much of it is done, 0..1.
    """
    planned = plan(settings, wanted)
    asked = pl.concat([planned.asked, planned.lost])
    done = Replayed(asked=asked.height, lost=planned.lost.height)
    before = _refused_of(settings, asked)
    again = _read_again(settings, planned, done, progress)
    later = planned.asked.filter(~FROM_RAW)["batch"]
    wanted_batches = {*later, *(batch for batch, read in again.items() if read.taken), *interrupted(settings)}
    if wanted_batches:
        ran = run_again(settings, sorted(wanted_batches), progress)
        done.batches = ran.batches
        done.failures += ran.failures
    _settle(settings, again)
    after = _refused_of(settings, asked)
    done.left = asked.join(after, on=RECORD, how="anti", nulls_equal=True).height
    still = after.join(asked, on=RECORD, how="semi", nulls_equal=True)
    fresh = after.join(before, on=RECORD, how="anti", nulls_equal=True)
    done.refused = reasons(pl.concat([still, fresh]))
    return done


def reasons(refused: pl.DataFrame) -> dict[str, int]:
    """Counts refusals by `stage: reason`."""
    counted = refused.group_by("stage", "reason").len().sort("stage", "reason")
    return {f"{stage}: {reason}": count for stage, reason, count in counted.rows()}


def inert(text: str) -> str:
    r"""Writes a text so that it can do nothing in a terminal: what is not printable becomes its escape, as `\x1b`.

    That is all control characters, those that turn the direction of writing or are not seen, and ends of lines.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@dataclass(frozen=True)
class _Read:
    """Objects of a batch that were read again, the paths that were taken in, and what is refused again."""

    objects: pl.DataFrame
    taken: list[str]
    refused: pl.DataFrame


def _read_again(settings: Settings, planned: Plan, done: Replayed, progress: Progress) -> dict[int, _Read]:
    """Reads the objects that raw/records refused again, batch by batch."""
    from lake_assets.engineering.quarantine import read_again

    lake, zone, sources = Lake(settings), raw_zone(settings), load_sources(settings.lake_sources)
    again = {}
    for (batch,), objects in planned.asked.filter(FROM_RAW).sort("batch").group_by("batch", maintain_order=True):
        progress(f"Batch {batch}: reading {objects.height:,} objects again")
        try:
            again[batch] = _Read(objects, *read_again(lake, zone, sources, batch, objects))
        except ObjectGone as error:
            done.failures.append(f"Batch {batch}, raw/records: {error}")
    return again


def _settle(settings: Settings, again: Mapping[int, _Read]) -> None:
    """Takes objects out of the quarantine whose batch has run to its end."""
    from lake_assets.engineering.quarantine import settle

    unfinished = interrupted(settings) if again else []
    for batch, read in again.items():
        if batch not in unfinished:
            settle(Lake(settings), batch, read.objects, read.refused)


def _refused_of(settings: Settings, asked: pl.DataFrame) -> pl.DataFrame:
    """Gives all that is refused now of the objects of what was asked for."""
    batches = asked["batch"].unique().to_list()
    rows = Lake(settings).read("quarantine/records").frame(batches, ["stage", *RECORD, "reason"])
    return rows.join(asked, on=["batch", "path", "etag"], how="semi")


def _of_paths(refused: pl.LazyFrame, fits: Callable[[str], bool]) -> pl.LazyFrame:
    paths = refused.select(pl.col("path").unique()).collect()["path"]
    return refused.filter(pl.col("path").is_in([path for path in paths if fits(path)]))


def _is_path(path: str) -> bool:
    try:
        check_path(path)
    except ObjectRefused:
        return False
    return True


def _bytes_of(lake: Lake, found: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Gives what raw/records says of refused records, and raw/objects of their objects."""
    batches, paths = found["batch"].unique().to_list(), found["path"].unique().implode()
    wanted = pl.col("path").is_in(paths) & pl.col("record").is_in(found["record"].drop_nulls().unique().implode())
    records = lake.read("raw/records").scan(batches).filter(wanted)
    records = records.select(
        *RECORD, "media_type", "offset_bytes", "length_bytes", is_kept=pl.col("raw").is_not_null(),
        beginning=pl.col("raw").bin.head(TEXT_BYTES),
    )  # fmt: skip
    objects = lake.read("raw/objects").scan(batches).filter(pl.col("path").is_in(paths))
    return records.collect(), objects.select("batch", "path", "etag", "size_bytes").unique().collect()


def _told(row: dict[str, Any], with_text: bool) -> dict[str, Any]:
    is_kept, beginning = row.pop("is_kept"), row.pop("beginning")
    row["bytes_are_in"] = "raw/records" if is_kept else "the object"
    if with_text:
        row["text"] = None if beginning is None else inert(beginning.decode("utf-8", "backslashreplace"))
    return row
