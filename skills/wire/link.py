"""A channel that notices when its server has died or frozen while calls wait for it, without keepalive pings.

    stub = RobotServiceStub(Link(lambda: grpc.insecure_channel(address)))

gRPC's own keepalive pings will not do: a server hangs up on a client that pings more often than it allows, by default
once in five minutes. So while calls wait and nothing comes, an ordinary call asks for a method that no server has. The
gRPC library of any language answers that by itself, UNIMPLEMENTED, with no thread of the server's and no token.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import grpc

SILENCE = 1.0  # [s] without a word while calls wait, until the server is asked whether it lives
PATIENCE = 2.0  # [s] for its answer: a busy machine may hold up a server for so long
LOOK = 0.25  # [s] between two looks
NOBODYS = "Alive"  # the method that no server has
LATE = grpc.StatusCode.DEADLINE_EXCEEDED
NO_ANSWER = {LATE, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}  # what a client says of a server


class Silent(grpc.RpcError):  # type: ignore[misc]  # of a library without types
    """How calls end whose server has fallen silent."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return f"keepalive: no answer within {PATIENCE:g} s"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class Link:
    """What stubs take in place of a grpc.Channel. When the server falls silent, all calls end as Silent, and the next
    one connects anew. Nothing is asked before a first word has come: a connection may take its time to come about."""

    def __init__(self, connect: Callable[[], grpc.Channel]) -> None:
        self._connect, self._closed = connect, False
        self.line = _Line(connect(), self._renew)

    def close(self) -> None:
        self._closed = True
        self.line.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def unary_unary(self, path: str, *codec: Any, **named: Any) -> _Unary:
        return _Unary(self, path, lambda channel: channel.unary_unary(path, *codec, **named))

    def unary_stream(self, path: str, *codec: Any, **named: Any) -> _Streaming:
        return _Streaming(self, path, lambda channel: channel.unary_stream(path, *codec, **named))

    def stream_stream(self, path: str, *codec: Any, **named: Any) -> _Streaming:
        return _Streaming(self, path, lambda channel: channel.stream_stream(path, *codec, **named))

    def _renew(self) -> None:
        if not self._closed:
            self.line = _Line(self._connect(), self._renew)


class _Line:
    """One channel, until its server falls silent."""

    def __init__(self, channel: grpc.Channel, on_death: Callable[[], None]) -> None:
        self.channel, self.dead = channel, False
        self.calls, self.service = 0, ""  # that wait, and whose method was called last
        self.since, self.heard = 0.0, False  # when, of time.monotonic [s], calls began to wait without a word
        self.last = 0.0  # [s] when the last word came
        self._on_death = on_death
        self._asked: Any = None  # the call that asks; it is looked at when it ends, also where no other waits any more
        self._asked_at = 0.0  # [s]

    def hear(self) -> None:
        self.since = self.last = time.monotonic()
        self.heard = True

    def end_of(self, error: Exception) -> Exception:
        """What is raised in its place."""
        if self.dead:
            return Silent()
        if isinstance(error, grpc.RpcError):
            if error.code() not in NO_ANSWER:
                self.hear()
            elif error.code() is grpc.StatusCode.UNAVAILABLE:  # of a call that gave up, the server may be silent still
                self.heard = False
        return error

    @property
    def waits(self) -> bool:
        return bool(self.calls) or self._asked is not None

    def look(self) -> None:
        """Ask where nothing came, and see whether there is an answer."""
        if self._asked is None:
            if self.calls and self.heard and time.monotonic() - self.since > SILENCE:
                ask = self.channel.unary_unary(f"/{self.service}/{NOBODYS}")
                with suppress(ValueError, RuntimeError):  # it was closed; there are no threads
                    self._asked_at, self._asked = time.monotonic(), ask.future(b"", timeout=PATIENCE)
        elif self._asked.done():
            code, self._asked = self._asked.code(), None
            if code not in NO_ANSWER:
                self.hear()
            elif code is not LATE:
                self.heard = False  # its calls hear so themselves
            elif self.last < self._asked_at:
                self.dead = True
                self._on_death()
                self.channel.close()  # ends all calls


class _Watch:
    """The lines on which calls wait, watched by one thread for all of this process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lines: set[_Line] = set()
        self._runs = False

    def begin(self, line: _Line, service: str) -> None:
        with self._changed:
            line.calls, line.service = line.calls + 1, service
            if line.calls > 1:
                return
            if line.last >= line.since:  # else calls before this one gave up without a word
                line.since = time.monotonic()
            self._lines.add(line)
            self._changed.notify()
            if not self._runs:
                with suppress(RuntimeError):  # no threads are left: the next call tries again
                    threading.Thread(target=self._run, name="links", daemon=True).start()
                    self._runs = True

    def end(self, line: _Line) -> None:
        with self._changed:
            line.calls -= 1
            if not line.waits:
                self._lines.discard(line)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                lines = tuple(self._lines)
            for line in lines:
                line.look()
            with self._changed:
                for line in lines:
                    (self._lines.add if line.waits else self._lines.discard)(line)
            del lines, line  # may be forgotten now
            time.sleep(LOOK)


_watch = _Watch()


class _Method:
    def __init__(self, link: Link, path: str, bind: Callable[[grpc.Channel], Any]) -> None:
        self._link, self._bind = link, bind
        self._service = path.split("/")[1]
        self._bound: tuple[_Line | None, Any] = None, None

    def __getattr__(self, name: str) -> Any:
        """`future` and `with_call` are not watched."""
        return getattr(self._on(self._link.line), name)

    def _on(self, line: _Line) -> Any:
        bound, method = self._bound
        if bound is not line:
            method = self._bind(line.channel)
            self._bound = line, method
        return method


class _Unary(_Method):
    def __call__(self, request: Any, **how: Any) -> Any:
        line = self._link.line
        _watch.begin(line, self._service)
        try:
            reply = self._on(line)(request, **how)
        except (grpc.RpcError, ValueError) as error:  # ValueError: the channel is closed
            raise line.end_of(error) from None
        finally:
            _watch.end(line)
        line.hear()
        return reply


class _Streaming(_Method):
    def __call__(self, request: Any, **how: Any) -> _Stream:
        line = self._link.line
        try:
            call = self._on(line)(request, **how)
        except ValueError as error:
            raise line.end_of(error) from None
        _watch.begin(line, self._service)
        if not call.add_callback(lambda: _watch.end(line)):
            _watch.end(line)
        return _Stream(line, call)


class _Stream:
    """The replies. All else is the call's own."""

    def __init__(self, line: _Line, call: Any) -> None:
        self._line, self._call = line, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        try:
            reply = next(self._call)
        except grpc.RpcError as error:
            raise self._line.end_of(error) from None
        self._line.hear()
        return reply
