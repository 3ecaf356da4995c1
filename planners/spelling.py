"""Slips of the finger, read as what was meant: a word that nobody knows, a slip away from just one of the robot's own.

Spelling(["bring me the bottle"], english).read("bring me the botlte")     # "bring me the bottle"
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")
ENDINGS = ("s", "es", "d", "ed", "ing", "er", "y", "ly")  # of a known word
SHORTEST = 4  # letters of a word that is read otherwise; shorter ones are a slip away from too many
OF_THE_LANGUAGE = 0.75  # share of the robot's own words that are known, below which it is spoken to in another
FOREIGN = 0.4  # a sentence of which more words than this are unknown is in another language, and stays as it is


def words_of(embedder: object) -> frozenset[str]:
    """The whole words that a sentence model was taught; none where its tokenizer does not tell them apart."""
    vocabulary: dict[str, int] = getattr(getattr(embedder, "tokenizer", None), "get_vocab", dict)()
    return frozenset(word for word in vocabulary if word.isalpha())


class Spelling:
    """Reads what people type. texts: in the robot's own words. known: words of a language, which stay as they are;
    without them, or where the robot is spoken to in another language, nothing is read otherwise, as nobody could tell a
    slip from a word that the robot never met."""

    def __init__(self, texts: Iterable[str], known: Collection[str] = ()) -> None:
        own = {word for text in texts for word in WORD.findall(text.lower())}
        fits = len(own.intersection(known)) >= OF_THE_LANGUAGE * len(own)
        self._known = own | set(known) if fits else set()
        self._of_length: dict[int, list[str]] = {}
        for word in sorted(own):
            self._of_length.setdefault(len(word), []).append(word)

    def read(self, text: str) -> str:
        if not self._known:
            return text
        words = WORD.findall(text)
        unknown = {word for word in words if not self._knows(word.lower())}
        if len(unknown) > max(1, FOREIGN * len(words)):
            return text
        return WORD.sub(lambda found: self._meant(found[0]) if found[0] in unknown else found[0], text)

    def _knows(self, word: str) -> bool:
        if word in self._known or not word.isalpha():  # isn't
            return True
        stems = [word.removesuffix(ending) for ending in ENDINGS if word.endswith(ending)]
        return any({stem, f"{stem}e", stem[:-1]} & self._known for stem in stems if len(stem) > 2)  # taking, putting

    def _meant(self, word: str) -> str:
        plain, length = word.lower(), len(word)
        near = [
            own for n in range(length - 1, length + 2) for own in self._of_length.get(n, ()) if is_a_slip(plain, own)
        ]
        if length < SHORTEST or len(near) != 1:
            return word
        return near[0].capitalize() if word[:1].isupper() else near[0]


def is_a_slip(word: str, other: str) -> bool:
    """Do they differ by one letter more, less or other, or by two neighbours changed over?"""
    start, shorter = 0, min(len(word), len(other))
    while start < shorter and word[start] == other[start]:
        start += 1
    one, two = word[start:], other[start:]
    while one and two and one[-1] == two[-1]:
        one, two = one[:-1], two[:-1]
    return len(one) + len(two) == 1 or len(one) == len(two) == 1 or (len(one) == len(two) == 2 and one == two[::-1])
