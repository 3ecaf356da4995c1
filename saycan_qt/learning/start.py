"""Where a training run starts: what was asked for, and the policy before its first step."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
import yaml

from saycan_qt.learning import checkpoint
from saycan_qt.learning.algorithms import ALGORITHMS
from saycan_qt.learning.algorithms.aw_opt import AWOptConfig
from saycan_qt.learning.algorithms.decision_transformer import DecisionTransformerConfig
from saycan_qt.learning.algorithms.iql import IQLConfig
from saycan_qt.learning.algorithms.policy import NETWORK, Judge, Policy, embodiment_in, tokenizer_of
from saycan_qt.learning.algorithms.q_transformer import QTransformerConfig
from saycan_qt.learning.algorithms.qt_opt import QTOptConfig
from saycan_qt.learning.algorithms.rt1 import RT1Config
from saycan_qt.learning.batches import Episodes, return_range
from saycan_qt.learning.loop import LoopConfig
from saycan_qt.networks.backbone import (
    DEBUG_FILM,
    POSITION_NAMES,
    PRESETS,
    YAW_NAME,
    NetworkConfig,
    StateConfig,
)
from saycan_qt.networks.efficientnet import EfficientNetConfig
from saycan_qt.networks.hand_eye import places_of_states
from saycan_qt.networks.keypoints import TrunkConfig
from saycan_qt.networks.pointing import EVENTS, PointingConfig, PointingEncoder
from saycan_qt.networks.tokens import ActionTokenizer, TextEncoder, bounds_of
from skills import files
from skills.embodiment import Embodiment
from skills.errors import EmbodimentError
from skills.robot_folder import default_robot

log = logging.getLogger(__name__)
SHIPPED_PERCEPTION = checkpoint.SHIPPED / "perception"
AlgorithmConfig = QTransformerConfig | QTOptConfig | IQLConfig | AWOptConfig | DecisionTransformerConfig | RT1Config
EYES = f"{NETWORK}encoder."  # how a checkpoint calls their weights
SAMPLE = 200_000  # frames that bounds, adaptive bins and the state's size are computed from
STILL = 1e-6  # a state number that deviates less tells nothing; its size is taken for 1
BEYOND = 0.01  # share of the actions' numbers beyond their range from which it is worth a word
STRETCHED = 0.25  # share of a range below which its use is worth a word
Preset = Literal["small", "compact", "paper", "paper-shared", "debug"]


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """One training run."""

    # Which columns mean what, where the data does not say or says something else: a YAML file, or "fractal", "bridge"
    mapping: str = ""
    rate: float = 0.0  # [Hz] actions a second, fewer than the data has: changes are added up; 0: the data's
    # What succeeded, where the data does not say: "all", a column's name, or a file of outcomes
    success: str = ""
    # small: keypoints, for the kitchen; compact: eyes that learn to point from pixels; paper: the paper's sizes;
    # paper-shared: the same with the instruction in the last stages alone, which scores many skills several times as
    # fast; debug: tiny, for tests and the simplest scenes. Compact and the paper's take any number of cameras, and
    # images of whatever size the data has. Default: small where the state says where the gripper is and there is one
    # camera, else compact
    preset: Preset | None = None
    perception: Path | None = None  # checkpoint of saycan_qt.pretrain; default: the one that ships
    # Checkpoint, or a shipped one's name, whose network it starts from; with its eyes, unless --perception has others
    init: Path | None = None
    anew: bool = False  # of --init take the network's sizes, the action bins and the eyes; all else begins by chance
    text_model: str = ""  # sentence-transformers model by name or folder; "" is the pinned MiniLM
    # Range of each action dimension: "robot" is what the robot's description says, which comes with the data; "data"
    # comes from the episodes' percentiles; or a YAML file with as many numbers each under `low` and `high`
    bounds: str = "robot"
    # "adaptive": narrow where the data's motion is fine. Beyond the paper, which names uniform bins as a limitation
    bins: Literal["uniform", "adaptive"] = "uniform"
    # Consecutive actions that are chosen together, and carried out while the next are computed: they are dimensions of
    # one long action, whose value is that of them all. For long tasks and high rates; beyond the paper, which has 1
    chunk: int = 1
    # Frames that the policy sees, this one and those before it. Several tell apart what one cannot: was the thing put
    # down, or is it yet to be grasped? Default: the preset's (paper: 6), or that of --init, which another may replace
    history: int | None = None
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
class TrainIQL(TrainConfig):
    """Implicit Q-learning, which judges no action outside the data: judges and acts."""

    algorithm: IQLConfig = field(default_factory=IQLConfig)


@dataclass(frozen=True)
class TrainAWOpt(TrainConfig):
    """QT-Opt's critic and an actor cloned from successes by their advantages: judges and acts."""

    algorithm: AWOptConfig = field(default_factory=AWOptConfig)


@dataclass(frozen=True)
class TrainDecisionTransformer(TrainConfig):
    """Cloning of all episodes by the returns that they earned: acts."""

    algorithm: DecisionTransformerConfig = field(default_factory=DecisionTransformerConfig)


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


def sees_keypoints(embodiment: Embodiment) -> bool:
    """Can the small preset's eyes serve this robot? They see from its gripper, through one camera."""
    return StateConfig.typical(embodiment).has_gripper and len(embodiment.cameras) == 1


def preset_for(asked: Preset | None, embodiment: Embodiment) -> Preset:
    """Raises ValueError where the small one is asked for and cannot be."""
    fits = sees_keypoints(embodiment)
    if asked == "small" and not fits:
        cameras = ", ".join(camera.name for camera in embodiment.cameras) or "none"
        raise ValueError(
            f"the small preset wants one camera and a state with {', '.join((*POSITION_NAMES, YAW_NAME))}; the data's "
            f"cameras: {cameras}; its state: {', '.join(number.name for number in embodiment.state) or 'none'}; take "
            "--preset compact"
        )
    return asked or ("small" if fits else "compact")


def state_config(dataset: Episodes) -> StateConfig:
    """Mean and deviation of the data's state; of the default robot's, those that its checkpoints were trained with."""
    embodiment = dataset.embodiment
    if embodiment.state == default_robot().embodiment.state:
        return StateConfig.typical(embodiment)
    sample = np.asarray(dataset.states[:: max(1, len(dataset.states) // SAMPLE)], np.float64)
    deviation = sample.std(axis=0)
    return StateConfig.of(embodiment, sample.mean(axis=0).tolist(), np.where(deviation < STILL, 1, deviation).tolist())


def new_policy(config: TrainConfig, dataset: Episodes) -> tuple[Policy, list[str]]:
    """The policy before its first step, and texts whose embeddings are known without a sentence model."""
    torch.manual_seed(config.batches.seed)
    algorithm, embodiment = config.algorithm, dataset.embodiment
    table = dict[str, np.ndarray]()
    parts: tuple[str, ...] = ("trunk", "grounding")
    eyes: dict[str, torch.Tensor] = {}
    start: dict[str, torch.Tensor] = {}
    if config.init is not None:
        described, start = checkpoint.read(config.init)
        if described.get("algorithm") not in ALGORITHMS:
            raise ValueError(f"{config.init} is no policy: its algorithm is {described.get('algorithm')!r}")
        algorithm = algorithm or ALGORITHMS[described["algorithm"]].config_type(**described["config"])
        network = NetworkConfig.from_dict(described["network"])
        if config.anew:
            start = {key: value for key, value in start.items() if not key.startswith(NETWORK) or key.startswith(EYES)}
        if config.chunk not in (1, network.chunk):
            raise ValueError(
                f"{config.init} acts in chunks of {network.chunk}, not of --chunk {config.chunk}; leave one out"
            )
        embodiment = taken_over(config.init, described, network, embodiment)
        table |= zip(described["texts"], start["texts"].numpy(), strict=True)
        if config.perception is not None:
            eyes, parts = read_eyes(config.perception)[1], ("trunk",)  # what words name, it has learnt further itself
    elif algorithm is None:
        raise ValueError("finetune needs --init, a checkpoint's folder or the name of one that ships")
    else:
        network, eyes, table = new_network(config, dataset)
    if config.perception is not None and not isinstance(network.encoder, TrunkConfig):
        raise ValueError("--perception has the small preset's eyes, which this network does not take: leave it out")
    kind = next(kind for kind in ALGORITHMS.values() if kind.config_type is type(algorithm))
    if isinstance(network.encoder, PointingConfig) and (kind.points or not start):
        taught = EVENTS if kind.points else 0
        network = dataclasses.replace(network, encoder=dataclasses.replace(network.encoder, taught=taught))
    if isinstance(algorithm, DecisionTransformerConfig):
        if config.history not in (None, algorithm.context):
            raise ValueError(f"a Decision Transformer sees its --context of {algorithm.context}; leave out --history")
        network = dataclasses.replace(network, history=algorithm.context)
    elif config.history is not None:
        if "network.places" in start:
            start["network.places"] = places_for(config.history, network, start["network.places"])
        network = dataclasses.replace(network, history=config.history)
        network.require_sound()
    if (camera := next(iter(embodiment.cameras), None)) is not None:
        height, width = dataset.cameras[camera.name].shape[1:3]
        if network.encoder is not None and (height, width) != tuple(network.encoder.image):
            wanted = list(network.encoder.image)
            raise ValueError(
                f"the data's images are {height} pixels high and {width} wide, this network's eyes want {wanted}; "
                f"resize them with `image_size: {wanted}` in a --mapping file, or train another --preset"
            )
    texts = TextEncoder(table, network.text_model)
    if (tokenizer := tokenizer_of(start, embodiment)) is None:
        tokenizer = new_tokenizer(config, network.bins, embodiment, dataset.actions)
    elif beyond := beyond_range(sample_of(dataset.actions), *tokenizer.edges[:, [0, -1]].numpy().T):
        log.warning(
            "%.0f %% of the data's action values lie beyond the range of %s, to which they are cut; without --init, "
            "--bounds data takes theirs",
            *(100 * beyond, config.init),
        )
    policy = kind(network, algorithm, texts, tokenizer, embodiment)
    if not start and isinstance(eyes_of := policy.network.encoder, PointingEncoder):
        cameras = {camera.name: dataset.cameras[camera.name] for camera in embodiment.cameras}
        states = (np.asarray(dataset.states) - network.state.mean) / network.state.scale
        eyes_of.calibrate(torch.from_numpy(places_of_states(cameras, states, np.asarray(dataset.frame_episode))))
    if start:
        fresh = policy.start_from(start, NETWORK)
        if config.anew:
            log.info("sizes, bins and eyes of %s; all else begins by chance", config.init)
        else:
            log.info("started from %s%s", config.init, f"; new: {', '.join(fresh)}" if fresh else "")
    for part in parts if eyes else ():
        if fresh := policy.start_from(eyes, f"{part}.", f"encoder.{part}."):
            perception = config.perception or SHIPPED_PERCEPTION
            raise ValueError(f"{perception} does not fit this network: it lacks {', '.join(fresh[:3])}")
    return policy, list(table)


def places_for(history: int, network: NetworkConfig, places: torch.Tensor) -> torch.Tensor:
    """Embeddings (prefix, width) of the places of `network`'s tokens, for another number of frames: the newest keep
    theirs, and whatever is added before the oldest starts as a copy of it."""
    text, frames = places[: (said := int(network.text_token))], places[said:].unflatten(0, (network.history, -1))
    added = frames[:1].expand(max(0, history - len(frames)), -1, -1)
    return torch.cat([text, torch.cat([added, frames])[-history:].flatten(0, 1)])


def new_network(
    config: TrainConfig, dataset: Episodes
) -> tuple[NetworkConfig, dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """A network for the data's robot, the weights of its eyes if they are not learnt, and texts' embeddings that come
    with these."""
    embodiment, table = dataset.embodiment, dict[str, np.ndarray]()
    preset = preset_for(config.preset, embodiment)
    network = DEBUG_FILM if preset == "debug" and not sees_keypoints(embodiment) else PRESETS[preset]
    network = dataclasses.replace(network.fitted(embodiment, state_config(dataset)), chunk=config.chunk)
    if config.text_model:
        size = len(TextEncoder(model=config.text_model).encode(["a"])[0])
        network = dataclasses.replace(network, text_model=config.text_model, text_size=size)
    match network.encoder:
        case EfficientNetConfig() | PointingConfig() as eyes:  # it takes images of any size: those of the data
            height, width = dataset.images.shape[1:3]
            return dataclasses.replace(network, encoder=dataclasses.replace(eyes, image=(height, width))), {}, table
        case None:
            return network, {}, table
    perception = config.perception or (SHIPPED_PERCEPTION if SHIPPED_PERCEPTION.exists() else None)
    if perception is None:
        if preset == "small":
            raise ValueError("the small preset needs --perception DIR, a checkpoint of `python -m saycan_qt.pretrain`")
        return network, {}, table
    if config.text_model:
        raise ValueError("the small preset's eyes know MiniLM alone; --text-model needs another --preset")
    described, seeing = read_eyes(perception)
    table |= zip(described["texts"], seeing["texts"].numpy(), strict=True)
    return dataclasses.replace(network, encoder=TrunkConfig.from_dict(described["trunk"])), seeing, table


def read_eyes(perception: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    described, seeing = checkpoint.read(perception)
    if described.get("algorithm") != checkpoint.PERCEPTION:
        raise ValueError(f"{perception} has no eyes: it is no checkpoint of `python -m saycan_qt.pretrain`")
    return described, seeing


def taken_over(init: Path, described: Mapping[str, Any], network: NetworkConfig, embodiment: Embodiment) -> Embodiment:
    """The data's robot as the checkpoint `init` takes it. Raises ValueError, with the first difference, for another."""
    theirs = embodiment_in(described)
    problem = theirs.misfit(embodiment) if "embodiment" in described else ""  # else its names are not its own
    sizes = (len(theirs.action), len(theirs.state)), (len(embodiment.action), len(embodiment.state))
    if not problem and sizes[0] != sizes[1]:
        policy, data = (f"{actions} action dimensions and {states} state numbers" for actions, states in sizes)
        problem = f"the policy has {policy}, the data has {data}"
    if not problem and len(embodiment.cameras) < network.cameras:
        problem = f"the policy sees through {network.cameras} cameras, the data has {len(embodiment.cameras)}"
    if problem:
        raise ValueError(f"{init} is of another robot than the data: {problem}")
    names = [camera.name for camera in theirs.cameras]
    there = {camera.name: camera for camera in embodiment.cameras}
    cameras = [there[name] for name in names] if set(names) <= there.keys() else list(there.values())
    return dataclasses.replace(embodiment, action=theirs.action, cameras=tuple(cameras[: network.cameras]))


def new_tokenizer(config: TrainConfig, bins: int, embodiment: Embodiment, actions: np.ndarray) -> ActionTokenizer:
    """Action bins as `bounds` and `bins` say, from at most SAMPLE actions spread over the data."""
    sample = sample_of(actions)
    if config.bounds == "robot":
        embodiment, still = widened(sample, embodiment, bins)
        if still:
            log.warning("the actions hardly move in %s; --bounds FILE gives them a range", ", ".join(still))
        if beyond := beyond_range(sample, embodiment.low, embodiment.high):
            log.warning(
                "%.0f %% of the data's action values lie beyond the robot's range; try --bounds data", 100 * beyond
            )
        elif wasted := stretched(sample, embodiment):
            log.warning("single outliers take most bins of %s; --bounds data leaves them out", ", ".join(wasted))
    elif config.bounds == "data":
        embodiment, still = bounds_of(sample, embodiment)
        if still:
            log.warning("the actions never move in %s; --bounds FILE gives them a range", ", ".join(still))
    else:
        embodiment = read_bounds(Path(config.bounds), embodiment)
    if config.bins == "adaptive":
        return ActionTokenizer.adaptive(sample, embodiment, bins)
    return ActionTokenizer.uniform(embodiment, bins)


def sample_of(actions: np.ndarray) -> np.ndarray:
    return np.asarray(actions[:: max(1, len(actions) // SAMPLE)])


def beyond_range(actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """The share of the actions' numbers (N, D) that lie beyond low and high (D,); 0 where it is not worth a word."""
    share = float(np.mean((actions < low - 1e-3) | (actions > high + 1e-3)))
    return share if share > BEYOND else 0.0


def widened(actions: np.ndarray, embodiment: Embodiment, bins: int) -> tuple[Embodiment, list[str]]:
    """With the range of `bounds_of` where the embodiment's is so narrow for its values that float32 has no numbers for
    the edges of so many bins; and the names of these dimensions."""
    dimensions, names = list(embodiment.action), list[str]()
    for number, found in enumerate(bounds_of(actions, embodiment)[0].action):
        low, high = dimensions[number].low, dimensions[number].high
        if high - low < 2 * bins * np.spacing(np.float32(max(abs(low), abs(high)))):
            dimensions[number] = found
            names.append(found.name)
    return dataclasses.replace(embodiment, action=tuple(dimensions)), names


def stretched(actions: np.ndarray, embodiment: Embodiment) -> list[str]:
    """Dimensions whose range reaches the actions' extremes, most of it for a few of them alone."""
    narrow, _ = bounds_of(actions, embodiment)
    low, high = actions.min(axis=0), actions.max(axis=0)
    return [
        dimension.name
        for dimension, usual, a, b in zip(embodiment.action, narrow.action, low, high, strict=True)
        if (dimension.low, dimension.high) == (float(a), float(b))
        and usual.high - usual.low < STRETCHED * (dimension.high - dimension.low)
    ]


def read_bounds(path: Path, embodiment: Embodiment) -> Embodiment:
    """With the lowest and highest action (D,) from a YAML file."""
    names, count = ", ".join(dimension.name for dimension in embodiment.action), len(embodiment.action)
    try:
        given = files.from_yaml(files.read(path))
        low, high = (np.array(given[key], np.float32) for key in ("low", "high"))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"--bounds {path}: not a YAML file with `low` and `high`, {count} numbers each: {why}"
        ) from None
    if low.shape != (count,) or high.shape != low.shape or not (low < high).all():
        raise ValueError(f"--bounds {path}: `low` and `high` need {count} numbers each ({names}), low < high")
    try:
        dimensions = [
            dataclasses.replace(dimension, low=a, high=b)
            for dimension, a, b in zip(embodiment.action, low.tolist(), high.tolist(), strict=True)
        ]
        return dataclasses.replace(embodiment, action=tuple(dimensions))
    except EmbodimentError as error:
        raise ValueError(f"--bounds {path}: {error}") from None


def require_returns(policy: Policy, config: TrainConfig, dataset: Episodes) -> None:
    """Raises ValueError where the data has no values to learn, and warns of returns that they cannot reach."""
    if not isinstance(policy, Judge):
        return
    if config.batches.reward == "success":
        if not np.any(dataset.success):
            raise ValueError(
                f"0 % of {len(dataset.success)} episodes succeeded: every return is 0, nothing to learn Q from; "
                "say what succeeded with --success all|COLUMN|FILE, or take recorded rewards with --reward dataset"
            )
        return
    low, high = return_range(dataset, policy.discount)
    if low == high == 0:
        raise ValueError("every recorded reward is 0: there is nothing to learn Q from; leave out --reward dataset")
    value_low, value_high = policy.config.value_low, policy.config.value_high
    if low < value_low or high > value_high:
        log.warning(
            "the recorded returns run from %.4g to %.4g, and are cut to %g ... %g; give their range with "
            "--value-low %.4g --value-high %.4g",
            *(low, high, value_low, value_high, min(low, value_low), max(high, value_low)),
        )


def cache_for(config: TrainConfig) -> Path | None:
    """Where decoded frames go: as asked, else beside the data (None), or in the run's folder if that is read-only."""
    beside = config.data[0] / ".cache"
    where = beside if beside.exists() else config.data[0]
    if config.cache is not None or not where.is_dir() or os.access(where, os.W_OK):
        return config.cache
    log.warning("%s cannot be written; decoded frames go to %s (--cache DIR)", where, config.out / ".cache")
    return config.out / ".cache"
