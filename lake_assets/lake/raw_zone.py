"""The raw zone: where objects land. Listed in slices, read by version, written only by `lake ingest`.

A local folder is walked by the standard library (obstore's listing ends at the first name that it cannot express);
S3 goes through obstore, and through boto3 where a key stops obstore.
"""

from __future__ import annotations

import datetime as dt
import filecmp
import hashlib
import os
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import polars as pl

from lake_assets.contracts import UTC_TIMESTAMP
from lake_assets.errors import LakeError, ObjectGone
from lake_assets.lake.tables import local_path
from lake_assets.settings import Settings

CHUNK_BYTES = 4 << 20
COPYING = ".landing"  # the folder of copies under way
DEAD_SECONDS = 3600.0  # after which a copy that nobody writes to is one of a process that died
LISTING = {"path": pl.String, "etag": pl.String, "size_bytes": pl.Int64, "last_modified": UTC_TIMESTAMP}


@dataclass(frozen=True)
class Listing:
    """All objects whose path is above `after` and not above `until`; `until` is None when the end was reached."""

    objects: pl.DataFrame
    after: str
    until: str | None


class RawZone(ABC):
    """Objects under one root. Paths are relative to it, and ordered by their UTF-8 bytes."""

    def look(self, after: str = "", budget_seconds: float = 3600.0) -> Listing:
        """Lists from `after` on, until the end or until the time is spent (after a thousand objects at least)."""
        ends = time.monotonic() + budget_seconds
        rows: list[tuple[str, str, int, dt.datetime]] = []
        until = None
        for page in self._pages(after):
            rows += page
            if time.monotonic() > ends and rows:
                until = rows[-1][0]
                break
        return Listing(pl.DataFrame(rows, schema=LISTING, orient="row"), after, until)

    def head(self, paths: list[str]) -> pl.DataFrame:
        """Gives path, etag, size and time of single objects; absent ones are left out."""
        rows = [row for row in map(self._head, paths) if row]
        return pl.DataFrame(rows, schema=LISTING, orient="row")

    @abstractmethod
    def _pages(self, after: str) -> Iterator[list[tuple[str, str, int, dt.datetime]]]:
        """Lists objects above a path, in order, in pages."""

    @abstractmethod
    def _head(self, path: str) -> tuple[str, str, int, dt.datetime] | None:
        """Gives path, etag, size and time of one object; None when there is none."""

    @abstractmethod
    def read(self, path: str, etag: str) -> Iterator[bytes]:
        """Reads one version of an object in chunks.

        Raises:
            ObjectGone: that version is no longer there.
        """

    @abstractmethod
    def holds(self, path: str, source: Path) -> bool:
        """Tells whether the object is there, with the very bytes of a file."""

    @abstractmethod
    def put(self, path: str, source: Path) -> None:
        """Copies a file into the zone; the object appears whole or not at all."""


class LocalRawZone(RawZone):
    """A folder. Names that begin with a dot are not objects: so a copy under way can hide."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _pages(self, after: str) -> Iterator[list[tuple[str, str, int, dt.datetime]]]:
        page = []
        for path, entry in _walk(self.root, "", after):
            try:
                page.append(_local_row(path, entry.stat()))
            except FileNotFoundError:
                continue  # removed while we walked
            if len(page) == 1000:
                yield page
                page = []
        yield page

    def _head(self, path: str) -> tuple[str, str, int, dt.datetime] | None:
        try:
            return _local_row(path, (self.root / path).stat())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, path: str, etag: str) -> Iterator[bytes]:
        try:
            with open(self.root / path, "rb") as file:
                if _etag(os.fstat(file.fileno())) != etag:
                    raise FileNotFoundError
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
                if _etag(os.fstat(file.fileno())) != etag:
                    raise FileNotFoundError
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ObjectGone(_gone(path)) from None

    def holds(self, path: str, source: Path) -> bool:
        target = self.root / path
        return target.is_file() and filecmp.cmp(source, target, shallow=False)

    def put(self, path: str, source: Path) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._copies())
        try:
            with open(source, "rb") as reader, os.fdopen(descriptor, "wb") as writer:
                shutil.copyfileobj(reader, writer, CHUNK_BYTES)
                writer.flush()
                os.fsync(writer.fileno())
            os.chmod(name, 0o644)
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _copies(self) -> Path:
        """Gives the folder of copies under way, without those that a process has left that died."""
        folder = self.root / COPYING
        folder.mkdir(exist_ok=True)
        for copy in folder.iterdir():
            with suppress(FileNotFoundError):  # it has just become an object
                if time.time() - copy.stat().st_mtime > DEAD_SECONDS:
                    copy.unlink()
        return folder


class S3RawZone(RawZone):
    """A bucket, or a prefix in one."""

    def __init__(self, url: str, settings: Settings) -> None:
        from obstore.store import S3Store

        parts = urlsplit(url)
        self.bucket, self.prefix = parts.netloc, parts.path.strip("/")
        self.settings = settings
        options: dict[str, Any] = settings.storage_options
        self.store = S3Store(self.bucket, prefix=self.prefix or None, **options)

    def _pages(self, after: str) -> Iterator[list[tuple[str, str, int, dt.datetime]]]:
        import obstore
        from obstore.exceptions import BaseError

        last = after
        try:
            for page in obstore.list(self.store, offset=after or None, chunk_size=1000):
                rows = [
                    (m["path"], m["e_tag"] or "", m["size"], m["last_modified"])
                    for m in page
                    if m["size"] or self._head(m["path"])  # `folder/`, which a console makes, is listed as `folder`
                ]
                if rows:
                    last = rows[-1][0]
                    yield rows
            return
        except ValueError:  # `after` is a key that obstore cannot express
            pass
        except BaseError as error:
            if "path" not in str(error).lower():
                raise LakeError(
                    f"The raw zone s3://{self.bucket}/{self.prefix} cannot be listed: {_kind(error)}."
                ) from None
        # A key that obstore cannot express (`..`, an empty segment, a control character) ends its listing.
        yield from self._boto_pages(last)

    def _boto_pages(self, after: str, path: str = "") -> Iterator[list[tuple[str, str, int, dt.datetime]]]:
        head = f"{self.prefix}/" if self.prefix else ""
        pages = (
            self._boto()
            .get_paginator("list_objects_v2")
            .paginate(Bucket=self.bucket, Prefix=head + path, **({"StartAfter": head + after} if after else {}))
        )
        for page in pages:
            yield [
                (item["Key"][len(head) :], item["ETag"], item["Size"], item["LastModified"])
                for item in page.get("Contents", [])
                if item["Size"] or not item["Key"].endswith("/")
            ]

    def _boto(self) -> Any:
        import boto3

        options = self.settings.storage_options
        return boto3.client(
            "s3",
            region_name=options["aws_region"],
            endpoint_url=options.get("aws_endpoint_url"),
            aws_access_key_id=options.get("aws_access_key_id"),
            aws_secret_access_key=options.get("aws_secret_access_key"),
            aws_session_token=options.get("aws_session_token"),
        )

    def _head(self, path: str) -> tuple[str, str, int, dt.datetime] | None:
        import obstore

        try:
            meta = obstore.head(self.store, path)
        except FileNotFoundError:
            return None
        except ValueError:  # a name that obstore cannot express
            page = next(self._boto_pages("", path))
            return next((row for row in page if row[0] == path), None)
        return path, meta["e_tag"] or "", meta["size"], meta["last_modified"]

    def read(self, path: str, etag: str) -> Iterator[bytes]:
        import obstore
        from obstore.exceptions import BaseError, PreconditionError

        try:
            result = obstore.get(self.store, path, options={"if_match": etag})
            for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)
        except (FileNotFoundError, PreconditionError):
            raise ObjectGone(_gone(path)) from None
        except BaseError as error:
            raise LakeError(f"Object {path!r} of the raw zone cannot be read: {_kind(error)}.") from None

    def holds(self, path: str, source: Path) -> bool:
        found = self._head(path)
        if found is None or found[2] != source.stat().st_size:
            return False
        with open(source, "rb") as file:
            mine = iter(lambda: file.read(1 << 20), b"")
            try:
                return _digest(mine) == _digest(self.read(path, found[1]))
            except ValueError:  # a name that obstore cannot express
                return False

    def put(self, path: str, source: Path) -> None:
        import obstore

        try:
            obstore.put(self.store, path, source)
        except ValueError:  # a name that obstore cannot express; the road refuses it, and says so
            self._boto().upload_file(str(source), self.bucket, f"{self.prefix}/{path}".lstrip("/"))


def raw_zone(settings: Settings) -> RawZone:
    """Opens the raw zone that RAW_URL names; a local folder is made."""
    if settings.raw_root.startswith("s3:"):
        return S3RawZone(settings.raw_root, settings)
    root = local_path(settings.raw_root)
    root.mkdir(parents=True, exist_ok=True)
    return LocalRawZone(root)


def _walk(folder: Path, prefix: str, after: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Walks files in the order of their whole paths, from `after` on.

    A link to a file is a file; a link to a folder is nothing, as it may lead in a circle. Of a name that is not UTF-8,
    the bytes are told in ASCII, which the road refuses.
    """
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]
    except FileNotFoundError:
        return
    told = [
        (entry, entry.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")) for entry in entries
    ]
    named = [(name + ("/" if entry.is_dir(follow_symlinks=False) else ""), entry) for entry, name in told]
    for name, entry in sorted(named, key=lambda item: item[0]):
        path = prefix + name
        if name.endswith("/"):
            if path + "\U0010ffff" > after:
                yield from _walk(Path(entry.path), path, after)
        elif path > after and _is_file(entry):
            yield path, entry


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads in a circle
        return False


def _local_row(path: str, stat: os.stat_result) -> tuple[str, str, int, dt.datetime]:
    return path, _etag(stat), stat.st_size, dt.datetime.fromtimestamp(stat.st_mtime, dt.UTC)


def _etag(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}-{stat.st_ino:x}"


def _gone(path: str) -> str:
    return (
        f"Object {path!r} has been replaced or removed since it was claimed; its newer version comes in a later batch."
    )


def _digest(chunks: Iterable[bytes]) -> bytes:
    digest = hashlib.blake2b()
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()


def _kind(error: Exception) -> str:
    return type(error).__name__
