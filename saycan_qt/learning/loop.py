"""The loop that trains every algorithm: steps, progress, validation, a checkpoint to serve, a state to resume from."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from saycan_qt.learning import checkpoint, distributed
from saycan_qt.learning.algorithms.policy import Batch, Metrics, Policy
from saycan_qt.learning.batches import BatchConfig, Episodes, Transitions, cached_features
from saycan_qt.learning.divergence import forget, require_finite, require_finite_weights
from saycan_qt.learning.metrics import MetricsLog
from saycan_qt.networks.backbone import KeypointEncoder
from saycan_qt.networks.efficientnet import NORM, FilmEfficientNet, keep_statistics

EDGES = "action_edges"  # of the bins, in a run's state
STATE, CHECKPOINT = "state", "checkpoint"  # folders in a run's folder: to resume from, and to serve
VALIDATION = 4096  # transitions


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast an algorithm is trained, and what is kept."""

    data: tuple[Path, ...]  # folders of recorded episodes
    out: Path  # folder of the run
    batches: BatchConfig = field(default_factory=BatchConfig)
    steps: int = 20000  # optimiser steps
    minutes: float = 0.0  # train for as long instead; the schedule follows the clock, so the run cannot be repeated
    learning_rate: float = 1e-3  # its peak
    warmup: int = 200  # steps; 0: none
    weight_decay: float = 1e-4
    average: float = 0.01  # rate of the moving average of the weights, which is also the target network [D.1]
    freeze_trunk: bool = True  # small preset: keep the pre-trained trunk, so that its features are computed once
    # Step from which batch norm keeps its running statistics; 0: from the start, with --init those of what it starts
    # from. Faster, as the norm is then part of the convolution before it. Departs from EfficientNet; None: never
    freeze_norm: int | None = None
    log_every: int = 100  # steps
    validate_every: int = 2000  # steps; the checkpoint is written then, too
    snapshots: tuple[int, ...] = ()  # steps whose checkpoints are kept for good, as checkpoint-STEP
    keep: Literal["last", "best"] = "last"  # best: write the checkpoint only when the held-out loss has fallen
    save_seconds: float = 60.0  # between states to resume from
    # Folder of decoded frames and perceived images; default: `.cache` in the first of --data, or, where that cannot be
    # written, in --out
    cache: Path | None = None
    cache_size: float = 0.0  # [GB] that this folder may hold: what was used longest ago makes way; 0: all that fits
    device: str = "cpu"  # as PyTorch says: cpu, cuda, cuda:1
    # Autocast; on a CPU not with an EfficientNet, whose convolutions are several times slower in it there
    bfloat16: bool = True
    compile: bool = False  # torch.compile, which takes a minute or two at first


class PolicyLoss(nn.Module):
    """A policy's loss as a module, which is what DistributedDataParallel and torch.compile take."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.network, self.policy = policy.network, policy

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return self.policy.loss(batch)


class Run:
    """One training run: a policy, its data, its optimiser, and where it stands."""

    def __init__(self, config: LoopConfig, dataset: Episodes, policy: Policy, texts: Sequence[str]) -> None:
        """texts: instructions, beside the dataset's, whose embeddings the checkpoint carries."""
        self.config, self.dataset, self.policy = config, dataset, policy
        if config.freeze_norm is not None and not any(isinstance(m, NORM) for m in policy.network.modules()):
            raise ValueError("--freeze-norm: this network has no batch norm; --preset paper has")
        self.policy.prepare(config.device, config.freeze_trunk)
        self.texts = sorted({*texts, *dataset.tasks})
        encoder, cameras = self.policy.network.encoder, [camera.name for camera in policy.embodiment.cameras]
        frames = [dataset.cameras[camera] for camera in cameras]
        if isinstance(encoder, KeypointEncoder) and config.freeze_trunk:
            cache, how = config.cache or config.data[0] / ".cache", (config.device, config.bfloat16, config.cache_size)
            frames = [cached_features(cache, dataset, cameras[0], encoder.trunk, *how)]
        self.transitions = Transitions(config.batches, dataset, frames, self.policy)
        self.mine = share_of(config.batches.batch_size)
        self.parameters = [p for p in self.policy.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
        )
        self.modules = self.policy.modules()
        self.state = config.out / STATE
        self.step, self.earlier = 0, 0.0  # earlier: seconds trained before this process began
        self.best = math.inf  # lowest held-out loss so far
        self.validated, self.validation = -1, dict[str, Any]()  # the last one: at which step, and what it gave
        if checkpoint.exists(self.state):
            position = checkpoint.load_training_state(self.state, self.modules, self.optimizer)
            self.step, self.earlier, self.best = position["step"], position["seconds"], position["best"] or math.inf
            if (edges := checkpoint.kept_in(self.state).get(EDGES)) is not None:
                self.policy.take_bins(edges)
        self.loss = parallel(self.policy, config.compile)
        self.first, self.begun, self.saved = self.step, time.monotonic(), time.monotonic()
        self.clock = self.earlier  # seconds trained; the same in all processes
        self.sums, self.summed = dict[str, Tensor | float](), 0  # since the last report, and of how many steps
        self.log = MetricsLog(config.out, self.step) if distributed.rank() == 0 else None

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return self.clock / (self.config.minutes * 60) if self.config.minutes > 0 else self.step / self.config.steps

    @property
    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine down to a hundredth."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup))
        return self.config.learning_rate * warm * (0.01 + 0.99 * cosine)

    def autocast(self) -> torch.autocast:
        device = self.policy.device.type
        convolves = isinstance(self.policy.network.encoder, FilmEfficientNet)
        return torch.autocast(
            device, torch.bfloat16, enabled=self.config.bfloat16 and (device != "cpu" or not convolves)
        )

    def train(self) -> dict[str, Any]:
        """To the end; returns the last validation. Raises Diverged."""
        if not checkpoint.exists(self.state):
            self.save()  # so that there is one to go on from, whatever comes
        while self.progress < 1.0:
            self.train_step()
            if self.step % self.config.log_every == 0:
                self.report()
            if self.step % self.config.validate_every == 0:
                self.validate_and_export()
            if self.step in self.config.snapshots and distributed.rank() == 0:
                self.export(snapshot(self.config.out, self.step))
            if self.step % self.config.log_every == 0 and self.seconds_since_saved() >= self.config.save_seconds:
                self.save()
        if self.validated != self.step:
            self.validate_and_export()
        self.save()
        if self.log is not None:
            self.log.close()
        return self.validation

    def seconds_since_saved(self) -> float:
        """The same in all processes."""
        return distributed.first_ones(time.monotonic() - self.saved)

    def train_step(self) -> None:
        self.policy.network.train()
        if self.config.freeze_norm is not None and self.step >= self.config.freeze_norm:
            keep_statistics(self.policy.network)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        batch = self.transitions.step_batch(self.step, self.mine)
        with self.autocast():
            loss, metrics = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        require_finite("the loss or its gradient", loss.detach() + norm, self.step, self.config.out)
        self.optimizer.step()
        self.policy.after_step(max(self.config.average, 1 / (self.step + 2)))
        self.step += 1
        seconds = self.earlier + time.monotonic() - self.begun
        self.clock = distributed.first_ones(seconds) if self.config.minutes > 0 else seconds
        self.summed += 1
        for key, value in metrics.items():
            self.sums[key] = self.sums.get(key, 0.0) + value.float()

    def report(self) -> None:
        row = {k: rounded(distributed.mean(torch.as_tensor(v / self.summed)), 6) for k, v in self.sums.items()}
        self.sums, self.summed = {}, 0
        rate = (self.step - self.first) * self.config.batches.batch_size / (time.monotonic() - self.begun)
        epochs = self.step * self.config.batches.batch_size / len(self.transitions.train)
        left = self.clock / max(self.progress, 1e-6) * (1 - self.progress) / 60
        clock = {"samples_per_second": round(rate), "seconds": round(self.clock, 1)}
        self.write(row | {"learning_rate": self.learning_rate, "epochs": round(epochs, 3)} | clock)
        self.say(f"step {self.step}  {brief(row)}  {epochs:.1f} epochs  {rate:.0f} samples/s  {left:.1f} min left")

    def validate_and_export(self) -> None:
        """Metrics on transitions of held-out episodes, always the same ones; then the checkpoint."""
        rng, rows = np.random.default_rng(0), self.transitions.validation_rows(VALIDATION)
        sums: dict[str, Tensor | float] = {}
        for part in np.array_split(rows, math.ceil(len(rows) / 512)) if len(rows) else ():
            with averaged(self.policy), torch.no_grad(), self.autocast():
                _, metrics = self.policy.loss(self.transitions.batch(part, rng, augment=False))
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value.float() * len(part) / len(rows)
        if "loss" in sums:
            require_finite("the held-out loss", sums["loss"], self.step, self.config.out)
        self.validated, self.validation = self.step, {key: rounded(value, 4) for key, value in sums.items()}
        self.write({f"held_out_{key}": value for key, value in self.validation.items()})
        self.say(f"  held out: {brief(self.validation)}")
        loss, folder = float(sums.get("loss", -math.inf)), self.config.out / CHECKPOINT  # unrounded
        fallen = loss < self.best or not checkpoint.exists(folder)
        self.best = min(self.best, loss) if "loss" in sums else self.best
        if distributed.rank() == 0 and (fallen or self.config.keep == "last"):
            self.export(folder)

    def export(self, folder: Path) -> None:
        described, tensors = self.policy.describe(self.texts)
        program = Path(sys.argv[0].rpartition(" ")[2]).stem  # "train", or a command that trains on its way
        provenance = {
            "command": " ".join([f"python -m saycan_qt.{program}", *sys.argv[1:]]),
            "data_digest": self.dataset.digest,
            "episodes": len(self.dataset.success),
            "hz": self.policy.embodiment.control_hz,
            "step": self.step,
            "seconds": round(self.clock),
            "machine": checkpoint.machine(self.config.device),
            "held_out": self.validation,
        }
        checkpoint.save(folder, described, tensors, provenance=provenance)

    def save(self) -> None:
        self.saved = time.monotonic()
        require_finite_weights(self.parameters, self.step, self.config.out)
        if distributed.rank() == 0:
            best = self.best if math.isfinite(self.best) else None
            position = {"step": self.step, "seconds": self.clock, "best": best}
            checkpoint.save_training_state(
                self.state, self.modules, self.optimizer, position, kept={EDGES: self.policy.tokenizer.edges}
            )
            if self.step > self.first:  # only now does the state come from this learning rate
                forget(self.config.out)

    def write(self, row: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.write(self.step, row)

    def say(self, line: str) -> None:
        if distributed.rank() == 0:
            print(line, flush=True)


def snapshot(out: Path, step: int) -> Path:
    """The checkpoint of a run as it was at one of its `snapshots`."""
    return out / f"{CHECKPOINT}-{step}"


def share_of(batch_size: int) -> slice:
    """This process's rows of a batch."""
    count, number = distributed.world(), distributed.rank()
    if batch_size % count:
        raise ValueError(f"--batch-size {batch_size} cannot be divided among {count} processes")
    return slice(batch_size * number // count, batch_size * (number + 1) // count)


def parallel(policy: Policy, compiled: bool) -> Callable[[Batch], tuple[Tensor, Metrics]]:
    """The policy's loss; its gradients become the mean over all processes."""
    loss: Any = PolicyLoss(policy)
    if distributed.world() > 1:
        if policy.device.type == "cuda":  # elsewhere each process normalises its own part of a batch
            nn.SyncBatchNorm.convert_sync_batchnorm(policy.network)
        loss = nn.parallel.DistributedDataParallel(loss)
    return torch.compile(loss) if compiled else loss


@contextlib.contextmanager
def averaged(policy: Policy) -> Iterator[None]:
    """Losses are those of the moving average."""
    assert policy.target_network is not None
    mine, policy.network = policy.network, policy.target_network
    try:
        yield
    finally:
        policy.network = mine


def rounded(values: Tensor | float, digits: int) -> Any:
    return np.round(torch.as_tensor(values).double().cpu().numpy(), digits).tolist()


def brief(row: dict[str, Any]) -> str:
    """Numbers for people; of those given for each action dimension two digits are enough."""
    return "  ".join(
        f"{key} {value:.4f}" if isinstance(value, float) else f"{key} [{' '.join(f'{v:.2f}' for v in value)}]"
        for key, value in row.items()
        if isinstance(value, float) or key.startswith("accuracy")
    )
