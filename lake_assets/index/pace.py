"""When to send: how many requests at once, how long to wait between them, when to give up.

What belongs here: time and turns, shared by the threads of one delivery. What does not: requests and answers.
"""

from __future__ import annotations

import random
import threading
import time

from lake_assets.errors import IndexUnavailable

FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0
"""Waits double from the first to the longest, each between half and one and a half of that."""


class Stopped(Exception):
    """The delivery ends: another thread failed, or nobody waits for the receipts any more."""


class Pace:
    """The pace of one delivery: fewer requests at once when the server pushes back, slowly more when it does not."""

    def __init__(self, threads: int, deadline_seconds: float) -> None:
        self.deadline_seconds = deadline_seconds
        self._most = float(threads)
        self._limit = float(threads)
        self._active = 0
        self._turn = threading.Condition()
        self._stop = threading.Event()
        self._last_progress = time.monotonic()

    @property
    def limit(self) -> int:
        """How many requests may be under way now."""
        return int(self._limit)

    def enter(self) -> None:
        """Waits until one more request may be sent.

        Raises:
            Stopped: the delivery ended meanwhile.
        """
        with self._turn:
            while self._active >= self.limit and not self._stop.is_set():
                self._turn.wait(0.1)
            if self._stop.is_set():
                raise Stopped
            self._active += 1

    def leave(self, pushed_back: bool) -> None:
        """Ends a request: half as many at once when pushed back, else a tenth of one more."""
        with self._turn:
            self._active -= 1
            self._limit = max(1.0, self._limit / 2) if pushed_back else min(self._most, self._limit + 0.1)
            self._turn.notify_all()

    def advance(self) -> None:
        """Notes that something was settled."""
        self._last_progress = time.monotonic()

    def idle_seconds(self, since: float) -> float:
        """Gives the seconds since anything was settled, or since `since` on the monotonic clock if that is later."""
        return time.monotonic() - max(self._last_progress, since)

    def rest(self, attempt: int, since: float, cause: str) -> None:
        """Waits before sending again.

        Args:
            attempt: how often it has been sent without getting anywhere, from 0.
            since: when the first attempt began, on the monotonic clock.
            cause: a sentence on what went wrong.

        Raises:
            IndexUnavailable: nothing was settled by any thread for the deadline.
            Stopped: the delivery ended meanwhile.
        """
        self.check(since, cause)
        wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.5)
        if self._stop.wait(min(wait, self.deadline_seconds)):
            raise Stopped

    def check(self, since: float, cause: str, grace_seconds: float = 0.0) -> None:
        """Gives up when nothing was settled for the deadline and `grace_seconds` more.

        Raises:
            IndexUnavailable: the deadline has passed.
        """
        idle = self.idle_seconds(since)
        if idle > self.deadline_seconds + grace_seconds:
            raise IndexUnavailable(f"{cause} Nothing was settled for {idle:.0f} seconds; what was taken is stored.")

    def end(self) -> None:
        """Makes every thread stop at its next step."""
        self._stop.set()
        with self._turn:
            self._turn.notify_all()
