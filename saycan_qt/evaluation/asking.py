"""When must the planner ask? Measured on instructions with a goal: `python -m saycan_qt.evaluate asking`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from planners.asking import Asking, confidence, threshold
from planners.saycan import DONE, WORD_FOR_WORD, SayCanConfig, SayCanPlanner, Step
from saycan_qt import atomic
from saycan_qt.evaluation.plans import sources, value_of
from saycan_qt.evaluation.rates import wilson
from saycan_qt.evaluation.worlds import PerfectWorld, Value, WorldJudge
from saycan_qt.kitchen.language.answers import right_next
from saycan_qt.kitchen.language.instructions import (
    HELD_OUT,
    INSTRUCTIONS,
    TUNING,
    Instruction,
    InstructionsError,
    load,
)
from saycan_qt.kitchen.language.spoken import kitchen_language
from saycan_qt.kitchen.staging import Stage
from saycan_qt.language import LanguageConfig, LanguageError, load_language, planner_of
from saycan_qt.options import Checkpoint, File, require, require_files
from saycan_qt.services.models import checkpoints
from saycan_qt.services.processes import refuse
from skills.errors import Unreadable
from skills.library import SkillLibrary
from skills.rules import Known

FIXED = 0.6  # the threshold that is compared with: a guess
SPLITS = 1000  # random halves, over which coverage is averaged
KEYS = ("covered", "helped", "planned")


@dataclass(frozen=True)
class AskingConfig:
    """How often must the planner ask, so that hardly anything goes wrong unasked?

    Each instruction is planned in a kitchen of symbols, where skills succeed. At each decision a person who knows the
    goal is at hand: asked, they choose the right skill if it is among the options, and else end the errand. The
    threshold is set on the tuning halves by conformal prediction (planners/asking.py) and tried on the held-out ones;
    beside it stand a fixed threshold and no asking at all. --calibrate writes the threshold of both halves together,
    which is the less a matter of chance the more errands there are.

    covered: the errand went right, or the person was asked before its first wrong step; what cannot be served is right
    to be refused, and a refusal of what can be is a question, too. helped: the person was asked at least once.
    planned: the goal was reached, with that help. With --calibrate the threshold is written into the robot's folder,
    where `run --ask when-unsure` finds it."""

    # instructions; ambiguous.yaml beside them has some whose words do not tell the goal
    sets: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE")] = (INSTRUCTIONS,)
    coverage: float = 0.95  # share of errands that go right or are asked about
    affordance: Literal["oracle", "model"] = "oracle"  # who tells the planner what is possible, see `evaluate plans`
    critic: Checkpoint = "affordance"  # which checkpoint judges, calibrated, with --affordance model
    seed: int = 0  # decides the kitchens
    language: LanguageConfig = field(default_factory=LanguageConfig)
    planner: SayCanConfig = field(default_factory=SayCanConfig)
    threads: int = 2  # that the models may use
    calibrate: File = None  # write the threshold of both halves here, as asking.json of a robot's folder
    json: bool = False  # print the result as JSON on standard output
    out: File = None  # also write the JSON here


@dataclass(frozen=True)
class Errand:
    """One instruction, planned while a person who knows the goal is at hand."""

    instruction: Instruction
    asked: int  # questions
    wrong: float  # confidence of the first wrong choice that was not asked about; 0: there was none
    least: float  # confidence from which on it would be asked, and was not; more than 1: from none
    reached: bool  # the goal; where nothing serves the instruction: nothing was done


def tried(
    instruction: Instruction, planner: SayCanPlanner, skills: SkillLibrary, value: Value | None, seed: int, ask: Asking
) -> Errand:
    """Plan it to its end. Asked, the person chooses the first right skill of the options, and else ends the errand."""
    of_kitchen, of_stage, of_luck, _ = sources(instruction, seed, layout=0)
    kitchen = instruction.kitchen(of_kitchen, skills.objects)
    world = PerfectWorld(copy.deepcopy(kitchen), of_luck, stage=Stage(of_stage) if value else None)
    judge = WorldJudge(world, skills, value)
    history: list[Step] = []
    began: Known | None = None
    wrong: float | None = None  # the confidence of the first choice that was
    asked, least = 0, 2.0

    def ended() -> Errand:
        reached = not history if instruction.impossible else world.reached(instruction.goal)
        # what no choice seems to blame for could not have been asked about
        unblamed = 0.0 if asked else 1.0
        return Errand(instruction, asked, 0.0 if reached else unblamed if wrong is None else wrong, least, reached)

    while len(history) < planner.config.max_steps:
        seen = world.observe()
        decision = planner.step(instruction.say, history, judge.affordances(seen), seen)
        began = began if history else seen
        right = set() if instruction.impossible else right_next(world.kitchen, instruction.goal, skills)
        if decision.refusal is not None:
            asked += bool(right)
            least = 0.0 if right else least
            return ended()
        skill = decision.skill
        sure = confidence(instruction.say, decision, history, began)
        if decision.because != WORD_FOR_WORD:  # which is never asked about
            least = min(least, sure)
        if (question := ask.question(instruction.say, decision, history, began)) is not None:
            asked += 1
            answers = [option for option in question.skills if option.name in right]
            if not answers:
                return ended()
            skill = answers[0]
        elif skill.name not in right:
            wrong = sure if wrong is None else wrong
        if skill.name == DONE:
            return ended()
        history.append(Step(skill, world.execute(skill)))
    return ended()


def rates(errands: Sequence[Errand]) -> dict[str, Any]:
    counts = {
        "covered": sum(errand.wrong == 0 for errand in errands),
        "helped": sum(errand.asked > 0 for errand in errands),
        "planned": sum(errand.reached for errand in errands),
    }
    n = len(errands)
    found = {
        key: {"rate": k / n, "of": k, "low": wilson(k, n)[0], "high": wilson(k, n)[1]} for key, k in counts.items()
    }
    return {"n": n, "questions": sum(errand.asked for errand in errands), **found}


def at(errands: Sequence[Errand], threshold: float) -> tuple[float, float]:
    """Shares of errands, in which nothing was asked, that are covered and that are asked about at such a threshold: up
    to the first question they go as they went."""
    covered = np.mean([errand.wrong <= threshold for errand in errands])
    return float(covered), float(np.mean([errand.least <= threshold for errand in errands]))


def over_splits(errands: Sequence[Errand], coverage: float, splits: int = SPLITS) -> tuple[float, float]:
    """The same, in the mean, of one random half, the threshold set on the other."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(splits):
        order = rng.permutation(len(errands))
        half, other = ([errands[i] for i in some] for some in np.split(order, [len(order) // 2]))
        shares.append(at(other, threshold([errand.wrong for errand in half], coverage)))
    covered, helped = np.mean(shares, axis=0)
    return float(covered), float(helped)


# -- the command --------------------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> Table:
    title = (
        f"{found['models']['language']}: asked up to a confidence, {found['held_out']['never']['n']} held-out errands"
    )
    grid = Table(title=title)
    grid.add_column("asks")
    for column in ("up to", "covered", "helped", "planned", "questions"):
        grid.add_column(column, justify="right")
    for name, row in found["held_out"].items():
        cells = (f"{row[key]['rate']:.2f} ({row[key]['low']:.2f} - {row[key]['high']:.2f})" for key in KEYS)
        grid.add_row(name, f"{row['threshold']:.2f}", *cells, str(row["questions"]))
    return grid


def asking(config: AskingConfig) -> int:
    import torch

    skills, console = SkillLibrary.load(), Console(stderr=True)
    try:
        require(config, threads=1, seed=0)
        require(config.planner, max_steps=1)
        require_files(config, "out", "calibrate")
        torch.set_num_threads(config.threads)
        chosen = [instruction for path in config.sets for instruction in load(path, skills)]
        tuning, held_out = ([i for i in chosen if i.half == half] for half in (TUNING, HELD_OUT))
        if not held_out:
            raise ValueError("the sets have no entry with `half: held out`, on which a threshold is tried")
        for some in (len(tuning), (len(tuning) + len(held_out)) // 2):  # enough of them?
            threshold([0.0] * some, config.coverage)
        language = load_language(config.language, kitchen_language(), skills)
        value = None
        if config.affordance == "model":
            hosted = checkpoints(config.critic, config.critic, True, config.threads)
            value = value_of(hosted, hosted.load()[0], config.critic)
    except (InstructionsError, LanguageError, Unreadable, ValueError) as error:
        return refuse(" ".join(str(error).split()))
    planner = planner_of("saycan", language, skills, config.planner)

    def all_of(instructions: Sequence[Instruction], ask: Asking, what: str) -> list[Errand]:
        shown = track(instructions, what, console=console)
        return [tried(instruction, planner, skills, value, config.seed, ask) for instruction in shown]

    alone = all_of(tuning, Asking(), "tuning halves, nobody asked")
    set_to = threshold([errand.wrong for errand in alone], config.coverage)
    ways = {"never": 0.0, "fixed": FIXED, "calibrated": set_to}
    errands = {
        name: all_of(held_out, Asking("when-unsure" if limit else "never", limit), f"held-out halves, {name}")
        for name, limit in ways.items()
    }
    both = [*alone, *errands["never"]]
    of_both = threshold([errand.wrong for errand in both], config.coverage)
    found: dict[str, Any] = {
        "coverage": config.coverage,
        "threshold": of_both,
        "errands": len(both),
        "both": dict(zip(("covered", "helped"), at(both, of_both), strict=True)),
        "over_splits": dict(zip(("covered", "helped"), over_splits(both, config.coverage), strict=True)),
        "affordances": "known" if value is None else f"calibrated {config.critic}",
        "models": {"language": language.name},
        "sets": {path.name: atomic.sha256(path) for path in config.sets},
        "tuning": rates(alone),
        "held_out": {name: {"threshold": ways[name], **rates(some)} for name, some in errands.items()},
    }
    shown = Console(stderr=True) if config.json else Console()
    shown.print(table(found))
    both_at, halves = found["both"], found["over_splits"]
    shown.print(
        f"set on both halves, {len(both)} errands: {of_both:.2f}, covers {both_at['covered']:.3f} of them and asks in "
        f"{both_at['helped']:.2f}; set on a random half and tried on the other, {SPLITS:,} times: "
        f"{halves['covered']:.3f} and {halves['helped']:.2f}",
        soft_wrap=True,
    )
    if config.json:
        sys.stdout.write(atomic.to_json(found).decode())
        sys.stdout.flush()
    kept = {key: found[key] for key in ("coverage", "threshold", "errands", "affordances", "models")}
    lost = list[str]()  # the other file is written all the same
    for path, content in ((config.out, found), (config.calibrate, kept)):
        if path is not None:
            try:
                atomic.write(path, atomic.to_json(content))
            except OSError as error:
                lost.append(f"{path} cannot be written: {error.strerror}")
    return refuse("; ".join(lost)) if lost else 0
