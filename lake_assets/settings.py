"""What the environment may say, each with its meaning.

Read when something is started, never at import. `.env` in the working directory counts too; the environment wins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from lake_assets.errors import SettingsRefused


class Settings(BaseSettings):
    """The settings of one process; every field is an environment variable of the same name in capitals.

    Raises:
        pydantic.ValidationError: a value has the wrong form; it names the variable and not its value.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    lake_home: Path = Field(
        Path(".lake"), description="Folder of everything local: the default lake, Dagster's storage, the node's data."
    )
    lake_cache: Path | None = Field(
        None,
        description="Folder of what is fetched once for a user (OpenSearch); default: lake_assets in the user's cache.",
    )
    lake_url: str = Field(
        "", description="Root of the tables: file:///… or s3://bucket/prefix; default: <LAKE_HOME>/lake."
    )
    raw_url: str = Field(
        "", description="Root where objects land; only read, except by `lake ingest`; default: <LAKE_URL>/landing."
    )
    lake_sources: Path = Field(Path("sources.toml"), description="File that declares what lands; may be absent.")
    lake_batch_objects: int = Field(1000, ge=1, description="Most objects in one batch.")
    lake_batch_bytes: int = Field(1 << 30, ge=1, description="Bytes of objects after which a batch is full.")
    lake_batch_wait_seconds: float = Field(
        2.0, ge=0, description="Seconds an object must have rested before a batch that is not full claims it."
    )
    lake_workers: int = Field(
        os.cpu_count() or 1, ge=1, description="Processes that clean and measure text; default: one a core."
    )
    lake_ids: Literal["source", "counter", "opensearch"] = Field(
        "source",
        description="How ids are chosen: source (path and key), counter or opensearch; never to be changed for a lake.",
    )
    lake_counter: str = Field(
        "",
        pattern=r"^(|dynamodb://[A-Za-z0-9_.-]{3,255}|file:///.+)$",
        description="Where counted ids come from: dynamodb://table or file:///path; default: a file in LAKE_HOME.",
    )
    opensearch_url: str = Field(
        "", description="OpenSearch, http(s)://host:port; empty: the local node that the product starts itself."
    )
    opensearch_alias: str = Field("documents", pattern=r"^[a-z0-9][a-z0-9_.-]*$", description="Name that readers use.")
    opensearch_auth: Literal["none", "basic", "sigv4"] = Field("none", description="How requests are signed.")
    opensearch_username: str = Field("", description="User of basic authentication.")
    opensearch_password: SecretStr = Field(SecretStr(""), description="Password of basic authentication.")
    opensearch_ca_file: Path | None = Field(None, description="Certificate authority that signed the server, as PEM.")
    opensearch_service: Literal["es", "aoss"] = Field(
        "es", description="AWS service name for sigv4: es (domains) or aoss (serverless)."
    )
    opensearch_timeout_seconds: float = Field(60.0, gt=0, description="Longest wait for one answer.")
    aws_region: str = Field("us-east-1", description="Region of S3 and of sigv4.")
    aws_endpoint_url: str = Field(
        "", description="Another server for S3 and DynamoDB, for instance http://127.0.0.1:4566."
    )
    aws_access_key_id: str = Field("", description="Empty: the default chain (profile, role of the machine or pod).")
    aws_secret_access_key: SecretStr = Field(SecretStr(""), description="Goes with AWS_ACCESS_KEY_ID.")
    aws_session_token: SecretStr = Field(SecretStr(""), description="Of temporary credentials.")
    dagster_home: Path | None = Field(None, description="Dagster's storage; default: <LAKE_HOME>/dagster.")

    @field_validator("lake_url", "raw_url")
    @classmethod
    def _root(cls, url: str) -> str:
        if url and urlsplit(url).scheme not in ("file", "s3"):
            raise ValueError("must begin with file:/// or s3://")
        return url.rstrip("/")

    @field_validator("lake_home", "lake_cache", "dagster_home", "lake_sources")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and path.expanduser().absolute()

    @cached_property
    def lake_root(self) -> str:
        """LAKE_URL, or its default."""
        return self.lake_url or (self.lake_home / "lake").as_uri()

    @cached_property
    def raw_root(self) -> str:
        """RAW_URL, or its default."""
        return self.raw_url or f"{self.lake_root}/landing"

    @cached_property
    def dagster_root(self) -> Path:
        """DAGSTER_HOME, or its default."""
        return self.dagster_home or self.lake_home / "dagster"

    @cached_property
    def cache_root(self) -> Path:
        """LAKE_CACHE, or its default: lake_assets in $XDG_CACHE_HOME, ~/Library/Caches (macOS) or ~/.cache."""
        home = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
        return self.lake_cache or Path(os.environ.get("XDG_CACHE_HOME") or home).expanduser().absolute() / "lake_assets"

    @cached_property
    def storage_options(self) -> dict[str, str]:
        """What obstore, deltalake and polars need to reach S3; the one place credentials come from.

        Keys that are empty are left out, so that the default AWS chain applies.
        """
        endpoint = self.aws_endpoint_url
        if bool(self.aws_access_key_id) != bool(self.aws_secret_access_key.get_secret_value()):
            raise SettingsRefused("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together; set both or neither.")
        options = {
            "aws_region": self.aws_region,
            "aws_access_key_id": self.aws_access_key_id,
            "aws_secret_access_key": self.aws_secret_access_key.get_secret_value(),
            "aws_session_token": self.aws_session_token.get_secret_value(),
            "aws_endpoint_url": endpoint,
            "aws_allow_http": "true" if endpoint.startswith("http://") else "",
            "aws_virtual_hosted_style_request": "false" if endpoint else "",
        }
        return {name: value for name, value in options.items() if value}


_given: Settings | None = None


def current_settings() -> Settings:
    """Gives the settings of this process: those it was given, else what the environment says now."""
    return _given or Settings()


@contextmanager
def given(settings: Settings) -> Iterator[None]:
    """Gives this process its settings, inside the block; the environment stays as it is, as other threads read it."""
    global _given
    before, _given = _given, settings
    try:
        yield
    finally:
        _given = before
