"""Scenes that ask what is possible, and the answer for every learnt skill: its precondition, and whether it succeeds.

A scene is drawn around a random skill: as it is practised, in a whole kitchen, or disturbed in one way that makes the
skill impossible (`disturbances`). Then, at times, an expert carries out some skill and the arm returns to its carrying
pose, from where a planner asks for affordances. `label` tries the scripted expert of every skill whose precondition
holds from that very state.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import mujoco
import numpy as np

from saycan_qt.data.scenes import HISTORY, LabelledScene
from saycan_qt.kitchen.embodiment import ACTION_HIGH, ACTION_LOW
from saycan_qt.kitchen.looks import LookName
from saycan_qt.kitchen.physics import Unstable
from saycan_qt.kitchen.practice.disturbances import disturbed
from saycan_qt.kitchen.practice.experts import Expert, carry
from saycan_qt.kitchen.practice.rollouts import MAX_STEPS, Rollout, random_skill
from saycan_qt.kitchen.tasks import feasible, practice, random_kitchen, succeeded
from saycan_qt.kitchen.world import Scene, World
from skills.embodiment import TERMINATE_THRESHOLD
from skills.library import Skill, SkillLibrary
from skills.types import Observation

WEIGHTS = {  # of the families around which scenes are drawn; a pick is possible in most others' scenes too
    "pick": 0.5,
    "move near": 1.5,
    "open drawer": 1.0,
    "close drawer": 1.5,
    "place into drawer": 1.0,
    "pick from drawer": 2.5,
}
PRACTISED, WHOLE_KITCHEN = 0.4, 0.1  # shares of undisturbed scenes; what is left goes to the disturbances, evenly
AFTERWARDS = 0.35  # share of the scenes at which the robot looks after a skill rather than before any


def labelled_scene(seed: int, number: int, library: SkillLibrary) -> LabelledScene:
    """Scene `number` of a collection; it follows from seed and number alone."""
    rng = np.random.default_rng([seed, number])
    while True:
        with suppress(Unstable):  # then another one, from the same generator
            return _labelled(rng, number, library)


def _labelled(rng: np.random.Generator, number: int, library: SkillLibrary) -> LabelledScene:
    skills = [s for s in library if s.learned]
    skill, kind, scene = draw(rng, library)
    world, seen = World(scene), deque[Observation](maxlen=HISTORY)
    moment = let_time_pass(rng, world, skills, seen)
    now = world.observe()
    seen.append(now)
    images, states = np.stack([o.image for o in seen]), np.stack([o.state for o in seen])
    precondition, succeeds = label(world, skills)
    return LabelledScene(number, images, states, precondition, succeeds, now.place, now.held, skill.name, kind, moment)


# ---- labels -----------------------------------------------------------------------------------------------------


class Snapshot:
    """A world's state. Restoring it is exact: the same actions then give the same bits."""

    def __init__(self, world: World) -> None:
        self.world, self.data = world, copy.copy(world.data)  # with contacts and the solver's warm start
        self.fields = self._copied(vars(world))

    def restore(self) -> None:
        mujoco.mj_copyData(self.world.data, self.world.model, self.data)
        vars(self.world).update(self._copied(self.fields))

    @staticmethod
    def _copied(fields: dict[str, Any]) -> dict[str, Any]:
        return {k: copy.copy(v) for k, v in fields.items() if not isinstance(v, mujoco.MjModel | mujoco.MjData)}


def attempt(world: World, skill: Skill, seen: deque[Observation] | None = None) -> bool:
    """Does the scripted expert, without noise, reach success from here? Changes the world; `seen` gets what the robot
    sees on the way."""
    expert = Expert(world, skill)
    for _ in range(MAX_STEPS):
        action = _next(expert)
        _step(world, action, seen)
        if action[7] > TERMINATE_THRESHOLD:
            return succeeded(world, skill, expert.start_height)
    return False


def label(world: World, skills: Sequence[Skill]) -> tuple[np.ndarray, np.ndarray]:
    """Precondition and success, (N,) bool each; leaves the world as it is."""
    precondition = _possible(world, skills)
    succeeds, before = np.zeros(len(skills), bool), Snapshot(world)
    for i in np.flatnonzero(precondition):
        succeeds[i] = attempt(world, skills[int(i)])
        before.restore()
    return precondition, succeeds


def start_anywhere(
    rng: np.random.Generator,
    library: SkillLibrary,
    weights: dict[str, float],
    mode: str,
    look: LookName = "target",
    **kwargs,
) -> Rollout:
    """A rollout of some skill, of a family with a weight above 0, that is possible in a scene drawn for another.
    Practice scenes alone would teach that a drawer which stands open for something to be put in is never closed."""
    skills = [s for s in library if s.learned]
    while True:
        world = World(draw(rng, library)[2], look)
        let_time_pass(rng, world, skills)
        possible = _those(skills, _possible(world, skills))
        if any(weights[skill.family] for skill in possible):
            break
    skill = random_skill(rng, possible, weights)
    wrong = possible[int(rng.integers(len(possible)))] if mode == "wrong" else None
    return Rollout(world, skill, mode, rng, wrong, **kwargs)


def let_time_pass(
    rng: np.random.Generator, world: World, skills: Sequence[Skill], seen: deque[Observation] | None = None
) -> str:
    """At times, carry out a skill that is possible. Returns which moment it is: "at rest" or "afterwards"."""
    possible = _possible(world, skills)
    if rng.random() >= AFTERWARDS or not possible.any():
        return "at rest"
    attempt(world, random_skill(rng, _those(skills, possible)), seen)
    for action in carry(world):
        _step(world, action, seen)
    return "afterwards"


def possible_names(world: World, library: SkillLibrary) -> tuple[str, ...]:
    """The learnt skills whose precondition holds."""
    return tuple(skill.name for skill in library if skill.learned and feasible(world, skill))


def _possible(world: World, skills: Sequence[Skill]) -> np.ndarray:
    return np.array([feasible(world, skill) for skill in skills], bool)


def _those(skills: Sequence[Skill], mask: np.ndarray) -> SkillLibrary:
    return SkillLibrary(skill for skill, wanted in zip(skills, mask, strict=True) if wanted)


def _step(world: World, action: np.ndarray, seen: deque[Observation] | None) -> None:
    if seen is not None:
        seen.append(world.observe())
    world.step(action)


def _next(expert: Expert) -> np.ndarray:
    return np.clip(expert.act(), ACTION_LOW, ACTION_HIGH).astype(np.float32)


# ---- scenes -----------------------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, library: SkillLibrary) -> tuple[Skill, str, Scene]:
    """A skill, what was done to its scene ("practised", "whole kitchen" or a disturbance), and the scene."""
    skill, luck = random_skill(rng, library, WEIGHTS), rng.random()
    if luck < PRACTISED:
        return skill, "practised", practice(rng, skill)
    if luck < PRACTISED + WHOLE_KITCHEN:
        scene = random_kitchen(rng)
        held = str(rng.choice(list(scene.objects))) if rng.random() < 0.3 else ""
        return skill, "whole kitchen", replace(scene, held=held)
    return skill, *disturbed(rng, skill)
