"""What a server remembers of a call: a line in the log at its end, a span, and what its watcher counts.

Log lines carry their facts as attributes (`method`, `code`, `seconds`, `caller`, `goal_id`, `trace_id`, `peer`), for a
formatter that writes them as fields. They hold neither tokens nor anything else of a request.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

from skills.serving.watching import Watcher
from skills.wire.conventions import plain
from skills.wire.tracing import Span

log = logging.getLogger("skills.calls")  # the name that filters of logs know

MAX_GOAL_ID = 64  # [characters]
REFUSED = {"UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"}  # of which any number may come


class Calls:
    """All calls of one server."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher, self._refusals = watcher, Seldom()

    def begin(self, path: str, caller: str, metadata: Iterable[tuple[str, Any]]) -> Call:
        """path: /package.Service/Method; caller: the name of the token's holder, "" where none was asked for."""
        service, _, method = path.removeprefix("/").partition("/")
        self._watcher.began(method)
        return Call(self, method, caller, Span(service, method, metadata))

    def ended(self, call: Call, code: str) -> None:
        seconds = time.monotonic() - call.started
        call.span.end(code)
        self._watcher.ended(call.method, code, seconds)
        self._say(call.method, code, seconds, call.caller, call.goal_id, call.span.trace_id)

    def refused(self, path: str, code: str, peer: str) -> None:
        """A call that was not let in, or whose request never came."""
        method = path.rpartition("/")[2]
        self._watcher.refused(method, code)
        self._say(method, code, 0.0, peer=peer)

    def _say(
        self,
        method: str,
        code: str,
        seconds: float,
        caller: str = "",
        goal_id: str = "",
        trace_id: str = "",
        peer: str = "",  # of a call that was refused, such as ipv4:127.0.0.1:41234
    ) -> None:
        unsaid = self._refusals.unsaid() if peer or code in REFUSED else 0
        if unsaid is None:
            return
        known = {"caller": caller, "goal_id": goal_id, "trace_id": trace_id, "peer": peer, "unsaid": unsaid}
        known = {key: value for key, value in known.items() if value}
        told = "".join(f", {key.replace('_', ' ')} {value}" for key, value in known.items())
        facts = {"method": method, "code": code, "seconds": round(seconds, 6)} | known
        log.info("%s %s after %.3f s%s", method, code, seconds, told, extra=facts)


class Call:
    """One call, from its being let in to its end."""

    def __init__(self, calls: Calls, method: str, caller: str, span: Span) -> None:
        self.method, self.caller, self.span, self.goal_id = method, caller, span, ""
        self.started = time.monotonic()
        self._calls = calls

    def read(self, request: Any) -> None:
        """Its first request may name a goal."""
        if not self.goal_id and (goal_id := getattr(request, "goal_id", "")):
            self.goal_id = plain(goal_id[:MAX_GOAL_ID])
            self.span.tell("skills.goal_id", self.goal_id)

    def end(self, code: str) -> None:
        self._calls.ended(self, code)


class Seldom:
    """Lets some lines through at once and then few, so that a stranger cannot fill a disk."""

    def __init__(self, at_once: int = 20, every: float = 5.0) -> None:
        self._at_once, self._every = at_once, every  # [s] for one more
        self._room, self._since, self._unsaid = float(at_once), time.monotonic(), 0
        self._lock = threading.Lock()

    def unsaid(self) -> int | None:
        """How many were held back since the last that was let through; None: hold this one back, too."""
        with self._lock:
            now = time.monotonic()
            self._room = min(self._at_once, self._room + (now - self._since) / self._every)
            self._since = now
            if self._room < 1:
                self._unsaid += 1
                return None
            self._room -= 1
            unsaid, self._unsaid = self._unsaid, 0
            return unsaid
