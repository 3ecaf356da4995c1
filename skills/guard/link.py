"""The service's end of its guard: asks before each motion, halts when it is told to, and proves that it still answers.

guard = Guard(robot.stop, "line robot")
motion = Motion(robot, guard)
with guard.stopping():        # no motion from here on
    robot.stop()
guard.reset()
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import logging
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from skills.errors import ServerFault, Stopped, Unavailable
from skills.guard.memory import ALIVE, DUE, LATCHED, MOVING, PULSE, RIGHT, attach, create
from skills.latch import Latch
from skills.security.access import Access
from skills.serving.motion import Permit
from skills.wire.conventions import join_address, split_address

log = logging.getLogger(__name__)

START = "import sys; sys.path[:0] = [sys.argv[1]]; from skills.guard.process import main; main()"
START_TIMEOUT = 20.0  # [s] for the process to come up
FRESH = 1.0  # [s] for which a guard's word holds
LOOK = 0.1  # [s] between two looks whether it still does
ANSWER = 2.0  # [s] for the guard to have kept a Stop or Reset, the disk's time included
SILENT = "the robot's guard does not answer"
GONE = "the robot's guard is gone, so nothing may move; start the robot's service anew"


class Guard(Permit):
    """Nothing moves without it: neither after Stop, nor when the guard is gone or silent."""

    def __init__(
        self,
        stop: Callable[[], None],  # the driver's; called from a thread of its own that waits for no lock of ours
        name: str = "robot",
        *,
        address: str = "127.0.0.1:0",  # where Stop is heard; port 0 takes a free one
        access: Access | None = None,  # who may stop it there; None: whoever reaches the address
        latch: Latch | None = None,
        command: str = "",  # what halts the robot without this process: "module:function" or an http(s) address
        ends: bool = False,  # may it end this process when it does not answer any more?
    ) -> None:
        """Raises Unavailable where there can be no guard, InvalidRequest for what is no address."""
        access, latch, where = access or Access(), latch or Latch(), split_address(address)
        self.tls, self._latch, latched = access.tls is not None, latch, latch.take()
        self._stop = stop
        self.on_halt: Callable[[str], None] = lambda why: None  # called, from another thread, when the guard halted it
        self.on_loss: Callable[[], None] = lambda: None  # called, from another thread, when the guard has died
        self._order, self._numbers, self._answers = threading.Lock(), itertools.count(1), dict[int, Future[str]]()
        self._stops = set[int]()  # that are being carried out, or that the guard has not heard yet
        self._closed, self._gone = False, False
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._unsent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._link, theirs = socket.socketpair()
        descriptor = create()
        self._memory = attach(descriptor)
        with theirs:
            numbers = theirs.fileno(), descriptor
            root = str(Path(__file__).parents[2])
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-c", START, root, *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=numbers,
                start_new_session=True,  # signals from the terminal are for the service
            )
        os.close(descriptor)
        settings = {
            "name": name,
            "pid": os.getpid(),
            "path": [root, *sys.path],
            "address": where,
            "latch": str(latch.file.absolute()) if latch.file else None,
            "latched": latched,
            "command": command,
            "ends": ends,
        }
        self._send(**settings, **_who(access))
        works = self._speak, self._hear, self._work
        speaker, *others = self._threads = [threading.Thread(target=work, name="guard", daemon=True) for work in works]
        speaker.start()
        self.address = self._wait_for_it(address, command)
        for thread in others:
            thread.start()

    # -- the right to move -------------------------------------------------------------------------------------------

    @property
    def stopped(self) -> bool:
        """From Stop until Reset."""
        return bool(self._stops) or self._memory[LATCHED] != 0

    def refusal(self) -> str:
        if self.stopped:
            return "the robot was stopped"
        if self._gone or self._closed:
            return GONE
        if time.monotonic() - self._memory[ALIVE] > FRESH:
            return "the robot's guard does not answer, so nothing may move"
        return "" if self._memory[RIGHT] else "the robot's guard does not let it move; its log says why"

    @property
    def url(self) -> str:
        """POST there stops the robot."""
        return f"http{'s' if self.tls else ''}://{self.address}/stop"

    @property
    def lost(self) -> bool:
        """Has it died?"""
        return self._gone and not self._closed

    def expect(self, due: float) -> None:
        self._memory[DUE] = due

    def moving(self, moving: bool) -> None:
        self._memory[MOVING] = moving

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """No motion from here on; leaving it waits until the guard keeps that. Raises ServerFault where it cannot."""
        number, answer = self._begin_stop()
        try:
            yield
            if why := self._hear_out(answer):
                raise ServerFault(f"the robot is stopped, but will not be when it starts anew: {why}")
        finally:
            answer.add_done_callback(lambda _: self._stops.discard(number))

    def reset(self) -> None:
        """The robot may move again. Raises Stopped while it is being stopped, ServerFault where it stays stopped."""
        with self._order:  # what is decided first is also heard first
            if self._stops:
                raise Stopped("the robot is being stopped at this moment; reset it when that is done")
            answer = self._ask("reset", next(self._numbers))
        why = self._hear_out(answer)
        if why == SILENT:  # it may hear that later, and this at once after it
            number, answer = self._begin_stop()
            answer.add_done_callback(lambda _: self._stops.discard(number))
        if why:
            raise ServerFault(f"the robot stays stopped: {why}")

    def _begin_stop(self) -> tuple[int, Future[str]]:
        with self._order:
            number = next(self._numbers)
            self._stops.add(number)
            return number, self._ask("stop", number)

    # -- the process -------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """From now on the service has to answer: `pulse` is to be called at least each second."""
        self.pulse()
        self._send(watch=True)

    def pulse(self) -> None:
        """The service has answered."""
        self._memory[PULSE] = time.monotonic()

    def later(self, call: Callable[[], None]) -> None:
        """Call it soon, from a thread that is there already."""
        self._events.put(call)

    def renew(self, access: Access) -> None:
        """Whom it lets in from now on."""
        self._send(access=_who(access))

    def close(self, halted: bool = True) -> None:
        """The service ends: nothing moves any more. halted: by its driver; else the guard tries its stop command."""
        self._closed = True
        if halted:
            self._send(bye=True)
        self._unsent.put(None)
        self._events.put(None)
        speaker, listener, _ = self._threads
        speaker.join(FRESH)
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        listener.join(ANSWER)
        self._link.close()
        try:
            self._process.wait(ANSWER)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._latch.close()

    def _wait_for_it(self, address: str, command: str) -> str:
        self._link.settimeout(START_TIMEOUT)
        try:
            said = json.loads(self._link.recv(65536))
        except (OSError, ValueError):
            said = {"failed": f"it did not come up within {START_TIMEOUT:.0f} s"}
        self._link.settimeout(None)
        if "listening" in said:
            return _named(address, *said["listening"])
        self._process.kill()
        self._process.wait()
        self._unsent.put(None)
        self._link.close()
        self._latch.close()
        about = f" (Stop at {address}{f', stop command {command}' if command else ''})"
        raise Unavailable(f"the robot's guard cannot start{about}: {said['failed']}")

    def _send(self, **message: Any) -> None:
        """Without waiting for a guard that reads nothing."""
        self._unsent.put(json.dumps(message).encode() + b"\n")

    def _speak(self) -> None:
        with contextlib.suppress(OSError):  # gone: `_hear` says so
            while (message := self._unsent.get()) is not None:
                self._link.sendall(message)

    def _ask(self, what: str, number: int) -> Future[str]:
        answer = self._answers[number] = Future()
        self._send(**{what: number})
        if self._gone:
            self._told({"done": number, "error": GONE})
        return answer

    def _hear_out(self, answer: Future[str]) -> str:
        """What went wrong."""
        try:
            return answer.result(ANSWER)
        except TimeoutError:
            return SILENT

    def _hear(self) -> None:
        """Takes no lock, so that nothing in this process keeps it from halting the robot."""
        rest, silent, readable = b"", False, select.poll()
        readable.register(self._link, select.POLLIN)
        while True:
            if not readable.poll(1000 * LOOK):
                silent = self._notice(silent)
                continue
            try:
                data = self._link.recv(65536)
            except OSError:
                data = b""
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._told(json.loads(line))
        self._gone = True
        for number in list(self._answers):
            self._told({"done": number, "error": GONE})
        if not self._closed:
            log.critical(GONE)
            self._events.put(lambda: self.on_halt(GONE))
            self._events.put(lambda: self.on_loss())
            self._halt()

    def _told(self, message: dict[str, Any]) -> None:
        match message:
            case {"halt": number, "why": why}:
                if why:
                    self._events.put(lambda: self.on_halt(why))  # first: `stop` may take long, or hang
                if self._halt():
                    self._send(halted=number)
            case {"done": number, "error": why}:
                if answer := self._answers.pop(number, None):
                    answer.set_result(why)

    def _notice(self, silent: bool) -> bool:
        """Is the guard's word too old to move by? The robot is halted once, and refused by whoever moves it."""
        if self._memory[ALIVE] > time.monotonic() - FRESH:
            return False
        if not silent and self._memory[MOVING]:
            log.critical("the robot's guard does not answer; the robot is halted")
            self._events.put(lambda: self.on_halt(self.refusal() or "the robot's guard did not answer"))
            self._halt()
        return True

    def _halt(self) -> bool:
        try:
            self._stop()
            return True
        except BaseException as error:  # else this thread would be gone
            log.critical("the robot could not be stopped", exc_info=error)
            return False

    def _work(self) -> None:
        while (call := self._events.get()) is not None:
            try:
                call()
            except BaseException:
                log.exception("failed after the guard's word")


def _named(asked: str, number: str, port: int) -> str:
    """Where it listens, as its certificate and its service call it; all addresses have no name."""
    unspecified = ipaddress.ip_address(number).is_unspecified
    return join_address(number if unspecified else split_address(asked)[0], port)


def _who(access: Access) -> dict[str, Any]:
    """May stop the robot, as the guard reads it."""
    tls, tokens = access.tls, access.tokens
    pem = None
    if tls is not None:
        parts = {"certificate": tls.certificate, "key": tls.key, "client_ca": tls.client_ca or b""}
        pem = {name: part.decode("ascii", "ignore") for name, part in parts.items()}  # more is in comments only
    holders = None
    if tokens is not None:
        holders = [
            {
                "name": holder.name,
                "sha256": holder.sha256,
                "stops": holder.may("stop"),
                "expires": holder.expires.timestamp() if holder.expires else None,
            }
            for holder in tokens.holders
        ]
    return {"tls": pem, "holders": holders}
