"""A leaf of a py_trees behaviour tree that runs one skill; halting it stops the robot.

    pip install py_trees
    python examples/py_trees_leaf.py "find apple" "pick apple" --robot 127.0.0.1:50052     # one after the other

RUNNING while the robot acts, SUCCESS when the robot says that it succeeded, FAILURE otherwise, refusals included.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Annotated

import py_trees
import tyro
from py_trees.common import Status
from running_skill import RunningSkill

from skills.client import RobotClient
from skills.errors import InvalidRequest, SkillError

HALT_TIMEOUT = 2.0  # [s] that a halt waits for the robot to be free for the next skill


class RunSkill(py_trees.behaviour.Behaviour):
    """One skill of the robot, from start to end; each time anew."""

    def __init__(self, robot: RobotClient, skill: str) -> None:
        super().__init__(name=skill)
        self._robot = robot
        self._running: RunningSkill | None = None

    def initialise(self) -> None:
        self._running = RunningSkill(self._robot, self.name)

    def update(self) -> Status:
        """Never waits: a tick takes microseconds."""
        assert self._running is not None  # py_trees calls `initialise` first
        outcome, feedback = self._running.outcome, self._running.feedback
        if outcome is None:
            self.feedback_message = f"step {feedback.step}" if feedback else "started"
            return Status.RUNNING
        self.feedback_message = f"{outcome.status.value} {outcome.message}".strip()
        return Status.SUCCESS if outcome.succeeded else Status.FAILURE

    def terminate(self, new_status: Status) -> None:
        """INVALID is py_trees' word for a halt, by a parent or by the end of the tree."""
        if new_status is Status.INVALID and self._running is not None:
            self._running.cancel()
            self._running.wait(HALT_TIMEOUT)


@dataclass(frozen=True)
class Config:
    skills: Annotated[tuple[str, ...], tyro.conf.Positional]  # one after the other, until one fails
    robot: str  # HOST:PORT of a robot that runs, such as `python -m saycan_qt.robot --port 50052`
    period: float = 0.1  # between ticks [s]


def carry_out(config: Config) -> int:
    with RobotClient(config.robot) as robot:
        leaves = [RunSkill(robot, skill) for skill in config.skills]
        tree = py_trees.composites.Sequence("skills", memory=True, children=leaves)
        try:
            tree.tick_once()
            while tree.status is Status.RUNNING:
                time.sleep(config.period)
                tree.tick_once()
        except KeyboardInterrupt:
            tree.stop(Status.INVALID)  # halts the leaf that runs
        print(py_trees.display.unicode_tree(tree, show_status=True))
    return 0 if tree.status is Status.SUCCESS else 1


def main(config: Config) -> int:
    try:
        if not config.skills:
            raise InvalidRequest("name at least one skill")
        return carry_out(config)
    except SkillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
