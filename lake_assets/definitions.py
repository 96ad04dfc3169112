"""Both code locations merged: for tests, the command line and a one-process run."""

from __future__ import annotations

import dagster as dg

from lake_assets.engineering.definitions import ASSETS
from lake_assets.engineering.opensearch_index import INDEX_JOBS
from lake_assets.engineering.sensors import ingest_job, raw_zone_sensor
from lake_assets.io_manager import build_definitions
from lake_assets.science.definitions import science_assets


@dg.definitions
def defs() -> dg.Definitions:
    """Builds one code location of both."""
    return build_definitions("lake", [*ASSETS, *science_assets()], [raw_zone_sensor()], [ingest_job, *INDEX_JOBS])
