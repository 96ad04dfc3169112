"""Code location `science`: the metrics and enrich."""

from __future__ import annotations

import dagster as dg

from lake_assets.io_manager import build_definitions
from lake_assets.science.enrich import enrich_asset
from lake_assets.science.metric import find_metrics, metric_asset


def science_assets() -> list[dg.AssetsDefinition]:
    """Makes every metric's asset, and enrich."""
    metrics = find_metrics()
    return [*(metric_asset(item) for item in metrics.values()), enrich_asset(metrics)]


@dg.definitions
def defs() -> dg.Definitions:
    """Builds the code location."""
    return build_definitions("science", science_assets())
