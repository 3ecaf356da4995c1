"""Measure what was learnt.

    python -m saycan_qt.evaluate skills                              # the shipped execution model, every family
    python -m saycan_qt.evaluate skills --episodes 20 --families pick --json
    python -m saycan_qt.evaluate skills --checkpoint runs/q/checkpoint --seed 7
    python -m saycan_qt.evaluate affordance --data data/scenes       # does it know what is possible? Offline
    python -m saycan_qt.evaluate affordance --data data/scenes --checkpoint affordance runs/critic/checkpoint --json
    python -m saycan_qt.evaluate affordance --data data/scenes --server 127.0.0.1:50051 --out runs/judged
    python -m saycan_qt.evaluate affordance --data DIR --mapping bridge --checkpoint runs/own/checkpoint     # episodes
    python -m saycan_qt.evaluate affordance --data data/scenes --checkpoint runs/critic/checkpoint --calibrate isotonic
    python -m saycan_qt.evaluate plans                               # does the planner reach what people ask for?
    python -m saycan_qt.evaluate plans --half held-out --affordance model --execute --out runs/plans.json

skills: closed loop in fresh kitchen scenes: the policy sees camera and proprioception only, and an episode counts when
it terminates itself with the task's goal reached. Rates come with 95 % Wilson intervals.
affordance: value functions, as checkpoints or behind running skill servers, score every learnt skill in labelled scenes
(`python -m saycan_qt.collect affordance`), or the first frames of anybody's episodes; precision, recall, F1 and more,
with bootstrap intervals, and calibration. `affordance --help` says how pairs are weighted.
plans: the language model plans instructions that come with a start and a goal (planners/instructions.yaml, or --set);
its skills are carried out perfectly and, with --execute, by the learnt policy in MuJoCo. `plans --help` says more.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from saycan_qt.kitchen.env import KitchenEnv
from saycan_qt.kitchen.rollouts import random_skill
from saycan_qt.kitchen.tasks import FAMILIES
from saycan_qt.options import Command, dispatch
from skills.library import SkillLibrary
from skills.types import Observation


@dataclass(frozen=True)
class SkillsConfig:
    """Closed-loop success of an execution model, family by family."""

    checkpoint: str = "execution"  # a shipped checkpoint's name, or a folder
    seed: int = 10_000  # decides scenes and tasks; collection uses small seeds
    episodes: int = 50  # for each family
    families: tuple[str, ...] = FAMILIES
    workers: int = 2  # processes
    json: bool = False  # print the result as JSON on standard output
    out: Path | None = None  # also write the JSON here


@dataclass(frozen=True)
class Result:
    """One episode."""

    family: str
    skill: str
    success: bool
    terminated: bool
    steps: int


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a rate (95 % at z = 1.96), e.g. (0.40, 0.60) for 50 of 100."""
    if n == 0:
        return 0.0, 1.0
    p, zz = successes / n, z * z
    center, spread = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(0.0, (center - spread) / (1 + zz / n)), min(1.0, (center + spread) / (1 + zz / n))


def run_episode(actor, family: str, rng: np.random.Generator, library: SkillLibrary) -> Result:
    """One closed-loop episode of a random skill of `family` in a random practice scene."""
    skill = random_skill(rng, library, {f: float(f == family) for f in FAMILIES})
    env = KitchenEnv(skill)
    seen, _ = env.reset(seed=int(rng.integers(2**31)))
    success = terminated = truncated = False
    while not (terminated or truncated):
        action = actor.act([Observation(seen["image"], seen["state"])], skill.name)
        seen, _, terminated, truncated, info = env.step(action)
        success = info["success"]
    return Result(family, skill.name, success, terminated, env.steps)


_actor = None  # each worker process loads the model once


def _prepare(checkpoint: str) -> None:
    import torch

    from saycan_qt.checkpoint import load

    global _actor
    torch.set_num_threads(1)
    _actor = load(checkpoint)


def _one(job: tuple[str, int, int]) -> Result:
    family, seed, number = job
    rng = np.random.default_rng([seed, FAMILIES.index(family), number])
    return run_episode(_actor, family, rng, SkillLibrary.load())


def results(config: SkillsConfig) -> Iterator[Result]:
    jobs = [(family, config.seed, i) for family in config.families for i in range(config.episodes)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(config.workers, _prepare, (config.checkpoint,)) as pool:
        yield from pool.imap_unordered(_one, jobs, chunksize=2)


def skills(config: SkillsConfig) -> int:
    from saycan_qt.checkpoint import CheckpointError, resolve

    if unknown := set(config.families) - set(FAMILIES):
        print(f"error: no family {sorted(unknown)}; there are {', '.join(FAMILIES)}", file=sys.stderr)
        return 2
    try:
        resolve(config.checkpoint)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
    answer = json.dumps({"families": summary, "average": average})
    (Console(stderr=True) if config.json else Console()).print(table)
    if config.out:
        config.out.write_text(answer)
    if config.json:
        print(answer)
    return 0


def affordance() -> Command:
    from saycan_qt import affordance  # here: it takes seconds to import, which each process that rolls out would pay

    return affordance.AffordanceConfig, affordance.affordance


def plans() -> Command:
    from saycan_qt import plans  # here, for the same reason

    return plans.PlansConfig, plans.plans


def main(arguments: list[str] | None = None) -> int:
    commands = {"skills": lambda: (SkillsConfig, skills), "affordance": affordance, "plans": plans}
    return dispatch("python -m saycan_qt.evaluate", __doc__, commands, arguments)


if __name__ == "__main__":
    sys.exit(main())
