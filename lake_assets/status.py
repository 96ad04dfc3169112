"""What is where: rows of each table, what was refused, documents of the index."""

from __future__ import annotations

from typing import Any

import polars as pl

from lake_assets.contracts import TABLES
from lake_assets.errors import LakeError
from lake_assets.index.client import connect
from lake_assets.index.mapping import index_state
from lake_assets.index.node import opensearch_url
from lake_assets.lake.tables import Lake
from lake_assets.settings import Settings


def status_of(settings: Settings) -> dict[str, Any]:
    """Counts tables, refusals by stage and reason, and the index (None when OpenSearch does not answer)."""
    lake = Lake(settings)
    tables = {}
    for key in TABLES:
        counted = lake.read(key).scan().select(pl.len(), pl.col("batch").n_unique()).collect()
        tables[key] = {"rows": counted.item(0, 0), "batches": counted.item(0, 1)}
    refused = lake.read("quarantine/records").scan().group_by("stage", "reason").len().sort("stage", "reason").collect()
    try:
        index = index_state(connect(settings, opensearch_url(settings)), settings.opensearch_alias)
    except LakeError:
        index = None
    return {
        "tables": tables,
        "refused": {f"{stage}: {reason}": count for stage, reason, count in refused.rows()},
        "index": index,
    }
