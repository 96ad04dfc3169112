"""Hashes of text, the same on every machine and in every version."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import polars as pl


def hash_strings(series: pl.Series) -> pl.Series:
    """Gives BLAKE2b-64 of each string's UTF-8 bytes as Int64 (signed, little endian); null of null.

    Args:
        series: String or Binary.
    """
    filled = series.is_not_null()
    digests = b"".join([blake2b(value, digest_size=8).digest() for value in series.drop_nulls().cast(pl.Binary)])
    hashes = pl.Series(series.name, np.frombuffer(digests, "<i8").astype(np.int64), dtype=pl.Int64)
    if filled.all():
        return hashes
    places = filled.arg_true()
    return pl.Series(series.name, [None], dtype=pl.Int64).new_from_index(0, len(series)).scatter(places, hashes)


def hash_rows(columns: list[pl.Series]) -> pl.Series:
    """Gives `hash_strings` of several String columns together: no two different rows are written the same way."""
    parts: list[pl.Expr] = []
    for index in range(len(columns)):
        column = pl.col(str(index))
        written = pl.concat_str(column.str.len_bytes().cast(pl.String), pl.lit(":"), column)
        parts.append(written.fill_null("-"))
    frame = pl.DataFrame([column.cast(pl.String).alias(str(index)) for index, column in enumerate(columns)])
    return hash_strings(frame.select(pl.concat_str(parts).alias("hash")).to_series())
