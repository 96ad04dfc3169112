from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from dagster._core.run_coordinator import QueuedRunCoordinator
from pydantic import SecretStr

from lake_assets.errors import PageFailed
from lake_assets.settings import Settings
from lake_assets.ui import broken_locations, child_environment, find_workspace, prepare_dagster_home, run_ui
from lake_assets_tests.road import set_environment
from lake_assets_tests.servers import free_port

REPOSITORY = Path(__file__).parents[1]


KILLED = """
import os, signal, sys, time
from pathlib import Path
import dagster
from dagster._core.storage.event_log import ConsolidatedSqliteEventLogStorage
from lake_assets.settings import Settings
from lake_assets.ui import prepare_dagster_home
for number in range(12):
    process = os.fork()
    if not process:
        prepare_dagster_home(Settings(_env_file=None, lake_home=Path(sys.argv[1]) / str(number)))
        os._exit(0)
    time.sleep(0.02 * number)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
"""


def test_the_event_log_is_whole_or_not_there_wherever_its_making_was_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)], cwd=root, check=True, timeout=60)
    for number in range(12):
        made = tmp_path / str(number) / "dagster" / "event_log.db"
        if made.exists():
            with contextlib.closing(sqlite3.connect(made)) as log:
                assert log.execute("SELECT version_num FROM alembic_version").fetchall()
                assert log.execute("SELECT count(*) FROM asset_keys").fetchall() == [(0,)]
        home = prepare_dagster_home(Settings(lake_home=tmp_path / str(number)))
        assert {path.name for path in home.iterdir()} == {"dagster.yaml", "event_log.db"}
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("nothing")) == set()


def test_a_new_dagster_home_is_one_that_dagster_accepts() -> None:
    home = prepare_dagster_home(Settings())
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert not instance.telemetry_enabled
        assert not instance.nux_enabled
        assert instance.run_monitoring_enabled
        assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
        assert instance.run_coordinator.dequeue_interval_seconds == 1


def test_an_older_file_of_the_product_is_replaced_and_one_of_the_users_own_is_kept() -> None:
    settings = Settings()
    file = prepare_dagster_home(settings) / "dagster.yaml"
    wanted = file.read_text()

    file.write_text(wanted.splitlines()[0] + "\ntelemetry: {enabled: true}\n")
    prepare_dagster_home(settings)
    assert file.read_text() == wanted

    file.write_text("telemetry: {enabled: true}\n")
    prepare_dagster_home(settings)
    assert file.read_text() == "telemetry: {enabled: true}\n"


def test_the_folders_workspace_is_taken_and_elsewhere_an_equal_one_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = prepare_dagster_home(Settings())
    made = find_workspace(home)
    assert made.parent == home

    monkeypatch.chdir(REPOSITORY)
    found = find_workspace(home)
    assert found == REPOSITORY / "workspace.yaml"
    assert yaml.safe_load(made.read_text()) == yaml.safe_load(found.read_text())


def test_dagsters_processes_read_the_same_settings_wherever_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        lake_home=Path("here"),
        opensearch_alias="mine",
        lake_batch_objects=7,
        aws_access_key_id="someone",
        aws_secret_access_key=SecretStr("secret"),
    )
    set_environment(monkeypatch, child_environment(settings, "http://127.0.0.1:9"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    told = Settings().model_dump()
    expected = settings.model_dump() | {"opensearch_url": "http://127.0.0.1:9", "dagster_home": settings.dagster_root}
    assert told == expected


def test_dagsters_processes_may_keep_their_compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {"PYTHONDONTWRITEBYTECODE": "1"})
    assert "PYTHONDONTWRITEBYTECODE" not in child_environment(Settings(), "")


def test_a_port_that_is_taken_is_a_sentence_that_names_another_one() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PageFailed, match=rf"Port {port} .* lake ui --port"):
            run_ui(Settings(opensearch_url="http://127.0.0.1:9"), port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_the_page_loads_both_code_locations_and_every_process_ends_with_it(
    number: signal.Signals, settings: Settings
) -> None:
    port = free_port()
    with page(settings, port) as process:
        assert broken_locations(port) == []
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 6  # the guard, dagster dev, the web server, the daemon, two code servers
        listening = [c.laddr for one in family for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert (listening and {address.ip for address in listening}) == {"127.0.0.1"}

        process.send_signal(number)
        assert process.wait(60) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    _, alive = psutil.wait_procs(family, timeout=45)
    assert alive == []


def test_a_page_that_cannot_start_ends_with_its_log_in_the_message(settings: Settings) -> None:
    home = prepare_dagster_home(settings)
    (home / "dagster.yaml").write_text("storage: {nonsense: 1}\n")
    with pytest.raises(PageFailed, match=r"(?s)ended while it was starting.*dagster\.log.*nonsense"):
        run_ui(settings, free_port())


@contextmanager
def page(settings: Settings, port: int) -> Iterator[subprocess.Popen[str]]:
    """Runs `lake ui` as a process of its own until the page answers; it is killed at the end if it still runs."""
    command = [sys.executable, "-m", "lake_assets.cli", "ui", "--port", str(port)]
    environment = {**os.environ, **child_environment(settings, settings.opensearch_url)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert f"http://127.0.0.1:{port}" in process.stdout.readline()
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
