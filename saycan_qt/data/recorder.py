"""EpisodeRecorder: the skills that robots execute, as a dataset that grows while a skill server runs.

with EpisodeRecorder("data/executed") as recorder, serve(library, critic, actor, recorder=recorder) as server:
    server.wait()

recording.json  shard-000/  shard-001/ ...      each shard a LeRobotDataset v3, a file for each episode

An episode waits in memory until it ends, then one thread writes it: a kill loses only those that still ran, or waited
for the disk. How it ended stands in its info: "succeeded", "failed", "canceled", "aborted", or "lost" where the robot
never said so.
"""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np

from saycan_qt import atomic
from saycan_qt.data import lerobot
from saycan_qt.data.lerobot import DatasetError, Episode
from saycan_qt.data.writer import EpisodeWriter
from skills.types import ACTION_HIGH, ACTION_LOW, CONTROL_HZ, TERMINATE_THRESHOLD, Observation, Outcome

log = logging.getLogger(__name__)

SETTINGS, LOCK = "recording.json", ".lock"
PER_SHARD = 1000  # [episodes]; a manifest lists them all, and is written for each
MEMORY = 1 << 30  # [bytes] of images that are not on disk yet


class EpisodeRecorder:
    """A `skills.serving.recorder.Recorder`. What it cannot keep it leaves out, with one line in the log"""

    def __init__(self, folder: str | Path, per_shard: int = PER_SHARD, memory: int = MEMORY) -> None:
        """Continues what is there. Raises DatasetError for a folder that holds something else, or is in use."""
        self.folder, self._per_shard = Path(folder), per_shard
        self._guard = threading.Lock()  # of the two below
        self._memory = memory  # [bytes] left
        self.image_size: tuple[int, int] | None = None  # (H, W) [px]; None: that of the first observation to come
        self._writer: EpisodeWriter | None = None  # of shard `_shard`
        self._shard = 0
        self._finished: queue.SimpleQueue[_Recording | None] = queue.SimpleQueue()
        try:
            _refuse_other_things(self.folder)
            self._lock = atomic.lock(self.folder / LOCK, wait=False)
        except BlockingIOError:
            raise DatasetError(f"{self.folder}: another server records there; give this one another folder") from None
        except OSError as error:
            raise DatasetError(f"{self.folder}: {error.strerror}; give a folder that can be written to") from None
        try:
            self.num_episodes = self._continue()
        except BaseException:
            self._lock.close()
            raise
        self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)
        self._thread.start()

    def begin(self, goal_id: str, instruction: str, model_id: str) -> _Recording:
        return _Recording(self, instruction, {"goal_id": goal_id, "model_id": model_id})

    def misfit(self, image_size: tuple[int, int] | None) -> str:
        """Why images of this size, (H, W) [px], cannot be kept here; "" when they can, or when it is not known."""
        if image_size is None or self.image_size in (None, image_size):
            return ""
        there, here = (" x ".join(map(str, size)) for size in (self.image_size, image_size))
        return f"{self.folder} holds images of {there} pixels, these have {here}"

    def close(self) -> None:
        """Returns when all that ended is on disk."""
        self._finished.put(None)
        self._thread.join()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def admit(self, image: np.ndarray) -> str:
        """Why an image cannot be kept; "" when it can, and its memory is taken until `release`."""
        height, width, _ = image.shape
        with self._guard:
            self.image_size = self.image_size or (height, width)
            if problem := self.misfit((height, width)):
                return problem
            if image.nbytes > self._memory:
                return "too much waits for the disk already"
            self._memory -= image.nbytes
            return ""

    def release(self, size: int) -> None:
        with self._guard:
            self._memory += size

    def finish(self, recording: _Recording) -> None:
        self._finished.put(recording)

    def _continue(self) -> int:
        """Open the last shard, mending it; the number of episodes in all of them."""
        path = self.folder / SETTINGS
        if not path.exists():
            return 0
        settings = lerobot.read_json(path)
        try:
            (height, width), fps = settings["image_size"], settings["fps"]
        except (KeyError, TypeError, ValueError):
            raise DatasetError(f"{path}: damaged; record to another folder") from None
        if fps != CONTROL_HZ:
            raise DatasetError(f"{self.folder} was recorded at {fps} Hz, not {CONTROL_HZ:g}; record to another folder")
        self.image_size = (height, width)
        shards = sorted(self.folder.glob("shard-*"))
        if shards:
            self._shard = len(shards) - 1
            try:
                self._writer = self._open()
            except DatasetError as error:
                raise DatasetError(f"{error}; record to another folder") from None
        return sum(int(lerobot.read_json(shard / lerobot.INFO)["total_episodes"]) for shard in shards)

    def _open(self) -> EpisodeWriter:
        assert self.image_size is not None
        shard = self.folder / f"shard-{self._shard:03d}"
        return EpisodeWriter(shard, self.image_size, episodes_per_file=1, robot_type="recorded")

    def _write_all(self) -> None:
        while (recording := self._finished.get()) is not None:
            try:
                self._write(recording.episode())
            except Exception as error:  # a full disk, most likely; whatever it is, the next episode may fare better
                recording.give_up(" ".join(str(error).split()) or type(error).__name__)
            recording.forget()
        if self._writer is not None:
            self._writer.close()

    def _write(self, episode: Episode) -> None:
        if not (self.folder / SETTINGS).exists():
            settings = {"image_size": self.image_size, "fps": CONTROL_HZ}
            atomic.write(self.folder / SETTINGS, atomic.to_json(settings))
        if self._writer is not None and self._writer.num_episodes >= self._per_shard:
            self._writer.close()
            self._writer, self._shard = None, self._shard + 1
        self._writer = self._writer or self._open()
        try:
            self._writer.add(episode)
        except BaseException:
            self._writer.discard()
            raise
        self.num_episodes += 1


class _Recording:
    """One skill that a robot executes; a `skills.serving.recorder.Recording`."""

    def __init__(self, recorder: EpisodeRecorder, task: str, info: dict[str, Any]) -> None:
        self._recorder, self._task, self._info = recorder, task, info
        self._steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # image, state, action
        self._outcome: Outcome | None = None
        self._bytes, self._given_up = 0, False

    def add(self, observation: Observation, action: np.ndarray) -> None:
        if self._given_up:
            return
        if problem := self._recorder.admit(observation.image):
            self.give_up(problem)
            self.forget()
            return
        self._bytes += observation.image.nbytes
        action = np.clip(action, ACTION_LOW, ACTION_HIGH)  # as robots do
        self._steps.append((observation.image, observation.state, action))

    def end(self, outcome: Outcome | None) -> None:
        self._outcome = outcome
        if self._steps:
            self._recorder.finish(self)

    def episode(self) -> Episode:
        """Without an action at its end that the robot was given and did not carry out."""
        outcome = self._outcome
        images, states, actions = zip(*self._steps[: (outcome and outcome.steps) or None], strict=True)
        info = self._info | {
            lerobot.OUTCOME: outcome.status.value if outcome else lerobot.LOST,
            "truncated": int(actions[-1][-1] <= TERMINATE_THRESHOLD),
        }
        success = outcome is not None and outcome.succeeded
        return Episode(np.stack(images), np.stack(states), np.stack(actions), self._task, success, info)

    def give_up(self, why: str) -> None:
        self._given_up = True
        log.warning("not recorded: %r (goal %s): %s", self._task, self._info["goal_id"] or "unknown", why)

    def forget(self) -> None:
        self._steps.clear()
        self._recorder.release(self._bytes)
        self._bytes = 0


def _refuse_other_things(folder: Path) -> None:
    if not folder.exists() or (folder / SETTINGS).is_file():
        return
    if other := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        raise DatasetError(
            f"{folder} holds something else than recordings ({', '.join(other[:3])}); record to a new folder"
        )
