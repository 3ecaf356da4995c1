"""Statistics of a dataset's numbers, as LeRobot's meta/stats.json has them, added up file after file.

Quantiles come from counts: how many values share their first sixteen bits as a float32, a bin no wider than 0.8 % of
the value. They take little space however many values there are, and are the same in whatever order these came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}  # estimated: within the true one's bin
MOST_BINS = 2**16


@dataclass(frozen=True)
class Bins:
    """How many values of one dimension lie in each bin; bins in the order of their values."""

    keys: np.ndarray  # (B,) int64: the first 16 bits, without the sign; those of negative values counted down from -1
    counts: np.ndarray  # (B,) int64

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """values: (N,)."""
        bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0 becomes 0
        size = ((bits & 0x7FFFFFFF) >> 16).astype(np.int64)
        return cls(*np.unique(np.where(bits >> 31, -1 - size, size), return_counts=True))

    def plus(self, other: Self) -> Self:
        keys, place = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
        return type(self)(keys, counts)

    def quantiles(self, low: float, high: float) -> list[float]:
        """Those of QUANTILES; low, high: the least and the greatest value."""
        ends, found = np.cumsum(self.counts), []
        for share in QUANTILES.values():
            rank = round(share * (int(ends[-1]) - 1))
            bin = int(np.searchsorted(ends, rank, "right"))
            first, last = np.clip(_edges(int(self.keys[bin])), low, high)
            within = (rank - (ends[bin] - self.counts[bin]) + 0.5) / self.counts[bin]
            found.append(float(np.clip(first + within * (last - first), first, last)))
        return found

    def to_text(self) -> str:
        return " ".join(f"{key}:{count}" for key, count in zip(self.keys.tolist(), self.counts.tolist(), strict=True))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError."""
        pairs = np.array([part.split(":") for part in text.split()][:MOST_BINS], np.int64)
        keys, counts = pairs.T if pairs.ndim == 2 and pairs.shape[1] == 2 else (np.zeros(0), np.zeros(0))
        if not len(keys) or (np.diff(keys) <= 0).any() or np.abs(keys).max() > 2**15 or counts.min() < 1:
            raise ValueError(f"{text[:50]!r} counts nothing")
        return cls(keys, counts)


def _edges(key: int) -> tuple[float, float]:
    """Of a bin: the least value, and the one where the next begins."""
    size = key if key >= 0 else -1 - key
    if size == 0:
        return 0.0, 0.0
    near, far = np.array([size << 16, (size + 1) << 16], np.uint32).view(np.float32).tolist()
    return (near, far) if key >= 0 else (-far, -near)


@dataclass(frozen=True)
class Summary:
    """Of all values (N, D) of a feature so far, for each of its dimensions."""

    low: np.ndarray  # (D,) float64
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    count: int
    bins: tuple[Bins, ...]  # none where a dataset was begun before they were counted; then there are no quantiles

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """values: (N, D)."""
        low, high = values.min(0).astype(np.float64), values.max(0).astype(np.float64)
        mean, std = values.mean(0, dtype=np.float64), np.sqrt(values.var(0, dtype=np.float64))
        return cls(low, high, mean, std, len(values), tuple(Bins.of(column) for column in values.T))

    def plus(self, other: Self) -> Self:
        n, total = float(self.count), float(self.count + other.count)
        shift = other.mean - self.mean
        variance = (n * self.std**2 + other.count * other.std**2 + shift**2 * n * other.count / total) / total
        return type(self)(
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
            mean=self.mean + shift * other.count / total,
            std=np.sqrt(variance),
            count=self.count + other.count,
            bins=tuple(a.plus(b) for a, b in zip(self.bins, other.bins, strict=True)) if self.bins else (),
        )

    def to_json(self, shape: Sequence[int] = (-1,)) -> dict[str, list[Any]]:
        """As meta/stats.json has it. shape: of each statistic but the count; images' is (3, 1, 1)."""
        each = {"min": self.low, "max": self.high, "mean": self.mean, "std": self.std}
        if self.bins:
            columns = [bins.quantiles(*ends) for bins, *ends in zip(self.bins, self.low, self.high, strict=True)]
            each |= dict(zip(QUANTILES, np.array(columns).T, strict=True))
        return {name: values.reshape(shape).tolist() for name, values in each.items()} | {"count": [self.count]}

    @classmethod
    def parse(cls, stats: Mapping[str, Any], counted: Sequence[str]) -> Self:
        """What `to_json` said, and each dimension's bins. Raises ValueError, KeyError or TypeError."""
        low, high, mean, std = (np.array(stats[key], np.float64).reshape(-1) for key in ("min", "max", "mean", "std"))
        return cls(low, high, mean, std, int(stats["count"][0]), tuple(Bins.parse(text) for text in counted))
