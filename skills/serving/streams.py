"""A stream whose client must keep up: each request within a time of the last answer, each answer taken as fast.

    with Stream(requests, context, timeout=0.4, first=2.0) as stream:
        for request in stream:
            yield from stream.answer(reply_to(request))

gRPC itself waits for a silent client as long as its connection lives, and for one that does not read, too. Nothing is
read ahead: a request enters memory when the one before was answered, and an answer leaves it before the next is made,
so that HTTP/2's flow control slows a client down that sends without reading. Where only the newest counts (`skip`), one
request is read ahead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

import grpc

from skills.errors import DeadlineExceeded

Request = TypeVar("Request")
Response = TypeVar("Response")


class Newest(Generic[Request]):
    """Iterates over those requests that none with a greater key overtook, and raises what ended them. One thread reads,
    to their end."""

    def __init__(self, requests: Iterator[Request], key: Callable[[Request], int]) -> None:
        self._requests, self._key = requests, key
        self._changed = threading.Condition()
        self._kept: Request | None = None
        self._ended = False
        self._broke: Exception | None = None
        threading.Thread(target=self._read, name="newest request", daemon=True).start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Request:
        with self._changed:
            self._changed.wait_for(lambda: self._kept is not None or self._ended)
            kept, self._kept = self._kept, None
        if kept is None:
            raise self._broke or StopIteration
        return kept

    def _read(self) -> None:
        try:
            for request in self._requests:
                with self._changed:
                    if self._kept is None or self._key(request) >= self._key(self._kept):
                        self._kept = request
                    self._changed.notify()
        except Exception as error:  # the call is over, or its request no message; raised when what came is heard
            self._broke = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()


class Stream(Generic[Request]):
    """Iterates over the requests; raises DeadlineExceeded when one takes too long. One thread reads, since gRPC's own
    iterator has no time-out."""

    def __init__(
        self,
        requests: Iterator[Request],
        context: grpc.ServicerContext,
        timeout: float,  # [s] from an answer's leaving to the next request, and for an answer to leave
        first: float,  # [s] from the stream's beginning to the first request
        late: Callable[[float], str] = "no request came within {:g} s".format,  # what is said of so many seconds
    ) -> None:
        self._requests, self._context, self._timeout, self._patience = requests, context, timeout, first
        self._late = late
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="stream reader")
        self._left = threading.Event()
        self._next: Future[Request | None] | None = None

    def skip(self, key: Callable[[Request], int]) -> None:
        """From the next request on, those that were overtaken while one was answered are not heard: only the one with
        the greatest key is, or the last of them. One is kept in memory, however many come."""
        self._requests = Newest(self._requests, key)

    def answer(self, response: Response, timeout: float | None = None) -> Iterator[Response]:
        """Yields it. The call is cancelled if it has not left in time.
        timeout: [s] from then to the next request; None: the usual."""
        self._patience = self._timeout if timeout is None else timeout
        self._left.clear()
        self._next = self._reader.submit(self._read_after_leaving)
        yield response
        self._left.set()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Request:
        reading = self._next or self._reader.submit(self._read)
        self._next = None
        try:
            request = reading.result(self._patience)
        except TimeoutError:
            raise DeadlineExceeded(self._late(self._patience)) from None
        if request is None:
            raise StopIteration
        return request

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._reader.shutdown(wait=False)  # what it reads ends with the call

    def _read_after_leaving(self) -> Request | None:
        if not self._left.wait(self._timeout):
            self._context.cancel()
        return self._read()

    def _read(self) -> Request | None:
        return next(self._requests, None)
