"""Relabelling: an episode seen as a failed try at some other task [Q-Transformer, app. G]."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def relabel(
    task_ids: np.ndarray,
    success: np.ndarray,
    rng: np.random.Generator,
    share: float,
    num_tasks: int,
    meanings: ArrayLike | None = None,
    pool: ArrayLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Give a random `share` of episodes another task, drawn from those of another meaning, and reward 0.

    task_ids, success: (N,); both returned as new arrays. meanings: (num_tasks,), tasks of one meaning have equal
    numbers ("pick coke can", "grasp coke can"); all differ when None. pool: task ids to draw from, evenly; pass the
    tasks of all episodes to draw each as often as it occurs. All tasks once when None.
    """
    meaning = np.arange(num_tasks) if meanings is None else np.unique(np.asarray(meanings), return_inverse=True)[1]
    candidates = np.arange(num_tasks) if pool is None else np.asarray(pool)
    for ids in (task_ids, candidates):
        if len(meaning) != num_tasks or not np.all((ids >= 0) & (ids < num_tasks)):
            raise ValueError(f"tasks and meanings must be numbered 0 to {num_tasks - 1}")
    task_ids, success = np.array(task_ids), np.array(success)
    chosen = rng.random(len(task_ids)) < share
    candidates = candidates[np.argsort(meaning[candidates], kind="stable")]  # those of one meaning stand together
    begin, end = (np.searchsorted(meaning[candidates], meaning[task_ids], side) for side in ("left", "right"))
    count = end - begin
    if np.any(len(candidates) - count[chosen] == 0):
        raise ValueError("relabelling needs tasks of more than one meaning")
    place = rng.integers(np.maximum(len(candidates) - count, 1))  # among the others; one draw each, chosen or not
    other = candidates[np.where(place >= begin, place + count, place) % len(candidates)]
    task_ids[chosen] = other[chosen]
    success[chosen] = False
    return task_ids, success
