"""Few-shot prompts: the examples nearest to an instruction, then the instruction and the steps done so far."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

EXAMPLES_FILE = Path(__file__).with_name("examples.yaml")


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
    """Every entry with its slots filled; each way to ask is filled `fillings_each` times."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    words, fillings_each = document.get("words", {}), document.get("fillings_each", 1)
    examples = []
    for entry in document["examples"]:
        fillings = _fillings(entry, words)
        each = min(fillings_each, len(fillings))
        for index, said in enumerate(entry["say"]):
            start = index * each
            for filling in (fillings[(start + k) % len(fillings)] for k in range(each)):
                plan = tuple(step.format(**filling) for step in entry["plan"])
                examples.append(Example(said.format(**filling), plan))
    return examples


def _fillings(entry: dict[str, Any], words: dict[str, list]) -> list[dict[str, str]]:
    """All the ways to fill an entry's slots, in an order that varies every slot early."""
    per_slot = []
    for names, values in entry.items():
        if names in ("plan", "say"):
            continue
        values = words[values] if isinstance(values, str) else values
        keys = [name.strip() for name in names.split(",")]
        rows = [value if isinstance(value, list) else [value] for value in values]
        per_slot.append([dict(zip(keys, row, strict=True)) for row in rows])
    fillings = [{k: v for part in parts for k, v in part.items()} for parts in product(*per_slot)]
    stride = next(s for s in range(len(fillings) * 5 // 8 or 1, 2 * len(fillings) + 2) if math.gcd(s, len(fillings)) == 1)
    return [fillings[i * stride % len(fillings)] for i in range(len(fillings))]


class Prompt:
    """Builds prompts; the `nearest` examples are chosen by sentence embedding, the nearest last.

    Things' names are masked before embedding, so that the way to ask decides rather than the thing asked for; among
    the fillings of one way to ask, those that share the instruction's words come first.
    """

    def __init__(
        self,
        embedder: TextEmbedder,
        examples: Sequence[Example] | None = None,
        things: Sequence[str] | None = None,  # the names to mask; by default `words: thing` of examples.yaml
        nearest: int = 8,  # examples in a prompt
        per_way: int = 2,  # of them with the same way to ask
    ) -> None:
        self.embedder = embedder
        self.examples = list(examples if examples is not None else load_examples())
        things = things if things is not None else load_words()["thing"]
        self._things = re.compile(r"\b(" + "|".join(map(re.escape, sorted(things, key=len, reverse=True))) + r")\b")
        self.nearest, self.per_way = nearest, per_way
        self._by_way: dict[str, list[Example]] = {}
        for example in self.examples:
            self._by_way.setdefault(self._mask(example.instruction), []).append(example)
        self._vectors = self._encode(list(self._by_way))
        self._chosen: tuple[str, list[Example]] = ("", [])

    def _mask(self, text: str) -> str:
        return self._things.sub("thing", text.lower())

    def _encode(self, texts: list[str]) -> np.ndarray:
        """(N, width), unit length."""
        return np.asarray(self.embedder.encode(texts, normalize_embeddings=True, show_progress_bar=False))

    def choose(self, instruction: str) -> list[Example]:
        """The nearest examples, nearest last."""
        if self._chosen[0] == instruction:
            return self._chosen[1]
        words = set(_words(instruction))
        similarity = self._vectors @ self._encode([self._mask(instruction)])[0]
        ways = list(self._by_way.values())
        chosen: list[Example] = []
        for index in np.argsort(-similarity, kind="stable"):
            if len(chosen) >= self.nearest:
                break
            fillings = sorted(ways[index], key=lambda e: -len(words.intersection(_words(e.instruction))))
            chosen += fillings[: min(self.per_way, self.nearest - len(chosen))]
        self._chosen = (instruction, chosen[::-1])
        return self._chosen[1]

    def build(self, instruction: str, steps_done: Sequence[str]) -> str:
        """The prompt up to the number of the next step; ` text\\n` is what continues it."""
        shown = [_numbered(e.instruction, e.plan) + "\n\n" for e in self.choose(one_line(instruction))]
        return "".join(shown) + _numbered(one_line(instruction), steps_done) + f"\n{len(steps_done) + 1}."


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def one_line(text: str) -> str:
    """An instruction stays within its line, whatever it holds."""
    return " ".join(text.split())


def _numbered(instruction: str, steps: Sequence[str]) -> str:
    return "\n".join([f"Instruction: {instruction}", *(f"{n}. {step}" for n, step in enumerate(steps, 1))])
