"""Compares the index with the lake, document by document where anything may differ.

Of each bucket of documents the index gives count and exact sums of the hashes they carry, and sum and greatest of their
sequence numbers, which every write moves, also one behind our back that leaves the hashes as they are. A bucket
that says what clean and enrich say, and whose last writes are those of our receipts, or those it had when it was last
found equal, is equal; the documents of every other bucket are read and compared whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl

from lake_assets.errors import IndexUnavailable
from lake_assets.index.bodies import write_lines
from lake_assets.index.client import address, explained
from lake_assets.index.mapping import field_mapping, find_index, read_mapping
from lake_assets.index.whole import (
    INDEXED,
    STATE_FIELDS,
    buckets,
    document_columns,
    joined_documents,
    metric_fields,
    metrics_of,
    whole_documents,
    whole_hashes,
)
from lake_assets.lake.tables import Lake
from lake_assets.text.hashing import hash_strings

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

LOOKS = 3
HITS_A_PAGE = 5000
BUCKETS_A_QUERY = 1024  # the most terms of one query by default are 65,536
NO_BUCKET = -(2**20)  # no `short`, so that it stands for nothing else
WRITTEN = ("indexing/documents", "opensearch/documents", "clean/documents", "enrich/documents", "opensearch/metrics")
FIXED = {*INDEXED, *STATE_FIELDS}
SUMS = {"count": pl.Int64, "high": pl.Int64, "low": pl.Int64}
MOVES = {"seq_sum": pl.Int64, "seq_max": pl.Int64}
HELD = {"id": pl.String, "bucket": pl.Int64, "content": pl.Int64, "fixed": pl.Int64, "held_version": pl.Int64,
        "seq_no": pl.Int64, "primary_term": pl.Int64, "path": pl.String, "key": pl.String}  # fmt: skip
DIFFERENCES = {"kind": pl.String, "id": pl.String, "batch": pl.Int64, "path": pl.String, "key": pl.String,
               "held_version": pl.Int64, "seq_no": pl.Int64, "primary_term": pl.Int64}  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """How the index and the lake differ.

    Attributes:
        index: the physical index.
        index_documents: how many it holds.
        lake_documents: how many clean holds.
        read: how many documents of the index were read whole.
        differences: kind (`missing`, `changed`, `metrics_changed`, `foreign`, `in_flight`), id, batch, path and key of
            each document that differs; what the index holds of it: held_version, seq_no, primary_term.
        baseline: of each bucket that is equal now: bucket, count, seq_sum, seq_max.
        beside: other indexes that the alias stands for too, so that readers see them as well.
    """

    index: str
    index_documents: int
    lake_documents: int
    read: int
    differences: pl.DataFrame
    baseline: pl.DataFrame
    beside: tuple[str, ...] = ()

    def count(self, kind: str) -> int:
        """Counts the differences of a kind."""
        return self.differences.filter(pl.col("kind") == kind).height

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs but what is on its way, and readers see this index and no other."""
        return not self.beside and self.differences.filter(pl.col("kind") != "in_flight").is_empty()


def compare(client: OpenSearch, alias: str, lake: Lake, baseline: pl.DataFrame | None = None) -> Compared:
    """Compares every document of the index behind an alias with clean and enrich; writes nothing.

    What is on its way (delivered and not yet in clean, in clean and not yet delivered) is `in_flight`, no difference.

    Args:
        client: of `connect`.
        alias: whose index is compared.
        lake: whose clean and enrich say what must be there.
        baseline: of an earlier comparison of the same index: what was found equal then, though no receipt says so.

    Raises:
        IndexUnavailable: no answer, or no such alias.
    """
    index = find_index(client, alias)
    if index is None:
        raise IndexUnavailable(
            f"OpenSearch at {address(client)} has no alias `{alias}`; rebuild the index, or deliver the first batch."
        )
    beside = other_targets(client, alias, index)
    for _ in range(LOOKS):
        versions = _versions(lake)
        compared = _look(client, index, beside, lake, baseline)
        if compared.is_equal or versions == _versions(lake):
            break
    return compared


def nothing_held(lake: Lake) -> Compared:
    """Compares an index that is not there with the lake: all of clean is missing."""
    clean = lake.read("clean/documents").scan().select("id", "batch", "path", "key", kind=pl.lit("missing")).collect()
    missing = pl.concat([pl.DataFrame(schema=DIFFERENCES), clean], how="diagonal").sort("id")
    return Compared("", 0, missing.height, 0, missing, pl.DataFrame())


def other_targets(client: OpenSearch, alias: str, index: str) -> tuple[str, ...]:
    """Lists the indexes that an alias stands for beside one; none, where there is no such alias.

    Raises:
        IndexUnavailable: no answer.
    """
    with explained(client):
        told = client.indices.get_alias(name=alias) if client.indices.exists_alias(name=alias) else {}
    return tuple(sorted(set(told) - {index}))


def _versions(lake: Lake) -> list[int]:
    """Gives the versions of the tables that a load writes: what is seen while they move may be seen half."""
    return [lake.read(key).version for key in WRITTEN]


def _look(
    client: OpenSearch, index: str, beside: tuple[str, ...], lake: Lake, baseline: pl.DataFrame | None
) -> Compared:
    with explained(client):
        client.indices.refresh(index=index)
        documents = client.count(index=index)["count"]
    present = bucket_sums(client, index)
    wanted = wanted_hashes(lake)
    suspect = _suspects(
        present, _sums(wanted), [_moves(lake, index, wanted), *([baseline] if baseline is not None else [])]
    )
    held = read_held(client, index, suspect)
    differences = _classify(lake, held, _contents(lake, wanted, suspect))
    unmoved = bucket_sums(client, index).join(present, on=["bucket", *SUMS, *MOVES], how="semi")
    named = differences.drop_nulls(["path", "key"])
    there = held.filter(pl.col("id").is_in(differences["id"].implode()))["bucket"]
    damaged = pl.concat([buckets(named["path"], named["key"]), there]).unique()
    is_equal = (pl.col("bucket") >= 0) & ~pl.col("bucket").is_in(damaged.drop_nulls().implode())
    equal = unmoved.filter(is_equal).select("bucket", "count", *MOVES)
    return Compared(index, documents, wanted.height, held.height, differences, equal, beside)


def bucket_sums(client: OpenSearch, index: str) -> pl.DataFrame:
    """Asks the index for what it holds of each bucket.

    Returns:
        bucket, count, high and low (sums of the two halves of the whole hashes), seq_sum, seq_max. Documents that carry
        no bucket are counted in `NO_BUCKET`.

    Raises:
        IndexUnavailable: no answer.
    """
    sums = {"high": {"sum": {"field": "hash_high"}}, "low": {"sum": {"field": "hash_low"}},
            "seq_sum": {"sum": {"field": "_seq_no"}}, "seq_max": {"max": {"field": "_seq_no"}}}  # fmt: skip
    terms = {"terms": {"field": "bucket", "missing": NO_BUCKET, "size": 2**16 - 1}, "aggs": sums}
    with explained(client):
        answer = client.search(index=index, body={"size": 0, "track_total_hits": True, "aggs": {"buckets": terms}})
    rows = [
        (int(found["key"]), found["doc_count"], *(int(found[name]["value"] or 0) for name in sums))
        for found in answer["aggregations"]["buckets"]["buckets"]
    ]
    return pl.DataFrame(rows, schema={"bucket": pl.Int64, **SUMS, **MOVES}, orient="row")


def wanted_hashes(lake: Lake) -> pl.DataFrame:
    """Computes what the index must hold: id, batch, bucket and whole_hash of each document with its metrics."""
    clean, enrich = lake.read("clean/documents"), lake.read("enrich/documents")
    metrics = list(metric_fields(enrich))
    columns = ["batch", "id", "path", "key", "text_hash", "document_hash"]
    frames = [
        joined.select(
            "id", "batch", bucket=buckets(joined["path"], joined["key"]), whole_hash=whole_hashes(joined, metrics)
        )
        for joined in joined_documents(clean, enrich, columns, pl.lit(True))
    ]
    empty = pl.DataFrame(schema={"id": pl.String, "batch": pl.Int64, "bucket": pl.Int64, "whole_hash": pl.Int64})
    return pl.concat([empty, *frames])


def read_held(client: OpenSearch, index: str, suspect: Sequence[int]) -> pl.DataFrame:
    """Reads the documents of some buckets whole.

    Returns:
        id, bucket, content and fixed (hashes of all fields, and of those that are no metrics), held_version, seq_no,
        primary_term, path, key.

    Raises:
        IndexUnavailable: no answer.
    """
    from opensearchpy.helpers import scan

    rows: list[tuple[Any, ...]] = []
    with explained(client):
        for first in range(0, len(suspect), BUCKETS_A_QUERY):
            part = suspect[first : first + BUCKETS_A_QUERY]
            asked: list[dict[str, Any]] = [{"terms": {"bucket": [bucket for bucket in part if bucket != NO_BUCKET]}}]
            if NO_BUCKET in part:
                asked.append({"bool": {"must_not": {"exists": {"field": "bucket"}}}})
            query = {"query": {"bool": {"should": asked}}, "version": True, "seq_no_primary_term": True}
            for hit in scan(client, index=index, query=query, size=HITS_A_PAGE, preserve_order=False):
                source = hit["_source"]
                rows.append((hit["_id"], _number(source.get("bucket")), *_written(source), hit["_version"],
                             hit["_seq_no"], hit["_primary_term"], _text(source.get("path")),
                             _text(source.get("key"))))  # fmt: skip
    schema = {**HELD, "content": pl.Binary, "fixed": pl.Binary}
    held = pl.DataFrame(rows, schema=schema, orient="row").unique("id")
    return held.with_columns(hash_strings(held["content"]), hash_strings(held["fixed"]))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and abs(value) < 2**15 else None


def _written(source: dict[str, Any]) -> tuple[bytes, bytes]:
    """Writes the fields that have a value in the order of their names: all, and those that are no metrics."""
    valued = {name: value for name, value in source.items() if value is not None}
    return _canonical(valued), _canonical({name: value for name, value in valued.items() if name in FIXED})


def _canonical(fields: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # lone surrogates, or numbers over 64 bits, of somebody else
        return json.dumps(fields, sort_keys=True).encode("utf-8", "replace")


def _sums(wanted: pl.DataFrame) -> pl.DataFrame:
    high = pl.col("whole_hash") // 2**32
    low = pl.col("whole_hash") - high * 2**32 - 2**31
    return wanted.group_by("bucket").agg(count=pl.len().cast(pl.Int64), high=high.sum(), low=low.sum())


def _suspects(present: pl.DataFrame, wanted: pl.DataFrame, verified: Sequence[pl.DataFrame]) -> list[int]:
    """Finds the buckets of either side whose sums differ, or that have moved since they were delivered or verified."""
    unmoved = pl.concat([frame.select("bucket", *MOVES) for frame in verified])
    equal = present.join(wanted, on=["bucket", *SUMS], how="semi").join(unmoved, on=["bucket", *MOVES], how="semi")
    every = pl.concat([present["bucket"], wanted["bucket"]]).unique().sort()
    return every.filter(~every.is_in(equal["bucket"].implode())).to_list()


def _moves(lake: Lake, index: str, wanted: pl.DataFrame) -> pl.DataFrame:
    """Sums the sequence numbers that the receipts have of the last write of each document: bucket, seq_sum, seq_max."""
    newest = _receipts(lake).filter(pl.col("index") == index, pl.col("seq_no").is_not_null())
    joined = wanted.select("id", "bucket").join(newest.select("id", "seq_no"), on="id")
    return joined.group_by("bucket").agg(seq_sum=pl.col("seq_no").sum(), seq_max=pl.col("seq_no").max())


def _contents(lake: Lake, wanted: pl.DataFrame, suspect: Sequence[int]) -> pl.DataFrame:
    """Computes what the index must hold in some buckets: id, batch, path, key, whole_hash, content, fixed."""
    ids = wanted.filter(pl.col("bucket").is_in(suspect))["id"]
    schema = {"id": pl.String, "batch": pl.Int64, "path": pl.String, "key": pl.String, "whole_hash": pl.Int64,
              "content": pl.Int64, "fixed": pl.Int64}  # fmt: skip
    frames = [pl.DataFrame(schema=schema)]
    for whole in whole_documents(lake, pl.col("id").is_in(ids.implode())):
        sent = document_columns(whole, metrics_of(whole))
        lines = write_lines(sent.with_columns(version=pl.lit(0, pl.Int64), operation=pl.lit("index")))
        documents = bytes(lines.text[lines.ends[0] : lines.ends[-1]]).split(b"\n")[1::2]
        written = pl.DataFrame(
            [_written(orjson.loads(document)) for document in documents],
            schema={"content": pl.Binary, "fixed": pl.Binary},
            orient="row",
        )
        hashes = [hash_strings(column) for column in written.get_columns()]
        frames.append(whole.with_columns(hashes).select(list(schema)))
    return pl.concat(frames)


def _classify(lake: Lake, held: pl.DataFrame, wanted: pl.DataFrame) -> pl.DataFrame:
    """Names what differs."""
    both = wanted.join(held, on="id", how="full", coalesce=True, suffix="_held")
    kind = (
        pl.when(pl.col("content_held").is_null())
        .then(pl.lit("missing"))
        .when(pl.col("content").is_null())
        .then(pl.lit("foreign"))
        .when(pl.col("fixed") != pl.col("fixed_held"))
        .then(pl.lit("changed"))
        .when(pl.col("content") != pl.col("content_held"))
        .then(pl.lit("metrics_changed"))
    )
    differ = both.with_columns(
        kind=kind, path=pl.coalesce("path", "path_held"), key=pl.coalesce("key", "key_held")
    ).filter(pl.col("kind").is_not_null())
    moving = differ.join(_moving(lake), on=["path", "key"], how="semi")["id"]
    foreign = differ.filter(pl.col("kind") == "foreign").lazy()  # what clean knows by now was delivered meanwhile
    arrived = foreign.join(lake.read("clean/documents").scan(), on="id", how="semi").select("id").collect()["id"]
    delivered = _receipts(lake).select("id", delivered="whole_hash")
    undelivered = differ.join(delivered, on="id").filter(pl.col("whole_hash") != pl.col("delivered"))["id"]
    in_flight = pl.col("id").is_in(pl.concat([moving, undelivered, arrived]).implode())
    changed = pl.col("kind").is_in(["changed", "metrics_changed", "foreign"]) | pl.col("id").is_in(moving.implode())
    differ = differ.with_columns(kind=pl.when(in_flight & changed).then(pl.lit("in_flight")).otherwise("kind"))
    return differ.select(list(DIFFERENCES)).sort("kind", "id")


def _moving(lake: Lake) -> pl.DataFrame:
    """Finds path and key of what is between indexing and clean: new, changed, or on its way out."""
    names = ["path", "key", "document_hash"]
    indexing, clean = (lake.read(key).scan().select(names) for key in ("indexing/documents", "clean/documents"))
    refused = (
        lake.read("quarantine/records")
        .scan()
        .filter(pl.col("stage") == "opensearch/documents")
        .select("path", "record")
    )
    known = lake.read("indexing/documents").scan().join(refused, on=["path", "record"], how="semi").select(names)
    coming = indexing.join(clean, on=names, how="anti").join(known, on=names, how="anti")
    going = clean.join(indexing, on=names, how="anti")
    return pl.concat([coming, going]).select("path", "key").unique().collect()


def leaving(lake: Lake) -> pl.DataFrame:
    """Finds what of clean a batch on its way leaves out, or has sent anew and seen refused: id, batch."""
    indexing, clean = (lake.read(key).scan() for key in ("indexing/documents", "clean/documents"))
    refused = lake.read("quarantine/records").scan().filter(stage="opensearch/documents")
    anew = indexing.join(refused, on=["path", "record"], how="semi").select("path", "key", anew="document_hash")
    left_out = clean.join(indexing, on=["path", "key"], how="anti")
    lost = clean.join(anew, on=["path", "key"]).filter(pl.col("document_hash") != pl.col("anew"))
    return pl.concat([left_out.select("id", "batch"), lost.select("id", "batch")]).unique("id").collect()


def _receipts(lake: Lake) -> pl.DataFrame:
    """Gives the last receipt of each document: id, version, whole_hash, seq_no, index."""
    columns = ["id", "version", "whole_hash", "seq_no", "index"]
    both = [lake.read(key).scan().select(columns) for key in ("opensearch/documents", "opensearch/metrics")]
    return pl.concat(both).sort("version").unique("id", keep="last", maintain_order=True).collect()


def compare_mapping(client: OpenSearch, index: str, fields: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Compares the mapping of an index with what contracts and metrics declare; a sentence for each field that differs.

    Raises:
        IndexUnavailable: no answer, or no such index.
    """
    held = read_mapping(client, index)
    declared = {name: field_mapping(field) for name, field in fields.items()}
    missing = [f"Field `{name}` is missing; the next delivery adds it." for name in sorted(set(declared) - set(held))]
    foreign = [f"Field `{name}` is declared nowhere; rebuild the index." for name in sorted(set(held) - set(declared))]
    different = [
        f"Field `{name}` is {orjson.dumps(held[name]).decode()}, and {orjson.dumps(field).decode()} is declared; "
        "rebuild the index."
        for name, field in sorted(declared.items())
        if name in held and held[name] != field
    ]
    return missing + foreign + different
