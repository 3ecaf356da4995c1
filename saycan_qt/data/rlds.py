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
from saycan_qt.data.layout.arrange import parts
from saycan_qt.data.layout.mapping import ALL, ColumnMapping
from saycan_qt.data.layout.outcomes import Outcomes
from saycan_qt.data.layout.settle import Contents, settle
from saycan_qt.data.lerobot import (
    MOST_STEPS,
    MOST_TEXT,
    MOST_VALUES,
    BadEpisode,
    DatasetError,
    Episode,
    inside,
    too_large,
)
from saycan_qt.data.reader import Quarantined
from saycan_qt.data.tfrecord import Damaged, parse_example, read_records
from skills import files

STEPS, STATE, ACTION, REWARD = "steps/", "steps/observation/state", "steps/action", "steps/reward"
SUCCESS = ("aspects/success", REWARD)
CAMERA = re.compile(r"steps/observation/(?!.*depth).*(image|rgb|cam).*")  # where a mapping names none
INSTRUCTION = re.compile(r"steps/.*instruction.*")
BLACK = 8  # of 255; a picture that is nowhere brighter shows nothing
IS_FIRST, IS_LAST, IS_TERMINAL = "steps/is_first", "steps/is_last", "steps/is_terminal"
RATED = "aspects/has_aspects"  # of fractal: 0 where nobody has rated the episode, whose other aspects say nothing then
INFO, MOST_RECORDS = "dataset_info.json", 10**5  # records of a file
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
        rate: float | None = None,
    ) -> None:
        self.root, self._sha256 = root, sha256
        self.paths = [inside(root, path.name) for path in tfrecords(root)]
        size, length, self.contents = self._first()
        self.layout = settle(mapping or ColumnMapping(), self.contents, rate)
        self.outcomes = self.layout.success.of(root) if isinstance(self.layout.success, Outcomes) else None
        # About: TFRecord files have no list of their records, and images of one dataset take about the same bytes.
        frames = length * sum(path.stat().st_size for path in self.paths) / size
        self.num_frames = round(frames / self.layout.every)

    @cached_property
    def digest(self) -> str:
        """Of the content of all files."""
        try:
            digests = {path.name: self._sha256(path) for path in self.paths}
        except OSError as error:
            raise DatasetError(f"{error.filename}: cannot be read: {error.strerror}") from None
        return atomic.sha256(json.dumps(sorted(digests.items())).encode())

    def episodes(self) -> Iterator[tuple[Episode, bool] | Quarantined]:
        """Every episode, or each of its parts, with whether the time limit cut it; or what is wrong with it."""
        expected, before = self._expected(), 0
        for path in self.paths:
            number, reason = -1, "it is missing from the end of the file"
            for number, record in enumerate(read_records(path)):
                if isinstance(record, Damaged):
                    yield Quarantined(str(path), number, record.reason)
                    if record.ends:
                        reason = f"lost: {record.reason}, and nothing after it can be found"
                    continue
                try:
                    found = _Record(parse_example(record))
                    yield from list(self._parts(found, f"{path.name}:{number}", before + number))
                except BadEpisode as bad:
                    yield Quarantined(str(path), number, str(bad))
                except DecodeError:
                    yield Quarantined(str(path), number, f"record {number} is no tf.train.Example")
            for lost in range(number + 1, expected.get(path.name, 0)):
                yield Quarantined(str(path), lost, reason)
            before += max(number + 1, expected.get(path.name, 0))

    def _first(self) -> tuple[int, int, Contents]:
        """The first sound record: its bytes, its steps and what the dataset has."""
        reason = "no file"
        records = (record for path in self.paths for record in read_records(path))
        for data in itertools.islice(records, SOUGHT):
            if isinstance(data, Damaged):
                reason = data.reason
                continue
            try:
                record = _Record(parse_example(data))
                return len(data), record.length, self._contents(record)
            except (BadEpisode, DecodeError) as error:
                reason = str(error)
        raise DatasetError(f"{self.root}: no episode can be read from its TFRecord files; the last reason: {reason}")

    def _contents(self, record: _Record) -> Contents:
        pictures, widths, texts = record.columns()
        shown = {name: images.decode(record.values(name, "bytes_list")[0], "at step 0") for name in pictures}
        told = [name for name in texts if INSTRUCTION.fullmatch(name)]
        return Contents(
            where=str(self.root),
            images={name: image.shape[:2] for name, image in shown.items()},
            widths={name: width for name, width in widths.items() if name.startswith(STEPS)},
            once=[name for name in widths if not name.startswith(STEPS)],
            texts=texts,
            cameras=[name for name in pictures if CAMERA.fullmatch(name)],
            state=STATE,
            action=ACTION,
            success=SUCCESS,
            reward=REWARD,
            instruction=told[0] if told else "steps/language_instruction",
            blank=[name for name, image in shown.items() if image.max() <= BLACK],
        )

    def _expected(self) -> dict[str, int]:
        """Records of each file, as TFDS notes them in dataset_info.json; empty without it."""
        try:
            splits = files.read_json(self.root / INFO)["splits"]
            lengths = {split["name"]: [int(length) for length in split["shardLengths"]] for split in splits}
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return {}
        if wrong := [n for counts in lengths.values() for n in counts if not 0 <= n <= MOST_RECORDS]:
            raise DatasetError(f"{self.root / INFO}: a file of {str(wrong[0])[:50]} records; at most {MOST_RECORDS}")
        expected = {}
        for path in self.paths:
            place = PLACE.search(path.name)
            if place and int(place["index"]) < len(lengths.get(place["split"], ())):
                expected[path.name] = lengths[place["split"]][int(place["index"])]
        return expected

    def _parts(self, record: _Record, source: str, number: int) -> Iterator[tuple[Episode, bool]]:
        layout, length = self.layout, record.length
        encoded = {camera: record.values(column, "bytes_list") for camera, column in layout.cameras.items()}
        for camera, pictures in encoded.items():
            if len(pictures) != length:
                raise BadEpisode(f"{len(pictures)} images for {length} steps, of camera {camera}")
        # RLDS: an episode that ends without a terminal step was cut [github.com/google-research/rlds].
        truncated = record.has(IS_TERMINAL) and not record.numbers(IS_TERMINAL)[-1]
        rewards = record.numbers(layout.reward)[:, 0] if record.has(layout.reward) else None
        for part in parts(layout, record.numbers, record.texts(layout.instruction), bool(truncated), rewards):
            seen = {}
            for camera, column in layout.cameras.items():
                kept = range(length)[part.frames]
                decoded = (images.decode(encoded[camera][step], f"at step {step}") for step in kept)
                stored = None if layout.resized else self.contents.images[column]
                seen[camera] = images.stack(decoded, len(kept), stored, layout.size)
            episode = Episode(
                images=seen,
                states=part.states,
                actions=part.actions,
                task=part.task,
                success=self._success(record, part.last, number),
                info={"record": source},
                rewards=part.rewards,
            )
            if problem := episode.problem():
                raise BadEpisode(problem)
            yield episode, part.truncated

    def _success(self, record: _Record, last: int, number: int) -> bool:
        """At step `last`."""
        if self.outcomes is not None:
            if number not in self.outcomes:
                raise BadEpisode("the file of outcomes does not name it")
            return self.outcomes[number]
        if self.layout.success == (ALL,):
            return True
        unrated = record.has(RATED) and not record.numbers(RATED).any()
        for name in self.layout.labels:
            if record.has(name) and not (unrated and name.startswith("aspects/")):
                labels = record.numbers(name)
                return bool(labels[min(last, len(labels) - 1), -1] > 0)
        raise BadEpisode(f"no success label: neither {' nor '.join(self.layout.labels)}")


class _Record:
    """One example's features by name."""

    def __init__(self, features: Any) -> None:
        self.features = features
        ends = [name for name in (IS_FIRST, IS_LAST, IS_TERMINAL) if self.has(name)]
        if not ends:
            raise BadEpisode(f"no feature {IS_FIRST}: is this an RLDS episode?")
        self.length = len(self.values(ends[0], "int64_list"))
        if self.length > MOST_STEPS:
            raise BadEpisode(f"{self.length} steps, at most {MOST_STEPS} are read")

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
        given = self.values(name, "int64_list" if whole else "float_list")
        steps = self.length if name.startswith(STEPS) else 1
        if len(given) == 0 or steps == 0 or len(given) % steps:
            raise BadEpisode(f"{name} holds {len(given)} numbers in {steps} steps")
        if len(given) > MOST_VALUES:
            raise BadEpisode(f"{name} holds {len(given)} numbers, at most {MOST_VALUES} are read")
        values = np.array(given, np.float32).reshape(steps, -1)
        if problem := too_large(name, values):
            raise BadEpisode(problem)
        return values

    def texts(self, name: str) -> list[str]:
        """Of each step; a step without one has that of the step before."""
        found = [text.decode(errors="replace") for text in self.values(name, "bytes_list")]
        if len(found) != self.length:  # one for the whole episode
            found = found[:1] * self.length
        if not any(found[:1]):
            raise BadEpisode(f"no instruction in {name}")
        if max(map(len, found)) > MOST_TEXT:
            raise BadEpisode(f"an instruction of over {MOST_TEXT} characters in {name}")
        for step, text in enumerate(found):
            found[step] = text or found[step - 1]
        return found

    def columns(self) -> tuple[list[str], dict[str, int], list[str]]:
        """Images, numbers with how many a step has, and texts."""
        pictures, widths, texts = [], {}, []
        for name in sorted(self.features):
            if not self.has(name):
                continue
            kind = self.features[name].WhichOneof("kind")
            values = getattr(self.features[name], kind).value
            if kind != "bytes_list":
                widths[name] = len(values) // (max(1, self.length) if name.startswith(STEPS) else 1)
            elif values and values[0].startswith((b"\xff\xd8", b"\x89PNG")):
                pictures.append(name)
            else:
                texts.append(name)
        return pictures, widths, texts


def tfrecords(root: Path) -> list[Path]:
    """The TFRecord files of a folder; not what an interrupted download leaves."""
    return sorted(path for path in root.glob("*.tfrecord*") if TFRECORD.search(path.name))
