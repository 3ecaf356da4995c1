"""Goal: one skill being run, its events for the client, and the way to end it from any thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from skills.client import Control
from skills.errors import ServerFault
from skills.library import Skill
from skills.serving.motion import Motion, Permit
from skills.types import Outcome, Robot, Status
from skills.v1 import skills_pb2 as pb

Event = pb.ExecuteSkillResponse | Exception


class Goal:
    """One skill being run: its events for the client, and the way to end it from any thread."""

    def __init__(
        self, goal_id: str, skill: Skill, views: Sequence[str], robot: Robot, permit: Permit | None = None
    ) -> None:
        self.id, self.skill, self.views = goal_id, skill, views
        self.events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self.canceled = threading.Event()
        self.reason = ""  # why it was cancelled, for people
        self.steps, self.started = 0, time.monotonic()  # control periods done; when, of time.monotonic [s]
        self.motion = Motion(robot, permit, self._refused)
        self._lock = threading.Lock()
        self._control: Control | None = None
        self._ended = False

    def cancel(self, reason: str) -> bool:
        """End the goal and halt the robot now; False when it has already ended."""
        with self._lock:
            if self._ended:
                return False
            if not self.canceled.is_set():
                self.reason = reason
                self.canceled.set()
            try:
                if self._control is not None:
                    self._control.end(self.outcome(Status.CANCELED, reason))  # the loop may be waiting for an action
            finally:
                self.motion.halt()
            return True

    @property
    def ended(self) -> bool:
        return self._ended

    def leave(self) -> None:
        """The client is gone."""
        with suppress(ServerFault):  # it is in the log
            self.cancel("the client left")

    def use(self, control: Control) -> None:
        """From now on, cancelling also ends this control stream."""
        with self._lock:
            self._control = control
            if self.canceled.is_set():
                control.cancel()

    def outcome(self, status: Status, message: str) -> Outcome:
        """Of a goal that ended like this, unless it was cancelled."""
        if self.canceled.is_set():
            status, message = Status.CANCELED, self.reason
        return Outcome(status, message, self.steps, time.monotonic() - self.started)

    def _refused(self, why: str) -> None:
        """No motion is permitted any more. Takes no lock: it is called from within a motion."""
        if not self.canceled.is_set():
            self.reason = why
            self.canceled.set()

    def end(self) -> bool:
        """False where the driver fails to stop the robot."""
        with self._lock:
            self._ended = True
            return self.motion.end()
