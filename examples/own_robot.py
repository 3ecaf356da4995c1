"""Your own robot behind RobotService: replace what `Arm` does by calls to your hardware, and the rest stays.

    python examples/own_robot.py                              # all of it on loopback, in a few seconds
    python examples/own_robot.py --serve 127.0.0.1:50052      # the robot alone, until Ctrl-C ...
    python examples/own_robot.py --drive 127.0.0.1:50052      # ... and a client that sends it to the buttons and home

Learnt skills take their actions from a skill server. Here it hosts the hand-written policy `Reach`; --skill-server
takes another one, such as `python -m saycan_qt.serve` with --skills, --affordance and --execution of your own.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from skills.client import Feedback, RobotClient, SkillClient
from skills.embodiment import ActionDimension, Camera, Embodiment, StateNumber
from skills.errors import SkillError
from skills.library import Skill, SkillLibrary
from skills.robot import serve as serve_robot
from skills.server import Limits
from skills.server import serve as serve_skills
from skills.types import Observation

SKILLS = SkillLibrary.load(Path(__file__).with_name("own_robot.yaml"))
BUTTONS = {"red": (0.20, 0.10, 0.15), "blue": (0.25, -0.10, 0.10)}  # in the base frame [m]
HOME = (0.05, 0.0, 0.2)  # [m]
CLOSE = 0.01  # what counts as there [m]
STEP = 0.08  # furthest in one action [m]
ENDINGS = (signal.SIGTERM, signal.SIGHUP)  # of systemd and Docker; of a terminal that closes. Else no arm is stopped
EMBODIMENT = Embodiment(  # what policies are for it, and within which bounds they move it
    name="own arm",
    cameras=(Camera("head", height=80, width=96),),
    state=tuple(StateNumber(axis, "m") for axis in "xyz"),
    action=(
        *(ActionDimension(f"d{axis}", -STEP, STEP, "m", kind="delta") for axis in "xyz"),
        ActionDimension("terminate", kind="terminate"),
    ),
    control_hz=3,
    max_seconds=15,
)


class Arm:
    """A skills.types.Robot: an arm whose tip goes where it is told."""

    name, embodiment = EMBODIMENT.name, EMBODIMENT
    views = ("head", "room")  # cameras for people; `saycan_qt.run` films them

    def __init__(self) -> None:
        self._tip = np.array(HOME)
        self._halted = threading.Event()  # set by `stop`, from any thread; the next action clears it

    def observe(self) -> Observation:
        images = {"head": np.zeros((80, 96, 3), np.uint8)}  # your cameras, RGB, as they are
        return Observation(images, self._tip.astype(np.float32), place="home" if self._near(HOME) else "")

    def apply(self, action: np.ndarray) -> None:
        self._halted.clear()
        if not self._halted.wait(1 / EMBODIMENT.control_hz):  # your command goes out before, this is the period passing
            self._tip += action[:3]  # [m]; the last number is `terminate`

    def stop(self) -> None:
        self._halted.set()  # zero velocity and brakes, here

    def start(self, skill: Skill) -> None: ...  # open the gripper, home the arm: whatever each skill begins with

    def perform(self, skill: Skill, canceled: Callable[[], bool]) -> None:
        if skill.family not in ("go to", "done"):
            raise ValueError(f"this arm performs no {skill.name!r} yet")
        while skill.family == "go to" and not self._near(HOME) and not canceled():
            self.apply(np.clip(HOME - self._tip, -STEP, STEP))

    def succeeded(self, skill: Skill) -> bool | None:
        if skill.family == "done":
            return True
        return self._near(BUTTONS[skill.arguments["button"]] if skill.learned else HOME)

    def finish(self, skill: Skill, canceled: Callable[[], bool]) -> None: ...  # the next skill may start from here

    def satisfied(self, instruction: str) -> bool | None:
        return None  # it knows no goals of whole instructions

    def view(self, name: str) -> np.ndarray:
        return dict.fromkeys(self.views, self.observe().image)[name]

    def _near(self, point: Sequence[float]) -> bool:
        return float(np.linalg.norm(self._tip - point)) < CLOSE


class Reach:
    """Stands in for a trained policy: an Actor and a Critic (skills.types)."""

    embodiment = EMBODIMENT  # a checkpoint has that of the data that it was trained on

    def act(self, history: Sequence[Observation], instruction: str) -> np.ndarray:
        way = BUTTONS[instruction.removeprefix("reach ")] - history[-1].state  # [m]
        step = np.clip(way, -STEP, STEP)
        there = float(np.abs(way - step).max() < CLOSE)  # the last number ends the skill, after this step
        return np.array([*step, there], np.float32)

    def value(self, history: Sequence[Observation], instructions: Sequence[str]) -> np.ndarray:
        return np.full(len(instructions), 0.9, np.float32)


@dataclass(frozen=True)
class Config:
    serve: str = ""  # HOST:PORT to serve the robot at, and nothing else
    drive: str = ""  # HOST:PORT of a robot that is served
    skill_server: str = ""  # HOST:PORT of a policy other than Reach


def serve(config: Config, until_done: Callable[[str], int]) -> int:
    with ExitStack() as stack:
        policy = config.skill_server
        if not policy:
            limits = Limits(stream_timeout=5.0)  # a simulated arm may be late; for a real one keep the default
            server = serve_skills(SKILLS, Reach(), Reach(), model_id="reach", limits=limits)
            policy = stack.enter_context(server).address
        skills = stack.enter_context(SkillClient(policy))
        address = config.serve or "127.0.0.1:0"
        server = stack.enter_context(serve_robot(Arm(), skills.list_skills(), skills, address=address))
        print(f"own robot listening on {server.address}; its skill server is at {policy}", flush=True)
        return until_done(server.address)  # leaving the `with` stops the arm


def wait(address: str) -> int:
    threading.Event().wait()
    return 0


def drive(address: str) -> int:
    with RobotClient(address) as robot:
        for skill in ("reach red", "reach blue", "go to home"):
            print(skill)
            for event in robot.execute(skill):  # leaving this loop early, or dying in it, stops the arm
                if isinstance(event, Feedback):
                    print(f"  step {event.step}: tip at {event.state.round(2)} m")
                else:
                    print(f"  {event.status.value} in {event.seconds:.1f} s {event.message}")
                    if not event.succeeded:
                        return 1
    return 0


def end(*_: object) -> None:
    """As Ctrl-C does, but once: a terminal that closes says so twice, and would break off the stopping."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(config: Config) -> int:
    for number in ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, end)
    try:
        if config.drive:
            return drive(config.drive)
        return serve(config, wait if config.serve else drive)
    except SkillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0 if config.serve else 130


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
