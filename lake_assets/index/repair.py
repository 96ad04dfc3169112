"""Makes the index equal to the lake again: sends what it lacks or holds otherwise, deletes what the lake does not know.

A rebuild writes everything into a new index beside the old one, and moves the alias when the new one is proved equal.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from lake_assets.errors import IndexUnavailable
from lake_assets.index.client import address, explained
from lake_assets.index.compare import Compared, compare, compare_mapping
from lake_assets.index.delivery import deliver, make_searchable
from lake_assets.index.mapping import contract_fields, extend_mapping, find_index, index_body
from lake_assets.index.whole import (
    STATE_FIELDS,
    document_columns,
    metric_fields,
    metrics_of,
    version_of,
    whole_documents,
)
from lake_assets.lake.tables import Lake

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

ROUNDS = 5
DELETES_A_REQUEST = 1000
SAMPLES = 20
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Repaired:
    """What a repair sent and deleted, and what is left: nothing, unless others write at the same time."""

    sent: int
    deleted: int
    left: Compared


def compare_with_baseline(client: OpenSearch, alias: str, lake: Lake) -> Compared:
    """Compares the index with the lake, and notes what was found equal, so that the next comparison reads less.

    Raises:
        IndexUnavailable: no answer, or no such alias.
    """
    identity = _identity(client, alias)
    known = lake.read("opensearch/baseline").frame()
    known = known.join(identity, on=["index", "index_uuid"], how="semi")
    compared = compare(client, alias, lake, known)
    fresh = compared.baseline.join(identity, how="cross").with_columns(batch=pl.lit(0, pl.Int64))
    fresh = fresh.select(known.columns)
    if not fresh.sort("bucket").equals(known.sort("bucket")):
        lake.table("opensearch/baseline").replace(lambda _: ([0], [fresh]))
    return compared


def repair(client: OpenSearch, alias: str, lake: Lake, on_progress: Progress | None = None) -> Repaired:
    """Sends only the difference, until there is none.

    Raises:
        IndexUnavailable: no answer, or no such alias.
    """
    sent = deleted = 0
    compared = compare_with_baseline(client, alias, lake)
    for _ in range(ROUNDS):
        if compared.is_equal:
            break
        _note(lake, compared)
        sent += _send(client, alias, lake, compared, on_progress)
        deleted += _delete_foreign(client, compared)
        make_searchable(client, alias)
        compared = compare_with_baseline(client, alias, lake)
    return Repaired(sent, deleted, compared)


def rebuild(client: OpenSearch, alias: str, lake: Lake, on_progress: Progress | None = None) -> Repaired:
    """Writes clean and enrich into a new index, proves it equal, moves the alias in one step, repairs what came since.

    The old index stays, for `rollback`. A rebuild that dies leaves an index that the next one removes.

    Raises:
        IndexUnavailable: no answer; or the new index is not equal to the lake, and the alias stays where it is.
    """
    fields = declared_fields(lake)
    old = find_index(client, alias)
    new, building = _begin(client, alias, fields)
    frames = _whole_frames(lake, pl.lit(True))
    sent = sum(receipts.height for receipts in deliver(client, building, frames, on_progress=on_progress))
    make_searchable(client, building)
    extend_mapping(client, building, declared_fields(lake))
    caught_up = repair(client, building, lake, on_progress)
    _validate(client, building, lake, caught_up.left)
    actions: list[dict[str, Any]] = [{"add": {"index": new, "alias": alias}}]
    actions += [{"remove": {"index": old, "alias": alias}}] if old else []
    actions += [{"remove": {"index": new, "alias": building}}]
    with explained(client):
        client.indices.update_aliases(body={"actions": actions})
    last = repair(client, alias, lake, on_progress)
    return Repaired(sent + caught_up.sent + last.sent, caught_up.deleted + last.deleted, last.left)


def rollback(client: OpenSearch, alias: str, lake: Lake) -> Repaired:
    """Moves the alias back to the index before, in one step, and repairs what it has missed.

    Raises:
        IndexUnavailable: no answer, or there is no index before.
    """
    present = find_index(client, alias)
    before = [name for name in _generations(client, alias) if present and name < present]
    if not before:
        raise IndexUnavailable(f"There is no index before `{present}` at {address(client)} to go back to.")
    actions = [{"add": {"index": before[-1], "alias": alias}}, {"remove": {"index": present, "alias": alias}}]
    with explained(client):
        client.indices.update_aliases(body={"actions": actions})
    extend_mapping(client, alias, declared_fields(lake))
    return repair(client, alias, lake)


def declared_fields(lake: Lake) -> dict[str, dict[str, Any]]:
    """Gives field name → mapping of all that contracts, metrics and comparisons need of an index."""
    return {**contract_fields(), **metric_fields(lake.read("enrich/documents")), **STATE_FIELDS}


def _whole_frames(lake: Lake, rows: pl.Expr) -> Iterator[pl.DataFrame]:
    """Makes frames for `deliver` of rows of clean; the version is taken first: old content must not get a new one."""
    version = version_of(lake, 0)
    for whole in whole_documents(lake, rows):
        yield document_columns(whole, metrics_of(whole)).with_columns(
            version=whole["batch"] * 2**32 + version, operation=pl.lit("index")
        )


def _send(client: OpenSearch, alias: str, lake: Lake, compared: Compared, on_progress: Progress | None) -> int:
    lacking = compared.differences.filter(pl.col("kind").is_in(["missing", "changed", "metrics_changed"]))["id"]
    if lacking.is_empty():
        return 0
    frames = _whole_frames(lake, pl.col("id").is_in(lacking.implode()))
    answers = deliver(client, alias, frames, on_progress=on_progress)
    return sum(answer.filter(pl.col("result").is_in(["created", "updated"])).height for answer in answers)


def _delete_foreign(client: OpenSearch, compared: Compared) -> int:
    """Deletes exactly the documents that were seen: one that has changed since is left for the next look."""
    foreign = compared.differences.filter(pl.col("kind") == "foreign")
    deleted = 0
    for piece in foreign.iter_slices(DELETES_A_REQUEST):
        body = [
            {"delete": {"_index": compared.index, "_id": id, "if_seq_no": seq_no, "if_primary_term": term}}
            for id, seq_no, term in piece.select("id", "seq_no", "primary_term").rows()
        ]
        with explained(client):
            answer = client.bulk(body=body, params={"filter_path": "items.*.result"})
        deleted += sum(item["delete"].get("result") == "deleted" for item in answer.get("items", []))
    return deleted


def _note(lake: Lake, compared: Compared) -> None:
    """Notes a repair before anything of it is sent, which raises the versions of all that is sent from now on."""
    counts = {kind: compared.count(kind) for kind in ("missing", "changed", "metrics_changed", "foreign")}
    now = dt.datetime.now(dt.UTC)

    def compute(snapshot: Any) -> tuple[list[int], list[pl.DataFrame]]:
        number = int(snapshot.frame(columns=["batch"])["batch"].max() or 0) + 1
        row = {"batch": number, "index": compared.index, "repaired_at": now, **counts}
        return [number], [snapshot.contract.cast(pl.DataFrame([row]))]

    lake.table("opensearch/repairs").replace(compute)


def _identity(client: OpenSearch, alias: str) -> pl.DataFrame:
    """Gives name and uuid of the physical index behind an alias; no row when there is none."""
    index = find_index(client, alias)
    if index is None:
        return pl.DataFrame(schema={"index": pl.String, "index_uuid": pl.String})
    with explained(client):
        told = client.indices.get_settings(index=index)
    uuid = told[index]["settings"]["index"]["uuid"]
    return pl.DataFrame({"index": [index], "index_uuid": [uuid]})


def _generations(client: OpenSearch, alias: str) -> list[str]:
    """Lists the indexes that were ever made for an alias and are still there, the oldest first."""
    with explained(client):
        found = client.indices.get(index=f"{alias}-*", params={"expand_wildcards": "open"})
    return sorted(name for name in found if re.fullmatch(re.escape(alias) + r"-\d{6}", name))


def _begin(client: OpenSearch, alias: str, fields: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Makes the next index, with an alias of its own, in place of one that an earlier rebuild left unfinished."""
    building = f"{alias}-rebuild"
    present = find_index(client, alias)
    with explained(client):
        if unfinished := find_index(client, building):
            client.indices.delete(index=unfinished)
    last = max([0, *(int(name[-6:]) for name in [*_generations(client, alias), present or ""] if name[-6:].isdigit())])
    new = f"{alias}-{last + 1:06}"
    with explained(client):
        client.indices.create(index=new, body={**index_body(fields), "aliases": {building: {}}})
    return new, building


def _validate(client: OpenSearch, building: str, lake: Lake, compared: Compared) -> None:
    """Proves a new index before the alias moves: documents, mapping, and sample queries.

    Raises:
        IndexUnavailable: it is not what the lake says.
    """
    faults = []
    if not compared.is_equal:
        faults.append(f"{compared.differences.height} documents differ")
    faults += compare_mapping(client, compared.index, declared_fields(lake))
    names = lake.read("clean/documents").scan().select("id", "path", "key").head(SAMPLES).collect()
    for id, path, key in names.rows():
        asked = {"bool": {"filter": [{"term": {"path": path}}, {"term": {"key": key}}]}}
        with explained(client):
            hits = client.search(index=building, body={"query": asked, "_source": False, "size": 10})["hits"]["hits"]
        if len(path) < 8000 and id not in [hit["_id"] for hit in hits] and not compared.count("in_flight"):
            faults.append("a document is not found by its path and key")
            break
    if faults:
        raise IndexUnavailable(
            f"The new index {compared.index} at {address(client)} is not what the lake says: {'; '.join(faults)}. "
            "The alias stays where it is; rebuild again when nothing else writes."
        )
