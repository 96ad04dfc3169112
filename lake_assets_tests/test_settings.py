from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from lake_assets.errors import SettingsRefused
from lake_assets.settings import Settings
from lake_assets_tests.road import set_environment

EXAMPLE = Path(__file__).parents[1] / ".env.example"
OF_THE_MACHINE = {"lake_workers"}
"""Fields whose default depends on the machine: the example leaves their value empty."""


def test_the_example_names_every_setting_with_its_meaning_and_default() -> None:
    blocks = re.findall(r"^# (.+)\n#([A-Z_]+)=(.*)$", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [(name, meaning, value) for meaning, name, value in blocks] == [
        (name.upper(), field.description, "" if name in OF_THE_MACHINE else _as_text(field.default))
        for name, field in Settings.model_fields.items()
    ]


def test_loading_the_example_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    assert Settings() == Settings(_env_file=None)


def test_loading_the_example_with_every_line_uncommented_changes_nothing(tmp_path: Path) -> None:
    text = re.sub(r"^#([A-Z_]+=)", r"\1", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (tmp_path / ".env").write_text(text, encoding="utf-8")
    assert Settings() == Settings(_env_file=None)


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("OPENSEARCH_ALIAS=of-the-file\nLAKE_BATCH_OBJECTS=7\n")
    set_environment(monkeypatch, {"OPENSEARCH_ALIAS": "of-the-environment"})
    settings = Settings()
    assert (settings.opensearch_alias, settings.lake_batch_objects) == ("of-the-environment", 7)


def test_without_any_setting_everything_lies_in_one_folder(tmp_path: Path) -> None:
    settings = Settings()
    assert settings.lake_root == (tmp_path / ".lake" / "lake").as_uri()
    assert settings.raw_root == f"{settings.lake_root}/landing"
    assert settings.dagster_root == tmp_path / ".lake" / "dagster"
    assert settings.opensearch_alias == "documents"


def test_one_key_without_the_other_is_refused_with_a_sentence() -> None:
    with pytest.raises(SettingsRefused, match="go together"):
        _ = Settings(aws_access_key_id="someone").storage_options


def test_an_s3_server_of_ones_own_is_reached_by_path_and_over_http() -> None:
    options = Settings(aws_endpoint_url="http://127.0.0.1:4566").storage_options
    assert options["aws_allow_http"] == "true"
    assert options["aws_virtual_hosted_style_request"] == "false"
    assert "aws_access_key_id" not in options


def test_a_refused_value_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, {"LAKE_URL": "ftp://user:hunter2@somewhere/lake"})
    with pytest.raises(ValidationError) as refusal:
        Settings()
    assert "lake_url" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_a_secret_is_not_shown() -> None:
    settings = Settings(opensearch_password=SecretStr("hunter2"))
    assert "hunter2" not in repr(settings)


def test_no_test_changes_the_environment_that_native_threads_read() -> None:
    changes = re.compile(r"\b(?:setenv|delenv|putenv)\(|\benviron\[[^]]+\] =|\benviron\.(?:update|pop|setdefault)\(")
    files = Path(__file__).parent.rglob("*.py")
    assert [str(file) for file in files if changes.search(file.read_text(encoding="utf-8"))] == []


def _as_text(default: object) -> str:
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    return "" if default is None else str(default)
