"""The folder of a training run has one writer."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from saycan_qt import atomic


def only_writer(out: Path) -> IO[str]:
    """A lock that is held until it is closed, or the process ends. Raises ValueError where another process has it."""
    try:
        return atomic.lock(out / ".lock", wait=False)
    except BlockingIOError:
        raise ValueError(f"{out}: another process trains here; choose another --out, or wait for it") from None
