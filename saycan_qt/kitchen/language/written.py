"""Sentences that were written one by one, each with where the robot then is and what is to be done: `written.yaml`.

- say: If there's a cola on the table bring it to me, otherwise get me the lime soda.
  cases:                                # or `start` and `do` beside `say`, where there is one
    - {start: {objects: {coke can: table, lime soda: anywhere}}, do: [bring coke can]}
    - {start: {objects: {lime soda: anywhere}, absent: [coke can]}, do: [bring lime soda]}
- {say: All the fruit into the bin., any_order: true, start: {...}, do: [trash apple, trash orange]}
- {say: Boil me an egg., do: cannot}

`start` is as in an instruction file (instructions.py); `do` lists tasks, each a kind of `errands.SLOTS` and its
arguments; `any_order` is said of entries that do the same with things in no order, which are then taken as the scene's
line has them. What is put together from phrases is said in some hundred ways; these in as many as there are sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

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
    any_order: bool = False  # in which the same is done with several things

    def draw(self, objects: Sequence[str], rng: np.random.Generator) -> Asked:
        """One of its cases, in a kitchen as that wants it."""
        case = self.cases[int(rng.integers(len(self.cases)))]
        kitchen = case.start.kitchen(rng, objects)
        if case.parts is None:
            return Asked(kitchen, self.say, serves=False)
        return Asked(kitchen, self.say, as_in_view(case.parts, kitchen) if self.any_order else list(case.parts))


def as_in_view(parts: Sequence[Part], kitchen: SymbolicKitchen) -> list[Part]:
    """Where the same is done with several things, one after the other, they come as in the scene's line."""
    order = {thing: place for place, thing in enumerate(in_view(kitchen))}
    runs = groupby(parts, key=lambda part: (part.kind, {**part.values, "object": ""}))
    return [one for _, run in runs for one in sorted(run, key=lambda p: order.get(p.values.get("object", ""), 0))]


@cache
def load() -> tuple[Written, ...]:
    reader = Reader(SkillLibrary.load(), ())
    with FILE.open(encoding="utf-8") as file:
        return tuple(_written(entry, reader) for entry in yaml.load(file, yaml.CSafeLoader))


def training() -> list[Written]:
    return [one for number, one in enumerate(load()) if number % HELD_OUT]


def held_out() -> list[Written]:
    return [one for number, one in enumerate(load()) if not number % HELD_OUT]


def _written(entry: Mapping[str, Any], reader: Reader) -> Written:
    cases = tuple(_case(case, reader) for case in entry.get("cases", [entry]))
    return Written(entry["say"], cases, entry.get("any_order", False))


def _case(entry: Mapping[str, Any], reader: Reader) -> Case:
    start = reader.start(entry.get("start") or {})
    return Case(start, None if entry["do"] == CANNOT else tuple(map(_part, entry["do"])))


def _part(text: str) -> Part:
    kind, _, rest = text.partition(" ")
    arguments = [argument.strip() for argument in rest.split(",")] if rest else []
    return Part(kind, dict(zip(SLOTS[kind], arguments, strict=True)), {}, "")
