"""What all tests share: a process in which nothing stands still for seconds, and how late this machine is."""

import gc
import threading
import time

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_long_garbage_collection():
    """A full one, over all that pytest and the tests before have loaded, held up every thread for 2 s and more: longer
    than services wait. What is there when a file's tests begin is not looked at again."""
    gc.collect()
    gc.freeze()


class Machine(threading.Thread):
    """How late this machine itself is when it is busy with other things: no service can be better."""

    HOPS = 4  # between threads and processes, from a call to its answer

    def __init__(self):
        super().__init__(daemon=True)
        self._worst, self._over = 0.0, threading.Event()
        self.start()

    def run(self):
        while not self._over.is_set():
            due = time.monotonic() + 0.002
            time.sleep(0.002)
            self._worst = max(self._worst, time.monotonic() - due)

    def lateness(self):
        """[s] since last asked."""
        worst, self._worst = self._worst, 0.0
        return self.HOPS * worst

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join()


@pytest.fixture
def machine():
    with Machine() as machine:
        yield machine
