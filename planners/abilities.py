"""What a robot can do, in a few lines: what a language model is told that plans for robots it was not taught.

Skills: fill the tank; water the {plant}; done
plant: fern, cactus, basil
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice

from skills.library import Skill

MOST_FAMILIES, MOST_VALUES = 60, 40  # that are told; of a larger library the rest is left out
COMPARED = 30  # skills of a family from which its template is found


def abilities(skills: Iterable[Skill]) -> str:
    """Each family's template, and for each placeholder what fills it; ends with the line's end. "" without skills."""
    families: dict[str, list[Skill]] = {}
    values: dict[str, dict[str, None]] = {}
    for skill in skills:
        families.setdefault(skill.family, []).append(skill)
        for slot, value in skill.arguments.items():
            values.setdefault(slot, {})[value] = None
    if not families:
        return ""
    told = [template(family) for family in islice(families.values(), MOST_FAMILIES)]
    lines = ["Skills: " + "; ".join([*told, *(["..."] if len(families) > MOST_FAMILIES else [])])]
    alike: dict[tuple[str, ...], list[str]] = {}  # placeholders that take the same things share a line
    for slot, found in values.items():
        alike.setdefault(tuple(found), []).append(slot)
    for taken, slots in alike.items():
        more = ["..."] if len(taken) > MOST_VALUES else []
        lines.append(f"{', '.join(slots)}: {', '.join([*taken[:MOST_VALUES], *more])}")
    return "\n".join(lines) + "\n"


def template(family: list[Skill]) -> str:
    """How the texts of a family's skills are made: one of them, with slots in the place of its arguments. That which
    most of the skills agree on, as an argument may also stand in a text by chance."""
    return Counter(map(_template, family[:COMPARED])).most_common(1)[0][0]


def _template(skill: Skill) -> str:
    slots = {value: slot for slot, value in skill.arguments.items()}
    if not slots:
        return skill.text
    names = "|".join(re.escape(value) for value in sorted(slots, key=len, reverse=True))
    return re.sub(rf"(?<!\w)({names})(?!\w)", lambda found: f"{{{slots[found[0]]}}}", skill.text)
