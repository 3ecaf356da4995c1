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
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import grpc

from skills.client import CONTROL_TIMEOUT, SkillClient
from skills.errors import (
    Busy,
    InvalidRequest,
    ServerFault,
    SkillError,
    Stopped,
    Unavailable,
)
from skills.guard.link import Guard
from skills.guard.pulse import Pulse
from skills.latch import Latch
from skills.library import SkillLibrary
from skills.security.access import Access
from skills.serving.calls import MAX_GOAL_ID
from skills.serving.execution import Executor
from skills.serving.goal import Event, Goal
from skills.serving.grpc_server import Server
from skills.serving.terms import Terms
from skills.serving.watching import NOBODY, Watcher
from skills.types import Observation, Outcome, Robot, Status, embodiment_of
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire.conventions import SCHEMA_VERSION, join_address, split_address
from skills.wire.messages import (
    inside,
    read_text,
    write_embodiment,
    write_observation,
    write_outcome,
)

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["RobotService"].full_name
RETRY_AFTER = 1.0  # [s] that a client is told to wait while another goal runs; skills take some seconds
GOALS_REMEMBERED = 10_000  # whose ids are refused a second time, and whose results can be asked for
MAX_VIEWS = 8
URGENT = ("Stop", "CancelSkill")  # with threads of their own: they work while all others wait for the robot


class RobotServicer(skills_pb2_grpc.RobotServiceServicer):
    """All calls to the robot, except `stop`, come from one thread, always the same."""

    def __init__(
        self,
        robot: Robot,
        library: SkillLibrary,
        skill_client: SkillClient | None = None,  # None: scripted skills only
        max_steps: int | None = None,  # of a learnt skill; None: the embodiment's, the robot's own or the model's
        control_timeout: float = CONTROL_TIMEOUT,  # [s] from an observation until its action is too old
        *,
        guard: Guard,  # without its word nothing moves
    ) -> None:
        self._robot, self._library, self._skill_client, self._guard = robot, library, skill_client, guard
        self._max_steps, self._body = max_steps, embodiment_of(robot)
        self._executor = Executor(robot, skill_client, max_steps, control_timeout)
        self._lock = threading.Lock()
        self._goal: Goal | None = None  # being executed
        self._results: OrderedDict[str, pb.Outcome | None] = OrderedDict()  # of each goal id; None: it runs
        self._closed = False
        guard.on_halt = self._halted

    def close(self) -> None:
        """Halt the robot and end the running goal, for a server that shuts down."""
        with self._lock:
            self._closed, goal = True, self._goal
        if goal is not None:
            goal.cancel("the robot's server is shutting down")
        self._robot.stop()
        self._guard.close()

    def Observe(self, request: pb.ObserveRequest, context: grpc.ServicerContext) -> pb.ObserveResponse:
        views = _check_views(request.views)

        def look() -> tuple[Observation, dict[str, pb.Image]]:
            return self._robot.observe(), self._executor.see(views)

        observation, seen = self._executor.do(look)
        return pb.ObserveResponse(observation=write_observation(observation), views=seen)

    def JudgeInstruction(
        self, request: pb.JudgeInstructionRequest, context: grpc.ServicerContext
    ) -> pb.JudgeInstructionResponse:
        with inside("instruction"):
            instruction = read_text(request.instruction, "the instruction")
        verdict = self._executor.do(self._robot.satisfied, instruction)
        return pb.JudgeInstructionResponse(known=verdict is not None, satisfied=bool(verdict))

    def GetRobotInfo(self, request: pb.GetRobotInfoRequest, context: grpc.ServicerContext) -> pb.GetRobotInfoResponse:
        with self._lock:
            executing = self._goal.id if self._goal else ""
        return pb.GetRobotInfoResponse(
            schema_version=SCHEMA_VERSION,
            name=str(getattr(self._robot, "name", type(self._robot).__name__)),
            skills=len(self._library),
            skill_server=self._skill_client.address if self._skill_client else "",
            control_hz=self._body.control_hz if self._body else 0.0,
            max_steps=self._max_steps or Terms(self._body, None).max_steps or 0,
            stopped=self._guard.stopped,
            executing=executing,
            embodiment=write_embodiment(self._body) if self._body else None,
            views=map(str, getattr(self._robot, "views", ())),
            stop_address=self._guard.address,
            stop_tls=self._guard.tls,
        )

    def Stop(self, request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StopResponse:
        with self._guard.stopping():
            with self._lock:
                goal = self._goal
            if goal is not None:
                goal.cancel("the robot was stopped")
            self._robot.stop()
        return pb.StopResponse()

    def _halted(self, why: str) -> None:
        """By the guard."""
        with self._lock:
            goal = self._goal
        if goal is not None:
            goal.cancel(why)

    def Reset(self, request: pb.ResetRequest, context: grpc.ServicerContext) -> pb.ResetResponse:
        self._guard.reset()
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

        def left() -> None:
            """Also after a normal end. Called by the thread that serves all calls, which waits for no driver."""
            if not goal.ended:
                self._guard.later(goal.leave)

        if not context.add_callback(left):
            left()
        within = contextvars.copy_context().run  # the call's span
        threading.Thread(target=within, args=(self._run, goal), name=f"goal {goal.id}", daemon=True).start()
        context.send_initial_metadata(())  # tells the client that there is a goal now, which can be canceled
        while (event := goal.events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            if event.WhichOneof("event") == "result":
                context.set_code(grpc.StatusCode.OK)  # clients leave with it, without waiting for the call's end
            yield event

    def _accept(self, request: pb.ExecuteSkillRequest) -> Goal:
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
            if self._guard.stopped:
                raise Stopped("the robot is stopped; reset it before the next skill")
            if why := self._guard.refusal():
                raise Unavailable(why)
            if goal_id in self._results:
                raise InvalidRequest(f"goal {goal_id!r} was given before; each goal runs at most once", "goal_id")
            if self._goal is not None:
                raise Busy(f"the robot still executes {self._goal.skill.name!r} (goal {self._goal.id!r})", RETRY_AFTER)
            goal = Goal(goal_id, skill, views, self._robot, self._guard)
            self._results[goal_id] = None
            if len(self._results) > GOALS_REMEMBERED:
                self._results.popitem(last=False)
            self._goal = goal
            return goal

    def _run(self, goal: Goal) -> None:
        """The goal's own thread: whatever happens, the robot ends stopped and the client gets its last event."""
        last: Event
        try:
            self._executor.do(self._executor.see, goal.views)  # an unknown view is refused before anything moves
            goal.events.put(pb.ExecuteSkillResponse(accepted=pb.Accepted(goal_id=goal.id)))
            status, message = self._executor.carry_out(goal)
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


def _check_views(views: Sequence[str]) -> list[str]:
    with inside("views"):
        if len(views) > MAX_VIEWS:
            raise InvalidRequest(f"{len(views)} views at once; at most {MAX_VIEWS}")
        return [read_text(view, "a view's name") for view in views]


class RobotServer(Server):
    """A running robot server; its `guard.address` is where Stop always gets through."""

    guard: Guard


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
    stop_address: str = "",  # where the guard hears Stop, HOST:PORT; "": the same host, a free port
    stop_command: str = "",  # halts it without this process: "module:function" or http(s) address; "": the driver's own
    ends: bool = False,  # may the guard kill this process when it does not answer for a second?
    on_loss: Callable[[], None] = lambda: None,  # called when the guard has died: nothing can move any more
) -> RobotServer:
    """A running robot server and its guard; port 0 takes a free port, `.address` says which."""
    host, _ = split_address(address)
    (access or Access()).check(host)
    guard = Guard(
        robot.stop,
        str(getattr(robot, "name", type(robot).__name__)),
        address=stop_address or join_address(host, 0),
        access=access,
        latch=latch,
        command=stop_command or str(getattr(robot, "stop_command", "")),
        ends=ends,
    )
    pulse = Pulse(guard)
    guard.on_loss = on_loss
    servicer = RobotServicer(robot, library, skill_client, max_steps, control_timeout, guard=guard)

    def add(server: grpc.Server) -> None:
        skills_pb2_grpc.add_RobotServiceServicer_to_server(servicer, server)
        server.add_insecure_port(pulse.address)

    def close() -> None:
        servicer.close()
        pulse.close()

    try:
        server = RobotServer(add, SERVICE, address, on_stop=close, access=access, urgent=URGENT, watcher=watcher)
    except BaseException:
        close()
        raise
    server.guard = guard
    pulse.start()
    return server
