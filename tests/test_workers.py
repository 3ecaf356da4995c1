"""Work in processes of this machine ends, whatever happens to them and to whoever asked for it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest

from saycan_qt.workers import carried_out
from skills.errors import SkillError

ASLEEP = "import time; print('begun', flush=True); time.sleep(100)"


def test_what_was_done_comes_back_and_the_works_own_error_is_raised_as_it_is():
    assert sorted(carried_out(abs, range(-3, 1), 2)) == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        list(carried_out(eval, ["1 / 0"], 1))
    with pytest.raises(ZeroDivisionError):
        list(carried_out(abs, [1], 1, partial(eval, "1 / 0")))


def test_where_one_is_killed_the_others_end_too(monkeypatch):
    start = ProcessPoolExecutor._spawn_process  # late: the pool does not look at it before it wakes once more
    monkeypatch.setattr(ProcessPoolExecutor, "_spawn_process", lambda pool: time.sleep(0.5) or start(pool))
    began = time.monotonic()
    with pytest.raises(SkillError, match="run again with fewer --workers"):
        list(carried_out(exec, [ASLEEP, f"import os; os.kill(os.getpid(), {signal.SIGKILL:d})"], 2))
    assert time.monotonic() - began < 80 and not multiprocessing.active_children()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_they_end_with_whoever_asked(sign):
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs have none
    code += f"from saycan_qt.workers import carried_out; list(carried_out(exec, [{ASLEEP!r}], 1))"
    asking = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert asking.stdout.readline() == b"begun\n"
    os.kill(asking.pid, sign)
    assert asking.communicate(timeout=80)[0] == b"" and asking.returncode  # all who could have written are gone
