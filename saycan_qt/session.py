"""One instruction after the other, with everything loaded once.

    python -m saycan_qt.session                      # then say what you want, line by line
    python -m saycan_qt.session --live               # ... or say it in a browser, and watch
    printf 'bring me a snack\nthrow away the apple\n' | python -m saycan_qt.session --json     # a line in, a line out

The kitchen, or your robot, remembers what was done: the second instruction starts where the first one ended. What is
said while the robot is busy waits for its turn, apart from these words:

    stop       halts the robot now, ends the instruction and drops those that wait; Ctrl-C does so, too
    release    lets a robot that was stopped move again
    quit       ends the session, as the end of the input does, and Ctrl-C while nothing is carried out

Every instruction leaves a folder of results, as `python -m saycan_qt.run` does, in runs/<time>-session. A service that
dies ends the instruction; it is started again, or waited for if it is not ours, and the session goes on.

Exit code 0: every instruction was carried out; 1: one was not; 3: of one, nobody can judge whether it was; 2: a mistake
in use; 130: interrupted.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape

from saycan_qt.journey.config import Parts, SessionConfig, prepared, said
from saycan_qt.journey.display import Display, print_json
from saycan_qt.journey.feed import Feed
from saycan_qt.journey.lifecycle import ENDINGS, INTERRUPTED, MISTAKES, NOT_DONE, SUCCEEDED, UNKNOWN, Run, tell
from saycan_qt.journey.live import Hands
from saycan_qt.journey.person import Person, is_terminal, word_of
from saycan_qt.journey.results import NotWritten, RunFolder, discard, new_folder, slug
from saycan_qt.journey.stack import Stack, in_background
from saycan_qt.language import LanguageError
from saycan_qt.options import parse
from saycan_qt.run import leave, parts_of, watch
from saycan_qt.services.processes import MISTAKE, StartFailed, refuse
from skills.errors import SkillError, Stopped
from skills.robot_folder import RobotFolder
from skills.wire.conventions import plain

AGAIN = 2.0  # [s] between two looks whether a service is back
RELEASED = 5.0  # [s] for a robot to answer `release` before what was said after it is begun
STOP, RELEASE, QUIT = ("stop",), ("release",), ("quit", "exit")
READY = "What shall it do? (release, quit)"
STOPPED, FREE = "the robot is stopped; say `release` when it is safe", "the robot may move again"


class Session:
    """Instructions come from standard input and from the page; one is carried out at a time, by the main thread."""

    def __init__(self, config: SessionConfig, parts: Parts, body: RobotFolder, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.world = "kitchen" if body.is_kitchen else body.name
        self.display, self.feed = Display(Console(stderr=config.json), config.explain, self.world), Feed()
        self.feed.tell(session=True)
        self.person = Person(
            self.display.console,
            config.json,
            config.when_to_ask,
            self.feed,
            self.hear,
            elsewhere=config.live.live,
            apart=(*STOP, *RELEASE, *QUIT),
        )
        self.stack = Stack(config, parts, body, self.display, self.feed, folder, self._died, release="say `release`")
        # Instructions, None: end; and how often the robot had been stopped when they were said
        self._said: queue.SimpleQueue[tuple[str | None, int]] = queue.SimpleQueue()
        self._run: Run | None = None  # that goes on, or went on last
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()  # by what ends a wait for services
        self._releasing: threading.Thread | None = None  # what was told last to let the robot move again
        self._quits = False  # nothing is to be waited for any more
        self._number = 0  # of the instruction
        self._busy = self._ended = False
        self._codes: set[int] = set()
        self.page = watch(config, parts, folder, self.feed, self.display, self._gone)  # raises StartFailed
        if self.page is not None:
            self.page.listen(Hands(self.feed, self.person, self.stack, lambda: self._run, self.hear))

    # -- what is said, from any thread -------------------------------------------------------------------------------

    def hear(self, text: str | None) -> None:
        """A line; None: standard input has ended, where the page may still have something to say."""
        word = None if text is None else word_of(text)
        if word in STOP:
            if self._run is not None:
                self._run.stopped.set()
            told = self.stack.stop()
            if self._run is not None:  # one that was begun meanwhile
                self._run.stopped.set()
            self._say(told or STOPPED)
            self.person.give_up()
        elif word in RELEASE:
            releasing = threading.Thread(target=self._release, daemon=True)
            releasing.start()
            self._releasing = releasing
        elif word in QUIT or (word is None and self.page is None):
            self._queue(None)
            self._quits = True
            self._woken.put(None)
            if word is not None:
                self.person.give_up()
        elif text and word:
            if self._busy:
                self._say(f"“{plain(text.strip())}” waits for its turn")
            self._queue(text)

    def _queue(self, text: str | None) -> None:
        self._said.put((text, self.stack.stops))

    def _release(self) -> None:
        try:
            self.stack.release()
            self._say(FREE)
        except SkillError as error:
            self._say(str(error))

    def _say(self, line: str) -> None:
        self.display.line(escape(line))
        self.feed.tell(line=line)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._busy and self._run is not None:
            self._run.on_signal(number, frame)
            self._ended = self._ended or number != signal.SIGINT
        elif not self._ended:
            self._ended = True
            self._codes.add(INTERRUPTED)
            self._queue(None)
            self._woken.put(None)
        else:
            self.display.console.show_cursor()  # which a spinner hides
            leave(INTERRUPTED)

    def _gone(self) -> None:
        """Nobody says anything in a browser any more."""
        self.page = None
        self.person.alone()

    def _died(self, sentence: str) -> None:
        if self._busy and self._run is not None:
            self._run.died(sentence)
        else:
            self._say(sentence)

    # -- one after the other -----------------------------------------------------------------------------------------

    def go_on(self) -> int:
        """Until it is told to end; the exit code."""
        if (code := self._begin()) is not None:
            return self._close(code)
        self.person.listen()
        while not self._ended:
            self.feed.now("idle", "say what it shall do")
            if is_terminal(sys.stdin) and not self.config.json:
                self.display.line(f"\n[bold]{READY}[/bold]")
            text, stops = self._next()
            if self._releasing is not None and not self._ended:
                self._releasing.join(RELEASED)
            if text is None or self._ended:  # while it waited for its turn
                break
            self._carry_out(text, stops)
        worst = next((code for code in (INTERRUPTED, NOT_DONE, UNKNOWN) if code in self._codes), SUCCEEDED)
        return self._close(worst)

    def _next(self) -> tuple[str | None, int]:
        """As it was queued."""
        while True:
            try:
                text, stops = self._said.get(timeout=AGAIN)
                text = text if text is None else said(text)
                self._mend()
                if text is None or stops == self.stack.stops:
                    return text, stops
                self._refuse(f"“{plain(text)}” was said before the robot was stopped, and is not begun; say it again")
            except queue.Empty:
                self._mend()
                if (stopped := self.stack.news()) is not None:
                    self._say(STOPPED if stopped else FREE)
            except ValueError as error:
                self._refuse(str(error))

    def _refuse(self, why: str) -> None:
        """What was said is not carried out, and leaves no folder."""
        self._say(why)
        self._codes.add(NOT_DONE)
        self._answer({"error": why})

    def _answer(self, content: dict[str, Any]) -> None:
        """A program's line, after which there is nobody to answer where it cannot be written."""
        if self.config.json and not print_json(content):
            self._codes.add(NOT_DONE)
            self._ended = True

    def _begin(self) -> int | None:
        """Everything is loaded before the first instruction is heard; an exit code where that fails."""
        try:
            self._ready()
        except Stopped as error:
            self._say(str(error))
        except (StartFailed, LanguageError, SkillError) as error:
            tell(str(error))
            return MISTAKE if isinstance(error, MISTAKES) or getattr(error, "mistake", False) else NOT_DONE
        return None

    def _ready(self) -> None:
        """As stack.ready, but left alone once the session shall end."""
        done = in_background(self.stack.ready)
        done.add_done_callback(lambda _: self._woken.put(None))
        while not (done.done() or self._ended):
            self._woken.get()
        if done.done():
            done.result()

    def _carry_out(self, instruction: str, stops: int) -> None:
        """stops: how often the robot had been stopped when it was said."""
        seed = self.config.seed if self.config.robot is None else None
        self._number += 1
        path = self.folder / f"{self._number:02d}-{slug(instruction)[:40].strip('-') or 'instruction'}"
        try:
            folder = RunFolder(path, instruction, seed, self.feed, world=self.world)
        except NotWritten as error:
            self._refuse(f"results cannot be written to {path}: {error.strerror}")
            return
        self.display.title(instruction, str(path))
        self._run = Run(instruction, self.config, self.stack, folder, self.person, alone=False)
        self._busy = True
        if self._ended or stops != self.stack.stops:  # meanwhile
            self._run.stopped.set()
        ending = self._run.carry_out()
        self._busy = False
        self._run.wait()
        self._codes.add(ending.code)
        self._answer(folder.content())
        if self.stack.look():
            self._say(STOPPED)
        self._mend()

    def _mend(self) -> None:
        """What died is there again when this returns, or nobody waits for it any more."""
        waiting = False
        while not self._ended and not self.stack.whole:
            try:
                self._ready()
                if self.stack.whole:
                    self._say("it is there again; say what it shall do")
            except Stopped as error:
                self._say(str(error))
            except (StartFailed, SkillError) as error:
                if self._quits:
                    return
                if not waiting:
                    self._say(f"{error}; it is waited for")
                waiting = True
                with suppress(queue.Empty):
                    self._woken.get(timeout=AGAIN)

    def _close(self, code: int) -> int:
        self.stack.give_back()
        self.stack.close(grace=5.0)
        self.feed.now("over", "the session has ended")
        self.feed.close()
        return code


def session(config: SessionConfig, parts: Parts) -> int:
    """The exit code. A thread may still compute afterwards: end with `leave`."""
    try:
        config, body = prepared(config)
    except ValueError as error:
        return refuse(str(error))
    created = config.out is None or not config.out.exists()
    try:
        folder = config.out or new_folder("session")
        folder.mkdir(parents=True, exist_ok=True)
        one = Session(config, parts, body, folder)
    except OSError as error:
        return refuse(f"results cannot be written to {config.out or error.filename}: {error.strerror}")
    except StartFailed as error:
        if not error.mistake:  # the log that it names stays
            tell(str(error))
            return NOT_DONE
        discard(folder, created)
        return refuse(str(error))
    for number in ENDINGS:
        signal.signal(number, one.on_signal)
    code = one.go_on()
    if code == MISTAKE:
        discard(folder, created)
    return code


def main() -> NoReturn:
    config = parse(SessionConfig, "python -m saycan_qt.session", __doc__)
    leave(session(config, parts_of(config)))


if __name__ == "__main__":
    main()
