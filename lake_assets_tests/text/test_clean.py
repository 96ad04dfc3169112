"""Clean text: what is repaired, what disappears, and what must survive."""

from __future__ import annotations

import re

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake_assets.text import clean
from lake_assets.text.clean import clean_page, clean_texts
from lake_assets.text.markup import MAX_PARSED_CHARS, strip_markup

FRAGMENTS = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            ["<b>", "</b>", "<p>", "<br/>", "<script>", "</script>", "<!--", "-->", "&lt;", "&amp;", "&gt;", "&#60;",
             "<X>", "</X>", "<li>", "<td>", "<a href='x", "\n", " ", "\u00a0", "é", "Ã©", "â€œ", "\x85", "\x1b[1m",
             "\u202e", "<", ">"]
        ),
    ),
    max_size=12,
).map("".join)  # fmt: skip


def cleaned(text: str) -> str:
    return clean_texts(pl.Series([text]))[0]


@pytest.mark.parametrize(
    "text",
    ["I <3 you", "a < b and c > d", "List<String> x", "<ann@example.org> wrote", "AT&T", "R&D; more", "<http://a.b/c>",
     "“curly” ‘quotes’", "ﬁne ligature", "ＷＩＤＥ", "x <- y", "if (a<b && b>c)", "نص عربي\u200f", "می\u200cخواهم",
     "👩\u200d🔬", "two  spaces", "a\n\n  indented", "naïve café", "¿qué?", "x<y>z",
     "text <!-- that goes on", "&nothing;"],
)  # fmt: skip
def test_what_only_looks_like_markup_or_damage_survives(text: str) -> None:
    assert cleaned(text) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("<b>bold</b>er", "bolder"),
        ("<Pros>small, light</Pros>", "small, light"),
        ("<Cons> </Cons>", "<Cons> </Cons>"),
        ("<q>one</q><Cons>two</Cons><x:y>three</x:y>", "one two three"),
        ("<p>a</p><p>b</p>", "a\n\nb"),
        ("one<br>two<br />three", "one\ntwo\nthree"),
        ("<ul><li>a<li>b</ul>", "a\nb"),
        ("<p>a < b &amp; List<String></p>", "a < b & List<String>"),
        ("line\n<i>next</i>", "line\nnext"),
        ("<script>alert('x')</script>after<style>p{}</style>", "after"),
        ("before <script>not closed", "before not closed"),
        ("<!-- hidden -->shown", "shown"),
        ("<!DOCTYPE html><html><body>x</body></html>", "x"),
        ("fish &amp; chips &#8364;5 &lt;#&gt;", "fish & chips €5 <#>"),
        ("&lt;b&gt;escaped&lt;/b&gt;", "escaped"),
        ("&amp;amp;amp;lt;i&amp;gt;deep", "deep"),
        ("<select><option>kept</select><textarea>too</textarea>", "kept\n\ntoo"),
        ("<img/src=x onerror=alert(1)/>a<a href=x.html/ >b</a\n>", "ab"),
        ('<a href="x>y">link</a> <img src=x onerror="alert(1)">', "link"),
        ("schÃ¶n â€œquotedâ€\x9d", "schön “quoted”"),
        ("e\u0301", "é"),
        ("a\x00b\x07\ufeffc\u202ed\u2066", "abcd"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("a\r\nb\rc\u2028d\x0ce", "a\nb\nc\nd\ne"),
        ("  a  \n\n\n\n b \u00a0\n", "a\n\n b"),
        (" \n\t ", ""),
    ],
)
def test_damage_markup_and_controls_go(raw: str, text: str) -> None:
    assert cleaned(raw) == text


def test_nulls_order_and_the_given_series_stay() -> None:
    texts = pl.Series("t", ["<b>x</b>", None, "plain", " y ", "Ã©", None])
    before = texts.clone()
    assert clean_texts(texts).to_list() == ["x", None, "plain", "y", "é", None]
    assert texts.equals(before)
    assert clean_texts(pl.Series([], dtype=pl.String)).to_list() == []
    assert clean_texts(pl.Series([None], dtype=pl.String)).to_list() == [None]


@settings(deadline=None, max_examples=150)
@given(st.lists(FRAGMENTS, max_size=8))
def test_cleaning_what_is_clean_changes_nothing(texts: list[str]) -> None:
    once = clean_texts(pl.Series(texts, dtype=pl.String))
    assert clean_texts(once).to_list() == once.to_list()
    assert [cleaned(text) for text in texts] == once.to_list()


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<&"), max_size=60))
def test_words_without_markup_are_never_lost(text: str) -> None:
    ascii_words = re.findall(r"[A-Za-z]{2,}", text.replace("\x1b", " "))
    kept = cleaned(text)
    assert all(word in kept for word in ascii_words)


def test_the_test_for_damage_is_that_of_ftfy() -> None:
    from ftfy.badness import is_bad

    texts = [
        "Ã©",
        "plain",
        "schön",
        "â€œ",
        "vis Ã  vis",
        "Â ",
        "日本語",
        "œuf",
        "\x80",
        "Ð¿Ñ€Ð¸Ð²",
        "été ° C",
        "a Â b",
        "Ñ",
    ]
    found = pl.Series(texts).str.contains(clean._mojibake()).to_list()
    assert found == [is_bad(text) for text in texts]
    assert True in found
    assert False in found


@pytest.mark.parametrize(
    "piece",
    ["<", "<a ", '<a "', "<!--", "<script>", "<style>", "<b>", "<p>", "<x></x>", "&lt;", "&#38;#38;", "amp;",
     "<!doctype", "\u0301", " \n", "<table><tr>", "\x1b[", "Ã©", "<div>"],
)  # fmt: skip
def test_hostile_repetition_ends(piece: str) -> None:
    text = "&" + piece * (200_000 // len(piece))
    assert len(cleaned(text)) <= len(text)


def test_fragments_too_long_to_parse_keep_their_words() -> None:
    text = "<p>word</p>" * (MAX_PARSED_CHARS // 11 + 1)
    assert strip_markup(text).split() == ["word"] * (MAX_PARSED_CHARS // 11 + 1)


def test_a_page_gives_title_and_main_text() -> None:
    paragraph = "This is the article that somebody came to read, and it has several words in it. "
    page = f"""<!doctype html><html><head><title> A  title &amp; more </title><script>var x</script></head><body>
        <nav><a href=/>Home</a><a href=/b>Imprint</a></nav><article><h1>Heading</h1><p>{paragraph * 3}</p>
        <p>{paragraph * 4}&lt;kept&gt;</p></article><footer>Copyright</footer></body></html>"""
    title, text = clean_page(page)
    assert title == "A title & more"
    assert paragraph.strip() in text
    assert "<kept>" in text
    assert "var x" not in text
    assert "Imprint" not in text


@pytest.mark.parametrize(
    ("page", "words"),
    [("<p>short</p>", "short"), ("no markup at all", "no markup at all"), ("<div>" * 30_000 + "deep", "deep"), ("", ""),
     ("<html><body></body></html>", ""), ("\x00<b>\x01odd", "odd")],
)  # fmt: skip
def test_a_page_that_is_hardly_one_keeps_its_words(page: str, words: str) -> None:
    assert clean_page(page)[1].replace("\ufffd", "") == words
