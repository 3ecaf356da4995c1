"""Teach the keypoint trunk to see the kitchen, and a small net which things an instruction names.

    python -m saycan_qt.pretrain --frames 16000 --out runs/perception
    python -m saycan_qt.pretrain --debug --out /tmp/perception          # seconds; what the tests run

It stands in for the paper's ImageNet pre-training of the image encoder. Labels come from the simulator's own
segmentation and poses; policies never see them. Killed and started again with the same command, it continues. Numbers
that are not finite end it, and another --learning-rate goes on from before them.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from saycan_qt.kitchen.objects import THINGS
from saycan_qt.kitchen.practice.perception import KEYPOINTS, labelled_frames
from saycan_qt.learning import checkpoint, divergence
from saycan_qt.learning.distributed import require_device
from saycan_qt.learning.folder import (
    CONFIG,
    as_json,
    defaults_of,
    only_writer,
    require_the_same,
    settings_in,
    write_settings,
)
from saycan_qt.learning.perception import (
    STATE,
    PretrainConfig,
    debug_config,
    figures,
    gather,
    named_keypoints,
    teach_grounding,
    train_trunk,
)
from saycan_qt.learning.start import read_eyes
from saycan_qt.networks.keypoints import Grounding, KeypointTrunk, TrunkConfig
from saycan_qt.networks.tokens import TextEncoder
from saycan_qt.options import parse, require, require_share
from skills.errors import SkillError
from skills.library import SkillLibrary


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    if config.debug:
        config = debug_config(config)
    check(config)
    torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    with only_writer(config.out):
        return run(config)


def check(config: PretrainConfig) -> None:
    """Raises ValueError for numbers that make no run."""
    require(config, frames=2, epochs=1, batch_size=1, workers=1, threads=1, weight_decay=0, position_weight=0, seed=0)
    require_share(config, "asked")
    if not 0 < config.learning_rate < math.inf:
        raise ValueError(f"--learning-rate {config.learning_rate}: it must be above 0")
    if not 0 <= config.held_out < 1:
        raise ValueError(f"--held-out {config.held_out}: a share of the frames, below 1")
    require_device(config.device)


FREE = {"out", "epochs", "workers", "threads", "device"}  # settings that may change from one start of a run to the next


def remember(config: PretrainConfig) -> None:
    """Write config.json; refuse to go on with a run of other settings. One that began before there was such a file goes
    on, but for one that has ended, to which nothing would happen."""
    described = as_json({"kind": checkpoint.PERCEPTION, **asdict(config)})
    begun, ended = (checkpoint.exists(config.out / name) for name in (STATE, "checkpoint"))
    if (begun or ended) and (config.out / CONFIG).exists():
        made = f"choose another --out, with --init {config.out / 'checkpoint'} to start from what was made here"
        before = defaults_of(config) | settings_in(config.out, made)
        free = FREE | ({"learning_rate"} if divergence.has_diverged(config.out) else set())
        require_the_same(config.out, described, before, free)
    elif ended:
        raise ValueError(
            f"{config.out / 'checkpoint'} is there, and no {CONFIG} says of what run; choose another --out"
        )
    write_settings(config.out, described)


def eyes_in(init: Path, wanted: TrunkConfig) -> dict[str, torch.Tensor]:
    """The weights of the trunk to begin with. Raises ValueError where they are not of these sizes."""
    described, tensors = read_eyes(init)
    there = TrunkConfig.from_dict(described["trunk"])
    for name, size in asdict(there).items():
        if size != getattr(wanted, name):
            raise ValueError(
                f"--init {init}: its trunk has {name} {size}, not {getattr(wanted, name)} (--trunk.{name})"
            )
    return {key.removeprefix("trunk."): value for key, value in tensors.items() if key.startswith("trunk.")}


def run(config: PretrainConfig) -> dict[str, Any]:
    before = None if config.init is None else eyes_in(config.init, config.trunk)
    remember(config)
    library = SkillLibrary.load()
    make = partial(labelled_frames, look=config.look, asked=config.asked)
    frames = gather(config.out / folder_of(config), config.frames, config.seed, config.workers, make)
    cut = len(frames["images"]) - max(1, int(len(frames["images"]) * config.held_out))  # whole rollouts at the end
    train, held_out = ({k: v[part] for k, v in frames.items()} for part in (slice(cut), slice(cut, None)))
    torch.manual_seed(config.seed)
    trunk, grounding = KeypointTrunk(config.trunk).to(config.device), Grounding(config.trunk.keypoints)
    if before is not None:
        trunk.load_state_dict(before)
    train_trunk(config, train, trunk)
    report = figures(trunk.eval(), held_out, KEYPOINTS, len(THINGS), config.device)
    texts = sorted({text for skill in library for text in (skill.name, skill.text)})
    roles = {text: named_keypoints(skill, KEYPOINTS) for skill in library for text in (skill.name, skill.text)}
    embeddings = TextEncoder().encode(texts)
    targets = torch.tensor([roles[text] for text in texts])
    report["grounding"] = round(teach_grounding(grounding, embeddings, targets, config.seed), 4)
    tensors = {f"trunk.{k}": v for k, v in trunk.cpu().state_dict().items()}
    tensors |= {f"grounding.{k}": v for k, v in grounding.state_dict().items()} | {"texts": embeddings}
    described = {"algorithm": "perception", "keypoints": list(KEYPOINTS), "trunk": asdict(config.trunk), "texts": texts}
    checkpoint.save(
        config.out / "checkpoint", described, tensors, provenance={"figures": report, "frames": config.frames}
    )
    (config.out / "figures.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def folder_of(config: PretrainConfig) -> str:
    """Frames of one kind lie in one folder."""
    return f"frames-{config.look}" + (f"-{config.asked:g}" if config.asked else "")


def show(report: dict[str, Any]) -> None:
    print(f"held-out frames {report['frames']}, grounding right in {report['grounding']:.1%}")
    for name, row in {"ALL OBJECTS": report["objects"], **report["classes"]}.items():
        print(
            f"  {name:24} median {row['median_cm']:5.2f} cm   within 1 cm {row['within_1cm']:.1%}   "
            f"2 cm {row['within_2cm']:.1%}   presence F1 {row['presence_f1']:.3f}"
        )
    for share, true, other in report["confusions"]:
        print(f"  {true} {other} in {share:.1%} of its frames")


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        show(pretrain(parse(PretrainConfig, "python -m saycan_qt.pretrain", __doc__)))
    except (ValueError, OSError, SkillError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last state that was saved", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
