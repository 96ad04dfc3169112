"""A server in front of a real OpenSearch that spoils every third bulk request, in one way at a time.

What is forwarded is really stored: a spoilt answer does not mean that nothing happened.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Answer = tuple[int, str, bytes]
"""Status, content type, body."""

JSON = "application/json; charset=UTF-8"

DRIP_SECONDS = 0.05
"""Between two bytes of a slow drip: far below every timeout of a read."""

LATE_SECONDS = 1.5
"""How much later a request is carried out whose client is not to wait so long."""


class Proxy(ThreadingHTTPServer):
    """The proxy: what it did is counted, what it does can be changed while it runs.

    Attributes:
        delay_seconds: how much later every answer to a bulk request comes.
        on_bulk: called with the number of each bulk request, from 1, before anything is done with it.
        on_other: called with the path of every other request, before anything is done with it.
        forbidden: other requests whose path holds it are answered 403; nothing is forbidden while it is empty.
        wait_late: waits until a request is forwarded that is carried out late.
        chance: what chooses one of several faults; it has a seed.
        on_late: called with the status of each request that was carried out late.
        at_once: for each bulk request how many were under way when it had come, itself included.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str, fault: str, every: int, limit_bytes: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream)
        self.fault = fault
        self.every = every
        self.limit_bytes = limit_bytes
        self.bulks = 0
        self.faults = 0
        self.largest_bytes = 0
        self.now = 0
        self.most_at_once = 0
        self.at_once: list[int] = []
        self.delay_seconds = 0.0
        self.on_bulk: Callable[[int], object] = lambda _: None
        self.on_other: Callable[[str], object] = lambda _: None
        self.forbidden = ""
        self.chance = random.Random(4)
        self.on_late: Callable[[int], object] = lambda _: None
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.wait_late: Callable[[], object] = lambda: self.released.wait(LATE_SECONDS)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stays silent: cut connections are the point."""


@contextmanager
def fault_proxy(upstream: str, fault: str = "none", every: int = 3, limit_bytes: int = 1 << 40) -> Iterator[Proxy]:
    """Runs the proxy on a free port of 127.0.0.1.

    Args:
        upstream: the real OpenSearch.
        fault: one of `FAULTS`.
        every: which bulk requests are spoilt; 1: all.
        limit_bytes: larger bulk requests are answered 413.
    """
    proxy = Proxy(upstream, fault, every, limit_bytes)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.released.set()
        proxy.shutdown()
        proxy.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def proxy(self) -> Proxy:
        assert isinstance(self.server, Proxy)
        return self.server

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Stays silent."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.proxy
        if "/_bulk" not in self.path:
            proxy.on_other(self.path)
            if proxy.forbidden and proxy.forbidden in self.path:
                self.reply(403, JSON, b'{"error": {"type": "security_exception"}}')
            else:
                self.reply(*self.forward(body))
            return
        with proxy.lock:
            proxy.bulks += 1
            spoil = proxy.fault != "none" and proxy.bulks % proxy.every == 0
            proxy.faults += spoil
            proxy.largest_bytes = max(proxy.largest_bytes, len(body))
            proxy.now += 1
            proxy.most_at_once = max(proxy.most_at_once, proxy.now)
            proxy.at_once.append(proxy.now)
            number = proxy.bulks
        proxy.on_bulk(number)
        try:
            if len(body) > proxy.limit_bytes:
                self.reply(413, "text/plain", b"too large")
            elif spoil:
                FAULTS[proxy.fault](self, body)
            else:
                self.reply(*self.forward(body))
        finally:
            with proxy.lock:
                proxy.now -= 1

    def forward(self, body: bytes) -> Answer:
        upstream = self.proxy.upstream
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=30)
        try:
            headers = {
                name: value for name, value in self.headers.items() if name.lower() in ("content-type", "accept")
            }
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            told = answer.status, answer.headers.get("Content-Type") or JSON, answer.read()
        finally:
            connection.close()
        if self.proxy.delay_seconds and "/_bulk" in self.path:
            self.proxy.released.wait(self.proxy.delay_seconds)
        return told

    def reply(self, status: int, kind: str, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if length is not None:
            self.cut()

    def cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)


def operations(body: bytes) -> list[tuple[str, str, bytes]]:
    """Takes a bulk body apart: operation, id (empty if the server makes it) and bytes of each document."""
    found: list[tuple[str, str, bytes]] = []
    lines = iter(body.split(b"\n")[:-1])
    for line in lines:
        ((operation, told),) = json.loads(line).items()
        source = b"" if operation == "delete" else next(lines) + b"\n"
        found.append((operation, told.get("_id", ""), line + b"\n" + source))
    return found


def _answers_only(status: int) -> Callable[[_Handler, bytes], None]:
    def spoil(handler: _Handler, body: bytes) -> None:
        handler.reply(status, JSON, json.dumps({"error": {"type": "some_exception"}, "status": status}).encode())

    return spoil


def _fails_items(status: int, chosen: Callable[[int, str], bool]) -> Callable[[_Handler, bytes], None]:
    """Forwards all but some documents, and answers those with an error."""

    def spoil(handler: _Handler, body: bytes) -> None:
        asked = operations(body)
        kept = [not chosen(position, id_) for position, (_, id_, _) in enumerate(asked)]
        forwarded = b"".join(sent for (_, _, sent), keep in zip(asked, kept, strict=True) if keep)
        items = iter(json.loads(handler.forward(forwarded)[2])["items"] if forwarded else [])
        error = {"status": status, "error": {"type": "rejected_execution_exception", "reason": "rejected"}}
        merged = [next(items) if keep else {name: error} for (name, _, _), keep in zip(asked, kept, strict=True)]
        handler.reply(200, JSON, json.dumps({"errors": True, "items": merged}).encode())

    return spoil


def _cuts(handler: _Handler, body: bytes) -> None:
    handler.forward(body)
    handler.cut()


def _loses_items(handler: _Handler, body: bytes) -> None:
    """Forwards all but a quarter of the documents, and cuts the connection."""
    handler.forward(b"".join(sent for position, (_, _, sent) in enumerate(operations(body)) if position % 4))
    handler.cut()


def _answers_504(handler: _Handler, body: bytes) -> None:
    handler.forward(body)
    handler.reply(504, "text/html", b"<html>gateway timeout</html>")


def _cuts_answer(handler: _Handler, body: bytes) -> None:
    status, kind, answer = handler.forward(body)
    handler.reply(status, kind, answer[: len(answer) // 2], len(answer))


def _halves_json(handler: _Handler, body: bytes) -> None:
    status, kind, answer = handler.forward(body)
    handler.reply(status, kind, answer[: len(answer) // 2])


def _answers_html(handler: _Handler, body: bytes) -> None:
    handler.forward(body)
    handler.reply(200, "text/html", b"<html><body>Please log in</body></html>")


def _drops_item(handler: _Handler, body: bytes) -> None:
    status, kind, answer = handler.forward(body)
    told = json.loads(answer)
    handler.reply(status, kind, json.dumps({**told, "items": told["items"][1:]}).encode())


def _empties(handler: _Handler, body: bytes) -> None:
    handler.reply(200, JSON, b"")


def _hangs(handler: _Handler, body: bytes) -> None:
    handler.forward(body)
    handler.proxy.released.wait(30)
    handler.cut()


def _is_late(handler: _Handler, body: bytes) -> None:
    """Forwards a request when nobody waits for its answer any more."""
    proxy = handler.proxy
    proxy.wait_late()
    proxy.on_late(handler.forward(body)[0])
    handler.cut()


def _trickles(handler: _Handler, body: bytes) -> None:
    """Begins an answer and sends a byte of it now and then, so that no read ever times out."""
    handler.send_response(200)
    handler.send_header("Content-Type", JSON)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.proxy.released.wait(0.1):
        handler.wfile.write(b" ")
        handler.wfile.flush()
    handler.cut()


def _drips(handler: _Handler, body: bytes) -> None:
    """Gives the whole, true answer, a byte at a time: a hundred documents take a minute and more."""
    status, kind, answer = handler.forward(body)
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(answer)))
    handler.end_headers()
    for position in range(len(answer)):
        handler.wfile.write(answer[position : position + 1])
        handler.wfile.flush()
        if handler.proxy.released.wait(DRIP_SECONDS):
            handler.cut()
            return


def _dislikes_one(handler: _Handler, body: bytes) -> None:
    """Finds every request too large that one document is in, however small."""
    if any(id_ == "7" for _, id_, _ in operations(body)):
        handler.reply(413, "text/plain", b"too large")
    else:
        handler.reply(*handler.forward(body))


def _flood_stage(handler: _Handler, body: bytes) -> None:
    reason = "index [x] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark];"
    error = {"status": 429, "error": {"type": "cluster_block_exception", "reason": reason}}
    items = [{operation: error} for operation, _, _ in operations(body)]
    handler.reply(200, JSON, json.dumps({"errors": True, "items": items}).encode())


def _does_any(handler: _Handler, body: bytes) -> None:
    with handler.proxy.lock:
        fault = handler.proxy.chance.choice(PASSING)
    FAULTS[fault](handler, body)


FAULTS: dict[str, Callable[[_Handler, bytes], None]] = {
    "request 429": _answers_only(429),
    "request 503": _answers_only(503),
    "request 413": _answers_only(413),
    "request 401": _answers_only(401),
    "request 403": _answers_only(403),
    "a quarter of the items 429": _fails_items(429, lambda position, _: position % 4 == 0),
    "a quarter of the items 503": _fails_items(503, lambda position, _: position % 4 == 0),
    "one document 500": _fails_items(500, lambda _, id_: id_ == "7"),
    "one document 413": _dislikes_one,
    "accepted, then cut": _cuts,
    "a quarter of the items lost, then cut": _loses_items,
    "accepted, then 504": _answers_504,
    "answer cut short": _cuts_answer,
    "half the JSON": _halves_json,
    "HTML": _answers_html,
    "one item short": _drops_item,
    "nothing": _empties,
    "no answer": _hangs,
    "carried out late": _is_late,
    "an answer without end": _trickles,
    "slow drip": _drips,
    "flood stage": _flood_stage,
    "any": _does_any,
}

PASSING = (
    "request 429", "request 503", "request 413", "a quarter of the items 429", "a quarter of the items 503",
    "accepted, then cut", "a quarter of the items lost, then cut", "accepted, then 504", "answer cut short",
    "half the JSON", "HTML", "one item short", "nothing", "no answer", "carried out late", "slow drip",
)  # fmt: skip
"""Faults that a client can get over by sending again."""
