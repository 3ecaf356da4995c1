"""Skills inside other people's frameworks: in the background, as a behaviour tree's leaf, as a ROS 2 action."""

import importlib.util
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import ros2_bridge
import ros2_goals
from running_skill import RunningSkill
from tiny_services import UNHURRIED, LineRobot, Walker

from skills import robot as robot_service
from skills import server as skill_service
from skills.client import RobotClient, SkillClient
from skills.library import SkillLibrary
from skills.types import Outcome, Status

EXAMPLES = Path(__file__).parent.parent / "examples"
ENDLESS = "open top drawer"  # the policy never ends it
LIBRARY = SkillLibrary.load()


@pytest.fixture
def line_robot():
    return LineRobot(period=0.02)


@pytest.fixture
def skills():
    with (
        skill_service.serve(LIBRARY, Walker(), Walker(), model_id="walker", limits=UNHURRIED) as server,
        SkillClient(server.address) as client,
    ):
        yield client


@pytest.fixture
def robot_client(line_robot, skills):
    with robot_service.serve(line_robot, LIBRARY, skills) as robot, RobotClient(robot.address) as client:
        yield client


def end_of(running: RunningSkill) -> Outcome:
    assert running.wait(30)
    return running.outcome


def test_a_skill_in_the_background_tells_how_far_it_is_and_how_it_ended(robot_client):
    running = RunningSkill(robot_client, "pick apple")
    assert running.outcome is None
    assert end_of(running).succeeded and running.feedback.step == 7


def test_it_is_canceled_whenever_asked_even_before_the_robot_has_heard_of_it(robot_client, line_robot):
    for pause in (0.0, 0.005, 0.1):
        running = RunningSkill(robot_client, ENDLESS)
        time.sleep(pause)
        running.cancel()
        assert end_of(running).status is Status.CANCELED and not line_robot.moving.is_set()
    running.cancel()  # nothing to do


def test_a_refused_skill_is_aborted_with_the_robots_reason(robot_client):
    outcome = end_of(RunningSkill(robot_client, "pick aple"))
    assert outcome.status is Status.ABORTED and "did you mean 'pick apple'" in outcome.message


def test_closing_the_client_stops_the_robot(robot_client, line_robot):
    running = RunningSkill(robot_client, ENDLESS)
    assert line_robot.moving.wait(20)
    robot_client.close()
    assert end_of(running).status is Status.ABORTED
    time.sleep(0.1)
    assert not line_robot.moving.is_set() and line_robot.applied < 45


# ---- py_trees


@pytest.fixture
def leaf_of(robot_client):
    pytest.importorskip("py_trees", reason="needs `pip install py_trees`, which the test extra does")
    from py_trees_leaf import RunSkill

    return lambda skill: RunSkill(robot_client, skill)


def tick(tree, seconds=30.0):
    deadline = time.monotonic() + seconds
    tree.tick_once()
    while tree.status.value == "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.01)
        tree.tick_once()
    return tree.status.value


def test_a_leaf_runs_until_its_skill_ends_and_can_run_again(leaf_of, line_robot):
    leaf = leaf_of("pick apple")
    assert tick(leaf) == "SUCCESS" and line_robot.applied == 7
    assert tick(leaf) == "SUCCESS" and line_robot.applied == 8  # already there


def test_a_failed_skill_fails_its_leaf_and_the_next_branch_is_tried(leaf_of, line_robot):
    import py_trees

    line_robot.period = 0.001
    failing, refused, working = leaf_of(ENDLESS), leaf_of("put down"), leaf_of("pick apple")
    tree = py_trees.composites.Selector("any", memory=True, children=[failing, refused, working])
    assert tick(tree) == "SUCCESS"
    assert failing.feedback_message == "failed no end within 45 steps"
    assert refused.feedback_message == "aborted the gripper holds nothing to put down"


def test_a_halted_leaf_stops_the_robot_and_leaves_it_free_for_the_next(leaf_of, line_robot):
    import py_trees

    leaf, other = leaf_of(ENDLESS), leaf_of("pick apple")
    leaf.tick_once()
    assert line_robot.moving.wait(20)
    leaf.stop(py_trees.common.Status.INVALID)
    assert not line_robot.moving.is_set() and line_robot.applied < 45
    assert tick(other) == "SUCCESS"


class Unstoppable(LineRobot):
    """Its motors do not take the command to stop, while they are `broken`."""

    broken = True

    def stop(self):
        if self.broken:
            raise OSError("the bus is gone")
        super().stop()


@pytest.fixture
def unstoppable(skills):
    robot = Unstoppable(period=0.02)
    with robot_service.serve(robot, LIBRARY, skills) as server, RobotClient(server.address) as client:
        yield client
        robot.broken = False


def test_a_robot_that_cannot_be_halted_keeps_no_other_of_its_tree_from_being_halted(leaf_of, line_robot, unstoppable):
    import py_trees

    leaves = [type(leaf_of(ENDLESS))(unstoppable, ENDLESS), leaf_of(ENDLESS)]
    both = py_trees.composites.Parallel("both", py_trees.common.ParallelPolicy.SuccessOnAll(), children=leaves)
    both.tick_once()
    assert line_robot.moving.wait(20)
    both.stop(py_trees.common.Status.INVALID)
    assert not line_robot.moving.is_set() and line_robot.applied < 45
    assert {leaf.status for leaf in leaves} == {py_trees.common.Status.INVALID}


@pytest.mark.parametrize(("robot", "skills"), [("localhost", ("pick apple",)), ("127.0.0.1:1", ())])
def test_a_tree_that_cannot_begin_is_refused_in_a_line(robot, skills, capsys):
    py_trees_leaf = pytest.importorskip("py_trees_leaf", reason="needs `pip install py_trees`")
    assert py_trees_leaf.main(py_trees_leaf.Config(skills, robot)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


# ---- ROS 2, which is not needed here


def run_skill_action() -> dict[str, type]:
    """Goal, Result and Feedback as the .action file declares them; like ROS's, they refuse fields they do not have."""
    parts = (EXAMPLES / "ros2_interfaces/action/RunSkill.action").read_text().split("\n---\n")
    fields = [dict(reversed(field) for field in re.findall(r"^(\w\S*) +(\w+)", part, re.M)) for part in parts]
    names = ("Goal", "Result", "Feedback")
    return {n: type(n, (), {"__slots__": list(f), "types": f}) for n, f in zip(names, fields, strict=True)}


class GoalHandle:
    """A goal on a ROS 2 action server: what rclpy's has, and only the transitions that the action design allows."""

    def __init__(self, skill):
        self.request = SimpleNamespace(skill=skill)
        self.goal_id = SimpleNamespace(uuid=np.random.default_rng().integers(0, 256, 16, np.uint8))
        self.status, self.feedback = "EXECUTING", []

    @property
    def is_cancel_requested(self):
        return self.status == "CANCELING"

    def publish_feedback(self, message):
        self.feedback.append(message)

    def to(self, status, *allowed):
        assert self.status in allowed, f"ROS forbids {self.status} -> {status}"
        self.status = status

    def succeed(self):
        self.to("SUCCEEDED", "EXECUTING", "CANCELING")

    def abort(self):
        self.to("ABORTED", "EXECUTING", "CANCELING")

    def canceled(self):
        self.to("CANCELED", "CANCELING")


@pytest.fixture
def run_goal(robot_client):
    """handle, result = run_goal(skill, meanwhile); `meanwhile(handle)` is called when the first feedback is there."""
    action = SimpleNamespace(**run_skill_action())

    def run(skill, meanwhile=lambda handle: None, robot=robot_client):
        handle, results = GoalHandle(skill), []
        thread = threading.Thread(target=lambda: results.append(ros2_goals.execute(robot, handle, action)))
        thread.start()
        while thread.is_alive() and not handle.feedback:
            time.sleep(0.005)
        meanwhile(handle)
        thread.join(30)
        return handle, results[0]

    return run


def test_a_ros_goal_succeeds_with_feedback_and_result(run_goal):
    handle, result = run_goal("pick apple")
    assert handle.status == "SUCCEEDED" and [f.step for f in handle.feedback] == [1, 2, 3, 4, 5, 6, 7]
    assert handle.feedback[0].state[0] == pytest.approx(0.08) and len(handle.feedback[0].action) == 2
    assert (result.outcome, result.steps) == ("succeeded", 7) and result.seconds > 0


def test_the_messages_have_the_types_that_the_action_file_declares(run_goal):
    python_type = {"string": str, "uint32": int, "float64": float, "float32[]": list}
    handle, result = run_goal("pick apple")
    for message in (result, handle.feedback[0]):
        assert {name: type(getattr(message, name)) for name in message.types} == {
            name: python_type[declared] for name, declared in message.types.items()
        }


def test_a_canceled_ros_goal_stops_the_robot(run_goal, line_robot):
    handle, result = run_goal(ENDLESS, lambda handle: handle.to("CANCELING", "EXECUTING"))
    assert handle.status == "CANCELED" and result.outcome == "canceled"
    assert not line_robot.moving.is_set() and line_robot.applied < 45


def test_a_canceled_ros_goal_whose_robot_cannot_be_halted_is_aborted_with_the_reason(run_goal, unstoppable):
    handle, result = run_goal(ENDLESS, lambda handle: handle.to("CANCELING", "EXECUTING"), unstoppable)
    assert handle.status == "ABORTED" and result.outcome == "aborted" and "failed to stop it" in result.message


def test_a_robot_stopped_by_somebody_else_aborts_the_ros_goal(run_goal, robot_client):
    handle, result = run_goal(ENDLESS, lambda handle: robot_client.stop())
    assert handle.status == "ABORTED" and (result.outcome, result.message) == ("canceled", "the robot was stopped")
    handle, result = run_goal("pick apple")
    assert handle.status == "ABORTED" and "reset" in result.message


def test_a_scripted_skill_that_cannot_run_aborts_the_ros_goal(run_goal):
    handle, result = run_goal("put down")
    assert handle.status == "ABORTED" and result.message == "the gripper holds nothing to put down"


def test_the_ros_goals_id_is_ours():
    assert ros2_goals.goal_id(np.arange(16, dtype=np.uint8)) == "000102030405060708090a0b0c0d0e0f"


def test_the_bridge_explains_itself_without_ros():
    bridge = [sys.executable, EXAMPLES / "ros2_bridge.py", "--help"]
    helped = subprocess.run(bridge, capture_output=True, text=True, timeout=30)
    assert helped.returncode == 0 and "colcon build" in helped.stdout


@pytest.mark.skipif(importlib.util.find_spec("rclpy") is not None, reason="ROS 2 is here")
def test_without_ros_the_bridge_says_what_to_install(capsys):
    assert ros2_bridge.main(ros2_bridge.Config("127.0.0.1:1")) == 2
    assert "no rclpy" in (said := capsys.readouterr().err) and "install it" in said


class Shutdown(Exception): ...


@pytest.fixture
def ros(monkeypatch):
    """What stands in for ROS 2: modules that record what they are asked for."""
    names = "rclpy rclpy.action rclpy.callback_groups rclpy.executors rclpy.utilities"
    modules = {name: MagicMock() for name in [*names.split(), "skill_interfaces.action", "std_srvs.srv"]}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    modules["rclpy.executors"].ExternalShutdownException = Shutdown
    modules["rclpy.executors"].MultiThreadedExecutor.return_value.spin.side_effect = Shutdown
    modules["rclpy.utilities"].remove_ros_args = lambda args: args[: args.index("--ros-args")]
    return modules["rclpy"]


def test_the_bridges_stop_takes_the_guards_road_too(ros, robot_client, monkeypatch):
    told = []
    executor, node = sys.modules["rclpy.executors"].MultiThreadedExecutor(), ros.create_node.return_value

    def spin():
        (_, name, stop), _ = node.create_service.call_args_list[0]
        assert name == "~/stop" and stop(None, SimpleNamespace()).success

    executor.spin.side_effect = spin
    monkeypatch.setattr("skills.client.stop_robot", lambda address, *_: told.append(address) or True)
    assert ros2_bridge.main(ros2_bridge.Config(robot_client.address)) == 0
    assert told == [robot_client.info().stop_address]


def test_a_bridge_that_hears_no_cancel_or_has_no_robot_is_refused_in_a_line(ros, capsys):
    assert ros2_bridge.main(ros2_bridge.Config("127.0.0.1:1", threads=1)) == 2
    assert ros2_bridge.main(ros2_bridge.Config("127.0.0.1:1")) == 2
    threads, robot = capsys.readouterr().err.splitlines()
    assert threads.startswith("error: --threads 1") and robot.startswith("error: the robot at 127.0.0.1:1")


def test_arguments_of_ros_are_left_to_ros(ros, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ros2_bridge.py", "--robot", "127.0.0.1:1", "--ros-args", "-r", "__ns:=/left"])
    assert ros2_bridge.own_arguments() == ["--robot", "127.0.0.1:1"]
