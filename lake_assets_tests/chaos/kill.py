"""Runs a command of `lake` as a process of its own, and kills it with SIGKILL at an instant.

An instant is a moment after the start, or after the n-th event: a file that appeared in the lake home (data written,
before its commit; a commit; a file of Dagster's), or a change of the index.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

POLL_SECONDS = 0.002
INDEX_SECONDS = 0.03
LIMIT_SECONDS = 120.0
"""A plain run takes less than ten seconds."""
STRAGGLER_SECONDS = 10.0
ANY_TIME_SHARE = 0.25
"""Of the instants, so many are at any time of the whole life of the process, its start included."""


@dataclass(frozen=True)
class Instant:
    """When a process is killed: so long after the n-th event (0: after its start); alone, or with its session.

    Where `of` is given only events count whose names begin so.
    """

    event: int
    seconds: float
    alone: bool
    of: str = ""

    def is_near(self, events: Sequence[tuple[float, str]]) -> bool:
        """Tells whether the event has happened that it comes after."""
        return sum(name.startswith(self.of) for _, name in events) >= self.event

    def __str__(self) -> str:
        after = f"event {self.event}" if self.event else "start"
        return f"{after} + {self.seconds * 1000:.0f} ms{', alone' if self.alone else ''}"


@dataclass
class Ran:
    """What a process did, and when what happened: seconds after its start and a name of each event."""

    code: int = 0
    seconds: float = 0.0
    out: str = ""
    err: str = ""
    events: list[tuple[float, str]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    has_hung: bool = False

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL and not self.has_hung

    @property
    def place(self) -> str:
        """Where on the road it was when it ended: the last event's table."""
        return self.events[-1][1] if self.events else "start"


class Watch:
    """Sees what appears in a lake home and what changes in its index."""

    def __init__(self, home: Path, url: str, alias: str) -> None:
        self.home, self.asked = home, f"{url}/{alias}*/_stats/indexing?filter_path=indices.*.total.indexing.index_total"
        self.aliases = f"{url}/{alias}*/_alias"
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.files: set[str] = set()
        self.index, self.looked = "", 0.0
        self.look()

    def look(self) -> list[str]:
        """Gives a name for each event since the last look."""
        found = set(_files(str(self.home)))
        fresh = sorted(found - self.files)
        self.files |= found
        events = [_named(os.path.relpath(path, self.home)) for path in fresh]
        if time.monotonic() - self.looked > INDEX_SECONDS:
            index, self.looked = self._index(), time.monotonic()
            if index != self.index:
                events.append("OpenSearch")
                self.index = index
        return events

    def _index(self) -> str:
        told = []
        for address in (self.asked, self.aliases):
            with contextlib.suppress(OSError, ValueError), self.opener.open(address, timeout=10) as answer:
                told.append(json.load(answer))
        return json.dumps(told, sort_keys=True)


def _files(folder: str) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            else:
                yield entry.path


def _named(path: str) -> str:
    """Names an event: the table, and whether it is a commit; `landing`, or `dagster`."""
    parts = Path(path).parts
    if parts[0] != "lake":
        return parts[0]
    if parts[1] == "landing":
        return "landing"
    return "/".join(parts[1:3]) + (" commit" if "_delta_log" in parts else "")


def choose(random_: random.Random, usual: Ran) -> Instant:
    """Chooses an instant of a command from what it did when nobody killed it."""
    alone = random_.random() < 0.5
    if random_.random() < ANY_TIME_SHARE or not usual.events:
        return Instant(0, random_.uniform(0, usual.seconds), alone)
    number = random_.randrange(len(usual.events))
    ends = usual.events[number + 1][0] if number + 1 < len(usual.events) else usual.seconds
    gap = ends - usual.events[number][0]
    return Instant(number + 1, random_.choice((0.0, random_.uniform(0, gap))), alone)


def run(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path, watch: Watch, instant: Instant | None = None
) -> Ran:
    """Runs `lake` with arguments in a folder, to its end or to an instant."""
    ran, begun = Ran(), time.monotonic()
    watch.look()
    with (folder / "out").open("w+b") as out, (folder / "err").open("w+b") as err:
        command = [str(Path(sys.executable).with_name("lake")), *arguments]
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=out, stderr=err, start_new_session=True
        )
        try:
            _follow(process, ran, begun, watch, instant)
        finally:
            if process.poll() is None:
                _kill(process, alone=False)
        ran.code, ran.seconds = process.wait(), time.monotonic() - begun
        ran.left = _stragglers(process.pid)
        ran.events += [(ran.seconds, name) for name in watch.look()]
        out.seek(0), err.seek(0)
        ran.out, ran.err = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    return ran


def _follow(process: subprocess.Popen[bytes], ran: Ran, begun: float, watch: Watch, instant: Instant | None) -> None:
    due = None
    while process.poll() is None:
        now = time.monotonic()
        if now - begun > LIMIT_SECONDS:
            ran.has_hung = True
            _kill(process, alone=False)
            return
        ran.events += [(now - begun, name) for name in watch.look()]
        if instant and due is None and instant.is_near(ran.events):
            due = (now if instant.event else begun) + instant.seconds
        if instant and due is not None and time.monotonic() >= due:
            _kill(process, instant.alone)
            return
        time.sleep(POLL_SECONDS)


def _kill(process: subprocess.Popen[bytes], alone: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)


def _stragglers(session: int) -> list[str]:
    """Names what of a session is still there some seconds after its leader has ended, and ends it."""
    deadline = time.monotonic() + STRAGGLER_SECONDS
    while (found := _members(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    named = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            named.append(" ".join(process.cmdline())[:200])
            process.kill()
    return named


def _members(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
