"""Where made-up robots work, and what is done there: `domains.yaml`, read."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from skills.library import placeholders

HERE = Path(__file__).parent
LOWER = {"sheep", "fish"}  # whose plural is the same


@dataclass(frozen=True)
class Act:
    """Something that a robot does with one skill."""

    ways: tuple[str, ...]  # to ask for it; the first is the skill's own
    sentences: tuple[str, ...] = ()  # that ask for it and are no clause
    needs: str = ""  # an act, by its first way, that comes before it

    @property
    def text(self) -> str:
        return self.ways[0]

    @property
    def slot(self) -> str:
        """What it is done to; "": nothing."""
        return (*placeholders(self.text), "", "")[0]

    @property
    def with_slot(self) -> str:
        """... and with what; "": nothing."""
        return (*placeholders(self.text), "", "")[1]

    @staticmethod
    def parse(line: str) -> Act:
        said, _, needs = line.partition(" << ")
        ways = [way.strip() for way in said.split(" | ")]
        clauses = tuple(way for way in ways if way[-1] not in ".?!")
        return Act(clauses, tuple(way for way in ways if way not in clauses), needs)


@dataclass(frozen=True)
class Domain:
    """One kind of place to work at."""

    name: str
    places: Mapping[str, str]  # name -> preposition
    lidded: frozenset[str]  # places with a door of their name
    things: Mapping[str, tuple[str, ...]]  # kind -> names
    acts: tuple[Act, ...]
    simple: tuple[Act, ...]
    doors: tuple[str, ...]
    switches: tuple[str, ...]
    also: Mapping[str, tuple[str, ...]]  # other words for things, places, doors and switches


@functools.cache
def load() -> tuple[Domain, ...]:
    document: dict[str, dict[str, Any]] = _read("domains.yaml")
    return tuple(_domain(name, entry) for name, entry in document.items())


@functools.cache
def frames() -> dict[str, Any]:
    """How people put it: `frames.yaml`."""
    return _read("frames.yaml")


def _read(name: str) -> Any:
    return yaml.load((HERE / name).read_text(encoding="utf-8"), yaml.CSafeLoader)


def _domain(name: str, entry: dict[str, Any]) -> Domain:
    also: dict[str, tuple[str, ...]] = {}

    def names(words: list[str]) -> tuple[str, ...]:
        found = []
        for word in words:
            first, *others = word.split("/")
            if coloured := re.match(r"([\w+]*\+[\w+]*) (.*)", first):
                found += [f"{colour} {coloured[2]}" for colour in coloured[1].split("+")]
            else:
                found.append(first)
                also[first] = tuple(others)
        return tuple(found)

    places, lidded = {}, set()
    for word in entry["places"]:
        preposition, rest = word.split(" ", 1)
        (place,) = names([rest.replace("*", "")])
        places[place] = preposition
        if "*" in rest:
            lidded.add(place)
    return Domain(
        name,
        places,
        frozenset(lidded),
        {kind: names(words) for kind, words in entry["things"].items()},
        tuple(map(Act.parse, entry["acts"])),
        tuple(map(Act.parse, entry["simple"])),
        names(entry["doors"]),
        names(entry["switches"]),
        also,
    )


def plural(kind: str) -> str:
    if kind in LOWER or kind.endswith("equipment"):
        return kind
    if kind.endswith(("s", "x", "ch", "sh")):
        return f"{kind}es"
    return f"{kind[:-1]}ies" if kind[-1] == "y" and kind[-2] not in "aeiou" else f"{kind}s"
