"""What each learnt skill means in the kitchen: its precondition, its success, and scenes to practise it in."""

from __future__ import annotations

import numpy as np

from saycan_qt.kitchen.objects import THINGS
from saycan_qt.kitchen.scene import DRAWERS, OPEN, SHUT, WORKTOPS
from saycan_qt.kitchen.world import Placement, Scene, World
from skills.library import Skill

LIFTED = 0.05  # [m]
NEAR = 0.15  # centre to centre [m]
AREA_LOW, AREA_HIGH = np.array([0.07, -0.28]), np.array([0.34, 0.28])  # where objects stand on a worktop [m]
CLEARANCE = 0.125  # between object centres at the start [m]
FAMILIES = ("pick", "move near", "open drawer", "close drawer", "place into drawer", "pick from drawer")


def on_worktop(world: World, name: str) -> bool:
    """Does the object rest on, or is it held over, the worktop in front of the robot, within reach?"""
    if name not in world.names or world.where(name) != world.place or world.place not in WORKTOPS:
        return False
    x, y, z = world.position(name)
    return bool(0.0 < x < 0.46 and abs(y) < 0.42 and -0.02 < z < 0.45)


def feasible(world: World, skill: Skill) -> bool:
    """The symbolic precondition of a learnt skill, from the simulator's own state."""
    held, at_drawers = world.held(), world.place == "far counter"
    name, drawer = skill.arguments.get("object", ""), skill.arguments.get("drawer", "")
    shut = [d for d in DRAWERS if world.opening(d) < SHUT]
    above_shut = all(d in shut for d in DRAWERS[: DRAWERS.index(drawer)]) if drawer else True
    match skill.family:
        case "pick":
            return not held and on_worktop(world, name)
        case "move near":
            here = held == name or (not held and on_worktop(world, name))
            return here and on_worktop(world, skill.arguments["target"])
        case "open drawer":
            return at_drawers and not held and drawer in shut and above_shut
        case "close drawer":
            return at_drawers and not held and world.opening(drawer) > OPEN - 0.05
        case "place into drawer":
            here = held == name or (not held and on_worktop(world, name))
            return at_drawers and here and _usable(world, drawer, above_shut)
        case "pick from drawer":
            inside = name in world.names and world.in_drawer(name, drawer)
            return at_drawers and not held and inside and _usable(world, drawer, above_shut)
    raise ValueError(f"{skill.name!r} is not a learnt skill: it belongs to the family {skill.family!r}")


def _usable(world: World, drawer: str, above_shut: bool) -> bool:
    return above_shut and world.opening(drawer) > OPEN


def start_height(world: World, skill: Skill) -> float:
    """z of the centre of the skill's object, before it runs [m]; 0 for what needs none, or is not there."""
    name = skill.arguments.get("object", "")
    return float(world.position(name)[2]) if name in world.names else 0.0


def succeeded(world: World, skill: Skill, start_height: float = 0.0) -> bool:
    """Has a learnt skill reached its goal? `start_height`: z of its object's centre before it ran [m]."""
    name, drawer = skill.arguments.get("object", ""), skill.arguments.get("drawer", "")
    if name and name not in world.names:
        return False
    match skill.family:
        case "pick":
            return bool(world.position(name)[2] > start_height + LIFTED and world.grasped(name))
        case "move near":
            target = skill.arguments["target"]
            if target not in world.names or any(world.touching(name)):
                return False
            a, b = world.position(name), world.position(target)
            resting = 0 < a[2] < THINGS[name].half_height + 0.06
            return bool(np.linalg.norm(a[:2] - b[:2]) < NEAR and resting)
        case "open drawer":
            return world.opening(drawer) > OPEN
        case "close drawer":
            return world.place == "far counter" and world.opening(drawer) < SHUT
        case "place into drawer":
            return world.in_drawer(name, drawer) and not any(world.touching(name))
        case "pick from drawer":
            x, y, z = world.position(name)
            return bool(0.02 < x < 0.5 and abs(y) < 0.5 and 0 < z < 0.09 and not any(world.touching(name)))
    raise ValueError(f"{skill.name!r} is not a learnt skill: it belongs to the family {skill.family!r}")


def inside_drawer(drawer: str, opening: float) -> float:
    """x halfway between an open drawer's front and what stands over it: the worktop's edge or the handles above [m]."""
    return (0.016 - opening + (0.0 if drawer == "top" else -0.057)) / 2


def scatter(
    rng: np.random.Generator, names: list[str], place: str, taken: list[np.ndarray] | None = None
) -> dict[str, Placement]:
    """Random placements on one worktop, CLEARANCE apart; raises ValueError when they do not fit."""
    spots, placed = list(taken or []), {}
    for name in names:
        for _ in range(300):
            spot = rng.uniform(AREA_LOW, AREA_HIGH)
            if all(np.linalg.norm(spot - other) > CLEARANCE for other in spots):
                break
        else:
            raise ValueError(f"no room for {name!r} on the {place}: {len(spots)} objects already stand there")
        spots.append(spot)
        placed[name] = Placement(place, float(spot[0]), float(spot[1]), float(rng.uniform(-np.pi / 2, np.pi / 2)))
    return placed


def practice(rng: np.random.Generator, skill: Skill) -> Scene:
    """A random scene in which a learnt skill's precondition holds: one worktop, two to five objects, the arm near its
    carrying pose. Drawers that do not matter are at times open, where the skill allows it."""
    name, target, drawer = (skill.arguments.get(key, "") for key in ("object", "target", "drawer"))
    needed = [n for n in (name, target) if n]
    others = [n for n in THINGS if n not in needed]
    count = max(0, int(rng.integers(2, 6)) - len(needed))
    names = needed + [str(n) for n in rng.choice(others, count, replace=False)]
    place = "far counter" if drawer else str(rng.choice(WORKTOPS))
    drawers: dict[str, float] = {}
    match skill.family:
        case "pick" | "move near":
            if place == "far counter" and rng.random() < 0.4:
                drawers[str(rng.choice(DRAWERS))] = float(rng.uniform(0.18, 0.26))
        case "close drawer":
            drawers[drawer] = float(rng.uniform(0.12, 0.26))
        case "place into drawer" | "pick from drawer":
            drawers[drawer] = float(rng.uniform(0.19, 0.26))
    held = name if skill.family in ("place into drawer", "move near") and rng.random() < 0.6 else ""
    inside = skill.family == "pick from drawer"
    objects = scatter(rng, [n for n in names if not (n == name and (inside or held))], place)
    if inside:
        x = inside_drawer(drawer, drawers[drawer]) + drawers[drawer] + rng.uniform(-0.02, 0.02)
        y, yaw = rng.uniform(-0.1, 0.1), rng.uniform(-0.3, 0.3)
        objects[name] = Placement(place, float(x), float(y), float(yaw), drawer)
    elif held:
        objects[name] = Placement(place, 0.2, 0.0)
    objects = {n: objects[n] for n in rng.permutation(list(objects))}
    spread = rng.uniform([-0.05, -0.1, 0.22], [0.05, 0.1, 0.30])
    yaw = rng.uniform(-0.3, 0.3)
    return Scene(
        objects, place, drawers, (float(spread[0]), float(spread[1]), float(spread[2])), float(yaw), held, (place,)
    )


def random_kitchen(rng: np.random.Generator, count: int = 10) -> Scene:
    """A whole kitchen: `count` objects over the three worktops, at most four on each, drawers closed. Objects that
    common requests name (a coke can, an apple, a sponge, a water bottle) are always there."""
    always = ["coke can", "apple", "sponge", "water bottle"]
    others = [n for n in THINGS if n not in always]
    names = always + [str(n) for n in rng.choice(others, count - len(always), replace=False)]
    rng.shuffle(names)
    objects: dict[str, Placement] = {}
    for i, place in enumerate(WORKTOPS):
        objects |= scatter(rng, names[i :: len(WORKTOPS)], place)
    return Scene(objects, place=str(rng.choice(WORKTOPS)))
