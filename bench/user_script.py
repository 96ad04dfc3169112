"""The script that one would write without this product: clean, index, measure, update.

    python -m bench.user_script URL INDEX FILE PROCESSES

Nothing in it is slowed down: text work in several processes, the fast reader of JSON, ids of its own, large chunks. It
forgets what it did, and refuses nothing.
"""

from __future__ import annotations

import gzip
import sys
import unicodedata
from collections.abc import Iterator
from itertools import islice
from multiprocessing import Pool
from typing import Any

import ftfy
import orjson
import pycld2
from opensearchpy import OpenSearch, helpers
from resiliparse.extract.html2text import extract_plain_text
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

CHUNK_SIZE = 2000
PIECE_LINES = 5000
CONFIG = ftfy.TextFixerConfig(unescape_html=False, uncurl_quotes=False, normalization=None)

analyzer: SentimentIntensityAnalyzer | None = None


def main(url: str, index: str, path: str, processes: int) -> None:
    """Indexes the cleaned documents, updates each with its metrics, and prints how many ids it sent."""
    client = OpenSearch(url, timeout=60)
    texts: list[tuple[str, str]] = []
    with Pool(processes) as pool:

        def documents() -> Iterator[dict[str, Any]]:
            for cleaned in pool.imap(clean, _pieces(path)):
                for identity, document in cleaned:
                    texts.append((identity, document["text"]))
                    yield {"_op_type": "index", "_index": index, "_id": identity, "_source": document}

        for _ in helpers.streaming_bulk(client, documents(), chunk_size=CHUNK_SIZE):
            pass
        pieces = (texts[first : first + PIECE_LINES] for first in range(0, len(texts), PIECE_LINES))
        updates = (
            {"_op_type": "update", "_index": index, "_id": identity, "doc": metrics}
            for measured in pool.imap(measure, pieces)
            for identity, metrics in measured
        )
        helpers.bulk(client, updates, chunk_size=CHUNK_SIZE)
    print(len({identity for identity, _ in texts}))


def _pieces(path: str) -> Iterator[list[bytes]]:
    with gzip.open(path, "rb") as file:
        while lines := list(islice(file, PIECE_LINES)):
            yield lines


def clean(lines: list[bytes]) -> list[tuple[str, dict[str, Any]]]:
    """Reads JSON lines, repairs their text, takes markup away."""
    cleaned = []
    for line in lines:
        record = orjson.loads(line)
        text = ftfy.fix_text(record.pop("text"), CONFIG)
        text = extract_plain_text(text, main_content=False, alt_texts=False)
        text = unicodedata.normalize("NFC", text).strip()
        if text:
            cleaned.append((record.pop("id"), {"text": text, "attributes": record}))
    return cleaned


def measure(documents: list[tuple[str, str]]) -> list[tuple[str, dict[str, Any]]]:
    """Tells language and sentiment, and counts."""
    global analyzer
    analyzer = analyzer or SentimentIntensityAnalyzer()
    measured = []
    for identity, text in documents:
        metrics: dict[str, Any] = {"size_chars": len(text), "size_words": len(text.split())}
        try:
            reliable, _, found = pycld2.detect(text)
            ratio = found[0][2] / 100
            metrics |= {"language_code": found[0][1], "language_ratio": ratio, "language_is_reliable": reliable}
        except pycld2.error:
            pass
        score = analyzer.polarity_scores(text)["compound"]
        label = "positive" if score >= 0.05 else "negative" if score <= -0.05 else "neutral"
        metrics |= {"sentiment_score": score, "sentiment_label": label}
        measured.append((identity, metrics))
    return measured


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
