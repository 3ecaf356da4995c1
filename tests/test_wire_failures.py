"""A service that dies or freezes is noticed within seconds and named, service and address."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from proxy import Proxy
from tiny_services import LineRobot, Walker

from skills import robot as robot_service
from skills import server as skill_service
from skills.client import RobotClient, SkillClient
from skills.errors import Unavailable
from skills.library import SkillLibrary
from skills.types import Observation, Status

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


@pytest.mark.slow
def test_a_frozen_skill_server_is_named_within_seconds_by_old_and_new_connections(skill_process):
    """gRPC itself gives a connection 20 s to come about, and an old one a minute to die."""
    process, address = skill_process
    with SkillClient(address) as old, SkillClient(address) as new:
        old.info()
        process.send_signal(signal.SIGSTOP)
        for client, said in [(old, "has stopped responding"), (new, "is frozen")]:
            started = time.monotonic()
            with pytest.raises(Unavailable, match=f"the skill server at {address} .*{said}") as caught:
                client.score([LineRobot().observe()])
            assert time.monotonic() - started < 15 and "\n" not in str(caught.value)


@pytest.mark.parametrize("cuts", ["requests", "answers"])
@pytest.mark.parametrize("left", [0, 1, 500, 5000])
def test_bytes_cut_in_the_middle_of_a_message_are_a_clean_error_and_the_server_lives(cuts, left):
    here = LineRobot().observe()
    large = Observation(np.zeros((80, 96, 3), np.uint8), here.state)  # 23 kB; its scores are 9 kB
    with (
        skill_service.serve(LIBRARY, Walker(), Walker()) as server,
        Proxy(server.address, cuts) as proxy,
        SkillClient(proxy.address) as client,
    ):
        client.info()
        proxy.left = left
        with pytest.raises(Unavailable, match=f"the skill server at {proxy.address} (has|hangs)") as caught:
            client.score([large])
        assert "\n" not in str(caught.value)
        with SkillClient(server.address) as direct:
            assert len(direct.score([large])) == len(LIBRARY)


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
            try:
                assert line_robot.moving.wait(20)
            finally:
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
