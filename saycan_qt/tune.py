"""Fine-tune the language model to plan: a low-rank adapter, trained on generated instructions and their plans.

    python -m saycan_qt.tune --out runs/adapter                                       # the kitchen; hours on two cores
    python -m saycan_qt.tune --out runs/adapter --steps 100
    python -m saycan_qt.tune --robot-folder my_robot --init general --out runs/words          # for your own robot
    python -m saycan_qt.tune --made-up --init skills/kitchen/adapter --out runs/general       # for robots never met

Killed and started again with the same command, it continues from its last state. OUT/adapter is the adapter in PEFT's
format, for `--language.adapter OUT/adapter` of `saycan_qt.run` and `saycan_qt.evaluate plans`; OUT/metrics.jsonl holds
the numbers, among them the share of plans that are right to the letter, for ways to say things kept from training.
skills/kitchen/adapter/MODEL_CARD.md says how the shipped one was made.

For a robot of your own the instructions are those of its folder's examples.yaml, its skills by their own texts, and the
pairs of `--pairs FILE` (saycan_qt/learning/pairs.py says how one is written): the more, the better. `--init general`
begins with the shipped adapter for robots never met. `cp -rL OUT/adapter/. my_robot/adapter`, and plans for that robot
are made with it.

--made-up learns from robots that do not exist (saycan_qt/made_up), whose skills stand in the prompt, and from the
kitchen's pairs among them: such an adapter plans for robots that it was not taught.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import partial

import torch

from planners.prompts import ExamplesError
from planners.robot_language import abilities
from planners.weights import WeightsError
from saycan_qt.learning.folder import only_writer
from saycan_qt.learning.pairs import pairs_of
from saycan_qt.learning.tuning import Pairs, Run, TuneConfig, endless
from saycan_qt.options import File, Folder, parse, require
from saycan_qt.services.processes import refuse
from skills.errors import SkillError
from skills.library import SkillLibrary
from skills.robot_folder import RobotFolder


@dataclass(frozen=True)
class RobotTuneConfig(TuneConfig):
    """Fine-tune the language model to plan."""

    robot_folder: Folder = None  # your own robot, whose words are learnt; by default the kitchen's, generated
    pairs: File = None  # more instructions with their plans, YAML or JSON lines; for a robot's folder
    made_up: bool = False  # made-up robots in the place of one, whose skills stand in the prompt
    kitchen: float = 0.1  # with made-up robots, the share of rows that are the kitchen's


def kitchen_pairs(told: bool = False) -> Pairs:
    """told: as those of made-up robots are, what the robot can do, and in no scene what is open."""
    from saycan_qt.kitchen.language.pairs import PairGenerator, text_of

    library = SkillLibrary.load()
    training, held_out = PairGenerator(library), PairGenerator(library, held_out=True)
    beginning = abilities(library) + "\n" if told else ""
    first, second = (
        endless(partial(text_of, generator, states=not told), beginning) for generator in (training, held_out)
    )
    return Pairs(first, second, states=not told, told=told, source="kitchen")


def pairs(config: RobotTuneConfig) -> Pairs:
    """Raises SkillError or ExamplesError."""
    if config.made_up and (config.robot_folder is not None or config.pairs is not None):
        raise SkillError("--made-up draws its robots and their pairs; leave --robot-folder and --pairs away")
    if config.robot_folder is not None:
        return pairs_of(RobotFolder.load(config.robot_folder), config.pairs)
    if config.made_up:
        from saycan_qt.made_up.pairs import made_up_pairs

        return made_up_pairs(kitchen_pairs(told=True) if config.kitchen else None, config.kitchen)
    if config.pairs is not None:
        raise SkillError("--pairs is for a robot of your own; name its folder with --robot-folder")
    return kitchen_pairs()


def main() -> int:
    config = parse(RobotTuneConfig, "python -m saycan_qt.tune", __doc__)
    try:
        require(config, steps=1, minutes=0, rank=1, row=64, tokens=config.row, warmup=0, seed=0, threads=1)
        if not 0 <= config.kitchen <= 1:
            raise ValueError(f"--kitchen {config.kitchen}: a share is from 0 to 1")
        if not 0 < config.learning_rate < math.inf:
            raise ValueError(f"--learning-rate {config.learning_rate}: it must be above 0")
        drawn = pairs(config)
        torch.set_num_threads(config.threads)
        config.out.mkdir(parents=True, exist_ok=True)
        with only_writer(config.out):
            Run(config, drawn).train()
    except (ValueError, OSError, SkillError, ExamplesError, WeightsError) as error:
        return refuse(str(error))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last state that was saved", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
