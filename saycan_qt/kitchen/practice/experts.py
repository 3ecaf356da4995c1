"""Scripted experts that demonstrate every learnt skill. They read the simulator; policies may not."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from saycan_qt.kitchen.embodiment import ACTION_HIGH
from saycan_qt.kitchen.objects import THINGS
from saycan_qt.kitchen.scene import DRAWER_Z
from saycan_qt.kitchen.tasks import inside_drawer, on_worktop, start_height
from saycan_qt.kitchen.world import CARRY, World, grasp_height, rotation_vector, rotation_z
from skills.library import Skill

STEP = float(ACTION_HIGH[0])  # the furthest the tip moves in one action [m]
PITCH = 0.3  # the gripper leans forward at drawers [rad]


def _half_turn(angle: float) -> float:
    """The angle modulo pi, in [-pi/2, pi/2): the gripper is symmetric."""
    return (angle + math.pi / 2) % math.pi - math.pi / 2


def carry(world: World) -> Iterator[np.ndarray]:
    """Actions, to be carried out one by one: straight up, then to the carrying pose with the gripper level; gently when
    something is held, and opening the gripper when nothing is."""
    if not world.held():
        world.closedness = 0.0
    for waypoint in (np.array([*world.tip()[:2], CARRY[2]]), CARRY):
        for _ in range(24):
            change = waypoint - world.tip()
            if np.abs(change).max() < 0.015:
                break
            reach, swing = (STEP, 0.5) if world.closedness < 0.5 else (0.03, 0.15)
            change *= min(1.0, reach / max(float(np.abs(change).max()), 1e-9))
            turn = np.clip(rotation_vector(world.tip_rotation().T), -swing, swing)
            yield np.array([*change, *turn, world.closedness, 0.0])


class Expert:
    """Chooses the next (8,) action for a skill from the world's true state; terminates on success.

    `offset` (2,) [m] shifts every grasp, which makes failures that look like near successes; the tip moves no further
    than `pace` along an axis in one action [m]."""

    def __init__(self, world: World, skill: Skill, offset: np.ndarray | None = None, pace: float = STEP):
        self.world, self.skill = world, skill
        self.offset = np.zeros(2) if offset is None else offset
        self.pace = pace
        self.name = skill.arguments.get("object", "")
        self.start_height = start_height(world, skill)
        self.turn = 0.0  # which of the gripper's two symmetric headings is nearer, settled at the first grasp

    def act(self) -> np.ndarray:
        match self.skill.family:
            case "pick":
                return self._pick()
            case "open drawer":
                return self._open(self.skill.arguments["drawer"])
            case "close drawer":
                return self._close(self.skill.arguments["drawer"])
            case "move near":
                return self._move_near(self.skill.arguments["target"])
            case "place into drawer":
                return self._place(self.skill.arguments["drawer"])
            case "pick from drawer":
                return self._pick_from()
        raise ValueError(f"no expert for the family {self.skill.family!r}")

    def put_down(self, x: float, y: float, z: float) -> np.ndarray | None:
        """Towards releasing what is held so that the tip is at (x, y, z); None once released and risen."""
        tip = self.world.tip()
        if self.world.closedness < 0.5:
            return None if tip[2] > z + 0.12 else self._go(tip + [0, 0, STEP], 0.0)
        error = np.array([x, y, z]) - tip
        if np.linalg.norm(error[:2]) > 0.02:
            return self._go([x, y, max(tip[2], z + 0.1)], 1.0)
        return self._go(tip, 0.0) if abs(error[2]) < 0.012 else self._go([x, y, z], 1.0)

    # ---- moves --------------------------------------------------------------------------------------------------

    def _go(
        self, goal, closedness: float, yaw: float | None = None, pitch: float = 0.0, stop: bool = False
    ) -> np.ndarray:
        rotation = self.world.tip_rotation()
        change = np.asarray(goal, float) - self.world.tip()
        change *= min(1.0, self.pace / max(float(np.abs(change).max()), 1e-9))
        heading = math.atan2(rotation[1, 0], rotation[0, 0])
        wanted = heading
        if yaw is not None:
            wanted = heading + _half_turn(yaw - heading)
            if abs(wanted) > 1.9:
                wanted -= math.copysign(math.pi, wanted)
        c, s = math.cos(pitch), math.sin(pitch)
        lean = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
        turn = np.clip(rotation_vector(rotation_z(wanted) @ lean @ rotation.T), -0.5, 0.5)
        return np.array([*change, *turn, closedness, float(stop)])

    def _approach(self) -> np.ndarray | None:
        """Towards a grasp of the object; None once it is held."""
        world, name = self.world, self.name
        thing = THINGS[name]
        if world.grasped(name) and world.closedness > 0.5 and world.finger_gap() < 0.088:
            return None
        goal = world.position(name) + [*self.offset, grasp_height(name)]
        boxy = thing.shape == "box"
        tip, rotation = world.tip(), world.tip_rotation()
        yaw = world.yaw(name) if boxy else 0.0
        turn = abs(_half_turn(yaw - math.atan2(rotation[1, 0], rotation[0, 0]))) if boxy else 0.0
        error = float(np.linalg.norm(tip[:2] - goal[:2]))
        if world.closedness > 0.5:  # closed on nothing: open, rise
            return self._go([tip[0], tip[1], max(tip[2], goal[2]) + 0.05], 0.0)
        if error < 0.014 and abs(tip[2] - goal[2]) < 0.014 and turn < 0.25:
            return self._go(goal, 1.0, yaw)
        clear = thing.half_height - grasp_height(name) + 0.055  # fingertips above the object's top
        if error > 0.05 and tip[2] < goal[2] + clear - 0.02:  # rise before crossing
            return self._go([*(tip[:2] + (goal[:2] - tip[:2]) * 0.2), goal[2] + clear + 0.02], 0.0, yaw)
        if goal[2] < -0.1 and error > 0.03:  # into a drawer: first above it, then straight down
            height = max(tip[2], 0.06) - goal[2] if tip[2] > -0.05 else clear
            return self._go([goal[0], goal[1], goal[2] + height], 0.0, yaw)
        height = 0.0 if error < 0.015 else min((error - 0.015) * 3, clear)
        return self._go([goal[0], goal[1], goal[2] + max(height, 0.05 if turn > 0.3 else 0.0)], 0.0, yaw)

    def _pick(self) -> np.ndarray:
        action = self._approach()
        if action is not None:
            return action
        tip = self.world.tip()
        if self.world.position(self.name)[2] - self.start_height > 0.065:
            return self._go(tip, 1.0, stop=True)
        return self._go(tip + [0, 0, STEP], 1.0)

    def _handle(self, drawer: str) -> tuple[float, float, float]:
        """How far the drawer is open, and x and z of its handle's bar [m]."""
        opening = self.world.opening(drawer)
        return opening, -0.05 - opening, DRAWER_Z[drawer] + 0.02

    def _reach(self, x: float, z: float) -> np.ndarray:
        """Towards a point before the drawers, fingers shut and leaning forward."""
        return self._go([x, float(np.clip(self.world.tip()[1], -0.05, 0.05)), z], 1.0, 0.0, PITCH)

    def _open(self, drawer: str) -> np.ndarray:
        tip, (opening, bar_x, bar_z) = self.world.tip(), self._handle(drawer)
        if opening > 0.21:
            return self._go(tip, 1.0, 0.0, PITCH, stop=True)
        hook_x, hook_z, over = bar_x + 0.026, bar_z - 0.012, bar_z + 0.042
        if abs(tip[0] - hook_x) < 0.02 and tip[2] < bar_z + 0.012:  # hooked: pull
            return self._reach(tip[0] - 0.07, hook_z)
        if abs(tip[0] - hook_x) < 0.014 and tip[2] < over + 0.03:  # behind the bar: down
            return self._reach(hook_x, hook_z)
        if abs(tip[2] - over) < 0.015:  # over the bar: forward
            return self._reach(hook_x, over)
        if tip[0] < bar_x - 0.045:  # in front of all bars: down, or up
            return self._reach(bar_x - 0.07, over)
        return self._reach(bar_x - 0.07, max(tip[2], over))  # out

    def _close(self, drawer: str) -> np.ndarray:
        tip, (opening, bar_x, bar_z) = self.world.tip(), self._handle(drawer)
        if opening < 0.02:
            return self._go(tip, 1.0, 0.0, PITCH, stop=True)
        if tip[0] < bar_x - 0.008 and abs(tip[2] - bar_z) < 0.025:
            return self._reach(tip[0] + STEP, bar_z)
        if tip[2] < bar_z + 0.05 and tip[0] < bar_x - 0.02:
            return self._reach(tip[0], bar_z)
        if tip[0] > bar_x - 0.025:
            return self._reach(bar_x - 0.06, max(tip[2], bar_z + 0.07))
        return self._reach(min(tip[0], bar_x - 0.04), bar_z)

    def _move_near(self, target: str) -> np.ndarray:
        world, tip = self.world, self.world.tip()
        here, there = world.position(self.name), world.position(target)
        half = THINGS[self.name].half_height
        held = world.grasped(self.name) and world.closedness > 0.5
        if (
            np.linalg.norm(here[:2] - there[:2]) < 0.138
            and not held
            and here[2] < half + 0.03
            and world.closedness < 0.5
        ):
            if tip[2] > here[2] + half + 0.055:
                return self._go(tip, 0.0, stop=True)
            return self._go(tip + [0, 0, STEP], 0.0)
        action = None if held else self._approach()
        if action is not None:
            return action
        return self._carry_to(self._free_spot_near(there[:2], here[:2]), half, 0.16)

    def _free_spot_near(self, center: np.ndarray, here: np.ndarray) -> np.ndarray:
        direction = here - center
        direction = direction / max(float(np.linalg.norm(direction)), 1e-6)
        for angle in (0, 0.5, -0.5, 1.0, -1.0, 1.6, -1.6, 2.3, -2.3, 3.1):
            spot = center + 0.108 * rotation_z(angle)[:2, :2] @ direction
            if 0.04 < spot[0] < 0.42 and abs(spot[1]) < 0.36 and self._free(spot, 0.088):
                return spot
        return center + 0.108 * direction

    def _free(self, spot: np.ndarray, clearance: float) -> bool:
        here = [n for n in self.world.names if n != self.name and on_worktop(self.world, n)]
        return all(np.linalg.norm(self.world.position(n)[:2] - spot) > clearance for n in here)

    def _carry_to(self, spot: np.ndarray, rest_height: float, travel: float) -> np.ndarray:
        """Carry the held object over `spot`, lower it to rest there, release. Heights are of its centre [m]."""
        position, tip = self.world.position(self.name), self.world.tip()
        error = spot - position[:2]
        distance, above = float(np.linalg.norm(error)), position[2] - rest_height - 0.004
        if distance < 0.022:
            return self._go(tip, 0.0) if above < 0.012 else self._go(tip + [*error, -above], 1.0)
        up = float(np.clip(rest_height + travel - position[2], -STEP, STEP))
        share = 1.0 if above > 0.06 else 0.1  # first up, then across
        return self._go(tip + [*(error * share), up], 1.0)

    def _place(self, drawer: str) -> np.ndarray:
        world, tip = self.world, self.world.tip()
        position, half = world.position(self.name), THINGS[self.name].half_height
        held = world.grasped(self.name) and world.closedness > 0.5
        if world.in_drawer(self.name, drawer) and not held and world.closedness < 0.5:
            if tip[2] > DRAWER_Z[drawer] + 0.2:
                return self._go(tip, 0.0, stop=True)
            return self._go(tip + [0, 0, STEP], 0.0)
        action = None if held else self._approach()
        if action is not None:
            return action
        goal = np.array([inside_drawer(drawer, world.opening(drawer)), float(np.clip(position[1], -0.08, 0.08))])
        error = goal - position[:2]
        drop = DRAWER_Z[drawer] - 0.045 + half + 0.02
        if np.abs(error).max() < 0.025:
            below = position[2] - drop
            return self._go(tip, 0.0, 0.0) if below < 0.03 else self._go(tip + [*error, -below], 1.0, 0.0)
        if position[2] < -half:  # between drawer and worktop: rise straight
            return self._go(tip + [0, 0, STEP], 1.0, 0.0)
        up = float(np.clip(0.12 + half - position[2], -STEP, STEP))
        return self._go(tip + [*(error * (1.0 if position[2] > half + 0.05 else 0.1)), up], 1.0, 0.0)

    def _pick_from(self) -> np.ndarray:
        world, tip = self.world, self.world.tip()
        position, half = world.position(self.name), THINGS[self.name].half_height
        held = world.grasped(self.name) and world.closedness > 0.5
        if position[2] > 0 and position[0] > 0.05 and not held and world.closedness < 0.5 and position[2] < half + 0.03:
            if tip[2] > position[2] + half + 0.05:
                return self._go(tip, 0.0, stop=True)
            return self._go(tip + [0, 0, STEP], 0.0)
        action = None if held else self._approach()
        if action is not None:
            return action
        if position[2] < half + 0.05 and position[0] < 0.04:  # still in the drawer: straight up
            return self._go(tip + [0, 0, STEP], 1.0)
        rows = sorted(np.linspace(-0.25, 0.25, 11), key=lambda y: abs(y - position[1]))
        spots = (np.array([x, y]) for x in (0.12, 0.2) for y in rows)
        spot = next((s for s in spots if self._free(s, 0.1)), np.array([0.12, 0.0]))
        return self._carry_to(spot, half, 0.16)


__all__ = ["Expert"]
