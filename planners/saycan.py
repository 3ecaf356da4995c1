"""SayCan: what is sensible, times what is possible, one skill at a time.

planner = SayCanPlanner(LanguageScorer(), language.prompt(text_embedder()), library)     # language: a RobotLanguage
decision = planner.step("bring me the red block", history=[], affordances={"find red block": 1.0, ...})
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import takewhile
from typing import Any, Literal, Protocol, TypeVar, cast

import numpy as np

from planners.named import Verbatim, named, plain, renamed
from planners.prompts import CANNOT, Begun, Prompt, one_line
from skills.library import Skill
from skills.rules import Known
from skills.types import Observation, Outcome

Decide = TypeVar("Decide", bound="Callable[..., Decision]")

DONE = "done"
LONGEST = 2000  # letters of an instruction; longer ones are refused, not cut
HOPELESS = 1e-5  # a content-free prompt finds nothing less likely than this, relative to its likeliest candidate
ROUNDS = (2, 3, 4)  # skills in a round that leads nowhere: there and back, there and back, ...
UNSERVED = 0.6  # see SayCanConfig.cannot
SUGGESTED = 3  # things to ask for that a refusal names
WORD_FOR_WORD = "the sentence is this skill's own words"
LAST_RESORT = "it seems hardly possible, and nothing else would serve"


@dataclass(frozen=True)
class SayCanConfig:
    """How language and affordance are weighed. Chosen with raw Q-values as affordances; calibrated ones lie nearer to
    0 and 1, so that fewer skills pass the floor."""

    done_affordance: float = 0.2  # the planner's own: no critic judges "done"
    affordance_floor: float = 0.05  # what is less feasible is not scored by the language model; 0 scores all
    failure_factor: float = 0.7  # a skill's score is lowered by this for each failure since the last success of any
    failures: int = 5  # ... after so many it is given up until something succeeds; 0: never
    repeat_factor: float = 0.1  # a skill's score is lowered by this for each time that it has just succeeded in a row
    max_steps: int = 40  # skills executed for one instruction: eight deliveries
    # A candidate's log-likelihood: the sum over its tokens, their mean, or (prior) the sum less that after a
    # content-free prompt [contextual calibration, Zhao et al. 2021]
    normalise: Literal["sum", "mean", "prior"] = "sum"
    # Ablations [SayCan, sec. 5]: the language model alone, or the affordance and how near a skill's text is to the
    # instruction by sentence embedding
    without: Literal["", "affordance", "language"] = ""
    # For large libraries: the language model scores only this many of the feasible skills, those nearest, by sentence
    # embedding, to the instruction and its examples' steps, which are some 20; 0: all of them
    preselect: int = 0
    # Weight of how near a skill's text is to the instruction, the cosine by sentence embedding, beside its
    # log-likelihood; None: 0, or what the language model brings along (saycan_qt.language.planner_of)
    nearness: float | None = None
    score_all: bool = False  # score infeasible skills too, which are not chosen: tells what the affordance vetoed
    # What the robot cannot serve is refused at the first step. Chosen on tests/serviceable.yaml.
    refuse: bool = True
    unlike: float = 0.42  # cosine to the nearest way to ask, or skill text, below which an instruction is refused...
    alike: float = 0.65  # ... from which it is not, and between the two the language model decides: ...
    likely: float = 0.03  # ... refused if less of the next line's probability than this falls on the whole library
    # A tuned model says so itself: refused if it finds this likely that nothing serves. None: 0.6, or what the language
    # model brings along
    cannot: float | None = None
    # What is named is not replaced. Where less than `sure` of the next line's probability falls on what is possible,
    # the language model is asked about the rest, too; if it likes something best that is not possible, nothing does the
    # same with another thing, and it goes no further if less than `within_reach` of the probability is left.
    sure: float = 0.5
    within_reach: float = 0.05
    tries: int = 3  # of a skill that the instruction asks for word for word, until the language model decides


@dataclass(frozen=True)
class Candidate:
    """One row of a decision's table."""

    skill: Skill
    language_score: float | None  # probability among those scored, with nearness, where it weighs; None: infeasible, or
    # hopeless to the scorer
    affordance: float  # in [0, 1]
    lowered: (
        float  # by how much failures and repeats lower it, 1: not at all; 0: about another thing than what is named
    )
    score: float  # the product of the three


@dataclass(frozen=True)
class Refusal:
    """Nothing that the robot can do serves the instruction, or what is left of it."""

    reason: str  # a sentence for people, the nearest things included
    nearest: tuple[str, ...] = ()  # instructions, or else skills, that the robot can serve
    similarity: float | None = None  # cosine to the nearest way to ask or skill text
    likelihood: float | None = None  # of the next line being any skill's text, or one that is possible; None: not asked
    missing: str = ""  # text of the skill that should come next, and is not possible


@dataclass(frozen=True)
class Decision:
    """All candidates, best first; the first is the one chosen. Where the instruction is refused, that is "done"."""

    candidates: tuple[Candidate, ...]
    prompt: str
    seconds: float  # wall clock
    refusal: Refusal | None = None
    because: str = ""  # why, where the product did not decide: WORD_FOR_WORD or LAST_RESORT

    @property
    def skill(self) -> Skill:
        return self.candidates[0].skill

    @property
    def done(self) -> bool:
        return self.skill.name == DONE

    @property
    def stuck(self) -> bool:
        """Nothing that is possible serves it: "done" stands first, with a score of 0."""
        return self.refusal is None and self.candidates[0].score <= 0


@dataclass(frozen=True)
class Step:
    """One executed skill; a history is a sequence of these."""

    skill: Skill
    outcome: Outcome


class TooLong(ValueError):
    """More tokens than a language model can read."""


class Scorer(Protocol):
    """What a LanguageScorer offers."""

    def score(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        """Log-likelihoods (N,); -inf for a candidate that has no chance. Raises TooLong."""
        ...


class TokenCounter(Protocol):
    """What a scorer offers besides for `normalise="mean"`."""

    def count_tokens(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        """(N,) how many tokens each candidate's log-likelihood is the sum of."""
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
    The probabilities are normalised over the candidates, which changes no order; 0 where none was scored.
    """
    if not np.isfinite(language.max(initial=-np.inf)):
        return np.zeros(len(language)), np.zeros(len(language))
    shifted = np.exp(language - language.max())
    probability = shifted / shifted.sum()
    return probability, probability * affordance


def one_at_a_time(decide: Decide) -> Decide:
    """Of a planner's method: scorer and prompt remember what they were last asked, so that decisions take turns, also
    those of planners that share them."""

    @wraps(decide)
    def in_turn(self: SayCanPlanner, *given: Any, **named: Any) -> Decision:
        with self.prompt.turn:
            return decide(self, *given, **named)

    return cast(Decide, in_turn)


def _seen(known: Known) -> set[str]:
    """Things that the robot knows to be somewhere."""
    return {*known.objects, known.held}


def _since_success(history: Sequence[Step]) -> list[Step]:
    """Failures since the last success of any skill, the last one first."""
    return list(takewhile(lambda step: not step.outcome.succeeded, reversed(history)))


def _failures(skill: Skill, history: Sequence[Step]) -> int:
    return sum(past.skill.name == skill.name for past in _since_success(history))


def last_try_failed(history: Iterable[Step]) -> Step | None:
    """Of the skills whose last try failed the first: what such a history ends with is no success."""
    last = {step.skill.name: step for step in history}
    return next((step for step in last.values() if not step.outcome.succeeded), None)


@dataclass(frozen=True)
class _Now:
    """What one decision is about; arrays are (all skills,)."""

    said: str
    instruction: str  # as it is read
    history: Sequence[Step]
    known: Known | None
    prompt: str
    weight: np.ndarray  # affordances, or 1 where they do not count
    possible: np.ndarray
    feasible: Collection[str]  # texts of what is possible by rule
    asked: np.ndarray  # numbers of the skills that language was asked about
    language: np.ndarray  # log-likelihoods, -inf for the others
    by_model: bool  # or else by how near a skill's text is


class SayCanPlanner:
    """Chooses the next skill for an instruction. May be asked from several threads."""

    def __init__(
        self, scorer: Scorer, prompt: Prompt, skills: Iterable[Skill], config: SayCanConfig | None = None
    ) -> None:
        self.scorer, self.prompt, self.config = scorer, prompt, config or SayCanConfig()
        self.skills = tuple(skills)
        if DONE not in {skill.name for skill in self.skills}:
            raise ValueError(f"a plan ends with the skill {DONE!r}, which this library lacks")
        if self.config.normalise == "mean" and not hasattr(scorer, "count_tokens"):
            raise ValueError(f"a {type(scorer).__name__} counts no tokens, so there is no mean over them")
        self._done = np.array([skill.name == DONE for skill in self.skills])
        self._texts = {skill.text for skill in self.skills}
        self._number = {skill.name: i for i, skill in enumerate(self.skills)}
        self._verbatim = Verbatim(skill for skill in self.skills if skill.name != DONE)
        self._families = np.unique([skill.family for skill in self.skills], return_inverse=True)[1]  # by number
        self._values = frozenset(value for skill in self.skills for value in skill.arguments.values())
        self._text_vectors: dict[
            str, np.ndarray
        ] = {}  # of skills' texts, by sentence embedding, as far as they were needed

    @one_at_a_time
    def step(
        self,
        instruction: str,
        history: Sequence[Step],
        affordances: Mapping[str, float],
        known: Known | None = None,  # what the robot knows of the scene; an Observation, for one
        begun: Begun | None = None,  # one for each errand, where several may have the same words
    ) -> Decision:
        """The next skill. A failed step is not shown to the language model, so that it proposes it anew."""
        started = time.perf_counter()
        config = self.config
        self.prompt.take(begun)
        if config.refuse and len(instruction) > LONGEST:
            too_long = Refusal(f"an instruction has at most {LONGEST:,} letters, this one has {len(instruction):,}")
            return self._refused(too_long, "", affordances, started)
        if not plain(instruction):
            return self._refused(Refusal("there is no word in the instruction"), "", affordances, started)
        said, instruction = instruction, self.prompt.read(instruction)  # slips of the finger apart
        affordance = np.array([affordances.get(skill.name, 0.0) for skill in self.skills])
        affordance[self._done] = config.done_affordance
        weight = np.ones(len(self.skills)) if config.without == "affordance" else affordance
        lowered = np.array([self._lowered(skill, history) for skill in self.skills])
        possible = (weight >= config.affordance_floor) | (self._done & (weight > 0))  # a plan may always end
        if (asked_for := self._word_for_word(said, history, possible)) is not None:
            rows = self._table(self._this_alone(asked_for), weight, affordance, lowered * possible)
            return Decision(rows, "", time.perf_counter() - started, because=WORD_FOR_WORD)
        feasible = {s.text for s, may in zip(self.skills, possible, strict=True) if may and not s.learned}  # by rule
        steps_done = [step.skill.text for step in history if step.outcome.succeeded]
        prompt = self.prompt.build(instruction, steps_done, feasible, known)
        asked = np.arange(len(self.skills)) if config.score_all else self._preselected(instruction, possible)
        by_model = config.without != "language"
        language = self._score(prompt, asked) if by_model else self._by_cosine(instruction, asked)
        now = _Now(said, instruction, history, known, prompt, weight, possible, feasible, asked, language, by_model)
        others, refusal = self._ruled_out(now)
        if refusal is not None:
            return self._refused(refusal, prompt, affordances, started)
        lowered[others] = 0.0
        if by_model:
            alive = possible & (lowered > 0)
            if (last := self._last_resort(now, alive)) is not None:
                rows = self._table(self._this_alone(last), weight, affordance, np.ones(len(self.skills)))
                return Decision(rows, prompt, time.perf_counter() - started, because=LAST_RESORT)
            if self._given_up(now, alive):
                lowered[:] = 0.0
        language = self._normalised(language, prompt, asked, steps_done)
        if config.nearness and not config.without:
            language += config.nearness * self._above_mean(instruction, steps_done)
        rows = self._table(language, weight, affordance, lowered * possible)
        return Decision(rows, prompt, time.perf_counter() - started)

    def _this_alone(self, number: int) -> np.ndarray:
        """Log-likelihoods (all skills,) where one skill is certain."""
        return np.where(np.arange(len(self.skills)) == number, 0.0, -np.inf)

    def _table(
        self, language: np.ndarray, weight: np.ndarray, affordance: np.ndarray, lowered: np.ndarray
    ) -> tuple[Candidate, ...]:
        """All skills, the best first; what is lowered to 0 cannot be chosen. Where nothing can, "done" stands first:
        whoever does not look at the score does nothing."""
        probability, product = decide(language, weight)
        score = product * lowered
        first = self._done & (score.max() <= 0)
        return tuple(
            Candidate(
                skill=self.skills[i],
                language_score=float(probability[i]) if np.isfinite(language[i]) else None,
                affordance=float(affordance[i]),
                lowered=float(lowered[i]),
                score=float(score[i]),
            )
            for i in np.lexsort((-affordance, -score, ~first))
        )

    # -- how sensible ------------------------------------------------------------------------------------------------

    def _score(self, prompt: str, asked: np.ndarray) -> np.ndarray:
        """Log-likelihoods (all skills,), -inf for those that are not asked about."""
        language = np.full(len(self.skills), -np.inf)
        language[asked] = self.scorer.score(prompt, self._lines(asked))
        return language

    def _lines(self, asked: np.ndarray) -> list[str]:
        return [f" {self.skills[i].text}\n" for i in asked]

    def _normalised(
        self, language: np.ndarray, prompt: str, asked: np.ndarray, steps_done: Sequence[str]
    ) -> np.ndarray:
        match self.config.normalise if self.config.without != "language" else "sum":
            case "mean":
                language[asked] /= cast(TokenCounter, self.scorer).count_tokens(prompt, self._lines(asked))
            case "prior":
                prior = self._score(self.prompt.content_free(steps_done), asked)
                language -= np.maximum(prior, prior.max() + np.log(HOPELESS))
        return language

    def _by_cosine(self, instruction: str, asked: np.ndarray) -> np.ndarray:
        """What stands in for the log-likelihoods without a language model: the logarithm of the cosine."""
        cosine = np.full(len(self.skills), -np.inf)
        cosine[asked] = np.log(np.maximum(self._similarity([instruction], asked), HOPELESS))
        return cosine

    def _above_mean(self, instruction: str, steps_done: Sequence[str]) -> np.ndarray:
        """By how much the cosine of each skill's text (all,) to the instruction is above the mean of all but "done".

        0 for "done", as no words ask for it, and at most 0 for what has been done. Departs from SayCan, where the
        language model alone says what is sensible: a small one that never met the robot's words knows less of what is
        meant by them than a model that was trained to tell near sentences from far ones.
        """
        near = self._similarity([instruction], np.arange(len(self.skills)))
        near -= near[~self._done].mean() if not self._done.all() else 0.0
        past = np.array([skill.text in steps_done for skill in self.skills])
        near[past] = np.minimum(near[past], 0.0)
        near[self._done] = 0.0
        return near

    def _similarity(self, texts: Sequence[str], asked: np.ndarray) -> np.ndarray:
        """Cosine of each skill's text to the nearest of these (asked,)."""
        wanted = [*(one_line(text) for text in texts), *(self.skills[i].text for i in asked)]
        new = [text for text in dict.fromkeys(wanted) if text not in self._text_vectors]
        known = self._text_vectors | dict(zip(new, self.prompt.embed(new) if new else [], strict=True))
        self._text_vectors = {text: known[text] for text in known if text in self._texts}
        vectors = np.stack([known[text] for text in wanted])
        return (vectors[len(texts) :] @ vectors[: len(texts)].T).max(axis=1, initial=-1.0)  # no text: none is near

    def _preselected(self, instruction: str, possible: np.ndarray) -> np.ndarray:
        """Indices of the feasible skills, of which only the nearest where there are too many; "done" always stays."""
        asked = np.flatnonzero(possible)
        most = self.config.preselect
        if not 0 < most < len(asked):
            return asked
        near = self._similarity([instruction], asked) + self._similarity(self.prompt.example_steps, asked)
        near[self._done[asked]] = np.inf
        return np.sort(asked[np.argsort(-near, kind="stable")[:most]])

    # -- what cannot be served ---------------------------------------------------------------------------------------

    def _ruled_out(self, now: _Now) -> tuple[np.ndarray, Refusal | None]:
        """Which skills (all,) would be done with other things than those that are asked for, and why it goes no
        further, if so."""
        others = np.zeros(len(self.skills), bool)
        if self.config.refuse and (refusal := self._refusal(now)) is not None:
            return others, refusal
        if not now.by_model:
            return others, None
        others |= self._renamed(now)
        if not self.config.refuse:
            return others, None
        found, refusal = self._out_of_reach(now)
        return others | found, refusal

    def _refusal(self, now: _Now) -> Refusal | None:
        """Why the instruction cannot be served, if so: a tuned model says it of itself, also of what is left.

        The cheap questions come first: only what looks odd is held against every skill's text, and the language model
        asked about all skills (that a thing is not there now is no reason to refuse).
        """
        config, everything = self.config, np.arange(len(self.skills))
        if self.prompt.tuned and now.by_model:
            return self._said_itself(now)
        if now.history:
            return None

        def fine(similarity: float, share: float | None) -> bool:
            return similarity >= config.alike or (
                similarity >= config.unlike and (share is None or share >= config.likely)
            )

        share = float(np.exp(now.language).sum()) if now.by_model else None  # of the next line's probability
        similarity = self.prompt.familiarity(now.instruction)
        if fine(similarity, share):
            return None
        near = self._similarity([now.instruction], everything)
        similarity = max(similarity, float(near.max()))
        if config.unlike <= similarity < config.alike and share is not None and share < config.likely:
            rest = np.setdiff1d(everything, now.asked)
            share += float(np.exp(self._score(now.prompt, rest)).sum()) if len(rest) else 0.0
        return None if fine(similarity, share) else self._unserved(now, similarity, share)

    def _said_itself(self, now: _Now) -> Refusal | None:
        cannot = float(np.exp(self.scorer.score(now.prompt, [f" {CANNOT}\n"])[0]))
        limit = UNSERVED if self.config.cannot is None else self.config.cannot
        if not any(step.outcome.succeeded for step in now.history):
            return self._unserved(now, None, 1 - cannot) if cannot >= limit else None
        if cannot < max(limit, UNSERVED):  # what was begun is ended by what is sure alone
            return None
        return Refusal("nothing that the robot can do serves what is left of this", likelihood=1 - cannot)

    def _out_of_reach(self, now: _Now) -> tuple[np.ndarray, Refusal | None]:
        """Where the language model likes something best that is not possible, for a thing that is not there; or where
        that is asked for word for word, whatever it likes.

        Whoever neither names the thing nor has a language model that was told the scene means any such thing. What is
        not possible for another reason (a full hand, a shut door, a thing that fell over) may be brought about, by
        whatever is likely next; what is named is not replaced by what is not, there neither, nor is anything else done
        with another thing.
        """
        nothing, known, possible, history = np.zeros(len(self.skills), bool), now.known, now.possible, now.history
        said = None if self.config.without else self._verbatim(now.said)
        gone = bool(said and known and known.objects and self._not_there(said, known))
        if np.exp(now.language[possible]).sum() >= self.config.sure and not gone:
            return nothing, None
        rest = np.setdiff1d(self._preselected(now.instruction, ~possible), np.flatnonzero(np.isfinite(now.language)))
        language = np.maximum(now.language, self._score(now.prompt, rest)) if len(rest) else now.language
        favourite = self._number[said.name] if said and gone else int(language.argmax())
        skill = self.skills[favourite]
        names = named(now.instruction, skill.arguments.values())
        if known and known.objects:
            missing = self._not_there(skill, known)
        else:  # where nobody tells, what is named and ruled out is not there; but the robot is where it is
            ruled_out = not history and not now.weight[favourite]
            missing = [name for name in names if ruled_out and not (known and name == known.place)]
        told = known is not None and (self.prompt.tuned or self.prompt.scene)
        if possible[favourite] or not (names or (missing and told)):
            return nothing, None
        others = self._about_others({*named(now.instruction, self._values), *skill.arguments.values()}, known)
        if not missing:
            count = self._count(now.instruction)
            return (self._families == self._families[favourite]) & (count < count[favourite]) | others, None
        meant = {slot: value for slot, value in skill.arguments.items() if value in names or not names}
        instead = np.array([s.family == skill.family and not meant.items() <= s.arguments.items() for s in self.skills])
        instead |= others & gone
        left = float(np.exp(language[possible & ~instead]).sum() / np.exp(language).sum())
        last = history[-1].skill.name if history and history[-1].outcome.succeeded else ""
        about = {*skill.arguments.values()} - (_seen(known) if known else set())
        nearer = [s for s, may in zip(self.skills, possible, strict=True) if may and about & {*s.arguments.values()}]
        if left >= self.config.within_reach or any(s.name != last for s in nearer):
            return instead, None
        return instead, self._missing(now, skill, missing[0], possible & instead, left)

    def _not_there(self, skill: Skill, known: Known) -> list[str]:
        """Things that a skill is about and the robot does not know of; what is taken from a place may yet be found
        there."""
        if not self._slots_of_things(known).issuperset(skill.arguments):
            return []
        places = {known.place, *known.objects.values()}  # where a slot takes things and places
        return [value for value in skill.arguments.values() if value not in _seen(known) | places]

    def _slots_of_things(self, known: Known | None) -> set[str]:
        seen = _seen(known) if known else set()
        return {slot for skill in self.skills for slot, value in skill.arguments.items() if value in seen}

    def _things(self, known: Known | None) -> list[set[str]]:
        """What each skill (all) is about, places and the like apart."""
        slots = self._slots_of_things(known)
        return [{value for slot, value in skill.arguments.items() if slot in slots} for skill in self.skills]

    def _about_others(self, wanted: Collection[str], known: Known | None) -> np.ndarray:
        """Which skills (all,) are about things, and none of these, nor of what is held, which may have to be put
        somewhere first."""
        wanted = {*wanted, known.held} if known else wanted
        return np.array([bool(things) and not things.intersection(wanted) for things in self._things(known)])

    def _missing(self, now: _Now, skill: Skill, thing: str, instead: np.ndarray, left: float) -> Refusal:
        """instead: (skills,) what could be done with other things. Offered is the instruction with one of these in the
        place of the thing that is not there, where it names it, else the skills."""
        others = np.flatnonzero(instead)
        order = others[np.argsort(-self._similarity([skill.text], others), kind="stable")]
        near = [self.skills[i] for i in order[:SUGGESTED]]
        offers = tuple(other.text for other in near)
        if named(now.instruction, [thing]):
            slot = next(slot for slot, value in skill.arguments.items() if value == thing)
            mentioned = named(now.instruction, self._values)
            others_there = [other.arguments[slot] for other in near if other.arguments[slot] not in mentioned]
            offers = tuple(dict.fromkeys(renamed(now.instruction, thing, other) for other in others_there))
        reason = f"the robot knows of no {thing} here; " if now.known and now.known.objects else ""
        reason += f"“{skill.text}” would come next, which is not possible now"
        reason += f"; the nearest that is: {', '.join(f'“{words}”' for words in offers)}" if offers else ""
        return Refusal(reason, offers, None, left, missing=skill.text)

    def _count(self, instruction: str) -> np.ndarray:
        """Of what each skill (all,) is about, how much the instruction names."""
        names = set(named(instruction, self._values))
        return np.array([len(names.intersection(skill.arguments.values())) for skill in self.skills])

    def _renamed(self, now: _Now) -> np.ndarray:
        """Which skills (all,) name less of what the instruction names than a possible one of their family that the
        language model finds no less likely: affordance does not replace what was asked for by another thing."""
        count, language = self._count(now.instruction), now.language
        found = np.zeros(len(self.skills), bool)
        for i in np.flatnonzero(now.possible & (count > 0)):
            found |= (self._families == self._families[i]) & (count < count[i]) & (language <= language[i])
        return found

    def _unserved(self, now: _Now, similarity: float | None, share: float | None) -> Refusal:
        nearest = self.prompt.suggestions(now.instruction, self._texts, now.feasible, SUGGESTED)
        nearest = nearest or self._nearest_texts(now.instruction)
        reason = "nothing that the robot can do serves this"
        reason += f"; the nearest that it can do: {', '.join(f'“{words}”' for words in nearest)}" if nearest else ""
        return Refusal(reason, tuple(nearest), similarity, share)

    def _nearest_texts(self, instruction: str) -> list[str]:
        others = np.flatnonzero(~self._done)  # nobody is served by "done"
        order = others[np.argsort(-self._similarity([instruction], others), kind="stable")]
        return [self.skills[i].text for i in order[:SUGGESTED]]

    def _refused(self, refusal: Refusal, prompt: str, affordances: Mapping[str, float], started: float) -> Decision:
        """Nothing is weighed, and "done" stands first: whoever does not look at the refusal does nothing."""
        rows = [Candidate(skill, None, affordances.get(skill.name, 0.0), 1.0, 0.0) for skill in self.skills]
        rows.sort(key=lambda row: row.skill.name != DONE)
        return Decision(tuple(rows), prompt, time.perf_counter() - started, refusal)

    # -- what was said word for word ---------------------------------------------------------------------------------

    def _word_for_word(self, instruction: str, history: Sequence[Step], possible: np.ndarray) -> int | None:
        """Number of the skill that the instruction asks for in its own words, where it is possible; once it has
        succeeded, of "done"."""
        skill = self._verbatim(instruction)
        if skill is None or self.config.without:
            return None
        asked, tries = self._number[skill.name], [step for step in history if step.skill.name == skill.name]
        if any(step.outcome.succeeded for step in tries):
            return int(self._done.argmax())
        return asked if possible[asked] and len(tries) < self.config.tries else None

    def _last_resort(self, now: _Now, alive: np.ndarray) -> int | None:
        """Number of the skill that is tried once where next to nothing that may be done (alive) would serve: what the
        language model is sure of, is about what is there, and seems hardly possible, but is not ruled out. A critic
        that looks through a camera errs now and then."""
        failed = {step.skill.name for step in _since_success(now.history)}
        hard = (now.weight > 0) & ~now.possible & [skill.name not in failed for skill in self.skills]
        if self.config.without or not hard.any() or np.exp(now.language[now.possible]).sum() >= self.config.sure:
            return None
        hardly = self._score(now.prompt, np.flatnonzero(hard))
        best, left = int(hardly.argmax()), np.exp(now.language[alive]).sum()
        sure = np.exp(hardly[best]) >= self.config.sure
        if not sure or left >= self.config.within_reach * (left + np.exp(hardly).sum()):
            return None
        known = now.known
        there = not (known and known.objects) or _seen(known).issuperset(self._things(known)[best])
        return best if there else None

    def _given_up(self, now: _Now, alive: np.ndarray) -> bool:
        """Has a skill failed so often that it is not tried again, and is what else may be done (alive) next to nothing
        to the language model? It would be done with other things than what was asked for."""
        given_up = now.possible & [self._is_given_up(skill, now.history) for skill in self.skills]
        left = np.exp(now.language[alive]).sum() / max(np.exp(now.language[now.possible]).sum(), HOPELESS)
        return bool(given_up.any() and left < self.config.within_reach)

    def _is_given_up(self, skill: Skill, history: Sequence[Step]) -> bool:
        return 0 < self.config.failures <= _failures(skill, history)

    # -- what has been done ------------------------------------------------------------------------------------------

    def _lowered(self, skill: Skill, history: Sequence[Step]) -> float:
        """Failures count until something succeeds, as that changes the state; repeats count while nothing else does,
        and so does a round of skills that has been gone twice."""
        if self._is_given_up(skill, history):
            return 0.0
        factor = self.config.failure_factor ** _failures(skill, history)
        done = [past.skill.name for past in history if past.outcome.succeeded]
        for name in reversed(done):
            if name != skill.name:
                break
            factor *= self.config.repeat_factor
        for length in ROUNDS:
            rounds = done[-2 * length :]
            if rounds[:length] == rounds[length:] and rounds[-length:][:1] == [skill.name]:
                factor *= self.config.repeat_factor
        return factor

    def plan(self, instruction: str, judge: Judge, world: World) -> Iterator[Decision | Step]:
        """Plan and act by turns: yields each Decision before it is carried out, and the Step when it has been.

        Ends with the Decision "done", at once where it refuses or is stuck, or with the Step that reaches max_steps.
        """
        history: list[Step] = []
        begun = Begun()
        while len(history) < self.config.max_steps:
            observation = world.observe()
            decision = self.step(instruction, history, judge.affordances(observation), observation, begun)
            yield decision
            if decision.done:
                return
            step = Step(decision.skill, world.execute(decision.skill))
            history.append(step)
            yield step
