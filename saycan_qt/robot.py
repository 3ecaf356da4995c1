"""The kitchen robot: a simulated kitchen with a robot in it, served as a robot stack would serve its own; or yours.

    python -m saycan_qt.robot --seed 3 --skill-server 127.0.0.1:50051 --port 50052
    python -m saycan_qt.robot --robot-folder my_robot --skill-server 127.0.0.1:50051     # its own driver
    python -m saycan_qt.robot --stop 127.0.0.1:50052         # stop a robot
    python -m saycan_qt.robot --release 127.0.0.1:50052      # let a robot that was stopped move again

It prints `kitchen robot listening on HOST:PORT`, `kitchen robot ready: ...`, and where its guard hears Stop: a POST
(`curl -X POST http://127.0.0.1:50062/stop`) halts the robot also when the service itself hangs. Without a skill server
it can do the scripted skills only; one that is not there yet is waited for. A skill server whose model is for
another robot is refused, and nothing moves (exit code 2). SIGTERM, Ctrl-C or the closing of its terminal stops the
robot, then it exits with 0; told twice, it stops the robot and waits for nothing more. SIGHUP while its terminal is
there has it, and its guard, read tokens and certificates again. It exits with 1 when its guard dies; the guard ends it
when it has not answered for a second.
"""

from __future__ import annotations

import difflib
import gc
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from saycan_qt.options import Address, File, Folder, parse
from saycan_qt.services.access import ClientOptions, HowToCall, ServerOptions, WhoMayCall
from saycan_qt.services.operation import HowToWatch, OperationOptions
from saycan_qt.services.processes import EndWhenTold, announce, announce_ready, refuse
from skills.chunks.schedule import Chunks
from skills.client import RobotClient, SkillClient
from skills.errors import EmbodimentError, LibraryError, SkillError, Unavailable
from skills.latch import Latch
from skills.library import Skill, SkillLibrary
from skills.robot import serve as serve_robot
from skills.robot_folder import default_robot, robot_of
from skills.serving.execution import agree
from skills.serving.grpc_server import raise_descriptors
from skills.types import Robot
from skills.wire.conventions import join_address

log = logging.getLogger(__name__)

AGAIN = 0.5  # [s] between two looks whether the skill server is there


@dataclass(frozen=True)
class RobotConfig:
    """The kitchen robot: a simulated kitchen with a robot in it, served as a robot stack would serve its own."""

    robot_folder: Folder = None  # your own robot, whose driver is served; by default the kitchen's
    seed: int = 0  # which kitchen: the same seed gives the same kitchen
    real_time: bool = False  # move as slowly as a real robot (3 Hz) instead of as fast as this machine simulates
    skill_server: Address = None  # who acts when a learnt skill runs
    model: str = ""  # which of the skill server's models acts; "": its first
    chunks: Chunks = "replace"  # what becomes of the rest of a chunk of actions when the next is here; off: no chunks
    host: str = "127.0.0.1"  # address to listen on
    port: int = 0  # 0: a free one, which is printed
    access: WhoMayCall = field(default_factory=ServerOptions)
    credentials: HowToCall = field(default_factory=ClientOptions)
    operation: HowToWatch = field(default_factory=OperationOptions)
    latch: File = None  # remembers Stop there, so that a server started anew is still stopped
    stop_port: int = 0  # where its guard hears Stop (`curl -X POST http://HOST:PORT/stop`); 0: a free one, printed too
    # Halts the robot without this process, should it hang: "module:function" or an http(s) address that is POSTed to;
    # by default what robot.yaml of the robot's folder says
    stop_command: str = ""
    stop: Address = None  # stop the robot whose service, or guard, is at this address, and exit
    release: Address = None  # reset a stopped robot and exit
    until_stdin_closes: bool = False  # end when standard input closes: with the process that started this one


METHODS = ("observe", "apply", "stop", "start", "perform", "succeeded", "finish", "satisfied", "view")  # of a driver


def robot_in_folder(config: RobotConfig, library: SkillLibrary) -> Robot:
    """The driver that the robot's folder names, which takes `seed`, `real_time` and `folder` if it likes."""
    body = robot_of(config.robot_folder)
    if body.address:
        raise EmbodimentError(f"{body.path}: its robot runs already, at {body.address}; name a class to serve it here")
    if body.is_kitchen:
        for skill in library:
            check(skill)
    robot: Robot = body.drive(seed=config.seed, real_time=config.real_time)
    lacks = [name for name in METHODS if not callable(getattr(robot, name, None))]
    if lacks:
        raise EmbodimentError(f"{body.path}: driver {body.driver!r} lacks {', '.join(lacks)}, see skills.types.Robot")
    return robot


def check(skill: Skill) -> None:
    """Raise LibraryError for a skill that this kitchen's robot has no way to do."""
    from saycan_qt.kitchen.goals import SLOTS
    from saycan_qt.kitchen.tasks import FAMILIES

    families = FAMILIES if skill.learned else tuple({s.family: s for s in default_robot().library if not s.learned})
    if skill.family not in families:
        kind = "learnt" if skill.learned else "scripted"
        raise LibraryError(
            f"the kitchen robot cannot do {skill.name!r}: of {kind} skills it knows the families {', '.join(families)}"
        )
    for slot, value in skill.arguments.items():
        if value not in SLOTS.get(slot, ()):
            nearest = difflib.get_close_matches(value, SLOTS.get(slot, ()), n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise LibraryError(f"the kitchen robot cannot do {skill.name!r}: it knows no {slot} {value!r}{hint}")


def release(config: RobotConfig) -> int:
    assert config.release is not None
    try:
        with RobotClient(config.release, credentials=config.credentials.load()) as robot:
            robot.reset()
    except SkillError as error:
        return refuse(str(error))
    print(f"the robot at {config.release} may move again")
    return 0


def stop(config: RobotConfig) -> int:
    """By both roads: the address is the service's or the guard's."""
    assert config.stop is not None
    try:
        with RobotClient(config.stop, credentials=config.credentials.load(), stop_address=config.stop) as robot:
            robot.stop()
    except SkillError as error:
        return refuse(str(error))
    print(f"the robot at {config.stop} is stopped until its service is told `--release`")
    return 0


def ask_when_there(skills: SkillClient) -> SkillLibrary:
    """What the skill server can do, as soon as it can be reached. Raises SkillError for one that refuses to say."""
    waiting = False
    while True:
        try:
            return skills.list_skills()
        except Unavailable as error:
            if not waiting:
                print(f"waiting for the skill server at {skills.address} ...", flush=True)
                log.warning("%s", error)
            waiting = True
            time.sleep(AGAIN)


def serve(config: RobotConfig, make_robot: Callable[[RobotConfig, SkillLibrary], Robot]) -> int:
    raise_descriptors()
    end = EndWhenTold(config.until_stdin_closes)
    config.operation.log()
    try:
        body = robot_of(config.robot_folder)
        access = config.access.load(config.host)
        credentials = config.credentials.load()
        watcher = config.operation.start(body.name, access)
        skills = None
        if config.skill_server:
            skills = SkillClient(config.skill_server, credentials=credentials, model=config.model)
        library = ask_when_there(skills) if skills else body.library
        robot = make_robot(config, library)
        if skills:
            agree(robot, skills)
        latch, address = Latch(config.latch), join_address(config.host, config.port)
        gc.collect()
        gc.freeze()  # a full collection of all that is loaded would hold up every thread, also the one that halts
        end.arm(halt=robot.stop)
        server = serve_robot(
            robot,
            library,
            skills,
            address=address,
            latch=latch,
            access=access,
            watcher=watcher,
            stop_address=join_address(config.host, config.stop_port),
            stop_command=config.stop_command or body.halting,
            ends=True,
            on_loss=end.tell,
            chunks=config.chunks,
        )
    except SkillError as error:
        return refuse(str(error))
    end.arm(halt=robot.stop, renew=access.reload)
    announce(body.name, server.address)
    announce_ready(body.name, f"kitchen {config.seed}" if body.is_kitchen else str(body.path))
    print(f"{body.name} stops at {server.guard.url}", flush=True)
    if server.guard.stopped:
        print(
            f"{body.name} is stopped, as {config.latch} says, until it is told `--release {server.address}`", flush=True
        )
    end.wait()
    try:
        server.stop(grace=1.0)
    except BaseException as error:  # of the driver's, which may exit
        print(
            f"error: {body.name} could not be halted as its service ended, so use its own stop: "
            f"{type(error).__name__}: {error}",
            file=sys.stderr,
        )
        return 1
    return 1 if server.guard.lost else 0


def main() -> int:
    config = parse(RobotConfig, "python -m saycan_qt.robot", __doc__)
    if config.stop:
        code = stop(config)
        return (
            refuse("it is stopped, and not released: --stop and --release do not go together")
            if config.release
            else code
        )
    return release(config) if config.release else serve(config, robot_in_folder)


if __name__ == "__main__":
    sys.exit(main())
