"""Delivers documents to OpenSearch: frames go in, a receipt for each row comes out.

What belongs here: the frames under way, the threads, the receipts. How rows are sent is in `sender`, what is sent in
`bodies`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import polars as pl

from lake_assets.errors import IndexUnavailable
from lake_assets.index.answers import OUTCOMES, REFUSED, Refusal, Verdict, Whole, explain_stop
from lake_assets.index.bodies import NAME, check_columns, estimate_bytes, refuse_rows, write_lines
from lake_assets.index.client import address, explain, explained, is_refused_connection, is_tls_failure
from lake_assets.index.pace import Pace, Stopped
from lake_assets.index.sender import Doubt, Outcome, Sender, Task, split_rows

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

BODY_BYTES = 3 << 20
"""Bytes of a request: two of them keep two cores busy; managed clusters refuse 10 MB on small nodes."""

LARGEST_BYTES = 90 << 20
"""A document larger than this is refused without being sent: `http.max_content_length` is 100 MB."""

REFUSED_CONNECTION_SECONDS = 3.0
"""How long a delivery waits at its start for a server that takes no connections, or is no OpenSearch."""

_WATCH_SECONDS = 0.2
_GRACE_SECONDS = 5.0
_JOIN_SECONDS = 10.0


def deliver(
    client: OpenSearch,
    alias: str,
    frames: Iterable[pl.DataFrame],
    *,
    threads: int = 4,
    body_bytes: int = BODY_BYTES,
    largest_bytes: int = LARGEST_BYTES,
    deadline_seconds: float = 120.0,
    on_progress: Callable[[int], None] | None = None,
    on_doubt: Doubt = lambda names, seconds: None,
) -> Generator[pl.DataFrame]:
    """Sends whole documents by id with `version_type=external_gte`, and gives a receipt for each.

    Every request may be repeated: the server refuses what is older than it holds, and takes the same version again. So
    a lost answer costs a repetition, never a duplicate. Two documents of one id and one version in the same delivery
    overtake each other.

    What has no id yet (`create`) is not repeated blindly: after a lost answer the index is asked for the documents of
    its request, by path and key, and what it holds counts as created. A request that is carried out after that makes
    surplus copies; `lake_assets.index.created` removes them.

    The next frame is asked for while the one before is being sent; two are in memory, and two bodies a thread.

    Args:
        client: of `connect`.
        alias: name to write to; it must be an alias.
        frames: `id` (String), `version` (Int64, from 0) and `operation` (`index`, `delete`, or `create`, which needs a
            null id, `path` and `key`), and the document's fields; names that begin with `_` are not sent. `attributes`
            is text that holds a JSON object.
        threads: most requests at once.
        body_bytes: most bytes of a request; a single larger document goes alone.
        largest_bytes: a document that takes more is refused without being sent.
        deadline_seconds: longest time in which nothing at all is settled.
        on_progress: told now and then how many rows are settled, in the thread that takes the receipts.
        on_doubt: told of documents to create whose answer was lost, in any thread.

    Yields:
        For each frame in order its receipts, row by row: `id` (of what was created, the server's), `version`,
        `operation`; `result`: `created`, `updated`,
        `deleted`, `missing` (nothing to delete), `newer` (the index holds a later version) or `refused`; `seq_no` of
        the write, where there was one; `reason` and `detail` of a refusal, without text of the document; `cut`: how
        many values of `attributes` were cut.

    Raises:
        IndexUnavailable: OpenSearch does not answer, or refuses everything.
        ContractBroken: a frame lacks a column, or has one that cannot be sent.
    """
    threads = max(1, threads)
    pace = Pace(threads, deadline_seconds)
    _wait_for_alias(client, alias, pace)
    sender = Sender(client, alias, pace, body_bytes, largest_bytes)
    crew = _Crew(sender, pace, threads, body_bytes, on_progress, on_doubt)
    under_way: deque[_Job] = deque()
    try:
        for frame in frames:
            check_columns(frame)
            under_way.append(crew.begin(frame))
            if len(under_way) > 1:
                yield crew.finish(under_way.popleft())
        while under_way:
            yield crew.finish(under_way.popleft())
    finally:
        crew.end()


def make_searchable(client: OpenSearch, alias: str) -> None:
    """Refreshes the index, so that what was delivered is found at once.

    Raises:
        IndexUnavailable: no answer.
    """
    with explained(client):
        client.indices.refresh(index=alias)


class _Job:
    """One frame under way, and what is known of each of its rows."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame
        self.codes = np.zeros(frame.height, dtype=np.uint8)
        self.cut = np.zeros(frame.height, dtype=np.int64)
        self.seq_nos = np.full(frame.height, -1, dtype=np.int64)
        self.ids = frame["id"].to_numpy().copy() if (frame["operation"] == "create").any() else None
        self.refusals: dict[int, Refusal] = {}
        unsendable = refuse_rows(frame)
        detail = "OpenSearch takes ids of 1 to 512 bytes and versions from 0."
        for row in unsendable.is_not_null().arg_true().to_list():
            self.refusals[row] = Refusal(unsendable[row], detail)
        self.sendable = np.flatnonzero(unsendable.is_null().to_numpy())
        self.codes[list(self.refusals)] = REFUSED
        self.unsettled = len(self.sendable)

    def settle(self, rows: np.ndarray, outcome: Outcome) -> None:
        """Notes results; `rows` are positions in the frame."""
        self.codes[rows] = outcome.codes
        self.seq_nos[rows] = outcome.seq_nos
        if self.ids is not None and outcome.ids is not None:
            for row, made in zip(rows.tolist(), outcome.ids, strict=True):
                self.ids[row] = made or self.ids[row]
        for position, refusal in outcome.refusals.items():
            self.refusals[int(rows[position])] = refusal
        self.unsettled -= len(rows)

    def receipts(self) -> pl.DataFrame:
        """Makes the frame of receipts, one for each row."""
        reasons: list[str | None] = [None] * self.frame.height
        details: list[str | None] = [None] * self.frame.height
        for row, refusal in self.refusals.items():
            reasons[row], details[row] = refusal
        results = pl.Series(OUTCOMES, dtype=pl.String).gather(pl.Series(self.codes, dtype=pl.UInt32))
        ids = self.frame["id"] if self.ids is None else pl.Series("id", self.ids, dtype=pl.String)
        return self.frame.select(ids, "version", "operation").with_columns(
            results.alias("result"),
            pl.Series("seq_no", self.seq_nos).replace(-1, None),
            pl.Series("reason", reasons, dtype=pl.String),
            pl.Series("detail", details, dtype=pl.String),
            pl.Series("cut", self.cut, dtype=pl.Int64),
        )


class _Crew:
    """The threads of one delivery, and the thread that waits for them."""

    def __init__(
        self,
        sender: Sender,
        pace: Pace,
        threads: int,
        body_bytes: int,
        on_progress: Callable[[int], None] | None,
        on_doubt: Doubt,
    ) -> None:
        self._sender = sender
        self._pace = pace
        self._body_bytes = body_bytes
        self._on_progress = on_progress
        self._on_doubt = on_doubt
        self._pieces: queue.SimpleQueue[tuple[_Job, np.ndarray] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._settled = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"deliver-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def begin(self, frame: pl.DataFrame) -> _Job:
        """Hands a frame to the threads, in pieces of about one body."""
        job = _Job(frame)
        with self._changed:
            self._settled += len(job.refusals)
        whole = len(job.sendable) == frame.height
        sizes = estimate_bytes(frame if whole else frame[job.sendable])
        for rows in split_rows(sizes, self._body_bytes):
            self._pieces.put((job, job.sendable[rows]))
        return job

    def finish(self, job: _Job) -> pl.DataFrame:
        """Waits until every row of a frame is settled, and gives its receipts."""
        since = time.monotonic()
        while job.unsettled and self._failure is None:
            with self._changed:
                self._changed.wait_for(lambda: not job.unsettled or self._failure is not None, _WATCH_SECONDS)
            if job.unsettled and self._failure is None:
                self._pace.check(since, "OpenSearch began answers and did not end them.", _GRACE_SECONDS)
            self._report()
        if self._failure is not None:
            raise self._failure
        self._report()
        return job.receipts()

    def end(self) -> None:
        """Ends the threads; one that waits for the server ends when that answers or its time is up."""
        self._pace.end()
        for _ in self._threads:
            self._pieces.put(None)
        until = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._settled)

    def _work(self) -> None:
        while (piece := self._pieces.get()) is not None:
            try:
                self._send(*piece)
            except Stopped:
                return
            except BaseException as failure:  # whatever it is, the thread that waits must see it
                self._pace.end()
                with self._changed:
                    self._failure = self._failure or failure
                    self._changed.notify_all()
                return

    def _send(self, job: _Job, rows: np.ndarray) -> None:
        first, count = int(rows[0]), len(rows)
        is_slice = int(rows[-1]) - first + 1 == count
        frame = job.frame.slice(first, count) if is_slice else job.frame[rows]
        lines = write_lines(frame)
        job.cut[rows] = lines.cut

        def record(outcome: Outcome) -> None:
            with self._changed:
                job.settle(rows[outcome.rows], outcome)
                self._settled += len(outcome.rows)
                self._changed.notify_all()

        names = frame.select(NAME) if job.ids is not None else None
        self._sender.send(Task(lines, frame.get_column("operation").to_list(), names, record, self._on_doubt))


def _wait_for_alias(client: OpenSearch, alias: str, pace: Pace) -> None:
    """Makes sure before anything is sent that the server answers and the alias exists.

    A delete sent to a name that does not exist creates an index of that name, in spite of `require_alias`.

    Raises:
        IndexUnavailable: it does not answer, does not let us in, or has no such alias.
    """
    from opensearchpy import NotFoundError, OpenSearchException, SerializationError

    begun, attempt = time.monotonic(), 0
    while True:
        try:
            client.transport.perform_request("GET", f"/_alias/{quote(alias, safe='')}")
            pace.advance()
            return
        except NotFoundError:
            missing = Verdict(Whole.STOPPED, status=404, kind="index_not_found_exception")
            raise IndexUnavailable(explain_stop(missing, alias, address(client))) from None
        except OpenSearchException as failure:
            cause = explain(failure, address(client))
            status: Any = getattr(failure, "status_code", None)
            lasting = isinstance(status, int) and status < 500 and status not in (408, 429)
            foreign = is_refused_connection(failure) or isinstance(failure, SerializationError)
            given_up = foreign and time.monotonic() - begun > REFUSED_CONNECTION_SECONDS
            if lasting or given_up or is_tls_failure(failure):
                raise IndexUnavailable(cause) from None
        pace.rest(min(attempt, 2), begun, cause)
        attempt += 1
