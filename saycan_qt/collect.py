"""Collect what is learnt from, and what is measured with, from the kitchen's scripted experts.

    python -m saycan_qt.collect --out data/kitchen --episodes 6000
    python -m saycan_qt.collect --out data/impossible --episodes 4000 --impossible 1 --seed 1
    python -m saycan_qt.collect --out data/anywhere --episodes 4000 --anywhere 1 --seed 2
    python -m saycan_qt.collect --out data/possible --anywhere 1 --failures 0 --impossible 0.35 --possible --seed 5
    python -m saycan_qt.collect --out data/own --episodes 4000 --policy execution --seed 3
    python -m saycan_qt.collect --out data/shown --episodes 100 --families pick --failures 0 --pace 0.05
    python -m saycan_qt.collect --out data/replays --episodes 1150 --replay data/shown --seed 1
    python -m saycan_qt.collect --out data/small --episodes 40 --families pick      # a quick look
    python -m saycan_qt.collect affordance --out data/scenes --scenes 1000
    python -m saycan_qt.collect --out data/kitchen-3 --shard 3/8        # on the third of eight machines, and then
    python -m saycan_qt.collect merge --out data/kitchen data/kitchen-*            # one dataset of what they made
    python -m saycan_qt.collect --out data/kitchen --ray auto --workers 8          # or by the workers of a Ray cluster

Episodes, as a LeRobotDataset v3: two thirds are demonstrations; the rest are failures that look like near successes
(grasps beside the object, the wrong skill, ending too early, heavy noise, never ending) or happen where the skill is
impossible. With --policy, a checkpoint does what it has learnt instead, and its successes and failures are recorded;
`saycan_qt.train finetune` learns from them. With --replay, demonstrations are carried out again with noise, well or
badly: the paper's setting of few demonstrations and many poor episodes.

Labelled scenes, for `python -m saycan_qt.evaluate affordance`: what the robot sees, and for every learnt skill whether
it could be done; `affordance --help` says more.

Every episode and every scene follows from the seed and its number alone, so the same command writes the same data with
any number of workers or machines, and after an interruption it continues where it was.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from saycan_qt import atomic
from saycan_qt.data import scenes
from saycan_qt.data.episodes import DatasetError
from saycan_qt.kitchen.embodiment import EMBODIMENT
from saycan_qt.kitchen.practice import affordances, merging
from saycan_qt.kitchen.practice.collection import CollectConfig, begin, episode, several, writer
from saycan_qt.kitchen.practice.experts import STEP
from saycan_qt.options import Command, dispatch, require, require_share
from saycan_qt.services import cluster
from skills.errors import SkillError
from skills.library import SkillLibrary

if TYPE_CHECKING:  # it takes PyTorch, which experts do without
    from saycan_qt.learning.algorithms.policy import Policy

TOGETHER = 8  # episodes that a cluster's worker makes at a time
POLL = 0.1  # [s] between looks at whether workers have ended
ENDED_EARLY = 143  # exit code of a worker that was told to end, as the shell has it for SIGTERM
_to_end = False  # this worker was told to


def load_actor(name: str) -> Policy:
    """A policy on one thread, for a process of many. Raises ValueError for one that is not of the kitchen's robot."""
    import torch

    from saycan_qt.learning import checkpoint

    torch.set_num_threads(1)
    policy = checkpoint.load(name)
    if problem := policy.embodiment.misfit(EMBODIMENT):
        raise ValueError(f"{name} is of another robot than the kitchen's: {problem}")
    return policy


def place(config: CollectConfig, worker: int) -> Path:
    """Folder of a worker's dataset."""
    return config.out / f"shard-{worker:02d}"


def _work(config: CollectConfig, worker: int, done: multiprocessing.Queue) -> None:
    library = SkillLibrary.load()
    actor = load_actor(config.policy) if config.policy else None
    numbers = config.numbers[worker :: config.workers]
    with writer(place(config, worker)) as out:
        done.put(out.num_episodes)
        for number in numbers[out.num_episodes :]:
            if _to_end or orphaned():
                return
            out.add(episode(config, number, library, actor))
            done.put(1)


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
            if _to_end:
                break
            found.append(affordances.labelled_scene(config.seed, number, library))
            done.put(1)
        if found:
            scenes.extend(file, found)


def episodes(config: CollectConfig) -> int:
    require(config, episodes=1, workers=1, seed=0, noise=0)
    if not 0 < config.pace <= STEP:
        raise ValueError(f"--pace {config.pace:g}: it must be above 0 and at most {STEP:g} m, the arm's furthest")
    require_share(config, "failures", "impossible", "anywhere", "help_by_expert")
    weights = ""
    if config.policy:
        from saycan_qt.learning import checkpoint  # here: it takes PyTorch, which experts do without

        load_actor(config.policy)  # what cannot be loaded is refused before any worker starts
        weights = checkpoint.digest(checkpoint.resolve(config.policy))
    if config.ray and config.replay:
        raise ValueError("--replay with --ray: other machines do not have that folder; use --shard K/N on each of them")
    wanted = len(config.numbers)
    begin(config, weights)
    return (
        _on_a_cluster(config)
        if config.ray
        else _in_parallel(_work, config, config.workers, wanted, "episodes", config.out)
    )


def merge(config: merging.MergeConfig) -> int:
    started = time.monotonic()
    pieces, settings = merging.pieces(config)
    total = sum(len(piece.numbers) for piece in pieces)
    with _bar("episodes", total, "merging") as advance:
        merging.merge(config, pieces, settings, advance)
    print(f"{total} episodes in {config.out} after {time.monotonic() - started:.0f} s")
    return 0


def affordance(config: AffordanceConfig) -> int:
    require(config, scenes=1, workers=1, seed=0)
    try:
        alone = atomic.lock(config.out / ".lock", wait=False)
    except BlockingIOError:
        raise ValueError(f"{config.out}: another process collects here; wait for it, or choose another --out") from None
    with alone:
        scenes.begin(config.out, config.seed, {s.name: s.family for s in SkillLibrary.load() if s.learned})
        return _in_parallel(_label, config, config.workers, config.scenes, "scenes", config.out)


def orphaned() -> bool:
    """Is this a worker whose parent has been killed? It must not write beside the next collection."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


@contextlib.contextmanager
def _bar(what: str, wanted: int, doing: str = "collecting") -> Iterator[Callable[[int], None]]:
    """A progress bar; yields what advances it."""
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=wanted)
        yield lambda count: progress.advance(bar, count)


def _worker(work: Callable, config: Any, worker: int, done: multiprocessing.Queue) -> None:
    """What cannot be done, however often it is tried, it says on the queue, and ends with exit code 1. Told to end, it
    finishes what it is at, and writes what it has made."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGTERM, _end_soon)
    try:
        work(config, worker, done)
    except (ValueError, OSError, DatasetError, SkillError) as error:
        done.put(str(error))
        raise SystemExit(1) from None
    if _to_end:
        raise SystemExit(ENDED_EARLY)


def _end_soon(*_: object) -> None:
    global _to_end
    _to_end = True


def _reports(workers: Sequence[BaseProcess], done: multiprocessing.Queue) -> Iterator[int]:
    """What they report until all have ended, for what is done is on the disk only then, or one has failed. Raises
    ValueError with a worker's own words."""
    ended = False
    while True:
        try:
            more = done.get(timeout=0 if ended else POLL)
        except queue.Empty:
            if ended:
                return
            codes = [worker.exitcode for worker in workers]
            ended = any(codes) or all(code == 0 for code in codes)  # its last words are there
        else:
            if isinstance(more, str):
                raise ValueError(more)
            yield more


def _in_parallel(work: Callable, config: Any, count: int, wanted: int, what: str, out: Path) -> int:
    """Run work(config, worker, queue) in `count` processes, which report on the queue what they have done."""
    started, context = time.monotonic(), multiprocessing.get_context("spawn")
    done: multiprocessing.Queue = context.Queue()
    workers = [context.Process(target=_worker, args=(work, config, w, done), daemon=True) for w in range(count)]
    total = 0
    try:
        for worker in workers:
            worker.start()
        with _bar(what, wanted) as advance:
            for more in _reports(workers, done):
                total += more
                advance(more)
        failed = [worker.exitcode for worker in workers if worker.exitcode]
    finally:  # on Ctrl-C, or where one of them has failed, the others write what they have made
        for worker in (begun := [worker for worker in workers if worker.pid]):
            worker.terminate()
        try:
            for worker in begun:
                worker.join()
        except KeyboardInterrupt:  # one hangs, and whoever waits says so once more
            for worker in begun:
                worker.kill()
            raise
    if failed:
        print(f"error: a worker ended with exit code {failed[0]}; run again to go on", file=sys.stderr)
        return 1
    print(f"{total} {what} in {out} after {time.monotonic() - started:.0f} s")
    return 0


def _on_a_cluster(config: CollectConfig) -> int:
    """The cluster's workers make the episodes, and each is written here to the dataset where a process of `workers`
    would have written it."""
    started, total = time.monotonic(), len(config.numbers)
    with contextlib.ExitStack() as stack:
        ray = stack.enter_context(cluster.joined(config.ray, config.workers))
        model = cluster.ship(ray, config.policy) if config.policy else None
        outs = [stack.enter_context(writer(place(config, worker))) for worker in range(config.workers)]
        lacking = [
            (n, w) for w, out in enumerate(outs) for n in config.numbers[w :: config.workers][out.num_episodes :]
        ]
        lacking.sort()
        parts = [[number for number, _ in lacking[i : i + TOGETHER]] for i in range(0, len(lacking), TOGETHER)]
        made = cluster.carried_out(ray, partial(several, config=config), parts, model)
        advance = stack.enter_context(_bar("episodes", total))
        advance(total - len(lacking))
        for (_, worker), found in zip(lacking, itertools.chain.from_iterable(made), strict=True):
            outs[worker].add(found)
            advance(1)
    print(f"{total} episodes in {config.out} after {time.monotonic() - started:.0f} s")
    return 0


def main(arguments: list[str] | None = None) -> int:
    commands: dict[str, Callable[[], Command]] = {
        "": lambda: (CollectConfig, episodes),
        "affordance": lambda: (AffordanceConfig, affordance),
        "merge": lambda: (merging.MergeConfig, merge),
    }
    try:
        return dispatch("python -m saycan_qt.collect", __doc__, commands, arguments)
    except (ValueError, OSError, DatasetError, SkillError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
