"""The wording of people, from `phrases/`: a small part of the ways to say something is kept from training."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

PHRASES = Path(__file__).with_name("phrases")
HELD_OUT = 20  # one way to say something in so many is kept from training, to validate on
NUMBERS = {2: re.compile(r"\b(both|two)\b", re.IGNORECASE), 3: re.compile(r"\bthree\b", re.IGNORECASE)}


@dataclass(frozen=True)
class Phrases:
    """Nouns, clauses, whole situations and ways to join them, and which of the ways to say them are picked."""

    nouns: dict[str, Any]
    tasks: dict[str, dict[str, list[str]]]
    situations: list[dict[str, Any]]
    compound: dict[str, Any]
    impossible: list[str]
    intricate: dict[str, Any]
    foreign: dict[str, dict[str, Any]]  # language -> its nouns, and ways to ask
    unknown: dict[str, list[Any]]  # what the robot does not know, and how that is spoken of
    held_out: bool = False  # pick among those that are kept from training, in place of the others

    @staticmethod
    @functools.cache
    def load(folder: Path = PHRASES) -> Phrases:
        def read(name: str) -> Any:
            return yaml.load((folder / f"{name}.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)

        nouns, tasks, situations, compound = map(read, ("nouns", "tasks", "situations", "compound"))
        impossible, intricate, foreign = read("impossible")["say"], read("intricate"), read("foreign")
        return Phrases(nouns, tasks, situations, compound, impossible, intricate, foreign, read("unknown"))

    def about(self, objects: Collection[str], held_out: bool) -> Phrases:
        """The same, with categories of these objects alone."""
        categories = {
            name: entry | {"members": [m for m in entry["members"] if m in objects]}
            for name, entry in self.categories.items()
        }
        return replace(self, nouns=self.nouns | {"categories": categories}, held_out=held_out)

    @property
    def categories(self) -> dict[str, dict[str, Any]]:
        """Name -> members, and ways to wish for one, to speak of one and of all."""
        return self.nouns["categories"]

    @staticmethod
    def taken_for(category: Mapping[str, Any]) -> list[str]:
        """Members of a category, and what somebody may take for one."""
        return [*category["members"], *category.get("unsure", ())]

    def pick(self, ways: Sequence[str], rng: np.random.Generator) -> str:
        kept = [way for way in ways if is_held_out(way) == self.held_out]
        return str(rng.choice(kept or list(ways)))


def is_held_out(phrase: str) -> bool:
    return zlib.crc32(phrase.encode()) % HELD_OUT == 0
