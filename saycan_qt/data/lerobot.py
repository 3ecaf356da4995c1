"""The format of episodes on disk: LeRobotDataset v3.0 with check-sums, by pyarrow alone.

meta/info.json  meta/stats.json  meta/tasks.parquet
meta/manifest.json                            ours: SHA-256 of every file
meta/embodiment.json                          ours: the robot, see skills.embodiment
meta/episodes/chunk-000/file-000.parquet      one row an episode
data/chunk-000/file-000.parquet               one row a frame, images as PNG
videos/<image>/chunk-000/file-000.mp4         or the images of a camera and a data file as a video
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saycan_qt import atomic
from skills import files
from skills.embodiment import LEAST_HZ, MAX_NUMBER, MOST_HZ, Embodiment

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
MOST_FRAMES, MOST_EPISODES, MOST_STEPS = 10**9, 10**6, 10**6  # of a dataset, of one, and of an episode
MOST_FEATURES, MOST_VALUES = 2000, 10**8  # of a frame, and in one of them
MOST_FILES = 10**9
MOST_BYTES, MOST_LISTED = 2**31, 2**28  # of a Parquet file's columns, inflated; of one that lists episodes or tasks
WIDTHS = {"BOOLEAN": 1 / 8, "INT64": 8, "DOUBLE": 8, "INT96": 12}  # [bytes] of a value; of a text, of its place
BATCH, MOST_TEXT = 4096, 10_000  # rows; characters of an instruction
WIDTH = re.compile(r"0?\d{0,2}d?")  # of a number in a path
SAID = 300  # [characters] of what a file holds that are repeated
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
            if problem := too_large(name, vectors):
                return problem
        rewards = self.step_rewards()
        if rewards.shape != (length,) or not np.isfinite(rewards).all():
            return f"rewards are not {length} finite numbers"
        return ""


def too_large(name: str, numbers: np.ndarray) -> str:
    """Which of (T, D) numbers is finite and nothing that was measured; "" where none is. Sums of such overflow."""
    wrong = np.flatnonzero(((np.abs(numbers) > MAX_NUMBER) & np.isfinite(numbers)).any(axis=1))
    return f"{name} has {np.abs(numbers[wrong[0]]).max():.3g} at step {wrong[0]}, no measurement" if len(wrong) else ""


def inside(root: Path, name: str) -> Path:
    """A file of the dataset at `root`, by its path from there. Raises DatasetError for one that lies elsewhere, itself
    or by a link; the Hub's cache, which links a snapshot's files to its blobs, is one folder."""
    path, home = root / name, root.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    try:
        within = not Path(name).is_absolute() and any(path.resolve().is_relative_to(one) for one in homes)
    except (OSError, ValueError, RuntimeError) as error:  # links in a circle, names of any bytes
        raise DatasetError(f"{root}: {name[:SAID]!r} is no path: {error}") from None
    if not within:
        raise DatasetError(f"{root}: {name[:SAID]!r} leads out of the dataset's folder; copy the file into it")
    return path


def file_name(form: Any, **place: int | str) -> str:
    """A path such as DATA_PATH with its fields filled. Raises ValueError: str.format alone would also follow
    attributes, and fill up to any width."""
    name = ""
    if not isinstance(form, str) or len(form) > SAID:
        raise ValueError("it is no text of a path's length")
    for text, key, width, conversion in Formatter().parse(form):
        name += text
        if key is None:
            continue
        value = place.get(key)
        if isinstance(value, str) and not width and not conversion:
            name += value
        elif isinstance(value, int) and 0 <= value < MOST_FILES and WIDTH.fullmatch(width or "") and not conversion:
            name += format(value, width or "")
        else:
            raise ValueError(f"{{{key}}} of {str(value)[:50]} is none of {', '.join(place)}, or no number of a file")
    return name


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = files.read_json(path)
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
        with files.opened(path) as file:
            pointer = file.read(len(POINTER)) == POINTER
    except OSError:
        return ""
    return "a Git-LFS pointer, not the file itself; run `git lfs pull` in its folder" if pointer else ""


def read_manifest(root: Path) -> dict[str, Any]:
    manifest = read_json(root / MANIFEST)
    if missing := {"files", "derived", "tasks", "stats"} - manifest.keys():
        raise DatasetError(f"{root / MANIFEST}: damaged: it has no {' and no '.join(sorted(missing))}")
    for name, entry in _mapping(manifest["files"]).items():
        match entry:
            case {"sha256": str(), **others} if 0 <= _whole(others.get("episodes", 0)) <= MOST_EPISODES:
                continue
        raise DatasetError(f"{root / MANIFEST}: damaged at its entry for {name[:SAID]!r}")
    derived, tasks, stats = manifest["derived"], manifest["tasks"], manifest["stats"]
    sound = all(isinstance(accepted, list) for accepted in _mapping(derived).values())
    sound &= isinstance(tasks, list) and all(isinstance(task, str) for task in tasks)
    if not (sound and isinstance(manifest["files"], dict) and isinstance(derived, dict) and isinstance(stats, dict)):
        raise DatasetError(f"{root / MANIFEST}: damaged: its files, derived, tasks or stats are something else")
    return manifest


def _mapping(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}


def _whole(given: Any) -> int:
    """-1 for what is no whole number."""
    return given if isinstance(given, int) and not isinstance(given, bool) else -1


def read_info(root: Path) -> dict[str, Any]:
    """meta/info.json, checked for the version."""
    info = read_json(root / INFO)
    if info.get("codebase_version") != VERSION:
        there, version = root.resolve(), str(info.get("codebase_version"))[:SAID]
        raise DatasetError(
            f"{root / INFO}: LeRobot format {version!r}, only {VERSION!r} is read; LeRobot 0.4 "
            f"turns v2.1 into it: `python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id={there.name} "
            f"--root={there.parent} --push-to-hub=false` (from 0.5 on lerobot.scripts.convert_dataset_v21_to_v30 with "
            f"--root={there})"
        )
    if missing := [key for key in ("fps", "data_path", "features") if key not in info]:
        raise DatasetError(f"{root / INFO}: damaged: it has no {' and no '.join(missing)}")
    fps = info["fps"]
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not LEAST_HZ <= fps <= MOST_HZ:
        raise DatasetError(f"{root / INFO}: fps is {fps!r:.50}; it must be frames a second")
    if not 0 <= _whole(info.get("total_frames") or 0) <= MOST_FRAMES:
        raise DatasetError(f"{root / INFO}: total_frames is {info['total_frames']!r:.50}, no number of frames")
    if not isinstance(info["features"], dict):
        raise DatasetError(f"{root / INFO}: damaged: its features are no mapping")
    if len(info["features"]) > MOST_FEATURES:
        raise DatasetError(f"{root / INFO}: {len(info['features'])} features; at most {MOST_FEATURES} are read")
    for key, feature in info["features"].items():
        if not isinstance(feature, dict) or not {"dtype", "shape"} <= feature.keys():
            raise DatasetError(f"{root / INFO}: damaged: feature {key[:SAID]!r} has no dtype and shape")
        shape = feature["shape"]
        sides = list(map(_whole, shape)) if isinstance(shape, list | tuple) else [-1]
        if not isinstance(feature["dtype"], str) or min(sides, default=0) < 0 or math.prod(sides) > MOST_VALUES:
            raise DatasetError(
                f"{root / INFO}: feature {key[:SAID]!r} is {str(feature['dtype'])[:50]!r} of shape {str(shape)[:50]}; "
                f"a shape is whole numbers, and a frame has {MOST_VALUES} values at most"
            )
    return info


def check_file(path: Path, digest: str | Iterable[str]) -> None:
    """Raises DatasetError unless the file is there and has (one of) the SHA-256."""
    if not path.exists():
        raise DatasetError(f"{path}: missing")
    try:
        found = atomic.sha256(path)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    if found not in ([digest] if isinstance(digest, str) else digest):
        if pointer := left_out(path):
            raise DatasetError(f"{path}: {pointer}")
        raise DatasetError(f"{path}: truncated or altered, its SHA-256 is not the one in {MANIFEST}")


def read_table(
    path: Path,
    columns: Iterable[str] | None,
    optional: Iterable[str] = (),
    rows: int = MOST_FRAMES,
    most: int = MOST_BYTES,
) -> pa.Table:
    """Columns (None: all) of a Parquet file, its page check-sums verified; those of `optional` that it has.

    A small file may stand for any number of values, so it is held to `rows`, and to `most` bytes once inflated."""
    with _parquet(path) as file:
        names = file.schema_arrow.names
        if missing := [name for name in columns or () if name not in names]:
            raise DatasetError(f"{path}: no column {' and no column '.join(missing)}")
        wanted = names if columns is None else [*columns, *(name for name in optional if name in names)]
        size = _inflated(file.metadata, wanted)
        if not 0 <= file.metadata.num_rows <= rows:
            raise DatasetError(f"{path}: {file.metadata.num_rows} rows, at most {rows} are read")
        split = f"at most {most:.3g} are read from one file, so write more and smaller ones"
        if size > most:
            raise DatasetError(f"{path}: it inflates to {size:.3g} bytes; {split}")
        batches, held = [], 0
        together = max(1, min(BATCH, most // max(1, size)))  # rows, if one text of the file stands in each
        for batch in file.iter_batches(together, columns=wanted) if wanted else ():
            batches.append(batch)
            held += batch.nbytes
            if held > most:
                raise DatasetError(f"{path}: it inflates to over {most:.3g} bytes; {split}")
        return pa.Table.from_batches(batches).combine_chunks() if batches else file.read(wanted)


def read_schema(path: Path) -> pa.Schema:
    """Of a Parquet file."""
    with _parquet(path) as file:
        return file.schema_arrow


def shape_of(path: Path) -> tuple[int, int]:
    """Columns and rows of a Parquet file."""
    with _parquet(path) as file:
        return len(file.schema_arrow), file.metadata.num_rows


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with files.opened(path) as opened, pq.ParquetFile(opened, page_checksum_verification=True) as file:
            yield file
    except FileNotFoundError:
        raise DatasetError(f"{path}: missing") from None
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise DatasetError(f"{path}: {left_out(path) or f'cannot be read: {said[:SAID]}'}") from None


def _inflated(metadata: pq.FileMetaData, columns: Iterable[str]) -> int:
    """Bytes of these columns once they are read, as far as the file says; texts that it repeats may be more."""
    size, wanted = 0, set(columns)
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.split(".")[0] in wanted or column.path_in_schema in wanted:
                numbers = max(0, column.num_values) * WIDTHS.get(column.physical_type, 4)
                size += max(0, column.total_uncompressed_size, int(numbers))
    return size


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
