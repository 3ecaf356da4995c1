"""Figure 7 of the paper in the kitchen: how much do five trainings with other seeds differ?

    python benchmarks/figure7.py --out runs/picking                     # figure5.py's cells, where they are there
    python benchmarks/figure7.py --out runs/picking --draw --markdown

Mean and deviation over seeds of Figure 5's Q-Transformer and RT-1 [appendix F].
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import figure5
from cells import Variant, main
from figure5 import PickingConfig


def variants(config: PickingConfig) -> Sequence[Variant]:
    # the paper's two curves have no numbers of their own
    return [dataclasses.replace(variant, paper={}) for variant in (figure5.Q_TRANSFORMER, figure5.RT1)]


FIGURE = dataclasses.replace(
    figure5.FIGURE,
    name="figure7",
    title="Picking, mean and deviation over seeds [Figure 7]",
    variants=variants,
    spread=True,
    teaches=__doc__,
)

if __name__ == "__main__":
    sys.exit(main(FIGURE))
