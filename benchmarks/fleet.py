"""The whole path of a fleet's data with made-up episodes: written, decoded, indexed, shuffled, perceived, trained on.

    python benchmarks/fleet.py                                       # 300,000 episodes; 0.8 GB of disk, in --home
    python benchmarks/fleet.py --episodes 30000 --shards 10          # a tenth of it: memory should be as much

Episodes are short and their images small, so that there is time for many: what grows with their number would show.
Each stage runs in a process of its own, whose own memory is noted every half second: ten of these, evenly spread, say
whether it stays flat. Pages of mapped files are not its own; the system takes them back when it needs room.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import torch
import tyro

from saycan_qt import train
from saycan_qt.data.episodes import Episode, EpisodeDataset, EpisodeWriter
from saycan_qt.learning import checkpoint
from saycan_qt.learning.batches import BatchConfig, cached_features
from saycan_qt.learning.start import TrainRT1
from saycan_qt.learning.stretches import Order
from saycan_qt.networks.keypoints import Grounding, KeypointTrunk, TrunkConfig
from saycan_qt.networks.tokens import TextEncoder
from skills.library import SkillLibrary
from skills.robot_folder import default_robot

Stage = Literal["write", "decode", "open", "shuffle", "perceive", "train"]
MADE = ("data", "cache", "run", "sampled")  # folders in --home
SIDE, DRAWN = 16, 256  # pixels of an image's side; transitions drawn at once
EYES = TrunkConfig(keypoints=4, image=(SIDE, SIDE), channels=(8, 8, 8, 8), blocks=(1, 1, 1), feature=2, hidden=8)


@dataclass(frozen=True)
class FleetConfig:
    """How much is made up."""

    episodes: int = 300_000
    steps: int = 2  # of each episode
    shards: int = 100  # datasets that they are written to, as that many machines would
    batches: int = 5000  # that are drawn from all of them
    sample: int = 10  # shards that are trained on
    training: int = 10_000  # optimiser steps
    home: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None  # default: a temporary folder
    # Used by the benchmark itself: the stage of this process
    stage: Annotated[Stage | None, tyro.conf.arg(help_behavior_hint="")] = None


def write(config: FleetConfig, home: Path) -> int:
    """How many were written; episodes that are there are kept."""
    robot = default_robot().embodiment
    tasks = [skill.name for skill in SkillLibrary.load() if skill.learned]
    each, written = config.episodes // config.shards, 0
    for shard in range(config.shards):
        rng = np.random.default_rng(shard)
        with EpisodeWriter(home / "data" / f"shard-{shard:03d}", image_size=(SIDE, SIDE)) as out:
            for number in range(out.num_episodes, each):
                images = np.broadcast_to(
                    rng.integers(0, 256, (config.steps, 1, SIDE, 3), np.uint8), (config.steps, SIDE, SIDE, 3)
                )
                states = rng.normal(0, 0.3, (config.steps, len(robot.state))).astype(np.float32)
                actions = rng.uniform(robot.low, robot.high, (config.steps, len(robot.action))).astype(np.float32)
                actions[:, -1] = np.arange(config.steps) == config.steps - 1
                info = {"number": shard + number * config.shards, "seed": 0, "mode": "demonstration", "truncated": 0}
                out.add(Episode(images, states, actions, tasks[number % len(tasks)], number % 3 > 0, info))
                written += 1
    return written


def decode(config: FleetConfig, home: Path) -> int:
    return EpisodeDataset(home / "data", cache=home / "cache", progress=False).num_frames


def shuffle(config: FleetConfig, home: Path) -> int:
    """Batches in the order of an epoch over all transitions, read as training does."""
    data = EpisodeDataset(home / "data", cache=home / "cache")
    order = Order(data.num_frames, 1, [0])
    for number in range(config.batches):
        rows = order(np.arange(number * DRAWN, (number + 1) * DRAWN) % data.num_frames)
        read = (data.images[rows], data.states[rows], data.actions[rows], data.episode_task[data.frame_episode[rows]])
        assert all(len(part) == DRAWN for part in read)
    return config.batches * DRAWN


def perceive(config: FleetConfig, home: Path) -> int:
    data = EpisodeDataset(home / "data", cache=home / "cache")
    torch.manual_seed(0)
    return len(
        cached_features(
            home / "cache", data, next(iter(data.cameras)), KeypointTrunk(EYES).eval(), "cpu", bfloat16=False
        )
    )


def save_eyes(folder: Path) -> None:
    """Untrained ones, as a checkpoint of perception."""
    torch.manual_seed(0)
    trunk, grounding, texts = KeypointTrunk(EYES), Grounding(EYES.keypoints), ["pick apple"]
    tensors = {f"trunk.{name}": value for name, value in trunk.state_dict().items()}
    tensors |= {f"grounding.{name}": value for name, value in grounding.state_dict().items()}
    described = {"algorithm": checkpoint.PERCEPTION, "trunk": checkpoint.plain(EYES), "texts": texts}
    checkpoint.save(folder, described, tensors | {"texts": TextEncoder().encode(texts)}, {})


def learn(config: FleetConfig, home: Path) -> int:
    """On a sample of the shards, decoded and perceived into a cache that has room for no more."""
    save_eyes(home / "eyes")
    shards = sorted((home / "data").glob("shard-*"))
    chosen = np.sort(np.random.default_rng(0).choice(len(shards), min(config.sample, len(shards)), replace=False))
    train.train(
        TrainRT1(
            data=tuple(shards[number] for number in chosen),
            out=home / "run",
            cache=home / "sampled",
            cache_size=2.0,
            preset="debug",
            perception=home / "eyes",
            steps=config.training,
            batches=BatchConfig(batch_size=32),
            log_every=1000,
            threads=1,
        )
    )
    return config.training


STAGES: dict[Stage, tuple[str, Callable[[FleetConfig, Path], int]]] = {
    "write": ("episodes", write),
    "decode": ("frames", decode),
    "open": ("frames", decode),  # again: there they are
    "shuffle": ("samples", shuffle),
    "perceive": ("frames", perceive),
    "train": ("steps", learn),
}


def own_memory() -> float:
    """Of this process [MB], without pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def measure(stage: Stage, config: FleetConfig, home: Path) -> dict[str, object]:
    noted, over = [own_memory()], threading.Event()

    def note() -> None:
        while not over.wait(0.5):
            noted.append(own_memory())

    watching = threading.Thread(target=note)
    watching.start()
    begun = time.perf_counter()
    try:
        count = STAGES[stage][1](config, home)
    finally:
        over.set()
        watching.join()
    seconds = time.perf_counter() - begun
    noted.append(own_memory())
    return {"count": count, "seconds": seconds, "memory": noted}


def show(stage: Stage, found: dict) -> None:
    memory, unit = found["memory"], STAGES[stage][0]
    along = [memory[place] for place in np.linspace(0, len(memory) - 1, 10).round().astype(int)]
    rate = f"{found['count'] / found['seconds']:,.0f} {unit}/s"
    print(
        f"{stage:9}{found['count']:>10,} {unit:9}{found['seconds']:7.1f} s {rate:>22}   "
        f"{' '.join(f'{mb:4.0f}' for mb in along)}   {max(memory):.0f}",
        flush=True,
    )


def run(config: FleetConfig, home: Path) -> None:
    """All stages. Ends with exit code 1 where an earlier run's work is there, which would be measured as this one's."""
    if there := [name for name in MADE if (home / name).exists()]:
        sys.exit(f"error: --home {home}: {', '.join(there)} of an earlier run there; another --home, or delete them")
    print(f"{config.episodes:,} episodes of {config.steps} steps in {config.shards} shards, images of {SIDE} x {SIDE}")
    print("own memory [MB] along the way, and the most", flush=True)
    options = [f"--{key.replace('_', '-')}={value}" for key, value in vars(config).items() if isinstance(value, int)]
    for stage in get_args(Stage):
        command = [sys.executable, __file__, *options, "--home", str(home), "--stage", stage]
        last = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        show(stage, json.loads(last))
    size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
    print(f"{size / 1e9:.1f} GB of disk")


def main(config: FleetConfig) -> None:
    if config.stage is not None:
        assert config.home is not None
        print(json.dumps(measure(config.stage, config, config.home)))
    elif config.home is not None:
        run(config, config.home)
    else:
        home = Path(tempfile.mkdtemp())
        try:
            run(replace(config, home=home), home)
        finally:
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(tyro.cli(FleetConfig, description=__doc__))
