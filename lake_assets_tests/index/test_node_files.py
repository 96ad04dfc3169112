"""Fetching and unpacking: what is there after it, and every sentence about one that fails."""

from __future__ import annotations

import http.server
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from lake_assets.errors import NodeFailed
from lake_assets.index import node_files
from lake_assets.index.node_files import BREAK_ITERATOR_SERVICE, OPENSEARCH, SERVICES
from lake_assets.settings import Settings
from lake_assets_tests.road import set_environment

ARTIFACT_PATH = f"{OPENSEARCH.group.replace('.', '/')}/{OPENSEARCH.name}/{OPENSEARCH.version}"
ARTIFACT_NAME = f"{OPENSEARCH.name}-{OPENSEARCH.version}.zip"
JUNK_BYTES = 2_000_000
INSTALL = """
import sys
from pathlib import Path
from lake_assets.errors import NodeFailed
from lake_assets.index import node_files
try:
    node_files.install(Path(sys.argv[1]), print, sys.argv[2])
except NodeFailed as error:
    sys.exit(str(error))
"""


@pytest.fixture
def local_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Maven repository in the place of the user's."""
    folder = tmp_path / "m2"
    folder.mkdir()
    set_environment(monkeypatch, {"M2_REPO": str(folder)})
    return folder


@pytest.fixture
def junk(tmp_path: Path) -> Path:
    """A Maven repository in which OpenSearch is something else."""
    folder = tmp_path / "junk"
    (folder / ARTIFACT_PATH).mkdir(parents=True)
    (folder / ARTIFACT_PATH / ARTIFACT_NAME).write_bytes(bytes(JUNK_BYTES))
    return folder


@pytest.fixture
def junk_server(junk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    set_environment(monkeypatch, {"NO_PROXY": "127.0.0.1"})
    handler = partial(QuietHandler, directory=str(junk))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and does not write a line for each."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Stays silent."""

    def log_error(self, format: str, *args: object) -> None:  # noqa: A002
        """Stays silent."""


def test_the_distribution_has_what_java_lacks_and_no_other_service_of_icu() -> None:
    folder = node_files.install(Settings().cache_root, print)
    [providers] = folder.glob("lib/icu4j-localespi-*.jar")
    names = zipfile.ZipFile(providers).namelist()
    assert [name for name in names if name.startswith(SERVICES)] == [BREAK_ITERATOR_SERVICE]
    assert (folder / "lib" / "icu4j-77.1.jar").is_file()
    assert (folder / "modules" / "lang-painless").is_dir()
    assert not (folder / "modules" / "ingest-geoip").exists()


def test_installing_again_does_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    node_files.install(Settings().cache_root, print)
    node_files.install(Settings().cache_root, told.append, "http://127.0.0.1:1")
    assert told == []


def test_without_a_network_the_sentence_says_what_to_check(
    tmp_path: Path, local_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://user:geheim@127.0.0.1:{server.getsockname()[1]}"
    set_environment(monkeypatch, {"HTTPS_PROXY": closed, "https_proxy": closed})
    with pytest.raises(NodeFailed, match=r"^opensearch 3\.6\.0 cannot be fetched .*HTTPS_PROXY") as failure:
        node_files.install(tmp_path / "cache", print)
    assert "geheim" not in str(failure.value)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["opensearch.lock"]


def test_a_repository_that_lacks_the_file_is_the_same_sentence(
    tmp_path: Path, local_repository: Path, junk: Path, junk_server: str
) -> None:
    (junk / ARTIFACT_PATH / ARTIFACT_NAME).unlink()
    with pytest.raises(NodeFailed, match=r"^opensearch 3\.6\.0 cannot be fetched"):
        node_files.install(tmp_path / "cache", print, junk_server)


def test_another_file_than_was_published_is_refused_and_removed(
    tmp_path: Path, local_repository: Path, junk_server: str
) -> None:
    with pytest.raises(NodeFailed, match=rf"^{ARTIFACT_NAME} is not the file .* instead of a91faa1dc1ca\."):
        node_files.install(tmp_path / "cache", print, junk_server)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["opensearch.lock"]


def test_another_file_in_the_local_repository_is_named_and_left_alone(
    tmp_path: Path, junk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, {"M2_REPO": str(junk)})
    with pytest.raises(NodeFailed, match=rf"Remove {junk / ARTIFACT_PATH / ARTIFACT_NAME}, or"):
        node_files.install(tmp_path / "cache", print)
    assert (junk / ARTIFACT_PATH / ARTIFACT_NAME).stat().st_size == JUNK_BYTES


def test_a_disk_that_takes_no_more_is_reported_as_full(
    tmp_path: Path, local_repository: Path, junk_server: str
) -> None:
    limit = JUNK_BYTES // 2
    installed = subprocess.run(
        [sys.executable, "-c", INSTALL, str(tmp_path / "cache"), junk_server],
        env=dict(os.environ),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert installed.stderr.startswith(f"The disk of {tmp_path / 'cache'} is full (File too large): free some space")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["opensearch.lock"]


def test_too_little_free_space_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(NodeFailed, match=r"has \d+ MB free and the local OpenSearch needs 1152921504607 MB"):
        node_files.require_space(tmp_path, 1 << 60)


def test_a_cache_that_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NodeFailed, match=rf"^{tmp_path}/file/cache cannot be used \(Not a directory\)"):
        node_files.install(tmp_path / "file" / "cache", print)


def test_a_lock_that_another_holds_is_waited_for_and_then_named(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "lock"
    with node_files.locked(path, 1.0, told.append):
        started = time.monotonic()
        with (
            pytest.raises(NodeFailed, match=f"Another process has held {path}"),
            node_files.locked(path, 0.3, told.append),
        ):
            pass
    assert time.monotonic() - started >= 0.3
    assert told == ["Another process prepares the local OpenSearch; waiting for it."]
    with node_files.locked(path, 0.0, told.append):
        pass
