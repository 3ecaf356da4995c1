"""What a robot's service and its guard tell each other without a lock or a wait: numbers in shared memory.

Each number has one writer. Times are of `time.monotonic`, which all processes of a machine share [s]; 0 where there is
none.
"""

from __future__ import annotations

import mmap
import os
import tempfile

SIZE = 64  # [bytes]
PULSE = 0  # by the service: when its serving thread last answered
DUE = 1  # by the service: when the driver has to be called again, or the robot halts; 0: it rests, or the driver acts
MOVING = 2  # by the service: 1 while the driver carries out a call that moves
ALIVE = 3  # by the guard: when it last looked
RIGHT = 4  # by the guard: 1 where the robot may move
LATCHED = 5  # by the guard: 1 from Stop until Reset


def create() -> int:
    """A file descriptor of the memory, with nothing in it, for `attach` here and in a process that inherits it."""
    if hasattr(os, "memfd_create"):  # Linux: on no disk, which might be full
        descriptor = os.memfd_create("guard")
        os.truncate(descriptor, SIZE)
        return descriptor
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(bytes(SIZE))
        return os.dup(file.fileno())


def attach(descriptor: int) -> memoryview[float]:
    """The numbers; each is read and written at once."""
    return memoryview(mmap.mmap(descriptor, SIZE)).cast("d")
