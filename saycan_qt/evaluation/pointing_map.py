"""Where do eyes that learn from pixels point? `python -m saycan_qt.figures pointing` draws it over recorded images, and
tells how far what they foretell is from what happened.

For each robot whose policy has such eyes (`train --preset compact`, `saycan_qt.networks.pointing`), in episodes that it
was not trained on: at their beginnings, where nothing is under way yet that would give the goal away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from saycan_qt.options import Folder, require

if TYPE_CHECKING:
    from saycan_qt.data.episodes import EpisodeDataset
    from saycan_qt.learning.algorithms.policy import Policy

EVENTS = ("gripper ↑", "gripper ↓", "end")  # its number rises, or falls; as `next_events` and the tokens have them
SIDE = 3.0  # [inches] of a picture
COLUMNS = 4
PICTURES = (".png", ".svg", ".pdf")
LETTERS = 40  # of a line above a picture


@dataclass(frozen=True)
class PointingPictures:
    """Where eyes that point look, and how far off they are."""

    data: tuple[Path, ...]  # all the episodes that it was trained on, as `train --data`, to know which it was not
    checkpoint: str = "execution-pixels"  # a shipped checkpoint's name, or a folder
    mapping: str = ""  # of the data, as `train --mapping`
    cache: Folder = None  # of the decoded frames, as `train --cache`
    rate: float = 0.0  # [Hz] of the data, as `train --rate`
    pictures: int = 12
    episodes: int = 300  # held-out ones that are counted, at most
    threads: int = 2  # that the model may use
    out: Path = Path("pointing.png")  # picture to write, PNG, SVG or PDF


@dataclass(frozen=True)
class Pointed:
    """At the first frames of E episodes, where the tokens of K events point."""

    rows: np.ndarray  # (E,) the frames
    texts: list[str]  # instructions
    attention: np.ndarray  # (E, K, cameras, h, w), sums to 1 over all cameras
    foretold: np.ndarray  # (E, K, S) states, in their units
    happened: np.ndarray  # (E, K, S)
    to_come: np.ndarray  # (E, K) bool


def pointed(policy: Policy, dataset: EpisodeDataset, episodes: Sequence[int]) -> Pointed:
    """Raises ValueError for a policy whose eyes do not point, or of another robot."""
    import torch

    from saycan_qt.learning.batches import next_events
    from saycan_qt.networks.pointing import PointingEncoder

    eyes = policy.network.encoder
    if not isinstance(eyes, PointingEncoder) or eyes.errors is None:
        raise ValueError(
            "this policy's eyes were not taught to point; those of `train rt1` and `train q-transformer` with --preset "
            "compact are, of a robot with a state"
        )
    if problem := policy.embodiment.misfit(dataset.embodiment):
        hz = policy.embodiment.control_hz
        hint = f"; --rate {hz:g} brings the data to its rate" if 0 < hz < dataset.embodiment.control_hz else ""
        raise ValueError(f"the checkpoint is of another robot than the data: {problem}{hint}")
    count, rows = len(eyes.errors), np.asarray(dataset.episode_start)[list(episodes)]
    texts = [dataset.tasks[dataset.episode_task[episode]] for episode in episodes]
    seen = [dataset.cameras[camera.name] for camera in policy.embodiment.cameras]
    if (size := seen[0].shape[1:3]) != tuple(eyes.config.image):
        raise ValueError(f"the data's images are of {size} pixels, the checkpoint's of {tuple(eyes.config.image)}")
    looks, states = [], []
    for row, text in zip(rows, texts, strict=True):
        images = torch.from_numpy(np.stack([camera[row] for camera in seen]))
        words = policy.texts.encode([text])
        with torch.inference_mode():
            maps = eyes.perceive(images)[None]
            scores, _, _ = eyes.look(maps, words)  # (1, c, tokens, cells)
            likely = scores[0, :, :count].transpose(0, 1)
            share = likely.flatten(1).softmax(-1).view_as(likely)
            foretold = eyes.point(maps, words)[1][0, :, 0, :count]  # (c, K, S), by each camera
            told = (foretold * share.sum(-1).T[..., None]).sum(0) * eyes.scale + eyes.mean
        looks.append(share.unflatten(-1, maps.shape[-2:]).numpy())
        states.append(told.numpy())
    events = next_events(dataset)[rows, :count]
    return Pointed(
        rows, texts, np.stack(looks), np.stack(states), np.asarray(dataset.states[np.maximum(events, 0)]), events >= 0
    )


def pointing(config: PointingPictures) -> int:
    """Draws the picture, says where it lies, and prints the errors. Raises ValueError."""
    import torch

    from saycan_qt.data.episodes import EpisodeDataset
    from saycan_qt.learning import checkpoint
    from saycan_qt.learning.batches import kept_from_training

    require(config, pictures=1, episodes=1, threads=1)
    if not config.out.parent.is_dir() or config.out.suffix.lower() not in PICTURES:
        raise ValueError(f"--out {config.out}: a file in a folder that is there, which ends in {', '.join(PICTURES)}")
    torch.set_num_threads(config.threads)
    dataset = EpisodeDataset(config.data, cache=config.cache, mapping=config.mapping or None, rate=config.rate)
    policy = checkpoint.load(config.checkpoint)
    usable = np.asarray(dataset.success) & np.asarray(dataset.finished)
    chosen = np.flatnonzero(kept_from_training(usable) & usable)
    if not len(chosen):
        raise ValueError(f"{config.data[0]}: no second episode that succeeded, so that none was kept from training")
    some = np.linspace(0, len(chosen) - 1, min(config.episodes, len(chosen))).round().astype(int)
    found = pointed(policy, dataset, chosen[some].tolist())
    print(f"{'median error':<24}" + "".join(f"{event:>16}" for event in EVENTS))
    for number, state in enumerate(dataset.embodiment.state):
        shown = f"{state.name}{f' [{state.unit}]' if state.unit else ''}"
        errors = np.abs(found.foretold - found.happened)[..., number]
        medians = [np.median(e[t]) if t.any() else np.nan for e, t in zip(errors.T, found.to_come.T, strict=True)]
        print(f"{shown:<24}" + "".join(f"{median:>16.3f}" if median == median else f"{'-':>16}" for median in medians))
    print(f"{'episodes':<24}" + "".join(f"{count:>16}" for count in found.to_come.sum(0)))
    _draw(config, dataset, policy, found)
    print(config.out)
    return 0


def _draw(config: PointingPictures, dataset: EpisodeDataset, policy: Policy, found: Pointed) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = np.linspace(0, len(found.rows) - 1, min(config.pictures, len(found.rows))).round().astype(int)
    lines = -(-len(shown) // COLUMNS)
    figure, axes = plt.subplots(
        lines, COLUMNS, squeeze=False, layout="constrained", figsize=(SIDE * COLUMNS, SIDE * lines)
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, number in zip(axes.flat, shown, strict=False):
        event = int(found.to_come[number].argmax())  # the first kind there is to come
        look = found.attention[number, event]
        camera = int(look.sum(axis=(1, 2)).argmax())
        image = dataset.cameras[policy.embodiment.cameras[camera].name][found.rows[number]]
        height, width = image.shape[:2]
        extent: dict[str, Any] = {"extent": (0, width, height, 0)}
        axis.imshow(image, **extent)
        share = look[camera] / max(look[camera].max(), 1e-9)
        axis.imshow(share, cmap="magma", alpha=0.15 + 0.6 * share, interpolation="bilinear", **extent)
        axis.set_title(fill(f"{found.texts[number]} ({EVENTS[event]})", LETTERS), fontsize=8)
    figure.savefig(config.out, dpi=110)
    plt.close(figure)
