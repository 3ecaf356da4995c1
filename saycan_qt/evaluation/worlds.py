"""Worlds in which a plan is tried, and what is possible there: a kitchen of symbols, where skills are perfect, and the
MuJoCo kitchen, where a policy carries them out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from planners.saycan import DONE
from saycan_qt.kitchen import goals, tasks
from saycan_qt.kitchen.embodiment import ACTION_HIGH, ACTION_LOW, EMBODIMENT
from saycan_qt.kitchen.language.instructions import Condition
from saycan_qt.kitchen.physics import Unstable
from saycan_qt.kitchen.robot import KitchenRobot
from saycan_qt.kitchen.staging import Stage
from saycan_qt.kitchen.symbolic import SymbolicKitchen
from skills.connective import connective_affordance
from skills.embodiment import TERMINATE_THRESHOLD
from skills.library import Skill, SkillLibrary
from skills.server import remembered
from skills.types import Actor, Observation, Outcome, Status, embodiment_of

Value = Callable[[Observation, list[str]], np.ndarray]  # affordances (N,) of learnt skills by their names


class World(Protocol):
    """Where a plan is tried: what planners.saycan.World is, and what can be asked of it."""

    def observe(self) -> Observation: ...

    def execute(self, skill: Skill) -> Outcome: ...

    def feasible(self, skill: Skill) -> bool:
        """Of a learnt skill."""
        ...

    def reached(self, goal: Iterable[Condition]) -> bool: ...


@dataclass
class PerfectWorld:
    """The symbolic kitchen, where a feasible skill succeeds, but for a share of the picks."""

    kitchen: SymbolicKitchen
    rng: np.random.Generator
    pick_fails: float = 0.0
    stage: Stage | None = None  # shows the kitchen in MuJoCo; without one the robot sees nothing

    def observe(self) -> Observation:
        return self.stage.world(self.kitchen).observe() if self.stage else self.kitchen.observe()

    def execute(self, skill: Skill) -> Outcome:
        if skill.family == "pick" and self.rng.random() < self.pick_fails:
            return Outcome(Status.FAILED, "nothing was grasped")
        return self.kitchen.execute(skill)

    def feasible(self, skill: Skill) -> bool:
        return self.kitchen.affordance(skill) > 0

    def reached(self, goal: Iterable[Condition]) -> bool:
        return self.kitchen.reached(goal)


@dataclass
class LearntWorld:
    """The MuJoCo kitchen, where a policy carries out the learnt skills, as skills.robot has it do."""

    robot: KitchenRobot
    actor: Actor
    visited: set[str] = field(default_factory=set)  # places that it has come to

    def observe(self) -> Observation:
        return self.robot.observe()

    def execute(self, skill: Skill) -> Outcome:
        was = self.robot.world.place
        try:
            outcome = self._execute(skill)
        except Unstable as error:  # then nothing more succeeds in this world
            outcome = Outcome(Status.ABORTED, str(error))
        self.visited |= {self.robot.world.place} - {was, ""}
        return outcome

    def _execute(self, skill: Skill) -> Outcome:
        robot, steps = self.robot, 0
        robot.start(skill)
        if not skill.learned:
            try:
                robot.perform(skill, lambda: False)
            except ValueError as error:
                return Outcome(Status.ABORTED, str(error))
            return Outcome(Status.SUCCEEDED if robot.succeeded(skill) else Status.FAILED)
        history, terminated = deque([robot.observe()], maxlen=remembered(embodiment_of(self.actor))), False
        while steps < EMBODIMENT.max_steps and not terminated:
            action = np.clip(self.actor.act(list(history), skill.name), ACTION_LOW, ACTION_HIGH)
            robot.apply(action)
            steps += 1
            terminated = bool(action[-1] > TERMINATE_THRESHOLD)
            history.append(replace(robot.observe(), action=action))
        reached = robot.succeeded(skill)
        robot.finish(skill, lambda: False)
        lasted = bool(reached and robot.succeeded(skill))
        return Outcome(Status.SUCCEEDED if lasted else Status.FAILED, steps=steps)

    def feasible(self, skill: Skill) -> bool:
        return tasks.feasible(self.robot.world, skill)

    def reached(self, goal: Iterable[Condition]) -> bool:
        return all(goals.holds(self.robot.world, condition, self.visited) for condition in goal)


@dataclass
class WorldJudge:
    """Tells what is possible in a world, by a critic or because it is known, and how long that takes."""

    world: World
    skills: SkillLibrary
    value: Value | None  # None: it is known
    noise: np.random.Generator | None = None  # blurs what is known
    seconds: list[float] = field(default_factory=list)

    def affordances(self, observation: Observation) -> Mapping[str, float]:
        started = time.perf_counter()
        learned = [skill for skill in self.skills if skill.learned]
        scripted = [skill for skill in self.skills if not skill.learned and skill.name != DONE]
        found = {skill.name: connective_affordance(skill, observation) for skill in scripted}
        if self.value:
            values = self.value(observation, [skill.name for skill in learned])
        else:
            values = np.array([float(self.world.feasible(skill)) for skill in learned])
            if self.noise:
                chance = self.noise.random(len(values))
                values = np.where(values > 0, 0.5 + 0.5 * chance, 0.4 * chance)
        found |= dict(zip([skill.name for skill in learned], values.tolist(), strict=True))
        self.seconds.append(time.perf_counter() - started)
        return found
