"""A run as an MCAP file, written while it goes on: for Foxglove, Rerun, PlotJuggler and whatever else reads MCAP.

    /camera/VIEW         what a camera for people sees: foxglove.CompressedImage
    /saycan/instruction  in the person's words
    /saycan/decision     what was chosen, and every candidate with language, affordance and their product
    /saycan/language     of the chosen skill and the next four, to be plotted; so /saycan/affordance and /saycan/product
    /saycan/skill        which skill runs, its control steps and how it ended
    /saycan/belief       where the robot stands, what it holds and where things are, as it decides
    /saycan/phase        loading, thinking, asking, moving
    /robot/state         the robot's own numbers, as it decides
    /log                 lines, choices, outcomes, questions, answers and the verdict: foxglove.Log

Times are the wall clock's. Metadata "run", "versions" and "models"; plan.json is attached as it is at the end. A killed
process leaves a file without an index and without its last second: `mcap recover` makes it whole.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from saycan_qt.journey import messages
from saycan_qt.journey.display import VERDICTS
from saycan_qt.journey.results import PLAN, slug

log = logging.getLogger(__name__)

INSTALL = "pip install 'saycan-qt[mcap]'"
EVERY = 1.0  # [s] between writes to the disk: what a process that is killed loses at most
EVENTS, FRAMES = 10_000, 64  # that wait for a slow disk; of more the oldest are left out
PATIENCE = 10.0  # [s] with a slow disk, at the end
INFO, WARNING, ERROR = (messages.LEVELS.index(level) for level in ("INFO", "WARNING", "ERROR"))
OUTCOMES = {"succeeded": INFO, "failed": WARNING, "canceled": WARNING, "aborted": ERROR}  # of a step that is over
PNG = b"\x89PNG"  # so it begins


def mistake(path: Path) -> str | None:
    """Why no run can be written there, in one line; None: as far as can be seen one can."""
    if importlib.util.find_spec("mcap") is None:
        return f"--mcap needs a package that is not installed here: {INSTALL}"
    if path.exists() or path.is_symlink():
        return f"--mcap {path} is there already; choose a new file, results are never overwritten"
    if not path.parent.is_dir():
        return f"--mcap {path}: there is no folder {path.parent}"
    return None


class McapFile:
    """Raises OSError where the disk does not take it: FileExistsError, too. at: [ns] of the wall clock."""

    def __init__(self, path: Path) -> None:
        from mcap.writer import Writer

        self.path = path
        self._file = path.open("xb")
        self._writer = Writer(self._file)
        self._writer.start()
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, int] = {}
        self._attached = False
        self._folder: Path | None = None  # of the run
        self._began = self._last = 0  # [ns] the run, and its last event
        self._stopped = False  # the robot's latch
        self._forget({})

    def _forget(self, plan: Mapping[str, Any]) -> None:
        self._plan = dict(plan)  # without steps
        self._running: Mapping[str, Any] = {}  # the step that runs, or ran last
        self._decided = (0, "")  # step and skill
        self._outcomes: dict[int, str] = {}  # of the steps
        self._phase, self._answers = "", 0

    def views(self, at: int, pictures: Mapping[str, bytes]) -> None:
        """JPEGs, or PNGs, by view."""
        for view, data in pictures.items():
            kind = "png" if data.startswith(PNG) else "jpeg"
            fields = {"timestamp": stamp(at), "data": data, "format": kind, "frame_id": view}
            self._add(at, f"/camera/{slug(view) or 'view'}", "foxglove.CompressedImage", **fields)

    def event(self, at: int, event: Mapping[str, Any]) -> None:
        """One that `saycan_qt.journey.feed` names."""
        self._last = at
        match event:
            case {"run": run}:
                self._begin(at, run)
            case {"facts": facts}:
                self._facts(at, facts)
            case {"step": step}:
                self._decision(at, step)
                self._skill(at, step)
            case {"now": now}:
                self._now(at, now)
            case {"question": {"reason": reason, "options": options}}:
                self._log(at, f"asked: {reason} ({' / '.join(options)})")
            case {"stopped": stopped} if stopped != self._stopped:
                self._stopped = stopped
                self._log(at, "the robot is stopped" if stopped else "the robot may move again", WARNING)
            case {"line": line}:
                self._log(at, line)

    def flush(self) -> None:
        """What was written until now outlives this process."""
        self._writer.flush()

    def end(self) -> None:
        """The file is whole. One without a run that left plan.json, as after a mistake in use, is taken away."""
        self._attach()
        if self._attached:
            self._writer.finish()
            self._file.close()
        else:
            self.discard()

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    # -- events ------------------------------------------------------------------------------------------------------

    def _begin(self, at: int, run: Mapping[str, Any]) -> None:
        self._attach()
        self._forget(run["plan"])
        self._folder, self._began = Path(run["folder"]), at
        plan = self._plan
        told = {key: plan.get(key) for key in ("instruction", "world", "seed", "started")}
        self._metadata("run", {"name": run["name"], **told})
        self._metadata("versions", plan.get("versions"))
        self._metadata("models", plan.get("models"))
        self._add(at, "/saycan/instruction", "saycan_qt.Instruction", text=plan["instruction"], run=run["name"])
        self._log(at, f"“{plan['instruction']}”")

    def _facts(self, at: int, facts: Mapping[str, Any]) -> None:
        before, self._plan = self._plan, {**self._plan, **facts}
        if self._plan.get("models") != before.get("models"):
            self._metadata("models", self._plan["models"])
        questions = self._plan.get("questions") or []
        for question in questions[self._answers :]:
            answer = question["answer"]
            self._log(at, "not answered" if answer is None else f"answered: {answer}")
        self._answers = len(questions)
        if facts.get("ended") and not before.get("ended"):
            success = self._plan["success"]
            level = {True: INFO, None: WARNING, False: ERROR}[success]
            self._log(at, f"{VERDICTS[success]}: {self._plan['reason']}", level)

    def _decision(self, at: int, step: Mapping[str, Any]) -> None:
        """Once for each skill that was chosen at a step: the person may choose another than the planner."""
        decided = (step["step"], step["skill"])
        if step["outcome"] not in ("weighed", "running") or decided == self._decided:
            return
        self._decided = decided
        rows = [
            {**{key: row.get(key) or "" for key in ("skill", "text", "model")}, **scores(row)}
            for row in step["candidates"]
        ]
        chosen = {key: step[key] for key in ("step", "skill", "text")}
        self._add(at, "/saycan/decision", "saycan_qt.Decision", **chosen, **scores(step), candidates=rows)
        for kind in ("language", "affordance", "product"):
            best = [row[kind] for row in rows[: len(messages.RANKS)]]
            best += [math.nan] * (len(messages.RANKS) - len(best))
            self._add(at, f"/saycan/{kind}", "saycan_qt.Ranked", **dict(zip(messages.RANKS, best, strict=True)))
        objects = [{"name": name, "place": place} for name, place in step["objects"].items()]
        where = {"place": step["place"], "held": step["held"]}
        self._add(at, "/saycan/belief", "saycan_qt.Belief", **where, objects=objects)
        names = dict(enumerate((self._plan.get("robot") or {}).get("state") or ()))
        numbers = [{"name": names.get(i, str(i)), "value": value} for i, value in enumerate(step["state"])]
        self._add(at, "/robot/state", "saycan_qt.State", numbers=numbers)
        self._log(at, f"{step['step']}. {step['text']}: chosen from {len(rows)} skills")

    def _skill(self, at: int, step: Mapping[str, Any]) -> None:
        number, outcome, name = step["step"], step["outcome"], f"{step['step']}. {step['text']}"
        if outcome == "weighed":
            return
        if outcome == "running":
            self._running = step
        told = {key: step[key] for key in ("step", "skill", "text", "outcome", "message", "seconds")}
        corrected = step.get("corrected", "")
        self._add(
            at, "/saycan/skill", "saycan_qt.Skill", **told, control_step=step["control_steps"], corrected=corrected
        )
        if corrected:
            self._log(at, f"{name}: {corrected}, as you say", OUTCOMES[corrected])
        elif outcome in OUTCOMES and outcome != self._outcomes.get(number):
            said = f": {step['message']}" if step["message"] else ""
            self._log(at, f"{name}: {outcome}{said}", OUTCOMES[outcome])
        self._outcomes[number] = outcome

    def _now(self, at: int, now: Mapping[str, Any]) -> None:
        if (phase := now["phase"]) != self._phase:
            self._phase = phase
            told = {"phase": phase, "text": now.get("text", ""), "step": now.get("step") or 0}
            self._add(at, "/saycan/phase", "saycan_qt.Phase", **told)
        if now.get("control_step") and now.get("step") == self._running.get("step"):
            told = {key: self._running[key] for key in ("step", "skill", "text", "outcome")}
            progress = {"control_step": now["control_step"], "of": now.get("of") or 0}
            self._add(at, "/saycan/skill", "saycan_qt.Skill", **told, **progress)

    # -- records -----------------------------------------------------------------------------------------------------

    def _add(self, at: int, topic: str, name: str, /, **fields: Any) -> None:
        data = messages.message_class(name)(**fields).SerializeToString()
        if topic not in self._channels:
            if name not in self._schemas:
                self._schemas[name] = self._writer.register_schema(name, "protobuf", messages.schema(name))
            self._channels[topic] = self._writer.register_channel(topic, "protobuf", self._schemas[name])
        self._writer.add_message(self._channels[topic], at, data, at)

    def _log(self, at: int, text: str, level: int = INFO) -> None:
        self._add(at, "/log", "foxglove.Log", timestamp=stamp(at), level=level, message=text, name="saycan_qt")

    def _metadata(self, name: str, facts: Mapping[str, Any] | None) -> None:
        if facts:
            self._writer.add_metadata(name, {key: "" if value is None else str(value) for key, value in facts.items()})

    def _attach(self) -> None:
        """plan.json of the run that is over, if there was one."""
        with contextlib.suppress(FileNotFoundError):
            if self._folder is not None:
                data = (self._folder / PLAN).read_bytes()
                self._writer.add_attachment(self._began, self._last, PLAN, "application/json", data)
                self._attached = True


class McapWatcher:
    """Writes from a thread of its own. A disk that is full costs the file; one that is slow costs frames, and then the
    oldest events. Either is told."""

    def __init__(self, file: McapFile) -> None:
        self._written = file
        self._waiting = threading.Condition()
        self._events: deque[tuple[int, Callable, Mapping[str, Any]]] = deque(maxlen=EVENTS)
        self._frames: deque[tuple[int, Callable, Mapping[str, Any]]] = deque(maxlen=FRAMES)
        self._left_out = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="mcap", daemon=True)
        self._thread.start()

    def tell(self, event: Mapping[str, Any]) -> None:
        self._put(self._events, self._written.event, event)

    def show(self, views: Mapping[str, bytes]) -> None:
        self._put(self._frames, self._written.views, views)

    def close(self) -> None:
        """Waits until the file is whole, as long as the disk goes on."""
        with self._waiting:
            self._closed = True
            self._waiting.notify()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            log.warning("%s is not whole: the disk is too slow", self._written.path)

    def _put(self, queue: deque, write: Callable, told: Mapping[str, Any]) -> None:
        with self._waiting:
            if not self._closed:
                self._left_out += len(queue) == queue.maxlen
                queue.append((time.time_ns(), write, told))
                self._waiting.notify()

    def _items(self) -> Iterator[tuple[int, Callable, Mapping[str, Any]] | None]:
        """What waits, the oldest first, until it is closed and nothing does; None: nothing came for a while."""
        while True:
            with self._waiting:
                if not (self._events or self._frames or self._closed):
                    self._waiting.wait(EVERY)
                waiting = [queue for queue in (self._events, self._frames) if queue]
                if not waiting and self._closed:
                    return
                found = min(waiting, key=lambda queue: queue[0][0]).popleft() if waiting else None
            yield found

    def _work(self) -> None:
        flushed = time.monotonic()
        try:
            for found in self._items():
                if found is not None:
                    self._write(*found)
                if time.monotonic() - flushed >= EVERY:
                    self._written.flush()
                    flushed = time.monotonic()
            if self._left_out:
                left = f"{self._left_out} pictures or events were left out: the disk was too slow for them"
                log.warning("%s: %s", self._written.path, left)
                self._written.event(time.time_ns(), {"line": left})
            self._written.end()
        except OSError as error:
            log.warning("there is no MCAP file: %s cannot be written: %s", self._written.path, error.strerror or error)
            with self._waiting:
                self._closed = True
                self._events.clear()
                self._frames.clear()
            self._written.discard()

    def _write(self, at: int, write: Callable, told: Mapping[str, Any]) -> None:
        try:
            write(at, told)
        except OSError:
            raise
        except Exception:  # an event that is none; nobody who tells one is to hear of it
            log.exception("%s lacks an event", self._written.path)


def watcher(path: Path) -> McapWatcher:
    """To a new file. Raises OSError."""
    return McapWatcher(McapFile(path))


def scores(row: Mapping[str, Any]) -> dict[str, float]:
    """Of a candidate; what is not known is NaN."""
    values = {name: row.get("score" if name == "product" else name) for name in messages.SCORES}
    return {name: math.nan if value is None else value for name, value in values.items()}


def stamp(at: int) -> dict[str, int]:
    seconds, nanos = divmod(at, 10**9)
    return {"seconds": seconds, "nanos": nanos}
