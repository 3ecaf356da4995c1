"""One model, many callers: what waits when the model becomes free is computed as one batch.

    inference = Inference()                                       # one thread; threads=2: two batches at a time
    line = inference.line(act, act_many, callers=64, largest=32, patience=0.005)
    with line.caller():                                           # Busy at once, when 64 are there already
        action, seconds = line.ask(question).result()

A caller has one question at a time, so a line is never longer than its callers. Lines take turns at the model: however
many queue in one, another waits for one batch of it at most. Several threads are for a model that exists several times:
what waits is shared among those that have nothing to do.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from skills.errors import Busy, Unavailable

log = logging.getLogger(__name__)

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Asked(Generic[Question, Answer]):
    question: Question
    wanted: Callable[[], bool]
    answer: Future[tuple[Answer, float]] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Line(Generic[Question, Answer]):
    """The questions of one kind; made by `Inference.line`, which says what its parameters mean."""

    def __init__(
        self,
        inference: Inference,
        one: Callable[[Question], Answer],
        many: Callable[[], Callable[[Sequence[Question]], Sequence[Answer]] | None],
        callers: int,
        largest: int,
        patience: float,
        size: Callable[[Question], int],
        together: Callable[[Question, Question], bool],
        retry_after: float,
        full: str,
    ) -> None:
        self._inference, self._one, self._many = inference, one, many
        self._callers, self._largest, self._patience, self._size = callers, largest, patience, size
        self._together, self._retry_after, self._full = together, retry_after, full
        self._present = 0  # callers
        self._waiting: deque[_Asked[Question, Answer]] = deque()
        self._computing = 0  # questions
        self._seconds = 0.0  # that the latest batch took

    @property
    def callers(self) -> int:
        """That have a place now."""
        return self._present

    @property
    def waiting(self) -> int:
        """Questions that nobody computes yet."""
        return len(self._waiting)

    @contextmanager
    def caller(self) -> Iterator[None]:
        """A place, for one call or stream. Raises Busy at once when all are taken, with when to come again: after the
        batches that wait now."""
        with self._inference.changed:
            if self._present >= self._callers:
                batches = -(-sum(self._size(asked.question) for asked in self._waiting) // self._largest)
                raise Busy(self._full, retry_after=max(self._retry_after, batches * self._seconds))
            self._present += 1
        try:
            yield
        finally:
            with self._inference.changed:
                self._present -= 1

    def ask(self, question: Question, wanted: Callable[[], bool] = lambda: True) -> Future[tuple[Answer, float]]:
        """The answer, and the seconds that its batch took to compute. It is cancelled, not computed, if `wanted` says
        no when its turn has come. Raises Unavailable after `Inference.close`."""
        asked = _Asked[Question, Answer](question, wanted)
        with self._inference.changed:
            if self._inference.closed:
                raise Unavailable("this server is shutting down")
            self._waiting.append(asked)
            self._inference.changed.notify()
        return asked.answer

    def ready_in(self, now: float) -> float:
        """[s] until its next batch may begin; infinite when nobody waits. The caller holds the lock, as for `take`."""
        if not self._waiting:
            return float("inf")
        if len(self._waiting) >= min(self._present - self._computing, self._largest):  # nobody else could come along
            return 0.0
        return self._waiting[0].since + self._patience - now

    def take(self, threads: int) -> list[_Asked[Question, Answer]]:
        """The next batch, first come, first served, without those whom nobody waits for. Those who cannot be computed
        together with its first keep their places, and it leaves their part to the other `threads` that are free."""
        batch: list[_Asked[Question, Answer]] = []
        apart: list[_Asked[Question, Answer]] = []
        share = -(-sum(self._size(asked.question) for asked in self._waiting) // threads)
        room = min(share, self._largest) if self._many() is not None else 0
        while self._waiting and (not batch or self._size(self._waiting[0].question) <= room):
            asked = self._waiting.popleft()
            if batch and not self._together(batch[0].question, asked.question):
                apart.append(asked)
                continue
            if not asked.wanted():
                asked.answer.cancel()
            if asked.answer.set_running_or_notify_cancel():
                batch.append(asked)
                room -= self._size(asked.question)
        self._waiting.extendleft(reversed(apart))
        self._computing += len(batch)
        return batch

    def taken(self, batch: Sequence[_Asked[Question, Answer]]) -> None:
        """It is computed."""
        self._computing -= len(batch)

    def compute(self, batch: Sequence[_Asked[Question, Answer]]) -> None:
        """Answer each. One that the model refuses must not cost the others theirs: then each is computed alone."""
        many, started = self._many(), time.perf_counter()
        if len(batch) > 1 and many is not None:
            try:
                answers = many([asked.question for asked in batch])
                if len(answers) != len(batch):
                    raise TypeError(f"the model gave {len(answers)} answers to {len(batch)} questions")
            except Unavailable as error:  # it is the model that is missing: each alone would only wait longer
                for asked in batch:
                    asked.answer.set_exception(error)
                return
            except BaseException as error:  # else this thread, and every answer after, would be gone
                level = logging.INFO if isinstance(error, ValueError) else logging.WARNING  # a ValueError is a refusal
                log.log(level, "a batch of %d failed; each is computed alone", len(batch), exc_info=True)
            else:
                self._seconds = time.perf_counter() - started
                for asked, answer in zip(batch, answers, strict=True):
                    asked.answer.set_result((answer, self._seconds))
                return
        for asked in batch:
            started = time.perf_counter()
            try:
                answer = self._one(asked.question)
            except BaseException as error:  # likewise
                asked.answer.set_exception(error)
            else:
                self._seconds = time.perf_counter() - started
                asked.answer.set_result((answer, self._seconds))

    def refuse(self) -> None:
        while self._waiting:
            answer = self._waiting.popleft().answer
            if answer.set_running_or_notify_cancel():
                answer.set_exception(Unavailable("this server is shutting down"))


class Inference:
    """The threads that compute, and the lines in front of them."""

    def __init__(self, threads: int = 1) -> None:
        self.changed = threading.Condition()
        self.closed = False
        self._lines: deque[Line[Any, Any]] = deque()  # the one whose turn it is comes first
        self._free = threads  # that compute nothing
        self._threads = [threading.Thread(target=self._run, name="inference", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()
        atexit.register(self._end)

    def line(
        self,
        one: Callable[[Question], Answer],  # computes one answer
        many: Callable[[], Callable[[Sequence[Question]], Sequence[Answer]] | None],  # what computes several, if any
        *,
        callers: int,  # at one time; further ones are refused
        largest: int,  # a batch, in the questions' sizes; a question that is larger is a batch of its own
        patience: float = 0.0,  # [s] that the first question waits for company, as long as some caller has not asked
        size: Callable[[Question], int] = lambda _: 1,
        together: Callable[[Question, Question], bool] = lambda one, other: True,  # may a batch hold both?
        retry_after: float = 0.1,  # [s] that a caller who is refused waits, at least
        full: str = "all places are taken; try again later",  # said to a caller who is refused
    ) -> Line[Question, Answer]:
        line = Line(self, one, many, callers, largest, patience, size, together, retry_after, full)
        with self.changed:
            self._lines.append(line)
        return line

    def close(self) -> None:
        """Refuse what waits; what is being computed is still answered."""
        with self.changed:
            self.closed = True
            for line in self._lines:
                line.refuse()
            self.changed.notify_all()

    def _end(self) -> None:
        """An interpreter must not go away under a computation."""
        self.close()
        for thread in list(self._threads):
            thread.join()

    def _run(self) -> None:
        while (turn := self._next()) is not None:
            line, batch = turn
            line.compute(batch)
            with self.changed:
                line.taken(batch)
                self._free += 1
            del turn, batch  # images need not stay in memory until the next
        with self.changed:
            self._threads.remove(threading.current_thread())
            if not self._threads:
                atexit.unregister(self._end)

    def _next(self) -> tuple[Line[Any, Any], list[_Asked[Any, Any]]] | None:
        """The line whose turn it is, once it is ready, and its batch; None when closed."""
        with self.changed:
            while not self.closed:
                now, soonest = time.monotonic(), float("inf")
                for line in self._lines:
                    if (wait := line.ready_in(now)) <= 0:
                        self._lines.remove(line)
                        self._lines.append(line)
                        batch = line.take(self._free)
                        self._free -= 1
                        self.changed.notify()  # another thread has what this one left
                        return line, batch
                    soonest = min(soonest, wait)
                self.changed.wait(soonest if soonest < float("inf") else None)
        return None
