"""Demonstrations carried out again with noise: how few become many episodes, good and bad [Q-Transformer, 5.2]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from saycan_qt.kitchen.embodiment import ACTION_HIGH, ACTION_LOW
from saycan_qt.kitchen.looks import LookName
from saycan_qt.kitchen.practice.rollouts import Step
from saycan_qt.kitchen.tasks import start_height, succeeded
from saycan_qt.kitchen.world import Scene, World
from skills.library import Skill

TRIES = 100  # draws of one step's noise; then its action is clipped to the arm's range


@dataclass(frozen=True)
class Demonstration:
    """What was done in a scene, and where it brought the gripper."""

    skill: Skill
    scene: Scene
    look: LookName
    actions: np.ndarray  # (T, 8) float32
    tips: np.ndarray  # (T, 3) [m] where the tip was after each, in the base frame


@dataclass
class Replay:
    """A demonstration in its own scene again; iterate it to run it, one Step at a time, as a `rollouts.Rollout`.

    Its positions are what is repeated, as of a robot under position control: every step moves the tip to where the
    demonstration had it next, give or take the noise, so that errors do not add up. Rotations, fingers and the end are
    the demonstration's. Noise is drawn again where the action would leave the arm's range: clipped, it would pile up in
    the outermost bins, which then look likely."""

    demonstration: Demonstration
    rng: np.random.Generator
    noise: float  # [m] standard deviation along each axis
    success: bool = False
    truncated: bool = False

    @property
    def skill(self) -> Skill:
        return self.demonstration.skill

    def __iter__(self) -> Iterator[Step]:
        shown = self.demonstration
        world = World(shown.scene, shown.look)
        height = start_height(world, shown.skill)
        for action, tip in zip(shown.actions, shown.tips, strict=True):
            observation = world.observe()
            action = self._disturbed(action, tip - world.tip())
            world.step(action)
            yield Step(observation, action, world.tip())
        self.success = succeeded(world, shown.skill, height)

    def _disturbed(self, action: np.ndarray, change: np.ndarray) -> np.ndarray:
        """(8,) float32 with another change of position, (3,) [m] and noise."""
        low, high = ACTION_LOW[:3], ACTION_HIGH[:3]
        change = np.clip(change, low, high)
        for _ in range(TRIES):
            moved = change + self.rng.normal(0, self.noise, 3)
            if np.all((low <= moved) & (moved <= high)):
                break
        return np.concatenate([np.clip(moved, low, high), action[3:]]).astype(np.float32)
