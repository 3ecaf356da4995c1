"""A gRPC service in a process of its own: started, watched while it runs, ended together with its parent.

The parent holds a `ServiceProcess`; the child calls `announce` and `wait_until_told`. The two are joined by the
child's standard output (where it listens, when it is ready) and its standard input, which closes when the parent dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from skills.security.channel import Credentials, open_channel
from skills.wire.conventions import error_of, plain

log = logging.getLogger(__name__)

SKILL_SERVER, KITCHEN_ROBOT = "skill server", "kitchen robot"
LISTENING = re.compile(r"listening on (?P<address>\S+:\d+)")  # after the service's name
READY = re.compile(r"ready(: (?P<detail>.*))?")
CHILD_FLAG = "--until-stdin-closes"
ERROR = "error: "  # how the one line for people begins
GUARD = "guard of "  # how a line of a robot's guard begins
ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CHECK_EVERY = 1.0  # [s] where a service has no place for another watch of its health
HALT_TIMEOUT = 0.5  # [s] for a service to halt what it moves before it ends in a hurry
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT, MAPPED = 2**28, 2**25  # [bytes] of freed memory that stay; of a block that is asked of the system by itself
MISTAKE = 2  # exit code of a service that was asked for something impossible


class StartFailed(Exception):
    """A service did not come up; `mistake` when what it was asked for was wrong."""

    def __init__(self, message: str, mistake: bool) -> None:
        super().__init__(message)
        self.mistake = mistake


class ServiceProcess:
    """The parent's end. `on_death` is called, from a thread, with a sentence if the service dies after it was ready."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        on_death: Callable[[str], None],
        pass_fds: Sequence[int] = (),  # file descriptors that the child keeps, under the same numbers
    ) -> None:
        self.name = name
        self.address = ""
        self.detail = ""  # what the service said of itself when it was ready
        self.credentials = Credentials()  # what to connect to it with: it is on loopback, and asks for nothing
        self.log = log
        self._on_death = on_death
        self._changed = threading.Condition()
        self._ready = self._closing = False
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [*command, CHILD_FLAG],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                errors="replace",  # what somebody's driver prints may be anything
                start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone, which stops the robot first
                pass_fds=pass_fds,
            )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._reader.start()
        self._waiter.start()

    def wait_for_address(self, timeout: float) -> str:
        self._await(lambda: bool(self.address), timeout, "listen")
        return self.address

    def wait_until_ready(self, timeout: float) -> None:
        self._await(lambda: self._ready, timeout, "become ready")

    def end(self) -> None:
        """SIGTERM, without waiting."""
        with self._changed:
            self._closing = True
        if self._process.poll() is None:
            self._process.terminate()

    def close(self, grace: float = 5.0) -> None:
        """SIGTERM, then after `grace` seconds SIGKILL; returns when the process is gone."""
        self.end()
        if self._process.poll() is None:
            try:
                self._process.wait(grace)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._waiter.join(1)
        self._reader.join(1)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        with contextlib.suppress(FileNotFoundError):  # an interrupted start and its owner may both close it
            if not self.log.stat().st_size:
                self.log.unlink()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                # Other lines may be what somebody's driver prints
                if (match := LISTENING.fullmatch(self._told(line))) is not None:
                    self.address = match["address"]
                elif (match := READY.fullmatch(self._told(line))) is not None:
                    self._ready, self.detail = True, match["detail"] or ""
                self._changed.notify_all()

    def _told(self, line: str) -> str:
        """What the service says of itself by its name; "" where it is not that."""
        found = re.fullmatch(rf"{re.escape(self.name.strip())} (.*)", line.strip())
        return found[1] if found else ""

    def _wait(self) -> None:
        self._process.wait()
        self._reader.join()
        with self._changed:
            self._changed.notify_all()
            unexpected = self._ready and not self._closing
        if unexpected:
            self._on_death(f"the {self.name} (pid {self.pid}, {self.address}) died: {self._how_it_ended()}")

    def _await(self, happened: Callable[[], bool], timeout: float, what: str) -> None:
        with self._changed:
            settled = self._changed.wait_for(lambda: happened() or self._process.poll() is not None, timeout)
        self._reader.join(0 if self._process.poll() is None else 1)
        if happened() and self._process.poll() is None:
            return
        if not settled:
            raise StartFailed(f"the {self.name} did not {what} within {timeout:.0f} s; its log: {self.log}", False)
        code = self._process.wait()
        said = self._logged(ERROR)
        if code == MISTAKE and said:
            raise StartFailed(said[-1].removeprefix(ERROR), True)
        raise StartFailed(f"the {self.name} could not start ({self._how_it_ended()}); its log: {self.log}", False)

    def _logged(self, prefix: str) -> list[str]:
        """Lines that begin so; none where somebody has taken the log away."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return []
        return [line for line in lines if line.startswith(prefix)]

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        told = self._logged(GUARD)
        if code < 0:
            return f"killed by {signal.Signals(-code).name}" + (f" ({told[-1]})" if told else "")
        return f"exit code {code}"


class RemoteService:
    """Somebody else's service: checked once, then watched through its health stream."""

    def __init__(
        self, name: str, address: str, service: str, on_death: Callable[[str], None], credentials: Credentials
    ) -> None:
        self.name, self.address, self.detail, self.credentials = name, address, "", credentials
        self._service = service
        self._on_death = on_death
        self._closing = False
        self._watching = False
        self._channel = open_channel(address, credentials)
        self._stub = health_pb2_grpc.HealthStub(self._channel)

    def wait_for_address(self, timeout: float) -> str:
        return self.address

    def wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        request = health_pb2.HealthCheckRequest(service=self._service)
        while True:
            try:
                status = self._stub.Check(request, timeout=5).status
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    raise StartFailed(f"what answers at {self.address} is not a {self.name}", True) from None
                raise StartFailed(str(error_of(error, f"the {self.name}", self.address)), True) from None
            if status == health_pb2.HealthCheckResponse.SERVING:
                break
            if time.monotonic() > deadline:
                raise StartFailed(f"the {self.name} at {self.address} is not ready after {timeout:.0f} s", False)
            time.sleep(0.2)
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> None:
        self._closing = True

    def close(self, grace: float = 0) -> None:
        self.end()
        self._channel.close()

    def _watch(self) -> None:
        try:
            for status in self._statuses():
                if status != health_pb2.HealthCheckResponse.SERVING:
                    break
            how = "it says that it no longer serves"
        except (grpc.RpcError, ValueError):
            how = "the connection broke"
        if not self._closing:
            self._on_death(f"the {self.name} ({self.address}) is gone: {how}")

    def _statuses(self) -> Iterator[int]:
        """As they change; as they are each second where so many watch that one more is refused."""
        request, shown = health_pb2.HealthCheckRequest(service=self._service), self.credentials.metadata
        try:
            yield from (answer.status for answer in self._stub.Watch(request, metadata=shown))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
        while not self._closing:
            yield self._stub.Check(request, timeout=5, metadata=shown).status
            time.sleep(CHECK_EVERY)


Service = ServiceProcess | RemoteService


def refuse(reason: str) -> int:
    """One line for people; returns the exit code of a mistake in use."""
    print(ERROR + one_line(reason), file=sys.stderr, flush=True)
    return MISTAKE


def one_line(text: str) -> str:
    """For people at a terminal, which it commands nothing."""
    return plain(" ".join(text.split()))


def announce(name: str, address: str) -> None:
    """The child says where it listens; `ready` follows when it can answer."""
    print(f"{name} listening on {address}", flush=True)


def announce_ready(name: str, detail: str) -> None:
    print(f"{name} ready: {detail}", flush=True)


class EndWhenTold:
    """The child's end: SIGTERM, Ctrl-C, the closing of its terminal or, for a service that a command started, the
    parent's death. SIGHUP while the terminal is there, or where there never was one, is no end: `renew` is called.

    Until it is armed, being told ends the process at once: nothing is running yet. Told a second time it does not wait
    for what is still running, and ends by that signal; but first of all `halt` is called, whatever happens.
    """

    def __init__(self, until_stdin_closes: bool) -> None:
        self._told, self._halted, self._hung_up = threading.Event(), threading.Event(), threading.Event()
        # A handler in Python runs in the main thread, once that wakes, in the middle of whatever holds a lock. So the
        # numbers of signals are read from a pipe, by a thread that does nothing else
        self._signals, sent = os.pipe()
        os.set_blocking(sent, False)
        signal.set_wakeup_fd(sent, warn_on_full_buffer=False)
        self._armed = False
        self._halt: Callable[[], None] = lambda: None
        self._renew: Callable[[], object] | None = None
        self._renewable = threading.Event()
        self._terminal = has_terminal()
        for work in (self._heed, self._wait_to_halt, self._wait_to_renew):
            threading.Thread(target=work, name="signals", daemon=True).start()
        for number in ENDINGS:
            signal.signal(number, lambda *_: None)
        if until_stdin_closes:
            threading.Thread(target=self._watch_parent, name="parent", daemon=True).start()

    def arm(self, halt: Callable[[], None] = lambda: None, renew: Callable[[], object] | None = None) -> None:
        """Something runs from now on. Both are called from a thread of their own: `halt` when it shall end at once,
        before anything else; `renew` on SIGHUP, also on one that came before there was a `renew`."""
        self._halt, self._renew, self._armed = halt, renew, True
        if renew is not None:
            self._renewable.set()

    def wait(self) -> None:
        self._armed = True
        self._told.wait()

    def tell(self) -> None:
        """End, as if by a signal."""
        self._told.set()

    def _heed(self) -> None:
        while True:
            [number] = os.read(self._signals, 1)
            if number not in ENDINGS:  # somebody else's
                continue
            if number == signal.SIGHUP and not (self._terminal and not has_terminal()):
                self._hung_up.set()
            elif not self._armed:
                os._exit(0)
            elif self._told.is_set():
                self._halted.wait(HALT_TIMEOUT)
                os._exit(128 + number)
            else:
                self._told.set()

    def _wait_to_halt(self) -> None:
        self._told.wait()
        try:
            self._halt()
        except BaseException:  # a driver may exit: this thread must not
            log.exception("it could not be halted")
        self._halted.set()

    def _wait_to_renew(self) -> None:
        self._renewable.wait()
        assert self._renew is not None, "it is renewable"
        while self._hung_up.wait():
            self._hung_up.clear()
            try:
                self._renew()
            except Exception:
                log.exception("what SIGHUP asks for failed")

    def _watch_parent(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        if not self._armed:
            os._exit(0)
        self._told.set()
        time.sleep(2)  # nobody waits for us any more: do not hang on a long drain
        os._exit(0)


def has_terminal() -> bool:
    """Is there one that this process belongs to, and is it still there?"""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return True
    except OSError:
        return False


def keep_memory() -> None:
    """Blocks of memory that are freed stay with this process, up to KEPT: to be given them by the system anew each time
    took a fifth of scoring. Only glibc can be told."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
