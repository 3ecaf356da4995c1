"""Closed-loop success of an execution model in fresh kitchen scenes: `python -m saycan_qt.evaluate skills`."""

from __future__ import annotations

import multiprocessing
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from saycan_qt import atomic
from saycan_qt.evaluation.rates import wilson
from saycan_qt.kitchen.embodiment import EMBODIMENT
from saycan_qt.kitchen.env import KitchenEnv
from saycan_qt.kitchen.practice.rollouts import random_skill
from saycan_qt.kitchen.tasks import FAMILIES
from saycan_qt.options import File, require
from skills.library import SkillLibrary
from skills.types import Observation, embodiment_of


@dataclass(frozen=True)
class SkillsConfig:
    """Closed-loop success of an execution model, family by family."""

    checkpoint: str = "execution"  # a shipped checkpoint's name, or a folder
    seed: int = 10_000  # decides scenes and tasks; collection uses small seeds
    episodes: int = 50  # for each family
    families: tuple[str, ...] = FAMILIES
    workers: int = 2  # processes
    json: bool = False  # print the result as JSON on standard output
    out: File = None  # also write the JSON here


@dataclass(frozen=True)
class Result:
    """One episode."""

    family: str
    skill: str
    success: bool
    terminated: bool
    steps: int
    number: int = (
        0  # among its family's: with the same seed another checkpoint's episode of that number is paired with it
    )


def run_episode(actor, family: str, rng: np.random.Generator, library: SkillLibrary) -> Result:
    """One closed-loop episode of a random skill of `family` in a random practice scene. The actor sees as many
    observations as its embodiment's history says."""
    skill = random_skill(rng, library, {f: float(f == family) for f in FAMILIES})
    env = KitchenEnv(skill)
    seen, _ = env.reset(seed=int(rng.integers(2**31)))
    success = terminated = truncated = False
    body = embodiment_of(actor)
    history: deque[Observation] = deque(maxlen=body.history if body is not None else 1)
    action: np.ndarray | None = None
    while not (terminated or truncated):
        history.append(Observation(seen["image"], seen["state"], action=action))
        action = actor.act(list(history), skill.name)
        seen, _, terminated, truncated, info = env.step(action)
        success = info["success"]
    return Result(family, skill.name, success, terminated, env.steps)


_actor = None  # each worker process loads the model once


def _prepare(checkpoint: str) -> None:
    import torch

    from saycan_qt.learning.checkpoint import load

    global _actor
    torch.set_num_threads(1)
    _actor = load(checkpoint)


def _one(job: tuple[str, int, int]) -> Result:
    family, seed, number = job
    rng = np.random.default_rng([seed, FAMILIES.index(family), number])
    return replace(run_episode(_actor, family, rng, SkillLibrary.load()), number=number)


def results(config: SkillsConfig) -> Iterator[Result]:
    jobs = [(family, config.seed, i) for family in config.families for i in range(config.episodes)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(config.workers, _prepare, (config.checkpoint,)) as pool:
        yield from pool.imap_unordered(_one, jobs, chunksize=2)


def skills(config: SkillsConfig) -> int:
    from saycan_qt.learning.checkpoint import load
    from saycan_qt.services.processes import refuse  # here, so that workers do not load gRPC

    try:
        require(config, seed=0, episodes=1, workers=1)
        if unknown := set(config.families) - set(FAMILIES):
            raise ValueError(f"no family {sorted(unknown)}; there are {', '.join(FAMILIES)}")
        if config.out and config.out.is_dir():
            raise ValueError(f"--out {config.out} is a folder; give a file's name")
        if problem := load(config.checkpoint).embodiment.misfit(EMBODIMENT):
            raise ValueError(f"{config.checkpoint} is of another robot than the kitchen's: {problem}")
    except ValueError as error:
        return refuse(str(error))
    console = Console(stderr=True)
    total = len(config.families) * config.episodes
    found = list(track(results(config), "rolling out", total=total, console=console))
    table = Table(title=f"{config.checkpoint}: closed-loop success, seed {config.seed}")
    for column in ("family", "rate", "95 % interval", "episodes", "never terminated", "mean steps"):
        table.add_column(column, justify="left" if column == "family" else "right")
    summary: dict[str, dict[str, float]] = {}
    for family in config.families:
        mine = [r for r in found if r.family == family]
        wins = sum(r.success for r in mine)
        low, high = wilson(wins, len(mine))
        rate = wins / len(mine)
        summary[family] = {"successes": wins, "episodes": len(mine), "rate": rate, "low": low, "high": high}
        endless, steps = sum(not r.terminated for r in mine), float(np.mean([r.steps for r in mine]))
        table.add_row(family, f"{rate:.2f}", f"{low:.2f} - {high:.2f}", str(len(mine)), str(endless), f"{steps:.1f}")
    average = float(np.mean([s["rate"] for s in summary.values()]))
    table.add_row("average", f"{average:.2f}", "", str(total), "", "")
    answer = atomic.to_json({"families": summary, "average": average})
    (console if config.json else Console()).print(table)
    if config.json:
        sys.stdout.write(answer.decode())
        sys.stdout.flush()
    if config.out:
        try:
            atomic.write(config.out, answer)
        except OSError as error:
            return refuse(f"--out {config.out} cannot be written: {error.strerror}")
    return 0
