"""Labelled camera frames: where each object, finger and handle is, in the image and in space, for pre-training the
image encoder. It stands in for the paper's ImageNet pre-training; policies never see these labels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np

from saycan_qt.kitchen.camera import HEAD, cast, paint
from saycan_qt.kitchen.looks import LookName
from saycan_qt.kitchen.objects import THINGS
from saycan_qt.kitchen.physics import Unstable
from saycan_qt.kitchen.practice import rollouts
from saycan_qt.kitchen.practice.affordances import draw
from saycan_qt.kitchen.scene import DRAWER_Z, DRAWERS
from saycan_qt.kitchen.world import World
from skills.library import SkillLibrary

KEYPOINTS = (*THINGS, "left finger", "right finger", "hand", *(f"{d} handle" for d in DRAWERS))
STRIDE = 4  # pixels a heatmap cell spans
MIN_PIXELS = 3.0  # fewer than this count as not visible
MODES, SHARES = ("demonstration", "noisy", "offset", "wrong", "elsewhere"), (0.23, 0.23, 0.23, 0.23, 0.08)


def _geom_keypoint(world: World) -> np.ndarray:
    """(ngeom + 1,) index into KEYPOINTS for each geom, -1 for none; the last entry serves rays that hit nothing."""
    m = world.model
    table = np.full(m.ngeom + 1, -1)
    for geom in range(m.ngeom):
        body, name = m.body(m.geom_bodyid[geom]).name, m.geom(geom).name
        for candidate in (body, name):
            if candidate in KEYPOINTS:
                table[geom] = KEYPOINTS.index(candidate)
    return table


def positions(world: World) -> np.ndarray:
    """(K, 3) float32 [m, base frame]; what is not in this kitchen is at 0."""
    result = np.zeros((len(KEYPOINTS), 3), np.float32)
    for i, name in enumerate(KEYPOINTS):
        if name in world.names:
            result[i] = world.position(name)
        elif name in ("left finger", "right finger"):
            result[i] = world.in_base(world.data.geom(name).xpos)
        elif name == "hand":
            result[i] = world.in_base(world.data.body("hand").xpos)
        elif name.endswith("handle") and world.place == "far counter":
            drawer = name.removesuffix(" handle")
            result[i] = [-0.05 - world.opening(drawer), 0.0, DRAWER_Z[drawer] + 0.02]
    return result


def headings(world: World) -> np.ndarray:
    """(K, 2) float32: cosine and sine of twice the yaw of each long object, in the base frame; 0 for everything else.
    Twice, because a box turned by half a turn is the same to a gripper."""
    result = np.zeros((len(KEYPOINTS), 2), np.float32)
    for name in world.names:
        if THINGS[name].shape == "box":
            yaw = 2 * world.yaw(name)
            result[KEYPOINTS.index(name)] = np.cos(yaw), np.sin(yaw)
    return result


def label(geoms: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From the geom each pixel hits: heatmaps (K, H/4, W/4) uint8, 255 where a whole cell shows the keypoint, and
    visibility (K,) bool."""
    seen = table[geoms].reshape(HEAD.height // STRIDE, STRIDE, HEAD.width // STRIDE, STRIDE)
    share = (seen[None] == np.arange(len(KEYPOINTS))[:, None, None, None, None]).mean(axis=(2, 4))
    return (share * 255).astype(np.uint8), share.sum(axis=(1, 2)) * STRIDE**2 >= MIN_PIXELS


def labelled_frames(
    count: int,
    seed: int,
    every: int = 3,
    progress: Callable[[int], None] = lambda done: None,
    look: LookName = "target",
    asked: float = 0.0,
) -> dict[str, np.ndarray]:
    """`count` frames, every third step of scripted rollouts (half of them noisy) over all skills; first, as a share
    `asked` of them, what a robot sees where planners ask for affordances, with the arm at rest before it.

    images (N, 80, 96, 3) uint8; heatmaps (N, K, 20, 24) uint8; positions (N, K, 3) float32 [m, base frame];
    headings (N, K, 2) float32 as `headings` gives them; visible (N, K) bool; states (N, 8) float32."""
    rng, library = np.random.default_rng(seed), SkillLibrary.load()
    k, h, w = len(KEYPOINTS), HEAD.height, HEAD.width
    out: dict[str, np.ndarray] = {
        "images": np.zeros((count, h, w, 3), np.uint8),
        "heatmaps": np.zeros((count, k, h // STRIDE, w // STRIDE), np.uint8),
        "positions": np.zeros((count, k, 3), np.float32),
        "headings": np.zeros((count, k, 2), np.float32),
        "visible": np.zeros((count, k), bool),
        "states": np.zeros((count, 8), np.float32),
    }
    done = 0

    def keep(world: World, table: np.ndarray) -> None:
        nonlocal done
        head, lamp = world.look.head, world.look.lamp
        hits = cast(world.model, world.data, head)
        out["images"][done], out["states"][done] = paint(world.model, head, *hits, lamp), world.state()
        out["positions"][done], out["headings"][done] = positions(world), headings(world)
        out["heatmaps"][done], out["visible"][done] = label(hits[0], table)
        done += 1
        progress(done)

    while done < round(asked * count):
        with suppress(Unstable):  # then another one, from the same generator
            world = World(draw(rng, library)[2], look)
            keep(world, _geom_keypoint(world))
    while done < count:
        with suppress(Unstable):  # likewise
            skill = rollouts.random_skill(rng, library)
            mode = str(rng.choice(MODES, p=SHARES))
            run = rollouts.start(rng, skill, library, mode, look, max_steps=int(rng.integers(6, 30)), observing=False)
            table = _geom_keypoint(run.world)
            for i, _ in enumerate(run):
                if (i + 1) % every == 0:
                    keep(run.world, table)
                    if done == count:
                        break
    return out
