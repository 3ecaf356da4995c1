"""What a sentence names of what a robot knows: a whole skill, word for word, or things.

verbatim("Push the cube to the left!", skills)      # the skill of that text
named("the cup and two plates", ["cup", "plate", "plate rack"])      # ["cup", "plate"]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from skills.library import Skill


def pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Finds these names as whole words, the longest where several fit; without any, nothing."""
    longest = sorted(names, key=len, reverse=True)
    return re.compile(rf"\b({'|'.join(map(re.escape, longest))})\b" if longest else r"(?!)")


def renamed(text: str, name: str, other: str) -> str:
    """The text with another name in the place of this one."""
    return re.sub(rf"\b{re.escape(name)}(es|s)?\b", lambda found: other + (found[1] or ""), text, flags=re.IGNORECASE)


def named(text: str, names: Iterable[str]) -> list[str]:
    """Those that a text names, each once, in its order; case does not matter, nor does a plural's ending."""
    known, finds = _forms(frozenset(names))
    return list(dict.fromkeys(known[found] for found in finds.findall(text.casefold())))


@lru_cache(maxsize=64)  # a planner asks about all names of its library at each decision
def _forms(names: frozenset[str]) -> tuple[dict[str, str], re.Pattern[str]]:
    """What each name may look like in a text, singular and plural, and what finds that."""
    plain = {name.casefold(): name for name in sorted(names)}
    forms = {form: name for key, name in plain.items() for form in (key, key + "s", key + "es")} | plain
    return forms, pattern(forms)


def plain(text: str) -> str:
    """Without case, and without what is no letter or digit around it."""
    return " ".join(re.sub(r"^\W+|\W+$", "", text.casefold()).split())


def verbatim(text: str, skills: Sequence[Skill]) -> Skill | None:
    """The skill that a sentence asks for by its own text or name, and nothing else."""
    said = plain(text)
    return next((skill for skill in skills if said and said in (plain(skill.text), plain(skill.name))), None)
