"""Training that has come to numbers which are not finite ends, and what it has learnt before stays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from saycan_qt import atomic
from saycan_qt.learning.distributed import mean

MARK = "diverged.json"  # in a run's folder: it may go on with another learning rate


class Diverged(ValueError):
    """Says what was not finite, at which step, and how to go on."""


def require_finite(what: str, number: Tensor | float, step: int, out: Path) -> None:
    """Raises Diverged in all processes that train together, if the number of one of them is not finite."""
    shared = float(mean(torch.as_tensor(number).detach().float()))
    if not math.isfinite(shared):
        atomic.write(out / MARK, atomic.to_json({"what": what, "step": step}))
        raise Diverged(
            f"{what} is {shared} at step {step}: training has diverged, and ends; {out} keeps what was before, from "
            "which the same command goes on with a smaller --learning-rate"
        )


def require_finite_weights(weights: Iterable[Tensor], step: int, out: Path) -> None:
    """The same of weights, before they are kept."""
    largest = [weight.detach().abs().max() for weight in weights if weight.numel()]
    require_finite("a weight", torch.stack(largest).max() if largest else 0.0, step, out)


def has_diverged(out: Path) -> bool:
    return (out / MARK).exists()


def forget(out: Path) -> None:
    """Another learning rate has led on from there."""
    (out / MARK).unlink(missing_ok=True)
