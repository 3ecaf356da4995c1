"""The skill server: judges which skills can succeed, and acts.

    python -m saycan_qt.serve                                       # the models that come with the project, on loopback
    python -m saycan_qt.serve --affordance runs/critic --port 50051
    python -m saycan_qt.serve --calibrated                          # affordances as probabilities of success
    python -m saycan_qt.serve --stream-timeout 0.4                  # for real robots: frees what has stopped observing
    python -m saycan_qt.serve --skills my_robot.yaml --affordance runs/mine --execution runs/mine
    python -m saycan_qt.serve --host 0.0.0.0 --port 50051 --certificate gpu.pem --key gpu.key --tokens tokens.yaml
    python -m saycan_qt.serve --ray auto                            # the models on every node of a Ray cluster

It prints `skill server listening on HOST:PORT` as soon as it can be reached and `skill server ready: ...` when its
models are warm; until then its health is NOT_SERVING. SIGTERM or Ctrl-C drains it, then it exits with 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from saycan_qt.access import ServerOptions, WhoMayCall
from saycan_qt.options import Checkpoint, File, parse
from saycan_qt.replicas import RayOptions, Replicas, WhereModelsLive
from saycan_qt.services import SKILL_SERVER, EndWhenTold, announce, announce_ready, refuse
from skills.errors import SkillError, Unavailable
from skills.library import SkillLibrary
from skills.server import Calibrate, Limits
from skills.server import serve as serve_skills
from skills.types import STATE_NAMES, Actor, BatchedActor, BatchedCritic, Critic, Observation, Reader
from skills.wire import join_address

KITCHEN_IMAGE = (80, 96)  # height, width of what the kitchen robot observes [pixels]


@dataclass(frozen=True)
class ServeConfig:
    """The skill server: judges which skills can succeed, and acts."""

    affordance: Checkpoint = "affordance"  # checkpoint that judges
    execution: Checkpoint = "execution"  # checkpoint that acts
    # Affordances are probabilities of success in place of raw Q-values, by the curve that
    # `python -m saycan_qt.evaluate affordance --calibrate isotonic` left beside the checkpoint that judges
    calibrated: bool = False
    skills: File = None  # what the robot can do (YAML); by default kitchen.yaml
    host: str = "127.0.0.1"  # address to listen on
    port: int = 0  # 0: a free one, which is printed
    access: WhoMayCall = field(default_factory=ServerOptions)
    threads: int = 2  # that the models may use, in each replica
    cluster: WhereModelsLive = field(default_factory=RayOptions)
    robots: int = 64  # controlled at one time; further ones are told to come again later
    batch: int = 32  # robots whose actions are computed together, at most; 1: one after the other
    # Seconds without an observation after which a robot's control stream is freed. A real robot observes every third of
    # a second, so 0.4 is right for it; a simulated one takes as long as it takes to simulate and to draw
    stream_timeout: float = 5.0
    until_stdin_closes: bool = False  # end when standard input closes: with the process that started this one


class Unreadable(Exception):
    """A checkpoint, or its calibration, that cannot be used."""


@dataclass(frozen=True)
class Models:
    """What judges and what acts: named at once, loaded when the server can already be reached."""

    critic_id: str
    actor_id: str
    load: Callable[[], tuple[Critic, Actor]]  # raises Unreadable
    calibrate: Calibrate | None = None  # makes affordances of the critic's values; None: they are the values
    replicas: Replicas | None = None  # on a cluster, where the models are; None: they are in this process


class Warming:
    """Stands in for the models while they load; refuses until then."""

    def __init__(self) -> None:
        self.models: tuple[Critic, Actor] | None = None

    def become(self, critic: Critic, actor: Actor) -> None:
        """From now on these answer, several questions at once where they can."""
        self.models = critic, actor
        if isinstance(critic, BatchedCritic):
            self.value_many = critic.value_many
        if isinstance(actor, BatchedActor):
            self.act_many = actor.act_many
        if isinstance(actor, Reader):
            self.know = actor.know

    def value(self, history: Sequence[Observation], instructions: Sequence[str]) -> np.ndarray:
        return self._loaded()[0].value(history, instructions)

    def act(self, history: Sequence[Observation], instruction: str) -> np.ndarray:
        return self._loaded()[1].act(history, instruction)

    def _loaded(self) -> tuple[Critic, Actor]:
        if self.models is None:
            raise Unavailable("the skill server is still loading its models; its health tells when it is ready")
        return self.models


def checkpoints(config: ServeConfig) -> Models:
    """The shipped models, or those that were asked for; raises Unreadable, or Unavailable for a cluster."""
    import torch

    from saycan_qt import calibration, checkpoint

    torch.set_num_threads(config.threads)

    def identify(name: str) -> str:
        """Its name and the beginning of its weights' SHA-256."""
        folder = checkpoint.resolve(name)
        manifest = json.loads((folder / checkpoint.MANIFEST).read_bytes())
        return f"{folder.name}@{manifest['files'][checkpoint.MODEL]['sha256'][:8]}"

    def load() -> tuple[Critic, Actor]:
        try:
            critic = read(config.affordance)
            actor = critic if config.execution == config.affordance else read(config.execution)
        except checkpoint.CheckpointError as error:
            raise Unreadable(str(error)) from None
        if not hasattr(critic, "value"):
            raise Unreadable(f"checkpoint {config.affordance!r} only acts; --affordance needs one that judges")
        return critic, actor

    try:
        critic_id, actor_id = identify(config.affordance), identify(config.execution)
        curve = calibration.load(config.affordance) if config.calibrated else None
    except (checkpoint.CheckpointError, calibration.CalibrationError) as error:
        raise Unreadable(str(error)) from None
    except (OSError, ValueError, LookupError, TypeError):  # a damaged manifest: load says what is wrong with it
        critic_id, actor_id, curve = config.affordance, config.execution, None
    replicas = None if config.cluster.ray is None else Replicas(config.cluster, config.threads)
    read = checkpoint.load if replicas is None else replicas.load
    if curve is None:
        return Models(critic_id, actor_id, load, replicas=replicas)
    return Models(f"{critic_id}+{curve.method}", actor_id, load, curve.calibrated, replicas)


def warm_up(critic: Critic, actor: Actor, library: SkillLibrary) -> None:
    """One call of each kind: the first is slow, and encodes every skill's words."""
    names = [skill.name for skill in library if skill.learned]
    if names:
        if isinstance(critic, Reader):
            critic.know(names)  # in every replica
        critic.value([blank_for(critic)], names)
        if isinstance(actor, Reader):
            actor.know(names)
        actor.act([blank_for(actor)], names[0])


def blank_for(policy: object) -> Observation:
    """An observation of the size that the policy was trained on."""
    network = getattr(policy, "network_config", None)
    image = network.encoder.image if network is not None else KITCHEN_IMAGE
    return Observation(np.zeros((*image, 3), np.uint8), np.zeros(len(STATE_NAMES), np.float32))


def serve(config: ServeConfig, choose: Callable[[ServeConfig], Models]) -> int:
    end = EndWhenTold(config.until_stdin_closes)
    warming = Warming()
    try:
        access = config.access.load(config.host)
        library = SkillLibrary.load(config.skills)
        models = choose(config)
        server = serve_skills(
            library,
            critic=warming,
            actor=warming,
            critic_id=models.critic_id,
            actor_id=models.actor_id,
            calibrate=models.calibrate,
            address=join_address(config.host, config.port),
            ready=False,
            limits=Limits(
                streams=config.robots,
                actions=config.batch,
                batches=1 if models.replicas is None else len(models.replicas),
                stream_timeout=config.stream_timeout,
            ),
            access=access,
        )
    except (SkillError, Unreadable) as error:
        return refuse(str(error))
    announce(SKILL_SERVER, server.address)
    try:
        critic, actor = models.load()
    except Unreadable as error:
        server.stop(0)
        return refuse(str(error))
    warm_up(critic, actor, library)
    warming.become(critic, actor)
    server.set_ready()
    where = "" if models.replicas is None else f", on {models.replicas}"
    by = f"judged by {models.critic_id}, done by {models.actor_id}"
    announce_ready(SKILL_SERVER, f"{len(library)} skills, {by}{where}")
    end.wait()
    server.stop(grace=5.0)
    return 0


def main() -> int:
    return serve(parse(ServeConfig, "python -m saycan_qt.serve", __doc__), checkpoints)


if __name__ == "__main__":
    sys.exit(main())
