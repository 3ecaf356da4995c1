"""What an affordance evaluation asks: frames, instructions and the truth, of labelled scenes or of anybody's episodes.

questions = ask(Path("data/scenes"), "", "auto")
questions.labels                          # (S, N) bool: instruction questions.texts[s][n] is possible in frame s
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from saycan_qt import atomic
from saycan_qt.data import scenes
from saycan_qt.data.episodes import EpisodeDataset
from saycan_qt.data.relabel import meanings, relabel
from saycan_qt.data.scenes import DatasetError, SceneDataset
from skills.library import SkillLibrary
from skills.types import Observation

Label = Literal["auto", "precondition", "succeeds", "relabelled", "recorded", "asked"]
TUNING = 4  # every fourth scene, by its number, serves to tune the threshold and to calibrate, and nothing else
OF_SCENES: tuple[Label, ...] = ("precondition", "succeeds")
OF_EPISODES: tuple[Label, ...] = ("relabelled", "recorded", "asked")
PART = 20  # frames of episodes that are read together
TASKS, START, END = "all tasks", "at the start", "at the end"  # episodes' one family, and their moments


History = Sequence[Observation]  # what a robot saw until the moment that is asked about, oldest first


class NotComparable(ValueError):
    """The data or the model do not allow the measurement: what and why, in one line."""


@dataclass(frozen=True)
class Part:
    """Frames that are read together."""

    key: str  # says which, with a digest of their content
    count: int
    read: Callable[[], Sequence[History]]


@dataclass(frozen=True)
class Questions:
    """N instructions at each of S frames. A labelled scene is one frame, and so is the first one of an episode."""

    title: str  # for people: what the pairs are
    note: str  # for people: what has to be known about the labels; "" for nothing
    label: str
    numbers: np.ndarray  # (S,) the scenes' own numbers
    labels: np.ndarray  # (S, N) bool
    texts: Sequence[Sequence[str]]  # S times N instructions
    families: np.ndarray  # (N,) text
    moments: np.ndarray  # (S,) text
    parts: tuple[Part, ...]
    about: Mapping[str, np.ndarray] = field(default_factory=dict)  # what is known of each frame, (S,) text each

    @property
    def digest(self) -> str:
        """Of everything that is asked."""
        return atomic.sha256("".join(part.key for part in self.parts).encode() + self.labels.tobytes())

    @property
    def instructions(self) -> list[str]:
        """Each that occurs, once."""
        return list(dict.fromkeys(text for row in self.texts for text in row))

    @property
    def tuning(self) -> np.ndarray:
        """(S,) bool, the scenes that tune. Raises NotComparable where a part has one class only."""
        tuning = self.numbers % TUNING == 0
        for part in (self.labels, self.labels[tuning], self.labels[~tuning]):
            if part.all() or not part.any():
                which = "possible" if part.size and part.all() else "impossible"
                raise NotComparable(
                    f"{self.title}: every skill is {which} in {'all' if part is self.labels else 'one part of the'} "
                    f"{len(self.labels)} scenes; both classes are needed, so collect more scenes"
                )
        return tuning

    def histories(self, rows: Sequence[int]) -> dict[int, History]:
        """What was seen in some rows."""
        found, first = {}, 0
        for part in self.parts:
            if mine := [row for row in rows if first <= row < first + part.count]:
                seen = part.read()
                found.update({row: seen[row - first] for row in mine})
            first += part.count
        return found


def ask(folder: Path, mapping: str, label: Label, cache: Path | None = None, rate: float = 0.0) -> Questions:
    """The questions of a folder of either kind. mapping, cache, rate: of somebody's episodes, as for training; label:
    "auto" is the first of its kind. Raises DatasetError or NotComparable."""
    is_scenes = (folder / scenes.DESCRIPTION).exists() or not (folder.is_dir() and any(folder.iterdir()))
    kinds = OF_EPISODES if mapping or not is_scenes else OF_SCENES
    if label == "auto":
        label = kinds[0]
    if label not in kinds:
        what = "episodes" if kinds == OF_EPISODES else "labelled scenes"
        raise NotComparable(f"{folder} holds {what}, whose --label is {' or '.join(kinds)}, not {label}")
    if kinds == OF_SCENES:
        return of_scenes(SceneDataset.open(folder), label)
    try:
        dataset = EpisodeDataset(folder, cache=cache, mapping=mapping or None, rate=rate)
    except DatasetError as error:
        make = f"`python -m saycan_qt.collect affordance --out {folder}` makes labelled scenes"
        raise DatasetError(f"{error}; {make}" if str(error).startswith("no dataset in") else str(error)) from None
    return of_episodes(dataset, folder, label)


def of_scenes(dataset: SceneDataset, label: str) -> Questions:
    """Every learnt skill in every scene."""
    labels, names = dataset.labels(label), list(dataset.skills)
    parts = [
        Part(f"{file.stem}-{atomic.sha256(file)[:12]}", scenes.count(file), partial(dataset.histories, file))
        for file in dataset.files
    ]
    return Questions(
        title=f"{label}: balanced pairs of scenes of {dataset.folder}",
        note="",
        label=label,
        numbers=dataset.numbers,
        labels=labels,
        texts=[names] * len(labels),
        families=np.array(list(dataset.skills.values())),
        moments=dataset.words("moment"),
        parts=tuple(parts),
        about={key: dataset.words(key) for key in ("kind", "held", "place")},
    )


def of_episodes(dataset: EpisodeDataset, folder: Path, label: str) -> Questions:
    """The first frame of episodes. "relabelled": of each success its own task, which is possible, and another's, taken
    as impossible [Q-Transformer, app. G]; "recorded": of every episode its own task and its success; "asked": the same,
    but at the last frame, before which the others are what had been seen."""
    tasks, chosen = np.array(dataset.tasks), np.arange(len(dataset))
    if label == "relabelled":
        chosen = np.flatnonzero(dataset.success)
        if not len(chosen):
            raise NotComparable(
                f"{folder}: none of its {len(dataset)} episodes succeeded, so nothing counts as possible"
            )
        own = dataset.episode_task[chosen]
        same = meanings(dataset.tasks, SkillLibrary.load())
        try:
            other, _ = relabel(own, dataset.success[chosen], np.random.default_rng(0), 1.0, len(tasks), same, own)
        except ValueError:
            raise NotComparable(
                f"{folder}: its {len(chosen)} successful episodes have fewer than two tasks, so none can be relabelled"
            ) from None
        ids = np.stack([own, other], axis=1)
        labels = np.tile([True, False], (len(chosen), 1))
        title = f"first frames of successful episodes of {folder}, their own task against another"
        note = (
            "Episodes carry no label of what was possible; a first frame counts as a scene. As in the paper, a success "
            "is taken to show that its task was possible from its first frame, and the same frame with another "
            "episode's task is taken as impossible. Some of those are possible too, so that even a perfect judge stays "
            "below 1."
        )
    elif label == "asked":
        ids, labels = dataset.episode_task[:, None], dataset.success[:, None]
        title = f"last frames of {folder}, and whether what is asked about them is possible"
        note = (
            "Each episode is a question: what a robot saw, until the moment that is asked about; an instruction; and "
            "in the column of success whether it was possible then."
        )
    else:
        ids, labels = dataset.episode_task[:, None], dataset.success[:, None]
        title = f"first frames of episodes of {folder}, their own task and whether it was achieved"
        note = (
            "A first frame counts as a scene, and its task as possible when the episode's recorded success says so. A "
            "mapping with `success: COLUMN` reads another label, such as one of feasibility."
        )

    cameras = dataset.cameras
    if len(cameras) == 1:
        cameras = {"": dataset.images}  # one may have another name for the model

    def history(first: int, last: int) -> History:
        rows = range(max(first, last + 1 - scenes.HISTORY), last + 1)
        return [
            Observation({name: np.array(images[i]) for name, images in cameras.items()}, np.array(dataset.states[i]))
            for i in rows
        ]

    def read(episodes: np.ndarray) -> list[History]:
        firsts, ends = dataset.episode_start[episodes], dataset.episode_start[episodes + 1]
        lasts = ends - 1 if label == "asked" else firsts
        return [history(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True)]

    version = atomic.sha256((dataset.digest + label).encode())[:12]
    parts = [
        Part(f"episodes-{first:06d}-{version}", len(some), partial(read, some))
        for first in range(0, len(chosen), PART)
        if len(some := chosen[first : first + PART])
    ]
    return Questions(
        title=title,
        note=note,
        label=label,
        numbers=np.arange(len(chosen)),
        labels=labels,
        texts=tasks[ids].tolist(),
        families=np.array([TASKS] * ids.shape[1]),
        moments=np.array([END if label == "asked" else START] * len(chosen), str),
        parts=tuple(parts),
        about={"episode": np.array([f"episode {number}" for number in chosen], str)},
    )
