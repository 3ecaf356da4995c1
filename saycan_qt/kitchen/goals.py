"""Goals of whole instructions: does the kitchen now hold what a person asked for? Read from goals.yaml."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from saycan_qt.kitchen.objects import THINGS
from saycan_qt.kitchen.scene import DRAWERS, OPEN, PLACES, SHUT
from saycan_qt.kitchen.symbolic import NOTHING, each
from saycan_qt.kitchen.tasks import NEAR
from saycan_qt.kitchen.world import World

Goal = Callable[[World], bool]
SLOTS: Mapping[str, tuple[str, ...]] = {
    "object": tuple(THINGS),
    "target": tuple(THINGS),
    "drawer": DRAWERS,
    "place": tuple(PLACES),
}


def _normal(text: str) -> str:
    return (
        re.sub(r"\s+", " ", re.sub(r"[^\w\s']", " ", text.lower().replace("\u2019", "'")))
        .strip()
        .removeprefix("please ")
        .removesuffix(" please")
    )


@cache
def _patterns() -> list[tuple[re.Pattern[str], list[dict[str, str]]]]:
    patterns = []
    for entry in yaml.safe_load(Path(__file__).with_name("goals.yaml").read_text()):
        for instruction in entry["instructions"]:
            pattern = re.escape(_normal_template(instruction))
            for slot, names in SLOTS.items():
                choice = "|".join(re.escape(n) for n in sorted(names, key=len, reverse=True))
                pattern = pattern.replace(re.escape("{" + slot + "}"), f"(?P<{slot}>{choice})")
            patterns.append((re.compile(pattern), entry["goal"]))
    return patterns


def _normal_template(text: str) -> str:
    return re.sub(r"\s+", " ", text.lower()).strip()


def find(instruction: str) -> Goal | None:
    """The goal of an instruction, or None when the kitchen knows none for it."""
    text = _normal(instruction)
    for pattern, conditions in _patterns():
        if match := pattern.fullmatch(text):
            slots = match.groupdict()
            filled = [{k: v.format(**slots) for k, v in condition.items()} for condition in conditions]
            return lambda world: all(holds(world, condition) for condition in filled)
    return None


def holds(world: World, condition: Mapping[str, Any], visited: Collection[str] = ()) -> bool:
    """One condition of goals.yaml, or of an instruction file (`saycan_qt.kitchen.language.instructions`). visited:
    places that the robot has come to, which the world does not remember."""
    match condition:
        case {"open": drawer}:
            return world.opening(drawer) > OPEN
        case {"closed": drawer}:
            return world.opening(drawer) < SHUT
        case {"holding": name}:
            return (world.held() or NOTHING) == name
        case {"robot": place}:
            return world.place == place
        case {"visited": place}:
            return place in visited
        case {"not": other}:
            return not holds(world, other, visited)
        case {"count": number}:
            names = [name for name in world.names if name in condition.get("one of", world.names)]
            return sum(_left(world, name, condition) for name in names) == number
        case {"any": use}:
            names = [name for name in world.names if THINGS[name].use == use]
        case _:
            wanted = condition.get("one of") or [condition["object"]]
            names = [name for name in wanted if name in world.names]
    return any(_left(world, name, condition) for name in names)


def _left(world: World, name: str, condition: Mapping[str, Any]) -> bool:
    """Is the object where the condition wants it, let go of by the robot?"""
    return not any(world.touching(name)) and _stands(world, name, condition)


def _stands(world: World, name: str, condition: Mapping[str, Any]) -> bool:
    if places := condition.get("at"):
        return any(_is_at(world, name, place) for place in each(places))
    if drawers := condition.get("in"):
        return any(world.in_drawer(name, drawer) for drawer in each(drawers))
    other = condition["near"]
    if other not in world.names:
        return False
    here, there = world.position(name), world.position(other)
    return bool(np.linalg.norm(here - there) < NEAR + 0.03 and np.linalg.norm(here[:2] - there[:2]) < NEAR)


def _is_at(world: World, name: str, place: str) -> bool:
    x, y, z = world.in_place(name, place)
    if place == "trash can":
        return bool(0.03 < x < 0.37 and abs(y) < 0.17 and z < 0)
    depth, width = (0.38, 0.28) if place == "operator" else (0.55, 0.52)
    return bool(0.0 < x < depth and abs(y) < width and -0.02 < z < 0.2)
