"""OGBench's manipulation tasks: our algorithms on somebody else's benchmark, beside what is published.

    python benchmarks/ogbench_tasks.py --out runs/ogbench                              # cube-single, its default task
    python benchmarks/ogbench_tasks.py --out runs/ogbench --names scene-play --tasks 1 2 3 4 5 --seeds 3
    python benchmarks/ogbench_tasks.py --out runs/ogbench --rows rt1-5 q-transformer-1 # others, see ROWS
    python benchmarks/ogbench_tasks.py --out /tmp/ogbench --debug                      # tiny, to see that it runs

The data is play towards random targets (`ogbench_datasets.py` makes what is not there), with the rewards of one task by
OGBench's own relabelling (`*-singletask-task*-v0`): each step costs 1 for every part of the task that is not done. The
policy sees the state and gives 5 numbers. Each cell - an algorithm, a task, a seed - is trained, and then judged in
episodes of OGBench's length that succeed as OGBench says. What is done is kept in --out: interrupted, it goes on.

Published: Flow Q-Learning [Park et al. 2025, arXiv 2502.02538], a million transitions and a million steps, 8 seeds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ogbench_datasets
import torch
import tyro
from rich.console import Console
from rich.table import Table

from saycan_qt import atomic, train
from saycan_qt.evaluation.rates import wilson
from saycan_qt.learning import checkpoint
from saycan_qt.learning.algorithms import ALGORITHMS
from saycan_qt.learning.algorithms.policy import Policy
from saycan_qt.learning.folder import CONFIG, settings_in
from saycan_qt.learning.loop import CHECKPOINT, STATE, Run
from saycan_qt.learning.start import TrainConfig, state_config
from saycan_qt.networks.backbone import SMALL
from saycan_qt.networks.tokens import TextEncoder
from skills.embodiment import ActionDimension, Embodiment, StateNumber
from skills.types import Observation

HZ = 20  # of OGBench's arm
INSTRUCTION = "do the task"  # one policy, one task: the words tell nothing
WORDS = 8  # numbers of their embedding
DEFAULT_TASK = {"cube-single-play": 2, "cube-double-play": 2, "scene-play": 2, "puzzle-3x3-play": 4}
CUBES = {"cube-single": 1, "cube-double": 2, "scene": 1}
PUBLISHED = {  # of FQL, per cent: the default task, and the mean of the five
    "cube-single-play": (97, None),
    "cube-double-play": (36, 29),
    "scene-play": (76, 56),
    "puzzle-3x3-play": (None, 30),
}
WIDE = 140  # [characters] of the table where no terminal limits it
CPU_SECONDS = "cpu_seconds.json"  # in a cell's folder
FIRST_EPISODE = 10_000  # seed of the first judged one; data is made with others
Q = ("--discount", "0.99")
SPREAD = ("--td-deviation", "1.5", "--loss", "cross_entropy")  # Q-Transformer's, for 64 bins
LABELS = ("--label-deviation", "1", "--smoothing", "1")  # of those that clone, likewise
CONSTRAINED = (  # to what it may imitate, see `shown`, which is half of each batch
    *("--behavior-weight", "1", "--behavior-threshold", "0.5"),
    *("--successes", "0.5"),
)
# Settings that decide what is learnt, whatever the data
LEARNING = ("steps", "batch_size", "learning_rate", "average", "bins", "width", "layers", "tokens")
ROWS = {  # name -> arguments of saycan_qt.train
    "q-transformer-5": ("q-transformer", "--chunk", "5", *Q, *SPREAD),
    "q-transformer-1": ("q-transformer", *Q, *SPREAD),
    "rt1-5": ("rt1", "--chunk", "5", *LABELS),
    "rt1-1": ("rt1", *LABELS),
    "q-transformer-constrained-5": ("q-transformer", "--chunk", "5", *Q, *SPREAD, *CONSTRAINED, *LABELS),
    "q-transformer-constrained-1": ("q-transformer", *Q, *SPREAD, *CONSTRAINED, *LABELS),
    "iql-1": ("iql", *Q, *LABELS),
    "aw-opt-1": ("aw-opt", *Q, *LABELS),
    "qt-opt-1": ("qt-opt", *Q),
    "decision-transformer-1": ("decision-transformer", "--target-return", "-60", "--return-scale", "100", *LABELS),
}


@dataclass(frozen=True)
class Config:
    """Train and judge cells."""

    out: Path  # everything is kept here
    data: Path = Path("data/ogbench")  # folder of OGBench's files
    names: tuple[str, ...] = ("cube-single-play",)
    tasks: tuple[int, ...] = ()  # of 1 to 5; empty: OGBench's default task of each
    rows: tuple[str, ...] = ("q-transformer-5",)  # see ROWS
    seeds: int = 1  # of each cell
    transitions: int = 1_000_000  # of the data
    steps: int = 20_000  # optimiser steps
    batch_size: int = 256  # transitions
    learning_rate: float = 1e-3
    average: float = 0.005  # of the target network [FQL]
    bins: int = 64  # of an action dimension
    width: int = 128  # of the network
    layers: int = 3
    tokens: int = 2  # of the state
    episodes: int = 50  # judged in each cell [OGBench]
    replan: int = 0  # actions of a chunk that are carried out before the next; 0: all
    shown: int = 0  # steps before the task is done, the only ones to imitate; 0: all play may be
    relative: bool = False  # the policy also sees where cubes are from the gripper; OGBench's own learners do not
    # Episodes whose actions are computed at a time, each in an environment that takes seconds to make
    together: int = 5
    threads: int = 1
    device: str = "cpu"
    more: str = ""  # further arguments of saycan_qt.train, for all rows: --more="--discount 0.995"
    debug: bool = False  # tiny


def small(config: Config) -> Config:
    sizes = {"transitions": 100, "steps": 10, "batch_size": 16, "width": 32, "layers": 1, "episodes": 2}
    return dataclasses.replace(config, **sizes, bins=16, debug=True)  # type: ignore[arg-type]


def with_relative(states: np.ndarray, cubes: int) -> np.ndarray:
    """(..., S) -> (..., S + 8 * cubes): also where each cube is from the gripper, within some 3 cm more finely, and how
    it is turned, a quarter turn being none. All of it follows from what is there [ogbench: compute_observation]."""
    gripper, (c, s) = states[..., 12:15], np.moveaxis(states[..., 15:17], -1, 0)  # [10 cm], cosine and sine of its yaw
    more = []
    for first in range(19, 19 + 9 * cubes, 9):
        away = states[..., first : first + 3] - gripper
        cube_c, cube_s = np.moveaxis(states[..., first + 7 : first + 9], -1, 0)
        turned = 4 * (np.arctan2(cube_s, cube_c) - np.arctan2(s, c))
        more += [away, np.tanh(away / 0.3), np.stack([np.cos(turned), np.sin(turned)], axis=-1)]
    return np.concatenate([states, *more], axis=-1).astype(np.float32)


class StateEpisodes:
    """Episodes without images, one instruction, as `saycan_qt.learning.batches` takes them."""

    parts: float  # of the task, each of which costs 1 a step until it is done
    worst: float  # return there is

    def __init__(
        self,
        states: np.ndarray,  # (N, S)
        actions: np.ndarray,  # (N, D)
        rewards: np.ndarray,  # (N,)
        lengths: np.ndarray,  # (E,) frames of each episode
        reached: np.ndarray,  # (E,) is the task done at its end?
        success: np.ndarray,  # (E,) may it be imitated?
        made: str,  # how, where these arrays do not tell
    ) -> None:
        self.states, self.actions, self.rewards = states, np.clip(actions, -1, 1), rewards.astype(np.float32)
        self.reached, self.success = reached, success
        self.episode_start = np.cumsum([0, *lengths])
        count = len(lengths)
        self.frame_episode = np.repeat(np.arange(count), lengths)
        self.finished, self.episode_task = np.ones(count, bool), np.zeros(count, int)
        self.tasks, self.cameras = [INSTRUCTION], dict[str, np.ndarray]()
        self.images = np.zeros((len(rewards), 0, 0, 3), np.uint8)
        self.embodiment = body(states.shape[1], actions.shape[1])
        digest = hashlib.sha256(made.encode())
        for array in (self.states, self.actions, self.rewards, self.episode_start):
            digest.update(np.ascontiguousarray(array).tobytes())
        self.digest = digest.hexdigest()


class PlayEpisodes(StateEpisodes):
    """Play with the rewards of one task.

    What is played is cut where the task is done, since there a judged episode ends: no step is learnt from after it,
    until it is undone again. A recording that breaks off before counts as never done: its last step costs what not
    doing it for ever does, as time-outs of the paper count as failures. (OGBench's own learners look past that step.)

    What may be imitated is all of it, or, with `shown`, no more than so many steps before the task is done: the oracle
    has one random target after the other, and what it did before was for another one. There an episode is cut, and the
    last step before the cut earns what came after it, discounted.
    """

    def __init__(
        self, path: Path, environment: str, discount: float, transitions: int, shown: int = 0, relative: int = 0
    ) -> None:
        import gymnasium
        import ogbench.manipspace  # noqa: F401  it registers the environments
        from ogbench.relabel_utils import relabel_dataset
        from ogbench.utils import load_dataset

        env = gymnasium.make(environment)
        data = load_dataset(str(path), add_info=True)
        relabel_dataset(environment, env, data)
        env.close()
        data = {key: value[:transitions] for key, value in data.items()}
        done, broken = data["masks"] == 0, data["terminals"] > 0
        broken[-1] = True
        reaches = np.append(done[1:], False) & ~broken  # the next state, the task done
        kept = ~done
        ends = np.flatnonzero((reaches | broken)[kept])
        self.parts = -float(data["rewards"].min())  # of the task
        self.worst = -self.parts / (1 - discount)
        rewards = data["rewards"][kept].astype(np.float32)
        reached = reaches[kept][ends]
        rewards[ends[~reached]] += discount * self.worst
        if shown:
            cuts = ends[reached] - shown  # the last steps before what may be imitated
            cuts = cuts[cuts >= np.append(0, ends[:-1] + 1)[reached]]
            later = np.arange(1, shown + 1)
            rewards[cuts] += discount**later @ rewards[cuts + later[:, None]]
            ends = np.union1d(ends, cuts)
            reached = np.isin(ends, np.flatnonzero(reaches[kept]))
        success = reached if shown else np.ones(len(ends), bool)  # the rewards say what to seek
        states, lengths = with_relative(data["observations"][kept], relative), np.diff([-1, *ends])
        made = f"{environment} {discount}"
        super().__init__(states, data["actions"][kept], rewards, lengths, reached, success, made)


def body(states: int, actions: int) -> Embodiment:
    """OGBench's arm: changes of the gripper's place, of its yaw and of its opening, each from -1 to 1."""
    names = ("dx", "dy", "dz", "dyaw", "dopening")[:actions]
    return Embodiment(
        action=tuple(ActionDimension(name, -1, 1, "", "delta") for name in names),
        state=tuple(StateNumber(f"number {i}") for i in range(states)),
        control_hz=HZ,
        name="OGBench's UR5e",
    )


def settings_of(config: Config, row: str, home: Path, seed: int) -> TrainConfig:
    """What `saycan_qt.train` would be told."""
    kind, *arguments = ROWS[row]
    options = {"--data": config.data, "--out": home, "--seed": seed, "--reward": "dataset", "--steps": config.steps}
    options |= {"--batch-size": config.batch_size, "--learning-rate": config.learning_rate, "--device": config.device}
    options |= {"--average": config.average, "--validate-every": max(config.steps // 4, 1), "--threads": config.threads}
    told = [word for name, value in options.items() for word in (name, str(value))]
    settings = train.command([kind, *told, *arguments, *shlex.split(config.more)])
    assert isinstance(settings, TrainConfig)
    train.check(settings)
    return settings


class Timed(Run):
    """Notes, whenever its state is saved, the CPU seconds that led there, those of earlier processes too."""

    def train(self) -> dict[str, Any]:
        self.spent = cpu_seconds(self.config.out) - time.process_time()
        return super().train()

    def save(self) -> None:
        super().save()
        atomic.write(self.config.out / CPU_SECONDS, atomic.to_json(self.spent + time.process_time()))


def cpu_seconds(home: Path) -> float:
    """That a cell's training has taken so far."""
    path = home / CPU_SECONDS
    return float(json.loads(path.read_text())) if path.exists() else 0.0


def learn(config: Config, row: str, settings: TrainConfig, data: StateEpisodes) -> Policy:
    """Train to the end, or go on; the policy as it is saved. Raises ValueError where another training lies there."""
    out = settings.out
    if any(checkpoint.exists(out / name) for name in (STATE, CHECKPOINT)) and (out / CONFIG).exists():
        before = settings_in(out, "another --out, or delete the folder").get("steps")
        if before != settings.steps:  # which a run may change, but not a cell
            raise ValueError(f"{out}: trained for {before} steps, not {settings.steps}; another --out, or delete it")
    algorithm = settings.algorithm
    if hasattr(algorithm, "value_low"):
        algorithm = dataclasses.replace(algorithm, value_low=data.worst, value_high=0.0)
    settings = dataclasses.replace(settings, algorithm=algorithm)
    torch.manual_seed(settings.batches.seed)
    network = dataclasses.replace(
        SMALL,
        bins=config.bins,
        width=config.width,
        layers=config.layers,
        tokens=config.tokens,
        text_size=WORDS,
        history=getattr(algorithm, "context", 1),
    ).fitted(data.embodiment, state_config(data))
    texts = TextEncoder({INSTRUCTION: np.ones(WORDS, np.float32)})
    kind = next(kind for kind in ALGORITHMS.values() if kind.config_type is type(algorithm))
    policy = kind(dataclasses.replace(network, chunk=settings.chunk), algorithm, texts, embodiment=data.embodiment)
    out.mkdir(parents=True, exist_ok=True)
    train.remember(settings, row, data.digest)
    run = Timed(settings, data, policy, [])
    run.say(
        f"{out.name}: {sum(p.numel() for p in run.parameters):,} weights; {len(data.rewards):,} transitions, "
        f"in which the task is done {int(data.reached.sum())} times" + (f"; at step {run.step}" if run.step else "")
    )
    run.train()
    return checkpoint.load(out / CHECKPOINT)


class Judged:
    """One episode at a time, seen as a policy sees it."""

    def __init__(
        self,
        environment: str,
        history: int,
        seen_as: Callable[[np.ndarray, Any], np.ndarray],  # what the policy sees of a state and of what is wanted
        options: Mapping[str, Any] | None = None,  # of the environment
        begin_with: Mapping[str, Any] | None = None,  # of each episode
    ) -> None:
        import gymnasium
        import ogbench.manipspace  # noqa: F401  it registers the environments

        self.env = gymnasium.make(environment, **(options or {}))
        self.seen_as, self.begin_with = seen_as, dict(begin_with or {})
        self.seen: deque[Observation] = deque(maxlen=history)
        self.goal: Any = None
        self.over = self.succeeded = False

    def begin(self, seed: int) -> None:
        self.seen.clear()
        self.over = self.succeeded = False
        state, info = self.env.reset(seed=seed, options=self.begin_with)
        self.goal = info.get("goal")
        self._see(state, None)

    def carry_out(self, actions: np.ndarray) -> None:
        """(H, D), one after the other, until the episode is over."""
        for action in actions:
            state, _, terminated, truncated, info = self.env.step(action)
            self._see(state, action)
            self.succeeded = self.succeeded or bool(info["success"])
            self.over = terminated or truncated
            if self.over:
                return

    def _see(self, state: np.ndarray, action: np.ndarray | None) -> None:
        self.seen.append(Observation({}, self.seen_as(state, self.goal), action=action))


def judge(new: Callable[[], Judged], policy: Policy, episodes: int, replan: int, together: int) -> list[bool]:
    """Which of the episodes, seeded from FIRST_EPISODE on, succeeded."""
    all_of = [new() for _ in range(min(together, episodes))]
    found: list[bool] = []
    for first in range(0, episodes, len(all_of)):
        some = all_of[: episodes - first]
        for number, one in enumerate(some):
            one.begin(FIRST_EPISODE + first + number)
        while going := [one for one in some if not one.over]:
            for one, actions in zip(going, chosen(policy, [list(one.seen) for one in going]), strict=True):
                one.carry_out(actions[: replan or None])
        found += [one.succeeded for one in some]
    for one in all_of:
        one.env.close()
    return found


def chosen(policy: Policy, histories: Sequence[Sequence[Observation]]) -> np.ndarray:
    """(N, H, D) actions."""
    words = [INSTRUCTION] * len(histories)
    if policy.chunk == 1:
        return policy.act_many(histories, words)[:, None]
    nothing = np.zeros((0, len(policy.embodiment.action)), np.float32)
    return policy.act_chunks(histories, words, [nothing] * len(histories))


def judged_in(config: Config, home: Path, prefix: str = "") -> Path:
    """Where a cell's result lies."""
    return home / f"{prefix}judged-{config.episodes}{f'-replan-{config.replan}' if config.replan else ''}.json"


def asked_for(config: Config, row: str, names: Sequence[str]) -> dict[str, Any]:
    """What decides a result: these settings, the row's arguments, the episodes."""
    arguments = [*ROWS[row], *shlex.split(config.more)]
    return {name: getattr(config, name) for name in names} | {"arguments": arguments, "first_episode": FIRST_EPISODE}


def kept(result: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """A cell's result, where it is there. Raises ValueError where it was made otherwise."""
    if not result.exists():
        return None
    there: dict[str, Any] = json.loads(result.read_text())
    for key, value in asked.items():
        if (before := there.get(key)) != value:
            said = f"{result}: made with {key} {before}, not {value}"
            raise ValueError(f"{said}; another --out, or delete {result.parent}, the policy too")
    return there


def cell(config: Config, name: str, task: int, row: str, seed: int) -> dict[str, Any]:
    """What one policy reached; computed now, or read where it was. Raises ValueError where that was done otherwise."""
    kind = (f"-shown-{config.shown}" if config.shown else "") + ("-relative" if config.relative else "")
    home = config.out / f"{name}-task{task}-{row}{kind}-{seed}"
    cubes = CUBES.get(name.removesuffix("-play"), 0) if config.relative else 0
    result = judged_in(config, home)
    asked = asked_for(config, row, ("transitions", *LEARNING, "replan", "shown", "relative"))
    if (there := kept(result, asked)) is not None:
        return there
    environment = f"{name.removesuffix('-play')}-singletask-task{task}-v0"
    settings = settings_of(config, row, home, seed)
    discount = getattr(settings.algorithm, "discount", 0.99)
    path = ogbench_datasets.make(ogbench_datasets.Config(name, config.transitions, config.data))
    data = PlayEpisodes(path, environment, discount, config.transitions, config.shown, cubes)
    policy = learn(config, row, settings, data)

    def new() -> Judged:
        return Judged(environment, policy.embodiment.history, lambda state, _: with_relative(state, cubes))

    found = judge(new, policy, config.episodes, config.replan, config.together)
    answer = {
        "name": name,
        "task": task,
        "row": row,
        "seed": seed,
        "successes": sum(found),
        "episodes": len(found),
        "interval": wilson(sum(found), len(found)),
        "each": found,
        "samples": len(data.rewards),
        "times_done": int(data.reached.sum()),
        **asked,
        "machine": checkpoint.machine(config.device),
        "cpu_seconds": round(cpu_seconds(home)),
    }
    atomic.write(result, atomic.to_json(answer))
    return answer


def table(config: Config, cells: Sequence[dict[str, Any]]) -> Table:
    title = f"success, per cent of {config.episodes} episodes a seed (95 % interval); FQL: arXiv 2502.02538"
    shown = Table(title=title)
    for column in ("task", "row", "seeds", "success", "FQL, this task", "FQL, five tasks"):
        shown.add_column(column, justify="left" if column in ("task", "row") else "right")
    for name, task, row in dict.fromkeys((c["name"], c["task"], c["row"]) for c in cells):
        mine = [c for c in cells if (c["name"], c["task"], c["row"]) == (name, task, row)]
        done, all_of = sum(c["successes"] for c in mine), sum(c["episodes"] for c in mine)
        low, high = wilson(done, all_of)
        this, five = PUBLISHED.get(name, (None, None))
        this = this if task == DEFAULT_TASK.get(name) else None
        rate = f"{100 * done / all_of:.0f} ({100 * low:.0f}-{100 * high:.0f})"
        shown.add_row(f"{name} {task}", row, str(len(mine)), rate, str(this or ""), str(five or ""))
    return shown


def check(config: Config) -> None:
    """Raises ValueError."""
    if unknown := [row for row in config.rows if row not in ROWS]:
        raise ValueError(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    if unknown := [name for name in config.names if not config.tasks and name not in DEFAULT_TASK]:
        raise ValueError(f"{unknown[0]}: its default task is not known here; say which with --tasks")
    if unknown := [str(task) for task in config.tasks if not 1 <= task <= 5]:
        raise ValueError(f"--tasks {unknown[0]}: OGBench has 1 to 5")


def main(config: Config) -> int:
    try:
        check(config)
        config = small(config) if config.debug else config
        torch.set_num_threads(config.threads)
        cells = [
            cell(config, name, task, row, seed)
            for name in config.names
            for task in config.tasks or (DEFAULT_TASK[name],)
            for row in config.rows
            for seed in range(config.seeds)
        ]
    except (ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console(width=None if sys.stdout.isatty() else WIDE).print(table(config, cells))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
