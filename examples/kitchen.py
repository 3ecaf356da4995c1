"""What the examples plan in: a kitchen of symbols, or a robot and a skill server that run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import numpy as np

from saycan_qt.kitchen.symbolic import SymbolicKitchen
from saycan_qt.language import LanguageError
from skills.client import RobotClient, SkillClient
from skills.errors import SkillError
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

    def close(self) -> None: ...  # nothing goes on moving


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

    def close(self) -> None:
        """From any thread: the robot stops in the middle of a skill."""
        self._robot.close()
        self._server.close()


def exit_code(carry_out: Callable[[], int]) -> int:
    """Of a command: 2, and one line, where a service or the language model fails; 130 for Ctrl-C."""
    try:
        return carry_out()
    except (SkillError, LanguageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def kitchen(seed: int, server: str, robot: str) -> Symbols | Services:
    if bool(server) != bool(robot):
        raise SystemExit("--server and --robot go together")
    return Services(server, robot) if server else Symbols(seed)
