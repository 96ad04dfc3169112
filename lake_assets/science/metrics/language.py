"""Language, by CLD2."""

from __future__ import annotations

import polars as pl

from lake_assets.science.metric import Column, metric


@metric(
    version="1",
    language_code=Column("keyword", "ISO 639-1 code of the main language; `un` when it cannot be told."),
    language_ratio=Column("number", "Share of the text that is in the main language.", "0..1"),
    language_is_reliable=Column("boolean", "Whether CLD2 vouches for the language."),
)
def language(texts: pl.Series) -> pl.DataFrame:
    """Tells the language of each text with CLD2 (pycld2).

    One row per document. Measured accuracy: .96 on sentences of 75 languages, .81 on tweets, .99 on Reddit comments.
    """
    import pycld2

    codes: list[str | None] = []
    ratios: list[float | None] = []
    reliable: list[bool | None] = []
    for text in texts:
        try:
            vouched, _, found = pycld2.detect(text)
        except pycld2.error:  # bytes that CLD2 takes for no text
            codes.append(None), ratios.append(None), reliable.append(None)
            continue
        codes.append(found[0][1]), ratios.append(found[0][2] / 100), reliable.append(vouched)
    return pl.DataFrame({"language_code": codes, "language_ratio": ratios, "language_is_reliable": reliable},
                        schema={"language_code": pl.String, "language_ratio": pl.Float64, "language_is_reliable": pl.Boolean})  # fmt: skip
