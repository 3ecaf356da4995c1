"""A service's log: one line for each entry on standard error, as text for people or as JSON for machines.

{"time": "2026-11-21T18:00:00.000+00:00", "level": "info", "logger": "skills.calls", "message": "...",
 "method": "Control", "code": "OK", "seconds": 4.1, "caller": "robot", "goal_id": "9f0c..."}
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from skills.wire.conventions import plain

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
OURS = ("skills", "planners", "saycan_qt")  # packages whose entries the level is about; of others warnings only
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
WAITING = 10_000  # entries, at most; further ones are lost
AT_EXIT = 1.0  # [s] for those that still wait to be written
COMMON = {*vars(logging.makeLogRecord({})), "message", "asctime"}  # what every entry has; the rest are its facts


class TextFormatter(logging.Formatter):
    """An entry as one line, to which an exception adds some. What callers sent writes no line of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = plain(record.message)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """An entry as one line of JSON, with its facts (`extra=`) as fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": plain(record.getMessage()),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in COMMON}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class Unhurried(logging.Handler):
    """Hands entries to a thread that writes them: a log that nobody reads must hold up no call that stops a robot."""

    def __init__(self, writes: logging.Handler) -> None:
        super().__init__()
        self._writes, self._waiting = writes, queue.Queue[logging.LogRecord](WAITING)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self._waiting.put_nowait(record)

    def flush(self) -> None:
        """Called when the process ends."""
        deadline = time.monotonic() + AT_EXIT
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _write(self) -> None:
        while True:
            self._writes.handle(self._waiting.get())
            self._waiting.task_done()


def configure(form: LogFormat, level: LogLevel) -> None:
    """For this process, from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(TEXT))
    logging.basicConfig(handlers=[Unhurried(handler)], force=True)
    for package in OURS:
        logging.getLogger(package).setLevel(level.upper())
