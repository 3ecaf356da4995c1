"""A robot's service in a process of its own that can be starved of threads, by a limit on its address space.

python tests/starved_robot.py          # prints where it listens; takes "starve" and "feed" on standard input
"""

import resource
import sys
import threading
from pathlib import Path

from tiny_services import LineRobot

from skills.library import SkillLibrary
from skills.robot import serve

ROOM = 2**20  # [bytes] that it keeps, less than a thread's stack


def starve():
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, resource.RLIM_INFINITY))


def feed():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def has_threads():
    try:
        threading.Thread(target=int).start()
        return "fed"
    except RuntimeError as error:
        return str(error)


if __name__ == "__main__":
    with serve(LineRobot(), SkillLibrary.load()) as server:
        print(server.address, flush=True)
        for line in sys.stdin:
            {"starve": starve, "feed": feed}[line.strip()]()
            print(has_threads(), flush=True)
