"""Train one algorithm on recorded episodes.

    python -m saycan_qt.train rt1 --data data/kitchen --out runs/clone
    python -m saycan_qt.train q-transformer --data data/kitchen --init runs/clone/checkpoint --out runs/actor
    python -m saycan_qt.train q-transformer --data data/kitchen --relabel 0.5 --out runs/critic
    python -m saycan_qt.train rt1 --data data/kitchen --out /tmp/run --debug      # tiny model; what the tests run

Killed and started again with the same command, it continues from its last state; with --steps the loss curve and the
weights are those of an uninterrupted run. OUT/checkpoint holds the moving average of the weights, ready to serve.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from saycan_qt import checkpoint
from saycan_qt.algorithms.policy import Policy
from saycan_qt.algorithms.q_transformer import QTransformer, QTransformerConfig
from saycan_qt.algorithms.rt1 import RT1, RT1Config
from saycan_qt.backbone import PRESETS, KeypointEncoder, NetworkConfig
from saycan_qt.batches import BatchConfig, Episodes, Transitions, cached_features
from saycan_qt.data.episodes import DatasetError, EpisodeDataset
from saycan_qt.keypoints import TrunkConfig
from saycan_qt.tokens import TextEncoder

log = logging.getLogger(__name__)
STATE = "state"  # folder in a run's folder from which it resumes
SHIPPED_PERCEPTION = checkpoint.SHIPPED / "perception"


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    data: tuple[Path, ...]  # folders of recorded episodes
    out: Path  # folder of the run
    algorithm: QTransformerConfig | RT1Config
    preset: Literal["small", "paper", "debug"] = "small"
    perception: Path | None = None  # checkpoint of saycan_qt.pretrain; default: the one that ships
    init: Path | None = None  # checkpoint whose network, eyes included, this one starts from
    batches: BatchConfig = field(default_factory=BatchConfig)
    steps: int = 20000  # optimiser steps
    minutes: float = 0.0  # train for as long instead; the schedule follows the clock, so the run cannot be repeated
    learning_rate: float = 1e-3  # its peak
    warmup: int = 200  # steps
    weight_decay: float = 1e-4
    average: float = 0.01  # rate of the moving average of the weights, which is also the target network [D.1]
    freeze_trunk: bool = True  # small preset: keep the pre-trained trunk, so that its features are computed once
    log_every: int = 100  # steps
    validate_every: int = 2000  # steps; the checkpoint is written then, too
    save_seconds: float = 60.0  # between states to resume from
    device: str = "cpu"
    threads: int = 2
    bfloat16: bool = True  # autocast
    debug: bool = False  # tiny, for tests


def debug_config(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(
        config,
        preset="debug",
        batches=dataclasses.replace(config.batches, batch_size=32),
        steps=min(config.steps, 20),
        warmup=5,
        log_every=2,
        validate_every=10,
        save_seconds=0.0,
        threads=1,
        bfloat16=False,
    )


def new_policy(config: TrainConfig) -> tuple[Policy, list[str]]:
    """The policy before its first step, and texts whose embeddings are known without a sentence model."""
    torch.manual_seed(config.batches.seed)
    network, table = PRESETS[config.preset], dict[str, np.ndarray]()
    eyes: dict[str, torch.Tensor] = {}
    start: dict[str, torch.Tensor] = {}
    perception = config.perception or (SHIPPED_PERCEPTION if SHIPPED_PERCEPTION.exists() else None)
    if config.preset != "paper" and perception is not None:
        described, eyes = checkpoint.read(perception)
        network = dataclasses.replace(network, encoder=TrunkConfig.from_dict(described["trunk"]))
        table |= zip(described["texts"], eyes["texts"].numpy(), strict=True)
    if config.init is not None:
        described, start = checkpoint.read(config.init)
        network = NetworkConfig.from_dict(described["network"])
        table |= zip(described["texts"], start["texts"].numpy(), strict=True)
    if config.preset == "small" and not (eyes or start):
        raise ValueError("the small preset needs --perception DIR, a checkpoint of `python -m saycan_qt.pretrain`")
    policy: Policy
    match config.algorithm:
        case QTransformerConfig():
            policy = QTransformer(network, config.algorithm, TextEncoder(table))
        case RT1Config():
            policy = RT1(network, config.algorithm, TextEncoder(table))
    for part in ("trunk", "grounding") if eyes and not start else ():
        if fresh := policy.start_from(eyes, f"{part}.", f"encoder.{part}."):
            raise ValueError(f"{perception} does not fit this network: it lacks {', '.join(fresh[:3])}")
    if start:
        fresh = policy.start_from(start, "network.")
        log.info("started from %s%s", config.init, f"; new: {', '.join(fresh)}" if fresh else "")
    return policy, list(table)


class Run:
    """One training run: a policy, its data, its optimiser, and where it stands."""

    def __init__(self, config: TrainConfig, dataset: Episodes) -> None:
        self.config, self.dataset = config, dataset
        self.policy, known = new_policy(config)
        self.policy.prepare(config.device, config.freeze_trunk)
        self.texts = sorted({*known, *dataset.tasks})
        encoder, frames = self.policy.network.encoder, dataset.images
        if isinstance(encoder, KeypointEncoder) and config.freeze_trunk:
            cache = config.data[0] / ".cache"
            frames = cached_features(cache, dataset, encoder.trunk, config.device, config.bfloat16)
        self.transitions = Transitions(config.batches, dataset, frames, self.policy)
        self.parameters = [p for p in self.policy.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
        )
        assert self.policy.target_network is not None
        self.modules = {"network": self.policy.network, "target": self.policy.target_network}
        self.state = config.out / STATE
        self.step, self.earlier = 0, 0.0  # earlier: seconds trained before this process began
        if self.state.exists():
            position = checkpoint.load_training_state(self.state, self.modules, self.optimizer)
            self.step, self.earlier = position["step"], position["seconds"]
        self.first, self.begun, self.saved = self.step, time.monotonic(), time.monotonic()
        self.sums: dict[str, torch.Tensor] = {}

    @property
    def seconds(self) -> float:
        return self.earlier + time.monotonic() - self.begun

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return self.seconds / (self.config.minutes * 60) if self.config.minutes > 0 else self.step / self.config.steps

    @property
    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine down to a hundredth."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        return self.config.learning_rate * min(1.0, (self.step + 1) / self.config.warmup) * (0.01 + 0.99 * cosine)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.config.device, torch.bfloat16, enabled=self.config.bfloat16)

    def train(self) -> dict[str, Any]:
        """To the end; returns the last validation."""
        while self.progress < 1.0:
            self.train_step()
            if self.step % self.config.log_every == 0:
                self.report()
                if self.step % self.config.validate_every == 0:
                    self.validate_and_export()
                if time.monotonic() - self.saved >= self.config.save_seconds:
                    self.save()
        validation = self.validate_and_export()
        self.save()
        return validation

    def train_step(self) -> None:
        self.policy.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        batch = self.transitions.step_batch(self.step)
        with self.autocast():
            loss, metrics = self.policy.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.policy.after_step(max(self.config.average, 1 / (self.step + 2)))
        self.step += 1
        for key, value in metrics.items():
            self.sums[key] = self.sums.get(key, torch.zeros(())) + value.float().cpu() / self.config.log_every

    def report(self) -> None:
        rate = (self.step - self.first) * self.config.batches.batch_size / (time.monotonic() - self.begun)
        epochs = self.step * self.config.batches.batch_size / len(self.transitions.train)
        left = self.seconds / max(self.progress, 1e-6) * (1 - self.progress) / 60
        row = {key: rounded(value, 6) for key, value in self.sums.items()}
        self.write(row | {"samples_per_second": round(rate), "seconds": round(self.seconds, 1)})
        self.sums = {}
        print(
            f"step {self.step}  {brief(row)}  {epochs:.1f} epochs  {rate:.0f} samples/s  {left:.1f} min left",
            flush=True,
        )

    def validate_and_export(self, count: int = 4096) -> dict[str, Any]:
        """Metrics on transitions of held-out episodes, always the same ones; then the checkpoint."""
        rng = np.random.default_rng(0)
        rows = rng.permutation(self.transitions.validation)[:count]
        sums: dict[str, torch.Tensor] = {}
        for part in np.array_split(rows, math.ceil(len(rows) / 512)) if len(rows) else ():
            with averaged(self.policy), torch.no_grad(), self.autocast():
                _, metrics = self.policy.loss(self.transitions.batch(part, rng, augment=False))
            for key, value in metrics.items():
                sums[key] = sums.get(key, torch.zeros(())) + value.float().cpu() * len(part) / len(rows)
        validation = {key: rounded(value, 4) for key, value in sums.items()}
        self.write({f"held_out_{key}": value for key, value in validation.items()})
        print(f"  held out: {brief(validation)}", flush=True)
        described, tensors = self.policy.describe(self.texts)
        provenance = {
            "command": "python -m saycan_qt.train " + " ".join(sys.argv[1:]),
            "data_digest": self.dataset.digest,
            "episodes": len(self.dataset.success),
            "step": self.step,
            "seconds": round(self.seconds),
            "held_out": validation,
        }
        checkpoint.save(self.config.out / "checkpoint", described, tensors, provenance=provenance)
        return validation

    def save(self) -> None:
        position = {"step": self.step, "seconds": self.seconds}
        checkpoint.save_training_state(self.state, self.modules, self.optimizer, position)
        self.saved = time.monotonic()

    def write(self, row: dict[str, Any]) -> None:
        with (self.config.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, **row}) + "\n")


@contextlib.contextmanager
def averaged(policy: Policy) -> Iterator[None]:
    """Losses are those of the moving average."""
    assert policy.target_network is not None
    mine, policy.network = policy.network, policy.target_network
    try:
        yield
    finally:
        policy.network = mine


def rounded(values: torch.Tensor, digits: int) -> Any:
    return np.round(values.double().numpy(), digits).tolist()


def brief(row: dict[str, Any]) -> str:
    """Numbers for people; of those given for each action dimension two digits are enough."""
    return "  ".join(
        f"{key} {value:.4f}" if isinstance(value, float) else f"{key} [{' '.join(f'{v:.2f}' for v in value)}]"
        for key, value in row.items()
        if isinstance(value, float) or key.startswith("accuracy")
    )


def forget_after(path: Path, step: int) -> None:
    """Drop metrics that a killed run wrote after its last state."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))


def remember(config: TrainConfig) -> None:
    """Write config.json; refuse to continue a run under other settings."""
    described = {"kind": type(config.algorithm).__name__, **dataclasses.asdict(config)}
    described = json.loads(json.dumps(described, default=str))
    path = config.out / "config.json"
    if path.exists() and (config.out / STATE).exists():
        before = json.loads(path.read_text())
        free = {"out", "steps", "minutes", "threads", "save_seconds", "validate_every"}
        if changed := [key for key in described if key not in free and described[key] != before.get(key)]:
            raise ValueError(f"{config.out} holds a run with another {', '.join(changed)}; choose another --out")
    path.write_text(json.dumps(described, indent=1) + "\n")


def main(config: TrainConfig) -> dict[str, Any]:
    """Train to the end; returns the last validation."""
    if config.debug:
        config = debug_config(config)
    torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    remember(config)
    dataset = EpisodeDataset(list(config.data))
    run = Run(config, dataset)
    forget_after(config.out / "metrics.jsonl", run.step)
    print(
        f"{run.policy.name}: {sum(p.numel() for p in run.parameters):,} trained weights; "
        f"{len(run.transitions.train):,} transitions of {len(dataset.success):,} episodes "
        f"({np.mean(dataset.success):.0%} succeeded), {len(dataset.tasks)} instructions"
        + (f"; continuing at step {run.step}" if run.step else ""),
        flush=True,
    )
    validation = run.train()
    print(f"finished at step {run.step}; checkpoint in {config.out / 'checkpoint'}", flush=True)
    return validation


@dataclass(frozen=True)
class TrainQTransformer(TrainConfig):
    """Q-learning: judges and acts."""

    algorithm: QTransformerConfig = field(default_factory=QTransformerConfig)


@dataclass(frozen=True)
class TrainRT1(TrainConfig):
    """Behaviour cloning of successful episodes: acts."""

    algorithm: RT1Config = field(default_factory=RT1Config)


Command = (
    Annotated[TrainQTransformer, tyro.conf.subcommand("q-transformer", prefix_name=False)]
    | Annotated[TrainRT1, tyro.conf.subcommand("rt1", prefix_name=False)]
)


def command(arguments: Sequence[str] | None = None) -> TrainConfig:
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    return tyro.cli(Command, args=arguments, description=__doc__, config=flat)  # type: ignore[arg-type]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(command())
    except (ValueError, OSError, DatasetError, checkpoint.CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
