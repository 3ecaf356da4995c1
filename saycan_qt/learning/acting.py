"""The same weights, acting otherwise: how an action is chosen from what a network says is not learnt."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from saycan_qt.learning import checkpoint
from saycan_qt.learning.algorithms import ALGORITHMS
from saycan_qt.learning.algorithms.policy import Policy


@dataclass(frozen=True)
class Acting:
    """The same weights, acting otherwise: writes such a checkpoint, and trains nothing. What is not given stays."""

    init: Path  # checkpoint, or a shipped one's name
    out: Path  # folder, of which OUT/checkpoint is written
    behavior_threshold: float | None = None  # tau: the best Q among bins of at least tau times the likeliest's density
    smoothing: float | None = None  # [bins] densities are averaged over neighbours
    acting_deviation: float | None = None  # [bins] Q is averaged over neighbouring bins of motion
    circles: int | None = None  # [steps] of the longest circle that a draw from the behaviour head leaves; 0: none

    def policy(self) -> tuple[Policy, list[str]]:
        """It, and the texts whose embeddings go along. Raises ValueError or CheckpointError."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        del given["init"], given["out"]
        described, tensors = checkpoint.read(self.init)
        kind = ALGORITHMS.get(str(described.get("algorithm")))
        if kind is None:
            raise ValueError(f"{self.init} is no policy: its algorithm is {described.get('algorithm')!r}")
        ways = {field.name for field in dataclasses.fields(kind.config_type)}
        if strange := [name for name in given if name not in ways]:
            raise ValueError(
                f"--{strange[0].replace('_', '-')}: {self.init} is {kind.name}'s, which has no such setting"
            )
        before = checkpoint.load(self.init).config  # which looks at the weights, too
        after = dataclasses.replace(before, **given)
        if after == before:
            raise ValueError(f"{self.init} acts so already; say how else, for example with --circles 0")
        return kind.from_checkpoint({**described, "config": dataclasses.asdict(after)}, tensors), described["texts"]
