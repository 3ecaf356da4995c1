"""The simulated kitchen: physics, the arm under differential inverse kinematics, scripted driving.

Positions are in the base frame unless a name says otherwise: x into the worktop, y left, z up from the worktop [m].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import mujoco
import numpy as np

from saycan_qt.kitchen.camera import Camera, render
from saycan_qt.kitchen.embodiment import ACTION_HIGH, ACTION_LOW, CONTROL_HZ
from saycan_qt.kitchen.looks import LOOKS, LookName
from saycan_qt.kitchen.objects import THINGS
from saycan_qt.kitchen.physics import check_stable, checked_action, log_warnings
from saycan_qt.kitchen.scene import (
    ARM_HOME,
    ARM_JOINTS,
    BASE_BACK,
    DRAWER_Z,
    DRAWERS,
    FINGER_TRAVEL,
    OPEN,
    PLACES,
    WORKTOPS,
    kitchen_xml,
)
from saycan_qt.kitchen.symbolic import open_drawers
from skills.types import Observation

PHYSICS_DT = 0.004  # [s]
CHUNKS = 8  # joint targets are interpolated over the first 70 % of a control period, in this many pieces
CHUNK_STEPS = round(1 / CONTROL_HZ / PHYSICS_DT / CHUNKS)
REACH_LOW, REACH_HIGH = np.array([-0.42, -0.42, -0.49]), np.array([0.46, 0.42, 0.40])  # of the gripper's tip [m]
LEAD = 0.03  # the commanded tip may lead the real one by this much [m]
CARRY = np.array([0.0, 0.0, 0.26])  # tip position while driving, and where learnt skills start [m]
GRASP_BELOW_TOP = 0.03  # the tip goes this far below an object's top, or to its centre if that is higher [m]


@dataclass(frozen=True)
class Placement:
    """Where an object stands: on a place's worktop or in a drawer; x, y, yaw in the place's frame [m, rad]."""

    place: str
    x: float
    y: float
    yaw: float = 0.0
    drawer: str = ""


@dataclass(frozen=True)
class Scene:
    """Everything that decides a kitchen's first instant."""

    objects: Mapping[str, Placement]
    place: str = "far counter"  # where the robot is docked
    drawers: Mapping[str, float] = field(default_factory=dict)  # opening [m]; closed when not named
    tip: tuple[float, float, float] = tuple(CARRY)  # [m]
    yaw: float = 0.0  # of the gripper [rad]
    held: str = ""  # an object of `objects` that starts in the gripper
    places: tuple[str, ...] = tuple(PLACES)  # places to build; training scenes need only the one in view

    def check(self) -> None:
        """Raises ValueError, naming it, for a number that is not finite."""
        numbers = {"tip": self.tip, "yaw": (self.yaw,)}
        numbers |= {f"{drawer} drawer": (opening,) for drawer, opening in self.drawers.items()}
        numbers |= {name: (at.x, at.y, at.yaw) for name, at in self.objects.items()}
        if wrong := [f"{what}: {given}" for what, given in numbers.items() if not np.isfinite(given).all()]:
            raise ValueError(f"every number of a scene must be finite; {', '.join(wrong)}")


def rotation_z(yaw: float) -> np.ndarray:
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """Axis times angle, (3,) [rad], of a 3x3 rotation."""
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(matrix).reshape(-1))
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    angle = float(np.linalg.norm(vector))
    quaternion, matrix = np.array([1.0, 0.0, 0.0, 0.0]), np.zeros(9)
    if angle > 1e-9:
        mujoco.mju_axisAngle2Quat(quaternion, np.asarray(vector, float) / angle, angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def grasp_height(name: str) -> float:
    """Height of the tip above the object's centre when grasped [m]."""
    thing = THINGS[name]
    height = max(thing.half_height - GRASP_BELOW_TOP, -0.002 if thing.half_height > 0.02 else 0.004)
    return height - 0.018 if thing.shape == "bottle" else height


class World:
    """One kitchen in MuJoCo. The same Scene and the same actions give the same states and pixels. What moves it raises
    `physics.Unstable` when the simulation gives up."""

    def __init__(self, scene: Scene, look: LookName = "target"):
        scene.check()
        log_warnings()
        self.scene, self.look = scene, LOOKS[look]
        self.names = tuple(scene.objects)
        self.model = mujoco.MjModel.from_xml_string(kitchen_xml(self.names, scene.places))
        self.data = mujoco.MjData(self.model)
        self._scratch = mujoco.MjData(self.model)  # inverse kinematics thinks here
        m = self.model
        m.geom_rgba[:, :3] = self.look.painted(m.geom_rgba[:, :3])
        self._tip, self._hand = m.site("tip").id, m.body("hand").id
        self._arm_q = np.array([m.joint(j).qposadr[0] for j in ARM_JOINTS])
        self._arm_v = np.array([m.joint(j).dofadr[0] for j in ARM_JOINTS])
        self._arm_range = np.array([m.joint(j).range for j in ARM_JOINTS])
        self._fingers = [m.geom("left finger").id, m.geom("right finger").id]
        self._finger_q = [m.joint("left finger").qposadr[0], m.joint("right finger").qposadr[0]]
        self._body = {name: m.body(name).id for name in self.names}
        self._object_q = {name: int(m.joint(name).qposadr[0]) for name in self.names}
        self._object_v = {name: int(m.joint(name).dofadr[0]) for name in self.names}
        self._drawer_q = {d: int(m.joint(f"{d} drawer").qposadr[0]) for d in DRAWERS if "far counter" in scene.places}
        self._stopped = False
        self.closedness = 0.0  # last command
        self._target, self._target_rotation = np.array(scene.tip, float), rotation_z(scene.yaw)  # commanded tip pose
        self._reset()

    # ---- state, in the base frame -------------------------------------------------------------------------------

    def tip(self) -> np.ndarray:
        """Position between the fingertips, (3,) [m]."""
        return self.in_base(self.data.site_xpos[self._tip])

    def tip_rotation(self) -> np.ndarray:
        """3x3; identity points straight down with the fingers apart along y."""
        return self._base_rotation().T @ self.data.site_xmat[self._tip].reshape(3, 3)

    def finger_gap(self) -> float:
        """Distance the fingers are apart beyond their closed position [m]."""
        return float(sum(self.data.qpos[a] for a in self._finger_q))

    def position(self, name: str) -> np.ndarray:
        """Centre of an object, (3,) [m]."""
        return self.in_base(self.data.xpos[self._body[name]])

    def yaw(self, name: str) -> float:
        matrix = self._base_rotation().T @ self.data.xmat[self._body[name]].reshape(3, 3)
        return float(math.atan2(matrix[1, 0], matrix[0, 0]))

    def opening(self, drawer: str) -> float:
        """How far a drawer is pulled out [m]; 0 where the kitchen was built without drawers."""
        return float(self.data.qpos[self._drawer_q[drawer]]) if self._drawer_q else 0.0

    def touching(self, name: str) -> tuple[bool, bool]:
        """Does the left, the right finger touch the object?"""
        body, touch = self._body[name], [False, False]
        geom_body = self.model.geom_bodyid
        for g1, g2 in self.data.contact.geom:
            for side, finger in enumerate(self._fingers):
                if (g1 == finger and geom_body[g2] == body) or (g2 == finger and geom_body[g1] == body):
                    touch[side] = True
        return touch[0], touch[1]

    def grasped(self, name: str) -> bool:
        return all(self.touching(name))

    def held(self) -> str:
        """The object between closed fingers, or ""."""
        if self.closedness < 0.5:
            return ""
        return next((name for name in self.names if self.grasped(name)), "")

    def where(self, name: str) -> str:
        """The place whose frame the object is nearest to."""
        p = self.data.xpos[self._body[name]]
        return min(
            self.scene.places, key=lambda place: float(np.linalg.norm(self._in_place(place, p)[:2] - [0.2, 0.0]))
        )

    def in_drawer(self, name: str, drawer: str) -> bool:
        if not self._drawer_q:
            return False
        x, y, z = self._in_place("far counter", self.data.xpos[self._body[name]])
        inside = 0.0 < x + self.opening(drawer) < 0.28 and abs(y) < 0.19
        return bool(inside and DRAWER_Z[drawer] - 0.06 < z < DRAWER_Z[drawer] + 0.06)

    def in_base(self, world: np.ndarray) -> np.ndarray:
        """A world position in the base frame, (3,) [m]."""
        return self._base_rotation().T @ (world - self.data.mocap_pos[0])

    def in_place(self, name: str, place: str) -> np.ndarray:
        """Centre of an object in a place's frame, (3,) [m]."""
        return self._in_place(place, self.data.xpos[self._body[name]])

    def state(self) -> np.ndarray:
        """Proprioception, (8,) float32, as the embodiment names them."""
        tip, rotation = self.tip(), rotation_vector(self.tip_rotation())
        opening = min(self.finger_gap() / (2 * FINGER_TRAVEL), 1.0)
        return np.array([*tip, *rotation, opening, self.closedness], np.float32)

    def observe(self) -> Observation:
        seen = {n: self.where(n) for n in self.names if not any(self.in_drawer(n, d) for d in DRAWERS)}
        states = open_drawers(drawer for drawer in DRAWERS if self.opening(drawer) > OPEN)
        return Observation({"head": self.render(self.look.head)}, self.state(), self.place, self.held(), seen, states)

    def render(self, camera: Camera) -> np.ndarray:
        return render(self.model, self.data, camera, self.look.lamp)

    def snapshot(self) -> World:
        """Another world in the state of this one, which goes its own way."""
        other = copy.copy(self)
        other.data, other._scratch = copy.copy(self.data), mujoco.MjData(self.model)
        return other

    def put(self, name: str, x: float, y: float) -> None:
        """An object stands at (x, y) of the base frame [m] on the worktop, and nothing else has changed."""
        xyz = self.data.mocap_pos[0] + self._base_rotation() @ [x, y, 0.0]
        self._set_object(name, np.array([*xyz[:2], THINGS[name].half_height + 0.001]), self._pose[2] + self.yaw(name))
        self._update()

    # ---- motion -------------------------------------------------------------------------------------------------

    def step(self, action: np.ndarray) -> None:
        """One control period (1/3 s) of an (8,) action; `terminate` is not the world's business. Raises ValueError,
        and nothing moves, for an action that is not 8 finite numbers."""
        action = np.clip(checked_action(action), ACTION_LOW, ACTION_HIGH)
        self._target = np.clip(self._target + action[:3], REACH_LOW, REACH_HIGH)
        self._target_rotation = rotation_matrix(action[3:6]) @ self._target_rotation
        self.closedness = float(action[6])
        self._move()
        tip = self.tip()
        self._target = tip + np.clip(self._target - tip, -LEAD, LEAD)

    def stop(self) -> None:
        """Hold still: the arm's targets become where it is. Safe from any thread."""
        self._stopped = True

    def drive(self, place: str, canceled: Callable[[], bool] = lambda: False, pieces: int = 8) -> None:
        """Drive the base to a place along a straight line, what the gripper holds staying in it. `canceled` is asked
        on the way; told so, the base stands still where it is, at no place."""
        start, goal = np.array(self._pose), np.array(PLACES[place])
        turn = (goal[2] - start[2] + math.pi) % (2 * math.pi) - math.pi
        back = np.array([BASE_BACK, 0.0, 0.0])
        center, center_goal = (p[:2] + (rotation_z(p[2]) @ back)[:2] for p in (start, goal))
        held = self.held()
        for i in range(1, pieces + 1):
            f = i / pieces
            yaw = start[2] + turn * f
            xy = center + (center_goal - center) * f - (rotation_z(yaw) @ back)[:2]
            self._carry_base((float(xy[0]), float(xy[1]), yaw) if i < pieces else PLACES[place], held)
            self.place = place if i == pieces else ""
            if i < pieces and canceled():
                break
        self.rest(20)

    def rest(self, steps: int) -> None:
        """Let so many physics steps pass."""
        mujoco.mj_step(self.model, self.data, nstep=steps)
        self._update()

    # ---- inside -------------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        scene, d = self.scene, self.data
        self.place = scene.place
        self._set_base(PLACES[scene.place])
        for drawer, opening in scene.drawers.items():
            d.qpos[self._drawer_q[drawer]] = opening
        for name, at in scene.objects.items():
            z = THINGS[name].half_height + 0.001
            x = at.x
            if at.drawer:
                z += DRAWER_Z[at.drawer] - 0.047
                x -= scene.drawers.get(at.drawer, 0.0)
            px, py, pyaw = PLACES[at.place]
            xy = np.array([px, py]) + rotation_z(pyaw)[:2, :2] @ [x, at.y]
            self._set_object(name, np.array([*xy, z]), pyaw + at.yaw)
        d.qpos[self._arm_q] = self._solve(np.array(ARM_HOME), self._target, self._target_rotation, 200)
        d.ctrl[: len(ARM_JOINTS)] = d.qpos[self._arm_q]
        width = FINGER_TRAVEL
        if scene.held:
            self.closedness, width = 1.0, THINGS[scene.held].half_width
            center = self._target - [0.0, 0.0, grasp_height(scene.held)]
            base = self._base_rotation()
            self._set_object(scene.held, d.xpos[self.model.body("base").id] + base @ center, self._pose[2] + scene.yaw)
        d.qpos[self._finger_q] = width
        d.ctrl[len(ARM_JOINTS) :] = FINGER_TRAVEL * (1 - self.closedness)
        self.rest(30)

    def _update(self) -> None:
        """What can be read is of this instant."""
        mujoco.mj_forward(self.model, self.data)
        check_stable(self.data)

    def _move(self) -> None:
        d, arms = self.data, len(ARM_JOINTS)
        start = d.ctrl[:arms].copy()
        goal = self._solve(start, self._target, self._target_rotation, 12)
        d.ctrl[arms:] = FINGER_TRAVEL * (1 - self.closedness)
        self._stopped = False
        for i in range(CHUNKS):
            if self._stopped:
                d.ctrl[:arms] = d.qpos[self._arm_q]
                break
            d.ctrl[:arms] = start + (goal - start) * min(1.0, (i + 1) / (CHUNKS * 0.7))
            mujoco.mj_step(self.model, d, nstep=CHUNK_STEPS)
        self._update()

    def _solve(self, q: np.ndarray, position: np.ndarray, rotation: np.ndarray, iterations: int) -> np.ndarray:
        """Damped least squares towards a tip pose in the base frame; what is left of the motion leans to ARM_HOME."""
        m, d = self.model, self._scratch
        d.mocap_pos[:], d.mocap_quat[:] = self.data.mocap_pos, self.data.mocap_quat
        d.qpos[:] = self.data.qpos
        q, jacobian, error = q.copy(), np.zeros((6, m.nv)), np.zeros(6)
        base = self._base_rotation()
        goal, goal_rotation = self.data.mocap_pos[0] + base @ position, base @ rotation
        for _ in range(iterations):
            d.qpos[self._arm_q] = q
            mujoco.mj_kinematics(m, d)
            mujoco.mj_comPos(m, d)
            error[:3] = goal - d.site_xpos[self._tip]
            error[3:] = rotation_vector(goal_rotation @ d.site_xmat[self._tip].reshape(3, 3).T)
            mujoco.mj_jacSite(m, d, jacobian[:3], jacobian[3:], self._tip)
            j = jacobian[:, self._arm_v]
            inverse = j.T @ np.linalg.inv(j @ j.T + 1e-4 * np.eye(6))
            lean = 0.2 * (np.array(ARM_HOME) - q)
            change = inverse @ error + lean - inverse @ (j @ lean)
            if iterations < 50 and np.abs(error).max() < 2e-4:
                break
            q = np.clip(q + np.clip(change, -0.3, 0.3), self._arm_range[:, 0], self._arm_range[:, 1])
        return q

    def _set_base(self, pose: tuple[float, float, float]) -> None:
        self._pose = pose
        self.data.mocap_pos[0] = [pose[0], pose[1], 0.0]
        self.data.mocap_quat[0] = [math.cos(pose[2] / 2), 0.0, 0.0, math.sin(pose[2] / 2)]
        mujoco.mj_kinematics(self.model, self.data)

    def _carry_base(self, pose: tuple[float, float, float], held: str) -> None:
        before, origin = self._base_rotation().copy(), self.data.mocap_pos[0].copy()
        if held:
            position, quaternion = self.data.xpos[self._body[held]].copy(), self.data.xquat[self._body[held]].copy()
        self._set_base(pose)
        if held:
            turn = self._base_rotation() @ before.T
            quat, result = np.zeros(4), np.zeros(4)
            mujoco.mju_mat2Quat(quat, np.ascontiguousarray(turn).reshape(-1))
            mujoco.mju_mulQuat(result, quat, quaternion)
            a = self._object_q[held]
            self.data.qpos[a : a + 3] = self.data.mocap_pos[0] + turn @ (position - origin)
            self.data.qpos[a + 3 : a + 7] = result
            self.data.qvel[self._object_v[held] : self._object_v[held] + 6] = 0.0
        mujoco.mj_forward(self.model, self.data)

    def _set_object(self, name: str, position: np.ndarray, yaw: float) -> None:
        a = self._object_q[name]
        self.data.qpos[a : a + 7] = [*position, math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]

    def _base_rotation(self) -> np.ndarray:
        return rotation_z(self._pose[2])

    @staticmethod
    def _in_place(place: str, world: np.ndarray) -> np.ndarray:
        x, y, yaw = PLACES[place]
        return rotation_z(yaw).T @ (world - [x, y, 0.0])


__all__ = ["CARRY", "WORKTOPS", "Placement", "Scene", "World", "grasp_height", "rotation_matrix", "rotation_vector"]
