"""Motion: one goal's movements of one robot, halted at once from any thread, and whenever the next action is late.

motion = Motion(robot)
motion.apply(action)     # on the robot's thread; from now on the next one is due when its control period has passed
motion.halt()            # from any thread: the robot is stopped, and nothing moves it again
motion.end()
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

import numpy as np

from skills.errors import ServerFault
from skills.types import Robot

log = logging.getLogger(__name__)

PERIOD = 1 / 3  # [s] for which an action holds, where nobody says how often the robot acts
GRACE = 0.03  # [s] after an action's period until the robot is stopped; 50 ms are promised
AGAIN = 0.01  # [s] between two calls to `stop` while the driver has not returned from what a halt interrupts
LET_GO = 0.03  # [s] that a halt waits for the driver to return
LAST_TRIES, LAST = 3, 0.1  # calls to a `stop` that fails, at a goal's end, and [s] after which two are enough
UNSTOPPED = "the robot's driver failed to stop it; the robot's log has the reason"


class Permit:
    """Who lets a robot move: by default everybody may, see `skills.guard.link.Guard`."""

    def refusal(self) -> str:
        """Why it may not move now; "" where it may."""
        return ""

    def expect(self, due: float) -> None:
        """The driver has to be called again by then, of time.monotonic [s]; 0: it rests, or acts."""

    def moving(self, moving: bool) -> None:
        """The driver begins, or has done, what may move the robot."""


class Motion:
    """A robot that is stopped because its next action is late goes on with that action; after `halt` there is none.

    A driver may be about to move when it is told to stop, and forget that it was. So it is told again until it has
    returned."""

    def __init__(
        self,
        robot: Robot,
        permit: Permit | None = None,  # is asked before each call of the driver
        refused: Callable[[str], None] = lambda why: None,  # called when it says no
        period: float = PERIOD,
    ) -> None:
        self._robot, self._permit, self._refused = robot, permit or Permit(), refused
        self.period = period  # [s] for which an action holds; may be set until the first one
        self._changed = threading.Condition()
        self._halted = self._moving = self._ended = False
        self._failed = False  # did the latest `stop` raise? Then it is told again
        self._stop_at: float | None = None  # [s], of time.monotonic; None: not before the driver is called again
        threading.Thread(target=self._watch, name="motion", daemon=True).start()

    def run(
        self, move: Callable[..., None], *arguments: object, period: float | None = None, until: float = math.inf
    ) -> bool | None:
        """Call the driver, on the robot's thread; without calling it, False after `halt` or where it may not, and None
        from `until` on, of time.monotonic [s].
        period: [s] from now until the robot is stopped if it is not called again; None: it rests when this returns."""
        with self._changed:
            if self._halted:
                return False
            if time.monotonic() >= until:  # a `stop` that took long was waited for
                return None
            self._failed = False
            self._tell(moving=True)  # first: who takes the right away then looks whether the robot moves
            if why := self._permit.refusal():
                self._tell(moving=False)
                self._refused(why)
                return False
            self._stop_at, begun = None, time.monotonic()
        try:
            move(*arguments)
        finally:
            with self._changed:
                if period is not None and not self._halted:
                    self._stop_at = max(begun + period, time.monotonic()) + GRACE
                self._tell(moving=False)
                self._changed.notify_all()
        return True

    def apply(self, action: np.ndarray, until: float = math.inf) -> bool | None:
        """One control period; the next action is due when it has passed. What `run` returns."""
        return self.run(self._robot.apply, action, period=self.period, until=until)

    def halt(self) -> None:
        """Stop the robot, for good; returns when the driver has stopped and, unless it hangs, done with its action.
        Raises ServerFault where the driver fails to stop; it is told again all the same."""
        with self._changed:
            if self._ended:
                return
            self._halted, self._stop_at = True, time.monotonic() + AGAIN
            self._tell(self._moving)
            self._changed.notify_all()
            if not self._stop():
                raise ServerFault(UNSTOPPED)
            self._changed.wait_for(lambda: not self._moving, LET_GO)

    def end(self) -> bool:
        """The goal is over, and the driver does nothing: stop the robot a last time. False where the driver fails
        to."""
        with self._changed:
            self._halted = self._ended = True
            self._tell(moving=False)
            self._changed.notify_all()
            begun, tries = time.monotonic(), 1
            while not self._stop():
                if tries == LAST_TRIES or (tries > 1 and time.monotonic() - begun > LAST):  # who cancels waits for this
                    return False
                self._changed.wait(AGAIN)
                tries += 1
            return True

    def _watch(self) -> None:
        with self._changed:
            while not self._ended:
                now = time.monotonic()
                if self._stop_at is None or now < self._stop_at:
                    self._changed.wait(None if self._stop_at is None else self._stop_at - now)
                elif self._halted and not self._moving and not self._failed:
                    self._stop_at = None
                else:
                    stopped = self._stop()
                    self._stop_at = time.monotonic() + AGAIN if self._halted or not stopped else None
                    self._tell(self._moving)

    def _tell(self, moving: bool) -> None:
        self._moving = moving
        self._permit.moving(moving)
        if not self._failed:  # else it stays due, and the guard halts it, too
            self._permit.expect(0.0 if moving or self._halted else self._stop_at or 0.0)

    def _stop(self) -> bool:
        try:
            self._robot.stop()
        except BaseException as error:  # a driver may exit: this thread must not
            if not self._failed:  # once for all tries that follow
                log.critical("the robot could not be stopped", exc_info=error)
                self._permit.expect(time.monotonic())
            self._failed = True
            return False
        if self._failed:
            self._failed = False
            self._tell(self._moving)
        return True
