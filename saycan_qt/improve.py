"""Get better by failing: act, learn from what came of it, keep only what is better, again.

    python -m saycan_qt.improve --out runs/better --rounds 5 --episodes 1000 --data data/kitchen
    python -m saycan_qt.improve --out runs/pick --start runs/actor/checkpoint --data data/shown --families pick --clone
    python -m saycan_qt.improve --out runs/helped --data data/kitchen --help-by-expert 0.2
    python -m saycan_qt.figures improve runs/better                             # success against own episodes

In each round the present policy acts in fresh scenes, every other episode with its actions disturbed, and its successes
and failures are kept; a Q-Transformer, whose weights start from the present policy's, or with --anew by chance, trains
on the starting data and on all own episodes so far; then both act in the same held-out scenes, other ones in each
round, and the new one is kept if it is better: by McNemar's exact test, one-sided, on the episodes that one won and the
other lost, at --level, with at least 50 pairs of episodes. Nothing else shows it to be better, nor is it shown twice:
of N rounds without any progress, N * level keep something, at most. No demonstration is added, unless --help-by-expert
says so: then that is another stage, in which the scripted expert finishes what the policy began, from the policy's own
states, as in DAgger.

Q's settings are those of --start where that is a Q-Transformer, else the paper's; the options below change them.
--clone runs the plain alternative beside it: cloning of the starting data's and one's own successes, with rounds,
seeds and tests of its own.

Killed and started again with the same command, it goes on where it was; with more --rounds, further. OUT/rounds.json
holds what came of each round, OUT/curve.json success against own episodes, OUT/q-001/checkpoint the first round's
policy. `python -m saycan_qt.evaluate skills` measures the last one in scenes that nothing was chosen by.
Exit code 0: a round's policy was kept; 1: none was better; 2: a mistake, said in one line.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from saycan_qt import atomic, collect, train
from saycan_qt.data import lerobot
from saycan_qt.data.episodes import DatasetError, datasets_in
from saycan_qt.evaluation import skills
from saycan_qt.evaluation.rates import mcnemar, wilson
from saycan_qt.kitchen.practice.collection import SETTINGS, CollectConfig, collected, told
from saycan_qt.kitchen.practice.rollouts import HELPED
from saycan_qt.kitchen.tasks import FAMILIES
from saycan_qt.learning import checkpoint, divergence
from saycan_qt.learning.algorithms.q_transformer import QTransformer, QTransformerConfig
from saycan_qt.learning.batches import BatchConfig
from saycan_qt.learning.folder import defaults_of, only_writer
from saycan_qt.options import Checkpoint, called, require, require_share
from skills import files
from skills.errors import SkillError

START, Q, CLONE = "start", "q", "clone"  # who acts: the policy of --start, or one of a round of these two
ROUNDS, CURVE = "rounds.json", "curve.json"
LEAST = 50  # pairs of held-out episodes; fewer say too little to keep anything by
# The seeds of round r are these + 1000 * --seed + r. `evaluate skills` has 10,000, `collect` is used with small ones
OWN_SEEDS, HELD_OUT_SEEDS, MOST_ROUNDS = 1_000_000, 2_000_000, 999
EVERY = 15.0  # [s] between lines while held-out episodes run
FREE = {"out", "rounds", "workers", "threads", "device"}  # may change when a command goes on
# All that decides what is done before anything is learnt
ACTING = {"start", "episodes", "families", "anywhere", "help_by_expert", "seed"}


def settings_of(start: str) -> QTransformerConfig:
    """What the checkpoint trained Q with; the paper's for one that has no Q of this kind. Raises CheckpointError."""
    described, _ = checkpoint.read(start)
    return (
        QTransformerConfig(**described["config"]) if described["algorithm"] == "q-transformer" else QTransformerConfig()
    )


@dataclass(frozen=True)
class ImproveConfig:
    """Options of `python -m saycan_qt.improve`."""

    out: Path  # folder of all rounds
    start: Checkpoint = "execution"  # the policy that begins: a shipped checkpoint's name, or a folder
    # Starting data, demonstrations mostly, which every round trains on beside its own episodes. Without it a policy
    # forgets what its own episodes lack
    data: tuple[Path, ...] = ()
    rounds: int = 3  # how many in all
    episodes: int = 500  # own ones, in each round
    families: tuple[str, ...] = ()  # only these families; all learnt ones when empty
    anywhere: float = 0.0  # share of own episodes in scenes made for another skill, or after one
    # A further stage, as in DAgger: share of own episodes that the scripted expert finishes, of which only its part is
    # kept. These are demonstrations: the curve is no longer one of learning alone
    help_by_expert: float = 0.0
    clone: bool = False  # beside it, by the same rules: clone the successes among starting data and own episodes
    trials: int = 100  # held-out episodes for each family, the same for candidate and present policy
    level: float = 0.05  # of the test: how often what is no better may be kept
    seed: int = 0  # decides all scenes
    # Weights begin by chance in each round, but for the eyes of --start; else they are the present policy's, which has
    # fitted less data well and may hold on to that
    anew: bool = False
    steps: int = 2000  # optimiser steps of a round
    learning_rate: float = 2e-4  # its peak
    batch_size: int = 512  # transitions
    workers: int = 2  # processes that act
    threads: int = 2  # of training
    device: str = "cpu"  # of training
    debug: bool = False  # tiny training, any number of trials; for tests
    q: QTransformerConfig = field(default_factory=lambda: settings_of("execution"))

    @property
    def asked(self) -> tuple[str, ...]:
        """The families, in their usual order."""
        return tuple(family for family in FAMILIES if not self.families or family in self.families)


@dataclass
class Round:
    """What came of one round; None: not yet."""

    number: int  # from 1
    arm: str
    acted: str  # the present policy: "start", or "q-001" for the first round's
    own_episodes: int  # so far, this round's included
    own: str | None = None  # folder of this round's
    own_successes: int | None = None  # among this round's, what the expert finished left out
    helped: int = 0  # of this round's: finished by the expert
    trained: bool = False
    held_out: dict[str, dict[str, int]] | None = None  # family -> episodes, present, candidate: how many they won
    won: int | None = None  # held-out episodes that the candidate won and the present policy lost
    lost: int | None = None  # the other way round
    p: float | None = None
    kept: bool | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # what each step took

    @property
    def candidate(self) -> str:
        return f"{self.arm}-{self.number:03d}"

    def total(self, what: str) -> int:
        return sum(row[what] for row in (self.held_out or {}).values())


def say(line: str) -> None:
    print(line, flush=True)


class Flywheel:
    """All rounds in one folder, and where they stand."""

    def __init__(self, config: ImproveConfig) -> None:
        """Raises ValueError for a folder that holds rounds made with other settings."""
        self.config, self.path = config, config.out / ROUNDS
        self.settings = settings(config)
        self.rounds: list[Round] = []
        if self.path.exists():
            there = files.read_json(self.path)
            try:
                usual = defaults_of(config) | defaults_of(config.q)  # of what older rounds do not say
                before = {key: usual[key] for key in self.settings if key in usual} | there["settings"]
                self.rounds = [Round(**row) for row in there["rounds"]]
                differing = [key for key in self.settings | before if before.get(key) != self.settings.get(key)]
            except (KeyError, TypeError, AttributeError):
                raise ValueError(f"{self.path}: damaged; choose another --out") from None
            if any(divergence.has_diverged(config.out / r.candidate) for r in self.rounds):
                differing = [key for key in differing if key != "learning_rate"]  # goes on with a smaller one
            if not any((config.out / r.candidate).exists() for r in self.rounds):
                differing = [key for key in differing if key in ACTING]
            if str(before.get("start")).rpartition(" ")[2] == self.settings["start"].rpartition(" ")[2]:
                differing = [key for key in differing if key != "start"]  # the same weights, under another name
            if differing:
                said = ", ".join(told(key, before.get(key)) for key in differing)
                raise ValueError(f"{config.out} holds rounds made with {said}; use that, or another --out")
        elif other := sorted(path.name for path in config.out.glob("[!.]*")):
            raise ValueError(f"{config.out} holds something else ({', '.join(other[:3])}); choose another --out")

    def run(self) -> None:
        self.save()
        arms = (Q, CLONE) if self.config.clone else (Q,)
        for number in range(1, self.config.rounds + 1):
            for arm in arms:
                if (this := self.of(arm, number)).kept is None:
                    self.step(this)
                    left = self.config.rounds * len(arms) - sum(r.number <= self.config.rounds for r in self.rounds)
                    say(f"  {left} rounds left" + (f", about {left * minutes(this)} min" if left else ""))

    def step(self, this: Round) -> None:
        config, where = self.config, f"round {this.number} of {self.config.rounds}, {this.arm}"
        if this.own is None:
            say(f"{where}: {config.episodes} episodes by {this.acted}{self.expected('act')}")
            this.own, this.own_successes, this.helped = self.timed(this, "act", lambda: self.act(this))
            self.save()
        alone = config.episodes - this.helped
        say(
            f"  {this.own_successes} of {alone} own episodes succeeded"
            + (f", the expert finished {this.helped} others" if this.helped else "")
        )
        if not this.trained:
            say(f"{where}: training {this.candidate} for {config.steps} steps{self.expected('train')}")
            self.timed(this, "train", lambda: self.train(this))
            this.trained = True
            self.save()
            shutil.rmtree(config.out / "cache", ignore_errors=True)  # the next round's data is other data
        say(f"{where}: {this.acted} and {this.candidate} in the same held-out scenes{self.expected('evaluate')}")
        present, candidate = self.timed(
            this,
            "evaluate",
            lambda: (self.outcomes(this.acted, this.number), self.outcomes(this.candidate, this.number)),
        )
        pairs = {f: list(zip(present[f], candidate[f], strict=True)) for f in config.asked}
        this.held_out = {
            family: {"episodes": len(both), "present": sum(a for a, _ in both), "candidate": sum(b for _, b in both)}
            for family, both in pairs.items()
        }
        this.won = sum(b and not a for both in pairs.values() for a, b in both)
        this.lost = sum(a and not b for both in pairs.values() for a, b in both)
        this.p = mcnemar(this.won, this.lost)
        this.kept = this.p < config.level
        self.save()
        say(
            f"  {this.acted} {rate(this, 'present')}, {this.candidate} {rate(this, 'candidate')}: won {this.won} that "
            f"the other lost, lost {this.lost}, p = {this.p:.2g}: {'kept' if this.kept else 'not kept'}"
        )

        for family, row in this.held_out.items() if len(this.held_out) > 1 else ():
            before, after = (row[who] / row["episodes"] for who in ("present", "candidate"))
            say(f"    {family}: {before:.2f}, {after:.2f}")

    # ---- the three steps --------------------------------------------------------------------------------------------

    def act(self, this: Round) -> tuple[str, int, int]:
        """Folder of this round's own episodes, which two arms share while the same policy acts; how many succeeded;
        how many others the expert finished."""
        config, name = self.config, f"own/round-{this.number:03d}-{this.acted}"
        wanted = CollectConfig(
            config.out / name,
            episodes=config.episodes,
            seed=OWN_SEEDS + 1000 * config.seed + this.number,
            anywhere=config.anywhere,
            policy=str(self.policy(this.acted)),
            help_by_expert=config.help_by_expert,
            families=config.asked if config.families else (),
            workers=config.workers,
        )
        if (begun := wanted.out / SETTINGS).exists():  # with so many workers it goes on
            wanted = dataclasses.replace(wanted, workers=files.read_json(begun)["workers"])
        if collected(wanted.out) < config.episodes and collect.episodes(wanted):
            raise ValueError(f"{wanted.out}: collecting ended early; run the same command again to go on")
        return name, *outcomes_in(wanted.out)

    def train(self, this: Round) -> None:
        own = [self.config.out / str(r.own) for r in self.rounds if r.arm == this.arm and r.number <= this.number]
        train.train(training(self.config, this.arm, self.policy(this.acted), own, self.config.out / this.candidate))

    def outcomes(self, name: str, number: int) -> dict[str, list[bool]]:
        """Family -> success of each of its held-out episodes in round `number`, in their order."""
        config, path = self.config, self.config.out / "held-out" / f"round-{number:03d}-{name}.json"
        done: dict[str, list[bool]] = files.read_json(path) if path.exists() else {}
        missing = tuple(family for family in config.asked if family not in done)
        if not missing:
            return done
        asked = skills.SkillsConfig(
            checkpoint=str(self.policy(name)),
            seed=HELD_OUT_SEEDS + 1000 * config.seed + number,
            episodes=config.trials,
            families=missing,
            workers=config.workers,
        )
        found: dict[str, dict[int, bool]] = {family: {} for family in missing}
        total = len(missing) * config.trials
        begun = before = shown = time.monotonic()
        for count, result in enumerate(skills.results(asked)):  # many at a time: between two lots it is told
            now = time.monotonic()
            if count and now - before > 1 and now - shown > EVERY:
                left = (before - begun) / count * (total - count) / 60
                say(f"  {name}: {count} of {total} held-out episodes, {left:.1f} min left")
                shown = now
            before = now
            found[result.family][result.number] = result.success
            if len(found[result.family]) == config.trials:
                done[result.family] = [found[result.family][i] for i in range(config.trials)]
                atomic.write(path, atomic.to_json(done))
        return done

    # ---- where the rounds stand -------------------------------------------------------------------------------------

    def find(self, arm: str, number: int) -> Round | None:
        return next((r for r in self.rounds if (r.arm, r.number) == (arm, number)), None)

    def of(self, arm: str, number: int) -> Round:
        """The round, begun if it has not been."""
        if (found := self.find(arm, number)) is None:
            kept = [r.candidate for r in self.rounds if r.arm == arm and r.kept]
            found = Round(number, arm, kept[-1] if kept else START, number * self.config.episodes)
            self.rounds.append(found)
        return found

    def policy(self, name: str) -> Path:
        return Path(self.config.start) if name == START else self.config.out / name / "checkpoint"

    def save(self) -> None:
        rows = [dataclasses.asdict(r) for r in self.rounds]
        atomic.write(self.path, atomic.to_json({"settings": self.settings, "rounds": rows}))

    def timed(self, this: Round, what: str, step: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        answer = step()
        this.seconds[what] = round(time.monotonic() - begun, 1)
        return answer

    def expected(self, what: str) -> str:
        before = [r.seconds[what] for r in self.rounds if what in r.seconds]
        return f" (about {before[-1] / 60:.1f} min, as the last time)" if before else ""


def training(config: ImproveConfig, arm: str, init: Path, own: Sequence[Path], out: Path) -> train.TrainConfig:
    """How a round of this arm learns."""
    how: dict[str, Any] = {
        "data": (*config.data, *own),
        "out": out,
        "init": init,
        "batches": BatchConfig(batch_size=config.batch_size, seed=config.seed),
        "cache": config.out / "cache",
    }
    how |= {k: getattr(config, k) for k in ("anew", "steps", "learning_rate", "threads", "device", "debug")}
    return train.TrainQTransformer(algorithm=config.q, **how) if arm == Q else train.TrainRT1(**how)


def settings(config: ImproveConfig) -> dict[str, Any]:
    """All that decides what comes of the rounds, as JSON has it."""
    described = {key: value for key, value in dataclasses.asdict(config).items() if key not in FREE}
    described |= {"families": list(config.families), **described.pop("q")}
    described["data"] = [f"{folder.resolve()} ({content_of(folder)})" for folder in config.data]
    described["start"] = f"{config.start} ({checkpoint.digest(checkpoint.resolve(config.start))[:12]})"
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def content_of(folder: Path) -> str:
    """Another text where a dataset has grown; of its files' names and sizes, without what is hidden, as `.cache`."""
    names = ((path.relative_to(folder), path) for path in sorted(folder.rglob("*")) if path.is_file())
    sizes = [f"{name} {path.stat().st_size}" for name, path in names if not any(p[0] == "." for p in name.parts)]
    return atomic.sha256("\n".join(sizes).encode())[:12]


def minutes(this: Round) -> int:
    return round(sum(this.seconds.values()) / 60)


def rate(this: Round, who: str) -> str:
    wins, count = this.total(who), this.total("episodes")
    low, high = wilson(wins, count)
    return f"{wins / count:.2f} ({low:.2f}-{high:.2f})"


def outcomes_in(folder: Path) -> tuple[int, int]:
    """How many of a collection's episodes succeeded by the policy alone, and how many the expert finished."""

    def column(files: str, name: str) -> list[Any]:
        return [
            v
            for path in folder.glob(f"shard-*/{files}/**/*.parquet")
            for v in pq.read_table(path, columns=[name])[name].to_pylist()
        ]

    helped = column("meta/episodes", f"{lerobot.INFO_PREFIX}mode").count(HELPED)  # all of these succeeded
    return sum(column("data", "next.success")) - helped, helped


def curve(rounds: Sequence[Round]) -> dict[str, list[dict[str, Any]]]:
    """Arm -> success after so many own episodes, from 0: of the policy that was in use from there on, and of the
    candidate, both in that round's held-out scenes."""

    def point(this: Round, who: str) -> dict[str, Any]:
        wins, count = this.total(who), this.total("episodes")
        low, high = wilson(wins, count)
        return {"successes": wins, "episodes": count, "rate": wins / count, "low": low, "high": high}

    found: dict[str, list[dict[str, Any]]] = {}
    for this in rounds:
        if this.kept is None:
            continue
        points = found.setdefault(this.arm, [{"own_episodes": 0, "policy": START, "in_use": point(this, "present")}])
        in_use = "candidate" if this.kept else "present"
        policy = {"own_episodes": this.own_episodes, "policy": this.candidate if this.kept else this.acted}
        rates = {"in_use": point(this, in_use), "candidate": point(this, "candidate")}
        points.append({**policy, **rates, "p": this.p, "kept": this.kept})
    return found


def table(config: ImproveConfig, rounds: Sequence[Round]) -> Table:
    stage = f", {config.help_by_expert:.0%} of them finished by the expert" if config.help_by_expert else ""
    title = f"success in held-out scenes (95 % interval)\nafter so many own episodes{stage}"
    shown = Table(
        title=title, caption=f"kept where p < {config.level:g}", box=box.SIMPLE, pad_edge=False, collapse_padding=True
    )
    for column in ("round", "own", "present", "candidate", "won:lost", "p", "kept"):
        shown.add_column(column, justify="right")
    for this in (r for r in rounds if r.kept is not None):
        verdict = f"{this.won}:{this.lost}", f"{this.p:.2g}", "yes" if this.kept else "no"
        shown.add_row(this.candidate, str(this.own_episodes), rate(this, "present"), rate(this, "candidate"), *verdict)
    return shown


def check(config: ImproveConfig) -> None:
    """Raises ValueError, or one of a dataset or a checkpoint, for what cannot be done, before anything is."""
    require(config, rounds=1, episodes=1, trials=1, seed=0, steps=1, batch_size=1, workers=1, threads=1)
    require_share(config, "anywhere", "help_by_expert")
    if unknown := set(config.families) - set(FAMILIES):
        raise ValueError(f"no family {sorted(unknown)}; the learnt families are {', '.join(FAMILIES)}")
    if not 0 < config.level < 0.5:
        raise ValueError(f"--level {config.level:g}: it must lie between 0 and 0.5")
    if config.rounds > MOST_ROUNDS:
        raise ValueError(f"--rounds {config.rounds}: at most {MOST_ROUNDS}")
    if (pairs := config.trials * len(config.asked)) < LEAST and not config.debug:
        enough = -(-LEAST // len(config.asked))
        raise ValueError(f"--trials {config.trials}: {pairs} pairs of episodes keep nothing; give {enough} or more")
    policy = collect.load_actor(config.start)
    train.check(training(config, Q, Path(config.start), (), config.out))
    QTransformer(policy.network_config, config.q, policy.texts, policy.tokenizer, policy.embodiment)  # do they fit?
    if config.data:
        datasets_in(config.data)


def improve(config: ImproveConfig) -> int:
    check(config)
    config.out.mkdir(parents=True, exist_ok=True)
    with only_writer(config.out):
        flywheel = Flywheel(config)
        flywheel.run()
        atomic.write(
            config.out / CURVE, atomic.to_json({"settings": flywheel.settings, "curves": curve(flywheel.rounds)})
        )
    Console().print(table(config, flywheel.rounds))
    last = {this.arm: flywheel.policy(this.candidate) for this in flywheel.rounds if this.kept}
    if not last:
        say(f"nothing better than {config.start} was found")
        return 1
    for arm, best in last.items():
        say(f"{best} is the last policy of {arm} that was kept; in scenes that nothing was chosen by:")
        say(f"  python -m saycan_qt.evaluate skills --checkpoint {best}")
    return 0


def command(arguments: Sequence[str] | None = None) -> ImproveConfig:
    """The defaults of Q's settings are those of --start."""
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    program = called("python -m saycan_qt.improve")

    def parse(default: ImproveConfig) -> ImproveConfig:
        return tyro.cli(ImproveConfig, args=arguments, prog=program, description=__doc__, config=flat, default=default)

    usual = ImproveConfig(out=tyro.MISSING)
    return parse(dataclasses.replace(usual, q=settings_of(parse(usual).start)))


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return improve(command(arguments))
    except (ValueError, OSError, DatasetError, SkillError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
