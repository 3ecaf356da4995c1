"""The keypoint trunk learns to see, and a small net which things an instruction names, from labelled frames.

It stands in for the paper's ImageNet pre-training of the image encoder.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saycan_qt.learning import checkpoint
from saycan_qt.learning.divergence import forget, require_finite
from saycan_qt.networks.keypoints import Grounding, Keypoints, KeypointTrunk, TrunkConfig
from saycan_qt.workers import carried_out
from skills.library import Skill

log = logging.getLogger(__name__)
STATE = "state"  # folder in a run's folder, to resume from
HEADING_WEIGHT = 0.3
SHARD = 500  # frames in one file and one process's task
Frames = dict[str, np.ndarray]
FRAME_KEYS = ("images", "heatmaps", "positions", "headings", "visible")


@dataclass(frozen=True)
class PretrainConfig:
    """Teach the keypoint trunk to see the kitchen."""

    out: Path  # folder of the run; the checkpoint is written to it
    init: Path | None = None  # a perception checkpoint to go on from, such as the one that ships
    frames: int = 16000  # labelled frames, held-out ones included
    # Share of the frames from where planners ask for affordances: scenes of all kinds, the arm at rest before them. The
    # others are of skills being carried out
    asked: float = 0.0
    epochs: int = 24  # passes over the frames
    batch_size: int = 64  # frames
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    position_weight: float = 0.1  # of the position error [cm] beside the heatmaps' cross-entropy
    held_out: float = 0.08  # share of frames kept for the report
    seed: int = 0
    workers: int = 2  # processes that render frames
    threads: int = 2  # that train
    device: str = "cpu"
    debug: bool = False  # tiny, for tests
    look: Literal["target", "source"] = "target"  # of the kitchen, see `saycan_qt.kitchen.looks`
    trunk: TrunkConfig = field(default_factory=TrunkConfig)


def debug_config(config: PretrainConfig) -> PretrainConfig:
    trunk = replace(config.trunk, channels=(8, 8, 8, 8), blocks=(1, 1, 1), hidden=32)
    return replace(config, frames=min(config.frames, 64), epochs=2, batch_size=16, workers=1, threads=1, trunk=trunk)


# Frames


def gather(folder: Path, count: int, seed: int, workers: int, make: Callable[[int, int], Frames]) -> Frames:
    """`count` labelled frames, rendered by make(count, seed) in shards and several processes; shards already there are
    kept, if they are of this seed and this size. Raises SkillError where a process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [
        (folder / f"shard-{seed}-{i:04d}.npz", min(SHARD, count - i * SHARD), seed * 100_003 + i)
        for i in range(math.ceil(count / SHARD))
    ]
    missing = [shard for shard in shards if _frames_in(shard[0]) != shard[1]]
    start = time.monotonic()
    write = partial(_write_shard, make=make)
    if workers > 1 and len(missing) > 1:
        for done, _ in enumerate(carried_out(write, missing, workers), start=1):
            _report_gathering(done, missing, start)
    else:
        for done, shard in enumerate(missing, start=1):
            write(shard)
            _report_gathering(done, missing, start)
    parts = [np.load(path) for path, _, _ in shards]
    return {key: np.concatenate([part[key] for part in parts]) for key in FRAME_KEYS}


def _frames_in(shard: Path) -> int:
    if not shard.exists():
        return 0
    with np.load(shard) as there:
        return len(there["visible"])


def _write_shard(shard: tuple[Path, int, int], make: Callable[[int, int], Frames]) -> None:
    path, count, seed = shard
    temporary = path.with_suffix(".tmp.npz")
    arrays: dict[str, Any] = make(count, seed)
    np.savez(temporary, **arrays)
    temporary.replace(path)


def _report_gathering(done: int, missing: Sequence[Any], start: float) -> None:
    left = (time.monotonic() - start) / done * (len(missing) - done)
    print(f"frames: shard {done} of {len(missing)}, {left / 60:.1f} min left", flush=True)


# Losses and figures


def visible_centres(heatmaps: Tensor) -> Tensor:
    """Centre (N, K, 2) of each heatmap (N, K, h, w) in [-1, 1], x then y; zeros where it is empty."""
    h, w = heatmaps.shape[-2:]
    ys, xs = (torch.arange(n, device=heatmaps.device).add(0.5).div(n).mul(2).sub(1) for n in (h, w))
    mass = heatmaps.sum(dim=(-2, -1)).clamp_min(1e-6)
    return torch.stack([(heatmaps.sum(-2) * xs).sum(-1) / mass, (heatmaps.sum(-1) * ys).sum(-1) / mass], dim=-1)


def perception_loss(
    seen: Keypoints, heatmaps: Tensor, positions: Tensor, headings: Tensor, visible: Tensor, position_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """heatmaps (N, K, h, w) in [0, 1]; positions (N, K, 3) [m]; headings (N, K, 2), 0 where there is none; visible
    (N, K) in {0, 1}."""
    count = visible.sum().clamp_min(1.0)
    cells = F.binary_cross_entropy_with_logits(seen.heatmaps, heatmaps) * heatmaps.shape[1]
    pixels = ((seen.pixels - visible_centres(heatmaps)).abs().sum(-1) * visible).sum() / count
    errors = F.smooth_l1_loss(seen.positions * 100, positions * 100, reduction="none").sum(-1)  # [cm]
    position = (errors * visible).sum() / count
    long = visible * headings.square().sum(-1)
    heading = ((seen.headings - headings).square().sum(-1) * long).sum() / long.sum().clamp_min(1.0)
    loss = cells + pixels + position_weight * position + HEADING_WEIGHT * heading
    parts = {"loss": loss, "cells": cells, "pixels": pixels, "position_cm": position, "heading": heading}
    return loss, {key: value.detach() for key, value in parts.items()}


@torch.inference_mode()
def perceive(trunk: KeypointTrunk, images: np.ndarray, device: str, batch: int = 128) -> tuple[np.ndarray, ...]:
    """pixels (N, K, 2), presence (N, K), positions (N, K, 3), headings (N, K, 2)."""
    parts = []
    for i in range(0, len(images), batch):
        with torch.autocast(device, torch.bfloat16):
            seen = trunk(torch.from_numpy(images[i : i + batch]).to(device))
        parts.append([part.cpu().numpy() for part in (seen.pixels, seen.presence, seen.positions, seen.headings)])
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def best_threshold(presence: np.ndarray, visible: np.ndarray) -> float:
    """That of the highest F1. Large things fill heatmap cells and fingers never do, so each has its own."""
    order = np.argsort(-presence)
    hits = np.cumsum(visible[order])
    return float(presence[order][np.argmax(2 * hits / (np.arange(len(order)) + 1 + visible.sum()))])


def accuracy(errors: np.ndarray, seen: np.ndarray, visible: np.ndarray) -> dict[str, Any]:
    """errors [cm], seen and visible, all of one shape."""
    mine = errors[visible]
    return {
        "frames": len(mine),
        "median_cm": round(float(np.median(mine)), 2),
        "within_1cm": round(float((mine < 1).mean()), 3),
        "within_2cm": round(float((mine < 2).mean()), 3),
        "presence_f1": round(2 * float((seen & visible).sum()) / max(1.0, float(seen.sum() + visible.sum())), 3),
    }


def figures(trunk: KeypointTrunk, frames: Frames, names: Sequence[str], objects: int, device: str) -> dict[str, Any]:
    """Position errors, presence and confusion on held-out frames; the first `objects` keypoints are objects."""
    pixels, presence, positions, headings = perceive(trunk, frames["images"], device)
    visible = frames["visible"]
    errors = np.linalg.norm(positions - frames["positions"], axis=-1) * 100
    seen = presence >= [best_threshold(presence[:, k], visible[:, k]) for k in range(len(names))]
    centres = visible_centres(torch.from_numpy(frames["heatmaps"]).float()).numpy()
    confusions = []
    for true in range(objects):
        for other in range(objects):
            rows = visible[:, true] & ~visible[:, other]
            if other != true and rows.any():
                near = np.abs(pixels[rows, other] - centres[rows, true]).max(axis=-1) < 0.15
                share = float((seen[rows, other] & near).mean())
                if share >= 0.005:
                    confusions.append((round(share, 3), names[true], f"also seen as {names[other]}"))
    long = visible & (np.abs(frames["headings"]).sum(-1) > 0)
    twice = np.arctan2(headings[..., 1], headings[..., 0]) - np.arctan2(*np.moveaxis(frames["headings"], -1, 0)[::-1])
    yaw_error = np.degrees(np.abs((twice + np.pi) % (2 * np.pi) - np.pi) / 2)[long]
    return {
        "frames": len(visible),
        "yaw_median_deg": round(float(np.median(yaw_error)), 1) if len(yaw_error) else None,
        "yaw_within_15deg": round(float((yaw_error < 15).mean()), 3) if len(yaw_error) else None,
        "objects": accuracy(errors[:, :objects], seen[:, :objects], visible[:, :objects]),
        "classes": {
            name: accuracy(errors[:, k], seen[:, k], visible[:, k])
            for k, name in enumerate(names)
            if visible[:, k].any()
        },
        "confusions": sorted(confusions, reverse=True)[:12],
    }


# Grounding


def named_keypoints(skill: Skill, names: Sequence[str]) -> tuple[int, int]:
    """Index of what the skill acts on and of what it is brought to; len(names) where there is none."""
    a = skill.arguments
    handle = f"{a['drawer']} handle" if "drawer" in a else ""
    first, second = (a["object"], a.get("target", handle)) if "object" in a else (handle, "")
    return tuple(names.index(name) if name in names else len(names) for name in (first, second))  # type: ignore[return-value]


def teach_grounding(
    grounding: Grounding, embeddings: Tensor, targets: Tensor, seed: int, steps: int = 600, noise: float = 0.02
) -> float:
    """embeddings (N, text) of unit length, targets (N, 2). Returns the share of roles found without noise."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(grounding.parameters(), 3e-3, weight_decay=1e-3)
    for _ in range(steps):
        noisy = embeddings + noise * torch.randn(embeddings.shape, generator=generator)
        loss = F.cross_entropy(grounding(noisy).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        return float((grounding(embeddings).argmax(-1) == targets).float().mean())


# The run


def train_trunk(config: PretrainConfig, frames: Frames, trunk: KeypointTrunk) -> None:
    """Ends with the trunk trained; its state is saved after every epoch. Raises Diverged."""
    device, count = config.device, len(frames["images"])
    batches = count // config.batch_size
    if not batches:
        raise ValueError(
            f"--batch-size {config.batch_size}: there are {count} frames to train on; make it at most that"
        )
    total = config.epochs * batches
    optimizer = torch.optim.AdamW(trunk.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    state, first = config.out / STATE, 0
    if checkpoint.exists(state):
        first = checkpoint.load_training_state(state, {"trunk": trunk}, optimizer)["epoch"]
        print(f"continuing after epoch {first} of {config.epochs}", flush=True)
    start = time.monotonic()
    for epoch in range(first, config.epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(count)
        sums: dict[str, float] = {}
        for b in range(batches):
            step = epoch * batches + b
            rate = min(1.0, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / total)))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate
            rows = np.sort(order[b * config.batch_size : (b + 1) * config.batch_size])
            images, heatmaps, positions, headings, visible = (
                torch.from_numpy(frames[key][rows]).to(device) for key in FRAME_KEYS
            )
            with torch.autocast(device, torch.bfloat16):
                seen = trunk(images)
            loss, metrics = perception_loss(
                seen, heatmaps.float() / 255, positions, headings, visible.float(), config.position_weight
            )
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trunk.parameters(), 1.0)
            require_finite("the loss or its gradient", loss.detach() + norm, step, config.out)
            optimizer.step()
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value.item() / batches
        checkpoint.save_training_state(state, {"trunk": trunk}, optimizer, {"epoch": epoch + 1})
        forget(config.out)
        seconds = time.monotonic() - start
        speed = (epoch + 1 - first) * batches * config.batch_size / seconds
        left = seconds / (epoch + 1 - first) * (config.epochs - epoch - 1)
        print(
            f"epoch {epoch + 1}/{config.epochs}  " + "  ".join(f"{k} {v:.4f}" for k, v in sums.items()),
            f" {speed:.0f} frames/s  {left / 60:.1f} min left",
            flush=True,
        )
        with (config.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": epoch + 1, **sums}) + "\n")
