"""A service that dies or freezes is noticed within two seconds and named, service and address."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_services import LineRobot

from skills import robot as robot_service
from skills.client import RobotClient, SkillClient
from skills.errors import Unavailable
from skills.library import SkillLibrary
from skills.types import Status

LIBRARY = SkillLibrary.load()


@pytest.fixture
def skill_process():
    """A skill server in a process of its own, and its address."""
    command = [sys.executable, str(Path(__file__).with_name("tiny_services.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP])
def test_a_skill_server_that_dies_aborts_the_skill_and_is_named(skill_process, death):
    process, address = skill_process
    line_robot = LineRobot(period=0.1)
    with (
        SkillClient(address) as skills,
        robot_service.serve(line_robot, LIBRARY, skills) as server,
        RobotClient(server.address) as robot,
    ):
        events = robot.execute("pick apple")
        next(events)
        os.kill(process.pid, death)
        died = time.monotonic()
        *_, outcome = events
        assert time.monotonic() - died < 5  # frozen: the watchdog's 2 s after one control period, on a slow machine
        assert outcome.status is Status.ABORTED and f"skill server at {address}" in outcome.message
        assert line_robot.stops
        robot.observe()  # the robot itself lives on


def test_a_killed_service_is_unavailable_at_once_and_named(skill_process):
    process, address = skill_process
    with SkillClient(address) as skills:
        skills.info()
        process.kill()
        process.wait()
        started = time.monotonic()
        with pytest.raises(Unavailable, match=f"the skill server at {address}"):
            skills.score([LineRobot().observe()])
        assert time.monotonic() - started < 5


def test_a_client_that_is_killed_stops_the_robot():
    line_robot = LineRobot()
    with robot_service.serve(line_robot, LIBRARY) as server:
        code = f"from skills.client import RobotClient; list(RobotClient({server.address!r}).execute('go to table'))"
        with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent) as client:
            assert line_robot.moving.wait(20)
            client.kill()
        deadline = time.monotonic() + 10
        while line_robot.moving.is_set():
            assert time.monotonic() < deadline, "the robot moves on without its client"
            time.sleep(0.01)


def test_nothing_at_an_address_is_said_plainly():
    with (
        RobotClient("127.0.0.1:1") as robot,
        pytest.raises(Unavailable, match=r"robot at 127\.0\.0\.1:1 cannot be reached"),
    ):
        robot.observe()
