"""One instruction from its start to its end: the work in a thread, deaths and signals, what is written down."""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import Literal

from planners.saycan import TooLong
from planners.servers.remote import RemoteError
from saycan_qt.journey.config import Options
from saycan_qt.journey.display import VERDICTS
from saycan_qt.journey.journey import Journey, Over
from saycan_qt.journey.person import Left, Person
from saycan_qt.journey.recording import Recorder
from saycan_qt.journey.report import write_report
from saycan_qt.journey.results import REPORT, VIDEO, NotWritten, RunFolder
from saycan_qt.journey.stack import Stack
from saycan_qt.language import LanguageError
from saycan_qt.page.runs import NoRun
from saycan_qt.services.processes import ERROR, MISTAKE, StartFailed, one_line
from skills.errors import (
    AccessError,
    PermissionDenied,
    ServerFault,
    SkillError,
    Stopped,
    Unauthenticated,
    UnknownSkill,
)

log = logging.getLogger(__name__)

SUCCEEDED, NOT_DONE, UNKNOWN, INTERRUPTED = 0, 1, 3, 130  # exit codes, besides MISTAKE
CODES = {True: SUCCEEDED, False: NOT_DONE, None: UNKNOWN}  # of what came of it
MISTAKES = (LanguageError, AccessError, Unauthenticated, PermissionDenied, UnknownSkill)
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ending:
    """Why a run is over."""

    code: int
    ended: str  # for plan.json: done, refused, max steps, nothing possible, stopped, interrupted, died, error
    reason: str
    judge: str | None = None  # None: it did not come to its end

    @property
    def success(self) -> bool | None:
        return {SUCCEEDED: True, UNKNOWN: None}.get(self.code, False)


class Run:
    """One run. The work is done in a thread; the main thread waits for its end, a death or a signal, then tidies up.

    So a run ends at once, whatever the work is waiting for: a robot, a server, a language model that computes.
    """

    def __init__(
        self,
        instruction: str,
        config: Options,
        stack: Stack,
        folder: RunFolder,
        person: Person,
        alone: bool,  # nothing comes after it: the stack ends with it
    ) -> None:
        self.instruction, self.config, self.stack, self.folder = instruction, config, stack, folder
        self.person, self.alone, self.display, self.feed = person, alone, stack.display, folder.feed
        self.journey: Journey | None = None
        self.over = threading.Event()
        self.stopped = threading.Event()  # by a person: it ends as "stopped", also where the robot is released at once
        self._endings: queue.SimpleQueue[Ending] = queue.SimpleQueue()
        self._ending: Ending | None = None  # once it is over
        self._told_again = self._hurried = False  # to end, when it was over: once, and more than once
        self._recorder = Recorder(folder.path / VIDEO)
        self._worker = threading.Thread(target=self._work, name="run", daemon=True)

    def carry_out(self) -> Ending:
        self.person.stay()
        self._worker.start()
        ending = self._endings.get()
        if ending.ended == "error":  # a broken call is often the first sign of a death: rather say who died
            with suppress(queue.Empty):
                other = self._endings.get(timeout=0.5)
                ending = other if other.ended == "died" else ending
        self._ending = ending
        self._close(ending)
        return ending

    def wait(self) -> None:
        """Until nothing of it computes any more, some seconds after its end."""
        self._worker.join()

    def correct(self, number: int, outcome: Literal["succeeded", "failed"]) -> str:
        """A person saw how a step really ended; it is kept beside what is recorded of it. Why not, else ""."""
        try:
            step = self.journey.correct(number, outcome) if self.journey else None
            if step is not None and self.folder.plan["report"]:
                write_report(self.folder.path)
        except (OSError, NoRun) as error:
            return f"what you say is not kept in {self.folder.path}: {getattr(error, 'strerror', None) or error}"
        if step is None:
            return f"there is no step {number}, or it has not ended yet"
        if self.config.record is not None and step.goal:
            from saycan_qt.data import corrections  # brings pyarrow

            try:
                corrections.add(self.config.record, step.goal, outcome == "succeeded")
            except OSError as error:
                return f"what you say is not kept in {self.config.record}: {error.strerror}"
        return ""

    # -- the end -----------------------------------------------------------------------------------------------------

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if (ending := self._ending) is not None:  # it is over, and how it ended stays true
            if self._told_again or ending.ended == "interrupted":  # wait for no more: services end with it
                if self.folder.finished:
                    os._exit(ending.code)
                self._hurried = True
            self._told_again = True
            return
        name = signal.Signals(number).name
        self._endings.put(Ending(INTERRUPTED, "interrupted", f"interrupted by {name}"))

    def died(self, sentence: str) -> None:
        self._endings.put(Ending(NOT_DONE, "died", sentence))

    def _close(self, ending: Ending) -> None:
        self.over.set()
        self.person.leave()
        orderly = ending.judge is not None
        self.display.clear()
        if not orderly:
            if self.alone or ending.ended == "interrupted":
                there, fault = self.stack.robot is not None, self.stack.stop()
                if ending.ended == "interrupted":
                    how = f"; {fault}" if fault and there else ", the robot was stopped"
                    ending = replace(ending, reason=ending.reason + how)
            elif self.journey is not None:
                self.journey.leave()
            tell(ending.reason)
            if self.alone:
                self.stack.end()
        if self.alone:
            self.stack.give_back()
        try:
            self.folder.finish(ending.success, ending.reason, ending.ended, ending.judge)
        except NotWritten as error:
            tell(f"plan.json tells nothing of the end, which cannot be written: {error.strerror}")
        if self._hurried:
            os._exit(ending.code)
        if self._recorder.frames:
            self._recorder.add({}, VERDICTS[ending.success].lower(), ending.reason, seconds=2.0)
        self._recorder.close()
        if self.alone:
            self.stack.close(grace=5.0 if orderly else 0.3)
        if ending.code == MISTAKE:
            self.folder.discard()
            return
        files = {}
        try:
            if self._recorder.frames:
                self.folder.add_files(video=VIDEO)
                files["video"] = VIDEO
            write_report(self.folder.path)
            self.folder.add_files(report=REPORT)
            files["report"] = REPORT
        except (OSError, NoRun) as error:
            tell(f"results are missing in {self.folder.path}: {getattr(error, 'strerror', None) or error}")
        self.display.verdict(self.folder.steps, ending.success, ending.reason, ending.judge)
        self.display.files(str(self.folder.path), ["plan.json", *files.values()])
        self.feed.now("over", VERDICTS[ending.success])

    # -- the work, in a thread ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        mistake = MISTAKE if self.alone else NOT_DONE  # in a session everything was there once
        try:
            self._endings.put(self._travel())
        except (Over, Left):
            pass
        except StartFailed as error:
            self._endings.put(Ending(mistake if error.mistake else NOT_DONE, "error", str(error)))
        except Stopped as error:
            by_you = self.stopped.is_set()
            found = ("stopped", "it was stopped by you before anything was done", "person")
            self._endings.put(Ending(NOT_DONE, *found) if by_you else Ending(NOT_DONE, "error", str(error)))
        except ServerFault as error:
            self._endings.put(Ending(NOT_DONE, "error", f"{error} (logs: {self.stack.logs}/*.log)"))
        except MISTAKES as error:  # at the first step, or later
            self._endings.put(Ending(NOT_DONE if self.folder.steps else mistake, "error", str(error)))
        except SkillError as error:
            self._endings.put(Ending(NOT_DONE, "error", str(error)))
        except NotWritten as error:
            reason = f"the results cannot be written to {self.folder.path}: {error.strerror}"
            self._endings.put(Ending(NOT_DONE, "error", reason))
        except RemoteError as error:  # a language server, or a chat model
            self._endings.put(Ending(NOT_DONE, "error", str(error)))
        except TooLong as error:
            reason = f"{error}: say it in fewer words, or choose a language model that reads more"
            self._endings.put(Ending(NOT_DONE, "error", reason))
        except SystemExit:  # so rich tells that the pipe it writes to was closed
            self._endings.put(Ending(NOT_DONE, "error", "nobody reads the output any more"))
        except Exception as error:
            if not self.over.is_set():  # after the end everything may break, and nobody needs to know
                log.exception("the run broke")
            self._endings.put(Ending(NOT_DONE, "error", f"the run broke: {type(error).__name__}: {error}"))

    def _travel(self) -> Ending:
        stack, known = self.stack, len(self.stack.loading)
        stack.ready()
        for name, began, ended in stack.loading[known:]:
            self.folder.took("loading", name, began, ended)
        self.folder.note(**stack.facts)
        assert stack.robot is not None, "the stack is ready"
        self._recorder.begin(stack.views, stack.info.control_hz)
        self.journey = Journey(
            stack.skills,
            stack.robot,
            stack.planner,
            self.folder,
            self._recorder,
            self.display,
            stack.info.max_steps,
            stack.language.unsure,
            self.person,
            self.over,
            self.stopped,
        )
        found = self.journey.travel(self.instruction, self.config.max_steps)
        return Ending(CODES[found.success], found.ended, found.reason, found.judge)


def tell(reason: str) -> None:
    """In one line, which nobody may read."""
    with suppress(OSError):
        print(ERROR + one_line(reason), file=sys.stderr, flush=True)
