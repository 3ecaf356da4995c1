"""The SHA-256 of large files, noted with their size and time of change, so that opening a dataset reads them once."""

from __future__ import annotations

from pathlib import Path

from saycan_qt import atomic
from skills import files


class NotedDigests:
    """A record in one JSON file. Good for finding a finished cache; before files are decoded, read them anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            noted = files.read_json(path)
            self._noted: dict[str, list[int | str]] = noted if isinstance(noted, dict) else {}
        except (OSError, ValueError):
            self._noted = {}
        self._changed = False
        self.trusted = False  # has any digest come from the record?

    def sha256(self, path: Path) -> str:
        status = path.stat()
        key, state = str(path.resolve()), [status.st_size, status.st_mtime_ns]
        noted = self._noted.get(key)
        if isinstance(noted, list) and noted[:2] == state and len(noted) == 3:
            self.trusted = True
            return str(noted[2])
        digest = atomic.sha256(path)
        self._noted[key] = [*state, digest]
        self._changed = True
        return digest

    def forget(self) -> None:
        self._noted, self._changed, self.trusted = {}, True, False

    def save(self) -> None:
        if self._changed:
            atomic.write(self.path, atomic.to_json(self._noted))
            self._changed = False
