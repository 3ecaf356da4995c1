"""Pictures of what was measured.

    python -m saycan_qt.figures training runs/clone                    # writes runs/clone/training.png
    python -m saycan_qt.figures training runs/clone runs/actor --out curves.png
    python -m saycan_qt.figures values --skill "pick coke can"         # writes values.png
    python -m saycan_qt.figures improve runs/better                    # writes runs/better/curve.png
    python -m saycan_qt.figures pointing --data data/shown             # writes pointing.png

training: every number of one or several runs over their steps, and the same on held-out episodes. values: what a skill
is worth wherever its object might stand, drawn over the camera image [Figure 8]. improve: success after so many own
episodes of `python -m saycan_qt.improve`, with 95 % intervals; hollow is what was tried and not kept. pointing: where
eyes that learn from pixels look for what is said, in episodes they did not learn from, and how far off they are.
Needs matplotlib (`pip install 'saycan-qt[train]'`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from saycan_qt.data.episodes import DatasetError
from saycan_qt.learning import metrics
from saycan_qt.options import Command, dispatch
from skills import files
from skills.errors import SkillError

HELD_OUT = "held_out_"
HIDDEN = ("seconds", "epochs", "step", "samples_per_second")


@dataclass(frozen=True)
class TrainingConfig:
    """Curves of training runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]  # folders of `python -m saycan_qt.train`
    out: Path | None = None  # picture to write, PNG, SVG or PDF; default: training.png in the first run's folder


def curves(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of each number; of lists, with one number for each action dimension, their mean."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key in HIDDEN:
                continue
            steps, values = found.setdefault(key, ([], []))
            steps.append(row["step"])
            values.append(sum(value) / len(value) if isinstance(value, list) else value)
    return found


def training(config: TrainingConfig) -> int:
    """Draws the picture and says where it lies. Raises ValueError for a folder without metrics."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if not config.runs:
        raise ValueError("give one or more --out folders of `python -m saycan_qt.train`")
    runs = {}
    for run in config.runs:
        if not (run / metrics.FILE).exists():
            raise ValueError(f"{run}: no {metrics.FILE} in it; give the --out folder of `python -m saycan_qt.train`")
        if not (rows := metrics.read(run)):
            raise ValueError(f"{run}: nothing has been measured yet; the first numbers come after --log-every steps")
        runs[run] = curves(rows)
    alike = len({run.name for run in runs}) < len(runs)
    names = list(dict.fromkeys(key.removeprefix(HELD_OUT) for found in runs.values() for key in found))
    if not names:
        raise ValueError(f"{', '.join(map(str, runs))}: no numbers to draw yet")
    columns = min(3, len(names))
    figure, axes = plt.subplots(math.ceil(len(names) / columns), columns, squeeze=False, layout="constrained")
    figure.set_size_inches(4.5 * columns, 2.8 * len(axes))
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for name, axis in zip(names, axes.flat, strict=False):
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        for number, (run, found) in enumerate(runs.items()):
            label = (str(run) if alike else run.name) if len(runs) > 1 else "training"
            if name in found:
                axis.plot(*found[name], color=f"C{number}", alpha=0.6, linewidth=1, label=label)
            if HELD_OUT + name in found:
                style = {"marker": "o", "markersize": 3, "linestyle": "--"}
                axis.plot(*found[HELD_OUT + name], color=f"C{number}", label=f"{label}, held out", **style)
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=7)
    out = config.out or config.runs[0] / "training.png"
    figure.savefig(out, dpi=110)
    plt.close(figure)
    print(out)
    return 0


def values() -> Command:
    from saycan_qt.evaluation import value_map

    return value_map.ValuesConfig, value_map.values


def pointing() -> Command:
    from saycan_qt.evaluation import pointing_map

    return pointing_map.PointingPictures, pointing_map.pointing


@dataclass(frozen=True)
class ImproveConfig:
    """Success against own episodes."""

    run: tyro.conf.Positional[Path]  # folder of `python -m saycan_qt.improve`
    out: Path | None = None  # picture to write, PNG, SVG or PDF; default: curve.png in that folder


def improve(config: ImproveConfig) -> int:
    """Draws the picture and says where it lies. Raises ValueError for a folder without a curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    path = config.run / "curve.json"
    if not path.exists():
        raise ValueError(f"{config.run}: no {path.name} in it; `python -m saycan_qt.improve` writes it when it ends")
    found = files.read_json(path)
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for number, (arm, points) in enumerate(found["curves"].items()):
        style: dict[str, Any] = {"color": f"C{number}", "capsize": 3}
        episodes, in_use = [p["own_episodes"] for p in points], [p["in_use"] for p in points]
        rates = [p["rate"] for p in in_use]
        below, above = [p["rate"] - p["low"] for p in in_use], [p["high"] - p["rate"] for p in in_use]
        axis.errorbar(episodes, rates, [below, above], marker="o", label=arm, **style)
        left = [(p["own_episodes"], p["candidate"]["rate"]) for p in points if p.get("kept") is False]
        axis.plot(*zip(*left, strict=True), "o", fillstyle="none", color=f"C{number}") if left else None
    share = found["settings"]["help_by_expert"]
    axis.set_xlabel("own episodes" + (f", {share:.0%} of them finished by the expert" if share else ""))
    axis.set_ylabel("success in held-out scenes")
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
    axis.legend()
    out = config.out or config.run / "curve.png"
    figure.savefig(out, dpi=110)
    plt.close(figure)
    print(out)
    return 0


def main(arguments: list[str] | None = None) -> int:
    commands: dict[str, Callable[[], Command]] = {
        "training": lambda: (TrainingConfig, training),
        "values": values,
        "improve": lambda: (ImproveConfig, improve),
        "pointing": pointing,
    }
    try:
        return dispatch("python -m saycan_qt.figures", __doc__, commands, arguments)
    except ImportError as error:
        print(f"error: {error}; `pip install 'saycan-qt[train]'` brings what pictures need", file=sys.stderr)
    except (ValueError, OSError, DatasetError, SkillError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
