"""`lake ui`: Dagster's page with both code locations, and everything it needs, until Ctrl-C.

It prepares DAGSTER_HOME, joins or starts the local OpenSearch node, runs `dagster dev` on the loopback address, and
ends every process of it, also when it is killed itself. It imports Dagster only to make a new event log.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from pydantic import SecretStr

from lake_assets.errors import PageFailed
from lake_assets.guard import start_guarded, stop_guarded
from lake_assets.settings import Settings

HOST = "127.0.0.1"
START_SECONDS = 180.0
GRACE_SECONDS = 15.0
ANSWER_SECONDS = 30.0
LAST_LINES = 15
POLL_SECONDS = 0.2
LOCATIONS_QUERY = """
{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } } }
"""
WORKSPACE = """\
load_from:
  - python_module: {module_name: lake_assets.engineering.definitions, location_name: engineering}
  - python_module: {module_name: lake_assets.science.definitions, location_name: science}
"""


def run_ui(settings: Settings, port: int = 3000) -> int:
    """Serves Dagster's page until Ctrl-C or SIGTERM, and gives the exit code.

    Args:
        settings: with an empty `opensearch_url` the local node is joined, or started.
        port: port of 127.0.0.1; the page has no login and is served nowhere else.

    Returns:
        0: it was told to stop, and everything it had started has ended.

    Raises:
        PageFailed: the port is taken, the page does not answer within 180 seconds, or Dagster ended by itself.
        NodeFailed: the local OpenSearch node cannot be started.
    """
    _refuse_taken_port(port)
    home = prepare_dagster_home(settings)
    with _stop_signals_as_interrupt(), contextlib.suppress(KeyboardInterrupt), _opensearch(settings) as opensearch_url:
        environment = child_environment(settings, opensearch_url)
        command = [sys.executable, "-m", "dagster", "dev", "--workspace", str(find_workspace(home))]
        command += ["--host", HOST, "--port", str(port), "--log-level", "warning"]
        log = home / "dagster.log"
        with log.open("wb") as output:
            guard = start_guarded(
                command, env=environment, output=output, stop_signal=signal.SIGINT, grace_seconds=GRACE_SECONDS
            )
        try:
            _wait_for_page(guard, port, log)
            print(f"Dagster's page   http://{HOST}:{port} (Ctrl-C ends it)")
            print(f"OpenSearch       {opensearch_url}")
            print(f"Raw zone         {settings.raw_root}: what is dropped there becomes searchable by itself")
            print(f"Dagster's log    {log}", flush=True)
            for name in broken_locations(port):
                print(f"Code location {name} does not load; the other goes on. Why: {log}", file=sys.stderr, flush=True)
            guard.wait()
            raise PageFailed(f"Dagster ended by itself. {_last_words(log)}")
        finally:
            stop_guarded(guard)
    return 0


def prepare_dagster_home(settings: Settings) -> Path:
    """Makes DAGSTER_HOME with the product's dagster.yaml, and gives its path.

    A dagster.yaml that is already there is replaced only where it is an older one of the product (same first line).
    """
    home = settings.dagster_root
    home.mkdir(parents=True, exist_ok=True)
    wanted = resources.files("lake_assets").joinpath("dagster.yaml").read_text(encoding="utf-8")
    wanted = wanted.replace("{env: DAGSTER_HOME}", json.dumps(str(home)))
    target = home / "dagster.yaml"
    present = target.read_text(encoding="utf-8") if target.exists() else None
    if present is None or (present != wanted and present.partition("\n")[0] == wanted.partition("\n")[0]):
        _write_whole(target, wanted)
    if target.read_text(encoding="utf-8") == wanted:
        _make_event_log(home)
    return home


def _make_event_log(home: Path) -> None:
    """Makes Dagster's event log whole in one step: where it had begun and died, Dagster would take it for made."""
    target = home / "event_log.db"
    if not target.exists():
        from dagster._core.storage.event_log import ConsolidatedSqliteEventLogStorage

        folder = Path(tempfile.mkdtemp(dir=home, prefix=".event_log-"))
        try:
            ConsolidatedSqliteEventLogStorage(str(folder))
            os.link(folder / target.name, target)
        except Exception:
            if not target.exists():  # nobody else was first either
                raise
    for left in home.glob(".event_log-*"):  # also of processes that were killed in the making
        shutil.rmtree(left, ignore_errors=True)


def find_workspace(home: Path) -> Path:
    """Gives workspace.yaml of the working directory, else one in DAGSTER_HOME that names both code locations."""
    here = Path("workspace.yaml").absolute()
    if here.exists():
        return here
    made = home / "workspace.yaml"
    if not made.exists():
        _write_whole(made, WORKSPACE)
    return made


def child_environment(settings: Settings, opensearch_url: str) -> dict[str, str]:
    """Gives the environment of Dagster's processes: this one's, and every setting that differs from its default.

    Paths are absolute, so that a child reads the same settings wherever it runs.
    """
    environment = {**os.environ, "DAGSTER_HOME": str(settings.dagster_root), "LAKE_HOME": str(settings.lake_home)}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        environment[name.upper()] = "" if value is None else str(value)
    environment |= {"OPENSEARCH_URL": opensearch_url, "LAKE_SOURCES": str(settings.lake_sources)}
    environment["DAGSTER_HOME"] = str(settings.dagster_root)
    # Every run is a new process; without compiled modules each would spend seconds on compiling them again.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def broken_locations(port: int) -> list[str]:
    """Asks the page which code locations could not be loaded, and gives their names."""
    request = urllib.request.Request(
        f"http://{HOST}:{port}/graphql",
        data=json.dumps({"query": LOCATIONS_QUERY}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with _direct().open(request, timeout=ANSWER_SECONDS) as answer:
        entries = json.load(answer)["data"]["workspaceOrError"]["locationEntries"]
    loaded = "RepositoryLocation"
    return [entry["name"] for entry in entries if (entry["locationOrLoadError"] or {}).get("__typename") != loaded]


@contextlib.contextmanager
def _opensearch(settings: Settings) -> Iterator[str]:
    if settings.opensearch_url:
        yield settings.opensearch_url
        return
    from lake_assets.index.node import local_node

    with local_node(settings) as url:
        yield url


def _refuse_taken_port(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PageFailed(
                f"Port {port} of {HOST} cannot be used for Dagster's page ({error.strerror}); "
                f"choose another one, for instance: lake ui --port {port + 1 if port < 65535 else 3001}."
            ) from None


def _wait_for_page(guard: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if guard.poll() is not None:
            raise PageFailed(f"Dagster ended while it was starting. {_last_words(log)}")
        with contextlib.suppress(OSError), _direct().open(f"http://{HOST}:{port}/server_info", timeout=ANSWER_SECONDS):
            return
        time.sleep(POLL_SECONDS)
    raise PageFailed(
        f"Dagster's page did not answer on port {port} within {START_SECONDS:.0f} seconds. {_last_words(log)}"
    )


def _direct() -> urllib.request.OpenerDirector:
    """Opens addresses without a proxy, whatever the environment says."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    return "\n".join([f"Its log is {log} and ends so:", *lines])


@contextlib.contextmanager
def _stop_signals_as_interrupt() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_whole(target: Path, text: str) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(target)
