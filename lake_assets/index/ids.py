"""Identities of documents: a hash of where they came from, or a number that each name gets once and keeps.

What belongs here: pure functions from columns to ids. What does not: the counter itself, ids made by the server.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

import numpy as np
import polars as pl
import pyarrow as pa

from lake_assets.errors import ContractBroken

ID_CHARS = 22
"""Length of an id: 128 bits in base64url without padding."""

_DIGEST_BYTES = 16
_PADDED_BYTES = 18
_PADDED_CHARS = 24


def source_ids(path: pl.Series, key: pl.Series) -> pl.Series:
    """Computes the id of each document from the object it came in and its key there.

    The id is BLAKE2b-128 of `<length of path in bytes>:<path><key>` in UTF-8, base64url without padding. The length in
    front keeps (`a`, `bc`) and (`ab`, `c`) apart, whatever bytes the two contain.

    Args:
        path: String; path under the raw root.
        key: String, as long as `path`; names the record inside its object.

    Returns:
        String of 22 characters each, named `id`, in the same order.

    Raises:
        ContractBroken: a value is null, or the two differ in length.
    """
    if path.len() != key.len():
        raise ContractBroken(f"An id needs a path and a key each: got {path.len()} paths and {key.len()} keys.")
    if path.null_count() or key.null_count():
        raise ContractBroken(
            f"An id needs a path and a key: {path.null_count()} paths and {key.null_count()} keys are null."
        )
    names = pl.select(
        pl.concat_str(path.str.len_bytes().cast(pl.String), pl.lit(":"), path.cast(pl.String), key.cast(pl.String))
    ).to_series()
    blake2b = hashlib.blake2b
    digests = b"".join([blake2b(name, digest_size=_DIGEST_BYTES).digest() for name in names.cast(pl.Binary).to_list()])
    return _base64url(digests).alias("id")


def numbered_ids(names: pl.DataFrame, known: pl.DataFrame, reserve: Callable[[int], range]) -> pl.DataFrame:
    """Gives each name the id it has, and the names that have none the next numbers, in their order.

    Args:
        names: String columns; what a document is called, for instance scope and key. A name may stand there twice.
        known: the same columns, each name once, and `id`; more names than asked for do no harm.
        reserve: reserves as many numbers as it is told; called once, and not at all when every name has its id.

    Returns:
        `names` in the same order with `id` (String; a number in decimal) and `is_new` (Boolean: to be written down
        before the id is used).

    Raises:
        ContractBroken: a part of a name or an id is null, or a known name stands there twice.
    """
    by = names.columns
    known = known.select(*by, "id")
    if any(sum(frame.null_count().row(0)) for frame in (names, known)):
        raise ContractBroken(f"An id needs a whole name: {', '.join(by)} or id is null in some rows.")
    if known.select(by).is_duplicated().any():
        raise ContractBroken(f"A document keeps its id for life: some names ({', '.join(by)}) are known by two ids.")
    new = names.unique(maintain_order=True).join(known, on=by, how="anti", maintain_order="left")
    numbers = reserve(new.height) if new.height else range(0)
    if len(numbers) != new.height:
        raise ContractBroken(f"{new.height} documents need an id, and {len(numbers)} numbers were reserved.")
    new = new.with_columns(id=pl.int_range(numbers.start, numbers.stop, eager=True).cast(pl.String), is_new=True)
    all_known = pl.concat([known.with_columns(is_new=False), new])
    return names.join(all_known, on=by, how="left", maintain_order="left")


def _base64url(digests: bytes) -> pl.Series:
    """Encodes digests of 16 bytes, laid end to end, as 22 characters each.

    Each is padded to 18 bytes, which makes 24 characters of which the last two hold nothing: one call encodes all.
    """
    rows = len(digests) // _DIGEST_BYTES
    padded = np.zeros((rows, _PADDED_BYTES), dtype=np.uint8)
    padded[:, :_DIGEST_BYTES] = np.frombuffer(digests, dtype=np.uint8).reshape(rows, _DIGEST_BYTES)
    encoded = np.frombuffer(base64.urlsafe_b64encode(padded.tobytes()), dtype=np.uint8).reshape(rows, _PADDED_CHARS)
    characters = np.ascontiguousarray(encoded[:, :ID_CHARS])
    offsets = np.arange(0, (rows + 1) * ID_CHARS, ID_CHARS, dtype=np.int64)
    array = pa.LargeStringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(characters))
    return pl.Series("id", array, dtype=pl.String)
