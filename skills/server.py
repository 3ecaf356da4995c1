"""SkillService: hosts Actors and Critics for robots and planners that ask over gRPC.

with serve(library, critic=policy, actor=policy, model_id="kitchen-1") as server:
    print(server.address)
    server.wait()
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import grpc
import numpy as np

from skills.connective import ANALYTIC, connective_affordance
from skills.embodiment import Camera, Embodiment
from skills.errors import DeadlineExceeded, InvalidRequest, ServerFault, SkillError, Unavailable, Unreadable
from skills.library import Skill, SkillLibrary
from skills.security.access import Access
from skills.serving.batching import Inference, Line
from skills.serving.grpc_server import Server
from skills.serving.hosting import DEFAULT, Calibrate, Hosting, Model
from skills.serving.recorder import Recorder, Take
from skills.serving.streams import Stream
from skills.serving.terms import fitted
from skills.serving.watching import NOBODY, Watcher
from skills.types import (
    Actor,
    BatchedActor,
    BatchedChunkedActor,
    BatchedCritic,
    ChunkedActor,
    Critic,
    Mapper,
    Observation,
    Outcome,
    Reader,
)
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire.conventions import PING_INTERVAL, SCHEMA_VERSION, TERMS
from skills.wire.messages import (
    JPEG,
    MAX_CHUNK,
    MAX_HISTORY,
    changed,
    inside,
    read_actions,
    read_history,
    read_observation,
    read_outcome,
    read_text,
    terms_of,
    write_chunk,
    write_embodiment,
    write_image,
    write_skill,
    write_tensor,
)

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["SkillService"].full_name
CONTROL_HISTORY = 16  # [observations] that a control stream remembers at least; an actor uses the last ones it needs
LARGE = ("ScoreSkills", "PreviewSkill")  # whose requests hold images
ACTIONS, VALUES = "actions", "values"  # what the models compute

SPARE_THREADS = 16  # beyond those of streams and scorings: for health checks, and for saying no
LATE = "no observation came for {:.3g} s, so this control stream was freed (the server's stream timeout)"
UNSEEN = "it acts in chunks, so the server does not see what was done when; record with the robot's `--chunks off`"
FIRST_OBSERVATION = 2.0  # [s] that a stream may be open before its first observation
LAST_WORD = 2.0  # [s] from what may be a last action until the robot has judged it, and says so for a recording
ROUNDING = 1e-6  # that a value may lie beyond 0 to 1 without a word
SENT_AGAIN = 2.0  # [s] after a chunk's end until the next observation, which may have been lost, and be sent again
STREAM_TIMEOUT = 0.4  # [s], or a control period and 50 ms where that is longer

Acting = tuple[Actor, Sequence[Observation], str, np.ndarray | None]  # who acts, history, instruction; committed rows
Imagining = tuple[Model, Sequence[Observation], Sequence[Observation], str]  # the actor's history, the critic's, words
Imagined = tuple[np.ndarray | None, Mapping[str, np.ndarray]]  # the first action, value maps
Judging = tuple[Critic, Sequence[Observation], Sequence[str]]  # who judges, history and instructions
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
    # [s] from an action's leaving to the robot's next observation, after which its stream is freed; None: 0.4, or a
    # control period of the model's and 50 ms where that is longer. Simulated robots on slow machines may need longer
    stream_timeout: float | None = None

    def stream_timeout_of(self, embodiment: Embodiment | None) -> float:
        """[s] for a model's streams."""
        if self.stream_timeout is not None:
            return self.stream_timeout
        period = embodiment.period if embodiment else None
        return max(STREAM_TIMEOUT, (period or 0.0) + 0.05)


def remembered(embodiment: Embodiment | None) -> int:
    """[observations] that are kept for a model's actor while a skill runs."""
    return max(CONTROL_HISTORY, embodiment.history if embodiment else 0)


class SkillServicer(skills_pb2_grpc.SkillServiceServicer):
    """Inference has one thread of its own, so that a slow model never blocks a health check or another reader. Who acts
    and who judges take turns there."""

    def __init__(
        self,
        library: SkillLibrary,
        models: Hosting,
        limits: Limits = Limits(),
        watcher: Watcher = NOBODY,  # is told of batches
        recorder: Recorder | None = None,
    ) -> None:
        self._library, self._models, self._watcher, self._recorder = library, models, watcher, recorder
        self._limits, self._inference = limits, Inference(limits.batches)
        self._acting: Line[Acting, np.ndarray] = self._inference.line(
            lambda question: self._act([question])[0],
            lambda: self._act,
            together=_act_together,
            callers=limits.streams,
            largest=limits.actions,
            patience=limits.patience,
            retry_after=1.0,  # a skill takes some seconds
            full=f"this skill server already controls {limits.streams} robots",
        )
        self._judging: Line[Judging, np.ndarray] = self._inference.line(
            lambda question: self._value([question])[0],
            lambda: self._value,
            together=lambda one, other: one[0] is other[0] and isinstance(one[0], BatchedCritic),
            callers=limits.scorings,
            largest=limits.values,
            size=lambda question: len(question[2]),
            full=f"this skill server already has {limits.scorings} requests for scores",
        )
        self._imagining: Line[Imagining, Imagined] = self._inference.line(
            _imagine, lambda: None, callers=limits.scorings, largest=1
        )
        self._warned: set[str] = set()  # of whose values was said that they are no affordances
        watcher.lines({ACTIONS: self._acting, VALUES: self._judging})

    def close(self) -> None:
        self._inference.close()

    # What an endpoint of another protocol asks for its robots

    @property
    def library(self) -> SkillLibrary:
        return self._library

    @property
    def models(self) -> Hosting:
        return self._models

    @property
    def limits(self) -> Limits:
        return self._limits

    def place(self) -> AbstractContextManager[None]:
        """Of one robot, as one control stream's; raises Busy."""
        return self._acting.caller()

    def infer(
        self, actor: Actor, history: Sequence[Observation], instruction: str, wanted: Callable[[], bool]
    ) -> Future[tuple[np.ndarray, float]]:
        """What it gives, and its batch's seconds; asked for in the line in which control streams are."""
        return self._acting.ask((actor, history, instruction, None), wanted)

    # The service

    def ListSkills(self, request: pb.ListSkillsRequest, context: grpc.ServicerContext) -> pb.ListSkillsResponse:
        return pb.ListSkillsResponse(skills=[write_skill(skill) for skill in self._library])

    def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetServerInfoResponse:
        models = [_write_model(name, model) for name, model in self._models]
        return pb.GetServerInfoResponse(
            schema_version=SCHEMA_VERSION,
            actor_id=models[0].actor_id,
            critic_id=models[0].critic_id,
            skills=len(self._library),
            action=models[0].embodiment.action,
            state=[number.name for number in models[0].embodiment.state],
            control_hz=models[0].embodiment.control_hz,
            max_history=MAX_HISTORY,
            calibrated=models[0].calibrated,
            models=models,
            embodiment=models[0].embodiment if models[0].HasField("embodiment") else None,
            ping_interval_ms=PING_INTERVAL,
        )

    def ReloadModel(self, request: pb.ReloadModelRequest, context: grpc.ServicerContext) -> pb.ReloadModelResponse:
        name = self._models.name(request.name)
        try:
            return pb.ReloadModelResponse(model=_write_model(name, self._models.reload(name)))
        except Unreadable as error:  # where things lie on this machine is nobody else's business
            log.warning("model %r stays as it was: %s", name, error)
            reason = re.sub(r"\S*/", "", str(error))
            raise Unreadable(f"model {name!r} stays as it was: {reason}") from None

    def ScoreSkills(self, request: pb.ScoreSkillsRequest, context: grpc.ServicerContext) -> pb.ScoreSkillsResponse:
        if len(request.names) > len(self._library):
            raise InvalidRequest(f"{len(request.names)} names; this library has {len(self._library)} skills", "names")
        model = self._models[request.model]
        with self._judging.caller():
            skills = [self._library[name] for name in request.names] or list(self._library)
            learned = any(skill.learned for skill in skills)
            history = read_history(request.history, _cameras(model.judged) if learned else ())
            return pb.ScoreSkillsResponse(scores=self._score(model, history, skills, context))

    def PreviewSkill(self, request: pb.PreviewSkillRequest, context: grpc.ServicerContext) -> pb.PreviewSkillResponse:
        """It takes a place among the scorings. No value tells how long a skill takes: a Q-value mixes how likely
        success is with how far away it is, and a calibrated one is a probability alone."""
        model = self._models[request.model]
        with self._judging.caller():
            with inside("skill"):
                skill = self._library[read_text(request.skill, "the skill")]
            sees = [model.judged] if model.actor is None else [model.judged, model.embodiment]
            history = read_history(request.history, _cameras(*sees) if skill.learned else ())
            preview = pb.Preview()
            if model.critic is not None or model.actor is None or not skill.learned:
                preview.score.CopyFrom(self._score(model, history, [skill], context)[0])
            if skill.learned:
                (action, maps), _ = self._infer(context, self._imagining, self._question(model, history, skill.name))
                if action is not None:
                    _check(action, model.embodiment, skill.name)
                    preview.action.CopyFrom(write_tensor(action))
                try:
                    for name, picture in maps.items():
                        preview.value_maps[name].CopyFrom(write_image(picture, JPEG))
                except InvalidRequest as error:
                    raise ServerFault(f"the critic gave no valid value map for {skill.name!r}: {error}") from None
        return pb.PreviewSkillResponse(preview=preview)

    def Control(
        self, requests: Iterator[pb.ControlRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ControlResponse]:
        timeout = self._limits.stream_timeout_of(None)  # until there is a model
        stream = Stream(requests, context, timeout, max(timeout, FIRST_OBSERVATION), LATE.format)
        history: deque[Observation] = deque()
        model: Model  # of the first request, to the stream's end
        actor: Actor
        instruction, last, chunked = "", -1, False
        done: np.ndarray | None = None  # the action before the present one
        with self._acting.caller(), stream, Take(self._recorder) as take:
            for request in stream:
                if not last < request.sequence:
                    if chunked:  # overtaken on the way by a newer one, or repeated
                        continue
                    raise InvalidRequest(f"sequence {request.sequence} follows {last}; it must grow", "sequence")
                if request.HasField("outcome"):
                    take.outcome = _read_last_word(request, begun=bool(history))
                    return
                if not history or request.instruction not in ("", instruction):
                    if history:
                        problem = "one control stream serves one instruction; open another stream"
                        raise InvalidRequest(problem, "instruction")
                    with inside("instruction"):
                        instruction = read_text(request.instruction, "the instruction")
                    with inside("goal_id"):
                        goal_id = read_text(request.goal_id, "the goal id", required=False)
                    model = self._models[request.model]
                    actor = model.acting
                    context.send_initial_metadata(((TERMS, terms_of(model.embodiment, model.chunk)),))
                    history = deque(maxlen=remembered(model.embodiment))
                    timeout = self._limits.stream_timeout_of(model.embodiment)
                    if isinstance(actor, Reader):
                        actor.know([instruction])
                    if chunked := request.chunks and model.chunk > 1:
                        stream.skip(key=lambda request: request.sequence)
                        take.leave_out(goal_id, instruction, UNSEEN)
                    else:
                        take.begin(goal_id, instruction, model.actor_id, model.embodiment)
                last = request.sequence
                with inside("observation"):
                    observation = read_observation(request.observation, _cameras(model.embodiment))
                    observation = fitted(observation, model.embodiment)
                    if history and (problem := changed([history[-1], observation])):
                        raise InvalidRequest(problem)
                history.append(replace(observation, action=done))
                committed = _read_committed(request, model.embodiment) if chunked else None
                found, seconds = self._infer(context, self._acting, (actor, tuple(history), instruction, committed))
                if chunked:
                    yield from self._answer_chunk(stream, last, found, seconds, model.embodiment, instruction)
                    continue
                _check(found, model.embodiment, instruction)
                ends = self._recorder is not None and _may_end(found, model.embodiment)
                yield from stream.answer(
                    pb.ControlResponse(sequence=last, action=write_tensor(found), seconds=seconds),
                    max(timeout, LAST_WORD) if ends else timeout,
                )
                take.add(observation, found)
                done = found

    def _answer_chunk(
        self,
        stream: Stream[pb.ControlRequest],
        sequence: int,
        actions: np.ndarray,
        seconds: float,
        embodiment: Embodiment | None,
        instruction: str,
    ) -> Iterator[pb.ControlResponse]:
        """The next observation may come while the chunk lasts, and some time after."""
        _check_chunk(actions, embodiment, instruction)
        period = embodiment.period if embodiment else None
        lasts = len(actions) * (period or 0.0)
        yield from stream.answer(
            pb.ControlResponse(
                sequence=sequence,
                action=write_tensor(actions[0]),
                seconds=seconds,
                chunk=write_chunk(actions, period),
            ),
            lasts + max(SENT_AGAIN, self._limits.stream_timeout_of(embodiment)),
        )

    def _score(
        self, model: Model, history: list[Observation], skills: Sequence[Skill], context: grpc.ServicerContext
    ) -> list[pb.SkillScore]:
        learned = [skill.name for skill in skills if skill.learned]
        judged, seconds = self._judge(model, history, learned, context) if learned else ({}, 0.0)
        scores = []
        for skill in skills:
            if skill.learned:
                raw, affordance = judged[skill.name]
                score = pb.SkillScore(raw=raw, model_id=model.critic_id, seconds=seconds)
            else:
                raw = affordance = connective_affordance(skill, history[-1])
                score = pb.SkillScore(raw=raw, model_id=ANALYTIC)
            score.skill, score.affordance = skill.name, min(max(affordance, 0.0), 1.0)
            scores.append(score)
        return scores

    def _question(self, model: Model, history: Sequence[Observation], instruction: str) -> Imagining:
        """What each looks at; new words are read before the model is waited for."""
        acts, judges = model.embodiment if model.actor is not None else None, model.judged
        if isinstance(model.actor, Reader):
            model.actor.know([instruction])
        return model, _fitting(history, acts), _fitting(history, judges), instruction

    def _judge(
        self, model: Model, history: list[Observation], names: list[str], context: grpc.ServicerContext
    ) -> tuple[dict[str, tuple[float, float]], float]:
        """(raw value, affordance) of each, and the compute time of their batch [s]."""
        critic, fitting = model.judging, _fitting(history, model.judged)
        found, seconds = self._infer(context, self._judging, (critic, fitting, names))
        affordances = values = _one_for_each(names, found, "critic")
        self._warn_beyond(f"the critic {model.critic_id!r}", values)
        if model.calibrate is not None:
            affordances = _one_for_each(names, model.calibrate(values), "calibration")
            self._warn_beyond(f"the calibration of {model.critic_id!r}", affordances)
        return dict(zip(names, zip(values.tolist(), affordances.tolist(), strict=True), strict=True)), seconds

    def _warn_beyond(self, who: str, values: np.ndarray) -> None:
        """Once for each, of a value that is no affordance, and so is cut to one."""
        beyond = values[(values < -ROUNDING) | (values > 1 + ROUNDING)]
        if beyond.size and who not in self._warned:
            self._warned.add(who)
            log.warning("%s gives %.4g; affordances are 0 to 1, and what lies beyond is cut", who, beyond[0])

    def _infer(
        self, context: grpc.ServicerContext, line: Line[Question, Answer], question: Question
    ) -> tuple[Answer, float]:
        """The answer and its batch's seconds; gives up waiting as soon as nobody waits for the answer. A model's
        ValueError is its word on the request, such as an image of another size than it was trained on."""
        remaining = context.time_remaining()
        deadline = float("inf") if remaining is None else time.monotonic() + remaining

        def wanted() -> bool:
            return context.is_active() and time.monotonic() < deadline

        def gone() -> SkillError:
            """The deadline is noticed here or there first; either way it is what ended the call."""
            late = time.monotonic() >= deadline
            return DeadlineExceeded("the model was not free in time") if late else Unavailable("the client has left")

        answer = line.ask(question, wanted)
        while not wait([answer], timeout=0.1).done:
            if not wanted():
                answer.cancel()
                raise gone()
        try:
            return answer.result()
        except CancelledError:
            raise gone() from None
        except ValueError as error:
            log.info("the model refused a request", exc_info=True)
            raise InvalidRequest(" ".join(str(error).split())) from error

    def _act(self, questions: Sequence[Acting]) -> Sequence[np.ndarray]:
        """Of one actor."""
        actor, started = questions[0][0], time.perf_counter()
        _, histories, instructions, committed = zip(*questions, strict=True)
        if len(questions) == 1 or not _act_together(questions[0], questions[0]):
            actions = [_act_alone(question) for question in questions]
        elif committed[0] is not None:
            actions = list(cast(BatchedChunkedActor, actor).act_chunks(histories, instructions, committed))
        else:
            actions = list(cast(BatchedActor, actor).act_many(histories, instructions))
        self._watcher.computed(ACTIONS, len(questions), time.perf_counter() - started)
        return actions

    def _value(self, questions: Sequence[Judging]) -> Sequence[np.ndarray]:
        """Of one critic."""
        critic, started = questions[0][0], time.perf_counter()
        if len(questions) > 1 and isinstance(critic, BatchedCritic):
            values = critic.value_many([h for _, h, _ in questions], [n for _, _, n in questions])
        else:
            values = [critic.value(history, names) for _, history, names in questions]
        self._watcher.computed(VALUES, sum(len(n) for _, _, n in questions), time.perf_counter() - started)
        return values


def _fitting(history: Sequence[Observation], embodiment: Embodiment | None) -> list[Observation]:
    fitting = []
    for index, observation in enumerate(history):
        with inside(f"history[{index}]"):
            fitting.append(fitted(observation, embodiment))
    return fitting


def _imagine(question: Imagining) -> Imagined:
    model, seen, judged, instruction = question
    action = model.acting.act(seen, instruction) if model.actor is not None else None
    return action, model.critic.value_maps(judged, instruction) if isinstance(model.critic, Mapper) else {}


class SkillServer(Server):
    servicer: SkillServicer  # answers other protocols' endpoints, too


def _act_together(one: Acting, other: Acting) -> bool:
    """May a batch hold both? Not where one wants a chunk, and the other one action."""
    kind = BatchedActor if one[3] is None else BatchedChunkedActor
    return one[0] is other[0] and (one[3] is None) == (other[3] is None) and isinstance(one[0], kind)


def _act_alone(question: Acting) -> np.ndarray:
    actor, history, instruction, committed = question
    if committed is None:
        return actor.act(history, instruction)
    return cast(ChunkedActor, actor).act_chunk(history, instruction, committed)


def _write_model(name: str, model: Model) -> pb.Model:
    return pb.Model(
        name=name,
        actor_id=model.actor_id,
        critic_id=model.critic_id,
        calibrated=model.calibrate is not None,
        embodiment=write_embodiment(model.embodiment) if model.embodiment else None,
        chunk=model.chunk,
    )


def _cameras(*embodiments: Embodiment | None) -> Sequence[Camera] | None:
    """Those that models of these look at; None: one does not say."""
    found: dict[str, Camera] = {}
    for embodiment in embodiments:
        if embodiment is None:
            return None
        for camera in embodiment.cameras:
            found.setdefault(camera.name, camera)
    return list(found.values())


def _read_committed(request: pb.ControlRequest, embodiment: Embodiment | None) -> np.ndarray:
    """(K, D) float32; (0, D) where none was sent."""
    width = len(embodiment.action) if embodiment else 0
    if not request.HasField("committed"):
        return np.zeros((0, width), np.float32)
    with inside("committed"):
        committed = read_actions(request.committed, "what is committed")
        if width and committed.shape[1] != width:
            raise InvalidRequest(
                f"what is committed has rows of {committed.shape[1]} numbers; this model's have {width}"
            )
    return committed


def _check_chunk(actions: np.ndarray, embodiment: Embodiment | None, instruction: str) -> None:
    """Rows of finite numbers, as many as the model's robots take."""
    shape = np.shape(actions)
    width = len(embodiment.action) if embodiment else shape[-1] if shape else 0
    good = len(shape) == 2 and 1 <= shape[0] <= MAX_CHUNK and shape[1] == width > 0
    if not good or not np.isfinite(actions).all():
        what = "a number that is not finite" if good else f"shape {shape}, not (1 to {MAX_CHUNK}, {width})"
        raise ServerFault(f"the actor gave no valid chunk for {instruction!r}: {what}")


def _check(action: np.ndarray, embodiment: Embodiment | None, instruction: str) -> None:
    """One row of finite numbers, as many as the model's robots take."""
    count = len(embodiment.action) if embodiment else np.size(action)
    if np.shape(action) != (count,) or not count or not np.isfinite(action).all():
        raise ServerFault(f"the actor gave no valid action for {instruction!r}: {action!r}")


def _may_end(action: np.ndarray, embodiment: Embodiment | None) -> bool:
    """Where no dimension terminates, any action may be a skill's last."""
    return embodiment is None or embodiment.terminate is None or embodiment.ends(action)


def _read_last_word(request: pb.ControlRequest, begun: bool) -> Outcome:
    if request.HasField("observation"):
        raise InvalidRequest("a request has an observation or an outcome, not both", "outcome")
    if not begun:
        raise InvalidRequest("an outcome ends a control stream; this one has not begun", "outcome")
    with inside("outcome"):
        return read_outcome(request.outcome)


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
    embodiment: Embodiment | None = None,  # of the robots it is for; None: what the actor says, or else the critic
    models: Hosting | None = None,  # several by name, in place of critic and actor
    address: str = "127.0.0.1:0",
    ready: bool = True,  # False: health says NOT_SERVING until `Server.set_ready`, while models load
    limits: Limits = Limits(),
    access: Access | None = None,  # who may call; None: whoever reaches a loopback address
    watcher: Watcher = NOBODY,  # is told of calls and batches
    recorder: Recorder | None = None,  # keeps what robots do
    compression: bool = False,  # take compressed requests, of which a few bytes may hold any number
) -> SkillServer:
    """A running skill server; port 0 takes a free port, `.address` says which."""
    if models is None:
        judges = "" if critic is None else critic_id or model_id
        acts = "" if actor is None else actor_id or model_id
        curve = None if critic is None else calibrate
        only = Model(critic, actor, judges, acts, curve, embodiment=embodiment)
        models = Hosting({DEFAULT: only}, watcher=watcher)
    servicer = SkillServicer(library, models, limits, watcher, recorder)

    def add(server: grpc.Server) -> None:
        skills_pb2_grpc.add_SkillServiceServicer_to_server(servicer, server)

    threads = limits.streams + limits.scorings + SPARE_THREADS
    server = SkillServer(
        add,
        SERVICE,
        address,
        on_stop=servicer.close,
        ready=ready,
        threads=threads,
        access=access,
        watcher=watcher,
        large=LARGE,
        compression=compression,
    )
    server.servicer = servicer
    return server
