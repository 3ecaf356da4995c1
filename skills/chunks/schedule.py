"""Schedule: which action of the chunks that came is due now. Pure: it neither waits nor looks at a clock.

    schedule = Schedule(period=1 / 30)
    schedule.add(observed, actions, ends, now)  # a chunk: row i is valid from i to i + 1 periods after `observed`
    row = schedule.take(now)                    # each row at most once; None: none is valid now, so nothing may move

Where chunks overlap, the one of the newest observation decides, by one of three rules:

- replace: from its first row that is still valid on, its rows take the place of the older ones.
- blend: over the time that both have rows for, the action goes from the older to the newer in equal steps; ends do not.
- continue: the rows that the policy was told of (`committed`) stay, and the newer ones follow them: real-time chunking,
  for policies that heed what they are told.

Rows after one that ends the skill are of no use, and left out. Where that row's time has passed when its chunk comes,
the skill is `over`: nothing moves any more.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Rule = Literal["replace", "blend", "continue"]
Chunks = Literal["replace", "blend", "continue", "off"]  # off: a robot asks for one action after the other

TOLERANCE = 0.01  # of a period: a row's time begins and ends earlier by this, so that sums of floats do not decide
RECENT = 8  # answers, from which it is told how long the next will take
FIRST_PATIENCE = 0.5  # [s] that the first answer may take until it is asked for again
PATIENCE = 0.15, 1.0  # [s] at least, at most, that later ones may
PROMPT = 2  # times that an answer is asked for again before the patience doubles each time
MARGIN = 2  # [periods] that an answer may take longer than the recent ones


@dataclass(frozen=True, eq=False)
class Row:
    """What the robot is sent for one period, of time.monotonic [s]."""

    action: np.ndarray  # (D,) float32
    ends: bool  # the skill, once it is carried out
    begins: float  # [s]
    until: float  # [s] from then on it is out of date


class Schedule:
    """Rows for consecutive periods."""

    def __init__(self, period: float, rule: Rule = "replace", kept: int | None = None) -> None:
        """kept: number of an action that is never blended, such as the one that terminates."""
        self._period, self._rule, self._kept = period, rule, kept
        self._rows: deque[Row] = deque()
        self._observed = -math.inf
        self._missed = -math.inf  # [s] when a row began that would have ended the skill, and was missed
        self.over = False

    def add(self, observed: float, actions: np.ndarray, ends: Sequence[bool], now: float, committed: int = 0) -> bool:
        """A chunk that came. actions: (N, D); ends: which of them end the skill; committed: how many of its first
        periods the policy was told of. False, and nothing changes, where a newer observation's came before, or all of
        it is out of date."""
        rows = [self._row(action, end, observed, i) for i, (action, end) in enumerate(zip(actions, ends, strict=True))]
        valid = next((i for i, row in enumerate(rows) if now < row.until), len(rows))
        if observed <= self._observed or valid == len(rows):
            return False
        self._observed = observed
        older = [self._at(row.begins) for row in rows]
        overlap = sum(row is not None for row in older[valid:])
        for i in range(valid, len(rows)):
            rows[i] = self._mixed(rows[i], older[i], (i - valid + 1) / (overlap + 1), i < committed)
        last = next((i for i, row in enumerate(rows) if row.ends), len(rows) - 1)
        # A policy need not say again what it was told of
        told = self._rule == "continue" and -0.5 <= (self._missed - observed) / self._period < committed - 0.5
        self.over = told or last < valid
        self._rows = deque(rows[valid : last + 1])
        return True

    def take(self, now: float) -> Row | None:
        """What is due."""
        self._drop(now)
        return self._rows.popleft() if self._rows and self._rows[0].begins <= now + self._slack else None

    def left(self, now: float) -> int:
        """[periods] from now on for which there are rows."""
        self._drop(now)
        return len(self._rows)

    def begins(self, now: float) -> float | None:
        """[s] when the next row's time begins or began; None: there is none."""
        self._drop(now)
        return self._rows[0].begins if self._rows else None

    def ahead(self, begins: float, count: int) -> list[Row]:
        """What is planned from then on, for `count` periods at most."""
        rows = (self._at(begins + i * self._period) for i in range(count))
        return list(itertools.takewhile(lambda row: row is not None, rows))  # type: ignore[arg-type]

    @property
    def _slack(self) -> float:
        return TOLERANCE * self._period

    def _row(self, action: np.ndarray, ends: bool, observed: float, i: int) -> Row:
        begins = observed + i * self._period
        return Row(action, bool(ends), begins, begins + self._period - self._slack)

    def _drop(self, now: float) -> None:
        while self._rows and now >= self._rows[0].until:
            if (row := self._rows.popleft()).ends:
                self._missed = row.begins

    def _at(self, begins: float) -> Row | None:
        """The row for most of the period that begins then."""
        i = round((begins - self._rows[0].begins) / self._period) if self._rows else -1
        return self._rows[i] if 0 <= i < len(self._rows) else None

    def _mixed(self, new: Row, old: Row | None, weight: float, committed: bool) -> Row:
        if old is None or self._rule == "replace" or (self._rule == "continue" and not committed):
            return new
        action = old.action.copy() if committed else ((1 - weight) * old.action + weight * new.action)
        ends = committed and old.ends  # what was planned to be the end stays it, whatever is answered
        if self._kept is not None and not ends:
            action[self._kept] = new.action[self._kept]
        return Row(action.astype(np.float32), ends or new.ends, new.begins, min(old.until, new.until))


class Questions:
    """Which observations are under way, when to send the next, and how long answers take. One at a time, unless its
    answer is overdue, by what the recent ones took: then a newer one goes after it. Asking sooner would get a server
    that has much to do even more."""

    def __init__(self, period: float, chunk: int) -> None:
        """chunk: [rows] of an answer."""
        self._period, self._chunk = period, chunk
        self._open: dict[int, tuple[float, int]] = {}  # sequence -> when it was observed [s], rows committed
        self._sent, self._tries = 0.0, 0
        self._took: deque[float] = deque(maxlen=RECENT)  # [s] from an observation to its answer

    @property
    def latency(self) -> int:
        """[periods] that pass until an answer is there, judged by the slowest of the recent ones."""
        return math.ceil(max(self._took, default=0.0) / self._period)

    def due_in(self, now: float, left: int) -> float:
        """[s] until the next question, when there are rows for `left` periods: while one is under way when its answer
        is overdue, else when half a chunk is left, or no more than lasts until the answer is there."""
        if self._open:
            return self._sent + self._patience() - now
        return (left - max(self._chunk // 2, self.latency + MARGIN)) * self._period

    def asked(self, sequence: int, observed: float, now: float, committed: int) -> None:
        self._tries = self._tries + 1 if self._open else 0
        self._open[sequence], self._sent = (observed, committed), now

    def answered(self, sequence: int, came: float) -> tuple[float, int] | None:
        """When what it answers was observed, and how many rows were committed; None where nobody waits for it."""
        found = self._open.get(sequence)
        self._open = {later: asked for later, asked in self._open.items() if later > sequence}
        if found is not None:
            self._took.append(came - found[0])
        return found

    def _patience(self) -> float:
        least, most = PATIENCE
        usual = max(1.5 * statistics.median(self._took), least) if self._took else FIRST_PATIENCE
        return min(usual * 2 ** max(0, self._tries - PROMPT), most)
