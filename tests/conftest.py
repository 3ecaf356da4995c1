"""What all tests share: a process in which nothing stands still for seconds."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_long_garbage_collection():
    """A full one, over all that pytest and the tests before have loaded, held up every thread for 2 s and more: longer
    than services wait. What is there when a file's tests begin is not looked at again."""
    gc.collect()
    gc.freeze()
