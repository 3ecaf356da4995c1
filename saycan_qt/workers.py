"""Work of many parts, carried out by processes of this machine, which do not outlive whoever asked for it.

for episodes in carried_out(several, parts, workers=4):
    ...                                                   # as they are done
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TypeVar

from skills.errors import SkillError

Part = TypeVar("Part")
Result = TypeVar("Result")
_unprepared: list[Exception] = []  # of this worker


def carried_out(
    work: Callable[[Part], Result],  # a function of a module, or a partial of one, as is `prepare`
    parts: Iterable[Part],
    workers: int,
    prepare: Callable[[], None] | None = None,  # what each process does first
) -> Iterator[Result]:
    """What work(part) returns for each part, as they are done: a few kilobytes each; what is larger goes to a file.
    Errors of work and of prepare are raised as they are; SkillError where a process is killed."""
    parts = list(parts)
    if not parts:
        return
    context = multiprocessing.get_context("spawn")
    ends, end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(min(workers, len(parts)), context, _begin, (ends, prepare))
    try:
        asked = [pool.submit(_do, work, part) for part in parts]
        pool.submit(int)  # wakes it again: it watches those it knew when it woke, and submit wakes it, then starts one
        for done in as_completed(asked):
            yield done.result()
    except BrokenProcessPool:
        raise SkillError("a worker ended, out of memory perhaps; run again with fewer --workers") from None
    finally:
        end.close()  # nobody waits for what is under way, on Ctrl-C for instance
        pool.shutdown(cancel_futures=True)
        ends.close()


def _begin(ends: Connection, prepare: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all, and the one who asked ends the others
    threading.Thread(target=_end_with, args=(ends,), daemon=True).start()
    try:
        if prepare is not None:
            prepare()
    except Exception as error:  # a pool would only tell that it is broken
        _unprepared.append(error)


def _do(work: Callable[[Part], Result], part: Part) -> Result:
    if _unprepared:
        raise _unprepared[0]
    return work(part)


def _end_with(ends: Connection) -> None:
    """With whoever holds the other end of the pipe: it is closed, or was killed."""
    with contextlib.suppress(EOFError, OSError):
        ends.recv()
    os._exit(1)
