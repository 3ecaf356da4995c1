"""EpisodeRecorder: the skills that robots execute, as a dataset that grows while a skill server runs.

with EpisodeRecorder("data/executed") as recorder, serve(library, critic, actor, recorder=recorder) as server:
    server.wait()

recording.json  shard-000/  shard-001/ ...      each shard a LeRobotDataset v3, a file for each episode

All are of one robot: that of the model that acts, with images in the size in which the robot sent the first ones.
An episode waits in memory until it ends, then one thread writes it: a kill loses only those that still ran, or waited
for the disk. How it ended stands in its info: "succeeded", "failed", "canceled", "aborted", or "lost" where the robot
never said so.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from saycan_qt import atomic
from saycan_qt.data import corrections, lerobot
from saycan_qt.data.lerobot import DatasetError, Episode
from saycan_qt.data.writer import EpisodeWriter
from skills.embodiment import Camera, Embodiment
from skills.errors import EmbodimentError
from skills.robot_folder import default_robot
from skills.types import Observation, Outcome
from skills.wire.conventions import plain

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
        self.embodiment: Embodiment | None = None  # of all that is here; None: that of the first observation to come
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
        except OSError as error:
            self._lock.close()
            raise DatasetError(f"{self.folder}: {error.strerror}; record to another folder") from None
        except BaseException:
            self._lock.close()
            raise
        self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)
        self._thread.start()

    def begin(self, goal_id: str, instruction: str, model_id: str, embodiment: Embodiment | None = None) -> _Recording:
        """embodiment: of the model that acts; None: it does not say, and is the kitchen's if it looks like that."""
        return _Recording(self, instruction, {"goal_id": goal_id, "model_id": model_id}, embodiment)

    def misfit(self, embodiment: Embodiment | None) -> str:
        """Why what a model of this embodiment does cannot be kept here; "" when it can, or when that is not known."""
        mine = self.embodiment
        if embodiment is not None and not embodiment.control_hz:
            return "the model does not say how often it acts (control_hz), which a dataset has to"
        if embodiment is None or mine is None:
            return ""
        cameras = [camera.name for camera in embodiment.cameras]
        if cameras != [camera.name for camera in mine.cameras]:
            there = ", ".join(camera.name for camera in mine.cameras)
            return (
                f"{self.folder} holds images of cameras {there or 'none'}, these are of {', '.join(cameras) or 'none'}"
            )
        if embodiment.control_hz != mine.control_hz:
            return f"{self.folder} was recorded at {mine.control_hz:g} Hz, not {embodiment.control_hz:g}"
        for what, here, these in (("action", mine.action, embodiment.action), ("state", mine.state, embodiment.state)):
            if here != these:
                return f"{self.folder} was recorded with another {what} than {embodiment.name or 'this robot'} has"
        return ""

    def close(self) -> None:
        """Returns when all that ended is on disk."""
        self._finished.put(None)
        self._thread.join()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def admit(self, embodiment: Embodiment, size: int) -> str:
        """Why an observation of `size` bytes cannot be kept; "" when it can, and its memory is taken until `release`.

        embodiment: the model's, with the sizes of the images that came."""
        with self._guard:
            self.embodiment = self.embodiment or embodiment
            if problem := self.misfit(embodiment) or self._other_size(embodiment):
                return problem
            if size > self._memory:
                return "too much waits for the disk already"
            self._memory -= size
            return ""

    def _other_size(self, embodiment: Embodiment) -> str:
        assert self.embodiment is not None
        for mine, other in zip(self.embodiment.cameras, embodiment.cameras, strict=True):
            if mine != other:
                there, here = (f"{camera.height} x {camera.width}" for camera in (mine, other))
                return f"{self.folder} holds images of {there} pixels, these have {here}"
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
        self.embodiment = _read_settings(path)
        shards = sorted(self.folder.glob("shard-*"))
        if shards:
            self._shard = len(shards) - 1
            try:
                self._writer = self._open()
            except DatasetError as error:
                raise DatasetError(f"{error}; record to another folder") from None
        return sum(int(lerobot.read_json(shard / lerobot.INFO)["total_episodes"]) for shard in shards)

    def _open(self) -> EpisodeWriter:
        assert self.embodiment is not None
        shard = self.folder / f"shard-{self._shard:03d}"
        return EpisodeWriter(shard, self.embodiment, episodes_per_file=1, robot_type="recorded")

    def _write_all(self) -> None:
        while (recording := self._finished.get()) is not None:
            try:
                self._write(recording.episode())
            except Exception as error:  # a full disk, most likely; whatever it is, the next episode may fare better
                recording.give_up(one_line(error))
            recording.forget()
        if self._writer is not None:
            try:
                self._writer.close()
            except Exception as error:
                log.warning("%s: the last recordings may be missing: %s", self.folder, one_line(error))

    def _write(self, episode: Episode) -> None:
        if not (self.folder / SETTINGS).exists():
            assert self.embodiment is not None
            atomic.write(self.folder / SETTINGS, atomic.to_json({"embodiment": self.embodiment.to_dict()}))
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

    def __init__(
        self, recorder: EpisodeRecorder, task: str, info: dict[str, Any], embodiment: Embodiment | None
    ) -> None:
        self._recorder, self._task, self._info = recorder, task, info
        self._said = embodiment
        self._robot = embodiment or default_robot().embodiment
        self._steps: list[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]] = []  # images, state, action
        self._outcome: Outcome | None = None
        self._bytes, self._given_up = 0, False

    def add(self, observation: Observation, action: np.ndarray) -> None:
        if self._given_up:
            return
        images = self._images(observation)
        size = sum(image.nbytes for image in images.values()) + observation.state.nbytes
        if problem := self._misfit(images, observation, action) or self._recorder.admit(self._seen(images), size):
            self.give_up(problem)
            self.forget()
            return
        self._bytes += size
        if self._said is not None:
            action = np.clip(action, self._said.low, self._said.high)  # as robots do
        self._steps.append((images, observation.state, np.asarray(action, np.float32)))

    def _images(self, observation: Observation) -> dict[str, np.ndarray]:
        """Of the model's cameras; one without a name is of the only one."""
        cameras, images = self._robot.cameras, observation.images
        if len(cameras) == 1 and [*images] == [""]:
            return {cameras[0].name: images[""]}
        return {camera.name: images[camera.name] for camera in cameras if camera.name in images}

    def _seen(self, images: dict[str, np.ndarray]) -> Embodiment:
        cameras = tuple(Camera(name, *image.shape[:2]) for name, image in images.items())
        return replace(self._robot, cameras=cameras)

    def _misfit(self, images: dict[str, np.ndarray], observation: Observation, action: np.ndarray) -> str:
        """Why a step is of another robot than the model says."""
        robot = self._robot
        shapes = (len(images), *observation.state.shape, *np.shape(action))
        if shapes == (len(robot.cameras), len(robot.state), len(robot.action)):
            return ""
        if self._said is None:
            return "the model says no embodiment, and this is not the kitchen's; give the actor an `embodiment`"
        if missing := [camera.name for camera in robot.cameras if camera.name not in images]:
            return f"the observation lacks camera {missing[0]!r}"
        return (
            f"{len(observation.state)} state numbers and {len(action)} action numbers, not {len(robot.state)} and "
            f"{len(robot.action)}"
        )

    def end(self, outcome: Outcome | None) -> None:
        self._outcome = outcome
        if self._steps:
            self._recorder.finish(self)

    def episode(self) -> Episode:
        """Without an action at its end that the robot was given and did not carry out."""
        outcome = self._outcome
        images, states, actions = zip(*self._steps[: (outcome and outcome.steps) or None], strict=True)
        success = outcome is not None and outcome.succeeded
        ended = success if self._robot.terminate is None else self._robot.ends(actions[-1])
        info = self._info | {
            lerobot.OUTCOME: outcome.status.value if outcome else lerobot.LOST,
            "truncated": int(not ended),
        }
        views = {camera: np.stack([seen[camera] for seen in images]) for camera in images[0]}
        return Episode(views, np.stack(states), np.stack(actions), self._task, success, info)

    def give_up(self, why: str) -> None:
        self._given_up = True
        goal = plain(self._info["goal_id"]) or "unknown"
        log.warning("not recorded: %r (goal %s): %s", self._task, goal, plain(why))

    def forget(self) -> None:
        self._steps.clear()
        self._recorder.release(self._bytes)
        self._bytes = 0


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_settings(path: Path) -> Embodiment:
    """Raises DatasetError. Those of before embodiments are of the kitchen robot."""
    settings, kitchen = lerobot.read_json(path), default_robot().embodiment
    try:
        if "embodiment" in settings:
            return Embodiment.parse(settings["embodiment"], str(path))
        (height, width), fps = settings["image_size"], settings["fps"]
        robot = replace(kitchen, cameras=tuple(Camera(camera.name, height, width) for camera in kitchen.cameras))
    except (KeyError, TypeError, ValueError, EmbodimentError):
        raise DatasetError(f"{path}: damaged; record to another folder") from None
    if fps != kitchen.control_hz:
        raise DatasetError(
            f"{path.parent} was recorded at {fps} Hz, not {kitchen.control_hz:g}; record to another folder"
        )
    return robot


def _refuse_other_things(folder: Path) -> None:
    if not folder.exists() or (folder / SETTINGS).is_file():
        return
    known = (corrections.FILE,)
    if other := sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.name not in known):
        raise DatasetError(
            f"{folder} holds something else than recordings ({', '.join(other[:3])}); record to a new folder"
        )
