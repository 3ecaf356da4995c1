"""Some numbers of one column of a dataset, turned into the units that a robot takes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from saycan_qt.data.lerobot import DatasetError

SLICE = re.compile(r"(?P<column>.+?)(?:\[(?P<start>\d+)(?P<range>:(?P<stop>\d+))?\])?")
MAX_SCALE = 1e9  # of a mapping; larger ones are no unit's
RELATIVE_THRESHOLD = 0.1  # a smaller gripper command is none, as Octo has it
EXAMPLE = {"scale": "0.01", "invert": "true", "relative": "true"}

Numbers = Callable[[str], np.ndarray]  # column -> (T, D), the numbers of one episode


@dataclass(frozen=True)
class Columns:
    """Some numbers of one column: `action[0:6]`, `action[6]`, or all of `action`."""

    column: str
    start: int = 0
    stop: int | None = None  # None: to the end
    scale: float = 1.0  # to metres, radians or fractions
    invert: bool = False  # 1 - x, where the gripper's opening is stored
    relative: bool = False  # +1 closes, -1 opens, 0 keeps: turned into the closedness they lead to

    @classmethod
    def parse(cls, given: Any, key: str, source: str) -> Self:
        """From `name`, `name[3]`, `name[0:3]` or {column: ..., invert: true}."""
        options = dict(given) if isinstance(given, Mapping) else {"column": given}
        text = options.pop("column", None)
        found = SLICE.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise DatasetError(f"{source}: {key}: {given!r} names no column; write for instance `{key}: action[0:3]`")
        kinds: dict[str, Any] = {"scale": (int, float), "invert": bool, "relative": bool}
        for name, value in options.items():
            check_key(name, ["column", *kinds], f"{source}: {key}")
            if not isinstance(value, kinds[name]) or not abs(value) <= MAX_SCALE:
                raise DatasetError(
                    f"{source}: {key}: {name} is {value!r:.50}; write for instance `{name}: {EXAMPLE[name]}`"
                )
        if max(map(len, (found["start"] or "", found["stop"] or ""))) > 9:
            raise DatasetError(f"{source}: {key}: {text[:100]!r} is a place of too many digits")
        start, stop = int(found["start"] or 0), None
        if found["start"] is not None:
            stop = int(found["stop"]) if found["range"] else start + 1
        return cls(found["column"], start, stop, **options)

    def width(self, available: int) -> int:
        return (available if self.stop is None else self.stop) - self.start

    @property
    def changed(self) -> bool:
        """Are the numbers other than those that are stored?"""
        return self.scale != 1 or self.invert or self.relative

    def part(self, start: int, stop: int) -> str:
        """Of its numbers, those from `start` up to `stop`, as a mapping has them."""
        first, last = self.start + start, self.start + stop
        text = f"{self.column}[{first}]" if last == first + 1 else f"{self.column}[{first}:{last}]"
        options = "".join(f", {key}: true" for key in ("invert", "relative") if getattr(self, key))
        options += f", scale: {self.scale:g}" if self.scale != 1 else ""
        return f'{{column: "{text}"{options}}}' if options else f'"{text}"'

    def take(self, numbers: Numbers) -> np.ndarray:
        """(T, D) float32."""
        values = np.asarray(numbers(self.column)[:, self.start : self.stop], np.float32)
        if self.scale != 1:
            values = values * np.float32(self.scale)
        if self.relative:
            return closedness_after(-values if self.invert else values)
        return 1 - values if self.invert else values


def closedness_after(commands: np.ndarray) -> np.ndarray:
    """(T, D) relative gripper commands (+1 closes, -1 opens) -> (T, D) float32, 0 open or 1 closed.

    Before its first command the gripper is the other way; open where there is none [Octo: rel2abs_gripper_actions]."""
    change = np.where(np.abs(commands) > RELATIVE_THRESHOLD, np.sign(commands), 0)
    steps = np.arange(len(commands))[:, None]
    latest = np.maximum.accumulate(np.where(change != 0, steps, -1))
    first = change[(change != 0).argmax(axis=0), np.arange(change.shape[1])]
    start = np.where(first == 0, -1, -first)
    closed = np.where(latest < 0, start, np.take_along_axis(change, np.maximum(latest, 0), axis=0))
    return np.where(np.isnan(commands), np.nan, (closed + 1) / 2).astype(np.float32)


def check_key(key: Any, known: Collection[str], where: str) -> None:
    if key not in known:
        raise DatasetError(
            f"{where}: no key {key!r}; did you mean {nearest(str(key), known, '')!r}? Known: {', '.join(known)}"
        )


def nearest(name: str, names: Collection[str], otherwise: str) -> str:
    """The first of the most alike."""
    return max(names, key=lambda one: difflib.SequenceMatcher(None, one, name).ratio(), default=otherwise)
