"""Demonstrations of watering, recorded as a LeRobotDataset v3 that `python -m saycan_qt.train` reads as it is.

python examples/watering/collect.py --out data/watering --episodes 400
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from driver import BED, ROBOT, Gantry

from saycan_qt.data.lerobot import Episode
from saycan_qt.data.writer import EpisodeWriter
from skills.library import Skill
from skills.types import Observation


@dataclass(frozen=True)
class Config:
    out: Path = Path("data/watering")  # what is there stays; more is added
    episodes: int = 400
    noise: float = 0.3  # of what is carried out, in steps: so the policy also sees how to get back


def demonstrate(skill: Skill, seed: int, noise: float) -> Episode:
    """One plant watered, from anywhere."""
    rng = np.random.default_rng([seed, 1])
    robot, low, high = Gantry(seed + 1), ROBOT.embodiment.low, ROBOT.embodiment.high
    plant = robot.plants[skill.arguments["plant"]]
    if seed % 2:  # half of them begin near the plant, where x may be right and y is not
        robot.at = np.clip(plant + rng.uniform(-0.25, 0.25, 2), 0, BED)
    else:
        robot.at = rng.uniform([0, 0], BED)
    robot.tank = float(rng.choice([0.5, 1.0]))
    seen: list[Observation] = []
    actions: list[np.ndarray] = []
    while not robot.succeeded(skill) and len(actions) < ROBOT.embodiment.max_steps:
        action = robot.expert(skill.arguments["plant"])
        seen.append(robot.observe())
        actions.append(action)  # what should be done, whatever is
        blurred = action + [*rng.normal(0, noise * high[:2] * (action[2] < 0.5)), 0.0]
        robot.apply(np.clip(blurred, low, high))
    return Episode(
        images={name: np.stack([now.images[name] for now in seen]) for name in seen[0].images},
        states=np.stack([now.state for now in seen]),
        actions=np.stack(actions),
        task=skill.name,
        success=bool(robot.succeeded(skill)),
    )


def learnt() -> Sequence[Skill]:
    return [skill for skill in ROBOT.library if skill.learned]


def main(config: Config) -> None:
    skills = learnt()
    with EpisodeWriter(config.out, ROBOT.embodiment) as writer:
        for number in range(writer.num_episodes, config.episodes):
            writer.add(demonstrate(skills[number % len(skills)], number, config.noise))
        print(f"{writer.num_episodes} episodes, {writer.num_frames} frames in {config.out}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
