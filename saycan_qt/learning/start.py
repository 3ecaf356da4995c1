"""Where a training run starts: what was asked for, and the policy before its first step."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
import yaml

from saycan_qt.learning import checkpoint
from saycan_qt.learning.algorithms import ALGORITHMS
from saycan_qt.learning.algorithms.policy import Policy, tokenizer_of
from saycan_qt.learning.algorithms.q_transformer import QTransformer, QTransformerConfig
from saycan_qt.learning.algorithms.qt_opt import QTOpt, QTOptConfig
from saycan_qt.learning.algorithms.rt1 import RT1, RT1Config
from saycan_qt.learning.batches import Episodes
from saycan_qt.learning.loop import LoopConfig
from saycan_qt.networks.backbone import PRESETS, NetworkConfig
from saycan_qt.networks.efficientnet import EfficientNetConfig
from saycan_qt.networks.keypoints import TrunkConfig
from saycan_qt.networks.tokens import ActionTokenizer, TextEncoder, bounds_of
from skills.types import ACTION_HIGH, ACTION_LOW, ACTION_NAMES

log = logging.getLogger(__name__)
SHIPPED_PERCEPTION = checkpoint.SHIPPED / "perception"
AlgorithmConfig = QTransformerConfig | QTOptConfig | RT1Config
SAMPLE = 200_000  # actions that bounds and adaptive bins are computed from


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """One training run."""

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
    max_bad_share: float = 0.05  # of episodes that cannot be used; training refuses to start above it
    threads: int = 2
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
