"""What a ROS 2 action and skills.v1.RobotService call the same thing: goal, feedback, result, status, cancel.

Plain Python: it needs neither rclpy nor a ROS message. `ros2_bridge.py` makes a node of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from running_skill import RunningSkill

from skills.client import Feedback, RobotClient
from skills.types import Outcome, Status

POLL = 0.02  # [s] between looks at whether ROS wants the goal canceled
SUCCEEDED, CANCELED, ABORTED = 4, 5, 6  # action_msgs/msg/GoalStatus

Message = TypeVar("Message")


def goal_id(uuid: Sequence[int]) -> str:
    """unique_identifier_msgs/UUID, 16 bytes -> our goal id, 32 characters."""
    return bytes(uuid).hex()


def goal_status(status: Status, cancel_requested: bool) -> int:
    """How the ROS goal ends. ROS has one word for our FAILED and ABORTED; the result's `outcome` tells them apart. A
    goal that nobody canceled through ROS may not end as CANCELED there: Stop by another client is ABORTED."""
    if status is Status.SUCCEEDED:
        return SUCCEEDED
    return CANCELED if status is Status.CANCELED and cancel_requested else ABORTED


def feedback_fields(feedback: Feedback) -> dict[str, Any]:
    """Fields of RunSkill.Feedback."""
    action = [] if feedback.action is None else feedback.action.tolist()
    return {"step": feedback.step, "state": feedback.state.tolist(), "action": action}


def result_fields(outcome: Outcome) -> dict[str, Any]:
    """Fields of RunSkill.Result."""
    return {
        "outcome": outcome.status.value,
        "message": outcome.message,
        "steps": outcome.steps,
        "seconds": outcome.seconds,
    }


def execute(robot: RobotClient, handle: Any, action: Any) -> Any:
    """The execute callback of an action server: runs the goal's skill, ends the goal, returns its result.

    handle: an rclpy ServerGoalHandle. action: the action type, with Feedback and Result. The goal is canceled on the
    robot only after ROS has moved it to CANCELING, which is later than the cancel callback: a goal that ended between
    the two would end in a transition that ROS forbids."""

    def publish(feedback: Feedback) -> None:
        handle.publish_feedback(_filled(action.Feedback(), feedback_fields(feedback)))

    running = RunningSkill(robot, handle.request.skill, goal_id(handle.goal_id.uuid), publish)
    while not running.wait(POLL):
        if handle.is_cancel_requested:
            running.cancel()
    outcome = running.outcome
    assert outcome is not None  # it has ended
    ends = {SUCCEEDED: handle.succeed, CANCELED: handle.canceled, ABORTED: handle.abort}
    ends[goal_status(outcome.status, handle.is_cancel_requested)]()
    return _filled(action.Result(), result_fields(outcome))


def _filled(message: Message, fields: dict[str, Any]) -> Message:
    for name, value in fields.items():
        setattr(message, name, value)
    return message
