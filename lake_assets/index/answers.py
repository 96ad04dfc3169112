"""What an answer of `/_bulk` means: which rows are done, which are sent again, which are refused, and what ends it all.

What belongs here: judging. What does not: sending, waiting. Words of the server are passed on only where they cannot
hold text of a document: its reasons quote field values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, NamedTuple

from lake_assets.index.client import clean_type, explain_status

OUTCOMES = ("unknown", "created", "updated", "deleted", "missing", "newer", "refused")
"""Results of a receipt; a row's code is the position here, and `unknown` is none of them."""

CREATED, UPDATED, DELETED, MISSING, NEWER, REFUSED = range(1, len(OUTCOMES))


class Whole(Enum):
    """What becomes of a request as a whole."""

    JUDGED = auto()
    """The server answered for each row; see the items."""
    UNKNOWN = auto()
    """Nothing is known about any row: it is sent again, which versions make harmless; without an id, the index is asked
    before."""
    BUSY = auto()
    """Not taken: sent again, later and with fewer at once."""
    TOO_LARGE = auto()
    """Not taken as one: sent in halves."""
    STOPPED = auto()
    """Every other request would fail the same way."""


class Refusal(NamedTuple):
    """Why one document was refused: a class of reasons, and a sentence without text of the document."""

    reason: str
    detail: str


@dataclass
class Verdict:
    """What an answer means.

    Attributes:
        whole: what becomes of the request.
        codes: for each row sent, the position of its result in `OUTCOMES`; 0 for those to be sent again.
        seq_nos: for each row the sequence number of its write; -1 where there was none.
        ids: for each row the id that the server has made, if it was to make one.
        refusals: by position in the request.
        again: positions to be sent again; for those the server failed on (500), also in `failed`.
        unsure: positions to be sent again that may have been done all the same.
        status: HTTP status behind a stop or a repetition, 0 when there was none.
        kind: the server's class of the error, empty when it named none.
        busy: the server pushed back, the request or some of its items.
    """

    whole: Whole
    codes: list[int] = field(default_factory=list)
    seq_nos: list[int] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    refusals: dict[int, Refusal] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    unsure: set[int] = field(default_factory=set)
    status: int = 0
    kind: str = ""
    busy: bool = False


_GOOD = {
    ("index", 201): CREATED, ("index", 200): UPDATED, ("delete", 200): DELETED, ("delete", 404): MISSING,
    ("create", 201): CREATED,
}  # fmt: skip

_STOPPING_TYPES = frozenset(
    {"cluster_block_exception", "index_closed_exception", "index_not_found_exception", "security_exception",
     "strict_dynamic_mapping_exception"}
)  # fmt: skip

_DETAILS = (
    (re.compile(r"failed to parse field \[(?P<field>[\w.]+)\] of type \[(?P<type>\w+)\]"), "mapping_refused"),
    (re.compile(r"object mapping for \[(?P<field>[\w.]+)\] tried to parse"), "mapping_refused"),
    (re.compile(r'Document contains at least one immense term in field="(?P<field>[\w.]+)"'), "value_too_large"),
    (re.compile(r'DocValuesField "(?P<field>[\w.]+)" is too large'), "value_too_large"),
)
_STRICT = re.compile(r"mapping set to strict, dynamic introduction of \[(?P<field>[\w.]+)\]")
_NO_WRITE_INDEX = "no write index is defined for alias"


def judge_items(answer: Any, operations: Sequence[str]) -> Verdict:
    """Judges an answer of status 200.

    An answer that is not what was asked for (another number of items, another operation, no status, no id of what was
    created) counts for nothing.

    Args:
        answer: the parsed body.
        operations: what was asked, in order: `index`, `delete` or `create` each.
    """
    items = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(items, list) or len(items) != len(operations):
        return Verdict(Whole.UNKNOWN)
    verdict = Verdict(Whole.JUDGED, [0] * len(items), [-1] * len(items), [None] * len(items))
    for position, (item, operation) in enumerate(zip(items, operations, strict=True)):
        told = item.get(operation) if isinstance(item, dict) else None
        if not isinstance(told, dict) or type(told.get("status")) is not int:
            return Verdict(Whole.UNKNOWN)
        status = told["status"]
        error = told.get("error")
        code = _GOOD.get((operation, status), 0) if error is None else 0
        if code:
            verdict.codes[position] = code
            verdict.seq_nos[position] = told.get("_seq_no", -1)
            if operation == "create":
                verdict.ids[position] = made = told.get("_id")
                if not isinstance(made, str):
                    return Verdict(Whole.UNKNOWN)
        elif stopped := _judge_item(verdict, position, operation, status, error if isinstance(error, dict) else {}):
            return stopped
    return verdict


def judge_failure(status: int, kind: str) -> Verdict:
    """Judges a request that was answered with another status than 200.

    Args:
        status: HTTP status.
        kind: the server's class of the error, empty when it named none.
    """
    if (kind in _STOPPING_TYPES and status < 500) or status in (401, 403, 404):
        return Verdict(Whole.STOPPED, status=status, kind=kind)
    if status == 429:
        return Verdict(Whole.BUSY, status=status, kind=kind, busy=True)
    if status in (400, 413):
        return Verdict(Whole.TOO_LARGE, status=status, kind=kind)
    if status >= 500 or status == 408:
        return Verdict(Whole.UNKNOWN, status=status, kind=kind)
    return Verdict(Whole.STOPPED, status=status, kind=kind)


def refuse_alone(status: int, size_bytes: int) -> Refusal:
    """Says why a document was refused that was alone in its request."""
    if status == 413:
        return Refusal("document_too_large", f"The server takes no request of {size_bytes} bytes.")
    return Refusal("request_refused", f"The server answered status {status} to the document alone.")


def _judge_item(verdict: Verdict, position: int, operation: str, status: int, error: dict[str, Any]) -> Verdict | None:
    """Puts one item that did not succeed where it belongs; gives the verdict that ends everything, if it does."""
    kind = clean_type(error.get("type"))
    reason = error.get("reason")
    reason = reason if isinstance(reason, str) else ""
    if status == 409 and operation != "create":
        verdict.codes[position] = NEWER
    elif kind in _STOPPING_TYPES or status in (401, 403, 404) or reason.startswith(_NO_WRITE_INDEX):
        named = _STRICT.match(reason)
        return Verdict(Whole.STOPPED, status=status, kind=f"{kind}:{named['field']}" if named else kind)
    elif status in (409, 429) or status >= 500:
        verdict.again.append(position)
        verdict.status, verdict.kind = status, kind
        verdict.busy = verdict.busy or status in (429, 503)
        if status != 429:
            verdict.unsure.add(position)
        if status == 500:
            verdict.failed.add(position)
    elif 400 <= status < 500:
        verdict.codes[position] = REFUSED
        verdict.refusals[position] = _scrub(status, kind, reason, error)
    else:
        return Verdict(Whole.UNKNOWN, status=status, kind=kind)
    return None


def _scrub(status: int, kind: str, reason: str, error: dict[str, Any]) -> Refusal:
    """Keeps of the server's reason the classes of its errors and the field, and drops what it quotes."""
    kinds = [kind or f"status {status}"]
    below = error.get("caused_by")
    while isinstance(below, dict) and len(kinds) < 5:
        kinds += [clean_type(below.get("type"))] if clean_type(below.get("type")) not in ("", *kinds) else []
        below = below.get("caused_by")
    chain = ", caused by ".join(kinds)
    for pattern, reason_class in _DETAILS:
        if named := pattern.match(reason):
            of_type = f" of type {named['type']}" if "type" in named.groupdict() else ""
            is_large = "stream_constraints_exception" in kinds
            return Refusal(
                "value_too_large" if is_large else reason_class, f"Field {named['field']}{of_type}: {chain}."
            )
    reason_class = "mapping_refused" if "mapp" in kind or "parsing" in kind else "document_refused"
    return Refusal(reason_class, f"The server refused the document: {chain}.")


def explain_stop(verdict: Verdict, alias: str, url: str) -> str:
    """Says in a sentence why nothing more is sent, and what to do."""
    kind, _, name = verdict.kind.partition(":")
    if kind == "strict_dynamic_mapping_exception":
        return f"The index behind `{alias}` has no field `{name or '?'}`; extend its mapping before sending documents."
    if kind == "index_not_found_exception":
        return f"OpenSearch at {url} has no alias `{alias}`; create its index first, or check OPENSEARCH_ALIAS."
    if kind == "illegal_argument_exception":
        return f"The alias `{alias}` has several indexes and none of them to write to; name one as its write index."
    return explain_status(verdict.status, kind, url)


def explain_unsettled(verdict: Verdict, url: str) -> str:
    """Says in a sentence why rows of an answer of status 200 are sent again; nothing, if none are."""
    if verdict.whole is Whole.UNKNOWN:
        return f"The answer of OpenSearch at {url} does not fit the request: broken, or about other documents."
    return explain_status(verdict.status, verdict.kind, url) if verdict.again else ""
