"""How a goal is carried out: learnt skills by actions of a skill server, scripted ones by the driver itself.

executor = Executor(robot, SkillClient("gpu-box:50051"))
status, message = executor.carry_out(goal)
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from skills.chunks.ahead import Ahead
from skills.chunks.schedule import Chunks, Row, Rule
from skills.client import CONTROL_TIMEOUT, Control, SkillClient
from skills.errors import Busy, DeadlineExceeded, EmbodimentError, SkillError
from skills.serving.goal import Goal
from skills.serving.looking import EVERY, PATIENCE, Eyes
from skills.serving.motion import PERIOD
from skills.serving.terms import Terms
from skills.types import Observation, Robot, Status, embodiment_of
from skills.v1 import skills_pb2 as pb
from skills.wire.messages import terms_of, write_tensor

log = logging.getLogger(__name__)

T = TypeVar("T")
AT_ONCE = 10  # looks of a scripted skill whose client wants views, beyond one in EVERY
REMEMBERED = 20  # successes of each skill, for how long it takes


class Rows(Protocol):
    """What a robot carries out, period by period."""

    def next(self, observation: Observation, observed: float, look: Callable[[], Observation]) -> Row | None:
        """Waits for it; None: the skill is over. observation: made since `observed` [s]; `look` makes another."""
        ...

    def late(self, row: Row, now: float) -> None:
        """It was not applied, as its time had passed. Raises DeadlineExceeded where the skill ends with that."""
        ...

    def rest(self) -> None:
        """Wait until the period that was begun has passed."""
        ...


class InTurn:
    """One action for each observation. The robot stands still while it is late, so it fits until its observation is too
    old. A period lasts as long as the driver takes, and `least` [s]."""

    def __init__(
        self,
        control: Control,
        terms: Terms,
        timeout: float,
        least: float = 0.0,  # of a driver that may return as soon as the robot is commanded, as it should with chunks
        pause: Callable[[float], object] = time.sleep,  # waits for so many seconds, or until all is over
    ) -> None:
        self._control, self._terms, self._timeout = control, terms, timeout
        self._least, self._pause, self._begun = least, pause, 0.0

    def next(self, observation: Observation, observed: float, look: Callable[[], Observation]) -> Row:
        action, ends = self._terms.read(self._control.act(self._terms.seen(observation)))
        self._begun = observed
        return Row(action, ends, observed, observed + self._timeout)

    def late(self, row: Row, now: float) -> None:
        raise DeadlineExceeded(f"an action came {now - row.begins:.1f} s after its observation, and was not applied")

    def rest(self) -> None:
        if (left := self._begun + self._least - time.monotonic()) > 0:
            self._pause(left)


class Executor:
    """All calls to the robot, except `stop`, come from its one thread."""

    def __init__(
        self,
        robot: Robot,
        skill_client: SkillClient | None = None,  # None: scripted skills only
        max_steps: int | None = None,  # of a learnt skill; None: the embodiment's, the robot's own or the model's
        control_timeout: float = CONTROL_TIMEOUT,  # [s] until an action is too old; in chunks, of standing still
        chunks: Chunks = "replace",  # how those of a model that gives them follow one another
    ) -> None:
        self._robot, self._skill_client, self._chunks = robot, skill_client, chunks
        self._max_steps, self._control_timeout = max_steps, control_timeout
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="robot")
        self.eyes = Eyes(robot, self._thread.submit)

    def do(self, call: Callable[..., T], *arguments: object) -> T:
        """Run on the robot's thread."""
        return self._thread.submit(call, *arguments).result()

    def do_soon(self, call: Callable[[], T], busy: Callable[[], bool], active: Callable[[], bool]) -> T:
        """Run on the robot's thread; raises Busy where a skill keeps that for longer than PATIENCE, or once the asker
        is not `active` any more."""
        began, asked = time.monotonic(), self._thread.submit(call)
        while not wait([asked], timeout=PATIENCE / 3).done:
            late = busy() and time.monotonic() - began >= PATIENCE
            if (late or not active()) and asked.cancel():
                raise Busy("the robot carries out a skill and cannot tell meanwhile", retry_after=1.0)
        return asked.result()

    def carry_out(self, goal: Goal) -> tuple[Status, str]:
        """How it ended, and why. Raises what the driver raises."""
        return (self._learned if goal.skill.learned else self._scripted)(goal)

    def _learned(self, goal: Goal) -> tuple[Status, str]:
        assert self._skill_client is not None  # who accepts goals refused it otherwise
        ended = success = sure = False
        try:
            terms = agree(self._robot, self._skill_client, self._control_timeout)
        except SkillError as error:
            return Status.ABORTED, str(error)
        goal.motion.period = terms.period or PERIOD
        self.do(goal.motion.run, self._robot.start, goal.skill)
        begun = observed = time.monotonic()
        observation = self.do(self.eyes.observe)
        rule, name, skills = self._rule(terms), goal.skill.name, self._skill_client
        try:
            with skills.control(name, self._control_timeout, goal_id=goal.id, chunks=rule is not None) as control:
                goal.use(control)
                rows = self._rows(goal, terms, control, rule)
                look = partial(self.do, self.eyes.observe)
                while not (ended or success) and not self._over(goal, terms, begun) and not goal.canceled.is_set():
                    if (row := rows.next(observation, observed, look)) is None:
                        ended = True
                        break
                    if not sure:  # the stream keeps its model from its first answer on; before, it may have changed
                        self._check_unchanged(terms, control)
                        sure = True
                    if (applied := self.do(self._apply, goal, rows, row)) is None:
                        observed, observation = time.monotonic(), look()  # that before is too old to be sent as new
                        continue
                    ended = row.ends
                    if not applied:
                        break
                    goal.steps += 1
                    rows.rest()
                    observed = time.monotonic()
                    observation = self.do(self._observe_and_report, goal, goal.steps, row.action)
                    success = terms.by_success and self._reached(goal) is True
                status, message = (Status.SUCCEEDED, "") if success else self._judge(goal, terms, ended)
                control.end(goal.outcome(status, message))
        except SkillError as error:
            return Status.ABORTED, str(error)
        self.do(goal.motion.run, self._robot.finish, goal.skill, goal.canceled.is_set)
        judged = status is Status.SUCCEEDED and not goal.canceled.is_set()
        if judged and self._reached(goal) is False:
            return Status.FAILED, "the goal was reached, and lost again on the way back"
        return status, message

    def _reached(self, goal: Goal) -> bool | None:
        """What the driver says, which may be a bool of NumPy's; it is not asked about a canceled goal, which it may
        never have started."""
        if goal.canceled.is_set():
            return None
        found = self.do(self._robot.succeeded, goal.skill)
        return None if found is None else bool(found)

    def _check_unchanged(self, terms: Terms, control: Control) -> None:
        """Is the stream's model that which was agreed upon? Raises EmbodimentError. A server that does not say is asked
        what it hosts, which takes a while."""
        assert self._skill_client is not None
        if (told := control.terms) is None:
            model = self._skill_client.acting(self._control_timeout)
            told = terms_of(model.embodiment, model.chunk)
        if told != terms_of(terms.model, terms.chunk):
            where = f"the skill server at {self._skill_client.address}"
            raise EmbodimentError(f"{where} got another model while the skill began; try again")

    def _over(self, goal: Goal, terms: Terms, begun: float) -> bool:
        """Has the skill had its time?"""
        if most := self._max_steps or terms.max_steps:
            return goal.steps >= most
        return time.monotonic() - begun >= terms.max_seconds

    def _judge(self, goal: Goal, terms: Terms, ended: bool) -> tuple[Status, str]:
        reached = self._reached(goal)
        if reached if reached is not None else ended:
            return Status.SUCCEEDED, ""
        if ended:
            return Status.FAILED, "the goal was not reached"
        known = terms.terminates or reached is not None
        why = "" if known else "; no action terminates, and the driver cannot tell whether the goal was reached"
        return Status.FAILED, f"no end within {goal.steps} steps{why}"

    def _apply(self, goal: Goal, rows: Rows, row: Row) -> bool | None:
        """False once the goal is canceled; None for what is out of date by now, also because this process itself was
        frozen meanwhile, and was not applied."""
        applied = goal.motion.apply(row.action, row.until)
        if applied is None:
            rows.late(row, time.monotonic())
        return applied

    def _rule(self, terms: Terms) -> Rule | None:
        """How the robot goes on with one chunk while the next is computed; None: one action after the other."""
        if self._chunks == "off" or terms.chunk <= 1:
            return None
        if terms.period is None:  # it must be known when each row is due
            why = "neither the robot nor the model says its control_hz"
        elif terms.model is not None and terms.model.history > 1:  # of which it would be shown one in each half chunk
            why = f"the model looks at the last {terms.model.history} periods, and was trained on each of them"
        else:
            return self._chunks
        log.warning("one action after the other: %s", why)
        return None

    def _rows(self, goal: Goal, terms: Terms, control: Control, rule: Rule | None) -> Rows:
        if rule is None:
            least = terms.period or 0.0 if self._chunks != "off" and terms.chunk > 1 else 0.0
            return InTurn(control, terms, self._control_timeout, least, goal.canceled.wait)
        return Ahead(control, terms, rule, self._control_timeout, goal.canceled.wait)

    def _scripted(self, goal: Goal) -> tuple[Status, str]:
        due = 0.0  # [s], of time.monotonic: when another view is due, at one in EVERY

        def canceled() -> bool:
            """What the robot asks often; with views asked for, the client sees them at most once in EVERY. A simulated
            robot does in no time what a film should show: so the first AT_ONCE wait for nothing."""
            nonlocal due
            if goal.views and (now := time.monotonic()) > due - AT_ONCE * EVERY:
                due = max(due, now) + EVERY
                self._observe_and_report(goal, 0, None)
            self.eyes.glance()
            return goal.canceled.is_set()

        def perform() -> None:
            self.eyes.open()
            goal.motion.run(self._robot.start, goal.skill)
            if goal.motion.run(self._robot.perform, goal.skill, canceled):
                self._observe_and_report(goal, 0, None)

        try:
            self.do(perform)
        except ValueError as error:
            return Status.ABORTED, str(error)
        if self._reached(goal) is False:
            return Status.FAILED, "the goal was not reached"
        return Status.SUCCEEDED, ""

    def _observe_and_report(self, goal: Goal, step: int, action: np.ndarray | None) -> Observation:
        observation = self.eyes.observe()
        feedback = pb.Feedback(step=step, state=write_tensor(observation.state), views=self.eyes.see(goal.views))
        if action is not None:
            feedback.action.CopyFrom(write_tensor(action))
        goal.events.put(pb.ExecuteSkillResponse(feedback=feedback))
        return observation


class Experience:
    """How long a robot's skills took where they succeeded; of its latest tries, since this process began."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = {}  # by skill, of which a library has so many

    def add(self, skill: str, seconds: float) -> None:
        self._seconds.setdefault(skill, deque(maxlen=REMEMBERED)).append(seconds)

    def expected(self, skill: str) -> float:
        """Their mean [s]; 0.0: it never succeeded yet."""
        took = list(self._seconds.get(skill, ()))
        return sum(took) / len(took) if took else 0.0


def agree(robot: Robot, skills: SkillClient, timeout: float | None = None) -> Terms:
    """How the skill server's model moves this robot. Raises EmbodimentError where it is for another one, with the first
    difference in one line, and SkillError where the server does not answer."""
    model = skills.acting(timeout)
    who = f"{model.actor_id or 'the model'} of the skill server at {skills.address}"
    try:
        terms = Terms(embodiment_of(robot), model.embodiment, model.chunk)
    except EmbodimentError as error:
        raise EmbodimentError(f"{who}: {error}") from None
    if terms.robot and terms.model and (wide := terms.model.beyond(terms.robot)):
        log.warning("%s: %s; what lies beyond is cut", who, wide)
    return terms
