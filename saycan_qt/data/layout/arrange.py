"""The numbers of one recorded episode as training wants them: cut where the task changes, and at one rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from saycan_qt.data.layout.columns import Columns, Numbers
from saycan_qt.data.layout.mapping import LAST
from saycan_qt.data.layout.settle import Layout
from saycan_qt.data.lerobot import BadEpisode
from skills.embodiment import TERMINATE_THRESHOLD, Embodiment

TOLERANCE = 0.01  # on the fractions 0..1: sensors and float16 overshoot a little


@dataclass(frozen=True)
class Part:
    """What becomes one episode, and which frames of the recorded one it belongs to."""

    task: str
    frames: slice  # those that are seen; steps are `Layout.every` frames apart
    last: int  # the last frame of the part, used or not: its outcome is read there
    states: np.ndarray  # (t, S) float32
    actions: np.ndarray  # (t, D) float32
    rewards: np.ndarray | None  # (t,) float32
    truncated: bool


def parts(
    layout: Layout, numbers: Numbers, tasks: Sequence[str], truncated: bool, rewards: np.ndarray | None = None
) -> Iterator[Part]:
    """tasks: (T,) of each frame; truncated: the dataset says that the time limit cut the episode; rewards: (T,).

    Where the task changes, a part ends there: it terminates. What was earned after the terminating frame counts for
    that frame. Raises BadEpisode."""
    length = len(tasks)
    empty = np.zeros((length, 0), np.float32)
    states = np.concatenate([empty, *(entry.take(numbers) for entry in layout.state)], axis=1)
    actions = np.concatenate([entry.take(numbers) for entry in layout.action], axis=1)[:, list(layout.kept)]
    ends = layout.terminate.take(numbers)[:, 0] > TERMINATE_THRESHOLD if isinstance(layout.terminate, Columns) else None
    changes = [frame for frame in range(1, length) if tasks[frame] != tasks[frame - 1]]
    for start, stop in zip([0, *changes], [*changes, length], strict=True):
        changed = stop < length  # into another task
        first, end = start + (layout.skip_first if start == 0 else 0), stop
        cut = truncated and not changed
        acted = actions[start:stop].copy()
        if ends is not None:
            here = ends[start:stop].copy()
            here[-1:] |= changed
            cut, end = not here.any(), start + int(here.argmax()) + 1 if here.any() else stop
            acted = np.concatenate([acted, here[:, None]], axis=1, dtype=np.float32)
        elif layout.terminate == LAST:
            acted = np.concatenate([acted, np.zeros((stop - start, 1), np.float32)], axis=1)
            acted[-1:, -1] = not cut
        elif changed and layout.embodiment.terminate is not None:
            acted[-1, layout.embodiment.terminate] = 1
        acted = acted[first - start : end - start]
        if not len(acted):
            raise BadEpisode(f"none of its {length} frames is left between `skip_first` and the terminating one")
        if not layout.trusted:
            _check_fractions(acted, layout.embodiment)
        earned = None
        if rewards is not None:
            earned = np.append(rewards[first : end - 1], rewards[end - 1 : stop].sum()).astype(np.float32)
        begins = np.arange(0, len(acted), layout.every)
        yield Part(
            task=tasks[start],
            frames=slice(first, end, layout.every),
            last=stop - 1,
            states=states[first : end : layout.every],
            actions=_in_steps(acted, begins, layout.embodiment),
            rewards=None if earned is None else np.add.reduceat(earned, begins),
            truncated=cut,
        )


def _in_steps(actions: np.ndarray, begins: np.ndarray, embodiment: Embodiment) -> np.ndarray:
    """(T, D) of frames -> (t, D) of steps: changes add up, the rest is as at the step's end; any end ends the step.

    begins: (t,) the first frame of each step."""
    if len(begins) == len(actions):
        return actions
    kinds = np.array([dimension.kind for dimension in embodiment.action])
    steps = actions[np.append(begins[1:], len(actions)) - 1]
    steps[:, kinds == "delta"] = np.add.reduceat(actions, begins)[:, kinds == "delta"]
    steps[:, kinds == "terminate"] = np.maximum.reduceat(actions, begins)[:, kinds == "terminate"]
    return steps


def _check_fractions(actions: np.ndarray, embodiment: Embodiment) -> None:
    for dimension, values in zip(embodiment.action, actions.T, strict=True):
        if dimension.kind not in ("fraction", "terminate"):
            continue
        wrong = np.flatnonzero((values < -TOLERANCE) | (values > 1 + TOLERANCE))
        if len(wrong):
            hint = "`terminate`" if dimension.kind == "terminate" else "`invert: true`, `relative: true` or a `scale`"
            raise BadEpisode(
                f"{dimension.name} is {values[wrong[0]]:.3g} at step {wrong[0]}, not within 0 to 1; does the mapping "
                f"lack {hint}, or `kinds: {{{dimension.name}: absolute}}`?"
            )
