"""Sends rows until each has its result: repeats, halves, refuses, gives up; asks before it repeats what has no id.

What an answer means is in `answers`, when to send in `pace`; which rows there are and who sends them, in `delivery`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import polars as pl

from lake_assets.errors import IndexUnavailable
from lake_assets.index.answers import (
    CREATED,
    REFUSED,
    Refusal,
    Verdict,
    Whole,
    explain_stop,
    explain_unsettled,
    judge_failure,
    judge_items,
    refuse_alone,
)
from lake_assets.index.bodies import NAME, Lines
from lake_assets.index.client import address, error_type, explain, is_refused_connection, is_tls_failure
from lake_assets.index.pace import Pace
from lake_assets.index.present import read_copies

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

UNKNOWN_BEFORE_HALVING = 3
"""A body whose answer was lost so often is sent in halves: it may be what the server or a gateway cannot bear."""

FAILURES_BEFORE_REFUSAL = 8
"""A document on which the server itself fails (500) so often is refused; the waits between make about 12 seconds."""

DOUBTS_BEFORE_REFUSAL = 5
"""A document refused as too large, though a larger request was taken, is refused for good after so many times."""

ALIKE_BEFORE_STOP = 500
"""So many documents refused for the same reason, and none taken: the mapping is wrong, not the documents."""

LOST_PAGES = "search_phase_execution_exception"
"""The server's class of error for hits that were to be read on, and are gone because it was restarted."""


@dataclass
class Outcome:
    """What became of rows: codes as in `OUTCOMES`, by position why they were refused, sequence numbers, new ids."""

    rows: np.ndarray
    codes: list[int]
    refusals: dict[int, Refusal] = field(default_factory=dict)
    seq_nos: list[int] | int = -1
    ids: Sequence[str | None] | None = None


Record = Callable[[Outcome], None]
Doubt = Callable[[pl.DataFrame, float], None]
"""Told path and key of documents to create of which nobody knows whether they are stored, and after how many seconds
their request was lost."""


@dataclass
class Task:
    """Rows to be sent, and what is known of them so far.

    Attributes:
        lines: the rows as NDJSON.
        operations: `index`, `delete` or `create` for each.
        names: path and key of each, if some are to be created.
        record: told of results as they come, each row once.
        doubt: told of rows to be created whose answer was lost.
        begun: when it was begun, on the monotonic clock.
        attempts: requests since anything of it was settled.
        failures: how often the server failed on a row.
        unsure: rows to be created that may be stored: the index is asked before they are sent again.
    """

    lines: Lines
    operations: Sequence[str]
    names: pl.DataFrame | None
    record: Record
    doubt: Doubt
    begun: float = field(default_factory=time.monotonic)
    attempts: int = 0
    failures: dict[int, int] = field(default_factory=dict)
    unsure: set[int] = field(default_factory=set)


class Sender:
    """Sends for all threads of one delivery."""

    def __init__(self, client: OpenSearch, alias: str, pace: Pace, body_bytes: int, largest_bytes: int) -> None:
        self._client = client
        self._alias = alias
        self._url = address(client)
        self._pace = pace
        self._body_bytes = body_bytes
        self._largest_bytes = largest_bytes
        self._lock = threading.Lock()
        self._taken = 0
        self._largest_taken = 0
        self._refused: dict[Refusal, int] = {}

    def send(self, task: Task) -> None:
        """Sends all rows of a task.

        Raises:
            IndexUnavailable: nothing more can be sent, or nothing was taken for the deadline.
            Stopped: the delivery ended elsewhere.
        """
        sizes = task.lines.sizes()
        for rows in split_rows(sizes, self._body_bytes):
            size = int(sizes[rows[0]])
            if size > self._largest_bytes:
                detail = f"It takes {size} bytes in a request; no more than {self._largest_bytes} are sent."
                self._settle(task, Outcome(rows, [REFUSED], {0: Refusal("document_too_large", detail)}))
            else:
                self._send_rows(task, rows)

    def _send_rows(self, task: Task, rows: np.ndarray) -> None:
        """Sends one body, and what is left of it, until each row has its result."""
        waiting = [rows]
        unknown = 0
        while waiting:
            rows = self._without_stored(task, waiting.pop())
            if not len(rows):
                continue
            verdict, cause = self._ask(task, rows)
            if verdict.whole is Whole.STOPPED:
                raise IndexUnavailable(explain_stop(verdict, self._alias, self._url))
            if verdict.whole is Whole.JUDGED:
                unknown = 0
                again = self._take(task, rows, verdict)
                waiting += [again] if len(again) else []
            elif verdict.whole is Whole.TOO_LARGE:
                if len(rows) > 1:
                    waiting += halves(rows)
                    continue
                if not self._is_doubtful(task, int(rows[0]), verdict):
                    self._refuse_alone(task, rows, verdict)
                    continue
                waiting.append(rows)
            else:
                unknown += verdict.whole is Whole.UNKNOWN
                waiting += halves(rows) if unknown and unknown % UNKNOWN_BEFORE_HALVING == 0 else [rows]
            if waiting:
                self._pace.rest(task.attempts, task.begun, cause)
                task.attempts += 1

    def _ask(self, task: Task, rows: np.ndarray) -> tuple[Verdict, str]:
        """Sends one request; gives its verdict, and a sentence on what went wrong if something did."""
        from opensearchpy import OpenSearchException

        operations = [task.operations[row] for row in rows.tolist()]
        size_bytes = int(task.lines.sizes()[rows].sum())
        told = "errors,items.*.status,items.*.error,items.*._seq_no" + ",items.*._id" * ("create" in operations)
        self._pace.enter()
        verdict, begun = Verdict(Whole.UNKNOWN), time.monotonic()
        try:
            answer = self._client.transport.perform_request(
                "POST",
                f"/{quote(self._alias, safe='')}/_bulk",
                params={"require_alias": "true", "filter_path": told},
                body=task.lines.body(rows),
                headers={"content-type": "application/x-ndjson"},
            )
            verdict = judge_items(answer, operations)
            return verdict, explain_unsettled(verdict, self._url)
        except OpenSearchException as failure:
            cause = explain(failure, self._url)
            if is_tls_failure(failure):
                raise IndexUnavailable(cause) from None
            status = getattr(failure, "status_code", None)
            if is_refused_connection(failure):
                verdict = Verdict(Whole.BUSY)
            elif isinstance(status, int):
                verdict = judge_failure(status, error_type(failure))
            return verdict, cause
        finally:
            answered, seconds = verdict.whole is Whole.JUDGED, time.monotonic() - begun
            self._largest_taken = max(self._largest_taken, size_bytes if answered else 0)
            self._pace.leave(verdict.busy, seconds, size_bytes, answered)
            self._doubt(task, rows, verdict, seconds)

    def _doubt(self, task: Task, rows: np.ndarray, verdict: Verdict, seconds: float) -> None:
        """Notes which rows to be created may be stored though the server has not said so."""
        if task.names is None:
            return
        lost = rows if verdict.whole is Whole.UNKNOWN else rows[sorted(verdict.unsure)]
        if unsure := [row for row in lost.tolist() if task.operations[row] == "create"]:
            task.unsure.update(unsure)
            task.doubt(task.names[unsure], seconds)

    def _without_stored(self, task: Task, rows: np.ndarray) -> np.ndarray:
        """Asks the index for rows that may be stored, settles those that are, and gives the others."""
        unsure = np.array([row for row in rows.tolist() if row in task.unsure], dtype=np.int64)
        if task.names is None or not len(unsure):
            return rows
        names = task.names[unsure].with_columns(row=unsure)
        stored = self._look_for(task, names).unique(NAME, keep="first", maintain_order=True).join(names, on=NAME)
        task.unsure.difference_update(unsure.tolist())
        if stored.is_empty():
            return rows
        found = stored["row"].to_numpy()
        ids, seq_nos = stored["id"].to_list(), stored["seq_no"].to_list()
        self._settle(task, Outcome(found, [CREATED] * len(found), {}, seq_nos, ids))
        return rows[~np.isin(rows, found)]

    def _look_for(self, task: Task, names: pl.DataFrame) -> pl.DataFrame:
        """Gives the documents of some names that the index holds; asks until it answers."""
        from opensearchpy import OpenSearchException

        while True:
            try:
                return read_copies(self._client, self._alias, names)
            except OpenSearchException as failure:
                cause, kind = explain(failure, self._url), error_type(failure)
                status = getattr(failure, "status_code", None)
                verdict = judge_failure(status, kind) if isinstance(status, int) else Verdict(Whole.UNKNOWN)
                if verdict.whole is Whole.STOPPED and kind != LOST_PAGES:
                    raise IndexUnavailable(explain_stop(verdict, self._alias, self._url)) from None
            self._pace.rest(task.attempts, task.begun, cause)
            task.attempts += 1

    def _take(self, task: Task, rows: np.ndarray, verdict: Verdict) -> np.ndarray:
        """Settles what was answered and gives the rows to be sent again."""
        again = [position for position in verdict.again if not self._give_up(task, rows, position, verdict)]
        if not again:
            self._settle(task, Outcome(rows, verdict.codes, verdict.refusals, verdict.seq_nos, verdict.ids))
            return rows[:0]
        settled = [position for position, code in enumerate(verdict.codes) if code]
        if settled:
            refusals = {new: verdict.refusals[old] for new, old in enumerate(settled) if old in verdict.refusals}
            codes, seq_nos = ([known[old] for old in settled] for known in (verdict.codes, verdict.seq_nos))
            ids = [verdict.ids[old] for old in settled]
            self._settle(task, Outcome(rows[settled], codes, refusals, seq_nos, ids))
        return rows[again]

    def _give_up(self, task: Task, rows: np.ndarray, position: int, verdict: Verdict) -> bool:
        """Counts the server's failures on a row; refuses it when there were too many."""
        row = int(rows[position])
        if position in verdict.failed:
            task.failures[row] = task.failures.get(row, 0) + 1
            if task.failures[row] >= FAILURES_BEFORE_REFUSAL:
                detail = f"The server failed on it {FAILURES_BEFORE_REFUSAL} times."
                verdict.codes[position], verdict.refusals[position] = REFUSED, Refusal("server_error", detail)
                return True
        return False

    def _is_doubtful(self, task: Task, row: int, verdict: Verdict) -> bool:
        """Tells whether a document can hardly be too large, as a larger request was taken; not after some doubts."""
        if verdict.status != 413 or int(task.lines.sizes()[row]) > self._largest_taken:
            return False
        task.failures[row] = task.failures.get(row, 0) + 1
        return task.failures[row] <= DOUBTS_BEFORE_REFUSAL

    def _refuse_alone(self, task: Task, rows: np.ndarray, verdict: Verdict) -> None:
        size = int(task.lines.sizes()[rows[0]])
        self._settle(task, Outcome(rows, [REFUSED], {0: refuse_alone(verdict.status, size)}))

    def _settle(self, task: Task, outcome: Outcome) -> None:
        """Hands results over; ends everything when nothing but the same refusal comes back."""
        task.record(outcome)
        task.attempts = 0
        self._pace.advance()
        with self._lock:
            self._taken += len(outcome.codes) - len(outcome.refusals)
            if self._taken:
                return
            for refusal in outcome.refusals.values():
                self._refused[refusal] = self._refused.get(refusal, 0) + 1
            refused = dict(self._refused)
        if len(refused) == 1 and (count := sum(refused.values())) >= ALIKE_BEFORE_STOP:
            raise IndexUnavailable(
                f"OpenSearch at {self._url} refused all of the first {count} documents alike: "
                f"{next(iter(refused)).detail} Compare the mapping of `{self._alias}` with what is sent."
            )


def split_rows(sizes: np.ndarray, body_bytes: int) -> list[np.ndarray]:
    """Groups neighbouring rows into bodies of at most `body_bytes`; a larger row makes a body of its own.

    Args:
        sizes: bytes of each row; int64.
        body_bytes: most bytes of a body.

    Returns:
        The positions of each group, in order; int64.
    """
    ends = np.cumsum(sizes)
    groups: list[np.ndarray] = []
    first, before = 0, 0
    while first < len(sizes):
        last = max(first + 1, int(np.searchsorted(ends, before + body_bytes, side="right")))
        groups.append(np.arange(first, last))
        first, before = last, int(ends[last - 1])
    return groups


def halves(rows: np.ndarray) -> list[np.ndarray]:
    """Halves rows, the first half last, so that it is taken next from a stack; one row stays as it is."""
    middle = len(rows) // 2
    return [rows[middle:], rows[:middle]] if middle else [rows]
