"""Batches: which objects are claimed together, and which batch owns which path.

raw/objects is the manifest, the ledger and the sensor's memory. A path belongs to the newest batch that claimed it;
where keys are unique in their source, a key belongs to the newest batch that holds it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import polars as pl

from lake_assets.lake.raw_zone import Listing
from lake_assets.lake.tables import Lake, Replacement, Snapshot
from lake_assets.settings import Settings
from lake_assets.text.sources import Sources

CLAIMS = ["lake_assets/claims"]  # what all claims share: of two that race one must look again
LONGEST_WAITS = 10  # times LAKE_BATCH_WAIT_SECONDS
LEDGER = ["batch", "path", "etag", "size_bytes", "state", "claimed_at"]
NOTHING_DECLARED = Sources()
IS_INCREMENT = pl.col("scope") != pl.col("path")


class Ledger:
    """What was ever claimed: raw/objects, read once and then only its newer batches."""

    def __init__(self, lake: Lake, sources: Sources = NOTHING_DECLARED) -> None:
        self.lake = lake
        self.scope = sources.scope()
        self.rows = Snapshot(None, lake.table("raw/objects").contract).frame(columns=LEDGER)
        self.version = -1

    def refresh(self, snapshot: Snapshot | None = None) -> Ledger:
        """Reads what has been claimed since; a batch's rows never change."""
        snapshot = snapshot or self.lake.read("raw/objects")
        if snapshot.version < self.version:  # the table was made anew
            self.rows, self.version = self.rows.clear(), -1
        if snapshot.version != self.version:
            newer = snapshot.scan().filter(pl.col("batch") > self.last_batch).select(LEDGER).collect()
            self.rows = pl.concat([self.rows, newer], how="vertical").rechunk()
            self.version = snapshot.version
            self._owners = None
        return self

    _owners: pl.DataFrame | None = None

    @property
    def last_batch(self) -> int:
        """The newest batch; 0 before the first."""
        return int(self.rows["batch"].max() or 0)  # ty: ignore[invalid-argument-type]

    def owners(self) -> pl.DataFrame:
        """Gives each path once, with its newest version and the batch that owns it."""
        if self._owners is None:
            self._owners = self.rows.sort("batch").unique("path", keep="last", maintain_order=True)
        return self._owners

    def owned(self, batch: int) -> pl.DataFrame:
        """Gives the objects that a batch claimed and still owns, and the `scope` of their keys.

        A newer version takes an object over, but not where keys are unique in their source: there each version counts.
        """
        newest = self.owners().filter(pl.col("batch") == batch)["path"]
        claimed = self.claimed(batch).with_columns(scope=self.scope)
        return claimed.filter(pl.col("path").is_in(newest.implode()) | IS_INCREMENT)

    def claimed(self, batch: int) -> pl.DataFrame:
        """Gives the objects that a batch claimed, also those that a newer batch has taken over."""
        return self.rows.filter(pl.col("batch") == batch)

    def claimed_at(self, batch: int) -> dt.datetime:
        """Tells when a batch was claimed."""
        return self.claimed(batch)["claimed_at"][0]

    def earlier(self, batch: int) -> list[int]:
        """Finds the older batches that may hold documents that this one owns now."""
        return self.takeover(batch).earlier

    def takeover(self, batch: int) -> Takeover:
        """Tells what a batch owns, and where older and newer rows of the same documents may be."""
        owned = self.owned(batch)
        lost = self.claimed(batch).join(owned, on="path", how="anti")["path"]
        before = self._claimed_in(owned["scope"], pl.col("batch") < batch)
        newer = self._claimed_in(owned.filter(IS_INCREMENT)["scope"], pl.col("batch") > batch)
        return Takeover(batch, owned, lost, before.select("batch", scope=self.scope).unique(), _numbers(newer))

    def _claimed_in(self, scopes: pl.Series, batches: pl.Expr) -> pl.DataFrame:
        return self.rows.filter(batches, self.scope.is_in(scopes.unique().implode()))


@dataclass(frozen=True)
class Takeover:
    """What a batch owns, and where older and newer rows of the same documents may be.

    Attributes:
        batch: its number.
        objects: path, etag, state, scope, … of the objects it owns.
        lost: paths that it has claimed and a newer batch owns.
        before: batch and scope of what older batches claimed in the same scopes: mostly its older versions.
        later: newer batches of sources whose keys are unique, which may hold newer records of the same keys.
    """

    batch: int
    objects: pl.DataFrame
    lost: pl.Series
    before: pl.DataFrame
    later: list[int]

    @property
    def earlier(self) -> list[int]:
        """The older batches that may hold documents that this one owns now."""
        return _numbers(self.before)

    @property
    def shared(self) -> list[str]:
        """What its commits share with those of other batches: the older versions of its objects, and its increments.

        So of two batches of the same documents that are written side by side, the later commit sees the other.
        """
        whole = _numbers(self.before.filter(pl.col("scope").is_in(self.whole.implode())))
        sources = self.objects.filter(IS_INCREMENT)["scope"].unique().sort()
        return [*(f"lake_assets/batch/{number}" for number in (*whole, self.batch)),
                *(f"lake_assets/increments/{source}" for source in sources)]  # fmt: skip

    @property
    def landed(self) -> pl.DataFrame:
        """The objects, by path and etag, whose documents it holds: all but those that are gone."""
        return self.objects.filter(pl.col("state") == "landed").select("path", "etag")

    @property
    def whole(self) -> pl.Series:
        """The paths of which no older batch keeps anything."""
        return self.objects.filter(~IS_INCREMENT)["path"]

    @property
    def has_increments(self) -> bool:
        """Whether single documents are taken over, by their keys."""
        return len(self.whole) < self.objects.height

    def rows(self) -> pl.Expr:
        """Tells of each row of a table, by `batch` and `path`, whether this batch writes it or takes it out."""
        own = (pl.col("batch") == self.batch) & pl.col("path").is_in(self.objects["path"].implode())
        return own | pl.col("path").is_in(self.whole.implode())


@dataclass(frozen=True)
class Claim:
    """What a claim did: the batches it made, and how many objects it left for later."""

    batches: list[int]
    left: int


def claim(lake: Lake, ledger: Ledger, listing: Listing, settings: Settings, sources: Sources, rest: bool) -> Claim:
    """Claims what is new or changed in a listing, in one atomic commit that nothing else can make again.

    Args:
        lake: whose raw/objects takes the claim.
        ledger: refreshed on the way.
        listing: a slice of the raw zone, or single objects.
        settings: how large a batch may be, and how long an object must have rested.
        sources: which sources' deletions count.
        rest: whether objects that have changed a moment ago wait for the next look.
    """
    done = Claim([], 0)

    def compute(snapshot: Snapshot) -> Replacement | None:
        nonlocal done
        ledger.refresh(snapshot)
        fresh = changes(ledger, listing, sources)
        batched, left = _cut(fresh, ledger.last_batch, settings, rest)
        numbers = batched["batch"].unique().sort().to_list()
        done = Claim(numbers, left)
        return Replacement(numbers, [batched], CLAIMS) if numbers else None

    lake.table("raw/objects").replace(compute)
    ledger.refresh()
    return done


def changes(ledger: Ledger, listing: Listing, sources: Sources) -> pl.DataFrame:
    """Compares a listing with the ledger: objects that are new, changed, or gone where the source counts deletions."""
    known = ledger.owners()
    landed = known.filter(pl.col("state") == "landed")
    fresh = listing.objects.join(landed, on=["path", "etag", "size_bytes"], how="anti", nulls_equal=True)
    fresh = fresh.with_columns(state=pl.lit("landed"))
    within = pl.col("path") > listing.after
    if listing.until is not None:
        within &= pl.col("path") <= listing.until
    absent = landed.filter(within).join(listing.objects, on="path", how="anti")
    counted = [sources.of(path).deletes for path in absent["path"]]
    now = pl.lit(dt.datetime.now(dt.UTC)).cast(fresh.schema["last_modified"])
    gone = absent.filter(pl.Series(counted, dtype=pl.Boolean)).with_columns(last_modified=now, state=pl.lit("gone"))
    return pl.concat([fresh, gone.select(fresh.columns)]).sort("path")


def _cut(fresh: pl.DataFrame, last: int, settings: Settings, rest: bool) -> tuple[pl.DataFrame, int]:
    """Cuts objects into batches by count and bytes; the last one, not full, waits until all of it has rested.

    In a trickle that never rests, what has rested is taken as soon as something has waited LONGEST_WAITS times as long.
    """
    now = dt.datetime.now(dt.UTC)
    before = (pl.col("size_bytes").cum_sum() - pl.col("size_bytes")) // settings.lake_batch_bytes
    fresh = fresh.with_columns(part=before).with_columns(
        part=pl.struct("part", (pl.int_range(pl.len()).over("part") // settings.lake_batch_objects)).rle_id()
    )
    if rest and fresh.height:
        newest = fresh.filter(pl.col("part") == pl.col("part").max())
        full = newest.height >= settings.lake_batch_objects or newest["size_bytes"].sum() >= settings.lake_batch_bytes
        wait = dt.timedelta(seconds=settings.lake_batch_wait_seconds)
        age = pl.lit(now) - pl.col("last_modified")
        resting = newest.filter((pl.col("state") == "landed") & (age >= dt.timedelta(0)) & (age < wait))
        if not full and resting.height:
            is_long = newest.select((age >= LONGEST_WAITS * wait).any()).item()
            left = resting if is_long and resting.height < newest.height else newest
            return _numbered(fresh.join(left, on="path", how="anti", maintain_order="left"), last, now), left.height
    return _numbered(fresh, last, now), 0


def _numbered(fresh: pl.DataFrame, last: int, now: dt.datetime) -> pl.DataFrame:
    claimed_at = pl.lit(now).cast(pl.Datetime("us", "UTC"))
    return fresh.select(
        (pl.col("part").cast(pl.Int64) + last + 1).alias("batch"), pl.exclude("part"), claimed_at.alias("claimed_at")
    )


def _numbers(claims: pl.DataFrame) -> list[int]:
    return claims["batch"].unique().sort().to_list()
