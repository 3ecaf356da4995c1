"""The format of episodes on disk: LeRobotDataset v3.0 with check-sums, by pyarrow alone.

meta/info.json  meta/stats.json  meta/tasks.parquet
meta/manifest.json                            ours: SHA-256 of every file
meta/embodiment.json                          ours: the robot, see skills.embodiment
meta/episodes/chunk-000/file-000.parquet      one row an episode
data/chunk-000/file-000.parquet               one row a frame, images as PNG
videos/<image>/chunk-000/file-000.mp4         or the images of a camera and a data file as a video
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saycan_qt import atomic
from skills.embodiment import Embodiment

VERSION = "v3.0"
IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
INFO, STATS, TASKS, MANIFEST = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/manifest.json"
EMBODIMENT = "meta/embodiment.json"
CHUNK_FILES = 1000  # files in one chunk folder
INFO_PREFIX = "info/"  # columns of meta/episodes that hold Episode.info
OUTCOME = "outcome"  # in the info of what robots were recorded doing: a value of skills.types.Status, or
LOST = "lost"  # where the robot never said how it ended
POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins that Git left out


class DatasetError(Exception):
    """A dataset that cannot be used: file, episode where known, reason."""


class BadEpisode(Exception):
    """Why one episode is left out."""


@dataclass(frozen=True)
class Episode:
    """One try at one task."""

    images: np.ndarray | Mapping[str, np.ndarray]  # camera -> (T, H, W, 3) uint8 RGB; an array where there is one
    states: np.ndarray  # (T, S) float32, S may be 0
    actions: np.ndarray  # (T, D) float32; where a dimension terminates, the last one does unless truncated
    task: str  # the skill's name
    success: bool
    info: Mapping[str, str | int | float] = field(default_factory=dict)  # seed, mode, truncated; same keys in all
    rewards: np.ndarray | None = None  # (T,) float32; None: 1 at the last step of a success, 0 elsewhere

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def views(self) -> Mapping[str, np.ndarray]:
        """Camera -> (T, H, W, 3) uint8; a camera without a name is "" """
        return {"": self.images} if isinstance(self.images, np.ndarray) else self.images

    def step_rewards(self) -> np.ndarray:
        """(T,) float32."""
        if self.rewards is not None:
            return np.asarray(self.rewards, np.float32)
        rewards = np.zeros(len(self), np.float32)
        rewards[-1:] = self.success
        return rewards

    def problem(self) -> str:
        """What is wrong with the arrays; "" when nothing is."""
        length = len(self.actions)
        if length == 0:
            return "it has no frames"
        for camera, images in self.views.items():
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[::3] != (length, 3):
                where = f" of {camera}" if camera else ""
                return f"images{where} are {images.dtype} {images.shape}, not uint8 ({length}, H, W, 3)"
        for name, vectors in (("states", self.states), ("actions", self.actions)):
            if vectors.ndim != 2 or len(vectors) != length:
                return f"{name} have shape {vectors.shape}, not ({length}, D)"
            if not np.isfinite(vectors).all():
                return f"{name} are not finite at step {int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])}"
        rewards = self.step_rewards()
        if rewards.shape != (length,) or not np.isfinite(rewards).all():
            return f"rewards are not {length} finite numbers"
        return ""


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DatasetError(f"{path}: missing; no LeRobotDataset {VERSION} here") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: {left_out(path) or f'damaged: {error}'}") from None
    if not isinstance(value, dict):
        raise DatasetError(f"{path}: damaged: not a JSON object")
    return value


def left_out(path: Path) -> str:
    """That Git left a file out, and how to get it; "" for a file that is itself."""
    try:
        with path.open("rb") as file:
            pointer = file.read(len(POINTER)) == POINTER
    except OSError:
        return ""
    return "a Git-LFS pointer, not the file itself; run `git lfs pull` in its folder" if pointer else ""


def read_manifest(root: Path) -> dict[str, Any]:
    manifest = read_json(root / MANIFEST)
    if missing := {"files", "derived", "tasks", "stats"} - manifest.keys():
        raise DatasetError(f"{root / MANIFEST}: damaged: it has no {' and no '.join(sorted(missing))}")
    return manifest


def read_info(root: Path) -> dict[str, Any]:
    """meta/info.json, checked for the version."""
    info = read_json(root / INFO)
    if info.get("codebase_version") != VERSION:
        there = root.resolve()
        raise DatasetError(
            f"{root / INFO}: LeRobot format {info.get('codebase_version')!r}, only {VERSION!r} is read; LeRobot 0.4 "
            f"turns v2.1 into it: `python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id={there.name} "
            f"--root={there.parent} --push-to-hub=false` (from 0.5 on lerobot.scripts.convert_dataset_v21_to_v30 with "
            f"--root={there})"
        )
    if missing := [key for key in ("fps", "data_path", "features") if key not in info]:
        raise DatasetError(f"{root / INFO}: damaged: it has no {' and no '.join(missing)}")
    if isinstance(info["fps"], bool) or not isinstance(info["fps"], int | float) or not 0 < info["fps"] <= 10_000:
        raise DatasetError(f"{root / INFO}: fps is {info['fps']!r}; it must be frames a second")
    return info


def check_file(path: Path, digest: str | Iterable[str]) -> None:
    """Raises DatasetError unless the file is there and has (one of) the SHA-256."""
    if not path.exists():
        raise DatasetError(f"{path}: missing")
    if atomic.sha256(path) not in ([digest] if isinstance(digest, str) else digest):
        if pointer := left_out(path):
            raise DatasetError(f"{path}: {pointer}")
        raise DatasetError(f"{path}: truncated or altered, its SHA-256 is not the one in {MANIFEST}")


def read_table(path: Path, columns: Iterable[str], optional: Iterable[str] = ()) -> pa.Table:
    """Columns of a Parquet file, its page check-sums verified; those of `optional` that it has."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        names = file.schema_arrow.names
        if missing := [name for name in columns if name not in names]:
            raise DatasetError(f"{path}: no column {' and no column '.join(missing)}")
        return file.read([*columns, *(name for name in optional if name in names)])
    except FileNotFoundError:
        raise DatasetError(f"{path}: missing") from None
    except (pa.ArrowException, OSError) as error:
        why = left_out(path) or f"cannot be read: {str(error).splitlines()[0]}"
        raise DatasetError(f"{path}: {why}") from None


def write_table(path: Path, table: pa.Table) -> None:
    """Atomically, with page check-sums."""
    with atomic.replacing(path) as temporary:
        pq.write_table(table, temporary, use_dictionary=False, write_page_checksum=True)


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 -> PNG, each row as its difference from the row above; twice as fast as Pillow at level 1."""
    height, width, _ = image.shape
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    flat = image.reshape(height, -1)
    rows[:, 0] = 2  # filter type "up"
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def dataset_info(embodiment: Embodiment, robot_type: str = "", videos: Collection[str] = ()) -> dict[str, Any]:
    """meta/info.json of an empty dataset; videos: the cameras whose images become a video."""
    fps = int(embodiment.control_hz) if float(embodiment.control_hz).is_integer() else embodiment.control_hz
    features: dict[str, Any] = {}
    for camera in embodiment.cameras:
        image: dict[str, Any] = {"dtype": "image", "shape": [camera.height, camera.width, 3]}
        image["names"] = ["height", "width", "channels"]
        if camera.name in videos:
            image["dtype"] = "video"
            size = {"video.height": camera.height, "video.width": camera.width, "video.channels": 3}
            coding = {"video.codec": "h264", "video.pix_fmt": "yuv420p", "video.is_depth_map": False}
            image["info"] = {**size, **coding, "has_audio": False, "video.fps": fps}
        features[IMAGES + camera.name] = image

    def vector(names: Sequence[str]) -> dict[str, Any]:
        return {"dtype": "float32", "shape": [len(names)], "names": list(names)}

    def scalar(dtype: str) -> dict[str, Any]:
        return {"dtype": dtype, "shape": [1], "names": None}

    if embodiment.state:
        features[STATE] = vector([number.name for number in embodiment.state])
    features |= {
        ACTION: vector([dimension.name for dimension in embodiment.action]),
        "next.reward": scalar("float32"),
        "next.done": scalar("bool"),
        "next.success": scalar("bool"),
        "next.truncated": scalar("bool"),  # cut by the time limit
        "timestamp": scalar("float32"),
        **{key: scalar("int64") for key in ("frame_index", "episode_index", "index", "task_index")},
    }
    return {
        "codebase_version": VERSION,
        "robot_type": robot_type or embodiment.name,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": "0:0"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if videos else None,
        "features": features,
    }


def hugging_face_schema(features: Mapping[str, Any]) -> dict[str, Any]:
    """What the library `datasets` looks for in the schema's metadata, so that PNG bytes open as images."""

    def described(feature: Mapping[str, Any]) -> dict[str, Any]:
        if feature["dtype"] == "image":
            return {"_type": "Image"}
        value = {"dtype": feature["dtype"], "_type": "Value"}
        (length,) = feature["shape"]
        return value if length == 1 else {"feature": value, "length": length, "_type": "Sequence"}

    columns = {key: described(feature) for key, feature in features.items() if feature["dtype"] != "video"}
    return {"info": {"features": columns}}


def tasks_parquet(tasks: Mapping[str, int]) -> bytes:
    """meta/tasks.parquet: task names as the index of a data frame, which the official reader opens with pandas."""

    def column(name: str, pandas_type: str, numpy_type: str) -> dict[str, Any]:
        types = {"pandas_type": pandas_type, "numpy_type": numpy_type, "metadata": None}
        return {"name": name, "field_name": name, **types}

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    names, numbers = pa.array(list(tasks), pa.string()), pa.array(list(tasks.values()), pa.int64())
    table = pa.table({"task_index": numbers, "task": names}).replace_schema_metadata({"pandas": json.dumps(pandas)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


def vectors(values: np.ndarray) -> pa.FixedSizeListArray:
    """(N, D) -> a column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def merge_stats(before: Mapping[str, np.ndarray] | None, values: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of all values so far, per dimension; values: (N, D), those that are new."""
    count, mean, variance = len(values), values.mean(0, dtype=np.float64), values.var(0, dtype=np.float64)
    low, high = values.min(0).astype(np.float64), values.max(0).astype(np.float64)
    if before is not None:
        n, total = float(before["count"][0]), float(before["count"][0]) + count
        shift = mean - before["mean"]
        variance = (n * before["std"] ** 2 + count * variance + shift**2 * n * count / total) / total
        mean = before["mean"] + shift * count / total
        low, high = np.minimum(low, before["min"]), np.maximum(high, before["max"])
        count = int(total)
    return {"min": low, "max": high, "mean": mean, "std": np.sqrt(variance), "count": np.array([count])}


def stats_json(key: str, values: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """As meta/stats.json has it: statistics of images have the shape (3, 1, 1)."""
    shape = {name: (-1, 1, 1) if key.startswith(IMAGES) and name != "count" else (-1,) for name in values}
    return {name: value.reshape(shape[name]).tolist() for name, value in values.items()}
