"""Ways to disturb a practice scene so that its skill becomes impossible: each a function of `DISTURBANCES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from saycan_qt.kitchen.objects import THINGS
from saycan_qt.kitchen.scene import DRAWERS, PLACES, WORKTOPS
from saycan_qt.kitchen.tasks import practice, scatter
from saycan_qt.kitchen.world import Placement, Scene
from skills.library import Skill

OPENED = (0.18, 0.26)  # how far an opened drawer is pulled out [m]
TALL = 0.07  # half height of what does not fit under the worktop, in the closed top drawer [m]


def disturbed(rng: np.random.Generator, skill: Skill) -> tuple[str, Scene]:
    """Which disturbance, and a random scene in which the skill is impossible."""
    while True:
        kind = str(rng.choice(list(DISTURBANCES)))
        if (scene := DISTURBANCES[kind](rng, skill, practice(rng, skill))) is not None:
            return kind, scene


def absent(rng: np.random.Generator, skill: Skill, scene: Scene) -> Scene | None:
    """The object, or the one it should be moved to, is not there."""
    name = _one_needed(rng, skill)
    if not name:
        return None
    objects = {n: p for n, p in scene.objects.items() if n != name}
    return replace(scene, objects=objects, held="" if scene.held == name else scene.held)


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


def at_no_worktop(rng: np.random.Generator, skill: Skill, scene: Scene) -> Scene:
    """The robot has driven to the operator or the trash can, at times holding something."""
    place = str(rng.choice([p for p in PLACES if p not in WORKTOPS]))
    loose = [name for name, placement in scene.objects.items() if not placement.drawer]
    held = str(rng.choice(loose)) if loose and rng.random() < 0.5 else ""
    return replace(scene, place=place, places=tuple(PLACES), held=held)


DISTURBANCES: dict[str, Callable[[np.random.Generator, Skill, Scene], Scene | None]] = {
    "absent": absent,
    "on another worktop": on_another_worktop,
    "out of reach": out_of_reach,
    "hidden in a closed drawer": hidden,
    "hand full": hand_full,
    "drawer is so already": drawer_is_so_already,
    "blocked by an open drawer": blocked,
    "robot at another worktop": at_another_worktop,
    "robot at no worktop": at_no_worktop,
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
