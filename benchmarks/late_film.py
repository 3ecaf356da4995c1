"""What it costs that an instruction reaches the image encoder late: F1 of affordances, and the time to score skills.

    python -m saycan_qt.collect --out data/possible --episodes 6000 --anywhere 1 --failures 0 --impossible 0.35 \\
        --possible --seed 5
    python -m saycan_qt.collect affordance --scenes 400 --seed 20000 --out data/scenes
    python benchmarks/late_film.py --data data/possible --scenes data/scenes --out runs/film

`paper-shared` is the paper's network with FiLM in the last two of seven stages, so that the others see a frame once for
all skills that are scored. The paper's size takes a GPU. Here both are a few hundredths of it and learn affordances
from pixels by the same steps with the same seeds: what differs is FiLM alone. A run that is there is not made again, an
interrupted one goes on. On two CPU cores collecting takes half an hour, and each of the four trainings ten minutes.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from saycan_qt.evaluation.affordance.measure import AffordanceConfig, evaluate
from saycan_qt.evaluation.affordance.table import cell
from saycan_qt.learning import checkpoint
from saycan_qt.learning.algorithms.policy import Judge
from saycan_qt.learning.algorithms.q_transformer import QTransformerConfig
from saycan_qt.learning.batches import BatchConfig
from saycan_qt.networks.backbone import PAPER, PAPER_SHARED, PRESETS
from saycan_qt.networks.efficientnet import EfficientNetConfig
from saycan_qt.train import TrainQTransformer, train
from skills.robot_folder import default_robot
from skills.types import Observation

NETWORKS = {"FiLM throughout": PAPER, "FiLM in the last two stages": PAPER_SHARED}


@dataclass(frozen=True)
class LateFilmConfig:
    """Compare FiLM throughout with FiLM in the last two stages, small."""

    data: Path  # episodes of `collect --possible`
    scenes: Path  # of `collect affordance`
    out: Path
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 1200
    batch_size: int = 64
    rounds: int = 20  # in which the time to score is measured, in turns
    threads: int = 2


def small(name: str) -> None:
    """What --preset paper is from now on."""
    film_from = NETWORKS[name].encoder.film_from  # type: ignore[union-attr]
    encoder = EfficientNetConfig(width_multiplier=0.3, depth_multiplier=0.5, film_from=film_from)
    PRESETS["paper"] = dataclasses.replace(PAPER, encoder=encoder, history=1, width=128, layers=3, heads=4)


def trained(config: LateFilmConfig, name: str, seed: int) -> Path:
    small(name)
    out = config.out / f"{name.replace(' ', '-')}-{seed}"
    run = TrainQTransformer(
        data=(config.data,),
        out=out,
        cache=config.out / "cache",
        preset="paper",
        steps=config.steps,
        threads=config.threads,
        batches=BatchConfig(config.batch_size, relabel=0.75, relabel_with="impossible", starts=0.85, seed=seed),
        algorithm=QTransformerConfig(discount=1, loss="cross_entropy"),
    )
    if not (out / "done").exists():
        train(run)
        (out / "done").touch()
    return out / "checkpoint"


def times(config: LateFilmConfig, checkpoints: dict[str, Path]) -> dict[str, list[float]]:
    """[s] of scoring all learnt skills from one image, of each network in turns."""
    body, rng = default_robot(), np.random.default_rng(0)
    camera = body.embodiment.cameras[0]
    image = rng.integers(0, 256, (camera.height, camera.width, 3), np.uint8)
    seen = Observation({camera.name: image}, np.zeros(len(body.embodiment.state), np.float32))
    skills = [skill.name for skill in body.library if skill.learned]
    judges: dict[str, Any] = {name: checkpoint.load(path) for name, path in checkpoints.items()}
    taken: dict[str, list[float]] = {name: [] for name in judges}
    for turn in range(config.rounds + 1):
        for name, judge in judges.items():
            assert isinstance(judge, Judge)
            began = time.perf_counter()
            judge.value([seen], skills)
            if turn:  # the first warms up
                taken[name].append(time.perf_counter() - began)
    return taken


def main(config: LateFilmConfig) -> int:
    console, found, folders = Console(), dict[str, list[dict[str, Any]]](), dict[str, Path]()
    for seed in config.seeds:
        for name in NETWORKS:
            folder = folders[name] = trained(config, name, seed)
            asked = AffordanceConfig(
                config.scenes, checkpoint=(str(folder),), threshold="tuned", threads=config.threads
            )
            [model] = evaluate(asked, console)[0]["models"].values()
            found.setdefault(name, []).append(model)
    taken = times(config, folders)
    title = f"{config.steps} steps of {config.batch_size} transitions, seeds {', '.join(map(str, config.seeds))}"
    table = Table("", *NETWORKS, title=title)
    for key, label in {"f1": "F1", "ap": "average precision"}.items():
        for number, seed in enumerate(config.seeds):
            table.add_row(f"{label}, seed {seed}", *(cell(found[name][number], key) for name in NETWORKS))
        table.add_row(f"{label}, mean", *(f"{fmean(model[key] for model in found[name]):.3f}" for name in NETWORKS))
    table.add_row("all skills of one image, ms", *(f"{1e3 * median(taken[name]):.0f}" for name in NETWORKS))
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(LateFilmConfig)))
