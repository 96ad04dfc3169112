from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import psutil
import pytest
from obstore.store import S3Store

from lake_assets_tests.servers import S3Server, versitygw


def test_a_fresh_bucket_is_empty_and_gives_back_what_it_took(s3: S3Server) -> None:
    bucket = s3.bucket()
    client = s3.client()
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0

    store = S3Store(
        bucket,
        endpoint=s3.endpoint_url,
        access_key_id=s3.access_key,
        secret_access_key=s3.secret_key,
        region=s3.region,
        client_options={"allow_http": True},
    )
    obstore.put(store, "landing/ä b.txt", b"some bytes")

    assert client.get_object(Bucket=bucket, Key="landing/ä b.txt")["Body"].read() == b"some bytes"


def test_the_s3_server_listens_on_loopback_alone(s3: S3Server) -> None:
    port = urlsplit(s3.endpoint_url).port
    listening = []
    for process in psutil.Process().children(recursive=True):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                listening.append(connection.laddr.ip)
    assert listening
    assert set(listening) == {"127.0.0.1"}


def test_versitygw_that_is_absent_is_a_failure_that_names_the_make_target(tmp_path: Path) -> None:
    absent = str(tmp_path / "versitygw")
    with pytest.raises(RuntimeError, match="make test-versitygw"), versitygw(tmp_path, absent):
        pass


def test_a_test_session_that_is_killed_leaves_no_server_behind(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib; from lake_assets_tests.servers import ministack\n"
        "with ministack(pathlib.Path(sys.argv[1])) as server:\n"
        "    print(server.endpoint_url, flush=True); time.sleep(600)"
    )
    repository = Path(__file__).parents[1]
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=repository) as session:
        assert session.stdout
        assert session.stdout.readline().startswith(b"http://127.0.0.1:")
        servers = psutil.Process(session.pid).children(recursive=True)
        assert len(servers) >= 2
        session.kill()

    _, alive = psutil.wait_procs(servers, timeout=15)
    assert alive == []
