"""Analytic affordances of the scripted skills: what SayCan computes by rule instead of learning.

Affordances of scripted and of learnt skills are multiplied with the same language scores, so these too say how likely
the skill is to do something useful from here: 1 for certainly, 0 for impossible, between for possible but idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skills.errors import LibraryError
from skills.library import Skill

if TYPE_CHECKING:
    from skills.types import Observation

OPERATOR = "operator"  # the place where the person stands
ALREADY_IN_VIEW = 0.5  # `find X` where X is: harmless, seldom needed
ALREADY_THERE = 0.1  # `go to P` at P
RULES = {
    "find": "object",
    "go to": "place",
    "bring it to you": "",
    "put down": "",
    "done": "",
}  # family -> its argument
DONE = 0.1  # the planner has its own setting for `done`; this one is for callers that ask a skill server alone


def connective_affordance(skill: Skill, observation: Observation) -> float:
    """Affordance in [0, 1] of a scripted skill; raises LibraryError for a family that has no rule here."""
    check(skill)
    match skill.family:
        case "find":
            wanted = skill.arguments["object"]
            if wanted == observation.held or wanted not in observation.objects:
                return 0.0
            return ALREADY_IN_VIEW if observation.objects[wanted] == observation.place else 1.0
        case "go to":
            return ALREADY_THERE if skill.arguments["place"] == observation.place else 1.0
        case "bring it to you":
            return float(bool(observation.held) and observation.place != OPERATOR)
        case "put down":
            return float(bool(observation.held))
        case "done":
            return DONE
    raise AssertionError(f"RULES lists {skill.family!r}, which has no case here")


def check(skill: Skill) -> None:
    """Raise LibraryError when a scripted skill has no rule, or lacks the argument that its rule reads."""
    if skill.family not in RULES:
        raise LibraryError(
            f"scripted skill {skill.name!r} is of family {skill.family!r}, which has no affordance rule; "
            f"there are rules for: {', '.join(RULES)}"
        )
    argument = RULES[skill.family]
    if argument and argument not in skill.arguments:
        raise LibraryError(
            f"scripted skill {skill.name!r}: family {skill.family!r} needs the placeholder {{{argument}}}"
        )
