"""Sentences that were written one by one, each with where the robot then is and what is to be done: `written.yaml`.

- say: If there's a cola on the table bring it to me, otherwise get me the lime soda.
  cases:                                # or `start` and `do` beside `say`, where there is one
    - {start: {objects: {coke can: table, lime soda: anywhere}}, do: [bring coke can]}
    - {start: {objects: {lime soda: anywhere}, absent: [coke can]}, do: [bring lime soda]}
- {say: Clear the fruit away and shut it., start: {...}, do: ["store apple, top", "store orange, top", close top]}
- {say: Boil me an egg., do: cannot}

`start` is as in an instruction file (instructions.py); `do` lists tasks, each a kind of `errands.SLOTS` and its
arguments. What is put together from phrases is said in some hundred ways; these in as many as there are sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from planners.named import named
from planners.prompts import CANNOT
from saycan_qt.kitchen.language.errands import SLOTS
from saycan_qt.kitchen.language.instructions import Reader, Start
from saycan_qt.kitchen.language.intricate import Asked, Part, in_view
from saycan_qt.kitchen.symbolic import SymbolicKitchen
from skills.library import SkillLibrary

FILE = Path(__file__).with_name("written.yaml")
HELD_OUT = 10  # one sentence in so many is kept from training, and validated on


@dataclass(frozen=True)
class Case:
    """What the robot finds, and what is to be done then."""

    start: Start
    parts: tuple[Part, ...] | None  # None: nothing that the robot can do serves


@dataclass(frozen=True)
class Written:
    """A sentence, and its cases, which are mostly one."""

    say: str
    cases: tuple[Case, ...]

    def draw(self, objects: Sequence[str], rng: np.random.Generator) -> Asked:
        """One of its cases, in a kitchen as that wants it."""
        case = self.cases[int(rng.integers(len(self.cases)))]
        kitchen = case.start.kitchen(rng, objects)
        if case.parts is None:
            return Asked(kitchen, self.say, serves=False)
        return Asked(kitchen, self.say, in_order(case.parts, self.say, kitchen))


def in_order(parts: Sequence[Part], say: str, kitchen: SymbolicKitchen) -> list[Part]:
    """Things that are not named one by one, as in "all the fruit", are taken as they come in the scene's line."""
    spoken = set(named(say, kitchen.where))
    seen, ordered = {thing: place for place, thing in enumerate(in_view(kitchen))}, list(parts)
    first = 0
    while first < len(ordered):
        last = first
        while last < len(ordered) and _alike(ordered[first], ordered[last]):
            last += 1
        run = ordered[first:last]
        if not spoken & {part.values.get("object", "") for part in run}:
            ordered[first:last] = sorted(run, key=lambda part: seen.get(part.values.get("object", ""), len(seen)))
        first = last
    return ordered


def _alike(one: Part, other: Part) -> bool:
    """The same done with two things."""
    return one.kind == other.kind and {**one.values, "object": ""} == {**other.values, "object": ""}


@cache
def load() -> tuple[Written, ...]:
    reader = Reader(SkillLibrary.load(), ())
    with FILE.open(encoding="utf-8") as file:
        entries = yaml.load(file, yaml.CSafeLoader)
    return tuple(
        Written(entry["say"], tuple(_case(case, reader) for case in entry.get("cases", [entry]))) for entry in entries
    )


def of_half(held_out: bool) -> list[Written]:
    return [one for number, one in enumerate(load()) if (number % HELD_OUT == 0) == held_out]


def _case(entry: Mapping[str, Any], reader: Reader) -> Case:
    start = reader.start(entry.get("start") or {})
    return Case(start, None if entry["do"] == CANNOT else tuple(map(_part, entry["do"])))


def _part(text: str) -> Part:
    kind, _, rest = text.partition(" ")
    arguments = [argument.strip() for argument in rest.split(",")] if rest else []
    return Part(kind, dict(zip(SLOTS[kind], arguments, strict=True)), {}, "")
