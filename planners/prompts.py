"""Few-shot prompts: the examples nearest to an instruction, then the instruction and the steps done so far."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from planners.named import pattern
from planners.spelling import Spelling
from skills import files
from skills.library import MAX_WORD, placeholders
from skills.rules import Known

MAX_WORDS, MAX_EXAMPLES = 5000, 100_000  # of a file; more are a mistake in a template
MASK = "thing"
NOTHING_SAID = "N/A"
SAME = 0.93  # cosine from which an example says what the instruction says
CANNOT = "cannot"  # what a tuned model plans where nothing serves the instruction
SHOWN, LIKE = 3, 0.5  # examples shown to a model that is told the robot's skills, and their least cosine
OTHER_COUNT = 0.15  # taken off an example's similarity for each thing that it names more or less than the instruction


@dataclass(frozen=True)
class Example:
    """Something a person says, and the plan that answers it, in skill texts."""

    instruction: str
    plan: tuple[str, ...]


@dataclass
class Begun:
    """What an errand's prompts begin with: kept from its first step on, so that they go on as they began."""

    known: Known | None = None  # the scene as it was then, for one that is taken up after its first step
    instruction: str = ""  # as it was read; "": nothing yet
    examples: Sequence[Example] = ()
    scene: str = ""


class TextEmbedder(Protocol):
    """What sentence_transformers.SentenceTransformer offers."""

    def encode(self, inputs: Any, **options: Any) -> Any: ...


class ExamplesError(ValueError):
    """A file of examples that cannot be used: which one, where, why."""


def _document(path: Path) -> dict[str, Any]:
    try:
        document = files.from_yaml(files.read(path))
    except OSError as error:
        raise ExamplesError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ExamplesError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    if not isinstance(document, dict) or not set(document) <= {"words", "examples"}:
        raise ExamplesError(f"{path}: it may have `words` and `examples`, nothing else")
    return document


def load_words(path: Path) -> dict[str, list]:
    """The named lists that fill slots. Raises ExamplesError."""
    words = _document(path).get("words") or {}
    if not isinstance(words, dict) or not all(isinstance(values, list) for values in words.values()):
        raise ExamplesError(f"{path}: `words` are lists with names, such as `thing: [cup, plate]`")
    if empty := next((name for name, values in words.items() if None in values), None):
        raise ExamplesError(f"{path}: `words` has nothing in one place of {empty!r}")
    if many := next((name for name, values in words.items() if len(values) > MAX_WORDS), None):
        raise ExamplesError(f"{path}: `words` has {len(words[many])} of {many!r}, at most {MAX_WORDS} are read")
    return words


def load_examples(path: Path) -> list[Example]:
    """Every entry's every way to ask, its slots filled in every way. Raises ExamplesError."""
    words, entries = load_words(path), _document(path).get("examples") or []
    found: list[Example] = []
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
        try:
            for text in (*entry["say"], *entry["plan"]):
                placeholders(text)
            found += [
                Example(_filled(said, filling), tuple(_filled(step, filling) for step in entry["plan"]))
                for said in entry["say"]
                for filling in _fillings(entry, words)
            ]
            if len(found) > MAX_EXAMPLES:
                raise ValueError(f"it brings the examples above {MAX_EXAMPLES}")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            reason = f"nothing fills {error}" if isinstance(error, KeyError) else str(error)
            hint = "an entry has `plan` and `say`, both lists of text, and a line for each {slot}"
            raise ExamplesError(f"{path}: entry {number} of `examples`: {reason}; {hint}") from None
    return found


def _filled(template: str, filling: Mapping[str, Any]) -> str:
    text = template.format(**filling)
    if len(text) > MAX_WORD or not text.isprintable():
        raise ValueError(f"{text[:100]!r} is above {MAX_WORD} characters, or cannot be read")
    return text


def _fillings(entry: dict[str, Any], words: dict[str, list]) -> list[dict[str, str]]:
    """All the ways to fill an entry's slots."""
    if not (isinstance(entry["plan"], list) and isinstance(entry["say"], list)):
        raise TypeError("`plan` or `say` is no list")
    per_slot = []
    for names, values in entry.items():
        if names in ("plan", "say"):
            continue
        values = words[values] if isinstance(values, str) else values
        keys = [name.strip() for name in names.split(",")]
        rows = [value if isinstance(value, list) else [value] for value in values]
        per_slot.append([dict(zip(keys, row, strict=True)) for row in rows])
    if (many := prod(map(len, per_slot)) * len(entry["say"]) * max(1, len(entry["plan"]))) > MAX_EXAMPLES:
        raise ValueError(f"{many} steps come of it, at most {MAX_EXAMPLES} are read")
    return [{k: v for part in parts for k, v in part.items()} for parts in product(*per_slot)]


class Prompt:
    """Builds prompts; the `nearest` examples are chosen by sentence embedding, the nearest last.

    Things' names are masked before embedding, so that the way to ask decides rather than the thing asked for. Of the
    fillings of one way to ask, the one that shares most words comes first, and is made to be about the same things (a
    small model copies better than it generalises); the next are about other things, and show what is to be copied.

    A model that was fine-tuned to plan (saycan_qt.tune) is told the scene instead. Of the examples it only gets one
    that says nearly what the instruction says, so that those which users add teach it, too. What is open is told only
    to a model that was fine-tuned with it (`states`); to another it would be noise. One that was fine-tuned to be told
    what a robot can do (`skills`) is told that before all else, and gets the few nearest examples, and the scene where
    anything is known of it.
    """

    def __init__(
        self,
        embedder: TextEmbedder,
        examples: Sequence[Example],
        things: Sequence[str],  # the names to mask
        nearest: int = 8,  # examples in a prompt
        per_way: int = 2,  # of them with the same way to ask
        spread: float = 0.12,  # a way to ask that is less similar than the nearest by more than this is left out...
        fewest: int = 2,  # ... if there are this many without it
        tuned: bool = False,  # for a model that was fine-tuned to plan, see above
        about: str = "a robot",  # whom a chat model is told that it plans for
        states: bool = False,  # for a model that was fine-tuned with scenes that tell what is open
        scene: bool = False,  # tell the scene beside examples, for a large model that was not fine-tuned
        spelling: Spelling | None = None,  # reads slips of the finger as what was meant
        skills: str = "",  # what the robot can do (RobotLanguage.skills), for a model that was tuned to be told so
        texts: Collection[str] = (),  # of its skills: no example is shown another step; none given: any
    ) -> None:
        self.embedder = embedder
        self.turn = threading.RLock()  # held by the decision that is being made, as the last ones are remembered here
        self.examples = list(examples)
        self._things = pattern(things)
        self._spelt = {thing.lower(): thing for thing in things}
        self.nearest, self.per_way = nearest, per_way
        self.spread, self.fewest = spread, fewest
        self.tuned, self.about, self.states, self.scene, self.spelling = tuned, about, states, scene, spelling
        self.head = skills + "\n" if skills else ""
        self._texts = {*texts, CANNOT} if texts else set()
        self._by_way: dict[str, list[Example]] = {}
        for example in self.examples:
            self._by_way.setdefault(self._mask(example.instruction), []).append(example)
        self._vectors = self.embed(list(self._by_way))
        self._things_said = np.array([_count_things(way) for way in self._by_way])
        self._own = self._begun = Begun()  # where none is given; that of the last prompt
        self._known: Known | None = None  # when that was built
        self._last: tuple[str | None, np.ndarray] = (None, np.zeros(0))

    def read(self, instruction: str) -> str:
        """An instruction as it stands in prompts: in one line, and without slips of the finger."""
        text = one_line(instruction)
        return self.spelling.read(text) if self.spelling else text

    def _mask(self, text: str) -> str:
        return self._things.sub(MASK, text.lower())

    def _named(self, text: str) -> list[str]:
        """The things in a text, as the robot spells them."""
        return [self._spelt.get(found.lower(), found) for found in self._things.findall(text)]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(N, width), unit length."""
        if not len(texts):
            return np.zeros((0, 0))
        return np.asarray(self.embedder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False))

    def _similarity(self, masked: str) -> np.ndarray:
        """Cosines (ways,) of a masked instruction to every way to ask; an instruction is asked about several times."""
        if not self._by_way:
            return np.zeros(0)
        if self._last[0] != masked:
            self._last = (masked, self._vectors @ self.embed([masked])[0])
        return self._last[1].copy()

    def choose(self, instruction: str, feasible: Collection[str] = (), known: Known | None = None) -> list[Example]:
        """The nearest examples, nearest last; where the thing is left open, those that `feasible` skills allow, about
        what is known to be there."""
        if not self.examples:
            return []
        words = set(_words(instruction))
        things = self._named(instruction)
        masked = self._mask(instruction)
        similarity = self._similarity(masked)

        def shared(example: Example) -> int:
            return len(words.intersection(_words(example.instruction)))

        def fitting(examples: list[Example]) -> Example:
            return _possible(self._there(_most(examples, shared), known), feasible)[0]

        ways = list(self._by_way.values())
        if self.tuned and self.head:
            near = [int(i) for i in np.argsort(-similarity, kind="stable")[:SHOWN] if similarity[i] >= LIKE]
            return [self._about(fitting(ways[index]), things) for index in reversed(near)]
        if self.tuned:
            best = int(similarity.argmax())
            return [self._about(fitting(ways[best]), things)] if similarity[best] >= SAME else []
        similarity -= OTHER_COUNT * np.abs(self._things_said - _count_things(masked))
        order = np.argsort(-similarity, kind="stable")

        if not self._things_said[order[0]]:
            there = [self._there(_most(ways[index], shared), known) for index in order[:2]]
            two = [example for examples in there for example in _possible(examples, feasible)[:2]][:2]
            return [*two[::-1], *two[::-1]]  # twice: four different answers to one question call for a fifth
        alike: list[Example] = []
        others: list[Example] = []  # about other things
        for index in order:
            room = self.nearest - len(alike) - len(others)
            similar = similarity[index] >= similarity.max() - self.spread
            if room <= 0 or (not similar and len(alike) >= self.fewest):
                break
            ranked = sorted(ways[index], key=shared, reverse=True)
            alike.append(self._about(ranked[0], things))
            different = [e for e in ranked[1:] if not set(things).intersection(self._named(e.instruction))]
            others += different[len(others) :][: min(self.per_way, room) - 1]
        return [*others[::-1], *alike[::-1]]

    def _there(self, examples: list[Example], known: Known | None) -> list[Example]:
        """Those whose plans are about the most things that the robot knows to be somewhere."""
        there = {*known.objects, known.held} if known else set()
        return _most(examples, lambda e: len(there.intersection(self._named(" ".join(e.plan)))))

    def _about(self, example: Example, things: list[str]) -> Example:
        """The example with its things replaced by these, in the order in which they are named, if as many are named
        and the robot has skills for the plan that comes of it."""
        named = self._named(example.instruction)
        if len(named) != len(things):
            return example
        replace = dict(zip(map(str.lower, named), things, strict=True))
        instruction, *plan = (
            self._things.sub(lambda found: replace.get(found[0].lower(), found[0]), text)
            for text in (example.instruction, *example.plan)
        )
        return Example(instruction, tuple(plan)) if not self._texts or self._texts.issuperset(plan) else example

    def take(self, begun: Begun | None) -> None:
        """The errand that the next prompts are about; None: none in particular."""
        self._begun = begun or self._own

    def build(
        self,
        instruction: str,
        steps_done: Sequence[str],
        feasible: Collection[str] = (),  # texts of skills that are possible now; they tell which things are there
        known: Known | None = None,  # the scene, for a model that was tuned
    ) -> str:
        """The prompt up to the number of the next step; ` text\\n` is what continues it.

        Examples and scene are those of the first step of an errand, and are kept while steps are added, so that the
        prompt's beginning stays the same. Unless `take` tells errands apart, one is what has the words asked last. One
        that is taken up later is told the scene that it began with (`Begun.known`), or none: what is seen after some
        steps is not what they began with.
        """
        instruction = self.read(instruction)
        begun, self._known = self._begun, known
        if not steps_done or begun.instruction != instruction:
            known = begun.known if steps_done else known
            known = None if known and self.head and _knows_nothing(known) else known
            begun.scene = describe(known, self.states) + "\n" if known and (self.tuned or self.scene) else ""
            begun.instruction, begun.examples = instruction, self.choose(instruction, feasible, known)
        return self._write(instruction, steps_done)

    def content_free(self, steps_done: Sequence[str]) -> str:
        """The last prompt with an instruction that says nothing: what is likely after it is so whatever is asked
        [contextual calibration, Zhao et al. 2021]."""
        return self._write(NOTHING_SAID, steps_done)

    def _write(self, instruction: str, steps_done: Sequence[str]) -> str:
        before = self.head + "".join(shown(e.instruction, e.plan) for e in self._begun.examples) + self._begun.scene
        return before + numbered(instruction, steps_done) + f"\n{len(steps_done) + 1}."

    @property
    def example_steps(self) -> list[str]:
        """The steps of the last prompt's examples, each once."""
        return list(dict.fromkeys(step for example in self._begun.examples for step in example.plan))

    def familiarity(self, instruction: str) -> float:
        """Cosine of the instruction to the nearest way to ask, things' names masked."""
        return float(self._similarity(self._mask(self.read(instruction))).max(initial=0.0))

    def suggestions(self, instruction: str, texts: Collection[str], feasible: Collection[str], count: int) -> list[str]:
        """Instructions near to this one whose plans need these skills alone: one for each way to ask, about things
        that are there."""
        ways = list(self._by_way.values())
        order = np.argsort(-self._similarity(self._mask(self.read(instruction))), kind="stable")
        servable = ([e for e in ways[index] if set(texts).issuperset(e.plan)] for index in order)
        first = (_possible(self._there(few, self._known), feasible)[0].instruction for few in servable if few)
        return list(islice(first, count))


def _most(examples: list[Example], count: Callable[[Example], int]) -> list[Example]:
    """Those of which the count is greatest."""
    counts = [count(example) for example in examples]
    return [example for example, number in zip(examples, counts, strict=True) if number == max(counts)]


def _possible(examples: list[Example], feasible: Collection[str]) -> list[Example]:
    """Those with the most steps that are feasible now: they are about things that are there."""
    return _most(examples, lambda example: sum(step in feasible for step in example.plan))


def _count_things(masked: str) -> int:
    return len(re.findall(rf"\b{MASK}\b", masked))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def one_line(text: str) -> str:
    """An instruction is one line: a line break in it is a blank, so that several lines are one sentence, or a list of
    which all is wanted, and never a prompt's next line. Halves of letters, which no tokenizer takes, go."""
    return " ".join(text.encode(errors="replace").decode().split())


def _knows_nothing(known: Known) -> bool:
    return not (known.place or known.held or known.objects)


def describe(known: Known, states: bool = False) -> str:
    """A scene in a line: what lies where, where the robot is, and what it holds; with `states`, what is open, too."""
    places: dict[str, list[str]] = {}
    for thing, place in known.objects.items():
        if thing != known.held:
            places.setdefault(place or "somewhere", []).append(thing)
    told: dict[str, list[str]] = {}
    for thing, state in known.states.items() if states else ():
        told.setdefault(state, []).append(thing)
    parts = [f"{key}: {', '.join(things)}" for key, things in (*places.items(), *told.items())]
    return "Scene: " + "; ".join([*parts, f"robot: {known.place}", f"hand: {known.held or 'empty'}"])


def numbered(instruction: str, steps: Sequence[str]) -> str:
    return "\n".join([f"Instruction: {instruction}", *(f"{n}. {step}" for n, step in enumerate(steps, 1))])


def shown(instruction: str, plan: Sequence[str]) -> str:
    """An example, as it stands before what is asked."""
    return numbered(instruction, plan) + "\n\n"


def to_learn(before: str, instruction: str, plan: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """What a model learns to plan from: a text that begins with `before`, and where in it the steps are: from the blank
    after a number to the line's end."""
    text, spans = f"{before}Instruction: {instruction}\n", []
    for number, step in enumerate(plan, 1):
        text += f"{number}."
        start = len(text)
        text += f" {step}\n"
        spans.append((start, len(text)))
    return text, spans
