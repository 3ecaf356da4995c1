"""Does a service grow that runs for long? Robots carry out skills one after the other while its memory is read.

    python benchmarks/soak.py --out soak.json          # an hour: the shipped models, 8 robots at 3 Hz
    python benchmarks/soak.py --minutes 10 --trace     # and where Python's memory came from

Three processes on this machine: the skill server; the robots' services, a gRPC server for each robot; and their
clients, each of which asks for affordances and then has a learnt skill carried out and a scripted one, for ever. All
write a log, and the services count for Prometheus, as they do from the command line. Every ten seconds each process's
private memory is read (what ends with it: smaps_rollup), beside what malloc has handed out of that, Python's blocks,
threads and descriptors. The first minutes, in which a process fills its caches, are not counted. The growth of a
process is that from the median of the first tenth to the median of the last one, since single buffers come and go;
MB a minute is the slope of the straight line that fits best.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from saycan_qt.services import logs
from saycan_qt.services.exposition import Metrics
from skills.client import RobotClient, SkillClient
from skills.errors import SkillError
from skills.library import Skill
from skills.robot import serve as serve_robot
from skills.robot_folder import default_robot
from skills.server import Limits
from skills.server import serve as serve_skills
from skills.types import Observation

SPAWN = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
MB = 1e6
WHO = ("server", "robots", "clients")


@dataclass(frozen=True)
class Config:
    minutes: float = 60.0  # after the warm-up
    warm_up: float = 3.0  # [min] not counted
    robots: int = 8
    hz: float = 3.0  # control periods a second
    steps: int = 6  # control periods of a learnt skill
    every: float = 10.0  # [s] between two samples
    trace: bool = False  # at the end, where Python's memory of the last half came from (slower)
    out: Path | None = None  # samples and growth as JSON


class Robot:
    """One that stands still; one control period takes its time."""

    name, embodiment, views = "soaking robot", default_robot().embodiment, ("head",)

    def __init__(self, seed: int, hz: float) -> None:
        self.rng, self.period = np.random.default_rng(seed), 1 / hz

    def observe(self) -> Observation:
        camera = self.embodiment.cameras[0]
        image = self.rng.integers(0, 255, (camera.height, camera.width, 3), dtype=np.uint8)
        state = np.zeros(len(self.embodiment.state), np.float32)
        return Observation({camera.name: image}, state, "table", "apple", {"apple": "table", "sponge": "far counter"})

    def apply(self, action: np.ndarray) -> None:
        time.sleep(self.period)

    def stop(self) -> None: ...

    def start(self, skill: Skill) -> None: ...

    def perform(self, skill: Skill, canceled: Any) -> None:
        time.sleep(self.period)

    def succeeded(self, skill: Skill) -> bool | None:
        return None

    def finish(self, skill: Skill, canceled: Any) -> None: ...

    def satisfied(self, instruction: str) -> bool | None:
        return None

    def view(self, name: str) -> np.ndarray:
        return self.rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)


def serve_models(config: Config, pipe: Connection) -> None:
    """A process: the skill server, with the shipped models, until the pipe closes."""
    import torch

    from saycan_qt.learning import checkpoint

    torch.set_num_threads(1)
    critic, actor = checkpoint.load("affordance"), checkpoint.load("execution")
    limits = Limits(stream_timeout=10)
    with serve_skills(default_robot().library, critic, actor, limits=limits, watcher=begin(config)) as server:
        pipe.send(server.address)
        report(config, pipe)


def serve_robots(config: Config, skill_server: str, pipe: Connection) -> None:
    """A process: a service for each robot."""
    watcher, library, steps = begin(config), default_robot().library, config.steps
    with contextlib.ExitStack() as opened:
        addresses = []
        for seed in range(config.robots):
            skills = opened.enter_context(SkillClient(skill_server))
            robot = Robot(seed, config.hz)
            server = serve_robot(robot, library, skills, max_steps=steps, control_timeout=10, watcher=watcher)
            addresses.append(opened.enter_context(server).address)
        pipe.send(addresses)
        report(config, pipe)


def drive_all(config: Config, skill_server: str, robots: list[str], pipe: Connection) -> None:
    """A process: a client for each robot."""
    begin(config)
    counts = [0] * len(robots)
    for index, address in enumerate(robots):
        threading.Thread(target=drive, args=(skill_server, address, counts, index), daemon=True).start()
    pipe.send(None)
    report(config, pipe, counts)
    os._exit(0)  # in the middle of what the robots do


def drive(skill_server: str, address: str, counts: list[int], index: int) -> None:
    library = default_robot().library
    learned = [skill.name for skill in library if skill.learned]
    with SkillClient(skill_server) as skills, RobotClient(address) as robot:
        while True:
            try:
                skills.score([robot.observe()[0]])
                for name in (learned[counts[index] % len(learned)], "go to table"):
                    *_, _ = robot.execute(name, views=["head"])
                    counts[index] += 1
            except SkillError as error:  # on a busy machine
                print(error, flush=True)
                time.sleep(1)


def begin(config: Config) -> Metrics:
    with contextlib.redirect_stderr(Path(os.devnull).open("w")):  # where the log goes
        logs.configure("text", "info")
    if config.trace:
        import tracemalloc

        tracemalloc.start(12)
    gc.collect()
    gc.freeze()
    return Metrics()


class Mallinfo(ctypes.Structure):
    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in names]


LIBC = ctypes.CDLL(None)
LIBC.mallinfo2.restype = Mallinfo


def handed_out() -> tuple[int, int]:
    """[bytes] that glibc's malloc has handed out, and that it holds."""
    found = LIBC.mallinfo2()
    return found.uordblks + found.hblkhd, found.arena + found.hblkhd


def report(config: Config, pipe: Connection, counts: list[int] | None = None) -> None:
    """Answers what the parent asks of this process, until the pipe closes."""
    snapshot: Any = None
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        if asked == "sample":
            used, held = handed_out()
            pipe.send({"used": used, "held": held, "blocks": sys.getallocatedblocks(), "skills": sum(counts or [])})
        else:
            import tracemalloc

            gc.collect()
            taken = tracemalloc.take_snapshot()
            found = [] if snapshot is None else taken.compare_to(snapshot, "traceback")[:12]
            snapshot = taken
            pipe.send(["\n".join([str(each), *each.traceback.format()]) for each in found])


def memory(pid: int) -> dict[str, int]:
    """[bytes] private to it and resident; threads and descriptors."""
    kilobytes = dict.fromkeys(("Rss", "Private_Clean", "Private_Dirty"), 0)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        if name in kilobytes:
            kilobytes[name] = int(value.split()[0])
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    threads, descriptors = len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))
    return {"private": 1024 * private, "rss": 1024 * kilobytes["Rss"], "threads": threads, "descriptors": descriptors}


def slope(samples: list[dict[str, Any]], key: str) -> float:
    """[MB a minute]."""
    return float(np.polyfit([s["minute"] for s in samples], [s[key] / MB for s in samples], 1)[0])


def grown(samples: list[dict[str, Any]]) -> dict[str, float]:
    half, tenth = samples[len(samples) // 2 :], 1 + len(samples) // 10
    return {
        "from": float(np.median([sample["private"] / MB for sample in samples[:tenth]])),
        "to": float(np.median([sample["private"] / MB for sample in samples[-tenth:]])),
        "a_minute": slope(samples, "private"),
        "a_minute_last_half": slope(half, "private"),
        "handed_out_a_minute_last_half": slope(half, "used"),
    }


def main(config: Config) -> None:
    pipes, pids = {}, {}

    def start(who: str, target: Any, *arguments: Any) -> Any:
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=target, args=(config, *arguments, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes[who], pids[who] = ours, process.pid
        return ours.recv()

    def ask(what: str) -> dict[str, Any]:
        for who in WHO:
            pipes[who].send(what)
        return {who: pipes[who].recv() for who in WHO}

    server = start("server", serve_models)
    robots = start("robots", serve_robots, server)
    start("clients", drive_all, server, robots)
    print(f"{config.robots} robots at {config.hz:g} Hz, skills of {config.steps} steps and scripted ones; private MB")
    print("  minute  skills" + "".join(f"{who:>9s}  handed out  blocks  threads  files" for who in WHO), flush=True)
    samples: dict[str, list[dict[str, Any]]] = {who: [] for who in WHO}
    begun = time.monotonic() + 60 * config.warm_up
    due, traced = begun - 60 * config.warm_up + config.every, -1.0
    while due <= begun + 60 * config.minutes:
        time.sleep(max(0.0, due - time.monotonic()))
        minute = (time.monotonic() - begun) / 60
        said = ask("sample")
        row = {who: {"minute": minute, **memory(pids[who] or 0), **said[who]} for who in WHO}
        print(f"{minute:8.1f}{row['clients']['skills']:8d}" + "".join(map(told, row.values())), flush=True)
        for who in WHO if minute >= 0 else ():
            samples[who].append(row[who])
        if config.trace and minute >= config.minutes / 2 > traced:
            ask("trace")
            traced = minute
        due += config.every
    growth = {who: grown(samples[who]) for who in WHO}
    print("\n          private MB: from      to   a minute   in the last half   of that handed out by malloc")
    for who, found in growth.items():
        first, last, *rest = found.values()
        print(f"{who:10s}{first:16.1f}{last:8.1f}{rest[0]:+11.3f}{rest[1]:+19.3f}{rest[2]:+31.3f}")
    if config.trace:
        for who, lines in ask("trace").items():
            print(f"\n{who}:", *lines, sep="\n")
    if config.out:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
        config.out.write_text(json.dumps({"config": settings, "growth": growth, "samples": samples}, indent=1))


def told(sample: dict[str, Any]) -> str:
    handed, private = sample["used"] / MB, sample["private"] / MB
    return f"{private:9.2f}{handed:12.2f}{sample['blocks']:8d}{sample['threads']:9d}{sample['descriptors']:7d}"


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
