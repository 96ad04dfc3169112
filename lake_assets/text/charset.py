"""Bytes → characters, strictly: what cannot be read is refused, never guessed.

What belongs here: byte order marks, declared encodings, the charset of a page.
"""

from __future__ import annotations

import codecs
import re

from lake_assets.text.refusals import Reason, RecordRefused

_META_BYTES = 4096
_META_CHARSET = re.compile(rb"""<meta[^>]{0,512}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{1,40})""", re.IGNORECASE)
# The labels that browsers read as a larger encoding: https://encoding.spec.whatwg.org/#names-and-labels
_READ_AS = {
    "ascii": "sloppy-windows-1252", "iso8859-1": "sloppy-windows-1252", "cp1252": "sloppy-windows-1252",
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
    "iso8859-9": "cp1254", "tis-620": "cp874",
}  # fmt: skip


def decode(raw: bytes, encoding: str | None = None, is_page: bool = False) -> str:
    """Decodes text: by its byte order mark, else the declared encoding, else UTF-8, else what a page declares.

    Args:
        raw: the bytes of one record.
        encoding: declared for them; None: nothing.
        is_page: the bytes may declare a charset themselves, as HTML does.

    Raises:
        RecordRefused: `undecodable`.
    """
    try:
        if raw.startswith(codecs.BOM_UTF8):
            return raw[3:].decode("utf-8")
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return raw.decode("utf-16")
        if encoding:
            return raw.decode(encoding).removeprefix("\ufeff")
        declared = _declared(raw) if is_page else None
        if declared is None:
            return raw.decode("utf-8")
        return _page(raw, declared)
    except (UnicodeError, LookupError):
        raise RecordRefused(Reason.UNDECODABLE) from None


def _page(raw: bytes, declared: str) -> str:
    """Valid UTF-8 is UTF-8 whatever a page says, unless it uses escapes for other alphabets."""
    if not (declared.startswith("iso2022") and b"\x1b" in raw):
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            pass
    return raw.decode(declared)


def _declared(raw: bytes) -> str | None:
    found = _META_CHARSET.search(raw[:_META_BYTES])
    if found is None:
        return None
    try:
        name = codecs.lookup(found[1].decode("ascii")).name
        "a".encode(name)
    except (LookupError, UnicodeError, TypeError):
        return None
    if name in ("utf-7", "utf-16", "utf-32") or name.startswith(("utf-16", "utf-32")):
        return None
    if name in _READ_AS:
        import ftfy.bad_codecs

        ftfy.bad_codecs.ok()
    return _READ_AS.get(name, name)
