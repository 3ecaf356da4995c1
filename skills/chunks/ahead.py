"""Ahead: a robot carries out the rest of one chunk of actions while the next is computed, and never waits for it.

    ahead = Ahead(control, terms, "replace", timeout=2.0)
    while (row := ahead.next(observation, observed, look)) is not None:  # at once, as long as some row is valid
        robot.apply(row.action)
        ahead.rest()  # until the row's period has passed
        observed, observation = time.monotonic(), robot.observe()

A robot that observes and acts in turn stands still while its model thinks; here it goes on ["Do As I Can, Not As I
Say", appendix D.3: actions are executed asynchronously]. Periods follow one another on a clock of their own, whatever a
call takes, so that delays do not add up. An observation counts as made when its period began: it is never older than it
is said to be, and so no row is used longer than it is valid.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from skills.chunks.schedule import Questions, Row, Rule, Schedule
from skills.client import Chunk, Control
from skills.errors import DeadlineExceeded, ServerFault
from skills.serving.terms import Terms
from skills.types import Observation

SLACK = 0.5  # of a period: a robot that is later than that keeps so much, and its next periods begin later


class Ahead:
    """One skill's actions. All calls from one thread."""

    def __init__(
        self,
        control: Control,  # that asks for chunks
        terms: Terms,  # with a period, and a chunk
        rule: Rule = "replace",
        timeout: float = 2.0,  # [s] that the robot stands still, at most, until this gives up
        pause: Callable[[float], object] = time.sleep,  # waits for so many seconds, or until all is over
    ) -> None:
        assert terms.period
        self._control, self._terms, self._rule, self._timeout, self._pause = control, terms, rule, timeout, pause
        self._period = terms.period
        kept = terms.robot.terminate if terms.robot else None if terms.model is None else terms.model.terminate
        self._schedule = Schedule(self._period, rule, kept)
        self._questions = Questions(self._period, terms.chunk)
        self._due: float | None = None  # [s] when this period began; None: the robot has not begun, or stands still
        self._moved = time.monotonic()  # [s]
        self._late = ""  # what the last answer was like, where none of it could be used

    def next(self, observation: Observation, observed: float, look: Callable[[], Observation]) -> Row | None:
        """What is due; waits while there is nothing, looking again for each question. None: the skill is over.
        observation: made since the last period's end, when time.monotonic was `observed`. Raises SkillError."""
        fresh, observed = True, observed if self._due is None else self._due
        while True:
            now = time.monotonic()
            if self._questions.due_in(now, self._schedule.left(now)) <= 0:
                if not fresh:
                    observed, observation = now, look()
                self._ask(observation, observed)
                fresh = False
            self._hear(self._control.poll())
            if self._schedule.over:
                return None
            now = time.monotonic()
            if (row := self._schedule.take(now)) is not None:
                if self._due is None:
                    self._due = row.begins
                self._moved = now
                return row
            if (begins := self._schedule.begins(now)) is not None:
                self._pause(begins - now)
                continue
            self._due, fresh = None, False
            if now - self._moved >= self._timeout:
                raise DeadlineExceeded(f"no action that was still valid came within {self._timeout:g} s{self._late}")
            wait = min(self._questions.due_in(now, 0), self._moved + self._timeout - now)
            self._hear(self._control.poll(max(wait, 0.0)))

    def late(self, row: Row, now: float) -> None:
        """The next one is due; what is seen from now on counts from when it is seen."""
        self._due = None

    def rest(self) -> None:
        """Wait until the period has passed: at once where the robot took as long itself."""
        now = time.monotonic()
        self._due = max((self._due or now) + self._period, now - SLACK * self._period)
        if now < self._due:
            self._pause(self._due - now)

    def _ask(self, observation: Observation, observed: float) -> None:
        committed = self._schedule.ahead(observed, self._questions.latency) if self._rule == "continue" else []
        told = None
        if committed:
            told = self._terms.told(np.stack([row.action for row in committed]), [row.ends for row in committed])
        sequence = self._control.ask(self._terms.seen(observation), told)
        self._questions.asked(sequence, observed, time.monotonic(), len(committed))

    def _hear(self, chunk: Chunk | None) -> None:
        if chunk is None or (asked := self._questions.answered(chunk.sequence, chunk.came)) is None:
            return
        if chunk.actions is None:
            raise ServerFault("the skill server gave one action where it had told of chunks; was its model changed?")
        if chunk.period and not math.isclose(chunk.period, self._period, rel_tol=1e-3):
            raise ServerFault(f"the chunk's period is {chunk.period:g} s; the robot's is {self._period:g} s")
        (observed, committed), now = asked, time.monotonic()
        rows = [self._terms.read(action) for action in chunk.actions]
        if not self._schedule.add(observed, np.stack([row for row, _ in rows]), [e for _, e in rows], now, committed):
            lasts = len(rows) * self._period
            self._late = f"; the last chunk was for {lasts:.2g} s and came {now - observed:.2g} s after its observation"
