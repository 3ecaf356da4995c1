"""SkillClient and RobotClient: the two services as plain Python, one error tree, a deadline on every call.

    robot = RobotClient("127.0.0.1:50052")
    for event in robot.execute("pick coke can"):
        print(event)                       # Feedback, Feedback, ..., Outcome

Needs numpy, grpc and Pillow; neither torch nor mujoco, so it runs on a robot's small computer.
"""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import grpc
import numpy as np

from skills.embodiment import Embodiment
from skills.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ServerFault,
    SkillError,
    Stopped,
    Unavailable,
    UnknownSkill,
    Unreadable,
)
from skills.guard.client import stop_robot
from skills.library import SkillLibrary
from skills.security.channel import Credentials, open_channel
from skills.security.lease import LEASE_SECONDS, LONGEST, SHORTEST, Lease
from skills.types import Observation, Outcome, Status
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire.conventions import TERMS, error_of, join_address, split_address
from skills.wire.messages import (
    read_action,
    read_actions,
    read_embodiment,
    read_observation,
    read_outcome,
    read_skill,
    read_state,
    read_views,
    write_observation,
    write_outcome,
    write_tensor,
)
from skills.wire.tracing import carried

CALL_TIMEOUT = 30.0  # [s] for one answer; a service that dies is noticed at once, one that freezes within 4 s
CONTROL_TIMEOUT = 2.0  # [s] for one action: a robot waits no longer for a policy
EXECUTE_TIMEOUT = 600.0  # [s] for one skill from start to end
RELOAD_TIMEOUT = 300.0  # [s] for a model to be loaded and warm
SETTLE = 2.0  # [s] that a Reset waits until the Stop before it is over by both roads
UNCONFIRMED = "is latched, but its driver has not said that it halted; use the hardware's stop"
END_TIMEOUT = 1.0  # [s] for a skill's outcome to reach the skill server; nobody waits for that

WhenBusy = Literal["refuse", "preempt", "queue"]
WHEN_BUSY: dict[WhenBusy, pb.WhenBusy] = {
    "refuse": pb.WHEN_BUSY_UNSPECIFIED,
    "preempt": pb.WHEN_BUSY_PREEMPT,
    "queue": pb.WHEN_BUSY_QUEUE,
}
T = TypeVar("T")


@dataclass(frozen=True)
class SkillScore:
    """How likely one skill is to succeed from here."""

    skill: str
    affordance: float  # in [0, 1]
    raw: float  # the model's own number, before it was calibrated
    model: str  # which model said so, "analytic" for scripted skills
    seconds: float  # compute time of its batch


@dataclass(frozen=True)
class Preview:
    """What a skill would do from here."""

    score: SkillScore | None  # None: nothing judges it
    expected_seconds: float | None  # until it ends, where it succeeds; None: not known, as it never succeeded yet
    action: np.ndarray | None  # (D,) float32, what it would do first; None: it is scripted, or nothing acts
    value_maps: dict[str, bytes]  # JPEG: where the model sees value, by what each shows


@dataclass(frozen=True)
class Look:
    """What a robot perceived."""

    observation: Observation
    views: dict[str, bytes]  # JPEG, for people
    age: float  # [s]; 0: just now. A robot that carries out a skill and cannot look tells what it saw last


@dataclass(frozen=True)
class ModelInfo:
    """What a skill server hosts under one name."""

    name: str
    actor_id: str  # "" when it only judges
    critic_id: str  # "" when it only acts
    calibrated: bool  # its affordances are calibrated probabilities, not raw values
    embodiment: Embodiment | None = None  # of the robots that it is for; None: it does not say, or the server is older
    chunk: int = 0  # actions that it gives at a time; 0: one, or the server is older


@dataclass(frozen=True)
class ServerInfo:
    """What a skill server hosts; ids are those of its first model."""

    actor_id: str  # "" when it cannot act
    critic_id: str  # "" when it cannot judge
    skills: int
    control_hz: float  # 0.0: not known
    max_history: int  # observations in one request
    schema_version: int
    calibrated: bool  # learnt skills' affordances are calibrated probabilities, not raw values
    models: tuple[ModelInfo, ...] = ()  # all of them, the first one first
    embodiment: Embodiment | None = None  # of the first model's robots; None: it does not say, or the server is older

    def hosted(self, name: str = "") -> ModelInfo:
        """The model of this name, "" for the first; raises UnknownSkill, as its calls would."""
        if not name:  # older servers name none
            chunk = self.models[0].chunk if self.models else 0
            return ModelInfo("", self.actor_id, self.critic_id, self.calibrated, self.embodiment, chunk)
        models = {model.name: model for model in self.models}
        if name not in models:
            raise UnknownSkill(
                f"no model {name!r}; this skill server hosts {', '.join(models) or 'one without a name'}"
            )
        return models[name]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Actions for the periods to come: row i is for the time from i to i + 1 periods after its observation."""

    sequence: int  # of the observation, as `Control.ask` numbered it
    actions: np.ndarray | None  # (N, D) float32; None: the model gives no chunks
    period: float  # [s]; 0.0: not said
    seconds: float  # compute time
    came: float  # [s] of time.monotonic, when it arrived


@dataclass(frozen=True)
class RobotInfo:
    """What a robot is, and what it does now."""

    name: str
    skills: int
    skill_server: str  # address, "" for none
    control_hz: float  # 0.0: not known
    max_steps: int  # after which a learnt skill is ended; 0: not known
    stopped: bool
    executing: str  # goal id, "" when idle
    schema_version: int
    embodiment: Embodiment | None = None  # None: the driver does not say, or the service is older
    views: tuple[str, ...] = ()  # cameras for people; (): the driver does not say
    stop_address: str = ""  # of its guard, where Stop always gets through; "": the service is older
    leased_to: str = ""  # owner of the lease, "" for nobody
    queued: int = 0  # goals that wait for their turn


@dataclass(frozen=True)
class Feedback:
    """One control period of a running skill."""

    step: int  # periods done; 0 for a scripted skill
    state: np.ndarray  # (S,) float32 after the action
    action: np.ndarray | None = None  # (D,) float32, what the robot was sent; None for a scripted skill
    views: dict[str, bytes] = field(default_factory=dict)  # JPEG, after the action


class _Client:
    """A channel to one service; `service` names it in error messages. Without credentials it is in plain text."""

    service = "service"

    def __init__(self, address: str, timeout: float = CALL_TIMEOUT, credentials: Credentials | None = None) -> None:
        credentials = credentials or Credentials()
        self.address, self._timeout, self._credentials = address, timeout, credentials
        self._channel = open_channel(address, credentials)

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return self._credentials.metadata + carried()

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, method: Callable[..., Any], request: Any, read: Callable[[Any], T], timeout: float | None = None
    ) -> T:
        try:
            reply = method(request, timeout=timeout or self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._translate(error) from None
        except ValueError as error:  # grpc's word for a closed channel
            raise Unavailable(f"the connection to the {self.service} at {self.address} is closed") from error
        return self._read(read, reply)

    def _read(self, read: Callable[[Any], T], reply: Any) -> T:
        try:
            return read(reply)
        except InvalidRequest as error:
            raise ServerFault(
                f"the {self.service} at {self.address} sent a reply that cannot be used: {error}"
            ) from error

    def _translate(self, error: grpc.RpcError) -> SkillError:
        return error_of(error, f"the {self.service}", self.address)


class SkillClient(_Client):
    """Asks a skill server which skills there are, how likely they are to succeed, and for actions. `model` is the name
    of the model that judges and acts, unless a call names another; "": the server's first."""

    service = "skill server"

    def __init__(
        self, address: str, timeout: float = CALL_TIMEOUT, credentials: Credentials | None = None, model: str = ""
    ) -> None:
        super().__init__(address, timeout, credentials)
        self.model = model
        self._stub = skills_pb2_grpc.SkillServiceStub(self._channel)

    def info(self, timeout: float | None = None) -> ServerInfo:
        return self._ask(self._stub.GetServerInfo, pb.GetServerInfoRequest(), _read_server_info, timeout)

    def acting(self, timeout: float | None = None) -> ModelInfo:
        """The model that `control` gets its actions from. Raises UnknownSkill where there is none of that name."""
        return self.info(timeout).hosted(self.model)

    def list_skills(self) -> SkillLibrary:
        def read(reply: pb.ListSkillsResponse) -> SkillLibrary:
            return SkillLibrary(read_skill(skill) for skill in reply.skills)

        return self._ask(self._stub.ListSkills, pb.ListSkillsRequest(), read)

    def score(
        self, history: Sequence[Observation], names: Sequence[str] | None = None, model: str = ""
    ) -> list[SkillScore]:
        """The named skills (None: all), in that order; history is oldest first, the last one is now."""
        if names is not None and not names:
            return []
        seen = [write_observation(observation) for observation in history]
        request = pb.ScoreSkillsRequest(history=seen, names=names or (), model=model or self.model)
        return self._ask(self._stub.ScoreSkills, request, _read_scores)

    def preview(self, skill_name: str, history: Sequence[Observation], model: str = "") -> Preview:
        """What a skill would do from the history's last observation, without doing it."""
        seen = [write_observation(observation) for observation in history]
        request = pb.PreviewSkillRequest(skill=skill_name, history=seen, model=model or self.model)
        return self._ask(self._stub.PreviewSkill, request, lambda reply: _read_preview(reply.preview))

    def control(
        self,
        instruction: str,
        timeout: float = CONTROL_TIMEOUT,
        model: str = "",
        goal_id: str = "",  # the robot's goal, for the server's log and recordings
        chunks: bool = False,  # several actions at a time, from a model that gives them
    ) -> Control:
        """A stream of actions towards one instruction; use it as a context manager."""
        named = model or self.model
        first = pb.ControlRequest(instruction=instruction, model=named, goal_id=goal_id, chunks=chunks)
        return Control(self, partial(self._stub.Control, metadata=self._metadata), first, timeout)

    def reload(self, model: str = "", timeout: float = RELOAD_TIMEOUT) -> ModelInfo:
        """Have a model's checkpoints read again; new calls are answered by them from now on. Raises Unreadable where
        they will not do, and the model is what it was."""
        try:
            request = pb.ReloadModelRequest(name=model or self.model)
            return self._ask(self._stub.ReloadModel, request, lambda reply: _read_model(reply.model), timeout)
        except Stopped as error:  # FAILED_PRECONDITION, which is a robot's word for that
            raise Unreadable(str(error)) from None


class Control:
    """One skill's actions: `act` gives one for each observation; with chunks, `ask` and `poll` wait for nothing. These
    two may be called from two threads, `end` and `cancel` from any.

    Left by an exception it ends as ABORTED; left otherwise without `end`, it is cancelled."""

    def __init__(
        self, client: SkillClient, method: Callable[..., Any], first: pb.ControlRequest, timeout: float
    ) -> None:
        self._client, self._next, self._timeout, self._chunks = client, first, timeout, first.chunks
        self._lock = threading.Lock()  # of what is sent
        self._sequence, self._awaiting, self._ended = 0, False, False
        self._requests: queue.SimpleQueue[pb.ControlRequest | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[tuple[pb.ControlResponse, float] | SkillError] = queue.SimpleQueue()
        self._call = method(iter(self._requests.get, None))
        threading.Thread(target=self._receive, name="control replies", daemon=True).start()

    @property
    def terms(self) -> str | None:
        """Once an answer is there: a digest of what its model was agreed upon with, see `terms_of`; None: the server is
        older."""
        return next((str(value) for key, value in self._call.initial_metadata() or () if key == TERMS), None)

    def act(self, observation: Observation) -> np.ndarray:
        """(D,) float32, as it was sent. Raises DeadlineExceeded when no action comes within the stream's timeout."""
        self.ask(observation)
        try:
            reply, _ = self._reply(self._timeout)
        except queue.Empty:
            self.cancel()
            where = f"the skill server at {self._client.address}"
            raise DeadlineExceeded(f"{where} gave no action within {self._timeout:g} s") from None
        return self._client._read(read_action, reply.action)

    def ask(self, observation: Observation, committed: np.ndarray | None = None) -> int:
        """Send it, and return its number; answers come to `poll`. In a stream of chunks another may follow before the
        answer is there: then the newer one's counts. committed: (K, D), what the robot does in the first K periods
        after it whatever is answered."""
        observed = write_observation(observation)
        with self._lock:
            self._sequence, self._awaiting = self._sequence + 1, True
            request = pb.ControlRequest()
            request.CopyFrom(self._next)
            if not self._chunks:  # else it is said until an answer shows that it was heard
                self._next = pb.ControlRequest()
            request.sequence = self._sequence
            request.observation.CopyFrom(observed)
            if committed is not None:
                request.committed.CopyFrom(write_tensor(committed))
            self._requests.put(request)
            return self._sequence

    def poll(self, timeout: float = 0.0) -> Chunk | None:
        """The newest answer that came since the last call; waits so long [s] for one where there is none. Raises
        SkillError, now and ever after, once the stream is broken."""
        newest = None
        try:
            while True:
                newest = self._reply(0.0 if newest else timeout)
        except queue.Empty:
            pass
        if newest is None:
            return None
        reply, came = newest
        actions = self._client._read(read_actions, reply.chunk.actions) if reply.HasField("chunk") else None
        return Chunk(reply.sequence, actions, reply.chunk.period, reply.seconds, came)

    def _reply(self, timeout: float) -> tuple[pb.ControlResponse, float]:
        """The next one, and when it came. Raises queue.Empty, or what broke the stream."""
        reply = self._replies.get(timeout=timeout) if timeout > 0 else self._replies.get_nowait()
        if isinstance(reply, SkillError):
            self._replies.put(reply)  # a broken stream stays broken
            raise reply
        with self._lock:
            if reply[0].sequence == self._sequence:
                self._awaiting = False
        return reply

    def end(self, outcome: Outcome) -> None:
        """Leave, and tell the server how the skill ended, for its recordings. Returns at once, and the server may be
        gone: what has not arrived within END_TIMEOUT is dropped. Only the first counts. While `act` waits this is
        `cancel`: a model should not think for nobody."""
        with self._lock:
            if self._ended:
                return
            self._ended, idle = True, not self._awaiting
            if idle:
                self._requests.put(pb.ControlRequest(sequence=self._sequence + 1, outcome=write_outcome(outcome)))
                self._requests.put(None)
        if not idle:
            self.cancel()
            return
        self._replies.put(Unavailable("this control stream was ended"))
        late = threading.Timer(END_TIMEOUT, self._call.cancel)
        late.daemon = True
        if self._call.add_callback(late.cancel):  # else the call is over
            late.start()

    def cancel(self) -> None:
        with self._lock:
            self._ended = True
        self._call.cancel()
        self._requests.put(None)  # after it: a server that sees the requests end may take it for a regular end

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.end(Outcome(Status.ABORTED, str(error) if isinstance(error, SkillError) else ""))
        elif not self._ended:
            self.cancel()

    def _receive(self) -> None:
        """Answers come in order, each once, and none before its observation was sent. In a stream of chunks those that
        were overtaken, or come again, are dropped: a robot that waits for no answer does not depend on each."""
        where, due = f"the skill server at {self._client.address}", 1
        try:
            for reply in self._call:
                came = time.monotonic()
                if self._chunks and reply.sequence < due:
                    continue
                known = due <= reply.sequence if self._chunks else due == reply.sequence
                if not (known and reply.sequence <= self._sequence):
                    what = f"answered observation {reply.sequence} where {due} was next, of {self._sequence} sent"
                    self._replies.put(ServerFault(f"{where} {what}"))
                    self.cancel()
                    return
                due = reply.sequence + 1
                if self._chunks:
                    self._next = pb.ControlRequest()
                self._replies.put((reply, came))
            self._replies.put(ServerFault(f"{where} ended the control stream"))
        except grpc.RpcError as error:
            self._replies.put(self._client._translate(error))


class RobotClient(_Client):
    """Sees through a robot's camera and makes it carry out skills."""

    service = "robot"

    def __init__(
        self,
        address: str,
        timeout: float = CALL_TIMEOUT,
        credentials: Credentials | None = None,
        stop_address: str = "",  # of the robot's guard; "": what `info` tells
    ) -> None:
        super().__init__(address, timeout, credentials)
        self._stop_address = stop_address
        self._stopping: queue.SimpleQueue[Exception | None] | None = None  # a Stop that one road has not ended yet
        self._stub = skills_pb2_grpc.RobotServiceStub(self._channel)
        self._lease: Lease | None = None

    def close(self) -> None:
        if self._lease is not None:
            self._lease.close()
        super().close()

    def info(self) -> RobotInfo:
        info = self._ask(self._stub.GetRobotInfo, pb.GetRobotInfoRequest(), _read_robot_info)
        self._stop_address = self._stop_address or self._reachable(info.stop_address)
        return info

    def observe(self, views: Sequence[str] = ()) -> tuple[Observation, dict[str, bytes]]:
        """What the robot perceives now, and the named views as JPEG for people. While it carries out a skill it may be
        what it perceived just before: `look` tells."""
        look = self.look(views)
        return look.observation, look.views

    def look(self, views: Sequence[str] = ()) -> Look:
        """What the robot perceives, the named views, and how long ago. Raises Busy where it carries out a skill and has
        not looked yet."""

        def read(reply: pb.ObserveResponse) -> Look:
            return Look(read_observation(reply.observation), read_views(reply.views), reply.age)

        return self._ask(self._stub.Observe, pb.ObserveRequest(views=views), read)

    def _reachable(self, stop_address: str) -> str:
        """A guard that listens on all addresses is where its service is."""
        host, port = split_address(stop_address) if stop_address else ("", 0)
        unspecified = host in ("0.0.0.0", "::")
        return join_address(split_address(self.address)[0], port) if unspecified else stop_address

    def preview(self, skill_name: str) -> Preview:
        """What a skill would do from here, without doing it."""
        request = pb.PreviewGoalRequest(skill=skill_name)
        return self._ask(self._stub.PreviewGoal, request, lambda reply: _read_preview(reply.preview))

    def lease(self, owner: str, seconds: float = LEASE_SECONDS, timeout: float | None = None) -> Lease:
        """Be the only one who starts, cancels and resets, until it is closed: a context manager. All that this client
        asks goes with it, unless a call names another; once it is lost those calls raise LeaseLost, until it is closed.
        A process that dies loses it after `seconds`, and the robot cancels what it had begun. Raises Busy while another
        one has the robot, Unsupported where the robot's service is older."""
        asked, request = time.monotonic(), pb.AcquireLeaseRequest(owner=owner, seconds=seconds)
        lease_id, granted = self._ask(self._stub.AcquireLease, request, _read_lease, timeout)

        def keep(within: float) -> None:
            self._ask(self._stub.KeepLease, pb.KeepLeaseRequest(lease_id=lease_id), _nothing, within)

        def release() -> None:
            self._ask(self._stub.ReleaseLease, pb.ReleaseLeaseRequest(lease_id=lease_id), _nothing, END_TIMEOUT)

        def closed(lease: Lease) -> None:
            if self._lease is lease:
                self._lease = None

        self._lease = Lease(lease_id, granted, asked, f"the robot at {self.address}", keep, release, closed)
        return self._lease

    def _lease_id(self, lease: Lease | None) -> str:
        lease = lease or self._lease
        return lease.id if lease else ""

    def execute(
        self,
        skill_name: str,
        views: Sequence[str] = (),
        goal_id: str | None = None,  # chosen here when None; needed to cancel from elsewhere
        timeout: float = EXECUTE_TIMEOUT,  # [s], the wait for its turn included
        when_busy: WhenBusy = "refuse",
        lease: Lease | None = None,  # None: this client's, if it has one
    ) -> Execution:
        """Run one skill, from now on: iterate over Feedback and, last, the Outcome. Leaving early stops the robot.

        While another goal runs it is refused (Busy), or takes that one's turn, which is canceled together with those
        that wait (preempt), or waits for its own (queue)."""
        if when_busy not in WHEN_BUSY:
            raise InvalidRequest(f"when_busy is one of {', '.join(WHEN_BUSY)}, not {when_busy!r}", "when_busy")
        request = pb.ExecuteSkillRequest(
            goal_id=goal_id or uuid.uuid4().hex,
            skill=skill_name,
            views=views,
            when_busy=WHEN_BUSY[when_busy],
            lease_id=self._lease_id(lease),
        )
        call = partial(self._stub.ExecuteSkill, timeout=timeout, metadata=self._metadata)
        return Execution(self, call, request, lease)

    def cancel(self, goal_id: str, lease: Lease | None = None) -> bool:
        """Ask a goal that runs or waits to end; False when it has already ended."""

        def read(reply: pb.CancelSkillResponse) -> bool:
            return reply.canceling

        request = pb.CancelSkillRequest(goal_id=goal_id, lease_id=self._lease_id(lease))
        return self._ask(self._stub.CancelSkill, request, read)

    def result(self, goal_id: str) -> Outcome | None:
        """How a goal ended, or None while it runs: for a caller whose connection broke before it heard so. A goal that
        broke is ABORTED with the reason. Raises InvalidRequest where the robot knows of no such goal."""

        def read(reply: pb.GetGoalResponse) -> Outcome | None:
            return read_outcome(reply.result) if reply.HasField("result") else None

        return self._ask(self._stub.GetGoal, pb.GetGoalRequest(goal_id=goal_id), read)

    def stop(self) -> None:
        """Stop the robot now; it refuses skills until `reset`. By two roads at once, where the guard's address is
        known: its service, and its guard, which hears whatever becomes of the service. One is enough that confirms the
        halt. Raises ServerFault where the driver fails to: the robot is latched, but may keep its last velocity."""
        by_service = partial(self._ask, self._stub.Stop, pb.StopRequest(), _nothing)
        if not self._stop_address:
            by_service()
            return
        ends: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

        def go(road: Callable[[], object]) -> None:
            try:
                confirmed = road() is not False  # the guard says whether the driver halted; the service raises
                ends.put(None if confirmed else ServerFault(f"the robot at {self.address} {UNCONFIRMED}"))
            except Exception as error:
                ends.put(error)

        by_guard = partial(stop_robot, self._stop_address, self._credentials, self._timeout)
        for road in (by_guard, by_service):
            try:
                threading.Thread(target=go, args=(road,), name="stop", daemon=True).start()
            except RuntimeError:  # no more threads
                go(road)
        if first := ends.get():
            if second := ends.get():
                raise first if isinstance(second, (Unavailable, DeadlineExceeded)) else second
        else:
            self._stopping = ends

    def reset(self, lease: Lease | None = None) -> None:
        """Allow skills again after `stop`."""
        if (stopping := self._stopping) is not None:  # a Reset in the middle of a Stop is refused
            self._stopping = None
            with suppress(queue.Empty):
                stopping.get(timeout=SETTLE)
        self._ask(self._stub.Reset, pb.ResetRequest(lease_id=self._lease_id(lease)), _nothing)

    def satisfied(self, instruction: str) -> bool | None:
        """Does the world meet the instruction's goal? None when the robot knows no goal for it."""

        def read(reply: pb.JudgeInstructionResponse) -> bool | None:
            return reply.satisfied if reply.known else None

        return self._ask(self._stub.JudgeInstruction, pb.JudgeInstructionRequest(instruction=instruction), read)


class Execution:
    """One skill that a robot runs: Feedback, Feedback, ..., Outcome. `cancel` may be called from any thread.

    The robot stops when this is closed or forgotten before its end, or its process dies."""

    def __init__(
        self,
        robot: RobotClient,
        method: Callable[..., Any],
        request: pb.ExecuteSkillRequest,
        lease: Lease | None = None,
    ) -> None:
        self.goal_id, self._robot, self._lease = request.goal_id, robot, lease
        self._call: Any = None
        self._ahead: int | None = None  # None: the robot has not said yet
        try:
            self._call = method(request)
        except ValueError as error:  # grpc's word for a closed channel
            raise Unavailable(f"the connection to the robot at {robot.address} is closed") from error
        self._events = _read_events(self._call, robot, request.skill)  # knows nothing of self, which may be forgotten

    def __iter__(self) -> Iterator[Feedback | Outcome]:
        return self

    def __next__(self) -> Feedback | Outcome:
        """Waits for it. Raises SkillError where the robot refuses the skill, fails, or cannot be reached any more."""
        while isinstance(event := next(self._events), int):
            self._ahead = event
        return event

    def ahead(self) -> int:
        """How many goals came first when this one began to wait for its turn; 0: it has begun. Waits until the robot
        has said so; to be asked before iterating. Raises as `next` does."""
        if self._ahead is None:
            first = next(self._events)
            self._ahead = first if isinstance(first, int) else 0
            if not isinstance(first, int):
                self._events = itertools.chain([first], self._events)
        return self._ahead

    def cancel(self) -> bool:
        """Halt the robot, which has happened when this returns; the Outcome follows. False when the skill had ended, or
        was refused. Raises SkillError where the robot cannot be reached; it stops then by itself."""
        self._call.initial_metadata()  # waits until the robot has accepted the goal, or the call is over
        try:
            return self._robot.cancel(self.goal_id, self._lease)
        except InvalidRequest:  # refused
            return False

    def close(self) -> None:
        """Leave: the robot stops, unless the skill has ended."""
        if self._call is not None:
            self._call.cancel()

    __del__ = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_events(call: Any, robot: RobotClient, skill: str) -> Iterator[Feedback | Outcome | int]:
    """The whole numbers are goals that come first."""
    try:
        for event in call:
            match event.WhichOneof("event"):
                case "queued":
                    yield event.queued.ahead
                case "accepted":
                    yield 0
                case "feedback":
                    yield robot._read(_read_feedback, event.feedback)
                case "result":
                    yield robot._read(read_outcome, event.result)
                    return
    except grpc.RpcError as error:
        raise robot._translate(error) from None
    finally:
        call.cancel()  # nothing to cancel once the result is here
    raise ServerFault(f"the robot at {robot.address} ended skill {skill!r} without a result")


def _nothing(_: object) -> None:
    return None


def _read_scores(reply: pb.ScoreSkillsResponse) -> list[SkillScore]:
    return [_read_score(score) for score in reply.scores]


def _read_score(s: pb.SkillScore) -> SkillScore:
    if not (0 <= s.affordance <= 1 and math.isfinite(s.raw)):
        raise InvalidRequest(f"{s.skill[:50]!r} has the affordance {s.affordance:g} and the raw value {s.raw:g}")
    return SkillScore(s.skill, s.affordance, s.raw, s.model_id, s.seconds)


def _read_lease(reply: pb.AcquireLeaseResponse) -> tuple[str, float]:
    if not (reply.lease_id and SHORTEST <= reply.seconds <= LONGEST):
        raise InvalidRequest(f"a lease has an id and lasts {SHORTEST:g} to {LONGEST:g} s, not {reply.seconds:g}")
    return reply.lease_id, reply.seconds


def _read_preview(message: pb.Preview) -> Preview:
    if not (math.isfinite(message.expected_seconds) and message.expected_seconds >= 0):
        raise InvalidRequest(f"a skill cannot take {message.expected_seconds:g} s")
    return Preview(
        _read_score(message.score) if message.HasField("score") else None,
        message.expected_seconds or None,
        read_action(message.action) if message.HasField("action") else None,
        read_views(message.value_maps),
    )


def _read_feedback(message: pb.Feedback) -> Feedback:
    action = read_action(message.action) if message.HasField("action") else None
    return Feedback(message.step, read_state(message.state), action, read_views(message.views))


def _read_server_info(reply: pb.GetServerInfoResponse) -> ServerInfo:
    return ServerInfo(
        actor_id=reply.actor_id,
        critic_id=reply.critic_id,
        skills=reply.skills,
        control_hz=reply.control_hz,
        max_history=reply.max_history,
        schema_version=reply.schema_version,
        calibrated=reply.calibrated,
        models=tuple(map(_read_model, reply.models)),
        embodiment=_read_embodiment(reply),
    )


def _read_model(message: pb.Model) -> ModelInfo:
    told = message.actor_id, message.critic_id, message.calibrated
    return ModelInfo(message.name, *told, _read_embodiment(message), message.chunk)


def _read_embodiment(message: pb.GetServerInfoResponse | pb.Model | pb.GetRobotInfoResponse) -> Embodiment | None:
    return read_embodiment(message.embodiment) if message.HasField("embodiment") else None


def _read_robot_info(reply: pb.GetRobotInfoResponse) -> RobotInfo:
    return RobotInfo(
        name=reply.name,
        skills=reply.skills,
        skill_server=reply.skill_server,
        control_hz=reply.control_hz,
        max_steps=reply.max_steps,
        stopped=reply.stopped,
        executing=reply.executing,
        schema_version=reply.schema_version,
        embodiment=_read_embodiment(reply),
        views=tuple(reply.views),
        stop_address=reply.stop_address,
        leased_to=reply.leased_to,
        queued=reply.queued,
    )
