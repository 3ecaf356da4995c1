"""What happened in a run that is over, told again from its folder: the events of `saycan_qt.journey.feed`, in order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from saycan_qt.journey.results import PLAN

AT_FIRST = ("instruction", "world", "seed", "started", "versions", "models", "robot")  # of plan.json


def replay(folder: Path, tell: Callable[[int, Mapping], None], show: Callable[[int, Mapping], None]) -> None:
    """tell(when, event) and show(when, pictures), of the decisions and of the end; when is the wall clock in ns. Raises
    OSError, ValueError and LookupError where plan.json cannot be read; pictures that are not there are left out."""
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    steps, began = plan.pop("steps"), nanoseconds(plan["started"])
    told: list[tuple[int, Callable, Mapping]] = []

    def event(at: int, **key: Any) -> None:
        told.append((at, tell, key))

    at_first = {key: plan[key] for key in AT_FIRST if key in plan}
    event(began, run={"name": folder.name, "folder": str(folder), "plan": at_first})
    for part in plan.get("timeline") or ():
        now = {"phase": part["what"], "text": part["label"], "step": part["step"] or 0}
        event(began + after(part["began"]), now=now)
    begun = {step["step"]: nanoseconds(step["started"]) for step in steps}
    ends = [begun[step["step"]] + after(step["seconds"]) for step in steps]
    over = max([began + after(plan["seconds"]), *ends])  # `started` is that of a whole second
    for step in steps:
        at, times = begun[step["step"]], step["times"]
        looked = at - after(times.get("affordance", 0.0) + times.get("language", 0.0))
        told.append((max(began, looked), show, pictures(folder, step)))
        event(at, step={**step, "outcome": "weighed"})
    questions = plan.get("questions") or []
    for number, question in enumerate(questions):
        at = begun.get(question["step"], over)
        event(at, question=question)
        event(at, facts={"questions": questions[: number + 1]})
    for step, ended in zip(steps, ends, strict=True):
        as_it_ran = {**step, "corrected": ""}  # when a person said otherwise is not known: at its end
        running = {"outcome": "running", "message": "", "seconds": 0.0, "control_steps": 0}
        event(begun[step["step"]], step={**as_it_ran, **running})
        event(ended, step=as_it_ran)
        if step.get("corrected"):
            event(ended, step=step)
    told.append((over, show, pictures(folder, plan.get("final") or {})))
    event(over, facts=plan)
    for at, call, what in sorted(told, key=lambda one: one[0]):  # what is of one time stays in order
        call(at, what)


def pictures(folder: Path, row: Mapping[str, Any]) -> dict[str, bytes]:
    """Of a step, by view; where there is no view, what the policies saw."""
    files = row.get("views") or ({"camera": row["observation"]} if row.get("observation") else {})
    return {view: (folder / file).read_bytes() for view, file in files.items() if (folder / file).is_file()}


def nanoseconds(written: str) -> int:
    """Of "2026-11-27T19:55:55.553+00:00", since the epoch."""
    return round(datetime.fromisoformat(written).timestamp() * 1e6) * 1000


def after(seconds: float) -> int:
    return round(seconds * 1e9)
