"""A skill that runs in the background, for callers that may not wait: behaviour trees, ROS executors, user interfaces.

running = RunningSkill(robot, "pick coke can")
while not running.wait(0.1):
    print(running.feedback)
print(running.outcome)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from skills.client import Feedback, RobotClient
from skills.errors import SkillError
from skills.types import Outcome, Status


class RunningSkill:
    """Starts the skill at once. The robot stops when it ends, is canceled, or this process dies."""

    def __init__(
        self,
        robot: RobotClient,
        skill: str,
        goal_id: str = "",  # chosen here when empty; each runs at most once
        on_feedback: Callable[[Feedback], None] = lambda feedback: None,  # called from a thread of its own
    ) -> None:
        self.skill = skill
        self.feedback: Feedback | None = None  # the latest
        self._on_feedback = on_feedback
        self._outcome = Outcome(Status.ABORTED, "what was to be done with the feedback failed")
        self._failure = ""  # why it could not be canceled
        self._canceling = threading.Lock()  # what came of it is known before the outcome is
        self._ended = threading.Event()
        self._execution = robot.execute(skill, goal_id=goal_id or None)
        self.goal_id = self._execution.goal_id
        threading.Thread(target=self._run, name=f"goal {self.goal_id}", daemon=True).start()

    @property
    def outcome(self) -> Outcome | None:
        """None while it runs. A call that broke, or was refused, is ABORTED with the reason."""
        return self._outcome if self._ended.is_set() else None

    def wait(self, seconds: float) -> bool:
        """Has it ended? Waits up to that long."""
        return self._ended.wait(seconds)

    def cancel(self) -> None:
        """Halt the robot now; the outcome follows within a control period or so. May be called at any time. Raises
        nothing, as there may be others to halt: what cannot be canceled is left, and ABORTED with the reason."""
        with self._canceling:
            if not self._ended.is_set():
                try:
                    self._execution.cancel()
                except SkillError as error:
                    self._failure = str(error)
                    self._execution.close()

    def _run(self) -> None:
        try:
            with self._execution:
                for event in self._execution:
                    if isinstance(event, Outcome):
                        self._outcome = event
                    else:
                        self.feedback = event
                        self._on_feedback(event)
        except SkillError as error:
            self._outcome = Outcome(Status.ABORTED, str(error))
        finally:
            with self._canceling:
                if self._failure:
                    self._outcome = replace(self._outcome, status=Status.ABORTED, message=self._failure)
                self._ended.set()
