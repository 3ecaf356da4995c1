"""The examples that a robot team starts from: they run, and they are Robots."""

import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import gymnasium_robot
import numpy as np
import own_robot
import pytest
from gymnasium_robot import KITCHEN, GymnasiumRobot, guess
from running_skill import RunningSkill

from saycan_qt.kitchen.env import KitchenEnv
from skills.client import RobotClient
from skills.errors import Busy
from skills.library import Skill, SkillLibrary
from skills.robot import serve as serve_robot
from skills.types import Robot, Status

OWN_ROBOT = Path(own_robot.__file__)
OPEN = SkillLibrary.load()["open top drawer"]


@contextmanager
def start_own_robot(*arguments, begin=(OWN_ROBOT,)):
    command = [sys.executable, *begin, *arguments]
    with subprocess.Popen(command, cwd=OWN_ROBOT.parent, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_ones_own_robot_is_served_and_driven_in_one_command():
    with start_own_robot() as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and out.count("succeeded") == 3, out
    assert "step 2: tip at [0.2  0.1  0.15] m" in out


def test_ones_own_robot_halts_and_ends_when_its_server_is_told_to():
    with start_own_robot("--serve", "127.0.0.1:0") as process:
        address = process.stdout.readline().split()[4].rstrip(";")
        with RobotClient(address) as robot:
            events = robot.execute("reach blue")
            next(events)
            process.terminate()
            *_, outcome = events
        assert outcome.status.value == "canceled" and "shutting down" in outcome.message
        assert process.wait(30) == 0


TELLING = """
import sys
import own_robot

class Telling(own_robot.Arm):
    def apply(self, action):
        print("move", flush=True)
        super().apply(action)

    def stop(self):
        print("stop", flush=True)
        super().stop()

own_robot.Arm = Telling
sys.exit(own_robot.main(own_robot.Config(*sys.argv[1:])))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("arguments", "code"), [(["127.0.0.1:0"], 0), ([], 130)])
def test_ones_own_arm_is_stopped_whatever_ends_its_process(arguments, code, number):
    with start_own_robot(*arguments, begin=("-c", TELLING)) as process:
        address = process.stdout.readline().split()[4].rstrip(";")
        with RobotClient(address) as robot:
            running = robot.execute("reach blue") if arguments else None  # the robot stops where nobody keeps it
            assert "move\n" in process.stdout  # read up to there
            for _ in range(2):
                process.send_signal(number)
                time.sleep(0.02)
            said = process.stdout.read().splitlines()
    assert process.returncode == code, running
    last = max((number for number, line in enumerate(said) if line == "move"), default=-1)
    assert "stop" in said[last + 1 :]


def test_ones_own_robot_refuses_a_scripted_skill_that_it_has_nothing_for():
    library = SkillLibrary([Skill("wave", "wave", learned=False)])
    with serve_robot(own_robot.Arm(), library) as server, RobotClient(server.address) as robot:
        [outcome] = robot.execute("wave")
    assert outcome.status is Status.ABORTED and "performs no 'wave' yet" in outcome.message


class StuckArm(own_robot.Arm):
    """Its motors do not answer, until they are `freed`."""

    def __init__(self):
        super().__init__()
        self.stuck, self.freed, self.stops = threading.Event(), threading.Event(), 0

    def perform(self, skill, canceled):
        self.stuck.set()
        self.freed.wait(30)

    def stop(self):
        self.stops += 1


def test_a_driver_that_hangs_is_told_to_stop_and_stays_busy_until_it_returns():
    arm = StuckArm()
    with serve_robot(arm, own_robot.SKILLS) as server, RobotClient(server.address, timeout=2) as robot:
        running = RunningSkill(robot, "go to home")
        assert arm.stuck.wait(20)
        running.cancel()
        assert arm.stops and running.outcome is None
        with pytest.raises(Busy):
            list(robot.execute("go to home"))
        assert robot.look().age > 0  # the driver's one thread is taken
        arm.freed.set()
        assert running.wait(20) and running.outcome.status is Status.CANCELED


class Dot(gymnasium.Env):
    """A dot that moves by 1 [m] at most along each axis, and has to leave the middle."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 3}  # noqa: RUF012  (Gymnasium's own convention)
    observation_space = gymnasium.spaces.Box(-100, 100, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode, self.drawn_by = render_mode, set()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = np.zeros(2, np.float32)
        return self.place.copy(), {}

    def step(self, action):
        self.place += action
        success = bool(np.abs(self.place).max() > 2)
        return self.place.copy(), float(success), success, False, {"success": success}

    def render(self):
        self.drawn_by.add(threading.get_ident())
        return np.zeros((8, 10, 3), np.uint8)


@pytest.fixture
def dot():
    gymnasium.register("Dot-v0", entry_point=Dot)
    yield "Dot-v0"
    del gymnasium.registry["Dot-v0"]


def test_any_environment_with_a_box_of_actions_runs_behind_the_service(dot, capsys):
    config = gymnasium_robot.Config(env=dot, skill="leave the middle", episodes=2)
    assert gymnasium_robot.main(config) == 0
    assert capsys.readouterr().out.count("leave the middle: succeeded") == 2


def test_an_environment_is_drawn_by_the_robots_thread_alone_as_opengl_needs_it(dot):
    env, mapping, skill = gymnasium_robot.make(gymnasium_robot.Config(env=dot))
    robot = GymnasiumRobot(env, mapping)
    with serve_robot(robot, SkillLibrary([skill])) as server, RobotClient(server.address) as client:
        client.observe(["room"])
    assert len(env.unwrapped.drawn_by) == 1 and threading.get_ident() not in env.unwrapped.drawn_by


def test_an_environment_that_cannot_be_mapped_is_refused_with_the_reason(capsys):
    assert gymnasium_robot.main(gymnasium_robot.Config(env="FrozenLake8x8-v1")) == 2
    assert gymnasium_robot.main(gymnasium_robot.Config(env="Nothing-v0")) == 2
    assert gymnasium_robot.main(gymnasium_robot.Config(env="no_such_package:Nothing-v0")) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert "Discrete(4)" in first and "Nothing" in second and "'no_such_package'" in third


def test_a_guessed_mapping_takes_over_what_the_environment_says(dot):
    env = gymnasium.make(dot, render_mode="rgb_array")
    mapping = guess(env, probe=env)
    found = mapping.embodiment
    assert (found.low.tolist(), found.high.tolist()) == ([-1, -1], [1, 1])
    assert (found.terminate, found.control_hz, len(found.state)) == (None, 3, 2)
    assert [(camera.height, camera.width) for camera in found.cameras] == [(8, 10)]
    np.testing.assert_array_equal(mapping.action(np.float32([0.5, -1])), [0.5, -1])
    np.testing.assert_array_equal(mapping.state(np.array([3, 4], np.float32)), [3, 4])


def test_the_kitchen_behind_the_robot_is_the_kitchen_of_the_environment():
    robot, env = GymnasiumRobot(KitchenEnv(OPEN), KITCHEN, seed=5), KitchenEnv(OPEN)
    env.reset(seed=5)
    robot.start(OPEN)
    action = np.array([0.02, 0, -0.02, 0, 0, 0, 1, 1], np.float32)
    robot.apply(action)
    seen, _, terminated, _, info = env.step(action)
    assert terminated and robot.succeeded(OPEN) is info["success"] is False
    np.testing.assert_array_equal(robot.observe().image, seen["image"])
    np.testing.assert_array_equal(robot.observe().state, seen["state"])
    robot.apply(action)  # the episode is over
    np.testing.assert_array_equal(robot.observe().state, seen["state"])
    robot.start(OPEN)  # another episode
    assert not np.array_equal(robot.observe().image, seen["image"])


def test_both_keep_the_robot_protocol():
    assert isinstance(own_robot.Arm(), Robot)
    assert isinstance(GymnasiumRobot(KitchenEnv(OPEN), KITCHEN), Robot)
