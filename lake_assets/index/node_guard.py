"""The process that watches over one other process, and ends it when nobody needs it any more.

`Guard` is the caller's half; `python -m lake_assets.index.node_guard` is the other. They speak over the guard's
standard input: one line with the job, then nothing. When that pipe closes the guard ends its child, however the caller
ended (kill -9 too); the word `keep` before that lets the child outlive the caller. The guard has a session of its own,
so that Ctrl-C in a terminal reaches neither it nor the child; on Linux the child is killed when the guard is.

Only the standard library: the guard runs this file isolated, in any working directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

PARENT_SECONDS = 0.5
"""How often the guard asks whether its caller lives: a fork of the caller may hold the pipe open after its end."""
PR_SET_PDEATHSIG = 1
STOPPED = (0, -signal.SIGTERM, 128 + signal.SIGTERM)
"""Return codes of a child that ended by itself or because it was asked to; Java answers SIGTERM with 143."""


@dataclass(frozen=True)
class Job:
    """What the guard has to run.

    Attributes:
        command: Program and arguments.
        environment: The whole environment of the child.
        folder: Its working directory.
        log: File that takes its output, from the start.
        product: A file that the child leaves unfinished until it has ended, and the name it then gets; or nothing.
        grace_seconds: Time between SIGTERM and SIGKILL.
    """

    command: list[str]
    environment: dict[str, str]
    folder: str
    log: str
    product: tuple[str, str] | None = None
    grace_seconds: float = 60.0


class Guard:
    """A running guard, seen from its caller.

    Raises:
        OSError: the guard or its child cannot be started.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        self.pid: int = self._process.pid
        try:
            self.child_pid = self._begin()
        except BaseException:
            self.end()
            raise

    def _begin(self) -> int:
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"parent": os.getpid(), **asdict(self.job)}).encode() + b"\n")
            self._process.stdin.flush()
        with self._process.stdout as replies:
            reply = json.loads(replies.readline() or b"{}")
        if "pid" not in reply:
            raise OSError(reply.get("errno", 0), reply.get("strerror", "the guard process ended at once"))
        return reply["pid"]

    def has_ended(self) -> bool:
        """Says whether the child has ended, and with it the guard; a dead guard leaves no zombie behind."""
        return self._process.poll() is not None

    def keep(self) -> None:
        """Lets the child outlive the caller."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"keep\n")
            self._process.stdin.flush()
        self._close()

    def end(self) -> None:
        """Ends the child, unless it was kept, and waits for the guard: at most the job's grace and a little."""
        self._close()
        self._process.wait()

    def _close(self) -> None:
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


def main() -> int:
    """Runs the job that stands on the first line of standard input; returns when its child has ended."""
    os.umask(0o077)
    wake = _listen_to_signals()
    line = _read_line()
    if not line:
        return 1
    parent, job = _read_job(line)
    try:
        child = _spawn(job)
    except OSError as error:
        _reply({"errno": error.errno, "strerror": f"{error.strerror}: {error.filename}"})
        return 1
    _reply({"pid": child.pid})
    _watch(child, wake, parent)
    _finish(child, job)
    return 0


def _listen_to_signals() -> int:
    """Makes every signal that matters a byte in a pipe, and returns the pipe's end to read."""
    wake, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return wake


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            return b""
        line += piece
    return line


def _read_job(line: bytes) -> tuple[int, Job]:
    values = json.loads(line)
    return values.pop("parent"), Job(**values)


def _reply(answer: dict[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(answer).encode() + b"\n")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _spawn(job: Job) -> subprocess.Popen[bytes]:
    with open(job.log, "wb") as log:
        return subprocess.Popen(
            job.command,
            env=job.environment,
            cwd=job.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_tie_to_guard() if sys.platform == "linux" else None,
        )


def _tie_to_guard() -> Callable[[], None]:
    """Returns what the child does between fork and exec, so that the kernel kills it when the guard dies."""
    prctl = ctypes.CDLL(None).prctl
    guard = os.getpid()

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:
            os._exit(1)

    return tie


def _watch(child: subprocess.Popen[bytes], wake: int, parent: int) -> None:
    """Returns when the child has ended, a signal asks for its end, or the caller is gone without having said `keep`."""
    is_kept = False
    while child.poll() is None:
        inputs = [wake] if is_kept else [wake, 0]
        ready = select.select(inputs, [], [], None if is_kept else PARENT_SECONDS)[0]
        if wake in ready and set(os.read(wake, 64)) != {signal.SIGCHLD}:
            return
        if 0 in ready:
            is_kept = bool(os.read(0, 64))
            if not is_kept:
                return
        elif not is_kept and os.getppid() != parent:
            return


def _finish(child: subprocess.Popen[bytes], job: Job) -> None:
    child.terminate()
    try:
        child.wait(job.grace_seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if job.product:
        unfinished, finished = job.product
        if child.returncode in STOPPED and os.path.exists(unfinished):
            os.replace(unfinished, finished)
        for leftover in (unfinished, f"{unfinished}.config"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(leftover)


if __name__ == "__main__":
    sys.exit(main())
