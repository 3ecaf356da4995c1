"""What a sentence names of what a robot knows: a whole skill, word for word, or things.

verbatim("Push the cube to the left!", skills)      # the skill of that text
named("the cup and two plates", ["cup", "plate", "plate rack"])      # ["cup", "plate"]
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from skills.library import Skill

WORDS = ("a", "i")  # of which zone A is only by its case
SHORTEST = 4  # letters of a name that may be several of something; a bus or gas is none


def pattern(names: Iterable[str], flags: int = re.IGNORECASE) -> re.Pattern[str]:
    """Finds these names as whole words, the longest where several fit, whatever their case; without any, nothing."""
    longest = sorted(names, key=len, reverse=True)
    return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest))})(?!\w)" if longest else r"(?!)", flags)


def _folded(text: str) -> str:
    """Without case, where the dotless i is the one with a dot, as for regular expressions."""
    return text.casefold().replace("\u0131", "i")


def renamed(text: str, name: str, other: str) -> str:
    """The text with another name in the place of this one."""

    def instead(found: re.Match[str]) -> str:
        return other + (found[0][len(name) :] if _folded(found[0]).startswith(_folded(name)) else "")

    return pattern(_forms(name), 0 if name.lower() in WORDS else re.IGNORECASE).sub(instead, text)


def named(text: str, names: Iterable[str]) -> list[str]:
    """Those that a text names, each once, in its order; case does not matter, nor articles, nor whether it is one of a
    thing or several."""
    known, finds = _forms_of(frozenset(names))
    found = dict.fromkeys(known[form] for form in finds.findall(_folded(text)))
    return [name for name in found if name.lower() not in WORDS or pattern([name], 0).search(text)]


@lru_cache(maxsize=64)  # a planner asks about all names of its library at each decision
def _forms_of(names: frozenset[str]) -> tuple[dict[str, str], re.Pattern[str]]:
    """What each name may look like in a text, and what finds that."""
    plain = {_folded(name): name for name in sorted(names)}
    forms = {form: name for key, name in plain.items() for form in _forms(key)} | plain
    return forms, pattern(forms)


def _forms(name: str) -> list[str]:
    """An English name and what it looks like as one of several, or as one where it is several; the name comes first."""
    if len(name) == 1:
        return [name]
    bare = re.sub(r"^(the|an?) (?=.)", "", name)
    forms = [name, bare, bare + "s", bare + "es"]
    for one, several in (("y", "ies"), ("fe", "ves"), ("f", "ves")):
        forms += [bare.removesuffix(one) + several] if bare.endswith(one) else []
        forms += [bare.removesuffix(several) + one] if bare.endswith(several) else []
    if len(bare) >= SHORTEST and bare.endswith("s") and not bare.endswith(("ss", "us", "is")):
        forms += [bare[:-1], *([bare[:-2]] if bare.endswith(("ses", "xes", "zes", "ches", "shes", "oes")) else [])]
    return list(dict.fromkeys(forms))


class Verbatim:
    """Finds the skill that a sentence asks for by its own text or name, and nothing else; None where it fits none, or
    several: of one text, or of texts that differ in signs alone, none of which it has."""

    def __init__(self, skills: Iterable[Skill]) -> None:
        given = list(skills)
        self._exact: dict[str, dict[str, Skill]] = {}
        self._plain: dict[str, dict[str, Skill]] = {}
        for skill in given:
            self._exact.setdefault(_same(skill.text), {})[skill.name] = skill
        for skill in given:  # a text counts more than another one's name
            self._exact.setdefault(_same(skill.name), {skill.name: skill})
            for key in filter(None, (plain(skill.name), plain(skill.text))):
                self._plain.setdefault(key, {})[skill.name] = skill

    def __call__(self, text: str) -> Skill | None:
        found = self._exact.get(_same(text)) or self._plain.get(plain(text), {})
        return next(iter(found.values())) if len(found) == 1 else None


def verbatim(text: str, skills: Iterable[Skill]) -> Skill | None:
    """As Verbatim, for once."""
    return Verbatim(skills)(text)


def _same(text: str) -> str:
    return " ".join(text.casefold().split())


def plain(text: str) -> str:
    """Without case, and without what is no letter, digit or mark of a letter around it."""
    folded = text.casefold()
    own = [i for i, sign in enumerate(folded) if sign == "_" or unicodedata.category(sign)[0] in "LNM"]
    return " ".join(folded[own[0] : own[-1] + 1].split()) if own else ""
