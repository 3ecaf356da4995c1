"""In which order transitions are drawn, in stretches of episodes, and which frames the windows of a stretch share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class Frames:
    """The frames of some episodes, numbered from 0; memory grows with the episodes, not with their frames."""

    def __init__(self, episode_start: np.ndarray, episodes: np.ndarray) -> None:
        self.first = np.asarray(episode_start)[episodes]
        lengths = np.asarray(episode_start)[episodes + 1] - self.first
        self.ends = np.cumsum(lengths)
        self.begins = self.ends - lengths

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """(N,) numbers below len(self) -> (N,) rows of the dataset."""
        episode = np.searchsorted(self.ends, numbers, "right")
        return self.first[episode] + numbers - self.begins[episode]


class Shuffle:
    """A random permutation of 0 .. count - 1 that is computed, not stored: a Feistel network over the numbers' bits,
    walked until it falls below `count` [Black and Rogaway 2002]."""

    ROUNDS = 6

    def __init__(self, count: int, seed: list[int]) -> None:
        self.count, self.half = count, max(1, (max(count - 1, 1).bit_length() + 1) // 2)
        self.keys = np.random.default_rng(seed).integers(1, 2**63, (self.ROUNDS, 2), dtype=np.uint64) | np.uint64(1)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """(N,) in 0 .. count - 1 -> (N,) int64, each its own."""
        found = self._mixed(np.asarray(numbers, np.uint64))
        while (outside := found >= self.count).any():
            found[outside] = self._mixed(found[outside])
        return found.astype(np.int64)

    def _mixed(self, numbers: np.ndarray) -> np.ndarray:
        half, mask = np.uint64(self.half), np.uint64((1 << self.half) - 1)
        left, right = numbers >> half, numbers & mask
        for multiplier, offset in self.keys:
            mixed = (right + offset) * multiplier  # wraps, as intended
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(29))) >> np.uint64(17) & mask)
        return left << half | right


class Order:
    """An epoch: 0 .. count - 1 cut, from a random place on, into stretches of `length`, these in random order; what is
    left over comes last. Computed, as a shuffle is; of length 1 it is one."""

    def __init__(self, count: int, length: int, seed: list[int]) -> None:
        self.count, self.length = count, max(1, min(length, count))
        self.shuffle = Shuffle(count // self.length, seed)
        self.begin = int(np.random.default_rng([*seed, 2]).integers(count)) if self.length > 1 else 0

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """(N,) in 0 .. count - 1 -> (N,) int64, each its own."""
        stretches, within = np.divmod(places, self.length)
        whole = stretches < self.shuffle.count
        stretches[whole] = self.shuffle(stretches[whole])
        return (stretches * self.length + within + self.begin) % self.count


@dataclass(frozen=True)
class Shared:
    """Windows (B, T) of frames, each of which is there once for all windows of its stretch."""

    rows: np.ndarray  # (U,) of the dataset
    stretch: np.ndarray  # (U,) which of the batch's stretches each is of
    places: np.ndarray  # (B, T) which of the U
    alone: tuple[int, int]  # how many, the first ones, windows at t alone hold; how many, the last ones, those at t + n

    @classmethod
    def of(cls, windows: np.ndarray, stretch: np.ndarray, shift: int) -> Shared:
        """windows (B, T) rows of the dataset, the last `shift` times of which windows at t do not hold, nor the first
        ones those at t + n; stretch (B,) numbers."""
        size = int(windows.max(initial=0)) + 1
        keys, places = np.unique(stretch[:, None] * size + windows, return_inverse=True)
        places = places.reshape(windows.shape)
        now, after = np.zeros((2, len(keys)), bool)
        now[places[:, : windows.shape[1] - shift]] = after[places[:, shift:]] = True
        order = np.argsort(np.where(now, after, 2), kind="stable")  # now alone, both, after alone
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        stretches, rows = np.divmod(keys[order], size)
        return cls(rows, stretches, place[places], (int((now & ~after).sum()), int((after & ~now).sum())))
