"""Embodied Agent Interface: our planner on somebody else's benchmark, judged by its own evaluator.

    python benchmarks/embodied_agent_interface.py --out runs/eai                         # the tuning categories
    python benchmarks/embodied_agent_interface.py --out runs/eai --split held-out        # the others
    python benchmarks/embodied_agent_interface.py --out runs/eai --tasks 20 --show       # a sample of each
    python benchmarks/embodied_agent_interface.py --out runs/eai --check                 # ends where the goal holds
    python benchmarks/embodied_agent_interface.py --out runs/eai --without language      # an ablation
    python benchmarks/embodied_agent_interface.py --out runs/eai --language.adapter general   # taught many robots
    python benchmarks/embodied_agent_interface.py --out runs/eai --language.model FOLDER # any other local model

Action sequencing in VirtualHome [Li et al. 2024, arXiv 2410.07166]. A task has a scene and a goal: states and relations
in the end, and actions that have to occur. Skills are the evaluator's actions with the things that the benchmark tells
as relevant; one is possible where the benchmark's simulator carries it out. The language model is told the goal in
words, the product chooses, the simulator goes on, until "done" or --steps; the actions are given to the benchmark's
evaluator, and what it says counts.

Every second category of tasks, by the alphabet, is for tuning: wording, settings and examples are of these alone (and
no example of the category that is being planned). Tasks whose shipped end the evaluator does not see as one are left
out, as it does: 305 of 342 remain.

Two slips of eai-eval 1.0.5 are mended while it evaluates, see `mended`: it counts a plan that is the shipped one to the
letter as no success, and asks for actions in the order of a Python set, which changes from run to run, instead of the
goal's. `--as-it-is` leaves them.

eai-eval cannot be an extra of this project: it asks for pddlgym, and that for Pillow below 10. What is used here needs
none of it: `pip install --no-deps "eai-eval==1.0.5"`.

The paper's own table of action sequencing is over all tasks, with no split held out.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
import tyro

from planners.prompts import Example
from planners.robot_language import DONE, RobotLanguage
from planners.saycan import SayCanConfig, SayCanPlanner, Scorer, Step
from saycan_qt import atomic
from saycan_qt.evaluation.rates import wilson
from saycan_qt.language import Language, LanguageConfig, LanguageError, load_language
from skills.library import Skill, SkillLibrary
from skills.types import Outcome, Status

INSTALL = 'pip install --no-deps "eai-eval==1.0.5"'
CHARACTER = 65  # the robot, in its scene graphs
NAME = "planner"  # of ours, for its evaluator
TOGETHER = 10  # tasks that are judged before what was found is kept
ACTIONS = {  # the evaluator's -> what is said to do it; those without a simulation are left out
    "WALK": "walk to the {thing}",
    "RUN": "run to the {thing}",
    "FIND": "find the {thing}",
    "TURNTO": "turn to the {thing}",
    "LOOKAT": "look at the {thing}",
    "WATCH": "watch the {thing}",
    "POINTAT": "point at the {thing}",
    "GREET": "greet the {thing}",
    "GRAB": "grab the {thing}",
    "PUTBACK": "put the {thing} on the {place}",
    "PUTIN": "put the {thing} inside the {place}",
    "PUTOBJBACK": "put the {thing} back",
    "DROP": "drop the {thing}",
    "OPEN": "open the {thing}",
    "CLOSE": "close the {thing}",
    "SWITCHON": "switch on the {thing}",
    "SWITCHOFF": "switch off the {thing}",
    "SIT": "sit on the {thing}",
    "LIE": "lie on the {thing}",
    "STANDUP": "stand up",
    "SLEEP": "sleep",
    "WAKEUP": "wake up",
    "TOUCH": "touch the {thing}",
    "PUSH": "push the {thing}",
    "PULL": "pull the {thing}",
    "MOVE": "move the {thing}",
    "READ": "read the {thing}",
    "TYPE": "type on the {thing}",
    "DRINK": "drink from the {thing}",
    "EAT": "eat the {thing}",
    "CUT": "cut the {thing}",
    "POUR": "pour the {thing} into the {place}",
    "WASH": "wash the {thing}",
    "RINSE": "rinse the {thing}",
    "SCRUB": "scrub the {thing}",
    "WIPE": "wipe the {thing}",
    "SQUEEZE": "squeeze the {thing}",
    "PUTON": "put on the {thing}",
    "PUTOFF": "take off the {thing}",
}
STATES = {"ON": "on", "OFF": "off", "PLUGGED_IN": "plugged in", "PLUGGED_OUT": "unplugged", "OPEN": "open"} | {
    "CLOSED": "closed",
    "SITTING": "sitting",
    "LYING": "lying",
    "CLEAN": "clean",
    "DIRTY": "dirty",
}
OURS = {  # relations of the robot itself
    "HOLDS_RH": "hold the {}",
    "HOLDS_LH": "hold the {} in the left hand",
    "FACING": "face the {}",
    "CLOSE": "be near the {}",
    "ON": "be on the {}",
    "INSIDE": "be in the {}",
}
THEIRS = {"ON": "{} on the {}", "INSIDE": "{} inside the {}", "CLOSE": "{} near the {}", "FACING": "{} facing the {}"}
SPLITS = ("tuning", "held-out")
TUNING = (  # every second category of which some task can be evaluated, by the alphabet
    "Browse internet",
    "Drink",
    "Go to sleep",
    "Listen to music",
    "Pick up phone",
    "Read book",
    "Set up table",
    "Turn on light",
    "Wash hands",
    "Watch TV",
    "Write an email",
)
NOT_ABOUT_PLANS = ("out", "split", "tasks", "seed", "as_it_is", "show", "threads")


@dataclass(frozen=True)
class Config:
    """Plan tasks of the benchmark, and have them judged."""

    out: Path  # a folder: every task's plan is kept here, so that what is interrupted goes on
    split: Literal["tuning", "held-out"] = "tuning"
    tasks: int = 0  # a sample of so many of the split; 0: all
    seed: int = 0  # of the sample
    language: LanguageConfig = field(default_factory=lambda: LanguageConfig(adapter="none"))
    without: Literal["", "affordance", "language"] = ""
    nearness: float = 0.0  # weight of sentence embedding beside the language model, see SayCanConfig
    plans: Literal["shipped", "short"] = "short"  # of the examples: as people wrote them, or without what they need not
    nearest: int = 8  # examples in a prompt; 0: none
    check: bool = False  # the goal is checked after each skill, and ends the plan: not for the language model to know
    parts: bool = False  # the goal is said part by part: the next one is added where the last is "done"
    done: float = SayCanConfig.done_affordance  # affordance of "done"
    steps: int = 10  # at most
    as_it_is: bool = False  # the evaluator's slips are left
    show: bool = False  # each plan that fails
    threads: int = 0  # 0: as many as torch finds


# -- what the benchmark brings -----------------------------------------------------------------------------------------


class Benchmark:
    """Its files, and its code where it is needed."""

    examples = "examples"  # the folder in --out

    def __init__(self) -> None:
        """Raises ValueError where it is not installed."""
        try:
            import virtualhome_eval
            from virtualhome_eval.evaluation.action_sequencing.scripts import evaluate_results
            from virtualhome_eval.simulation.evolving_graph import eval_utils, execution, scripts
        except ModuleNotFoundError as error:
            raise ValueError(f"{error}; {INSTALL}") from None
        self.root = Path(virtualhome_eval.__file__).parent
        self.data = self.root / "dataset" / "programs_processed_precond_nograb_morepreconds"
        self.evaluator, self.code, self.execution, self.scripts = evaluate_results, eval_utils, execution, scripts
        every = json.loads((self.root / "resources/virtualhome/task_state_LTL_formula_accurate.json").read_text())
        self.goals = {  # task -> category, goal
            number: (category, goal["vh_goal"])
            for category, goals in every["scene_1"].items()
            for number, goal in goals.items()
        }

    @cached_property
    def actions(self) -> dict[str, int]:
        """Those that its evaluator knows and its simulator can carry out, with the number of their things."""
        simulated = {action.name for action in self.execution.ScriptExecutor._action_executors}
        return {name: count for name, (_, count) in self.code.valid_actions.items() if name in simulated}

    def split(self, which: str) -> list[str]:
        """Tasks of a split, the sets of which are this project's."""
        return [n for n, (category, _) in self.goals.items() if (category in TUNING) == (which == "tuning")]

    def home(self, number: str) -> Home:
        return Home(self, number)

    def plan(self, home: Home, planners: Callable[[], Planners], config: Config) -> list[str]:
        return plan(home, planners().planner(home), config)

    def judge(self, plans: Mapping[str, Sequence[str]], as_it_is: bool = False) -> dict[str, bool]:
        return judge(self, plans, as_it_is)


class Home:
    """One task: its scene, in which skills are carried out."""

    def __init__(self, benchmark: Benchmark, number: str) -> None:
        self.benchmark, self.number = benchmark, number
        self.category, goal = benchmark.goals[number]
        self.states = benchmark.code.remove_duplicate_dicts([one for one in goal["goal"] if "state" in one])
        self.relations = benchmark.code.remove_duplicate_dicts([g for g in goal["goal"] if "relation_type" in g])
        self.wanted = list(dict.fromkeys(goal["actions"]))  # actions that have to occur, in this order
        self.planner, _, self.actions_shipped, _, _ = benchmark.code.construct_planner(
            None, None, None, script_id=number, dataset_root=str(benchmark.data)
        )
        *_, relevant = self.planner.get_symbolic_goal_nl(self.states, self.relations, action_goals=self.wanted)
        self.classes = {i: key.rpartition("_")[0] for key, i in sorted(relevant.items(), key=lambda item: item[1])}
        self.classes.pop(CHARACTER, None)
        self.things = named_apart(self.classes)
        grounded = list(self._grounded())
        self.lines = {skill.name: line for skill, line in grounded}  # the evaluator's
        self.skills = SkillLibrary([*(skill for skill, _ in grounded), Skill(DONE, DONE)])
        self._prepare()
        self.reset()

    def _prepare(self) -> None:
        parse = self.benchmark.scripts.parse_script_line
        self._scripts = {name: self.benchmark.scripts.Script([parse(line, 1)]) for name, line in self.lines.items()}

    def _grounded(self) -> Iterator[tuple[Skill, str]]:
        for action, text in ACTIONS.items():
            count = self.benchmark.actions[action]
            for ids in {0: [()], 1: [(i,) for i in self.classes]}.get(count) or pairs(self.classes):
                arguments = dict(zip(("thing", "place"), (self.things[i] for i in ids), strict=False))
                told = text.format(**arguments)
                line = "".join([f"[{action}]", *(f" <{self.classes[i]}> ({i})" for i in ids)])
                yield Skill(told, action.lower(), told, arguments, learned=False), line

    def reset(self) -> None:
        self.planner.reset()
        self.done: list[str] = []  # lines that were carried out

    def possible(self) -> dict[str, float]:
        """Skill -> 1 where the simulator would carry it out."""
        return {name: 1.0 for name, script in self._scripts.items() if self._next(script, modify=False) is not None}

    def goes(self, skill: Skill) -> bool:
        """Would it be carried out? Of a skill that `possible` names; here it has been tried already."""
        return True

    def execute(self, skill: Skill) -> bool:
        state = self._next(self._scripts[skill.name])
        if state is not None:
            self.planner.env_state = state
            self.done.append(self.lines[skill.name])
        return state is not None

    def _next(self, script: Any, modify: bool = True) -> Any:
        info, executor = self.benchmark.execution.ExecutionInfo(eval_mode=True), self.planner.executor
        states = executor.call_action_method(script, self.planner.env_state, info, executor.char_index, modify)
        return next(states, None)

    def satisfied(self, parts: int | None = None) -> bool:
        """Do the first of the goal's parts hold, in the simulator as the evaluator sees it? Without a number: all?"""
        return self._hold(self.planner.env_state.to_dict(), self.done, len(self.parts) if parts is None else parts)

    def _hold(self, scene: Mapping[str, Any], done: Sequence[str], parts: int) -> bool:
        found = {node["id"]: node["states"] for node in scene["nodes"]}
        states, rest = self.states[:parts], max(0, parts - len(self.states))
        relations, wanted = self.relations[:rest], self.wanted[: max(0, rest - len(self.relations))]
        return (
            all(one["state"] in found.get(one["id"], ()) for one in states)
            and all(one in scene["edges"] for one in relations)
            and bool(self.benchmark.code.check_order_with_or(wanted, " ".join(done)))
        )

    @property
    def shipped(self) -> list[str]:
        """The plan that the benchmark brings, in the evaluator's lines."""
        return self.actions_shipped

    def found_first(self, steps: Sequence[Skill]) -> list[Skill]:
        """The steps, each thing found before something is done with it."""
        found: list[Skill] = []
        met: set[str] = set()
        for step in steps:
            thing = step.arguments.get("thing", "")
            if thing and thing not in met and step.family not in ("find", "walk", "run"):
                found.append(self.skills[f"find the {thing}"])
            found.append(step)
            met |= set(step.arguments.values())
        return found

    @property
    def evaluable(self) -> bool:
        """Does the evaluator see the shipped end as one? It looks no further than the first relation that holds."""
        told = len(self.states) + len(self.relations)
        return len(self.relations) < 2 and self._hold(self.planner.final_state_dict, (), told)

    @cached_property
    def parts(self) -> list[str]:
        """The goal in words: no more than the benchmark's own prompt says of it."""
        parts = [f"{self._the(one['class_name'])}{STATES[one['state']]}" for one in self.states]
        for one in self.relations:
            subject, thing = one["from_id"], self._word(one["to_id"])
            if subject == CHARACTER:
                parts.append(OURS[one["relation_type"]].format(thing))
            elif one["to_id"] == CHARACTER:
                parts.append(f"wear the {self._word(subject)}")
            else:
                parts.append("the " + THEIRS[one["relation_type"]].format(self._word(subject), thing))
        return parts + [" or ".join(verb(one) for one in action.split("|")) for action in self.wanted]

    @property
    def said(self) -> str:
        return say(self.parts)

    def _word(self, number: int) -> str:
        return self.classes.get(number, self.planner.id_to_name[number]).replace("_", " ")

    @staticmethod
    def _the(name: str) -> str:
        return "be " if name == "character" else f"the {name.replace('_', ' ')} "

    @cached_property
    def of_the_goal(self) -> frozenset[str]:
        """Things with a name that the goal has, and those that these are on or in."""
        ids = [one["id"] for one in self.states] + [one[end] for one in self.relations for end in ("from_id", "to_id")]
        classes = {self.planner.id_to_name[i] for i in ids if i != CHARACTER}
        meant = {i for i, name in self.classes.items() if name in classes}
        edges = self.planner.init_state.to_dict()["edges"]
        around = {e["to_id"] for e in edges if e["from_id"] in meant and e["relation_type"] in ("ON", "INSIDE")}
        return frozenset(self.things[i] for i in self.classes if i in meant | around)


def say(parts: Sequence[str]) -> str:
    return ", ".join(parts) or "anything"


def named_apart(classes: Mapping[int, str]) -> dict[int, str]:
    """Names in words; of several alike, all but the first with a number."""
    count: dict[str, int] = {}
    found = {}
    for i, name in classes.items():
        count[name] = count.get(name, 0) + 1
        found[i] = name.replace("_", " ") + (f" {count[name]}" if count[name] > 1 else "")
    return found


def pairs(ids: Iterable[int]) -> list[tuple[int, int]]:
    every = list(ids)
    return [(one, other) for one in every for other in every if one != other]


def verb(action: str) -> str:
    return ACTIONS[action].replace(" the {thing}", "").partition(" the {place}")[0]


# -- how it is planned -------------------------------------------------------------------------------------------------


def plan(home: Home, planner: SayCanPlanner, config: Config) -> list[str]:
    """The evaluator's lines."""
    home.reset()
    history: list[Step] = []
    lines: list[str] = []
    parts = 1 if config.parts else max(1, len(home.parts))
    while len(history) < config.steps:
        while config.check and home.parts and parts <= len(home.parts) and home.satisfied(parts):
            parts += 1
        if config.check and lines and parts > len(home.parts):
            break
        skill = choose(home, planner, history, min(parts, len(home.parts)), config)
        if skill.name != DONE:
            home.execute(skill)
            lines.append(home.lines[skill.name])
            history.append(Step(skill, Outcome(Status.SUCCEEDED)))
        elif parts < len(home.parts):
            parts += 1
        else:
            break
    return lines


def choose(home: Home, planner: SayCanPlanner, history: Sequence[Step], parts: int, config: Config) -> Skill:
    """A plan is not empty, as the benchmark's prompt demands; one whose goal is checked ends where it holds."""
    decision = planner.step(say(home.parts[:parts]), history, home.possible())
    may_end = not config.check and (history or parts < len(home.parts))
    ranked = [c.skill for c in decision.candidates if c.score > 0 and (may_end or c.skill.name != DONE)]
    return next((skill for skill in ranked if skill.name == DONE or home.goes(skill)), home.skills[DONE])


Examples = tuple[dict[str, list[Example]], list[str]]  # by category, and the things that they are about


class Remembering:
    """A scorer that is asked once: tasks of a category have much in common."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.known: dict[str, dict[str, float]] = {}

    def score(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        known = self.known.setdefault(prompt, {})
        if new := [one for one in candidates if one not in known]:
            best = sorted(known, key=lambda one: -known[one])[:1]  # it gives up what is hopeless beside the best
            known |= dict(zip([*new, *best], map(float, self.scorer.score(prompt, [*new, *best])), strict=True))
        return np.array([known[one] for one in candidates])


class Planners:
    """A planner for each task, with one language model for all."""

    def __init__(self, benchmark: Benchmark, config: Config, language: Language, examples: Examples) -> None:
        from planners.weights import text_embedder

        self.benchmark, self.config, self.language, self.examples = benchmark, config, language, examples
        self.embedder, self.scorer = text_embedder(), Remembering(language.scorer)

    @staticmethod
    def of(config: Config, benchmark: Benchmark) -> Planners:
        """Raises LanguageError."""
        home = benchmark.home(benchmark.split("tuning")[0])
        language = load_language(config.language, RobotLanguage.read(home.skills), home.skills)
        return Planners(
            benchmark, config, language, examples_of(benchmark, config.plans, config.out / benchmark.examples)
        )

    def planner(self, home: Home) -> SayCanPlanner:
        config, told = self.config, bool(self.language.prompt.head)
        by_category, things = self.examples
        shown = [e for category, some in by_category.items() if category != home.category for e in some]
        robot = replace(
            RobotLanguage.read(home.skills, about="a robot at home"),
            examples=tuple(shown) if config.nearest else (),
            by_text=(),
            things=tuple(dict.fromkeys([*home.things.values(), *things])),
        )
        prompt = robot.prompt(self.embedder, tuned=self.language.prompt.tuned, told=told)
        prompt.nearest, prompt.spelling = config.nearest, None
        settings = SayCanConfig(
            refuse=False,
            done_affordance=config.done,
            max_steps=config.steps,
            without=config.without,
            nearness=config.nearness,
        )
        return SayCanPlanner(self.scorer, prompt, home.skills, settings)


def examples_of(benchmark: Benchmark, plans: str, folder: Path) -> Examples:
    """Category -> examples, of the tuning categories alone; found now, or read where they were."""
    kept = folder / f"{plans}.json"
    if not kept.exists():
        found: dict[str, list[tuple[str, list[str]]]] = {}
        things: dict[str, None] = {}
        best: dict[str, tuple[int, int]] = {}  # of each goal the shortest: how many things and steps it has
        for number in benchmark.split("tuning"):
            home = benchmark.home(number)
            by_line = {line: home.skills[name] for name, line in home.lines.items()}
            if not (home.evaluable and home.shipped) or any(line not in by_line for line in home.shipped):
                continue
            steps = [by_line[line] for line in home.shipped]
            steps = needed(home, steps) if plans == "short" else steps
            things |= dict.fromkeys(thing for step in steps for thing in step.arguments.values())
            entry = (home.said, [step.text for step in steps] + [DONE])
            some = found.setdefault(home.category, [])
            if plans == "short":
                size = len({thing for step in steps for thing in step.arguments.values()}), len(steps)
                if size >= best.get(home.said, (sys.maxsize, 0)):
                    continue
                best[home.said] = size
                some[:] = [one for one in some if one[0] != home.said]
            if entry not in some:
                some.append(entry)
        atomic.write(kept, atomic.to_json({"examples": found, "things": list(things)}))
    read = json.loads(kept.read_text())
    by_category = {c: [Example(said, tuple(steps)) for said, steps in some] for c, some in read["examples"].items()}
    return by_category, read["things"]


def needed(home: Home, steps: Sequence[Skill]) -> list[Skill]:
    """A shipped plan without what its goal does not need: a thing is found before something is done with it, and then
    steps are left out one by one, those with other things than the goal's first, as long as the goal is reached."""
    left = home.found_first(steps)
    if not reaches(home, left):
        left = list(steps)
    foreign = [bool(set(step.arguments.values()) - home.of_the_goal) for step in left]
    kept = [True] * len(left)
    for first in (True, False):
        for index in range(len(left)):
            if kept[index] and foreign[index] == first:
                kept[index] = False
                kept[index] = not reaches(home, [step for step, keep in zip(left, kept, strict=True) if keep])
    return [step for step, keep in zip(left, kept, strict=True) if keep]


def reaches(home: Home, steps: Sequence[Skill]) -> bool:
    home.reset()
    return bool(steps) and all(home.execute(step) for step in steps) and home.satisfied()


# -- how it is judged --------------------------------------------------------------------------------------------------


def judge(benchmark: Benchmark, plans: Mapping[str, Sequence[str]], as_it_is: bool = False) -> dict[str, bool]:
    """Which tasks' goals are reached, by the benchmark's evaluator; those that it leaves out are left out."""
    answers = [{"identifier": number, "llm_output": to_answer(lines)} for number, lines in plans.items()]
    heard = Heard()
    with TemporaryDirectory() as folder, heard.listening(benchmark.evaluator.logger):
        responses = Path(folder) / "virtualhome" / "action_sequencing"
        responses.mkdir(parents=True)
        (responses / f"{NAME}_outputs.json").write_text(json.dumps(answers))
        told = SimpleNamespace(
            dataset="virtualhome",
            llm_response_path=folder,
            resource_dir=str(benchmark.root / "resources"),
            dataset_dir=str(benchmark.root / "dataset"),
            output_dir=str(Path(folder) / "out"),
        )
        with ExitStack() as around:
            if not as_it_is:
                around.enter_context(mended(benchmark))
            around.enter_context(patch.object(benchmark.evaluator, "copy", NO_COPIES))
            around.enter_context(suppress(ZeroDivisionError))  # by how many goals of a kind there are: may be none
            benchmark.evaluator.evaluate_results(told)
    return heard.found


NO_COPIES = SimpleNamespace(deepcopy=lambda value: value)  # of all scenes before each action, which it only reads


@contextmanager
def mended(benchmark: Benchmark) -> Iterator[None]:
    """A plan that is the shipped one goes the way of all others, and actions are wanted in the order of the goal."""
    construct = benchmark.evaluator.construct_planner

    def without_shipped(*given: Any, **named: Any) -> Any:
        planner, relevant, _, task, description = construct(*given, **named)
        return planner, relevant, None, task, description

    with (
        patch.object(benchmark.evaluator, "construct_planner", without_shipped),
        patch.object(benchmark.evaluator, "set", dict.fromkeys, create=True),
    ):
        yield


class Heard(logging.Handler):
    """What the evaluator says of each task; it returns sums alone."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, bool] = {}
        self.number = ""

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if said.startswith("Task is ") and ", file_id is " in said:
            self.number = said.rpartition(" ")[2]
            self.found[self.number] = False
        elif said.endswith("did not pass gold test"):
            self.found.pop(self.number)
        elif said == "EVERYTHING SUCCEED!":
            self.found[self.number] = True

    @contextmanager
    def listening(self, log: logging.Logger) -> Iterator[None]:
        level, passed_on = log.level, log.propagate
        log.addHandler(self)
        log.setLevel(logging.INFO)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(self)
            log.setLevel(level)
            log.propagate = passed_on


def to_answer(lines: Sequence[str]) -> str:
    """As language models are told to answer: JSON, in which actions may occur again."""
    told = []
    for line in lines:
        action, *things = line.split("] ") if "] " in line else [line.rstrip("]")]
        words = [word.strip("<>()") for word in things[0].split()] if things else []
        told.append(f'"{action.strip("[]")}": {json.dumps(words) if words else "[ ]"}')  # it drops [] without a blank
    return "{" + ", ".join(told) + "}"


# -- a run -------------------------------------------------------------------------------------------------------------


def settings(config: Config) -> dict[str, Any]:
    """What plans depend on."""
    return json.loads(json.dumps({k: v for k, v in asdict(config).items() if k not in NOT_ABOUT_PLANS}, default=str))


def planned(config: Config, benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """Task -> its plan; made now, or read where it was."""
    kept = config.out / f"plans-{sha(settings(config))}"
    atomic.write(kept / "settings.json", atomic.to_json(settings(config)))
    numbers = benchmark.split(config.split)
    random.Random(config.seed).shuffle(numbers)
    numbers = numbers[: config.tasks or None]
    planners = cache(lambda: Planners.of(config, benchmark))
    found: dict[str, dict[str, Any]] = {}
    for count, number in enumerate(numbers, 1):
        file = kept / f"{number}.json"
        if not file.exists():
            home, began = benchmark.home(number), time.monotonic()
            lines = benchmark.plan(home, planners, config) if home.evaluable else []
            row = {"category": home.category, "goal": home.said, "evaluable": home.evaluable, "plan": lines}
            row |= {"shipped": lines == home.shipped, "seconds": time.monotonic() - began}
            atomic.write(file, atomic.to_json(row))
        found[number] = json.loads(file.read_text())
        print(f"\r{count} of {len(numbers)} planned", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {number: row for number, row in found.items() if row["evaluable"]}


def judged(config: Config, benchmark: Benchmark, rows: Mapping[str, dict[str, Any]]) -> dict[str, bool]:
    """As `judge`, kept beside the plans."""
    name = "judged-as-it-is.json" if config.as_it_is else "judged.json"
    file = config.out / f"plans-{sha(settings(config))}" / name
    known: dict[str, bool] = json.loads(file.read_text()) if file.exists() else {}
    new = [number for number in rows if number not in known]
    for first in range(0, len(new), TOGETHER):
        some = {number: rows[number]["plan"] for number in new[first : first + TOGETHER]}
        known |= benchmark.judge(some, config.as_it_is)
        atomic.write(file, atomic.to_json(known))
        print(f"\r{min(first + TOGETHER, len(new))} of {len(new)} judged", end="", file=sys.stderr, flush=True)
    return {number: known[number] for number in rows if number in known}


def sha(value: Any) -> str:
    return atomic.sha256(json.dumps(value, sort_keys=True).encode())[:8]


def told(name: str, right: Sequence[bool]) -> str:
    low, high = wilson(sum(right), len(right))
    share = sum(right) / len(right) if right else 0.0
    return f"{name:28s} {sum(right):3d} of {len(right):3d}   {share:.2f} ({low:.2f} - {high:.2f})"


def run(config: Config, kind: type[Benchmark] = Benchmark) -> int:
    try:
        if config.threads:
            torch.set_num_threads(config.threads)
        benchmark = kind()
        rows = planned(config, benchmark)
        found = judged(config, benchmark, rows)
    except (ValueError, LanguageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for number, right in found.items():
        if config.show and not right:
            row = rows[number]
            print(f"  {row['category']} {number}, {row['goal']!r}: {'; '.join(row['plan'])}")
    for category in sorted({rows[number]["category"] for number in found}):
        print(told(category, [right for number, right in found.items() if rows[number]["category"] == category]))
    print(told(f"all, {config.split}", list(found.values())))
    if same := sum(row["shipped"] for row in rows.values()):
        print(f"{same} plans are the shipped ones to the letter")
    return 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Config, description=__doc__)))
