"""The folder of one run: plan.json, rewritten whole after every step, and the pictures it names.

Whatever ends a run, even SIGKILL, plan.json is valid and holds every step that was begun.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from saycan_qt.journey.feed import Feed
from skills.types import Observation, Outcome

PLAN, VIDEO, REPORT, PICTURES = "plan.json", "run.mp4", "report.html", "pictures"
PACKAGES = ("saycan-qt", "torch", "transformers", "grpcio", "mujoco", "numpy")
GOING_ON = "the run is still going on"
SPARE, ROOM = ".spare", 1 << 20  # a file of so many bytes, given up at the end: a verdict fits on a disk that is full


class NotWritten(OSError):
    """The disk does not take a run's results; `strerror` says why."""


@dataclass(frozen=True)
class Candidate:
    """One skill as the planner weighed it at one step."""

    skill: str
    text: str  # what the language model scored
    language: float | None  # probability among the skills that it scored; None: too unlikely to succeed to be scored
    affordance: float  # in [0, 1]: how likely to succeed from here
    score: float  # language x affordance x lowered; the best is chosen
    lowered: float = 1.0  # below 1 for a skill that has just failed or has just been done
    model: str = ""  # who judged the affordance
    raw: float | None = None  # the model's own number, before it was calibrated; None: the planner's own affordance


@dataclass
class Step:
    """One decision and what came of it."""

    step: int  # 1, 2, ...
    skill: str
    text: str
    language: float | None
    affordance: float
    score: float
    lowered: float = 1.0
    raw: float | None = None
    outcome: str = "running"  # then succeeded, failed, canceled or aborted
    message: str = ""  # the outcome in a sentence
    seconds: float = 0.0  # wall clock of the skill
    control_steps: int = 0  # control periods that the skill took
    observation: str = (
        ""  # file: what the policy and the critic saw before the skill, its cameras side by side; "": none
    )
    views: dict[str, str] = field(default_factory=dict)  # camera -> file, for people
    state: list[float] = field(default_factory=list)  # proprioception, the numbers of the robot's embodiment
    place: str = ""
    held: str = ""
    objects: dict[str, str] = field(default_factory=dict)  # the robot's semantic map: object -> place
    times: dict[str, float] = field(default_factory=dict)  # [s] observe, affordance, language, skill
    started: str = ""
    filmed: list[float] | None = None  # [s] into the video, from and to; None: it is not in it
    goal: str = ""  # its id at the robot, and in what is recorded; "": nothing was dispatched
    corrected: str = ""  # how it really ended, as a person said: succeeded or failed; "": nobody said otherwise
    candidates: list[Candidate] = field(default_factory=list)  # the whole library, best first


def vetoes(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """Of one step's candidates, the chosen one first: those that language liked better than it, which affordance vetoed
    (the most sensible first), and those that are as likely to succeed or likelier, which language vetoed (the most
    possible first, then the most sensible). One that was not scored for being infeasible is in neither list."""
    chosen, *others = candidates
    sensible, possible = chosen.language or 0.0, chosen.affordance
    liked = [row for row in others if (row.language or 0.0) > sensible and row.affordance < possible]
    able = [row for row in others if row.affordance >= possible and (row.language or 0.0) < sensible]
    liked.sort(key=lambda row: -(row.language or 0.0))
    able.sort(key=lambda row: (-row.affordance, -(row.language or 0.0)))
    return liked, able


class RunFolder:
    """Collects a run and writes it down. Methods may be called from any thread; after `finish` nothing changes. What
    cannot be written raises NotWritten, and what was there before is there still."""

    def __init__(
        self,
        path: Path,
        instruction: str,
        seed: int | None,
        feed: Feed | None = None,
        made: bool = False,  # was the folder made for this run? Else one that is there stays when it is discarded
        **facts: Any,
    ) -> None:
        self.path, self.feed = path, feed or Feed()
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._finished = False
        self.steps: list[Step] = []
        self.plan: dict[str, Any] = {
            "instruction": instruction,
            "read": None,  # the instruction as the planner read it, where slips of the finger were not what was said
            "world": "kitchen",  # whose check of the goal counts, and what the seed is of
            "seed": seed,
            "success": False,  # null: nobody can tell
            "reason": GOING_ON,
            "judge": None,  # who says so, see saycan_qt.journey.journey.Verdict
            "ended": None,  # done, refused, max steps, nothing possible, stopped, interrupted, died or error
            "questions": [],  # that the planner asked, and what was answered
            "refusal": None,  # why the planner refused, and the nearest things to ask for, see planners.saycan.Refusal
            "started": datetime.now().astimezone().isoformat(timespec="milliseconds"),
            "seconds": 0.0,
            "timeline": [],  # what took from when to when [s]: loading (at the same time), thinking, asking, moving
            "models": {},
            "planner": {},  # its kind and its settings
            "affordances": None,  # "raw" or "calibrated": which of the critic's values the planner multiplied
            "final": {},
            "video": None,
            "report": None,
            "versions": versions(),
            **facts,
        }
        self._created = made or not path.exists()
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        with writing(path / SPARE):
            (path / SPARE).write_bytes(bytes(ROOM))
        self._write()
        self.feed.tell(run={"name": path.name, "folder": str(path.absolute()), "plan": dict(self.plan)})

    def note(self, **facts: Any) -> None:
        """Add or replace facts about the run as a whole; mappings are merged."""
        with self._lock:
            if self._finished:
                return
            for key, value in facts.items():
                old = self.plan.get(key)
                self.plan[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
            self.feed.tell(facts={key: self.plan[key] for key in facts})

    @contextlib.contextmanager
    def spent(self, what: str, label: str = "", step: int | None = None) -> Iterator[None]:
        """What is done within stands in the timeline, also where it breaks off."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.took(what, label, began, time.monotonic(), step)

    def took(self, what: str, label: str, began: float, ended: float, step: int | None = None) -> None:
        """A span of the timeline; of time.monotonic."""
        begins, ends = (round(max(0.0, when - self._began), 3) for when in (began, ended))
        span = {"what": what, "label": label, "step": step, "began": begins, "ended": ends}
        self.note(timeline=[*self.plan["timeline"], span])

    def save_pictures(self, name: str, observation: Observation, jpegs: Mapping[str, bytes]) -> tuple[str, dict]:
        """Write `name`-observation.png (what the policies see, camera beside camera; "" where they see nothing) and a
        JPEG for each view; returns the file names."""
        with writing(self.path / PICTURES):
            (self.path / PICTURES).mkdir(exist_ok=True)
        observed = ""
        if observation.images:
            observed = f"{PICTURES}/{name}-observation.png"
            with writing(self.path / observed):
                side_by_side(list(observation.images.values())).save(self.path / observed)
        views: dict[str, str] = {}
        for view, data in jpegs.items():
            views[view] = f"{PICTURES}/{name}-{slug(view) or len(views)}.jpg"
            with writing(self.path / views[view]):
                (self.path / views[view]).write_bytes(data)
        return observed, views

    def weigh(self, step: Step) -> None:
        """A step that may come next: told, and not written down before it begins."""
        if not self._finished:
            self._show(step, outcome="weighed")

    def _show(self, step: Step, **otherwise: Any) -> None:
        """To those who watch, if there are any: a step has hundreds of candidates."""
        if self.feed.watched:
            self.feed.tell(step={**asdict(step), **otherwise})

    def begin(self, step: Step) -> None:
        with self._lock:
            if not self._finished:
                step.started = datetime.now().astimezone().isoformat(timespec="milliseconds")
                self.steps.append(step)
                self._write()
                self._show(step)

    def end(self, outcome: Outcome, seconds: float, filmed: list[float] | None = None) -> None:
        """Record how the last step begun came out."""
        with self._lock:
            if not self._finished:
                step = self.steps[-1]
                step.outcome, step.message = outcome.status.value, outcome.message
                step.control_steps, step.filmed = outcome.steps, filmed
                step.seconds = step.times["skill"] = round(seconds, 3)
                self._write()
                self._show(step)

    def correct(self, number: int, outcome: str) -> Step | None:
        """A person says how a step really ended, also after the end; None: there is no such step, or it runs."""
        with self._lock:
            step = next((one for one in self.steps if one.step == number and one.outcome != "running"), None)
            if step is not None:
                step.corrected = outcome if outcome != step.outcome else ""
                self._write()
                self._show(step)
            return step

    def finish(self, success: bool | None, reason: str, ended: str, judge: str | None = None) -> None:
        """Write the verdict; a step still running is recorded as aborted. The first call counts."""
        with self._lock:
            if self._finished:
                return
            for step in self.steps:
                if step.outcome == "running":
                    step.outcome, step.message = "aborted", reason
                    self._show(step)
            self.plan.update(success=success, reason=reason, ended=ended, judge=judge)
            try:
                with contextlib.suppress(OSError):  # a disk that can only be read
                    (self.path / SPARE).unlink(missing_ok=True)
                self._write()
            finally:
                self._finished = True
                said = ("success", "reason", "ended", "judge", "seconds")
                self.feed.tell(facts={name: self.plan[name] for name in said})

    @property
    def finished(self) -> bool:
        """Is the verdict written, or can it not be?"""
        return self._finished

    def add_files(self, **files: str) -> None:
        """Name files that are only complete after the end (video, report)."""
        with self._lock:
            self.plan.update(files)
            self._write()
            self.feed.tell(facts=files)

    def discard(self) -> None:
        """Tidy up after a mistake in use."""
        with self._lock:
            self._finished = True
            discard(self.path, self._created)

    def content(self) -> dict[str, Any]:
        return {**self.plan, "steps": [asdict(step) for step in self.steps]}

    def _write(self) -> None:
        if not self._finished:
            self.plan["seconds"] = round(time.monotonic() - self._began, 3)
        write_atomically(self.path / PLAN, plan_text(self.content()))


def discard(path: Path, created: bool) -> None:
    """A folder in which nothing happened is of no use to anybody; one that was not created here was empty before."""
    if created:
        shutil.rmtree(path, ignore_errors=True)
        return
    for found in path.iterdir():
        shutil.rmtree(found) if found.is_dir() else found.unlink()


def plan_text(plan: Mapping[str, Any]) -> str:
    """JSON for people: indented, but one line for each candidate and for the state."""
    rows: list[str] = []
    mark = secrets.token_hex(8)  # which no instruction holds

    def keep(value: Any) -> Any:
        rows.append(json.dumps(value))
        return f"{mark} {len(rows) - 1}"

    steps = [
        {**step, "state": keep(step["state"]), "candidates": [keep(row) for row in step["candidates"]]}
        for step in plan["steps"]
    ]
    text = json.dumps({**plan, "steps": steps}, indent=2, ensure_ascii=False)
    return re.sub(rf'"{mark} (\d+)"', lambda match: rows[int(match[1])], text) + "\n"


def side_by_side(images: Sequence[np.ndarray]) -> Image.Image:
    """Of (H, W, 3) uint8, of any sizes."""
    canvas = Image.new("RGB", (sum(i.shape[1] for i in images), max(i.shape[0] for i in images)))
    left = 0
    for image in images:
        canvas.paste(Image.fromarray(image), (left, 0))
        left += image.shape[1]
    return canvas


def slug(text: str) -> str:
    """Small letters, digits and hyphens, for the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(temporary):
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises NotWritten where the disk does not take it, and leaves no half of a file."""
    try:
        yield
    except OSError as error:
        if not path.is_dir():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise NotWritten(error.errno, error.strerror, str(path)) from None


def new_folder(instruction: str, root: Path = Path("runs")) -> Path:
    """Makes `root`/<time>-<slug>, under a name that nobody has taken, also who begins at the same time. Raises
    NotWritten."""
    words = slug(instruction)[:40].strip("-") or "run"
    base = root / f"{datetime.now():%Y%m%d-%H%M%S}-{words}"
    path, number = base, 2
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if not path.exists():  # its parent is a file
                raise NotWritten(errno.ENOTDIR, "it is no folder", str(root)) from None
        except OSError as error:
            raise NotWritten(error.errno, error.strerror, str(path)) from None
        path, number = base.with_name(f"{base.name}-{number}"), number + 1


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
