"""How long a policy takes to act, by the number of action dimensions: each is decoded after the one before it.

    python benchmarks/decoding.py                                  # D = 2, 7, 14
    python benchmarks/decoding.py --dims 2 7 14 30 --preset paper --json

Seeing is from the images to the keys and values of their tokens, deciding from there to an action. Images, states and
instructions are random, on one robot at a time, in float32.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import tyro

from saycan_qt.learning.algorithms import ALGORITHMS
from saycan_qt.networks.backbone import PRESETS, StateConfig
from saycan_qt.networks.tokens import TEXT_SIZE, TextEncoder
from skills.embodiment import ActionDimension, Camera, Embodiment, StateNumber
from skills.types import Observation

INSTRUCTION = "pick up the cube"


@dataclass(frozen=True)
class DecodingConfig:
    """Measure how long acting takes."""

    dims: tuple[int, ...] = (2, 7, 14)  # of an action
    cameras: int = 2
    algorithms: tuple[Literal["rt1", "q-transformer", "qt-opt"], ...] = ("rt1", "q-transformer", "qt-opt")
    preset: Literal["compact", "paper"] = "compact"
    actions: int = 20  # timed for each, after one that is not
    threads: int = 2
    device: str = "cpu"
    json: bool = False


def robot(dims: int, cameras: int, image: tuple[int, int]) -> Embodiment:
    return Embodiment(
        action=tuple(ActionDimension(f"joint_{number}", -1, 1, "rad") for number in range(dims)),
        cameras=tuple(Camera(f"camera_{number}", *image) for number in range(cameras)),
        state=tuple(StateNumber(f"joint_{number}", "rad") for number in range(dims)),
    )


def measure(name: str, dims: int, config: DecodingConfig) -> dict[str, float]:
    """Medians [ms]."""
    torch.manual_seed(0)
    network = PRESETS[config.preset]
    assert network.encoder is not None
    body = robot(dims, config.cameras, network.encoder.image)
    network = network.fitted(body, StateConfig.of(body, [0.0] * dims, [1.0] * dims))
    rng = np.random.default_rng(0)
    words = TextEncoder({INSTRUCTION: rng.normal(0, TEXT_SIZE**-0.5, TEXT_SIZE).astype(np.float32)})
    kind = ALGORITHMS[name]
    policy = kind(network, kind.config_type(), words, embodiment=body).to(config.device)  # type: ignore[call-arg, arg-type]
    images = {c.name: rng.integers(0, 255, (c.height, c.width, 3), dtype=np.uint8) for c in body.cameras}
    history = [Observation(images, np.zeros(dims, np.float32))] * network.history
    seeing, deciding = [], []
    for _ in range(config.actions + 1):
        with torch.inference_mode():
            begun = time.perf_counter()
            frames, states = policy.observe([history])
            memory = policy.acting.eval().encode(frames, states, words.encode([INSTRUCTION]).to(policy.device))
            if policy.device.type == "cuda":
                torch.cuda.synchronize()
            seen = time.perf_counter()
            policy.decide(policy.acting, memory).cpu()
            decided = time.perf_counter()
        seeing.append(seen - begun)
        deciding.append(decided - seen)
    return {"seeing_ms": 1e3 * float(np.median(seeing[1:])), "deciding_ms": 1e3 * float(np.median(deciding[1:]))}


def main(config: DecodingConfig) -> None:
    torch.set_num_threads(config.threads)
    rows = [
        {"algorithm": name, "dims": dims, **measure(name, dims, config)}
        for name in config.algorithms
        for dims in config.dims
    ]
    if config.json:
        print(json.dumps({"preset": config.preset, "cameras": config.cameras, "rows": rows}))
        return
    print(f"{config.preset}, {config.cameras} cameras, {config.threads} threads, {config.device}; medians in ms")
    print(f"{'algorithm':16}{'D':>4}{'seeing':>10}{'deciding':>10}{'action':>10}{'Hz at most':>12}")
    for row in rows:
        seeing, deciding = float(row["seeing_ms"]), float(row["deciding_ms"])
        action = seeing + deciding
        print(
            f"{row['algorithm']:16}{row['dims']:>4}{seeing:>10.1f}{deciding:>10.1f}{action:>10.1f}{1e3 / action:>12.0f}"
        )


if __name__ == "__main__":
    main(tyro.cli(DecodingConfig, description=__doc__))
