"""Code location `engineering`: everything from the raw zone to the index."""

from __future__ import annotations

import dagster as dg

from lake_assets.engineering.clean import clean_documents
from lake_assets.engineering.indexing import indexing_documents
from lake_assets.engineering.opensearch import opensearch_documents, opensearch_metrics
from lake_assets.engineering.opensearch_index import INDEX_JOBS, opensearch_index
from lake_assets.engineering.quarantine import quarantine_records
from lake_assets.engineering.raw import raw_objects, raw_records
from lake_assets.engineering.sensors import ingest_job, raw_zone_sensor
from lake_assets.io_manager import build_definitions

ASSETS = [
    raw_objects,
    raw_records,
    indexing_documents,
    opensearch_documents,
    clean_documents,
    opensearch_metrics,
    opensearch_index,
    quarantine_records,
]


@dg.definitions
def defs() -> dg.Definitions:
    """Builds the code location."""
    return build_definitions("engineering", ASSETS, [raw_zone_sensor()], [ingest_job, *INDEX_JOBS])
