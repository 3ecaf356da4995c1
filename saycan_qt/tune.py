"""Fine-tune the language model to plan: a low-rank adapter, trained on generated instructions and their plans.

    python -m saycan_qt.tune --out runs/adapter         # hours on two cores; planners/adapter says how it was made
    python -m saycan_qt.tune --out runs/adapter --steps 100

Killed and started again with the same command, it continues from its last state. OUT/adapter is the adapter in PEFT's
format, for `--language.adapter OUT/adapter` of `saycan_qt.run` and `saycan_qt.evaluate plans`; OUT/metrics.jsonl holds
the numbers, among them the share of plans that are right to the letter, for ways to say things kept from training.
"""

from __future__ import annotations

import math
import sys
from functools import partial

import torch

from saycan_qt.kitchen.language.pairs import PairGenerator, text_of
from saycan_qt.learning.folder import only_writer
from saycan_qt.learning.tuning import LENGTHS, Pairs, Run, TuneConfig
from saycan_qt.options import parse, require
from skills.errors import SkillError
from skills.library import SkillLibrary


def kitchen_pairs() -> Pairs:
    library = SkillLibrary.load()
    training, held_out = PairGenerator(library), PairGenerator(library, held_out=True)
    return Pairs(partial(text_of, training), partial(text_of, held_out))


def main() -> int:
    config = parse(TuneConfig, "python -m saycan_qt.tune", __doc__)
    try:
        require(config, steps=1, minutes=0, rank=1, tokens=LENGTHS[-1], warmup=0, seed=0, threads=1)
        if not 0 < config.learning_rate < math.inf:
            raise ValueError(f"--learning-rate {config.learning_rate}: it must be above 0")
        torch.set_num_threads(config.threads)
        config.out.mkdir(parents=True, exist_ok=True)
        with only_writer(config.out):
            Run(config, kitchen_pairs()).train()
    except (ValueError, OSError, SkillError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
