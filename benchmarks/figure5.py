"""Figure 5 of the paper in the kitchen: picking, learnt from few demonstrations and many noisy replays of them.

    python benchmarks/figure5.py --out runs/picking
    python benchmarks/figure5.py --out runs/picking --cells q-transformer rt1 --seeds 0      # a first look
    python benchmarks/figure5.py --out runs/picking --draw --markdown
    python benchmarks/figure5.py --out /tmp/figure5 --debug                                  # tiny, to see that it runs

100 demonstrations (8 % of the data, as in the paper) and 1,150 replays of them with noise, of which some succeed. Every
algorithm learns from all of it with the same eyes, Transformer, batches and steps, but for RT-1, which clones the
demonstrations alone. Beyond the paper there is a clone of everything that succeeded, replays too: what imitation can do
that is told which episodes are good. cells.py says how it goes on after an interruption, and what is measured where.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cells import CellsConfig, Figure, Variant, main

from saycan_qt import atomic
from saycan_qt.evaluation.skills import Start, starts_of
from skills.library import SkillLibrary

PICK = "pick"
DEMONSTRATIONS, REPLAYS = "demonstrations", "replays"  # datasets, and their folders
ALL = (DEMONSTRATIONS, REPLAYS)
PACE = 0.05  # [m] an action
# Departs: the paper's Dirac at the data's action becomes a Gaussian over neighbouring motion bins. After hundreds of
# steps, not hundreds of thousands, Q over 256 bins that know nothing of each other is too jagged for an arg max
SPREAD = {"td_deviation": 3.0}
Q_TRANSFORMER = Variant("q-transformer", "Q-Transformer, target spread", "q-transformer", ALL, SPREAD, {PICK: 0.55})
# Departs: likewise, where it acts. The width was chosen by the weights of one seed, in scenes not measured here
SMOOTH = SPREAD | {"acting_deviation": 24.0}
RT1 = Variant("rt1", "RT-1, demonstrations", "rt1", (DEMONSTRATIONS,), paper={PICK: 0.14})
VARIANTS = (  # the paper's rates are read off its curves
    Q_TRANSFORMER,
    Variant("q-transformer-smooth", "... and averaged where it acts", "q-transformer", ALL, SMOOTH, {PICK: 0.55}),
    Variant("q-transformer-paper", "Q-Transformer, paper's settings", "q-transformer", ALL, paper={PICK: 0.55}),
    Variant("qt-opt", "QT-Opt with CQL", "qt-opt", ALL, {"cql_weight": 1.0}, {PICK: 0.43}),
    Variant("iql", "IQL", "iql", ALL, paper={PICK: 0.24}),
    Variant("aw-opt", "AW-Opt", "aw-opt", ALL, paper={PICK: 0.16}),
    RT1,
    Variant("decision-transformer", "Decision Transformer", "decision-transformer", ALL, paper={PICK: 0.04}),
    Variant("rt1-successes", "RT-1, all successes", "rt1", ALL),
)


@dataclass(frozen=True)
class PickingConfig(CellsConfig):
    """Train and measure the cells of a figure about picking, and draw it."""

    demonstrations: int = 100  # episodes
    replays: int = 1150  # episodes


def there(folder: Path, words: str) -> bool:
    """Was this made? Raises ValueError where it was, otherwise than `words` say. Of paths in them only the names count:
    the same folder may be named by another one, or have moved."""
    path = folder.with_suffix(".done")
    if not path.exists():
        return False
    if without_folders(before := path.read_text().strip()) != without_folders(words):
        raise ValueError(f"{folder} was made with `{before}`, not `{words}`; another --data or --out")
    return True


def without_folders(words: str) -> str:
    return " ".join(Path(word).name for word in words.split())


def mark(folder: Path, words: str) -> None:
    atomic.write(folder.with_suffix(".done"), f"{words}\n".encode())


def collected(folder: Path, *arguments: object) -> None:
    """What `collect` makes of these options, once; interrupted, it goes on. Raises ValueError where that fails, or
    where something else is there."""
    words = " ".join(map(str, arguments))
    if there(folder, words):
        return
    command = [sys.executable, "-m", "saycan_qt.collect", "--out", str(folder), *map(str, arguments)]
    if code := subprocess.run(command).returncode:
        raise ValueError(f"`python {' '.join(command[1:])}` ended with {code}")
    mark(folder, words)


def prepare(config: PickingConfig, home: Path, names: Sequence[str]) -> None:
    """Demonstrations, at a pace that leaves noise room within the arm's range, and replays of them."""
    demonstrations, pick = home / DEMONSTRATIONS, ("--families", PICK, "--failures", 0)
    collected(demonstrations, "--episodes", config.demonstrations, *pick, "--pace", PACE)
    if REPLAYS in names:
        collected(home / REPLAYS, "--episodes", config.replays, "--replay", demonstrations, "--seed", 1)


def variants(config: PickingConfig) -> Sequence[Variant]:
    return VARIANTS


def starts(seed: int, count: int) -> Sequence[Start]:
    return starts_of(PICK, seed, range(count), SkillLibrary.load())


FIGURE = Figure(
    name="figure5",
    title="Picking from few demonstrations and noisy replays [Figure 5]",
    config=PickingConfig,
    variants=variants,
    prepare=prepare,
    starts=starts,
    groups={PICK: (PICK,)},
    teaches=__doc__,
)

if __name__ == "__main__":
    sys.exit(main(FIGURE))
