"""On the command line: how a service is watched while it runs. Its log, its metrics, its spans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from saycan_qt.services import logs, telemetry
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

    def log(self) -> None:
        """From now on, as it was asked for: before anything has something to say."""
        logs.configure(self.log_format, self.log_level)

    def start(self, service: str, access: Access) -> Watcher:
        """Spans and metrics from now on, and whom to tell of calls. Raises SkillError for a host or port that will not
        do."""
        telemetry.start(service.replace(" ", "-"))
        if self.metrics_port is None:
            return NOBODY
        from saycan_qt.services.exposition import Endpoint, Metrics

        metrics = Metrics()
        endpoint = Endpoint(metrics, self.metrics_host, self.metrics_port, access)
        print(f"{service} metrics at {endpoint.url}", flush=True)
        return metrics


HowToWatch = Annotated[OperationOptions, tyro.conf.arg(name="")]
