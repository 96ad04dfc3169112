"""Drops a file into the raw zone as a user does, and searches until it is found with its metrics."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lake_assets.errors import LakeError
from lake_assets.index.client import connect
from lake_assets.index.search import search
from lake_assets.lake.raw_zone import raw_zone
from lake_assets.settings import Settings


def drop(settings: Settings, name: str) -> str:
    """Lands one JSON line with a word that stands nowhere else, and gives the word."""
    word = f"zebra{uuid.uuid4().hex[:8]}"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        file.write_text(json.dumps({"id": "1", "title": "A zebra", "text": f"The {word} is wonderful."}) + "\n")
        raw_zone(settings).put(name, file)
    return word


def search_until_found(settings: Settings, word: str, seconds: float = 180) -> dict[str, Any]:
    """Searches for a word among documents of positive sentiment, and gives the fields of the one that has it."""
    client = connect(settings, settings.opensearch_url)
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = search(client, settings.opensearch_alias, word, ["sentiment_score > 0", "language_code = en"])
        except LakeError:  # the index, or its metric fields, are not there yet
            found = {"hits": []}
        if found["hits"]:
            return found["hits"][0]["source"]
        assert time.monotonic() < deadline, f"{word} was not found with its metrics within {seconds:.0f} seconds."
        time.sleep(0.5)
