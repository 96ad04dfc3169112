"""The raw zone in a folder and on S3: order, slices, versions, names that nobody expects."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lake_assets.errors import LakeError, ObjectGone
from lake_assets.lake.raw_zone import COPYING, DEAD_SECONDS, LocalRawZone
from lake_assets_tests.road import KINDS, Road, fresh_settings
from lake_assets_tests.servers import S3Server

AWKWARD = [
    "a b.txt", "a.txt", "a/b.txt", "a/b/c.txt", "a-b.txt", "A.txt", "ä.txt", "\ufffd.txt", "🙂.txt", "#1?.txt",
    "%20.txt", "x{y}|z^~.txt", "new\nline.txt", "tab\t.txt", "back\\slash.txt", "z.txt",
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Road]:
    """A raw zone that holds the awkward names, each with its own name as content."""
    with fresh_settings(request, request.param, tmp_path_factory.mktemp("zone")) as settings:
        road = Road(settings)
        road.land({name: name.encode() for name in AWKWARD})
        yield road


def by_bytes(names: list[str]) -> list[str]:
    return sorted(names, key=str.encode)


def test_objects_are_listed_once_in_the_order_of_their_utf8_bytes(road: Road) -> None:
    listing = road.zone.look()
    found = [path for path in listing.objects["path"].to_list() if path in AWKWARD]
    assert found == by_bytes(AWKWARD)
    assert (listing.after, listing.until) == ("", None)
    sizes = dict(listing.objects.select("path", "size_bytes").rows())
    assert [sizes[name] for name in AWKWARD] == [len(name.encode()) for name in AWKWARD]


@pytest.mark.parametrize(
    "after", ["", "a", "a-b.txt", "a/", "a/b", "a/b.txt", "a/b/c.txt", "new\nline.txt", "🙂.txt", "\U0010ffff"]
)
def test_a_listing_goes_on_behind_any_path(road: Road, after: str) -> None:
    found = [path for path in road.zone.look(after).objects["path"].to_list() if path in AWKWARD]
    assert found == [name for name in by_bytes(AWKWARD) if name.encode() > after.encode()]


def test_an_object_is_read_by_its_version(road: Road) -> None:
    for path, etag in road.zone.head(["a b.txt", "🙂.txt", "#1?.txt", "%20.txt"]).select("path", "etag").rows():
        assert b"".join(road.zone.read(path, etag)).decode() == path


def test_a_listing_and_a_single_look_agree(road: Road) -> None:
    listed = {row[0]: row for row in road.zone.look().objects.rows()}
    for row in road.zone.head(AWKWARD).rows():
        assert row[:3] == listed[row[0]][:3]
        assert row[3].replace(microsecond=0) == listed[row[0]][3].replace(microsecond=0)
    assert road.zone.head(["absent.txt", "absent/too.txt", "a.txt/below"]).is_empty()


def test_an_overwritten_object_is_gone_in_its_old_version(road: Road) -> None:
    road.land({"over.txt": b"old bytes"})
    [etag] = road.zone.head(["over.txt"])["etag"]
    road.land({"over.txt": b"new bytes"})
    with pytest.raises(ObjectGone, match=r"'over.txt' has been replaced or removed"):
        list(road.zone.read("over.txt", etag))
    [newer] = road.zone.head(["over.txt"])["etag"]
    assert newer != etag
    assert b"".join(road.zone.read("over.txt", newer)) == b"new bytes"
    road.remove("over.txt")
    with pytest.raises(ObjectGone):
        list(road.zone.read("over.txt", newer))


def test_what_is_put_is_held_until_its_bytes_differ(road: Road, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * (9 << 20))
    for name in ("box/big one.bin", "box/new\nline.bin"):
        assert not road.zone.holds(name, source)
        road.zone.put(name, source)
        assert road.zone.head([name])["size_bytes"].to_list() == [9 << 20]
    assert road.zone.holds("box/big one.bin", source)
    source.write_bytes(b"x" * (9 << 20) + b"y")
    assert not road.zone.holds("box/big one.bin", source)
    source.write_bytes(b"x" * ((9 << 20) - 1) + b"y")
    assert not road.zone.holds("box/big one.bin", source)
    for name in ("box/big one.bin", "box/new\nline.bin"):
        road.remove(name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_zone_is_listed_in_slices_that_meet(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    with fresh_settings(request, kind, tmp_path) as settings:
        road = Road(settings)
        names = by_bytes([f"{number % 7}/{number}.txt" for number in range(1005)] + ["top.txt"])
        road.land(dict.fromkeys(names, b"x"))
        first = road.zone.look("", budget_seconds=0)
        assert first.objects.height == 1000
        assert first.until == names[999]
        second = road.zone.look(first.until, budget_seconds=3600)
        assert (second.after, second.until) == (names[999], None)
        assert first.objects["path"].to_list() + second.objects["path"].to_list() == names


@pytest.mark.storage
def test_keys_that_no_folder_could_hold_are_listed_and_folders_that_a_console_made_are_not(
    request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server
) -> None:
    with fresh_settings(request, "s3", tmp_path) as settings:
        road = Road(settings)
        road.land({"folder/": b"", "folder/a.txt": b"a", "empty.txt": b""})
        assert road.zone.look().objects["path"].to_list() == ["empty.txt", "folder/a.txt"]
        keys = ["a/../b.txt", "a//b.txt", "/lead.txt", "./dot.txt", "q/..", "\x01.txt"]
        keys = keys if s3.kind == "ministack" else ["new\nline.txt"]  # versitygw keeps files, whose paths these are not
        road.land(dict.fromkeys(keys, b"x"))
        assert road.zone.look().objects["path"].to_list() == by_bytes([*keys, "empty.txt", "folder/a.txt"])


def test_a_copy_that_was_killed_is_no_object_and_an_hour_later_the_next_copy_removes_it(tmp_path: Path) -> None:
    source, zone = tmp_path / "source", LocalRawZone(tmp_path / "zone")
    zone.root.mkdir()
    os.mkfifo(source)
    code = "import sys, pathlib; from lake_assets.lake.raw_zone import LocalRawZone; root, source = sys.argv[1:];"
    code += "LocalRawZone(pathlib.Path(root)).put('box/a.txt', pathlib.Path(source))"
    process = subprocess.Popen([sys.executable, "-c", code, str(zone.root), str(source)])
    with source.open("wb"):  # returns when the copy has begun
        process.kill()
        process.wait()
    [left] = (zone.root / COPYING).iterdir()
    assert zone.look().objects.is_empty()
    whole = tmp_path / "whole"
    whole.write_bytes(b"whole")
    for age, there in ((DEAD_SECONDS - 60, True), (DEAD_SECONDS + 60, False)):
        then = time.time() - age
        os.utime(left, (then, then))
        zone.put("box/a.txt", whole)
        assert left.exists() == there
        assert zone.look().objects["path"].to_list() == ["box/a.txt"]
        assert zone.holds("box/a.txt", whole)


def test_hidden_files_broken_links_and_pipes_are_no_objects(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_bytes(b"x")
    (tmp_path / ".hidden.txt").write_bytes(b"x")
    (tmp_path / ".folder").mkdir()
    (tmp_path / ".folder" / "a.txt").write_bytes(b"x")
    (tmp_path / "broken.txt").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to(".")
    (tmp_path / "self").symlink_to("self")
    os.mkfifo(tmp_path / "pipe.txt")
    assert LocalRawZone(tmp_path).look().objects["path"].to_list() == ["real.txt"]


def test_a_name_that_is_not_utf8_is_listed_in_order_and_told_in_ascii(tmp_path: Path) -> None:
    for name in (b"a.txt", b"\xff\xfe.txt", "🙂.txt".encode(), "é.txt".encode()):
        with contextlib.suppress(OSError):  # a file system that refuses such names, as that of macOS
            Path(tmp_path, os.fsdecode(name)).write_bytes(b"x")
    paths = LocalRawZone(tmp_path).look().objects["path"].to_list()
    assert paths == by_bytes(paths)
    assert {"a.txt", "é.txt", "🙂.txt"} <= set(paths)
    assert set(paths) - {"a.txt", "é.txt", "🙂.txt"} <= {"\\xff\\xfe.txt"}


@pytest.mark.storage
def test_a_bucket_that_is_not_there_is_a_sentence(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with (
        fresh_settings(request, "s3", tmp_path, raw_url="s3://no-such-bucket-here/box") as settings,
        pytest.raises(LakeError, match="no-such-bucket-here"),
    ):
        Road(settings).zone.look()
