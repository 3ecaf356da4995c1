"""Decoded episodes on disk: written once as a whole, memory-mapped, found by a digest of all that they depend on.

index.json  info.parquet  images.bin  images-1.bin ...  states.bin  actions.bin  rewards.bin  and an array an episode
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saycan_qt import atomic
from saycan_qt.data import lerobot, reader, rlds
from saycan_qt.data.cache import room
from saycan_qt.data.layout.mapping import ColumnMapping
from saycan_qt.data.layout.settle import without
from saycan_qt.data.lerobot import DatasetError
from saycan_qt.data.reader import Quarantined
from skills import files
from skills.embodiment import ActionDimension, Embodiment
from skills.robot_folder import default_robot

log = logging.getLogger(__name__)

CACHE_VERSION = 2
QUARANTINED = "quarantined.json"  # beside the cache, for people
INFO, NONE = "info.parquet", ""  # what is noted with episodes, and the column for those with which nothing is
NUMBERS = ("states", "actions", "rewards")  # one row a frame
EACH = ("frame_episode", "episode_start", "episode_task", "success", "truncated")  # one number a frame or an episode
SEEN = (slice(None), slice(None, None, 4), slice(None, None, 4))  # of a camera's frames, to find out if it is constant
NOISE, BLACK = 3, 8  # of 255, that coding adds to a constant picture, and to a black one
TOGETHER = 1000  # episodes whose notes are turned into columns
NARROW = 1e-3  # half the range of a dimension that never changes, relative or absolute

Shard = reader.Shard | rlds.Shard


def digest_of(shards: Sequence[Shard], columns: ColumnMapping, rate: float | None = None) -> str:
    """Of all that decoding depends on."""
    content = "".join(shard.digest for shard in shards)
    if described := columns.described():
        content += json.dumps(described, sort_keys=True)
    robots = [replace(shard.layout.embodiment, cameras=default_robot().embodiment.cameras) for shard in shards]
    if rate or any(robot != default_robot().embodiment for robot in robots):  # names and rates stand beside the data
        content += json.dumps([rate, *(shard.layout.embodiment.to_dict() for shard in shards)])
    return atomic.sha256(content.encode())


def cache_folder(home: Path, digest: str) -> Path:
    return home / f"frames-{digest[:16]}"


def read_index(folder: Path, digest: str) -> dict[str, Any] | None:
    """None where there is no whole cache of this version."""
    try:
        index: dict[str, Any] = files.read_json(folder / "index.json")
        return index if (index["digest"], index["version"]) == (digest, CACHE_VERSION) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def arrays(folder: Path, index: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All but the cameras'. "c": writable without touching the file, so that torch takes it as it is.

    Raises ValueError, OSError or KeyError for a damaged cache."""
    kept = {name: index["arrays"][name] for name in (*NUMBERS, *EACH)}
    return {name: _map(folder / f"{name}.bin", dtype, shape, "c") for name, (dtype, shape) in kept.items()}


def cameras(folder: Path, index: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """camera -> (N, H, W, 3) uint8; raises as `arrays` does."""
    shape = [index["arrays"]["actions"][1][0], *index["image_size"], 3]
    return {camera: _map(folder / file, "|u1", shape, "r") for camera, file in index["cameras"].items()}


def require_notes(folder: Path, episodes: int) -> None:
    """Raises DatasetError unless there is a row of notes an episode, or nothing is noted. Caches that were built before
    a thousand episodes without notes counted among others have fewer."""
    columns, rows = lerobot.shape_of(folder / INFO)
    if columns and rows != episodes:
        raise DatasetError(f"{folder / INFO}: notes of {rows} episodes, there are {episodes}")


def image_files(names: Sequence[str]) -> dict[str, str]:
    """camera -> its file's name; cameras' names may be anything."""
    return {name: f"images-{number}.bin" if number else "images.bin" for number, name in enumerate(names)}


def _map(path: Path, dtype: str, shape: Sequence[int], mode: Any) -> np.ndarray:
    if files.check(path) != np.dtype(dtype).itemsize * int(np.prod(shape)):
        raise ValueError(f"{path} is damaged")
    return np.memmap(path, dtype, mode, shape=tuple(shape)) if np.prod(shape) else np.zeros(shape, dtype)


def build(
    folder: Path,
    shards: Sequence[Shard],
    columns: ColumnMapping,
    digest: str,
    rate: float | None,
    max_bad_share: float,
    advance: Callable[[int], None],
    gigabytes: float = 0.0,
) -> None:
    """Decode all good episodes into the cache `folder`. gigabytes: what all caches beside it may hold; 0: any."""
    _check_space(folder.parent, shards, gigabytes)
    quarantined: list[Quarantined] = []
    tasks: dict[str, int] = {}
    lengths, episode_task, success, truncated = [], [], [], []
    infos, noted = list[Mapping[str, Any]](), list[pa.Table]()  # the last ones, and those before, which take less
    files_of = image_files(list(shards[0].layout.cameras))
    spans: dict[str, _Span] = {name: _Span() for name in (*files_of, "actions")}
    with atomic.replacing_folder(folder) as temporary, contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context((temporary / file).open("wb"))
            for name, file in (files_of | {name: f"{name}.bin" for name in NUMBERS}).items()
        }
        for found in (episode for shard in shards for episode in shard.episodes()):
            if isinstance(found, Quarantined):
                quarantined.append(found)
                continue
            episode, cut = found
            numbers = {"states": episode.states, "actions": episode.actions, "rewards": episode.step_rewards()}
            for name, array in numbers.items():
                files[name].write(np.ascontiguousarray(array).data)
            for camera, images in episode.views.items():
                files[camera].write(np.ascontiguousarray(images).data)
                spans[camera].add(images[SEEN])
            spans["actions"].add(episode.actions)
            episode_task.append(tasks.setdefault(episode.task, len(tasks)))
            lengths.append(len(episode))
            success.append(episode.success)
            truncated.append(cut)
            infos.append(episode.info)
            if len(infos) == TOGETHER:
                with _alike(shards):
                    noted.append(_table(infos))
                infos = []
            advance(len(episode))
        list_for_people(folder.parent / QUARANTINED, quarantined, len(lengths))
        judge(quarantined, len(lengths), max_bad_share, folder.parent / QUARANTINED, quietly=True)
        robot = shards[0].layout.embodiment
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "states": ("<f4", (sum(lengths), len(robot.state))),
            "actions": ("<f4", (sum(lengths), len(robot.action))),
            "rewards": ("<f4", (sum(lengths),)),
        }
        small = {
            "episode_start": np.concatenate([[0], np.cumsum(lengths)]),
            "episode_task": np.array(episode_task),
            "success": np.array(success, np.bool_),
            "truncated": np.array(truncated, np.bool_),
        }
        for name, array in small.items():
            (temporary / f"{name}.bin").write_bytes(array.data)
            shapes[name] = (array.dtype.str, array.shape)
        with (temporary / "frame_episode.bin").open("wb") as file:
            for first in range(0, len(lengths), TOGETHER):
                part = lengths[first : first + TOGETHER]
                file.write(np.repeat(np.arange(first, first + len(part)), part).data)
        shapes["frame_episode"] = ("<i8", (sum(lengths),))
        with _alike(shards):
            info = pa.concat_tables([*noted, _table(infos)], promote_options="permissive")
        pq.write_table(info.drop_columns([NONE] if NONE in info.column_names else []), temporary / INFO)
        index = {
            "version": CACHE_VERSION,
            "digest": digest,
            "roots": [str(shard.root.resolve()) for shard in shards],
            "mapping": columns.described(),
            "rate": rate,
            "embodiment": _embodiment(shards, spans["actions"], max(lengths)).to_dict(),
            "tasks": list(tasks),
            "arrays": shapes,
            "cameras": files_of,
            "image_size": shards[0].layout.size,
            "quarantined": [asdict(entry) for entry in quarantined],
            "warnings": _warnings(shards, spans),
        }
        (temporary / "index.json").write_bytes(atomic.to_json(index))


def _table(infos: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A row an episode, with None for what it has not noted. Whether something is so may be noted as a number, too, so
    it is one here."""
    keys = dict.fromkeys(key for info in infos for key in info)
    rows = [{key: int(value) if isinstance(value, bool) else value for key, value in info.items()} for info in infos]
    columns: dict[str, Any] = {key: [row.get(key) for row in rows] for key in keys}
    return pa.table(columns or {NONE: pa.nulls(len(rows))})  # without a column there are no rows


@contextlib.contextmanager
def _alike(shards: Sequence[Shard]) -> Iterator[None]:
    """Raises DatasetError where notes of one name have no type that fits them all."""
    try:
        yield
    except pa.ArrowException as error:
        where = str(shards[0].root) + (f" and {len(shards) - 1} more" if len(shards) > 1 else "")
        why = " ".join(str(error).split())
        raise DatasetError(f"{where}: their episodes' notes differ in type ({why}); write them alike") from None


class _Span:
    """The smallest and the largest that each number was."""

    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def add(self, values: np.ndarray) -> None:
        """values: (T, ...)."""
        low, high = values.min(axis=0), values.max(axis=0)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)


def _embodiment(shards: Sequence[Shard], actions: _Span, longest: int) -> Embodiment:
    """Of all shards, with the data's bounds where a dataset does not say them. longest: steps of an episode."""
    assert actions.low is not None and actions.high is not None
    robot, dimensions = shards[0].layout.embodiment, []
    for number, dimension in enumerate(robot.action):
        said = [shard.layout.embodiment.action[number] for shard in shards if shard.layout.bounded[number]]
        low, high = min((d.low for d in said), default=np.inf), max((d.high for d in said), default=-np.inf)
        if len(said) < len(shards):
            low, high = min(low, float(actions.low[number])), max(high, float(actions.high[number]))
        dimensions.append(_with_bounds(dimension, low, high))
    seconds = robot.max_seconds if shards[0].contents.own else max(robot.max_seconds, longest / (robot.control_hz or 1))
    return replace(robot, action=tuple(dimensions), max_seconds=seconds)


def _with_bounds(dimension: ActionDimension, low: float, high: float) -> ActionDimension:
    if dimension.kind in ("fraction", "terminate"):
        return replace(dimension, low=max(low, 0.0), high=min(high, 1.0))
    if not low < high:
        half = NARROW * max(1.0, abs(low))
        low, high = low - half, high + half
    return replace(dimension, low=low, high=high)


def _warnings(shards: Sequence[Shard], spans: Mapping[str, _Span]) -> list[str]:
    """What is odd, each with what to write."""
    first, found = shards[0], []
    unlabelled = [str(shard.root) for shard in shards if shard.layout.unlabelled]
    if unlabelled:
        found.append(
            f"{unlabelled[0]}: nobody says which episodes succeeded, so each counts as a demonstration that did; "
            "`success:` in a mapping (--success) names a column or a file of outcomes, or `all` to say so"
        )
    dull = {camera: span for camera, span in spans.items() if camera in first.layout.cameras and _constant(span)}
    left = [camera for camera in first.layout.cameras if camera not in dull]
    for camera, span in dull.items():
        how = "is black in every frame" if span.high is not None and span.high.max() <= BLACK else "never changes"
        found.append(
            f"{first.root}: camera {camera!r} {how}, and is learnt from as it is; a mapping's line "
            f"`cameras: [{', '.join(left)}]` leaves it out"
        )
    low, high = spans["actions"].low, spans["actions"].high
    if low is not None and high is not None:
        steady = [d.name for d, a, b in zip(first.layout.embodiment.action, low, high, strict=True) if a == b]
        for name in steady if first.contents.own is None else ():
            number = [d.name for d in first.layout.embodiment.action].index(name)
            if number >= len(first.layout.kept):
                continue  # the end that is added to the data's numbers
            found.append(
                f"{first.root}: action {name!r} is {low[number]:g} in every frame; a mapping's line "
                f"`{without(first.layout, first.contents, {name})}` leaves it out"
            )
    return found


def _constant(span: _Span) -> bool:
    return span.low is not None and span.high is not None and int((span.high - span.low).max(initial=0)) <= NOISE


def _check_space(home: Path, shards: Sequence[Shard], gigabytes: float) -> None:
    """Decoded frames take much more space than the files they come from."""
    first = shards[0].layout
    numbers = 4 * (len(first.embodiment.state) + len(first.embodiment.action)) + 12
    pixels = len(first.cameras) * int(np.prod(first.size)) * 3
    needed = sum(shard.num_frames for shard in shards) * (pixels + numbers)
    room.make_room(home, needed, gigabytes, (), "the decoded frames")
    free = shutil.disk_usage(home).free
    if needed > free:
        raise DatasetError(
            f"{home}: about {needed / 1e9:,.1f} GB are needed for the decoded frames, {free / 1e9:,.1f} GB are free; "
            "choose another disk with cache=... (--cache DIR), or smaller images with `image_size: [80, 96]` in the "
            "mapping"
        )


def list_for_people(path: Path, quarantined: Collection[Quarantined], good: int) -> None:
    """What was left out of the dataset opened last, and why; no file when nothing was."""
    if not quarantined:
        path.unlink(missing_ok=True)
        return
    counts = {"left_out": len(quarantined), "used": good}
    atomic.write(path, atomic.to_json(counts | {"episodes": [asdict(entry) for entry in quarantined]}))


def judge(
    quarantined: Sequence[Quarantined], good: int, max_bad_share: float, list_path: Path, quietly: bool = False
) -> None:
    """Raises DatasetError where too many are left out; else says which."""
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


def remove_stale(folder: Path) -> None:
    """Caches of the same datasets, mapping and rate when the content was another."""

    def source(index: Path) -> tuple[Any, Any, Any]:
        value = files.read_json(index)
        return value["roots"], value.get("mapping", {}), value.get("rate")

    mine = source(folder / "index.json")
    for index in folder.parent.glob("frames-*/index.json"):
        try:
            stale = index.parent != folder and source(index) == mine
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            stale = True
        if stale:
            shutil.rmtree(index.parent, ignore_errors=True)
