"""On the command line: how a service is watched while it runs. Its log, its metrics, its spans."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Annotated

import tyro

from saycan_qt.services import logs, telemetry
from saycan_qt.services.access import ServerOptions
from skills.security.access import Access
from skills.serving.watching import NOBODY, Watcher


@dataclass(frozen=True)
class OperationOptions:
    """How a service is watched while it runs."""

    # Metrics for Prometheus on this port, at /metrics; 0: a free one, which is printed. With --tokens they take a token
    # with the role "read", with --certificate they are served over TLS
    metrics_port: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    metrics_host: str = "127.0.0.1"  # address to serve metrics on; one that other machines can reach takes TLS
    log_format: logs.LogFormat = "text"  # on standard error: lines for people, or JSON with a field for each fact
    log_level: logs.LogLevel = "info"  # info: a line for each call that ended; warning: what went wrong only

    def start(self, service: str, options: ServerOptions, access: Access) -> Watcher:
        """Log, spans and metrics from now on, and whom to tell of calls. Raises SkillError for a host or port that will
        not do."""
        logs.configure(self.log_format, self.log_level)
        telemetry.start(service.replace(" ", "-"))
        if self.metrics_port is None:
            return NOBODY
        from saycan_qt.services.exposition import Endpoint, Metrics

        metrics = Metrics()
        endpoint = Endpoint(metrics, self.metrics_host, self.metrics_port, access, _tls(options))
        print(f"{service} metrics at {endpoint.url}", flush=True)
        return metrics


def _tls(options: ServerOptions) -> ssl.SSLContext | None:
    """As the service itself has it."""
    if options.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.certificate, options.key)
    if options.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(options.client_ca)
    return context


HowToWatch = Annotated[OperationOptions, tyro.conf.arg(name="")]
