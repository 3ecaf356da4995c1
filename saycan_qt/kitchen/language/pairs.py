"""Instructions and the plans that answer them, generated: what the language model's adapter is fine-tuned on.

pairs = PairGenerator(SkillLibrary.load())
pairs.generate(np.random.default_rng(0))     # Pair(kitchen=..., instruction="toss the cola, then ...", plan=(...))

The wording is people's: `phrases/` holds nouns, verbs, whole situations and ways to join them, `written.yaml` whole
sentences. What is generated is which of them come together, in which kitchen; the plan is an expert's, carried out in
that kitchen step by step.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from planners.prompts import CANNOT, describe, one_line, shown, to_learn
from saycan_qt.kitchen.language import written
from saycan_qt.kitchen.language.errands import OF_HELD, SLOTS, Task, Unsuitable, Wanted
from saycan_qt.kitchen.language.expert import Expert
from saycan_qt.kitchen.language.intricate import Asked, Intricate, in_view
from saycan_qt.kitchen.language.phrases import Phrases
from saycan_qt.kitchen.language.setting import kitchen_for
from saycan_qt.kitchen.language.slips import with_a_slip
from saycan_qt.kitchen.language.sources import INTRICATE, SOURCES, WRITTEN, Sources, in_order
from saycan_qt.kitchen.language.wording import Wording
from saycan_qt.kitchen.symbolic import IN_HAND, WORKTOPS, SymbolicKitchen
from skills.library import SkillLibrary

LONGEST_PLAN = 32  # steps, "done" not counted: eight deliveries
TAUGHT, OVERLOOKED = 0.04, 0.06  # shares of pairs, see text_of
SCENELESS = 0.2  # share of those that follow from no scene
SLIPS, SLIPPED = (1, 3), 0.1  # in how many letters, and in which share of the sentences
IS_WRITTEN = 0.3  # share of pairs
LETTERS = "aabcdeefghiijklmnoopqrstuuvwxyz"


@dataclass(frozen=True)
class Pair:
    """An instruction in a kitchen, and the texts of the skills that carry it out, "done" last; where a thing is asked
    for that is not there, the last is to find it."""

    kitchen: SymbolicKitchen  # at the start
    instruction: str
    plan: tuple[str, ...]
    source: str  # of SOURCES, or WRITTEN
    by_scene: bool  # does the plan follow from what the scene tells?


class PairGenerator:
    """Draws pairs. held_out: with the ways to say things that are kept from training."""

    def __init__(self, library: SkillLibrary, phrases: Phrases | None = None, held_out: bool = False) -> None:
        phrases = (phrases or Phrases.load()).about(library.objects, held_out)
        self.library, self.wording = library, Wording(library, phrases)
        self.sources = Sources(library.objects, phrases, self.wording)
        self.intricate = Intricate(library.objects, phrases, self.wording)
        self.written = written.held_out() if held_out else written.training()

    def generate(self, rng: np.random.Generator) -> Pair:
        drawn = str(rng.choice(list(SOURCES), p=list(SOURCES.values())))
        source = WRITTEN if rng.random() < IS_WRITTEN else drawn
        while True:
            try:
                if source == WRITTEN:
                    one = self.written[int(rng.integers(len(self.written)))]
                    return self.pair_of(one.draw(self.library.objects, rng), source, rng)
                if source in INTRICATE:
                    return self.intricate_pair(source, rng)
                return self._pair(self.sources.draw(source, rng), source, rng)
            except Unsuitable:
                pass

    def _pair(self, wanted: Wanted, source: str, rng: np.random.Generator) -> Pair:
        self.wording.bind(wanted, rng)
        kitchen = kitchen_for(wanted, self.library.objects, rng)
        seen = in_view(kitchen)
        unseen = (thing for thing in self.library.objects if thing not in seen)
        in_order(wanted, [*unseen, *seen], [kitchen.held, *seen])
        plan = self._plan(wanted, kitchen)
        said = _spoken(one_line(wanted.say.format(**wanted.words)), rng)
        return Pair(kitchen, said, plan, source, wanted.by_scene or self._plan_unseen(wanted, kitchen) != plan)

    def _plan_unseen(self, wanted: Wanted, kitchen: SymbolicKitchen) -> tuple[str, ...]:
        """As by somebody who does not know what is in the hand and which drawers are open, but by the words; () where
        there is none."""
        kinds = {task.kind for task in wanted.tasks}
        lifted = kinds & {"hold", "hold_from"} or not kinds.intersection(OF_HELD)
        where = {thing: WORKTOPS[0] if lifted and place == IN_HAND else place for thing, place in kitchen.where.items()}
        first: dict[str, str] = {}  # what is said of a drawer first; who closes one says that it is open
        for task in wanted.tasks:
            if "drawer" in task.slots:
                first.setdefault(wanted.values[task.slots["drawer"]], task.kind)
        closed = {drawer for drawer, kind in first.items() if kind == "close"}
        with suppress(Unsuitable):
            return self._plan(wanted, SymbolicKitchen(where, kitchen.place, kitchen.open_drawers & closed))
        return ()

    def intricate_pair(self, source: str, rng: np.random.Generator) -> Pair:
        """source: of INTRICATE. Raises Unsuitable."""
        return self.pair_of(self.intricate.draw(source, rng), source, rng)

    def pair_of(self, asked: Asked, source: str, rng: np.random.Generator) -> Pair:
        expert = self._expert(asked.kitchen)
        missing = next((p for p in asked.parts if p.values.get("object", "") not in ("", *asked.kitchen.where)), None)
        for part in asked.parts[: asked.parts.index(missing) if missing else None]:
            expert.carry_out(Task(part.kind, SLOTS[part.kind]), part.values)
        last = self.library[f"find {missing.values['object']}"].text if missing else "done" if asked.serves else CANNOT
        if len(expert.plan) > LONGEST_PLAN:
            raise Unsuitable("length")
        return Pair(asked.kitchen, _spoken(one_line(asked.say), rng), (*expert.plan, last), source, by_scene=True)

    def _expert(self, kitchen: SymbolicKitchen) -> Expert:
        return Expert(SymbolicKitchen(dict(kitchen.where), kitchen.place, set(kitchen.open_drawers)), self.library)

    def _plan(self, wanted: Wanted, kitchen: SymbolicKitchen) -> tuple[str, ...]:
        if not wanted.tasks:
            return (CANNOT,)
        expert = self._expert(kitchen)
        for task in wanted.tasks:
            expert.carry_out(task, wanted.values)
        if not expert.plan or len(expert.plan) > LONGEST_PLAN:
            raise Unsuitable("length")
        return (*expert.plan, "done")


def text_of(
    generator: PairGenerator, rng: np.random.Generator, states: bool = True
) -> tuple[str, list[tuple[int, int]]]:
    """A pair as the model reads it, and where the steps are: from the blank after a number to the line's end.

    The scene tells which drawers are open; without states none are but those that the words have closed. Now and then
    there is none, as a planner may not know it; or another pair stands before it, to be overlooked; or one that tells
    what an instruction in made-up words means, as the user's own examples do.
    """
    pair = generator.generate(rng)
    while not states and pair.kitchen.open_drawers and pair.by_scene:
        pair = generator.generate(rng)
    luck = rng.random()
    instruction, before = pair.instruction, ""
    if luck < TAUGHT:
        instruction = " ".join(
            "".join(rng.choice(list(LETTERS), rng.integers(3, 8))) for _ in range(rng.integers(1, 4))
        )
        before = shown(instruction, pair.plan)
    elif luck < TAUGHT + OVERLOOKED:
        other = generator.generate(rng)
        before = shown(other.instruction, other.plan)
    sceneless = rng.random() < SCENELESS and not pair.by_scene
    scene = "" if sceneless else describe(pair.kitchen.observe(), states) + "\n"
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
    if rng.random() < SLIPPED and len(text) > 12:
        for _ in range(rng.integers(SLIPS[0], SLIPS[1] + 1)):
            text = with_a_slip(text, rng)
    return text
