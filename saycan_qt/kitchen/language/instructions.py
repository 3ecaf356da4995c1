"""What people say, where the robot then is, and what they want: an instruction file, read and checked.

instructions:
  - say: bring me the coke can
    family: single primitive
    half: tuning                          # tuning | held out: never looked at while prompts and examples are chosen
    start:                                # optional, as is each part
      robot: table                        # a place; random where it is left out
      holds: apple                        # nothing where it is left out
      objects: {coke can: table, tea: top drawer, sponge: anywhere}    # two to six others are drawn beside these
      open: [top]                         # drawers; the others are closed
      absent: [orange]                    # objects that are not drawn
    goal:                                 # all must hold at the end; or, in its place, `impossible: true`
      - {object: coke can, at: operator}

Conditions: {object: NAME, at: PLACE}, {object: NAME, in: DRAWER}, {object: NAME, near: OTHER}, {open: DRAWER},
{closed: DRAWER}, {holding: NAME | nothing}, {robot: PLACE}, {count: N, at: PLACE}; `one of: [NAME, ...]` may stand for
`object` before `at` and `in`. `SymbolicKitchen.holds` and `saycan_qt.kitchen.goals.holds` say what each means.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml

from saycan_qt.kitchen.symbolic import IN_HAND, NOTHING, WORKTOPS, SymbolicKitchen
from skills import files
from skills.connective import OPERATOR
from skills.library import SkillLibrary

INSTRUCTIONS = Path(__file__).with_name("instructions.yaml")
DEVELOPMENT = Path(__file__).with_name("development.yaml")  # to learn from; nothing in it is held out
FAMILIES = (  # SayCan's
    "single primitive",
    "noun synonyms",
    "verb synonyms",
    "structured language",
    "embodiment",
    "crowd-sourced",
    "long horizon",
)
TUNING, HELD_OUT = "tuning", "held out"
ANYWHERE = "anywhere"  # on a random worktop
OTHERS = (2, 6)  # objects beside those that an entry names
ROOM = 4  # a worktop with so many objects gets no other at random
CONDITIONS = (
    ("object", "at"),
    ("one of", "at"),
    ("object", "in"),
    ("one of", "in"),
    ("object", "near"),
    ("open",),
    ("closed",),
    ("holding",),
    ("robot",),
    ("count", "at"),
)

Condition = Mapping[str, Any]


class InstructionsError(ValueError):
    """What is wrong with an instruction file, one line for each mistake."""


@dataclass(frozen=True)
class Start:
    """What an entry says of the kitchen at the start."""

    robot: str = ""  # a place; "": a random one
    holds: str = ""
    objects: Mapping[str, str] = field(default_factory=dict)  # object -> worktop, "top drawer" and so on, or "anywhere"
    open: tuple[str, ...] = ()  # drawers
    absent: tuple[str, ...] = ()  # objects


@dataclass(frozen=True)
class Instruction:
    """One entry."""

    number: int  # in its file, from 1
    say: str
    family: str
    half: str
    start: Start
    goal: tuple[Condition, ...]  # empty where it is impossible
    impossible: bool = False  # nothing that the robot can do serves it

    def kitchen(self, rng: np.random.Generator, objects: Iterable[str]) -> SymbolicKitchen:
        """A kitchen as the entry wants it at the start. What is drawn at random counts neither for nor against the
        goal."""
        start = self.start
        where = {name: place for name, place in start.objects.items() if place != ANYWHERE}
        if start.holds:
            where[start.holds] = IN_HAND
        others = [name for name in objects if name not in {*start.objects, *start.absent, start.holds}]
        count = rng.integers(OTHERS[0], OTHERS[1] + 1)
        drawn = [name for name, place in start.objects.items() if place == ANYWHERE]
        for name in [*drawn, *map(str, rng.permutation(others)[:count])]:
            allowed = [place for place in WORKTOPS if not self._wanted(name, place)] or list(WORKTOPS)
            roomy = [place for place in allowed if list(where.values()).count(place) < ROOM]
            where[name] = str(rng.choice(roomy or allowed))
        elsewhere = [p for p in (*WORKTOPS, OPERATOR) if not any(c.get("robot") == p for c in self.goal)]
        place = start.robot or str(rng.choice(elsewhere))
        order = rng.permutation(list(where))
        return SymbolicKitchen({str(n): where[str(n)] for n in order}, place, set(start.open))

    def _wanted(self, name: str, place: str) -> bool:
        """Would an object at this place count for, or against, the goal?"""
        return any(c.get("at") == place and ("count" in c or name in named(c)) for c in self.goal)


def named(condition: Condition) -> tuple[str, ...]:
    """The objects of which one must be brought about: a single one, or `one of` several."""
    one = condition.get("object") or condition.get("holding")
    return (one,) if one and one != NOTHING else tuple(condition.get("one of", ()))


def load(path: Path, library: SkillLibrary) -> list[Instruction]:
    """Read and check; raises InstructionsError with a line for each entry that is wrong."""
    try:
        document = files.from_yaml(files.read(path))
    except OSError as error:
        raise InstructionsError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InstructionsError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from None
    entries = document.get("instructions") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InstructionsError(f"{path}: it needs a list `instructions` that is not empty")
    reader, found, mistakes = _Reader(library), list[Instruction](), list[str]()
    first: dict[str, int] = {}  # sentence -> the entry that has it
    for number, entry in enumerate(entries, 1):
        try:
            instruction = reader.instruction(number, entry)
            same = first.setdefault(_plain(instruction.say), number)
            if same != number:
                _refuse(f"entry {same} says the same; leave one of them out")
            found.append(instruction)
        except _Mistake as mistake:
            say = f" ({entry['say']!r})" if isinstance(entry, dict) and isinstance(entry.get("say"), str) else ""
            mistakes.append(" ".join(f"{path}: entry {number}{say}: {mistake}".split()))
    if mistakes:
        raise InstructionsError("\n".join(mistakes))
    return found


def _plain(say: str) -> str:
    return " ".join(re.findall(r"\w+", say.lower()))


class _Mistake(Exception):
    """What is wrong with one entry."""


def _refuse(reason: str) -> NoReturn:
    raise _Mistake(reason)


def _one_of(what: str, value: object, allowed: Sequence[str]) -> str:
    """The value, if it is allowed."""
    if isinstance(value, str) and value in allowed:
        return value
    nearest = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)
    _refuse(f"no {what} {value!r}; did you mean {nearest[0]!r}?")


def _mapping(what: str, value: object, allowed: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"{what} must be `key: value` lines")
    for key in value:
        _one_of(f"key of {what}:", key, allowed)
    return value


def _list(what: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        _refuse(f"{what} must be a list, such as [{value}]")
    return value


class _Reader:
    """Turns entries into instructions for what a library's robot can do."""

    def __init__(self, library: SkillLibrary) -> None:
        self.objects, self.drawers = library.objects, library.values("drawer")
        self.places = (*library.values("place"), OPERATOR)
        self.spots = (*WORKTOPS, *(f"{drawer} drawer" for drawer in self.drawers), ANYWHERE)
        moves = library.families.get("move near", ())
        self.pairs = [(skill.arguments["object"], skill.arguments["target"]) for skill in moves]

    def instruction(self, number: int, entry: object) -> Instruction:
        keys = _mapping("an entry", entry, ("say", "family", "half", "start", "goal", "impossible"))
        say = keys.get("say")
        if not isinstance(say, str) or not _plain(say):
            _refuse("`say` must be the sentence that a person says")
        family = _one_of("family", keys.get("family"), FAMILIES)
        half = _one_of("half", keys.get("half"), (TUNING, HELD_OUT))
        start = self.start(keys.get("start") or {})
        impossible = keys.get("impossible", False)
        if not isinstance(impossible, bool):
            _refuse(f"`impossible` must be true or false, not {impossible!r}")
        if impossible == ("goal" in keys):
            _refuse("it needs a `goal`, or `impossible: true`, and not both")
        goal = () if impossible else tuple(self.goal(keys["goal"], start))
        instruction = Instruction(number, say, family, half, start, goal, impossible)
        if goal and instruction.kitchen(np.random.default_rng(0), self.objects).reached(goal):
            _refuse("its goal is met at the start already")
        return instruction

    def start(self, value: object) -> Start:
        keys = _mapping("`start`", value, ("robot", "holds", "objects", "open", "absent"))
        where = _mapping("`objects`", keys.get("objects", {}), self.objects)
        start = Start(
            robot=_one_of("place", keys["robot"], self.places) if "robot" in keys else "",
            holds=_one_of("object", keys["holds"], self.objects) if "holds" in keys else "",
            objects={name: _one_of(f"spot for the {name}:", spot, self.spots) for name, spot in where.items()},
            open=tuple(_one_of("drawer", d, self.drawers) for d in _list("`open`", keys.get("open", []))),
            absent=tuple(_one_of("object", o, self.objects) for o in _list("`absent`", keys.get("absent", []))),
        )
        if start.holds in start.objects:
            _refuse(f"the {start.holds} is in the hand; `objects` places it elsewhere")
        if twice := {*start.objects, start.holds}.intersection(start.absent):
            _refuse(f"the {min(twice)} is `absent`; another line of `start` places it")
        return start

    def goal(self, value: object, start: Start) -> Iterator[Condition]:
        present = {*start.objects, start.holds}
        for condition in _list("`goal`", value) or [{}]:
            condition = _mapping("a condition", condition, sorted({key for keys in CONDITIONS for key in keys}))
            if not any(set(condition) == set(keys) for keys in CONDITIONS):
                known = "; ".join(" + ".join(keys) for keys in CONDITIONS)
                _refuse(f"no condition is made of {' + '.join(map(str, condition)) or 'nothing'}; there are: {known}")
            self.check(condition)
            things = named(condition)
            if things and not present.intersection(things):
                _refuse(f"`start` does not say where the {' or the '.join(things)} is, which the goal needs")
            if "near" in condition and condition["near"] not in present:
                _refuse(f"`start` does not say where the {condition['near']} is, which the goal needs")
            yield condition

    def check(self, condition: Condition) -> None:
        for key, value in condition.items():
            match key:
                case "one of":
                    for name in _list("`one of`", value) or [""]:
                        _one_of("object", name, self.objects)
                case "object" | "near":
                    _one_of("object", value, self.objects)
                case "holding":
                    _one_of("object", value, (*self.objects, NOTHING))
                case "at" | "robot":
                    _one_of("place", value, self.places)
                case "in" | "open" | "closed":
                    _one_of("drawer", value, self.drawers)
                case "count":
                    if type(value) is not int or value < 0:
                        _refuse(f"`count` must be a whole number, not {value!r}")
        if "near" in condition:
            self.check_pair(condition["object"], condition["near"])

    def check_pair(self, name: str, other: str) -> None:
        """Nearness has no direction, so either may be what is moved."""
        beside = {*(b for a, b in self.pairs if a == name), *(a for a, b in self.pairs if b == name)}
        if other not in beside:
            nearest = difflib.get_close_matches(other, sorted(beside), n=1, cutoff=0.0)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "no skill moves it near anything"
            _refuse(f"no skill moves the {name} near {other!r}; {hint}")
