"""Words with a slip of the finger, read as what was meant: a word that nobody knows, one letter away from exactly one
of the robot's own.

    Spelling(["bring me the apple"], english).read("brnig me the appel")     # "bring me the apple"
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

SHORTEST = 4  # letters; shorter words are near too many others
WORD = re.compile(r"[^\W\d_]+")


class Spelling:
    """Reads what people type. texts: in the robot's own words, which unknown ones are read as. known: words of a whole
    language, which stay as they are; without them nobody could tell a slip from a word that the robot never met."""

    def __init__(self, texts: Iterable[str], known: Collection[str] = ()) -> None:
        own = {word for text in texts for word in WORD.findall(text.lower())}
        self._known = own | set(known)
        self._of_length: dict[int, list[str]] = {}
        for word in sorted(own):
            if len(word) >= SHORTEST:
                self._of_length.setdefault(len(word), []).append(word)

    def read(self, text: str) -> str:
        return WORD.sub(lambda found: self._word(found[0]), text) if self._known else text

    def _word(self, word: str) -> str:
        plain = word.lower()
        if plain in self._known or len(plain) < SHORTEST or not plain.isascii():
            return word
        lengths = range(len(plain) - 1, len(plain) + 2)
        near = [own for length in lengths for own in self._of_length.get(length, ()) if is_a_slip(plain, own)]
        if len(near) != 1:
            return word
        return near[0].capitalize() if word[:1].isupper() else near[0]


def is_a_slip(word: str, other: str) -> bool:
    """Do they differ by one letter more, less or other, or by two neighbours changed over?"""
    start = 0
    while start < min(len(word), len(other)) and word[start] == other[start]:
        start += 1
    one, two = word[start:], other[start:]
    while one and two and one[-1] == two[-1]:
        one, two = one[:-1], two[:-1]
    return len(one) + len(two) == 1 or len(one) == len(two) == 1 or (len(one) == len(two) == 2 and one == two[::-1])
