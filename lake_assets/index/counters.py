"""Counters: numbers handed out in ranges, none of them twice, each range with a word on who has it.

A counter is its list of reservations: c is the last number of the last one. So one row, written in one step, moves the
counter and explains the move; whoever dies at whatever instant leaves either nothing or a range that names its owner.
What belongs here: reserving. What does not: which document gets which number (`ids`).
"""

from __future__ import annotations

import datetime as dt
import re
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import polars as pl

from lake_assets.contracts import UTC_TIMESTAMP
from lake_assets.errors import CounterFailed, SettingsRefused
from lake_assets.lake.tables import local_path
from lake_assets.settings import Settings

RESERVATIONS = {"first": pl.Int64, "last": pl.Int64, "owner": pl.String, "reserved_at": UTC_TIMESTAMP}
BUSY_SECONDS = 60.0
TRIES = 8
MOST_RIVALS = 10_000  # that are faster, one after the other; each of them has got its numbers

# EXTRA: also the removal of the journal reaches the disk, else a power cut could undo what has been handed out.
BEGIN = """PRAGMA synchronous=EXTRA; PRAGMA fullfsync=ON; BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS reservations (first INTEGER PRIMARY KEY, last INTEGER NOT NULL CHECK (last >= first),
owner TEXT NOT NULL, reserved_at TEXT NOT NULL);"""
KEYS = (("counter", "S", "HASH"), ("first", "N", "RANGE"))
NAME = {"S": "documents"}
ALL: dict[str, Any] = {
    "ConsistentRead": True,
    "KeyConditionExpression": "#counter = :name",
    "ExpressionAttributeNames": {"#counter": "counter"},
    "ExpressionAttributeValues": {":name": NAME},
}
ADVICE = {
    "SQLITE_(BUSY|LOCKED)": "another process holds it; look which one, and try again",
    "SQLITE_FULL": "the disk is full; make room and try again",
    "SQLITE_(NOTADB|CORRUPT)": "it is no counter, or damaged; put its newest copy back, a new one begins at 1 again",
    "SQLITE_(CANTOPEN|READONLY|PERM)": "it must be a file, in a folder that you may write to",
    "SQLITE_": "reading or writing it failed; look at the disk's space, quota and health, and try again",
    "ValidationException": "its keys must be counter (string) and first (number); name another table, or a new one",
    "Throttl|Exceeded|Internal|Unavailable": "it was asked again and again; try later",
    "Credentials|Token|Signature|Denied": "the credentials must allow Query, PutItem, DescribeTable and CreateTable",
    "": "look at AWS_ENDPOINT_URL, AWS_REGION, the credentials and the network",
}
"""What to do, by a pattern of the code that SQLite or AWS gave; the first that fits."""


class Counter(Protocol):
    """Hands out numbers from 1 on; threads and processes may share one."""

    def reserve(self, count: int, owner: str) -> range:
        """Reserves numbers that nobody else has or will have.

        Args:
            count: how many; 0 reserves nothing.
            owner: who wants them, for instance batch and run; it is kept, so that every gap can be explained.

        Returns:
            c - count + 1 … c, where c is the counter after it was moved.

        Raises:
            CounterFailed: the counter is out of reach. Numbers may be reserved then, and in nobody's hands.
        """

    def reservations(self) -> pl.DataFrame:
        """Lists all that was ever reserved, in order: first, last, owner, reserved_at. It has no gap from 1 to c."""


def counter(settings: Settings, url: str = "") -> Counter:
    """Opens a counter; nothing is made or asked before it is used.

    Args:
        settings: where the lake is, and how AWS is reached.
        url: dynamodb://table, file:///path, or nothing: counter.sqlite3 in LAKE_HOME, if the lake is there as well.

    Raises:
        SettingsRefused: the URL is none of these, or it is empty and the lake is one that other machines can write to.
    """
    if table := re.fullmatch(r"dynamodb://([A-Za-z0-9_.-]{3,255})", url):
        return DynamoCounter(table[1], settings)
    if re.match("file:///.", url):
        return EmbeddedCounter(local_path(url))
    if url:
        raise SettingsRefused(f"The counter {url!r} is neither dynamodb://table nor file:///path; write one of these.")
    if urlsplit(settings.lake_root).scheme != "file":
        raise SettingsRefused(
            f"The lake {settings.lake_root} may be written by several machines, and counters in their LAKE_HOMEs would "
            "give them the same numbers: name one for all, dynamodb://table (file:///path if there is one machine)."
        )
    return EmbeddedCounter(settings.lake_home / "counter.sqlite3")


class EmbeddedCounter:
    """A counter in a SQLite file, for the processes of one machine; it survives kill -9 and power cuts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def reserve(self, count: int, owner: str) -> range:
        if not _is_wanted(count, owner):
            return range(0)
        with self._transaction() as connection:
            newest = connection.execute("SELECT last FROM reservations ORDER BY first DESC LIMIT 1").fetchone()
            last = newest[0] if newest else 0
            row = (last + 1, last + count, owner, str(dt.datetime.now(dt.UTC)))
            connection.execute("INSERT INTO reservations VALUES (?, ?, ?, ?)", row)
        return range(last + 1, last + count + 1)

    def reservations(self) -> pl.DataFrame:
        with self._transaction() as connection:
            return _frame(connection.execute("SELECT first, last, owner, reserved_at FROM reservations ORDER BY first"))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Holds the file alone; what was done inside counts when the block has ended, or not at all."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
                connection.executescript(BEGIN)
                yield connection
                connection.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            raise _failed(str(self.path), getattr(error, "sqlite_errorname", "SQLITE_CANTOPEN")) from None


class DynamoCounter:
    """A counter in a DynamoDB table, which is made when it is missing; for any number of machines of one region.

    A reservation is one item, whose key is its first number, written where there is none yet. That single write can be
    sent again after any lost or late answer: the key is either free, or ours (the token tells), or a rival's, and then
    the next number that may be free follows from the rival's item. An `ADD`, sent again, would count twice.
    """

    def __init__(self, table: str, settings: Settings, tries: int = TRIES) -> None:
        self.table = table
        self.settings = settings
        self.tries = tries

    def reserve(self, count: int, owner: str) -> range:
        if not _is_wanted(count, owner):
            return range(0)
        row = {"owner": {"S": owner}, "token": {"S": uuid.uuid4().hex}}
        row["reserved_at"] = {"S": str(dt.datetime.now(dt.UTC))}
        with self._told():
            last = self._last()
            for _ in range(MOST_RIVALS):
                numbers = range(last + 1, last + count + 1)
                place = {"counter": NAME, "first": {"N": str(numbers[0])}, "last": {"N": str(numbers[-1])}}
                found = self._put(place | row)
                if found is None or found["token"] == row["token"]:
                    return numbers
                last = int(found["last"]["N"])
        raise _failed(f"in DynamoDB's table {self.table}", "RivalsExceeded")

    def reservations(self) -> pl.DataFrame:
        items: list[dict[str, Any]] = []
        with self._told(), suppress(self._client.exceptions.ResourceNotFoundException):
            for page in self._client.get_paginator("query").paginate(TableName=self.table, **ALL):
                items += page["Items"]
        cells = ((int(i["first"]["N"]), int(i["last"]["N"]), i["owner"]["S"], i["reserved_at"]["S"]) for i in items)
        return _frame(cells)

    def _last(self) -> int:
        """Gives the last number that was reserved; 0 before the first."""
        try:
            newest = self._client.query(TableName=self.table, ScanIndexForward=False, Limit=1, **ALL)["Items"]
        except self._client.exceptions.ResourceNotFoundException:
            self._make_table()
            return 0
        return int(newest[0]["last"]["N"]) if newest else 0

    def _put(self, item: dict[str, Any]) -> dict[str, Any] | None:
        """Writes an item where none has its key; gives the one that has."""
        try:
            self._client.put_item(
                TableName=self.table,
                Item=item,
                ConditionExpression="attribute_not_exists(#first)",
                ExpressionAttributeNames={"#first": "first"},
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except self._client.exceptions.ConditionalCheckFailedException as error:
            return error.response["Item"]
        return None

    def _make_table(self) -> None:
        """Makes the table, or waits until whoever makes it is done; it cannot be deleted by accident."""
        with suppress(self._client.exceptions.ResourceInUseException):
            self._client.create_table(
                TableName=self.table,
                BillingMode="PAY_PER_REQUEST",
                DeletionProtectionEnabled=True,
                KeySchema=[{"AttributeName": name, "KeyType": role} for name, _, role in KEYS],
                AttributeDefinitions=[{"AttributeName": name, "AttributeType": kind} for name, kind, _ in KEYS],
            )
        self._client.get_waiter("table_exists").wait(TableName=self.table, WaiterConfig={"Delay": 1, "MaxAttempts": 99})

    @cached_property
    def _client(self) -> Any:
        """Makes the client, which sends again what was throttled or lost, with growing waits of random length."""
        import boto3  # takes a third of a second
        from botocore.config import Config

        options = self.settings.storage_options
        names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        session = boto3.session.Session(**{name: options.get(name) for name in names})
        waits: Any = {"mode": "standard", "total_max_attempts": self.tries}
        config = Config(region_name=options["aws_region"], connect_timeout=5, read_timeout=10, retries=waits)
        return session.client("dynamodb", endpoint_url=options.get("aws_endpoint_url"), config=config)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tells what AWS refuses as a sentence."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            told = error.response.get("Error", {}) if isinstance(error, ClientError) else {}
            which = f"in DynamoDB's table {self.table} in {self.settings.aws_region}"
            raise _failed(which, told.get("Code") or type(error).__name__) from None


def _failed(which: str, code: str) -> CounterFailed:
    advice = next(words for codes, words in ADVICE.items() if re.search(codes, code))
    return CounterFailed(f"The counter {which} cannot be used: {advice} ({code}).")


def _is_wanted(count: int, owner: str) -> bool:
    if count < 0 or not owner:
        raise ValueError(f"A reservation needs a count from 0 on and an owner; got {count} and {owner!r}.")
    return count > 0


def _frame(rows: Any) -> pl.DataFrame:
    told = [(first, last, owner, dt.datetime.fromisoformat(at)) for first, last, owner, at in rows]
    return pl.DataFrame(told, schema=RESERVATIONS, orient="row")
