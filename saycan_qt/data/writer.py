"""EpisodeWriter: episodes to disk, so that a kill at any moment loses only those not yet flushed.

A file of episodes exists once the manifest lists it, and is never changed again. The manifest is replaced atomically;
info, stats and tasks are written after it, and it accepts their check-sums of before and after.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from saycan_qt import atomic
from saycan_qt.data import lerobot
from saycan_qt.data.lerobot import ACTION, IMAGES, STATE, DatasetError, Episode
from saycan_qt.data.statistics import Summary
from saycan_qt.data.video import write_video
from skills.embodiment import Embodiment
from skills.errors import EmbodimentError
from skills.robot_folder import default_robot

log = logging.getLogger(__name__)

ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}  # of Episode.info


@dataclass(frozen=True)
class _Waiting:
    """An episode that is not on disk yet; a copy."""

    task: str
    success: bool
    info: Mapping[str, Any]
    frames: Mapping[str, list[bytes] | np.ndarray]  # camera -> PNGs; the images themselves where they become a video
    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    pixels: Mapping[str, np.ndarray]  # camera -> (n, 3) in [0, 1], a sample for the statistics

    def __len__(self) -> int:
        return len(self.actions)


class EpisodeWriter:
    """Writes episodes to `root`, continuing what is there.

    with EpisodeWriter("data/shard-00") as writer:
        for number in range(writer.num_episodes, 1000):
            writer.add(collect(number))
    """

    def __init__(
        self,
        root: str | Path,
        embodiment: Embodiment | None = None,  # of the robot; the kitchen's when None
        image_size: tuple[int, int] | None = None,  # (H, W) [px] of all cameras, instead of the embodiment's
        fps: float | None = None,  # instead of the embodiment's control rate
        episodes_per_file: int = 100,  # flushed to disk together; a crash loses fewer than this
        robot_type: str = "",  # the embodiment's name when ""
        video: bool | Collection[str] = False,  # which cameras' images become H.264: smaller, not exactly as they were
    ) -> None:
        robot = embodiment or default_robot().embodiment
        if image_size is not None:
            height, width = image_size
            robot = replace(robot, cameras=tuple(replace(c, height=height, width=width) for c in robot.cameras))
        robot = replace(robot, control_hz=fps or robot.control_hz)
        if not robot.control_hz:
            raise ValueError("a dataset has a rate, and the embodiment says none; give `fps=`")
        names = [camera.name for camera in robot.cameras]
        self.videos = frozenset(names if video is True else video or ())
        if unknown := self.videos.difference(names):
            raise ValueError(f"no camera {min(unknown)!r} to be a video; there are {', '.join(names) or 'none'}")
        if odd := [c for c in robot.cameras if c.name in self.videos and (c.height % 2 or c.width % 2)]:
            size = (odd[0].height, odd[0].width)
            raise ValueError(f"images of a video need an even height and width, not {size}")
        if wrong := [name for name in names if "/" in name or "{" in name]:
            raise ValueError(f"camera {wrong[0]!r} makes no name of a column; name it without / and {{")
        self.root, self.episodes_per_file, self.embodiment = Path(root), episodes_per_file, robot
        self.info = lerobot.dataset_info(robot, robot_type, self.videos)
        self.manifest: dict[str, Any] = {"files": {}}
        self.tasks: dict[str, int] = {}
        self.stats: dict[str, Summary] = {}
        self._info_types: dict[str, pa.DataType] | None = None  # those of the first episode
        self._waiting: list[_Waiting] = []
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = atomic.lock(self.root / ".lock", wait=False)
        except BlockingIOError:
            raise DatasetError(f"{self.root}: another process is writing here") from None
        try:
            self._open()
        except BaseException:
            self._lock.close()
            raise

    @property
    def num_episodes(self) -> int:
        return self._on_disk("episodes") + len(self._waiting)

    @property
    def num_frames(self) -> int:
        return self._on_disk("frames") + sum(len(episode) for episode in self._waiting)

    def add(self, episode: Episode) -> None:
        """Raises ValueError for an episode that does not belong here: shapes, NaN, other keys in its info."""
        info = {key: value.item() if isinstance(value, np.generic) else value for key, value in episode.info.items()}
        types = {key: ARROW_TYPES.get(type(value)) for key, value in sorted(info.items())}
        problem = episode.problem()
        views = self._views(episode)
        if not problem:
            problem = self._misfit(episode, views)
        if not problem and (None in types.values() or self._info_types not in (None, types)):
            problem = (
                f"its info has {_words(types)}; it takes text and numbers, the same in all: {_words(self._info_types)}"
            )
        if problem:
            raise ValueError(f"{self.root}, episode {self.num_episodes} ({episode.task!r}): {problem}")
        self._info_types = types
        self._waiting.append(
            _Waiting(
                task=episode.task,
                success=bool(episode.success),
                info=info,
                frames={
                    camera: images.copy() if camera in self.videos else [lerobot.encode_png(image) for image in images]
                    for camera, images in views.items()
                },
                states=np.array(episode.states, np.float32),
                actions=np.array(episode.actions, np.float32),
                rewards=episode.step_rewards().copy(),
                pixels={c: images[::8, ::2, ::2].reshape(-1, 3) / np.float32(255) for c, images in views.items()},
            )
        )
        if len(self._waiting) >= self.episodes_per_file:
            self.flush()

    def _views(self, episode: Episode) -> Mapping[str, np.ndarray]:
        """Its images by camera; an array that names none is of the only one."""
        views, cameras = episode.views, self.embodiment.cameras
        return {cameras[0].name: views[""]} if [*views] == [""] and len(cameras) == 1 else views

    def _misfit(self, episode: Episode, views: Mapping[str, np.ndarray]) -> str:
        """Why an episode is of another robot; "" where it is of this one."""
        robot = self.embodiment
        sizes = {camera.name: (camera.height, camera.width) for camera in robot.cameras}
        there = {camera: images.shape[1:3] for camera, images in views.items()}
        if there != sizes:
            return f"images of a frame are {there or 'none'}, this dataset's are {sizes or 'none'}"
        shape = (episode.states.shape[1], episode.actions.shape[1])
        if shape != (len(robot.state), len(robot.action)):
            return (
                f"state and action of a frame are {shape}, this dataset's are {(len(robot.state), len(robot.action))}"
            )
        return ""

    def flush(self) -> None:
        """Put what was added on disk; all of it appears at once, when the manifest is replaced."""
        if not self._waiting:
            return
        number = sum(name.startswith("data/") for name in self.manifest["files"])
        place = {"chunk_index": number // lerobot.CHUNK_FILES, "file_index": number % lerobot.CHUNK_FILES}
        tasks = dict(self.tasks)
        for episode in self._waiting:
            tasks.setdefault(episode.task, len(tasks))
        counts = {"episodes": len(self._waiting), "frames": sum(len(episode) for episode in self._waiting)}
        files = dict(self.manifest["files"])
        paths = (lerobot.DATA_PATH.format(**place), lerobot.EPISODES_PATH.format(**place))
        for path, table in zip(paths, self._tables(place, tasks), strict=True):
            lerobot.write_table(self.root / path, table)
            files[path] = {"sha256": atomic.sha256(self.root / path), **counts}
        for camera in sorted(self.videos):
            path = lerobot.VIDEO_PATH.format(video_key=IMAGES + camera, **place)
            with atomic.replacing(self.root / path) as temporary:
                clips = [np.asarray(episode.frames[camera]) for episode in self._waiting]
                write_video(temporary, clips, self.info["fps"])
            files[path] = {"sha256": atomic.sha256(self.root / path), **counts}
        new = {key: Summary.of(values) for key, values in self._values().items()}
        stats = {key: self.stats[key].plus(more) if key in self.stats else more for key, more in new.items()}
        self._commit(files, tasks, stats)

    def discard(self) -> None:
        """Forget what was added and is not on disk: after a flush that failed, which would fail again."""
        self._waiting = []

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()  # whatever happened, each episode that was added is whole

    def _on_disk(self, what: str) -> int:
        return sum(entry[what] for name, entry in self.manifest["files"].items() if name.startswith("data/"))

    def _tables(self, place: dict[str, int], tasks: dict[str, int]) -> tuple[pa.Table, pa.Table]:
        """What waits, as the frames of a data file and the rows of an episodes file."""
        waiting = self._waiting
        numbers = self._on_disk("episodes") + np.arange(len(waiting))
        lengths = np.array([len(episode) for episode in waiting])
        starts = self._on_disk("frames") + np.concatenate([[0], np.cumsum(lengths)])
        frame_index = np.concatenate([np.arange(length) for length in lengths])
        last = frame_index == np.repeat(lengths, lengths) - 1
        success = last & np.repeat([episode.success for episode in waiting], lengths)
        truncated = last & np.repeat([bool(episode.info.get("truncated", 0)) for episode in waiting], lengths)
        images: dict[str, pa.Array] = {}
        path = pa.array([f"frame-{i:06d}.png" for i in frame_index], pa.string())
        for camera in (camera.name for camera in self.embodiment.cameras if camera.name not in self.videos):
            png = pa.array([image for episode in waiting for image in episode.frames[camera]], pa.binary())
            images[IMAGES + camera] = pa.StructArray.from_arrays([png, path], ["bytes", "path"])
        if self.embodiment.state:
            images[STATE] = lerobot.vectors(np.concatenate([episode.states for episode in waiting]))
        frames = {
            **images,
            ACTION: lerobot.vectors(np.concatenate([episode.actions for episode in waiting])),
            "next.reward": pa.array(np.concatenate([episode.rewards for episode in waiting])),
            "next.done": pa.array(last),
            "next.success": pa.array(success),
            "next.truncated": pa.array(truncated),
            "timestamp": pa.array((frame_index / self.info["fps"]).astype(np.float32)),
            "frame_index": pa.array(frame_index),
            "episode_index": pa.array(np.repeat(numbers, lengths)),
            "index": pa.array(np.arange(starts[0], starts[-1])),
            "task_index": pa.array(np.repeat([tasks[episode.task] for episode in waiting], lengths)),
        }
        rows = {
            "episode_index": pa.array(numbers),
            "tasks": pa.array([[episode.task] for episode in waiting], pa.list_(pa.string())),
            "length": pa.array(lengths),
            "dataset_from_index": pa.array(starts[:-1]),
            "dataset_to_index": pa.array(starts[1:]),
        }
        videos = [f"videos/{IMAGES}{camera}" for camera in sorted(self.videos)]
        for prefix in ("data", "meta/episodes", *videos):
            for key, value in place.items():
                rows[f"{prefix}/{key}"] = pa.array([value] * len(waiting), pa.int64())
        for video in videos:  # seconds in the file, which begins with this batch
            for key, frame in (("from", starts[:-1]), ("to", starts[1:])):
                rows[f"{video}/{key}_timestamp"] = pa.array((frame - starts[0]) / self.info["fps"])
        for key, kind in (self._info_types or {}).items():
            rows[lerobot.INFO_PREFIX + key] = pa.array([episode.info[key] for episode in waiting], kind)
        schema = {"huggingface": json.dumps(lerobot.hugging_face_schema(self.info["features"]))}
        return pa.table(frames).replace_schema_metadata(schema), pa.table(rows)

    def _values(self) -> dict[str, np.ndarray]:
        """What waits, as rows of numbers for the statistics."""
        cameras = [camera.name for camera in self.embodiment.cameras]
        pixels = {IMAGES + c: np.concatenate([episode.pixels[c] for episode in self._waiting]) for c in cameras}
        states = {STATE: np.concatenate([episode.states for episode in self._waiting])} if self.embodiment.state else {}
        return {
            **pixels,
            **states,
            ACTION: np.concatenate([episode.actions for episode in self._waiting]),
            "next.reward": np.concatenate([episode.rewards for episode in self._waiting])[:, None],
        }

    def _commit(self, files: dict[str, Any], tasks: dict[str, int], stats: dict[str, Summary]) -> None:
        """Replace the manifest, which makes `files` exist, then what follows from it."""
        counts = [entry for name, entry in files.items() if name.startswith("data/")]
        episodes, frames = (sum(entry[key] for entry in counts) for key in ("episodes", "frames"))
        totals = {"total_episodes": episodes, "total_frames": frames, "total_tasks": len(tasks)}
        info = self.info | totals | {"splits": {"train": f"0:{episodes}"}}
        shapes = {key: (-1, 1, 1) if key.startswith(IMAGES) else (-1,) for key in stats}
        stats_json = {key: summary.to_json(shapes[key]) for key, summary in stats.items()}
        counted = {key: [bins.to_text() for bins in summary.bins] for key, summary in stats.items()}
        derived = {
            lerobot.INFO: atomic.to_json(info),
            lerobot.STATS: atomic.to_json(stats_json),
            lerobot.TASKS: lerobot.tasks_parquet(tasks),
            lerobot.EMBODIMENT: atomic.to_json(self.embodiment.to_dict()),
        }
        accepted = {
            name: [atomic.sha256(data)] + ([atomic.sha256(path)] if (path := self.root / name).exists() else [])
            for name, data in derived.items()
        }
        # Tasks and statistics ride along, so that a kill between here and the files below loses nothing.
        manifest = {"files": files, "derived": accepted, "tasks": list(tasks), "stats": stats_json, "counted": counted}
        atomic.write(self.root / lerobot.MANIFEST, atomic.to_json(manifest))
        self.manifest, self._waiting = manifest, []
        self.info, self.tasks, self.stats = info, tasks, stats
        for name, data in derived.items():
            atomic.write(self.root / name, data)

    def _open(self) -> None:
        there = (self.root / lerobot.MANIFEST).exists()
        if not there and (self.root / lerobot.INFO).exists():
            raise DatasetError(
                f"{self.root / lerobot.MANIFEST} is missing: only datasets written here can be continued"
            )
        if there and (manifest := lerobot.read_manifest(self.root))["files"]:
            self._continue(manifest)
        else:
            self._commit({}, {}, {})
        self._remove_leftovers()

    def _continue(self, manifest: dict[str, Any]) -> None:
        there = lerobot.read_info(self.root)
        for key in ("fps", "features"):
            if there[key] != self.info[key]:
                raise DatasetError(f"{self.root} was begun with other {key}, {there[key]}; choose another folder")
        if (path := self.root / lerobot.EMBODIMENT).exists():
            try:
                robot = Embodiment.parse(lerobot.read_json(path), str(path))
            except EmbodimentError as error:
                raise DatasetError(str(error)) from None
            if (robot.action, robot.state) != (self.embodiment.action, self.embodiment.state):
                raise DatasetError(f"{self.root} was begun for another robot, see {path}; choose another folder")
            self.embodiment = robot
        for name, entry in manifest["files"].items():
            lerobot.check_file(lerobot.inside(self.root, name), entry["sha256"])
        newest = [name for name in manifest["files"] if name.startswith("meta/episodes/")][-1]
        prefix = lerobot.INFO_PREFIX
        types = [
            (f.name.removeprefix(prefix), f.type)
            for f in lerobot.read_schema(self.root / newest)
            if f.name.startswith(prefix)
        ]
        self._info_types = dict(sorted(types))
        tasks = {task: number for number, task in enumerate(manifest["tasks"])}
        counted = manifest.get("counted", {})
        try:
            stats = {key: Summary.parse(entry, counted.get(key, ())) for key, entry in manifest["stats"].items()}
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
            raise DatasetError(f"{self.root / lerobot.MANIFEST}: damaged at its stats: {error}") from None
        self._commit(manifest["files"], tasks, stats)  # mends what a kill left half replaced

    def _remove_leftovers(self) -> None:
        """Files of a flush that was killed before the manifest listed them."""
        for folder in ("data", "meta", "videos"):
            for path in (self.root / folder).rglob("*"):
                unlisted = path.relative_to(self.root).as_posix() not in self.manifest["files"]
                if path.suffix == ".tmp" or (path.match("chunk-*/file-*.*") and unlisted):
                    log.warning("removing %s, left by an interrupted collection", path)
                    path.unlink()


def _words(types: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} ({kind})" for key, kind in (types or {}).items()) or "nothing"
