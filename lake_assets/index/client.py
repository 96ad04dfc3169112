"""The client of OpenSearch, and what its failures mean as sentences.

What belongs here: connecting, and translating failures. What does not: what is sent, and what is done about a failure.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from lake_assets.errors import IndexUnavailable, SettingsRefused
from lake_assets.settings import Settings

if TYPE_CHECKING:
    from opensearchpy import JSONSerializer, OpenSearch

CONNECT_SECONDS = 5.0
"""Longest wait for a connection; an answer may take OPENSEARCH_TIMEOUT_SECONDS."""

POOL_CONNECTIONS = 8
"""Connections kept open; more threads than that would reconnect for each request."""

_ERROR_TYPE = re.compile(r"[a-z][a-z_]{0,79}")


def connect(settings: Settings, url: str) -> OpenSearch:
    """Makes a client; nothing is sent yet.

    Certificates are always verified. The client never repeats a request by itself: who sends decides. The logger of
    opensearch-py is silenced, as it prints whole bodies, which are the users' text.

    Args:
        settings: authentication, certificate authority and timeout.
        url: http(s)://host:port, for instance OPENSEARCH_URL or the address of the local node.

    Raises:
        SettingsRefused: the address or the credentials cannot be used.
    """
    import urllib3
    from opensearchpy import OpenSearch

    from lake_assets.index.connection import TimelyConnection

    _check_address(url)
    for name in ("opensearch", "opensearchpy.trace"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    options: dict[str, Any] = {}
    if urlsplit(url).scheme == "https":
        options |= {"verify_certs": True, "ca_certs": _ca_file(settings)}
    return OpenSearch(
        [url.rstrip("/")],
        http_auth=_authentication(settings),
        connection_class=TimelyConnection,
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=settings.opensearch_timeout_seconds),
        max_retries=0,
        retry_on_status=(),
        pool_maxsize=POOL_CONNECTIONS,
        serializer=_serializer(),
        **options,
    )


def _serializer() -> JSONSerializer:
    """Makes the reader of answers: orjson reads a bulk answer in half the time, the standard library what is odd."""
    from opensearchpy import JSONSerializer

    class AnswerSerializer(JSONSerializer):
        def loads(self, s: str) -> Any:
            try:
                return orjson.loads(s)
            except orjson.JSONDecodeError:
                return super().loads(s)

    return AnswerSerializer()


def address(client: OpenSearch) -> str:
    """Gives scheme://host:port of the server a client talks to, without credentials."""
    for host in client.transport.hosts:
        scheme = "https" if host.get("use_ssl") or host.get("scheme") == "https" else "http"
        name = str(host.get("host", "localhost"))
        port = host.get("port", 443 if scheme == "https" else 9200)
        return f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"
    return "its address"


@contextmanager
def explained(client: OpenSearch) -> Generator[None]:
    """Turns every failure of the client inside the block into IndexUnavailable with a sentence.

    The original failure is not chained: its text may hold text of documents.
    """
    from opensearchpy import OpenSearchException

    try:
        yield
    except OpenSearchException as failure:
        raise IndexUnavailable(explain(failure, address(client))) from None


def explain(error: BaseException, url: str = "its address") -> str:
    """Says in a sentence what a failure of the client means and what to do; never text of a document or a secret.

    Args:
        error: what opensearch-py or urllib3 raised.
        url: scheme://host:port of the server.
    """
    from opensearchpy import exceptions

    if is_tls_failure(error):
        return _explain_tls(error, url)
    if isinstance(error, exceptions.ConnectionTimeout):
        return f"OpenSearch at {url} did not answer in time; raise OPENSEARCH_TIMEOUT_SECONDS or look at its load."
    if isinstance(error, exceptions.ConnectionError):
        return _explain_connection(error, url)
    if isinstance(error, exceptions.SerializationError):
        return f"What answers at {url} is not OpenSearch, or its answer is broken; check OPENSEARCH_URL."
    if isinstance(error, exceptions.TransportError) and isinstance(error.status_code, int):
        return explain_status(error.status_code, error_type(error), url)
    return f"The request to OpenSearch at {url} failed with {type(error).__name__}."


def explain_status(status: int, kind: str, url: str) -> str:
    """Says in a sentence what an HTTP status of OpenSearch means and what to do.

    Args:
        status: the status of the answer or of one of its items.
        kind: the server's class of the error, empty when it named none.
        url: scheme://host:port of the server.
    """
    told = f" ({kind})" if kind else ""
    if kind == "cluster_block_exception":
        if status == 429:
            return (
                f"OpenSearch at {url} has set the index read-only because its disk is nearly full; "
                "free space there, then send again."
            )
        return f"OpenSearch at {url} has set the index or the cluster read-only; lift the block, then send again."
    if kind == "index_closed_exception":
        return f"The index at {url} is closed; open it, then send again."
    if status == 401:
        return (
            f"OpenSearch at {url} does not accept the credentials{told}; "
            "check OPENSEARCH_AUTH, OPENSEARCH_USERNAME and OPENSEARCH_PASSWORD."
        )
    if status == 403:
        return f"OpenSearch at {url} forbids the request{told}; give this user or role the right to read and write."
    if status == 404:
        return f"OpenSearch at {url} does not have what was asked for{told}; check OPENSEARCH_ALIAS."
    if status == 413:
        return f"The request is larger than OpenSearch at {url} takes."
    if status == 429:
        return f"OpenSearch at {url} is overloaded{told}; wait, or give it more room."
    if status >= 500:
        return f"OpenSearch at {url} cannot serve now: status {status}{told}; look at its log."
    return f"OpenSearch at {url} refused the request: status {status}{told}."


def error_type(error: BaseException) -> str:
    """Gives the server's class of an error, for instance `index_not_found_exception`, or nothing.

    The answer is the server's own, so only what looks like a class of errors is let through.
    """
    info = getattr(error, "info", None) if len(error.args) > 2 else None
    told = info.get("error") if isinstance(info, dict) else None
    return clean_type(told.get("type") if isinstance(told, dict) else None)


def clean_type(kind: object) -> str:
    """Gives a server's class of error when it looks like one, else nothing."""
    return kind if isinstance(kind, str) and _ERROR_TYPE.fullmatch(kind) else ""


def is_refused_connection(error: BaseException) -> bool:
    """Tells whether no connection came about: nobody listens, or the host has no address, or it does not react."""
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    return any(isinstance(cause, NewConnectionError | ConnectTimeoutError) for cause in _causes(error))


def is_tls_failure(error: BaseException) -> bool:
    """Tells whether the two sides did not agree on an encrypted connection; sending again does not help."""
    from opensearchpy import SSLError

    return any(isinstance(cause, ssl.SSLError | SSLError) for cause in _causes(error))


def _explain_connection(error: BaseException, url: str) -> str:
    from urllib3.exceptions import NameResolutionError, NewConnectionError

    causes = _causes(error)
    if any(isinstance(cause, NameResolutionError) for cause in causes):
        return f"The host of OpenSearch at {url} has no address; check OPENSEARCH_URL."
    if any(isinstance(cause, NewConnectionError) for cause in causes):
        return f"OpenSearch at {url} does not answer; start it with `lake opensearch start` or set OPENSEARCH_URL."
    if is_refused_connection(error):
        return f"OpenSearch at {url} cannot be reached; check OPENSEARCH_URL and the network."
    return f"OpenSearch at {url} cut the connection; look at its log."


def _explain_tls(error: BaseException, url: str) -> str:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = re.sub(r"[^\w ,.:'-]", "", str(getattr(cause, "verify_message", "")))[:120]
            return (
                f"The certificate of OpenSearch at {url} is not trusted: {why}; "
                "set OPENSEARCH_CA_FILE to the authority that signed it."
            )
    return f"OpenSearch at {url} does not speak TLS as asked; check http or https in OPENSEARCH_URL."


def _causes(error: BaseException) -> list[BaseException]:
    """Lists a failure of opensearch-py and those of urllib3, ssl and the system below it, outermost first."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        error = waiting.pop(0)
        if all(error is not known for known in found):
            found.append(error)
            below = [*error.args, getattr(error, "reason", None), error.__cause__]
            waiting += [item for item in below if isinstance(item, BaseException)]
    return found


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise SettingsRefused(
            "OPENSEARCH_URL holds a user or a password; put them into OPENSEARCH_USERNAME and OPENSEARCH_PASSWORD."
        )
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise SettingsRefused("OPENSEARCH_URL must be http://host:port or https://host:port.")


def _ca_file(settings: Settings) -> str | None:
    if settings.opensearch_ca_file is None:
        return None
    file = settings.opensearch_ca_file.expanduser()
    try:
        ssl.create_default_context(cafile=str(file))
    except (OSError, ssl.SSLError):
        raise SettingsRefused(f"OPENSEARCH_CA_FILE {file} is not a readable file of PEM certificates.") from None
    return str(file)


def _authentication(settings: Settings) -> Any:
    if settings.opensearch_auth == "basic":
        password = settings.opensearch_password.get_secret_value()
        if not settings.opensearch_username or not password:
            raise SettingsRefused("OPENSEARCH_AUTH=basic needs OPENSEARCH_USERNAME and OPENSEARCH_PASSWORD.")
        return settings.opensearch_username, password
    if settings.opensearch_auth == "sigv4":
        return _signer(settings)
    return None


def _signer(settings: Settings) -> Any:
    """Signs with the keys of the settings, or with those of the default AWS chain, which renew themselves."""
    import boto3
    from opensearchpy import Urllib3AWSV4SignerAuth

    session = boto3.Session(
        aws_access_key_id=settings.aws_access_key_id or None,
        aws_secret_access_key=settings.aws_secret_access_key.get_secret_value() or None,
        aws_session_token=settings.aws_session_token.get_secret_value() or None,
        region_name=settings.aws_region,
    )
    credentials = session.get_credentials()
    if credentials is None:
        raise SettingsRefused(
            "OPENSEARCH_AUTH=sigv4 needs AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "a profile, or a role."
        )
    return Urllib3AWSV4SignerAuth(credentials, settings.aws_region, settings.opensearch_service)
