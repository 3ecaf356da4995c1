"""What the examples plan in: a kitchen of symbols, or a robot and a skill server that run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from saycan_qt.kitchen.symbolic import SymbolicKitchen
from skills.client import RobotClient, SkillClient
from skills.library import Skill, SkillLibrary
from skills.types import Observation, Outcome


class Symbols:
    """Judge and World in one: a random kitchen of symbols, in which every possible skill succeeds."""

    def __init__(self, seed: int) -> None:
        self.skills = SkillLibrary.load()
        self.kitchen = SymbolicKitchen.random(np.random.default_rng(seed), self.skills.objects)

    def observe(self) -> Observation:
        return self.kitchen.observe()

    def affordances(self, observation: Observation) -> Mapping[str, float]:
        return {skill.name: self.kitchen.affordance(skill) for skill in self.skills if skill.name != "done"}

    def execute(self, skill: Skill) -> Outcome:
        return self.kitchen.execute(skill)


class Services:
    """Judge and World in one: `python -m saycan_qt.serve` and `python -m saycan_qt.robot`, or your own."""

    def __init__(self, server: str, robot: str) -> None:
        self._server, self._robot = SkillClient(server), RobotClient(robot)
        self.skills = self._server.list_skills()

    def observe(self) -> Observation:
        return self._robot.observe()[0]

    def affordances(self, observation: Observation) -> Mapping[str, float]:
        return {score.skill: score.affordance for score in self._server.score([observation])}

    def execute(self, skill: Skill) -> Outcome:
        *_, outcome = self._robot.execute(skill.name)
        assert isinstance(outcome, Outcome)  # the last item is
        return outcome


def kitchen(seed: int, server: str, robot: str) -> Symbols | Services:
    if bool(server) != bool(robot):
        raise SystemExit("--server and --robot go together")
    return Services(server, robot) if server else Symbols(seed)
