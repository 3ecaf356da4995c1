"""Episodes as arrays to train on: checked, decoded once into a cache beside the data, memory-mapped.

dataset = EpisodeDataset("data/kitchen")          # a dataset, or a folder of shards
dataset.embodiment                                # of the robot that they are of
dataset.cameras["front"][dataset.frames(3)]       # (T, H, W, 3) uint8

A dataset is a LeRobotDataset v3 or a folder of RLDS's TFRecord files. What it does not say of its columns a `mapping`
does: EpisodeDataset("fractal20220817_data", mapping="fractal").
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from saycan_qt import atomic
from saycan_qt.data import corrections, lerobot, reader, rlds
from saycan_qt.data.cache import frames as caches
from saycan_qt.data.cache import room
from saycan_qt.data.cache.frames import CACHE_VERSION, Shard, cache_folder, digest_of
from saycan_qt.data.digests import NotedDigests
from saycan_qt.data.layout.mapping import ColumnMapping
from saycan_qt.data.layout.outcomes import Outcomes
from saycan_qt.data.layout.settle import possible_rates
from saycan_qt.data.lerobot import DatasetError, Episode
from saycan_qt.data.reader import Quarantined
from saycan_qt.data.writer import EpisodeWriter
from skills.embodiment import Embodiment
from skills.errors import EmbodimentError
from skills.types import Status

__all__ = [
    "CACHE_VERSION",
    "ColumnMapping",
    "DatasetError",
    "Episode",
    "EpisodeDataset",
    "EpisodeWriter",
    "Quarantined",
    "cache_folder",
    "digest_of",
]

log = logging.getLogger(__name__)

VERSION_FOLDER = re.compile(r"\d+\.\d+\.\d+")  # of TFDS
OTHERS = {".hdf5": "HDF5", ".h5": "HDF5", ".zarr": "Zarr", ".npz": "NumPy", ".bag": "a ROS bag", ".mcap": "MCAP"}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
READ = "a LeRobotDataset v3 or a folder of RLDS's TFRecord files is read"


class EpisodeDataset:
    """All good episodes of one or several datasets, in the order of shards and files."""

    embodiment: Embodiment  # of all of them, at the rate that they are brought to; cameras as the files have them
    cameras: dict[str, np.ndarray]  # camera -> (N, H, W, 3) uint8, read-only memory maps, all of `image_size`
    image_size: tuple[int, int]  # (H, W) [px]; (0, 0) where there is no camera
    images: np.ndarray  # of the first camera; (N, 0, 0, 3) where there is none
    states: np.ndarray  # (N, S) float32
    actions: np.ndarray  # (N, D) float32
    rewards: np.ndarray  # (N,) float32, as recorded; else 1 at the last step of a success
    frame_episode: np.ndarray  # (N,) int64, the episode of each frame
    episode_start: np.ndarray  # (E + 1,) int64, first frame of each episode
    episode_task: np.ndarray  # (E,) int64, index into `tasks`
    success: np.ndarray  # (E,) bool
    corrected: np.ndarray  # (E,) bool: does a person say how it ended?
    truncated: np.ndarray  # (E,) bool, cut by the time limit
    tasks: list[str]
    quarantined: list[Quarantined]
    warnings: list[str]  # what is odd about the data, each with what to write where; logged once
    digest: str  # of the content of all files, the same on every machine
    folder: Path  # of the decoded frames, in the cache

    def __init__(
        self,
        roots: str | Path | Iterable[str | Path],
        max_bad_share: float = 0.05,  # more quarantined episodes than this raise DatasetError
        cache: str | Path | None = None,  # folder of the decoded frames; `.cache` in the first root when None
        mapping: str | Path | ColumnMapping | None = None,  # a built-in one's name, a YAML file; None: as the data says
        progress: bool | None = None,  # a bar while decoding; None: where a person looks on, else lines of the log
        rate: float | None = None,  # [Hz] to bring all episodes to; None: theirs, which must be one
        success: str | None = None,  # "all", a column or a file of outcomes, instead of the data's and the mapping's
        cache_size: float = 0.0,  # [GB] that `cache` may hold; what was used longest ago makes way; 0: no bound
    ) -> None:
        given = [Path(roots)] if isinstance(roots, str | Path) else [Path(root) for root in roots]
        rate = rate or None
        columns = ColumnMapping.load(mapping or None).with_success(success or None)
        paths = datasets_in(given)
        if len(paths) > 1 and isinstance(columns.success, Outcomes) and "" in columns.success.of_dataset:
            names = f"{paths[0].name}, {paths[1].name}"
            raise DatasetError(
                f"{columns.success.file}: of which of {len(paths)} datasets ({names}, ...)? Name their folders"
            )
        if isinstance(columns.success, Outcomes):
            folders = [path.name for path in {path.resolve() for path in paths}]
            if twice := [name for name in columns.success.of_dataset if folders.count(name) > 1]:
                raise DatasetError(
                    f"{columns.success.file}: {twice[0]!r} is the folder of several datasets; rename one, or open them "
                    "apart"
                )
        home = Path(cache) if cache is not None else given[0] / ".cache"
        with _writable(home) as refused:  # of several processes, the first one decodes
            noted = NotedDigests(home / "digests.json")
            shards = self._find(paths, columns, noted, home, rate)
            if not self._open():
                if refused is not None:
                    raise DatasetError(
                        f"{home}: cannot be written to ({refused.strerror}); give another folder for the decoded "
                        "frames: --cache DIR"
                    )
                if noted.trusted:  # decode what the files hold, whatever their size and time say
                    noted.forget()
                    shards = self._find(paths, columns, noted, home, rate)
                noted.save()
                with room.shown("decoding", sum(shard.num_frames for shard in shards), progress) as advance:
                    caches.build(self.folder, shards, columns, self.digest, rate, max_bad_share, advance, cache_size)
                caches.remove_stale(self.folder)
                if not self._open():
                    raise DatasetError(f"{self.folder}: damaged as soon as it was written; is the disk full?")
            if refused is None:
                room.used(self.folder)
                room.make_room(home, 0, cache_size, [self.folder], "the decoded frames")
                noted.save()
                caches.list_for_people(home / caches.QUARANTINED, self.quarantined, self.num_episodes)
        self._correct(given)
        caches.judge(self.quarantined, self.num_episodes, max_bad_share, home / caches.QUARANTINED)
        for warning in self.warnings:
            log.warning("%s", warning)

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
        outcomes = self._infos.column(lerobot.OUTCOME).to_pylist()
        return np.array([outcome not in cut for outcome in outcomes]) | self.corrected

    @cached_property
    def return_range(self) -> tuple[float, float]:
        """The smallest and the largest sum of an episode's recorded rewards."""
        sums = np.add.reduceat(self.rewards, self.episode_start[:-1])
        return float(sums.min()), float(sums.max())

    @cached_property
    def _infos(self) -> pa.Table:
        return lerobot.read_table(self.folder / caches.INFO, None)

    def frames(self, episode: int) -> slice:
        return slice(int(self.episode_start[episode]), int(self.episode_start[episode + 1]))

    def episode(self, number: int) -> Episode:
        frames = self.frames(number)
        info: dict[str, Any] = next(iter(self._infos.slice(number, 1).to_pylist()), {})
        return Episode(
            images={camera: np.array(images[frames]) for camera, images in self.cameras.items()},
            states=np.array(self.states[frames]),
            actions=np.array(self.actions[frames]),
            task=self.tasks[self.episode_task[number]],
            success=bool(self.success[number]),
            info={key: value for key, value in info.items() if value is not None},
            rewards=np.array(self.rewards[frames]),
        )

    def _correct(self, roots: Sequence[Path]) -> None:
        """What people said of recorded episodes beside `roots` takes the place of what robots did."""
        self.corrected = np.zeros(self.num_episodes, np.bool_)
        said = {goal: success for root in roots for goal, success in corrections.read(root).items()}
        goals = self._infos.column("goal_id").to_pylist() if said and "goal_id" in self._infos.column_names else []
        self.corrected[:] = [goal in said for goal in goals] or False
        if not self.corrected.any():
            return
        self.success, self.rewards = np.array(self.success), np.array(self.rewards)
        numbers = [int(number) for number in np.flatnonzero(self.corrected)]
        for number in numbers:
            frames, success = self.frames(number), said[goals[number]]
            self.success[number] = success
            self.rewards[frames] = 0
            self.rewards[frames.stop - 1] = success
        counted = sorted((goals[number], said[goals[number]]) for number in numbers)
        self.digest = atomic.sha256(f"{self.digest}{counted}".encode())

    def _find(
        self,
        paths: Sequence[Path],
        columns: ColumnMapping,
        noted: NotedDigests,
        home: Path,
        rate: float | None,
    ) -> list[Shard]:
        """The shards; their digest and the mapping's are the cache's address."""
        shards = [_shard(path, columns, noted, rate) for path in paths]
        _of_one_robot(shards, rate)
        self.digest = digest_of(shards, columns, rate)
        self.folder = cache_folder(home, self.digest)
        return shards

    def _open(self) -> bool:
        """Map the cache; False when there is none or it is damaged."""
        index = caches.read_index(self.folder, self.digest)
        if index is None:
            return False
        try:
            for name, array in caches.arrays(self.folder, index).items():
                setattr(self, name, array)
            self.cameras = caches.cameras(self.folder, index)
            self.image_size = tuple(index["image_size"])
            self.embodiment = Embodiment.parse(index["embodiment"], str(self.folder))
            self.tasks, self.warnings = index["tasks"], index["warnings"]
            self.quarantined = [Quarantined(**entry) for entry in index["quarantined"]]
            caches.require_notes(self.folder, self.num_episodes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EmbodimentError, DatasetError):
            return False
        self.images = next(iter(self.cameras.values()), np.zeros((self.num_frames, 0, 0, 3), np.uint8))
        return True


@contextlib.contextmanager
def _writable(home: Path) -> Iterator[OSError | None]:
    """Holds the cache's lock; yields why it cannot be had, of which a cache that is finished takes no harm."""
    lock: IO[str] | None = None
    problem = None
    try:
        lock = atomic.lock(home / ".lock", wait=True)
    except OSError as error:
        problem = error
    with lock or contextlib.nullcontext():
        yield problem


def datasets_in(roots: Sequence[Path]) -> list[Path]:
    """Their folders. Raises DatasetError where one of the roots has none."""
    found = [_shards(root) for root in roots]
    without = [str(root) for root, paths in zip(roots, found, strict=True) if not paths]
    if without or not roots:
        raise DatasetError(f"no dataset in {', '.join(without) or 'an empty list of folders'}; {READ}")
    return [path for paths in found for path in paths]


def _shards(root: Path) -> list[Path]:
    """The dataset at `root`, or the datasets in its folders; of a TFDS dataset's versions the newest."""
    if root.suffix.lower() in OTHERS:
        raise DatasetError(
            f"{root}: {OTHERS[root.suffix.lower()]} is not read; {READ}, and LeRobot's converters make one"
        )
    if not root.is_dir():
        made = f"`python -m saycan_qt.collect --out {root}` makes one"
        if HUB_NAME.fullmatch(str(root)) and not root.exists():
            name = f"data/{root.name}"
            made += f"; of the Hub: `hf download {root} --repo-type dataset --local-dir {name}`, then `--data {name}`"
        raise DatasetError(f"{root}: not a folder; {READ}; {made}")
    if here := _dataset(root):
        return [here]
    found = [path for child in sorted(root.iterdir()) if child.is_dir() and (path := _dataset(child))]
    others = [] if found else [path for path in sorted(root.iterdir()) if path.suffix.lower() in OTHERS]
    return found if not others else _shards(others[0])


def _dataset(folder: Path) -> Path | None:
    if (folder / lerobot.INFO).exists() or rlds.tfrecords(folder):
        return folder
    versions = [child for child in folder.iterdir() if VERSION_FOLDER.fullmatch(child.name) and rlds.tfrecords(child)]
    return max(versions, key=lambda child: [int(part) for part in child.name.split(".")], default=None)


def _shard(root: Path, columns: ColumnMapping, noted: NotedDigests, rate: float | None) -> Shard:
    if (root / lerobot.INFO).exists():
        return reader.Shard(root, columns, noted.sha256, rate)
    return rlds.Shard(root, columns, noted.sha256, rate)


def _of_one_robot(shards: Sequence[Shard], rate: float | None) -> None:
    """Raises DatasetError, which names the first difference."""
    first, *others = shards
    mine = first.layout.embodiment
    for other in others:
        theirs = other.layout.embodiment
        if rate is None and mine.control_hz != theirs.control_hz:
            both = [hz for hz in (mine.control_hz, theirs.control_hz) if hz]
            raise DatasetError(
                f"{first.root} has {_rate(mine)}, {other.root} {_rate(theirs)}; `rate=` "
                f"(--rate HZ) brings them to one, such as {possible_rates(*both)}"
            )
        if problem := _difference(mine, theirs):
            raise DatasetError(f"{first.root} and {other.root} are of different robots: {problem}")
        if first.layout.size != other.layout.size:
            sizes = [" x ".join(map(str, shard.layout.size)) for shard in (first, other)]
            raise DatasetError(
                f"{first.root} has images of {sizes[0]} pixels, {other.root} of {sizes[1]}; "
                "a mapping with `image_size: [80, 96]` makes them equal"
            )


def _rate(robot: Embodiment) -> str:
    return f"{robot.control_hz:g} frames a second" if robot.control_hz else "a rate that nobody says"


def _difference(mine: Embodiment, theirs: Embodiment) -> str:
    """The first one, in one line, beside those of bounds, sizes and rates; "" where there is none."""
    parts = (
        ("camera", [c.name for c in mine.cameras], [c.name for c in theirs.cameras]),
        ("state", [(s.name, s.unit) for s in mine.state], [(s.name, s.unit) for s in theirs.state]),
        ("action", [(d.name, d.kind, d.unit) for d in mine.action], [(d.name, d.kind, d.unit) for d in theirs.action]),
    )
    for what, one, other in parts:
        if one != other:
            texts = [
                ", ".join(" ".join(part) if isinstance(part, tuple) else part for part in side) for side in (one, other)
            ]
            return f"{what} {texts[0] or 'none'}; {texts[1] or 'none'}"
    return ""
