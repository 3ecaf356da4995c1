"""A span for each call, where OpenTelemetry is installed; else nothing.

Clients send the trace that they are in as W3C `traceparent`, and servers take it up, so that a planner's step, the
robot's skill and the skill server's control stream are one trace. Where spans go, the process's OpenTelemetry SDK says.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterable
from typing import Any

import grpc

try:
    from opentelemetry import context, propagate, trace
except ImportError:
    installed = False
else:
    installed = True

CODES = {code.name: code.value[0] for code in grpc.StatusCode}
FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}  # not the client's


def carried() -> tuple[tuple[str, str], ...]:
    """Metadata that tells a server which trace the caller is in; empty where it is in none."""
    if not installed:
        return ()
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())


class Span:
    """One call's part of a trace."""

    def __init__(self, service: str, method: str, metadata: Iterable[tuple[str, Any]]) -> None:
        self.trace_id = ""  # 32 hexadecimal digits; "" in no trace
        self.context = contextvars.copy_context()  # what runs in it belongs to this span
        self._span: Any = None
        if installed:
            self.context.run(self._begin, service, method, metadata)

    def tell(self, key: str, value: str) -> None:
        if self._span is not None:
            self._span.set_attribute(key, value)

    def end(self, code: str) -> None:
        """code: the call's status, such as "NOT_FOUND"."""
        if self._span is not None:
            self._span.set_attribute("rpc.grpc.status_code", CODES[code])
            if code in FAULTS:
                self._span.set_status(trace.Status(trace.StatusCode.ERROR, code))
            self._span.end()

    def _begin(self, service: str, method: str, metadata: Iterable[tuple[str, Any]]) -> None:
        parent = propagate.extract({key: value for key, value in metadata if isinstance(value, str)})
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        kind = trace.SpanKind.SERVER
        self._span = trace.get_tracer("skills").start_span(f"{service}/{method}", parent, kind, attributes)
        context.attach(trace.set_span_in_context(self._span, parent))
        if (own := self._span.get_span_context()).is_valid:
            self.trace_id = trace.format_trace_id(own.trace_id)
