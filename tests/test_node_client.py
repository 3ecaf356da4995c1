"""The client in Node against real servers: what the .proto file alone is enough for."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny_services import UNHURRIED, LineRobot, Walker

from skills import robot as robot_service
from skills import server as skill_service
from skills.client import SkillClient
from skills.library import SkillLibrary

NODE = Path(__file__).parent.parent / "examples" / "node"
pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js 20 or newer"),
    pytest.mark.skipif(not (NODE / "node_modules").exists(), reason="needs `npm ci --prefix examples/node`"),
]


@pytest.fixture
def line_robot():
    return LineRobot()


@pytest.fixture
def start_node(line_robot):
    library = SkillLibrary.load()
    with (
        skill_service.serve(library, Walker(), Walker(), model_id="walker", limits=UNHURRIED) as server,
        SkillClient(server.address) as skills,
        robot_service.serve(line_robot, library, skills) as robot,
    ):

        def start(*arguments: str) -> subprocess.Popen:
            command = ["node", "robot.mjs", *arguments, "--server", server.address, "--robot", robot.address]
            return subprocess.Popen(command, cwd=NODE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        yield start


@pytest.fixture
def node(start_node):
    def call(*arguments: str) -> tuple[int, list[str], str]:
        with start_node(*arguments) as process:
            try:
                out, err = process.communicate(timeout=30)
            finally:
                process.kill()
        return process.returncode, out.splitlines(), err

    return call


def test_skills_are_listed_and_scored_for_what_the_robot_sees(node):
    code, skills, err = node("list")
    assert code == 0 and "pick apple  (pick up the apple; learnt)" in skills, err
    code, scores, err = node("score")
    assert code == 0 and len(scores) == len(skills), err
    assert scores[0] == "1.00  find tea  (analytic)"  # the robot sees tea in another place
    assert "0.10  pick 7up can  (walker)" in scores


def test_a_skill_runs_with_feedback_to_its_result(node):
    code, [accepted, *steps, result], err = node("run", "pick apple")
    assert code == 0 and accepted.startswith("accepted "), err
    assert [line.split()[:4] for line in steps[:2]] == [["step", "1", "state", "0.08"], ["step", "2", "state", "0.16"]]
    assert len(steps) == 7 and result.startswith("STATUS_SUCCEEDED after 7 steps")


def test_a_canceled_skill_stops_the_robot(node, line_robot):
    line_robot.period = 0.05
    code, lines, _ = node("run", "open top drawer", "--cancel-after", "2")
    assert code == 1 and "STATUS_CANCELED" in lines[-1] and "canceled by the client" in lines[-1]
    assert line_robot.applied < 45 and not line_robot.moving.is_set()


def test_a_scripted_skill_is_canceled_by_nobody_that_was_not_told_to(node, line_robot):
    line_robot.succeeded = lambda skill: time.sleep(0.3)  # between its last feedback and its result
    code, lines, err = node("run", "find apple")
    assert code == 0 and lines[-1].startswith("STATUS_SUCCEEDED"), err
    code, lines, err = node("run", "find apple", "--cancel-after", "2x")
    assert code == 2 and not lines and err.startswith("error: usage: --cancel-after 2x")


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 1), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_robot_stops_when_its_client_is_interrupted_or_dies(start_node, line_robot, sign, code):
    line_robot.period = 0.05
    with start_node("run", "open top drawer") as process:
        assert line_robot.moving.wait(30)
        process.send_signal(sign)
        assert process.wait(30) == code
        deadline = time.monotonic() + 10
        while line_robot.moving.is_set() or not line_robot.stops:
            assert time.monotonic() < deadline, "the robot still moves"
            time.sleep(0.01)
    assert line_robot.applied < 45


def test_stop_is_latched_until_reset_and_mistakes_are_named(node):
    assert node("stop")[0] == 0
    assert node("run", "pick apple")[2].startswith("error: FAILED_PRECONDITION: the robot is stopped; reset it")
    assert node("reset")[0] == 0
    assert node("run", "pick aple")[2].startswith("error: NOT_FOUND: no skill 'pick aple'")
    assert node("run", "pick apple")[0] == 0
