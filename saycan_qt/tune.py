"""Fine-tune the language model to plan: a low-rank adapter, trained on generated instructions and their plans.

    python -m saycan_qt.tune --out runs/adapter         # hours on two cores
    python -m saycan_qt.tune --out runs/adapter --steps 100

Killed and started again with the same command, it continues from its last state. OUT/adapter is the adapter in PEFT's
format, for `--language.adapter OUT/adapter` of `saycan_qt.run` and `saycan_qt.evaluate plans`; OUT/metrics.jsonl holds
the numbers, among them the share of plans that are right to the letter, for ways to say things kept from training.
saycan_qt/kitchen/language/adapter/MODEL_CARD.md says how the shipped one was made.
"""

from __future__ import annotations

import sys
from functools import partial

import torch

from saycan_qt.kitchen.language.pairs import PairGenerator, text_of
from saycan_qt.learning.tuning import Pairs, Run, TuneConfig
from saycan_qt.options import parse
from skills.library import SkillLibrary


def kitchen_pairs() -> Pairs:
    library = SkillLibrary.load()
    training, held_out = PairGenerator(library), PairGenerator(library, held_out=True)
    return Pairs(partial(text_of, training), partial(text_of, held_out))


def main() -> int:
    config = parse(TuneConfig, "python -m saycan_qt.tune", __doc__)
    torch.set_num_threads(config.threads)
    Run(config, kitchen_pairs()).train()
    return 0


if __name__ == "__main__":
    sys.exit(main())
