"""Where a camera sees the robot's hand: at what moves from one frame to the next, on the whole.

A line through many such places says roughly which state belongs to which place of the image. That is enough for eyes
that point to begin with (`saycan_qt.networks.pointing`), and asks for no calibrated camera.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

FRAMES = 3000  # pairs that are looked at, at most
AT_ONCE = 2**20  # pixels


def places_of_states(
    cameras: Mapping[str, np.ndarray], states: np.ndarray, frame_episode: np.ndarray, seed: int = 0
) -> np.ndarray:
    """cameras: each (N, H, W, 3) uint8; states (N, S), in deviations -> (cameras, S, 3): the state as 1, x and y of
    where something moves, both in [-1, 1], tell it best in squares; the mean state alone where nothing moves."""
    pairs = np.flatnonzero(frame_episode[1:] == frame_episode[:-1])
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(pairs, min(FRAMES, len(pairs)), replace=False)) if len(pairs) else pairs
    if len(rows) < 3:
        return np.zeros((len(cameras), states.shape[1], 3), np.float32)
    found = []
    for images in cameras.values():
        parts = -(-len(rows) // max(1, AT_ONCE // int(np.prod(images.shape[1:3]))))
        centres = np.concatenate([moving(images, some) for some in np.array_split(rows, parts)])
        told = np.column_stack([np.ones(len(rows)), centres])
        found.append(np.linalg.lstsq(told, np.asarray(states[rows], np.float64), rcond=1e-6)[0].T)
    return np.stack(found).astype(np.float32)


def moving(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n, 2), x and y in [-1, 1]: the centre of what changes from each of the rows to the next; (0, 0) if nothing."""
    before, after = (np.asarray(images[at], np.float32) for at in (rows, rows + 1))
    changed = np.square(after - before).sum(-1)
    ys, xs = (2 * (np.arange(n) + 0.5) / n - 1 for n in changed.shape[1:])
    everything = np.maximum(changed.sum(axis=(1, 2)), 1e-6)
    return np.column_stack([changed.sum(axis=1) @ xs, changed.sum(axis=2) @ ys]) / everything[:, None]
