"""SkillService: hosts one Actor and one Critic for robots and planners that ask over gRPC.

with serve(library, critic=policy, actor=policy, model_id="kitchen-1") as server:
    print(server.address)
    server.wait()
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import grpc
import numpy as np

from skills import connective
from skills.access import Access
from skills.errors import Busy, InvalidRequest, ServerFault, Unavailable
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
from skills.types import ACTION_HIGH, ACTION_LOW, ACTION_NAMES, CONTROL_HZ, STATE_NAMES, Actor, Critic, Observation
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire import SCHEMA_VERSION

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["SkillService"].full_name
MAX_STREAMS = 16  # robots controlled at one time
RETRY_AFTER = 1.0  # [s] that a robot is told to wait when all streams are taken
CONTROL_HISTORY = 16  # [observations] that a control stream remembers; an actor uses the last ones it needs
ANALYTIC = "analytic"  # model id of scripted skills' affordances
UNITS = ("m",) * 3 + ("rad",) * 3 + ("",) * 2

T = TypeVar("T")
Calibrate = Callable[[np.ndarray], np.ndarray]  # a critic's values (N,) -> probabilities of success (N,)


class SkillServicer(skills_pb2_grpc.SkillServiceServicer):
    """Inference has one thread of its own, so that a slow model never blocks a health check or another reader."""

    def __init__(
        self,
        library: SkillLibrary,
        critic: Critic | None = None,
        actor: Actor | None = None,
        critic_id: str = "",
        actor_id: str = "",
        calibrate: Calibrate | None = None,
    ) -> None:
        for skill in library:
            if not skill.learned:
                connective.check(skill)
        self._library, self._critic, self._actor = library, critic, actor
        self._critic_id, self._actor_id, self._calibrate = critic_id, actor_id, calibrate
        self._inference = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._streams = threading.BoundedSemaphore(MAX_STREAMS)

    def close(self) -> None:
        self._inference.shutdown(wait=False, cancel_futures=True)

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
        history = read_history(request.history)
        skills = [self._library[name] for name in request.names] or list(self._library)
        learned = [skill.name for skill in skills if skill.learned]
        judged: dict[str, tuple[float, float]] = {}
        started = time.perf_counter()
        if learned:
            judged = dict(zip(learned, self._judge(history, learned, context), strict=True))
        seconds = time.perf_counter() - started
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
        actor = self._actor
        if actor is None:
            raise InvalidRequest("this skill server hosts no actor; start it with a checkpoint that can act")
        if not self._streams.acquire(blocking=False):
            raise Busy(f"this skill server already controls {MAX_STREAMS} robots", RETRY_AFTER)
        try:
            history: deque[Observation] = deque(maxlen=CONTROL_HISTORY)
            instruction, last = "", -1
            for request in requests:
                if not last < request.sequence:
                    raise InvalidRequest(f"sequence {request.sequence} follows {last}; it must grow", "sequence")
                if not history or request.instruction not in ("", instruction):
                    if history:
                        problem = "one control stream serves one instruction; open another stream"
                        raise InvalidRequest(problem, "instruction")
                    with inside("instruction"):
                        instruction = read_text(request.instruction, "the instruction")
                last = request.sequence
                with inside("observation"):
                    observation = read_observation(request.observation)
                    if history and observation.image.shape != history[-1].image.shape:
                        raise InvalidRequest("the image changed its size within one control stream", "image")
                history.append(observation)
                started = time.perf_counter()
                action = self._infer(context, actor.act, list(history), instruction)
                seconds = time.perf_counter() - started
                if np.shape(action) != ACTION_LOW.shape or not np.isfinite(action).all():
                    raise ServerFault(f"the actor gave no valid action for {instruction!r}: {action!r}")
                yield pb.ControlResponse(sequence=last, action=write_tensor(action), seconds=seconds)
        finally:
            self._streams.release()

    def _judge(
        self, history: list[Observation], names: list[str], context: grpc.ServicerContext
    ) -> list[tuple[float, float]]:
        """(raw value, affordance) of each."""
        critic = self._critic
        if critic is None:
            raise InvalidRequest("this skill server hosts no critic, so it cannot score learnt skills")
        values = _one_for_each(names, self._infer(context, critic.value, history, names), "critic")
        affordances = values
        if self._calibrate is not None:
            affordances = _one_for_each(names, self._calibrate(values), "calibration")
        return list(zip(values.tolist(), affordances.tolist(), strict=True))

    def _infer(self, context: grpc.ServicerContext, compute: Callable[..., T], *arguments: object) -> T:
        """Run on the inference thread; give up waiting as soon as nobody waits for the answer. A model's ValueError is
        its word on the request, such as an image of another size than it was trained on."""
        try:
            future = self._inference.submit(compute, *arguments)
        except RuntimeError:
            raise Unavailable("this skill server is shutting down") from None
        while not wait([future], timeout=0.1).done:
            if not context.is_active() and future.cancel():
                raise Unavailable("the client has left")
        if future.cancelled():
            raise Unavailable("this skill server is shutting down")
        try:
            return future.result()
        except ValueError as error:
            log.info("the model refused a request", exc_info=True)
            raise InvalidRequest(" ".join(str(error).split())) from error


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
    access: Access | None = None,  # who may call; None: whoever reaches a loopback address
) -> Server:
    """A running skill server; port 0 takes a free port, `.address` says which."""
    servicer = SkillServicer(library, critic, actor, critic_id or model_id, actor_id or model_id, calibrate)

    def add(server: grpc.Server) -> None:
        skills_pb2_grpc.add_SkillServiceServicer_to_server(servicer, server)

    return Server(add, SERVICE, address, on_stop=servicer.close, ready=ready, access=access)
