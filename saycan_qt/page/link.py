"""Messages between a run and the process of its page, both ways, over a pair of sockets.

A message is one line of JSON; with a key "bytes": n, n bytes follow the line.

    link = Link(own_end)
    link.send({"now": {"phase": "moving", "text": "pick up the apple"}})
    link.send({"view": "head", "at": time.time()}, jpeg)
    for command in link.receive(): ...              # {"do": "instruct", "text": "..."}, until the other end is gone
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any

from saycan_qt.page.lenient import read_json

log = logging.getLogger(__name__)

MOST_WAITING = 10_000  # messages, after which nobody reads
LONGEST = 32 << 20  # [bytes] of a line, or of what follows it
PARTING = 1.0  # [s] for what still waits to be written when a link is closed


class Link:
    """One end. `send` may be called from any thread, `receive` from one; each has its own direction."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._changed = threading.Condition()
        self._waiting: dict[object, bytes] = {}  # in their order; a key of its own for what nothing newer replaces
        self._sending = self._over = False
        threading.Thread(target=self._write, name="link", daemon=True).start()

    def send(self, message: Mapping[str, Any], payload: bytes = b"") -> None:
        """Returns at once. What still waits is replaced by a newer picture of the same view, or a newer `now`. Nothing
        happens when the other end is gone, or has read nothing for too long, which is told once."""
        head = {**message, "bytes": len(payload)} if payload else message
        written = json.dumps(head).encode() + b"\n" + payload
        with self._changed:
            if self._over:
                return
            key = _key(message)
            self._waiting.pop(key, None)
            self._waiting[key] = written
            if len(self._waiting) > MOST_WAITING:
                log.warning("the page has not read for too long, and is told nothing more")
                self._end()
            self._changed.notify_all()

    def receive(self) -> Iterator[dict[str, Any]]:
        """Each message as it comes, until the other end is gone; under "bytes" is what followed it. What is no message
        is left out, and told."""
        with self._socket.makefile("rb") as stream:
            yield from _messages(stream)

    def close(self) -> None:
        """Once what waits is written, if somebody reads it."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or not (self._waiting or self._sending), PARTING)
            self._end()
            self._changed.notify_all()
        self._socket.close()

    def _end(self) -> None:
        self._over = True
        self._waiting.clear()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _write(self) -> None:
        while True:
            with self._changed:
                self._sending = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._over)
                if self._over:
                    return
                written = self._waiting.pop(next(iter(self._waiting)))
                self._sending = True
            try:
                self._socket.sendall(written)
            except OSError:  # the other end is gone
                with self._changed:
                    self._end()
                    self._changed.notify_all()


def _key(message: Mapping[str, Any]) -> object:
    if "view" in message:
        return "view", message["view"]
    return "now" if "now" in message else object()


def _messages(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    try:
        while line := stream.readline(LONGEST):
            try:
                message = read_json(line)
                size = message.get("bytes", 0)
                if not (isinstance(size, int) and 0 <= size <= LONGEST):
                    raise ValueError(f"{size!r} bytes follow")
            except (ValueError, AttributeError, RecursionError) as error:
                log.warning("what came over the link is no message: %s", error)
                if not line.endswith(b"\n"):
                    return
                continue
            if size:
                message["bytes"] = stream.read(size)
                if len(message["bytes"]) < size:
                    return
            yield message
    except OSError:  # the other end is gone
        return
