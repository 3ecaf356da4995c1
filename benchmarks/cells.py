"""What the paper's figures are made of: cells, each a variant of an algorithm trained with one seed and then measured.

A figure's file names its variants, data and tasks, and calls `main`, which offers the same options for all of them:

    python benchmarks/figure5.py --out runs/picking                              # all cells, then table and picture
    python benchmarks/figure5.py --out runs/picking --cells rt1 --seeds 0 1      # some of them; more can follow
    python benchmarks/figure5.py --out runs/picking --workers 4                  # in parallel, one thread each
    python benchmarks/figure5.py --out runs/picking --list                       # what is there, what is to do
    python benchmarks/figure5.py --out runs/picking --draw --markdown            # of the cells that are there

A finished cell is OUT/cells/NAME-SEED.json and is not made again; an interrupted one goes on with its training from its
last state, and with its episodes at the next checkpoint. Cells of the same name and settings are the same cell, so
figures that share a folder share them, as they share data and perceived frames.

Every cell is measured at the steps --at; what a table shows is the last of them, which no result has chosen. All
variants meet the same scenes, each seed others, and all follow from --scenes + seed: choose settings in scenes further
away than there are seeds, such as --scenes 60000.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from saycan_qt import atomic
from saycan_qt.data.episodes import DatasetError
from saycan_qt.evaluation.rates import wilson
from saycan_qt.evaluation.skills import Result, Start
from saycan_qt.options import File, Folder, require
from skills import files
from skills.errors import SkillError

RESAMPLES = 4000  # of the bootstrap
WIDE = 140  # [characters] of the table where no terminal limits it
TINY: dict[str, Any] = {  # as `--debug` asks; its trainings take no more steps nor others in a batch
    **{"steps": 20, "at": (10, 20), "batch_size": 32, "warmup": 5, "seeds": (0, 1)},
    **{"episodes": 4, "along": 2, "demonstrations": 12, "replays": 12, "autonomous": 12},
}
COMMON = ("steps", "batch_size", "learning_rate", "warmup", "debug", "scenes", "measured")  # to all cells of a table
Counts = dict[str, tuple[int, int]]  # group of tasks -> successes, episodes


@dataclass(frozen=True)
class Variant:
    """One algorithm with its settings and what it learns from."""

    name: str  # of its cells
    title: str  # in tables and pictures
    algorithm: str  # a name in saycan_qt.learning.algorithms.ALGORITHMS
    data: tuple[str, ...]  # names of the figure's datasets
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the algorithm's config, where they are not its own
    paper: Mapping[str, float] = field(default_factory=dict)  # group -> the paper's rate

    def config(self) -> Any:
        """The algorithm's config. Raises ValueError where this version knows no such algorithm or setting."""
        from saycan_qt.learning.algorithms import ALGORITHMS

        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"{self.name}: no algorithm {self.algorithm!r}; there are {', '.join(ALGORITHMS)}")
        kind = ALGORITHMS[self.algorithm].config_type
        there = [f.name for f in dataclasses.fields(kind)]
        if unknown := [key for key in self.settings if key not in there]:
            raise ValueError(f"{self.name}: {kind.__name__} has no {unknown[0]!r}; it has {', '.join(there)}")
        return kind(**self.settings)


@dataclass(frozen=True)
class CellsConfig:
    """Train and measure the cells of a figure, and draw it."""

    out: Path  # everything is kept here
    cells: tuple[str, ...] = ()  # variants; all of the figure when empty
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    workers: int = 1  # cells at a time, a process and a thread each
    list: bool = False  # only say which cells are there
    draw: bool = False  # only make table and picture, of the cells that are there
    markdown: bool = False  # the table as Markdown
    picture: File = None  # default: OUT/FIGURE.png
    data: Folder = None  # the datasets; collected there where they are not. Default: OUT/data
    steps: int = 800  # optimiser steps
    at: tuple[int, ...] = (200, 400, 800)  # steps at which it is measured
    batch_size: int = 256  # transitions
    learning_rate: float = 1e-3
    warmup: int = 200  # steps
    episodes: int = 100  # of each cell and group of tasks, after the last step
    along: int = 50  # of them, after the other steps
    scenes: int = 50_000  # decides the scenes in which cells are measured
    debug: bool = False  # tiny networks, to see that it runs


@dataclass(frozen=True)
class Figure:
    """What a figure's file says of it."""

    name: str
    title: str
    config: type[CellsConfig]
    variants: Callable[[Any], Sequence[Variant]]
    prepare: Callable[[Any, Path, Sequence[str]], None]  # (config, folder, names): collects what is not there of them
    starts: Callable[[int, int], Sequence[Start]]  # (seed, episodes of each group)
    groups: Mapping[str, tuple[str, ...]]  # group of tasks -> families
    teaches: str | None = None
    spread: bool = False  # the curves' bands: deviation over seeds instead of the interval of pooled episodes


@dataclass(frozen=True)
class Job:
    """One cell to make, as its process is told."""

    name: str
    seed: int
    train: Any  # TrainConfig
    measured: tuple[tuple[int, tuple[Start, ...]], ...]  # step -> episodes
    groups: Mapping[str, tuple[str, ...]]
    settings: Mapping[str, Any]  # all that its result depends on, as JSON has it
    usual: Mapping[str, Any]  # the algorithm's own defaults: what a setting was before there was one
    out: Path

    @property
    def cell(self) -> str:
        return f"{self.name}-{self.seed}"

    @property
    def result(self) -> Path:
        return self.out / "cells" / f"{self.cell}.json"

    @property
    def run(self) -> Path:
        return self.out / "runs" / self.cell

    def done(self) -> bool:
        """Raises ValueError where a cell of this name was made, or begun, otherwise."""
        for path in (self.result, self.run / "settings.json"):
            if path.exists():
                before = {**self.usual, **read(path)["settings"]}
                if changed := [key for key in self.settings | before if before.get(key) != self.settings.get(key)]:
                    was, now = (told.get(changed[0], "as usual") for told in (before, self.settings))
                    said = f"{path}: made with {changed[0]} {was}, not {now}"
                    raise ValueError(f"{said}; another --out, or delete {self.run} and {self.result}")
        return self.result.exists()


def read(path: Path) -> dict[str, Any]:
    found = files.read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: damaged: not a JSON object; delete it, and the same command makes it again")
    return found


def job(figure: Figure, config: CellsConfig, variant: Variant, seed: int) -> Job:
    """Raises ValueError for a variant that this version cannot train."""
    from saycan_qt.learning.batches import BatchConfig
    from saycan_qt.train import TrainConfig, defaults_of

    algorithm, home = variant.config(), config.data or config.out / "data"
    out = config.out / "runs" / f"{variant.name}-{seed}"
    train = TrainConfig(
        data=tuple(home / name for name in variant.data),
        out=out / "training",
        batches=BatchConfig(batch_size=config.batch_size, seed=seed),
        steps=config.steps,
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        log_every=min(50, config.steps),
        validate_every=config.steps,
        snapshots=config.at,
        save_seconds=20.0,
        cache=home / "cache",
        preset="small",
        threads=1,
        debug=config.debug,
        algorithm=algorithm,
    )
    measured = tuple(
        (step, tuple(figure.starts(config.scenes + seed, config.episodes if step == config.at[-1] else config.along)))
        for step in config.at
    )
    kept = {key: getattr(config, key) for key in ("steps", "batch_size", "learning_rate", "warmup", "debug", "scenes")}
    settings = {
        "algorithm": variant.algorithm,
        **dataclasses.asdict(algorithm),
        "data": variant.data,
        **kept,
        **unusual(config),
        "measured": [(step, len(starts)) for step, starts in measured],
    }
    plain = json.loads(json.dumps(settings, default=str))
    return Job(variant.name, seed, train, measured, figure.groups, plain, defaults_of(algorithm), config.out)


def unusual(config: CellsConfig) -> dict[str, Any]:
    """A figure's own options, of its data, where they are not its defaults."""
    common = {field.name for field in dataclasses.fields(CellsConfig)}
    own = {f.name: f.default for f in dataclasses.fields(config) if f.name not in common}
    return {name: value for name, usual in own.items() if (value := getattr(config, name)) != usual}


# -- one cell ----------------------------------------------------------------------------------------------------------

Say = Callable[[str, str], None]  # (cell, what has become of it)


def make(job: Job, say: Say = lambda cell, line: None) -> None:
    """Train, measure, write the result. What an earlier try has done is not done again."""
    from saycan_qt.learning import checkpoint
    from saycan_qt.learning.loop import snapshot

    if not (job.run / "settings.json").exists():  # nothing says with what settings its checkpoints were made
        shutil.rmtree(job.run, ignore_errors=True)
    job.run.mkdir(parents=True, exist_ok=True)
    atomic.write(job.run / "settings.json", atomic.to_json({"settings": job.settings}))
    folder = job.train.out
    if not checkpoint.exists(snapshot(folder, job.measured[-1][0])):
        say(job.cell, "trains")
        train(job)
    provenance = checkpoint.load_files(snapshot(folder, job.measured[-1][0]))[2]
    say(job.cell, f"trained, {provenance['step']} steps in {provenance['seconds']} s")
    rates = []
    for step, starts in job.measured:
        path = job.run / f"measured-{step}.json"
        if not path.exists():
            begun = time.monotonic()
            row: dict[str, Any] = {"step": step, "groups": measure(job, snapshot(folder, step), starts)}
            atomic.write(path, atomic.to_json(row | {"seconds": round(time.monotonic() - begun, 1)}))
        rates.append(read(path))
        found = ", ".join(f"{group} {wins} of {n}" for group, (wins, n) in rates[-1]["groups"].items())
        say(job.cell, f"after {step} steps {found}")
    answer = {
        "cell": job.name,
        "seed": job.seed,
        "rates": rates,
        "seconds": {"training": provenance["seconds"], "measuring": sum(row["seconds"] for row in rates)},
        "machine": provenance.get("machine", "unknown"),  # that trained it
        "settings": job.settings,
        "data_digest": provenance["data_digest"],
        "training_episodes": provenance["episodes"],
    }
    atomic.write(job.result, atomic.to_json(answer))
    shutil.rmtree(folder / "state", ignore_errors=True)  # nothing goes on from it


def train(job: Job) -> None:
    """What it says goes to a file beside it."""
    from saycan_qt.train import train as run

    with (job.run / "log").open("a") as words, contextlib.redirect_stdout(words):
        run(job.train)


def measure(job: Job, folder: Path, starts: Sequence[Start]) -> Counts:
    import torch

    from saycan_qt.evaluation.skills import roll_out
    from saycan_qt.learning import checkpoint

    torch.set_num_threads(1)
    return counted(roll_out(checkpoint.load(folder), starts), job.groups)


def counted(results: Iterable[Result], groups: Mapping[str, tuple[str, ...]]) -> Counts:
    """Successes and episodes of each group of families."""
    found = {group: (0, 0) for group in groups}
    for result in results:
        group = next(name for name, families in groups.items() if result.family in families)
        wins, n = found[group]
        found[group] = wins + result.success, n + 1
    return found


# -- many --------------------------------------------------------------------------------------------------------------

_words: Any = None  # a worker's queue of what to say


def _begin(words: Any) -> None:
    """Of a worker, which does not outlive the command that started it: that would be in the next one's way."""
    global _words
    _words = words
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_it() -> None:
        parent.join()
        os._exit(1)  # all that is written appears whole or not at all

    threading.Thread(target=end_with_it, daemon=True).start()


def _make(job: Job) -> None:
    make(job, lambda cell, line: _words.put((cell, line)))


def make_all(jobs: Sequence[Job], workers: int) -> list[str]:
    """The cells that are not there, those at the front first; returns a line about each that failed."""
    left = [job for job in jobs if not job.done()]
    context, begun, failed, finished = multiprocessing.get_context("spawn"), time.monotonic(), list[str](), 0
    words: Any = context.Queue()

    def tell() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                cell, line = words.get(timeout=0.1)
                print(f"{clock(time.monotonic() - begun)}  {cell}: {line}", flush=True)

    with ProcessPoolExecutor(workers, context, _begin, (words,), max_tasks_per_child=1) as pool:
        futures = {pool.submit(_make, job): job for job in left}
        going = set(futures)
        try:
            while going:
                ended, going = wait(going, timeout=0.5, return_when=FIRST_COMPLETED)
                tell()
                for future in ended:
                    if isinstance(error := future.exception(), BrokenProcessPool):
                        raise RuntimeError(f"a cell's process was killed; was there memory for --workers {workers}?")
                    if error:
                        failed.append(f"{futures[future].cell}: {type(error).__name__}: {error}")
                    finished, spent = finished + 1, time.monotonic() - begun
                    rest = clock(spent / finished * (len(left) - finished))
                    print(f"{clock(spent)}  {finished} of {len(left)} cells, about {rest} left", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return failed


def clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


# -- what they say together --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """A variant's success in one group of tasks after some steps, over its seeds."""

    wins: tuple[int, ...]  # of each seed
    episodes: tuple[int, ...]

    @property
    def pooled(self) -> float:
        return sum(self.wins) / sum(self.episodes)

    @property
    def each(self) -> np.ndarray:
        """(seeds,)"""
        return np.array(self.wins) / np.array(self.episodes)

    @property
    def deviation(self) -> float:
        """Over seeds; NaN of one."""
        return float(self.each.std(ddof=1)) if len(self.wins) > 1 else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Of the pooled episodes [Wilson, 95 %]; as if seeds differed by chance alone."""
        return wilson(sum(self.wins), sum(self.episodes))

    def over_seeds(self, resamples: int = RESAMPLES) -> tuple[float, float]:
        """95 % of a bootstrap: seeds are drawn with replacement, and the rate of each from what its episodes leave open
        [Beta with Jeffreys' prior: 0 of 50 is not for certain 0]."""
        rng, wins, n = np.random.default_rng(0), np.array(self.wins), np.array(self.episodes)
        drawn = rng.integers(len(n), size=(resamples, len(n)))
        rates = rng.beta(wins[drawn] + 0.5, n[drawn] - wins[drawn] + 0.5)
        low, high = np.quantile((rates * n[drawn]).sum(axis=1) / n[drawn].sum(axis=1), (0.025, 0.975))
        return float(low), float(high)


Rates = dict[str, dict[int, dict[str, Rate]]]  # variant -> step -> group


def load_cells(out: Path, variants: Sequence[Variant], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Those that are there. Raises ValueError where they are of different data or settings."""
    from saycan_qt.train import defaults_of

    paths = [out / "cells" / f"{variant.name}-{seed}.json" for variant in variants for seed in seeds]
    cells = [read(path) for path in paths if path.exists()]
    usual = {variant.name: defaults_of(variant.config()) for variant in variants}
    for cell in cells:
        cell["settings"] = {**usual[cell["cell"]], **cell["settings"]}
    same = {variant.name: variant.data for variant in variants}
    for kind in ("data_digest", "settings"):
        first: dict[Any, dict[str, Any]] = {}
        for cell in cells:
            other = first.setdefault(same[cell["cell"]] if kind == "data_digest" else cell["cell"], cell)
            if other[kind] != cell[kind]:
                names = " and ".join(f"{c['cell']}-{c['seed']}" for c in (other, cell))
                said = f"{out / 'cells'}: {names} differ in their {kind.replace('_', ' ')}"
                raise ValueError(f"{said}; of one of them delete its cell and {out / 'runs'}/NAME-SEED")
    for cell in cells:
        for key in COMMON:
            if (was := cells[0]["settings"].get(key)) != (now := cell["settings"].get(key)):
                names = " and ".join(f"{c['cell']}-{c['seed']}" for c in (cells[0], cell))
                said = f"{out / 'cells'}: {names} cannot stand in one table: {key} {was} and {now}"
                raise ValueError(f"{said}; leave some out by --cells and --seeds, or take another --out")
    return cells


def pooled(cells: Iterable[Mapping[str, Any]]) -> Rates:
    counts: dict[tuple[str, int, str], list[tuple[int, int]]] = {}
    for cell in cells:
        for row in cell["rates"]:
            for group, (wins, n) in row["groups"].items():
                counts.setdefault((cell["cell"], row["step"], group), []).append((wins, n))
    rates: Rates = {}
    for (name, step, group), found in counts.items():
        wins, episodes = zip(*found, strict=True)
        rates.setdefault(name, {}).setdefault(step, {})[group] = Rate(wins, episodes)
    return rates


def rows(variants: Sequence[Variant], groups: Iterable[str], rates: Rates) -> list[list[str]]:
    """The table, its head first: what was measured after the last step."""
    names = list(groups)
    head = ["", *([] if len(names) == 1 else ["tasks"]), "steps", "seeds", "successes", "rate", "95 % interval"]
    found = [[*head, "over seeds", "mean ± deviation", "paper"]]
    for variant in variants:
        if variant.name not in rates:
            continue
        step = max(rates[variant.name])
        measured = [(name, rate) for name in names if (rate := rates[variant.name][step].get(name))]
        for name, rate in measured:
            low, high = rate.interval
            below, above = rate.over_seeds()
            mean = f"{rate.each.mean():.2f}" + (f" ± {rate.deviation:.2f}" if len(rate.wins) > 1 else "")
            task = [] if len(names) == 1 else [name]
            counts = [str(step), str(len(rate.wins)), f"{sum(rate.wins)} of {sum(rate.episodes)}"]
            spans = [f"{rate.pooled:.2f}", f"{low:.2f} - {high:.2f}", f"{below:.2f} - {above:.2f}"]
            if len(rate.wins) == 1:
                spans[-1] = ""
            paper = f"{variant.paper[name]:.2f}" if name in variant.paper else ""
            found.append([variant.title, *task, *counts, *spans, mean, paper])
        if len(measured) > 1:  # the paper's average is that of its groups, which have different numbers of tasks
            mean = f"{np.mean([rate.pooled for _, rate in measured]):.2f}"
            paper = f"{np.mean(list(variant.paper.values())):.2f}" if len(variant.paper) == len(names) else ""
            found.append([variant.title, "average", str(step), "", "", mean, "", "", "", paper])
    return found


def markdown(table: Sequence[Sequence[str]]) -> str:
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(figure: Figure, variants: Sequence[Variant], rates: Rates, path: Path) -> None:
    """Success against training steps, with bands, and bars of the last step, the paper's rates as open circles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [variant for variant in variants if variant.name in rates]
    colours = {variant.name: f"C{number}" for number, variant in enumerate(variants)}
    names = list(figure.groups)
    picture, axes = plt.subplots(len(names), 2, squeeze=False, layout="constrained", sharey="row")
    picture.set_size_inches(10, 3.6 * len(names))
    picture.suptitle(figure.title)
    for group, (curve, bars) in zip(names, axes, strict=True):
        for place, variant in enumerate(shown):
            steps = sorted(step for step in rates[variant.name] if group in rates[variant.name][step])
            if not steps:
                continue
            found, colour = [rates[variant.name][step][group] for step in steps], colours[variant.name]
            middle, lows, highs = zip(*(band(rate, figure.spread) for rate in found), strict=True)
            curve.plot(steps, middle, marker="o", markersize=3, color=colour, label=variant.title)
            curve.fill_between(steps, lows, highs, color=colour, alpha=0.15, linewidth=0)
            mean, low, high = band(found[-1], figure.spread)
            bars.bar(place, mean, color=colour, yerr=[[mean - low], [high - mean]], capsize=3)
            if group in variant.paper:
                bars.plot(place, variant.paper[group], "o", color="black", markerfacecolor="none")
        what = "success" if len(names) == 1 else f"{group}: success"
        kind = "± deviation over seeds" if figure.spread else "95 % interval of pooled episodes"
        curve.set(xlabel="training steps", ylabel=what, ylim=(0, 1), title=kind)
        bars.set_xticks(range(len(shown)), [variant.title for variant in shown], rotation=25, ha="right", fontsize=8)
        bars.set_title("after the last step; circles: the paper's", fontsize=10)
        curve.grid(alpha=0.3)
        bars.grid(alpha=0.3, axis="y")
    axes[0, 0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary:
        picture.savefig(temporary, dpi=110, format=path.suffix.removeprefix(".") or "png")
    plt.close(picture)


def band(rate: Rate, spread: bool) -> tuple[float, float, float]:
    """Middle, low and high of a point."""
    if spread and len(rate.wins) > 1:
        mean = float(rate.each.mean())
        return mean, max(0.0, mean - rate.deviation), min(1.0, mean + rate.deviation)
    return rate.pooled, *rate.interval


# -- the command -------------------------------------------------------------------------------------------------------


def check(config: CellsConfig, variants: Sequence[Variant]) -> None:
    require(config, workers=1, steps=1, batch_size=1, warmup=0, episodes=1, along=1, scenes=0)
    names = [variant.name for variant in variants]
    if unknown := [name for name in config.cells if name not in names]:
        raise ValueError(f"--cells {unknown[0]}: there are {', '.join(names)}")
    if not config.seeds or min(config.seeds) < 0 or len(set(config.seeds)) < len(config.seeds):
        raise ValueError("--seeds: give numbers from 0, each once")
    if not config.at or list(config.at) != sorted(set(config.at)) or not 0 < config.at[0] <= config.at[-1]:
        raise ValueError(f"--at {' '.join(map(str, config.at))}: it must be steps that rise, the first above 0")
    if config.at[-1] != config.steps:
        raise ValueError(f"--at must end with the last step, {config.steps}, not with {config.at[-1]}")
    if config.debug and (config.steps > TINY["steps"] or config.batch_size != TINY["batch_size"]):
        raise ValueError(f"--debug trains {TINY['steps']} steps of {TINY['batch_size']} at most; leave the others out")


def small(config: CellsConfig) -> CellsConfig:
    """Tiny, as `--debug` asks."""
    usual = type(config)(config.out)
    asked = [key for key in TINY if hasattr(config, key) and getattr(config, key) == getattr(usual, key)]
    return dataclasses.replace(config, **{key: TINY[key] for key in asked})


def listed(jobs: Iterable[Job | tuple[str, str]]) -> str:
    lines = []
    for item in jobs:
        if isinstance(item, tuple):
            lines.append(f"{item[0]:36s} {item[1]}")
        else:
            begun = "begun" if (item.run / "settings.json").exists() else "to do"
            lines.append(f"{item.cell:36s} {'done' if item.done() else begun}")
    return "\n".join(lines)


def show(figure: Figure, config: CellsConfig, variants: Sequence[Variant]) -> None:
    """Table and picture of the cells that are there."""
    cells = load_cells(config.out, variants, config.seeds)
    if not cells:
        raise ValueError(f"{config.out}: no cells of {figure.name} yet; the same command without --draw makes them")
    rates = pooled(cells)
    table = rows(variants, figure.groups, rates)
    if config.markdown:
        print(markdown(table))
    else:
        shown = Table(title=figure.title)
        for column in table[0]:
            shown.add_column(column, justify="left" if column in ("", "tasks") else "right")
        for row in table[1:]:
            shown.add_row(*row)
        Console(width=None if sys.stdout.isatty() else WIDE).print(shown)
    path = config.picture or config.out / f"{figure.name}.png"
    try:
        draw(figure, variants, rates, path)
    except ImportError as error:
        raise ValueError(f"{error}; `pip install 'saycan-qt[train]'` brings what pictures need") from None
    print(path, file=sys.stderr)


def run(figure: Figure, config: CellsConfig) -> int:
    config = small(config) if config.debug else config
    every = figure.variants(config)
    check(config, every)
    variants = [variant for variant in every if not config.cells or variant.name in config.cells]
    if config.draw:
        show(figure, config, variants)
        return 0
    cells = [(variant, seed) for seed in config.seeds for variant in variants]
    if config.list:
        found: list[Job | tuple[str, str]] = []
        for variant, seed in cells:
            try:
                found.append(job(figure, config, variant, seed))
            except ValueError as error:
                found.append((f"{variant.name}-{seed}", str(error)))
        print(listed(found))
        return 0
    jobs = [job(figure, config, variant, seed) for variant, seed in cells]
    if left := [job for job in jobs if not job.done()]:
        names = {path.name for job in left for path in job.train.data}
        figure.prepare(config, config.data or config.out / "data", sorted(names))
    failed = make_all(jobs, config.workers)
    if len(failed) < len(jobs):
        show(figure, config, variants)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return 1 if failed else 0


def main(figure: Figure, arguments: Sequence[str] | None = None) -> int:
    program = f"python benchmarks/{figure.name}.py"
    config = tyro.cli(
        figure.config, prog=program, args=arguments, description=figure.teaches, config=(tyro.conf.FlagCreatePairsOff,)
    )
    try:
        return run(figure, config)
    except (ValueError, OSError, DatasetError, SkillError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        with contextlib.suppress(BrokenPipeError):
            print("interrupted; the same command goes on", file=sys.stderr)
        return 130
