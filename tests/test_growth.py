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


@pytest.mark.parametrize("count", [100, robot_service.GOALS_REMEMBERED])
def test_a_table_of_goals_takes_all_its_room_at_the_start(count):
    table = robot_service.full_table(count)
    sizes = {sys.getsizeof(table)}
    for number in range(4 * count):
        table[f"goal {number}"] = None
        table.popitem(last=False)
        sizes.add(sys.getsizeof(table))
    assert len(sizes) == 1 and len(table) == count


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
