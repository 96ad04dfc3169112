"""A text lake in front of OpenSearch, as Dagster assets."""

__version__ = "0.1.0"
