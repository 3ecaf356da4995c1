"""What a service counts, for Prometheus: a Watcher, and the HTTP endpoint that is scraped.

    metrics = Metrics()
    with serve(library, critic, actor, watcher=metrics), Endpoint(metrics, "127.0.0.1", 9090) as endpoint:
        print(endpoint.url)

Each has a registry of its own, so that two servers in one process count apart.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    make_wsgi_app,
)

from skills.errors import PermissionDenied, Unauthenticated, Unavailable
from skills.security.access import Access
from skills.serving.batching import Line
from skills.serving.watching import Watcher
from skills.wire.conventions import join_address

log = logging.getLogger(__name__)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PATH = "/metrics"
PATIENCE = 10.0  # [s] for a scraper to send its request


class Metrics(Watcher):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=own)

        def name(what: str) -> str:
            return f"saycan_qt_{what}"

        call, batch = ["method"], ["of"]
        self._calls = Counter(name("calls"), "Calls that ended.", ["method", "code"], registry=own)
        self._call_seconds = Histogram(
            name("call_seconds"), "From a call's beginning to its end.", call, registry=own, buckets=SECONDS
        )
        self._open = Gauge(name("open_calls"), "Calls that run; of Control: streams.", call, registry=own)
        self._refused = Counter(name("refused"), "Calls that were not let in.", ["method", "code"], registry=own)
        self._sizes = Histogram(name("batch_size"), "Computed together.", batch, registry=own, buckets=SIZES)
        self._batch_seconds = Histogram(
            name("batch_seconds"), "Compute time of a batch.", batch, registry=own, buckets=SECONDS
        )
        self._waiting = Gauge(name("waiting"), "Questions to the model that wait for it.", batch, registry=own)
        self._callers = Gauge(name("callers"), "Calls that have a place at the model.", batch, registry=own)
        self._loads = Counter(name("model_loads"), "Models loaded.", ["model", "result"], registry=own)
        self._load_seconds = Gauge(name("model_load_seconds"), "That the latest load took.", ["model"], registry=own)

    def began(self, method: str) -> None:
        self._open.labels(method).inc()

    def ended(self, method: str, code: str, seconds: float) -> None:
        self._calls.labels(method, code).inc()
        self._call_seconds.labels(method).observe(seconds)
        self._open.labels(method).dec()  # last: who sees no call open finds them all counted

    def refused(self, method: str, code: str) -> None:
        self._refused.labels(method, code).inc()

    def computed(self, line: str, size: int, seconds: float) -> None:
        self._sizes.labels(line).observe(size)
        self._batch_seconds.labels(line).observe(seconds)

    def loaded(self, model: str, seconds: float, good: bool) -> None:
        self._loads.labels(model, "good" if good else "bad").inc()
        self._load_seconds.labels(model).set(seconds)

    def lines(self, lines: Mapping[str, Line[Any, Any]]) -> None:
        for name, line in lines.items():
            self._waiting.labels(name).set_function(partial(getattr, line, "waiting"))
            self._callers.labels(name).set_function(partial(getattr, line, "callers"))


class Endpoint:
    """Serves them at `url`, to whom `access` lets in with the role "read"; over TLS where that has it."""

    def __init__(
        self,
        metrics: Metrics,
        host: str,
        port: int,  # 0: a free one
        access: Access | None = None,  # None: whoever reaches a loopback address
    ) -> None:
        """Raises AccessError for a host that other machines can reach, where Access.check does; InvalidRequest for what
        is no port, Unavailable for one that is taken."""
        access = Access.at(host, port, access)
        try:
            kind = _IPv6 if ":" in host else _Server
            self._server = make_server(host, port, _guarded(make_wsgi_app(metrics.registry), access), kind, _Handler)
        except OSError as error:
            where = f"{join_address(host, port)} for metrics"
            raise Unavailable(f"cannot listen on {where}: {error.strerror}; port 0 takes any free one") from None
        self._server.access = access
        self.url = f"http{'s' if access.tls else ''}://{join_address(host, self._server.server_port)}{PATH}"
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]  # WSGI


def _guarded(app: App, access: Access) -> App:
    def guarded(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        shown = environment.get("HTTP_AUTHORIZATION")
        try:
            access.admit(PATH, [("authorization", shown)] if shown else [])
        except Unauthenticated as error:
            status, text = HTTPStatus.UNAUTHORIZED, str(error)
        except PermissionDenied as error:
            status, text = HTTPStatus.FORBIDDEN, str(error)
        else:
            if environment["PATH_INFO"] == PATH:
                return app(environment, start)
            status, text = HTTPStatus.NOT_FOUND, f"metrics are at {PATH}"
        start(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    return guarded


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    access: Access

    def get_request(self) -> tuple[socket.socket, Any]:
        """Over TLS as it was read last; without a handshake here, which would hold up all others."""
        connection, peer = super().get_request()
        if self.access.tls is None:
            return connection, peer
        return self.access.tls.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), peer

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a scrape failed", exc_info=True)


class _IPv6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, format: str, *arguments: Any) -> None:
        """Scrapes are not worth a line each."""
