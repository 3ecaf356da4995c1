"""What a run's events add up to, for a page that joins late; and what still waits to be told to each page.

Both are bounded, however long a run is and however slowly a page reads.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

MOST_WAITING = 500  # events, in whose place a page is told the whole state
KEPT_CANDIDATES = 100  # steps, the newest, whose candidates a page that joins late is told; plan.json has them all
KEPT_STEPS, KEPT_LINES, KEPT_RUNS = 2000, 200, 200
SINGLE = ("now", "question", "robot", "stopped", "asks", "session")  # of these only the last counts


class State:
    def __init__(self) -> None:
        self.folders: OrderedDict[str, Path] = OrderedDict()  # of the runs so far, by name
        self._run: dict[str, Any] | None = None  # its name and its plan
        self._steps: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._single: dict[str, Any] = {"now": {"phase": "idle", "text": ""}, "question": None, "robot": None}
        self._single |= {"stopped": False, "asks": "never", "session": False}
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._earlier: deque[dict[str, Any]] = deque(maxlen=KEPT_RUNS)

    def apply(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """Returns what pages are told of it; None for what is no event."""
        match event:
            case {"run": {"name": str(name), "folder": str(folder), "plan": dict(plan)}}:
                if self._run is not None:
                    told = {key: self._run["plan"].get(key) for key in ("instruction", "success", "reason", "judge")}
                    self._earlier.append({"name": self._run["name"], **told})
                self.folders[name] = Path(folder)
                if len(self.folders) > KEPT_RUNS:
                    self.folders.popitem(last=False)
                self._run = {"name": name, "plan": dict(plan)}
                self._steps.clear()
                self._single["question"] = None
                return {"run": {}}  # which is told as the whole state
            case {"facts": dict(facts)}:
                if self._run is not None:
                    self._run["plan"] |= facts
            case {"step": {"step": int(number)} as step}:
                self._steps[number] = step
                if len(self._steps) > KEPT_STEPS:
                    self._steps.popitem(last=False)
                if old := self._steps.get(number - KEPT_CANDIDATES):
                    self._steps[number - KEPT_CANDIDATES] = {**old, "candidates": []}
            case {"line": str(line)}:
                self._lines.append(line[:2000])
            case _:
                key = next(iter(event), "")
                if key not in SINGLE:
                    return None
                self._single[key] = event[key]
                return {key: event[key]}
        return event

    @property
    def stopped(self) -> bool:
        return bool(self._single["stopped"])

    def whole(self) -> dict[str, Any]:
        run = None
        if self._run is not None:  # copies, as it goes on while they are written
            run = {"name": self._run["name"], "plan": dict(self._run["plan"]), "steps": list(self._steps.values())}
        return {"run": run, "lines": list(self._lines), "earlier": list(self._earlier), **self._single}


class Outbox:
    """What one page has not been told yet. At first that is the whole state."""

    def __init__(self) -> None:
        self.whole = True
        self._events: dict[object, dict[str, Any]] = {}
        self._frames: dict[str, bytes] = {}  # by view

    def __bool__(self) -> bool:
        return bool(self.whole or self._events or self._frames)

    def add(self, event: dict[str, Any]) -> None:
        """In the place of what it makes old."""
        if self.whole:
            return
        kind = next(iter(event))
        key: object = kind if kind in SINGLE else object()
        if kind == "step":
            key = ("step", event["step"]["step"])
        self._events.pop(key, None)
        self._events[key] = event
        if kind == "run" or len(self._events) > MOST_WAITING:
            self.whole = True
            self._events.clear()

    def show(self, view: str, frame: bytes) -> None:
        """In the place of what still waits of the same view."""
        self._frames[view] = frame

    def take(self, state: State) -> tuple[list[dict[str, Any]], list[bytes]]:
        """Events and frames, which wait no longer."""
        events = [{"state": state.whole()}] if self.whole else list(self._events.values())
        frames = list(self._frames.values())
        self.whole = False
        self._events.clear()
        self._frames.clear()
        return events, frames
