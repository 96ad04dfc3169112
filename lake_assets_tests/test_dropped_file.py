"""A file dropped into the raw zone does everything else by itself, on both kinds of lake; nobody clicks."""

from __future__ import annotations

from lake_assets.settings import Settings
from lake_assets_tests.dropping import drop, search_until_found
from lake_assets_tests.servers import free_port
from lake_assets_tests.test_ui import page


def test_a_dropped_file_is_found_with_its_metrics(lake_settings: Settings) -> None:
    with page(lake_settings, free_port()):
        found = search_until_found(lake_settings, drop(lake_settings, "dropped.jsonl"))
    assert found["path"] == "dropped.jsonl"
    assert found["title"] == "A zebra"
    assert found["sentiment_label"] == "positive"
    assert found["size_words"] == 4
