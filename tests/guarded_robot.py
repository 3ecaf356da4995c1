"""A robot's service in a process of its own, for faults that would take a test with them.

    python tests/guarded_robot.py FILE [hold|deafen]      # FILE gets a line for each thing that happens to the robot

It prints where it listens and where its guard does, and then, a second later, does what was asked for.
"""

import ctypes
import sys
import time
from pathlib import Path

import grpc
from tiny_services import LineRobot

from saycan_qt.services.processes import EndWhenTold
from skills.library import SkillLibrary
from skills.robot import serve


def note(what):
    with Path(sys.argv[1]).open("a") as file:
        file.write(f"{what} {time.monotonic()}\n")


class NotedRobot(LineRobot):
    def perform(self, skill, canceled):
        while not canceled():
            self.moving.set()
            note("moves")
            time.sleep(0.01)

    def stop(self):
        super().stop()
        note("stop")


def main():
    end, robot = EndWhenTold(False), NotedRobot()
    end.arm(halt=robot.stop)
    command = "stop_command:halt" if len(sys.argv) > 2 else ""
    with serve(robot, SkillLibrary.load(), stop_command=command, ends=True, on_loss=end.tell) as server:
        print(server.address, server.guard.address, flush=True)
        if "hold" in sys.argv:
            sys.stdin.readline()
            ctypes.PyDLL(None).sleep(20)  # with the interpreter's lock
        if "deafen" in sys.argv:
            sys.stdin.readline()
            grpc._server._process_event_and_continue = lambda *_: time.sleep(20)  # gRPC's thread that serves all calls
        end.wait()
    return 1 if server.guard.lost else 0


if __name__ == "__main__":
    sys.exit(main())
