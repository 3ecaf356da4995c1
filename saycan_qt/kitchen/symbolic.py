"""A kitchen of symbols: what is feasible, and what comes of it, for trying plans without a robot.

kitchen = SymbolicKitchen.random(np.random.default_rng(0), library.objects)
kitchen.affordance(library["find apple"])
kitchen.execute(library["find apple"])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skills.connective import OPERATOR, connective_affordance
from skills.library import Skill
from skills.types import Observation, Outcome, Status

WORKTOPS = ("close counter", "far counter", "table")
DRAWERS = ("top", "middle", "bottom")  # in the far counter, from above
IN_HAND, NOTHING = "in hand", "nothing"


def each(value: str | Sequence[str]) -> tuple[str, ...]:
    """The places or drawers of a condition, of which any will do: one, or a list."""
    return (value,) if isinstance(value, str) else tuple(value)


def open_drawers(names: Iterable[str]) -> dict[str, str]:
    """As an observation tells them; those that are closed are not told."""
    return {f"{name} drawer": "open" for name in names}


@dataclass
class SymbolicKitchen:
    """Objects are at a worktop, "in hand", in a drawer ("top drawer"), in the "trash can" or with the "operator"."""

    where: dict[str, str]
    place: str = "table"  # where the robot stands
    open_drawers: set[str] = field(default_factory=set)
    near: set[tuple[str, str]] = field(default_factory=set)
    visited: set[str] = field(default_factory=set)  # places that the robot has come to; the first counts not

    @staticmethod
    def random(
        rng: np.random.Generator, objects: Iterable[str], needed: Iterable[str] = (), count: int = 10
    ) -> SymbolicKitchen:
        """`count` of the objects, the needed ones among them, spread over the worktops."""
        needed = list(dict.fromkeys(needed))
        others = rng.permutation([o for o in objects if o not in needed])[: max(0, count - len(needed))]
        present = rng.permutation([*needed, *others])
        where = {str(o): str(rng.choice(WORKTOPS)) for o in present}
        return SymbolicKitchen(where, place=str(rng.choice([*WORKTOPS, OPERATOR])))

    @property
    def held(self) -> str:
        return next((o for o, place in self.where.items() if place == IN_HAND), "")

    def observe(self) -> Observation:
        """What the robot knows, which is not what drawers hold; there are no images and no proprioception."""
        objects = {o: place for o, place in self.where.items() if place != IN_HAND and not place.endswith(" drawer")}
        states = open_drawers(drawer for drawer in DRAWERS if drawer in self.open_drawers)
        return Observation({}, np.zeros(0, np.float32), self.place, self.held, objects, states)

    def holds(self, condition: Mapping[str, Any]) -> bool:
        """Does one condition of a goal hold? `saycan_qt.kitchen.language.instructions` lists them."""
        match condition:
            case {"open": drawer}:
                return drawer in self.open_drawers
            case {"closed": drawer}:
                return drawer not in self.open_drawers
            case {"holding": name}:
                return (self.held or NOTHING) == name
            case {"robot": place}:
                return self.place == place
            case {"visited": place}:
                return place in self.visited
            case {"not": other}:
                return not self.holds(other)
            case {"object": name, "near": other}:
                return bool({(name, other), (other, name)} & self.near)
        places = (
            each(condition["at"]) if "at" in condition else [f"{drawer} drawer" for drawer in each(condition["in"])]
        )
        names = condition.get("one of") or ([condition["object"]] if "object" in condition else self.where)
        there = sum(self.where.get(name) in places for name in names)
        return there == condition["count"] if "count" in condition else there > 0

    def reached(self, goal: Iterable[Mapping[str, Any]]) -> bool:
        return all(self.holds(condition) for condition in goal)

    def affordance(self, skill: Skill) -> float:
        """Of a learnt skill, 1 if it is feasible, else 0, as `saycan_qt.kitchen.tasks.feasible` has it; of a scripted
        one, what a robot would say."""
        thing, target = skill.arguments.get("object", ""), skill.arguments.get("target", "")
        drawer, held = skill.arguments.get("drawer", ""), self.held
        in_reach = held == thing or (not held and self.where.get(thing) == self.place)
        at_drawers = self.place == "far counter"
        above = DRAWERS[: DRAWERS.index(drawer)] if drawer else ()
        accessible = at_drawers and not self.open_drawers.intersection(above)  # an open drawer covers those below
        match skill.family:
            case "pick":
                feasible = not held and self.where.get(thing) == self.place and self.place in WORKTOPS
            case "move near":
                feasible = in_reach and self.where.get(target) == self.place and self.place in WORKTOPS
            case "open drawer":
                feasible = accessible and not held and drawer not in self.open_drawers
            case "close drawer":
                feasible = at_drawers and not held and drawer in self.open_drawers
            case "place into drawer":
                feasible = accessible and in_reach and drawer in self.open_drawers
            case "pick from drawer":
                inside = self.where.get(thing) == f"{drawer} drawer"
                feasible = accessible and not held and inside and drawer in self.open_drawers
            case _:  # scripted; done is the planner's own
                return connective_affordance(skill, self.observe())
        return float(feasible)

    def execute(self, skill: Skill) -> Outcome:
        """Carry the skill out if it is feasible."""
        if not self.affordance(skill):
            return Outcome(Status.FAILED, f"{skill.name} is not feasible")
        thing, drawer, was = skill.arguments.get("object", ""), skill.arguments.get("drawer", ""), self.place
        match skill.family:
            case "pick":
                self._move(thing, IN_HAND)
            case "move near":
                self._move(thing, self.place)
                self.near.add((thing, skill.arguments["target"]))
            case "open drawer":
                self.open_drawers.add(drawer)
            case "close drawer":
                self.open_drawers.discard(drawer)
            case "place into drawer":
                self._move(thing, f"{drawer} drawer")
            case "pick from drawer":
                self._move(thing, "far counter")
            case "find":
                self.place = self.observe().objects[thing]
            case "go to":
                self.place = skill.arguments["place"]
            case "bring it to you":
                self.place = OPERATOR
            case "put down":
                self._move(self.held, self.place)
        if self.place != was:
            self.visited.add(self.place)
        return Outcome(Status.SUCCEEDED)

    def _move(self, thing: str, to: str) -> None:
        self.where[thing] = to
        self.near = {pair for pair in self.near if thing not in pair}
