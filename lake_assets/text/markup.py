"""Markup in a fragment → its text; text that only looks like markup stays.

A tag counts when HTML knows its name, or when the same text also closes it (`<Pros>…</Pros>`). `I <3 you`, `a < b`,
`List<String>` and `<ann@example.org>` are text. What belongs here: tags and entities of fragments. Pages: `clean`.
"""

from __future__ import annotations

import html
import re
from html.entities import html5

from resiliparse.extract.html2text import extract_plain_text

# Longer fragments are not parsed to a tree: block tags become ends of lines, the others vanish.
MAX_PARSED_CHARS = 1 << 20

_BLOCKS = frozenset(
    re.findall(
        r"\S+",
        """address article aside blockquote body br caption center col colgroup dd details dialog dir div dl dt fieldset
        figcaption figure footer form h1 h2 h3 h4 h5 h6 head header hr html legend li main menu nav ol optgroup option p
        pre search section select summary table tbody td template textarea tfoot th thead title tr ul""",
    )
)
_INLINE = frozenset(
    re.findall(
        r"\S+",
        """a abbr acronym applet area audio b base basefont bdi bdo big blink button canvas cite code data datalist del
        dfn em embed font frame frameset i iframe img input ins kbd label link map mark marquee math meta meter nobr
        noembed noframes noscript object output param picture plaintext progress q rb rp rt rtc ruby s samp script slot
        small source span strike strong style sub sup svg time track tt u var video wbr xmp""",
    )
)
# The tree parser would hide or swallow the content of these.
_UNPARSED = frozenset(
    re.findall(r"\S+", "body details dialog form head html optgroup option select template textarea title")
)
# Parsed as plain blocks: a bullet or an indent would be text that nobody wrote.
_LISTED = frozenset(("dd", "dir", "dl", "dt", "li", "menu", "ol", "ul"))
_VOID = frozenset(re.findall(r"\S+", "area base br col embed hr img input link meta source track wbr"))
_HIDDEN = ("script", "style")
# Stricter than HTML, which takes `a<b && b>c` for a tag: an attribute begins with a letter, and holds no `<`.
_ATTRIBUTES = r"""(?:[\s/]*+[A-Za-z_:@][^\s"'<>/=]*+(?:\s*+=\s*+(?:"[^"<]*+"|'[^'<]*+'|[^\s"'<>]++))?+)*+[\s/]*+>"""
_TAG = re.compile(rf"<(/?)([A-Za-z][A-Za-z0-9:._-]*+)(?=[\s/>]){_ATTRIBUTES}")
_TAG_OR_SPECIAL = re.compile(rf"{_TAG.pattern}|[<&]")
_GAP = "\0"
_GAPS = re.compile(r"(\s?)\0+(\s?)")
_DECLARATION = re.compile(r"<![Dd][Oo][Cc][Tt][Yy][Pp][Ee][^<>]*+>|<\?xml[^<>]*+>")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_ESCAPED_ESCAPES = re.compile(r"&(?:amp;){2,}")
_HIDDEN_OPENING = re.compile(rf"<(script|style)(?=[\s/>]){_ATTRIBUTES}", re.IGNORECASE)
_HIDDEN_CLOSING = {name: re.compile(rf"</{name}(?=[\s/>])[^<>]*+>", re.IGNORECASE) for name in _HIDDEN}


def strip_markup(text: str) -> str:
    """Gives a fragment without tags, comments, scripts and styles, its entities decoded; other text stays as it is.

    Tags that HTML does not know stay where nothing else would: `<Pros></Pros>` is all that its writer said.
    """
    raw = text
    if "<" in text:
        text = _without_hidden(_without_comments(_DECLARATION.sub("", text)))
        paired = _paired_names(text)
        names = {match[2].lower() for match in _TAG.finditer(text)}
        if names & _BLOCKS and len(text) <= MAX_PARSED_CHARS:
            text = _parsed(text, paired)
        elif not names.isdisjoint(_BLOCKS | _INLINE | paired):
            text = _dropped(text, paired)
        if not text.strip() and not paired <= _BLOCKS | _INLINE:
            return raw
    if "&" in text:
        text = _ENTITY.sub(_decoded, _ESCAPED_ESCAPES.sub("&amp;", text))
    return text


def _decoded(match: re.Match[str]) -> str:
    entity = match[0]
    return html.unescape(entity) if entity[1] == "#" or entity[1:] in html5 else entity


def _paired_names(text: str) -> frozenset[str]:
    opened: set[str] = set()
    closed: set[str] = set()
    for match in _TAG.finditer(text):
        (closed if match[1] else opened).add(match[2].lower())
    return frozenset(opened & closed)


def _dropped(text: str, paired: frozenset[str]) -> str:
    """Takes tags away: a block becomes the end of a line, an unknown element at most a space."""

    def replacement(match: re.Match[str]) -> str:
        name = match[2].lower()
        if name in _INLINE:
            return ""
        if name in _BLOCKS:
            return "\n"
        return _GAP if name in paired else match[0]

    return _GAPS.sub(lambda match: match[1] or match[2] or " ", _TAG.sub(replacement, text.replace(_GAP, "")))


def _parsed(text: str, paired: frozenset[str]) -> str:
    """Lays out blocks, lists and tables by a tree of them; only their bare tags reach the parser."""

    def replacement(match: re.Match[str]) -> str:
        if match[0] == "<":
            return "&lt;"
        if match[0] == "&":
            return "&amp;"
        name = match[2].lower()
        if name in _LISTED:
            return f"<{match[1]}div>"
        if name in _BLOCKS and name not in _UNPARSED:
            return f"<{match[1]}{name}>"
        if name in _BLOCKS:
            return "<br>"
        if name in _INLINE:
            return ""
        return " " if name in paired else match[0].replace("&", "&amp;").replace("<", "&lt;")

    bare = _TAG_OR_SPECIAL.sub(replacement, text)
    return extract_plain_text(bare, main_content=False, alt_texts=False, list_bullets=False)


def _without_comments(text: str) -> str:
    kept: list[str] = []
    position = 0
    while (start := text.find("<!--", position)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        kept.append(text[position:start])
        position = end + 3
    return "".join([*kept, text[position:]]) if kept else text


def _without_hidden(text: str) -> str:
    """Takes scripts and styles away, where they end; each closing tag is looked for once."""
    kept: list[str] = []
    position = search_from = 0
    unclosed: set[str] = set()
    while len(unclosed) < len(_HIDDEN) and (opening := _HIDDEN_OPENING.search(text, search_from)):
        name = opening[1].lower()
        closing = None if name in unclosed else _HIDDEN_CLOSING[name].search(text, opening.end())
        if closing is None:
            unclosed.add(name)
            search_from = opening.end()
            continue
        kept.append(text[position : opening.start()])
        position = search_from = closing.end()
    return "".join([*kept, text[position:]]) if kept else text


def is_deep(page: str, limit: int) -> bool:
    """Tells whether more than `limit` elements may be open at once; those that need no closing tag count too."""
    depth = 0
    for match in _TAG.finditer(page):
        depth += -1 if match[1] else match[2].lower() not in _VOID
        if depth > limit:
            return True
    return False
