"""Train one algorithm on recorded episodes.

    python -m saycan_qt.train rt1 --data data/kitchen --out runs/clone
    python -m saycan_qt.train q-transformer --data data/kitchen --init runs/clone/checkpoint --out runs/actor
    python -m saycan_qt.train q-transformer --data data/kitchen --relabel 0.5 --out runs/critic
    python -m saycan_qt.train qt-opt --data data/kitchen --relabel 0.5 --out runs/qt-opt
    python -m saycan_qt.train finetune --init execution --data data/new data/kitchen --out runs/finetuned
    python -m saycan_qt.train rt1 --data data/kitchen --out /tmp/run --debug      # tiny model; what the tests run
    torchrun --nproc-per-node 2 -m saycan_qt.train rt1 ...                        # the same run on two processes

Your own data, a LeRobotDataset v3 or Open X-Embodiment's TFRecords, with a mapping of its columns:

    python -m saycan_qt.train q-transformer --preset compact --data DIR --mapping FILE.yaml --bounds data --out runs/own

Killed and started again with the same command, it continues from its last state; with --steps the loss curve and the
weights are those of an uninterrupted run. OUT/checkpoint holds the moving average of the weights, ready to serve;
OUT/metrics.jsonl and OUT/tensorboard the numbers, which `python -m saycan_qt.figures training OUT` draws.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
import yaml

from saycan_qt import checkpoint, distributed
from saycan_qt.algorithms import ALGORITHMS
from saycan_qt.algorithms.policy import Policy, tokenizer_of
from saycan_qt.algorithms.q_transformer import QTransformer, QTransformerConfig
from saycan_qt.algorithms.qt_opt import QTOpt, QTOptConfig
from saycan_qt.algorithms.rt1 import RT1, RT1Config
from saycan_qt.backbone import PRESETS, NetworkConfig
from saycan_qt.batches import BatchConfig, Episodes
from saycan_qt.data.episodes import DatasetError, EpisodeDataset
from saycan_qt.efficientnet import EfficientNetConfig
from saycan_qt.keypoints import TrunkConfig
from saycan_qt.loop import STATE, Run
from saycan_qt.tokens import ActionTokenizer, TextEncoder, bounds_of
from skills.types import ACTION_HIGH, ACTION_LOW, ACTION_NAMES

log = logging.getLogger(__name__)
SHIPPED_PERCEPTION = checkpoint.SHIPPED / "perception"
AlgorithmConfig = QTransformerConfig | QTOptConfig | RT1Config
SAMPLE = 200_000  # actions that bounds and adaptive bins are computed from


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    data: tuple[Path, ...]  # folders of recorded episodes
    out: Path  # folder of the run
    # Which columns mean what, where the data is not ours: a YAML file, or "fractal", "bridge"
    mapping: str = ""
    # small: keypoints, for the kitchen; compact: a small FiLM-EfficientNet; paper: the paper's sizes. The last two take
    # images of whatever size the data has
    preset: Literal["small", "compact", "paper", "debug"] = "small"
    perception: Path | None = None  # checkpoint of saycan_qt.pretrain; default: the one that ships
    init: Path | None = None  # checkpoint, or the name of a shipped one, whose network, eyes included, it starts from
    text_model: str = ""  # sentence-transformers model by name or folder; "" is the pinned MiniLM
    # Range of each action dimension: "robot" is what skills.types says, "data" comes from the episodes' percentiles; or
    # a YAML file with eight numbers each under `low` and `high`
    bounds: str = "robot"
    # "adaptive": narrow where the data's motion is fine. Beyond the paper, which names uniform bins as a limitation
    bins: Literal["uniform", "adaptive"] = "uniform"
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
    keep: Literal["last", "best"] = "last"  # best: write the checkpoint only when the held-out loss has fallen
    save_seconds: float = 60.0  # between states to resume from
    max_bad_share: float = 0.05  # of episodes that cannot be used; training refuses to start above it
    device: str = "cpu"
    threads: int = 2
    bfloat16: bool = True  # autocast
    compile: bool = False  # torch.compile, which takes a minute or two at first
    debug: bool = False  # tiny, for tests
    algorithm: tyro.conf.Suppress[AlgorithmConfig | None] = None  # None, to finetune: that of the checkpoint `init`


@dataclass(frozen=True)
class TrainQTransformer(TrainConfig):
    """Q-learning: judges and acts."""

    algorithm: QTransformerConfig = field(default_factory=QTransformerConfig)


@dataclass(frozen=True)
class TrainQTOpt(TrainConfig):
    """Q-learning over continuous actions, as a baseline: judges and acts."""

    algorithm: QTOptConfig = field(default_factory=QTOptConfig)


@dataclass(frozen=True)
class TrainRT1(TrainConfig):
    """Behaviour cloning of successful episodes: acts."""

    algorithm: RT1Config = field(default_factory=RT1Config)


@dataclass(frozen=True)
class Finetune(TrainConfig):
    """Go on with a checkpoint, on newly recorded episodes: its algorithm, settings and action bins, all weights.

    Give the older data too, or the policy forgets what the new data lacks. Beyond the paper, which leaves it open."""

    steps: int = 2000
    learning_rate: float = 2e-4


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


def new_policy(config: TrainConfig, dataset: Episodes) -> tuple[Policy, list[str]]:
    """The policy before its first step, and texts whose embeddings are known without a sentence model."""
    torch.manual_seed(config.batches.seed)
    algorithm = config.algorithm
    network, table = PRESETS[config.preset], dict[str, np.ndarray]()
    eyes: dict[str, torch.Tensor] = {}
    start: dict[str, torch.Tensor] = {}
    perception = config.perception or (SHIPPED_PERCEPTION if SHIPPED_PERCEPTION.exists() else None)
    if config.text_model:
        size = len(TextEncoder(model=config.text_model).encode(["a"])[0])
        network = dataclasses.replace(network, text_model=config.text_model, text_size=size)
    if isinstance(network.encoder, TrunkConfig) and perception is not None and not config.init:
        if config.text_model:
            raise ValueError("the small preset's eyes know MiniLM alone; --text-model needs another --preset")
        described, eyes = checkpoint.read(perception)
        network = dataclasses.replace(network, encoder=TrunkConfig.from_dict(described["trunk"]))
        table |= zip(described["texts"], eyes["texts"].numpy(), strict=True)
    if config.init is not None:
        described, start = checkpoint.read(config.init)
        if described.get("algorithm") not in ALGORITHMS:
            raise ValueError(f"{config.init} is no policy: its algorithm is {described.get('algorithm')!r}")
        algorithm = algorithm or ALGORITHMS[described["algorithm"]].config_type(**described["config"])
        network = NetworkConfig.from_dict(described["network"])
        table |= zip(described["texts"], start["texts"].numpy(), strict=True)
    elif algorithm is None:
        raise ValueError("finetune needs --init, a checkpoint's folder or the name of one that ships")
    if config.preset == "small" and not (eyes or start):
        raise ValueError("the small preset needs --perception DIR, a checkpoint of `python -m saycan_qt.pretrain`")
    height, width = dataset.images.shape[1:3]
    if isinstance(network.encoder, EfficientNetConfig) and not start:  # it takes images of any size: those of the data
        network = dataclasses.replace(network, encoder=dataclasses.replace(network.encoder, image=(height, width)))
    if (height, width) != network.encoder.image:
        wanted = list(network.encoder.image)
        raise ValueError(
            f"the data's images are {height} pixels high and {width} wide, this network's eyes want {wanted}; "
            f"resize them with `image_size: {wanted}` in a --mapping file, or train another --preset"
        )
    texts = TextEncoder(table, network.text_model)
    tokenizer = tokenizer_of(start) or new_tokenizer(config, network.bins, dataset.actions)
    policy: Policy
    match algorithm:
        case QTransformerConfig() as q:
            policy = QTransformer(network, q, texts, tokenizer)
        case QTOptConfig() as qt_opt:
            policy = QTOpt(network, qt_opt, texts, tokenizer)
        case RT1Config() as rt1:
            policy = RT1(network, rt1, texts, tokenizer)
    for part in ("trunk", "grounding") if eyes else ():
        if fresh := policy.start_from(eyes, f"{part}.", f"encoder.{part}."):
            raise ValueError(f"{perception} does not fit this network: it lacks {', '.join(fresh[:3])}")
    if start:
        fresh = policy.start_from(start, "network.")
        log.info("started from %s%s", config.init, f"; new: {', '.join(fresh)}" if fresh else "")
    return policy, list(table)


def new_tokenizer(config: TrainConfig, bins: int, actions: np.ndarray) -> ActionTokenizer:
    """Action bins as `bounds` and `bins` say, from at most SAMPLE actions spread over the data."""
    sample = np.asarray(actions[:: max(1, len(actions) // SAMPLE)])
    if config.bounds == "robot":
        low, high = ACTION_LOW, ACTION_HIGH
        if (beyond := np.mean((sample < low - 1e-3) | (sample > high + 1e-3))) > 0.01:
            log.warning(
                "%.0f %% of the data's action values lie beyond the robot's range; try --bounds data", 100 * beyond
            )
    elif config.bounds == "data":
        low, high = bounds_of(sample)
    else:
        low, high = read_bounds(Path(config.bounds))
    if config.bins == "adaptive":
        return ActionTokenizer.adaptive(sample, bins, low, high)
    return ActionTokenizer.uniform(bins, low, high)


def read_bounds(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest action (8,) from a YAML file."""
    try:
        given = yaml.safe_load(path.read_text())
        low, high = (np.array(given[key], np.float32) for key in ("low", "high"))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"--bounds {path}: not a YAML file with `low` and `high`, eight numbers each: {error}"
        ) from None
    if low.shape != (len(ACTION_NAMES),) or high.shape != low.shape or not (low < high).all():
        raise ValueError(
            f"--bounds {path}: `low` and `high` need eight numbers each ({', '.join(ACTION_NAMES)}), low < high"
        )
    return low, high


def remember(config: TrainConfig, kind: str) -> None:
    """Write config.json; refuse to continue a run under other settings."""
    described = {"kind": kind, **dataclasses.asdict(config)}
    described = json.loads(json.dumps(described, default=str))
    path = config.out / "config.json"
    if path.exists() and checkpoint.exists(config.out / STATE):
        before: dict[str, Any] = json.loads(path.read_text())
        before.setdefault("algorithm", before.get("q", before.get("rt1")))  # older runs call it so
        before.get("batches", {}).setdefault("unfinished", False)  # and had no such episodes
        free = {"out", "steps", "minutes", "threads", "save_seconds", "validate_every", "device", "compile"}
        if changed := [key for key in described if key not in free and described[key] != before.get(key)]:
            raise ValueError(f"{config.out} holds a run with another {', '.join(changed)}; choose another --out")
    path.write_text(json.dumps(described, indent=1) + "\n")


def main(config: TrainConfig) -> dict[str, Any]:
    """Train to the end; returns the last validation."""
    if config.debug:
        config = debug_config(config)
    torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    with distributed.joined(config.device) as device:
        dataset = EpisodeDataset(list(config.data), config.max_bad_share, mapping=config.mapping or None)
        policy, texts = new_policy(config, dataset)
        if distributed.rank() == 0:
            remember(config, kind=type(policy.config).__name__)
        run = Run(dataclasses.replace(config, device=device), dataset, policy, texts)
        run.say(
            f"{run.policy.name}: {sum(p.numel() for p in run.parameters):,} trained weights; "
            f"{len(run.transitions.train):,} transitions of {len(dataset.success):,} episodes "
            f"({np.mean(dataset.success):.0%} succeeded), {len(dataset.tasks)} instructions"
            + (f"; continuing at step {run.step}" if run.step else "")
        )
        validation = run.train()
        run.say(f"finished at step {run.step}; checkpoint in {config.out / 'checkpoint'}")
    return validation


Command = (
    Annotated[TrainQTransformer, tyro.conf.subcommand("q-transformer", prefix_name=False)]
    | Annotated[TrainQTOpt, tyro.conf.subcommand("qt-opt", prefix_name=False)]
    | Annotated[TrainRT1, tyro.conf.subcommand("rt1", prefix_name=False)]
    | Annotated[Finetune, tyro.conf.subcommand("finetune", prefix_name=False)]
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
