"""Why an object or a record is refused: the classes of reasons, each with its sentence.

What belongs here: reasons and the two exceptions that carry them. A detail never holds text of a document.
"""

from __future__ import annotations

from enum import StrEnum

from lake_assets.errors import LakeError


class Reason(StrEnum):
    """The classes of reasons; the value is what `quarantine/records.reason` holds."""

    BAD_PATH = "bad_path"
    EMPTY_OBJECT = "empty_object"
    BROKEN_COMPRESSION = "broken_compression"
    BOMB = "bomb"
    UNDECODABLE = "undecodable"
    RECORD_TOO_LARGE = "record_too_large"
    BROKEN_JSON = "broken_json"
    NOT_AN_OBJECT = "not_an_object"
    UNCLOSED_QUOTE = "unclosed_quote"
    TOO_MANY_FIELDS = "too_many_fields"
    NO_TEXT = "no_text"

    @property
    def sentence(self) -> str:
        """What the reason means, and what helps."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.BAD_PATH: "The object's name cannot be a path of the lake; rename it.",
    Reason.EMPTY_OBJECT: "The object holds no text at all.",
    Reason.BROKEN_COMPRESSION: "The compressed bytes end early or are damaged; upload the object again.",
    Reason.BOMB: "The object grows more than a thousandfold, over 1 GiB, when it is decompressed.",
    Reason.UNDECODABLE: "The bytes are not text in the encoding declared or recognised; declare another `encoding`.",
    Reason.RECORD_TOO_LARGE: "The record is over 16 MiB; split it.",
    Reason.BROKEN_JSON: "The line is not JSON.",
    Reason.NOT_AN_OBJECT: "The line is JSON, but neither an object nor a string.",
    Reason.UNCLOSED_QUOTE: "A quoted field of the row does not end, or goes on behind its closing quote.",
    Reason.TOO_MANY_FIELDS: "The row has more fields than the header names.",
    Reason.NO_TEXT: "The record has no text, or nothing is left of it once it is cleaned.",
}


class ObjectRefused(LakeError):
    """An object, or what is left of it, cannot be read.

    Args:
        reason: its class.
        detail: the reason as a sentence, without text of a document; default: the sentence of the class.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail or reason.sentence
        super().__init__(self.detail)


class RecordRefused(ObjectRefused):
    """One record cannot become a document; the others of its object can."""
