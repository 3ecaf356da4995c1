"""How long until the first decision? In a session, where everything is loaded, beside `run`, which loads it each time.

    python benchmarks/session.py                          # ten sentences, kitchen 0
    python benchmarks/session.py --seeds 3

Each sentence is carried out for one skill. Times are those of plan.json's timeline: from when the sentence was taken up
to the end of the first decision.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

SENTENCES = (
    "bring me a snack",
    "I am thirsty",
    "throw away the apple",
    "put the coke can in the top drawer",
    "I spilled something on the table, can you help?",
    "move the sponge near the water bottle",
    "could you get me something with caffeine",
    "clear the counter",
    "I would like some fruit",
    "bring me the chips, please",
)


@dataclass(frozen=True)
class BenchmarkConfig:
    """First decisions of a session, and of single runs."""

    seeds: int = 1  # kitchens, each with a session of its own
    first_seed: int = 0
    runs: int = 1  # single runs to compare with, a sentence each


def carried_out(command: list[str], said: str) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, "-m", *command], input=said, capture_output=True, text=True, check=False)
    plans = [json.loads(line) for line in done.stdout.splitlines()]
    if not plans:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
    return plans


def decided(plan: dict[str, Any]) -> float:
    """[s] from when the sentence was taken up."""
    return next(span["ended"] for span in plan["timeline"] if span["what"] == "thinking")


def main(config: BenchmarkConfig) -> None:
    if not 1 <= config.runs <= len(SENTENCES):
        sys.exit(f"error: --runs {config.runs}: from 1 to {len(SENTENCES)}, as there are sentences")
    if config.seeds < 1:
        sys.exit(f"error: --seeds {config.seeds}: it must be at least 1")
    first, later, alone = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(config.first_seed, config.first_seed + config.seeds):
            flags = ["--json", "--max-steps", "1", "--seed", str(seed)]
            out = ["--out", str(Path(folder) / str(seed))]
            begun, *others = carried_out(["saycan_qt.session", *flags, *out], "\n".join(SENTENCES))
            first.append(decided(begun))
            later += map(decided, others)
            for number in range(config.runs):
                out = ["--out", str(Path(folder) / f"{seed}-{number}")]
                alone += map(decided, carried_out(["saycan_qt.run", SENTENCES[number], *flags, *out], ""))
    for name, times in (("first of a session", first), ("later ones", later), ("of a single run", alone)):
        print(f"{name:>20}: median {statistics.median(times):6.2f} s, longest {max(times):6.2f} s, of {len(times)}")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
