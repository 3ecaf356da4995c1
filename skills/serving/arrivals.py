"""What a server waits for: requests that have not come, and replies that are not taken. Each has a time for it.

    threads = Threads(16, "urgent")  # all started at once
    ...                              # in a call that one of them serves:
    with threads.waiting(context, caller, seconds=1.0):
        request = next(requests, None)

A call may begin and its request never come: gRPC waits for as long as the connection lives, and holds a thread for it.
Here it is cancelled when its time is over, and soon when a call comes that finds no other thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from skills.errors import Busy, Unavailable

GRACE = 0.25  # [s] that each may wait even where threads run out: an honest request may be on its way
URGENT_GRACE = 0.02  # [s] the same, of what is urgent
SMALL = 1.0  # [s] in which a small request must have come, whose headers came: they travel together
LARGE = 10.0  # [s] for one with images, and for a reply to be taken
HEAVY = 2**20  # [bytes]; a message of more counts until its call has ended, not only while it comes
FOREVER = float("inf")
TURNS = 4  # large messages that come at the same time, from all clients together
SLOW = 1.0  # [s] after which a large message that still comes gives way to another


def client_of(context: grpc.ServicerContext, caller: str) -> str:
    """Who calls: the name of the token's holder, where there are none the host."""
    return f"token {caller}" if caller else context.peer().rpartition(":")[0]


@dataclass(eq=False)
class Waiting:
    """A call that waits for its client."""

    context: grpc.ServicerContext
    client: str
    peer: str  # its connection
    since: float  # [s], of time.monotonic
    until: float
    leaving: bool = False  # told to give way


class Threads(ThreadPoolExecutor):
    """Those of a server for some of its methods. They are started in advance, so that a machine that gives no more
    threads keeps those that it has."""

    def __init__(self, count: int, name: str, urgent: bool = False) -> None:
        """urgent: of calls that wait for a thread the newest is first, and a flood waits behind what comes after it.
        Raises Unavailable where a machine gives fewer."""
        super().__init__(count, thread_name_prefix=name)
        if urgent:
            self._work_queue: Any = queue.LifoQueue()
        self._grace = URGENT_GRACE if urgent else GRACE
        self._count, self._taken, self._leaving = count, 0, 0  # threads; calls, and how many of them were told to leave
        self._waiting: list[Waiting] = []  # oldest first
        self._changed = threading.Condition()
        self._look_at = 0.0  # [s], of time.monotonic: when the clock looks again
        self._own = threading.local()
        self._closed = False
        started = threading.Barrier(count + 1)
        try:
            for _ in range(count):
                super().submit(started.wait)
            started.wait()
            threading.Thread(target=self._watch, name=f"{name} clock", daemon=True).start()
        except RuntimeError:
            started.abort()  # else those that wait there would keep this process from ending
            super().shutdown(wait=False)
            what = f"this machine gives no {count + 1} threads for {name}"
            raise Unavailable(f"{what}; allow more of them (ulimit -u, --pids-limit)") from None

    @property
    def full(self) -> bool:
        """Is there no thread for one more call, not even if another gave way?"""
        with self._changed:
            return self._taken - self._leaving >= self._count and not self._waiting

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **more: Any) -> Future[Any]:  # type: ignore[override]
        """Never raises: gRPC calls it from the thread that serves all calls, which an exception would end."""
        with self._changed:
            self._taken += 1
            self._make_room()
        try:
            return super().submit(self._within, call, arguments, more)
        except RuntimeError:  # shut down
            refused: Future[Any] = Future()
            refused.cancel()
            return refused

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        super().shutdown(wait, cancel_futures=cancel_futures)

    @contextmanager
    def waiting(self, context: grpc.ServicerContext, caller: str, seconds: float) -> Iterator[Waiting]:
        """Until this is left the call's client owes something. It is cancelled when its time is over, and if threads
        run out, sooner."""
        now = time.monotonic()
        one = Waiting(context, client_of(context, caller), context.peer(), now, now + seconds)
        with self._changed:
            self._waiting.append(one)
            self._make_room()
        try:
            yield one
        finally:
            with self._changed:
                if one in self._waiting:
                    self._waiting.remove(one)
                self._own.leaving |= one.leaving

    def _within(self, call: Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, Any]) -> Any:
        self._own.leaving = False
        try:
            return call(*arguments, **more)
        finally:
            with self._changed:
                self._taken -= 1
                self._leaving -= self._own.leaving

    def _make_room(self) -> None:
        """Cancel what is late, and where threads run out the oldest of the connection that has the most, of the client
        that has the most."""
        now = time.monotonic()
        for one in [one for one in self._waiting if one.until <= now]:
            self._cancel(one)
        while self._crowded and (old := [one for one in self._waiting if one.since + self._grace <= now]):
            clients, peers = Counter(one.client for one in old), Counter(one.peer for one in old)
            self._cancel(max(old, key=lambda one: (clients[one.client], peers[one.peer])))  # the first of several
        again = min((one.since + self._grace if self._crowded else one.until for one in self._waiting), default=FOREVER)
        if again < self._look_at:
            self._look_at = again
            self._changed.notify_all()

    @property
    def _crowded(self) -> bool:
        return self._taken - self._leaving > self._count

    def _cancel(self, one: Waiting) -> None:
        self._waiting.remove(one)
        one.leaving = True
        self._leaving += 1
        one.context.cancel()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                self._look_at = FOREVER
                self._make_room()
                self._changed.wait(min(self._look_at - time.monotonic(), threading.TIMEOUT_MAX))


@dataclass(eq=False)
class Turn:
    """Of a large message."""

    since: float  # [s], of time.monotonic
    context: grpc.ServicerContext | None  # the call while the message comes; None: it is here, and answered


class Turns:
    """Large messages come one at a time from each client, and only so many at once: of others nothing is read, so that
    HTTP/2's flow control holds them where they are."""

    def __init__(self, most: int = TURNS) -> None:
        self._most = most
        self._taken: dict[str, Turn] = {}  # by client
        self._changed = threading.Condition()

    @contextmanager
    def turn(
        self, context: grpc.ServicerContext, caller: str, seconds: float = LARGE
    ) -> Iterator[Callable[[int], None]]:
        """Yields what is to be told that the message has come, of so many bytes: then nobody pushes it any more, and
        unless it is heavy its turn is over. Raises Busy when none was free within that time."""
        client, began = client_of(context, caller), time.monotonic()
        with self._changed:
            while client in self._taken or len(self._taken) >= self._most:
                left = began + seconds - time.monotonic()
                if left <= 0 or not context.is_active():
                    raise Busy("other large messages come or are answered; send one at a time", SLOW)
                self._push(client)
                self._changed.wait(min(left, 0.05))
            self._taken[client] = mine = Turn(time.monotonic(), context)

        def end() -> None:
            with self._changed:
                if self._taken.get(client) is mine:
                    del self._taken[client]
                    self._changed.notify_all()

        def came(size: int) -> None:
            with self._changed:
                mine.context = None
            if size <= HEAVY:
                end()

        try:
            yield came
        finally:
            end()

    def _push(self, client: str) -> None:
        """What has been coming for long, of this client or of all, is cancelled."""
        taken = [self._taken[client]] if client in self._taken else self._taken.values()
        oldest = min((turn for turn in taken if turn.context), key=lambda turn: turn.since, default=None)
        if oldest and oldest.context and time.monotonic() - oldest.since > SLOW:
            oldest.context.cancel()
