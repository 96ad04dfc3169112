"""Asks a local node whether it can be used: one HTTP request a question, past every proxy."""

from __future__ import annotations

import http.client
import json
from typing import Any

from lake_assets.errors import NodeFailed

HOST = "127.0.0.1"
PROBE_INDEX = "lake-probe"
PROBE_SETTINGS = {"settings": {"index": {"number_of_shards": 1, "number_of_replicas": 0}}}
ANSWER_SECONDS = 10.0
RECOVERY_SECONDS = 30
LONGEST_ANSWER_BYTES = 1_000_000
LONGEST_REASON = 200
RETRIED = (408, 429)


def answers(port: int) -> bool:
    """Says whether an OpenSearch answers on a port of 127.0.0.1."""
    status, answer = ask(port, "GET", "/")
    version = answer.get("version")
    return status == 200 and isinstance(version, dict) and version.get("distribution") == "opensearch"


def can_create_an_index(port: int) -> bool:
    """Creates an index and deletes it: a node may be green and yet refuse this.

    Raises:
        NodeFailed: the node refuses, and would again.
    """
    path = f"/{PROBE_INDEX}?cluster_manager_timeout=5s&timeout=5s"
    status, answer = ask(port, "PUT", path, PROBE_SETTINGS)
    reason = _reason(answer)
    if "resource_already_exists_exception" in reason:
        ask(port, "DELETE", path)
        return False
    if 400 <= status < 500 and status not in RETRIED:
        raise NodeFailed(f"The local OpenSearch started and cannot create an index: {reason or f'status {status}'}.")
    return status == 200 and ask(port, "DELETE", path)[0] == 200


def wait_for_recovery(port: int) -> None:
    """Waits until every index that was there before can be read: at most 30 s, as a broken one must not stop all."""
    path = f"/_cluster/health?wait_for_status=yellow&timeout={RECOVERY_SECONDS}s&level=cluster"
    ask(port, "GET", path, timeout_seconds=RECOVERY_SECONDS + ANSWER_SECONDS)


def ask(
    port: int, method: str, path: str, body: dict[str, Any] | None = None, timeout_seconds: float = ANSWER_SECONDS
) -> tuple[int, dict[str, Any]]:
    """Returns the status and the JSON object of an answer: 0 without an answer, {} for anything that is no object."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_seconds)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, _object(response.read(LONGEST_ANSWER_BYTES))
    except (OSError, http.client.HTTPException):
        return 0, {}
    finally:
        connection.close()


def _object(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _reason(answer: dict[str, Any]) -> str:
    error = answer.get("error")
    if not isinstance(error, dict):
        return ""
    return f"{error.get('type', '')}: {error.get('reason', '')}"[:LONGEST_REASON]
