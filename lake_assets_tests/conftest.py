"""The real servers, and settings that reach them and nothing else. A missing server is a failure, never a skip.

OPENSEARCH_TEST_URL  an OpenSearch to test on; otherwise the product's own local node is started
LAKE_TEST_S3         the S3 server: ministack (default) or versitygw
VERSITYGW            path of versitygw
"""

from __future__ import annotations

import json
import os
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from lake_assets.settings import Settings
from lake_assets_tests.servers import S3Server, ministack, versitygw

STRIPPED = ("AWS_", "LAKE_", "OPENSEARCH_", "DAGSTER_", "RAW_")
GIVEN: pytest.StashKey[Mapping[str, str]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Keeps what the environment said before the tests strip it."""
    config.stash[GIVEN] = dict(os.environ)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as `storage` every test that asks for the S3 server."""
    for item in items:
        if "s3" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.storage)


@pytest.fixture(scope="session", autouse=True)
def isolated_environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Strips settings and credentials, and moves HOME: they can only come through the code under test.

    The cache of the OpenSearch node stays where it is, so that it is fetched once a machine. The environment changes
    here and nowhere else, before there are native threads, which may read it at any time: `road.set_environment`.
    """
    cache = str(Settings(_env_file=None).cache_root)
    for name in [name for name in os.environ if name.startswith(STRIPPED)]:
        del os.environ[name]
    os.environ |= {
        "LAKE_CACHE": cache,
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every test in its own empty folder: no .env, no sources file, no lake of the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def opensearch_url(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory, isolated_environment: None
) -> Iterator[str]:
    """A real OpenSearch: OPENSEARCH_TEST_URL, else a local node that this session owns."""
    if given := pytestconfig.stash[GIVEN].get("OPENSEARCH_TEST_URL"):
        yield given.rstrip("/")
        return
    from lake_assets.index import node

    home = Settings(lake_home=tmp_path_factory.mktemp("node"))
    running = node.start(home, heap="512m", owned=True, java_flags=["-XX:TieredStopAtLevel=1"])
    try:
        yield running.url
    finally:
        node.stop(home)


@pytest.fixture(scope="session")
def s3(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory, isolated_environment: None
) -> Iterator[S3Server]:
    """A real S3 server, named by LAKE_TEST_S3."""
    given = pytestconfig.stash[GIVEN]
    kind, folder = given.get("LAKE_TEST_S3") or "ministack", tmp_path_factory.mktemp("s3")
    if kind not in ("ministack", "versitygw"):
        raise RuntimeError(f"LAKE_TEST_S3 is {kind!r}; it names ministack or versitygw.")
    with ministack(folder) if kind == "ministack" else versitygw(folder, given.get("VERSITYGW", "")) as server:
        yield server


@pytest.fixture
def fresh_alias(opensearch_url: str) -> Iterator[str]:
    """A name that no index of the node has; afterwards every index that begins with it is deleted."""
    alias = f"test-{uuid.uuid4().hex[:12]}"
    yield alias
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{opensearch_url}/_cat/indices/{alias}*?format=json&h=index&expand_wildcards=all") as answer:
        names = [row["index"] for row in json.load(answer)]
    for name in names:
        opener.open(urllib.request.Request(f"{opensearch_url}/{quote(name)}", method="DELETE")).close()


@pytest.fixture
def settings(tmp_path: Path, opensearch_url: str, fresh_alias: str) -> Settings:
    """A fresh file:// lake, with an alias of its own on the session's node."""
    return Settings(lake_home=tmp_path / ".lake", opensearch_url=opensearch_url, opensearch_alias=fresh_alias)


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.storage)])
def lake_settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """The same on both kinds of lake: a folder, and a fresh bucket of the S3 server."""
    if request.param == "file":
        return settings
    server: S3Server = request.getfixturevalue("s3")
    return Settings.model_validate(
        {
            "lake_home": settings.lake_home,
            "opensearch_url": settings.opensearch_url,
            "opensearch_alias": settings.opensearch_alias,
            "lake_url": f"s3://{server.bucket()}/lake",
            **server.settings(),
        }
    )
