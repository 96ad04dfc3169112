"""When to send: how many requests at once, how long to wait between them, when to give up.

What belongs here: time and turns, shared by the threads of one delivery. What does not: requests and answers.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import deque

from lake_assets.errors import IndexUnavailable

FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0
"""Waits double from the first to the longest, each between half and one and a half of that."""

SLOW_SECONDS = 1.0
"""An answer that comes sooner is never slow: merges, collections and refreshes of a healthy node take up to that."""

SLOW_TIMES = 4.0
"""An answer is slow that takes so many times as long as is usual for a request of its size."""

USUAL_ANSWERS = 31
"""So many answers make what is usual; from a quarter of them on, it is known."""

LEAST_BYTES = 64 << 10
"""A smaller request counts as this large: what each request costs by itself is not a cost of its bytes."""


class Stopped(Exception):
    """The delivery ends: another thread failed, or nobody waits for the receipts any more."""


class Usual:
    """How long answers take here: the moving median of seconds a byte."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=USUAL_ANSWERS)

    def limit_seconds(self, size_bytes: int) -> float:
        """Gives the seconds from which an answer to a request of this size is slow; infinite until it is known."""
        if len(self._recent) * 4 < USUAL_ANSWERS:
            return float("inf")
        return max(SLOW_SECONDS, SLOW_TIMES * statistics.median(self._recent) * max(size_bytes, LEAST_BYTES))

    def learn(self, seconds: float, size_bytes: int) -> None:
        """Counts an answer in."""
        self._recent.append(seconds / max(size_bytes, LEAST_BYTES))


class Pace:
    """The pace of one delivery: fewer requests at once when the server pushes back, slowly more when it does not.

    It pushes back in words (429, 503), or by being slow: an answer that takes several times as long as is usual, or a
    request that was lost after a long wait. What is slow with one request at once is not slow because of us: it
    becomes usual, so that a server that is slower for good gets more than one again.
    """

    def __init__(self, threads: int, deadline_seconds: float) -> None:
        self.deadline_seconds = deadline_seconds
        self._most = float(threads)
        self._limit = float(threads)
        self._active = 0
        self._usual = Usual()
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

    def leave(self, pushed_back: bool, seconds: float = 0.0, size_bytes: int = 0, answered: bool = True) -> None:
        """Ends a request: half as many at once when pushed back in words or by slowness, else a tenth of one more.

        Args:
            pushed_back: the server said so.
            seconds: time it took.
            size_bytes: of its body.
            answered: the server answered for its rows; without that only a long wait means something.
        """
        with self._turn:
            self._active -= 1
            is_slow = seconds > (self._usual.limit_seconds(size_bytes) if answered else SLOW_SECONDS)
            if answered and (self.limit == 1 or not is_slow):
                self._usual.learn(seconds, size_bytes)
            fewer = pushed_back or is_slow
            self._limit = max(1.0, self._limit / 2) if fewer else min(self._most, self._limit + 0.1)
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
