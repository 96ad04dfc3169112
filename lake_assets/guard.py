"""Runs a command that can neither outlive whoever started it nor leave children behind.

`start_guarded` starts this module as a process of its own, in a session of its own. It holds the read end of a pipe
whose write end only the starter has: when the pipe closes, because the starter asked for it or died in whatever way,
the command is stopped, and with it everything else in the session. Linux and macOS alike.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

STRAGGLER_SECONDS = 3.0
STARTER_SECONDS = 0.5
POLL_SECONDS = 0.05


def start_guarded(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: IO[Any] | int | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
    grace_seconds: float = 10.0,
) -> subprocess.Popen[bytes]:
    """Starts a command under a guard, and gives the guard's process.

    The guard's exit code is the command's own, or 128 + n where signal n ended it.

    Args:
        command: program and arguments.
        env: the whole environment; by default this process's own.
        cwd: working directory; by default this process's own.
        output: where the command's output and errors go; by default where this process's own go.
        stop_signal: what the command gets first when it has to end.
        grace_seconds: how long it may take before it is killed.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "lake_assets.guard", stop_signal.name, str(grace_seconds), *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output if output is None else subprocess.STDOUT,
        env=env,
        cwd=cwd,
        start_new_session=True,
    )


def stop_guarded(guard: subprocess.Popen[bytes]) -> int:
    """Ends the command and its whole session, and gives the exit code; nothing happens where it has ended already."""
    if guard.stdin:
        guard.stdin.close()
    return guard.wait()


def main(arguments: Sequence[str]) -> int:
    """Is the guard: arguments are the stop signal's name, the grace in seconds, and the command."""
    stop_signal, grace_seconds = signal.Signals[arguments[0]], float(arguments[1])
    child = subprocess.Popen(arguments[2:], stdin=subprocess.DEVNULL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: child.send_signal(stop_signal))
    threading.Thread(target=_stop_when_unwanted, args=(child, stop_signal, grace_seconds), daemon=True).start()
    code = child.wait()
    end_session(os.getpid())
    return code if code >= 0 else 128 - code


def end_session(session: int) -> None:
    """Ends every process of a session but its leader: SIGTERM, and SIGKILL for what is still there after 3 seconds."""
    deadline = time.monotonic() + STRAGGLER_SECONDS
    _signal_all(_members(session), signal.SIGTERM)
    while members := _members(session):
        if time.monotonic() > deadline:
            _signal_all(members, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _stop_when_unwanted(child: subprocess.Popen[bytes], stop_signal: signal.Signals, grace_seconds: float) -> None:
    starter = os.getppid()
    # A fork of the starter may hold the pipe open after the starter has died: its place as our parent is asked for too.
    while os.getppid() == starter:
        if select.select([0], [], [], STARTER_SECONDS)[0] and not os.read(0, 1024):
            break
    child.send_signal(stop_signal)
    try:
        child.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        child.kill()


def _members(session: int) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            is_member = process.pid != session and os.getsid(process.pid) == session
            if is_member and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
