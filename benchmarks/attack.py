"""Does Stop get through? Each attack for some seconds from a process of its own, while a robot carries out a skill.

    python benchmarks/serving.py --attack                       # all of them; exit code 1 if a Stop was lost or late
    python benchmarks/serving.py --attack --seconds 3 --only "rapid reset" "silent connections"

Every other Stop is one over gRPC alone, the others go by both roads, as `RobotClient.stop` does: gRPC and the robot's
guard. Each has connections of its own; a Reset follows, and the next goal. Held is what loses no Stop, and has none by
both roads that takes more than 100 ms, under an attack that did not break itself. Growth is that of the robot's process
from before the attack to its end. An attack is a function of the targets and the moment when it ends; a further one
needs a line in ATTACKS.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import multiprocessing
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from frames import RST_STREAM, Frames, frame, message

from skills.client import RobotClient
from skills.embodiment import ActionDimension, Camera, Embodiment, StateNumber
from skills.errors import SkillError
from skills.library import SkillLibrary
from skills.types import Observation
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire.messages import write_tensor

MOVING = "go to table"
CODE = struct.pack(">I", 8)  # of a reset: cancelled
ROADS = SERVICE, BOTH = "service", "both roads"
LATE = 0.1  # [s] that a Stop may take
EVERY = 0.05  # [s] from one Stop to the next
WARMING = 0.5  # [s] from an attack's beginning to the first Stop
SPAWN = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
ROBOT, SKILL, HEALTH = "/skills.v1.RobotService/", "/skills.v1.SkillService/", "/grpc.health.v1.Health/"
BODY = Embodiment(
    action=(ActionDimension("dx", -0.1, 0.1, "m", "delta"), ActionDimension("terminate", kind="terminate")),
    cameras=(Camera("front", 48, 64),),
    state=(StateNumber("x", "m"),),
    control_hz=10,
    max_seconds=600,
    name="line robot",
)


class Robot:
    """Moves for as long as it is let, on a line."""

    name, embodiment, views = BODY.name, BODY, ()

    def observe(self) -> Observation:
        return Observation({"front": np.zeros((48, 64, 3), np.uint8)}, np.zeros(1, np.float32), "table", "")

    def apply(self, action: np.ndarray) -> None:
        time.sleep(0.02)

    def start(self, skill: Any) -> None: ...

    def perform(self, skill: Any, canceled: Callable[[], bool]) -> None:
        while not canceled():
            time.sleep(0.01)

    def finish(self, skill: Any, canceled: Callable[[], bool]) -> None: ...

    def succeeded(self, skill: Any) -> bool | None:
        return None

    def satisfied(self, instruction: str) -> bool | None:
        return None

    def stop(self) -> None: ...


class Still:
    """A policy that stays where it is."""

    embodiment = BODY

    def act(self, history: Sequence[Observation], instruction: str) -> np.ndarray:
        return np.zeros(len(BODY.action), np.float32)

    def value(self, history: Sequence[Observation], instructions: Sequence[str]) -> np.ndarray:
        return np.full(len(instructions), 0.5, np.float32)


@dataclass(frozen=True)
class Targets:
    robot: str  # addresses
    guard: str
    skills: str


def host_robot(skills: str, pipe: Connection) -> None:
    """A process: the robot's service, until the pipe closes."""
    from skills.client import SkillClient
    from skills.robot import serve

    with SkillClient(skills) as client, serve(Robot(), SkillLibrary.load(), client) as server:
        pipe.send((server.address, server.guard.address, os.getpid()))
        with contextlib.suppress(EOFError):
            pipe.recv()


def host_skills(pipe: Connection) -> None:
    """A process: the skill server, until the pipe closes."""
    from skills.server import serve

    with serve(SkillLibrary.load(), Still(), Still()) as server:
        pipe.send((server.address, os.getpid()))
        with contextlib.suppress(EOFError):
            pipe.recv()


def until(end: float, wait: float = 0.0) -> bool:
    time.sleep(wait)
    return time.monotonic() < end


def call_with(frames: Frames, path: str, body: bytes = b"", *more: tuple[str, str], compressed: bool = False) -> int:
    stream = frames.call(path, *more)
    frames.pour(stream, message(body, compressed), 1)
    frames.message(stream, b"", end=True)
    return stream


def watches_that_take_nothing(targets: Targets, end: float) -> None:
    """One that is served, one with no window, both leave."""
    while until(end, 0.01):
        with Frames(targets.robot) as one, Frames(targets.robot, window=0) as other:
            for frames in (one, other):
                call_with(frames, HEALTH + "Watch")
            time.sleep(0.02)


def watches_opened_and_closed(targets: Targets, end: float) -> None:
    while until(end):
        with Frames(targets.robot) as frames:
            for _ in range(60):
                frames.reset(call_with(frames, HEALTH + "Watch"))


def gzip_bombs(targets: Targets, end: float) -> None:
    """64 kB each, of 64 MB."""
    bomb = gzip.compress(bytes(64 * 2**20))
    while until(end):
        with Frames(targets.robot) as frames:
            for path in (HEALTH + "Check", ROBOT + "Observe") * 4:
                frames.ended(call_with(frames, path, bomb, ("grpc-encoding", "gzip"), compressed=True), 1)


def half_open_calls(targets: Targets, end: float) -> None:
    """Two hundred new ones a second, of the methods that end what a robot does."""
    while until(end):
        with Frames(targets.robot) as frames:
            for number in range(60):
                frames.call(ROBOT + ("Stop", "CancelSkill", "Observe")[number % 3])
                time.sleep(0.005)


def unfinished_bodies(targets: Targets, end: float) -> None:
    """60 MiB are announced, and half of it sent, to both services."""
    half = message(bytes(30 * 2**20), size=60 * 2**20)

    def pour(address: str, path: str) -> None:
        while until(end, 0.1):
            with Frames(address) as frames, contextlib.suppress(OSError):
                frames.pour(frames.call(path), half, 1)

    pouring = [
        (targets.robot, ROBOT + "Observe"),
        (targets.robot, ROBOT + "Stop"),
        (targets.skills, SKILL + "ScoreSkills"),
    ]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda where: pour(*where), pouring * 2))


def rapid_reset(targets: Targets, end: float) -> None:
    """A hundred calls in one breath, each taken back in the next frame."""
    while until(end):
        with Frames(targets.robot) as frames, contextlib.suppress(OSError):
            for first in itertools.count(1, 200):
                if frames.closed or not until(end):
                    break
                breath = ((frames.opening(stream, ROBOT + "Stop"), stream) for stream in range(first, first + 200, 2))
                frames.send(b"".join(opening + frame(RST_STREAM, 0, stream, CODE) for opening, stream in breath))


def silent_connections(targets: Targets, end: float) -> None:
    """1,100 that say nothing."""
    import resource
    import socket

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    host, _, port = targets.robot.rpartition(":")
    connections = []
    with contextlib.suppress(OSError):
        for _ in range(min(1100, most - 100)):
            connections.append(socket.create_connection((host, int(port)), timeout=1))
    while until(end, 0.1):
        pass
    for connection in connections:
        connection.close()


def observing(targets: Targets, end: float) -> None:
    """A dashboard, at 5 Hz."""
    with RobotClient(targets.robot) as robot:
        while until(end, 0.2):
            with contextlib.suppress(SkillError):
                robot.observe()


def jpeg_bombs(targets: Targets, end: float) -> None:
    """Sequential pictures of 4096 x 4096 with as many scans as 33 kB hold, sixteen at a time, to the skill server."""
    picture = pb.Image(encoding=pb.IMAGE_ENCODING_JPEG, height=4096, width=4096, data=scans())
    observation = pb.Observation(images={"front": picture}, state=write_tensor(np.zeros(1, np.float32)))
    request = pb.ScoreSkillsRequest(history=[observation], names=["pick apple"])

    def score(_: int) -> None:
        with grpc.insecure_channel(targets.skills) as channel:
            stub = skills_pb2_grpc.SkillServiceStub(channel)
            while until(end):
                with contextlib.suppress(grpc.RpcError):
                    stub.ScoreSkills(request, timeout=5)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(score, range(16)))


def scans() -> bytes:
    """A JPEG whose only scan is repeated: each is decoded anew."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    size = data.index(b"\xff\xc0") + 5
    data[size : size + 4] = struct.pack(">HH", 4096, 4096)
    begin = data.index(b"\xff\xda")
    scan = bytes(data[begin:-2])
    return bytes(data[:begin]) + scan * (32_000 // len(scan)) + b"\xff\xd9"


def flood_the_guard(targets: Targets, end: float) -> None:
    """Connections as fast as they come, each with the half of a request."""
    host, port = targets.guard.rsplit(":", 1)
    held: list[socket.socket] = []
    while until(end, 0.001):
        with contextlib.suppress(OSError):
            held.append(socket.create_connection((host, int(port)), timeout=1))
            held[-1].send(b"POST /stop HTTP/1.1\r\n")
        if len(held) > 400:
            held.pop(0).close()


Attack = Callable[[Targets, float], None]
ATTACKS: dict[str, Attack] = {
    "nothing": lambda targets, end: None,
    "health watch without a window": watches_that_take_nothing,
    "health watches come and go": watches_opened_and_closed,
    "gzip bombs": gzip_bombs,
    "half-open calls": half_open_calls,
    "unfinished bodies": unfinished_bodies,
    "rapid reset": rapid_reset,
    "silent connections": silent_connections,
    "observing at 5 Hz": observing,
    "JPEG bombs at the skill server": jpeg_bombs,
    "connections to the guard": flood_the_guard,
}


def stop_once(targets: Targets, road: str) -> float:
    """[s] that a Stop takes, with connections of its own. Raises SkillError where it is lost."""
    with RobotClient(targets.robot, timeout=5, stop_address=targets.guard if road == BOTH else "") as robot:
        started = time.monotonic()
        robot.stop()
        return time.monotonic() - started


def mount(name: str, targets: Targets, end: float) -> None:
    """A process: the attack."""
    ATTACKS[name](targets, end)


def resident(pid: int) -> float:
    """[MB]; infinite of a process that is dead."""
    with contextlib.suppress(OSError):  # between its death and its parent's notice it has a status, without VmRSS
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1e3
    return float("inf")


def begin_skill(robot: RobotClient) -> None:
    """A goal that moves the robot until it is stopped; what keeps it from beginning does not keep Stop from coming."""
    begun = threading.Event()

    def carry_out() -> None:
        with contextlib.suppress(SkillError):
            execution = robot.execute(MOVING)
            begun.set()
            for _ in execution:
                pass

    threading.Thread(target=carry_out, daemon=True).start()
    begun.wait(1)
    time.sleep(0.02)


def measure(name: str, targets: Targets, pid: int, seconds: float) -> dict[str, Any]:
    before, end = resident(pid), time.monotonic() + WARMING + seconds + 1  # a process takes a second to start
    attacker = SPAWN.Process(target=mount, args=(name, targets, end), daemon=True)
    attacker.start()
    time.sleep(WARMING + 1)
    took, lost, most, roads = {road: [] for road in ROADS}, [], before, itertools.cycle(ROADS)
    with RobotClient(targets.robot, timeout=5) as robot:
        while time.monotonic() < end:
            with contextlib.suppress(SkillError):
                robot.reset()
            begin_skill(robot)
            try:
                took[road := next(roads)].append(stop_once(targets, road))
            except SkillError as error:
                lost.append(f"by {road}: {error}")
            most = max(most, resident(pid))
            time.sleep(EVERY)
        with contextlib.suppress(SkillError):
            robot.reset()
    attacker.join(10)
    broke = f"the attack ended with exit code {attacker.exitcode}" if attacker.exitcode else ""
    if attacker.is_alive():
        attacker.kill()
    answered = sum(map(len, took.values()))
    row = {"attack": name, "tried": answered + len(lost), "answered": answered}
    for road, seconds_each in took.items():
        row[road] = [float(np.median(seconds_each or [np.inf])), max(seconds_each, default=np.inf)]
    held = not lost and not broke and row[BOTH][1] <= LATE
    return row | {"growth": most - before, "held": held, "lost": lost[:3], "broke": broke}


def attack(seconds: float, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for each attack, printed as it comes."""
    if unknown := set(only) - set(ATTACKS):
        raise SystemExit(f"no attack {unknown.pop()!r}; there are: {', '.join(ATTACKS)}")
    skills, theirs = SPAWN.Pipe()
    SPAWN.Process(target=host_skills, args=(theirs,), daemon=True).start()
    theirs.close()
    skills_address, _ = skills.recv()
    robot, theirs = SPAWN.Pipe()
    SPAWN.Process(target=host_robot, args=(skills_address, theirs)).start()  # it has a guard, a process of its own
    theirs.close()
    address, guard, pid = robot.recv()
    targets, rows = Targets(address, guard, skills_address), []
    columns = "".join(f"{f'{road}: median':>18s}{'worst [ms]':>12s}" for road in ROADS)
    print(f"{'attack':32s}{'Stops':>7s}{'answered':>10s}{columns}{'growth [MB]':>13s}")
    for name in only or ATTACKS:
        row = measure(name, targets, pid, seconds)
        rows.append(row)
        said = (*row["lost"], row["broke"])
        times = "".join(f"{1e3 * median:18.1f}{1e3 * worst:12.1f}" for median, worst in (row[road] for road in ROADS))
        print(
            f"{name:32s}{row['tried']:7d}{row['answered']:10d}{times}"
            f"{row['growth']:13.1f}{'' if row['held'] else '   NOT HELD  ' + '; '.join(filter(None, said))}",
            flush=True,
        )
        time.sleep(0.5)
    robot.close()
    skills.close()
    return rows
