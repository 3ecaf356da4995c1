"""A gantry that waters plants, and the world it lives in, in numpy alone: what an own robot's driver looks like.

A bed of 1.0 m x 0.6 m; the plants stand in a row, each a little elsewhere in every world; the tank holds water for two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from skills.library import Skill
from skills.robot_folder import RobotFolder
from skills.types import Observation

ROBOT = RobotFolder.load(Path(__file__).parent)
PERIOD = 1 / ROBOT.embodiment.control_hz  # [s]
STEP = float(ROBOT.embodiment.high[0])  # [m] in one period, at most
BED = np.array([1.0, 0.6], np.float32)  # [m]
HOME, TAP = np.array([0.08, 0.08]), np.array([0.08, 0.5])  # [m]
ROW = {"fern": 0.35, "cactus": 0.6, "basil": 0.85}  # x [m]
COLOURS = {"fern": (40, 160, 60), "cactus": (40, 90, 220), "basil": (230, 190, 30)}
ASIDE = 0.1  # [m] that a plant may stand off the middle of the row
REACH = 0.07  # [m] from a plant's middle: its own radius, within which water reaches it
POURED = 0.1  # of a tank, in one period
NEEDED = 5  # periods of water
CLOSE = 0.02  # [m]
GAIN, NEAR = 0.4, 0.04  # of the expert: of the way that is left, in one period; from where it pours [m]


class Gantry:
    """A skills.types.Robot. seed: decides the world. real_time: take as long as a real one would."""

    def __init__(self, seed: int = 0, real_time: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.embodiment, self.real_time = ROBOT.embodiment, real_time
        self.plants = {name: np.array([x, 0.3 + rng.uniform(-ASIDE, ASIDE)]) for name, x in ROW.items()}
        self.watered = dict.fromkeys(ROW, 0)  # periods
        self.at = rng.uniform([0, 0], [0.2, 0.6]) if seed else HOME.copy()  # [m]
        self.valve, self.tank = 0.0, 0.0
        self._halted = threading.Event()  # by `stop`, from any thread; the next action clears it

    # -- the driver ---------------------------------------------------------------------------------------------------

    def observe(self) -> Observation:
        state = np.array([*self.at, self.valve, self.tank], np.float32)
        images = {"top": self._top(36, 48), "nozzle": self._nozzle(36, 48)}
        dry = {name: "bed" for name, periods in self.watered.items() if periods < NEEDED}
        places = {"home": HOME, "tap": TAP, **self.plants}
        place = next((name for name, point in places.items() if self._near(point)), "")
        return Observation(images, state, place, "water" if self.tank >= NEEDED * POURED - 1e-6 else "", dry)

    def apply(self, action: np.ndarray) -> None:
        self._halted.clear()
        dx, dy, valve = map(float, action)
        self.at = np.clip(self.at + [dx, dy], 0, BED)
        self.valve = valve
        if valve > 0.5 and self.tank > 0:
            self.tank = max(0.0, self.tank - POURED)
            for name, point in self.plants.items():
                self.watered[name] += float(np.linalg.norm(self.at - point)) < REACH
        if self.real_time:
            self._halted.wait(PERIOD)

    def stop(self) -> None:
        self._halted.set()
        self.valve = 0.0

    def start(self, skill: Skill) -> None: ...

    def perform(self, skill: Skill, canceled: Callable[[], bool]) -> None:
        if skill.name == "done":
            return
        if (goal := {"fill the tank": TAP, "go home": HOME}.get(skill.name)) is None:
            raise ValueError(f"driver.py performs no {skill.name!r} yet")
        while not canceled() and not self._near(goal):
            self.apply(self._towards(goal))
        if skill.name == "fill the tank" and not canceled():
            self.tank = 1.0

    def succeeded(self, skill: Skill) -> bool | None:
        match skill.family:
            case "water":
                return self.watered[skill.arguments["plant"]] >= NEEDED
            case "fill the tank":
                return self.tank == 1.0
            case "go home":
                return self._near(HOME)
        return None

    def finish(self, skill: Skill, canceled: Callable[[], bool]) -> None: ...

    def satisfied(self, instruction: str) -> bool | None:
        return None  # it knows no goals of whole instructions

    def view(self, name: str) -> np.ndarray:
        return {"top": self._top, "nozzle": self._nozzle}[name](192, 256)

    # -- whom the policy learns from ----------------------------------------------------------------------------------

    def expert(self, plant: str) -> np.ndarray:
        """(3,) the next action of somebody who knows where the plants are: there, ever more slowly, and water."""
        way = self.plants[plant] - self.at
        return np.array([*np.clip(GAIN * way, -STEP, STEP), np.linalg.norm(way) < NEAR], np.float32)

    # -- the world ----------------------------------------------------------------------------------------------------

    def _towards(self, point: np.ndarray) -> np.ndarray:
        return np.array([*np.clip(point - self.at, -STEP, STEP), 0.0], np.float32)

    def _near(self, point: np.ndarray) -> bool:
        return float(np.linalg.norm(self.at - point)) < CLOSE

    def _top(self, height: int, width: int) -> np.ndarray:
        """(H, W, 3) uint8: the whole bed from above."""
        return self._picture(np.zeros(2), BED, height, width)

    def _nozzle(self, height: int, width: int) -> np.ndarray:
        """(H, W, 3) uint8: 0.4 m x 0.3 m below the nozzle."""
        half = np.array([0.2, 0.15])
        return self._picture(self.at - half, self.at + half, height, width)

    def _picture(self, low: np.ndarray, high: np.ndarray, height: int, width: int) -> np.ndarray:
        """The world between two corners [m]; y points up."""
        x = np.linspace(low[0], high[0], width)[None, :]
        y = np.linspace(high[1], low[1], height)[:, None]
        image = np.full((height, width, 3), (120, 85, 60), np.uint8)
        image[(x < 0) | (x > BED[0]) | (y < 0) | (y > BED[1])] = 60

        def disc(point: np.ndarray, radius: float, colour: tuple[int, int, int]) -> None:
            image[(x - point[0]) ** 2 + (y - point[1]) ** 2 < radius**2] = colour

        disc(TAP, 0.05, (200, 200, 210))
        for name, point in self.plants.items():
            disc(point, REACH, COLOURS[name])
            if self.watered[name] >= NEEDED:
                disc(point, 0.03, (20, 40, 60))
        disc(self.at, 0.025, (60, 230, 255) if self.valve > 0.5 and self.tank > 0 else (230, 40, 40))
        return image
