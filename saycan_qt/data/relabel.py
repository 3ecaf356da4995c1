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
) -> tuple[np.ndarray, np.ndarray]:
    """Give a random `share` of episodes another task, uniform among those of another meaning, and reward 0.

    task_ids, success: (N,); both returned as new arrays. meanings: (num_tasks,), tasks of one meaning have equal
    numbers ("pick coke can", "grasp coke can"); all differ when None.
    """
    meaning = np.arange(num_tasks) if meanings is None else np.unique(np.asarray(meanings), return_inverse=True)[1]
    if len(meaning) != num_tasks or not np.all((task_ids >= 0) & (task_ids < num_tasks)):
        raise ValueError(f"tasks and meanings must be numbered 0 to {num_tasks - 1}")
    task_ids, success = np.array(task_ids), np.array(success)
    chosen = rng.random(len(task_ids)) < share
    order = np.argsort(meaning, kind="stable")  # tasks of one meaning stand together
    begin = np.searchsorted(meaning[order], meaning[task_ids])
    count = np.bincount(meaning)[meaning[task_ids]]
    if np.any(num_tasks - count[chosen] == 0):
        raise ValueError("relabelling needs tasks of more than one meaning")
    place = rng.integers(np.maximum(num_tasks - count, 1))  # among the others; one draw each, chosen or not
    other = order[np.where(place >= begin, place + count, place) % num_tasks]
    task_ids[chosen] = other[chosen]
    success[chosen] = False
    return task_ids, success
