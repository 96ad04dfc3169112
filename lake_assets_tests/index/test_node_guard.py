"""The guard, with a child that starts faster than OpenSearch."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lake_assets.index.node_guard import Guard, Job

WAITS = "import time; print('up', flush=True); time.sleep(600)"
IGNORES = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
ENDS_AT_ONCE = "print('up', flush=True)"


@pytest.fixture
def guards() -> Iterator[list[Guard]]:
    """Every guard that a test started; whatever is still there afterwards is killed."""
    started: list[Guard] = []
    yield started
    for guard in started:
        for pid in (guard.child_pid, guard.pid):
            if not guard.has_ended() and psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        guard.end()


def test_closing_the_pipe_ends_the_child(tmp_path: Path, guards: list[Guard]) -> None:
    guard = _start(tmp_path, guards, WAITS)
    guard.end()
    assert _are_gone(guard.child_pid, guard.pid)


def test_a_child_that_ignores_the_request_is_killed(tmp_path: Path, guards: list[Guard]) -> None:
    guard = _start(tmp_path, guards, IGNORES, grace_seconds=0.3)
    guard.end()
    assert _are_gone(guard.child_pid, guard.pid)


def test_a_child_that_was_kept_stays_until_the_guard_is_asked(tmp_path: Path, guards: list[Guard]) -> None:
    guard = _start(tmp_path, guards, WAITS)
    guard.keep()
    time.sleep(0.7)
    assert psutil.pid_exists(guard.child_pid)
    os.kill(guard.pid, signal.SIGTERM)
    guard.end()
    assert _are_gone(guard.child_pid, guard.pid)


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_child_that_ends_takes_the_guard_with_it(tmp_path: Path, guards: list[Guard], is_kept: bool) -> None:
    guard = _start(tmp_path, guards, WAITS)
    if is_kept:
        guard.keep()
    os.kill(guard.child_pid, signal.SIGKILL)
    assert _eventually(guard.has_ended)
    assert _are_gone(guard.child_pid, guard.pid)


def test_killing_the_guard_kills_the_child_on_linux(tmp_path: Path, guards: list[Guard]) -> None:
    guard = _start(tmp_path, guards, IGNORES)
    guard.keep()
    os.kill(guard.pid, signal.SIGKILL)
    if sys.platform != "linux":  # no other system can tie a process to its parent
        os.kill(guard.child_pid, signal.SIGKILL)
    assert _eventually(guard.has_ended)
    assert _are_gone(guard.child_pid)


def test_a_terminal_cannot_reach_the_guard_and_the_child(tmp_path: Path, guards: list[Guard]) -> None:
    guard = _start(tmp_path, guards, WAITS)
    assert os.getsid(guard.pid) == os.getsid(guard.child_pid) == guard.pid != os.getsid(0)


@pytest.mark.parametrize(("is_killed", "exists"), [(False, True), (True, False)])
def test_what_the_child_wrote_gets_its_name_only_after_an_orderly_end(
    tmp_path: Path, guards: list[Guard], is_killed: bool, exists: bool
) -> None:
    unfinished, finished = tmp_path / "unfinished", tmp_path / "finished"
    unfinished.write_text("whole")
    (tmp_path / "unfinished.config").touch()
    guard = _start(tmp_path, guards, WAITS, product=(str(unfinished), str(finished)))
    if is_killed:
        os.kill(guard.child_pid, signal.SIGKILL)
    guard.end()
    assert sorted(path.name for path in tmp_path.iterdir()) == (["finished"] if exists else []) + ["log"]


def test_a_program_that_is_not_there_is_an_error_and_leaves_no_guard(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        Guard(Job(["/no-such-program"], {}, str(tmp_path), str(tmp_path / "log")))
    assert {child.pid for child in psutil.Process().children()} == before


def _start(
    folder: Path,
    guards: list[Guard],
    program: str,
    product: tuple[str, str] | None = None,
    grace_seconds: float = 10.0,
) -> Guard:
    log = folder / "log"
    guard = Guard(Job([sys.executable, "-c", program], {}, str(folder), str(log), product, grace_seconds))
    guards.append(guard)
    assert _eventually(lambda: log.read_text() == "up\n")
    return guard


def _are_gone(*pids: int) -> bool:
    return _eventually(lambda: not any(map(psutil.pid_exists, pids)))


def _eventually(condition: object, limit_seconds: float = 10.0) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + limit_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
