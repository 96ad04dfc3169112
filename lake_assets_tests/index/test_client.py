"""The client: how requests are signed and secured, and what failures are told."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import ipaddress
import logging
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from opensearchpy import OpenSearch

from lake_assets.errors import IndexUnavailable, SettingsRefused
from lake_assets.index.client import address, connect, explain_status, explained
from lake_assets.settings import Settings
from lake_assets_tests.servers import free_port

PASSWORD = "correct horse battery staple"
SECRET = "nobody may read this"


class Recorder(ThreadingHTTPServer):
    """A server that keeps what it is asked, and answers the same each time."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stays silent: clients that do not trust it or do not wait cut the connection."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Recording)
        self.status, self.answer = 200, b"{}"
        self.kind = "application/json"
        self.delay_seconds = 0.0
        self.asked: list[tuple[str, dict[str, str], bytes]] = []


class _Recording(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        recorder = self.server
        assert isinstance(recorder, Recorder)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        recorder.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        time.sleep(recorder.delay_seconds)
        self.send_response(recorder.status)
        self.send_header("Content-Type", recorder.kind)
        self.send_header("Content-Length", str(len(recorder.answer)))
        self.end_headers()
        self.wfile.write(recorder.answer)

    do_GET = do_POST

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Stays silent."""


@contextmanager
def recorder(context: ssl.SSLContext | None = None) -> Iterator[Recorder]:
    server = Recorder()
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def url_of(server: Recorder, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.server_address[1]}"


def told(client: OpenSearch) -> str:
    with pytest.raises(IndexUnavailable) as failure, explained(client):
        client.info()
    assert failure.value.__cause__ is None
    assert failure.value.__suppress_context__
    return str(failure.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that signs itself, and a server's context that shows it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("certificate")
    pem, key_file = folder / "ca.pem", folder / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key_file)
    return pem, context


def test_a_real_node_answers(opensearch_url: str) -> None:
    client = connect(Settings(), f"{opensearch_url}/")
    assert client.info()["version"]["number"].startswith("3.")
    assert address(client) == opensearch_url


def test_basic_credentials_go_into_the_header_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings = Settings(opensearch_auth="basic", opensearch_username="anna", opensearch_password=PASSWORD)
    with recorder() as server:
        client = connect(settings, url_of(server))
        client.bulk(body=SECRET.encode())
        server.status, server.answer = 500, SECRET.encode()
        sentence = told(client)
    assert server.asked[0][1]["authorization"] == "Basic " + base64.b64encode(f"anna:{PASSWORD}".encode()).decode()
    for shown in (repr(client), str(client), sentence, caplog.text, address(client)):
        assert PASSWORD not in shown
        assert SECRET not in shown


@pytest.mark.parametrize("service", ["es", "aoss"])
def test_sigv4_signs_the_body(service: str) -> None:
    settings = Settings.model_validate(
        {
            "opensearch_auth": "sigv4", "opensearch_service": service, "aws_region": "eu-central-1",
            "aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": PASSWORD, "aws_session_token": "token",
        }
    )  # fmt: skip
    with recorder() as server:
        client = connect(settings, url_of(server))
        client.transport.perform_request(
            "POST", "/documents/_bulk", params={"filter_path": "errors,items.*.status"}, body=b'{"index":{}}\n{}\n'
        )
    ((path, headers, body),) = server.asked
    assert headers["x-amz-content-sha256"] == hashlib.sha256(body).hexdigest()
    assert f"/eu-central-1/{service}/aws4_request" in headers["authorization"]
    request = AWSRequest("POST", f"http://{headers['host']}{path}", data=body, headers={"Host": headers["host"]})
    request.headers["X-Amz-Content-SHA256"] = headers["x-amz-content-sha256"]
    request.headers["X-Amz-Security-Token"] = "token"
    request.headers["X-Amz-Date"] = request.context["timestamp"] = headers["x-amz-date"]
    signer = SigV4Auth(Credentials("AKIDEXAMPLE", PASSWORD, "token"), service, "eu-central-1")
    signature = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    assert headers["authorization"].endswith(f"Signature={signature}")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"opensearch_auth": "basic"}, "needs OPENSEARCH_USERNAME and OPENSEARCH_PASSWORD"),
        ({"opensearch_auth": "sigv4"}, "needs AWS credentials"),
        ({"opensearch_ca_file": "missing.pem"}, "OPENSEARCH_CA_FILE .*missing.pem is not a readable file"),
    ],
)
def test_credentials_that_are_missing_are_told(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsRefused, match=sentence):
        connect(Settings(**values), "https://127.0.0.1:9200")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (f"https://anna:{'x' * 8}@host:9200", "holds a user or a password"),
        ("ftp://host", "must be http://host:port"), ("host:9200", "must be"), ("http://", "must be"),
        ("http://host:99999", "must be"), ("", "must be"),
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_told(url: str, sentence: str) -> None:
    with pytest.raises(SettingsRefused, match=sentence) as refusal:
        connect(Settings(), url)
    assert "xxxxxxxx" not in str(refusal.value)


def test_a_certificate_is_believed_only_when_its_authority_is_given(certificate: tuple[Path, ssl.SSLContext]) -> None:
    pem, context = certificate
    with recorder(context) as server:
        url = url_of(server, "https")
        sentence = told(connect(Settings(), url))
        assert sentence.startswith(f"The certificate of OpenSearch at {url} is not trusted: self")
        assert "OPENSEARCH_CA_FILE" in sentence
        assert connect(Settings(opensearch_ca_file=pem), url).info() == {}


def test_http_and_https_mixed_up_is_told(opensearch_url: str) -> None:
    client = connect(Settings(), opensearch_url.replace("http://", "https://"))
    assert "does not speak TLS as asked; check http or https" in told(client)


def test_a_server_that_is_down_is_told() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert told(connect(Settings(), url)) == (
        f"OpenSearch at {url} does not answer; start it with `lake opensearch start` or set OPENSEARCH_URL."
    )


def test_a_host_without_an_address_is_told() -> None:
    assert told(connect(Settings(), "http://nobody.invalid:9200")).startswith("The host of OpenSearch at http://nobody")


def test_an_answer_that_does_not_come_is_told() -> None:
    with recorder() as server:
        server.delay_seconds = 0.6
        client = connect(Settings(opensearch_timeout_seconds=0.2), url_of(server))
        assert "did not answer in time; raise OPENSEARCH_TIMEOUT_SECONDS" in told(client)


@pytest.mark.parametrize(
    ("status", "answer", "sentence"),
    [
        (401, b"Unauthorized", "does not accept the credentials; check OPENSEARCH_AUTH"),
        (403, b'{"error":{"type":"security_exception","reason":"SECRET"}}', "forbids the request (security_exception)"),
        (404, b'{"error":{"type":"index_not_found_exception"}}', "does not have what was asked for"),
        (429, b'{"error":{"type":"cluster_block_exception","reason":"SECRET"}}', "its disk is nearly full"),
        (429, b"", "is overloaded"),
        (503, b"<html>SECRET", "cannot serve now: status 503"),
        (418, b'{"error":"SECRET"}', "refused the request: status 418"),
        (400, b'{"error":{"type":"SECRET!","root_cause":[{"reason":"SECRET"}]}}', "refused the request: status 400."),
        (200, b"<html>SECRET", "is not OpenSearch, or its answer is broken"),
    ],
)
def test_a_status_is_told_as_a_sentence(status: int, answer: bytes, sentence: str) -> None:
    with recorder() as server:
        server.status, server.answer = status, answer.replace(b"SECRET", SECRET.encode())
        shown = told(connect(Settings(), url_of(server)))
    assert sentence in shown
    assert SECRET not in shown
    assert url_of(server) in shown


@pytest.mark.parametrize("status", [300, 400, 401, 403, 404, 409, 413, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("kind", ["", "cluster_block_exception", "index_closed_exception", "other_exception"])
def test_every_status_has_a_sentence(status: int, kind: str) -> None:
    sentence = explain_status(status, kind, "http://host:1")
    assert sentence.endswith(".")
    assert "http://host:1" in sentence
