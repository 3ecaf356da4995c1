"""Reads LeRobotDataset v3, and checks each episode: a bad one is named with its file and the reason, and left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from saycan_qt import atomic
from saycan_qt.data import images, lerobot
from saycan_qt.data.lerobot import BadEpisode, DatasetError, Episode
from saycan_qt.data.mapping import ALL, ColumnMapping
from saycan_qt.data.video import read_frames
from skills.types import ACTION_NAMES, STATE_NAMES

TRUNCATED = "next.truncated"
LISTED = ("episode_index", "tasks", "length", "data/chunk_index", "data/file_index")
NUMBERS = ("float", "int", "uint", "bool")  # how the dtype of a feature of numbers begins


@dataclass(frozen=True)
class Quarantined:
    """An episode that is left out."""

    file: str
    episode: int  # its episode_index, or the number of its record in a TFRecord file
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, episode {self.episode}: {self.reason}"


@dataclass(frozen=True)
class _Row:
    """An episode as meta/episodes lists it."""

    number: int
    length: int
    listed: Mapping[str, Any]

    @property
    def info(self) -> dict[str, Any]:
        prefix = lerobot.INFO_PREFIX
        return {key.removeprefix(prefix): value for key, value in self.listed.items() if key.startswith(prefix)}


class Shard:
    """One LeRobotDataset; where it has our manifest, every file is held to it."""

    def __init__(
        self,
        root: Path,
        mapping: ColumnMapping | None = None,
        sha256: Callable[[Path], str] = atomic.sha256,  # of files that no manifest lists
    ) -> None:
        self.root, self.info, self.mapping = root, lerobot.read_info(root), mapping or ColumnMapping()
        self._sha256 = sha256
        self._checked: dict[str, DatasetError | None] = {}
        self.manifest = lerobot.read_manifest(root) if (root / lerobot.MANIFEST).exists() else None
        for name, accepted in self.manifest["derived"].items() if self.manifest else ():
            if (root / name).exists():  # a killed writer may not have come to it
                lerobot.check_file(root / name, accepted)
        features = self.info["features"]
        pictures = [key for kind in ("image", "video") for key in features if features[key]["dtype"] == kind]
        self.widths = {
            key: int(np.prod(feature["shape"]))
            for key, feature in features.items()
            if feature["dtype"].startswith(NUMBERS)
        }
        texts = {"tasks", *(key for key, feature in features.items() if feature["dtype"] == "string")}
        listed = {name: kind for name, kind in self._listed_types().items() if _describes_episode(name)}
        texts |= {name for name, kind in listed.items() if pa.types.is_string(kind)}
        numbers = {name: 1 for name, kind in listed.items() if pa.types.is_primitive(kind)}
        self.mapping.check(str(root / lerobot.INFO), pictures, numbers | self.widths, texts)
        if lost := [name for name in self.mapping.columns if name not in self.widths]:
            raise DatasetError(f"{root}: {', '.join(lost)} is a number an episode; state and action have one a frame")
        self.rewarded = self.widths.get(self.mapping.reward) == 1
        self.image = self.mapping.image or pictures[0]
        self.is_video = features[self.image]["dtype"] == "video"
        self.shapes = (_height_width(features[self.image]["shape"], self.mapping), (len(STATE_NAMES),)) + (
            (len(ACTION_NAMES),),
        )

    @cached_property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file of frames and episodes, as the manifest has it where there is one."""
        if self.manifest is not None:
            return {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        patterns = ["data/*/*.parquet", "meta/episodes/*/*.parquet"]
        patterns += [f"videos/{self.image}/*/*"] if self.is_video else []
        paths = [path for pattern in patterns for path in sorted(self.root.glob(pattern))]
        return {path.relative_to(self.root).as_posix(): self._sha256(path) for path in paths}

    @property
    def digest(self) -> str:
        """Of the content of all files."""
        return atomic.sha256(json.dumps(sorted(self.files.items())).encode())

    @property
    def num_frames(self) -> int:
        return int(self.info.get("total_frames", 0))

    def episodes(self) -> Iterator[tuple[Episode, bool] | Quarantined]:
        """Every episode with whether the time limit cut it, or what is wrong with it."""
        by_file: dict[str, list[_Row]] = {}
        for name, rows in self._listed():
            if isinstance(rows, DatasetError):
                yield from self._lost(name, rows)
                continue
            for entry in rows:
                place = {"chunk_index": entry["data/chunk_index"], "file_index": entry["data/file_index"]}
                row = _Row(entry["episode_index"], entry["length"], entry)
                by_file.setdefault(self.info["data_path"].format(**place), []).append(row)
        mapping = self.mapping
        needed = [*mapping.columns, "episode_index", "timestamp" if self.is_video else self.image]
        for name, listed in by_file.items():
            path = self.root / name
            try:
                self._check(name)
                optional = [*mapping.success, mapping.reward, mapping.instruction, TRUNCATED]
                table = lerobot.read_table(path, needed, dict.fromkeys(name for name in optional if name not in needed))
            except DatasetError as error:
                yield from (Quarantined(str(path), lost.number, _reason(error)) for lost in listed)
                continue
            places = _places(table)
            for row in listed:
                try:
                    yield self._episode(table, places.get(row.number, slice(0, 0)), row)
                except BadEpisode as bad:
                    yield Quarantined(str(path), row.number, str(bad))

    def _listed_types(self) -> dict[str, pa.DataType]:
        """Columns of meta/episodes; none where its first file cannot be read."""
        for path in sorted(self.root.glob("meta/episodes/*/*.parquet")):
            try:
                return {field.name: field.type for field in pq.read_schema(path)}
            except (pa.ArrowException, OSError):
                continue
        return {}

    def _listed(self) -> Iterator[tuple[str, list[dict[str, Any]] | DatasetError]]:
        """The files of meta/episodes, each with its rows."""
        videos = [f"videos/{self.image}/{key}" for key in ("chunk_index", "file_index", "from_timestamp")]
        needed = [*LISTED, *(videos if self.is_video else [])]
        for name in sorted(name for name in self.files if name.startswith("meta/episodes/")):
            try:
                self._check(name)
                columns = pq.read_schema(self.root / name).names
                extra = [column for column in columns if column.startswith(lerobot.INFO_PREFIX)]
                extra += [key for key in (*self.mapping.success, self.mapping.instruction) if key not in LISTED]
                yield name, lerobot.read_table(self.root / name, needed, extra).to_pylist()
            except DatasetError as error:
                yield name, error
            except (pa.ArrowException, OSError) as error:
                yield name, DatasetError(f"{self.root / name}: cannot be read: {error}")

    def _lost(self, name: str, error: DatasetError) -> Iterator[Quarantined]:
        """The episodes of a damaged file of meta/episodes; only the manifest knows which they are."""
        if self.manifest is None:
            raise error
        first = 0
        for other in sorted(name for name in self.files if name.startswith("meta/episodes/")):
            count = self.manifest["files"][other]["episodes"]
            if other == name:
                yield from (Quarantined(str(self.root / name), first + i, _reason(error)) for i in range(count))
            first += count

    def _check(self, name: str) -> None:
        """Hold a file to the manifest, once however many episodes it has."""
        if self.manifest is None:
            return
        if name not in self._checked:
            self._checked[name] = None
            try:
                if name not in self.files:
                    raise DatasetError(f"{self.root / name}: not listed in {lerobot.MANIFEST}")
                lerobot.check_file(self.root / name, self.files[name])
            except DatasetError as error:
                self._checked[name] = error
        if (wrong := self._checked[name]) is not None:
            raise wrong

    def _episode(self, table: pa.Table, place: slice, row: _Row) -> tuple[Episode, bool]:
        frames = table.slice(place.start, place.stop - place.start)
        if len(frames) != row.length or row.length == 0:
            raise BadEpisode(f"{len(frames)} frames in a row, {row.length} are listed")
        success = self._success(frames, row)
        cut = _last(frames, TRUNCATED)
        truncated = bool(row.info.get("truncated") if cut is None else cut)
        has_rewards = self.rewarded and self.mapping.reward in frames.column_names
        rewards = _numbers(frames, self.mapping.reward, 1)[:, 0] if has_rewards else None
        numbers = self.mapping.arrange(
            lambda name: _numbers(frames, name, self.widths[name]), len(frames), truncated, rewards
        )
        kept = frames.slice(numbers.frames.start, len(numbers.actions))
        encoded = self._video(kept, row) if self.is_video else _images(kept.column(self.image))
        episode = Episode(
            images=images.stack(encoded, len(kept), self.shapes[0], self.mapping.image_size is not None),
            states=numbers.states,
            actions=numbers.actions,
            task=self._task(frames, row),
            success=success,
            info=row.info,
            rewards=numbers.rewards,
        )
        if problem := episode.problem():
            raise BadEpisode(problem)
        return episode, numbers.truncated

    def _success(self, frames: pa.Table, row: _Row) -> bool:
        names = self.mapping.success
        if names == (ALL,):
            return True
        for name in names:
            label = _last(frames, name)
            label = row.listed.get(name) if label is None else label
            if label is not None:
                return bool(np.asarray(label).reshape(-1)[-1] > 0)
        raise BadEpisode(f"no success label: neither {' nor '.join(names)} at the last frame")

    def _task(self, frames: pa.Table, row: _Row) -> str:
        name = self.mapping.instruction
        found = frames.column(name)[0].as_py() if name in frames.column_names else row.listed.get(name)
        task = next(iter(found), "") if isinstance(found, list) else found
        if not task:
            raise BadEpisode(f"no instruction in {name}")
        return str(task)

    def _video(self, frames: pa.Table, row: _Row) -> Iterator[np.ndarray]:
        start = row.listed[f"videos/{self.image}/from_timestamp"]
        place = {key: row.listed[f"videos/{self.image}/{key}"] for key in ("chunk_index", "file_index")}
        name = self.info["video_path"].format(video_key=self.image, **place)
        try:
            self._check(name)
        except DatasetError as error:
            raise BadEpisode(str(error)) from None
        return read_frames(self.root / name, start + frames.column("timestamp").to_numpy().astype(np.float64))


def _places(table: pa.Table) -> dict[int, slice]:
    """Where the frames of each episode stand; the first of its runs, should there be several."""
    episode = table.column("episode_index").to_numpy()
    starts = np.flatnonzero(np.diff(episode, prepend=episode[:1] - 1))
    ends = np.append(starts[1:], len(episode))
    runs = zip(episode[starts].tolist(), starts.tolist(), ends.tolist(), strict=True)
    places: dict[int, slice] = {}
    for number, start, end in runs:
        places.setdefault(number, slice(start, end))
    return places


def _describes_episode(column: str) -> bool:
    """Whether a column of meta/episodes is more than LeRobot's book-keeping."""
    known = column in LISTED or column.startswith("dataset_")
    return not known and ("/" not in column or column.startswith(lerobot.INFO_PREFIX))


def _height_width(shape: list[int], mapping: ColumnMapping) -> tuple[int, ...]:
    """(H, W, 3) of the frames that are made of a feature of this shape, which may have its channels first."""
    if mapping.image_size is not None:
        return (*mapping.image_size, 3)
    return (*shape[1:], 3) if shape[0] == 3 and shape[-1] != 3 else tuple(shape)


def _images(column: pa.ChunkedArray) -> Iterator[np.ndarray]:
    for step, encoded in enumerate(pc.struct_field(column, "bytes")):
        if not encoded.is_valid:
            raise BadEpisode(f"no image at step {step}")
        yield images.decode(encoded.as_buffer(), f"at step {step}")


def _numbers(table: pa.Table, key: str, size: int) -> np.ndarray:
    """(T, size) float32."""
    column = table.column(key)
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = pc.list_flatten(column)
    try:
        values = column.cast(pa.float32(), safe=False).to_numpy()
    except pa.ArrowException as error:
        raise BadEpisode(f"{key} holds no numbers: {error}") from None
    if values.size != len(table) * size:
        raise BadEpisode(f"{key} holds {values.size} numbers in {len(table)} frames, not {size} in each")
    return values.reshape(len(table), size)


def _last(table: pa.Table, key: str) -> Any:
    return table.column(key)[-1].as_py() if key in table.column_names else None


def _reason(error: DatasetError) -> str:
    """Without the path, which stands beside it."""
    return str(error).split(": ", 1)[-1]
