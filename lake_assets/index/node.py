"""The local OpenSearch node: one for a lake home, started when nobody names another OpenSearch.

A node is meant for development, demonstrations and tests: it listens on 127.0.0.1 only, has no authentication, and does
not watch the disk's space.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from lake_assets.errors import NodeFailed
from lake_assets.index import node_files, node_java, node_probe
from lake_assets.index.node_files import Progress
from lake_assets.index.node_guard import Guard, Job
from lake_assets.index.node_java import Folders
from lake_assets.settings import Settings

READY_SECONDS = 120.0
LOCK_SECONDS = 300.0
POLL_SECONDS = 0.05
STATE_NEEDS_BYTES = 50_000_000
"""Free space without which a start is not tried: an empty node writes less than 1 MB, its logs up to 64 MB."""

_guards: dict[int, Guard] = {}
"""Guards of this process's nodes by their process id: an open pipe is what keeps an owned node alive."""


@dataclass(frozen=True)
class NodeState:
    """A node that runs.

    Attributes:
        url: Address of OpenSearch: http://127.0.0.1:port.
        port: Its port.
        pid: Process id of Java.
        guard_pid: Process id of the guard that watches over it.
        heap: Size of Java's heap, as Java writes it.
    """

    url: str
    port: int
    pid: int
    guard_pid: int
    heap: str


def opensearch_url(settings: Settings) -> str:
    """Returns OPENSEARCH_URL, or the address of the local node that runs.

    Raises:
        NodeFailed: the first is empty and no local node runs.
    """
    if settings.opensearch_url:
        return settings.opensearch_url
    state = running(settings)
    if state is None:
        raise NodeFailed(
            f"No local OpenSearch runs for {settings.lake_home}: start one with `lake opensearch start`, "
            "or set OPENSEARCH_URL."
        )
    return state.url


def running(settings: Settings) -> NodeState | None:
    """Returns the node of this lake home if it lives and answers; the state of one that has ended is removed.

    Raises:
        NodeFailed: the state cannot be read.
    """
    state = _living(settings)
    return state if state and node_probe.answers(state.port) else None


def start(
    settings: Settings,
    port: int = 0,
    heap: str = "1g",
    progress: Progress | None = None,
    owned: bool = False,
    java_flags: Sequence[str] = (),
) -> NodeState:
    """Starts the node of this lake home, and returns when an index can be created; one that runs is returned as it is.

    Args:
        settings: Name the lake home and the cache.
        port: Port on 127.0.0.1; 0: a free one.
        heap: Size of Java's heap, as Java writes it.
        progress: Takes a sentence now and then.
        owned: The node ends when this process does, in whatever way; otherwise it runs until `stop`.
        java_flags: More flags for Java. Tests use -XX:TieredStopAtLevel=1: a third less processor time for a short
            life, a fifth less throughput in a long one.

    Raises:
        NodeFailed: it cannot be fetched or started; the sentence says why.
    """
    return _start(settings, port, heap, progress, owned, java_flags)[0]


def stop(settings: Settings) -> bool:
    """Stops the node of this lake home in order, or by force after a minute; says whether there was one.

    The first stop on a machine takes 10 s longer: Java writes the cache that makes every later start faster.

    Raises:
        NodeFailed: it belongs to another user.
    """
    root = _folders(settings).root
    if not root.is_dir():
        return False
    with node_files.writing(root), _locked(settings):
        state = _living(settings)
        if state is None:
            return False
        _end(state)
        _state_path(settings).unlink(missing_ok=True)
        return True


@contextlib.contextmanager
def local_node(settings: Settings, progress: Progress | None = None) -> Iterator[str]:
    """Gives the address of the node that runs, or of one that is started for as long as the context lasts.

    Raises:
        NodeFailed: it cannot be fetched or started; the sentence says why.
    """
    state, is_ours = _start(settings, 0, "1g", progress, True, ())
    try:
        yield state.url
    finally:
        guard = _guards.pop(state.guard_pid, None) if is_ours else None
        if guard:
            if guard.job.product and progress:
                progress("Stopping OpenSearch; this once it takes 10 seconds, for a cache that lets it start faster.")
            guard.end()
            _living(settings)


def _start(
    settings: Settings, port: int, heap: str, progress: Progress | None, owned: bool, java_flags: Sequence[str]
) -> tuple[NodeState, bool]:
    """Does what `start` says, and says whether it was this call that started the node."""
    if found := running(settings):
        return found, False
    tell = progress or _keep_silent
    distribution = node_files.install(settings.cache_root, tell)
    folders = _folders(settings)
    with node_files.writing(folders.root):
        folders.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(settings, tell):
            if found := running(settings):
                return found, False
            _refuse_what_cannot_work(settings, port)
            job = node_java.job(distribution, folders, heap, java_flags)
            node_java.prepare(folders, port)
            tell("Starting OpenSearch.")
            guard = _begin(job)
            try:
                state = _wait_until_ready(folders, guard, port, heap)
                _write_state(settings, state)
                node_java.discard_unfit_cache(job)
                if not owned:
                    guard.keep()
            except BaseException:
                guard.end()
                raise
            _guards[guard.pid] = guard
    return state, True


def _begin(job: Job) -> Guard:
    try:
        return Guard(job)
    except OSError as error:
        raise NodeFailed(f"Java cannot be started for the local OpenSearch ({error.strerror}).") from None


def _refuse_what_cannot_work(settings: Settings, port: int) -> None:
    if state := _living(settings):
        raise NodeFailed(
            f"The local OpenSearch (process {state.pid}) runs and does not answer on port {state.port}: "
            "wait a little, or run `lake opensearch stop`."
        )
    node_files.require_space(_folders(settings).root, STATE_NEEDS_BYTES)
    if not port:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((node_probe.HOST, port))
        except (OSError, OverflowError) as error:
            raise NodeFailed(
                f"Port {port} of {node_probe.HOST} cannot be used for the local OpenSearch "
                f"({getattr(error, 'strerror', None) or error}): choose another one, or 0 for any that is free."
            ) from None


def _wait_until_ready(folders: Folders, guard: Guard, port: int, heap: str) -> NodeState:
    deadline = time.monotonic() + READY_SECONDS
    while not guard.has_ended():
        given = _given_port(folders.ports)
        if given and node_probe.can_create_an_index(given):
            node_probe.wait_for_recovery(given)
            return NodeState(f"http://{node_probe.HOST}:{given}", given, guard.child_pid, guard.pid, heap)
        if time.monotonic() > deadline:
            log, reason = node_java.last_error(folders)
            raise NodeFailed(
                f"The local OpenSearch could not be used within {READY_SECONDS:.0f} seconds. {_see(log, reason)}"
            )
        time.sleep(POLL_SECONDS)
    log, reason = node_java.last_error(folders)
    if "BindException" in reason or "BindHttpException" in reason:
        raise NodeFailed(f"Port {port} of {node_probe.HOST} was taken meanwhile: choose another one, or 0 for any.")
    if "node locks" in reason:
        raise NodeFailed(f"Another OpenSearch uses {folders.data}: end it, or set LAKE_HOME to another folder.")
    raise NodeFailed(f"The local OpenSearch ended while it was starting. {_see(log, reason)}")


def _see(log: Path, reason: str) -> str:
    return f"Its log is {log}" + (f" and its last error: {reason}" if reason else ".")


def _given_port(path: Path) -> int:
    """Returns the port that OpenSearch wrote down, as `127.0.0.1:port`; 0 before it did."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii").splitlines()[0].rpartition(":")[2])
    return 0


def _end(state: NodeState) -> None:
    """Ends Java and waits for it and its guard: SIGTERM, and SIGKILL after a minute."""
    for number, limit_seconds in ((signal.SIGTERM, node_java.STOP_SECONDS), (signal.SIGKILL, 10.0)):
        try:
            os.kill(state.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + limit_seconds
        while _is_alive(state.pid) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if not _is_alive(state.pid):
            break
    if guard := _guards.pop(state.guard_pid, None):
        guard.end()
        return
    deadline = time.monotonic() + 5.0
    while _is_alive(state.guard_pid) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _living(settings: Settings) -> NodeState | None:
    """Returns what the state file says if that process lives and is this node; else the file is removed."""
    for pid in [pid for pid, guard in _guards.items() if guard.has_ended()]:
        del _guards[pid]
    path = _state_path(settings)
    try:
        state = NodeState(**json.loads(path.read_text(encoding="utf-8")))
        if _folders(settings).mark in psutil.Process(state.pid).cmdline():
            return state
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NodeFailed(f"{path} cannot be read ({error.strerror}): another user started that node.") from None
    except (ValueError, TypeError, psutil.Error):
        pass
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def _write_state(settings: Settings, state: NodeState) -> None:
    path = _state_path(settings)
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix="node-", suffix=".json")  # mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(state), file)
    os.replace(unfinished, path)


def _folders(settings: Settings) -> Folders:
    return Folders(Path(os.path.realpath(settings.lake_home)) / "opensearch")


def _state_path(settings: Settings) -> Path:
    return _folders(settings).root / "node.json"


def _locked(settings: Settings, progress: Progress | None = None) -> contextlib.AbstractContextManager[None]:
    return node_files.locked(_folders(settings).root / "lock", LOCK_SECONDS, progress or _keep_silent)


def _keep_silent(_: str) -> None:
    return None
