"""Raw text → clean text: repaired, without markup, NFC, without control characters, white space trimmed.

What belongs here: the steps, and finding the few rows that need each slow one. What does not: fields, encodings.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import lru_cache

import polars as pl

from lake_assets.text.markup import is_deep, strip_markup

# Cleaning repeats on what it changed, until nothing changes: an entity may hide a tag, a tag may hide an entity.
MAX_ROUNDS = 8
# Larger pages go straight to the faster extractor: trafilatura needs up to 8 s for this many characters.
MAX_PAGE_CHARS = 1 << 20
# resiliparse searches the main content in quadratic time: 0.04 s for 2,000 tags inside each other, 3 s for 16,000.
MAX_PAGE_DEPTH = 2000

_TERMINAL_ESCAPES = r"\x1b\[[0-9;:?]*[A-Za-z]"
_LINE_ENDS = r"\r\n|[\r\x0b\x0c\u{85}\u{2028}\u{2029}]"
# Control characters; byte order mark; deprecated and interlinear controls; overrides and isolates of direction, which
# make text look like other text. Joiners and direction marks stay: scripts and emoji need them.
_REMOVED = (
    r"[\x00-\x08\x0e-\x1f\x7f\u{80}-\u{9f}\u{202a}-\u{202e}\u{2066}-\u{206f}\u{feff}\u{fff9}-\u{fffc}\u{fffe}\u{ffff}]"
)
_CONTROLS = r"[\x00-\x08\x0b-\x1f\x7f]"
_MARKUP = r"<[A-Za-z/!?][^<>]*>|<!--|&#?[A-Za-z0-9]+;"
_PYTHON_CLASS = re.compile(r"\[[^\]]*\]")


def clean_texts(texts: pl.Series) -> pl.Series:
    """Cleans fragments of text: comments, messages, fields; null stays null.

    Cleaning what is clean changes nothing. Markup that was escaped is markup too: `&lt;b&gt;` disappears like `<b>`.

    Args:
        texts: String.
    """
    return _until_stable(texts, has_markup=True)


def clean_page(page: str) -> tuple[str | None, str]:
    """Gives title and main text of an HTML page, cleaned; the text is empty where nothing is left.

    The main text is trafilatura's; where it finds none, resiliparse's main content, else all visible text.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(page)
    text = _main_text(page) or ""
    for is_main in (True, False):
        if not text.strip() and not (is_main and is_deep(page, MAX_PAGE_DEPTH)):
            text = extract_plain_text(tree, main_content=is_main, alt_texts=False)
    title, text = _until_stable(pl.Series([" ".join((tree.title or "").split()), text]), has_markup=False)
    return title or None, text


def _main_text(page: str) -> str | None:
    import trafilatura

    if len(page) > MAX_PAGE_CHARS:
        return None
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    try:
        return trafilatura.extract(page, fast=True)
    except Exception:  # whatever it stumbles over, the other extractor reads the page
        return None


def _until_stable(texts: pl.Series, has_markup: bool) -> pl.Series:
    cleaned = _clean_once(texts, has_markup)
    changed = (cleaned != texts).fill_null(False).arg_true()
    for _ in range(MAX_ROUNDS):
        if not len(changed):
            break
        before = cleaned.gather(changed)
        after = _clean_once(before, has_markup)
        moved = (after != before).fill_null(False)
        changed = changed.filter(moved)
        if len(changed):
            cleaned = _replaced(cleaned, changed, after.filter(moved))
    return cleaned


def _clean_once(texts: pl.Series, has_markup: bool) -> pl.Series:
    texts = _on(texts, texts.str.contains(_CONTROLS), _without_controls)
    is_ascii = texts.str.len_bytes() == texts.str.len_chars()
    if not is_ascii.all():
        texts = _on(texts, ~is_ascii, _repaired)
    if has_markup:
        texts = _on(texts, texts.str.contains(_MARKUP), _without_markup)
    texts = _on(texts, texts.str.contains("\n", literal=True), _without_blank_lines)
    return texts.str.strip_chars()


def _on(texts: pl.Series, mask: pl.Series, step: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """Applies a step to the rows of a mask."""
    places = mask.fill_null(False).arg_true()
    return _replaced(texts, places, step(texts.gather(places))) if len(places) else texts


def _replaced(texts: pl.Series, places: pl.Series, values: pl.Series) -> pl.Series:
    """Gives a copy with other values at some places: `scatter` itself changes the series it is called on."""
    return texts.clone().scatter(places, values)


def _without_controls(texts: pl.Series) -> pl.Series:
    """Of ASCII; those above 127 are clues to the repair, which comes first."""
    texts = texts.str.replace_all(_TERMINAL_ESCAPES, "").str.replace_all(r"\r\n|[\r\x0b\x0c]", "\n")
    return texts.str.replace_all(_CONTROLS, "")


def _repaired(texts: pl.Series) -> pl.Series:
    texts = _on(texts, texts.str.contains(_mojibake()), _without_mojibake)
    texts = texts.str.replace_all(_LINE_ENDS, "\n").str.replace_all(_REMOVED, "")
    return texts.str.normalize("NFC")


@lru_cache(maxsize=1)
def _mojibake() -> str:
    """Gives ftfy's own test for damaged text, written for polars: 70 times faster, on all rows at once."""
    from ftfy.badness import BADNESS_RE

    return "(?x)" + _PYTHON_CLASS.sub(lambda match: match[0].replace(" ", r"\x20"), BADNESS_RE.pattern)


def _without_mojibake(texts: pl.Series) -> pl.Series:
    from ftfy import TextFixerConfig, fix_text

    config = TextFixerConfig(
        unescape_html=False, fix_latin_ligatures=False, fix_character_width=False, uncurl_quotes=False,
        fix_line_breaks=False, remove_control_chars=False, normalization=None, explain=False,
    )  # fmt: skip
    return pl.Series([fix_text(text, config) for text in texts], dtype=pl.String)


def _without_markup(texts: pl.Series) -> pl.Series:
    return pl.Series([strip_markup(text) for text in texts], dtype=pl.String)


def _without_blank_lines(texts: pl.Series) -> pl.Series:
    """Trims the ends of lines, and keeps one blank line of several."""
    return texts.str.replace_all(r"[^\S\n]+\n", "\n").str.replace_all(r"\n{3,}", "\n\n")
