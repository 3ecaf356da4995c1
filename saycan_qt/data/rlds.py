"""Reads RLDS episodes of Open X-Embodiment from TFRecord files as TFDS writes them: each record is one episode.

A TFDS example flattens names and stacks steps: `steps/action/world_vector` of T steps is one list of 3 T numbers, an
image a list of T JPEGs or PNGs, `aspects/success` one number. Whole numbers and booleans are int64. The features are
those of tensorflow.org/datasets/catalog/fractal20220817_data and .../bridge, and `mapping` says which are used. All
splits of a folder are read.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from saycan_qt import atomic
from saycan_qt.data import images
from saycan_qt.data.lerobot import BadEpisode, DatasetError, Episode
from saycan_qt.data.mapping import ALL, ColumnMapping
from saycan_qt.data.reader import Quarantined
from saycan_qt.data.tfrecord import Damaged, parse_example, read_records
from skills.types import ACTION_NAMES, STATE_NAMES

STEPS = "steps/"
IS_FIRST, IS_LAST, IS_TERMINAL = "steps/is_first", "steps/is_last", "steps/is_terminal"
RATED = "aspects/has_aspects"  # of fractal: 0 where nobody has rated the episode, whose other aspects say nothing then
SOUGHT = 100  # records tried for one that shows what the features are
TFRECORD = re.compile(r"\.tfrecord(-\d+-of-\d+)?$")
PLACE = re.compile(r"-(?P<split>[\w]+)\.tfrecord-(?P<index>\d+)-of-\d+$")


class Shard:
    """One folder of TFRecord files; the surface is that of `reader.Shard`."""

    def __init__(
        self,
        root: Path,
        mapping: ColumnMapping | None = None,
        sha256: Callable[[Path], str] = atomic.sha256,
    ) -> None:
        self.root, self.mapping, self._sha256 = root, mapping or ColumnMapping(), sha256
        self.paths = tfrecords(root)
        size, first, image = self._first()
        if whole := [name for name in self.mapping.columns if not name.startswith(STEPS)]:
            raise DatasetError(f"{root}: {', '.join(whole)} is a number an episode; state and action have one a step")
        self.image = self.mapping.image or first.columns()[0][0]
        self.shapes = ((*(self.mapping.image_size or image.shape[:2]), 3), (len(STATE_NAMES),), (len(ACTION_NAMES),))
        # About: TFRecord files have no list of their records, and images of one dataset take about the same bytes.
        self.num_frames = round(first.length * sum(path.stat().st_size for path in self.paths) / size)

    @cached_property
    def digest(self) -> str:
        """Of the content of all files."""
        files = {path.name: self._sha256(path) for path in self.paths}
        return atomic.sha256(json.dumps(sorted(files.items())).encode())

    def episodes(self) -> Iterator[tuple[Episode, bool] | Quarantined]:
        """Every episode with whether the time limit cut it, or what is wrong with it."""
        expected = self._expected()
        for path in self.paths:
            number, reason = -1, "it is missing from the end of the file"
            for number, record in enumerate(read_records(path)):
                if isinstance(record, Damaged):
                    yield Quarantined(str(path), number, record.reason)
                    if record.ends:
                        reason = f"lost: {record.reason}, and nothing after it can be found"
                    continue
                try:
                    yield self._episode(_Record(parse_example(record)), f"{path.name}:{number}")
                except BadEpisode as bad:
                    yield Quarantined(str(path), number, str(bad))
                except DecodeError:
                    yield Quarantined(str(path), number, f"record {number} is no tf.train.Example")
            for lost in range(number + 1, expected.get(path.name, 0)):
                yield Quarantined(str(path), lost, reason)

    def _first(self) -> tuple[int, _Record, np.ndarray]:
        """The first sound record: its bytes, features and first image; the mapping is held to it."""
        reason = "no file"
        records = (record for path in self.paths for record in read_records(path))
        for data in itertools.islice(records, SOUGHT):
            if isinstance(data, Damaged):
                reason = data.reason
                continue
            try:
                record = _Record(parse_example(data))
                self.mapping.check(str(self.root), *record.columns())
                name = self.mapping.image or record.columns()[0][0]
                return len(data), record, images.decode(record.values(name, "bytes_list")[0], "at step 0")
            except (BadEpisode, DecodeError) as error:
                reason = str(error)
        raise DatasetError(f"{self.root}: no episode can be read from its TFRecord files; the last reason: {reason}")

    def _expected(self) -> dict[str, int]:
        """Records of each file, as TFDS notes them in dataset_info.json; empty without it."""
        try:
            splits = json.loads((self.root / "dataset_info.json").read_bytes())["splits"]
            lengths = {split["name"]: [int(length) for length in split["shardLengths"]] for split in splits}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        expected = {}
        for path in self.paths:
            place = PLACE.search(path.name)
            if place and int(place["index"]) < len(lengths.get(place["split"], ())):
                expected[path.name] = lengths[place["split"]][int(place["index"])]
        return expected

    def _episode(self, record: _Record, source: str) -> tuple[Episode, bool]:
        mapping = self.mapping
        encoded = record.values(self.image, "bytes_list")
        length = record.length
        if len(encoded) != length:
            raise BadEpisode(f"{len(encoded)} images for {length} steps")
        # RLDS: an episode that ends without a terminal step was cut [github.com/google-research/rlds].
        truncated = record.has(IS_TERMINAL) and not record.numbers(IS_TERMINAL)[-1]
        rewards = record.numbers(mapping.reward)[:, 0] if record.has(mapping.reward) else None
        numbers = mapping.arrange(record.numbers, length, bool(truncated), rewards)
        kept = list(enumerate(encoded))[numbers.frames]
        decoded = (images.decode(data, f"at step {step}") for step, data in kept)
        episode = Episode(
            images=images.stack(decoded, len(kept), self.shapes[0], mapping.image_size is not None),
            states=numbers.states,
            actions=numbers.actions,
            task=record.text(mapping.instruction),
            success=_success(record, mapping),
            info={"record": source},
            rewards=numbers.rewards,
        )
        if problem := episode.problem():
            raise BadEpisode(problem)
        return episode, numbers.truncated


class _Record:
    """One example's features by name."""

    def __init__(self, features: Any) -> None:
        self.features = features
        ends = [name for name in (IS_FIRST, IS_LAST, IS_TERMINAL) if self.has(name)]
        if not ends:
            raise BadEpisode(f"no feature {IS_FIRST}: is this an RLDS episode?")
        self.length = len(self.values(ends[0], "int64_list"))

    def has(self, name: str) -> bool:
        return name in self.features and self.features[name].WhichOneof("kind") is not None

    def values(self, name: str, kind: str) -> Any:
        if not self.has(name):
            raise BadEpisode(f"no feature {name}")
        if (there := self.features[name].WhichOneof("kind")) != kind:
            raise BadEpisode(f"{name} is a {there}, not a {kind}")
        return getattr(self.features[name], kind).value

    def numbers(self, name: str) -> np.ndarray:
        """(T, D) float32; (1, D) of a feature of the whole episode."""
        whole = self.has(name) and self.features[name].WhichOneof("kind") == "int64_list"
        values = np.array(self.values(name, "int64_list" if whole else "float_list"), np.float32)
        steps = self.length if name.startswith(STEPS) else 1
        if len(values) == 0 or len(values) % steps:
            raise BadEpisode(f"{name} holds {len(values)} numbers in {steps} steps")
        return values.reshape(steps, -1)

    def text(self, name: str) -> str:
        """Of the first step."""
        text = next(iter(self.values(name, "bytes_list")), b"").decode(errors="replace")
        if not text:
            raise BadEpisode(f"no instruction in {name}")
        return str(text)

    def columns(self) -> tuple[list[str], dict[str, int], list[str]]:
        """Images, numbers with how many a step has, and texts."""
        pictures, widths, texts = [], {}, []
        for name in sorted(self.features):
            if not self.has(name):
                continue
            kind = self.features[name].WhichOneof("kind")
            values = getattr(self.features[name], kind).value
            if kind != "bytes_list":
                widths[name] = len(values) // (self.length if name.startswith(STEPS) else 1)
            elif values and values[0].startswith((b"\xff\xd8", b"\x89PNG")):
                pictures.append(name)
            else:
                texts.append(name)
        return pictures, widths, texts


def tfrecords(root: Path) -> list[Path]:
    """The TFRecord files of a folder; not what an interrupted download leaves."""
    return sorted(path for path in root.glob("*.tfrecord*") if TFRECORD.search(path.name))


def _success(record: _Record, mapping: ColumnMapping) -> bool:
    if mapping.success == (ALL,):
        return True
    unrated = record.has(RATED) and not record.numbers(RATED).any()
    for name in mapping.success:
        if record.has(name) and not (unrated and name.startswith("aspects/")):
            return bool(record.numbers(name)[-1, -1] > 0)
    raise BadEpisode(f"no success label: neither {' nor '.join(mapping.success)}")
