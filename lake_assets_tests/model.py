"""What a lake must hold, predicted without any of its code: from the objects that landed and the batches that claimed.

What belongs here: the rules of the road in their plainest form. What does not: running anything.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

LISTED, UNIQUE = "listed/", "crm/"
SOURCES = f"""
[[source]]
name = "listed"
prefix = "{LISTED}"
key = "id"
deletes = true

[[source]]
name = "crm"
prefix = "{UNIQUE}"
key = "id"
unique_keys = true
"""


class Document(NamedTuple):
    """What is expected of one document; a row of clean and a hit of the index are brought into this form too."""

    path: str
    key: str
    text: str
    attributes: str | None


class Refusal(NamedTuple):
    """What is expected of one row of the quarantine."""

    batch: int
    stage: str
    path: str
    record: int | None
    reason: str


@dataclass
class Version:
    """One version of an object; each time that something lands there is a new one, also with the same bytes."""

    content: bytes


@dataclass
class Claim:
    """What a batch claimed of one path; `content` is what it read: None before, and where it came too late."""

    batch: int
    path: str
    version: Version | None
    is_read: bool = False
    content: bytes | None = None


@dataclass
class Model:
    """Objects, claims and what was read of them."""

    landing: dict[str, Version] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def land(self, path: str, content: bytes) -> None:
        """Puts a new version of an object into the raw zone."""
        self.landing[path] = Version(content)

    def newest(self) -> dict[str, Claim]:
        """Gives the newest claim of each path."""
        return {claim.path: claim for claim in sorted(self.claims, key=lambda claim: claim.batch)}

    def changes(self) -> dict[str, Version | None]:
        """Tells what a claim must take: path and version; None for an object that is gone."""
        known = {path: claim.version for path, claim in self.newest().items()}
        fresh: dict[str, Version | None] = {
            path: version for path, version in self.landing.items() if known.get(path) is not version
        }
        gone = [path for path, version in known.items() if version and path not in self.landing]
        return fresh | {path: None for path in gone if path.startswith(LISTED)}

    def claimed(self, rows: Iterable[tuple[int, str]]) -> None:
        """Notes which batch has claimed which of the changes."""
        changes = self.changes()
        self.claims += [Claim(batch, path, changes[path]) for batch, path in rows]

    def read(self, batch: int) -> None:
        """Notes that a batch has read its objects: those that are still there in the version that it claimed."""
        for claim in self.claims:
            if claim.batch == batch and not claim.is_read and claim.version is not None:
                claim.is_read = True
                if self.landing.get(claim.path) is claim.version:
                    claim.content = claim.version.content

    @property
    def batches(self) -> list[int]:
        """All batches, the oldest first."""
        return sorted({claim.batch for claim in self.claims})

    def documents(self) -> dict[tuple[str, str], Document]:
        """Predicts all documents at the end, by scope and key."""
        held: dict[tuple[str, str], Document] = {}
        for claim in self._counting():
            scope = UNIQUE if claim.path.startswith(UNIQUE) else claim.path
            read = documents_of(claim.path, claim.content or b"")
            held |= {(scope, document.key): document for document in read}
        return held

    def refusals(self) -> set[Refusal]:
        """Predicts the quarantine at the end."""
        refused = set()
        for claim in self.claims:
            if claim.version is not None and claim.is_read and not claim.content:
                reason = "object_gone" if claim.content is None else "empty_object"
                refused.add(Refusal(claim.batch, "raw/records", claim.path, None, reason))
        for claim in self._counting():
            for number, line in enumerate((claim.content or b"").splitlines()):
                if reason := reason_of(line):
                    refused.add(Refusal(claim.batch, "indexing/documents", claim.path, number, reason))
        return refused

    def records(self) -> Counter[tuple[int, str, int, bytes]]:
        """Predicts raw/records, which keeps every version that was ever read."""
        return Counter(
            (claim.batch, claim.path, number, line)
            for claim in self.claims
            for number, line in enumerate((claim.content or b"").splitlines())
        )

    def _counting(self) -> list[Claim]:
        """Gives the claims whose records count, the later ones win: the newest, and all where keys are unique."""
        newest = self.newest()
        counting = [c for c in self.claims if c.path.startswith(UNIQUE) or newest[c.path] is c]
        return sorted(counting, key=lambda claim: (claim.batch, claim.path))


def documents_of(path: str, content: bytes) -> list[Document]:
    """Reads JSON lines: an `id` or the hash of the line is the key, with its occurrence where it is not the first."""
    seen: Counter[str] = Counter()
    found = []
    for line in content.splitlines():
        if reason_of(line):
            continue
        record: Mapping[str, str] | str = json.loads(line)
        fields = {"text": record} if isinstance(record, str) else dict(record)
        key = fields.pop("id", None) or "blake2b:" + blake2b(line, digest_size=16).hexdigest()
        seen[key] += 1
        ends_like_one = key.rpartition("#")[2].isdigit() and "#" in key
        named = key if seen[key] == 1 and not ends_like_one else f"{key}#{seen[key]}"
        text = fields.pop("text")
        found.append(
            Document(path, named, text, json.dumps(fields, sort_keys=True, separators=(",", ":")) if fields else None)
        )
    return found


def reason_of(line: bytes) -> str | None:
    """Tells why a line is no document; None if it is one."""
    try:
        record = json.loads(line)
    except ValueError:
        return "broken_json"
    if isinstance(record, str):
        return None if record.strip() else "no_text"
    if not isinstance(record, dict):
        return "not_an_object"
    return None if record.get("text", "").strip() else "no_text"
