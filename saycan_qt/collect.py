"""Collect episodes of the kitchen's scripted experts, successful and failed, as a LeRobotDataset v3.

    python -m saycan_qt.collect --out data/kitchen --episodes 6000
    python -m saycan_qt.collect --out data/small --episodes 40 --families pick      # a quick look

Two thirds are demonstrations; the rest are failures that look like near successes (grasps beside the object, the wrong
skill, ending too early, heavy noise, never ending). Every episode follows from the seed and its number alone, so the
same command writes the same data with any number of workers, and after an interruption it continues where it was.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from saycan_qt import atomic
from saycan_qt.data.episodes import Episode, EpisodeWriter
from saycan_qt.kitchen import rollouts
from saycan_qt.kitchen.camera import HEAD
from skills.library import SkillLibrary

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
    families: tuple[str, ...] = ()  # only these families; all learnt ones when empty
    workers: int = 2  # processes


def episode(config: CollectConfig, number: int, library: SkillLibrary) -> Episode:
    """Episode `number` of a collection. Tries again, from the same generator, until the rollout ends as its kind
    should: a demonstration in success, a failure without."""
    rng = np.random.default_rng([config.seed, number])
    weights = {f: w for f, w in FAMILY_WEIGHTS.items() if not config.families or f in config.families}
    mode = str(rng.choice(FAILURES)) if rng.random() < config.failures else "demonstration"
    for _ in range(50):
        skill = rollouts.random_skill(rng, library, {f: weights.get(f, 0.0) for f in FAMILY_WEIGHTS})
        limit = ENDLESS_STEPS if mode == "endless" else rollouts.MAX_STEPS
        run = rollouts.start(rng, skill, library, mode, max_steps=limit)
        steps = list(run)
        if run.success == (mode == "demonstration"):
            break
    else:
        raise RuntimeError(f"no rollout of mode {mode!r} ended as it should in 50 tries (seed {config.seed}, {number})")
    return Episode(
        images=np.stack([s.observation.image for s in steps if s.observation]),
        states=np.stack([s.observation.state for s in steps if s.observation]),
        actions=np.stack([s.action for s in steps]),
        task=skill.name,
        success=run.success,
        info={"number": number, "seed": config.seed, "mode": mode, "truncated": int(run.truncated)},
    )


def shard(config: CollectConfig, worker: int) -> Path:
    return config.out / f"shard-{worker:02d}"


def _work(config: CollectConfig, worker: int, done: multiprocessing.Queue) -> None:
    library = SkillLibrary.load()
    numbers = range(worker, config.episodes, config.workers)
    with EpisodeWriter(shard(config, worker), image_size=(HEAD.height, HEAD.width)) as writer:
        done.put(writer.num_episodes)
        for number in numbers[writer.num_episodes :]:
            writer.add(episode(config, number, library))
            done.put(1)


def begin(config: CollectConfig) -> None:
    """Refuse what cannot be collected, and to continue a collection with settings that would mix two; ValueError."""
    known = set(FAMILY_WEIGHTS)
    if unknown := set(config.families) - known:
        raise ValueError(f"no family {sorted(unknown)}; the learnt families are {sorted(known)}")
    settings = {"seed": config.seed, "failures": config.failures, "families": list(config.families)}
    settings["workers"] = config.workers  # decides which episode lies in which shard
    path = config.out / "collect.json"
    if not path.exists():
        config.out.mkdir(parents=True, exist_ok=True)
        atomic.write(path, atomic.to_json(settings))
    elif (there := json.loads(path.read_bytes())) != settings:
        differing = ", ".join(f"--{key} {there.get(key)}" for key in settings if there.get(key) != settings[key])
        raise ValueError(f"{config.out} holds a collection made with {differing}; use that, or another --out")


def main(config: CollectConfig) -> int:
    try:
        begin(config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    started, context = time.monotonic(), multiprocessing.get_context("spawn")
    done: multiprocessing.Queue = context.Queue()
    workers = [context.Process(target=_work, args=(config, w, done), daemon=True) for w in range(config.workers)]
    for worker in workers:
        worker.start()
    total = 0
    columns = (
        TextColumn("collecting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=config.episodes)
        while total < config.episodes:
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
    print(f"{total} episodes in {config.out} after {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(CollectConfig, description=__doc__)))
