"""Tiny policies and batches that the learning tests share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from saycan_qt.learning import checkpoint
from saycan_qt.learning.algorithms.aw_opt import AWOpt, AWOptConfig
from saycan_qt.learning.algorithms.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from saycan_qt.learning.algorithms.iql import IQL, IQLConfig
from saycan_qt.learning.algorithms.policy import Batch, Policy
from saycan_qt.learning.algorithms.q_transformer import QTransformer, QTransformerConfig
from saycan_qt.learning.algorithms.qt_opt import QTOpt, QTOptConfig
from saycan_qt.learning.algorithms.rt1 import RT1, RT1Config
from saycan_qt.networks.backbone import DEBUG, StateConfig
from saycan_qt.networks.efficientnet import EfficientNetConfig
from saycan_qt.networks.keypoints import TrunkConfig
from saycan_qt.networks.pointing import PointingConfig
from saycan_qt.networks.tokens import TextEncoder
from skills.embodiment import ActionDimension, Camera, Embodiment, StateNumber
from skills.robot_folder import default_robot
from skills.types import Observation

KITCHEN = default_robot().embodiment
torch.set_num_threads(1)  # threads of tiny networks only wait for each other
TEXTS = ("pick coke can", "open top drawer", "pick apple")
CONSTRAINED = QTransformerConfig(behavior_weight=1.0, behavior_threshold=0.5)
PAPER_LIKE = replace(
    DEBUG,
    encoder=EfficientNetConfig(image=(32, 32), width_multiplier=0.1, depth_multiplier=0.1, film_from=2),
    tokens=2,
    history=2,
    state_token=False,
    text_token=False,
)
POINTING = replace(
    DEBUG, encoder=PointingConfig(image=(32, 40), channels=(8, 16), blocks=1, keys=16, hidden=32), tokens=4, history=2
)
KINDS = {
    "rt1": (RT1, RT1Config(), DEBUG),
    "rt1, pointing": (RT1, RT1Config(), POINTING),
    "q-transformer": (QTransformer, QTransformerConfig(), DEBUG),
    "q-transformer, one-step": (QTransformer, QTransformerConfig(n_step=False, loss="cross_entropy"), DEBUG),
    "q-transformer, constrained": (QTransformer, CONSTRAINED, DEBUG),
    "q-transformer, efficientnet": (QTransformer, QTransformerConfig(), PAPER_LIKE),
    "q-transformer, pointing": (QTransformer, QTransformerConfig(), POINTING),
    "iql": (IQL, IQLConfig(), DEBUG),
    "iql, efficientnet": (IQL, IQLConfig(), PAPER_LIKE),
    "decision-transformer": (DecisionTransformer, DecisionTransformerConfig(context=3), replace(DEBUG, history=3)),
    "aw-opt": (AWOpt, AWOptConfig(), DEBUG),
    "qt-opt": (QTOpt, QTOptConfig(), DEBUG),
    "qt-opt, efficientnet": (QTOpt, QTOptConfig(cql_weight=0.0), PAPER_LIKE),
}
AUTOREGRESSIVE = [kind for kind in KINDS if not kind.startswith(("qt-opt", "decision"))]  # by now alone, bin by bin


def texts() -> TextEncoder:
    vectors = np.random.default_rng(0).normal(size=(len(TEXTS), 384)).astype(np.float32)
    return TextEncoder(dict(zip(TEXTS, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strict=True)))


def make(kind: str, seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    algorithm, config, network = KINDS[kind]
    return algorithm(network, config, texts())


def body(
    action: dict[str, tuple[float, float, str, str]], cameras: str = "", states: int = 0, hz: float = 10.0
) -> Embodiment:
    """action: name -> low, high, unit, kind; cameras: names, all of 30 x 40 pixels."""
    return Embodiment(
        action=tuple(ActionDimension(name, *numbers) for name, numbers in action.items()),
        cameras=tuple(Camera(name, 30, 40) for name in cameras.split()),
        state=tuple(StateNumber(f"joint_{number}", "deg") for number in range(states)),
        control_hz=hz,
    )


def joints(count: int, unit: str = "deg", kind: str = "absolute") -> dict[str, tuple[float, float, str, str]]:
    return {f"joint_{number}": (-90.0 - number, 100.0, unit, kind) for number in range(count)}


BODIES = {
    "SO-101": body(joints(6), "front wrist", 6, 30),
    "ALOHA": body(joints(14, "rad"), "high low left right", 14, 50),
    "PushT": body({"x": (0, 512, "px", "absolute"), "y": (0, 512, "px", "absolute")}, "top", 2),
    "DROID": body(
        {"end": (0, 1, "", "terminate"), **joints(6, "rad/s"), "grip": (0, 1, "", "fraction")}, "a b c", 8, 15
    ),
    "LIBERO": body({f"d{name}": (-1, 1, "", "delta") for name in "xyzrpw"} | {"t": (0, 1, "", "terminate")}, "a b"),
    "OGBench": body({f"d{name}": (-1, 1, "", "delta") for name in "xyzwg"}, "", 21, 0),
}


def recorded(robot: Embodiment, count: int = 4, length: int = 6, size: tuple[int, int] = (20, 24)) -> SimpleNamespace:
    """What training asks of a dataset: random episodes, every other one a success; images of `size` pixels."""
    rng, frames = np.random.default_rng(0), count * length
    cameras = {c.name: rng.integers(0, 255, (frames, *size, 3), dtype=np.uint8) for c in robot.cameras}
    return SimpleNamespace(
        embodiment=robot,
        cameras=cameras,
        images=next(iter(cameras.values()), np.zeros((frames, 0, 0, 3), np.uint8)),
        states=rng.normal(0, 0.3, (frames, len(robot.state))).astype(np.float32),
        actions=rng.uniform(robot.low, robot.high, (frames, len(robot.action))).astype(np.float32),
        rewards=np.zeros(frames, np.float32),
        frame_episode=np.arange(frames) // length,
        episode_start=np.arange(count + 1) * length,
        episode_task=np.arange(count) % len(TEXTS),
        success=np.arange(count) % 2 == 0,
        finished=np.ones(count, bool),
        tasks=list(TEXTS),
        digest="0" * 64,
    )


def seen_by(robot: Embodiment, seed: int = 0) -> Observation:
    """Noise, in the sizes of the robot's own cameras."""
    rng = np.random.default_rng(seed)
    images = {c.name: rng.integers(0, 255, (c.height, c.width, 3), dtype=np.uint8) for c in robot.cameras}
    return Observation(images, rng.normal(0, 0.3, len(robot.state)).astype(np.float32))


def batch_for(policy: Policy, size: int = 16, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    network = policy.network_config
    if isinstance(network.encoder, TrunkConfig):
        frames = torch.from_numpy(
            rng.normal(0, 0.3, (size, network.history + 1, 27, network.encoder.outputs)).astype(np.float32)
        )
    else:
        frames = torch.from_numpy(rng.integers(0, 255, (size, 3, *network.encoder.image, 3), dtype=np.uint8))
    success, last = torch.arange(size) % 2, torch.arange(size) % 4 == 1
    states = rng.normal(0, 0.3, (size, network.history + 1, 8)).astype(np.float32)
    tokens = torch.from_numpy(rng.integers(0, 256, (size, 8)))
    return Batch(
        frames=frames,
        states=torch.from_numpy(states),
        text=policy.texts.encode([TEXTS[i % len(TEXTS)] for i in range(size)]),
        actions=policy.tokenizer.decode(tokens),
        tokens=tokens,
        next_tokens=torch.from_numpy(rng.integers(0, 256, (size, 8))),
        reward=(last * success).float(),
        terminated=last.float(),
        returns=success * 0.9,
        demonstrates=success.float(),
        past_tokens=torch.from_numpy(rng.integers(0, 256, (size, network.history - 1, 8))),
        past_returns=(success * 0.9)[:, None].expand(-1, network.history - 1),
        events=torch.from_numpy(rng.normal(0, 0.3, (size, 3, 8)).astype(np.float32)),
        to_come=torch.from_numpy(rng.integers(0, 2, (size, 3)).astype(np.float32)),
    )


WALK = body({"dx": (-1, 1, "", "delta")}, states=1)


def walker(kind: str, robot: Embodiment = WALK, **settings) -> Policy:
    """A policy, ready to be trained; by default of a robot that is one number, and moves by one."""
    torch.manual_seed(0)
    algorithm, config, network = KINDS[kind]
    state = StateConfig.of(robot, [0], [1])
    policy = algorithm(network.fitted(robot, state), replace(config, **settings), texts(), embodiment=robot)
    policy.prepare("cpu", freeze_trunk=True)
    return policy


def walked(policy: Policy, states, actions, after, **numbers) -> Batch:
    """Transitions of it: (B,) each, actions (B,) or (B, D). Alone in their windows."""
    count, past = len(states), policy.network_config.history - 1
    actions = actions.view(count, -1)
    tokens = policy.tokenizer.encode(actions)
    zeros = torch.zeros(count)
    given = {name: zeros for name in ("reward", "terminated", "returns", "demonstrates")} | numbers
    return Batch(
        frames=torch.zeros(count, 0, dtype=torch.uint8),
        states=torch.stack([states] * (past + 1) + [after], dim=1)[..., None],
        text=policy.texts.encode([TEXTS[0]] * count),
        actions=actions,
        tokens=tokens,
        next_tokens=tokens,
        past_tokens=torch.full((count, past, tokens.shape[1]), -1),
        past_returns=given["returns"][:, None].expand(-1, past),
        **given,
    )


def steps_on_a_chain(policy: Policy, seed: int, count: int = 64) -> Batch:
    """Four states, -3, -1, 1 and 3: forwards by actions above 0, backwards by others; past the last is success."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randint(0, 4, (count,), generator=generator) * 2.0 - 3
    actions = torch.rand(count, generator=generator) * 2 - 1
    forwards = actions > 0
    ends = (forwards & (states == 3)).float()
    after = (states + torch.where(forwards, 2, -2)).clamp(-3, 3)
    return walked(policy, states, actions, after, reward=ends, terminated=ends, demonstrates=forwards.float())


def fit_to(policy: Policy, batches: Iterable[Batch], rate: float = 3e-3, average: float = 0.1) -> None:
    optimizer = torch.optim.AdamW([p for p in policy.network.parameters() if p.requires_grad], rate)
    for batch in batches:
        optimizer.zero_grad()
        policy.loss(batch)[0].backward()
        optimizer.step()
        policy.after_step(average)


def at(*places: float) -> list[list[Observation]]:
    """Histories of one observation each."""
    return [[Observation({}, np.array([place], np.float32))] for place in places]


def save_perception(folder: Path) -> Path:
    """An untrained trunk as a checkpoint, with the embeddings of TEXTS."""
    policy = make("rt1")
    encoder = policy.network.encoder
    config = {"algorithm": "perception", "trunk": checkpoint.plain(encoder.trunk.config), "texts": TEXTS}
    tensors = {f"trunk.{k}": v for k, v in encoder.trunk.state_dict().items()}
    tensors |= {f"grounding.{k}": v for k, v in encoder.grounding.state_dict().items()}
    checkpoint.save(folder, config, tensors | {"texts": policy.texts.encode(TEXTS)}, {})
    return folder


def observation(policy: Policy, seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 255, (*policy.network_config.encoder.image, 3), dtype=np.uint8)
    return Observation(image, rng.normal(0, 0.3, 8).astype(np.float32))
