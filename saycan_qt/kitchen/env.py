"""One kitchen skill as a Gymnasium environment: reward 1 when the episode is terminated in success, else 0."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from saycan_qt.kitchen.camera import HEAD, HEAD_FOR_PEOPLE
from saycan_qt.kitchen.embodiment import ACTION_HIGH, ACTION_LOW
from saycan_qt.kitchen.practice.rollouts import MAX_STEPS
from saycan_qt.kitchen.tasks import practice, start_height, succeeded
from saycan_qt.kitchen.world import Scene, World
from skills.embodiment import TERMINATE_THRESHOLD
from skills.library import Skill


class KitchenEnv(gymnasium.Env):
    """Practise one learnt skill.

    Observations: {"image": (80, 96, 3) uint8, "state": (8,) float32, as the robot's embodiment names them}.
    Actions: (8,) float32, as the embodiment names them; the last one above 0.5 ends the episode, and only success at
    that moment is rewarded. An action that is not 8 finite numbers raises ValueError and is no step. Truncated after 45
    steps. `reset(options={"scene": Scene})` starts from a given scene."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 3}  # noqa: RUF012  (Gymnasium's own convention)

    def __init__(self, skill: Skill, max_steps: int = MAX_STEPS, render_mode: str | None = "rgb_array"):
        self.skill, self.max_steps, self.render_mode = skill, max_steps, render_mode
        self.action_space = gymnasium.spaces.Box(ACTION_LOW, ACTION_HIGH, dtype=np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            image=gymnasium.spaces.Box(0, 255, (HEAD.height, HEAD.width, 3), np.uint8),
            state=gymnasium.spaces.Box(-4.0, 4.0, (8,), np.float32),
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        scene: Scene = (options or {}).get("scene") or practice(self.np_random, self.skill)
        self.world, self.steps = World(scene), 0
        self.start_height = start_height(self.world, self.skill)
        return self._observation(), {}

    def step(self, action: np.ndarray):
        self.world.step(action)
        self.steps += 1
        terminated = bool(action[7] > TERMINATE_THRESHOLD)
        success = terminated and succeeded(self.world, self.skill, self.start_height)
        truncated = not terminated and self.steps >= self.max_steps
        return self._observation(), float(success), terminated, truncated, {"success": success}

    def render(self) -> np.ndarray:
        return self.world.render(HEAD_FOR_PEOPLE)

    def _observation(self) -> dict[str, np.ndarray]:
        observation = self.world.observe()
        return {"image": observation.image, "state": observation.state}
