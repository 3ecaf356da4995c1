"""OGBench's manipulation tasks by goals: one policy for whatever is wanted, trained with hindsight on play.

    python benchmarks/ogbench_goals.py --out runs/goals                                     # cube-double-play, RT-1
    python benchmarks/ogbench_goals.py --out runs/goals --names cube-double-play scene-play --seeds 3
    python benchmarks/ogbench_goals.py --out runs/goals --rows q-transformer-constrained-5  # others: ogbench_tasks.py
    python benchmarks/ogbench_goals.py --out /tmp/goals --debug                             # tiny, to see that it runs

The data (`ogbench_datasets.py` makes what is not there) is play towards random targets, without rewards. Where a thing
comes to rest, a deed is done; and the last deeds before it, one or several, show how what lies there now is reached
from what lay there before: tasks relabelled in hindsight, as the paper relabels the affordance model's. Each thing is
moved once in such a demonstration, or moved and put back for what it was in the way of, as a drawer for what is put
into it; and it begins when the arm has left what it was busy with: else letting go would be shown where something is to
be grasped.

The policy sees the state, and what is wanted as OGBench tells it (`use_oracle_rep`: cubes' places, buttons, drawer and
window). A cell - an algorithm, a dataset, a seed - is trained once and judged in all five tasks, as OGBench judges its
learners of goals. What is done is kept in --out: interrupted, it goes on.

Published, means of the same five tasks, from a million transitions: of OGBench's own learners of goals [Park et al.
2025, arXiv 2410.20092, table 2] the clone (GCBC) and the best on these data (GCIQL); and Flow Q-Learning [Park et al.
2025, arXiv 2502.02538], which learns each task by itself, from rewards. No like for like: none of them is told which
parts of play were deeds.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ogbench_datasets
import torch
import tyro
from ogbench_tasks import (
    LEARNING,
    PUBLISHED,
    ROWS,
    WIDE,
    Config,
    Judged,
    StateEpisodes,
    asked_for,
    cpu_seconds,
    judge,
    judged_in,
    kept,
    learn,
    settings_of,
    small,
)
from ogbench_tasks import with_relative as from_gripper
from rich.console import Console
from rich.table import Table

from saycan_qt import atomic
from saycan_qt.evaluation.rates import wilson
from saycan_qt.learning import checkpoint

TASKS = (1, 2, 3, 4, 5)
BY_GOALS = {  # of OGBench's learners, per cent: GCBC and GCIQL
    "cube-single-play": (6, 68),
    "cube-double-play": (1, 40),
    "scene-play": (5, 51),
    "puzzle-3x3-play": (2, 95),
}
ARM = 19  # numbers of the state before the things
CUBE, BUTTON, SLIDE = 9, 4, 2  # numbers of each thing there
REST = 5  # steps in which something that rests does not move
STILL = 0.02  # [OGBench's units] how far it may seem to
LONGEST = 250  # steps of one deed; a longer pause is none
NEAR = 0.15  # [10 cm] what is wanted is told with such an error in training, as judged episodes begin with one


@dataclass(frozen=True)
class Things:
    """What there is to be moved, and where the state tells of it [ogbench: compute_observation]."""

    cubes: int
    buttons: int = 0
    slides: tuple[float, ...] = ()  # how far each must move to have been moved, in the state's units
    opens: Mapping[int, int] = field(default_factory=dict)  # thing -> that which only it gives the way to
    leaves: int = 24  # steps in which the arm lets go of what it was busy with and leaves it, whatever comes next
    row: int = 0  # buttons in a row, each of which turns those beside, above and below it, too; 0: itself alone

    def places(self, states: np.ndarray) -> np.ndarray:
        """(N, S) states -> (N, G) where all things are: 3 numbers of a cube, 1 of a button (0 or 1), 1 of a slide; as
        OGBench's own `compute_oracle_observation`."""
        cubes = [states[:, first : first + 3] for first in range(ARM, ARM + CUBE * self.cubes, CUBE)]
        first = ARM + CUBE * self.cubes
        buttons = [states[:, at + 1 : at + 2] for at in range(first, first + BUTTON * self.buttons, BUTTON)]
        first += BUTTON * self.buttons
        slides = [states[:, at : at + 1] for at in range(first, first + SLIDE * len(self.slides), SLIDE)]
        return np.concatenate([*cubes, *buttons, *slides], axis=1)

    @property
    def each(self) -> list[tuple[slice, float]]:
        """Of each thing: where its place is told, and how far it must be from another place to be elsewhere: OGBench's
        own tolerance."""
        cubes = [(slice(3 * i, 3 * i + 3), 0.4) for i in range(self.cubes)]
        first = 3 * self.cubes
        buttons = [(slice(first + i, first + i + 1), 0.5) for i in range(self.buttons)]
        first += self.buttons
        return cubes + buttons + [(slice(first + i, first + i + 1), far) for i, far in enumerate(self.slides)]

    @property
    def turns(self) -> dict[frozenset[int], int]:
        """Which buttons are turned when one is pressed -> that one."""
        at = [divmod(button, self.row) for button in range(self.buttons)]
        return {
            frozenset(j for j, (y, x) in enumerate(at) if abs(y - row) + abs(x - column) <= 1): i
            for i, (row, column) in enumerate(at)
        }

    def seen(self, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """(N, S) states, (N, G) wanted places -> what the policy sees: also where the cubes are from the gripper, and
        how far all things are from where they shall be."""
        missing = goals - self.places(states)
        if self.row:
            missing = np.abs(missing)  # a button that is turned twice is as it was
        cubes, gripper = 3 * self.cubes, states[:, 12:15]
        wanted = [goals[:, i : i + 3] - gripper for i in range(0, cubes, 3)]
        more = [np.tanh(missing[:, :cubes] / 0.3), *wanted]
        return np.concatenate([from_gripper(states, self.cubes), missing, *more], axis=1).astype(np.float32)


THINGS = {
    "cube-single-play": Things(1),
    "cube-double-play": Things(2, opens={0: 1, 1: 0}),  # where one lies on the other
    "cube-triple-play": Things(3),
    # The drawer and the window, which a button each locks; the cube may lie in the drawer
    "scene-play": Things(1, 2, (18 * 0.04, 15 * 0.04), {1: 3, 2: 4, 3: 0}),
    "puzzle-3x3-play": Things(0, 9, leaves=16, row=3),
}


def deeds(places: np.ndarray, things: Things) -> list[tuple[int, int]]:
    """(T, G) -> the steps at which something came to rest elsewhere, or a button was pressed, in their order, and which
    thing it was. What was moved along with another thing, as the cube in the drawer, did nothing by itself."""
    if things.row:
        turned, turns = np.diff(places, axis=0) != 0, things.turns
        pressed = [(int(i) + 1, turns.get(frozenset(np.flatnonzero(turned[i])))) for i in np.flatnonzero(turned.any(1))]
        return [(step, button) for step, button in pressed if button is not None]  # None: two at once
    found = []
    for number, (where, far) in enumerate(things.each):
        one = places[:, where]
        moves = np.abs(np.diff(one, axis=0)).max(axis=1) > STILL
        rests = np.convolve(moves, np.ones(REST))[REST - 1 : len(moves)] == 0  # none of the next REST steps moves
        last: np.ndarray | None = None
        for step in np.flatnonzero(rests):
            if last is not None and np.linalg.norm(one[step] - last) > far:
                found.append((int(step), number))
                last = one[step]
            last = one[step] if last is None else last
    slid = [step for step, number in found if number >= things.cubes + things.buttons]
    return sorted(
        (step, number) for step, number in found if number >= things.cubes or all(abs(step - s) > REST for s in slid)
    )


def demonstrations(places: np.ndarray, things: Things, most: int) -> list[tuple[int, int]]:
    """First step, and the step at which all is done, of each demonstration of up to `most` deeds in one recording."""
    done = deeds(places, things)
    ends = [-1, *(step for step, _ in done)]
    found = []
    for last in range(len(done)):
        for first in range(last, max(-1, last - most), -1):  # the deeds first .. last
            if ends[first + 1] - ends[first] > LONGEST:
                break
            start, end = ends[first] + (things.leaves if first else 1), ends[last + 1]
            which = [thing for _, thing in done[first : last + 1]]
            if end > start and all(serves(places[[start, end]], things, thing, which) for thing in set(which)):
                found.append((start, end))
    return found


def serves(places: np.ndarray, things: Things, thing: int, which: Sequence[int]) -> bool:
    """Was it moved once, or moved and put back for what it stands in the way of? places: (2, G), before and after."""
    at = [i for i, other in enumerate(which) if other == thing]
    if len(at) == 1:
        return True
    where, far = things.each[thing]
    back = np.linalg.norm(places[1, where] - places[0, where]) <= far
    return bool(len(at) == 2 and back and things.opens.get(thing) in which[at[0] : at[1]])


class GoalEpisodes(StateEpisodes):
    """Demonstrations found in play. A step costs 1."""

    def __init__(self, path: Path, things: Things, transitions: int, most: int, discount: float, seed: int) -> None:
        with np.load(path) as file:
            data = {key: file[key] for key in ("observations", "actions", "terminals")}
        last = np.flatnonzero(data["terminals"])[: ogbench_datasets.recordings(transitions)]
        places, shown = things.places(data["observations"]), list[tuple[int, int]]()
        for first, end in zip([0, *(last[:-1] + 1)], last, strict=True):
            found = demonstrations(places[first : end + 1], things, most)
            shown += [(first + start, first + done) for start, done in found]
        if not shown:
            raise ValueError(f"{path}: nothing came to rest elsewhere in {transitions} transitions; take more")
        states, actions, lengths, random = [], [], [], np.random.default_rng(seed)
        for start, done in shown:
            goal = places[done].copy()
            goal[: 3 * things.cubes] += random.uniform(-NEAR, NEAR, 3 * things.cubes)
            part = data["observations"][start:done]
            states.append(things.seen(part, np.broadcast_to(goal, (len(part), len(goal)))))
            actions.append(data["actions"][start:done])
            lengths.append(done - start)
        self.parts, self.worst = 1.0, -1 / (1 - discount)
        costs, all_of = np.full(sum(lengths), -1, np.float32), np.ones(len(lengths), bool)
        made = f"goals {discount}"
        super().__init__(
            np.concatenate(states), np.concatenate(actions), costs, np.array(lengths), all_of, all_of, made
        )


@dataclass(frozen=True)
class GoalsConfig(Config):
    """Train and judge cells."""

    names: tuple[str, ...] = ("cube-double-play",)  # or cube-single, cube-triple, scene or puzzle-3x3, each with -play
    rows: tuple[str, ...] = ("rt1-5",)  # see ROWS of ogbench_tasks.py
    transitions: int = 300_000  # of the data
    deeds: int = 5  # of one demonstration, at most
    steps: int = 6000  # optimiser steps
    layers: int = 2
    # Of Config: what goals leave nothing to say about
    tasks: tyro.conf.Suppress[tuple[int, ...]] = TASKS
    shown: tyro.conf.Suppress[int] = 0
    relative: tyro.conf.Suppress[bool] = True


def cell(config: GoalsConfig, name: str, row: str, seed: int) -> list[dict[str, Any]]:
    """What one policy reached in each task; computed now, or read where it was. Raises ValueError where that was done
    otherwise."""
    home = config.out / f"{name}-goals-{row}-{seed}"
    names = ("transitions", "deeds", *LEARNING, "replan")
    asked = asked_for(config, row, names)
    things, found, policy = THINGS[name], [], None
    for task in config.tasks:
        result = judged_in(config, home, f"task{task}-")
        if (there := kept(result, asked)) is not None:
            found.append(there)
            continue
        if policy is None:
            settings = settings_of(config, row, home, seed)
            discount = getattr(settings.algorithm, "discount", 0.99)
            path = ogbench_datasets.make(ogbench_datasets.Config(name, config.transitions, config.data))
            data = GoalEpisodes(path, things, config.transitions, config.deeds, discount, seed)
            policy = learn(config, row, settings, data)
        new = functools.partial(
            Judged,
            f"{name.removesuffix('-play')}-v0",
            policy.embodiment.history,
            lambda state, goal: things.seen(state[None], goal[None])[0],
            {"use_oracle_rep": True},
            {"task_id": task},
        )
        wins = judge(new, policy, config.episodes, config.replan, config.together)
        answer = {
            "name": name,
            "task": task,
            "row": row,
            "seed": seed,
            "successes": sum(wins),
            "episodes": len(wins),
            "interval": wilson(sum(wins), len(wins)),
            "each": wins,
            "samples": len(data.rewards),
            "demonstrations": len(data.success),
            **asked,
            "machine": checkpoint.machine(config.device),
            "cpu_seconds": round(cpu_seconds(home)),
        }
        atomic.write(result, atomic.to_json(answer))
        print(f"{home.name}, task {task}: {sum(wins)} of {len(wins)}", flush=True)
        found.append(answer)
    return found


def table(cells: Sequence[dict[str, Any]]) -> Table:
    shown = Table(title="success, per cent of each task's episodes (95 % interval); beside it what others published")
    columns = ("data", "row", "seeds", *(f"task {task}" for task in TASKS), "all", "GCBC", "GCIQL", "FQL")
    for column in columns:
        shown.add_column(column, justify="left" if column in ("data", "row") else "right")
    for name, row in dict.fromkeys((c["name"], c["row"]) for c in cells):
        mine = [c for c in cells if (c["name"], c["row"]) == (name, row)]
        each = [[c for c in mine if c["task"] == task] for task in TASKS]
        rates = [f"{100 * sum(c['successes'] for c in some) / sum(c['episodes'] for c in some):.0f}" for some in each]
        done, all_of = sum(c["successes"] for c in mine), sum(c["episodes"] for c in mine)
        low, high = wilson(done, all_of)
        whole = f"{100 * done / all_of:.0f} ({100 * low:.0f}-{100 * high:.0f})"
        published = (*BY_GOALS.get(name, ("", "")), PUBLISHED.get(name, ("", ""))[1] or "")
        shown.add_row(name, row, str(len({c["seed"] for c in mine})), *rates, whole, *map(str, published))
    return shown


def main(config: GoalsConfig) -> int:
    try:
        if unknown := [row for row in config.rows if row not in ROWS]:
            raise ValueError(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
        if unknown := [name for name in config.names if name not in THINGS]:
            raise ValueError(f"{unknown[0]}: what can be moved there is not known here; there are {', '.join(THINGS)}")
        config = small(config) if config.debug else config
        torch.set_num_threads(config.threads)
        cells = [
            one
            for name in config.names
            for row in config.rows
            for seed in range(config.seeds)
            for one in cell(config, name, row, seed)
        ]
    except (ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console(width=None if sys.stdout.isatty() else WIDE).print(table(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(GoalsConfig, description=__doc__)))
