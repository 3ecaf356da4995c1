"""A gRPC server as both services need it: health, reflection, and one boundary where errors become statuses."""

from __future__ import annotations

import logging
import resource
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from skills.errors import Busy, DeadlineExceeded, InvalidRequest, ServerFault, SkillError, Unavailable
from skills.security.access import HEALTH, Access
from skills.serving.arrivals import LARGE, SMALL, Threads, Turns, Waiting
from skills.serving.calls import Call, Calls
from skills.serving.health import NOT_SERVING, SERVING, Health
from skills.serving.watching import NOBODY, Watcher
from skills.wire.conventions import (
    MAX_MESSAGE,
    code_of,
    is_loopback,
    join_address,
    server_options,
    split_address,
    status_of,
)

log = logging.getLogger(__name__)

THREADS = 32  # calls at one time; long ones are limited to fewer, so that others always find a thread
HEALTH_THREADS = 8
URGENT_THREADS = 32
REFLECTION_THREADS = 2
WATCHES = 16  # of health, by strangers; as many more by those who show a token that is known here
MAX_CONNECTIONS = 4096
OTHER_DESCRIPTORS = 256  # that connections leave for files, cameras and models


class Server:
    """A running server; `address` is where it listens. Use it as a context manager, or call `stop`."""

    def __init__(
        self,
        add_to_server: Callable[[grpc.Server], None],  # registers the servicer
        service: str,  # its full name, for health and reflection
        address: str = "127.0.0.1:0",  # HOST:PORT; port 0 takes a free one
        on_stop: Callable[[], None] = lambda: None,  # called once, before running calls are ended
        ready: bool = True,  # False: health says NOT_SERVING until `set_ready`
        threads: int = THREADS,
        access: Access | None = None,  # who may call; None: whoever reaches a loopback address
        urgent: Collection[str] = (),  # unary methods of the service with threads of their own, so that they never wait
        watcher: Watcher = NOBODY,  # is told of calls
        max_message: int = MAX_MESSAGE,  # [bytes] of a request
        large: Collection[str] = (),  # unary methods whose requests may be that large, and come one at a time
        compression: bool = False,  # take compressed requests, of which a few bytes may hold any number
    ) -> None:
        host, port = split_address(address)
        access = access or Access()
        access.check(host)
        _refuse_occupied(host, port, address)
        self._on_stop, self._service, self._stopped = on_stop, service, False
        self._threads = _Pools(
            usual=Threads(threads, service),
            urgent=Threads(URGENT_THREADS, "urgent", urgent=True),
            health=Threads(HEALTH_THREADS, "health"),
            reflection=Threads(REFLECTION_THREADS, "reflection"),
            strangers=Threads(WATCHES, "watch"),
            known=Threads(WATCHES, "known watch"),
        )
        urgent_paths, large_paths = ({f"/{service}/{method}" for method in methods} for methods in (urgent, large))
        boundary = _Boundary(access, self._threads, urgent_paths, large_paths, Calls(watcher))
        options = server_options(max_message, compression, room_for_connections())
        self._server = grpc.server(self._threads.usual, interceptors=[boundary], options=options)
        add_to_server(self._server)
        self._health = Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if is_loopback(host) or access.reflection:
            reflection.enable_server_reflection((service, HEALTH.strip("/"), reflection.SERVICE_NAME), self._server)
        if access.everybody and not is_loopback(host):
            log.warning("warning: whoever reaches %s may call everything, as --open-to-all says", address)
        try:
            if access.tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, access.credentials())
        except RuntimeError:
            raise Unavailable(f"cannot listen on {address}") from None
        self.address = join_address(host, self.port)
        try:
            self._server.start()
        except RuntimeError:
            self._threads.shutdown()  # else they would keep this process from ending
            raise Unavailable("this machine gives no thread for a server; allow more of them (ulimit -u)") from None
        self._set_health(SERVING if ready else NOT_SERVING)

    def set_ready(self) -> None:
        """From now on health says SERVING."""
        self._set_health(SERVING)

    def stop(self, grace: float = 1.0) -> None:
        """Refuse new calls, end running ones after `grace` seconds; returns when all have ended."""
        if self._stopped:
            return
        self._stopped = True
        try:
            self._on_stop()  # first: a robot halts before anybody is told
        finally:
            self._set_health(NOT_SERVING)
            try:
                self._server.stop(grace).wait()
            except RuntimeError:  # no thread to be had for the grace
                self._server.stop(None)
            self._threads.shutdown()

    def wait(self) -> None:
        """Until `stop` is called from elsewhere."""
        self._server.wait_for_termination()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _set_health(self, status: int) -> None:
        self._health.set({"": status, self._service: status})


def room_for_connections() -> int:
    """How many may be open at once, so that this process can still open files."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(MAX_CONNECTIONS, most - OTHER_DESCRIPTORS))


def raise_descriptors() -> None:
    """As many descriptors as this process may have at all; a shell gives it few. Before its first server."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _refuse_occupied(host: str, port: int, address: str) -> None:
    """Bind once by hand: gRPC's own failure is a page of log lines without the reason in it."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # a port in TIME_WAIT is free, a listener's is not
            probe.bind(where)
    except OSError as error:
        raise Unavailable(f"cannot listen on {address}: {error.strerror}; port 0 takes any free one") from None


OK = grpc.StatusCode.OK.name
_END = object()  # stands for what follows a stream's last reply


@dataclass(frozen=True)
class _Pools:
    """A server's threads. What belongs to one kind of calls is never held by another."""

    usual: Threads
    urgent: Threads
    health: Threads  # open to strangers
    reflection: Threads
    strangers: Threads  # who watch health
    known: Threads  # who watch health and show a token

    def shutdown(self) -> None:
        for threads in vars(self).values():
            threads.shutdown(wait=False)


class _Boundary(grpc.ServerInterceptor):
    """Around every method of ours: SkillError -> its status, anything else -> INTERNAL and a log line; each call's end.

    Around all methods: who may not call is refused before anything of the request is read. Where a request is one
    message it is read as a stream's first, by the thread that answers it, so that it has a time to come; and decoded
    there, since what is slow to decode holds up all calls in the thread that serves them."""

    def __init__(
        self, access: Access, pools: _Pools, urgent: Collection[str], large: Collection[str], calls: Calls
    ) -> None:
        self._access, self._pools, self._urgent, self._large, self._calls = access, pools, urgent, large, calls
        self._turns = Turns()

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        method, metadata, pools = details.method, details.invocation_metadata, self._pools
        try:
            caller = self._access.admit(method, metadata)
        except Exception as error:
            return self._refusing(method, _problem(error))
        if method.startswith(HEALTH):
            return self._healthy(handler, method, self._access.known(metadata))
        if not method.startswith("/skills.v1."):  # reflection
            waiting = partial(pools.reflection.waiting, caller=caller, seconds=LARGE)
            behave = _hasty(handler.stream_stream, handler.request_deserializer, waiting)
            return _handler(behave, handler, pools.reflection)
        begin = partial(self._calls.begin, method, caller, metadata)
        threads = pools.urgent if method in self._urgent else pools.usual
        decode, read = handler.request_deserializer, partial(self._read, method, threads, caller)
        if handler.request_streaming:
            return _handler(_stream(handler.stream_stream, decode, begin), handler, threads)
        if handler.response_streaming:
            waiting = partial(threads.waiting, caller=caller, seconds=LARGE)
            return _handler(_replies(handler.unary_stream, decode, begin, read, waiting), handler, threads)
        return _handler(_reply(handler.unary_unary, decode, begin, read), handler, threads)

    def _healthy(self, handler: Any, method: str, known: str) -> grpc.RpcMethodHandler:
        decode, threads = handler.request_deserializer, self._pools.health
        if not handler.response_streaming:
            read = partial(self._read, method, threads, known)
            return _handler(_plain(handler.unary_unary, decode, read), handler, threads)
        threads = self._pools.known if known else self._pools.strangers
        if threads.full:
            return self._refusing(method, Busy(f"{WATCHES} others watch this server's health; use Check", LARGE))
        read, waiting = (
            partial(self._read, method, threads, known),
            partial(threads.waiting, caller=known, seconds=LARGE),
        )
        return _handler(_taken(_plain(handler.unary_stream, decode, read), waiting), handler, threads)

    @contextmanager
    def _read(
        self, method: str, threads: Threads, caller: str, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """A call's only message. What it takes of the server is free again when this is left."""
        large, peer = method in self._large, context.peer()  # while it is known
        with ExitStack() as taken:
            try:
                came = taken.enter_context(self._turns.turn(context, caller)) if large else None
                with threads.waiting(context, caller, LARGE if large else SMALL) as waiting:
                    message = next(requests, None)
                if message is None:
                    problem = DeadlineExceeded if waiting.leaving else InvalidRequest
                    raise problem("the call came without a message")
            except grpc.RpcError:  # cancelled, by its client or because nothing came
                code = grpc.StatusCode.DEADLINE_EXCEEDED if waiting.leaving else grpc.StatusCode.CANCELLED
                self._calls.refused(method, code.name, peer)
                raise
            except Exception as error:
                self._refuse(method, _problem(error), context, peer)
            if came:
                came(len(message))
            yield message

    def _refuse(self, method: str, problem: SkillError, context: grpc.ServicerContext, peer: str) -> NoReturn:
        self._calls.refused(method, code_of(problem).name, peer)
        context.abort_with_status(rpc_status.to_status(status_of(problem)))
        raise AssertionError("abort raises")

    def _refusing(self, method: str, problem: SkillError) -> grpc.RpcMethodHandler:
        """Fits every kind of method: answers without waiting for a message, and so holds no thread for a stranger."""

        def refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> None:
            self._refuse(method, problem, context, context.peer())

        return grpc.stream_unary_rpc_method_handler(refuse)


Decode = Callable[[bytes], Any]
Read = Callable[[Iterator[bytes], grpc.ServicerContext], AbstractContextManager[bytes]]
Wait = Callable[[grpc.ServicerContext], AbstractContextManager[Waiting]]


def _handler(behave: Callable[..., Any], handler: Any, threads: Threads) -> grpc.RpcMethodHandler:
    """For the same method, with these threads, and with requests that are bytes still."""
    behave = partial(behave)
    vars(behave).update(experimental_thread_pool=threads)  # as grpc reads it
    make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    return make(behave, None, handler.response_serializer)


def _decoded(data: bytes, decode: Decode) -> Any:
    try:
        return decode(data)
    except DecodeError:
        raise InvalidRequest("the request is not a message of this service") from None


def _plain(behave: Callable[[Any, Any], Any], decode: Decode, read: Read) -> Callable[[Any, Any], Any]:
    """Of a service that is not ours, and raises nothing."""

    def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        with read(requests, context) as message:
            try:
                request = _decoded(message, decode)
            except InvalidRequest as problem:
                context.abort(code_of(problem), str(problem))
            return behave(request, context)

    return answer


def _hasty(behave: Callable[[Any, Any], Iterator[Any]], decode: Decode, waiting: Wait) -> Callable[[Any, Any], Any]:
    """Of a stream that has all it needs at once."""

    def hasty(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        with waiting(context):
            yield from behave(map(decode, requests), context)

    return hasty


def _taken(behave: Callable[[Any, Any], Iterator[Any]], waiting: Wait) -> Callable[[Any, Any], Iterator[Any]]:
    """Each reply has a time to be taken."""

    def answer(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for reply in behave(requests, context):
            with waiting(context):
                yield reply

    return answer


def _request(data: bytes, decode: Decode, call: Call) -> Any:
    request = _decoded(data, decode)
    call.read(request)
    return request


def _reply(
    behave: Callable[[Any, Any], Any], decode: Decode, begin: Callable[[], Call], read: Read
) -> Callable[[Any, Any], Any]:
    def guarded(requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        with read(requests, context) as message:
            call = begin()
            try:
                reply = call.span.context.run(behave, _request(message, decode, call), context)
            except BaseException as error:  # a driver or a model may exit, which must leave no caller without an answer
                problem = _problem(error)
            else:
                call.end(OK)
                return reply
            call.end(code_of(problem).name if context.is_active() else _left(context))
            context.abort_with_status(rpc_status.to_status(status_of(problem)))

    return guarded


def _replies(
    behave: Callable[[Any, Any], Iterator[Any]], decode: Decode, begin: Callable[[], Call], read: Read, waiting: Wait
) -> Callable[[Any, Any], Any]:
    def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        with read(requests, context) as message:
            yield from _guarded(lambda call: behave(_request(message, decode, call), context), begin(), context)

    return _taken(answer, waiting)


def _stream(
    behave: Callable[[Any, Any], Iterator[Any]], decode: Decode, begin: Callable[[], Call]
) -> Callable[[Any, Any], Any]:
    def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        def behaving(call: Call) -> Iterator[Any]:
            return behave((_request(data, decode, call) for data in requests), context)

        yield from _guarded(behaving, begin(), context)

    return answer


def _guarded(behave: Callable[[Call], Iterator[Any]], call: Call, context: grpc.ServicerContext) -> Iterator[Any]:
    code = ""
    try:
        yield from _within(call, behave(call))
        code = OK
        return
    except GeneratorExit:
        raise
    except BaseException as error:
        if not context.is_active():  # the client left; nobody to tell
            return
        problem = _problem(error)
        code = code_of(problem).name
    finally:
        call.end(code or _left(context))
    context.abort_with_status(rpc_status.to_status(status_of(problem)))


def _within(call: Call, replies: Iterator[Any]) -> Iterator[Any]:
    """The same replies, each made within the call's span."""
    try:
        while (reply := call.span.context.run(next, replies, _END)) is not _END:
            yield reply
    finally:
        call.span.context.run(replies.close)  # type: ignore[attr-defined]  # a generator, as all our streams are


def _left(context: grpc.ServicerContext) -> str:
    """How a call ended whose client did not wait for its end; a method that had said it all has set its code."""
    if context.code() is grpc.StatusCode.OK:
        return OK
    return "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"


def _problem(error: BaseException) -> SkillError:
    if isinstance(error, SkillError):
        return error
    log.error("a call failed", exc_info=error)
    return ServerFault("the service failed; its log has the reason")
