"""SayCan: what is sensible, times what is possible, one skill at a time.

planner = SayCanPlanner(LanguageScorer(), Prompt(text_embedder()), library)
decision = planner.step("bring me a coke can", history=[], affordances={"find coke can": 1.0, ...})
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from planners.prompts import Prompt
from skills.library import Skill
from skills.types import Observation, Outcome

DONE = "done"


@dataclass(frozen=True)
class SayCanConfig:
    """How language and affordance are weighed. Chosen with raw Q-values as affordances; calibrated ones lie nearer to
    0 and 1, so that fewer skills pass the floor."""

    done_affordance: float = 0.2  # the planner's own: no critic judges "done"
    affordance_floor: float = 0.05  # what is less feasible is not scored by the language model; 0 scores all
    failure_factor: float = 0.7  # a skill's score is lowered by this for each failure since the last success of any
    repeat_factor: float = 0.1  # ... and by this for each time that it has just succeeded in a row
    max_steps: int = 20  # skills executed for one instruction


@dataclass(frozen=True)
class Candidate:
    """One row of a decision's table."""

    skill: Skill
    language_score: float | None  # probability among those scored; None: infeasible, or hopeless to the scorer
    affordance: float  # in [0, 1]
    lowered: float  # by how much failures and repeats lower it, 1 for not at all
    score: float  # the product of the three


@dataclass(frozen=True)
class Decision:
    """All candidates, best first; the first is the one chosen."""

    candidates: tuple[Candidate, ...]
    prompt: str
    seconds: float  # wall clock

    @property
    def skill(self) -> Skill:
        return self.candidates[0].skill

    @property
    def done(self) -> bool:
        return self.skill.name == DONE


@dataclass(frozen=True)
class Step:
    """One executed skill; a history is a sequence of these."""

    skill: Skill
    outcome: Outcome


class Scorer(Protocol):
    """What a LanguageScorer offers."""

    def score(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        """Log-likelihoods (N,); -inf for a candidate that has no chance."""
        ...


class Judge(Protocol):
    """Tells what is possible now."""

    def affordances(self, observation: Observation) -> Mapping[str, float]:
        """Skill name -> affordance in [0, 1]; a skill that is left out is not feasible."""
        ...


class World(Protocol):
    """Where skills are carried out."""

    def observe(self) -> Observation: ...

    def execute(self, skill: Skill) -> Outcome: ...


def decide(language: np.ndarray, affordance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N,) and their products (N,) with the affordances; the greatest product is the choice [SayCan].

    language: (N,) log-likelihoods, -inf for a candidate that was not scored; affordance: (N,) in [0, 1].
    The probabilities are normalised over the candidates, which changes no order.
    """
    shifted = np.exp(language - language.max())
    probability = shifted / shifted.sum()
    return probability, probability * affordance


class SayCanPlanner:
    """Chooses the next skill for an instruction."""

    def __init__(
        self, scorer: Scorer, prompt: Prompt, skills: Iterable[Skill], config: SayCanConfig | None = None
    ) -> None:
        self.scorer, self.prompt, self.config = scorer, prompt, config or SayCanConfig()
        self.skills = tuple(skills)
        if DONE not in {skill.name for skill in self.skills}:
            raise ValueError(f"a plan ends with the skill {DONE!r}, which this library lacks")

    def step(self, instruction: str, history: Sequence[Step], affordances: Mapping[str, float]) -> Decision:
        """The next skill. A failed step is not shown to the language model, so that it proposes it anew."""
        started = time.perf_counter()
        config = self.config
        affordance = np.array([affordances.get(skill.name, 0.0) for skill in self.skills])
        affordance[[skill.name == DONE for skill in self.skills]] = config.done_affordance
        lowered = np.array([self._lowered(skill, history) for skill in self.skills])
        asked = np.flatnonzero(affordance >= config.affordance_floor)
        feasible = {self.skills[i].text for i in asked if not self.skills[i].learned}  # by rule, hence reliable
        steps_done = [step.skill.text for step in history if step.outcome.succeeded]
        prompt = self.prompt.build(instruction, steps_done, feasible)
        language = np.full(len(self.skills), -np.inf)
        language[asked] = self.scorer.score(prompt, [f" {self.skills[i].text}\n" for i in asked])
        probability, _ = decide(language, affordance)
        score = probability * affordance * lowered
        order = np.lexsort((-affordance, -score))
        table = tuple(
            Candidate(
                skill=self.skills[i],
                language_score=float(probability[i]) if np.isfinite(language[i]) else None,
                affordance=float(affordance[i]),
                lowered=float(lowered[i]),
                score=float(score[i]),
            )
            for i in order
        )
        return Decision(table, prompt, time.perf_counter() - started)

    def _lowered(self, skill: Skill, history: Sequence[Step]) -> float:
        """Failures count until something succeeds, as that changes the state; repeats count while nothing else does."""
        factor = 1.0
        for past in reversed(history):
            if past.outcome.succeeded:
                break
            if past.skill.name == skill.name:
                factor *= self.config.failure_factor
        for past in reversed([past for past in history if past.outcome.succeeded]):
            if past.skill.name != skill.name:
                break
            factor *= self.config.repeat_factor
        return factor

    def plan(self, instruction: str, judge: Judge, world: World) -> Iterator[Decision | Step]:
        """Plan and act by turns: yields each Decision before it is carried out, and the Step when it has been.

        Ends with the Decision "done", or with the Step that reaches max_steps.
        """
        history: list[Step] = []
        while len(history) < self.config.max_steps:
            decision = self.step(instruction, history, judge.affordances(world.observe()))
            yield decision
            if decision.done:
                return
            step = Step(decision.skill, world.execute(decision.skill))
            history.append(step)
            yield step
