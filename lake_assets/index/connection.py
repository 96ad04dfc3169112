"""A connection to OpenSearch whose answers end in time, or count as not come.

What belongs here: reading an answer. What does not: what is asked, and what an answer means.
"""

from __future__ import annotations

import time
from io import BytesIO
from typing import Any

import urllib3
from opensearchpy import Urllib3HttpConnection
from urllib3.exceptions import ReadTimeoutError

PIECE_BYTES = 1 << 20


class TimelyConnection(Urllib3HttpConnection):
    """A connection on which the whole of an answer has to be there within the time for reading.

    urllib3 measures that time from byte to byte: an answer that drips would hold its thread for as long as it likes.
    """

    def _create_urllib3_pool(self) -> None:
        super()._create_urllib3_pool()
        self.pool: Any = _TimelyPool(self.pool)


class _TimelyPool:
    """A pool of urllib3 that hands out answers which have been read already."""

    def __init__(self, pool: urllib3.HTTPConnectionPool) -> None:
        self._pool = pool

    def urlopen(self, method: str, url: str, body: bytes | None = None, **options: Any) -> urllib3.HTTPResponse:
        """Asks, and reads the whole answer.

        Raises:
            ReadTimeoutError: it was not there in time; its connection is closed.
        """
        begun = time.monotonic()
        answer = self._pool.urlopen(method, url, body, preload_content=False, **options)
        limit_seconds = self._limit_seconds(options.get("timeout"))
        pieces: list[bytes] = []
        try:
            while piece := answer.read1(PIECE_BYTES):
                pieces.append(piece)
                if limit_seconds and time.monotonic() - begun > limit_seconds:
                    raise ReadTimeoutError(self._pool, url, f"The answer did not end within {limit_seconds} seconds.")
        except BaseException:
            answer.close()
            raise
        answer.release_conn()
        return urllib3.HTTPResponse(BytesIO(b"".join(pieces)), answer.headers, answer.status, decode_content=False)

    def _limit_seconds(self, asked: object) -> float | None:
        given = self._pool.timeout if asked is None else asked
        limit = given.read_timeout if isinstance(given, urllib3.Timeout) else given
        return float(limit) if isinstance(limit, int | float) else None

    def close(self) -> None:
        """Closes all connections."""
        self._pool.close()
