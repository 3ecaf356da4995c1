"""What happens in a run, as it is told to whoever watches: the live page, a file for a viewer.

An event is a JSON object with one key:

    run        {"name", "folder", "plan"}: a run begins; of plan.json all but the steps
    facts      these keys of the plan have these values now
    step       a step of plan.json, added or replaced by its number; "weighed" is the outcome of one not begun yet
    now        {"phase": "idle", "loading", "thinking", "asking", "moving" or "over", "text", and where they apply
               "step", "control_step", "of"}
    question   {"id", "instruction", "reason", "options", "confidence", "skills", "other_words"}, or null when it is
               answered
    robot      {"name", "address", "guard", "own"}: where it hears, where its guard does ("": none), and whether the run
               started it, which is on loopback then and asks for nothing
    stopped    is the robot's latch set?
    asks       "never", "when-unsure" or "always": when the person is asked
    line       one line for people
    session    true: further instructions are taken
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

KEPT = ("session", "run", "robot", "stopped", "asks")  # told to whoever begins to watch later
Phase = Literal["idle", "loading", "thinking", "asking", "moving", "over"]


class Watcher(Protocol):
    """Somebody who watches. Called from any thread, one call after the other; returns at once, and raises nothing."""

    def tell(self, event: Mapping[str, Any]) -> None: ...

    def show(self, views: Mapping[str, bytes]) -> None:
        """JPEGs by view, as they come."""

    def close(self) -> None:
        """Nothing more comes."""


class Feed:
    """Tells all who watch."""

    def __init__(self, watchers: Sequence[Watcher] = ()) -> None:
        self._watchers = list(watchers)
        self._kept: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    @property
    def watched(self) -> bool:
        return bool(self._watchers)

    def add(self, watcher: Watcher) -> None:
        with self._lock:
            self._watchers.append(watcher)
            for event in self._kept.values():
                watcher.tell(event)

    def tell(self, **event: Any) -> None:
        """One event, such as tell(stopped=True)."""
        (key,) = event
        with self._lock:
            if key in KEPT:
                self._kept[key] = event
            for watcher in self._watchers:
                watcher.tell(event)

    def now(self, phase: Phase, text: str = "", **where: int) -> None:
        self.tell(now={"phase": phase, "text": text, **where})

    def show(self, views: Mapping[str, bytes]) -> None:
        with self._lock:
            for watcher in self._watchers if views else ():
                watcher.show(views)

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.close()
