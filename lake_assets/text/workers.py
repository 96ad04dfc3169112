"""Work on pieces of text by all cores: a function over pieces, in their order, with a bounded number on the way."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

FEWEST_ROWS = 5_000  # below, handing a piece over costs more than it gains
PATIENCE_SECONDS = 3.0  # of work done here before processes are started: they take about two seconds each
_pool: ProcessPoolExecutor | None = None


def map_ordered(
    function: Callable[[In], Out], pieces: Iterable[In], workers: int, rows: Callable[[In], int]
) -> Iterator[Out]:
    """Applies a function to pieces; where that takes long, large ones in worker processes.

    Args:
        function: of a module, so that a worker finds it by name.
        pieces: taken lazily, at most `workers` + 1 ahead of what is handed out.
        workers: processes; with one, all is done here.
        rows: how many rows a piece has.
    """
    waiting: deque[Future[Out]] = deque()
    worked_seconds = 0.0
    for piece in pieces:
        if workers > 1 and rows(piece) >= FEWEST_ROWS and worked_seconds >= PATIENCE_SECONDS:
            waiting.append(_workers(workers).submit(function, piece))
        else:
            begun = time.thread_time()
            done: Future[Out] = Future()
            done.set_result(function(piece))
            waiting.append(done)
            worked_seconds += time.thread_time() - begun
        while len(waiting) > workers + 1:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _workers(count: int) -> ProcessPoolExecutor:
    """Starts the worker processes, once a process; they end with it."""
    global _pool
    if _pool is None:
        context = multiprocessing.get_context("spawn")
        _pool = ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)
    return _pool


def _end_with_parent() -> None:
    """Ends a worker when the process that started it is gone, also after kill -9."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
