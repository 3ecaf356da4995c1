"""KitchenRobot: the simulated robot as the driver that the robot service hosts, with its scripted skills."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import numpy as np

from saycan_qt.kitchen import elsewhere, goals, tasks
from saycan_qt.kitchen.camera import HEAD_FOR_PEOPLE, ROOM
from saycan_qt.kitchen.embodiment import CONTROL_HZ
from saycan_qt.kitchen.objects import THINGS
from saycan_qt.kitchen.physics import checked_action
from saycan_qt.kitchen.practice.experts import Expert, carry
from saycan_qt.kitchen.scene import PLACES, TRAY, WORKTOPS
from saycan_qt.kitchen.world import Scene, World
from skills.library import Skill
from skills.types import Observation

CAMERAS = {"head": HEAD_FOR_PEOPLE, "room": ROOM}
HAND_OVER = (0.2, 0.0)  # where things are dropped into the trash can [m]
BEFORE = ((0.09, 0.065), (0.09, -0.065), (0.09, 0.195), (0.09, -0.195))  # four more spots, on this side of the tray [m]
TAKEN = 0.09  # a spot with something nearer than this has no room left [m]


class KitchenRobot:
    """A skills.types.Robot in a random kitchen.

    seed: decides the kitchen. real_time: take as long as a real robot would (3 Hz) instead of as fast as possible.
    scene: a given kitchen instead of a random one."""

    def __init__(self, seed: int = 0, real_time: bool = False, scene: Scene | None = None):
        self.seed, self.real_time = seed, real_time
        self.world = World(scene or tasks.random_kitchen(np.random.default_rng(seed)))
        self._start_height = 0.0
        self._released = ""  # what was put down last
        self._next_period = 0.0
        self._halted = threading.Event()  # by `stop`; the next action clears it

    # ---- the Robot protocol -------------------------------------------------------------------------------------

    def observe(self) -> Observation:
        return self.world.observe()

    def apply(self, action: np.ndarray) -> None:
        action = checked_action(action)  # before a halt is forgotten
        self._halted.clear()
        self.world.step(action)
        if self.real_time:
            self._next_period = max(self._next_period + 1 / CONTROL_HZ, time.monotonic())
            self._halted.wait(max(0.0, self._next_period - time.monotonic()))

    def stop(self) -> None:
        self._halted.set()
        self.world.stop()

    def start(self, skill: Skill) -> None:
        """Before a learnt skill the arm returns to where demonstrations start, keeping what it holds."""
        self._released = ""
        self._halted.clear()
        if skill.learned:
            self._carry(self._halted.is_set)
        self._start_height = tasks.start_height(self.world, skill)
        self._next_period = time.monotonic()

    def perform(self, skill: Skill, canceled: Callable[[], bool]) -> None:
        match skill.family:
            case "find":
                name = skill.arguments["object"]
                if name not in self.world.names:
                    raise ValueError(f"there is no {name} in this kitchen")
                self._drive(self.world.where(name), canceled)
            case "go to":
                self._drive(skill.arguments["place"], canceled)
            case "bring it to you":
                self._drive("operator", canceled)
            case "put down":
                self._put_down(canceled)
            case "done":
                pass
            case _:
                raise ValueError(f"{skill.name!r} is learnt, not scripted")

    def succeeded(self, skill: Skill) -> bool | None:
        world = self.world
        match skill.family:
            case "find":
                name = skill.arguments["object"]
                return name in world.names and world.where(name) == world.place
            case "go to":
                return world.place == skill.arguments["place"]
            case "bring it to you":
                return world.place == "operator" and bool(world.held())
            case "put down":
                if not world.place:  # stopped on the way: it lies on the floor
                    return False
                return bool(self._released) and goals.holds(world, {"at": world.place, "object": self._released})
            case "done":
                return True
        return tasks.succeeded(world, skill, self._start_height)

    def finish(self, skill: Skill, canceled: Callable[[], bool]) -> None:
        self._carry(canceled)

    def satisfied(self, instruction: str) -> bool | None:
        goal = goals.find(instruction)
        return None if goal is None else goal(self.world)

    def view(self, name: str) -> np.ndarray:
        return self.world.render(CAMERAS[name])

    def imagine(self, skill: Skill) -> Callable[[Callable[[Observation], float]], np.ndarray] | None:
        return elsewhere.imagine(self.world, skill)

    # ---- scripted motion ----------------------------------------------------------------------------------------

    def _carry(self, canceled: Callable[[], bool] = lambda: False) -> None:
        for action in carry(self.world):
            if canceled():
                break
            self.apply(action)

    def _drive(self, place: str, canceled: Callable[[], bool]) -> None:
        if place not in PLACES:
            raise ValueError(f"there is no place {place!r}; this kitchen has {', '.join(PLACES)}")
        self._carry(canceled)
        if not canceled() and place != self.world.place:
            self.world.drive(place, canceled)

    def _put_down(self, canceled: Callable[[], bool]) -> None:
        world, name = self.world, self.world.held()
        if not name:
            raise ValueError("nothing is held")
        self._carry(canceled)
        self._released = name
        (x, y), grip = HAND_OVER, float(world.tip()[2] - world.position(name)[2])  # how it really lies in the fingers
        z = grip + THINGS[name].half_height + 0.006
        if world.place == "trash can":
            z = 0.12
        elif world.place in WORKTOPS:
            x, y = self._free_spot(name)
        elif world.place == "operator":
            x, y = self._free_spot(name, np.array(TRAY), np.array(BEFORE))
        mover = Expert(world, Skill("put down", "put down", learned=False))
        for _ in range(30):
            action = None if canceled() else mover.put_down(x, y, z)
            if action is None:
                break
            self.apply(action)

    def _free_spot(
        self, name: str, spots: np.ndarray | None = None, more: Iterable[np.ndarray] = ()
    ) -> tuple[float, float]:
        """The first of the spots with most room, or, where they are taken, of `more` [m]."""
        if spots is None:
            grid = np.stack(np.meshgrid([0.12, 0.2, 0.28], np.linspace(-0.25, 0.25, 11)), -1).reshape(-1, 2)
            spots = grid[np.argsort(np.abs(grid - [0.16, 0.0]).sum(axis=1))]
        others = [self.world.position(n)[:2] for n in self.world.names if n != name]

        def room(spot: np.ndarray) -> float:
            return min((float(np.linalg.norm(spot - other)) for other in others), default=1.0)

        best = max(spots, key=lambda spot: min(room(spot), 0.13))
        if room(best) < TAKEN:
            best = max((best, *more), key=room)
        return float(best[0]), float(best[1])


__all__ = ["CAMERAS", "KitchenRobot"]
