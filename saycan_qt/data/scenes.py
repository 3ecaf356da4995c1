"""Labelled scenes on disk: Parquet files of one row a scene, and affordances.json, which names the skills.

affordances.json                 {"format", "seed", "skills": {name: family}}; both label lists follow its order
scenes-00000.parquet             scenes 0 to 19, and so on
    number int64, images PNG bytes[h], states float32[S h], precondition bool[N], succeeds bool[N],
    place, held, skill, kind, moment: text, for people and for finding out what goes wrong
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from saycan_qt import atomic
from saycan_qt.data import images, lerobot
from saycan_qt.data.lerobot import DatasetError
from skills.robot_folder import default_robot
from skills.types import Observation

FORMAT = "saycan-qt affordance scenes 2"
MOST_MOMENTS, MOST_SCENES = 64, 10_000  # frames of a scene and scenes of a file that are read
HISTORY = 6  # frames of a scene at most, as many as the paper's policy sees
DESCRIPTION = "affordances.json"
PER_FILE = 20  # scenes
LABELS = ("precondition", "succeeds")
WORDS = ("place", "held", "skill", "kind", "moment")


@dataclass(frozen=True)
class LabelledScene:
    """What the robot perceives until one instant, and what it could do then. Labels follow the order of the skills."""

    number: int
    images: np.ndarray  # (h, H, W, 3) uint8 RGB, oldest first, a control period apart; one where nothing went before
    states: np.ndarray  # (h, S) float32, the kitchen robot's
    precondition: np.ndarray  # (N,) bool
    succeeds: np.ndarray  # (N,) bool, the scripted expert's; tried where the precondition holds, elsewhere False
    place: str
    held: str
    skill: str  # around which the scene was drawn
    kind: str  # what was done to the scene, e.g. "practised" or "hand full"
    moment: str  # "at rest" or "afterwards", after another skill


def begin(folder: Path, seed: int, skills: Mapping[str, str]) -> None:
    """Describe a new collection, or make sure that `folder` holds the same; ValueError. skills: name -> family."""
    settings = {"format": FORMAT, "seed": seed, "skills": dict(skills)}
    if not (folder / DESCRIPTION).exists():
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write(folder / DESCRIPTION, atomic.to_json(settings))
        return
    there = lerobot.read_json(folder / DESCRIPTION)
    if there.get("seed") != seed:
        raise ValueError(f"{folder} holds scenes made with --seed {there.get('seed')}; use that, or another --out")
    if there != settings or list(there["skills"]) != list(skills):
        raise ValueError(f"{folder} holds scenes made with another library of skills; use another --out")


def path(folder: Path, file: int) -> Path:
    return folder / f"scenes-{file:05d}.parquet"


def count(file: Path) -> int:
    """Scenes in a file; 0 where it does not exist yet."""
    return len(lerobot.read_table(file, ["number"])) if file.exists() else 0


def extend(file: Path, scenes: Iterable[LabelledScene]) -> None:
    """Add scenes to a file, which may not exist yet, but for those that it has; it is replaced as a whole."""
    there = set(lerobot.read_table(file, ["number"]).column("number").to_pylist()) if file.exists() else set()
    rows = [scene for scene in scenes if scene.number not in there]
    columns = {
        "number": pa.array([s.number for s in rows], pa.int64()),
        "images": pa.array([[lerobot.encode_png(i) for i in s.images] for s in rows], pa.list_(pa.binary())),
        "states": pa.array([s.states.ravel().tolist() for s in rows], pa.list_(pa.float32())),
        **{key: pa.array([getattr(s, key).tolist() for s in rows], pa.list_(pa.bool_())) for key in LABELS},
        **{key: pa.array([getattr(s, key) for s in rows], pa.string()) for key in WORDS},
    }
    table = pa.table(columns)
    if file.exists():
        table = pa.concat_tables([lerobot.read_table(file, list(columns)), table])
    lerobot.write_table(file, table)


@dataclass(frozen=True)
class SceneDataset:
    """Labels of all scenes; pictures file by file. Raises DatasetError: what is wrong, and where."""

    folder: Path
    skills: Mapping[str, str]  # name -> family
    files: tuple[Path, ...]

    @classmethod
    def open(cls, folder: Path) -> SceneDataset:
        make = f"`python -m saycan_qt.collect affordance --out {folder}` makes some"
        if not (folder / DESCRIPTION).exists():
            raise DatasetError(f"{folder}: no labelled scenes here (no {DESCRIPTION}); {make}")
        described = lerobot.read_json(folder / DESCRIPTION)
        if described.get("format") != FORMAT or not isinstance(described.get("skills"), dict):
            raise DatasetError(f"{folder / DESCRIPTION}: format {described.get('format')!r}, only {FORMAT!r} is read")
        files = tuple(sorted(folder.glob("scenes-*.parquet")))
        if not files:
            raise DatasetError(f"{folder}: no scenes yet; {make}")
        return cls(folder, described["skills"], files)

    @cached_property
    def numbers(self) -> np.ndarray:
        """(S,) the scenes' own numbers, file after file."""
        columns = [lerobot.read_table(file, ["number"]).column("number").to_numpy() for file in self.files]
        return np.concatenate(columns)

    def labels(self, label: str) -> np.ndarray:
        """(S, N) bool of "precondition" or "succeeds"."""
        return np.concatenate([self._lists(file, label, len(self.skills)).astype(bool) for file in self.files])

    def words(self, key: str) -> np.ndarray:
        """(S,) text: one of WORDS of every scene."""
        return np.array([w for f in self.files for w in lerobot.read_table(f, [key]).column(key).to_pylist()], str)

    def histories(self, file: Path) -> list[list[Observation]]:
        """What the robot saw in each scene of one file, oldest first."""
        table, found = lerobot.read_table(file, ["images", "states"], rows=MOST_SCENES), []
        kitchen = default_robot().embodiment  # scenes are its alone
        rows = zip(table.column("images").to_pylist(), table.column("states").to_pylist(), strict=True)
        for row, (encoded, numbers) in enumerate(rows):
            states = np.array(numbers or [], np.float32)
            if not encoded or len(encoded) > MOST_MOMENTS or len(states) != len(encoded) * len(kitchen.state):
                count = len(kitchen.state)
                raise DatasetError(f"{file}: row {row} does not hold an image and {count} numbers a moment")
            try:
                decoded = [images.decode(png, f"in row {row}") for png in encoded]
            except lerobot.BadEpisode as error:
                raise DatasetError(f"{file}: {error}") from None
            pairs = zip(decoded, states.reshape(len(encoded), -1), strict=True)
            found.append([Observation({kitchen.cameras[0].name: image}, state) for image, state in pairs])
        return found

    @staticmethod
    def _lists(file: Path, key: str, length: int) -> np.ndarray:
        """A column of lists as (n, length)."""
        column = lerobot.read_table(file, [key]).column(key)
        values = pc.list_flatten(column)
        if len(values) != len(column) * length or values.null_count or column.null_count:
            raise DatasetError(f"{file}: {key} does not hold {length} values in each of its {len(column)} rows")
        return values.to_numpy(zero_copy_only=False).reshape(len(column), length)
