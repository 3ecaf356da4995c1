"""Reads episodes back, and checks each: a bad one is named with its file and the reason, and left out."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from saycan_qt import atomic
from saycan_qt.data import lerobot
from saycan_qt.data.lerobot import ACTION, STATE, DatasetError, Episode

LABELS = ("next.success", "next.reward", "next.truncated")
LISTED = ("episode_index", "tasks", "length", "data/chunk_index", "data/file_index")


@dataclass(frozen=True)
class Quarantined:
    """An episode that is left out."""

    file: str
    episode: int  # its episode_index
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, episode {self.episode}: {self.reason}"


@dataclass(frozen=True)
class _Row:
    """An episode as meta/episodes lists it."""

    number: int
    task: str
    length: int
    info: Mapping[str, Any]


class Shard:
    """One LeRobotDataset; where it has our manifest, every file is held to it."""

    def __init__(self, root: Path) -> None:
        self.root, self.info = root, lerobot.read_info(root)
        self.manifest = lerobot.read_manifest(root) if (root / lerobot.MANIFEST).exists() else None
        for name, accepted in self.manifest["derived"].items() if self.manifest else ():
            if (root / name).exists():  # a killed writer may not have come to it
                lerobot.check_file(root / name, accepted)
        features = self.info["features"]
        images = [key for key, feature in features.items() if feature["dtype"] == "image"]
        if not images:
            raise DatasetError(f"{root / lerobot.INFO}: no feature of dtype 'image'; videos are not read")
        self.image = images[0]
        self.shapes = tuple(tuple(features[key]["shape"]) for key in (self.image, STATE, ACTION))

    @cached_property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file of frames and episodes, as the manifest has it where there is one."""
        if self.manifest is not None:
            return {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        paths = sorted((self.root / "data").glob("*/*.parquet")) + sorted(
            (self.root / "meta/episodes").glob("*/*.parquet")
        )
        return {path.relative_to(self.root).as_posix(): atomic.sha256(path) for path in paths}

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
                by_file.setdefault(self.info["data_path"].format(**place), []).append(_row(entry))
        for name, listed in by_file.items():
            path = self.root / name
            try:
                self._check(name)
                table = lerobot.read_table(path, (self.image, STATE, ACTION, "episode_index"), LABELS)
            except DatasetError as error:
                yield from (Quarantined(str(path), lost.number, _reason(error)) for lost in listed)
                continue
            for row in listed:
                try:
                    yield self._episode(table, row)
                except _Bad as bad:
                    yield Quarantined(str(path), row.number, str(bad))

    def _listed(self) -> Iterator[tuple[str, list[dict[str, Any]] | DatasetError]]:
        """The files of meta/episodes, each with its rows."""
        for name in sorted(name for name in self.files if name.startswith("meta/episodes/")):
            try:
                self._check(name)
                columns = pq.read_schema(self.root / name).names
                info = [column for column in columns if column.startswith(lerobot.INFO_PREFIX)]
                yield name, lerobot.read_table(self.root / name, LISTED, info).to_pylist()
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
        if self.manifest is not None:
            if name not in self.files:
                raise DatasetError(f"{self.root / name}: not listed in {lerobot.MANIFEST}")
            lerobot.check_file(self.root / name, self.files[name])

    def _episode(self, table: pa.Table, row: _Row) -> tuple[Episode, bool]:
        where = np.flatnonzero(table.column("episode_index").to_numpy() == row.number)
        if len(where) != row.length or row.length == 0 or where[-1] - where[0] + 1 != row.length:
            raise _Bad(f"{len(where)} frames, {row.length} in a row are listed")
        frames = table.slice(where[0], row.length)
        label = _last(frames, "next.success")
        if label is None:
            label = _last(frames, "next.reward")
        if label is None:
            raise _Bad("no success label: neither next.success nor next.reward at the last frame")
        image, state, action = self.shapes
        episode = Episode(
            images=_images(frames.column(self.image), image),
            states=_vectors(frames, STATE, state[0]),
            actions=_vectors(frames, ACTION, action[0]),
            task=row.task,
            success=bool(label > 0),
            info=row.info,
        )
        if problem := episode.problem():
            raise _Bad(problem)
        truncated = _last(frames, "next.truncated")
        return episode, bool(row.info.get("truncated") if truncated is None else truncated)


class _Bad(Exception):
    """Why an episode is left out."""


def _images(column: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
    images = np.empty((len(column), *shape), np.uint8)
    for step, encoded in enumerate(pc.struct_field(column, "bytes")):
        if not encoded.is_valid:
            raise _Bad(f"no image at step {step}")
        try:
            image = np.asarray(Image.open(io.BytesIO(encoded.as_buffer())).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise _Bad(f"the image at step {step} cannot be decoded: {error}") from None
        if image.shape != shape:
            raise _Bad(f"the image at step {step} has shape {image.shape}, not {shape}")
        images[step] = image
    return images


def _vectors(table: pa.Table, key: str, size: int) -> np.ndarray:
    values = pc.list_flatten(table.column(key)).to_numpy()
    if values.size != len(table) * size:
        raise _Bad(f"{key} holds {values.size} numbers in {len(table)} frames, not {size} in each")
    return np.asarray(values.reshape(len(table), size), np.float32)


def _last(table: pa.Table, key: str) -> Any:
    return table.column(key)[-1].as_py() if key in table.column_names else None


def _row(row: Mapping[str, Any]) -> _Row:
    prefix = lerobot.INFO_PREFIX
    info = {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
    return _Row(row["episode_index"], row["tasks"][0] if row["tasks"] else "", row["length"], info)


def _reason(error: DatasetError) -> str:
    """Without the path, which stands beside it."""
    return str(error).split(": ", 1)[-1]
