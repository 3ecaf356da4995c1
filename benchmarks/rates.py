"""Robots at the rates that robots run at, on chunks of actions: is what is due done in time, and is anything stale?

    python benchmarks/serving.py --chunks              # 64 robots at 30 Hz, then the same through a lossy proxy

Each robot runs the service's own loop (`skills.chunks.ahead`) with a connection of its own; its driver looks, commands
and sleeps, and writes down when. That alone is judged, by the robot's clock: the model writes into each action which
observation it is for and which row of its chunk it is, so that the driver knows from when until when it is valid,
whatever the code under test holds for true. The actions mean nothing beyond that; the time to compute them is that of
the policy, which is asked for one action for each chunk, in batches.

A period is missed when no action was begun in it. Lateness is from the beginning of an action's period until it was
begun, on a steady clock that only a missed period sets anew: delays that add up would show.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from lossy import KINDS, Lossy, Weather

from skills.chunks.ahead import Ahead
from skills.chunks.schedule import Rule
from skills.client import SkillClient
from skills.embodiment import ActionDimension, Camera, Embodiment, StateNumber
from skills.errors import SkillError
from skills.library import SkillLibrary
from skills.server import Limits, serve
from skills.serving.execution import agree
from skills.types import Observation

SPAWN = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
SETTLE = 3.0  # [s] at the beginning, not counted: 64 robots connect at once
STATES = 8  # numbers that the policy looks at
LARGEST = 1e7  # observations and rows are counted in float32, exact up to there


@dataclass(frozen=True)
class Rates:
    """What is measured."""

    robots: int = 64
    hz: float = 30.0
    rows: int = 100  # of a chunk
    rule: Rule = "replace"
    seconds: float = 20.0
    weather: Weather | None = None  # of the way between robots and server


def body(hz: float, image: tuple[int, int] | None = None) -> Embodiment:
    """image: height, width [pixels] of its camera, if it has one."""
    return Embodiment(
        action=(ActionDimension("observation", 0, LARGEST), ActionDimension("row", 0, LARGEST)),
        cameras=(Camera("head", *image),) if image else (),
        state=(*(StateNumber(f"number {i}") for i in range(STATES)), StateNumber("observation")),
        control_hz=hz,
        max_seconds=3600,
    )


class Witness:
    """A robot's driver: it numbers what it sees, and knows of each action whether its time has come, or passed."""

    def __init__(self, embodiment: Embodiment, seed: int = 0, takes: float = 0.0) -> None:
        """takes: [s] that a command takes."""
        self.embodiment, self._takes = embodiment, takes
        rng = np.random.default_rng(seed)
        self._images = {c.name: rng.integers(0, 255, (c.height, c.width, 3), np.uint8) for c in embodiment.cameras}
        self._state = rng.uniform(-0.2, 0.2, STATES).astype(np.float32)
        self.seen: list[float] = []  # [s] when each observation was made
        self.begun: list[tuple[float, int, int]] = []  # [s] when, for which observation, which row
        self.lost: list[str] = []  # why streams ended

    def observe(self) -> Observation:
        self.seen.append(time.monotonic())
        return Observation(self._images, np.append(self._state, np.float32(len(self.seen) - 1)))

    def apply(self, action: np.ndarray) -> None:
        self.begun.append((time.monotonic(), int(action[0]), int(action[1])))
        time.sleep(self._takes)

    def stale(self, grace: float = 0.0) -> int:
        """Actions that were begun after their time: row i is valid until i + 1 periods after its observation. grace:
        [s] that a busy machine may take from the last look at the clock to the command."""
        period = 1 / self.embodiment.control_hz
        return sum(begun >= self.seen[number] + (row + 1) * period + grace for begun, number, row in self.begun)

    def lateness(self, begin: float, end: float) -> tuple[np.ndarray, int]:
        """[s] of each action between these times, against a steady clock, and how many periods had none."""
        period = 1 / self.embodiment.control_hz
        times = np.array([begin, *(begun for begun, *_ in self.begun if begin <= begun < end), end])
        steps = np.round(np.diff(times) / period).astype(int)
        gaps = np.flatnonzero(steps[1:-1] > 1) + 1  # after which the robot's clock begins anew
        late = []
        for going in np.split(times[1:-1], gaps):
            behind = going - np.arange(len(going)) * period
            late.append(behind - behind.min(initial=np.inf))
        return np.concatenate(late), int(np.maximum(steps - 1, 0).sum())


class Marked:
    """A chunked actor whose rows say what they are for; it takes as long as the policy, which acts once for a chunk."""

    def __init__(self, policy: Any, rows: int, embodiment: Embodiment) -> None:
        self._policy, self.chunk, self.embodiment = policy, rows, embodiment

    def act(self, history: Sequence[Observation], instruction: str) -> np.ndarray:
        return self.act_chunks([history], [instruction], [np.zeros((0, 2))])[0][0]

    def act_chunk(self, history: Sequence[Observation], instruction: str, committed: np.ndarray) -> np.ndarray:
        return self.act_chunks([history], [instruction], [committed])[0]

    def act_chunks(
        self, histories: Sequence[Sequence[Observation]], instructions: Sequence[str], committed: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        known = [[replace(seen, state=seen.state[:STATES]) for seen in history] for history in histories]
        self._policy.act_many(known, list(instructions))
        return [marked(history[-1], self.chunk) for history in histories]


def marked(observation: Observation, rows: int) -> np.ndarray:
    """(rows, 2): the observation's number, and the row's."""
    return np.stack([np.full(rows, observation.state[-1]), np.arange(rows)], axis=1).astype(np.float32)


def drive(robot: Witness, client: SkillClient, instruction: str, end: float, rule: Rule, timeout: float = 10.0) -> None:
    """One robot, until `end` [s]; a stream that ends is opened again."""
    while time.monotonic() < end:
        try:
            terms = agree(robot, client)
            with client.control(instruction, chunks=True) as control:
                ahead = Ahead(control, terms, rule, timeout)
                observed, seen = time.monotonic(), robot.observe()
                while time.monotonic() < end:
                    row = ahead.next(seen, observed, robot.observe)
                    if row is None or time.monotonic() >= row.until:
                        continue
                    robot.apply(row.action)
                    ahead.rest()
                    observed, seen = time.monotonic(), robot.observe()
        except SkillError as error:
            robot.lost.append(str(error))


def host(rates: Rates, threads: int, limits: Limits, pipe: Connection) -> None:
    """A process: the skill server, until the pipe closes."""
    import torch

    from saycan_qt.learning import checkpoint

    torch.set_num_threads(threads)
    policy = checkpoint.load("execution")
    actor = Marked(policy, rates.rows, body(rates.hz, policy.network_config.encoder.image))
    here = Witness(actor.embodiment).observe()
    names = [skill.name for skill in SkillLibrary.load() if skill.learned]
    for count in (1, 2, limits.actions):
        actor.act_chunks([[here]] * count, (names * count)[:count], [])
    with serve(SkillLibrary.load(), actor=actor, limits=limits) as server:
        pipe.send((server.address, actor.embodiment))
        with contextlib.suppress(EOFError):
            pipe.recv()


def carry(address: str, rates: Rates, pipe: Connection) -> None:
    """A process: the lossy proxy, until the pipe closes."""
    assert rates.weather is not None
    with Lossy(address, rates.weather, streams=2 * rates.robots) as proxy:
        pipe.send(proxy.address)
        with contextlib.suppress(EOFError):
            pipe.recv()
        with contextlib.suppress(OSError):
            pipe.send(dict(proxy.met))


def crowd(rates: Rates, address: str, embodiment: Embodiment, pipe: Connection) -> None:
    """A process: the robots."""
    begin = time.monotonic() + SETTLE
    names = [skill.name for skill in SkillLibrary.load() if skill.learned]
    robots = [Witness(embodiment, seed, takes=0.2 / rates.hz) for seed in range(rates.robots)]

    def run(number: int, robot: Witness) -> None:
        time.sleep(number / rates.robots)  # they do not begin together
        with SkillClient(address) as client:
            drive(robot, client, names[number % len(names)], begin + rates.seconds + 0.5, rates.rule)

    threads = [threading.Thread(target=run, args=numbered) for numbered in enumerate(robots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [robot.lateness(begin, begin + rates.seconds) for robot in robots]
    late, missed = np.concatenate([late for late, _ in found]), sum(missed for _, missed in found)
    pipe.send(
        {
            "actions": len(late),
            "missed": missed / (missed + len(late)),
            **{f"p{at}": float(np.percentile(late, at)) for at in (50, 99)},
            "worst": float(late.max()),
            "stale": sum(robot.stale() for robot in robots),
            "begun": sum(len(robot.begun) for robot in robots),
            "lost": [reason for robot in robots for reason in robot.lost],
        }
    )


def measure(rates: Rates, threads: int, limits: Limits) -> dict[str, Any]:
    """Server, robots, and the proxy where there is weather, each in a process of its own on this machine."""
    ours, theirs = SPAWN.Pipe()
    SPAWN.Process(target=host, args=(rates, threads, limits, theirs), daemon=True).start()
    theirs.close()  # so that the end of a process is the end of what it says
    address, embodiment = ours.recv()
    proxy = None
    if rates.weather:
        proxy, end = SPAWN.Pipe()
        SPAWN.Process(target=carry, args=(address, rates, end), daemon=True).start()
        end.close()
        address = proxy.recv()
    result, end = SPAWN.Pipe()
    robots = SPAWN.Process(target=crowd, args=(rates, address, embodiment, end))
    robots.start()
    end.close()
    row = result.recv()
    robots.join()
    if proxy:
        proxy.send(None)
        row["met"] = proxy.recv()
    ours.send(None)
    return row


def compare(rates: Rates, threads: int, limits: Limits, weather: Weather) -> dict[str, Any]:
    print(
        f"{rates.robots} robots at {rates.hz:g} Hz, chunks of {rates.rows} ({rates.rule}), {threads} thread(s) for the "
        f"shipped execution network, asked once for each chunk, {rates.seconds:g} s"
    )
    print("network    actions   missed   median     99 %    worst [ms]   stale")
    rows = {}
    for name, met in (("loopback", None), ("lossy", weather)):
        row = rows[name] = measure(replace(rates, weather=met), threads, limits)
        times = "".join(f"{1e3 * row[key]:9.1f}" for key in ("p50", "p99", "worst"))
        lost = f"   {len(row['lost'])} streams lost: {row['lost'][0]}" if row["lost"] else ""
        print(f"{name:9s}{row['actions']:9d}{100 * row['missed']:8.3f}%{times}{row['stale']:13d}{lost}", flush=True)
    shares = ", ".join(f"{kind} {rows['lossy']['met'].get(kind, 0)}" for kind in KINDS)
    print(f"the proxy passed {rows['lossy']['met'].get('all', 0)} messages on: {shares}")
    return {"chunks": rows}
