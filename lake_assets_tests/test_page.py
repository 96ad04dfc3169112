"""Dagster's page in a real browser: `make test-page`. The screenshots are in `.cache/page`, to be looked at."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from lake_assets.index.client import connect
from lake_assets.settings import Settings
from lake_assets_tests.dropping import drop, search_until_found
from lake_assets_tests.servers import free_port
from lake_assets_tests.test_ui import page as served

pytestmark = pytest.mark.page

ALIAS = "test-page"
RUN_MS = 120_000
PICTURES = Path(__file__).parents[1] / ".cache" / "page"
ROAD = [
    "raw/objects", "raw/records", "indexing/documents", "opensearch/documents", "clean/documents",
    "metrics/language", "metrics/sentiment", "metrics/size", "enrich/documents", "opensearch/metrics",
]  # fmt: skip
ASSETS = {*ROAD, "opensearch/index", "quarantine/records"}
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
QUERY = """{ assetNodes { assetKey { path } description owners { ... on TeamAssetOwner { team } } kinds groupName
  dependencyKeys { path } repository { location { name } }
  metadataEntries { __typename ... on TableSchemaMetadataEntry { schema { columns { name type description } } } }
  assetMaterializations(limit: 1) { partition metadataEntries { label __typename
    ... on TableSchemaMetadataEntry { schema { columns { name description } } } } } } }"""


@pytest.fixture(scope="module")
def port(opensearch_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Dagster's page over a lake in which one file was dropped and has gone the whole road."""
    folder = tmp_path_factory.mktemp("page")
    settings = Settings(lake_home=folder / ".lake", opensearch_url=opensearch_url, opensearch_alias=ALIAS)
    number = free_port()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with served(settings, number):
            search_until_found(settings, drop(settings, "page.jsonl"))
            wait_for_assets(number)
            yield number
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    """A page of Debian's Chromium; a missing browser is a failure."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert chromium, "There is no chromium; install Debian's package chromium."
    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser.new_page(viewport={"width": 1900, "height": 1000})
        browser.close()


def nodes(port: int) -> dict[str, dict[str, Any]]:
    """Asks the page's own server for every asset."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", json.dumps({"query": QUERY}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        found = json.load(answer)["data"]["assetNodes"]
    return {"/".join(node["assetKey"]["path"]): node for node in found}


def wait_for_assets(port: int) -> None:
    """Waits until every asset has been materialised, nobody having clicked."""
    deadline = time.monotonic() + 180
    while missing := [key for key, node in nodes(port).items() if not node["assetMaterializations"]]:
        assert time.monotonic() < deadline, f"Nothing materialised {missing}."
        time.sleep(1)


def test_both_code_locations_are_loaded(port: int, browser_page: Page) -> None:
    browser_page.goto(f"http://127.0.0.1:{port}/locations")
    for name in ("engineering", "science"):
        browser_page.get_by_text(name, exact=True).first.wait_for()
    browser_page.get_by_text("Loaded").nth(1).wait_for()
    browser_page.screenshot(path=PICTURES / "locations.png")
    assert "Failed" not in browser_page.inner_text("body")


def test_the_lineage_graph_shows_the_road(port: int, browser_page: Page) -> None:
    browser_page.goto(f"http://127.0.0.1:{port}/asset-groups")
    groups = sorted({key.split("/")[0] for key in ASSETS})
    for group in groups:
        browser_page.get_by_text(group, exact=True).first.wait_for()
    browser_page.wait_for_timeout(2_000)
    browser_page.keyboard.press("Alt+e")
    for name in sorted({key.split("/")[1] for key in ASSETS}):
        browser_page.locator("svg, foreignObject").get_by_text(name, exact=True).first.wait_for()
    browser_page.wait_for_timeout(2_000)
    browser_page.screenshot(path=PICTURES / "lineage.png")


def test_the_road_leads_from_raw_objects_to_the_metrics_in_the_index(port: int) -> None:
    found = nodes(port)
    assert set(found) == ASSETS
    reached = {"opensearch/metrics"}
    while more := {"/".join(dep["path"]) for key in reached for dep in found[key]["dependencyKeys"]} - reached:
        reached |= more
    assert reached == set(ROAD)
    locations = {node["repository"]["location"]["name"] for node in found.values()}
    assert locations == {"engineering", "science"}


@pytest.mark.parametrize("key", sorted(ASSETS))
def test_every_asset_has_description_columns_and_owner(port: int, browser_page: Page, key: str) -> None:
    node = nodes(port)[key]
    assert node["description"]
    assert node["owners"]
    assert node["kinds"]
    assert node["groupName"] == key.split("/")[0]
    defined, materialised = node["metadataEntries"], node["assetMaterializations"][0]["metadataEntries"]
    for entries in (defined, materialised):
        columns = [entry["schema"]["columns"] for entry in entries if entry["__typename"] == "TableSchemaMetadataEntry"]
        assert columns
        assert columns[0]
        assert all(column["description"] for column in columns[0])
    assert {"dagster/row_count"} <= {entry["label"] for entry in materialised}

    browser_page.goto(f"http://127.0.0.1:{port}/assets/{key}")
    browser_page.get_by_text(node["description"].split("\n")[0][:40]).first.wait_for()
    browser_page.get_by_text("Columns", exact=True).first.wait_for()
    browser_page.get_by_text(node["owners"][0]["team"], exact=True).first.wait_for()
    browser_page.screenshot(path=PICTURES / f"{key.replace('/', '-')}.png")


def test_the_page_shows_what_differs_and_its_jobs_mend_it(port: int, browser_page: Page, opensearch_url: str) -> None:
    show_index(port, browser_page, "index-equal")
    for shown in (f"{ALIAS}-000001", "size_bytes", "mapping_version", "lake_documents", "differences"):
        browser_page.get_by_text(shown, exact=True).first.wait_for()
    show_checks(port, browser_page, "index-checks-passed", failed=0)

    client = connect(Settings(), opensearch_url)
    [hit] = client.search(index=ALIAS)["hits"]["hits"]
    client.delete(index=ALIAS, id=hit["_id"], params={"refresh": "true"})
    launch(port, browser_page, "index_compare")
    show_checks(port, browser_page, "index-checks-failed", failed=2)
    browser_page.get_by_text("documents_check", exact=True).first.click()
    browser_page.get_by_text("Documents that differ: 1").first.wait_for()
    show_index(port, browser_page, "index-differs")
    browser_page.locator("table table").get_by_text("missing", exact=True).wait_for()

    launch(port, browser_page, "index_repair")
    assert client.get(index=ALIAS, id=hit["_id"])["_source"] == hit["_source"]
    for job, index in (("index_rebuild", f"{ALIAS}-000002"), ("index_rollback", f"{ALIAS}-000001")):
        launch(port, browser_page, job)
        assert list(client.indices.get_alias(name=ALIAS)) == [index]
        assert client.get(index=ALIAS, id=hit["_id"])["_source"] == hit["_source"]
    launch(port, browser_page, "index_compare")
    show_checks(port, browser_page, "index-checks-repaired", failed=0)


def show_index(port: int, browser_page: Page, picture: str) -> None:
    """Opens the page of the asset opensearch/index, scrolled to its metadata."""
    browser_page.goto(f"http://127.0.0.1:{port}/assets/opensearch/index")
    browser_page.get_by_text("lake_documents", exact=True).first.scroll_into_view_if_needed()
    browser_page.screenshot(path=PICTURES / f"{picture}.png")


def show_checks(port: int, browser_page: Page, picture: str, failed: int) -> None:
    """Opens the checks of that asset, and waits until as many have failed and the others passed."""
    browser_page.goto(f"http://127.0.0.1:{port}/assets/opensearch/index?view=checks")
    browser_page.get_by_text("Checks (4)").first.wait_for()
    states = browser_page.get_by_text("Failed", exact=True), browser_page.get_by_text("Succeeded", exact=True)
    for state, count in zip(states, (failed, 4 - failed), strict=True):
        if count:
            state.nth(count - 1).wait_for()
    browser_page.screenshot(path=PICTURES / f"{picture}.png")


def launch(port: int, browser_page: Page, job: str) -> None:
    """Launches a job from the list of jobs, and waits until its run has succeeded."""
    browser_page.goto(f"http://127.0.0.1:{port}/jobs")
    browser_page.get_by_text(job, exact=True).first.click()
    if job == "index_compare":
        browser_page.get_by_role("button", name="Materialize").first.click()
        browser_page.get_by_text("View", exact=True).first.click()
    else:
        browser_page.get_by_text("Launchpad", exact=True).first.click()
        browser_page.get_by_text("Launch Run", exact=True).first.click()
    browser_page.get_by_text("Success", exact=True).first.wait_for(timeout=RUN_MS)
    browser_page.screenshot(path=PICTURES / f"{job}.png")
