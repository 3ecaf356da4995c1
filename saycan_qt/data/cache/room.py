"""Room for caches: what was used longest ago makes way for what is made. And how the making is shown."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from saycan_qt.data.lerobot import DatasetError

log = logging.getLogger(__name__)

FRAMES, FEATURES, INDEX = "frames-*", "features-*.npy", "index.json"  # a folder's files, and a file, in a cache
LONG = 20_000  # frames from which on there is a bar where a person looks on
EVERY = 10.0  # [s] between two lines where nobody does


def used(entry: Path) -> None:
    """Note that a cache's entry is of use now."""
    with contextlib.suppress(OSError):  # of somebody else's, who keeps it
        os.utime(entry / INDEX if entry.is_dir() else entry)


def make_room(home: Path, needed: float, gigabytes: float, keep: Collection[Path], what: str) -> None:
    """Remove entries of the cache at `home`, those used longest ago first, until it holds `gigabytes` at most with
    `needed` [bytes] more; 0 is no bound. Raises DatasetError where that is too little beside what is kept. For whoever
    holds the cache's lock; a process that still reads what is removed goes on reading it."""
    if not gigabytes:
        return
    entries = {path: _bytes(path) for pattern in (FRAMES, FEATURES) for path in home.glob(pattern)}
    least = needed + sum(size for path, size in entries.items() if path in keep)
    if least > gigabytes * 1e9:
        kept = f", {(least - needed) / 1e9:.3g} GB beside them" if least > needed else ""
        raise DatasetError(
            f"{home}: {what} take {needed / 1e9:.3g} GB{kept}, and --cache-size allows {gigabytes:g}; allow more, give "
            "fewer folders with --data, or take smaller images with `image_size: [80, 96]` in a mapping"
        )
    held = sum(entries.values())
    for path in sorted((path for path in entries if path not in keep), key=_last_use):
        if held + needed <= gigabytes * 1e9:
            return
        log.info("%s makes way in the cache: %.3g GB, not used for %s", path, entries[path] / 1e9, _ago(path))
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        held -= entries[path]


@contextlib.contextmanager
def shown(what: str, total: int, progress: bool | None = None) -> Iterator[Callable[[int], None]]:
    """Yields what is to be called with how many frames more are done. They are shown as a bar where a person looks on,
    else in a line of the log now and then; progress False: not at all, True: as a bar."""
    if progress or (progress is None and total > LONG and sys.stderr.isatty()):
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as display:
            bar = display.add_task(what, total=total)
            yield lambda count: display.advance(bar, count)
        return
    begun = told = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, told
        done += count
        if progress is None and (now := time.monotonic()) - told > EVERY:
            told, rate = now, done / (now - begun)
            left = max(0, total - done) / rate / 60
            log.info("%s: %s of %s frames, %.0f frames/s, %.1f min left", what, f"{done:,}", f"{total:,}", rate, left)

    yield advance


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def _last_use(path: Path) -> float:
    try:
        return (path / INDEX if path.is_dir() else path).stat().st_mtime
    except OSError:  # a folder without its index is of no use
        return 0.0


def _ago(path: Path) -> str:
    hours = (time.time() - _last_use(path)) / 3600
    return f"{hours / 24:.0f} days" if hours > 48 else f"{hours:.1f} hours"
