"""What a robot and the model that moves it have agreed on: what the model sees, what the robot is sent, when it ends.

terms = Terms(embodiment_of(robot), model.embodiment)      # raises EmbodimentError: the first difference, in one line
action, ended = terms.read(control.act(terms.seen(robot.observe())))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from skills.embodiment import MAX_SECONDS, Embodiment
from skills.errors import EmbodimentError, InvalidRequest, ServerFault
from skills.types import Observation, looked_at

MOST_STEPS = 2**32 - 1  # that can be told (uint32)


def fitted(observation: Observation, embodiment: Embodiment | None) -> Observation:
    """What a model of this embodiment looks at: its cameras in its order, its state. One image without a name is an
    only camera's. Images may be of any size here. Raises InvalidRequest, which names the camera or the count."""
    if embodiment is None:
        return observation
    images, state = observation.images, observation.state
    names = looked_at(list(images), [camera.name for camera in embodiment.cameras])
    if not embodiment.state:
        state = np.zeros(0, np.float32)
    elif state.shape != (len(embodiment.state),):
        numbers = f"{len(embodiment.state)} ({', '.join(number.name for number in embodiment.state)})"[:200]
        raise InvalidRequest(f"the state has {state.size} numbers; this model takes {numbers}", "state")
    return replace(observation, images={name: images[its] for name, its in names.items()}, state=state)


@dataclass(frozen=True)
class Terms:
    """Of a robot and a model; None: it does not say what it is. Where neither does, actions pass as they are."""

    robot: Embodiment | None
    model: Embodiment | None
    chunk: int = 0  # actions that the model gives at a time; 0: one

    def __post_init__(self) -> None:
        if self.robot is not None and self.model is not None and (problem := self.model.misfit(self.robot)):
            raise EmbodimentError(f"this policy is not for this robot: {problem}")

    @property
    def period(self) -> float | None:
        """[s] for which an action holds; None: not known."""
        return next((found.period for found in self._said if found.period), None)

    @property
    def max_seconds(self) -> float:
        """[s] of the longest skill."""
        return self._said[0].max_seconds if self._said else MAX_SECONDS

    @property
    def max_steps(self) -> int | None:
        """Control periods of the longest skill; None: as many as fit into `max_seconds`."""
        return min(max(1, round(self.max_seconds / self.period)), MOST_STEPS) if self.period else None

    @property
    def terminates(self) -> bool:
        """May an action end a skill?"""
        said = self.model or self.robot
        return said is not None and said.terminate is not None

    @property
    def by_success(self) -> bool:
        """Does success end a skill at once? Where the robot has no dimension of its own that ends it, whatever a policy
        has learnt of ends."""
        said = self.robot or self.model
        return said is None or said.terminate is None

    def seen(self, observation: Observation) -> Observation:
        """What the model is sent of it."""
        return fitted(observation, self.model)

    def read(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """What the robot is sent of a model's action, within its own bounds or else the model's, and whether the skill
        ends with it. An end that the robot knows nothing of is not sent. Raises ServerFault for another action."""
        said = self.model or self.robot
        if said is None:
            return action, False
        if action.shape != (len(said.action),):
            raise ServerFault(f"the skill server gave an action of {action.size} numbers, not {len(said.action)}")
        ended = said.ends(action)
        if self.robot is not None and self.robot.terminate is None and said.terminate is not None:
            action = np.delete(action, said.terminate)
        return (self.robot or said).clipped(action), ended

    def told(self, actions: np.ndarray, ends: Sequence[bool]) -> np.ndarray:
        """What the model is told of (K, D) actions that the robot is sent: with its own end, where that is planned."""
        own = self.model.terminate if self.model is not None else None
        if own is None or self.robot is None or self.robot.terminate is not None:
            return actions
        return np.insert(actions, own, ends, axis=1)

    @property
    def _said(self) -> list[Embodiment]:
        """What is known, the robot's own word first."""
        return [embodiment for embodiment in (self.robot, self.model) if embodiment is not None]
