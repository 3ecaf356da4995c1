"""The guard process: neither gRPC nor numpy, no thread and no interpreter of the service's; it ends with the service.

It is started by `skills.guard.link`, which says there what is said here. Over the link, JSON lines:

    service -> guard   the settings, once; {"watch"}; {"stop": N}; {"reset": N}; {"halted": N}; {"access"}; {"bye"}
    guard -> service   {"listening": HOST:PORT} or {"failed": why}; {"halt": N, "why"}; {"done": N, "error"}

Over HTTP/1.1: `POST /stop` halts the robot and refuses every motion until it is reset through its service;
`GET /healthz` says whether the guard is there. With tokens, Stop takes `Authorization: Bearer TOKEN`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import importlib
import json
import os
import re
import resource
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from skills.guard.memory import ALIVE, DUE, LATCHED, PULSE, RIGHT, attach
from skills.latch import make, remove

TICK = 0.02  # [s] between two looks at the memory
DEAF = 1.0  # [s] without a pulse after which a service is deaf
LATE = 0.1  # [s] after a motion's end at which the service itself has not halted the robot
ASLEEP = 0.2  # [s] that one look counts at most: for what is beyond, this process was frozen or starved itself
CONFIRM = 0.1  # [s] that an answer to Stop waits for the driver's word
CONNECTIONS = 256  # at one time; beyond, the oldest one that has said nothing is closed
PATIENCE = 1.0  # [s] for a request to arrive
BODY = 65_536  # [bytes] of a request's body, which is not read
HEAD = 8_192  # [bytes] of its head
SELDOM = 5.0  # [s] between two lines about refused callers
COMMAND_TIMEOUT = 0.5  # [s] for a stop command over HTTP
LAST = 1.0  # [s] for the stop command, and for what is said, when the service is gone
UNSAID = 100  # lines that wait for whoever reads the service's errors; beyond, they are lost

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class GuardProcess:
    """One robot's guard."""

    def __init__(self, settings: dict[str, Any], memory: memoryview[float]) -> None:
        self.name, self.pid, self.ends = settings["name"], settings["pid"], settings["ends"]
        self.latch = Path(settings["latch"]) if settings["latch"] else None
        self.holders, self.command = settings["holders"], stop_command(settings["command"])
        self.memory, self.tls = memory, context_of(settings["tls"])
        # What may wait for long waits in threads of its own. One for the disk: what is asked for last is done last
        self.disk, self.commands, self.voice = ThreadPoolExecutor(1), ThreadPoolExecutor(4), ThreadPoolExecutor(1)
        for threads, count in ((self.disk, 1), (self.commands, 4), (self.voice, 1)):  # later there may be no new ones
            wait([threads.submit(time.sleep, 0.001) for _ in range(count)])
        self.kept: Future[None] | None = None  # of the latch on disk, since the last Reset
        self.unsaid: set[Future[int]] = set()
        self.refusals, self.told_of_refusals = 0, 0.0  # not said yet; when last said
        self.stopping, self.halts, self.watching, self.orderly, self.deaf = 0, 0, False, False, False
        self.confirmed: dict[int, asyncio.Event] = {}  # of halts that the service was told of
        self.open: dict[asyncio.StreamWriter, float] = {}  # connections that have said nothing yet
        self.service: asyncio.StreamWriter  # the link
        memory[ALIVE], memory[LATCHED] = time.monotonic(), float(settings["latched"])
        memory[RIGHT] = 1 - memory[LATCHED]

    async def run(self, reader: asyncio.StreamReader, service: asyncio.StreamWriter, listener: socket.socket) -> None:
        """Until the service is gone."""
        self.service = service
        server = await asyncio.start_server(
            self.serve,
            sock=listener,
            limit=HEAD,
            backlog=CONNECTIONS,
            ssl=self.tls,
            ssl_handshake_timeout=PATIENCE if self.tls else None,
        )
        self.tell(listening=listener.getsockname()[:2])
        ticking = asyncio.create_task(self.tick())
        with contextlib.suppress(ConnectionError, ValueError):  # it was killed before it had read, or sent, all
            while line := await reader.readline():
                await self.heard(json.loads(line))
        self.memory[RIGHT] = 0
        ticking.cancel()
        server.close()  # the next service's guard may want the address
        if not self.orderly:
            self.say("its service is gone; the robot may not move")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST):
                    await self.by_command()
        wait(self.unsaid, LAST)
        os._exit(0)  # threads that hang are not waited for

    def tell(self, **message: Any) -> None:
        self.service.write(json.dumps(message).encode() + b"\n")

    def say(self, what: str) -> None:
        """To whoever reads the service's errors, which may be nobody: so it is not waited for."""
        self.unsaid = {line for line in self.unsaid if not line.done()}
        if len(self.unsaid) < UNSAID:
            self.unsaid.add(self.voice.submit(os.write, 2, f"guard of the {self.name}: {what}\n".encode()))

    async def heard(self, message: dict[str, Any]) -> None:
        match message:
            case {"stop": number}:
                self.set_latch()
                self.background(self.answer_stop(number))
            case {"reset": number}:
                self.background(self.answer_reset(number))
            case {"halted": number}:
                if number in self.confirmed:
                    self.confirmed[number].set()
            case {"watch": _}:
                self.watching = True
            case {"access": {"holders": holders, "tls": tls}}:
                self.holders = holders
                if self.tls and tls:
                    self.renew(self.tls, tls)
            case {"bye": _}:
                self.orderly = True

    def renew(self, context: ssl.SSLContext, tls: dict[str, str]) -> None:
        """To a context's authorities some can be added, and none be taken back: so another one is used."""
        try:
            renewed = context_of(tls)
        except Exception as error:  # the folder for temporary files is full, say
            self.say(f"its certificate stays as it was: {error}")
        else:
            context.sni_callback = lambda connection, host, _: setattr(connection, "context", renewed)

    def background(self, work: Any) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self.over)

    def over(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self.say(f"failed: {error!r}")

    # -- halting -----------------------------------------------------------------------------------------------------

    def set_latch(self) -> None:
        """At once: a Reset that was heard before, and is not done, releases nothing."""
        self.memory[LATCHED], self.memory[RIGHT] = 1, 0
        self.stopping += 1

    async def answer_stop(self, number: int) -> None:
        """The service halts the robot itself; the guard keeps that it was stopped."""
        try:
            _, error = await asyncio.gather(self.by_command(), self.keep())
        finally:
            self.stopping -= 1
        self.tell(done=number, error=error)

    async def answer_reset(self, number: int) -> None:
        if self.stopping:
            self.tell(done=number, error="it is being stopped at this moment; reset it when that is done")
            return
        try:
            if self.latch is not None:
                self.kept = None
                await asyncio.wrap_future(self.disk.submit(remove, self.latch))
        except OSError as error:
            self.tell(done=number, error=f"its latch cannot be removed: {error.strerror}")
            return
        if not self.stopping:
            self.memory[LATCHED], self.memory[RIGHT] = 0, float(not self.deaf)
        self.tell(done=number, error="it was stopped again" if self.stopping else "")

    async def stop(self, why: str) -> bool:
        """From outside the service. Has the driver, or its stop command, said that the robot is halted?"""
        self.set_latch()
        try:
            return await self.halt(why)
        finally:
            error = await self.keep()
            self.stopping -= 1
            if error:
                self.say(f"the robot is stopped, but will not be when it starts anew: {error}")

    async def halt(self, why: str, patience: float = CONFIRM) -> bool:
        self.halts += 1
        number, event = self.halts, asyncio.Event()
        self.confirmed[number] = event
        self.tell(halt=number, why=why)
        ways = [event.wait()] if self.command is None else [event.wait(), self.by_command()]
        done, late = await asyncio.wait([asyncio.create_task(way) for way in ways], timeout=patience)
        for task in late:
            task.cancel()
        del self.confirmed[number]
        return any(task.result() for task in done)

    async def by_command(self) -> bool:
        """Halt the robot without its service, where there is a command for it."""
        if self.command is None:
            return False
        try:
            await asyncio.wrap_future(self.commands.submit(self.command))
            return True
        except (Exception, SystemExit) as error:  # somebody else's code, or network
            self.say(f"the stop command failed: {type(error).__name__}: {error}")
            return False

    async def keep(self) -> str:
        """The latch on disk; what went wrong. Stops that come at the same time wait for the disk once."""
        try:
            if self.latch is not None:
                if self.kept is None or self.kept.done():
                    self.kept = self.disk.submit(make, self.latch)
                await asyncio.shield(asyncio.wrap_future(self.kept))
            return ""
        except OSError as error:
            return str(error.strerror)

    # -- watching ----------------------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Others are judged by the time that this process was awake for, lest it blame them for what held it up: a
        machine that was suspended, say. With no more than a look now and then it still judges, only later."""
        awake = heard = passed = 0.0  # [s] of that time: now, when the last pulse came, when the next action was due
        pulse = due = told = 0.0  # as read; of which motion the robot was halted
        looked = time.monotonic()
        while True:
            now = time.monotonic()
            awake += min(now - looked, ASLEEP)
            looked = self.memory[ALIVE] = now
            if self.memory[PULSE] != pulse or not self.watching:
                pulse, heard = self.memory[PULSE], awake
            if self.watching:
                await self.listen(awake - heard)
            if self.memory[DUE] != due or due > now:
                due, passed = self.memory[DUE], awake
            if due and due != told and awake - passed > LATE:
                told = due
                self.say("the robot was to be halted by now, and the service has not halted it")
                self.background(self.halt(""))  # as the service would have: the skill goes on with the next action
            await asyncio.sleep(TICK)

    async def listen(self, silence: float) -> None:
        """To the service's pulse, which has not come for so many seconds."""
        if silence <= DEAF:
            if self.deaf:
                self.deaf, self.memory[RIGHT] = False, 1 - self.memory[LATCHED]
                self.say("its service answers again")
        elif not self.deaf:
            self.deaf, self.memory[RIGHT] = True, 0
            what = f"the service (pid {self.pid}) has not answered for {silence:.1f} s; the robot is halted"
            self.say(f"{what}, and the service is ended" if self.ends else what)
            await self.halt("its service does not answer")
            if self.ends:
                with contextlib.suppress(ProcessLookupError):  # a child of it may have kept the link open
                    os.kill(self.pid, signal.SIGKILL)

    # -- Stop by its own road ----------------------------------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open[writer] = time.monotonic()
        if len(self.open) > CONNECTIONS:
            oldest = next(iter(self.open))
            del self.open[oldest]
            oldest.transport.abort()
        try:
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
            self.open.pop(writer, None)  # it is not closed for others any more
            status, reply = await self.answer(head.decode("latin-1"), writer.get_extra_info("peername"))
            with contextlib.suppress(TimeoutError):  # what is not read when a connection is closed may eat the answer
                async with asyncio.timeout(0.01):
                    await reader.read(BODY)
            body = json.dumps(reply).encode() + b"\n"
            kind = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
            writer.write(f"HTTP/1.1 {status}\r\n{kind}\r\n\r\n".encode() + body)
            async with asyncio.timeout(PATIENCE):
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ssl.SSLError):
            pass  # whoever it was left, or is no client of this
        finally:
            self.open.pop(writer, None)
            writer.close()

    async def answer(self, head: str, peer: object) -> tuple[str, dict[str, Any]]:
        request, *lines = head.split("\r\n")
        method, _, path = request.partition(" ")
        path = path.partition(" ")[0]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if path == "/healthz":
            return "200 OK", {"guarding": self.name, "stopped": bool(self.memory[LATCHED]), "deaf": self.deaf}
        if path != "/stop":
            return "404 Not Found", {"error": "POST /stop stops the robot, GET /healthz tells of the guard"}
        if method != "POST":
            return "405 Method Not Allowed", {"error": "Stop is a POST"}
        who, refusal = self.admit(headers.get("authorization", ""))
        if refusal:
            self.refused(who, peer)
            return ("401 Unauthorized" if not who else "403 Forbidden"), {"error": refusal}
        if not self.memory[LATCHED]:  # else it has been said
            self.say(f"stopped by {who or 'a caller'} at {peer} through the guard")
        halted = await self.stop("the robot was stopped")
        return "200 OK", {"stopped": True, "halted": halted}

    def refused(self, who: str, peer: object) -> None:
        """Said seldom, so that a stranger cannot fill a disk."""
        self.refusals += 1
        if (now := time.monotonic()) - self.told_of_refusals > SELDOM:
            self.say(f"a Stop of {who or 'a stranger'} at {peer} was refused, {self.refusals} since last said")
            self.refusals, self.told_of_refusals = 0, now

    def admit(self, authorization: str) -> tuple[str, str]:
        """Who calls, as far as it is known, and why it may not."""
        if self.holders is None:
            return "", ""
        scheme, _, token = authorization.partition(" ")
        shown, found = hashlib.sha256(token.strip().encode()).hexdigest(), None
        for holder in self.holders:  # takes equally long whether, and at which place, the token is known
            if hmac.compare_digest(holder["sha256"], shown):
                found = holder
        if scheme.lower() != "bearer" or found is None:
            return "", "Stop needs a token with the role 'stop'"
        if found["expires"] is not None and time.time() >= found["expires"]:
            return "", f"the token of {found['name']!r} has expired"
        return found["name"], "" if found["stops"] else "Stop needs the role 'stop'; this token has others"


def stop_command(said: str) -> Callable[[], Any] | None:
    """What halts the robot without its service: `module:function`, `/a/file.py:function`, or an http(s)
    address to POST to."""
    if not said:
        return None
    if re.match("https?://[^/]", said):
        import urllib.request  # which takes a third of the time that a guard needs to come up

        request = urllib.request.Request(said, method="POST", data=b"")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a robot is not behind one
        return lambda: opener.open(request, timeout=COMMAND_TIMEOUT).close()
    if not re.fullmatch(r"([\w.]+|/.+\.py):\w+", said):
        raise ValueError(
            f"a stop command is module:function, /a/file.py:function, or http(s)://HOST:PORT/..., not {said!r}"
        )
    module, _, name = said.rpartition(":")
    if module.startswith("/"):
        sys.path.insert(0, str(Path(module).parent))  # before a module of the same name elsewhere
        module = Path(module).stem
    found = getattr(importlib.import_module(module), name)
    if not callable(found):
        raise TypeError(f"{said} is no function")
    return found  # type: ignore[no-any-return]


def context_of(tls: dict[str, str] | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(context, tls)
    return context


def load(context: ssl.SSLContext, tls: dict[str, str]) -> None:
    """PEM, which OpenSSL reads from files only."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("certificate", "key"):
            (Path(folder) / part).touch(0o600)
            (Path(folder) / part).write_text(tls[part])
        context.load_cert_chain(Path(folder) / "certificate", Path(folder) / "key")
    if tls["client_ca"]:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=tls["client_ca"])


def listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(where)
    return listener


async def guard(link: socket.socket, memory: memoryview[float]) -> None:
    reader, writer = await asyncio.open_connection(sock=link, limit=2**24)
    settings = json.loads(await reader.readline())
    sys.path[:] = settings["path"]
    try:
        listener = listen(*settings["address"])
        process = GuardProcess(settings, memory)
    except (Exception, SystemExit) as error:  # the user's own command among them, whatever it raises
        text = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        writer.write(json.dumps({"failed": text}).encode() + b"\n")
        await writer.drain()
        return
    await process.run(reader, writer, listener)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its service, which they are for
    with contextlib.suppress(ValueError, OSError):  # connections that shake no hands by TLS are not in CONNECTIONS
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    link, memory = (int(descriptor) for descriptor in sys.argv[-2:])
    asyncio.run(guard(socket.socket(fileno=link), attach(memory)))
