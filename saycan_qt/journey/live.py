"""The live page: a process of its own that is told what happens, and tells what is said in browsers.

It answers while this process is busy with a language model, and stops the robot by itself.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from saycan_qt.journey.config import Options, Parts
from saycan_qt.journey.feed import Feed
from saycan_qt.journey.lifecycle import Run
from saycan_qt.journey.person import Person
from saycan_qt.journey.stack import Stack
from saycan_qt.page.link import Link
from saycan_qt.services.processes import ServiceProcess
from skills.errors import SkillError

log = logging.getLogger(__name__)

PAGE = "page"
START_TIMEOUT = 30.0  # [s]


class Page:
    """The parent's end; a Watcher."""

    def __init__(self, config: Options, parts: Parts, logs: Path, died: Callable[[str], None]) -> None:
        """Raises StartFailed, for instance for a port that is taken."""
        mine, its = socket.socketpair()
        live = config.live
        command = (*parts.page, "--feed", str(its.fileno()), "--host", live.live_host, "--port", str(live.live_port))
        for option in ("certificate", "key", "tokens"):
            if (file := getattr(live, f"live_{option}")) is not None:
                command += (f"--{option}", str(file))
        command += ("--name", *live.live_name) if live.live_name else ()
        command += config.credentials.flags()
        with its:
            self._process = ServiceProcess(PAGE, command, logs / "page.log", died, pass_fds=(its.fileno(),))
        self._link = Link(mine)
        try:
            self._process.wait_until_ready(START_TIMEOUT)
        except BaseException:
            self.close()
            raise
        self.url = self._process.detail

    def tell(self, event: Mapping[str, Any]) -> None:
        self._link.send(event)

    def show(self, views: Mapping[str, bytes]) -> None:
        for view, jpeg in views.items():
            self._link.send({"view": view, "at": time.time()}, jpeg)

    def listen(self, hear: Callable[[dict[str, Any]], None]) -> None:
        """What browsers say, from a thread."""

        def listen() -> None:
            for command in self._link.receive():
                try:
                    hear(command)
                except Exception:
                    log.exception("%r could not be done", command)

        threading.Thread(target=listen, name="page", daemon=True).start()

    def close(self) -> None:
        """What was told before is there; browsers show it still."""
        self._link.close()
        self._process.close(grace=1.0)


class Hands:
    """What people do in a browser, done here; stopping the robot apart, which the page's process does itself."""

    def __init__(
        self,
        feed: Feed,
        person: Person,
        stack: Stack,
        current: Callable[[], Run | None],  # the one that goes on, or went on last
        instruct: Callable[[str], None] | None = None,  # None: there is one instruction
    ) -> None:
        self._feed, self._person, self._stack = feed, person, stack
        self._current, self._instruct = current, instruct
        feed.tell(asks=person.when)

    def __call__(self, command: Mapping[str, Any]) -> None:
        match command:
            case {"do": "answer", "id": int(number), "text": str(text)}:
                if not self._person.answer(number, text):
                    self._feed.tell(line="that question is not open any more")
            case {"do": "asks", "when": "never" | "when-unsure" | "always" as when}:
                self._person.when = when
                self._feed.tell(asks=when)
            case {"do": "judge", "step": int(number), "outcome": "succeeded" | "failed" as outcome}:
                run = self._current()
                if problem := run.correct(number, outcome) if run else "nothing was done yet":
                    self._feed.tell(line=problem)
            case {"do": "stopped" | "stop" as do}:  # stop: the page's process could not
                if (run := self._current()) is not None:
                    run.stopped.set()
                if do == "stopped":
                    self._stack.halted()
                elif told := self._stack.stop():
                    self._feed.tell(line=told)
                if (begun := self._current()) is not None:
                    begun.stopped.set()
                self._person.give_up()
            case {"do": "release"}:
                try:
                    self._stack.release()
                except SkillError as error:
                    self._feed.tell(line=str(error))
            case {"do": "instruct", "text": str(text)} if self._instruct is not None:
                self._instruct(text)
            case _:
                log.warning("the page asks for what cannot be done here: %s", str(command)[:200])
