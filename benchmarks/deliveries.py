"""How often does a whole run reach its goal? Runs `python -m saycan_qt.run` over kitchens and counts.

    python benchmarks/deliveries.py                                   # "bring me a snack", seeds 0 to 9
    python benchmarks/deliveries.py "throw away the apple" "I am thirsty" --seeds 5 --out runs/deliveries

Prints a line for each run and a rate with its 95 % Wilson interval for each instruction; the runs' folders stay. A run
that broke is no failure of what was planned or done: there it ends, with exit code 1 and the reason.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from saycan_qt.evaluation.rates import wilson

BROKEN = ("interrupted", "died", "error")  # a plan's `ended` of runs that did not come to their end


@dataclass(frozen=True)
class DeliveriesConfig:
    """Count the runs that reach their goal."""

    instructions: Annotated[tuple[str, ...], tyro.conf.Positional] = ("bring me a snack",)
    seeds: int = 10  # kitchens for each instruction
    first_seed: int = 0
    out: Path | None = None  # folder for the runs; default: a new one under runs/


def one(instruction: str, seed: int, folder: Path) -> dict:
    """Its plan. Ends with exit code 1 and a line where the run broke."""
    command = [sys.executable, "-m", "saycan_qt.run", instruction, "--seed", str(seed), "--out", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1, 3, 130) or not done.stdout.strip():
        said = (done.stderr.strip().splitlines() or [""])[-1]
        sys.exit(f"error: {' '.join(command[1:])} ended with {done.returncode}: {said}")
    plan = json.loads(done.stdout.splitlines()[-1])
    if plan["ended"] in BROKEN:
        sys.exit(f"error: the run in {folder} broke ({plan['ended']}): {plan['reason']}")
    return plan


def main(config: DeliveriesConfig) -> None:
    out = config.out or Path("runs") / time.strftime("deliveries-%Y%m%d-%H%M%S")
    for instruction in config.instructions:
        wins = unknown = 0
        for seed in range(config.first_seed, config.first_seed + config.seeds):
            began = time.monotonic()
            plan = one(instruction, seed, out / f"{instruction.replace(' ', '-')}-{seed}")
            wins += plan["success"] is True
            steps = ", ".join(
                s["skill"] if s["outcome"] == "succeeded" else f"{s['skill']} ({s['outcome']})" for s in plan["steps"]
            )
            unknown += plan["success"] is None
            end = {True: "reached", False: "MISSED ", None: "unknown"}[plan["success"]]
            seconds = time.monotonic() - began
            print(f"  seed {seed}: {end}  {seconds:4.0f} s  {steps}", flush=True)
        low, high = wilson(wins, judged := config.seeds - unknown) if unknown < config.seeds else (0.0, 1.0)
        also = f"; {unknown} could not be judged" if unknown else ""
        print(f"{instruction!r}: {wins} of {judged}, 95 % interval {low:.2f} - {high:.2f}{also}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(DeliveriesConfig, description=__doc__))
