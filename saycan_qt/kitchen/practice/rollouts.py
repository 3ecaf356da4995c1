"""Rollouts of a skill: clean and noisy demonstrations by a script, failures of several kinds that look like near
successes, and what a policy does by itself. What `collect` writes to disk and perception pre-training looks at."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from saycan_qt.kitchen.embodiment import ACTION_HIGH, ACTION_LOW
from saycan_qt.kitchen.looks import LookName
from saycan_qt.kitchen.practice.disturbances import at_no_worktop, disturbed
from saycan_qt.kitchen.practice.experts import STEP, Expert
from saycan_qt.kitchen.tasks import feasible, practice, start_height, succeeded
from saycan_qt.kitchen.world import World
from skills.library import Skill, SkillLibrary
from skills.types import Actor, Observation, embodiment_of

MODES = ("demonstration", "offset", "wrong", "early", "noisy", "endless", "elsewhere")
IMPOSSIBLE = "impossible"  # drawn only where it is asked for
AUTONOMOUS, HELPED = "autonomous", "helped"  # likewise
WITHOUT_HOPE = ("elsewhere", IMPOSSIBLE)  # a few steps where the skill cannot succeed
MAX_STEPS = 45  # the policy's limit
HELP_BEFORE = 20  # [steps] an expert takes over before this one
CIRCLE, AGAIN, SAME = 3, 3, 0.01  # [steps] of the longest circle, that show it, and [m] between places that are one


@dataclass(frozen=True)
class Step:
    observation: Observation | None
    action: np.ndarray  # (8,) float32, what was carried out
    tip: np.ndarray  # (3,) [m] where it brought the gripper, in the base frame


@dataclass
class Rollout:
    """One episode; iterate it to run it, one Step at a time. Afterwards `success` and `truncated` are set.

    mode: "demonstration" follows the expert, a quarter of its steps disturbed (2 cm, 0.08 rad), which it then
    corrects; "offset" grasps 2.5-6 cm beside the object; "wrong" does another skill than the task names; "early"
    terminates before success; "noisy" is disturbed at most steps; "endless" never terminates; "elsewhere" reaches
    for a few steps where there is no worktop; "impossible" does another skill for a few steps where this one cannot be
    done (`disturbances`); "autonomous" is what `actor` does, disturbed like a demonstration in every other episode;
    "helped" begins like that, and the expert finishes it from where `actor` is lost, which stands still there, goes in
    circles or would end without success; in every other episode from a step drawn at random on, if that comes first.
    Its Steps are the expert's alone, as what led there is not to be cloned [DAgger]."""

    world: World
    skill: Skill
    mode: str
    rng: np.random.Generator
    wrong: Skill | None = None
    max_steps: int = MAX_STEPS
    observing: bool = True  # False yields None for observations, which saves the rendering; an actor needs them
    actor: Actor | None = None  # of "autonomous" and "helped"
    pace: float = STEP  # [m] the expert moves the tip no further along an axis in one action
    possible: tuple[str, ...] = ()  # the skills that are possible where it begins, if somebody looked
    success: bool = False
    truncated: bool = False

    def __iter__(self) -> Iterator[Step]:
        rng, world = self.rng, self.world
        offset = None
        if self.mode == "offset":
            angle = rng.uniform(0, 2 * np.pi)
            offset = rng.uniform(0.025, 0.06) * np.array([np.cos(angle), np.sin(angle)])
        expert = Expert(world, self.wrong or self.skill, offset, self.pace)
        height = start_height(world, self.skill)
        stop_at = int(rng.integers(2, 12)) if self.mode == "early" else -1
        if self.mode in WITHOUT_HOPE:
            stop_at = int(rng.integers(0, 6))
        share, shift, turn = (0.8, 0.045, 0.2) if self.mode == "noisy" else (0.25, 0.02, 0.08)
        if self.actor and rng.random() < 0.5:
            share = 0.0
        body = embodiment_of(self.actor)
        seen: deque[Observation] = deque(maxlen=body.history if body is not None else 1)
        done: np.ndarray | None = None  # the action before
        own = self.max_steps if self.actor else 0  # steps before the expert acts
        if self.mode == HELPED:
            own = int(rng.integers(1, HELP_BEFORE)) if rng.random() < 0.5 else self.max_steps
        tips: deque[np.ndarray] = deque(maxlen=CIRCLE + AGAIN)
        for step in range(self.max_steps + (own if self.mode == HELPED else 0)):
            observation = world.observe() if self.observing else None
            if self.actor is None or observation is None or step >= own:
                action = expert.act()
            else:
                seen.append(replace(observation, action=done))
                action = np.array(self.actor.act(list(seen), self.skill.name))
                tips.append(world.tip())
                ends_badly = action[7] > 0.5 and not succeeded(world, self.skill, height)
                if self.mode == HELPED and (ends_badly or in_circles(tips)):
                    own, action = step, expert.act()
            if rng.random() < share and action[7] < 0.5:
                action[:3] += rng.normal(0, shift, 3)
                action[3:6] += rng.normal(0, turn, 3)
                if self.mode == "noisy" and rng.random() < 0.15:
                    action[6] = 1 - action[6]
            if self.mode == "endless":
                action[7] = 0.0
            if step == stop_at:
                action[7] = 1.0
            action = np.clip(action, ACTION_LOW, ACTION_HIGH).astype(np.float32)
            world.step(action)
            done = action
            if self.mode != HELPED or step >= own:
                yield Step(observation, action, world.tip())
            if action[7] > 0.5:
                # a drawer that was open already has not been opened
                self.success = self.mode != IMPOSSIBLE and succeeded(world, self.skill, height)
                return
        self.truncated = True


def in_circles(tips: Sequence[np.ndarray]) -> bool:
    """Was the gripper's tip (3,) [m] in its last places before, as many steps ago each? One: it stands still."""
    path = np.array(tips)
    return any(
        all(np.ptp(path[-AGAIN - period + first :: period], axis=0).max() < SAME for first in range(period))
        for period in range(1, min(CIRCLE, len(path) - AGAIN) + 1)
    )


def random_skill(rng: np.random.Generator, library: SkillLibrary, weights: dict[str, float] | None = None) -> Skill:
    """A learnt skill: first a family (by weight, else evenly), then one of its skills."""
    families: dict[str, list[Skill]] = {}
    for skill in library:
        if skill.learned:
            families.setdefault(skill.family, []).append(skill)
    names = list(families)
    share = np.array([(weights or {}).get(n, 1.0) for n in names])
    family = families[str(rng.choice(names, p=share / share.sum()))]
    return family[int(rng.integers(len(family)))]


def start(
    rng: np.random.Generator,
    skill: Skill,
    library: SkillLibrary,
    mode: str = "demonstration",
    look: LookName = "target",
    **kwargs,
) -> Rollout:
    """A rollout in a fresh practice scene of the skill, or, for "elsewhere" and "impossible", in one where it cannot
    succeed."""
    match mode:
        case "elsewhere":
            scene = at_no_worktop(rng, skill, practice(rng, skill))
        case "impossible":
            _, scene = disturbed(rng, skill)
        case _:
            scene = practice(rng, skill)
    world, wrong = World(scene, look), None
    if mode in ("wrong", IMPOSSIBLE):
        others = [s for s in library if s.learned and s != skill and feasible(world, s)]
        fallback = library["open top drawer"] if mode == IMPOSSIBLE else skill  # a motion that needs no object
        wrong = others[int(rng.integers(len(others)))] if others else fallback
    return Rollout(world, skill, mode, rng, wrong, **kwargs)
