"""Episodes as arrays to train on: checked, decoded once into a cache beside the data, memory-mapped.

dataset = EpisodeDataset("data/kitchen")          # a dataset, or a folder of shards
dataset.images[dataset.frames(3)]                 # (T, H, W, 3) uint8

A dataset is a LeRobotDataset v3 or a folder of RLDS's TFRecord files; `mapping` says what the columns of those made by
others mean: EpisodeDataset("fractal20220817_data", mapping="fractal").
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saycan_qt import atomic
from saycan_qt.data import lerobot, reader, rlds
from saycan_qt.data.digests import NotedDigests
from saycan_qt.data.lerobot import DatasetError, Episode
from saycan_qt.data.mapping import ColumnMapping
from saycan_qt.data.reader import Quarantined
from saycan_qt.data.writer import EpisodeWriter
from skills.embodiment import Camera, Embodiment
from skills.robot_folder import default_robot
from skills.types import Status

__all__ = ["ColumnMapping", "DatasetError", "Episode", "EpisodeDataset", "EpisodeWriter", "Quarantined"]

log = logging.getLogger(__name__)

CACHE_VERSION = 1
LONG = 20_000  # decoding more frames than this shows a progress bar
VERSION_FOLDER = re.compile(r"\d+\.\d+\.\d+")  # of TFDS
QUARANTINED = "quarantined.json"  # beside the cache, for people

Shard = reader.Shard | rlds.Shard


class EpisodeDataset:
    """All good episodes of one or several datasets, in the order of shards and files."""

    embodiment: Embodiment
    cameras: dict[str, np.ndarray]
    images: np.ndarray  # (N, H, W, 3) uint8, a read-only memory map
    states: np.ndarray  # (N, 8) float32
    actions: np.ndarray  # (N, 8) float32
    rewards: np.ndarray  # (N,) float32, as recorded; else 1 at the last step of a success
    frame_episode: np.ndarray  # (N,) int64, the episode of each frame
    episode_start: np.ndarray  # (E + 1,) int64, first frame of each episode
    episode_task: np.ndarray  # (E,) int64, index into `tasks`
    success: np.ndarray  # (E,) bool
    truncated: np.ndarray  # (E,) bool, cut by the time limit
    tasks: list[str]
    quarantined: list[Quarantined]
    digest: str  # of the content of all files, the same on every machine

    def __init__(
        self,
        roots: str | Path | Iterable[str | Path],
        max_bad_share: float = 0.05,  # more quarantined episodes than this raise DatasetError
        cache: str | Path | None = None,  # folder of the decoded frames; `.cache` in the first root when None
        mapping: str | Path | ColumnMapping | None = None,  # a built-in one's name, a YAML file; None: our own columns
        progress: bool | None = None,  # show a bar while decoding; None: when it takes long and a person looks on
        rate: float | None = None,
        success: str | None = None,
    ) -> None:
        given = [Path(roots)] if isinstance(roots, str | Path) else [Path(root) for root in roots]
        columns = ColumnMapping.load(mapping or None)
        paths = [path for root in given for path in _shards(root)]
        if not paths:
            raise DatasetError(f"no dataset in {', '.join(map(str, given)) or 'an empty list of folders'}")
        home = Path(cache) if cache is not None else given[0] / ".cache"
        with atomic.lock(home / ".lock", wait=True):  # of several processes, the first one decodes
            noted = NotedDigests(home / "digests.json")
            shards = self._find(paths, columns, noted, home)
            if not self._open():
                if noted.trusted:  # decode what the files hold, whatever their size and time say
                    noted.forget()
                    shards = self._find(paths, columns, noted, home)
                with _bar(sum(shard.num_frames for shard in shards), progress) as advance:
                    _build(self._folder, shards, columns, self.digest, max_bad_share, advance)
                _remove_stale(self._folder)
                if not self._open():
                    raise DatasetError(f"{self._folder}: damaged as soon as it was written; is the disk full?")
            _list_for_people(home / QUARANTINED, self.quarantined, self.num_episodes)
        _judge(self.quarantined, self.num_episodes, max_bad_share, home / QUARANTINED)

    @property
    def num_frames(self) -> int:
        return int(self.episode_start[-1])

    @property
    def num_episodes(self) -> int:
        return len(self.episode_start) - 1

    def __len__(self) -> int:
        return self.num_episodes

    def __repr__(self) -> str:
        return f"EpisodeDataset({self.num_episodes} episodes, {self.num_frames} frames, {len(self.tasks)} tasks)"

    @cached_property
    def info(self) -> Mapping[str, list[Any]]:
        """What was written with each episode: key -> one value an episode, None where a shard has none."""
        return self._infos.to_pydict()

    @cached_property
    def finished(self) -> np.ndarray:
        """(E,) bool; False for what a robot was recorded doing that was canceled, aborted or lost."""
        if lerobot.OUTCOME not in self._infos.column_names:
            return np.ones(self.num_episodes, np.bool_)
        cut = {Status.CANCELED.value, Status.ABORTED.value, lerobot.LOST}
        return np.array([outcome not in cut for outcome in self._infos.column(lerobot.OUTCOME).to_pylist()])

    @cached_property
    def _infos(self) -> pa.Table:
        return pq.read_table(self._folder / "info.parquet")

    def frames(self, episode: int) -> slice:
        return slice(int(self.episode_start[episode]), int(self.episode_start[episode + 1]))

    def episode(self, number: int) -> Episode:
        frames = self.frames(number)
        info: dict[str, Any] = next(iter(self._infos.slice(number, 1).to_pylist()), {})
        return Episode(
            images=np.array(self.images[frames]),
            states=np.array(self.states[frames]),
            actions=np.array(self.actions[frames]),
            task=self.tasks[self.episode_task[number]],
            success=bool(self.success[number]),
            info={key: value for key, value in info.items() if value is not None},
            rewards=np.array(self.rewards[frames]),
        )

    def _find(self, paths: Sequence[Path], columns: ColumnMapping, noted: NotedDigests, home: Path) -> list[Shard]:
        """The shards; their digest and the mapping's are the cache's address."""
        shards = [_shard(path, columns, noted) for path in paths]
        self.digest = digest_of(shards, columns)
        self._folder = cache_folder(home, self.digest)
        noted.save()
        return shards

    def _open(self) -> bool:
        """Map the cache; False when there is none or it is damaged."""
        try:
            index = json.loads((self._folder / "index.json").read_bytes())
            if (index["digest"], index["version"]) != (self.digest, CACHE_VERSION):
                return False
            for name, (dtype, shape) in index["arrays"].items():
                path = self._folder / f"{name}.bin"
                if path.stat().st_size != np.dtype(dtype).itemsize * int(np.prod(shape)):
                    return False
                # "c": writable without touching the file, so that torch takes it as it is
                setattr(self, name, np.memmap(path, dtype, "r" if name == "images" else "c", shape=tuple(shape)))
            if "rewards" not in index["arrays"]:  # a cache of before they were kept, which was of our own datasets
                self.rewards = np.zeros(self.num_frames, np.float32)
                self.rewards[self.episode_start[1:] - 1] = self.success
            self.tasks, self.quarantined = index["tasks"], [Quarantined(**entry) for entry in index["quarantined"]]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self.cameras = {"head": self.images}
        robot = default_robot().embodiment
        self.embodiment = replace(robot, cameras=(Camera("head", *self.images.shape[1:3]),))
        return True


def digest_of(shards: Sequence[Shard], columns: ColumnMapping) -> str:
    """Of all that decoding depends on."""
    content = "".join(shard.digest for shard in shards)
    if described := columns.described():
        content += json.dumps(described, sort_keys=True)
    return atomic.sha256(content.encode())


def cache_folder(home: Path, digest: str) -> Path:
    return home / f"frames-{digest[:16]}"


def _build(
    folder: Path,
    shards: Sequence[Shard],
    columns: ColumnMapping,
    digest: str,
    max_bad_share: float,
    advance: Callable[[int], None],
) -> None:
    """Decode all good episodes into the cache `folder`."""
    for shard in shards:
        if shard.shapes != shards[0].shapes:
            raise DatasetError(
                f"{shard.root} has frames of {shard.shapes}, {shards[0].root} of {shards[0].shapes}; "
                "a mapping with `image_size: [80, 96]` makes them equal"
            )
    _check_space(folder.parent, shards)
    quarantined: list[Quarantined] = []
    tasks: dict[str, int] = {}
    lengths, episode_task, success, truncated = [], [], [], []
    infos: list[Mapping[str, Any]] = []
    with atomic.replacing_folder(folder) as temporary, contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context((temporary / f"{name}.bin").open("wb"))
            for name in ("images", "states", "actions", "rewards")
        }
        for found in (episode for shard in shards for episode in shard.episodes()):
            if isinstance(found, Quarantined):
                quarantined.append(found)
                continue
            episode, cut = found
            arrays_of = {"images": episode.images, "states": episode.states, "actions": episode.actions}
            for name, array in (arrays_of | {"rewards": episode.step_rewards()}).items():
                files[name].write(np.ascontiguousarray(array).data)
            episode_task.append(tasks.setdefault(episode.task, len(tasks)))
            lengths.append(len(episode))
            success.append(episode.success)
            truncated.append(cut)
            infos.append(episode.info)
            advance(len(episode))
        _list_for_people(folder.parent / QUARANTINED, quarantined, len(lengths))
        _judge(quarantined, len(lengths), max_bad_share, folder.parent / QUARANTINED, quietly=True)
        image, state, action = shards[0].shapes
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {
            "images": ("|u1", (sum(lengths), *image)),
            "states": ("<f4", (sum(lengths), *state)),
            "actions": ("<f4", (sum(lengths), *action)),
            "rewards": ("<f4", (sum(lengths),)),
        }
        small = {
            "frame_episode": np.repeat(np.arange(len(lengths)), lengths),
            "episode_start": np.concatenate([[0], np.cumsum(lengths)]),
            "episode_task": np.array(episode_task),
            "success": np.array(success, np.bool_),
            "truncated": np.array(truncated, np.bool_),
        }
        for name, array in small.items():
            (temporary / f"{name}.bin").write_bytes(array.data)
            arrays[name] = (array.dtype.str, array.shape)
        keys = dict.fromkeys(key for info in infos for key in info)
        pq.write_table(pa.table({key: [info.get(key) for info in infos] for key in keys}), temporary / "info.parquet")
        index = {
            "version": CACHE_VERSION,
            "digest": digest,
            "roots": [str(shard.root.resolve()) for shard in shards],
            "mapping": columns.described(),
            "tasks": list(tasks),
            "arrays": arrays,
            "quarantined": [asdict(entry) for entry in quarantined],
        }
        (temporary / "index.json").write_bytes(atomic.to_json(index))


def _check_space(home: Path, shards: Sequence[Shard]) -> None:
    """Decoded frames take much more space than the files they come from."""
    numbers = sum(int(np.prod(shape)) * 4 for shape in shards[0].shapes[1:]) + 8
    needed = sum(shard.num_frames for shard in shards) * (int(np.prod(shards[0].shapes[0])) + numbers)
    free = shutil.disk_usage(home).free
    if needed > free:
        raise DatasetError(
            f"{home}: about {needed / 1e9:,.1f} GB are needed for the decoded frames, {free / 1e9:,.1f} GB are free; "
            "choose another disk with cache=..., or smaller images with `image_size: [80, 96]` in the mapping"
        )


def _list_for_people(path: Path, quarantined: Sequence[Quarantined], good: int) -> None:
    """What was left out of the dataset opened last, and why; no file when nothing was."""
    if not quarantined:
        path.unlink(missing_ok=True)
        return
    counts = {"left_out": len(quarantined), "used": good}
    atomic.write(path, atomic.to_json(counts | {"episodes": [asdict(entry) for entry in quarantined]}))


def _judge(
    quarantined: Sequence[Quarantined], good: int, max_bad_share: float, list_path: Path, quietly: bool = False
) -> None:
    bad = len(quarantined)
    if bad + good == 0:
        raise DatasetError("the dataset has no episodes yet")
    if bad > max_bad_share * (bad + good) or good == 0:
        raise DatasetError(
            f"{bad} of {bad + good} episodes cannot be used, above the allowed share of {max_bad_share:.0%}; "
            f"the first: {quarantined[0]}; all are in {list_path}"
        )
    for entry in () if quietly else quarantined[:10]:
        log.warning("left out: %s", entry)
    if bad > 10 and not quietly:
        log.warning("left out: %d episodes in all, see %s", bad, list_path)


def _shards(root: Path) -> list[Path]:
    """The dataset at `root`, or the datasets in its folders; of a TFDS dataset's versions the newest."""
    if not root.is_dir():
        raise DatasetError(f"{root}: not a folder; `python -m saycan_qt.collect --out {root}` makes one")
    if here := _dataset(root):
        return [here]
    return [path for child in sorted(root.iterdir()) if child.is_dir() and (path := _dataset(child))]


def _dataset(folder: Path) -> Path | None:
    if (folder / lerobot.INFO).exists() or rlds.tfrecords(folder):
        return folder
    versions = [child for child in folder.iterdir() if VERSION_FOLDER.fullmatch(child.name) and rlds.tfrecords(child)]
    return max(versions, key=lambda child: [int(part) for part in child.name.split(".")], default=None)


def _shard(root: Path, columns: ColumnMapping, noted: NotedDigests) -> Shard:
    if (root / lerobot.INFO).exists():
        return reader.Shard(root, columns, noted.sha256)
    return rlds.Shard(root, columns, noted.sha256)


def _remove_stale(folder: Path) -> None:
    """Caches of the same datasets and mapping when the content was another."""

    def source(index: Path) -> tuple[Any, Any]:
        value = json.loads(index.read_bytes())
        return value["roots"], value.get("mapping", {})

    mine = source(folder / "index.json")
    for index in folder.parent.glob("frames-*/index.json"):
        try:
            stale = index.parent != folder and source(index) == mine
        except (OSError, ValueError, KeyError):
            stale = True
        if stale:
            shutil.rmtree(index.parent, ignore_errors=True)


@contextlib.contextmanager
def _bar(frames: int, progress: bool | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, or nothing; yields what advances it."""
    if not (frames > LONG and sys.stderr.isatty() if progress is None else progress):
        yield lambda frames: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as display:
        bar = display.add_task("decoding frames", total=frames)
        yield lambda frames: display.advance(bar, frames)
