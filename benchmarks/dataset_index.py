"""What it takes to open the index of a large dataset and to draw batches from it.

    python benchmarks/dataset_index.py                      # 30,000 and 300,000 episodes of 35 steps

The index is made up, in a temporary folder: true arrays of numbers, and a file of images with nothing in it, which
takes no space on the disk. Each is opened in a process of its own, after the system was told to forget the files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from saycan_qt import atomic
from saycan_qt.data import lerobot
from saycan_qt.data.episodes import CACHE_VERSION, ColumnMapping, EpisodeDataset, cache_folder, digest_of
from saycan_qt.data.reader import Shard
from skills.robot_folder import default_robot

TASKS = 700
PER_FILE = 100  # episodes, as EpisodeWriter writes them
BLOCK = 1_000_000  # frames written at once


@dataclass(frozen=True)
class IndexConfig:
    """Sizes of the made-up datasets."""

    episodes: tuple[int, ...] = (30_000, 300_000)
    steps: int = 35  # of each episode
    image: tuple[int, int] = (80, 96)  # (H, W) [px]
    batches: int = 100
    batch_size: int = 256  # rows
    opens: Path | None = None  # used by the benchmark itself: open this dataset and print what it took


def make(root: Path, episodes: int, config: IndexConfig) -> None:
    """A dataset whose cache is complete, as if it had been decoded."""
    frames = episodes * config.steps
    rng = np.random.default_rng(0)
    names = [
        path.format(chunk_index=number // lerobot.CHUNK_FILES, file_index=number % lerobot.CHUNK_FILES)
        for number in range(episodes // PER_FILE)
        for path in (lerobot.DATA_PATH, lerobot.EPISODES_PATH)
    ]
    counts = {"episodes": PER_FILE, "frames": PER_FILE * config.steps}
    files = {name: {"sha256": atomic.sha256(name.encode()), **counts} for name in names}
    kitchen = default_robot().embodiment
    height, width = config.image
    robot = replace(kitchen, cameras=tuple(replace(c, height=height, width=width) for c in kitchen.cameras))
    info = lerobot.dataset_info(robot, "benchmark") | {"total_episodes": episodes, "total_frames": frames}
    atomic.write(root / lerobot.INFO, atomic.to_json(info))
    manifest = {"files": files, "derived": {}, "tasks": [], "stats": {}}
    atomic.write(root / lerobot.MANIFEST, atomic.to_json(manifest))
    digest = digest_of([Shard(root)], ColumnMapping())
    folder = cache_folder(root / ".cache", digest)
    folder.mkdir(parents=True)
    small = {
        "frame_episode": np.repeat(np.arange(episodes), config.steps),
        "episode_start": np.arange(episodes + 1) * config.steps,
        "episode_task": rng.integers(TASKS, size=episodes),
        "success": rng.random(episodes) < 0.6,
        "truncated": np.zeros(episodes, np.bool_),
    }
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, array in small.items():
        (folder / f"{name}.bin").write_bytes(array.data)
        arrays[name] = (array.dtype.str, array.shape)
    for name, shape in (("states", (8,)), ("actions", (8,)), ("rewards", ())):
        arrays[name] = ("<f4", (frames, *shape))
        with (folder / f"{name}.bin").open("wb") as file:
            for first in range(0, frames, BLOCK):
                file.write(rng.random((min(BLOCK, frames - first), *shape), np.float32).data)
    with (folder / "images.bin").open("wb") as file:
        file.truncate(frames * config.image[0] * config.image[1] * 3)
    pq.write_table(pa.table({"seed": np.arange(episodes)}), folder / "info.parquet")
    index = {"version": CACHE_VERSION, "digest": digest, "roots": [str(root)], "arrays": arrays, "quarantined": []}
    index |= {"cameras": {"head": "images.bin"}, "image_size": config.image, "warnings": []}
    index |= {"embodiment": robot.to_dict()}
    index["tasks"] = [f"task {number}" for number in range(TASKS)]
    atomic.write(folder / "index.json", atomic.to_json(index))
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident() -> tuple[float, float]:
    """(own, mapped) memory of this process [MB]; the system takes mapped pages of files back when it needs room."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {key: int(value.split()[0]) / 1024 for key, value in (line.split(":") for line in lines) if "Rss" in key}
    return sizes["RssAnon"], sizes["RssFile"]


def measure(config: IndexConfig, root: Path) -> dict[str, float]:
    """Open one dataset and draw batches."""
    before = resident()
    start = time.perf_counter()
    dataset = EpisodeDataset(root)
    opened, after = time.perf_counter(), resident()
    rng = np.random.default_rng(1)
    for _ in range(config.batches):
        rows = rng.integers(dataset.num_frames, size=config.batch_size)
        episode = dataset.frame_episode[rows]
        parts = (dataset.states[rows], dataset.actions[rows], dataset.rewards[rows], dataset.episode_start[episode])
        assert all(len(part) == len(rows) for part in (*parts, dataset.episode_task[episode], dataset.success[episode]))
    drawn, end = time.perf_counter(), resident()
    return {
        "frames": dataset.num_frames,
        "open_s": opened - start,
        "open_own_mb": after[0] - before[0],
        "open_mapped_mb": after[1] - before[1],
        "batches_s": drawn - opened,
        "batches_own_mb": end[0] - after[0],
        "batches_mapped_mb": end[1] - after[1],
    }


def main(config: IndexConfig) -> None:
    if config.opens is not None:
        print(json.dumps(measure(config, config.opens)))
        return
    print(f"{config.batches} batches of {config.batch_size} rows; memory [MB] beyond what the imports take")
    print("episodes      frames  open [s]  own  mapped  batches [s]  own  mapped")
    for episodes in config.episodes:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), episodes, config)
            sizes = ["--batches", str(config.batches), "--batch-size", str(config.batch_size)]
            command = [sys.executable, __file__, "--opens", folder, *sizes]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"{episodes:8,} {row['frames']:11,} {row['open_s']:9.3f} {row['open_own_mb']:4.0f} "
            f"{row['open_mapped_mb']:7.0f} {row['batches_s']:12.3f} {row['batches_own_mb']:4.0f} "
            f"{row['batches_mapped_mb']:7.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(IndexConfig, description=__doc__))
