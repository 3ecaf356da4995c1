"""Closed-loop success of an execution model in fresh kitchen scenes: `python -m saycan_qt.evaluate skills`."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from saycan_qt import atomic, workers
from saycan_qt.evaluation.rates import wilson
from saycan_qt.kitchen.embodiment import EMBODIMENT
from saycan_qt.kitchen.env import KitchenEnv
from saycan_qt.kitchen.physics import Unstable
from saycan_qt.kitchen.practice.rollouts import random_skill
from saycan_qt.kitchen.tasks import FAMILIES
from saycan_qt.options import File, require, require_files
from saycan_qt.services import cluster
from skills.errors import SkillError
from skills.library import Skill, SkillLibrary
from skills.types import Actor, BatchedActor, Observation, embodiment_of

log = logging.getLogger(__name__)

TOGETHER = 16  # episodes of a process whose actions are one batch


@dataclass(frozen=True)
class SkillsConfig:
    """Closed-loop success of an execution model, family by family."""

    checkpoint: str = "execution"  # a shipped checkpoint's name, or a folder
    seed: int = 10_000  # decides scenes and tasks; collection uses small seeds
    episodes: int = 50  # for each family
    families: tuple[str, ...] = FAMILIES
    workers: int = 2  # processes
    # Ray cluster whose workers roll out in place of processes here: auto (the one that this machine belongs to), local,
    # HOST:PORT or ray://HOST:PORT. Episodes are divided as among `workers` processes, so a larger cluster wants more
    ray: Annotated[str, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = ""
    json: bool = False  # print the result as JSON on standard output
    out: File = None  # also write the JSON here


@dataclass(frozen=True)
class Start:
    """What an episode follows from: a skill, and the seed of its practice scene."""

    skill: Skill
    seed: int
    number: int = 0  # by which its result is told from others of its family


@dataclass(frozen=True)
class Result:
    """One episode."""

    family: str
    skill: str
    success: bool
    terminated: bool
    steps: int
    number: int = 0  # its start's; with the same seed, that of another checkpoint's episode is paired with it


class _Episode:
    """One that goes on. The actor sees as many observations as its embodiment's history says."""

    def __init__(self, start: Start, history: int) -> None:
        self.start, self.env = start, KitchenEnv(start.skill)
        seen, _ = self.env.reset(seed=start.seed)
        self.history = deque([Observation(seen["image"], seen["state"])], maxlen=history)
        self.result: Result | None = None  # when it has ended

    def step(self, action: np.ndarray) -> None:
        try:
            seen, _, terminated, truncated, info = self.env.step(action)
        except Unstable as error:
            log.warning("episode %d of %r failed: %s", self.start.number, self.start.skill.name, error)
            return self._end(success=False, terminated=False)
        self.history.append(Observation(seen["image"], seen["state"], action=action))
        if terminated or truncated:
            self._end(info["success"], terminated)

    def _end(self, success: bool, terminated: bool) -> None:
        skill, steps = self.start.skill, self.env.steps
        self.result = Result(skill.family, skill.name, success, terminated, steps, self.start.number)


def roll_out(actor: Actor, starts: Iterable[Start], together: int = TOGETHER) -> Iterator[Result]:
    """Closed-loop episodes, as they end. `together` of them go on at a time, and the actor, if it can, computes their
    actions in one batch. How an episode ends does not depend on those beside it, but for rounding: the last bits of
    batched products may choose another one of two bins that are worth the same."""
    body = embodiment_of(actor)
    history = body.history if body is not None else 1
    waiting, going = iter(starts), list[_Episode]()
    while going := going + [_Episode(start, history) for start in islice(waiting, together - len(going))]:
        seen, told = [list(episode.history) for episode in going], [episode.start.skill.name for episode in going]
        if isinstance(actor, BatchedActor) and len(going) > 1:
            actions = list(actor.act_many(seen, told))
        else:
            actions = [actor.act(*asked) for asked in zip(seen, told, strict=True)]
        for episode, action in zip(going, actions, strict=True):
            episode.step(action)
        yield from (episode.result for episode in going if episode.result)
        going = [episode for episode in going if not episode.result]


def random_start(family: str, rng: np.random.Generator, library: SkillLibrary, number: int = 0) -> Start:
    skill = random_skill(rng, library, {f: float(f == family) for f in FAMILIES})
    return Start(skill, int(rng.integers(2**31)), number)


def starts_of(family: str, seed: int, numbers: Iterable[int], library: SkillLibrary) -> list[Start]:
    """Random skills of a family in scenes that follow from the seed and a number alone."""
    index = FAMILIES.index(family)
    return [random_start(family, np.random.default_rng([seed, index, n]), library, n) for n in numbers]


def run_episode(actor: Actor, family: str, rng: np.random.Generator, library: SkillLibrary) -> Result:
    """One closed-loop episode of a random skill of `family` in a random practice scene."""
    return next(roll_out(actor, [random_start(family, rng, library)]))


_actor: Any = None  # each worker process loads the model once


def _prepare(checkpoint: str) -> None:
    import torch

    from saycan_qt.learning.checkpoint import load

    global _actor
    torch.set_num_threads(1)
    _actor = load(checkpoint)


def _some(starts: list[Start], actor: Actor | None = None) -> list[Result]:
    return list(roll_out(actor or _actor, starts))


def results(config: SkillsConfig) -> Iterator[Result]:
    library, numbers = SkillLibrary.load(), range(config.episodes)
    starts = [start for family in config.families for start in starts_of(family, config.seed, numbers, library)]
    size = min(2 * TOGETHER, -(-len(starts) // config.workers))
    parts = [starts[i : i + size] for i in range(0, len(starts), size)]
    if config.ray:
        with cluster.joined(config.ray, config.workers) as ray:
            for part in cluster.carried_out(ray, _some, parts, cluster.ship(ray, config.checkpoint)):
                yield from part
        return
    for part in workers.carried_out(_some, parts, config.workers, partial(_prepare, config.checkpoint)):
        yield from part


def skills(config: SkillsConfig) -> int:
    from saycan_qt.learning.checkpoint import load
    from saycan_qt.services.processes import refuse  # here, so that workers do not load gRPC

    try:
        require(config, seed=0, episodes=1, workers=1)
        if unknown := set(config.families) - set(FAMILIES):
            raise ValueError(f"no family {sorted(unknown)}; there are {', '.join(FAMILIES)}")
        if not config.families or len(set(config.families)) < len(config.families):
            raise ValueError(f"--families {' '.join(config.families)}: name one or more, each once")
        require_files(config, "out")
        if problem := load(config.checkpoint).embodiment.misfit(EMBODIMENT):
            raise ValueError(f"{config.checkpoint} is of another robot than the kitchen's: {problem}")
    except ValueError as error:
        return refuse(str(error))
    console = Console(stderr=True)
    total = len(config.families) * config.episodes
    try:
        found = list(track(results(config), "rolling out", total=total, console=console))
    except SkillError as error:
        return refuse(str(error))
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
