"""Where in the scene would a skill succeed? `python -m saycan_qt.figures values` draws Q-values over the camera image
[Figure 8].

An object is put at every free place of the worktop in turn, the robot looks, and the value function says what the
skill is worth there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saycan_qt.kitchen.camera import HEAD_FOR_PEOPLE
from saycan_qt.kitchen.elsewhere import STANDING, free_places
from saycan_qt.kitchen.objects import THINGS
from saycan_qt.kitchen.tasks import feasible, practice
from saycan_qt.kitchen.world import CARRY, Placement, Scene, World
from saycan_qt.options import require
from skills.library import Skill, SkillLibrary

if TYPE_CHECKING:
    from saycan_qt.learning.algorithms.policy import Judge

BANDS = ((0.0, 0.20), (0.20, 0.36), (0.36, 0.46), (0.46, 0.53))  # x, from the robot's edge of the worktop on [m]
SIDEWAYS = 0.30  # bands look no further to the left and right, where nothing is out of reach [m]


@dataclass(frozen=True)
class ValuesConfig:
    """Q-values of a skill wherever its object might stand, and of picking each object where it stands."""

    skill: str = "pick coke can"  # one whose object stands on a worktop: of the families pick and move near
    checkpoint: str = "affordance"  # a shipped checkpoint's name, or a folder
    seed: int = 20_000  # of the scene
    spacing: float = 0.03  # between places [m]
    threads: int = 2  # that the model may use
    out: Path = Path("values.png")  # picture to write, PNG, SVG or PDF


@dataclass(frozen=True)
class Places:
    """Values over the worktop; places in the base frame."""

    xy: np.ndarray  # (P, 2) [m]
    values: np.ndarray  # (P,)
    possible: np.ndarray  # (P,) bool, the precondition

    def bands(self) -> Iterator[tuple[str, float, float, float]]:
        """For each of BANDS: which, mean value, its standard deviation, and the share of places that are possible."""
        ahead = np.abs(self.xy[:, 1]) < SIDEWAYS
        for low, high in BANDS:
            mine = ahead & (self.xy[:, 0] >= low) & (self.xy[:, 0] < high)
            if mine.any():
                values = self.values[mine]
                where = f"{low * 100:.0f}-{high * 100:.0f} cm"
                yield where, float(values.mean()), float(values.std()), float(self.possible[mine].mean())


def swept(judge: Judge, scene: Scene, skill: Skill, spacing: float) -> Places:
    """The skill's object put at every free place of the worktop in front of the robot."""
    name = skill.arguments["object"]
    others = [np.array([p.x, p.y]) for n, p in scene.objects.items() if n != name and n != scene.held]
    free = free_places(others, spacing)
    values, possible = [], []
    for x, y in free:
        there = Placement(scene.place, float(x), float(y), scene.objects[name].yaw)
        world = World(replace(scene, objects={**scene.objects, name: there}))
        values.append(float(judge.value([world.observe()], [skill.name])[0]))
        possible.append(feasible(world, skill))
    return Places(free, np.array(values), np.array(possible))


def values(config: ValuesConfig) -> int:
    """Draws the picture, says where it lies, and prints the mean value by distance. Raises ValueError or
    SkillError."""
    import torch

    from saycan_qt.learning import checkpoint
    from saycan_qt.learning.algorithms.policy import Judge

    require(config, threads=1)
    if not 0 < config.spacing < math.inf:
        raise ValueError(f"--spacing {config.spacing}: it must be above 0")
    torch.set_num_threads(config.threads)
    library = SkillLibrary.load()
    skill = library[config.skill]
    if skill.family not in STANDING:
        raise ValueError(f"{skill.name!r} has no object that stands on a worktop; take a pick or a move near")
    judge = checkpoint.load(config.checkpoint)
    if not isinstance(judge, Judge):
        raise ValueError(f"checkpoint {config.checkpoint!r} only acts; its values cannot be drawn")
    scene = replace(practice(np.random.default_rng(config.seed), skill), held="", tip=tuple(CARRY), yaw=0.0)
    found = swept(judge, scene, skill, config.spacing)
    world = World(scene)
    standing = [name for name in world.names if not scene.objects[name].drawer]
    picks = judge.value([world.observe()], [f"pick {name}" for name in standing])
    _draw(config, skill, world, found, dict(zip(standing, picks, strict=True)))
    print(f"{'from the edge':>14}{'mean value':>12}{'deviation':>11}{'possible':>10}   of {len(found.xy)} places")
    for where, mean, deviation, possible in found.bands():
        print(f"{where:>14}{mean:>12.2f}{deviation:>11.2f}{possible:>10.0%}")
    print(config.out)
    return 0


def _draw(config: ValuesConfig, skill: Skill, world: World, found: Places, picks: dict[str, float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    image = world.render(HEAD_FOR_PEOPLE)
    figure, (over, each) = plt.subplots(1, 2, layout="constrained", figsize=(11, 4.6))
    height = THINGS[skill.arguments["object"]].half_height
    points = HEAD_FOR_PEOPLE.project(np.column_stack([found.xy, np.full(len(found.xy), height)]))
    for axis in (over, each):
        axis.imshow(image)
        axis.set_axis_off()
        axis.set_xlim(0, HEAD_FOR_PEOPLE.width)
        axis.set_ylim(HEAD_FOR_PEOPLE.height, 0)
    for mask, marker, label in ((found.possible, "o", "possible"), (~found.possible, "X", "impossible")):
        if mask.any():
            style = {"cmap": "viridis", "vmin": 0, "vmax": 1, "s": 34, "alpha": 0.85, "linewidths": 0}
            dots = over.scatter(*points[mask].T, c=found.values[mask], marker=marker, label=label, **style)
    figure.colorbar(dots, ax=over, label="Q-value", shrink=0.85)
    over.legend(loc="lower left", fontsize=8)
    over.set_title(f"{skill.name}: its value, were it there", fontsize=10)
    for thing, value in picks.items():
        (pixel,) = HEAD_FOR_PEOPLE.project(world.position(thing)[None])
        box = {"boxstyle": "round", "facecolor": plt.get_cmap("viridis")(value), "alpha": 0.85, "linewidth": 0}
        color = "black" if value > 0.6 else "white"
        each.text(*pixel, f"{thing}\n{value:.2f}", ha="center", va="center", fontsize=7, color=color, bbox=box)
    each.set_title("picking each object where it stands", fontsize=10)
    figure.savefig(config.out, dpi=110)
    plt.close(figure)
