"""A text lake in front of OpenSearch, as Dagster assets."""

import os

__version__ = "0.1.0"

# A table's writer holds a thread of Delta's runtime while it waits for rows, and their making needs others: with one
# thread a core, on one core neither would ever go on. Read when the runtime starts, which is later than this.
os.environ.setdefault("TOKIO_WORKER_THREADS", str(max(4, os.cpu_count() or 1)))
