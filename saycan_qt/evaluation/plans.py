"""Measure whole plans, over instructions with a goal: `python -m saycan_qt.evaluate plans`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from planners.saycan import Decision, SayCanConfig, SayCanPlanner, Step
from saycan_qt import atomic
from saycan_qt.evaluation.rates import wilson
from saycan_qt.evaluation.worlds import LearntWorld, PerfectWorld, Value, World, WorldJudge
from saycan_qt.kitchen.language.instructions import (
    FAMILIES,
    HELD_OUT,
    INSTRUCTIONS,
    TUNING,
    Instruction,
    InstructionsError,
)
from saycan_qt.kitchen.language.instructions import load as load_instructions
from saycan_qt.kitchen.language.slips import with_a_slip
from saycan_qt.kitchen.language.spoken import kitchen_language
from saycan_qt.kitchen.robot import KitchenRobot
from saycan_qt.kitchen.staging import Stage
from saycan_qt.language import Language, LanguageConfig, LanguageError, load_language, planner_of
from saycan_qt.options import Checkpoint, File, require_files
from saycan_qt.services.models import Models as Hosted
from saycan_qt.services.models import checkpoints
from saycan_qt.services.processes import refuse
from skills.errors import Unreadable
from skills.library import Skill, SkillLibrary
from skills.types import Actor, Observation

PLANNED, EXECUTED = "planned", "executed"
WIDE = 160  # [characters] of the table where no terminal limits it
Loader = Callable[[LanguageConfig, Iterable[Skill]], Language]  # load_language for one robot


@dataclass(frozen=True)
class PlansConfig:
    """How many instructions the planner plans, and the robot carries out, to their goal.

    planned: every skill that the planner chooses is carried out perfectly, in a kitchen of symbols; the plan is right
    if it ends with "done" and the goal then holds, whatever the order of its skills. An instruction that nothing serves
    is right if no skill is chosen. executed (with --execute): the robot and its learnt policy carry the skills out in
    the MuJoCo kitchen, the planner sees what comes of them, and the goal holds there at the end.

    --affordance oracle: what is possible is known. model: a checkpoint judges what the camera sees, in a MuJoCo kitchen
    that is built anew for every step, in the state that the perfect skills have led to.

    An instruction's kitchen follows from its words, the layout's number and the seed; each of its `cases` is a plan of
    its own. Intervals are 95 % Wilson intervals over all plans; layouts and cases of one instruction are alike, so many
    of them make the intervals too narrow."""

    set: File = None  # instructions (YAML); by default saycan_qt/kitchen/language/instructions.yaml
    half: Literal["tuning", "held-out", "both"] = "both"  # held-out: never looked at while the planner is improved
    only: str = ""  # instructions that hold these words
    layouts: int = 1  # kitchens for each instruction
    seed: int = 0  # decides the kitchens
    affordance: Literal["oracle", "model"] = "oracle"  # who tells the planner what is possible
    execute: bool = False  # also measure execution, which takes a minute or so for each instruction
    critic: Checkpoint = "affordance"  # which checkpoint judges, with --affordance model
    actor: Checkpoint = "execution"  # which checkpoint acts, with --execute
    calibrated: bool = False  # the critic's values as probabilities, see `serve --help`
    noisy: bool = False  # blur the oracle: of learnt skills, possible ones score U(0.5, 1), others U(0, 0.4)
    typos: int = 0  # put one slip of the finger into each sentence, drawn with this seed; 0: none
    pick_fails: float = 0.0  # share of the perfect picks that fail all the same
    language: LanguageConfig = field(default_factory=LanguageConfig)
    planner: SayCanConfig = field(default_factory=SayCanConfig)
    threads: int = 2  # that the models may use
    verbose: bool = False  # print every plan that is not right; while the planner is improved, with --half tuning alone
    json: bool = False  # print the result as JSON on standard output
    out: File = None  # also write the JSON here


class UseError(Exception):
    """A mistake in use, in one line."""


# -- plans --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """One try of one instruction."""

    right: bool
    done: bool  # the planner ended it by itself
    refused: bool  # ... because, as it says, nothing serves the instruction
    steps: tuple[Step, ...]
    seconds: tuple[float, ...]  # of each decision, affordances and language together

    def __str__(self) -> str:
        steps = [step.skill.name + ("" if step.outcome.succeeded else " (failed)") for step in self.steps]
        return " > ".join([*steps, "refused" if self.refused else "done" if self.done else "..."])

    def to_json(self) -> dict[str, Any]:
        steps = [{"skill": step.skill.name, "succeeded": step.outcome.succeeded} for step in self.steps]
        return {"right": self.right, "done": self.done, "refused": self.refused, "steps": steps}


def follow(
    planner: SayCanPlanner, instruction: Instruction, said: str, world: World, judge: WorldJudge, must_end: bool
) -> Plan:
    """Plan and act to the end. said: perhaps with a slip. must_end: a plan that goes on and on is not right; but a
    robot that has brought the thing has brought it, as in `run`."""
    events = list(planner.plan(said, judge, world))
    decisions = [event for event in events if isinstance(event, Decision)]
    steps = tuple(event for event in events if isinstance(event, Step))
    ended = not isinstance(events[-1], Step)  # else it was cut off
    done, refused = ended and not decisions[-1].stuck, ended and decisions[-1].refusal is not None
    if instruction.impossible:
        right = ended and not steps
    else:
        right = world.reached(instruction.goal) and (done or not must_end)
    seconds = tuple(a + d.seconds for a, d in zip(judge.seconds, decisions, strict=True))
    return Plan(right, done, refused, steps, seconds)


@dataclass(frozen=True)
class Attempt:
    """One instruction in one kitchen, planned and perhaps executed."""

    instruction: Instruction
    layout: int
    said: str  # the sentence, perhaps with a slip
    plans: Mapping[str, Plan]  # by PLANNED and EXECUTED


@dataclass(frozen=True)
class Models:
    """What plans, judges and acts."""

    planner: SayCanPlanner
    language: str
    value: Value | None = None  # None: what is possible is known
    critic: str = "oracle"
    act: Actor | None = None  # None: nothing is executed
    actor: str = ""


def value_of(hosted: Hosted, critic: Any, name: str) -> Value:
    """What the skill server would answer."""

    def value(observation: Observation, names: list[str]) -> np.ndarray:
        try:
            values = critic.value([observation], names)
        except ValueError as error:
            raise UseError(f"checkpoint {name!r} cannot judge this kitchen: {error}") from None
        return np.clip(hosted.calibrate(values) if hosted.calibrate else values, 0.0, 1.0)

    return value


def load_models(config: PlansConfig, skills: SkillLibrary, load_language: Loader) -> Models:
    """Raises Unreadable or LanguageError."""
    import torch

    torch.set_num_threads(config.threads)
    value, act, critic_id, actor_id = None, None, "oracle", ""
    if config.affordance == "model" or config.execute:
        acting = config.actor if config.execute else config.critic  # naming one twice loads it once
        chosen = checkpoints(config.critic, acting, config.calibrated, config.threads)
        critic, actor = chosen.load()
        if config.affordance == "model":
            value, critic_id = value_of(chosen, critic, config.critic), chosen.critic_id
        if config.execute:
            act, actor_id = actor, chosen.actor_id
    language = load_language(config.language, skills)
    planner = planner_of("saycan", language, skills, config.planner)
    return Models(planner, language.name, value, critic_id, act, actor_id)


def sources(instruction: Instruction, seed: int, layout: int) -> list[np.random.Generator]:
    """What is drawn from for an instruction: its kitchen, how that is shown, whether picks fail, and noise."""
    case = [instruction.case] if instruction.case else []
    return np.random.default_rng([seed, layout, *instruction.say.encode(), *case]).spawn(4)


def attempts(config: PlansConfig, chosen: list[Instruction], skills: SkillLibrary, models: Models) -> Iterator[Attempt]:
    for instruction in chosen:
        for layout in range(config.layouts):
            of_kitchen, of_stage, of_luck, of_noise = sources(instruction, config.seed, layout)
            kitchen, stage = instruction.kitchen(of_kitchen, skills.objects), Stage(of_stage)
            scene = stage.scene(kitchen)
            shown = stage if models.value else None
            perfect = PerfectWorld(copy.deepcopy(kitchen), of_luck, config.pick_fails, shown)
            worlds: dict[str, World] = {PLANNED: perfect}
            if models.act:
                worlds[EXECUTED] = LearntWorld(KitchenRobot(scene=scene), models.act)
            plans, said = {}, instruction.say
            if config.typos:
                said = with_a_slip(said, np.random.default_rng([config.typos, layout, *said.encode()]))
            for kind, world in worlds.items():
                judge = WorldJudge(world, skills, models.value, of_noise if config.noisy else None)
                plans[kind] = follow(models.planner, instruction, said, world, judge, must_end=kind == PLANNED)
            yield Attempt(instruction, layout, said, plans)


# -- the answer ---------------------------------------------------------------------------------------------------


def rates(tried: list[Attempt], kinds: Iterable[str]) -> dict[str, Any]:
    """What share of the plans is right, planned and perhaps executed."""
    found, n = {}, len(tried)
    for kind in kinds:
        right = sum(attempt.plans[kind].right for attempt in tried)
        low, high = wilson(right, n)
        found[kind] = {"rate": right / n if n else None, "n": n, "right": right, "low": low, "high": high}
    return found


def summary(tried: list[Attempt], kinds: Iterable[str]) -> dict[str, Any]:
    of_family = {family: [a for a in tried if a.instruction.family == family] for family in families_of(tried)}
    families = {family: rates(mine, kinds) for family, mine in of_family.items()}
    return {**rates(tried, kinds), "families": families}


def families_of(tried: list[Attempt]) -> list[str]:
    """SayCan's in their order, then those of the file's own."""
    found = dict.fromkeys(attempt.instruction.family for attempt in tried)
    return [*(family for family in FAMILIES if family in found), *(name for name in found if name not in FAMILIES)]


def answer(config: PlansConfig, path: Path, models: Models, tried: list[Attempt]) -> dict[str, Any]:
    """As the JSON has it."""
    kinds = (PLANNED, EXECUTED) if config.execute else (PLANNED,)
    seconds = [s for attempt in tried for plan in attempt.plans.values() for s in plan.seconds]
    rows: dict[int, dict[str, Any]] = {}
    for attempt in tried:
        entry = attempt.instruction
        row = rows.setdefault(
            entry.number, {"number": entry.number, "say": entry.say, "family": entry.family, "half": entry.half}
        )
        plans = {kind: plan.to_json() for kind, plan in attempt.plans.items()}
        beside: dict[str, Any] = {"case": entry.case} if entry.case else {}
        beside |= {"said": attempt.said} if attempt.said != entry.say else {}
        row.setdefault("plans", []).append(plans | beside)
        row.update({kind: row.get(kind, 0) + plan.right for kind, plan in attempt.plans.items()})
    return {
        **summary(tried, kinds),
        "held_out": summary([a for a in tried if a.instruction.half == HELD_OUT], kinds),
        "tuning": summary([a for a in tried if a.instruction.half == TUNING], kinds),
        "seconds": {
            "median": float(np.median(seconds)),
            "p90": float(np.percentile(seconds, 90)),
            "decisions": len(seconds),
        },
        "models": {"language": models.language, "affordance": models.critic, "execution": models.actor},
        "set": {"file": str(path), "sha256": atomic.sha256(path)},
        "seed": config.seed,
        "typos": config.typos,
        "layouts": config.layouts,
        "instructions": list(rows.values()),
    }


def cells(measured: Mapping[str, Any], kind: str) -> tuple[str, str]:
    if kind not in measured or not measured[kind]["n"]:
        return "-", ""
    figures = measured[kind]
    return f"{figures['rate']:.0%}", f"{figures['low']:.0%} - {figures['high']:.0%}"


def table(found: Mapping[str, Any]) -> Table:
    """As Table 2 of the paper: which models, and how often plan and execution reach the goal."""
    models = found["models"]
    grid = Table(title=f"{models['language']}: plans and executions that reach their goal")
    for column in ("instructions", "affordance", "execution"):
        grid.add_column(column)
    for column in ("plans", "planned", "95 %", "executed", "95 %"):
        grid.add_column(column, justify="right")

    def row(name: str, measured: Mapping[str, Any]) -> None:
        figures = (*cells(measured, PLANNED), *cells(measured, EXECUTED))
        grid.add_row(name, models["affordance"], models["execution"] or "-", str(measured[PLANNED]["n"]), *figures)

    for name, part in ((HELD_OUT, found["held_out"]), (TUNING, found["tuning"])):
        if part[PLANNED]["n"]:
            row(name, part)
    row("all", found)
    grid.add_section()
    for family, measured in found["families"].items():
        row(family, measured)
    return grid


def report_failures(tried: list[Attempt], console: Console) -> None:
    for attempt in tried:
        for kind, plan in attempt.plans.items():
            if not plan.right:
                entry, where = attempt.instruction, f"kitchen {attempt.layout}"
                console.print(f"not {kind}: {entry}, {where}: {attempt.said!r}", markup=False)
                console.print(f"    {plan}", markup=False)


# -- the command --------------------------------------------------------------------------------------------------


def check(config: PlansConfig) -> None:
    """Raises UseError for what can be found wrong before anything is read."""
    if config.layouts < 1:
        raise UseError(f"--layouts is {config.layouts}; at least 1 is needed")
    if config.threads < 1:
        raise UseError(f"--threads is {config.threads}; at least 1 is needed")
    if config.seed < 0:
        raise UseError(f"--seed is {config.seed}; it starts at 0")
    if config.typos < 0:
        raise UseError(f"--typos is {config.typos}; it is a seed from 1, or 0 for none")
    if not 0 <= config.pick_fails <= 1:
        raise UseError(f"--pick-fails is {config.pick_fails}; it is a share between 0 and 1")
    if config.planner.max_steps < 1:
        raise UseError(f"--planner.max-steps is {config.planner.max_steps}; at least 1 is needed")
    if config.noisy and config.affordance == "model":
        raise UseError("--noisy blurs what an oracle knows; with --affordance model leave it out")
    if config.calibrated and config.affordance != "model":
        raise UseError("--calibrated is for the checkpoint that --affordance model uses")
    try:
        require_files(config, "out")
    except ValueError as error:
        raise UseError(str(error)) from None


def choose(config: PlansConfig, found: list[Instruction]) -> list[Instruction]:
    """The instructions that are asked for. Raises UseError where there are none."""
    half = {"both": (TUNING, HELD_OUT), "tuning": (TUNING,), "held-out": (HELD_OUT,)}[config.half]
    chosen = [i for i in found if i.half in half and config.only.lower() in i.say.lower()]
    if not chosen:
        words = f" with the words {config.only!r}" if config.only else ""
        raise UseError(f"no instruction{words} among the {len(found)} of which --half {config.half} takes its part")
    return chosen


def load_kitchen(config: LanguageConfig, skills: Iterable[Skill]) -> Language:
    return load_language(config, kitchen_language(), skills)


def plans(config: PlansConfig, load_language: Loader = load_kitchen) -> int:
    path, skills, console = config.set or INSTRUCTIONS, SkillLibrary.load(), Console(stderr=True)
    try:
        check(config)
        chosen = choose(config, load_instructions(path, skills))
        models = load_models(config, skills, load_language)
        total = len(chosen) * config.layouts
        tried = list(track(attempts(config, chosen, skills, models), "planning", total=total, console=console))
    except InstructionsError as error:
        for line in str(error).splitlines():
            code = refuse(line)
        return code
    except (UseError, LanguageError, Unreadable) as error:
        return refuse(str(error))
    found = answer(config, path, models, tried)
    out = sys.stderr if config.json else sys.stdout
    shown = Console(file=out, width=None if out.isatty() else WIDE)
    if config.verbose:
        report_failures(tried, shown)
    shown.print(table(found))
    seconds = found["seconds"]
    shown.print(
        f"a decision among {len(skills)} skills took {seconds['median']:.2f} s in the median, "
        f"{seconds['p90']:.2f} s at the 90th percentile ({seconds['decisions']} decisions)"
    )
    if config.json:
        sys.stdout.write(atomic.to_json(found).decode())
        sys.stdout.flush()
    if config.out:
        try:
            atomic.write(config.out, atomic.to_json(found))
        except OSError as error:
            return refuse(f"--out {config.out} cannot be written: {error.strerror}")
    return 0
