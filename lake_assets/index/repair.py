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
from lake_assets.index.compare import Compared, compare, compare_mapping, leaving, other_targets
from lake_assets.index.delivery import deliver, make_searchable
from lake_assets.index.mapping import contract_fields, extend_mapping, find_index, index_body
from lake_assets.index.present import delete_seen
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
SAMPLES = 20
SAMPLE_CHARS = 1024  # what is longer may be stored and not indexed
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
    """Sends only the difference, until there is none; an alias that stands for other indexes too leaves those.

    Raises:
        IndexUnavailable: no answer, or no such alias.
    """
    sent = deleted = 0
    compared = compare_with_baseline(client, alias, lake)
    for _ in range(ROUNDS):
        if compared.is_equal:
            break
        if compared.beside:
            _point(client, alias, compared.index)
        _note(lake, compared)
        sent += _send(client, alias, lake, compared, on_progress)
        deleted += delete_seen(client, compared.index, compared.differences.filter(pl.col("kind") == "foreign"))
        make_searchable(client, alias)
        compared = compare_with_baseline(client, alias, lake)
    return Repaired(sent, deleted, compared)


def rebuild(client: OpenSearch, alias: str, lake: Lake, on_progress: Progress | None = None) -> Repaired:
    """Writes clean and enrich into a new index, proves it equal, moves the alias in one step, repairs what came since.

    The old index stays, for `rollback`, and those before it go. A rebuild that dies leaves an index that the next one
    removes.

    Raises:
        IndexUnavailable: no answer; or the new index is not equal to the lake, and the alias stays where it is.
    """
    old = find_index(client, alias) or max(_generations(client, alias), default=None)
    new, building = _begin(client, alias, declared_fields(lake))
    frames = _whole_frames(lake, pl.lit(True))
    sent = sum(receipts.height for receipts in deliver(client, building, frames, on_progress=on_progress))
    make_searchable(client, building)
    moved = _move(client, alias, building, lake, on_progress)
    with explained(client):
        for name, aliases in _generations(client, alias).items():
            if name not in (old, new) and not aliases:
                client.indices.delete(index=name)
    return Repaired(sent + moved.sent, moved.deleted, moved.left)


def rollback(client: OpenSearch, alias: str, lake: Lake) -> Repaired:
    """Repairs in the index before what that has missed, proves it equal, and moves the alias back to it in one step.

    Raises:
        IndexUnavailable: no answer, or there is no index before that can be made equal; the alias stays where it is.
    """
    present = find_index(client, alias)
    before = [name for name in _generations(client, alias) if present and name < present]
    if not before:
        raise IndexUnavailable(f"There is no index before `{present}` at {address(client)} to go back to.")
    returning = f"{alias}-rollback"
    _point(client, returning, before[-1])
    return _move(client, alias, returning, lake)


def declared_fields(lake: Lake) -> dict[str, dict[str, Any]]:
    """Gives field name → mapping of all that contracts, metrics and comparisons need of an index."""
    return {**contract_fields(), **metric_fields(lake.read("enrich/documents")), **STATE_FIELDS}


def _move(client: OpenSearch, alias: str, proving: str, lake: Lake, on_progress: Progress | None = None) -> Repaired:
    """Makes the index behind another alias equal, proves it, moves the alias to it, and repairs what came since.

    Raises:
        IndexUnavailable: it is not equal to the lake, and the alias stays where it is.
    """
    extend_mapping(client, proving, declared_fields(lake))
    caught_up = repair(client, proving, lake, on_progress)
    _validate(client, proving, lake, caught_up.left)
    index = caught_up.left.index
    _point(client, alias, index, {"remove": {"index": index, "alias": proving}})
    _delete_leaving(client, alias, lake)
    last = repair(client, alias, lake, on_progress)
    return Repaired(caught_up.sent + last.sent, caught_up.deleted + last.deleted, last.left)


def _delete_leaving(client: OpenSearch, alias: str, lake: Lake) -> None:
    """Deletes what batches on their way may have deleted from the index before only; they commit clean afterwards."""
    version = version_of(lake, 0)
    deletes = leaving(lake).select("id", version=pl.col("batch") * 2**32 + version, operation=pl.lit("delete"))
    for _ in deliver(client, alias, [deletes] if deletes.height else []):
        pass


def _point(client: OpenSearch, alias: str, index: str, *more: dict[str, Any]) -> None:
    """Makes an alias stand for one index and no other, in one step."""
    others = [{"remove": {"index": other, "alias": alias}} for other in other_targets(client, alias, index)]
    with explained(client):
        actions = [{"add": {"index": index, "alias": alias}}, *others, *more]
        client.indices.update_aliases(body={"actions": actions})


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


def _generations(client: OpenSearch, alias: str) -> dict[str, list[str]]:
    """Gives the indexes that were made for an alias and are still there, the oldest first, and their aliases."""
    with explained(client):
        found = client.indices.get(index=f"{alias}-*", params={"expand_wildcards": "open"})
    return {name: list(found[name]["aliases"]) for name in sorted(found)
            if re.fullmatch(re.escape(alias) + r"-\d{6}", name)}  # fmt: skip


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
    with explained(client):
        sample = {"size": SAMPLES, "_source": ["path", "key"]}
        for hit in client.search(index=building, body=sample)["hits"]["hits"]:
            asked = [{"term": {name: value}} for name, value in hit["_source"].items() if len(value) < SAMPLE_CHARS]
            body = {"query": {"bool": {"filter": [*asked, {"ids": {"values": [hit["_id"]]}}]}}, "_source": False}
            if not client.search(index=building, body=body)["hits"]["hits"]:
                faults.append(f"document {hit['_id']} is not found by its path and key")
    if faults:
        raise IndexUnavailable(
            f"The new index {compared.index} at {address(client)} is not what the lake says: {'; '.join(faults)}. "
            "The alias stays where it is; rebuild again when nothing else writes."
        )
