"""RobotService: lets clients run one Robot, one skill at a time, and stops it whenever anything goes wrong.

    with serve(robot, library, SkillClient("gpu-box:50051"), address="127.0.0.1:50052") as server:
        server.wait()

The robot is stopped when a skill ends, is cancelled, when its client disappears, when an action is late, when the skill
server dies or gives none at all, and on Stop, which also refuses further skills until Reset. A policy for another body
moves nothing: before each learnt skill the robot's embodiment is compared with the model's. Who may start and cancel is
settled by `skills.security.lease`, whose turn it is by `skills.serving.admission`.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial

import grpc
import numpy as np

from skills.chunks.schedule import Chunks
from skills.client import CONTROL_TIMEOUT, Preview, SkillClient
from skills.connective import ANALYTIC, connective_affordance
from skills.errors import (
    Busy,
    InvalidRequest,
    ServerFault,
    SkillError,
    Stopped,
    Unavailable,
    UnknownSkill,
)
from skills.guard.link import Guard
from skills.guard.pulse import Pulse
from skills.latch import Latch
from skills.library import Skill, SkillLibrary
from skills.security.access import Access
from skills.security.lease import Leases
from skills.serving.admission import PREEMPT, QUEUE, REFUSE, RETRY_AFTER, Admission, Place
from skills.serving.calls import MAX_GOAL_ID
from skills.serving.execution import Executor, Experience, agree
from skills.serving.goal import Event, Goal
from skills.serving.grpc_server import Server
from skills.serving.looking import Look
from skills.serving.motion import UNSTOPPED
from skills.serving.terms import Terms
from skills.serving.watching import NOBODY, Watcher
from skills.types import Imaginer, Observation, Outcome, Robot, Status, embodiment_of
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire.conventions import PING_INTERVAL, SCHEMA_VERSION, join_address, split_address
from skills.wire.messages import (
    JPEG,
    inside,
    read_text,
    write_embodiment,
    write_image,
    write_jpeg,
    write_observation,
    write_outcome,
    write_tensor,
)

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["RobotService"].full_name
GOALS_REMEMBERED = 10_000  # whose ids are refused a second time, and whose results can be asked for
MAX_VIEWS = 8
NO_THREAD = "the robot's computer has no thread left for a goal"
MAX_ASIDES = 4  # questions at one time that may take long: judging an instruction, previewing a goal
OVER_THE_CAMERA = "over the camera"  # what a driver's value map shows
MARGIN = 0.2  # [s] before a call's deadline in which it is told why its goal was not begun
MAX_REQUEST = 64 * 2**10  # [bytes]; a robot is told little, and answers with images
URGENT = ("Stop", "CancelSkill")  # with threads of their own: they work while all others wait for the robot


class RobotServicer(skills_pb2_grpc.RobotServiceServicer):
    """All calls to the robot, except `stop`, come from one thread, always the same."""

    def __init__(
        self,
        robot: Robot,
        library: SkillLibrary,
        skill_client: SkillClient | None = None,  # None: scripted skills only
        max_steps: int | None = None,  # of a learnt skill; None: the embodiment's, the robot's own or the model's
        control_timeout: float = CONTROL_TIMEOUT,  # [s] until an action is too old; in chunks, of standing still
        chunks: Chunks = "replace",  # how those of a model that gives them follow one another (skills.chunks.schedule)
        *,
        guard: Guard,  # without its word nothing moves
    ) -> None:
        self._robot, self._library, self._skill_client, self._guard = robot, library, skill_client, guard
        self._max_steps, self._body = max_steps, embodiment_of(robot)
        self._executor = Executor(robot, skill_client, max_steps, control_timeout, chunks)
        self._lock = threading.Lock()
        self._admission, self._leases = Admission(), Leases(self._lapsed)
        self._experience, self._asides = Experience(), threading.BoundedSemaphore(MAX_ASIDES)
        # Of each goal id, as bytes, which take half a kilobyte less than a message; None: it runs, or waits
        self._results = full_table(GOALS_REMEMBERED)
        self._closed = False
        guard.on_halt = self._halted

    def close(self) -> None:
        """Halt the robot and end the running goal, for a server that shuts down."""
        with self._lock:
            self._closed, goal = True, self._admission.clear("the robot's server is shutting down")
        self._leases.close()
        if goal is not None:
            with suppress(ServerFault):  # it is in the log
                goal.cancel("the robot's server is shutting down")
        self._robot.stop()

    def Observe(self, request: pb.ObserveRequest, context: grpc.ServicerContext) -> pb.ObserveResponse:
        look = self._look(_check_views(request.views), context)
        return pb.ObserveResponse(observation=write_observation(look.observation), views=look.views, age=look.age)

    def _look(self, views: Sequence[str], context: grpc.ServicerContext) -> Look:
        return self._executor.eyes.look(views, self._busy, context.is_active)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Raises Busy where many ask already: threads are for those who move the robot, too."""
        if not self._asides.acquire(blocking=False):
            raise Busy(f"this robot answers {MAX_ASIDES} such questions already", RETRY_AFTER)
        try:
            yield
        finally:
            self._asides.release()

    def _busy(self) -> bool:
        return bool(self._admission.running)

    def JudgeInstruction(
        self, request: pb.JudgeInstructionRequest, context: grpc.ServicerContext
    ) -> pb.JudgeInstructionResponse:
        with inside("instruction"):
            instruction = read_text(request.instruction, "the instruction")
        with self._aside():
            verdict = self._executor.do_soon(lambda: self._robot.satisfied(instruction), self._busy, context.is_active)
        return pb.JudgeInstructionResponse(known=verdict is not None, satisfied=bool(verdict))

    def GetRobotInfo(self, request: pb.GetRobotInfoRequest, context: grpc.ServicerContext) -> pb.GetRobotInfoResponse:
        with self._lock:
            executing, queued = self._admission.running, self._admission.waiting
        return pb.GetRobotInfoResponse(
            schema_version=SCHEMA_VERSION,
            name=str(getattr(self._robot, "name", type(self._robot).__name__)),
            skills=len(self._library),
            skill_server=self._skill_client.address if self._skill_client else "",
            control_hz=self._body.control_hz if self._body else 0.0,
            max_steps=self._max_steps or Terms(self._body, None).max_steps or 0,
            stopped=self._guard.stopped,
            executing=executing,
            queued=queued,
            leased_to=self._leases.owner,
            embodiment=write_embodiment(self._body) if self._body else None,
            views=map(str, getattr(self._robot, "views", ())),
            stop_address=self._guard.address,
            stop_tls=self._guard.tls,
            ping_interval_ms=PING_INTERVAL,
        )

    def Stop(self, request: pb.StopRequest, context: grpc.ServicerContext) -> pb.StopResponse:
        with self._guard.stopping():
            with self._lock:
                goal = self._admission.clear("the robot was stopped")
            if goal is not None:
                goal.cancel("the robot was stopped")
            self._robot.stop()
        return pb.StopResponse()

    def _halted(self, why: str) -> None:
        """By the guard."""
        with self._lock:
            goal = self._admission.clear(why)
        if goal is not None:
            goal.cancel(why)

    def Reset(self, request: pb.ResetRequest, context: grpc.ServicerContext) -> pb.ResetResponse:
        with self._lock:
            self._leases.check(request.lease_id)
            if self._guard.stopped:  # what the guard stopped may not have been told yet, and must not begin now
                self._admission.clear("the robot was stopped")
        self._guard.reset()
        return pb.ResetResponse()

    def CancelSkill(self, request: pb.CancelSkillRequest, context: grpc.ServicerContext) -> pb.CancelSkillResponse:
        with self._lock:
            self._leases.check(request.lease_id)
            self._result(request.goal_id)  # or there was never such a goal
        return pb.CancelSkillResponse(canceling=self._admission.cancel(request.goal_id, "canceled by the client"))

    def GetGoal(self, request: pb.GetGoalRequest, context: grpc.ServicerContext) -> pb.GetGoalResponse:
        with self._lock:
            return pb.GetGoalResponse(result=self._result(request.goal_id))

    def _result(self, goal_id: str) -> pb.Outcome | None:
        if goal_id not in self._results:
            raise InvalidRequest(f"there was never a goal {goal_id[:MAX_GOAL_ID]!r}", "goal_id")
        result = self._results[goal_id]
        return None if result is None else pb.Outcome.FromString(result)

    def AcquireLease(self, request: pb.AcquireLeaseRequest, context: grpc.ServicerContext) -> pb.AcquireLeaseResponse:
        with self._lock:
            if self._closed:
                raise Unavailable("the robot's server is shutting down")
            if (running := self._admission.running) and not self._leases.owner:
                raise Busy(f"the robot executes goal {running!r} of somebody without a lease", RETRY_AFTER)
            lease_id, seconds = self._leases.acquire(request.owner, request.seconds)
        return pb.AcquireLeaseResponse(lease_id=lease_id, seconds=seconds)

    def KeepLease(self, request: pb.KeepLeaseRequest, context: grpc.ServicerContext) -> pb.KeepLeaseResponse:
        self._leases.keep(request.lease_id)
        return pb.KeepLeaseResponse()

    def ReleaseLease(self, request: pb.ReleaseLeaseRequest, context: grpc.ServicerContext) -> pb.ReleaseLeaseResponse:
        self._leases.release(request.lease_id)
        return pb.ReleaseLeaseResponse()

    def _lapsed(self, owner: str) -> None:
        reason = f"the lease of {owner!r} ran out"
        with self._lock:  # whoever was let in before is among them
            goal = self._admission.clear(reason)
        log.warning("%s; what it had begun is canceled", reason)
        if goal is not None:
            with suppress(ServerFault):  # it is in the log
                goal.cancel(reason)

    def PreviewGoal(self, request: pb.PreviewGoalRequest, context: grpc.ServicerContext) -> pb.PreviewGoalResponse:
        skill = self._skill(request.skill)
        observation = self._look((), context).observation
        if not skill.learned:
            preview = self._by_rule(skill, observation)
        else:
            assert self._skill_client is not None  # `_skill` refuses it otherwise
            with self._aside():
                agree(self._robot, self._skill_client)
                preview = _write_preview(self._skill_client.preview(skill.name, [observation]))
                if (picture := self._imagined(skill, context)) is not None:
                    preview.value_maps[OVER_THE_CAMERA].CopyFrom(write_image(picture, JPEG))
        preview.expected_seconds = self._experience.expected(skill.name)
        return pb.PreviewGoalResponse(preview=preview)

    def _by_rule(self, skill: Skill, observation: Observation) -> pb.Preview:
        """Of a scripted skill. Rules do not travel: those of skills that came over the wire the skill server knows."""
        if self._skill_client is not None and skill.rule is None:
            with self._aside(), suppress(UnknownSkill):  # it is this robot's alone
                return _write_preview(self._skill_client.preview(skill.name, [replace(observation, images={})]))
        raw = connective_affordance(skill, observation)
        score = pb.SkillScore(skill=skill.name, affordance=min(max(raw, 0.0), 1.0), raw=raw, model_id=ANALYTIC)
        return pb.Preview(score=score)

    def _imagined(self, skill: Skill, context: grpc.ServicerContext) -> np.ndarray | None:
        """The skill's value over a camera's picture, where the driver imagines that and nothing keeps its thread."""
        robot, judge = self._robot, self._skill_client
        if not isinstance(robot, Imaginer) or self._busy():
            return None
        assert judge is not None, "there is one for learnt skills"
        try:
            draw = self._executor.do_soon(lambda: robot.imagine(skill), self._busy, context.is_active)
        except Busy:
            return None
        return draw and draw(lambda seen: judge.score([seen], [skill.name])[0].affordance)

    def ExecuteSkill(
        self, request: pb.ExecuteSkillRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExecuteSkillResponse]:
        skill, views, place = self._accept(request)
        goal, unbegun = None, Outcome(Status.CANCELED, "the client left")
        try:
            left = partial(place.client_left, self._guard.later)
            if not context.add_callback(left):  # also called after a normal end
                left()
            context.send_initial_metadata(())  # tells the client that there is a goal now, which can be canceled
            place.make_way()
            if place.ahead and request.when_busy == QUEUE:
                yield pb.ExecuteSkillResponse(queued=pb.Queued(ahead=place.ahead))
            if place.wait(_patience(context)):
                goal = self._begin(place, skill, views)
            else:
                unbegun = Outcome(Status.CANCELED, place.reason)
        except Exception as error:
            unbegun = Outcome(Status.ABORTED, str(error) if isinstance(error, SkillError) else "the service failed")
            raise
        finally:
            if goal is None:
                self._end(place, result := write_outcome(unbegun))
        if goal is None:
            context.set_code(grpc.StatusCode.OK)
            yield pb.ExecuteSkillResponse(result=result)
            return
        while (event := goal.events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            if event.WhichOneof("event") == "result":
                context.set_code(grpc.StatusCode.OK)  # clients leave with it, without waiting for the call's end
            yield event

    def _skill(self, name: str) -> Skill:
        """Raises UnknownSkill, and Unavailable for a learnt one where there is no skill server."""
        with inside("skill"):
            skill = self._library[read_text(name, "the skill")]
        if skill.learned and self._skill_client is None:
            raise Unavailable(
                f"this robot has no skill server, and {skill.name!r} is learnt; it runs scripted skills only"
            )
        return skill

    def _accept(self, request: pb.ExecuteSkillRequest) -> tuple[Skill, list[str], Place]:
        goal_id = request.goal_id
        if not 1 <= len(goal_id) <= MAX_GOAL_ID:
            raise InvalidRequest(f"a goal id has 1 to {MAX_GOAL_ID} characters, not {len(goal_id)}", "goal_id")
        with inside("goal_id"):
            read_text(goal_id, "the goal id")
        if request.when_busy not in (REFUSE, PREEMPT, QUEUE):
            raise InvalidRequest(f"there is no way {request.when_busy} of being busy", "when_busy")
        skill, views = self._skill(request.skill), _check_views(request.views)
        with self._lock:
            if self._closed:
                raise Unavailable("the robot's server is shutting down")
            self._leases.check(request.lease_id)
            if self._guard.stopped:
                raise Stopped("the robot is stopped; reset it before the next skill")
            if why := self._guard.refusal():
                raise Unavailable(why)
            if goal_id in self._results:
                raise InvalidRequest(f"goal {goal_id!r} was given before; each goal runs at most once", "goal_id")
            place = self._admission.enter(goal_id, skill.name, request.when_busy)
            self._results[goal_id] = None
            if len(self._results) > GOALS_REMEMBERED:
                self._results.popitem(last=False)
        return skill, views, place

    def _begin(self, place: Place, skill: Skill, views: Sequence[str]) -> Goal:
        """Its turn has come: from now on the goal has a thread of its own."""
        try:
            goal = Goal(place.goal_id, skill, views, self._robot, self._guard)
        except RuntimeError:
            raise Unavailable(NO_THREAD) from None
        with suppress(ServerFault):  # where it was canceled meanwhile; it is in the log
            place.begin(goal)
        within = contextvars.copy_context().run  # the call's span
        thread = threading.Thread(target=within, args=(self._run, goal, place), name=f"goal {goal.id}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            goal.end()
            raise Unavailable(NO_THREAD) from None
        return goal

    def _end(self, place: Place, result: pb.Outcome) -> None:
        with self._lock:
            self._results[place.goal_id] = result.SerializeToString()
            place.leave()

    def _run(self, goal: Goal, place: Place) -> None:
        """The goal's own thread: whatever happens, the robot ends stopped and the client gets its last event."""
        last: Event
        try:
            self._executor.do(self._executor.eyes.see, goal.views)  # an unknown view is refused before anything moves
            goal.events.put(pb.ExecuteSkillResponse(accepted=pb.Accepted(goal_id=goal.id)))
            outcome = goal.outcome(*self._executor.carry_out(goal))
            if outcome.succeeded:
                self._experience.add(goal.skill.name, outcome.seconds)
            last = pb.ExecuteSkillResponse(result=write_outcome(outcome))
        except BaseException as error:  # drivers call sys.exit, too, and what asyncio cancels is no Exception either
            if not isinstance(error, SkillError):
                facts = {"goal_id": goal.id}
                log.error("the robot's driver failed in %r", goal.skill.name, exc_info=error, extra=facts)
                error = ServerFault(f"the robot's driver failed in {goal.skill.name!r}; the robot's log has the reason")
            last = error
        if not goal.end():
            last = ServerFault(UNSTOPPED)
            with suppress(ServerFault), self._guard.stopping(), self._lock:  # nothing else begins on a robot that moves
                self._admission.clear(UNSTOPPED)
        if isinstance(last, pb.ExecuteSkillResponse):
            result = last.result
        else:
            result = write_outcome(Outcome(Status.ABORTED, str(last), goal.steps, time.monotonic() - goal.started))
        self._end(place, result)  # first, so that a client can send the next goal as soon as it has the result
        goal.events.put(last)
        goal.events.put(None)


def full_table(count: int) -> OrderedDict[str | bytes, bytes | None]:
    """What remembers `count` goals, full from the start of what is no goal's and as large: a service that runs for long
    does not grow. A table of Python's takes twice the room once a few thousand entries have come and gone; in this one
    they have."""
    blanks = ((number.to_bytes(48), bytes(20)) for number in range(2 * count))
    table: OrderedDict[str | bytes, bytes | None] = OrderedDict(blanks)
    while len(table) > count:
        table.popitem(last=False)
    return table


def _patience(context: grpc.ServicerContext) -> float | None:
    """[s] that a goal may wait for its turn; None: for ever."""
    left = context.time_remaining()
    return None if left is None else max(0.0, left - MARGIN)


def _write_preview(preview: Preview) -> pb.Preview:
    score = preview.score
    told = pb.Preview(value_maps={name: write_jpeg(data) for name, data in preview.value_maps.items()})
    if score is not None:
        told.score.CopyFrom(
            pb.SkillScore(
                skill=score.skill,
                affordance=score.affordance,
                raw=score.raw,
                model_id=score.model,
                seconds=score.seconds,
            )
        )
    if preview.action is not None:
        told.action.CopyFrom(write_tensor(preview.action))
    return told


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
    chunks: Chunks = "replace",  # how those of a model that gives them follow one another (skills.chunks.schedule)
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
    parts = ExitStack()  # closed last first, whatever one of them raises

    def add(server: grpc.Server) -> None:
        skills_pb2_grpc.add_RobotServiceServicer_to_server(servicer, server)
        server.add_insecure_port(pulse.address)

    try:
        pulse = Pulse()
        parts.callback(pulse.close)
        guard = Guard(
            robot.stop,
            str(getattr(robot, "name", type(robot).__name__)),
            address=stop_address or join_address(host, 0),
            access=access,
            latch=latch,
            command=stop_command or str(getattr(robot, "stop_command", "")),
            ends=ends,
        )
        parts.push(lambda error, *_: guard.close(halted=error is None))  # of `servicer.close`, which comes before it
        if access is not None:
            parts.callback(access.listen(guard.renew))
        guard.on_loss = on_loss
        servicer = RobotServicer(robot, library, skill_client, max_steps, control_timeout, chunks, guard=guard)
        parts.callback(servicer.close)
        server = RobotServer(
            add,
            SERVICE,
            address,
            on_stop=parts.close,
            access=access,
            urgent=URGENT,
            watcher=watcher,
            max_message=MAX_REQUEST,
        )
    except BaseException:
        parts.close()
        raise
    server.guard = guard
    pulse.start(guard)
    return server
