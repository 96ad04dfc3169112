"""Starts the S3 servers that the tests run on: MiniStack (from PyPI) and versitygw (built by `make test-versitygw`).

Each listens on a free port of 127.0.0.1, keeps its data in a folder of its own, and ends with the test session, also
when that is killed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from lake_assets.guard import start_guarded, stop_guarded

HOST = "127.0.0.1"
REGION = "us-east-1"
READY_SECONDS = 60.0
ATTEMPTS = 3
"""A free port can be taken by another process before the server binds it."""


@dataclass(frozen=True)
class S3Server:
    """A running S3 server and the only credentials it takes."""

    kind: str
    endpoint_url: str
    access_key: str
    secret_key: str
    region: str = REGION

    def client(self) -> Any:
        """Gives a boto3 client for it, independent of the environment."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}, connect_timeout=5),
        )

    def bucket(self) -> str:
        """Makes a fresh, empty bucket and gives its name."""
        name = f"lake-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def settings(self) -> dict[str, str]:
        """Gives the settings that reach it, by field name."""
        return {
            "aws_endpoint_url": self.endpoint_url,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            "aws_region": self.region,
        }


Launch = Callable[[int, Path], tuple[list[str], dict[str, str]]]
"""Port and data folder → the command, and what its environment has beside PATH and HOME."""


def free_port() -> int:
    """Gives a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def ministack(folder: Path) -> Iterator[S3Server]:
    """Runs MiniStack: S3 without a check of signatures, any credentials."""

    def launch(port: int, data: Path) -> tuple[list[str], dict[str, str]]:
        return [str(Path(sys.executable).with_name("ministack"))], {
            "BIND_HOST": HOST,
            "MINISTACK_HOST": HOST,
            "GATEWAY_PORT": str(port),
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(data / "s3"),
            "PERSIST_STATE": "1",
            "STATE_DIR": str(data / "state"),
        }

    with _running("ministack", launch, folder, access_key="test", secret_key="test") as server:
        yield server


@contextlib.contextmanager
def versitygw(folder: Path, binary: str) -> Iterator[S3Server]:
    """Runs versitygw: S3 over plain files, with signatures and conditional writes checked exactly.

    Args:
        folder: where its data and log go.
        binary: path of the program; empty: `.cache/bin/versitygw` of this repository.

    Raises:
        RuntimeError: the program is not there.
    """
    program = Path(binary or Path(__file__).parents[1] / ".cache" / "bin" / "versitygw").absolute()
    if not program.exists():
        raise RuntimeError(
            f"versitygw is not at {program}; `make test-versitygw` builds it and runs the storage tests."
        )
    access_key, secret_key = uuid.uuid4().hex, uuid.uuid4().hex

    def launch(port: int, data: Path) -> tuple[list[str], dict[str, str]]:
        objects, versions = data / "objects", data / "versions"
        objects.mkdir(parents=True)
        versions.mkdir()
        command = [str(program), "--port", f"{HOST}:{port}", "--quiet", "posix", "--versioning-dir", str(versions)]
        return [*command, str(objects)], {"ROOT_ACCESS_KEY": access_key, "ROOT_SECRET_KEY": secret_key}

    with _running("versitygw", launch, folder, access_key, secret_key) as server:
        yield server


@contextlib.contextmanager
def _running(kind: str, launch: Launch, folder: Path, access_key: str, secret_key: str) -> Iterator[S3Server]:
    for attempt in range(ATTEMPTS):
        port, data = free_port(), folder / f"{kind}-{attempt}"
        data.mkdir(parents=True)
        command, environment = launch(port, data)
        log = data / "log"
        with log.open("wb") as output:
            own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
            guard = start_guarded(command, env={**own, **environment}, cwd=data, output=output)
        server = S3Server(kind, f"http://{HOST}:{port}", access_key, secret_key)
        try:
            if _is_ready(server, guard):
                yield server
                return
        finally:
            stop_guarded(guard)
    raise RuntimeError(f"{kind} did not start; its log:\n{log.read_text(errors='replace')[-2000:]}")


def _is_ready(server: S3Server, guard: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and guard.poll() is None:
        with contextlib.suppress(BotoCoreError, ClientError):
            server.client().list_buckets()
            return True
        time.sleep(0.1)
    return False
