"""Instructions and the plans that answer them, generated: what the language model's adapter is fine-tuned on.

pairs = PairGenerator(SkillLibrary.load())
pairs.generate(np.random.default_rng(0))     # Pair(kitchen=..., instruction="toss the cola, then ...", plan=(...))

The wording is people's: `phrases/` holds nouns, verbs, whole situations and ways to join them. What is generated is
which of them come together, in which kitchen; the plan is an expert's, carried out in that kitchen step by step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planners.prompts import CANNOT, describe, numbered, one_line, to_learn
from saycan_qt.kitchen.language.errands import Unsuitable, Wanted
from saycan_qt.kitchen.language.expert import Expert
from saycan_qt.kitchen.language.phrases import Phrases
from saycan_qt.kitchen.language.setting import kitchen_for
from saycan_qt.kitchen.language.sources import SOURCES, Sources
from saycan_qt.kitchen.language.wording import Wording
from saycan_qt.kitchen.symbolic import SymbolicKitchen
from skills.library import SkillLibrary

LONGEST_PLAN = 19  # steps, "done" not counted
TAUGHT, OVERLOOKED, SCENELESS = 0.04, 0.06, 0.06  # shares of pairs, see text_of
LETTERS = "aabcdeefghiijklmnoopqrstuuvwxyz"


@dataclass(frozen=True)
class Pair:
    """An instruction in a kitchen, and the texts of the skills that carry it out, "done" last."""

    kitchen: SymbolicKitchen  # at the start
    instruction: str
    plan: tuple[str, ...]
    source: str  # of SOURCES


class PairGenerator:
    """Draws pairs. held_out: with the ways to say things that are kept from training."""

    def __init__(self, library: SkillLibrary, phrases: Phrases | None = None, held_out: bool = False) -> None:
        phrases = (phrases or Phrases.load()).about(library.objects, held_out)
        self.library, self.wording = library, Wording(library, phrases)
        self.sources = Sources(library.objects, phrases, self.wording)

    def generate(self, rng: np.random.Generator) -> Pair:
        source = str(rng.choice(list(SOURCES), p=list(SOURCES.values())))
        while True:
            try:
                return self._pair(self.sources.draw(source, rng), source, rng)
            except Unsuitable:
                pass

    def _pair(self, wanted: Wanted, source: str, rng: np.random.Generator) -> Pair:
        self.wording.bind(wanted, rng)
        kitchen = kitchen_for(wanted, self.library.objects, rng)
        plan = self._plan(wanted, kitchen) if wanted.tasks else (CANNOT,)
        return Pair(kitchen, _spoken(one_line(wanted.say.format(**wanted.words)), rng), plan, source)

    def _plan(self, wanted: Wanted, kitchen: SymbolicKitchen) -> tuple[str, ...]:
        expert = Expert(SymbolicKitchen(dict(kitchen.where), kitchen.place, set(kitchen.open_drawers)), self.library)
        for task in wanted.tasks:
            expert.carry_out(task, wanted.values)
        if not expert.plan or len(expert.plan) > LONGEST_PLAN:
            raise Unsuitable("length")
        return (*expert.plan, "done")


def text_of(generator: PairGenerator, rng: np.random.Generator) -> tuple[str, list[tuple[int, int]]]:
    """A pair as the model reads it, and where the steps are: from the blank after a number to the line's end.

    Now and then without a scene, as a planner may not know it; with another pair before it, to be overlooked; or with
    one that tells what an instruction in made-up words means, as the user's own examples do.
    """
    pair, luck = generator.generate(rng), rng.random()
    instruction, before = pair.instruction, ""
    if luck < TAUGHT:
        instruction = " ".join(
            "".join(rng.choice(list(LETTERS), rng.integers(3, 8))) for _ in range(rng.integers(1, 4))
        )
        before = numbered(instruction, pair.plan) + "\n\n"
    elif luck < TAUGHT + OVERLOOKED:
        other = generator.generate(rng)
        before = numbered(other.instruction, other.plan) + "\n\n"
    scene = "" if rng.random() < SCENELESS else describe(pair.kitchen.observe()) + "\n"
    return to_learn(before + scene, instruction, pair.plan)


def _spoken(text: str, rng: np.random.Generator) -> str:
    """With or without capitals and full stop, and with a slip now and then."""
    luck = rng.random()
    if luck < 0.3:
        text = text[:1].upper() + text[1:]
    elif luck < 0.5:
        text = text.lower()
    if rng.random() < 0.25 and text[-1:].isalnum():
        text += str(rng.choice([".", "!", ".", "?"])) if rng.random() < 0.5 else "."
    if rng.random() < 0.05 and len(text) > 12:
        at = int(rng.integers(1, len(text) - 2))
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text
