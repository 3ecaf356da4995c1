"""A service that runs for long does not grow. `benchmarks/soak.py` measures the same in real processes, for an hour."""

import gc
import sys
from itertools import pairwise

import pytest
from tiny_services import LineRobot, Walker

from skills import robot as robot_service
from skills import server as skill_service
from skills.client import RobotClient, SkillClient
from skills.library import SkillLibrary

LIBRARY = SkillLibrary.load()
GOALS = 60


@pytest.mark.slow
def test_no_goal_leaves_memory_behind():
    with (
        skill_service.serve(LIBRARY, Walker(), Walker()) as server,
        SkillClient(server.address) as skills,
        robot_service.serve(LineRobot(0.001), LIBRARY, skills) as robot,
        RobotClient(robot.address) as client,
    ):

        def drive():
            """Python's blocks of memory, when so many goals have been carried out."""
            for number in range(GOALS):
                *_, outcome = client.execute("find apple" if number % 4 else "pick apple")
                assert outcome.succeeded
                skills.score([client.observe()[0]])
            gc.collect()
            return sys.getallocatedblocks()

        blocks = [drive() for _ in range(4)]
        grown = min(after - before for before, after in pairwise(blocks))  # caches fill now and then
        assert grown < GOALS  # it was three for each goal
