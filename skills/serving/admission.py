"""Admission: which goal may run now. One at a time; others are refused, wait for their turn, or take it.

    place = admission.enter("a1", "pick apple", QUEUE)     # Busy at once where there is no room
    place.make_way()                                       # the goals that it takes the turn from are canceled
    if place.wait(seconds=600):                            # False: it was canceled meanwhile, `reason` says why
        place.begin(goal)                                  # from now on, canceling ends the goal
    place.leave()                                          # the next one's turn

It has no thread: who waits, waits in the thread of its own call. A place that was canceled never gets a turn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from skills.errors import Busy, DeadlineExceeded
from skills.serving.goal import Goal
from skills.v1 import skills_pb2 as pb

REFUSE, PREEMPT, QUEUE = pb.WHEN_BUSY_UNSPECIFIED, pb.WHEN_BUSY_PREEMPT, pb.WHEN_BUSY_QUEUE
MOST_WAITING = 16  # goals; each holds a thread of the server
RETRY_AFTER = 1.0  # [s] that a client is told to wait while another goal runs; skills take some seconds


class Admission:
    """The goal that runs, and those that wait, first come, first served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # never held while a driver is called
        self._running: Place | None = None
        self._waiting: deque[Place] = deque()

    @property
    def running(self) -> str:
        """Goal id; "" when nothing runs."""
        return running.goal_id if (running := self._running) else ""

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def enter(self, goal_id: str, skill: str, when_busy: pb.WhenBusy = REFUSE) -> Place:
        """Raises Busy. With PREEMPT, those who wait are canceled now, and the one that runs by `make_way`."""
        place = Place(self, goal_id, skill)
        with self._lock:
            if self._running is None:
                self._running = place
                place.called.set()
                return place
            ahead = 1 + len(self._waiting)
            if when_busy == REFUSE:
                running = self._running
                more = f", and {ahead - 1} more wait" if ahead > 1 else ""
                raise Busy(f"the robot still executes {running.skill!r} (goal {running.goal_id!r}){more}", RETRY_AFTER)
            if when_busy == PREEMPT:
                place.displaced, place.why = self._clear(because := f"goal {goal_id!r} took its turn"), because
            elif len(self._waiting) >= MOST_WAITING:
                raise Busy(f"{MOST_WAITING} goals wait for this robot already", RETRY_AFTER)
            place.ahead = 1 + len(self._waiting)
            self._waiting.append(place)
            return place

    def cancel(self, goal_id: str, reason: str) -> bool:
        """False when it has already ended. Raises ServerFault where the driver fails to stop."""
        with self._lock:
            place = next((place for place in self._everyone() if place.goal_id == goal_id), None)
        return place is not None and place.cancel(reason)

    def clear(self, reason: str) -> Goal | None:
        """Whoever has a place is canceled; the goal that runs is the caller's to cancel, as that takes the driver."""
        with self._lock:
            return self._clear(reason)

    def _clear(self, reason: str) -> Goal | None:
        for place in self._everyone():
            place.end(reason)
        self._waiting.clear()
        return self._running.goal if self._running else None

    def _everyone(self) -> list[Place]:
        return [*([self._running] if self._running else ()), *self._waiting]

    def leave(self, place: Place) -> None:
        with self._lock:
            if place is self._running:
                self._running = self._waiting.popleft() if self._waiting else None
                if self._running is not None:
                    self._running.called.set()
            elif place in self._waiting:
                self._waiting.remove(place)
            place.over = True

    def drop(self, place: Place, reason: str) -> Goal | None:
        """It never begins; where it has begun, its goal is the caller's to cancel."""
        with self._lock:
            place.end(reason)
            if place in self._waiting:
                self._waiting.remove(place)
            return place.goal

    def begin(self, place: Place, goal: Goal) -> str:
        """The reason for which it was canceled meanwhile, or ""."""
        with self._lock:
            place.goal = goal
            return place.reason


class Place:
    """One goal's, from its acceptance until it leaves."""

    def __init__(self, admission: Admission, goal_id: str, skill: str) -> None:
        self.goal_id, self.skill = goal_id, skill
        self.ahead = 0  # goals that came first when it entered, the running one included
        self.reason = ""  # why it was canceled, for people
        self.goal: Goal | None = None  # once it runs
        self.displaced: Goal | None = None  # the running one, whose turn it takes
        self.why = ""  # that one is canceled
        self.called = threading.Event()  # its turn has come, or it was canceled
        self.over = False
        self._admission = admission

    def end(self, reason: str) -> None:
        """The admission's; the caller holds its lock."""
        if not self.over:
            self.reason = self.reason or reason
            self.called.set()

    def make_way(self) -> None:
        """Halt the goal whose turn this one takes. Raises ServerFault where the driver fails to stop."""
        if (displaced := self.displaced) is not None:
            self.displaced = None
            displaced.cancel(self.why)

    def wait(self, seconds: float | None) -> bool:
        """Until its turn has come; False where it was canceled. Raises DeadlineExceeded after so many seconds."""
        if not self.called.wait(seconds):
            running = self._admission._running
            by = f" by {running.skill!r} (goal {running.goal_id!r})" if running else ""
            hangs = "; it was told to stop, and its driver has not returned" if running and running.reason else ""
            raise DeadlineExceeded(f"{self.skill!r} was not begun: until its deadline the robot was held{by}{hangs}")
        return not self.reason

    def begin(self, goal: Goal) -> None:
        if reason := self._admission.begin(self, goal):
            goal.cancel(reason)

    def cancel(self, reason: str) -> bool:
        """False when it has already ended. Raises ServerFault where the driver fails to stop."""
        if self.over:
            return False
        goal = self._admission.drop(self, reason)
        return True if goal is None else goal.cancel(reason)

    def client_left(self, later: Callable[[Callable[[], None]], None]) -> None:
        """The call is over. gRPC says so from the thread that serves all calls, which waits for no driver: that is
        left to `later`."""
        if not self.over and (goal := self._admission.drop(self, "the client left")) is not None:
            later(goal.leave)

    def leave(self) -> None:
        """Its goal has ended, or never began."""
        self._admission.leave(self)
