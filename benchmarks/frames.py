"""HTTP/2 frames by hand, for what no honest client sends: half a call, no window, a thousand resets.

with Frames("127.0.0.1:50052") as frames:
    stream = frames.call("/skills.v1.RobotService/Stop")   # headers alone: a call whose message never comes
    frames.message(stream, b"")
    frames.ended(stream, 1.0)                              # did the server end it within a second?
"""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW = 4  # a setting
CANCEL = 8  # an error code
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW = 65_535  # [bytes] that either side may send before it is told otherwise
BLOCK = 16_384  # [bytes] in a frame, at most


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(pairs: Iterable[tuple[str, str]]) -> bytes:
    """HPACK in its plainest form: every name and value in full."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in pairs)


def _text(text: str) -> bytes:
    size, octets = len(text), b""
    if size < 127:
        return bytes([size]) + text.encode()
    size -= 127
    while size >= 128:
        octets, size = octets + bytes([size % 128 + 128]), size // 128
    return bytes([127]) + octets + bytes([size]) + text.encode()


def message(body: bytes, compressed: bool = False, size: int | None = None) -> bytes:
    """As gRPC wraps it; size: what it claims to hold [bytes]."""
    return struct.pack(">BI", compressed, len(body) if size is None else size) + body


class Frames:
    """A connection. A thread reads it, so that pings are answered and the server does not hang up."""

    def __init__(self, address: str, window: int = WINDOW) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._streams = itertools.count(1, 2)
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._room, self._rooms, self._first = WINDOW, {}, WINDOW  # [bytes] that the server takes
        self._over: set[int] = set()  # streams
        self._received: Counter[int] = Counter()  # [bytes] of each stream's replies
        self.closed = False  # by the server
        self.send(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW, window)))
        threading.Thread(target=self._read, name="frames", daemon=True).start()

    def send(self, octets: bytes) -> None:
        with self._sending:
            self._socket.sendall(octets)

    def call(self, path: str, *more: tuple[str, str], then: bytes = b"") -> int:
        """Begin a call; then: frames that are sent in the same breath. Returns its stream."""
        stream = next(self._streams)
        self._rooms[stream] = self._first
        self.send(self.opening(stream, path, *more) + then)
        return stream

    @staticmethod
    def opening(stream: int, path: str, *more: tuple[str, str]) -> bytes:
        pairs = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
        pairs += [("content-type", "application/grpc"), ("te", "trailers"), *more]
        return frame(HEADERS, END_HEADERS, stream, headers(pairs))

    def message(self, stream: int, octets: bytes, end: bool = False) -> None:
        """Small ones: no window is waited for."""
        self.send(frame(DATA, END_STREAM if end else 0, stream, octets))

    def pour(self, stream: int, octets: bytes, seconds: float) -> int:
        """Send as much as the server's windows take within that time; returns how many bytes it took."""
        deadline, sent = time.monotonic() + seconds, 0
        while sent < len(octets):
            with self._changed:
                open_ = self._changed.wait_for(lambda: self._room_of(stream) != 0, deadline - time.monotonic())
                room = self._room_of(stream)
                if not open_ or room is None:
                    break
                part = octets[sent : sent + min(room, BLOCK)]
                self._room, self._rooms[stream] = self._room - len(part), self._rooms[stream] - len(part)
            self.send(frame(DATA, 0, stream, part))
            sent += len(part)
        return sent

    def _room_of(self, stream: int) -> int | None:
        """[bytes] that the server takes of it now; None when it takes no more."""
        over = self.closed or stream in self._over
        return None if over else max(0, min(self._room, self._rooms[stream]))

    def reset(self, stream: int) -> None:
        self.send(frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)))

    def ended(self, stream: int, seconds: float = 0.0) -> bool:
        """Has the server ended it, or does it within that time?"""
        with self._changed:
            return self._changed.wait_for(lambda: stream in self._over or self.closed, seconds)

    def received(self, stream: int) -> int:
        """[bytes] of replies, with what wraps them."""
        return self._received[stream]

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        try:
            with self._socket.makefile("rb") as reader:
                self._socket.settimeout(None)
                while header := reader.read(9):
                    size, kind, flags, stream = (
                        *struct.unpack(">I", b"\0" + header[:3]),
                        *struct.unpack(">BBI", header[3:]),
                    )
                    self._take(kind, flags, stream, reader.read(size))
        except (OSError, ValueError, struct.error):
            pass
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        with self._changed:
            if kind == DATA:
                self._received[stream] += len(payload)
            match kind:
                case _ if kind == SETTINGS and not flags & ACK:
                    for at in range(0, len(payload), 6):
                        name, value = struct.unpack(">HI", payload[at : at + 6])
                        if name == INITIAL_WINDOW:
                            self._rooms = {key: room + value - self._first for key, room in self._rooms.items()}
                            self._first = value
                    self.send(frame(SETTINGS, ACK, 0))
                case _ if kind == PING and not flags & ACK:
                    self.send(frame(PING, ACK, 0, payload))
                case _ if kind == WINDOW_UPDATE:
                    more = struct.unpack(">I", payload)[0]
                    if stream == 0:
                        self._room += more
                    elif stream in self._rooms:
                        self._rooms[stream] += more
                case _ if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
                    self._over.add(stream)
            self._changed.notify_all()
