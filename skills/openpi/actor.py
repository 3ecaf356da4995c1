"""An Actor that asks an openpi-compatible server, so that skills are planned over somebody's policy.

    actor = connect("openpi://gpu:8000", robot)       # robot: a RobotFolder, where the server does not say its own
    action = actor.act([observation], "pick up the apple")

`openpi://HOST:PORT`, or `openpis://` over TLS; a path is passed on. The policy is sent the newest observation and the
skill's words as the prompt, under the keys of the robot's folder (`openpi:` in robot.yaml, see skills.openpi.keys). One
that answers chunks makes a ChunkedActor. The environment variable OPENPI_API_KEY holds what is shown to a server that
asks; SSL_CERT_FILE an authority of one's own.

A connection that was lost is made again with the next call. One that cannot be made, and an answer that does not come,
are Unavailable, in a line that names the server.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
import struct
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_websocket

from skills.embodiment import Embodiment
from skills.errors import EmbodimentError, InvalidRequest, ServerFault, Unavailable
from skills.openpi.codec import MAX_BYTES, pack, unpack
from skills.openpi.keys import SIDE, Keys, Named
from skills.types import Observation, blank

log = logging.getLogger(__name__)
# What a server does to the protocol is said in one line by what is raised; a refusal over TLS is a traceback there
_frames = logging.getLogger(f"{__name__}.frames")
_frames.setLevel(logging.CRITICAL)

NAME = re.compile(r"openpi(?P<secure>s?)://(?P<rest>[^\s/?#]+:\d{1,5}(/[^\s?#]*)?)")
API_KEY = "OPENPI_API_KEY"  # environment variable; a command line is for everybody on the machine to see
CONNECT = 5.0  # [s]
ANSWER = 10.0  # [s]
FIRST_ANSWER = 180.0  # [s]; openpi's models are compiled for their first observation
PROBE = "wait"  # what the first observation asks for
MAX_CHUNK = 1024


def connect(name: str, robot: Embodiment | None = None, named: Named | None = None) -> Actor:
    """Asks once what the server is, and for actions at a blank observation: their number makes it a plain actor or a
    chunked one. robot, named: of the robot's folder; None: there is none. Raises SkillError."""
    link = Link(name)
    embodiment, keys, side = _whose(link, robot, named)
    actions = _actions(link.ask(keys.write(blank(embodiment), PROBE, side), FIRST_ANSWER), link)
    knows_no_ends = actions.shape[1] == len(embodiment.without_terminate().action) != len(embodiment.action)
    if actions.shape[1] != len(embodiment.action) and not knows_no_ends:
        names = ", ".join(dimension.name for dimension in embodiment.action)[:300]
        count = f"{actions.shape[1]} numbers, and this robot takes {len(embodiment.action)}"
        raise EmbodimentError(f"{link}: its actions have {count}: {names}")
    kind = Actor if len(actions) == 1 else Chunked
    return kind(link, embodiment, keys, side, len(actions), embodiment.terminate if knows_no_ends else None)


def _whose(link: Link, robot: Embodiment | None, named: Named | None) -> tuple[Embodiment, Keys, int | None]:
    """For which robot, under which keys, and how large images may be [pixels]."""
    said = link.said()
    if said is not None:
        embodiment = Embodiment.parse(said["embodiment"], str(link))
        if embodiment.history > 1:
            raise EmbodimentError(
                f"{link}: its model looks at {embodiment.history} observations, and openpi's protocol sends one; let "
                "the robot ask that skill server itself (--skill-server)"
            )
        keys = said["keys"]
        return embodiment, Keys.of(embodiment, keys if isinstance(keys, Mapping) else None), None
    if robot is None:
        raise EmbodimentError(
            f"{link}: it does not say for which robot it acts; give the robot's folder (--robot-folder), whose "
            "robot.yaml says what it sees and how it moves"
        )
    robot = replace(robot, history=1)  # whatever others see there
    return robot, Keys.of(robot, named), SIDE


class Link:
    """One connection, made when it is needed, and again when it was lost."""

    def __init__(self, name: str) -> None:
        found = NAME.fullmatch(name)
        if found is None:
            raise InvalidRequest(f"{name!r} is no openpi server; write openpi://HOST:PORT, such as openpi://gpu:8000")
        self._name, self._secure = name, bool(found["secure"])
        self._url = f"ws{found['secure']}://{found['rest']}"
        self._lock = threading.Lock()
        self._connections: list[ClientConnection] = []  # one or none
        self._metadata: Mapping[str, Any] | None = None
        weakref.finalize(self, _close, self._connections)

    def __str__(self) -> str:
        return f"the openpi server at {self._name}"

    def said(self) -> Mapping[str, Any] | None:
        """What it said of itself, where it is one of ours: that has an embodiment. Raises SkillError."""
        with self._lock:
            self._connected()
        return _ours(self._metadata)

    def ask(self, message: Mapping[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """timeout: [s]; None: the usual. Raises Unavailable, and ServerFault with its reason where it fails."""
        timeout = ANSWER if timeout is None else timeout
        with self._lock:
            kept = bool(self._connections)
            try:
                return self._exchange(message, timeout)
            except ConnectionClosed:
                _close(self._connections)
                if not kept:
                    raise Unavailable(f"{self} hangs up without an answer") from None
            try:  # it was gone before it was asked: a server that was started again
                return self._exchange(message, timeout)
            except ConnectionClosed:
                _close(self._connections)
                raise Unavailable(f"{self} hangs up without an answer") from None

    def _exchange(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        data = pack(message)
        if len(data) > MAX_BYTES:  # a server of ours would hang up
            sizes = f"{len(data) / 2**20:.1f} MiB, at most {MAX_BYTES >> 20} are sent"
            raise InvalidRequest(f"the observation for {self} takes {sizes}; send smaller images")
        connection = self._connected()
        try:
            connection.send(data)
            answer = connection.recv(timeout)
        except TimeoutError:
            _close(self._connections)  # else its answer would be taken for the next one's
            raise Unavailable(f"{self} did not answer within {timeout:g} s") from None
        if isinstance(answer, str):
            log.info("%s failed: %s", self, answer)
            raise ServerFault(f"{self} failed: {_last_line(answer)}")
        try:
            return unpack(answer)
        except InvalidRequest as error:
            _close(self._connections)
            raise ServerFault(f"{self}: {error}") from None

    def _connect(self) -> ClientConnection:
        key = os.environ.get(API_KEY, "").strip()
        return connect_websocket(
            self._url,
            ssl=ssl.create_default_context() if self._secure else None,
            compression=None,
            additional_headers={"Authorization": f"Api-Key {key}"} if key else None,
            proxy=None,
            open_timeout=CONNECT,
            close_timeout=1.0,
            ping_interval=None,  # openpi's own server answers none while it computes
            max_size=MAX_BYTES,
            logger=_frames,
        ).__enter__()  # `_close` is its end

    def _connected(self) -> ClientConnection:
        if self._connections:
            return self._connections[0]
        try:
            try:
                connection = self._connect()
            except InvalidMessage:  # no HTTP, or a refusal of which nothing arrived before the connection's end
                connection = self._connect()
        except (OSError, TimeoutError, InvalidHandshake, InvalidMessage, EOFError) as error:
            raise Unavailable(f"{self} {_why(error)}") from None
        self._connections.append(connection)
        patience = struct.pack("ll", max(1, int(ANSWER)), 0)  # for one that does not read
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        try:
            metadata = unpack(_binary(connection.recv(CONNECT)))
        except InvalidRequest as error:
            _close(self._connections)
            raise Unavailable(f"{self} says what it is in a form that cannot be read: {error}") from None
        except (TimeoutError, ConnectionClosed, TypeError):
            _close(self._connections)
            raise Unavailable(f"{self} does not say what it is, as openpi's do; is that the right address?") from None
        if self._metadata is not None and _ours(metadata) != _ours(self._metadata):
            _close(self._connections)
            raise Unavailable(f"{self} is for another robot now than when it was asked first; load it again (reload)")
        self._metadata = metadata
        return connection


class Actor:
    """skills.types.Actor, for one robot or many: the server remembers nothing of them."""

    def __init__(
        self,
        link: Link,
        embodiment: Embodiment,
        keys: Keys,
        side: int | None,
        count: int,
        unknown: int | None = None,  # the dimension that ends skills, where the policy knows nothing of ends
    ) -> None:
        self.embodiment, self._unknown = embodiment, unknown
        self._link, self._keys, self._side, self._count = link, keys, side, count

    def act(self, history: Sequence[Observation], instruction: str) -> np.ndarray:
        """(D,) float32 within the embodiment's bounds. Raises Unavailable and ServerFault."""
        return self._ask(history, instruction)[0]

    def _ask(self, history: Sequence[Observation], instruction: str) -> np.ndarray:
        """(N, D) float32"""
        answer = self._link.ask(self._keys.write(history[-1], instruction, self._side))
        actions = _actions(answer, self._link)[: self._count]
        if len(actions) < self._count:
            raise ServerFault(f"{self._link} gave {len(actions)} actions, not {self._count} as before")
        try:
            if self._unknown is not None:
                actions = np.insert(actions, self._unknown, 0.0, axis=1)  # no end
            return np.stack([self.embodiment.clipped(action) for action in actions])
        except (ValueError, IndexError) as error:
            raise ServerFault(f"{self._link}: {error}") from None


class Chunked(Actor):
    """skills.types.ChunkedActor."""

    @property
    def chunk(self) -> int:
        return self._count

    def act_chunk(self, history: Sequence[Observation], instruction: str, committed: np.ndarray) -> np.ndarray:
        """(N, D) float32. The protocol has no word for what is committed."""
        return self._ask(history, instruction)


def _actions(answer: Mapping[str, Any], link: Link) -> np.ndarray:
    """(N, D), N at most 1,024."""
    actions = answer.get("actions")
    if not isinstance(actions, np.ndarray) or actions.ndim not in (1, 2) or not actions.size:
        there = ", ".join(answer)[:200] or "nothing"
        raise ServerFault(f"{link} answers no `actions` of shape (N, D); it sent: {there}")
    return np.atleast_2d(actions)[:MAX_CHUNK]


def _ours(metadata: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Those of an endpoint of this project, which say what the robot is and how it is asked; None: somebody else's."""
    said = (metadata or {}).get("embodiment")
    if metadata is None or not isinstance(said, Mapping) or "action" not in said:
        return None
    return {"embodiment": said, "keys": metadata.get("keys")}


def _binary(message: str | bytes) -> bytes:
    if isinstance(message, str):
        raise TypeError("a text")
    return message


def _close(connections: list[ClientConnection]) -> None:
    while connections:
        with suppress(Exception):  # whatever it is, it is gone
            connections.pop().close()


def _last_line(traceback: str) -> str:
    """A server of openpi's sends Python's traceback, which ends with the reason."""
    lines = [line.strip() for line in traceback.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it does not say why"


def _why(error: Exception) -> str:
    match error:
        case ConnectionRefusedError():
            return "cannot be reached: nothing listens there"
        case InvalidStatus() as refused:
            body = (refused.response.body or b"").decode(errors="replace")
            said = " ".join(body.split())[:300]
            return f"refuses the connection: HTTP {refused.response.status_code}{f', {said}' if said else ''}"
        case ssl.SSLCertVerificationError() as untrusted:
            return f"shows a certificate that is not trusted: {untrusted.verify_message}"
        case ssl.SSLError():
            return "does not speak TLS; write openpi://"
        case TimeoutError():
            return f"cannot be reached: no answer within {CONNECT:g} s"
        case OSError():
            return f"cannot be reached: {error.strerror or error}"
    return "is no websocket server; is that the right address?"
