"""Looking: what a robot perceives, for anybody, also while a skill keeps the robot's thread.

    eyes = Eyes(robot, thread.submit)
    look = eyes.look(["head"], busy=lambda: True)      # from any thread: soon, of now or of just before
    eyes.glance()                                      # on the robot's thread, in the middle of a skill

Whoever waits for the same look shares it, as long as it has not begun.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field

from skills.errors import Busy, InvalidRequest
from skills.types import Observation, Robot
from skills.v1 import skills_pb2 as pb
from skills.wire.messages import JPEG, write_image

PATIENCE = 0.3  # [s] that one waits for the robot's thread while a skill has it
EVERY = 0.1  # [s] between looks in the middle of a scripted skill, however many ask
MOST_WAITING = 8  # at one time, while a skill runs; others get what was seen last
MOST_PATIENT = 16  # at one time, while none runs; others wait no longer than PATIENCE either
MOST_VIEWS = 32  # that are remembered


@dataclass(frozen=True)
class Look:
    """What was perceived, and when."""

    observation: Observation
    views: dict[str, pb.Image]  # JPEG
    age: float = 0.0  # [s]; 0: just now


@dataclass
class _Wanted:
    """A look that nobody has begun."""

    views: tuple[str, ...]
    askers: int = 0
    seen: Future[Look] = field(default_factory=Future)


class Eyes:
    def __init__(self, robot: Robot, submit: Callable[[Callable[[], None]], object]) -> None:
        """submit: have it called on the robot's thread, as soon as that is free."""
        self._robot, self._submit = robot, submit
        self._lock = threading.Lock()
        self._wanted: dict[tuple[str, ...], _Wanted] = {}
        self._waiting, self._submitted = 0, False
        self._last: tuple[Observation, float] | None = None  # and when, of time.monotonic [s]
        self._last_views: dict[str, tuple[pb.Image, float]] = {}

    def look(self, views: Sequence[str], busy: Callable[[], bool], active: Callable[[], bool] = lambda: True) -> Look:
        """busy: does a skill run? Then what was seen last, with its age, is the answer where the robot's thread has not
        looked within PATIENCE, and Busy where nothing was seen yet. Raises InvalidRequest for a view that the robot
        lacks, and Busy once the asker is not `active` any more."""
        if busy() and self._waiting >= MOST_WAITING:
            return self._before(views)
        wanted, patient = self._want(tuple(sorted(set(views))))
        try:
            began = time.monotonic()
            while not wait([wanted.seen], timeout=PATIENCE / 3).done:
                late = time.monotonic() - began >= PATIENCE
                if busy() and late:
                    return self._before(views)
                if late and not patient:
                    raise Busy(f"{MOST_PATIENT} calls wait for what this robot sees already", retry_after=PATIENCE)
                if not active():
                    raise Busy("nobody waits for this look any more")
            return wanted.seen.result()
        finally:
            self._leave(wanted)

    def observe(self) -> Observation:
        """On the robot's thread; whoever waits for a look is answered, too."""
        with self._lock:
            wanted, self._wanted = list(self._wanted.values()), {}
        began = time.monotonic()
        try:
            observation = self._robot.observe()
        except BaseException as error:  # a driver may exit: else they would wait for ever
            for each in wanted:
                each.seen.set_exception(error)
            raise
        with self._lock:
            self._last = observation, began
        for each in wanted:
            try:
                each.seen.set_result(Look(observation, self.see(each.views)))
            except BaseException as error:
                each.seen.set_exception(error)
        return observation

    def see(self, views: Sequence[str]) -> dict[str, pb.Image]:
        """What people see; on the robot's thread. Raises InvalidRequest for a view that the robot lacks."""
        seen = {}
        for name in views:
            began = time.monotonic()
            try:
                seen[name] = write_image(self._robot.view(name), JPEG)
            except KeyError as error:
                raise InvalidRequest(f"the robot has no view {error}", "views") from None
            with self._lock:
                if name in self._last_views or len(self._last_views) < MOST_VIEWS:
                    self._last_views[name] = seen[name], began
        return seen

    def glance(self) -> None:
        """Look for those who wait, in the middle of a skill, which a failing camera must not end."""
        if self._last is None or time.monotonic() - self._last[1] > EVERY:
            self._look()

    def open(self) -> None:
        """On the robot's thread, before a skill that may keep it for long: see at least once."""
        if self._last is None:
            self.observe()

    def _want(self, views: tuple[str, ...]) -> tuple[_Wanted, bool]:
        """And may it be waited for as long as it takes?"""
        with self._lock:
            patient = self._waiting < MOST_PATIENT
            self._waiting += 1
            wanted = self._wanted.setdefault(views, _Wanted(views))
            wanted.askers += 1
            if not self._submitted:
                self._submit(self._on_thread)
                self._submitted = True
            return wanted, patient

    def _leave(self, wanted: _Wanted) -> None:
        with self._lock:
            self._waiting -= 1
            wanted.askers -= 1
            if not wanted.askers and self._wanted.get(wanted.views) is wanted:
                del self._wanted[wanted.views]

    def _on_thread(self) -> None:
        with self._lock:
            self._submitted = False
        self._look()

    def _look(self) -> None:
        if self._wanted:
            with suppress(BaseException):  # those who wait get it
                self.observe()

    def _before(self, views: Sequence[str]) -> Look:
        with self._lock:
            seen = {name: self._last_views[name] for name in views if name in self._last_views}
            last = self._last
        if last is None or len(seen) < len(set(views)):
            missing = [name for name in views if name not in seen]
            what = "it has not seen anything yet" if last is None else f"view {missing[0][:50]!r} was not seen yet"
            raise Busy(f"the robot carries out a skill and cannot look; {what}", retry_after=1.0)
        oldest = min(last[1], *(when for _, when in seen.values())) if seen else last[1]
        return Look(last[0], {name: image for name, (image, _) in seen.items()}, max(time.monotonic() - oldest, 1e-3))
