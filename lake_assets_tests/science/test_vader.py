"""The quicker VADER gives what vaderSentiment gives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vaderSentiment.vaderSentiment import BOOSTER_DICT, NEGATE, SPECIAL_CASES, SentimentIntensityAnalyzer

from lake_assets.science.vader import Vader

THEIRS, OURS = SentimentIntensityAnalyzer(), Vader()
RULES = [
    "no",
    "or",
    "nor",
    "kind",
    "sort",
    "of",
    "but",
    "never",
    "so",
    "this",
    "without",
    "doubt",
    "least",
    "at",
    "😀",
    "❤",
]
IDIOMS = [word for idiom in SPECIAL_CASES for word in idiom.split()]
WORDS = [*RULES, *IDIOMS, *BOOSTER_DICT, *NEGATE, *list(OURS.lexicon)[::250]]
SHAPES = ["{}", "{}", "{},", "{}!", "{}?", '"{}"']
word = st.builds(lambda shape, text, change: change(shape.format(text)), st.sampled_from(SHAPES),
                 st.sampled_from(WORDS), st.sampled_from([str, str, str.upper, str.title]))  # fmt: skip
sentence = st.builds(lambda words, space: space.join(words), st.lists(word, max_size=10), st.sampled_from([" ", "\n"]))


@settings(max_examples=2000, deadline=None)
@given(sentence | st.text(max_size=200))
def test_every_sentence_has_the_score_that_vader_gives_it(text: str) -> None:
    assert OURS.compound(text) == THEIRS.polarity_scores(text)["compound"]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("VADER is smart, handsome, and funny.", 0.8316),
        ("VADER is VERY SMART, handsome, and FUNNY!!!", 0.9342),
        ("Today only kinda sux! But I'll get by, lol", 0.5249),
        ("Not bad at all", 0.431),
        ("", 0.0),
    ],
)
def test_the_published_examples_have_their_published_scores(text: str, score: float) -> None:
    assert OURS.compound(text) == score
