"""Rules: when a skill is of use, told by what the robot knows of itself and of things. No code is evaluated.

A rule stands behind `when:` in a file of skills, and gives the skill's affordance: 1 where it holds, else 0.

    when: {held: nothing, place: sink, sees: {object}}       # all of these must hold
    when: {not place: [home, sink]}                          # `not` before a key turns it round; a list: any of them
    when:                                                    # cases: the first that holds says the affordance
      - {held: {object}, value: 0}
      - {here: {object}, value: 0.5}                         # possible, but idle
      - {sees: {object}}                                     # 1 where no value is said
    when: always

place    where the robot is           held    what it holds; `nothing`, `anything`
sees     a thing whose place it knows here    a thing that is where the robot is

A placeholder stands for the skill's own argument, as in its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Protocol

KEYS = ("place", "held", "sees", "here")
NOT, VALUE, ALWAYS_SAID = "not ", "value", "always"
NOTHING, ANYTHING = "nothing", "anything"  # held


class Known(Protocol):
    """What a robot knows; skills.types.Observation is one."""

    @property
    def place(self) -> str: ...

    @property
    def held(self) -> str: ...

    @property
    def objects(self) -> Mapping[str, str]: ...

    @property
    def states(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Condition:
    """One thing that must hold."""

    key: str  # of KEYS
    words: tuple[str, ...]  # any of them; may have placeholders
    negated: bool = False

    def holds(self, seen: Known, arguments: Mapping[str, str]) -> bool:
        words = [word.format(**arguments) for word in self.words]
        match self.key:
            case "place":
                found = seen.place in words
            case "held":
                found = (seen.held or NOTHING) in words or (bool(seen.held) and ANYTHING in words)
            case "sees":
                found = any(word in seen.objects for word in words)
            case "here":
                found = bool(seen.place) and any(seen.objects.get(word) == seen.place for word in words)
            case _:
                raise AssertionError(f"KEYS lists {self.key!r}, which has no case here")
        return found is not self.negated


@dataclass(frozen=True)
class Case:
    """An affordance, where all of its conditions hold."""

    conditions: tuple[Condition, ...] = ()
    value: float = 1.0  # in [0, 1]


@dataclass(frozen=True)
class Rule:
    """Cases, of which the first that holds counts; 0 where none does. The same for all skills of a family."""

    cases: tuple[Case, ...]

    def affordance(self, seen: Known, arguments: Mapping[str, str]) -> float:
        """In [0, 1], of a skill with these arguments."""
        for case in self.cases:
            if all(condition.holds(seen, arguments) for condition in case.conditions):
                return case.value
        return 0.0

    @property
    def slots(self) -> set[str]:
        """The arguments that it reads."""
        words = (word for case in self.cases for condition in case.conditions for word in condition.words)
        return {slot for word in words for _, slot, _, _ in Formatter().parse(word) if slot is not None}


ALWAYS = Rule((Case(),))
