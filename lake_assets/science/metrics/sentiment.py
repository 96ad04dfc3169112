"""Sentiment, by VADER."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import polars as pl

from lake_assets.science.metric import Column, metric

LONG_CHARS = 2_000  # VADER's time grows faster than the text's length: longer texts are scored sentence by sentence
SENTENCE_CHARS = 1_000
SENTENCE_END = re.compile(r"(?<=[.!?。！？\n])\s+")


@metric(
    version="1",
    sentiment_score=Column("number", "How positive the text is: VADER's compound score.", "-1..1"),
    sentiment_label=Column("keyword", "`positive` from 0.05, `negative` to -0.05, else `neutral`."),
)
def sentiment(texts: pl.Series) -> pl.DataFrame:
    """Scores how positive each text is, with the VADER lexicon.

    One row per document; texts over 2,000 characters get the mean of their sentences. Thresholds of the label and the
    score's definition: Hutto and Gilbert, VADER, ICWSM 2014. The lexicon is English: in other languages only emoji and
    emoticons count for something, and words that look English mislead it.
    """
    analyzer = _analyzer()
    scores = [_score(analyzer, text) for text in texts]
    frame = pl.DataFrame({"sentiment_score": pl.Series(scores, dtype=pl.Float64)})
    score = pl.col("sentiment_score")
    label = pl.when(score >= 0.05).then(pl.lit("positive")).when(score <= -0.05).then(pl.lit("negative"))
    return frame.with_columns(sentiment_label=label.otherwise(pl.lit("neutral")))


def _score(analyzer: Any, text: str) -> float:
    if len(text) <= LONG_CHARS:
        return analyzer.compound(text)
    parts = [
        part[at : at + SENTENCE_CHARS]
        for part in SENTENCE_END.split(text)
        for at in range(0, len(part), SENTENCE_CHARS)
    ]
    scores = [analyzer.compound(part) for part in parts]
    return sum(scores) / max(1, len(scores))


@cache
def _analyzer() -> Any:
    from lake_assets.science.vader import Vader

    return Vader()
