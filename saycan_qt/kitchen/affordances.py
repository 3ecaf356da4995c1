"""Scenes that ask what is possible, and the answer for every learnt skill: its precondition, and whether it succeeds.

A scene is drawn around a random skill: as it is practised, in a whole kitchen, or disturbed in one way that makes the
skill impossible (`DISTURBANCES`). Then, at times, an expert carries out some skill and the arm returns to its carrying
pose, from where a planner asks for affordances.
`label` tries the scripted expert of every skill whose precondition holds from that very state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mujoco
import numpy as np

from saycan_qt.data.scenes import LabelledScene
from saycan_qt.kitchen.experts import Expert, carry
from saycan_qt.kitchen.objects import THINGS
from saycan_qt.kitchen.rollouts import MAX_STEPS, random_skill
from saycan_qt.kitchen.scene import DRAWERS, WORKTOPS
from saycan_qt.kitchen.tasks import away, feasible, practice, random_kitchen, scatter, succeeded, without
from saycan_qt.kitchen.world import Placement, Scene, World
from skills.library import Skill, SkillLibrary
from skills.types import ACTION_HIGH, ACTION_LOW, TERMINATE_THRESHOLD

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
OPENED = (0.18, 0.26)  # how far an opened drawer is pulled out [m]
TALL = 0.07  # half height of what does not fit under the worktop, in the closed top drawer [m]


def labelled_scene(seed: int, number: int, library: SkillLibrary) -> LabelledScene:
    """Scene `number` of a collection; it follows from seed and number alone."""
    rng = np.random.default_rng([seed, number])
    skills = [s for s in library if s.learned]
    skill, kind, scene = draw(rng, library)
    world = World(scene)
    moment = let_time_pass(rng, world, skills)
    seen = world.observe()
    precondition, succeeds = label(world, skills)
    return LabelledScene(
        number, seen.image, seen.state, precondition, succeeds, seen.place, seen.held, skill.name, kind, moment
    )


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


def attempt(world: World, skill: Skill) -> bool:
    """Does the scripted expert, without noise, reach success from here? Changes the world."""
    expert = Expert(world, skill)
    for _ in range(MAX_STEPS):
        action = _next(expert)
        world.step(action)
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


def let_time_pass(rng: np.random.Generator, world: World, skills: Sequence[Skill]) -> str:
    """At times, carry out a skill that is possible. Returns which moment it is: "at rest" or "afterwards"."""
    possible = _possible(world, skills)
    if rng.random() >= AFTERWARDS or not possible.any():
        return "at rest"
    attempt(world, random_skill(rng, SkillLibrary(s for s, p in zip(skills, possible, strict=True) if p)))
    for action in carry(world):
        world.step(action)
    return "afterwards"


def _possible(world: World, skills: Sequence[Skill]) -> np.ndarray:
    return np.array([feasible(world, skill) for skill in skills], bool)


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
    kind = str(rng.choice(list(DISTURBANCES)))
    while (disturbed := DISTURBANCES[kind](rng, skill, practice(rng, skill))) is None:
        skill = random_skill(rng, library, WEIGHTS)
    return skill, kind, disturbed


def absent(rng: np.random.Generator, skill: Skill, scene: Scene) -> Scene | None:
    """The object, or the one it should be moved to, is not there."""
    name = _one_needed(rng, skill)
    return replace(without(scene, name), held="" if scene.held == name else scene.held) if name else None


def on_another_worktop(rng: np.random.Generator, skill: Skill, scene: Scene) -> Scene | None:
    name = _one_needed(rng, skill)
    return _put(scene, name, scatter(rng, [name], _other_worktop(rng, scene))[name]) if name else None


def out_of_reach(rng: np.random.Generator, skill: Skill, scene: Scene) -> Scene | None:
    """It stands on this worktop, at its far edge or its left or right end."""
    name = _one_needed(rng, skill)
    side = float(rng.choice([-1, 1])) * rng.uniform(0.44, 0.47)
    x, y = (0.485, rng.uniform(-0.25, 0.25)) if rng.random() < 0.3 else (rng.uniform(0.1, 0.3), side)
    return _put(scene, name, Placement(scene.place, float(x), float(y))) if name else None


def hidden(rng: np.random.Generator, skill: Skill, scene: Scene) -> Scene | None:
    """It lies in a closed drawer, for a skill with a drawer as likely in that one as in another."""
    name, drawer = _one_needed(rng, skill), skill.arguments.get("drawer", "")
    if not name:
        return None
    drawers = [d for d in DRAWERS if d != "top" or THINGS[name].half_height < TALL]
    if drawer not in drawers or (skill.family != "pick from drawer" and rng.random() < 0.5):
        drawer = str(rng.choice(drawers))
    objects = {n: replace(p, place="far counter") for n, p in scene.objects.items()}
    openings = {d: opening for d, opening in scene.drawers.items() if d != drawer}
    scene = replace(scene, objects=objects, place="far counter", places=("far counter",), drawers=openings)
    x, y, yaw = rng.uniform([0.09, -0.1, -0.3], [0.17, 0.1, 0.3])
    return _put(scene, name, Placement("far counter", float(x), float(y), float(yaw), drawer))


def hand_full(rng: np.random.Generator, skill: Skill, scene: Scene) -> Scene:
    """The robot holds something that the skill does not need; what it held before stands on the worktop."""
    others = [n for n in THINGS if n not in skill.arguments.values()]
    name, objects = str(rng.choice(others)), dict(scene.objects)
    objects.pop(name, None)
    if scene.held:
        del objects[scene.held]
        taken = [np.array([p.x, p.y]) for p in objects.values() if not p.drawer]
        objects |= scatter(rng, [scene.held], scene.place, taken)
    return replace(scene, objects=objects | {name: Placement(scene.place, 0.2, 0.0)}, held=name)


def drawer_is_so_already(rng: np.random.Generator, skill: Skill, scene: Scene) -> Scene | None:
    """Open, where it should be opened; closed, where it should be closed or something put into it."""
    match skill.family:
        case "open drawer":
            return _open(rng, scene, skill.arguments["drawer"])
        case "close drawer" | "place into drawer":
            return replace(scene, drawers={})
    return None


def blocked(rng: np.random.Generator, skill: Skill, scene: Scene) -> Scene | None:
    """A drawer above is open."""
    above = DRAWERS[: DRAWERS.index(skill.arguments["drawer"])] if "drawer" in skill.arguments else ()
    if not above or skill.family == "close drawer":
        return None
    return _open(rng, scene, str(rng.choice(above)))


def at_another_worktop(rng: np.random.Generator, skill: Skill, scene: Scene) -> Scene:
    """The robot has driven on, with what it held; other objects may stand there."""
    place = _other_worktop(rng, scene)
    others = [n for n in THINGS if n not in scene.objects and n not in skill.arguments.values()]
    strangers = [str(n) for n in rng.choice(others, int(rng.integers(0, 4)), replace=False)]
    objects = {**scene.objects, **scatter(rng, strangers, place)}
    return replace(scene, objects=objects, place=place, places=(scene.place, place))


def without_worktop(rng: np.random.Generator, skill: Skill, scene: Scene) -> Scene:
    """The robot stands before the operator or the trash can."""
    return away(rng, skill)


DISTURBANCES: dict[str, Callable[[np.random.Generator, Skill, Scene], Scene | None]] = {
    "absent": absent,
    "on another worktop": on_another_worktop,
    "out of reach": out_of_reach,
    "hidden in a closed drawer": hidden,
    "hand full": hand_full,
    "drawer is so already": drawer_is_so_already,
    "blocked by an open drawer": blocked,
    "robot at another worktop": at_another_worktop,
    "robot at no worktop": without_worktop,
}  # each makes the skill impossible, or returns None where it cannot


def _one_needed(rng: np.random.Generator, skill: Skill) -> str:
    """The skill's object or its target; "" for a skill that needs none."""
    needed = [skill.arguments[key] for key in ("object", "target") if key in skill.arguments]
    return str(rng.choice(needed)) if needed else ""


def _other_worktop(rng: np.random.Generator, scene: Scene) -> str:
    return str(rng.choice([p for p in WORKTOPS if p != scene.place]))


def _open(rng: np.random.Generator, scene: Scene, drawer: str) -> Scene:
    return replace(scene, drawers={**scene.drawers, drawer: float(rng.uniform(*OPENED))})


def _put(scene: Scene, name: str, where: Placement) -> Scene:
    """One object elsewhere, no longer held."""
    places = tuple(dict.fromkeys((*scene.places, where.place)))
    held = "" if scene.held == name else scene.held
    return replace(scene, objects={**scene.objects, name: where}, held=held, places=places)


__all__ = ["DISTURBANCES", "Snapshot", "attempt", "draw", "label", "labelled_scene", "let_time_pass"]
