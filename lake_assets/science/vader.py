"""VADER's compound score, to the digit what vaderSentiment gives, in a fifth of its time.

vaderSentiment lowers every word of the text again for each word of its lexicon, and looks for negations in a list.
Here a word that is not in the lexicon costs one look-up. Its lexicon, constants and rules are used as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from vaderSentiment.vaderSentiment import (
    BOOSTER_DICT,
    C_INCR,
    N_SCALAR,
    NEGATE,
    SentimentIntensityAnalyzer,
    SentiText,
    allcap_differential,
    normalize,
    scalar_inc_dec,
)

DISTANCE_FACTORS = (1.0, 0.95, 0.9)  # of a booster one, two, three words before
NEGATIONS = frozenset(NEGATE)


class Vader(SentimentIntensityAnalyzer):
    """The analyzer, asked for the compound score alone."""

    def __init__(self) -> None:
        super().__init__()
        self._emoji = frozenset(self.emojis)

    def compound(self, text: str) -> float:
        """Scores a text from -1 to 1; 0 where no word of the lexicon is in it."""
        text = self._described(text)
        words = list(map(SentiText._strip_punc_if_word, text.split()))
        lowered = [word.lower() for word in words]
        places = [place for place, word in enumerate(lowered) if word in self.lexicon and word not in BOOSTER_DICT]
        if not places:
            return 0.0
        valences: list[float] = [0.0] * len(words)
        is_mixed_case = allcap_differential(words)
        for place in places:
            if lowered[place] != "kind" or lowered[place + 1 : place + 2] != ["of"]:
                valences[place] = self._valence(words, lowered, place, is_mixed_case)
        if "but" in lowered:
            valences = self._but_check(words, valences)
        total = float(sum(valences))
        emphasis = self._punctuation_emphasis(text)
        return round(normalize(total + emphasis if total > 0 else total - emphasis if total < 0 else total), 4)

    def _described(self, text: str) -> str:
        """Puts the descriptions of emoji in their place."""
        if self._emoji.isdisjoint(text):
            return text.strip()
        described, is_after_space = [], True
        for character in text:
            if character in self.emojis:
                described.append(self.emojis[character] if is_after_space else f" {self.emojis[character]}")
                is_after_space = False
            else:
                described.append(character)
                is_after_space = character == " "
        return "".join(described).strip()

    def _valence(self, words: Sequence[str], lowered: Sequence[str], place: int, is_mixed_case: bool) -> float:
        """Weighs a word of the lexicon by the case it is in and the three words before it."""
        valence = self.lexicon[lowered[place]]
        before = [lowered[place - back] if place >= back else "" for back in (1, 2, 3)]
        if lowered[place] == "no" and place + 1 < len(words) and lowered[place + 1] in self.lexicon:
            valence = 0.0
        if "no" in before[:2] or (before[2] == "no" and before[0] in ("or", "nor")):
            valence = self.lexicon[lowered[place]] * N_SCALAR
        if is_mixed_case and words[place].isupper():
            valence += C_INCR if valence > 0 else -C_INCR
        for back, factor in enumerate(DISTANCE_FACTORS, 1):
            if place >= back and lowered[place - back] not in self.lexicon:
                if lowered[place - back] in BOOSTER_DICT:
                    valence += scalar_inc_dec(words[place - back], valence, is_mixed_case) * factor
                valence = _negated(valence, before, back)
                if back == 3:
                    valence = self._special_idioms_check(valence, lowered[place - 3 : place + 3], 3)
        return self._least_check(valence, lowered[max(0, place - 2) : place + 1], min(place, 2))


def _negated(valence: float, before: Sequence[str], back: int) -> float:
    """Turns a valence round after a negation, and strengthens it after `never so`; without a doubt, it stays."""
    word = before[back - 1]
    nearer = before[: back - 1]
    if back == 2 and word == "never" and nearer[0] in ("so", "this"):
        return valence * 1.25
    if back == 3 and ((word == "never" and nearer[1] in ("so", "this")) or nearer[0] in ("so", "this")):
        return valence * 1.25
    if word == "without" and "doubt" in nearer:
        return valence
    return valence * N_SCALAR if word in NEGATIONS or "n't" in word else valence
