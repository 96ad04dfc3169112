"""The key of a record: its name inside its object, which no other line of the object can change.

A declared key stands as it is: `id`, its second occurrence `id#2`. Where a key itself ends like an occurrence, the
first one is numbered too (`id#2#1`), so no two records can meet. All else is a hash: `blake2b:` and 32 hex digits.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import polars as pl

WHOLE_KEY = "object"
MAX_KEY_CHARS = 512
HASHED = "blake2b:"


def key_of_bytes(raw: bytes) -> str:
    """Gives the key of a record that has no key of its own: BLAKE2b-128 of its bytes."""
    return HASHED + blake2b(raw, digest_size=16).hexdigest()


def key_of_name(name: str) -> str:
    """Gives the key that a record's own name makes: over 512 characters, or if it looks like a hash, it is hashed."""
    if len(name) > MAX_KEY_CHARS or name.startswith(HASHED):
        return HASHED + blake2b(name.encode(), digest_size=16, person=b"key").hexdigest()
    return name


class Occurrences:
    """Numbers repeated keys inside each object, over all its pieces.

    Holds 8 bytes a record of the object that is being read: sorted runs of 64-bit hashes. Where two different keys of
    an object share a hash (1 in a million for 5 million records), one is numbered 2: still a name of its own.
    """

    def __init__(self) -> None:
        self._object: tuple[str, str] | None = None
        self._runs: list[np.ndarray] = []

    def number(self, records: pl.DataFrame) -> pl.Series:
        """Gives the keys of a piece with their occurrences.

        Args:
            records: path, etag, key; pieces of one object follow each other.
        """
        if not len(records):
            return records["key"]
        hashes = records.select("path", "etag", "key").hash_rows().to_numpy()
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        positions = np.arange(len(ordered))
        is_first = np.append(True, ordered[1:] != ordered[:-1])
        counts = positions - np.maximum.accumulate(np.where(is_first, positions, 0)) + 1
        for run in self._runs:
            counts += np.searchsorted(run, ordered, "right") - np.searchsorted(run, ordered, "left")
        numbers = np.empty_like(counts)
        numbers[order] = counts
        self._remember(records, ordered, order)
        return _numbered(records["key"], numbers)

    def _remember(self, records: pl.DataFrame, ordered: np.ndarray, order: np.ndarray) -> None:
        last: tuple[str, str] = (records["path"][-1], records["etag"][-1])
        if last != self._object:
            self._object, self._runs = last, []
        is_last = ((records["path"] == last[0]) & (records["etag"] == last[1])).to_numpy()
        self._runs.append(ordered[is_last[order]])
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort(kind="stable")
            self._runs.append(merged)


def _numbered(keys: pl.Series, numbers: np.ndarray) -> pl.Series:
    occurrence = pl.Series("occurrence", numbers)
    is_plain = (occurrence == 1) & ~keys.str.contains(r"#[0-9]+$")
    if is_plain.all():
        return keys
    frame = pl.DataFrame([keys.alias("key"), occurrence, is_plain.alias("is_plain")])
    numbered = pl.concat_str("key", pl.lit("#"), pl.col("occurrence").cast(pl.String))
    return frame.select(pl.when("is_plain").then("key").otherwise(numbered).alias("key")).to_series()
