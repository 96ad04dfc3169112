"""Size: characters, words, sentences."""

from __future__ import annotations

import polars as pl

from lake_assets.science.metric import Column, metric


@metric(
    version="1",
    size_chars=Column("integer", "Characters (Unicode code points).", "count"),
    size_words=Column(
        "integer", "Runs of letters, digits and apostrophes; without spaces between words, a run is one.", "count"
    ),
    size_sentences=Column("integer", "Runs that end in . ! ? or their CJK forms, or at the text's end.", "count"),
)
def size(texts: pl.Series) -> pl.DataFrame:
    """Counts the characters, words and sentences of each text.

    One row per document. Words and sentences are counted by pattern, in every script alike.
    """
    text = pl.col("text")
    return pl.DataFrame({"text": texts}).select(
        size_chars=text.str.len_chars().cast(pl.Int64),
        size_words=text.str.count_matches(r"[\p{L}\p{N}\p{M}'’]+").cast(pl.Int64),
        size_sentences=text.str.count_matches(r"[^.!?。！？\s][^.!?。！？]*(?:[.!?。！？]+|$)").cast(pl.Int64),
    )
