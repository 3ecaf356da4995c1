"""Random transitions of recorded episodes as tensors, with the images perceived once for all epochs and runs."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from saycan_qt import atomic
from saycan_qt.algorithms.policy import Batch, Policy
from saycan_qt.data.relabel import relabel
from saycan_qt.keypoints import POSITION, KeypointTrunk
from saycan_qt.tokens import TERMINATE
from skills.types import TERMINATE_THRESHOLD

HELD_OUT = 20  # every twentieth episode is kept for validation


class Episodes(Protocol):
    """What is needed of `saycan_qt.data.episodes.EpisodeDataset`."""

    images: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    frame_episode: np.ndarray
    episode_start: np.ndarray
    episode_task: np.ndarray
    success: np.ndarray
    tasks: list[str]
    digest: str


@dataclass(frozen=True)
class BatchConfig:
    """How batches are drawn."""

    batch_size: int = 512  # transitions
    relabel: float = 0.0  # share of transitions given another episode's task and reward 0 [Q-Transformer, app. G]
    jitter_common: float = 0.005  # [m] noise on the positions of all keypoints of a transition together (small preset)
    jitter_each: float = 0.003  # [m] and on each of them; about what perception gets wrong
    # Scripted demonstrations end standing exactly still. Told apart by that, the end would be chosen with the first
    # motion bin rather than with the terminate dimension, and too early: a sharp peak wins every arg max.
    terminal_motion: float = 0.015  # [m] noise on the motion of a terminating action; rotations get 6 times that in rad
    seed: int = 0


class Transitions:
    """The batch of a step depends on seed and step alone, so that a run can be repeated and resumed."""

    def __init__(self, config: BatchConfig, dataset: Episodes, frames: np.ndarray, policy: Policy) -> None:
        """frames (N, ...): perceived ones, or the dataset's images."""
        self.config, self.dataset, self.frames, self.policy = config, dataset, frames, policy
        self.text = policy.texts.encode(dataset.tasks)
        self.actions = torch.from_numpy(np.array(dataset.actions))
        self.states = torch.from_numpy(np.array(dataset.states))
        episode = np.asarray(dataset.frame_episode)
        self.first, self.last = dataset.episode_start[:-1][episode], dataset.episode_start[1:][episode] - 1
        self.success = np.asarray(dataset.success)[episode]
        self.task = np.asarray(dataset.episode_task)[episode]
        held_out = episode % HELD_OUT == HELD_OUT - 1
        usable = self.success if policy.only_successes else np.ones_like(held_out)
        self.train, self.validation = (np.flatnonzero(usable & part) for part in (~held_out, held_out))
        if not len(self.train):
            raise ValueError(f"{policy.name} has nothing to train on: none of the episodes succeeded")
        self._epoch: tuple[int, np.ndarray] = (-1, self.train)

    def rows(self, step: int) -> np.ndarray:
        """Frames of one step's batch; every epoch is a new permutation."""
        places = np.arange(step * self.config.batch_size, (step + 1) * self.config.batch_size)
        epochs = places // len(self.train)
        return np.concatenate([self._order(e)[places[epochs == e] % len(self.train)] for e in np.unique(epochs)])

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.train))
            self._epoch = (epoch, self.train[order])
        return self._epoch[1]

    def step_batch(self, step: int) -> Batch:
        """What step `step` trains on."""
        return self.batch(self.rows(step), np.random.default_rng([self.config.seed, step, 1]), augment=True)

    def batch(self, rows: np.ndarray, rng: np.random.Generator, augment: bool) -> Batch:
        device, history = self.policy.device, self.policy.network_config.history
        window = rows[:, None] + np.arange(1 - history, 2)  # t - h + 1 .. t + 1, within the episode
        window = np.clip(window, self.first[rows, None], self.last[rows, None])
        share, count, pool = self.config.relabel, len(self.dataset.tasks), self.dataset.episode_task
        tasks, success = relabel(self.task[rows], self.success[rows], rng, share, count, pool=pool)
        to_go = self.last[rows] - rows
        frames = torch.from_numpy(np.ascontiguousarray(self.frames[window]))
        if frames.dtype != torch.uint8:
            frames = frames.float()
            if augment:
                frames[..., POSITION] += torch.from_numpy(self.jitter(len(rows), frames.shape[2], rng))
        numbers = (success * (to_go == 0), to_go == 0, success * self.policy.discount**to_go, success)
        reward, terminated, returns, demonstrates = (torch.from_numpy(n.astype(np.float32)) for n in numbers)
        return Batch(
            frames=frames.to(device),
            states=self.states[window].to(device),
            text=self.text[torch.from_numpy(tasks)].to(device),
            tokens=self.tokens(rows, rng if augment else None).to(device),
            next_tokens=self.tokens(window[:, -1], rng if augment else None).to(device),
            reward=reward.to(device),
            terminated=terminated.to(device),
            returns=returns.to(device),
            demonstrates=demonstrates.to(device),
        )

    def tokens(self, rows: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        """(B, D) action bins; with a generator, terminating actions get `terminal_motion`."""
        actions = self.actions[rows]
        if rng is not None:
            noise = rng.normal(0, self.config.terminal_motion, (len(rows), 6)) * [1, 1, 1, 6, 6, 6]
            ends = actions[:, TERMINATE] > TERMINATE_THRESHOLD
            actions[ends, :6] += torch.from_numpy(noise.astype(np.float32))[ends]
        return self.policy.tokenizer.encode(actions)

    def jitter(self, count: int, keypoints: int, rng: np.random.Generator) -> np.ndarray:
        """(B, 1, K, 3) [m], the same for all frames of a transition."""
        common = rng.normal(0, self.config.jitter_common, (count, 1, 1, 3))
        return (common + rng.normal(0, self.config.jitter_each, (count, 1, keypoints, 3))).astype(np.float32)


def cached_features(folder: Path, dataset: Episodes, trunk: KeypointTrunk, device: str, bfloat16: bool) -> np.ndarray:
    """(N, K, numbers) float16 memory map in `folder`: each frame is perceived once for all epochs and runs."""
    digest = hashlib.sha256()
    for key, value in sorted(trunk.state_dict().items()):
        digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    path = folder / f"features-{digest.hexdigest()[:12]}-{dataset.digest[:12]}.npy"
    image = dataset.images.shape[1:3]
    if image != trunk.config.image:
        raise ValueError(f"the images are {image} (height, width), the trunk wants {trunk.config.image}")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.lock(folder / ".features.lock", wait=True):  # a second run waits, then finds them
        if not path.exists():
            _perceive(path, dataset, trunk, device, bfloat16)
    return np.load(path, mmap_mode="r")


def _perceive(path: Path, dataset: Episodes, trunk: KeypointTrunk, device: str, bfloat16: bool) -> None:
    count = len(dataset.images)
    temporary, start, shown = path.with_suffix(".tmp"), time.monotonic(), time.monotonic()
    shape = (count, trunk.config.keypoints, trunk.config.outputs)
    features = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
    for i in range(0, count, 128):
        images = torch.from_numpy(np.array(dataset.images[i : i + 128])).to(device)
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            features[i : i + 128] = trunk(images).numbers().half().cpu().numpy()
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            rate = i / (shown - start)
            left = (count - i) / rate / 60
            print(f"features: {i:,} of {count:,} frames, {rate:.0f} frames/s, {left:.1f} min left", flush=True)
    features.flush()
    temporary.replace(path)
