"""Embodied Agent Interface's other planning problem: which states a task goes through, judged by its own evaluator.

    python benchmarks/embodied_agent_subgoals.py --out runs/subgoals                      # the tuning categories
    python benchmarks/embodied_agent_subgoals.py --out runs/subgoals --split held-out     # the others
    python benchmarks/embodied_agent_subgoals.py --out runs/subgoals --told               # no planner: see below

Subgoal decomposition in VirtualHome [Li et al. 2024, arXiv 2410.07166]. Skills are its evaluator's states and relations
("hold the cup", "the cup on the table") and the actions that it takes as subgoals; one is possible where the actions
that the evaluator makes of it are carried out by its simulator. Splits, examples, prompts and all options are those of
`embodied_agent_interface.py`. The examples are the shipped plans' actions, each as the subgoal that the evaluator would
make it of.

A goal's parts are subgoals word for word, so that a list of them is a plan already: `--told` judges it, without any
planner, which is what the planner's figure is to be held against.

Besides `pip install --no-deps "eai-eval==1.0.5"` it needs lark, which the extra `eai` names. A task is left out if it
has no goal, or one that the evaluator itself cannot read ("Make coffee" asks for an action that is no subgoal to it).
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import tyro
from embodied_agent_interface import (
    ACTIONS,
    CHARACTER,
    OURS,
    STATES,
    THEIRS,
    Benchmark,
    Home,
    Planners,
    pairs,
    reaches,
    run,
    verb,
)
from embodied_agent_interface import Config as Actions

from planners.robot_language import DONE
from skills.library import Skill

ME = f"character.{CHARACTER}"
SATISFIED = 4  # its simulator's word for what was so already, which its evaluator lets pass
RELATIONS = {"CLOSE": "NEXT_TO", "ON": "ONTOP"}  # its scenes' -> its subgoals'; the others have one name
NOTHING = {"SITTING", "LYING", "DIRTY"}  # it makes no actions of these
MEANT = {  # a shipped plan's action -> the subgoal of which the evaluator makes it
    "WALK": "NEXT_TO",
    "RUN": "NEXT_TO",
    "FIND": "NEXT_TO",
    "TURNTO": "FACING",
    "SIT": "ONTOP",
    "LIE": "ONTOP",
    "PUTON": "ONTOP",
    "PUTBACK": "ONTOP",
    "PUTIN": "INSIDE",
    "POUR": "INSIDE",
    "SWITCHON": "ON",
    "SWITCHOFF": "OFF",
    "OPEN": "OPEN",
    "CLOSE": "CLOSED",
    "PLUGIN": "PLUGGED_IN",
    "PLUGOUT": "PLUGGED_OUT",
    "WIPE": "CLEAN",
    "GRAB": "HOLDS_RH",
}
OF_OURS = {"NEXT_TO", "FACING", "HOLDS_RH"}  # such of them as are about the robot; ONTOP is where one thing is named


@dataclass(frozen=True)
class Config(Actions):
    told: bool = False  # no planner: the goal's parts, in the order in which they are told


class Subgoals(Benchmark):
    """As the benchmark of actions, with its other evaluator."""

    examples = "examples-subgoals"

    def __init__(self) -> None:
        super().__init__()
        try:
            from virtualhome_eval.evaluation.subgoal_decomposition import (
                checkers,
                subgoal_eval_utils,
                subgoal_sim_utils,
            )
            from virtualhome_eval.evaluation.subgoal_decomposition.state_action_translator import StateActionTranslator
            from virtualhome_eval.tl_formula import simple_tl
        except ModuleNotFoundError as error:
            raise ValueError(f"{error}; pip install {error.name}") from None
        self.translator, self.formula, self.subgoals = StateActionTranslator, simple_tl, subgoal_sim_utils
        self.checkers = checkers
        self.vocabulary_of, self.words_file = subgoal_eval_utils.Vocabulary, self.root / "resources/vocabulary.json"
        self.words = json.loads(self.words_file.read_text())

    def home(self, number: str) -> Decomposed:
        return Decomposed(self, number)

    def plan(self, home: Home, planners: Callable[[], Planners], config: Actions) -> list[str]:
        told = isinstance(home, Decomposed) and isinstance(config, Config) and config.told
        return home.as_told() if told else super().plan(home, planners, config)

    def judge(self, plans: Mapping[str, Sequence[str]], as_it_is: bool = False) -> dict[str, bool]:
        """Which tasks' goals are reached. Raises ValueError for a plan that its evaluator cannot read."""
        if as_it_is:
            raise ValueError("--as-it-is: nothing of this evaluator is mended, leave it out")
        told = SimpleNamespace(resource_dir=str(self.root / "resources"), dataset_dir=str(self.root / "dataset"))
        found = {}
        for number, plan in plans.items():
            with patch.object(self.checkers, "copy", SHALLOW):
                kind, said, *_ = self.subgoals.evaluate_task(str(self.words_file), 1, number, to_answer(plan), told)
            if kind in ("NotParseable", "Hallucination") and plan:  # it makes a wrong plan of whatever is raised
                raise ValueError(f"{number}: the evaluator cannot read {plan}: {said}")
            found[number] = kind == "Correct"
        return found


SHALLOW = SimpleNamespace(deepcopy=copy.copy)  # of all scenes before each action, which it only reads


def to_answer(plan: Sequence[str]) -> str:
    actions = [line for line in plan if line.partition("(")[0] in ACTIONS]
    necessity = "yes" if actions else "no"
    return json.dumps({"necessity_to_use_action": necessity, "actions_to_include": actions, "output": list(plan)})


class Decomposed(Home):
    """One task, in which subgoals are brought about as the evaluator would."""

    benchmark: Subgoals

    def _prepare(self) -> None:
        vocabulary = self.benchmark.vocabulary_of(str(self.benchmark.words_file), self.planner.id_to_name)
        self._translator = self.benchmark.translator([], self.planner, vocabulary)
        self._translator.check_holding = lambda pair, *_: self._holds("<{}> ({})".format(*pair.split(".")))  # the same
        self.called = {self.things[i]: f"<{name}> ({i})" for i, name in self.classes.items()}
        self._primitives = {name: self._primitive(line) for name, line in self.lines.items()}

    def _grounded(self) -> Iterator[tuple[Skill, str]]:
        called = {i: f"{name}.{i}" for i, name in self.classes.items()}
        for state, words in STATES.items():
            for i, thing in self.things.items() if state not in NOTHING else ():
                yield subgoal(state, f"the {thing} {words}", thing), f"{state}({called[i]})"
        for relation, words in OURS.items():
            name = RELATIONS.get(relation, relation)
            for i, thing in self.things.items():
                yield subgoal(f"{name}_OURS", words.format(thing), thing), f"{name}({ME}, {called[i]})"
        for i, thing in self.things.items():
            yield subgoal("WORN", f"wear the {thing}", thing), f"ONTOP({called[i]}, {ME})"
        for relation in ("ON", "INSIDE"):
            name = RELATIONS.get(relation, relation)
            for one, other in pairs(self.classes):
                thing, place = self.things[one], self.things[other]
                told = "the " + THEIRS[relation].format(thing, place)
                yield subgoal(name, told, thing, place), f"{name}({called[one]}, {called[other]})"
        for action, count in self.benchmark.words["subgoal_actions"].items():
            for i, thing in self.things.items() if count else [(0, "")]:
                told = ACTIONS[action].format(thing=thing)
                yield subgoal(f"DO_{action}", told, *[thing] * count), f"{action}({called[i]})" if count else action

    def reset(self) -> None:
        super().reset()
        self._branches: list[tuple[Any, list[str]]] = [(self.planner.env_state, [])]
        self._tried: dict[tuple[Any, str, bool], tuple[Any, bool]] = {}

    def _each(self) -> Iterator[None]:
        """The evaluator brings a subgoal about in every way that goes, and one that ends well is enough."""
        for state, done in self._branches:
            self.planner.env_state, self.done = state, done
            yield

    def possible(self) -> dict[str, float]:
        """Of two things only whether the one is had or can be, and the other found: hundreds of pairs take seconds."""
        return {name: 1.0 for _ in self._each() for name in self._possible()}

    def _possible(self) -> list[str]:
        found = {thing for thing in self.called.values() if self._after([f"[FIND] {thing}"]) is not None}
        had = {one for one in found if self._holds(one) or self._after([f"[FIND] {one}", f"[GRAB] {one}"]) is not None}

        def may(skill: Skill) -> bool:
            things = [self.called[thing] for thing in skill.arguments.values()]
            return things[0] in had and things[1] in found if len(things) == 2 else self._goes(skill)

        return [skill.name for skill in self.skills if skill.name != DONE and may(skill)]

    def goes(self, skill: Skill) -> bool:
        return any([self._goes(skill) for _ in self._each()])

    def _goes(self, skill: Skill) -> bool:
        return any(self._after(way) is not None for way in self._ways(skill))

    def execute(self, skill: Skill) -> bool:
        after = [self._after(way, look=False) for _ in self._each() for way in self._ways(skill)]
        if went := [one for one in after if one is not None]:
            self._branches, self._tried = went, {}
        return bool(went)

    def satisfied(self, parts: int | None = None) -> bool:
        held = super().satisfied
        return any([held(parts) for _ in self._each()])

    def _ways(self, skill: Skill) -> list[list[str]]:
        """The actions that the evaluator would try, in this state."""
        return self._translator.map_primitive_to_action_set(self._primitives[skill.name])

    def _after(self, actions: Sequence[str], look: bool = True) -> tuple[Any, list[str]] | None:
        """State and actions since the beginning, or None where one does not go; what is so already passes. look: the
        last one is not carried out."""
        state, done = self.planner.env_state, list(self.done)
        for count, action in enumerate(actions, 1):
            after, passes = self._try(state, action, modify=not look or count < len(actions))
            if not passes:
                return None
            if after is not None:
                state = after
                done.append(action)
        return state, done

    def _try(self, state: Any, action: str, modify: bool) -> tuple[Any, bool]:
        """The state after an action or None, and whether the evaluator goes on. A state is kept as long as its key."""
        key = (state, action, modify)
        if key not in self._tried:
            info, executor = self.benchmark.execution.ExecutionInfo(eval_mode=True), self.planner.executor
            script = self.benchmark.scripts.Script([self.benchmark.scripts.parse_script_line(action, 1)])
            after = next(executor.call_action_method(script, state, info, executor.char_index, modify), None)
            self._tried[key] = after, after is not None or info.get_error_type() == SATISFIED
        return self._tried[key]

    def _primitive(self, line: str) -> Any:
        formula, (name, things) = self.benchmark.formula, parsed(line)
        kind = formula.Proposition if name in self.benchmark.words["tl_predicates"] else formula.Action
        return formula.SimpleTLPrimitive(kind(name, things))

    @property
    def evaluable(self) -> bool:
        """Has it a goal, and one that its evaluator can read?"""
        wanted = {action for one in self.wanted for action in one.split("|")}
        return bool(self.parts) and wanted <= set(self.benchmark.words["subgoal_actions"])

    @cached_property
    def shipped(self) -> list[str]:
        """The shipped plan's actions as subgoals, without those that are none; nothing where these end elsewhere."""
        lines = []
        for action in self.actions_shipped:
            name, called = action[1:].partition("]")[0], re.findall(r"<(\w+)> \((\d+)\)", action)
            things = [f"{word}.{number}" for word, number in called]
            meant = MEANT.get(name, name)
            rooms = meant == "NEXT_TO" and self._is_room(int(called[0][1]))
            if rooms or meant in OF_OURS or name in ("SIT", "LIE"):
                things = [ME, *things]
            elif name == "PUTON":
                things = [*things, ME]
            meant = "INSIDE" if rooms else meant
            lines.append(f"{meant}({', '.join(things)})" if things else meant)
        by_line = {line: self.skills[name] for name, line in self.lines.items()}
        lines = [line for line in lines if line in by_line]
        return lines if reaches(self, [by_line[line] for line in lines]) else []

    def _holds(self, thing: str) -> bool:
        number, state = int(thing.rpartition("(")[2].rstrip(")")), self.planner.env_state
        hands = (self.benchmark.execution.Relation.HOLDS_RH, self.benchmark.execution.Relation.HOLDS_LH)
        return any(number in state.get_node_ids_from(CHARACTER, hand) for hand in hands)

    def _is_room(self, number: int) -> bool:
        return self.planner.env_state.get_node(number).category == "Rooms"

    def found_first(self, steps: Sequence[Skill]) -> list[Skill]:
        """The evaluator finds things by itself."""
        return list(steps)

    def as_told(self) -> list[str]:
        """The goal's parts as subgoals, in its order; an action on the first thing with which it goes."""
        self.reset()
        plan = []
        for part in self.parts:
            acts = {f"do_{action.lower()}" for action in ACTIONS if verb(action) in part.split(" or ")}
            possible = self.possible() if acts else {}
            meant = [s for s in self.skills if s.text == part or (s.family in acts and s.name in possible)]
            for skill in meant[:1]:
                self.execute(skill)
                plan.append(self.lines[skill.name])
        return plan


def subgoal(family: str, told: str, *things: str) -> Skill:
    return Skill(told, family.lower(), told, dict(zip(("thing", "place"), things, strict=False)), learned=False)


def parsed(line: str) -> tuple[str, list[str]]:
    name, _, things = line.rstrip(")").partition("(")
    return name, things.split(", ") if things else []


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Config, description=__doc__), Subgoals))
