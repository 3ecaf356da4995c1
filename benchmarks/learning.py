"""How fast the learning is: samples a second in training, milliseconds an action, milliseconds to score 100 skills.

    python benchmarks/learning.py                                     # both presets
    python benchmarks/learning.py --preset small --seconds 2          # a first look
    python benchmarks/learning.py --peer peer/bin/python --json       # beside PyPI's q-transformer 0.5.0
    git worktree add ../before main && python benchmarks/learning.py --before ../before       # beside another commit

A training sample is a transition; a step is `saycan_qt.learning.loop.Run.train_step`: batch, target network, loss,
backward pass, optimiser and moving average, in bfloat16 autocast. An action is `Policy.act` of one observation
history, and skills are scored as `Policy.value` does, both with perception, in float32. Images, actions and texts are
random.

The share of the peak is the training's matrix products and convolutions, in FLOPs a second, over what large square
bfloat16 matrix products reach on the same threads in the same minutes. All figures of a preset, ours and the package's,
are taken in turns, in several rounds, because machines are noisy. "Stretches" are batches of consecutive transitions,
whose windows share frames; "norms kept" is --freeze-norm 0.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from pypi_q_transformer import PRESETS as PEER_PRESETS
from pypi_q_transformer import SCORED, flops_of, timed

import saycan_qt
from saycan_qt.learning.algorithms import ALGORITHMS
from saycan_qt.learning.algorithms.policy import Judge, Policy
from saycan_qt.learning.algorithms.q_transformer import QTransformerConfig
from saycan_qt.learning.algorithms.rt1 import RT1Config
from saycan_qt.learning.batches import BatchConfig
from saycan_qt.learning.loop import Run
from saycan_qt.networks.backbone import PRESETS, NetworkConfig
from saycan_qt.networks.tokens import TEXT_SIZE, TextEncoder
from saycan_qt.services import processes
from saycan_qt.train import TrainQTransformer
from skills.robot_folder import default_robot
from skills.types import Observation

SKILLS = [f"skill {number}" for number in range(SCORED)]
EPISODES, LENGTH = 40, 17  # [steps] as the kitchen's on average
FIGURES = ("train", "act", "score")
MAKE_PEER = """\
Not measured: PyPI's q-transformer. It needs an environment of its own:
    python -m venv peer && peer/bin/pip install torch=={torch} q-transformer==0.5.0
and then --peer peer/bin/python. If torchvision, which comes along, cannot be imported because it was built for another
torch, `peer/bin/pip uninstall -y torchvision`: it is not needed."""


@dataclass(frozen=True)
class LearningConfig:
    """Measure the speed of training, acting and scoring."""

    preset: tuple[Literal["small", "paper", "paper-shared"], ...] = ("small", "paper")
    figures: tuple[Literal["train", "act", "score"], ...] = ("train", "act", "score")
    seconds: float = 10.0  # for each figure, at least; a call that takes longer is made once
    rounds: int = 3  # turns that those seconds are divided into
    threads: int = 2
    batch_cached: int = 512  # transitions; `saycan_qt.train`'s own, for the small preset with cached features
    batch_small: int = 64  # the small preset from pixels, and the package beside it
    batch_paper: int = 4  # each sample with frames of its own, as before stretches were; no more fit in 24 GB
    batch_stretches: int = 16  # the paper preset where windows share frames: batches of two stretches
    float32: bool = False  # train without autocast
    device: str = "cpu"
    peer: Path | None = None  # a Python that can import PyPI's q-transformer
    before: Path | None = None  # a checkout of another commit, whose package is measured in turns with this one
    answer: bool = False  # measure what standard input asks for, as pypi_q_transformer.py does; for --before
    json: bool = False  # print everything as JSON


@dataclass(frozen=True)
class Case:
    """One network and algorithm of ours."""

    name: str
    network: NetworkConfig
    algorithm: QTransformerConfig | RT1Config
    batch_size: int
    frozen: bool = False  # the trunk; its features are computed once
    stretch: int = 1  # consecutive transitions that are drawn together
    freeze_norm: int | None = None
    figures: tuple[str, ...] = FIGURES


@dataclass
class Row:
    """What was measured of one case."""

    name: str
    parameters: int
    flops_per_sample: float
    batch_size: int
    calls: Mapping[str, Callable[[float], list[float]]]  # figure -> seconds to spend -> seconds of each call
    durations: dict[str, list[float]] = field(default_factory=dict)
    share: float = 0.0  # of the peak, while training

    @property
    def samples_per_second(self) -> float:
        values = self.durations.get("train", [])
        return self.batch_size * len(values) / sum(values) if values else 0.0

    def milliseconds(self, figure: str, percentile: float = 50) -> float | None:
        values = self.durations.get(figure)
        return None if not values else float(np.percentile(values, percentile)) * 1e3

    def as_dict(self) -> dict[str, Any]:
        kept = ("name", "parameters", "flops_per_sample", "batch_size", "share")
        times = {"act_ms": self.milliseconds("act"), "act_ms_p90": self.milliseconds("act", 90)}
        rest = {"samples_per_second": self.samples_per_second, "score_ms": self.milliseconds("score")}
        return {key: getattr(self, key) for key in kept} | rest | times | {"durations": self.durations}


class RandomEpisodes:
    """Episodes of noise, half of them successes, one for each of the first skills."""

    def __init__(self, image: tuple[int, int]) -> None:
        rng, count = np.random.default_rng(0), EPISODES * LENGTH
        self.embodiment = default_robot().embodiment
        self.images = rng.integers(0, 255, (count, *image, 3), dtype=np.uint8)
        self.cameras = {camera.name: self.images for camera in self.embodiment.cameras}
        self.states = rng.normal(0, 0.3, (count, len(self.embodiment.state))).astype(np.float32)
        low, high = self.embodiment.low, self.embodiment.high
        self.actions = rng.uniform(low, high, (count, len(low))).astype(np.float32)
        self.rewards = np.zeros(count, np.float32)
        self.frame_episode = np.arange(count) // LENGTH
        self.episode_start = np.arange(EPISODES + 1) * LENGTH
        self.episode_task = np.arange(EPISODES)
        self.success, self.finished = np.arange(EPISODES) % 2 == 0, np.ones(EPISODES, bool)
        self.tasks, self.digest = SKILLS, "random"


def peer_of(preset: str) -> str:
    """Which of the package's sizes are nearest."""
    return "small" if preset == "small" else "paper"


def cases(preset: str, config: LearningConfig) -> list[Case]:
    """With a peer there are two more, at the image size that the package takes and, of these, one with the package's
    targets: each action dimension from the next one [Eq. 1], which is one more pass through the target network."""
    network = PRESETS[preset]
    if preset == "small":
        batch = config.batch_small
        ours = [
            Case("q-transformer, cached features", network, QTransformerConfig(), config.batch_cached, frozen=True),
            Case("rt1, cached features", network, RT1Config(), config.batch_cached, True, figures=("train", "act")),
            Case("q-transformer, from pixels", network, QTransformerConfig(), batch, figures=("train",)),
            Case("rt1, from pixels", network, RT1Config(), batch, figures=("train",)),
        ]
    else:
        batch, shared = config.batch_paper, config.batch_stretches
        stretches = Case(
            "q-transformer, stretches", network, QTransformerConfig(), shared, figures=("train",), stretch=shared // 2
        )
        ours = [
            Case("q-transformer", network, QTransformerConfig(), batch),
            stretches,
            dataclasses.replace(stretches, name="q-transformer, stretches, norms kept", freeze_norm=0),
            Case("rt1", network, RT1Config(), batch, figures=("train", "act")),
        ]
    if config.peer is not None:
        side = PEER_PRESETS[peer_of(preset)]["image"]
        assert network.encoder is not None
        square = dataclasses.replace(network, encoder=dataclasses.replace(network.encoder, image=(side, side)))
        name = f"q-transformer, {side} x {side}"
        ours.append(Case(name, square, QTransformerConfig(), batch))
        ours.append(Case(f"{name}, Eq. 1", square, QTransformerConfig(n_step=False), batch, figures=("train",)))
    return ours


def wanted(preset: str, config: LearningConfig) -> list[Case]:
    """The cases of which there are figures to measure; all of them beside the package, with which they are compared."""
    found = cases(preset, config)
    return found if config.peer else [case for case in found if set(case.figures) & set(config.figures)]


def start(case: Case, config: LearningConfig, chunk: int, folder: Path) -> Row:
    """Build the case and warm it up."""
    torch.manual_seed(0)
    vectors = np.random.default_rng(0).normal(size=(SCORED, TEXT_SIZE)).astype(np.float32) / TEXT_SIZE**0.5
    policy_type = next(p for p in ALGORITHMS.values() if p.config_type is type(case.algorithm))
    policy = policy_type(case.network, case.algorithm, texts=TextEncoder(dict(zip(SKILLS, vectors, strict=True))))  # type: ignore[call-arg, arg-type]
    calls: dict[str, Callable[[], Any]] = {"act": partial(act, policy), "score": partial(score, policy)}
    figures, flops = [figure for figure in case.figures if figure in config.figures], 0.0
    if "train" in figures:
        run = training(case, config, policy, folder)
        calls["train"] = run.train_step
        flops = flops_of(run.train_step) / case.batch_size
        run.train_step()
    row = Row(
        name=case.name,
        parameters=sum(p.numel() for p in policy.network.parameters()),
        flops_per_sample=flops,
        batch_size=case.batch_size,
        calls={figure: partial(timed, calls[figure], device=config.device) for figure in figures},
    )
    policy.to(config.device)
    act(policy)
    if "score" in figures:
        assert isinstance(policy, Judge)
        policy.value(history(policy), SKILLS[:chunk])
    return row


def training(case: Case, config: LearningConfig, policy: Policy, folder: Path) -> Run:
    folder.mkdir()
    settings = TrainQTransformer(
        data=(folder,),
        out=folder,
        batches=BatchConfig(batch_size=case.batch_size, stretch=case.stretch),
        freeze_norm=case.freeze_norm,
        freeze_trunk=case.frozen,
        device=config.device,
        threads=config.threads,
        bfloat16=not config.float32,
    )
    return Run(settings, RandomEpisodes(image_of(case.network)), policy, SKILLS)


def image_of(network: NetworkConfig) -> tuple[int, int]:
    assert network.encoder is not None
    return network.encoder.image


def history(policy: Policy) -> list[Observation]:
    rng, network = np.random.default_rng(0), policy.network_config
    shape = (*image_of(network), 3)
    state = np.zeros(len(policy.embodiment.state), np.float32)
    return [Observation({"": rng.integers(0, 255, shape, dtype=np.uint8)}, state) for _ in range(network.history)]


def act(policy: Policy) -> None:
    policy.act(history(policy), SKILLS[0])


def score(policy: Policy) -> None:
    assert isinstance(policy, Judge)
    policy.value(history(policy), SKILLS)


class Elsewhere:
    """Another interpreter, which answers on its standard output what is asked on its standard input."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log, self.name = log, Path(command[1]).name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=None if environment is None else {**os.environ, **environment},
        )

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code, said = self.process.wait(), self.log.read_text()[-1500:]
            raise RuntimeError(f"{' '.join(map(str, self.process.args))} ended with {code}:\n{said}")  # type: ignore[arg-type]
        return json.loads(line)

    def ask(self, figure: str, seconds: float) -> list[float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"figure": figure, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        return self.answer()


def peer(preset: str, batch_size: int, config: LearningConfig, folder: Path) -> tuple[Elsewhere, Row]:
    """The package in its own interpreter; see pypi_q_transformer.py."""
    script = Path(__file__).with_name("pypi_q_transformer.py")
    sizes = ["--batch-size", str(batch_size), "--threads", str(config.threads), "--device", config.device]
    precision = ["--precision", "no" if config.float32 else "bf16"]
    there = Elsewhere([str(config.peer), str(script), peer_of(preset), *sizes, *precision], folder / "peer.log")
    built = there.answer()
    calls = {figure: partial(there.ask, figure) for figure in FIGURES}
    there.ask("warm-up", 0.0)
    name = f"PyPI q-transformer, torch {built['torch']}"
    return there, Row(name, built["parameters"], built["flops_per_sample"], built["batch_size"], calls)


def before(preset: str, rows: list[Row], config: LearningConfig, folder: Path) -> tuple[Elsewhere, list[Row]]:
    """The same cases by this very script, with the other checkout's package. Raises RuntimeError where another one was
    measured, as an installed one would be."""
    assert config.before is not None
    how = ["--threads", str(config.threads), "--device", config.device, "--figures", *config.figures]
    sizes = [f"--batch-{name}={getattr(config, f'batch_{name}')}" for name in ("cached", "small", "paper", "stretches")]
    how += [*sizes, *(["--float32"] if config.float32 else [])]
    script = str(Path(__file__).resolve())
    command = [sys.executable, script, "--preset", preset, "--answer", *how]
    there = Elsewhere(command, folder / "before.log", {"PYTHONPATH": str(config.before.resolve())})
    told = there.answer()
    if not Path(told["package"]).resolve().is_relative_to(config.before.resolve()):
        there.process.kill()
        raise RuntimeError(f"--before {config.before}: what was measured there is {told['package']}")
    found = []
    for number, (row, built) in enumerate(zip(rows, told["rows"], strict=True)):
        calls = {figure: partial(there.ask, f"{number} {figure}") for figure in row.calls}
        found.append(Row("... before", built["parameters"], built["flops_per_sample"], built["batch_size"], calls))
    return there, found


def answer(preset: str, config: LearningConfig, folder: Path) -> None:
    """Measure what is asked for; stands in for the package, see pypi_q_transformer.py."""
    chunk = PEER_PRESETS[peer_of(preset)]["chunk"]
    rows = [start(case, config, chunk, folder / str(i)) for i, case in enumerate(wanted(preset, config))]
    print(json.dumps({"package": saycan_qt.__file__, "rows": [row.as_dict() for row in rows]}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        number, figure = asked["figure"].split()
        print(json.dumps(rows[int(number)].calls[figure](asked["seconds"])), flush=True)


@dataclass
class MatrixProducts:
    """Large square matrix products: the most that this machine gives."""

    dtype: torch.dtype
    device: str
    durations: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.size = 2048 if self.device == "cpu" else 8192
        self.factors = torch.randn(2, self.size, self.size, device=self.device).to(self.dtype)
        self.measure(0.0)
        self.durations.clear()

    def measure(self, seconds: float) -> None:
        self.durations += timed(lambda: self.factors[0] @ self.factors[1], seconds, self.device)

    @property
    def flops_per_second(self) -> float:
        return 2 * self.size**3 * len(self.durations) / sum(self.durations)


def take_turns(rows: list[Row], peaks: Mapping[str, MatrixProducts], config: LearningConfig) -> None:
    """One round over everything that has not had its seconds yet."""
    for products in peaks.values():
        products.measure(min(1.0, config.seconds / config.rounds))
    for row, figure in ((row, figure) for figure in config.figures for row in rows if figure in row.calls):
        spent = row.durations.setdefault(figure, [])
        if sum(spent) < config.seconds:
            spent += row.calls[figure](config.seconds / config.rounds)


def measure(preset: str, config: LearningConfig, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    chunk = PEER_PRESETS[peer_of(preset)]["chunk"]
    ours = [start(case, config, chunk, folder / str(i)) for i, case in enumerate(wanted(preset, config))]
    rows, earlier, others = list(ours), list[Row](), list[Elsewhere]()
    try:
        if config.before is not None:
            there, earlier = before(preset, ours, config, folder)
            others.append(there)
            rows = [row for pair in zip(ours, earlier, strict=True) for row in pair]
        if config.peer is not None:
            batch = config.batch_small if preset == "small" else config.batch_paper
            there, theirs = peer(preset, batch, config, folder)
            others.append(there)
            rows.append(theirs)
        peaks = {name: MatrixProducts(getattr(torch, name), config.device) for name in ("float32", "bfloat16")}
        for turn in range(config.rounds):
            take_turns(rows, peaks, config)
            print(f"{preset}: round {turn + 1} of {config.rounds}", file=sys.stderr, flush=True)
    finally:
        for there in others:
            there.process.kill()
    peak = peaks["float32" if config.float32 else "bfloat16"].flops_per_second
    for row in rows:
        row.share = row.samples_per_second * row.flops_per_sample / peak
    rates = {f"{name}_matmul_flops_per_second": products.flops_per_second for name, products in peaks.items()}
    against = compared([*ours, rows[-1]], config.peer is not None)
    since = {row.name: times_faster(row, then) for row, then in zip(ours, earlier, strict=False)}
    return (
        rates
        | {"score_chunk": chunk, "rows": [row.as_dict() for row in rows], "times_faster_than_before": since}
        | against
    )


def times_faster(row: Row, other: Row) -> dict[str, float]:
    """By the medians, each figure that both have."""
    found = {}
    for figure in row.durations.keys() & other.durations.keys():
        mine, theirs = (np.median(one.durations[figure]) / one.batch_size for one in (row, other))
        found[figure] = float(theirs / mine)
    return found


def compared(rows: list[Row], with_peer: bool) -> dict[str, Any]:
    """How many times faster ours is than the package, at its image size."""
    if not with_peer:
        return {}
    *_, ours, same_targets, theirs = rows
    ratios = {}
    if theirs.samples_per_second:
        ratios["train"] = ours.samples_per_second / theirs.samples_per_second
        ratios["train_with_its_targets"] = same_targets.samples_per_second / theirs.samples_per_second
    for figure in ("act", "score"):
        mine, other = ours.milliseconds(figure), theirs.milliseconds(figure)
        if mine and other:
            ratios[figure] = other / mine
    return {"times_faster_than_peer": ratios}


def table(preset: str, config: LearningConfig, result: dict[str, Any]) -> str:
    network = PRESETS[preset]
    height, width = image_of(network)
    rates = [f"{result[f'{name}_matmul_flops_per_second'] / 1e9:,.0f} {name}" for name in ("float32", "bfloat16")]
    lines = [
        f"{preset}: {height} x {width} pixels, {network.history} frame(s), {config.threads} threads, {config.device}; "
        f"matrix products reach {' and '.join(rates)} GFLOP/s",
        f"{'':42}{'weights':>9}{'batch':>7}{'samples/s':>11}{'GFLOP each':>12}{'of peak':>9}"
        f"{'action ms':>11}{'90 %':>8}{f'{SCORED} skills ms':>15}",
    ]
    for row in result["rows"]:
        times = ["" if row[key] is None else f"{row[key]:,.1f}" for key in ("act_ms", "act_ms_p90", "score_ms")]
        lines.append(
            f"{row['name']:42}{row['parameters'] / 1e6:>8.2f}M{row['batch_size']:>7}{row['samples_per_second']:>11,.2f}"
            f"{row['flops_per_sample'] / 1e9:>12,.3f}{row['share']:>9.1%}{times[0]:>11}{times[1]:>8}{times[2]:>15}"
        )
    if ratios := result.get("times_faster_than_peer"):
        side = PEER_PRESETS[peer_of(preset)]["image"]
        said = ", ".join(f"{key.replace('_', ' ')} {value:.2f}" for key, value in ratios.items())
        lines.append(f"times faster than the package, both at {side} x {side}: {said}")
    for name, ratios in result["times_faster_than_before"].items():
        said = ", ".join(f"{figure} {ratios[figure]:.2f}" for figure in FIGURES if figure in ratios)
        lines.append(f"times faster than before, {name}: {said}")
    return "\n".join(lines)


def main(config: LearningConfig) -> None:
    if config.peer is not None and config.before is not None:
        sys.exit(
            "error: --peer adds cases that a checkout of before is not asked for; compare with one after the other"
        )
    if config.before is not None and not (config.before / "saycan_qt" / "__init__.py").exists():
        sys.exit(f"error: --before {config.before}: no saycan_qt/__init__.py there; give the folder of a checkout")
    torch.set_num_threads(config.threads)
    getattr(processes, "keep_memory", lambda: None)()  # as servers do; a commit of before may not
    if config.answer:
        with tempfile.TemporaryDirectory() as folder:
            answer(config.preset[0], config, Path(folder))
        return
    said = {"torch": torch.__version__, "cores": os.cpu_count(), "load_before": os.getloadavg()}
    results: dict[str, Any] = {"config": dataclasses.asdict(config), "machine": said}
    with tempfile.TemporaryDirectory() as folder:
        for preset in config.preset:
            results[preset] = measure(preset, config, Path(folder) / preset)
            if not config.json:
                print(table(preset, config, results[preset]), end="\n\n", flush=True)
    if config.json:
        print(json.dumps(results, default=str))
    if config.peer is None:
        print(MAKE_PEER.format(torch=torch.__version__.split("+")[0]), file=sys.stderr if config.json else sys.stdout)


if __name__ == "__main__":
    main(tyro.cli(LearningConfig, description=__doc__))
