"""Few-shot prompts: the examples nearest to an instruction, then the instruction and the steps done so far."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

EXAMPLES_FILE = Path(__file__).with_name("examples.yaml")
MASK = "thing"
OTHER_COUNT = 0.15  # taken off an example's similarity for each thing that it names more or less than the instruction


@dataclass(frozen=True)
class Example:
    """Something a person says, and the plan that answers it, in skill texts."""

    instruction: str
    plan: tuple[str, ...]


class TextEmbedder(Protocol):
    """What sentence_transformers.SentenceTransformer offers."""

    def encode(self, inputs: Any, **options: Any) -> Any: ...


def load_words(path: Path = EXAMPLES_FILE) -> dict[str, list]:
    """The named lists that fill slots."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))["words"]


def load_examples(path: Path = EXAMPLES_FILE) -> list[Example]:
    """Every entry's every way to ask, its slots filled in every way."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    words = document.get("words", {})
    return [
        Example(said.format(**filling), tuple(step.format(**filling) for step in entry["plan"]))
        for entry in document["examples"]
        for said in entry["say"]
        for filling in _fillings(entry, words)
    ]


def _fillings(entry: dict[str, Any], words: dict[str, list]) -> list[dict[str, str]]:
    """All the ways to fill an entry's slots."""
    per_slot = []
    for names, values in entry.items():
        if names in ("plan", "say"):
            continue
        values = words[values] if isinstance(values, str) else values
        keys = [name.strip() for name in names.split(",")]
        rows = [value if isinstance(value, list) else [value] for value in values]
        per_slot.append([dict(zip(keys, row, strict=True)) for row in rows])
    return [{k: v for part in parts for k, v in part.items()} for parts in product(*per_slot)]


class Prompt:
    """Builds prompts; the `nearest` examples are chosen by sentence embedding, the nearest last.

    Things' names are masked before embedding, so that the way to ask decides rather than the thing asked for. Of the
    fillings of one way to ask, the one that shares most words comes first, and is made to be about the same things:
    a small model copies better than it generalises.
    """

    def __init__(
        self,
        embedder: TextEmbedder,
        examples: Sequence[Example] | None = None,
        things: Sequence[str] | None = None,  # the names to mask; by default `words: thing` of examples.yaml
        nearest: int = 8,  # examples in a prompt
        per_way: int = 2,  # of them with the same way to ask...
        per_open_way: int = 4,  # ... if it leaves open which thing is meant: shows what may be chosen
        spread: float = 0.2,  # an example less similar than the nearest one by more than this is left out
    ) -> None:
        self.embedder = embedder
        self.examples = list(examples if examples is not None else load_examples())
        things = things if things is not None else load_words()["thing"]
        self._things = re.compile(r"\b(" + "|".join(map(re.escape, sorted(things, key=len, reverse=True))) + r")\b")
        self.nearest, self.per_way, self.per_open_way = nearest, per_way, per_open_way
        self.spread = spread
        self._by_way: dict[str, list[Example]] = {}
        for example in self.examples:
            self._by_way.setdefault(self._mask(example.instruction), []).append(example)
        self._vectors = self._encode(list(self._by_way))
        self._things_said = np.array([_count_things(way) for way in self._by_way])
        self._chosen: tuple[str, list[Example]] = ("", [])

    def _mask(self, text: str) -> str:
        return self._things.sub(MASK, text.lower())

    def _encode(self, texts: list[str]) -> np.ndarray:
        """(N, width), unit length."""
        return np.asarray(self.embedder.encode(texts, normalize_embeddings=True, show_progress_bar=False))

    def choose(self, instruction: str, feasible: Collection[str] = ()) -> list[Example]:
        """The nearest examples, nearest last; those that could begin now (`feasible`: skill texts) before others."""
        words = set(_words(instruction))
        things = self._things.findall(instruction.lower())
        masked = self._mask(instruction)
        similarity = self._vectors @ self._encode([masked])[0]
        similarity -= OTHER_COUNT * np.abs(self._things_said - _count_things(masked))
        ways = list(self._by_way.values())
        chosen: list[Example] = []
        for index in np.argsort(-similarity, kind="stable"):
            room = self.nearest - len(chosen)
            if room <= 0 or similarity[index] < similarity.max() - self.spread:
                break
            shown = self.per_way if self._things_said[index] else self.per_open_way
            ranked = sorted(
                ways[index],
                key=lambda e: (-len(words.intersection(_words(e.instruction))), e.plan[0] not in feasible),
            )
            first = self._about(ranked[0], things)
            chosen += [first, *(e for e in ranked if e != first)][: min(shown, room)]
        return chosen[::-1]

    def _about(self, example: Example, things: list[str]) -> Example:
        """The example with its things replaced by these, in the order in which they are named, if as many are named."""
        named = self._things.findall(example.instruction.lower())
        if len(named) != len(things):
            return example
        replace = dict(zip(named, things, strict=True))
        instruction, *plan = (
            self._things.sub(lambda found: replace.get(found[0], found[0]), text)
            for text in (example.instruction, *example.plan)
        )
        return Example(instruction, tuple(plan))

    def build(self, instruction: str, steps_done: Sequence[str], feasible: Collection[str] = ()) -> str:
        """The prompt up to the number of the next step; ` text\\n` is what continues it.

        feasible: the skill texts that are possible now. The examples are chosen at the first step of an instruction
        and kept while steps are added, so that the beginning of the prompt stays the same.
        """
        instruction = one_line(instruction)
        if not steps_done or self._chosen[0] != instruction:
            self._chosen = (instruction, self.choose(instruction, feasible))
        shown = [_numbered(e.instruction, e.plan) + "\n\n" for e in self._chosen[1]]
        return "".join(shown) + _numbered(instruction, steps_done) + f"\n{len(steps_done) + 1}."


def _count_things(masked: str) -> int:
    return len(re.findall(rf"\b{MASK}\b", masked))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def one_line(text: str) -> str:
    """An instruction stays within its line, whatever it holds."""
    return " ".join(text.split())


def _numbered(instruction: str, steps: Sequence[str]) -> str:
    return "\n".join([f"Instruction: {instruction}", *(f"{n}. {step}" for n, step in enumerate(steps, 1))])
