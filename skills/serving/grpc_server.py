"""A gRPC server as both services need it: health, reflection, and one boundary where errors become statuses."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from skills.errors import InvalidRequest, ServerFault, SkillError, Unavailable
from skills.security.access import HEALTH, Access
from skills.serving.calls import Call, Calls
from skills.serving.watching import NOBODY, Watcher
from skills.wire.conventions import SERVER_OPTIONS, code_of, is_loopback, join_address, split_address, status_of

log = logging.getLogger(__name__)

THREADS = 32  # calls at one time; long ones are limited to fewer, so that health checks always find a thread
HEALTH_THREADS = 4
URGENT_THREADS = 4
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


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
    ) -> None:
        host, port = split_address(address)
        access = access or Access()
        access.check(host)
        _refuse_occupied(host, port, address)
        self._on_stop, self._service, self._stopped = on_stop, service, False
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=service)
        self._health_threads = ThreadPoolExecutor(HEALTH_THREADS, thread_name_prefix="health")
        self._urgent_threads = ThreadPoolExecutor(URGENT_THREADS, thread_name_prefix="urgent")
        apart = {f"/{service}/{method}": self._urgent_threads for method in urgent}
        boundary = _Boundary(access, self._health_threads, apart, Calls(watcher))
        self._server = grpc.server(self._threads, interceptors=[boundary], options=SERVER_OPTIONS)
        add_to_server(self._server)
        self._health = health.HealthServicer(experimental_non_blocking=True)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if is_loopback(host) or access.reflection:
            reflection.enable_server_reflection((service, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        if access.everybody and not is_loopback(host):
            log.warning("warning: whoever reaches %s may call everything; give --tokens or --client-ca", address)
        try:
            if access.tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, access.tls.credentials())
        except RuntimeError:
            raise Unavailable(f"cannot listen on {address}") from None
        self.address = join_address(host, self.port)
        self._server.start()
        self._set_health(SERVING if ready else NOT_SERVING)

    def set_ready(self) -> None:
        """From now on health says SERVING."""
        self._set_health(SERVING)

    def stop(self, grace: float = 1.0) -> None:
        """Refuse new calls, end running ones after `grace` seconds; returns when all have ended."""
        if not self._stopped:
            self._stopped = True
            self._set_health(NOT_SERVING)
            self._on_stop()
            self._server.stop(grace).wait()
            self._threads.shutdown(wait=False)
            self._health_threads.shutdown(wait=False)
            self._urgent_threads.shutdown(wait=False)

    def wait(self) -> None:
        """Until `stop` is called from elsewhere."""
        self._server.wait_for_termination()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _set_health(self, status: int) -> None:
        for name in ("", self._service):
            self._health.set(name, status)


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
_MALFORMED = object()  # stands for a request that is no protobuf message
_END = object()  # stands for what follows a stream's last reply


class _Boundary(grpc.ServerInterceptor):
    """Around every method of ours: SkillError -> its status, anything else -> INTERNAL and a log line; each call's end.

    Around all methods: who may not call is refused before anything of the request is read."""

    def __init__(
        self,
        access: Access,
        health_threads: ThreadPoolExecutor,
        apart: Mapping[str, ThreadPoolExecutor],
        calls: Calls,
    ) -> None:
        self._access, self._health_threads, self._apart, self._calls = access, health_threads, apart, calls

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        try:
            caller = self._access.admit(details.method, details.invocation_metadata)
        except Exception as error:
            return self._refusing(details.method, _problem(error))
        if details.method.startswith(HEALTH):
            return _apart(handler, self._health_threads)
        if not details.method.startswith("/skills.v1."):
            return handler
        decode, begin = _tolerant(handler.request_deserializer), partial(self._begin, details, caller)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _stream(handler.stream_stream, _checked_each, begin), decode, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream, _checked, begin), decode, handler.response_serializer
            )
        behave = _unary(handler.unary_unary, begin)
        unary = grpc.unary_unary_rpc_method_handler(behave, decode, handler.response_serializer)
        threads = self._apart.get(details.method)
        return unary if threads is None else _apart(unary, threads)

    def _begin(self, details: Any, caller: str) -> Call:
        return self._calls.begin(details.method, caller, details.invocation_metadata)

    def _refusing(self, method: str, problem: SkillError) -> grpc.RpcMethodHandler:
        """Fits every kind of method: answers without waiting for a message, and so holds no thread for a stranger."""

        def refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> None:
            self._calls.refused(method, code_of(problem).name)
            context.abort_with_status(rpc_status.to_status(status_of(problem)))

        return grpc.stream_unary_rpc_method_handler(refuse)


def _apart(handler: Any, threads: ThreadPoolExecutor) -> grpc.RpcMethodHandler:
    """With threads of its own. Health is open to strangers: its calls whose message never comes hold no others. What is
    urgent waits for no others."""
    streams = handler.response_streaming
    make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
    behave = partial(handler.unary_stream if streams else handler.unary_unary)
    vars(behave).update(experimental_thread_pool=threads, experimental_non_blocking=streams)  # as grpc reads them
    return make(behave, handler.request_deserializer, handler.response_serializer)


def _tolerant(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def tolerant(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _MALFORMED  # refused where the call's context is at hand

    return tolerant


def _checked(request: Any, call: Call) -> Any:
    if request is _MALFORMED:
        raise InvalidRequest("the request is not a message of this service")
    call.read(request)
    return request


def _checked_each(requests: Iterator[Any], call: Call) -> Iterator[Any]:
    return (_checked(request, call) for request in requests)


def _unary(behave: Callable[[Any, Any], Any], begin: Callable[[], Call]) -> Callable[[Any, Any], Any]:
    def guarded(request: Any, context: grpc.ServicerContext) -> Any:
        call = begin()
        try:
            reply = call.span.context.run(behave, _checked(request, call), context)
        except Exception as error:
            problem = _problem(error)
        else:
            call.end(OK)
            return reply
        call.end(code_of(problem).name if context.is_active() else _left(context))
        context.abort_with_status(rpc_status.to_status(status_of(problem)))

    return guarded


def _stream(
    behave: Callable[[Any, Any], Iterator[Any]], check: Callable[[Any, Call], Any], begin: Callable[[], Call]
) -> Callable[[Any, Any], Any]:
    def guarded(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        call, code = begin(), ""
        try:
            yield from _within(call, behave(check(request, call), context))
            code = OK
            return
        except Exception as error:
            if not context.is_active():  # the client left; nobody to tell
                return
            problem = _problem(error)
            code = code_of(problem).name
        finally:
            call.end(code or _left(context))
        context.abort_with_status(rpc_status.to_status(status_of(problem)))

    return guarded


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


def _problem(error: Exception) -> SkillError:
    if isinstance(error, SkillError):
        return error
    log.error("a call failed", exc_info=error)
    return ServerFault("the service failed; its log has the reason")
