from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lake_assets.guard import start_guarded, stop_guarded

FAMILY = """
import subprocess, sys, time
deaf = "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); s.signal(s.SIGINT, s.SIG_IGN)"
subprocess.Popen([sys.executable, "-c", deaf + "; print('deaf', flush=True); time.sleep(600)"])
orphaned = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
subprocess.run([sys.executable, "-c", orphaned])
print("orphan", flush=True)
time.sleep(600)
"""
"""Leaves a child that ignores signals, and a grandchild whose parent has ended."""


def test_the_guard_ends_with_the_exit_code_of_the_command() -> None:
    guard = start_guarded([sys.executable, "-c", "raise SystemExit(7)"])
    assert guard.wait(10) == 7
    assert stop_guarded(guard) == 7


def test_a_command_that_a_signal_ended_is_told_as_128_and_the_signal() -> None:
    guard = start_guarded([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert guard.wait(10) == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_gets_the_signal_it_asked_for_and_time_to_end(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: (time.sleep(0.3), print('ended well'), sys.exit(0)))\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"
    with log.open("wb") as output:
        guard = start_guarded([sys.executable, "-c", script], output=output, stop_signal=number)
    _wait_for_line(log, "ready")
    assert stop_guarded(guard) == 0
    assert log.read_text().splitlines() == ["ready", "ended well"]


def test_children_that_ignore_signals_and_orphans_end_too(tmp_path: Path) -> None:
    guard, log = _start_family(tmp_path)
    family = _session_of(guard.pid)
    assert len(family) == 4  # the guard, the command, the deaf one, the orphan
    stop_guarded(guard)
    assert _alive(family) == []
    assert "Traceback" not in log.read_text().replace("KeyboardInterrupt", "")


def test_everything_ends_when_the_starter_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from lake_assets.guard import start_guarded\n"
        "guard = start_guarded([sys.executable, '-c', sys.argv[1]]); print(guard.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, FAMILY], stdout=subprocess.PIPE) as starter:
        assert starter.stdout
        guard_pid = int(starter.stdout.readline())
        for _ in range(2):
            starter.stdout.readline()
        family = _session_of(guard_pid)
        assert len(family) == 4
        starter.kill()
    assert _alive(family) == []


def _start_family(folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    log = folder / "log"
    with log.open("wb") as output:
        guard = start_guarded([sys.executable, "-c", FAMILY], output=output)
    _wait_for_line(log, "deaf")
    _wait_for_line(log, "orphan")
    return guard, log


def _wait_for_line(log: Path, line: str) -> None:
    deadline = time.monotonic() + 20
    while line not in log.read_text().splitlines():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def _session_of(leader: int) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if process.pid and os.getsid(process.pid) == leader]


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        left = [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return []
        time.sleep(0.1)
    return left
