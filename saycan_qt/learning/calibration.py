"""A value becomes a probability of success: a rising curve, fitted on scenes of its own, beside a checkpoint.

    curve = calibration.load("runs/critic/checkpoint")
    curve.calibrated(values)                              # (N,) in [0, 1], in the order of the values

`python -m saycan_qt.evaluate affordance --calibrate isotonic` makes it, `python -m saycan_qt.serve --calibrated` uses
it. It lies in `<checkpoint>.calibration.json`, outside of the folder whose manifest lists every file, and names the
weights it was fitted to: beside others it is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saycan_qt import atomic
from saycan_qt.learning import checkpoint
from skills import files

FORMAT = "saycan-qt calibration 1"
Method = Literal["isotonic", "temperature"]
TIE_BREAK = 0.001  # an isotonic curve has flat steps; this share of the value itself keeps the order within them
EDGE = 1e-6  # values are kept this far from 0 and 1 where their logit is taken
TEMPERATURES = np.geomspace(0.02, 50, 2001)  # that are tried


class CalibrationError(Exception):
    """A calibration that is missing, damaged, or of other weights: file and reason."""


@dataclass(frozen=True)
class Calibration:
    """A rising curve from [0, 1] to [0, 1]."""

    method: Method
    temperature: float = 1.0  # of "temperature": sigmoid(logit(value) / temperature) [Guo et al. 2017]
    knots: tuple[tuple[float, float], ...] = ((0.0, 0.0), (1.0, 1.0))  # of "isotonic": value and probability
    provenance: Mapping[str, Any] = field(default_factory=dict)  # the weights, the data and what came of it

    def calibrated(self, values: np.ndarray) -> np.ndarray:
        """Probabilities, float64, of values of any shape."""
        values = np.clip(np.asarray(values, np.float64), 0.0, 1.0)
        if self.method == "temperature":
            return 1 / (1 + np.exp(-_logit(values) / self.temperature))
        at, probabilities = np.array(self.knots).T
        return (1 - TIE_BREAK) * np.interp(values, at, probabilities) + TIE_BREAK * values


def fit(method: Method, labels: np.ndarray, values: np.ndarray, weights: np.ndarray) -> Calibration:
    """Of pairs of any shape. Isotonic follows any rising curve and wants some hundred pairs of either class;
    a temperature is one number, the one of the least log loss, and leaves 0.5 where it is."""
    y, v, w = labels.ravel().astype(float), np.clip(values.ravel().astype(float), 0.0, 1.0), weights.ravel()
    if method == "temperature":
        x = _logit(v)
        losses = [float(w @ (np.logaddexp(0.0, x / t) - y * x / t)) for t in TEMPERATURES]
        return Calibration(method, temperature=float(TEMPERATURES[int(np.argmin(losses))]))
    from sklearn.isotonic import IsotonicRegression

    curve = IsotonicRegression(y_min=0.0, y_max=1.0).fit(v, y, sample_weight=w)
    knots = zip(curve.X_thresholds_.tolist(), curve.y_thresholds_.tolist(), strict=True)
    return Calibration(method, knots=tuple(knots))


def beside(folder: Path) -> Path:
    """Where the calibration of a checkpoint's folder lies."""
    return folder.with_name(f"{folder.name}.calibration.json")


def save(curve: Calibration, folder: Path, provenance: Mapping[str, Any]) -> Path:
    """Beside the checkpoint in `folder`, replacing what was there. Returns where. Raises CalibrationError."""
    shape = {"temperature": curve.temperature} if curve.method == "temperature" else {"knots": curve.knots}
    own = {"format": FORMAT, "method": curve.method, **shape, "checkpoint": checkpoint.digest(folder)}
    content = own | {name: value for name, value in provenance.items() if name not in own}
    try:
        atomic.write(beside(folder), atomic.to_json(content))
    except OSError as error:
        copied = "copy the checkpoint's folder to where you may write, and calibrate the copy"
        raise CalibrationError(f"{beside(folder)}: cannot be written ({error.strerror}); {copied}") from None
    return beside(folder)


def load(name_or_path: str | Path) -> Calibration:
    """The calibration of a shipped checkpoint or a folder. Raises CalibrationError or CheckpointError."""
    folder = checkpoint.resolve(name_or_path)
    path = beside(folder)
    make = f"`python -m saycan_qt.evaluate affordance --calibrate isotonic --checkpoint {name_or_path} --data DIR`"
    if not path.exists():
        raise CalibrationError(f"{path}: there is none; {make} makes it")
    try:
        content = files.read_json(path, files.SMALL)
        if content["format"] != FORMAT:
            raise CalibrationError(f"{path}: format {content['format']!r}, not {FORMAT!r}; {make} makes it again")
        curve = _read(content)
        if content["checkpoint"] != checkpoint.digest(folder):
            raise CalibrationError(f"{path}: fitted to other weights than those of {folder} now; {make} fits it again")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise CalibrationError(f"{path}: damaged ({type(error).__name__}: {error}); {make} makes it again") from None
    return curve


def _read(content: Mapping[str, Any]) -> Calibration:
    """Raises ValueError, KeyError or TypeError where this is no rising curve within [0, 1]."""
    method = content["method"]
    if method == "temperature":
        temperature = float(content["temperature"])
        if not 0 < temperature < np.inf:
            raise ValueError(f"the temperature is {temperature}")
        return Calibration(method, temperature, provenance=dict(content))
    if method != "isotonic":
        raise ValueError(f"no method {method!r}")
    knots = tuple((float(at), float(probability)) for at, probability in content["knots"])
    rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(knots))
    if not knots or not rising or not all(0 <= number <= 1 for knot in knots for number in knot):
        raise ValueError("the knots do not rise within 0 to 1")
    return Calibration(method, knots=knots, provenance=dict(content))


def _logit(values: np.ndarray) -> np.ndarray:
    kept = np.clip(values, EDGE, 1 - EDGE)
    return np.log(kept) - np.log1p(-kept)
