"""Counters on real processes that are killed, a real DynamoDB server, and a wire that loses answers."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import multiprocessing
import os
import random
import resource
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from lake_assets.errors import CounterFailed, SettingsRefused
from lake_assets.index import counters
from lake_assets.index.counters import RESERVATIONS, Counter, DynamoCounter, EmbeddedCounter, counter
from lake_assets.settings import Settings
from lake_assets_tests.servers import S3Server, ministack

RESERVERS = 16
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


@pytest.fixture(scope="module", autouse=True)
def fork_server(isolated_environment: None) -> None:
    """Starts the process that all others are forked from, where it finds this module: it then imports only once."""
    forkserver.ensure_running()


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory, isolated_environment: None) -> Iterator[S3Server]:
    """A server of its own: versitygw, which may be the S3 server, has no DynamoDB."""
    with ministack(tmp_path_factory.mktemp("dynamodb")) as server:
        yield server


def on_aws(aws: S3Server, **changed: str) -> Settings:
    return Settings.model_validate({"lake_url": "s3://bucket/lake", **aws.settings(), **changed})


@pytest.fixture(params=["embedded", "dynamodb"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Settings, str]:
    """What opens a counter that nobody has used: settings and URL."""
    if request.param == "embedded":
        return Settings(lake_home=tmp_path / "home" / ".lake"), ""
    return on_aws(request.getfixturevalue("aws")), f"dynamodb://counter-{uuid.uuid4().hex}"


def reserve_some(place: tuple[Settings, str], owner: str, counts: list[int]) -> list[tuple[str, int, int]]:
    """Reserves, and gives what it got: owner, first, last."""
    opened = counter(*place)
    return [(owner, numbers[0], numbers[-1]) for numbers in (opened.reserve(count, owner) for count in counts)]


def reserve_for_ever(place: tuple[Settings, str], owner: str, seed: int, output: Path) -> None:
    """Reserves until it is killed, or the test session is, and writes down what it got, a line each, at once."""
    chance, opened = random.Random(seed), counter(*place)
    file = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while (session := multiprocessing.parent_process()) and session.is_alive():
        numbers = opened.reserve(chance.randint(1, 50), owner)
        os.write(file, f"{owner} {numbers[0]} {numbers[-1]}\n".encode())


def reserved(opened: Counter) -> list[tuple[str, int, int]]:
    """Gives all reservations, after a look that they follow each other from 1 on without gap or overlap."""
    frame = opened.reservations()
    assert dict(frame.schema) == RESERVATIONS
    expected = [1, *(last + 1 for last in frame["last"])][:-1] if frame.height else []
    assert frame["first"].to_list() == expected
    assert (frame["last"] >= frame["first"]).all()
    return [(owner, first, last) for first, last, owner, _ in frame.rows()]


def test_numbers_begin_at_one_and_follow_each_other(place: tuple[Settings, str]) -> None:
    opened = counter(*place)
    before = dt.datetime.now(dt.UTC)
    assert opened.reservations().is_empty()
    assert opened.reserve(5, "batch 1, run a") == range(1, 6)
    assert opened.reserve(1, "batch 2, run b") == range(6, 7)
    assert len(opened.reserve(0, "batch 3, run c")) == 0
    assert counter(*place).reserve(2_000_000_000_000, "batch 4, run d") == range(7, 2_000_000_000_007)
    assert reserved(opened) == [
        ("batch 1, run a", 1, 5),
        ("batch 2, run b", 6, 6),
        ("batch 4, run d", 7, 2_000_000_000_006),
    ]
    times = opened.reservations()["reserved_at"].to_list()
    assert before <= times[0] <= times[1] <= times[2] <= dt.datetime.now(dt.UTC)


def test_a_reservation_has_an_owner_and_a_count(place: tuple[Settings, str]) -> None:
    for count, owner in ((-1, "batch 1"), (1, "")):
        with pytest.raises(ValueError, match="needs a count from 0 on and an owner"):
            counter(*place).reserve(count, owner)


def test_sixteen_processes_get_numbers_of_their_own(place: tuple[Settings, str]) -> None:
    chance = random.Random(4)
    asked = [(place, f"reserver {n}", [chance.randint(1, 500) for _ in range(5)]) for n in range(RESERVERS)]
    with PROCESSES.Pool(RESERVERS) as pool:
        got = [numbers for each in pool.starmap(reserve_some, asked, chunksize=1) for numbers in each]
    assert [(owner, last - first + 1) for owner, first, last in got] == [
        (owner, count) for _, owner, counts in asked for count in counts
    ]
    assert reserved(counter(*place)) == sorted(got, key=lambda numbers: numbers[1])
    c = sum(count for _, _, counts in asked for count in counts)
    assert counter(*place).reserve(3, "next") == range(c + 1, c + 4)


def test_a_killed_reserver_leaves_at_most_one_range_that_names_it(place: tuple[Settings, str], tmp_path: Path) -> None:
    chance, output = random.Random(5), tmp_path / "got"
    for life in range(15):
        seed = chance.randrange(1 << 30)
        pair = [
            PROCESSES.Process(target=reserve_for_ever, args=(place, f"life {life}{side}", seed, output), daemon=True)
            for side in "ab"
        ]
        for process in pair:
            process.start()
        wait_for_line(output, f"life {life}")
        for process in pair:
            time.sleep(chance.uniform(0, 0.06))
            process.kill()
        for process in pair:
            process.join()
            assert process.exitcode == -9

    got = [(line.rsplit(" ", 2)[0], *map(int, line.split()[2:])) for line in output.read_text().splitlines()]
    explained = reserved(counter(*place))
    assert len({first for _, first, _ in got}) == len(got) >= 15
    assert set(got) <= set(explained)
    lost = [owner for owner, *numbers in explained if (owner, *numbers) not in set(got)]
    assert len(set(lost)) == len(lost)
    c = explained[-1][2]
    assert counter(*place).reserve(10, "next") == range(c + 1, c + 11)


def wait_for_line(output: Path, beginning: str) -> None:
    """Waits until somebody has written down a first range."""
    ends = time.monotonic() + 60
    while not (output.exists() and f"\n{beginning}" in "\n" + output.read_text()):
        assert time.monotonic() < ends
        time.sleep(0.005)


class LosingWire(ThreadingHTTPServer):
    """Stands before DynamoDB and spoils every third PutItem, in one way; what it spoilt is counted."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str, fault: str, every: int) -> None:
        super().__init__(("127.0.0.1", 0), _Wire)
        self.upstream, self.fault, self.every = urlsplit(upstream), fault, every
        self.lock, self.puts, self.faults = threading.Lock(), 0, 0
        self.late: list[threading.Timer] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stays silent: cut connections are the point."""


class _Wire(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def wire(self) -> LosingWire:
        assert isinstance(self.server, LosingWire)
        return self.server

    def do_POST(self) -> None:
        wire, body = self.wire, self.rfile.read(int(self.headers["Content-Length"]))
        with wire.lock:
            wire.puts += (is_put := self.headers["X-Amz-Target"].endswith(".PutItem"))
            wire.faults += (is_spoilt := is_put and wire.puts % wire.every == 0)
        if not is_spoilt:
            self.answer(*self.forward(body))
        elif wire.fault == "stored, then cut":
            self.forward(body)
            self.cut()
        elif wire.fault == "stored, then half an answer":
            status, kind, answer = self.forward(body)
            self.answer(status, kind, answer, length=len(answer) + 20)
            self.cut()
        elif wire.fault == "stored, then 500":
            self.forward(body)
            self.answer(500, "application/x-amz-json-1.0", b'{"__type": "InternalServerError"}')
        elif wire.fault == "cut, and stored later":
            wire.late.append(threading.Timer(0.2, self.forward, [body]))
            wire.late[-1].start()
            self.cut()
        elif wire.fault == "throttled":
            answer = b'{"__type": "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException"}'
            self.answer(400, "application/x-amz-json-1.0", answer)

    def forward(self, body: bytes) -> tuple[int, str, bytes]:
        upstream = http.client.HTTPConnection(self.wire.upstream.netloc, timeout=30)
        with contextlib.closing(upstream):
            upstream.request("POST", self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read()

    def answer(self, status: int, kind: str, body: bytes, length: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Stays silent."""


@contextlib.contextmanager
def losing_wire(aws: S3Server, fault: str, every: int = 3) -> Iterator[LosingWire]:
    wire = LosingWire(aws.endpoint_url, fault, every)
    thread = threading.Thread(target=wire.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield wire
    finally:
        wire.shutdown()
        wire.server_close()
        thread.join()
        for late in wire.late:
            late.join()


FAULTS = [
    "stored, then cut",
    "stored, then half an answer",
    "stored, then 500",
    "cut, and stored later",
    "throttled",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_is_lost_costs_no_number(aws: S3Server, fault: str) -> None:
    url = f"dynamodb://counter-{uuid.uuid4().hex}"
    with losing_wire(aws, fault) as wire:
        place = on_aws(aws, aws_endpoint_url=wire.url), url
        with ThreadPoolExecutor(6) as threads:
            tasks = [threads.submit(reserve_some, place, f"reserver {n}", [n + 1, 7]) for n in range(6)]
            got = [numbers for task in tasks for numbers in task.result()]
        assert wire.faults >= 4
    assert [(owner, last - first + 1) for owner, first, last in got] == [
        (f"reserver {n}", count) for n in range(6) for count in (n + 1, 7)
    ]
    assert reserved(counter(on_aws(aws), url)) == sorted(got, key=lambda numbers: numbers[1])


@pytest.mark.parametrize(
    ("fault", "left", "sentence"),
    [
        ("stored, then cut", [("batch 1", 1, 4)], "look at AWS_ENDPOINT_URL.*ConnectionClosedError"),
        ("throttled", [], "try later .ProvisionedThroughputExceeded"),
    ],
)
def test_a_reserver_that_gives_up_says_so_and_its_range_is_explained(
    aws: S3Server, fault: str, left: list[tuple[str, int, int]], sentence: str
) -> None:
    table = f"counter-{uuid.uuid4().hex}"
    with losing_wire(aws, fault, every=1) as wire:
        with pytest.raises(CounterFailed, match=sentence):
            DynamoCounter(table, on_aws(aws, aws_endpoint_url=wire.url), tries=3).reserve(4, "batch 1")
        assert wire.faults == 3
    opened = counter(on_aws(aws), f"dynamodb://{table}")
    assert reserved(opened) == left
    assert opened.reserve(2, "batch 2")[0] == (5 if left else 1)


def test_a_table_of_something_else_is_refused(aws: S3Server) -> None:
    import boto3

    settings, table = on_aws(aws), f"counter-{uuid.uuid4().hex}"
    boto3.session.Session().client("dynamodb", settings.aws_region, **keys(aws)).create_table(
        TableName=table,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
    )
    with pytest.raises(CounterFailed, match=rf"{table} in us-east-1 .* its keys must be .*\(ValidationException"):
        counter(settings, f"dynamodb://{table}").reserve(1, "batch 1")


def keys(aws: S3Server) -> dict[str, str]:
    names = {"access_key": "aws_access_key_id", "secret_key": "aws_secret_access_key", "endpoint_url": "endpoint_url"}
    return {name: getattr(aws, own) for own, name in names.items()}


def test_a_made_table_cannot_be_deleted_by_accident_and_costs_nothing_unused(aws: S3Server) -> None:
    import boto3
    from botocore.exceptions import ClientError

    table = f"counter-{uuid.uuid4().hex}"
    counter(on_aws(aws), f"dynamodb://{table}").reserve(1, "batch 1")
    client = boto3.session.Session().client("dynamodb", "us-east-1", **keys(aws))
    assert client.describe_table(TableName=table)["Table"]["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    with pytest.raises(ClientError):
        client.delete_table(TableName=table)


def test_without_credentials_it_says_so(aws: S3Server) -> None:
    settings = Settings(aws_endpoint_url=aws.endpoint_url)
    with pytest.raises(CounterFailed, match=r"the credentials must allow .*\(NoCredentialsError"):
        counter(settings, "dynamodb://counter").reserve(1, "batch 1")


def test_a_counter_is_chosen_by_its_url(tmp_path: Path, aws: S3Server) -> None:
    local = Settings(lake_home=tmp_path / "home")
    opened = counter(local)
    assert isinstance(opened, EmbeddedCounter)
    assert opened.path == tmp_path / "home" / "counter.sqlite3"
    named = counter(on_aws(aws), (tmp_path / "a b").as_uri())
    assert isinstance(named, EmbeddedCounter)
    assert named.path == tmp_path / "a b"
    assert not list(tmp_path.iterdir())
    for url in ("dynamodb://", "dynamodb://a", "dynamodb://table/x", "mysql://table", "file:///", "counter"):
        with pytest.raises(SettingsRefused, match="neither dynamodb://table nor file:///path"):
            counter(local, url)
    with pytest.raises(SettingsRefused, match="s3://bucket/lake may be written by several machines"):
        counter(on_aws(aws))


def test_boto3_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, lake_assets.index.counters; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_locked_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "BUSY_SECONDS", 0.1)
    opened = EmbeddedCounter(tmp_path / "counter.sqlite3")
    opened.reserve(1, "batch 1")
    with contextlib.closing(sqlite3.connect(opened.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CounterFailed, match=f"{opened.path} cannot be used: another process holds it"):
            opened.reserve(1, "batch 2")
    assert reserved(opened) == [("batch 1", 1, 1)]


def test_what_is_no_counter_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "counter.sqlite3"
    path.write_bytes(content := b"something else " * 200)
    with pytest.raises(CounterFailed, match=r"no counter, or damaged; .*\(SQLITE_NOTADB"):
        EmbeddedCounter(path).reserve(1, "batch 1")
    assert path.read_bytes() == content


def test_a_damaged_counter_hands_nothing_out(tmp_path: Path) -> None:
    opened = EmbeddedCounter(tmp_path / "counter.sqlite3")
    for batch in range(100):
        opened.reserve(1, f"batch {batch} {'-' * 100}")
    with open(opened.path, "r+b") as file:
        file.truncate(opened.path.stat().st_size // 2)
    with pytest.raises(CounterFailed, match=r"no counter, or damaged; .*\(SQLITE_CORRUPT"):
        opened.reserve(1, "batch 101")


@pytest.mark.parametrize("path", ["folder", "file/counter.sqlite3", "file/below/counter.sqlite3"])
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(CounterFailed, match="it must be a file, in a folder that you may write to"):
        EmbeddedCounter(tmp_path / path).reserve(1, "batch 1")


def reserve_in_little_space(path: Path, limit_bytes: int, told: Any) -> None:
    """Reserves until the file may not grow any more; tells how often it did, and the sentence."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    got = 0
    try:
        while True:
            got = EmbeddedCounter(path).reserve(1, "x" * 200)[-1]
    except CounterFailed as error:
        told.send((got, str(error)))


def test_a_disk_that_takes_no_more_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "counter.sqlite3"
    here, there = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=reserve_in_little_space, args=(path, 20_000, there))
    process.start()
    there.close()
    got, sentence = here.recv()
    process.join()
    assert "look at the disk's space" in sentence or "the disk is full" in sentence
    opened = EmbeddedCounter(path)
    assert reserved(opened) == [("x" * 200, number, number) for number in range(1, got + 1)]
    assert got > 20
    assert opened.reserve(2, "later") == range(got + 1, got + 3)
