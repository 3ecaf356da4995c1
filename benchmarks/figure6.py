"""Figure 6 of the paper in the kitchen: what Q-Transformer owes to its conservatism, its returns and its n steps.

    python benchmarks/figure6.py --out runs/picking                     # beside figure5.py's cells, on the same data
    python benchmarks/figure6.py --out runs/picking --draw --markdown

Each row changes one setting of Figure 5's Q-Transformer. The paper's n-step returns are compared on real robots, where
1-step ones reach a little more in five times the hours (97 and 80 % against 94 and 88 %); here after as many steps.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import figure5
from cells import Variant, main
from figure5 import ALL, PICK, SPREAD, PickingConfig


def without(name: str, title: str, paper: float | None, **settings: object) -> Variant:
    rates = {} if paper is None else {PICK: paper}
    return Variant(f"q-transformer-{name}", title, "q-transformer", ALL, SPREAD | settings, rates)


VARIANTS = (
    figure5.Q_TRANSFORMER,
    without("softmax", "softmax conservatism", 0.07, conservatism="softmax"),
    without("no-monte-carlo", "no Monte-Carlo returns", 0.03, monte_carlo=False),
    without("no-conservatism", "no conservatism", 0.01, conservatism="none"),
    without("one-step", "1-step returns", None, n_step=False),
)


def variants(config: PickingConfig) -> Sequence[Variant]:
    return VARIANTS


FIGURE = dataclasses.replace(
    figure5.FIGURE,
    name="figure6",
    title="Q-Transformer with one setting changed, picking [Figure 6]",
    variants=variants,
    teaches=__doc__,
)

if __name__ == "__main__":
    sys.exit(main(FIGURE))
