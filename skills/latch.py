"""Latch: whether a robot was stopped; with a file, also after its server was started anew."""

from __future__ import annotations

import os
from pathlib import Path

from skills.errors import Unavailable


class Latch:
    """Set while the file exists; without one it is forgotten with the service. The guard sets and releases it."""

    def __init__(self, file: Path | None = None) -> None:
        """Raises Unavailable where the file could be neither made nor removed."""
        self.file = file
        self.is_set = file is not None and file.exists()
        if file is not None and not self.is_set:
            try:
                make(file)
                remove(file)
            except OSError as error:
                raise Unavailable(f"the latch cannot be kept in {file}: {error.strerror}") from None


def make(file: Path) -> None:
    """Returns when the disk has it."""
    os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
    _sync(file.parent)


def remove(file: Path) -> None:
    """Likewise."""
    file.unlink(missing_ok=True)
    _sync(file.parent)


def _sync(folder: Path) -> None:
    """Wait until the disk has the folder's entries: a power cut forgets no stop."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
