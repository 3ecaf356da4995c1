"""Things put elsewhere: where on the worktop an object may stand, and what a skill is worth there [Figure 8]."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
from PIL import Image, ImageDraw

from saycan_qt.kitchen.camera import HEAD_FOR_PEOPLE
from saycan_qt.kitchen.objects import THINGS
from saycan_qt.kitchen.scene import WORKTOPS
from saycan_qt.kitchen.tasks import CLEARANCE
from saycan_qt.kitchen.world import World
from skills.library import Skill
from skills.types import Observation

WORKTOP_LOW, WORKTOP_HIGH = np.array([0.04, -0.46]), np.array([0.50, 0.46])  # in the base frame [m]
STANDING = ("pick", "move near")  # families whose object stands on a worktop
SPACING = 0.075  # [m] between the places that are imagined: some sixty
DOT = 4  # [pixels], radius
RAMPS = ((68, 33, 253), (1, 145, 231), (84, 140, 37))  # red, green and blue of a value of 0, 1/2, 1


def free_places(others: Collection[np.ndarray], spacing: float) -> np.ndarray:
    """(P, 2) [m], in the base frame: a grid over the worktop, but where something of `others`, (2,) each, stands."""
    xs, ys = (np.arange(low, high, spacing) for low, high in zip(WORKTOP_LOW, WORKTOP_HIGH, strict=True))
    places = np.stack(np.meshgrid(xs, ys, indexing="ij"), -1).reshape(-1, 2)
    return np.array([xy for xy in places if all(np.linalg.norm(xy - o) > CLEARANCE * 0.75 for o in others)])


def imagine(world: World, skill: Skill) -> Callable[[Callable[[Observation], float]], np.ndarray] | None:
    """As skills.types.Imaginer asks: for what is picked or moved from a worktop that the robot stands at."""
    name = skill.arguments.get("object", "")
    if skill.family not in STANDING or name not in world.names or world.place not in WORKTOPS or name == world.held():
        return None
    there, picture = world.snapshot(), world.render(HEAD_FOR_PEOPLE)
    others = [there.position(other)[:2] for other in there.names if other not in (name, there.held())]

    def draw(value: Callable[[Observation], float]) -> np.ndarray:
        places, values = free_places(others, SPACING), []
        for x, y in places:
            there.put(name, float(x), float(y))
            values.append(value(there.observe()))
        heights = np.full(len(places), THINGS[name].half_height)
        return dotted(picture, HEAD_FOR_PEOPLE.project(np.column_stack([places, heights])), values)

    return draw


def dotted(picture: np.ndarray, points: np.ndarray, values: Iterable[float]) -> np.ndarray:
    """A copy of an (H, W, 3) uint8 picture with a dot at each of the points, (P, 2) [pixels], from dark for a value of
    0 to bright for 1."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for (x, y), value in zip(points, values, strict=True):
        colour = tuple(round(float(np.interp(value, (0.0, 0.5, 1.0), ramp))) for ramp in RAMPS)
        draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=colour, outline=(0, 0, 0))
    return np.asarray(image)
