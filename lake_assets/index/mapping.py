"""The index and its alias: settings, a strict mapping from the contracts, and the metric fields that join later.

What belongs here: what OpenSearch must know of the documents before they come. What does not: the documents.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lake_assets.contracts import CleanDocuments, Contract
from lake_assets.errors import ContractBroken, IndexUnavailable
from lake_assets.index.client import address, error_type, explain, explained

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

KEYWORD_CHARS = 8191
"""Longest `keyword` that is indexed: a term over 32,766 bytes refuses its document, and a character has up to 4."""

GC_DELETES = "1h"
"""How long the index remembers the version of a deleted document; after that an older write would bring it back."""

REFRESH_INTERVAL = "5s"
"""How often the index makes by itself searchable what was written; every second costs a fifth of its time in a load."""

_RACE_SECONDS = 5.0

Declared = Mapping[str, Any]
"""The mapping of one field, for instance `{"type": "float"}`."""


def contract_fields(contract: type[Contract] = CleanDocuments) -> dict[str, dict[str, Any]]:
    """Gives field name → mapping of every column that its contract says is indexed."""
    return {
        name: field_mapping(column.metadata["index"])
        for name, column in contract.columns().items()
        if column.metadata and column.metadata.get("index")
    }


def field_mapping(declared: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the mapping of a field: a `keyword` too long for a term is stored and not indexed."""
    if declared.get("type") == "keyword":
        return {"ignore_above": KEYWORD_CHARS, **declared}
    return dict(declared)


def index_body(fields: Mapping[str, Declared], *, shards: int = 1, replicas: str = "0-1") -> dict[str, Any]:
    """Makes settings and mapping of a new index.

    Args:
        fields: field name → mapping, of all fields; nothing else is let in.
        shards: primary shards; one holds some tens of GB.
        replicas: range of copies, as many as there are further nodes (`auto_expand_replicas`).
    """
    return {
        "settings": {
            "number_of_shards": shards,
            "auto_expand_replicas": replicas,
            "gc_deletes": GC_DELETES,
            "refresh_interval": REFRESH_INTERVAL,
            "analysis": {"analyzer": {"default": {"type": "standard"}}},
        },
        "mappings": {
            "dynamic": "strict",
            "properties": {name: field_mapping(declared) for name, declared in fields.items()},
            "_meta": _meta({name: field_mapping(declared) for name, declared in fields.items()}),
        },
    }


def mapping_version(fields: Mapping[str, Declared]) -> str:
    """Gives eight hex digits that differ where any field or its type does, whatever their order."""
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=4).hexdigest()


def _meta(fields: Mapping[str, Declared]) -> dict[str, Any]:
    """Says in the mapping itself which version it has, and which contracts declare its fields."""
    return {"mapping_version": mapping_version(fields), "contracts": ["clean/documents", "enrich/documents"]}


def find_index(client: OpenSearch, alias: str) -> str | None:
    """Finds the physical index that an alias writes to; None when there is no such name.

    Raises:
        IndexUnavailable: no answer; or the name is an index itself, or stands for several with none to write to.
    """
    from opensearchpy import NotFoundError

    with explained(client):
        try:
            found = client.transport.perform_request("GET", f"/_alias/{quote(alias, safe='')}")
        except NotFoundError:
            if client.indices.exists(index=alias):
                raise IndexUnavailable(
                    f"`{alias}` at {address(client)} is an index, where an alias is needed; "
                    "delete it, or set OPENSEARCH_ALIAS to another name."
                ) from None
            return None
    if len(found) == 1:
        return next(iter(found))
    writing = [name for name, told in found.items() if told["aliases"][alias].get("is_write_index")]
    if len(writing) == 1:
        return writing[0]
    raise IndexUnavailable(
        f"The alias `{alias}` at {address(client)} stands for {len(found)} indexes and none of them to write to; "
        "name one as its write index."
    )


def ensure_index(
    client: OpenSearch,
    alias: str,
    fields: Mapping[str, Declared] | None = None,
    *,
    shards: int = 1,
    replicas: str = "0-1",
) -> str:
    """Gives the physical index behind an alias; creates `<alias>-000001` and the alias at once when there is none.

    An index that exists stays as it is; `extend_mapping` adds fields. Two who create at the same time get the same one.

    Args:
        client: of `connect`.
        alias: the name readers use.
        fields: field name → mapping of the metrics, beside what the contract of clean/documents has.
        shards: primary shards of a new index.
        replicas: range of copies of a new index.

    Raises:
        IndexUnavailable: no answer, or the names are taken otherwise.
    """
    from opensearchpy import RequestError

    if found := find_index(client, alias):
        return found
    first = f"{alias}-000001"
    body = index_body({**contract_fields(), **(fields or {})}, shards=shards, replicas=replicas)
    body["aliases"] = {alias: {}}
    with explained(client):
        try:
            client.indices.create(index=first, body=body)
            return first
        except RequestError as refusal:
            kind = error_type(refusal)
            if kind not in ("resource_already_exists_exception", "invalid_alias_name_exception"):
                raise IndexUnavailable(f"{explain(refusal, address(client))} It was to create {first}.") from None
    return _wait_for_other(client, alias, first)


def extend_mapping(client: OpenSearch, alias: str, fields: Mapping[str, Declared]) -> list[str]:
    """Adds the fields that the index behind an alias lacks, of those given and of the contract of clean/documents.

    Returns:
        The names that were added, sorted.

    Raises:
        ContractBroken: a field exists with another type: only a rebuild into a new index changes that.
        IndexUnavailable: no answer, or no such alias.
    """
    from opensearchpy import RequestError

    index = find_index(client, alias)
    if index is None:
        raise IndexUnavailable(f"OpenSearch at {address(client)} has no alias `{alias}`; create its index first.")
    held = read_mapping(client, index)
    fields = {**contract_fields(), **fields}
    for name, declared in fields.items():
        if name in held and held[name].get("type", "object") != declared.get("type", "object"):
            raise ContractBroken(
                f"Field `{name}` of {index} has type {held[name].get('type', 'object')}, and {declared.get('type')} is "
                "declared now; rebuild the index to change it."
            )
    missing = {name: field_mapping(declared) for name, declared in fields.items() if name not in held}
    if not missing:
        return []
    with explained(client):
        try:
            body = {"properties": missing, "_meta": _meta({**held, **missing})}
            client.indices.put_mapping(index=index, body=body)
        except RequestError as refusal:
            named = ", ".join(f"`{name}`" for name in sorted(missing))
            raise ContractBroken(
                f"{index} does not take the new fields {named} ({error_type(refusal) or 'refused'}); "
                "check their declared mapping, or rebuild the index."
            ) from None
    return sorted(missing)


def read_mapping(client: OpenSearch, index: str) -> dict[str, dict[str, Any]]:
    """Gives field name → mapping of an index, or of the one index behind an alias.

    Raises:
        IndexUnavailable: no answer, or no such index.
    """
    with explained(client):
        told = client.indices.get_mapping(index=index)
    return next(iter(told.values()))["mappings"].get("properties", {}) if told else {}


def index_state(client: OpenSearch, alias: str) -> dict[str, Any]:
    """Looks at the index behind an alias, after a refresh: what was written counts.

    Returns:
        The columns of the contract `OpenSearchIndex`; an empty index name and zeros when there is no such alias.

    Raises:
        IndexUnavailable: no answer.
    """
    index = find_index(client, alias)
    if index is None:
        return {"alias": alias, "index": "", "documents": 0, "size_bytes": 0, "fields": 0, "mapping_version": ""}
    with explained(client):
        client.indices.refresh(index=index)
        documents = client.count(index=index)["count"]
        stats = client.indices.stats(index=index, metric="store")
    size_bytes = stats["_all"]["total"]["store"]["size_in_bytes"]
    fields = read_mapping(client, index)
    return {"alias": alias, "index": index, "documents": documents, "size_bytes": size_bytes, "fields": len(fields),
            "mapping_version": mapping_version(fields)}  # fmt: skip


def _wait_for_other(client: OpenSearch, alias: str, first: str) -> str:
    """Waits for the alias of another who created the index at the same time."""
    until = time.monotonic() + _RACE_SECONDS
    while time.monotonic() < until:
        if found := find_index(client, alias):
            return found
        time.sleep(0.1)
    raise IndexUnavailable(
        f"{first} exists at {address(client)} and the alias `{alias}` does not; "
        "`lake index rebuild` makes a whole index and gives that the alias."
    )
