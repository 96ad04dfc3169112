"""The sources file: what is declared of the objects under a prefix, and what is inferred where nothing is.

What belongs here: names of fields and formats. What does not: reading objects.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lake_assets.errors import SourcesRefused

Format = Literal["txt", "jsonl", "csv", "html"]
ROLES = ("key", "text", "title", "author", "created_at")

CONVENTIONS: dict[str, tuple[str, ...]] = {
    "key": ("id", "_id", "uuid", "guid", "key", "document_id", "doc_id", "comment_id", "review_id", "post_id"),
    "text": (
        "text", "body", "content", "message", "comment", "review", "description", "full_text", "selftext", "summary",
    ),
    "title": ("title", "subject", "headline"),
    "author": ("author", "user", "username", "user_name", "by", "from", "screen_name"),
    "created_at": (
        "created_at", "createdat", "created", "created_utc", "date", "datetime", "timestamp", "time",
        "published_at", "published", "pubdate",
    ),
}  # fmt: skip
_ENDINGS: dict[str, Format] = {
    "jsonl": "jsonl", "ndjson": "jsonl", "ldjson": "jsonl",
    "csv": "csv", "tsv": "csv", "tab": "csv", "psv": "csv",
    "txt": "txt", "text": "txt", "md": "txt",
    "html": "html", "htm": "html", "xhtml": "html",
}  # fmt: skip
_COMPRESSED_ENDINGS = ("gz", "zst", "zstd")


class Source(BaseModel):
    """What is declared of the objects under one prefix. None: inferred from the object.

    `key`, `text`, `title`, `author` and `created_at` name fields of the record; of several the first that holds
    something counts. One field may serve two of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(min_length=1)
    prefix: str = Field(min_length=1)
    format: Format | None = None
    key: tuple[str, ...] | None = None
    text: tuple[str, ...] | None = None
    title: tuple[str, ...] | None = None
    author: tuple[str, ...] | None = None
    created_at: tuple[str, ...] | None = None
    encoding: str | None = None
    deletes: bool = False
    unique_keys: bool = False

    @field_validator(*ROLES, mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) and name for name in names):
            return tuple(names)
        raise ValueError("must be the name of a field, or a list of names")

    @field_validator("prefix")
    @classmethod
    def _relative(cls, prefix: str) -> str:
        if prefix.startswith("/"):
            raise ValueError("must not begin with a slash: it is a path under the raw root")
        return prefix

    @field_validator("encoding")
    @classmethod
    def _text_encoding(cls, encoding: str | None) -> str | None:
        try:
            if encoding is not None and not encoding.lower().startswith(("utf-16", "utf_16", "utf16")):
                # Lines and fields are cut as bytes: the encoding must hold ASCII as it is.
                if 'a\n",;\t|'.encode(encoding) != b'a\n",;\t|':
                    raise LookupError
            elif encoding is not None:
                "a".encode(encoding)
        except (LookupError, UnicodeError, TypeError, ValueError):
            raise ValueError("must be UTF-16, or an encoding that contains ASCII, for instance cp1252") from None
        return encoding

    @model_validator(mode="after")
    def _counts_one_way(self) -> Source:
        if self.unique_keys and self.deletes:
            raise ValueError("cannot have `deletes` with `unique_keys`: what an increment lacks, others may hold")
        return self


# The source of every object that no prefix covers.
UNDECLARED = Source.model_construct(
    name="undeclared", prefix="", format=None, key=None, text=None, title=None, author=None, created_at=None,
    encoding=None, deletes=False, unique_keys=False,
)  # fmt: skip


@dataclass(frozen=True)
class Sources:
    """All declared sources, the longest prefix first."""

    declared: tuple[Source, ...] = ()

    def of(self, object_path: str) -> Source:
        """Gives the source with the longest prefix of a path, else one that infers everything.

        A prefix is a string, as in S3: `a/b` covers `a/b.txt` and `a/bc/d.txt`; `a/b/` covers a folder.
        """
        for source in self.declared:
            if object_path.startswith(source.prefix):
                return source
        return UNDECLARED

    def scope(self) -> pl.Expr:
        """Gives what the keys of an object's records are unique in, from a column `path`; String.

        It is the object, hence its path; where the source's keys are unique across its objects, the source's prefix.
        """
        path = pl.col("path")
        if not any(source.unique_keys for source in self.declared):
            return path
        scope: pl.Expr = path
        for source in reversed(self.declared):  # the longest prefix is asked first
            within = pl.lit(source.prefix) if source.unique_keys else path
            scope = pl.when(path.str.starts_with(source.prefix)).then(within).otherwise(scope)
        return scope


def load_sources(path: Path) -> Sources:
    """Reads the sources file; an absent file declares nothing.

    Raises:
        SourcesRefused: the file is not TOML, declares something unknown, or two sources share a name or prefix.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Sources()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SourcesRefused(f"{path} is not TOML: {error}; correct it.") from error
    except OSError as error:
        raise SourcesRefused(f"{path} cannot be read: {error.strerror}; correct LAKE_SOURCES.") from error
    unknown = sorted(set(tables) - {"source"})
    listed = tables.get("source", [])
    if unknown or not isinstance(listed, list) or not all(isinstance(table, dict) for table in listed):
        named = f" unknown: {', '.join(unknown)};" if unknown else ""
        raise SourcesRefused(f"{path} may only hold [[source]] tables;{named} remove or rename the rest.")
    return Sources(tuple(_ordered([_source(table, index, path) for index, table in enumerate(listed, 1)], path)))


def _source(table: dict[str, Any], index: int, path: Path) -> Source:
    try:
        return Source(**table)
    except (ValidationError, TypeError) as error:
        named = repr(table["name"]) if isinstance(table.get("name"), str) else f"number {index}"
        raise SourcesRefused(f"{path}: source {named} is refused: {_sentence(error)}.") from error


def _sentence(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return "a name of it is not a string"
    faults = []
    for fault in error.errors(include_input=False, include_url=False):
        where = str(fault["loc"][0]) if fault["loc"] else "it"
        if fault["type"] == "extra_forbidden":
            faults.append(f"`{where}` is unknown; known are {', '.join(Source.model_fields)}")
        elif fault["type"] == "missing":
            faults.append(f"`{where}` is missing")
        else:
            faults.append(f"`{where}` {fault['msg'].removeprefix('Value error, ')}")
    return "; ".join(faults)


def _ordered(sources: Iterable[Source], path: Path) -> list[Source]:
    ordered = sorted(sources, key=lambda source: (-len(source.prefix), source.prefix))
    for column in ("name", "prefix"):
        values = [getattr(source, column) for source in ordered]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise SourcesRefused(f"{path} declares the {column} {', '.join(map(repr, twice))} twice; keep one.")
    return ordered


def format_of_name(object_path: str) -> Format | None:
    """Gives the format that the ending of a name tells, before `.gz` and `.zst`; None when it tells nothing."""
    parts = object_path.rsplit("/", 1)[-1].lower().split(".")
    while len(parts) > 1 and parts[-1] in _COMPRESSED_ENDINGS:
        parts.pop()
    return _ENDINGS.get(parts[-1]) if len(parts) > 1 else None


def format_of_content(head: str) -> Format:
    """Gives the format that the beginning of a content tells: JSON objects by line, a page, else text."""
    start = head.lstrip()[:64].lower()
    if start.startswith("{"):
        return "jsonl"
    return "html" if start.startswith(("<!doctype html", "<html")) else "txt"
