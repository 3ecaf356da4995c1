"""The driver: replace what `Robot` does by calls to your hardware or simulator, and the rest stays.

`skills.types.Robot` says what each method must do, and docs/robots.md what the service guarantees. The constructor is
called with `folder` (this folder's path), `seed` and `real_time` if it takes arguments of these names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from skills.library import Skill
from skills.types import Observation

PLACES = {"dock": (0.1, 0.1), "window": (0.8, 0.2), "door": (0.5, 0.9)}  # x, y [m]
PERIOD = 0.1  # [s] 1 / control_hz of robot.yaml
STEP = 0.05  # [m] in one period, at most
CLOSE = 0.02  # [m]


class Robot:
    """A dot that drives about in a room of 1 m x 1 m."""

    def __init__(self) -> None:
        self._at = np.array(PLACES["dock"], np.float32)
        self._halted = threading.Event()  # by `stop`, from any thread; the next action clears it

    def observe(self) -> Observation:
        place = next((name for name in PLACES if self._near(name)), "")
        return Observation({"front": self._draw(48, 64)}, self._at.copy(), place=place)

    def apply(self, action: np.ndarray) -> None:
        self._halted.clear()
        if not self._halted.wait(PERIOD):  # your command goes out before; this is the period passing
            self._at = np.clip(self._at + action, 0, 1)

    def stop(self) -> None:
        self._halted.set()  # zero velocity now

    def start(self, skill: Skill) -> None: ...  # whatever each skill begins with

    def perform(self, skill: Skill, canceled: Callable[[], bool]) -> None:
        """A scripted skill, to its end."""
        if skill.family == "go to":
            goal = np.array(PLACES[skill.arguments["place"]], np.float32)
            while not self._near(skill.arguments["place"]) and not canceled():
                self.apply(np.clip(goal - self._at, -STEP, STEP))
        elif skill.family not in ("look around", "done"):  # these two move nothing
            raise ValueError(f"driver.py performs no {skill.name!r} yet")

    def succeeded(self, skill: Skill) -> bool | None:
        return self._near(skill.arguments["place"]) if skill.arguments else None  # None: it cannot tell

    def finish(self, skill: Skill, canceled: Callable[[], bool]) -> None: ...  # to where the next one is decided from

    def satisfied(self, instruction: str) -> bool | None:
        return None  # it knows no goals of whole instructions

    def view(self, name: str) -> np.ndarray:
        return {"front": self._draw}[name](240, 320)

    def _near(self, place: str) -> bool:
        return float(np.linalg.norm(self._at - PLACES[place])) < CLOSE

    def _draw(self, height: int, width: int) -> np.ndarray:
        """(H, W, 3) uint8: the room from above, its places grey, the robot red."""
        image, half = np.full((height, width, 3), 230, np.uint8), height // 16
        dots = [(np.array(place), (150, 150, 150)) for place in PLACES.values()]
        for (x, y), colour in [*dots, (self._at, (220, 40, 40))]:
            row, column = round((1 - float(y)) * (height - 1)), round(float(x) * (width - 1))
            image[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1] = colour
        return image
