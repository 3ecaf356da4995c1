"""Affordances by rule instead of by learning: what SayCan computes for scripted skills.

Affordances of scripted and of learnt skills are multiplied with the same language scores, so these too say how likely
the skill is to do something useful from here: 1 for certainly, 0 for impossible, between for possible but idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from skills.library import Skill, SkillLibrary
from skills.rules import ALWAYS, Rule
from skills.types import Observation

ANALYTIC = "analytic"  # model id of scripted skills' affordances
OPERATOR = "operator"  # the place where the person stands


def connective_affordance(skill: Skill, observation: Observation) -> float:
    """Affordance in [0, 1] by the skill's own rule."""
    return rule_of(skill).affordance(observation, skill.arguments)


def rule_of(skill: Skill) -> Rule:
    """The skill's own; where it has none, the kitchen's for a scripted skill of that family (files from before there
    were rules, and skills that came over the wire); else always."""
    if skill.rule is not None:
        return skill.rule
    rule = ALWAYS if skill.learned else _kitchen().get(skill.family, ALWAYS)
    return rule if rule.slots <= skill.arguments.keys() else ALWAYS


@cache
def _kitchen() -> dict[str, Rule]:
    """Family -> rule."""
    return {skill.family: skill.rule for skill in SkillLibrary.load() if skill.rule is not None}


class Rules:
    """A Critic of skills.types that judges by rules alone, for robots of which nothing was trained to judge."""

    def __init__(self, library: SkillLibrary | None = None) -> None:
        self.library = library or SkillLibrary(())

    def value(self, history: Sequence[Observation], instructions: Sequence[str]) -> np.ndarray:
        values = [connective_affordance(self.library[name], history[-1]) for name in instructions]
        return np.array(values, np.float32)
