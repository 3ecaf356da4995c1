"""A robot on a line and a policy that walks it to x = 0.5 m: the smallest real Robot, Actor and Critic.

python tests/tiny_services.py          # a skill server of its own process; prints its address
"""

import sys
import threading
import time

import numpy as np

from skills.embodiment import ActionDimension, Camera, Embodiment, StateNumber
from skills.library import SkillLibrary
from skills.server import Limits, serve
from skills.types import Observation

GOAL = 0.5  # [m]
LINE = Embodiment(
    action=(ActionDimension("dx", -0.1, 0.1, "m", "delta"), ActionDimension("terminate", kind="terminate")),
    cameras=(Camera("front", 4, 6),),
    state=(StateNumber("x", "m"),),
    control_hz=3,
    max_seconds=15,
    name="line robot",
)
UNHURRIED = Limits(stream_timeout=10)  # machines that run tests may be slow


def wait_until(true, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


class LineRobot:
    """Moves along x; one control period takes `period` seconds."""

    name, embodiment, views = LINE.name, LINE, ("head", "room")

    def __init__(self, period=0.005):
        self.x, self.period, self.held = 0.0, period, ""
        self.stops, self.applied, self.threads = 0, 0, set()
        self.moving = threading.Event()

    def observe(self):
        self.threads.add(threading.get_ident())
        image = np.full((4, 6, 3), round(255 * min(self.x, 1)), np.uint8)
        objects = {"apple": "table", "tea": "far counter"}
        return Observation({"front": image}, np.array([self.x], np.float32), "table", self.held, objects)

    def apply(self, action):
        self.threads.add(threading.get_ident())
        self.applied += 1
        self.moving.set()
        time.sleep(self.period)
        self.x += float(action[0])

    def stop(self):
        self.stops += 1
        self.moving.clear()

    def start(self, skill): ...

    def perform(self, skill, canceled):
        if skill.family == "put down" and not self.held:
            raise ValueError("the gripper holds nothing to put down")
        deadline = time.monotonic() + (30 if skill.family == "go to" else 0)  # driving takes long
        self.moving.set()
        while time.monotonic() < deadline and not canceled():
            time.sleep(0.005)

    def succeeded(self, skill):
        return self.x >= GOAL if skill.learned else None

    def finish(self, skill, canceled): ...

    def satisfied(self, instruction):
        return self.x >= GOAL if instruction == "walk" else None

    def view(self, name):
        return {"head": np.zeros((8, 12, 3), np.uint8), "room": np.full((16, 16, 3), 200, np.uint8)}[name]


class Walker:
    """ "pick ..." walks to the goal and terminates there; "open ..." never moves; "close ..." never answers."""

    embodiment = LINE

    def act(self, history, instruction):
        action = np.zeros(len(LINE.action), np.float32)
        if instruction.startswith("close"):
            time.sleep(3)
        if instruction.startswith("pick"):
            action[0], action[-1] = 0.08, history[-1].state[0] + 0.08 >= GOAL
        return action

    def value(self, history, instructions):
        return np.array([min(1.0, len(history) / 10 + i / 1000) for i in range(len(instructions))], np.float32)


if __name__ == "__main__":
    with serve(SkillLibrary.load(), Walker(), Walker(), model_id="walker", limits=UNHURRIED) as server:
        print(server.address, flush=True)
        sys.stdin.read()
