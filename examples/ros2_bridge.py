"""A robot's skills as a ROS 2 action: ROS clients send skill names, the robot behind RobotService carries them out.

    colcon build --base-paths examples/ros2_interfaces && source install/setup.bash      # once: the action type
    python examples/ros2_bridge.py --robot 127.0.0.1:50052
    ros2 action send_goal /run_skill skill_interfaces/action/RunSkill "{skill: pick coke can}" --feedback

Needs a ROS 2 installation, which brings rclpy; no pip package does. The services ~/stop and ~/reset are the robot's.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import tyro
from ros2_goals import execute

from skills.client import RobotClient
from skills.errors import SkillError


@dataclass(frozen=True)
class Config:
    robot: str  # HOST:PORT of a robot that runs, such as `python -m saycan_qt.robot --port 50052`
    action: str = "run_skill"  # what the ROS action is called
    threads: int = 4  # of the ROS executor, 2 or more: a running skill keeps one, and a cancel needs another


def main(config: Config) -> int:
    if config.threads < 2:
        print(f"error: --threads {config.threads}: it must be at least 2, to hear a cancel in a skill", file=sys.stderr)
        return 2
    try:
        import rclpy
        from rclpy.action import ActionServer, CancelResponse
        from rclpy.callback_groups import ReentrantCallbackGroup
        from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
        from skill_interfaces.action import RunSkill
        from std_srvs.srv import Trigger
    except ImportError as error:
        print(
            f"error: no {error.name}. This bridge runs inside ROS 2: install it (https://docs.ros.org), source its "
            "setup.bash, then build and source examples/ros2_interfaces as `--help` says",
            file=sys.stderr,
        )
        return 2

    with ExitStack() as stack:
        try:
            robot = stack.enter_context(RobotClient(config.robot))
            robot.info()  # where its guard is: ~/stop takes both roads
        except SkillError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        rclpy.init()  # which reads sys.argv
        node = rclpy.create_node("skill_bridge")

        def calling(method):
            def call(request, response):
                try:
                    method()
                    response.success = True
                except SkillError as error:
                    response.message = str(error)
                return response

            return call

        ActionServer(
            node,
            RunSkill,
            config.action,
            execute_callback=lambda handle: execute(robot, handle, RunSkill),
            cancel_callback=lambda handle: CancelResponse.ACCEPT,  # the default refuses
            callback_group=ReentrantCallbackGroup(),  # a cancel is heard while a skill runs
        )
        node.create_service(Trigger, "~/stop", calling(robot.stop), callback_group=ReentrantCallbackGroup())
        node.create_service(Trigger, "~/reset", calling(robot.reset), callback_group=ReentrantCallbackGroup())
        executor = MultiThreadedExecutor(config.threads)
        executor.add_node(node)
        with suppress(KeyboardInterrupt, ExternalShutdownException):
            executor.spin()
    # the robot has stopped: its client is closed
    return 0


def own_arguments() -> list[str]:
    """Without those that are ROS's, such as `--ros-args -r __ns:=/left`, which rclpy reads itself."""
    try:
        from rclpy.utilities import remove_ros_args
    except ImportError:
        return sys.argv[1:]
    return remove_ros_args(sys.argv)[1:]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__, args=own_arguments())))
