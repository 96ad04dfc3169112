"""OpenSearch: documents delivered, and delivered again with their metrics."""

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial

import dagster as dg
import polars as pl
from dagster import AssetExecutionContext

from lake_assets.contracts import OpenSearchDocuments, OpenSearchMetrics
from lake_assets.engineering.indexing import taken_rows
from lake_assets.engineering.quarantine import refuse
from lake_assets.index.created import create_documents
from lake_assets.index.delivery import deliver, make_searchable
from lake_assets.index.ids import source_ids
from lake_assets.index.mapping import ensure_index, extend_mapping
from lake_assets.index.names import choose_ids, counting
from lake_assets.index.present import copies_in, copies_of, count_in, delete_seen, ids_of_objects, versions_of_ids
from lake_assets.index.whole import (
    STATE_FIELDS,
    document_columns,
    metric_fields,
    metrics_of,
    version_of,
    whole_hashes,
    with_metrics,
)
from lake_assets.io_manager import Counts, LakeResource, Updates, batches, table_asset
from lake_assets.lake.tables import PIECE_ROWS, Replacement, Snapshot, bucketed

# What failed, because OpenSearch was down say, is tried again every five minutes.
RETRY = (
    dg.AutomationCondition.execution_failed()
    & dg.AutomationCondition.cron_tick_passed("*/5 * * * *")
    & ~dg.AutomationCondition.in_progress()
)
RECEIPT = list(OpenSearchDocuments.columns())
Waiting = deque[tuple[pl.DataFrame, pl.DataFrame]]


@table_asset("opensearch/documents", "engineering", ["indexing/documents"], OpenSearchDocuments,
             kinds=("opensearch", "deltalake"), pool="opensearch")  # fmt: skip
def opensearch_documents(context: AssetExecutionContext, lake: LakeResource) -> Updates:
    """Delivers new and changed documents to OpenSearch, deletes those that vanished, and keeps the receipts.

    One row per document that the index holds, partitioned by batch. Documents whose hash the receipts know are not sent
    again. What the server refuses for good goes to the quarantine; when it does not answer, the run fails and the next
    one finishes it.
    """
    counts = Counts("sent", "deleted", "carried_over", "refused")
    return Updates(
        lake.lake.table("opensearch/documents"),
        (_Delivery(lake, batch, counts).compute for batch in batches(context)),
        counts.total,
    )


class _Delivery:
    """First delivery of one batch."""

    def __init__(self, lake: LakeResource, batch: int, counts: Counts) -> None:
        self.lake, self.batch, self.counts = lake, batch, counts
        self.client, self.alias = lake.client(), lake.settings.opensearch_alias

    def compute(self, snapshot: Snapshot) -> Replacement:
        self.sent = self.counts.begin(self.batch, "deleted")
        self.taken = self.lake.ledger().takeover(self.batch)
        self.documents = self.lake.lake.read("indexing/documents")
        self.mine = taken_rows(self.lake, self.taken)
        self.older = snapshot.batches_of(self.taken.earlier, self.mine)
        self.known = snapshot.scan([self.batch, *self.older]).filter(self.mine).select(RECEIPT).collect()
        self._doubt(snapshot)
        self.version = version_of(self.lake.lake, self.batch)
        return Replacement([self.batch, *self.older], self.rows(snapshot), self.taken.shared)

    def _doubt(self, snapshot: Snapshot) -> None:
        """Finds the receipts to be trusted, and the paths of which the index itself is asked.

        A batch that claimed an object and left no receipts of it may have died between sending and noting: what older
        receipts say may no longer be so.
        """
        scope = self.lake.sources.scope()
        noted = snapshot.scan(self.taken.earlier).select("batch", scope=scope).unique().collect()
        silent = (
            self.taken.before.join(noted, on=["scope", "batch"], how="anti")
            .group_by("scope")
            .agg(silent=pl.col("batch").max())
        )
        doubted = self.known.with_columns(scope=scope).join(silent, on="scope", how="left")
        self.trusted = doubted.filter(pl.col("silent").is_null() | (pl.col("batch") > pl.col("silent"))).select(RECEIPT)
        newest = doubted.group_by("scope").agg(newest=pl.col("batch").max())
        asked = silent.join(newest, on="scope", how="left").filter(pl.col("newest").fill_null(0) < pl.col("silent"))
        self.unnoted = sorted(set(asked["scope"]) & set(self.taken.whole))

    def rows(self, snapshot: Snapshot) -> Iterator[pl.DataFrame]:
        """Hands out the receipts, while the documents are on their way; then what older batches keep."""
        fields = {**metric_fields(self.lake.lake.read("enrich/documents")), **STATE_FIELDS}
        self.index = ensure_index(self.client, self.alias, fields)
        extend_mapping(self.client, self.alias, fields)
        refused: list[pl.DataFrame] = []
        present: list[pl.Series] = []
        waiting: Waiting = deque()
        self._choose_ids(refused)
        answers = deliver(self.client, self.alias, self._changed(waiting, present))
        yield from _receipts(answers, waiting, RECEIPT, refused, self.sent)
        kept = pl.concat([self.known["id"].clear(), *present])
        self._delete_vanished(kept, refused)
        make_searchable(self.client, self.alias)
        etags = self.taken.objects.select("path", "etag")
        refuse(
            self.lake.lake, "opensearch/documents", self.batch, [f.join(etags, on="path") for f in refused], self.taken
        )
        yield from snapshot.others([self.batch, *self.older], self.mine)

    def _choose_ids(self, refused: list[pl.DataFrame]) -> None:
        """Chooses ids that are not computed; those that only the server can make come with their documents."""
        settings = self.lake.settings
        if settings.lake_ids == "source":
            return
        by_server = settings.lake_ids == "opensearch"
        make = partial(self._create, refused) if by_server else counting(settings, f"batch {self.batch}")
        names = self._scoped(self.documents.frame([self.batch], ["path", "key"]))
        self.ids = choose_ids(self.lake.lake, self.batch, names, make)
        if by_server:
            self._settle_copies()

    def _create(self, refused: list[pl.DataFrame], names: pl.DataFrame) -> pl.DataFrame:
        """Sends documents without an id, and gives the ids of those and of copies that an earlier run has left."""
        refused.clear()
        copies = copies_of(self.client, self.alias, names).unique(["path", "key"], keep="first")
        lacking = names.join(copies, on=["path", "key"], how="anti")
        waiting: Waiting = deque()
        answers = create_documents(self.client, self.alias, self._unnamed(lacking, waiting))
        made = pl.concat([self.trusted.clear(), *_receipts(answers, waiting, RECEIPT, refused, self.sent)])
        self.trusted = pl.concat([self.trusted, made])
        self.sent["carried_over"] -= made.height  # they are sent: their receipts are handed out with those of others
        return names.join(pl.concat([copies, made], how="diagonal"), on=["path", "key"]).select("scope", "key", "id")

    def _unnamed(self, names: pl.DataFrame, waiting: Waiting) -> Iterator[pl.DataFrame]:
        for piece in self.documents.pieces([self.batch]):
            piece = piece.join(names, on=["path", "key"], how="semi", maintain_order="left")
            if piece.is_empty():
                continue
            whole = piece.with_columns(**self._own(), id=pl.lit(None, pl.String), whole_hash=pl.col("document_hash"))
            waiting.append((self.known.clear(), whole))
            yield document_columns(whole, []).with_columns(version=pl.lit(1, pl.Int64), operation=pl.lit("create"))

    def _settle_copies(self) -> None:
        """Deletes surplus copies of what the server has named, before the receipts; what is lacking is sent by its id.

        A request may have been carried out though its answer was lost, and two runs may have created one document.
        """
        paths = self.taken.objects["path"].to_list()
        noted = pl.concat([self.known["id"], self.trusted["id"]]).unique()
        if count_in(self.client, self.alias, paths) == len(noted):
            return
        copies = copies_in(self.client, self.alias, paths)
        chosen = self.lake.lake.read("opensearch/ids").scan().select("id").collect()
        self.sent["deleted"] += delete_seen(self.client, self.index, copies.join(chosen, on="id", how="anti"))
        self.trusted = self.trusted.join(copies, on="id", how="semi")

    def _changed(self, waiting: Waiting, present: list[pl.Series]) -> Iterator[pl.DataFrame]:
        """Hands out what must be sent, and leaves in `waiting` what its receipts need, in the same order."""
        enrich = self.lake.lake.read("enrich/documents").frame(self.older) if self.older else None
        for piece in self.documents.pieces([self.batch]):
            piece = self._with_ids(self._scoped(piece))
            if self.known.height or self.unnoted:
                present.append(piece["id"])
            same = self.trusted.join(piece.select("id", "document_hash"), on=["id", "document_hash"], how="semi")
            piece = piece.join(same.select("id"), on="id", how="anti", maintain_order="left")
            self.sent["carried_over"] += same.height
            whole = with_metrics(piece, enrich) if enrich is not None else piece
            metrics = metrics_of(whole)
            whole = whole.with_columns(**self._own(), whole_hash=whole_hashes(whole, metrics))
            waiting.append((same.with_columns(batch=self._own()["batch"]), whole))
            yield document_columns(whole, metrics).with_columns(
                version=pl.lit(self.version, pl.Int64), operation=pl.lit("index")
            )

    def _own(self) -> dict[str, pl.Expr]:
        return {"batch": pl.lit(self.batch, pl.Int64), "index": pl.lit(self.index)}

    def _scoped(self, documents: pl.DataFrame) -> pl.DataFrame:
        """Gives the documents of the owned objects, and the scope of their keys."""
        owned = documents.filter(pl.col("path").is_in(self.taken.objects["path"].implode()))
        return owned.with_columns(scope=self.lake.sources.scope())

    def _with_ids(self, scoped: pl.DataFrame) -> pl.DataFrame:
        """Adds the ids; what the server has refused to make an id for is left out."""
        if self.lake.settings.lake_ids == "source":
            return scoped.with_columns(id=source_ids(scoped["scope"], scoped["key"])).drop("scope")
        return scoped.join(self.ids, on=["scope", "key"], how="inner", maintain_order="left").drop("scope")

    def _delete_vanished(self, kept: pl.Series, refused: list[pl.DataFrame]) -> None:
        """Deletes what the index held of the owned objects and no longer has a document, and what it has refused.

        Also what this batch may have sent of objects that a newer one has taken over meanwhile, and nobody has noted;
        what the newer one has sent has a later version.
        """
        held = pl.concat([self.known["id"], ids_of_objects(self.client, self.alias, self.unnoted)])
        lost = ids_of_objects(self.client, self.alias, self.taken.lost.to_list())
        gone = [held.filter(~held.is_in(kept.implode())), *(frame["id"].drop_nulls() for frame in refused)]
        gone = pl.concat([*gone, lost.filter(~lost.is_in(self._noted_elsewhere(lost).implode()))]).unique().to_frame()
        deletes = gone.with_columns(version=pl.lit(self.version, pl.Int64), operation=pl.lit("delete"))
        for answer in deliver(self.client, self.alias, [deletes] if deletes.height else []):
            self.sent["deleted"] += answer.filter(pl.col("result") == "deleted").height

    def _noted_elsewhere(self, ids: pl.Series) -> pl.Series:
        """Finds which of some ids have a receipt, or were chosen by another batch."""
        noted = self.lake.lake.read("opensearch/documents").scan()
        chosen = self.lake.lake.read("opensearch/ids").scan().filter(pl.col("batch") != self.batch)
        both = pl.concat([noted.select("id"), chosen.select("id")]).join(ids.to_frame("id").lazy(), on="id", how="semi")
        return both.collect()["id"]


@table_asset("opensearch/metrics", "engineering", ["enrich/documents", "clean/documents"], OpenSearchMetrics,
             kinds=("opensearch", "deltalake"), pool="opensearch",
             automation_condition=dg.AutomationCondition.eager() | RETRY)  # fmt: skip
def opensearch_metrics(context: AssetExecutionContext, lake: LakeResource) -> Updates:
    """Delivers documents again, whole, with their metrics as fields; the mapping is extended by what enrich declares.

    One row per document whose metrics the index holds, partitioned by batch. A metric of another text than the
    document's is stale and never sent; a document whose fields all equal the last delivery is not sent again.
    """
    counts = Counts("sent", "carried_over", "refused", "stale", "withdrawn")
    return Updates(
        lake.lake.table("opensearch/metrics"),
        (_Metrics(lake, batch, counts).compute for batch in batches(context)),
        counts.total,
    )


class _Metrics:
    """Second delivery of one batch, and of what older batches keep when it has taken objects over."""

    def __init__(self, lake: LakeResource, batch: int, counts: Counts) -> None:
        self.lake, self.batch, self.counts = lake, batch, counts
        self.client, self.alias = lake.client(), lake.settings.opensearch_alias
        self.asked: list[pl.DataFrame] = []

    def compute(self, snapshot: Snapshot) -> Replacement:
        self.sent = self.counts.begin(self.batch, "withdrawn")
        self.clean = self.lake.lake.read("clean/documents")
        self.enrich = self.lake.lake.read("enrich/documents")
        taken = self.lake.ledger().takeover(self.batch)
        self.batches = [self.batch, *snapshot.stale(taken.earlier, self.clean)]
        wanted = self.clean.scan(self.batches).select("id")
        received = self.lake.lake.read("opensearch/documents").scan([self.batch, *taken.earlier])
        # What the first delivery has sent since came without metrics: only a later second delivery counts.
        later = received.join(wanted, on="id", how="semi").select("id", received="version").unique("id")
        known = snapshot.scan([self.batch, *taken.earlier]).join(later, on="id")
        known = known.filter(pl.col("version") > pl.col("received"))
        self.index = ensure_index(self.client, self.alias, {**metric_fields(self.enrich), **STATE_FIELDS})
        self.lost = self._sent_elsewhere(received.join(wanted, on="id", how="semi"))
        known = known.drop("received").unique(["id", "whole_hash"]).collect()
        self.known = known.filter(~pl.col("id").is_in(self.lost.implode()))
        self.version = version_of(self.lake.lake, 0, self.clean, self.enrich)
        return Replacement(self.batches, self.rows(), taken.shared)

    def rows(self) -> Iterator[pl.DataFrame]:
        """Hands out the receipts, while the documents are on their way."""
        fields = metric_fields(self.enrich)
        extend_mapping(self.client, self.alias, {**fields, **STATE_FIELDS})
        waiting: Waiting = deque()
        refused: list[pl.DataFrame] = []
        answers = deliver(self.client, self.alias, self._changed(list(fields), waiting))
        yield from _receipts(answers, waiting, list(OpenSearchMetrics.columns()), refused, self.sent)
        self._withdraw_vanished()
        make_searchable(self.client, self.alias)
        etags = self.lake.ledger().owners().select("path", "etag")
        refuse(self.lake.lake, "opensearch/metrics", self.batch, [f.join(etags, on="path") for f in refused])

    def _changed(self, metrics: list[str], waiting: Waiting) -> Iterator[pl.DataFrame]:
        for part in bucketed(self.clean.count(self.batches), "id"):
            enrich = self.enrich.scan(self.batches).filter(part).collect()
            self.sent["stale"] += enrich.join(
                self.clean.scan(self.batches).filter(part).select("id", "text_hash").collect(),
                on=["id", "text_hash"],
                how="anti",
            ).height
            known = self.known.filter(part)
            documents = self.clean.scan(self.batches).filter(part)
            for piece in documents.collect_batches(chunk_size=PIECE_ROWS, maintain_order=False, lazy=True):
                measured = pl.any_horizontal(pl.lit(False), pl.col(metrics).is_not_null())
                whole = with_metrics(piece, enrich).filter(measured | pl.col("id").is_in(self.lost.implode()))
                whole = whole.with_columns(whole_hash=whole_hashes(whole, metrics), index=pl.lit(self.index))
                kept = known.drop("batch").join(whole.select("batch", "id", "whole_hash"), on=["id", "whole_hash"])
                whole = whole.join(kept, on="id", how="anti", maintain_order="left")
                self.sent["carried_over"] += kept.height
                waiting.append((kept, whole))
                # A document's own batch counts, also where a newer one sends it: its own may send it again.
                versions = (whole["batch"] * 2**32 + self.version).alias("version")
                self.asked.append(pl.DataFrame([whole["id"], versions]))
                yield document_columns(whole, metrics).with_columns(versions, operation=pl.lit("index"))

    def _withdraw_vanished(self) -> None:
        """Deletes again what has left clean while it was sent: the index forgets the version of a deleted document."""
        newest = self.lake.lake.read("clean/documents")
        if newest.version == self.clean.version or not self.asked:
            return
        gone = pl.concat(self.asked).lazy().join(newest.scan().select("id"), on="id", how="anti").collect()
        deletes = gone.with_columns(operation=pl.lit("delete"))
        for _ in deliver(self.client, self.alias, [deletes] if deletes.height else []):
            self.sent["withdrawn"] += deletes.height

    def _sent_elsewhere(self, received: pl.LazyFrame) -> pl.Series:
        """Finds what the first delivery sent to another index and this one lacks: the alias has moved meanwhile."""
        elsewhere = received.filter(pl.col("index") != self.index).select("id", "version").collect()
        held = versions_of_ids(self.client, self.alias, elsewhere["id"])
        there = elsewhere.join(held, on="id").filter(pl.col("held_version") >= pl.col("version"))
        return elsewhere.join(there, on="id", how="anti")["id"]


def _receipts(
    answers: Iterable[pl.DataFrame],
    waiting: Waiting,
    columns: list[str],
    refused: list[pl.DataFrame],
    sent: dict[str, int],
) -> Iterator[pl.DataFrame]:
    """Joins each answer to what was sent: hands out the receipts of what the index holds, and counts.

    Args:
        answers: of `deliver`.
        waiting: for each answer the receipts that are carried over, and the rows that were sent.
        columns: of a receipt.
        refused: takes what the server refused, with its reason.
        sent: counts `sent` and `refused`.
    """
    for answer in answers:
        carried, asked = waiting.popleft()
        yield carried.select(columns)
        asked = asked.with_columns(answer.select("id", "version", "result", "seq_no", "reason", "detail"))
        taken = asked.filter(pl.col("result") != "refused")
        refused.append(asked.filter(pl.col("result") == "refused"))
        sent["sent"] += taken.height
        sent["refused"] += refused[-1].height
        yield taken.select(columns)
