"""A camera that casts rays: the same pixels on every machine and in every thread, without GL or a driver."""

from __future__ import annotations

from dataclasses import dataclass, field

import mujoco
import numpy as np

SKY = np.array([140.0, 153.0, 166.0])


@dataclass(frozen=True)
class Lamp:
    """The light that a pixel gets: from everywhere, from the camera, and from one direction."""

    towards: tuple[float, float, float] = (-0.3, 0.35, 0.88)  # where it shines from, world frame; of any length
    ambient: float = 0.48
    headlight: float = 0.27
    diffuse: float = 0.33


LAMP = Lamp()


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. Position and forward axis are given in the base frame or, for a fixed one, the world's."""

    width: int
    height: int
    position: tuple[float, float, float]  # [m]
    target: tuple[float, float, float]  # a point on the optical axis [m]
    fovy: float  # vertical field of view [deg]
    on_robot: bool = True
    rays: np.ndarray = field(init=False, repr=False, compare=False)  # (H*W, 3) unit directions in its own frame

    def __post_init__(self) -> None:
        right, down, forward = self.axes()
        half = np.tan(np.radians(self.fovy) / 2)
        v = (np.arange(self.height) + 0.5) / self.height * 2 - 1
        u = ((np.arange(self.width) + 0.5) / self.width * 2 - 1) * self.width / self.height
        rays = forward + half * (u[None, :, None] * right + v[:, None, None] * down)
        rays = rays.reshape(-1, 3)
        object.__setattr__(self, "rays", rays / np.linalg.norm(rays, axis=1, keepdims=True))

    def axes(self) -> np.ndarray:
        """(3, 3), unit vectors to the right, down, and along the optical axis."""
        forward = np.subtract(self.target, self.position)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 3) [m], in the frame that the camera's position is given in, to pixels (N, 2): x from the left
        edge, y from the upper one."""
        right, down, forward = ((np.asarray(points, float) - self.position) @ self.axes().T).T
        scale = self.height / 2 / np.tan(np.radians(self.fovy) / 2)
        return np.column_stack([self.width / 2 + scale * right / forward, self.height / 2 + scale * down / forward])

    def resized(self, width: int, height: int) -> Camera:
        """The same view with other pixels."""
        return Camera(width, height, self.position, self.target, self.fovy, self.on_robot)


HEAD = Camera(96, 80, (-0.52, 0.0, 0.86), (0.0, 0.0, 0.0), 46.0)  # what policies see
HEAD_FOR_PEOPLE = HEAD.resized(320, 256)
ROOM = Camera(320, 256, (-2.3, -2.9, 2.3), (0.25, -0.1, -0.4), 50.0, on_robot=False)


def cast(model: mujoco.MjModel, data: mujoco.MjData, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hit geoms (H*W,) int32 with -1 for none, unit normals (H*W, 3) and directions (H*W, 3), both in the world frame.

    `data` must be up to date (mj_forward or mj_step)."""
    origin, rays = np.asarray(camera.position, float), camera.rays
    if camera.on_robot:
        base = model.body("base").id
        rotation = data.xmat[base].reshape(3, 3)
        origin, rays = data.xpos[base] + rotation @ origin, rays @ rotation.T
    rays = np.ascontiguousarray(rays)
    count = len(rays)
    geoms, distances, normals = np.full(count, -1, np.int32), np.zeros(count), np.zeros((count, 3))
    mujoco.mj_multiRay(
        model, data, origin, rays.reshape(-1), None, True, -1, geoms, distances, normals.reshape(-1), count, 40.0
    )
    return geoms, normals, rays


def render(model: mujoco.MjModel, data: mujoco.MjData, camera: Camera, lamp: Lamp = LAMP) -> np.ndarray:
    """(H, W, 3) uint8 RGB: flat colours under one lamp and a headlight, no shadows."""
    return paint(model, camera, *cast(model, data, camera), lamp)


def paint(
    model: mujoco.MjModel, camera: Camera, geoms: np.ndarray, normals: np.ndarray, rays: np.ndarray, lamp: Lamp = LAMP
) -> np.ndarray:
    """The picture of what `cast` found."""
    facing = np.abs(np.einsum("ij,ij->i", normals, rays))
    light = np.array(lamp.towards) / np.linalg.norm(lamp.towards)
    shade = lamp.ambient + lamp.headlight * facing + lamp.diffuse * np.maximum(normals @ light, 0.0)
    image = 255.0 * model.geom_rgba[geoms, :3] * np.minimum(shade, 1.1)[:, None]
    image[geoms < 0] = SKY
    return np.clip(image, 0, 255).astype(np.uint8).reshape(camera.height, camera.width, 3)
