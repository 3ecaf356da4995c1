"""A service's log: one line for each entry on standard error, as text for people or as JSON for machines.

{"time": "2026-11-21T18:00:00.000+00:00", "level": "info", "logger": "skills.calls", "message": "...",
 "method": "Control", "code": "OK", "seconds": 4.1, "caller": "robot", "goal_id": "9f0c..."}
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
OURS = ("skills", "planners", "saycan_qt")  # packages whose entries the level is about; of others warnings only
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
COMMON = {*vars(logging.makeLogRecord({})), "message", "asctime"}  # what every entry has; the rest are its facts


class JsonFormatter(logging.Formatter):
    """An entry as one line of JSON, with its facts (`extra=`) as fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in COMMON}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def configure(form: LogFormat, level: LogLevel) -> None:
    """For this process, from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(TEXT))
    logging.basicConfig(handlers=[handler], force=True)
    for package in OURS:
        logging.getLogger(package).setLevel(level.upper())
