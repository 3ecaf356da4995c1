"""Robots and what is said to them, written one by one rather than drawn: `written.yaml`, read.

What is drawn (`sentences.py`) is said in some hundred ways; these are said in as many ways as there are sentences.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from planners.named import named
from planners.prompts import CANNOT
from planners.robot_language import abilities
from saycan_qt.learning.pairs import Pair, Scene
from saycan_qt.made_up.wording import slip
from skills.library import Skill, placeholders

FILE = Path(__file__).with_name("written.yaml")
HELD_OUT = 10  # one robot in so many is kept from training, and validated on
ANY_ORDER = 0.5  # share of the times that a robot is told of in which what fills its slots stands in any order
SLIPS = 0.08  # share of sentences with one, beside those that are written


@dataclass(frozen=True)
class Written:
    """A robot, and what is said to it."""

    name: str
    skills: tuple[Skill, ...]
    said: tuple[Pair, ...]

    def draw(self, rng: np.random.Generator) -> tuple[str, Iterator[Pair]]:
        """What it can do, its families in any order, and all that is said to it, in any order, again and again.

        What fills its slots stands in any order, too, half the time. Then nothing is said that is answered in the order
        of the list, such as "all the belts"."""
        *skills, done = self.skills
        said = self.said
        if rng.random() < ANY_ORDER:
            skills, said = [skills[i] for i in rng.permutation(len(skills))], self.ordered
        families = list(dict.fromkeys(skill.family for skill in skills))
        order = {families[i]: place for place, i in enumerate(rng.permutation(len(families)))}
        head = abilities([*sorted(skills, key=lambda skill: order[skill.family]), done])
        return head, (said[i] for _ in count() for i in rng.permutation(len(said)))

    @functools.cached_property
    def ordered(self) -> tuple[Pair, ...]:
        """What is said in which the sentence itself gives the order: things with which the same is done are named."""
        by_text = {skill.text: skill for skill in self.skills}

        def names_them(one: Pair) -> bool:
            steps = [by_text[text] for text in one.plan if text != CANNOT]
            runs = (list(run) for _, run in groupby(steps, key=lambda skill: skill.family))
            values = [[value for skill in run for value in skill.arguments.values()] for run in runs if len(run) > 1]
            return all(named(one.instruction, some) == list(dict.fromkeys(some)) for some in values)

        return tuple(one for one in self.said if names_them(one))


@functools.cache
def load() -> tuple[Written, ...]:
    with FILE.open(encoding="utf-8") as file:
        return tuple(map(_robot, yaml.load_all(file, yaml.CSafeLoader)))


def training() -> list[Written]:
    return [robot for number, robot in enumerate(load()) if number % HELD_OUT]


def held_out() -> list[Written]:
    return [robot for number, robot in enumerate(load()) if not number % HELD_OUT]


def _robot(entry: Mapping[str, Any]) -> Written:
    skills = [skill for template in entry["skills"] for skill in _family(template, entry.get("slots", {}))]
    return Written(entry["robot"], tuple(skills), tuple(map(_said, entry["said"])))


def _family(template: str, slots: Mapping[str, list[str]]) -> Iterator[Skill]:
    names = placeholders(template)
    for values in product(*(slots[name] for name in names)):
        filling = dict(zip(names, map(str, values), strict=True))
        text = template.format(**filling)
        yield Skill(text, template, text, filling)


def _said(entry: Mapping[str, Any]) -> Pair:
    return Pair(entry["say"], tuple(entry["plan"]), Scene(**entry["scene"]) if "scene" in entry else None)


def spoken(text: str, rng: np.random.Generator) -> str:
    """As it is written, in small letters, or with a slip of the pen."""
    text = text.lower() if rng.random() < 0.15 else text
    return slip(text, rng) if rng.random() < SLIPS else text
