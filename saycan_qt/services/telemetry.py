"""Where spans go, as OpenTelemetry's own environment variables say; without them nowhere.

    OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 python -m saycan_qt.serve    # pip install 'saycan-qt[telemetry]'
    OTEL_TRACES_EXPORTER=console python -m saycan_qt.robot

Sampling, limits, batches and resource are read from their variables by the SDK itself. Under `opentelemetry-instrument`
nothing is left to do here.
"""

from __future__ import annotations

import logging
import os
from importlib.metadata import entry_points

log = logging.getLogger(__name__)

INSTALL = "pip install 'saycan-qt[telemetry]'"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def start(service: str) -> None:
    """service: what spans say who made them, unless OTEL_SERVICE_NAME does."""
    name = os.environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if any(map(os.environ.get, ENDPOINTS)) else "none")
    if name == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no spans are sent, though the environment asks for them: %s", INSTALL)
        return
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    found = list(entry_points(group="opentelemetry_traces_exporter", name=exporter(name)))
    if not found:
        log.warning("no spans are sent: there is no exporter %r here; %s brings otlp", name, INSTALL)
        return
    os.environ.setdefault("OTEL_SERVICE_NAME", service)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
    trace.set_tracer_provider(provider)


def exporter(name: str) -> str:
    """The entry point of an exporter; otlp comes in two kinds."""
    if name != "otlp":
        return name
    return "otlp_proto_grpc" if os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") == "grpc" else "otlp_proto_http"
