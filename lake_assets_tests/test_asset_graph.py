"""The asset graph: a snapshot of all of it, and what no asset may lack."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
from syrupy.assertion import SnapshotAssertion

from lake_assets.definitions import defs
from lake_assets.engineering.definitions import defs as engineering_defs
from lake_assets.science.definitions import defs as science_defs

KEYS = [
    "raw/objects", "raw/records", "indexing/documents", "opensearch/documents", "clean/documents", "metrics/language",
    "metrics/sentiment", "metrics/size", "enrich/documents", "opensearch/metrics", "opensearch/index",
    "quarantine/records",
]  # fmt: skip


def specs() -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in defs().resolve_all_asset_specs()}


def columns(spec: dg.AssetSpec) -> list[dg.TableColumn]:
    schema = spec.metadata["dagster/column_schema"]
    return (schema.value if isinstance(schema, dg.TableSchemaMetadataValue) else schema).columns


def lineage(spec: dg.AssetSpec) -> dict[str, list[str]]:
    found: Any = spec.metadata.get("dagster/column_lineage")
    found = getattr(found, "value", found)
    deps = found.deps_by_column if found else {}
    return {name: [f"{dep.asset_key.to_user_string()}.{dep.column_name}" for dep in of] for name, of in deps.items()}


def test_the_whole_graph_is_as_it_was(snapshot: SnapshotAssertion) -> None:
    graph = {
        key: {
            "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
            "group": spec.group_name,
            "owners": list(spec.owners),
            "kinds": sorted(spec.kinds),
            "partitions": spec.partitions_def.name
            if isinstance(spec.partitions_def, dg.DynamicPartitionsDefinition)
            else None,
            "is_automated": spec.automation_condition is not None,
            "columns": {column.name: column.type for column in columns(spec)},
        }
        for key, spec in sorted(specs().items())
    }
    assert graph == snapshot


def test_the_assets_are_those_of_the_road() -> None:
    assert sorted(specs()) == sorted(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_every_asset_says_what_it_is_who_owns_it_and_what_each_column_means(key: str) -> None:
    spec = specs()[key]
    assert spec.description
    assert "ne row" in spec.description
    assert spec.group_name == key.split("/")[0]
    assert list(spec.owners) == ["team:science" if key.startswith(("metrics/", "enrich/")) else "team:engineering"]
    assert spec.kinds
    assert columns(spec)
    for column in columns(spec):
        assert column.description, f"{key}.{column.name}"


@pytest.mark.parametrize("key", KEYS)
def test_lineage_names_columns_that_exist_in_assets_above(key: str) -> None:
    found = specs()
    known = {name: {column.name for column in columns(spec)} for name, spec in found.items()}
    above = {key}
    waiting = [key]
    while waiting:
        for dep in found[waiting.pop()].deps:
            name = dep.asset_key.to_user_string()
            waiting += [] if name in above else [name]
            above.add(name)
    for name, upstream in lineage(found[key]).items():
        assert name in known[key]
        for column in upstream:
            table, of = column.rsplit(".", 1)
            assert table in above, f"{key}.{name} from {column}"
            assert of in known[table], f"{key}.{name} from {column}"


def test_the_two_locations_share_no_asset_and_together_are_the_whole() -> None:
    parts = [
        {spec.key.to_user_string() for spec in part().resolve_all_asset_specs() if spec.group_name in groups}
        for part, groups in (
            (engineering_defs, ("raw", "indexing", "opensearch", "clean", "quarantine")),
            (science_defs, ("metrics", "enrich")),
        )
    ]
    assert parts[0] & parts[1] == set()
    assert parts[0] | parts[1] == set(KEYS)


def test_what_automates_runs_by_default() -> None:
    for part in (engineering_defs, science_defs, defs):
        sensors = list(part().sensors or [])
        assert sensors
        assert {sensor.default_status for sensor in sensors} == {dg.DefaultSensorStatus.RUNNING}
    repository = engineering_defs().get_repository_def()
    assert "raw_zone_sensor" in {sensor.name for sensor in repository.sensor_defs}


@pytest.mark.parametrize("part", [engineering_defs, science_defs, defs])
def test_each_location_is_valid_by_itself(part: Any) -> None:
    dg.Definitions.validate_loadable(part())
