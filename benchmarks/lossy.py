"""A proxy for Control's messages that loses, repeats, reorders and delays them: a radio link at its worst.

    with Lossy(server.address, Weather(lost=0.2, delayed=0.2)) as proxy, SkillClient(proxy.address) as client: ...

TCP neither loses nor reorders bytes, so this works on whole messages, in both directions; other calls pass as they are.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from skills.wire.link import NOBODYS

KINDS = ("lost", "repeated", "reordered", "delayed")


@dataclass(frozen=True)
class Weather:
    """Which share of the messages, each drawn for itself, so that one may be delayed and repeated."""

    lost: float = 0.0
    repeated: float = 0.0  # the second time up to `spike` later
    reordered: float = 0.0  # held until the next one has passed, or for `spike`
    delayed: float = 0.0  # by `spike`
    spike: float = 0.3  # [s]


class Way:
    """One direction of one stream: messages in, messages out as the weather has it."""

    def __init__(self, weather: Weather, rng: random.Random, met: Counter[str]) -> None:
        self._weather, self._rng, self._met = weather, rng, met
        self._changed = threading.Condition()
        self._under_way: list[tuple[float, int, bytes]] = []  # due [s], number, message
        self._held: int | None = None  # number of the message that lets the next one pass
        self._numbers, self._closed = itertools.count(), False

    def carry(self, messages: Iterable[bytes]) -> None:
        """To their end, or until whoever sends them is gone."""
        with suppress(Exception):  # gRPC has several for that
            for message in messages:
                self._send(message)
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __iter__(self) -> Iterator[bytes]:
        with self._changed:
            while self._under_way or not self._closed:
                wait = self._under_way[0][0] - time.monotonic() if self._under_way else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                message = heapq.heappop(self._under_way)[-1]
                self._changed.release()
                try:
                    yield message
                finally:
                    self._changed.acquire()

    def _send(self, message: bytes) -> None:
        weather = self._weather
        met = {kind for kind in KINDS if self._rng.random() < getattr(weather, kind)}
        with self._changed:
            self._met.update(["all", *met])
            if "lost" in met:
                return
            held, self._held = self._held, None
            number = self._put(weather.spike if met & {"reordered", "delayed"} else 0.0, message)
            if "repeated" in met:
                self._put(weather.spike * (1 + self._rng.random()), message)
            if held is not None:  # this one has passed it
                self._let_go(held)
            elif "reordered" in met:
                self._held = number
            self._changed.notify()

    def _let_go(self, held: int) -> None:
        for entry in [entry for entry in self._under_way if entry[1] == held]:
            self._under_way.remove(entry)
            heapq.heapify(self._under_way)
            self._put(0.0, entry[2])

    def _put(self, later: float, message: bytes) -> int:
        number = next(self._numbers)
        heapq.heappush(self._under_way, (time.monotonic() + later, number, message))
        return number


class Lossy(grpc.GenericRpcHandler):
    """Listens on a free port of loopback. `met`: how many messages met what, and "all"."""

    def __init__(self, address: str, weather: Weather, streams: int = 8, seed: int = 0) -> None:
        self._weather, self._rng, self.met = weather, random.Random(seed), Counter[str]()
        self._channel = grpc.insecure_channel(address)
        self._server = grpc.server(ThreadPoolExecutor(streams + 8), [self])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: Any) -> Any:
        if details.method.endswith("/Control"):
            return grpc.stream_stream_rpc_method_handler(partial(self._control, details.method))
        if details.method.endswith(f"/{NOBODYS}"):  # a client asks whether this lives; gRPC says so without a thread
            return None
        ask = self._channel.unary_unary(details.method)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: ask(request, timeout=10))

    def _control(self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        there, back = (Way(self._weather, random.Random(self._rng.random()), self.met) for _ in range(2))
        call = self._channel.stream_stream(method)(iter(there))
        if not context.add_callback(call.cancel):
            call.cancel()
        threading.Thread(target=there.carry, args=(requests,), daemon=True).start()
        threading.Thread(target=back.carry, args=(call,), daemon=True).start()
        yield from back
        if call.code() is not grpc.StatusCode.OK:
            context.abort(call.code(), call.details())

    def __enter__(self) -> Lossy:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
        self._channel.close()
