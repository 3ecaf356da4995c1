"""Reads LeRobotDataset v3, and checks each episode: a bad one is named with its file and the reason, and left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from saycan_qt import atomic
from saycan_qt.data import images, lerobot
from saycan_qt.data.layout.arrange import Part, parts
from saycan_qt.data.layout.mapping import ALL, ColumnMapping
from saycan_qt.data.layout.outcomes import Outcomes
from saycan_qt.data.layout.settle import Contents, settle
from saycan_qt.data.lerobot import BadEpisode, DatasetError, Episode
from saycan_qt.data.video import read_frames
from skills.embodiment import Embodiment
from skills.errors import EmbodimentError
from skills.robot_folder import default_robot

TASKS, REWARD, SUCCESS = "tasks", "next.reward", "next.success"
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
        rate: float | None = None,  # [Hz] to bring the episodes to; None: theirs
    ) -> None:
        self.root, self.info = root, lerobot.read_info(root)
        self._sha256 = sha256
        self._checked: dict[str, DatasetError | None] = {}
        self.manifest = lerobot.read_manifest(root) if (root / lerobot.MANIFEST).exists() else None
        for name, accepted in self.manifest["derived"].items() if self.manifest else ():
            path = lerobot.inside(root, name)
            if path.exists():  # a killed writer may not have come to it
                lerobot.check_file(path, accepted)
        self.contents = self._contents()
        self.layout = settle(mapping or ColumnMapping(), self.contents, rate)
        self.outcomes = self.layout.success.of(root) if isinstance(self.layout.success, Outcomes) else None
        kinds = {camera: self.info["features"][column]["dtype"] for camera, column in self.layout.cameras.items()}
        self.videos = [self.layout.cameras[camera] for camera, kind in kinds.items() if kind == "video"]
        self.pictures = [column for column in self.layout.cameras.values() if column not in self.videos]
        if self.videos and not isinstance(self.info.get("video_path"), str):
            raise DatasetError(
                f"{root / lerobot.INFO}: {self.videos[0]} is a video, and there is no video_path; LeRobot's is "
                f'"{lerobot.VIDEO_PATH}"'
            )
        for key, one in (("data_path", {}), ("video_path", {"video_key": ""})):
            self._path(key, **one, chunk_index=0, file_index=0)

    @cached_property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file of frames and episodes, as the manifest has it where there is one."""
        if self.manifest is not None:
            return {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        patterns = ["data/*/*.parquet", "meta/episodes/*/*.parquet"]
        patterns += [f"videos/{column}/*/*" for column in self.videos] + [lerobot.TASKS]
        paths = [path for pattern in patterns for path in sorted(self.root.glob(pattern))]
        names = [path.relative_to(self.root).as_posix() for path in paths]
        try:
            return {name: self._sha256(lerobot.inside(self.root, name)) for name in names}
        except OSError as error:
            raise DatasetError(f"{error.filename}: cannot be read: {error.strerror}") from None

    @property
    def digest(self) -> str:
        """Of the content of all files."""
        return atomic.sha256(json.dumps(sorted(self.files.items())).encode())

    @property
    def num_frames(self) -> int:
        """About, once they are brought to the rate."""
        return int(self.info.get("total_frames") or 0) // self.layout.every

    def noted(self, key: str) -> np.ndarray:
        """(E,) what `Episode.info` has under `key`, of every episode in their order. Raises DatasetError."""
        names, column = (
            sorted(name for name in self.files if name.startswith("meta/episodes/")),
            lerobot.INFO_PREFIX + key,
        )
        for name in names:
            self._check(name)
        tables = [lerobot.read_table(lerobot.inside(self.root, name), [column]) for name in names]
        return (
            np.concatenate([table.column(column).to_numpy() for table in tables]) if tables else np.zeros(0, np.int64)
        )

    def episodes(self, first: int = 0) -> Iterator[tuple[Episode, bool] | Quarantined]:
        """Every episode from the `first` on, or each of its parts, with whether the time limit cut it; or what is wrong
        with it."""
        by_file: dict[str, list[pa.Table]] = {}  # their rows, in Arrow's columns: there may be a million
        listed_rows = 0
        for name, rows in self._listed():
            if isinstance(rows, DatasetError):
                yield from self._lost(name, rows)
                continue
            listed_rows += len(rows)
            if listed_rows > lerobot.MOST_EPISODES:
                raise DatasetError(f"{self.root / name}: above {lerobot.MOST_EPISODES} episodes in all")
            for (chunk, file), part in _by_place(rows):
                by_file.setdefault(self._path("data_path", chunk_index=chunk, file_index=file), []).append(part)
        layout = self.layout
        needed = [*layout.columns, "episode_index", *self.pictures, *(["timestamp"] if self.videos else [])]
        for name, rows_of in by_file.items():
            listed = [_Row(row["episode_index"], row["length"], row) for part in rows_of for row in part.to_pylist()]
            first, listed = max(0, first - len(listed)), listed[first:]
            if not listed:
                continue
            path = self.root / name
            try:
                path = lerobot.inside(self.root, name)
                self._check(name)
                optional = [*layout.labels, layout.reward, layout.instruction, TRUNCATED, "task_index"]
                table = lerobot.read_table(path, needed, dict.fromkeys(name for name in optional if name not in needed))
                for key in ("episode_index", *(["timestamp"] if self.videos else [])):
                    _require_numbers(path, table, key)
            except DatasetError as error:
                yield from (Quarantined(str(path), lost.number, _reason(error)) for lost in listed)
                continue
            places = _places(table)
            for row in listed:
                try:
                    yield from list(self._parts(table, places.get(row.number, slice(0, 0)), row))
                except BadEpisode as bad:
                    yield Quarantined(str(path), row.number, str(bad))

    def _contents(self) -> Contents:
        features = self.info["features"]
        shown = [key for key, feature in features.items() if feature["dtype"] in ("image", "video")]
        texts = {TASKS, *(key for key, feature in features.items() if feature["dtype"] == "string")}
        listed = {name: kind for name, kind in self._listed_types().items() if _describes_episode(name)}
        texts |= {name for name, kind in listed.items() if pa.types.is_string(kind)}
        widths = {
            key: int(np.prod(feature["shape"]))
            for key, feature in features.items()
            if feature["dtype"].startswith(NUMBERS)
        }
        names = {key: _named(features[key].get("names")) for key in widths}
        return Contents(
            where=str(self.root / lerobot.INFO),
            images={key: _height_width(features[key]["shape"]) for key in shown},
            widths=widths,
            once={name for name, kind in listed.items() if pa.types.is_primitive(kind)} - widths.keys(),
            texts=texts,
            cameras=[key for key in shown if not _is_depth(features[key])],
            state=lerobot.STATE,
            action=lerobot.ACTION,
            success=(SUCCESS, REWARD),
            reward=REWARD,
            instruction=TASKS,
            names=names,
            hz=float(self.info["fps"]),
            robot=str(self.info.get("robot_type") or ""),
            own=self._own(widths, names),
        )

    def _own(self, widths: Mapping[str, int], names: Mapping[str, Sequence[str]]) -> Embodiment | None:
        """As we wrote it. Datasets of before it was written are the kitchen's, if they look like it."""
        path = self.root / lerobot.EMBODIMENT
        kitchen = default_robot().embodiment
        if not path.exists():
            alike = _shape(kitchen) == (list(names.get(lerobot.STATE, ())), list(names.get(lerobot.ACTION, ())))
            return kitchen if alike and self.info["fps"] == kitchen.control_hz else None
        try:
            own = Embodiment.parse(lerobot.read_json(path), str(path))
        except EmbodimentError as error:
            raise DatasetError(str(error)) from None
        if (len(own.state), len(own.action)) != (widths.get(lerobot.STATE, 0), widths.get(lerobot.ACTION, 0)):
            raise DatasetError(f"{path}: it has other numbers than {lerobot.INFO}; one of them was altered")
        return own

    def _path(self, key: str, **place: int | str) -> str:
        """A file's path from the root."""
        form = self.info.get(key) or ""
        try:
            name = lerobot.file_name(form, **place)
        except ValueError as error:
            said = str(form)[: lerobot.SAID]
            raise DatasetError(f"{self.root / lerobot.INFO}: {key} {said!r} names no file: {error}") from None
        lerobot.inside(self.root, name)
        return name

    def _listed_types(self) -> dict[str, pa.DataType]:
        """Columns of meta/episodes; none where its first file cannot be read."""
        for path in sorted(self.root.glob("meta/episodes/*/*.parquet")):
            try:
                return {field.name: field.type for field in lerobot.read_schema(path)}
            except DatasetError:
                continue
        return {}

    def _listed(self) -> Iterator[tuple[str, pa.Table | DatasetError]]:
        """The files of meta/episodes, each with its rows."""
        places = ("chunk_index", "file_index", "from_timestamp")
        needed = [*LISTED, *(f"videos/{column}/{key}" for column in self.videos for key in places)]
        for name in sorted(name for name in self.files if name.startswith("meta/episodes/")):
            try:
                path = lerobot.inside(self.root, name)
                self._check(name)
                columns = lerobot.read_schema(path).names
                extra = [column for column in columns if column.startswith(lerobot.INFO_PREFIX)]
                extra += [key for key in (*self.layout.labels, self.layout.instruction) if key not in LISTED]
                table = lerobot.read_table(path, needed, extra, lerobot.MOST_EPISODES, lerobot.MOST_LISTED)
                for key in needed:
                    _require_numbers(path, table, key)
                yield name, table
            except DatasetError as error:
                yield name, error

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
                lerobot.check_file(lerobot.inside(self.root, name), self.files[name])
            except DatasetError as error:
                self._checked[name] = error
        if (wrong := self._checked[name]) is not None:
            raise wrong

    def _parts(self, table: pa.Table, place: slice, row: _Row) -> Iterator[tuple[Episode, bool]]:
        frames = table.slice(place.start, place.stop - place.start)
        if len(frames) != row.length or row.length == 0:
            raise BadEpisode(f"{len(frames)} frames in a row, {row.length} are listed")
        if row.length > lerobot.MOST_STEPS:
            raise BadEpisode(f"{row.length} frames, at most {lerobot.MOST_STEPS} are read")
        cut = _last(frames, TRUNCATED)
        truncated = bool(row.info.get("truncated") if cut is None else cut)
        rewards = None
        if self.contents.widths.get(self.layout.reward) == 1 and self.layout.reward in frames.column_names:
            rewards = _numbers(frames, self.layout.reward, 1)[:, 0]
        widths = self.contents.widths
        for part in parts(
            self.layout, lambda name: _numbers(frames, name, widths[name]), self._tasks(frames, row), truncated, rewards
        ):
            episode = Episode(
                images={camera: self._images(camera, frames, part, row) for camera in self.layout.cameras},
                states=part.states,
                actions=part.actions,
                task=part.task,
                success=self._success(frames.slice(0, part.last + 1), row),
                info=row.info,
                rewards=part.rewards,
            )
            if problem := episode.problem():
                raise BadEpisode(problem)
            yield episode, part.truncated

    def _images(self, camera: str, frames: pa.Table, part: Part, row: _Row) -> np.ndarray:
        """(t, H, W, 3) uint8 of the part's steps."""
        column = self.layout.cameras[camera]
        wanted = pa.array(range(row.length)[part.frames])
        if column in self.videos:
            encoded = self._video(column, frames.column("timestamp").take(wanted), row)
        else:
            encoded = _images(frames.column(column).take(wanted))
        stored = None if self.layout.resized else self.contents.images[column]
        return images.stack(encoded, len(wanted), stored, self.layout.size)

    def _success(self, frames: pa.Table, row: _Row) -> bool:
        """At the last of the frames."""
        if self.outcomes is not None:
            if row.number not in self.outcomes:
                raise BadEpisode("the file of outcomes does not name it")
            return self.outcomes[row.number]
        if self.layout.success == (ALL,):
            return True
        for name in self.layout.labels:
            label = _last(frames, name)
            label = row.listed.get(name) if label is None else label
            if label is not None:
                try:
                    return bool(np.asarray(label).reshape(-1)[-1] > 0)
                except (IndexError, TypeError, ValueError):
                    raise BadEpisode(f"{name} is no number: {str(label)[:50]!r}") from None
        raise BadEpisode(f"no success label: neither {' nor '.join(self.layout.labels)} at the last frame")

    def _tasks(self, frames: pa.Table, row: _Row) -> list[str]:
        """Of each frame."""
        name = self.layout.instruction
        if name == TASKS and "task_index" in frames.column_names and self._known_tasks:
            if not pa.types.is_integer(frames.column("task_index").type):
                raise BadEpisode("task_index is no whole number")
            numbers = frames.column("task_index").to_pylist()
            if unknown := [number for number in numbers if number not in self._known_tasks]:
                raise BadEpisode(f"task_index {unknown[0]} is not in {lerobot.TASKS}")
            return [self._known_tasks[number] for number in numbers]
        if name in frames.column_names:
            found = frames.column(name).to_pylist()
        else:
            listed = row.listed.get(name)
            if isinstance(listed, list) and len(set(map(str, listed))) > 1:
                raise BadEpisode(f"it has {len(listed)} tasks, and {lerobot.TASKS} does not say which frame has which")
            found = (listed[:1] if isinstance(listed, list) else [listed]) * row.length
        if len(found) != row.length or not all(found):
            raise BadEpisode(f"no instruction in {name}")
        texts = [str(task) for task in found]
        if max(map(len, texts)) > lerobot.MOST_TEXT:
            raise BadEpisode(f"an instruction of over {lerobot.MOST_TEXT} characters in {name}")
        return texts

    @cached_property
    def _known_tasks(self) -> dict[int, str]:
        """task_index -> task; empty where the dataset has no list of them."""
        if self.manifest is not None:  # which a killed writer has brought up to date first
            return dict(enumerate(self.manifest["tasks"]))
        path = self.root / lerobot.TASKS
        if not path.exists():
            return {}
        path, most = lerobot.inside(self.root, lerobot.TASKS), lerobot.MOST_LISTED
        table = lerobot.read_table(path, None, rows=lerobot.MOST_EPISODES, most=most)
        texts = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        whole = [f.name for f in table.schema if pa.types.is_integer(f.type)]
        if "task_index" not in whole or not texts:
            raise DatasetError(f"{path}: no column task_index, or none of texts")
        text = TASKS[:-1] if TASKS[:-1] in texts else texts[0]  # pandas names an index that has no name
        return dict(zip(table.column("task_index").to_pylist(), table.column(text).to_pylist(), strict=True))

    def _video(self, column: str, times: pa.ChunkedArray, row: _Row) -> Iterator[np.ndarray]:
        start = row.listed[f"videos/{column}/from_timestamp"]
        place = {key: row.listed[f"videos/{column}/{key}"] for key in ("chunk_index", "file_index")}
        try:
            name = self._path("video_path", video_key=column, **place)
            self._check(name)
        except DatasetError as error:
            raise BadEpisode(str(error)) from None
        return read_frames(
            lerobot.inside(self.root, name), start + times.to_numpy().astype(np.float64), self.contents.hz
        )


def _by_place(rows: pa.Table) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    """Rows of meta/episodes by the chunk and the file that their frames are in, in the order of these."""
    columns = [
        rows.column(f"data/{key}").cast(pa.int64(), safe=False).to_numpy() for key in ("chunk_index", "file_index")
    ]
    if not len(rows):
        return
    places, begins, which = np.unique(np.stack(columns, 1), axis=0, return_index=True, return_inverse=True)
    for number in np.argsort(begins):
        chunk, file = places[number].tolist()
        yield (chunk, file), rows.take(pa.array(np.flatnonzero(which.ravel() == number)))


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


def _has(kind: pa.StructType, name: str) -> bool:
    return kind.get_field_index(name) >= 0


def _require_numbers(path: Path, table: pa.Table, key: str) -> None:
    """Raises DatasetError unless each row has one, whole where it counts."""
    if key == TASKS:
        return
    column, whole = table.column(key), not key.endswith("timestamp")
    if not (pa.types.is_integer(column.type) or (not whole and pa.types.is_floating(column.type))) or column.null_count:
        raise DatasetError(f"{path}: {key} is not {'a whole' if whole else 'a'} number in each row")


def _describes_episode(column: str) -> bool:
    """Whether a column of meta/episodes is more than LeRobot's book-keeping."""
    known = column in LISTED or column.startswith("dataset_")
    return not known and ("/" not in column or column.startswith(lerobot.INFO_PREFIX))


def _height_width(shape: Sequence[int]) -> tuple[int, int]:
    """(H, W) [px] of a feature of this shape, which may have its channels first."""
    channels_first = len(shape) == 3 and shape[0] in (1, 3) and shape[-1] not in (1, 3)
    height, width = [*shape, 1, 1][1:3] if channels_first else [*shape, 1, 1][:2]
    return int(height), int(width)


def _is_depth(feature: Mapping[str, Any]) -> bool:
    described = feature.get("info") or feature.get("video_info") or {}
    return bool(described.get("video.is_depth_map"))


def _named(names: Any) -> list[str]:
    """Names of a feature's numbers in any of LeRobot's forms: a list, {"motors": a list}, {name: place}."""
    if isinstance(names, Mapping):
        if names and all(isinstance(place, int) for place in names.values()):
            return sorted(names, key=lambda name: names[name])
        return [name for part in names.values() for name in _named(part)]
    if isinstance(names, list):
        return [str(name) for part in names for name in (_named(part) if isinstance(part, list) else [part])]
    return []


def _shape(embodiment: Embodiment) -> tuple[list[str], list[str]]:
    return [number.name for number in embodiment.state], [dimension.name for dimension in embodiment.action]


def _images(column: pa.ChunkedArray) -> Iterator[np.ndarray]:
    kind = column.type.field("bytes").type if pa.types.is_struct(column.type) and _has(column.type, "bytes") else None
    if kind is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise BadEpisode("its images are no bytes of PNG or JPEG")
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
    values = values.reshape(len(table), size)
    if problem := lerobot.too_large(key, values):
        raise BadEpisode(problem)
    return values


def _last(table: pa.Table, key: str) -> Any:
    return table.column(key)[-1].as_py() if key in table.column_names else None


def _reason(error: DatasetError) -> str:
    """Without the path, which stands beside it."""
    return str(error).split(": ", 1)[-1]
