"""The skill server: judges which skills can succeed, and acts.

    python -m saycan_qt.serve                                       # the models that come with the project, on loopback
    python -m saycan_qt.serve --affordance runs/critic/checkpoint --port 50051
    python -m saycan_qt.serve --calibrated                          # affordances as probabilities of success
    python -m saycan_qt.serve --stream-timeout 0.4                  # for real robots: frees what has stopped observing
    python -m saycan_qt.serve --also night=runs/night/checkpoint lab=my_models:Both  # more models, asked for by name
    python -m saycan_qt.serve --metrics-port 9090 --log-format json                  # Prometheus; a line for each call
    python -m saycan_qt.serve --record data/executed                # keeps what robots do, to train on
    python -m saycan_qt.serve --skills my_robot.yaml --affordance runs/mine/checkpoint --execution runs/mine/checkpoint
    python -m saycan_qt.serve --skills my_robot.yaml --affordance my_models:Critic --execution my_models:Actor
    python -m saycan_qt.serve --robot-folder my_robot               # its skills, and what judges and acts for it
    python -m saycan_qt.serve --host 0.0.0.0 --port 50051 --certificate gpu.pem --key gpu.key --tokens tokens.yaml
    python -m saycan_qt.serve --device cuda                         # the models on a GPU
    python -m saycan_qt.serve --ray auto                            # the models on every node of a Ray cluster
    python -m saycan_qt.serve --openpi-port 8000                    # for robots written for openpi, too
    python -m saycan_qt.serve --robot-folder my_robot --execution openpi://gpu:8000     # somebody's policy acts

It prints `skill server listening on HOST:PORT` as soon as it can be reached and `skill server ready: ...` when its
models are warm; until then its health is NOT_SERVING. SIGHUP, or `python -m saycan_qt.reload HOST:PORT [NAME]`, has it
read its checkpoints again without dropping a call; a bad one changes nothing. SIGHUP has it read tokens and
certificates again, too. SIGTERM or Ctrl-C drains it, then it
exits with 0. Classes of your own (see Critic, Actor and Embodied in skills.types) are imported from the working folder
or PYTHONPATH, and made without arguments.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from saycan_qt.options import File, Folder, parse
from saycan_qt.services import models
from saycan_qt.services.access import ServerOptions, WhoMayCall
from saycan_qt.services.models import Models, load
from saycan_qt.services.operation import HowToWatch, OperationOptions
from saycan_qt.services.own import is_own
from saycan_qt.services.processes import SKILL_SERVER, EndWhenTold, announce, announce_ready, refuse
from saycan_qt.services.replicas import RayOptions, Replicas, WhereModelsLive
from skills.connective import Rules
from skills.errors import SkillError, Unreadable
from skills.library import SkillLibrary
from skills.openpi.keys import Keys, is_openpi
from skills.robot_folder import AFFORDANCE, EXECUTION, RobotFolder, robot_of
from skills.security.access import Access
from skills.server import Limits
from skills.server import serve as serve_skills
from skills.serving.grpc_server import raise_descriptors
from skills.serving.hosting import DEFAULT, Hosting
from skills.serving.watching import Watcher
from skills.types import Observation
from skills.wire.conventions import join_address

if TYPE_CHECKING:
    from saycan_qt.data.recorder import EpisodeRecorder
    from skills.openpi.endpoint import Endpoint

log = logging.getLogger(__name__)
BY_RULE = "rules"  # who judges where no model does


WhoseModel = Annotated[str, tyro.conf.arg(metavar="NAME|DIR|MODULE:CLASS")]
WhoActs = Annotated[str, tyro.conf.arg(metavar="NAME|DIR|MODULE:CLASS|openpi://HOST:PORT")]
Port = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Also = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=MODEL[,MODEL] ...]", help_behavior_hint="")]


@dataclass(frozen=True)
class ServeConfig:
    """The skill server: judges which skills can succeed, and acts."""

    robot_folder: Folder = None  # your own robot, whose skills and models are served; by default the kitchen's
    affordance: WhoseModel = "affordance"  # checkpoint, or class of your own, that judges
    execution: WhoActs = "execution"  # checkpoint, class of your own, or openpi-compatible server, that acts
    # Affordances are probabilities of success in place of raw Q-values, by the curve that
    # `python -m saycan_qt.evaluate affordance --calibrate isotonic` left beside the checkpoint that judges
    calibrated: bool = False
    # More models, which clients ask for by name: one checkpoint or class, or one that judges and, after a comma (or a
    # colon between checkpoints), one that acts. Those who name none get the model of --affordance and --execution,
    # whose name is "default"
    also: Also = ()
    skills: File = None  # what the robot can do (YAML); by default skills.yaml of the robot's folder
    host: str = "127.0.0.1"  # address to listen on
    port: int = 0  # 0: a free one, which is printed
    # Answer robots that speak openpi's websocket protocol, too, on this port, once the models are ready; 0: a free one,
    # which is printed. With --tokens they show one with the role "drive", with --certificate it is served over TLS
    openpi_port: Port = None
    openpi_host: str = "127.0.0.1"  # address to listen on for them
    access: WhoMayCall = field(default_factory=ServerOptions)
    operation: HowToWatch = field(default_factory=OperationOptions)
    threads: int = 2  # that the models may use, in each replica
    # Where checkpoints compute, as PyTorch says: cpu, cuda, cuda:1. All of what they hold and are asked goes there;
    # classes of your own go where they want. Replicas have --replica-gpus
    device: str = "cpu"
    # Numbers that are multiplied: bfloat16 rounds values by up to 0.02 and is faster on CUDA; auto is bfloat16 there
    # and float32 elsewhere
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    cluster: WhereModelsLive = field(default_factory=RayOptions)
    robots: int = 64  # controlled at one time; further ones are told to come again later
    batch: int = 32  # robots whose actions are computed together, at most; 1: one after the other
    # Seconds without an observation after which a robot's control stream is freed. For a real robot 0.4 is right, or a
    # control period and 50 ms where that is longer; a simulated one takes as long as it takes to simulate and to draw
    stream_timeout: float = 5.0
    # Keep each learnt skill that a robot executes, with its outcome, as an episode in this folder: LeRobotDatasets v3,
    # for `python -m saycan_qt.train ... --data DIR`. What is there stays; more is added
    record: Folder = None
    until_stdin_closes: bool = False  # end when standard input closes: with the process that started this one


PRECISIONS = {"auto": None, "float32": False, "bfloat16": True}  # are products rounded to bfloat16?


def checkpoints(config: ServeConfig, replicas: Replicas | None = None) -> Models:
    """The shipped models, or those that were asked for, here or in replicas; raises Unreadable."""
    body = None if config.robot_folder is None else robot_of(config.robot_folder)
    return models.checkpoints(
        config.affordance,
        config.execution,
        config.calibrated,
        config.threads,
        replicas,
        body,
        config.device,
        PRECISIONS[config.precision],
    )


def configs(config: ServeConfig) -> dict[str, ServeConfig]:
    """Each model's name, and what would be served if it were the only one. Raises Unreadable for what is no name."""
    found = {DEFAULT: config}
    for also in config.also:
        name, _, folders = also.partition("=")
        judges, _, acts = folders.partition("," if "," in folders or is_own_alone(folders) else ":")
        if not judges or not name.isprintable() or not name.strip():
            raise Unreadable(f"{also!r} is no further model; give NAME=MODEL, or NAME=JUDGES,ACTS")
        if name in found:
            raise Unreadable(f"there are two models {name!r}; names must differ, and the first one's is {DEFAULT!r}")
        found[name] = replace(config, affordance=judges, execution=acts or judges)
    return found


def is_own_alone(given: str) -> bool:
    """One class or server, rather than two checkpoints with a colon between them: classes begin with a capital."""
    kind = given.partition(":")[2]
    return is_openpi(given) or (is_own(given) and kind[:1].isupper() and not Path(kind).exists())


def mistake(config: ServeConfig) -> str:
    """What is wrong with a number that was given, in one line; "" where nothing is."""
    replicas = config.cluster
    least = {"threads": config.threads, "robots": config.robots, "batch": config.batch}
    if wrong := [name for name, value in least.items() if value < 1]:
        return f"--{wrong[0]} is {least[wrong[0]]}; at least 1 is needed"
    above = {"stream-timeout": config.stream_timeout, "replica-cpus": replicas.replica_cpus}
    above["replica-timeout"] = replicas.replica_timeout
    if wrong := [name for name, value in above.items() if not value > 0]:
        return f"--{wrong[0]} is {above[wrong[0]]:g}; more than 0 is needed"
    for name, value in (("replicas", replicas.replicas), ("replica-gpus", replicas.replica_gpus)):
        if not value >= 0:
            return f"--{name} is {value:g}; it cannot be less than 0"
    if config.device != ServeConfig.device and replicas.ray is not None:
        return f"--device {config.device} is for models in this process; replicas get GPUs by --replica-gpus"
    if replicas.ray is None and replicas != RayOptions():
        return "--replicas and --replica-... are of a cluster's copies of the models; name the cluster by --ray"
    ports = {"port": config.port, "openpi-port": config.openpi_port or 0}
    if wrong := [name for name, value in ports.items() if not 0 <= value <= 65535]:
        return f"--{wrong[0]} is {ports[wrong[0]]}; 0 to 65535 are ports"
    return ""


def no_device(device: str) -> str:
    """Why PyTorch cannot use it here, in one line; "" where it can."""
    if device == ServeConfig.device:  # PyTorch takes seconds to import
        return ""
    from saycan_qt.learning.distributed import require_device

    try:
        require_device(device)
    except ValueError as error:
        return str(error)
    return ""


class Nobody:
    """An Actor of a robot all of whose skills are scripted."""

    def act(self, history: Sequence[Observation], instruction: str) -> np.ndarray:
        raise ValueError(f"nothing acts here: no skill is learnt, {instruction!r} neither")


def models_of(
    config: ServeConfig, body: RobotFolder, library: SkillLibrary, choose: Callable[[ServeConfig], Models]
) -> Models:
    """Those of the robot's folder, unless others were asked for. Where nothing judges, the skills' rules do; nothing
    need act where no skill is learnt. Raises Unreadable."""
    given = (config.affordance, config.execution)
    usual = (ServeConfig.affordance, ServeConfig.execution)
    found = (body.model(AFFORDANCE), body.model(EXECUTION))
    judges, acts = (f if g == u else g for g, u, f in zip(given, usual, found, strict=True))
    learned = [skill.name for skill in library if skill.learned]
    if learned and not acts:
        raise Unreadable(
            f"{body.path}: {learned[0]!r} is learnt, and nothing acts: put a checkpoint of `python -m saycan_qt.train` "
            f"into {body.path / EXECUTION}, or name one, or a class of your own, in robot.yaml: `{EXECUTION}: my:Actor`"
        )
    if judges and acts:
        return choose(replace(config, affordance=judges, execution=acts))
    rules, nobody = Rules(library), Nobody()
    if not acts:
        return Models(BY_RULE, "", lambda: (rules, nobody))
    acting = choose(replace(config, affordance=f"{Rules.__module__}:{Rules.__name__}", execution=acts))
    return replace(acting, critic_id=BY_RULE, load=lambda: (rules, acting.load()[1]), calibrate=None)


def reload(models: Hosting, access: Access) -> None:
    """Who may call, and all models, one after the other."""
    access.reload()
    for name, _ in models:
        try:
            models.reload(name)
        except SkillError as error:
            log.warning("model %r stays as it was: %s", name, error)


def open_recorder(config: ServeConfig) -> EpisodeRecorder | None:
    """Raises Unreadable."""
    if config.record is None:
        return None
    from saycan_qt.data.recorder import DatasetError, EpisodeRecorder

    try:
        return EpisodeRecorder(config.record)
    except DatasetError as error:
        raise Unreadable(str(error)) from None


def open_openpi(config: ServeConfig, body: RobotFolder, access: Access, watcher: Watcher) -> Endpoint | None:
    """Its port is taken; raises SkillError."""
    if config.openpi_port is None:
        return None
    from skills.openpi.endpoint import Endpoint

    keys = Keys.of(body.embodiment, body.openpi)
    return Endpoint(config.openpi_host, config.openpi_port, access, keys, watcher)


def serve(config: ServeConfig, choose: Callable[..., Models]) -> int:
    """Until it is told to end; the exit code. choose: as `checkpoints`, where replicas are only given if there are."""
    if problem := mistake(config) or no_device(config.device):
        return refuse(problem)
    raise_descriptors()
    end = EndWhenTold(config.until_stdin_closes)
    try:
        if config.cluster.ray is None:
            return host(config, choose, end)
        with Replicas(config.cluster, config.threads, PRECISIONS[config.precision]) as replicas:
            return host(config, partial(choose, replicas=replicas), end, replicas)
    except SkillError as error:
        return refuse(str(error))


def host(
    config: ServeConfig, choose: Callable[[ServeConfig], Models], end: EndWhenTold, replicas: Replicas | None = None
) -> int:
    config.operation.log()
    access = config.access.load(config.host)
    body = robot_of(config.robot_folder)
    body.find_modules()
    library = body.library if config.skills is None else SkillLibrary.load(config.skills)
    asked = {name: partial(choose, one) for name, one in configs(config).items()}
    asked[DEFAULT] = partial(models_of, config, body, library, choose)
    names = {name: choice() for name, choice in asked.items()}
    watcher = config.operation.start(SKILL_SERVER, access)
    hosted = Hosting(
        {name: choice.announced() for name, choice in names.items()},
        {name: partial(load, choice, library) for name, choice in asked.items()},
        watcher,
    )
    recorder = open_recorder(config)
    openpi = open_openpi(config, body, access, watcher)
    server = serve_skills(
        library,
        models=hosted,
        address=join_address(config.host, config.port),
        ready=False,
        limits=Limits(
            streams=config.robots,
            actions=config.batch,
            batches=1 if replicas is None else len(replicas),
            stream_timeout=config.stream_timeout,
        ),
        access=access,
        watcher=watcher,
        recorder=recorder,
    )
    announce(SKILL_SERVER, server.address)
    if recorder is not None:
        print(f"recording to {recorder.folder}, {recorder.num_episodes} episodes there", flush=True)
    try:
        for name in names:
            embodiment = hosted.reload(name).embodiment
            foreign = config.robot_folder is not None and name == DEFAULT and embodiment
            if foreign and (problem := foreign.misfit(body.embodiment)):
                raise Unreadable(f"{body.path}: its model is for another robot: {problem}")
            if recorder is not None and (problem := recorder.misfit(embodiment)):
                raise Unreadable(f"{problem}; record to another folder")
        if openpi is not None:
            openpi.start(server.servicer)
            print(f"{SKILL_SERVER} for openpi at {openpi.url}", flush=True)
    except SkillError:
        server.stop(0)
        raise
    gc.collect()
    gc.freeze()  # a full collection of all that is loaded would hold up every thread, and so every robot
    end.arm(renew=partial(reload, hosted, access))
    server.set_ready()
    done = [f"judged by {model.critic_id}, done by {model.actor_id}" for _, model in hosted]
    more = "".join(f"; {name}: {how}" for name, how in zip(list(names)[1:], done[1:], strict=True))
    where = "" if replicas is None else f", on {replicas}"
    announce_ready(SKILL_SERVER, f"{len(library)} skills, {done[0]}{more}{where}")
    end.wait()
    if openpi is not None:
        openpi.stop()
    server.stop(grace=5.0)
    if recorder is not None:
        recorder.close()
    return 0


def main() -> int:
    return serve(parse(ServeConfig, "python -m saycan_qt.serve", __doc__), checkpoints)


if __name__ == "__main__":
    sys.exit(main())
