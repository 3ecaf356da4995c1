"""Latch: whether a robot was stopped; with a file, also after its server was started anew."""

from __future__ import annotations

import os
from pathlib import Path

from skills.errors import ServerFault, Unavailable


class Latch:
    """Set while the file exists; without a file, as long as this object does."""

    def __init__(self, file: Path | None = None) -> None:
        """Raises Unavailable where the file could be neither made nor removed."""
        self._file = file
        self.is_set = file is not None and file.exists()
        if file is not None and not self.is_set:
            try:
                _make(file)
                _remove(file)
            except OSError as error:
                raise Unavailable(f"the latch cannot be kept in {file}: {error.strerror}") from None

    def set(self) -> None:
        """Raises ServerFault where the disk does not take it; it is set all the same until the process ends."""
        self.is_set = True
        try:
            if self._file is not None:
                _make(self._file)
        except OSError as error:
            raise ServerFault(f"the robot is stopped, but will not be when it starts anew: {error.strerror}") from error

    def release(self) -> None:
        """Raises ServerFault, and stays set, where the file cannot be removed."""
        try:
            if self._file is not None:
                _remove(self._file)
        except OSError as error:
            raise ServerFault(f"the robot stays stopped, its latch cannot be removed: {error.strerror}") from error
        self.is_set = False


def _make(file: Path) -> None:
    os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
    _sync(file.parent)


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    _sync(file.parent)


def _sync(folder: Path) -> None:
    """Wait until the disk has the folder's entries: a power cut forgets no stop."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
