"""A run's numbers as JSON lines, and for TensorBoard where it is installed.

tensorboard --logdir runs           # pip install 'saycan-qt[train]'
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saycan_qt import atomic
from skills import files

FILE, MOST_BYTES = "metrics.jsonl", 2**30


class MetricsLog:
    """Continues the log in a run's folder after `step`; what a killed run wrote later is dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / FILE
        rows = read(folder) if self.path.exists() else []
        kept = [row for row in rows if row["step"] <= step]
        atomic.write(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.tensorboard = None
        else:
            self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """row: numbers, or lists of them with one number for each action dimension."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        for key, value in row.items() if self.tensorboard else ():
            for name, number in [(key, value)] if isinstance(value, int | float) else indexed(key, value):
                self.tensorboard.add_scalar(name, number, step)  # type: ignore[union-attr]

    def close(self) -> None:
        if self.tensorboard:
            self.tensorboard.close()


def read(folder: Path) -> list[dict[str, Any]]:
    """All rows of a run; a last line that a kill cut short is left out."""
    lines = files.read_text(folder / FILE, MOST_BYTES).splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def indexed(key: str, values: list[float]) -> list[tuple[str, float]]:
    return [(f"{key}/{i}", value) for i, value in enumerate(values)]
