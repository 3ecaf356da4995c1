"""What is wrong with a simulation: numbers that MuJoCo must not get, and its own warnings.

Left alone, MuJoCo appends its warnings to MUJOCO_LOG.TXT in the working folder, and sets a kitchen that became unstable
back to its start as if nothing had been.
"""

from __future__ import annotations

import logging

import mujoco
import numpy as np
from mujoco import mjtWarning

from saycan_qt.kitchen.embodiment import ACTION_NAMES

log = logging.getLogger(__name__)

FATAL = (mjtWarning.mjWARN_BADQPOS, mjtWarning.mjWARN_BADQVEL, mjtWarning.mjWARN_BADQACC, mjtWarning.mjWARN_BADCTRL)


class Unstable(RuntimeError):
    """The simulation gave up; nothing that is seen of this kitchen from now on means anything."""


def checked_action(action: np.ndarray) -> np.ndarray:
    """(8,) float64. Raises ValueError, naming the number, for one that is not finite; numbers out of range are fine."""
    values = np.asarray(action, float)
    if values.shape != (len(ACTION_NAMES),):
        raise ValueError(f"an action is {len(ACTION_NAMES)} numbers ({', '.join(ACTION_NAMES)}), not {values.shape}")
    if wrong := [f"{n} is {v}" for n, v in zip(ACTION_NAMES, values, strict=True) if not np.isfinite(v)]:
        raise ValueError(f"every number of an action must be finite: {', '.join(wrong)}")
    return values


def log_warnings() -> None:
    """MuJoCo's warnings go to the log from now on, unless somebody else in this process takes them already."""
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    log.warning("MuJoCo: %s", text)  # to raise in here would end the process: see check_stable


def check_stable(data: mujoco.MjData) -> None:
    """Raises Unstable once a state had a number that is not finite, or is far too large."""
    counts = data.warning.number
    for kind in FATAL:
        if counts[kind]:
            reason = mujoco.mju_warningText(kind, data.warning[kind].lastinfo)
            raise Unstable(f"this kitchen cannot be simulated any further, start another: {reason}")
