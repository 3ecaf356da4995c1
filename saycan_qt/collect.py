"""Collect what is learnt from, and what is measured with, from the kitchen's scripted experts.

    python -m saycan_qt.collect --out data/kitchen --episodes 6000
    python -m saycan_qt.collect --out data/impossible --episodes 4000 --impossible 1 --seed 1
    python -m saycan_qt.collect --out data/anywhere --episodes 4000 --anywhere 1 --seed 2
    python -m saycan_qt.collect --out data/own --episodes 4000 --policy execution --seed 3
    python -m saycan_qt.collect --out data/small --episodes 40 --families pick      # a quick look
    python -m saycan_qt.collect affordance --out data/scenes --scenes 1000

Episodes, as a LeRobotDataset v3: two thirds are demonstrations; the rest are failures that look like near successes
(grasps beside the object, the wrong skill, ending too early, heavy noise, never ending) or happen where the skill is
impossible. With --policy, a checkpoint does what it has learnt instead, and its successes and failures are recorded;
`saycan_qt.train finetune` learns from them.

Labelled scenes, for `python -m saycan_qt.evaluate affordance`: what the robot sees, and for every learnt skill whether
it could be done; `affordance --help` says more.

Every episode and every scene follows from the seed and its number alone, so the same command writes the same data with
any number of workers, and after an interruption it continues where it was.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from saycan_qt import atomic
from saycan_qt.data import scenes
from saycan_qt.data.episodes import DatasetError, Episode, EpisodeWriter
from saycan_qt.kitchen import affordances, rollouts
from saycan_qt.kitchen.camera import HEAD
from saycan_qt.kitchen.looks import LookName
from saycan_qt.options import Command, dispatch
from skills.library import SkillLibrary
from skills.types import Actor

FAMILY_WEIGHTS = {
    "pick": 2.5,
    "move near": 2.0,
    "open drawer": 1.0,
    "close drawer": 0.8,
    "place into drawer": 1.6,
    "pick from drawer": 1.6,
}
FAILURES = rollouts.MODES[1:]
ENDLESS_STEPS = 22  # an episode that never terminates is cut here, before its tail outweighs everything else


@dataclass(frozen=True)
class CollectConfig:
    """Options of `python -m saycan_qt.collect`."""

    out: Path  # the dataset's folder; one shard for each worker is written below it
    episodes: int = 6000  # how many in all
    seed: int = 0  # decides every episode
    failures: float = 0.33  # share of failed episodes
    # Share of short failed episodes in scenes disturbed so that the skill is impossible: hand full, drawer open
    # already, object out of reach, ... An affordance model needs them, an execution model does not
    impossible: float = 0.0
    # Share of episodes in scenes made for another skill, or after one; otherwise a skill is seen in its own scenes only
    anywhere: float = 0.0
    # Checkpoint, or a shipped one's name, that acts instead of the experts: autonomous episodes, half of them disturbed
    policy: str = ""
    look: LookName = "target"  # "source" differs in colours, light and camera, as a simulator does from the real thing
    families: tuple[str, ...] = ()  # only these families; all learnt ones when empty
    workers: int = 2  # processes


def episode(config: CollectConfig, number: int, library: SkillLibrary, actor: Actor | None = None) -> Episode:
    """Episode `number` of a collection. Tries again, from the same generator, until the rollout ends as its kind
    should: a demonstration in success, a failure without; what `actor` does by itself ends as it may."""
    rng = np.random.default_rng([config.seed, number])
    weights = {f: w * (not config.families or f in config.families) for f, w in FAMILY_WEIGHTS.items()}
    mode = str(rng.choice(FAILURES)) if rng.random() < config.failures else "demonstration"
    if config.impossible > 0 and rng.random() < config.impossible:
        mode = rollouts.IMPOSSIBLE
    if actor is not None:
        mode = rollouts.AUTONOMOUS
    anywhere = config.anywhere > 0 and mode not in rollouts.WITHOUT_HOPE and rng.random() < config.anywhere
    limit = ENDLESS_STEPS if mode == "endless" else rollouts.MAX_STEPS
    how: dict[str, Any] = {"look": config.look, "max_steps": limit, "actor": actor}
    for _ in range(50):
        skill = rollouts.random_skill(rng, library, weights)  # drawn even if unused: then a seed keeps its meaning
        if anywhere:
            run = affordances.start_anywhere(rng, library, weights, mode, **how)
        else:
            run = rollouts.start(rng, skill, library, mode, **how)
        steps = list(run)
        if actor is not None or run.success == (mode == "demonstration"):
            break
    else:
        raise RuntimeError(f"no rollout of mode {mode!r} ended as it should in 50 tries (seed {config.seed}, {number})")
    return Episode(
        images=np.stack([s.observation.image for s in steps if s.observation]),
        states=np.stack([s.observation.state for s in steps if s.observation]),
        actions=np.stack([s.action for s in steps]),
        task=run.skill.name,
        success=run.success,
        info={"number": number, "seed": config.seed, "mode": mode, "truncated": int(run.truncated)},
    )


def load_actor(name: str) -> Actor:
    """A policy on one thread, for a process of many. Raises CheckpointError."""
    import torch

    from saycan_qt import checkpoint

    torch.set_num_threads(1)
    return checkpoint.load(name)


def shard(config: CollectConfig, worker: int) -> Path:
    return config.out / f"shard-{worker:02d}"


def _work(config: CollectConfig, worker: int, done: multiprocessing.Queue) -> None:
    library = SkillLibrary.load()
    actor = load_actor(config.policy) if config.policy else None
    numbers = range(worker, config.episodes, config.workers)
    with EpisodeWriter(shard(config, worker), image_size=(HEAD.height, HEAD.width)) as writer:
        done.put(writer.num_episodes)
        for number in numbers[writer.num_episodes :]:
            if orphaned():
                return
            writer.add(episode(config, number, library, actor))
            done.put(1)


def begin(config: CollectConfig) -> None:
    """Refuse what cannot be collected, and to continue a collection with settings that would mix two; ValueError."""
    known = set(FAMILY_WEIGHTS)
    if unknown := set(config.families) - known:
        raise ValueError(f"no family {sorted(unknown)}; the learnt families are {sorted(known)}")
    settings = {"seed": config.seed, "failures": config.failures, "families": list(config.families)}
    settings["workers"] = config.workers  # decides which episode lies in which shard
    usual = CollectConfig(config.out)
    if config.policy:
        if (config.failures, config.impossible) != (usual.failures, usual.impossible):
            raise ValueError("--failures and --impossible are about experts' episodes; leave them out with --policy")
        load_actor(config.policy)  # what cannot be loaded is refused before any worker starts
    for key in ("impossible", "anywhere", "policy", "look"):  # named where they matter
        if (value := getattr(config, key)) != getattr(usual, key):
            settings[key] = value
    path = config.out / "collect.json"
    if not path.exists():
        config.out.mkdir(parents=True, exist_ok=True)
        atomic.write(path, atomic.to_json(settings))
    elif (there := json.loads(path.read_bytes())) != settings:
        differing = ", ".join(f"--{key} {there.get(key)}" for key in settings if there.get(key) != settings[key])
        raise ValueError(f"{config.out} holds a collection made with {differing}; use that, or another --out")


@dataclass(frozen=True)
class AffordanceConfig:
    """Labelled scenes: what the robot sees, and for every learnt skill whether its precondition holds and whether the
    scripted expert succeeds from that very state (tried where the precondition holds).

    Two fifths are scenes to practise a skill in, a tenth whole kitchens; in the others a skill was made impossible: an
    object absent, out of reach, on another worktop or in a closed drawer, the hand full, a drawer so already or blocked
    by one above, the robot elsewhere. In a third of the scenes that allow it, some skill has just been carried out and
    the arm has returned to its carrying pose. A scene follows from the seed and its number alone; an interrupted
    collection goes on where it was."""

    out: Path  # the folder; more scenes can be added to it later
    scenes: int = 1000  # how many in all
    seed: int = 20_000  # decides every scene; episodes to learn from use small seeds
    workers: int = 2  # processes


def _label(config: AffordanceConfig, worker: int, done: multiprocessing.Queue) -> None:
    library = SkillLibrary.load()
    for first in range(worker * scenes.PER_FILE, config.scenes, config.workers * scenes.PER_FILE):
        file = scenes.path(config.out, first // scenes.PER_FILE)
        there = scenes.count(file)
        done.put(there)
        found = []
        for number in range(first + there, min(first + scenes.PER_FILE, config.scenes)):
            if orphaned():
                return
            found.append(affordances.labelled_scene(config.seed, number, library))
            done.put(1)
        if found:
            scenes.extend(file, found)


def episodes(config: CollectConfig) -> int:
    begin(config)
    return _in_parallel(_work, config, config.workers, config.episodes, "episodes", config.out)


def affordance(config: AffordanceConfig) -> int:
    if config.scenes < 1 or config.workers < 1:
        raise ValueError("--scenes and --workers must be at least 1")
    scenes.begin(config.out, config.seed, {s.name: s.family for s in SkillLibrary.load() if s.learned})
    return _in_parallel(_label, config, config.workers, config.scenes, "scenes", config.out)


def orphaned() -> bool:
    """Is this a worker whose parent has been killed? It must not write beside the next collection."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def _in_parallel(work: Callable, config: Any, count: int, wanted: int, what: str, out: Path) -> int:
    """Run work(config, worker, queue) in `count` processes, which report on the queue what they have done."""
    started, context = time.monotonic(), multiprocessing.get_context("spawn")
    done: multiprocessing.Queue = context.Queue()
    workers = [context.Process(target=work, args=(config, w, done), daemon=True) for w in range(count)]
    for worker in workers:
        worker.start()
    total = 0
    columns = (
        TextColumn("collecting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(what),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=wanted)
        while total < wanted:
            try:
                total += done.get(timeout=1.0)
            except queue.Empty:
                if failed := [w for w in workers if w.exitcode not in (None, 0)]:
                    print(
                        f"error: a worker ended with exit code {failed[0].exitcode}; run again to go on",
                        file=sys.stderr,
                    )
                    return 1
                if all(w.exitcode == 0 for w in workers):
                    break
            progress.update(bar, completed=total)
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        print("error: a worker ended while writing; run again to go on", file=sys.stderr)
        return 1
    print(f"{total} {what} in {out} after {time.monotonic() - started:.0f} s")
    return 0


def main(arguments: list[str] | None = None) -> int:
    commands: dict[str, Callable[[], Command]] = {
        "": lambda: (CollectConfig, episodes),
        "affordance": lambda: (AffordanceConfig, affordance),
    }
    try:
        return dispatch("python -m saycan_qt.collect", __doc__, commands, arguments)
    except (ValueError, DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
