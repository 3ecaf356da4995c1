"""Train one algorithm on recorded episodes.

    python -m saycan_qt.train rt1 --data data/kitchen --out runs/clone
    python -m saycan_qt.train q-transformer --data data/kitchen --init runs/clone/checkpoint --out runs/actor
    python -m saycan_qt.train q-transformer --data data/kitchen --relabel 0.5 --out runs/critic
    python -m saycan_qt.train qt-opt --data data/kitchen --relabel 0.5 --out runs/qt-opt      # or iql, aw-opt
    python -m saycan_qt.train decision-transformer --data data/kitchen --out runs/decisions
    python -m saycan_qt.train finetune --init execution --data data/new data/kitchen --out runs/finetuned
    python -m saycan_qt.train acting --init execution --circles 0 --out runs/straight         # trains nothing
    python -m saycan_qt.train rt1 --data data/kitchen --out /tmp/run --debug      # tiny model; what the tests run
    torchrun --nproc-per-node 2 -m saycan_qt.train rt1 ...                        # the same run on two processes

Your own data, a LeRobotDataset v3 or Open X-Embodiment's TFRecords, of any robot: its cameras, its state, its actions
and its rate are the data's. A mapping says what the data does not, or something else:

    python -m saycan_qt.train q-transformer --data DIR --out runs/own
    python -m saycan_qt.train q-transformer --data DIR --rate 5 --mapping FILE.yaml --out runs/own

Killed and started again with the same command, it continues from its last state; with --steps the loss curve and the
weights are those of an uninterrupted run. On other data it does not; `finetune` goes on with a checkpoint. Numbers that
are not finite end it, and another --learning-rate goes on from before them. OUT/checkpoint holds the moving average of
the weights, ready to serve; OUT/metrics.jsonl and OUT/tensorboard the numbers, which `python -m saycan_qt.figures
training OUT` draws.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from saycan_qt.data.episodes import DatasetError, EpisodeDataset
from saycan_qt.learning import calibration, checkpoint, distributed, divergence
from saycan_qt.learning.acting import Acting
from saycan_qt.learning.algorithms.decision_transformer import DecisionTransformerConfig
from saycan_qt.learning.algorithms.iql import IQLConfig
from saycan_qt.learning.algorithms.policy import Judge
from saycan_qt.learning.algorithms.q_transformer import QTransformerConfig
from saycan_qt.learning.algorithms.qt_opt import QTOptConfig
from saycan_qt.learning.batches import Episodes
from saycan_qt.learning.folder import (
    CONFIG,
    as_json,
    defaults_of,
    only_writer,
    require_the_same,
    settings_in,
    write_settings,
)
from saycan_qt.learning.loop import CHECKPOINT, STATE, Run
from saycan_qt.learning.start import (
    Finetune,
    TrainAWOpt,
    TrainConfig,
    TrainDecisionTransformer,
    TrainIQL,
    TrainQTOpt,
    TrainQTransformer,
    TrainRT1,
    cache_for,
    new_policy,
    preset_for,
    require_returns,
)
from saycan_qt.options import called, require, require_share
from skills.errors import SkillError

log = logging.getLogger(__name__)


def debug_config(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(
        config,
        preset="debug",
        batches=dataclasses.replace(config.batches, batch_size=32),
        steps=min(config.steps, 20),
        snapshots=tuple(step for step in config.snapshots if step <= 20),
        warmup=5,
        log_every=2,
        validate_every=10,
        save_seconds=0.0,
        threads=1,
        bfloat16=False,
    )


def check(config: TrainConfig) -> None:
    """Raises ValueError for numbers that make no run."""
    require(
        config,
        steps=1,
        warmup=0,
        log_every=1,
        validate_every=1,
        threads=1,
        minutes=0,
        save_seconds=0,
        rate=0,
        cache_size=0,
    )
    require(config, weight_decay=0, chunk=1)
    require(config.batches, batch_size=1, stretch=0, jitter_common=0, jitter_each=0, terminal_motion=0, seed=0)
    require_share(config, "average", "max_bad_share")
    require_share(config.batches, "relabel", "starts", "successes", "random_shift", "colour_jitter")
    if config.batches.relabel_with != "any" and not config.batches.relabel:
        given = config.batches.relabel_with
        raise ValueError(f"--relabel-with {given}: nothing is relabelled without --relabel, a share such as 0.5")
    if config.freeze_norm is not None:
        require(config, freeze_norm=0)
    if beyond := [step for step in config.snapshots if not 1 <= step <= config.steps]:
        raise ValueError(f"--snapshots {beyond[0]}: from 1 to --steps {config.steps}")
    if config.anew and config.init is None:
        raise ValueError("--anew is about --init, whose eyes it takes; without that, all begins by chance anyway")
    if config.init is not None:
        usual = defaults_of(config)
        for name in ("preset", "text_model", "bounds", "bins"):
            if (given := getattr(config, name)) != usual[name] and not config.debug:
                said = f"--{name.replace('_', '-')} {given}"
                raise ValueError(f"{said}: that comes with --init {config.init}; leave one of them out")
    if not 0 < config.learning_rate < math.inf:
        raise ValueError(f"--learning-rate {config.learning_rate}: it must be above 0")
    check_algorithm(config.algorithm)


def check_algorithm(config: Any) -> None:
    """Raises ValueError for settings of an algorithm that mean nothing."""
    if isinstance(config, QTOptConfig | IQLConfig | DecisionTransformerConfig):
        config.require_sound()
    widths = ("label_deviation", "smoothing", "pointing_weight")
    require(config, **{name: 0 for name in widths if hasattr(config, name)})
    if isinstance(config, QTransformerConfig):
        require(config, conservative_weight=0, td_deviation=0, circles=0, behavior_weight=0, acting_deviation=0)
        require_share(config, "behavior_threshold")
        if config.behavior_threshold > 0 and config.behavior_weight == 0:
            raise ValueError("--behavior-threshold is about the behaviour head, which --behavior-weight trains")
    if isinstance(config, QTransformerConfig | QTOptConfig | IQLConfig):
        require_share(config, "discount")
        if not config.value_low < config.value_high:
            low, high = config.value_low, config.value_high
            raise ValueError(f"--value-low {low:g} must be below --value-high {high:g}")


FREE = {  # settings that may change from one start of a run to the next; of the data, its digest is compared
    *("out", "steps", "minutes", "threads", "save_seconds", "validate_every", "snapshots", "device", "compile"),
    *("cache", "cache_size", "data", "mapping", "data_digest", "init_digest"),
}


def remember(config: TrainConfig, kind: str, digest: str) -> None:
    """Write config.json; refuse to continue a run under other settings, or on other data."""
    described = as_json({"kind": kind, **dataclasses.asdict(config), "data_digest": digest})
    described["init_digest"] = config.init and checkpoint.digest(checkpoint.resolve(config.init))
    begun = [name for name in (STATE, CHECKPOINT) if checkpoint.exists(config.out / name)]
    if begun and not (config.out / CONFIG).exists():
        raise ValueError(f"{config.out / begun[0]} is there, and no {CONFIG} says of what run; choose another --out")
    if begun:
        from_there = f"choose another --out, with `finetune --init {config.out / CHECKPOINT}` to start from them"
        before = settings_in(config.out, f"the weights are as they were: {from_there}")
        before.setdefault("algorithm", before.get("q", before.get("rt1")))  # older runs call it so
        free = FREE - ({"data", "mapping"} if "data_digest" not in before else set())
        before = with_defaults(before, config)
        if before.get("data_digest", digest) != digest:
            raise ValueError(
                f"{config.out} holds a run on other data, or with another mapping: its weights mean that data's "
                f"actions; {from_there}"
            )
        if divergence.has_diverged(config.out):
            free |= {"learning_rate", "warmup"}
        if (began := before.get("init_digest")) and began == described["init_digest"]:
            free |= {"init"}  # the same, under another name
        described["init_digest"] = began
        require_the_same(config.out, described, before, free)
    write_settings(config.out, described)


def with_defaults(before: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """A run's settings, and the defaults of those that there were none of when it began."""
    filled = defaults_of(config) | before
    for name in ("batches", "algorithm"):
        part = getattr(config, name)
        if part is not None and isinstance(filled.get(name), dict):
            filled[name] = defaults_of(part) | filled[name]
    if isinstance(batches := filled.get("batches"), dict) and not batches.get("relabel"):
        batches["relabel_with"] = "any"  # another was taken once, and changed nothing
    return filled


def the_only_one(config: TrainConfig) -> contextlib.AbstractContextManager[object]:
    """Held while this process writes to the run's folder. Raises ValueError where another one does."""
    if distributed.rank():
        return contextlib.nullcontext()
    return only_writer(config.out)


def tell(run: Run, dataset: Episodes) -> None:
    """Which robot it is, and how far ahead its values look."""
    robot, hz = run.policy.embodiment, run.policy.embodiment.control_hz
    cameras = ", ".join(f"{camera.name} {camera.height} x {camera.width}" for camera in robot.cameras)
    run.say(
        f"{robot.name or 'the robot'}: {len(robot.action)} action dimensions, cameras: {cameras or 'none'}, "
        f"{len(robot.state)} state numbers, {f'{hz:g} Hz' if hz else 'a rate that the data does not say'}"
        + (f", in chunks of {run.policy.chunk} actions" if run.policy.chunk > 1 else "")
    )

    if run.transitions.stretch > 1:
        run.say(
            f"batches of {run.transitions.stretch} consecutive transitions each from some episode, whose windows share "
            "frames; --stretch 1 draws them singly"
        )

    def steps(count: float) -> str:
        return f"{count:.0f} steps" + (f" ({count / hz:.1f} s)" if hz else "")

    if isinstance(run.policy, Judge):
        discount = run.policy.discount
        horizon = steps(1 / (1 - discount)) if discount < 1 else "all steps"
        length = float(np.mean(np.diff(dataset.episode_start)))
        run.say(f"discount {discount:g} a step: values look {horizon} ahead; an episode has {steps(length)} on average")


def train(config: TrainConfig) -> dict[str, Any]:
    """Train to the end; returns the last validation."""
    if config.debug:
        config = debug_config(config)
    check(config)
    torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    with distributed.joined(config.device) as device, the_only_one(config):
        config = dataclasses.replace(config, cache=cache_for(config))
        dataset = EpisodeDataset(
            list(config.data),
            config.max_bad_share,
            config.cache,
            config.mapping or None,
            rate=config.rate or None,
            success=config.success or None,
            cache_size=config.cache_size,
        )
        preset = preset_for(config.preset, dataset.embodiment)
        if config.preset is None and preset != "small" and config.init is None:
            log.info("--preset %s: the small one's eyes are for a robot with one camera that knows its gripper", preset)
        config = dataclasses.replace(config, preset=preset)
        policy, texts = new_policy(config, dataset)
        require_returns(policy, config, dataset)
        if distributed.rank() == 0:
            remember(config, type(policy.config).__name__, dataset.digest)
        run = Run(dataclasses.replace(config, device=device), dataset, policy, texts)
        run.say(
            f"{run.policy.name}: {sum(p.numel() for p in run.parameters):,} trained weights; "
            f"{len(run.transitions.train):,} transitions of {len(dataset.success):,} episodes "
            f"({np.mean(dataset.success):.0%} succeeded), {len(dataset.tasks)} instructions"
            + (f"; continuing at step {run.step}" if run.step else "")
        )
        tell(run, dataset)
        validation = run.train()
        run.say(f"finished at step {run.step}; checkpoint in {config.out / 'checkpoint'}")
    return validation


def act(asked: Acting) -> None:
    """Write the checkpoint, and its calibration where there is one. Raises ValueError, and CheckpointError."""
    policy, texts = asked.policy()
    check_algorithm(policy.config)
    old, new = checkpoint.resolve(asked.init), asked.out / CHECKPOINT
    there = [folder for folder in (asked.out, asked.out / STATE, new) if checkpoint.exists(folder)]
    if there:
        raise ValueError(f"{there[0]} is there; choose another --out")
    provenance = checkpoint.load_files(old)[2]
    changes = [*provenance.get("acting", ()), "python -m saycan_qt.train " + " ".join(sys.argv[1:])]
    curve = calibration.load(old) if calibration.beside(old).exists() else None  # values are what they were
    asked.out.mkdir(parents=True, exist_ok=True)
    with only_writer(asked.out):
        checkpoint.save(new, *policy.describe(texts), provenance | {"acting": changes})
        if curve is not None:
            calibration.save(curve, new, curve.provenance)
    log.info("checkpoint in %s", new)


Command = (
    Annotated[TrainQTransformer, tyro.conf.subcommand("q-transformer", prefix_name=False)]
    | Annotated[TrainQTOpt, tyro.conf.subcommand("qt-opt", prefix_name=False)]
    | Annotated[TrainIQL, tyro.conf.subcommand("iql", prefix_name=False)]
    | Annotated[TrainAWOpt, tyro.conf.subcommand("aw-opt", prefix_name=False)]
    | Annotated[TrainDecisionTransformer, tyro.conf.subcommand("decision-transformer", prefix_name=False)]
    | Annotated[TrainRT1, tyro.conf.subcommand("rt1", prefix_name=False)]
    | Annotated[Finetune, tyro.conf.subcommand("finetune", prefix_name=False)]
    | Annotated[Acting, tyro.conf.subcommand("acting", prefix_name=False)]
)


def command(arguments: Sequence[str] | None = None) -> TrainConfig | Acting:
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    program = called("python -m saycan_qt.train")
    return tyro.cli(Command, args=arguments, prog=program, description=__doc__, config=flat)  # type: ignore[arg-type]


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        asked = command()
        if isinstance(asked, Acting):
            act(asked)
        else:
            train(asked)
    except (ValueError, OSError, DatasetError, SkillError, calibration.CalibrationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last state that was saved", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
