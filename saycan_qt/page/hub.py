"""Between a run, which tells what happens, and the pages, each of which takes it as fast as it can."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import struct
import threading
from typing import Any

from saycan_qt.page.link import Link
from saycan_qt.page.state import Outbox, State
from skills.client import RobotClient
from skills.errors import ServerFault, SkillError
from skills.security.channel import Credentials

log = logging.getLogger(__name__)

MOST_VIEWS, LONGEST_NAME = 16, 200
STOP_TIMEOUT, PREVIEW_TIMEOUT = 5.0, 20.0  # [s]


class Page:
    """One that looks on: what it has not been told, and a bell that rings when that is something."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.outbox = Outbox()
        self._loop, self._bell, self._rung = loop, asyncio.Event(), False

    def ring(self) -> None:
        """From any thread."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(RuntimeError):  # the loop is over
                self._loop.call_soon_threadsafe(self._bell.set)

    async def wait(self) -> None:
        await self._bell.wait()
        self._bell.clear()
        self._rung = False


class Hub:
    """What is known of the run, who looks on, and the robot that is stopped from here."""

    def __init__(self, link: Link | None = None, credentials: Credentials | None = None) -> None:
        """link: where what pages ask for goes to; None: nowhere. credentials: what somebody else's robot is shown."""
        self.state = State()
        self.link = link
        self._credentials = credentials
        self._lock = threading.Lock()
        self._pages: set[Page] = set()
        self._frames: dict[str, bytes] = {}  # the last of each view
        self._robot: tuple[RobotClient, RobotClient] | None = None  # for Stop, and for what takes longer
        self._stop_it = False  # a robot that nobody has named yet

    def follow(self) -> None:
        """Until the run's end of the link is gone."""
        assert self.link is not None, "there is somebody to follow"
        for message in self.link.receive():
            match message:
                case {"view": str(view), "at": float() | int() as at, "bytes": bytes(jpeg)}:
                    self.show(view, at, jpeg)
                case _:
                    self.tell(message)

    def tell(self, event: dict[str, Any]) -> None:
        """From any thread; pages hear of it in order."""
        if isinstance(robot := event.get("robot"), dict):
            self._meet(robot)
        with self._lock:
            told = self.state.apply(event)
            if told is None:
                return
            for page in self._pages:
                page.outbox.add(told)
                page.ring()

    def show(self, view: str, at: float, jpeg: bytes) -> None:
        """at: [s] of time.time(), when it was taken."""
        head = json.dumps({"view": view, "at": at}).encode()
        with self._lock:
            if len(view) > LONGEST_NAME or (view not in self._frames and len(self._frames) >= MOST_VIEWS):
                return
            self._frames[view] = struct.pack(">H", len(head)) + head + jpeg
            for page in self._pages:
                page.outbox.show(view, self._frames[view])
                page.ring()

    def join(self, loop: asyncio.AbstractEventLoop) -> Page:
        page = Page(loop)
        with self._lock:
            for view, frame in self._frames.items():
                page.outbox.show(view, frame)
            self._pages.add(page)
        page.ring()
        return page

    def leave(self, page: Page) -> None:
        with self._lock:
            self._pages.discard(page)

    @property
    def watched(self) -> int:
        return len(self._pages)

    def take(self, page: Page) -> tuple[list[dict[str, Any]], list[bytes]]:
        with self._lock:
            return page.outbox.take(self.state)

    def close(self) -> None:
        with self._lock:
            robot, self._robot = self._robot, None
        for client in robot or ():
            client.close()
        if self.link is not None:
            self.link.close()

    # -- the robot, from threads ---------------------------------------------------------------------------------------

    def _meet(self, robot: dict[str, Any]) -> None:
        address, guard = str(robot.get("address", "")), str(robot.get("guard", ""))
        shown = Credentials() if robot.get("own") is True else self._credentials
        try:
            quick = RobotClient(address, STOP_TIMEOUT, shown, guard)
            slow = RobotClient(address, PREVIEW_TIMEOUT, shown, guard)
        except SkillError as error:
            log.warning("this robot cannot be stopped from the page: %s", error)
            return
        with self._lock:
            old, self._robot = self._robot, (quick, slow)
            stop_it, self._stop_it = self._stop_it, False
        for client in old or ():
            client.close()
        threading.Thread(target=self._prepare, args=(quick, stop_it), name="robot", daemon=True).start()

    def _prepare(self, robot: RobotClient, stop_it: bool) -> None:
        """Connect now, so that Stop need not; or stop it, as somebody asked before it was there."""
        try:
            if stop_it:
                self.stop()
            else:
                robot.info()
        except SkillError as error:
            log.info("%s", error)

    def stop(self) -> str:
        """What came of it, in words; raises SkillError where that is nothing."""
        with self._lock:
            robot = self._robot
            self._stop_it = robot is None
        if robot is None:
            return "no robot is there yet; it is stopped as soon as it is"
        try:
            robot[0].stop()
        except ServerFault:  # it is latched, and may move all the same
            self._tell_stopped()
            raise
        except SkillError:  # whoever began what it does ends that, and tries by a road of its own
            self._ask("stop")
            raise
        self._tell_stopped()
        return "the robot is stopped"

    def _tell_stopped(self) -> None:
        self.tell({"stopped": True})
        self._ask("stopped")

    def _ask(self, do: str) -> None:
        """Of the run."""
        if self.link is not None:
            self.link.send({"do": do})

    def preview(self, skill: str) -> dict[str, Any]:
        """What the skill would do from here: JPEGs by what each shows. Raises SkillError."""
        robot = self._robot
        if robot is None:
            return {"skill": skill, "maps": {}}
        found = robot[1].preview(skill)
        return {"skill": skill, "maps": found.value_maps, "expected_seconds": found.expected_seconds}
