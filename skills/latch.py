"""Latch: whether a robot was stopped; with a file, also after its server was started anew."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO

from skills.errors import Unavailable


class Latch:
    """Set while the file exists; without one it is forgotten with the service. The guard sets and releases it. A file
    is one robot's, until `close` or the end of the process: what resets one robot must not release another."""

    def __init__(self, file: Path | None = None) -> None:
        """Raises Unavailable where the file could be neither made nor removed, or is another robot's."""
        self.file = file
        self._lock: IO[bytes] | None = None
        self._closed = True
        self.take()

    def take(self) -> bool:
        """Is it set? Whoever lets a robot move asks; what `close` gave away is had again, or Unavailable raised."""
        file = self.file
        if file is None:
            return False
        if not self._closed:
            return file.exists()
        try:
            self._lock, self._closed = _own(file), False
            if there := file.exists():
                if not file.is_file():
                    raise FileExistsError(errno.EEXIST, "there is something that is no file")
            else:
                make(file)
                remove(file)
        except BlockingIOError:
            raise Unavailable(f"the latch {file} is that of another robot, which runs; give each its own") from None
        except OSError as error:
            self.close()
            raise Unavailable(f"the latch cannot be kept in {file}: {error.strerror}") from None
        return there

    def close(self) -> None:
        """Let the next one have the file, which stays as it is."""
        self._closed = True
        if self._lock is not None:
            self._lock.close()


def _own(file: Path) -> IO[bytes] | None:
    """A lock beside the file, which itself comes and goes; BlockingIOError where somebody has it."""
    try:
        import fcntl
    except ImportError:  # Windows: two are not kept apart
        return None
    lock = file.with_name(f"{file.name}.lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        lock.close()
        raise
    return lock


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
