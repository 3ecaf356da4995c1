"""Health of a server, as grpc.health.v1 says it: Check, Watch and List.

gRPC's own servicer sends to those who watch while it holds its lock; one of them that takes nothing silences health,
and with it the thread that serves all calls. Here each Watch has a thread, which sends outside of every lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):
    """What a server says of its services, by name; "" is the whole server."""

    def __init__(self) -> None:
        self._statuses: Mapping[str, int] = {}
        self._changed = threading.Condition()

    def set(self, statuses: Mapping[str, int]) -> None:
        """From now on; returns without waiting for anybody who watches."""
        with self._changed:
            self._statuses = {**self._statuses, **statuses}
            self._changed.notify_all()

    def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=status)

    def List(
        self, request: health_pb2.HealthListRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthListResponse:
        statuses = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._statuses.items()}
        return health_pb2.HealthListResponse(statuses=statuses)

    def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        left, said = threading.Event(), None

        def leave() -> None:
            """From the thread that serves all calls; nobody holds this lock while waiting for a client."""
            left.set()
            with self._changed:
                self._changed.notify_all()

        def status() -> int:
            return self._statuses.get(request.service, UNKNOWN)

        if not context.add_callback(leave):
            return
        while True:
            with self._changed:
                while status() == said and not left.is_set():
                    self._changed.wait()
                said = status()
            if left.is_set():
                return
            yield health_pb2.HealthCheckResponse(status=said)
