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
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from saycan_qt.data.episodes import DatasetError, EpisodeDataset
from saycan_qt.learning import checkpoint, distributed
from saycan_qt.learning.loop import STATE, Run
from saycan_qt.learning.start import (
    Finetune,
    TrainConfig,
    TrainQTOpt,
    TrainQTransformer,
    TrainRT1,
    new_policy,
)
from saycan_qt.options import called


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


def train(config: TrainConfig) -> dict[str, Any]:
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
    program = called("python -m saycan_qt.train")
    return tyro.cli(Command, args=arguments, prog=program, description=__doc__, config=flat)  # type: ignore[arg-type]


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        train(command())
    except (ValueError, OSError, DatasetError, checkpoint.CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
