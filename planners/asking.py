"""When a planner asks the person rather than act: where its own scores say that it may be wrong.

asking = Asking("when-unsure", threshold(scores, coverage=0.95))
question = asking.question("bring me the can", decision, history, began)        # None: sure enough

As in KnowNo [Ren et al. 2023] the threshold is set by conformal prediction on errands whose right steps are known, and
it holds for whole errands. An errand's score is the confidence of its first wrong choice, 0 where none is wrong; of n
errands the threshold is the k-th smallest score, k = ceil((n + 1) coverage). Then of errands that are exchangeable
with those, at least the share `coverage` goes right or is asked about before its first wrong step.

KnowNo wants the right option within the set that is shown, and asks wherever that set has a second one. Here the person
may also answer in other words, so it is enough to know that the first choice is not safe, which asks less often.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from planners.named import named, plain, verbatim
from planners.saycan import LAST_RESORT, WORD_FOR_WORD, Candidate, Decision, Step
from skills.library import Skill
from skills.rules import Known

When = Literal["never", "when-unsure", "always"]
SHOWN = 3, 5  # options, at least and at most
STOP = ("", "s", "stop", "q", "quit")
VETO = "veto"
NUMBER = re.compile(r"(?:option |number )?([0-9]+)[.)!]*", re.IGNORECASE)
NEITHER = (
    "yes",
    "y",
    "ok",
    "okay",
    "no",
    "n",
    "please",
    "yes please",
    "no thanks",
)  # to a question with several options
WORTH = 0.02  # share of all products from which more than the least are shown
DOUBT = 3  # by which a confidence is divided where the words fit two things, or where it would end with something that
# they name left out, however sure the language model is
STATES = ("on", "off", "in", "out", "up", "down")  # slots' values that are also said of other things
NOTICED = 0.01  # share of all products from which a skill is another thing that may be meant


def number_of(said: str) -> int | None:
    """Of an option, as people say it; None: they say something else."""
    found = NUMBER.fullmatch(said.strip())
    return int(found[1][:9]) if found else None


@dataclass(frozen=True)
class Question:
    """Which of these it shall be; an answer may also be in other words."""

    instruction: str
    reason: str  # why it is asked, a sentence
    skills: tuple[Skill, ...] = ()  # what may come next, the likeliest first
    instructions: tuple[str, ...] = ()  # or: what else could be asked for, where the instruction cannot be served
    confidence: float = 0.0  # in [0, 1], of the first skill
    others: tuple[Skill, ...] = ()  # that may be named as well
    other_words: bool = True  # may they take the place of the instruction?

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(skill.text for skill in self.skills) or self.instructions

    @property
    def told(self) -> dict[str, Any]:
        """As programs are asked."""
        told: dict[str, Any] = {"instruction": self.instruction, "reason": self.reason, "options": list(self.options)}
        told |= {"confidence": round(self.confidence, 4), "skills": bool(self.skills)}
        return {**told, "other_words": self.other_words}

    def vetoed(self) -> Question:
        """The same with its first skill, which the person does not want, put last."""
        first, *left = *self.skills, *self.others
        left.append(first)
        shown = max(SHOWN[0], len(self.skills) - 1)
        reason = f"not “{first.text}”: then “{left[0].text}” seems likeliest"
        return replace(self, reason=reason, skills=tuple(left[:shown]), others=tuple(left[shown:]), confidence=0.0)

    def understand(self, said: str) -> Answer | None:
        """What a person means by an option or its number, from 1, by a skill's text, by other words, by VETO of the
        first skill, or by nothing; None: there is no such number, nothing to veto, or it is a yes or no, which is none
        of the options."""
        if said.casefold() in STOP:
            return Answer()
        if said.casefold() == VETO:
            return Answer(veto=True) if self.skills and (self.skills[1:] or self.others) else None
        if chosen := verbatim(said, (*self.skills, *self.others)):
            return Answer(chosen)
        alike = [option for option in self.instructions if plain(option) == plain(said)]
        if said in self.instructions or len(alike) == 1:
            return Answer(instruction=said if said in self.instructions else alike[0])
        if (number := number_of(said)) is None:
            return None if plain(said) in NEITHER else Answer(instruction=said)
        if not 1 <= number <= len(self.options):
            return None
        if self.skills:
            return Answer(self.skills[number - 1])
        return Answer(instruction=self.instructions[number - 1])


@dataclass(frozen=True)
class Answer:
    """One of the three, or none: then nothing more shall be done."""

    skill: Skill | None = None
    instruction: str = ""
    veto: bool = False  # not the first skill: another shall be proposed


@dataclass(frozen=True)
class Asking:
    """When it is asked."""

    when: When = "never"
    threshold: float = 0.0  # confidence up to which it is

    def question(
        self, instruction: str, decision: Decision, history: Sequence[Step] = (), began: Known | None = None
    ) -> Question | None:
        """history: steps done for it; began: the scene before the first of them."""
        if self.when == "never":
            return None
        if (refusal := decision.refusal) is not None:
            return Question(instruction, refusal.reason, instructions=refusal.nearest)
        sure, rivals = confidence(instruction, decision, history, began), equally_named(instruction, decision)
        left = left_out(instruction, decision, history, began)
        if self.when == "when-unsure" and (decision.because == WORD_FOR_WORD or sure > self.threshold):
            return None
        total = sum(row.score for row in decision.candidates)
        rows = [row for row in decision.candidates[: SHOWN[1]] if row.score > 0]
        likely = [row.skill for i, row in enumerate(rows) if i < SHOWN[0] or row.score >= WORTH * total]
        reason = (
            f"“{rows[0].skill.text}” seems likeliest, with a confidence of {sure:.0%}" if rows else "nothing is likely"
        )
        reason = f"“{rows[0].skill.text}” would come next; {LAST_RESORT}" if decision.because == LAST_RESORT else reason
        reason += f"; what you said fits “{rivals[0].text}” as well" if rivals else ""
        reason += f"; nothing was done with the {' and the '.join(left)}, which you named" if left else ""
        others = tuple(row.skill for row in decision.candidates if row.skill not in likely)
        return Question(instruction, reason, tuple(likely), confidence=sure, others=others)


def confidence(instruction: str, decision: Decision, history: Sequence[Step] = (), began: Known | None = None) -> float:
    """In [0, 1]: the share of all products of likelihood and affordance that falls on the chosen skill and those about
    the same things; a third of it where the words fit other things as well, or name what would be left out. What failed
    or is about another thing counts in the whole as if it were not lowered: a remainder is not sure. What is said word
    for word is sure, and what is tried as a last resort is not."""
    if decision.because:
        return float(decision.because == WORD_FOR_WORD)
    chosen, *others = decision.candidates
    total = sum(map(_product, decision.candidates))
    same = sum(_product(row) for row in others if _about_the_same(chosen.skill, row.skill))
    share = (_product(chosen) + same) / total if chosen.score > 0 else 0.0
    doubtful = equally_named(instruction, decision) or left_out(instruction, decision, history, began)
    return share / DOUBT if doubtful else share


def _product(row: Candidate) -> float:
    """Of likelihood and affordance, lowered by nothing."""
    return row.score / row.lowered if row.lowered else (row.language_score or 0.0) * row.affordance


def _about_the_same(skill: Skill, other: Skill) -> bool:
    """Do they share a thing, and differ in none that fills the same slot? Two things with one arm, or into one box,
    are two."""
    mine, its = skill.arguments, other.arguments
    return bool({*mine.values()} & {*its.values()}) and all(
        mine.get(slot, value) == value for slot, value in its.items()
    )


def left_out(instruction: str, decision: Decision, history: Sequence[Step], began: Known | None = None) -> list[str]:
    """What the instruction names and nothing was done with, where the decision is to end. Places may be named to say
    where things were, and with what was held much is done that does not name it."""
    skills = [row.skill for row in decision.candidates]
    apart = {began.place, began.held, *began.objects.values()} if began else set()
    return [name for name in unserved(instruction, skills, history) if name not in apart] if decision.done else []


def unserved(instruction: str, skills: Sequence[Skill], history: Sequence[Step]) -> list[str]:
    """What the instruction names of that which skills are done with, and no skill that succeeded was done with."""
    served = {value for step in history if step.outcome.succeeded for value in step.skill.arguments.values()}
    names = named(instruction, {value for skill in skills for value in skill.arguments.values()})
    return [name for name in names if name not in served and name not in STATES]


def equally_named(instruction: str, decision: Decision) -> list[Skill]:
    """Possible skills of the chosen one's family with as much in common with the instruction's words, where that is
    something: of "the cup" both the red cup and the blue cup have the cup. Words of most skills do not count, but for
    those of what the chosen one is about."""
    chosen, *others = decision.candidates
    texts = [_words(row.skill.text) for row in decision.candidates]
    count = Counter(word for text in texts for word in text)
    about = _words(" ".join(chosen.skill.arguments.values()))
    said = {word for word in _words(instruction) if word in about or 2 * count[word] <= len(texts)}
    if not (mine := said & texts[0]):
        return []
    likely = NOTICED * sum(row.score for row in decision.candidates)
    rivals = [row.skill for row in others if row.skill.family == chosen.skill.family and row.score > likely]
    return [skill for skill in rivals if said & _words(skill.text) == mine]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def threshold(scores: Sequence[float], coverage: float) -> float:
    """Confidence up to which to ask, so that `coverage` of all errands go right or are asked about in time.

    scores: (n,) for each errand the confidence of its first wrong choice, 0 where none is wrong. Raises ValueError
    where n is too small for that coverage: it needs coverage / (1 - coverage), which is 19 for 0.95."""
    if not 0 < coverage < 1:
        raise ValueError(f"a coverage of {coverage}; it lies between 0 and 1")
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    if rank > len(scores):
        least = math.ceil(coverage / (1 - coverage) - 1e-9)
        raise ValueError(f"{len(scores)} errands are too few for a coverage of {coverage:g}: it takes {least}")
    return sorted(scores)[rank - 1]
