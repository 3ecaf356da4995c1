"""SkillService: hosts one Actor and one Critic for robots and planners that ask over gRPC.

with serve(library, critic=policy, actor=policy, model_id="kitchen-1") as server:
    print(server.address)
    server.wait()
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, wait
from dataclasses import dataclass
from typing import TypeVar

import grpc
import numpy as np

from skills import connective
from skills.access import Access
from skills.batching import Inference, Line
from skills.errors import InvalidRequest, ServerFault, Unavailable
from skills.library import SkillLibrary
from skills.messages import (
    MAX_HISTORY,
    inside,
    read_history,
    read_observation,
    read_text,
    write_skill,
    write_tensor,
)
from skills.serving import Server
from skills.streams import Stream
from skills.types import (
    ACTION_HIGH,
    ACTION_LOW,
    ACTION_NAMES,
    CONTROL_HZ,
    STATE_NAMES,
    Actor,
    BatchedActor,
    BatchedCritic,
    Critic,
    Observation,
    Reader,
)
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire import SCHEMA_VERSION

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["SkillService"].full_name
CONTROL_HISTORY = 16  # [observations] that a control stream remembers; an actor uses the last ones it needs
ANALYTIC = "analytic"  # model id of scripted skills' affordances
UNITS = ("m",) * 3 + ("rad",) * 3 + ("",) * 2

SPARE_THREADS = 16  # beyond those of streams and scorings: for health checks, and for saying no
LATE = "no observation came for {:.3g} s, so this control stream was freed (the server's stream timeout)"
FIRST_OBSERVATION = 2.0  # [s] that a stream may be open before its first observation

Calibrate = Callable[[np.ndarray], np.ndarray]  # a critic's values (N,) -> probabilities of success (N,)
Acting = tuple[Sequence[Observation], str]  # history and instruction
Judging = tuple[Sequence[Observation], Sequence[str]]  # history and instructions
Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Limits:
    """How much a skill server takes on at one time; what is beyond is refused at once, as Busy."""

    streams: int = 64  # robots controlled
    scorings: int = 16  # ScoreSkills calls, computed or waiting
    actions: int = 32  # computed in one batch; 1: one after the other
    values: int = 256  # of a state and a skill, computed in one batch; one call's are never taken apart
    patience: float = 0.005  # [s] that the first of a batch of actions waits for other robots that are connected
    batches: int = 1  # computed at the same time; more where the models exist several times
    # [s] from an action's leaving to the robot's next observation, after which its stream is freed: a control period
    # and 50 ms. Simulated robots on slow machines may need longer
    stream_timeout: float = 1 / CONTROL_HZ + 0.05


class SkillServicer(skills_pb2_grpc.SkillServiceServicer):
    """Inference has one thread of its own, so that a slow model never blocks a health check or another reader. Who acts
    and who judges take turns there."""

    def __init__(
        self,
        library: SkillLibrary,
        critic: Critic | None = None,
        actor: Actor | None = None,
        critic_id: str = "",
        actor_id: str = "",
        calibrate: Calibrate | None = None,
        limits: Limits = Limits(),
    ) -> None:
        for skill in library:
            if not skill.learned:
                connective.check(skill)
        self._library, self._critic, self._actor = library, critic, actor
        self._critic_id, self._actor_id, self._calibrate = critic_id, actor_id, calibrate
        self._limits, self._inference = limits, Inference(limits.batches)
        self._acting: Line[Acting, np.ndarray] = self._inference.line(
            self._act,
            self._batched_actor,
            callers=limits.streams,
            largest=limits.actions,
            patience=limits.patience,
            retry_after=1.0,  # a skill takes some seconds
            full=f"this skill server already controls {limits.streams} robots",
        )
        self._judging: Line[Judging, np.ndarray] = self._inference.line(
            self._value,
            self._batched_critic,
            callers=limits.scorings,
            largest=limits.values,
            size=lambda question: len(question[1]),
            full=f"this skill server already has {limits.scorings} requests for scores",
        )

    def close(self) -> None:
        self._inference.close()

    def ListSkills(self, request: pb.ListSkillsRequest, context: grpc.ServicerContext) -> pb.ListSkillsResponse:
        return pb.ListSkillsResponse(skills=[write_skill(skill) for skill in self._library])

    def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetServerInfoResponse:
        dimensions = zip(ACTION_NAMES, ACTION_LOW, ACTION_HIGH, UNITS, strict=True)
        return pb.GetServerInfoResponse(
            schema_version=SCHEMA_VERSION,
            actor_id=self._actor_id if self._actor else "",
            critic_id=self._critic_id if self._critic else "",
            skills=len(self._library),
            action=[pb.ActionDimension(name=n, low=low, high=high, unit=u) for n, low, high, u in dimensions],
            state=STATE_NAMES,
            control_hz=CONTROL_HZ,
            max_history=MAX_HISTORY,
            calibrated=self._critic is not None and self._calibrate is not None,
        )

    def ScoreSkills(self, request: pb.ScoreSkillsRequest, context: grpc.ServicerContext) -> pb.ScoreSkillsResponse:
        if len(request.names) > len(self._library):
            raise InvalidRequest(f"{len(request.names)} names; this library has {len(self._library)} skills", "names")
        with self._judging.caller():
            history = read_history(request.history)
            skills = [self._library[name] for name in request.names] or list(self._library)
            learned = [skill.name for skill in skills if skill.learned]
            judged, seconds = self._judge(history, learned, context) if learned else ({}, 0.0)
        scores = []
        for skill in skills:
            if skill.learned:
                raw, affordance = judged[skill.name]
                score = pb.SkillScore(raw=raw, model_id=self._critic_id, seconds=seconds)
            else:
                raw = affordance = connective.connective_affordance(skill, history[-1])
                score = pb.SkillScore(raw=raw, model_id=ANALYTIC)
            score.skill, score.affordance = skill.name, min(max(affordance, 0.0), 1.0)
            scores.append(score)
        return pb.ScoreSkillsResponse(scores=scores)

    def Control(
        self, requests: Iterator[pb.ControlRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ControlResponse]:
        if self._actor is None:
            raise InvalidRequest("this skill server hosts no actor; start it with a checkpoint that can act")
        timeout = self._limits.stream_timeout
        stream = Stream(requests, context, timeout, max(timeout, FIRST_OBSERVATION), LATE.format)
        history: deque[Observation] = deque(maxlen=CONTROL_HISTORY)
        instruction, last = "", -1
        with self._acting.caller(), stream:
            for request in stream:
                if not last < request.sequence:
                    raise InvalidRequest(f"sequence {request.sequence} follows {last}; it must grow", "sequence")
                if not history or request.instruction not in ("", instruction):
                    if history:
                        problem = "one control stream serves one instruction; open another stream"
                        raise InvalidRequest(problem, "instruction")
                    with inside("instruction"):
                        instruction = read_text(request.instruction, "the instruction")
                    if isinstance(self._actor, Reader):
                        self._actor.know([instruction])
                last = request.sequence
                with inside("observation"):
                    observation = read_observation(request.observation)
                    if history and observation.image.shape != history[-1].image.shape:
                        raise InvalidRequest("the image changed its size within one control stream", "image")
                history.append(observation)
                action, seconds = self._infer(context, self._acting, (tuple(history), instruction))
                if np.shape(action) != ACTION_LOW.shape or not np.isfinite(action).all():
                    raise ServerFault(f"the actor gave no valid action for {instruction!r}: {action!r}")
                yield from stream.answer(
                    pb.ControlResponse(sequence=last, action=write_tensor(action), seconds=seconds)
                )

    def _judge(
        self, history: list[Observation], names: list[str], context: grpc.ServicerContext
    ) -> tuple[dict[str, tuple[float, float]], float]:
        """(raw value, affordance) of each, and the compute time of their batch [s]."""
        if self._critic is None:
            raise InvalidRequest("this skill server hosts no critic, so it cannot score learnt skills")
        found, seconds = self._infer(context, self._judging, (history, names))
        affordances = values = _one_for_each(names, found, "critic")
        if self._calibrate is not None:
            affordances = _one_for_each(names, self._calibrate(values), "calibration")
        return dict(zip(names, zip(values.tolist(), affordances.tolist(), strict=True), strict=True)), seconds

    def _infer(
        self, context: grpc.ServicerContext, line: Line[Question, Answer], question: Question
    ) -> tuple[Answer, float]:
        """The answer and its batch's seconds; gives up waiting as soon as nobody waits for the answer. A model's
        ValueError is its word on the request, such as an image of another size than it was trained on."""
        remaining = context.time_remaining()
        deadline = float("inf") if remaining is None else time.monotonic() + remaining

        def wanted() -> bool:
            return context.is_active() and time.monotonic() < deadline

        answer = line.ask(question, wanted)
        while not wait([answer], timeout=0.1).done:
            if not wanted():
                answer.cancel()
                raise Unavailable("the client has left")
        try:
            return answer.result()
        except CancelledError:
            raise Unavailable("the client has left") from None
        except ValueError as error:
            log.info("the model refused a request", exc_info=True)
            raise InvalidRequest(" ".join(str(error).split())) from error

    def _act(self, question: Acting) -> np.ndarray:
        assert self._actor is not None  # Control refused otherwise
        return self._actor.act(*question)

    def _value(self, question: Judging) -> np.ndarray:
        assert self._critic is not None  # ScoreSkills refused otherwise
        return self._critic.value(*question)

    def _batched_actor(self) -> Callable[[Sequence[Acting]], Sequence[np.ndarray]] | None:
        """Asked for each batch: the models may still be loading when the server starts."""
        actor = self._actor
        if not isinstance(actor, BatchedActor):
            return None
        return lambda questions: list(actor.act_many([h for h, _ in questions], [i for _, i in questions]))

    def _batched_critic(self) -> Callable[[Sequence[Judging]], Sequence[np.ndarray]] | None:
        critic = self._critic
        if not isinstance(critic, BatchedCritic):
            return None
        return lambda questions: critic.value_many([h for h, _ in questions], [n for _, n in questions])


def _one_for_each(names: list[str], values: np.ndarray, who: str) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (len(names),) or not np.isfinite(values).all():
        raise ServerFault(f"the {who} gave no valid values for {len(names)} skills: shape {values.shape}")
    return values


def serve(
    library: SkillLibrary,
    critic: Critic | None = None,
    actor: Actor | None = None,
    *,
    model_id: str = "",  # of both, unless told apart
    critic_id: str = "",
    actor_id: str = "",
    calibrate: Calibrate | None = None,  # makes affordances of the critic's values; None: they are the values
    address: str = "127.0.0.1:0",
    ready: bool = True,  # False: health says NOT_SERVING until `Server.set_ready`, while models load
    limits: Limits = Limits(),
    access: Access | None = None,  # who may call; None: whoever reaches a loopback address
) -> Server:
    """A running skill server; port 0 takes a free port, `.address` says which."""
    servicer = SkillServicer(library, critic, actor, critic_id or model_id, actor_id or model_id, calibrate, limits)

    def add(server: grpc.Server) -> None:
        skills_pb2_grpc.add_SkillServiceServicer_to_server(servicer, server)

    threads = limits.streams + limits.scorings + SPARE_THREADS
    return Server(add, SERVICE, address, on_stop=servicer.close, ready=ready, threads=threads, access=access)
