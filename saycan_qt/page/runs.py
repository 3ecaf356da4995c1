"""Folders that runs left, which may come from anybody: read with care, and summed up for a list of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saycan_qt.page.lenient import read_json

PLAN = "plan.json"
LARGEST_PLAN = 64 << 20  # [bytes]; 40 steps of 227 skills take 1.5 MB
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".mp4": "video/mp4"}  # of what a page shows
MOST_RUNS, LONGEST_TEXT = 2000, 1000  # in a list


class NoRun(ValueError):
    """This folder is none that can be shown, and why, in a line."""


def read_plan(folder: Path) -> dict[str, Any]:
    """plan.json's content, in which nothing but the kinds of the outermost things is certain. Raises NoRun."""
    path = folder / PLAN
    try:
        if path.exists() and not path.is_file():
            raise NoRun(f"{path} is no file")
        with path.open("rb") as file:
            if own(folder, PLAN) is None:
                raise NoRun(f"{path} lies elsewhere")
            content = file.read(LARGEST_PLAN + 1)
        if len(content) > LARGEST_PLAN:
            raise NoRun(f"{path} is larger than {LARGEST_PLAN >> 20} MiB, which no run leaves")
        plan = read_json(content)
    except NoRun:
        raise
    except FileNotFoundError:
        raise NoRun(f"{folder} holds no {PLAN}; give a folder that `python -m saycan_qt.run` left") from None
    except OSError as error:
        raise NoRun(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise NoRun(f"{path} is damaged: {error}") from None
    if not (isinstance(plan, dict) and isinstance(plan.get("steps"), list) and "instruction" in plan):
        raise NoRun(f"{path} is not what a run leaves: it has no instruction, or no steps")
    if not all(isinstance(step, dict) for step in plan["steps"]):
        raise NoRun(f"{path} is not what a run leaves: one of its steps is none")
    return plan


def inside(folder: Path, name: object) -> Path | None:
    """The picture or video of this name within the folder; None for what is none, is not there, or lies elsewhere."""
    if not isinstance(name, str) or Path(name).suffix not in TYPES:
        return None
    return own(folder, name)


def own(folder: Path, name: str) -> Path | None:
    """The folder's own file of this name; None where there is none, or a link leads elsewhere."""
    try:
        path = (folder / name).resolve()
        return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # of a name with a NUL, of a link to itself
        return None


def pictures(plan: dict[str, Any]) -> Iterator[str]:
    """Names of the files that a page shows of a run, the video left out; the last ones last."""
    for row in (*plan["steps"], plan.get("final")):
        if isinstance(row, dict):
            views = row.get("views")
            shown = list(views.values()) if isinstance(views, dict) and views else [row.get("observation")]
            yield from (name for name in shown if isinstance(name, str) and name)


class Runs:
    """The runs in a folder of them. What was read is read again only when it has changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}

    def find(self, name: str) -> Path | None:
        """The folder of this name, which lies in the root, or in a folder there that is no run itself: a session's."""
        parts = name.split("/")
        if len(parts) > 2 or any(part in ("", ".", "..") or os.sep in part or "\0" in part for part in parts):
            return None
        return self.root / name if (self.root / name / PLAN).is_file() else None

    def list(self) -> list[dict[str, Any]]:
        """Of each run its name, instruction, success, reason, when it started, how long it took, how many steps, and a
        picture; or its name and why it cannot be shown. The newest first."""
        known: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}
        for name in self._names():
            try:
                found = os.stat(self.root / name / PLAN)
                name.encode()
            except (OSError, UnicodeEncodeError):  # no run, or a name that no address has
                continue
            changed = (found.st_mtime_ns, found.st_size)
            before = self._known.get(name)
            row = before[1] if before and before[0] == changed else {**summary(self.root / name), "name": name}
            known[name] = (changed, row)
        self._known = known
        rows = [row for _, row in known.values()]
        return sorted(rows, key=lambda row: (row["started"], row["name"]), reverse=True)[:MOST_RUNS]

    def _names(self) -> Iterator[str]:
        try:
            entries = list(os.scandir(self.root))
        except OSError:  # taken away
            return
        for entry in entries:
            if not entry.is_dir():
                continue
            if os.path.exists(os.path.join(entry.path, PLAN)):
                yield entry.name
                continue
            with contextlib.suppress(OSError):  # one that is nobody else's business
                yield from (f"{entry.name}/{one.name}" for one in os.scandir(entry.path) if one.is_dir())


def summary(folder: Path) -> dict[str, Any]:
    try:
        plan = read_plan(folder)
    except NoRun as error:
        return {"name": folder.name, "started": "", "error": str(error)}
    picture = next((name for name in reversed([*pictures(plan)]) if inside(folder, name)), None)
    told = {
        key: _short(plan.get(key)) for key in ("instruction", "success", "reason", "judge", "seconds", "world", "seed")
    }
    started = plan.get("started")
    own = {"name": folder.name, "started": started[:100] if isinstance(started, str) else ""}
    return {**own, "steps": len(plan["steps"]), "picture": picture, **told}


def _short(value: object) -> object:
    if isinstance(value, str):
        return value[:LONGEST_TEXT]
    return value if isinstance(value, bool | int | float) else None
