"""RobotService: lets clients run one Robot, one skill at a time, and stops it whenever anything goes wrong.

    with serve(robot, library, SkillClient("gpu-box:50051"), address="127.0.0.1:50052") as server:
        server.wait()

The robot is stopped when a skill ends, is cancelled, when its client disappears, when an action is late, when the skill
server dies or gives none at all, and on Stop, which also refuses further skills until Reset. A policy for another body
moves nothing: before each learnt skill the robot's embodiment is compared with the model's.
"""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import grpc
import numpy as np

from skills.client import CONTROL_TIMEOUT, Control, SkillClient
from skills.errors import (
    Busy,
    DeadlineExceeded,
    EmbodimentError,
    InvalidRequest,
    ServerFault,
    SkillError,
    Stopped,
    Unavailable,
)
from skills.latch import Latch
from skills.library import Skill, SkillLibrary
from skills.security.access import Access
from skills.serving.calls import MAX_GOAL_ID
from skills.serving.grpc_server import Server
from skills.serving.motion import PERIOD, Motion
from skills.serving.terms import Terms
from skills.serving.watching import NOBODY, Watcher
from skills.types import Observation, Outcome, Robot, Status, embodiment_of
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire.conventions import SCHEMA_VERSION
from skills.wire.messages import (
    JPEG,
    inside,
    read_text,
    write_embodiment,
    write_image,
    write_observation,
    write_outcome,
    write_tensor,
)

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["RobotService"].full_name
RETRY_AFTER = 1.0  # [s] that a client is told to wait while another goal runs; skills take some seconds
GOALS_REMEMBERED = 10_000  # whose ids are refused a second time, and whose results can be asked for
MAX_VIEWS = 8
URGENT = ("Stop", "CancelSkill")  # with threads of their own: they work while all others wait for the robot

T = TypeVar("T")
Event = pb.ExecuteSkillResponse | Exception


class _Goal:
    """One skill being run: its events for the client, and the way to end it from any thread."""

    def __init__(self, goal_id: str, skill: Skill, views: Sequence[str], robot: Robot) -> None:
        self.id, self.skill, self.views = goal_id, skill, views
        self.events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self.canceled = threading.Event()
        self.reason = ""  # why it was cancelled, for people
        self.steps, self.started = 0, time.monotonic()  # control periods done; when, of time.monotonic [s]
        self.motion = Motion(robot)
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

    def leave(self) -> None:
        """The call is over. gRPC says so from the thread that serves all calls, so a driver is not waited for here."""
        if not self._ended:
            threading.Thread(target=self._leave, name=f"leave {self.id}", daemon=True).start()

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

    def _leave(self) -> None:
        with suppress(ServerFault):  # it is in the log
            self.cancel("the client left")

    def end(self) -> None:
        with self._lock:
            self._ended = True
            self.motion.end()


class RobotServicer(skills_pb2_grpc.RobotServiceServicer):
    """All calls to the robot, except `stop`, come from one thread, always the same."""

    def __init__(
        self,
        robot: Robot,
        library: SkillLibrary,
        skill_client: SkillClient | None = None,  # None: scripted skills only
        max_steps: int | None = None,  # of a learnt skill; None: the embodiment's, the robot's own or the model's
        control_timeout: float = CONTROL_TIMEOUT,  # [s] from an observation until its action is too old
        latch: Latch | None = None,  # None: one that is forgotten with this object
    ) -> None:
        self._robot, self._library, self._skill_client = robot, library, skill_client
        self._max_steps, self._control_timeout = max_steps, control_timeout
        self._body = embodiment_of(robot)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="robot")
        self._lock = threading.Lock()
        self._goal: _Goal | None = None  # being executed
        self._results: OrderedDict[str, pb.Outcome | None] = OrderedDict()  # of each goal id; None: it runs
        self._latch = latch or Latch()
        self._closed = False

    def close(self) -> None:
        """Halt the robot and end the running goal, for a server that shuts down."""
        with self._lock:
            self._closed, goal = True, self._goal
        if goal is not None:
            goal.cancel("the robot's server is shutting down")
        self._robot.stop()

    def Observe(self, request: pb.ObserveRequest, context: grpc.ServicerContext) -> pb.ObserveResponse:
        views = _check_views(request.views)

        def look() -> tuple[Observation, dict[str, pb.Image]]:
            return self._robot.observe(), self._see(views)

        observation, seen = self._do(look)
        return pb.ObserveResponse(observation=write_observation(observation), views=seen)

    def JudgeInstruction(
        self, request: pb.JudgeInstructionRequest, context: grpc.ServicerContext
    ) -> pb.JudgeInstructionResponse:
        with inside("instruction"):
            instruction = read_text(request.instruction, "the instruction")
        verdict = self._do(self._robot.satisfied, instruction)
        return pb.JudgeInstructionResponse(known=verdict is not None, satisfied=bool(verdict))

    def GetRobotInfo(self, request: pb.GetRobotInfoRequest, context: grpc.ServicerContext) -> pb.GetRobotInfoResponse:
        with self._lock:
            stopped, executing = self._latch.is_set, self._goal.id if self._goal else ""
        return pb.GetRobotInfoResponse(
            schema_version=SCHEMA_VERSION,
            name=str(getattr(self._robot, "name", type(self._robot).__name__)),
            skills=len(self._library),
            skill_server=self._skill_client.address if self._skill_client else "",
            control_hz=self._body.control_hz if self._body else 0.0,
            max_steps=self._max_steps or Terms(self._body, None).max_steps or 0,
            stopped=stopped,
            executing=executing,
            embodiment=write_embodiment(self._body) if self._body else None,
            views=map(str, getattr(self._robot, "views", ())),
        )

    def Stop(self, request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StopResponse:
        with self._lock:
            self._latch.is_set, goal = True, self._goal
        try:
            if goal is not None:
                goal.cancel("the robot was stopped")
            self._robot.stop()
        finally:
            with self._lock:
                self._latch.set()  # last: a disk is slow
        return pb.StopResponse()

    def Reset(self, request: pb.ResetRequest, context: grpc.ServicerContext) -> pb.ResetResponse:
        with self._lock:
            self._latch.release()
        return pb.ResetResponse()

    def CancelSkill(self, request: pb.CancelSkillRequest, context: grpc.ServicerContext) -> pb.CancelSkillResponse:
        with self._lock:
            self._result(request.goal_id)  # or there was never such a goal
            goal = self._goal
        running = goal is not None and goal.id == request.goal_id and goal.cancel("canceled by the client")
        return pb.CancelSkillResponse(canceling=running)

    def GetGoal(self, request: pb.GetGoalRequest, context: grpc.ServicerContext) -> pb.GetGoalResponse:
        with self._lock:
            return pb.GetGoalResponse(result=self._result(request.goal_id))

    def _result(self, goal_id: str) -> pb.Outcome | None:
        if goal_id not in self._results:
            raise InvalidRequest(f"there was never a goal {goal_id[:MAX_GOAL_ID]!r}", "goal_id")
        return self._results[goal_id]

    def ExecuteSkill(
        self, request: pb.ExecuteSkillRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExecuteSkillResponse]:
        goal = self._accept(request)
        if not context.add_callback(goal.leave):  # also called after a normal end
            goal.leave()
        within = contextvars.copy_context().run  # the call's span
        threading.Thread(target=within, args=(self._run, goal), name=f"goal {goal.id}", daemon=True).start()
        context.send_initial_metadata(())  # tells the client that there is a goal now, which can be canceled
        while (event := goal.events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            if event.WhichOneof("event") == "result":
                context.set_code(grpc.StatusCode.OK)  # clients leave with it, without waiting for the call's end
            yield event

    def _accept(self, request: pb.ExecuteSkillRequest) -> _Goal:
        goal_id = request.goal_id
        if not 1 <= len(goal_id) <= MAX_GOAL_ID:
            raise InvalidRequest(f"a goal id has 1 to {MAX_GOAL_ID} characters, not {len(goal_id)}", "goal_id")
        with inside("skill"):
            skill = self._library[read_text(request.skill, "the skill")]
        views = _check_views(request.views)
        if skill.learned and self._skill_client is None:
            raise Unavailable(
                f"this robot has no skill server, and {skill.name!r} is learnt; it runs scripted skills only"
            )
        with self._lock:
            if self._closed:
                raise Unavailable("the robot's server is shutting down")
            if self._latch.is_set:
                raise Stopped("the robot is stopped; reset it before the next skill")
            if goal_id in self._results:
                raise InvalidRequest(f"goal {goal_id!r} was given before; each goal runs at most once", "goal_id")
            if self._goal is not None:
                raise Busy(f"the robot still executes {self._goal.skill.name!r} (goal {self._goal.id!r})", RETRY_AFTER)
            self._results[goal_id] = None
            if len(self._results) > GOALS_REMEMBERED:
                self._results.popitem(last=False)
            self._goal = _Goal(goal_id, skill, views, self._robot)
            return self._goal

    def _run(self, goal: _Goal) -> None:
        """The goal's own thread: whatever happens, the robot ends stopped and the client gets its last event."""
        last: Event
        try:
            self._do(self._see, goal.views)  # an unknown view is refused before anything moves
            goal.events.put(pb.ExecuteSkillResponse(accepted=pb.Accepted(goal_id=goal.id)))
            status, message = (self._learned if goal.skill.learned else self._scripted)(goal)
            result = write_outcome(goal.outcome(status, message))
            last = pb.ExecuteSkillResponse(result=result)
        except Exception as error:
            if not isinstance(error, SkillError):
                facts = {"goal_id": goal.id}
                log.error("the robot's driver failed in %r", goal.skill.name, exc_info=error, extra=facts)
                error = ServerFault(f"the robot's driver failed in {goal.skill.name!r}; the robot's log has the reason")
            result = write_outcome(Outcome(Status.ABORTED, str(error), goal.steps, time.monotonic() - goal.started))
            last = error
        goal.end()
        with self._lock:
            self._results[goal.id] = result
            self._goal = None  # first, so that a client can send the next goal as soon as it has the result
        goal.events.put(last)
        goal.events.put(None)

    def _learned(self, goal: _Goal) -> tuple[Status, str]:
        assert self._skill_client is not None  # _accept refused otherwise
        ended = success = False
        try:
            terms = agree(self._robot, self._skill_client, self._control_timeout)
        except SkillError as error:
            return Status.ABORTED, str(error)
        goal.motion.period = terms.period or PERIOD
        self._do(goal.motion.run, self._robot.start, goal.skill)
        begun = observed = time.monotonic()
        observation = self._do(self._robot.observe)
        try:
            with self._skill_client.control(goal.skill.name, self._control_timeout, goal_id=goal.id) as control:
                goal.use(control)
                while not (ended or success) and not self._over(goal, terms, begun) and not goal.canceled.is_set():
                    action, ended = terms.read(control.act(terms.seen(observation)))
                    if not self._do(self._apply, goal, action, observed):
                        break
                    goal.steps += 1
                    observed = time.monotonic()
                    observation = self._do(self._observe_and_report, goal, goal.steps, action)
                    success = terms.by_success and self._do(self._robot.succeeded, goal.skill) is True
                status, message = (Status.SUCCEEDED, "") if success else self._judge(goal, terms, ended)
                control.end(goal.outcome(status, message))
        except SkillError as error:
            return Status.ABORTED, str(error)
        self._do(goal.motion.run, self._robot.finish, goal.skill, goal.canceled.is_set)
        return status, message

    def _over(self, goal: _Goal, terms: Terms, begun: float) -> bool:
        """Has the skill had its time?"""
        if most := self._max_steps or terms.max_steps:
            return goal.steps >= most
        return time.monotonic() - begun >= terms.max_seconds

    def _judge(self, goal: _Goal, terms: Terms, ended: bool) -> tuple[Status, str]:
        reached = self._do(self._robot.succeeded, goal.skill)
        if reached if reached is not None else ended:
            return Status.SUCCEEDED, ""
        if ended:
            return Status.FAILED, "the goal was not reached"
        known = terms.terminates or reached is not None
        why = "" if known else "; no action terminates, and the driver cannot tell whether the goal was reached"
        return Status.FAILED, f"no end within {goal.steps} steps{why}"

    def _apply(self, goal: _Goal, action: np.ndarray, observed: float) -> bool:
        """False once the goal is canceled. The robot stands still while an action is late, so it fits until its
        observation, of time `observed` [s], is too old; also where this process itself was frozen meanwhile."""
        age = time.monotonic() - observed
        if age > self._control_timeout:
            raise DeadlineExceeded(f"an action came {age:.1f} s after its observation, and was not applied")
        return goal.motion.apply(action)

    def _scripted(self, goal: _Goal) -> tuple[Status, str]:
        def canceled() -> bool:
            """What the robot asks now and then; with views asked for, the client sees them each time."""
            if goal.views:
                self._observe_and_report(goal, 0, None)
            return goal.canceled.is_set()

        def perform() -> None:
            goal.motion.run(self._robot.start, goal.skill)
            if goal.motion.run(self._robot.perform, goal.skill, canceled):
                self._observe_and_report(goal, 0, None)

        try:
            self._do(perform)
        except ValueError as error:
            return Status.ABORTED, str(error)
        if self._do(self._robot.succeeded, goal.skill) is False:
            return Status.FAILED, "the goal was not reached"
        return Status.SUCCEEDED, ""

    def _observe_and_report(self, goal: _Goal, step: int, action: np.ndarray | None) -> Observation:
        observation = self._robot.observe()
        feedback = pb.Feedback(step=step, state=write_tensor(observation.state), views=self._see(goal.views))
        if action is not None:
            feedback.action.CopyFrom(write_tensor(action))
        goal.events.put(pb.ExecuteSkillResponse(feedback=feedback))
        return observation

    def _see(self, views: Sequence[str]) -> dict[str, pb.Image]:
        try:
            return {name: write_image(self._robot.view(name), JPEG) for name in views}
        except KeyError as error:
            raise InvalidRequest(f"the robot has no view {error}", "views") from None

    def _do(self, call: Callable[..., T], *arguments: object) -> T:
        """Run on the robot's thread."""
        return self._thread.submit(call, *arguments).result()


def _check_views(views: Sequence[str]) -> list[str]:
    with inside("views"):
        if len(views) > MAX_VIEWS:
            raise InvalidRequest(f"{len(views)} views at once; at most {MAX_VIEWS}")
        return [read_text(view, "a view's name") for view in views]


def agree(robot: Robot, skills: SkillClient, timeout: float | None = None) -> Terms:
    """How the skill server's model moves this robot. Raises EmbodimentError where it is for another one, with the first
    difference in one line, and SkillError where the server does not answer."""
    model = skills.acting(timeout)
    who = f"{model.actor_id or 'the model'} of the skill server at {skills.address}"
    try:
        terms = Terms(embodiment_of(robot), model.embodiment)
    except EmbodimentError as error:
        raise EmbodimentError(f"{who}: {error}") from None
    if terms.robot and terms.model and (wide := terms.model.beyond(terms.robot)):
        log.warning("%s: %s; what lies beyond is cut", who, wide)
    return terms


def serve(
    robot: Robot,
    library: SkillLibrary,
    skill_client: SkillClient | None = None,
    *,
    address: str = "127.0.0.1:0",
    max_steps: int | None = None,  # of a learnt skill; None: the embodiment's, the robot's own or the model's
    control_timeout: float = CONTROL_TIMEOUT,
    latch: Latch | None = None,  # with a file, Stop outlives this process
    access: Access | None = None,  # who may call; None: whoever reaches a loopback address
    watcher: Watcher = NOBODY,  # is told of calls
) -> Server:
    """A running robot server; port 0 takes a free port, `.address` says which."""
    servicer = RobotServicer(robot, library, skill_client, max_steps, control_timeout, latch)

    def add(server: grpc.Server) -> None:
        skills_pb2_grpc.add_RobotServiceServicer_to_server(servicer, server)

    return Server(add, SERVICE, address, on_stop=servicer.close, access=access, urgent=URGENT, watcher=watcher)
