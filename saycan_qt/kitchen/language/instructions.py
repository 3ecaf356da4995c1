"""What people say, where the robot then is, and what they want: an instruction file, read and checked.

families: [negation, count]               # optional: what its sentences are told apart by; without it SayCan's seven
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
  - say: if the top drawer is open, close it
    family: crowd-sourced
    half: tuning
    cases:                                # in the place of start and goal: each is a plan of its own
      - {start: {open: [top]}, goal: [{closed: top}]}
      - {start: {open: [bottom]}, goal: [{open: bottom}, {closed: top}]}

A goal must not hold at the start, where nobody could tell a plan from none; but it may in some of several cases, where
right is to leave things as they are.

{object: NAME, at: PLACE}                 at a worktop, in the trash can, or with the operator
{object: NAME, in: DRAWER}
{object: NAME, near: OTHER}
{one of: [NAME, ...], at: PLACE}          any of these; `in`, too
{count: N, at: PLACE}                     exactly N things, whichever; `in`, too
{count: N, one of: [NAME, ...], at: PLACE}    exactly N of these, whatever else is there; `in`, too
{open: DRAWER}, {closed: DRAWER}
{holding: NAME | nothing}
{robot: PLACE}                            it is there at the end
{visited: PLACE}                          it has come there at some time; to be there at the start counts not
{not: {...}}                              one of these must not hold

`at` and `in` may be lists of which any will do. `SymbolicKitchen.holds` and `saycan_qt.kitchen.goals.holds` say what
each means.
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

from saycan_qt.kitchen.symbolic import IN_HAND, NOTHING, WORKTOPS, SymbolicKitchen, each
from skills import files
from skills.connective import OPERATOR
from skills.library import SkillLibrary

INSTRUCTIONS = Path(__file__).with_name("instructions.yaml")
DEVELOPMENT = Path(__file__).with_name("development.yaml")  # to learn from; nothing in it is held out
HARD = Path(__file__).with_name("hard.yaml")  # sentences of the kinds that small language models fail at
UNKNOWN = Path(__file__).with_name("unknown.yaml")  # of things and places that the robot does not know
AMBIGUOUS = Path(__file__).with_name("ambiguous.yaml")  # whose goal the words do not tell
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
    ("visited",),
    ("count", "at"),
    ("count", "in"),
    ("count", "one of", "at"),
    ("count", "one of", "in"),
    ("not",),
)

CASE = ("start", "goal", "impossible")  # keys of a case, or of an entry that has but one

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

    def kitchen(
        self, rng: np.random.Generator, objects: Iterable[str], goal: Sequence[Condition] = ()
    ) -> SymbolicKitchen:
        """A kitchen as this wants it. What is drawn at random counts neither for nor against the goal."""
        where = {name: place for name, place in self.objects.items() if place != ANYWHERE}
        if self.holds:
            where[self.holds] = IN_HAND
        others = [name for name in objects if name not in {*self.objects, *self.absent, self.holds}]
        count = rng.integers(OTHERS[0], OTHERS[1] + 1)
        drawn = [name for name, place in self.objects.items() if place == ANYWHERE]
        conditions = [_affirmed(condition) for condition in goal]
        for name in [*drawn, *map(str, rng.permutation(others)[:count])]:
            allowed = [place for place in WORKTOPS if not _wanted(conditions, name, place)] or list(WORKTOPS)
            roomy = [place for place in allowed if list(where.values()).count(place) < ROOM]
            where[name] = str(rng.choice(roomy or allowed))
        going = {condition.get("robot", condition.get("visited")) for condition in conditions}
        places = [*WORKTOPS, OPERATOR]
        place = self.robot or str(rng.choice([p for p in places if p not in going] or places))
        order = rng.permutation(list(where))
        return SymbolicKitchen({str(n): where[str(n)] for n in order}, place, set(self.open))


@dataclass(frozen=True)
class Instruction:
    """One entry, or one of its cases."""

    number: int  # in its file, from 1
    say: str
    family: str
    half: str
    start: Start
    goal: tuple[Condition, ...]  # empty where it is impossible
    impossible: bool = False  # nothing that the robot can do serves it
    case: int = 0  # from 1; 0: the entry has but one

    def kitchen(self, rng: np.random.Generator, objects: Iterable[str]) -> SymbolicKitchen:
        """A kitchen as the entry wants it at the start."""
        return self.start.kitchen(rng, objects, self.goal)

    def __str__(self) -> str:
        return f"entry {self.number}" + (f", case {self.case}" if self.case else "")


def named(condition: Condition) -> tuple[str, ...]:
    """The objects that a condition is about: a single one, or `one of` several; none where any are counted."""
    one = condition.get("object") or condition.get("holding")
    return (one,) if one and one != NOTHING else tuple(condition.get("one of", ()))


def _wanted(conditions: Iterable[Condition], name: str, place: str) -> bool:
    """Would an object at this place count for, or against, a goal?"""
    return any(place in each(c.get("at", ())) and name in (named(c) or [name]) for c in conditions)


def _affirmed(condition: Condition) -> Condition:
    """What it says, or says not to be so."""
    return _affirmed(condition["not"]) if "not" in condition else condition


def load(path: Path, library: SkillLibrary) -> list[Instruction]:
    """Read and check, each case by itself; raises InstructionsError with a line for each entry that is wrong."""
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
    families = document.get("families", list(FAMILIES))
    if not isinstance(families, list) or not families or not all(isinstance(name, str) for name in families):
        raise InstructionsError(f"{path}: `families` must be a list of names, such as [negation, count]")
    reader, found, mistakes = Reader(library, families), list[Instruction](), list[str]()
    first: dict[str, int] = {}  # sentence -> the entry that has it
    for number, entry in enumerate(entries, 1):
        try:
            cases = reader.entry(number, entry)
            same = first.setdefault(_plain(cases[0].say), number)
            if same != number:
                _refuse(f"entry {same} says the same; leave one of them out")
            found += cases
        except Mistake as mistake:
            say = f" ({entry['say']!r})" if isinstance(entry, dict) and isinstance(entry.get("say"), str) else ""
            mistakes.append(" ".join(f"{path}: entry {number}{say}: {mistake}".split()))
    if mistakes:
        raise InstructionsError("\n".join(mistakes))
    return found


def _plain(say: str) -> str:
    return " ".join(re.findall(r"\w+", say.lower()))


class Mistake(Exception):
    """What is wrong with one entry."""


def _refuse(reason: str) -> NoReturn:
    raise Mistake(reason)


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


class Reader:
    """Turns entries into instructions for what a library's robot can do."""

    def __init__(self, library: SkillLibrary, families: Sequence[str]) -> None:
        self.families, self.objects, self.drawers = families, library.objects, library.values("drawer")
        self.places = (*library.values("place"), OPERATOR)
        self.spots = (*WORKTOPS, *(f"{drawer} drawer" for drawer in self.drawers), ANYWHERE)
        moves = library.families.get("move near", ())
        self.pairs = [(skill.arguments["object"], skill.arguments["target"]) for skill in moves]

    def entry(self, number: int, entry: object) -> list[Instruction]:
        """Its cases, which are mostly one."""
        keys = _mapping("an entry", entry, ("say", "family", "half", "cases", *CASE))
        say = keys.get("say")
        if not isinstance(say, str) or not _plain(say):
            _refuse("`say` must be the sentence that a person says")
        family = _one_of("family", keys.get("family"), self.families)
        half = _one_of("half", keys.get("half"), (TUNING, HELD_OUT))
        if "cases" not in keys:
            cases = [{key: value for key, value in keys.items() if key in CASE}]
        elif beside := next((key for key in CASE if key in keys), None):
            _refuse(f"`{beside}` stands in each of the `cases`, and not beside them")
        elif len(cases := _list("`cases`", keys["cases"])) < 2:
            _refuse("`cases` are two or more; a single one is written without")
        found = []
        for place, case in enumerate(cases, 1):
            start, goal, impossible = self.case(case)
            found.append(Instruction(number, say, family, half, start, goal, impossible, place * (len(cases) > 1)))
        if all(case.goal and self.is_met(case) for case in found):
            _refuse("its goal is met at the start already" + (", in all of the cases" if len(found) > 1 else ""))
        return found

    def case(self, value: object) -> tuple[Start, tuple[Condition, ...], bool]:
        """Start, goal, and whether nothing serves it."""
        keys = _mapping("a case", value, CASE)
        start = self.start(keys.get("start") or {})
        impossible = keys.get("impossible", False)
        if not isinstance(impossible, bool):
            _refuse(f"`impossible` must be true or false, not {impossible!r}")
        if impossible == ("goal" in keys):
            _refuse("it needs a `goal`, or `impossible: true`, and not both")
        return start, () if impossible else tuple(self.goal(keys["goal"], start)), impossible

    def is_met(self, case: Instruction) -> bool:
        """At the start already."""
        return case.kitchen(np.random.default_rng(0), self.objects).reached(case.goal)

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
            self.check(condition)
            things, count = named(condition), condition.get("count", 1)
            if things and len(present.intersection(things)) < count:
                which = f"{count} of " * (count > 1) + "the " + " or the ".join(things)
                _refuse(f"`start` does not say where {which} is, which the goal needs")
            if "near" in condition and condition["near"] not in present:
                _refuse(f"`start` does not say where the {condition['near']} is, which the goal needs")
            yield condition

    def check(self, condition: object) -> None:
        condition = _mapping("a condition", condition, sorted({key for keys in CONDITIONS for key in keys}))
        if not any(set(condition) == set(keys) for keys in CONDITIONS):
            known = "; ".join(" + ".join(keys) for keys in CONDITIONS)
            _refuse(f"no condition is made of {' + '.join(map(str, condition)) or 'nothing'}; there are: {known}")
        for key, value in condition.items():
            match key:
                case "one of":
                    for name in _list("`one of`", value) or [""]:
                        _one_of("object", name, self.objects)
                case "object" | "near":
                    _one_of("object", value, self.objects)
                case "holding":
                    _one_of("object", value, (*self.objects, NOTHING))
                case "robot" | "visited":
                    _one_of("place", value, self.places)
                case "at":
                    for place in value if isinstance(value, list) and value else [value]:
                        _one_of("place", place, self.places)
                case "open" | "closed":
                    _one_of("drawer", value, self.drawers)
                case "in":
                    for drawer in value if isinstance(value, list) and value else [value]:
                        _one_of("drawer", drawer, self.drawers)
                case "not":
                    self.check(value)
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
