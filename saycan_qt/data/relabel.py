"""Relabelling: an episode seen as a failed try at some other task [Q-Transformer, app. G]."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from skills.library import Skill

POSSIBLE = "possible"  # in an episode's info: the tasks that could have been carried out where it began, one a line
FILLERS = {"a", "an", "the", "up", "please"}


def lines(tasks: Iterable[str]) -> str:
    """Tasks as POSSIBLE holds them."""
    return "\n".join(tasks)


def possible_tasks(notes: Sequence[str], tasks: Sequence[str]) -> np.ndarray:
    """(E, len(tasks)) bool, of each episode's POSSIBLE."""
    noted = [set(note.split("\n")) for note in notes]
    return np.array([[task in possible for task in tasks] for possible in noted], bool).reshape(len(notes), len(tasks))


def meanings(tasks: Sequence[str], skills: Iterable[Skill] = ()) -> np.ndarray:
    """(N,) int64, equal for tasks that mean the same: the name and the text of one of `skills`, and words that differ
    in case, punctuation, articles or an "up" ("Pick up the coke can.", "pick coke can")."""

    def plain(text: str) -> str:
        return " ".join(word for word in re.findall(r"[^\W_]+", text.lower()) if word not in FILLERS)

    same = {plain(skill.text): plain(skill.name) for skill in skills}
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(same.get(plain(t), plain(t)), len(numbers)) for t in tasks], np.int64)


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


def relabel_impossible(
    task_ids: np.ndarray,
    success: np.ndarray,
    rng: np.random.Generator,
    share: float,
    possible: np.ndarray,
    meanings: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """As `relabel`, with tasks that were impossible where the episode began, all of them as often as each other.

    Departs from the paper, which draws from all episodes' tasks and so calls some a failure that would have succeeded:
    here somebody who knew has noted what was possible. Each task alike, since planners ask about every skill.

    task_ids, success (N,); possible (N, num_tasks) bool; meanings (num_tasks,). An episode to which everything was
    possible keeps its own task."""
    task_ids, success = np.array(task_ids), np.array(success)
    chosen, luck = rng.random(len(task_ids)) < share, rng.random(len(task_ids))
    others = ~possible & (meanings[None] != meanings[task_ids][:, None])
    ranks = others.cumsum(axis=1)
    count = ranks[:, -1]
    other = (ranks > np.floor(luck * count)[:, None]).argmax(axis=1)
    chosen &= count > 0
    task_ids[chosen] = other[chosen]
    success[chosen] = False
    return task_ids, success
