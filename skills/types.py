"""What crosses every seam: Observation, Action, Outcome, and the protocols that judge, act and move.

Needs numpy only, so that a robot stack can import it on a small computer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, runtime_checkable

import numpy as np

from skills.library import Skill

CONTROL_HZ = 3.0  # the policy's rate [Q-Transformer, app. D.3]
STATE_NAMES = (  # proprioception, all of it in the base frame (x forward, y left, z up; origin: worktop front edge)
    "gripper_x",  # [m]
    "gripper_y",  # [m]
    "gripper_z",  # [m]
    "gripper_roll",  # rotation vector relative to pointing straight down [rad]
    "gripper_pitch",
    "gripper_yaw",
    "finger_opening",  # measured, 0 shut to 1 fully open
    "closedness_command",  # last command, 0 open to 1 closed
)
ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "closedness", "terminate")
ACTION_LOW = np.array([-0.08, -0.08, -0.08, -0.5, -0.5, -0.5, 0.0, 0.0], np.float32)  # [m] x3, [rad] x3, fractions
ACTION_HIGH = np.array([0.08, 0.08, 0.08, 0.5, 0.5, 0.5, 1.0, 1.0], np.float32)
TERMINATE_THRESHOLD = 0.5  # an action whose last number exceeds this ends the skill


@dataclass(frozen=True)
class Observation:
    """What the robot perceives at one instant."""

    image: np.ndarray  # (H, W, 3) uint8 RGB, head camera
    state: np.ndarray  # (8,) float32, see STATE_NAMES
    place: str = ""  # where the base stands, a library place; "" when unknown
    held: str = ""  # the object the robot believes it holds; "" for none
    objects: Mapping[str, str] = field(default_factory=dict)  # semantic map: object -> place where it was last seen


class Status(Enum):
    """How a skill ended; the names follow ROS GoalStatus."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # ran to its end, goal not reached
    CANCELED = "canceled"
    ABORTED = "aborted"  # could not be run to its end


@dataclass(frozen=True)
class Outcome:
    """The result of one executed skill."""

    status: Status
    message: str = ""  # one sentence for people
    steps: int = 0  # control periods used
    seconds: float = 0.0  # wall clock

    @property
    def succeeded(self) -> bool:
        return self.status is Status.SUCCEEDED


class Critic(Protocol):
    """Judges: how likely is each instruction to succeed from here?"""

    def value(self, history: Sequence[Observation], instructions: Sequence[str]) -> np.ndarray:
        """Affordances, (N,) float32 in [0, 1], one for each instruction; history is oldest first.
        Raises ValueError, saying why in one line, where it cannot judge from this history."""
        ...


class Actor(Protocol):
    """Acts: the next action towards an instruction."""

    def act(self, history: Sequence[Observation], instruction: str) -> np.ndarray:
        """One action, (8,) float32 within ACTION_LOW..ACTION_HIGH; history is oldest first.
        Raises ValueError, saying why in one line, where it cannot act from this history."""
        ...


@runtime_checkable
class BatchedCritic(Critic, Protocol):
    """A critic that judges several states at once; a server then asks it so. A plain one is asked one by one."""

    def value_many(
        self, histories: Sequence[Sequence[Observation]], instructions: Sequence[Sequence[str]]
    ) -> Sequence[np.ndarray]:
        """What `value` gives for each history, of any length, with its own instructions: N arrays. A ValueError means
        that one of them is refused; each is then judged alone."""
        ...


@runtime_checkable
class BatchedActor(Actor, Protocol):
    """An actor for several robots at once; a server then asks it so. A plain one is asked one by one."""

    def act_many(self, histories: Sequence[Sequence[Observation]], instructions: Sequence[str]) -> np.ndarray:
        """What `act` gives for each history, of any length, and instruction: (N, 8) float32. A ValueError means that
        one of them is refused; each then acts alone."""
        ...


@runtime_checkable
class Reader(Protocol):
    """An actor to whom new words are slow: a server has them read before the robot stands in line for the model."""

    def know(self, instructions: Sequence[str]) -> None:
        """Acting towards these is as fast as towards others from now on. Called from any thread, while others act."""
        ...


@runtime_checkable
class Robot(Protocol):
    """A robot's driver; knows nothing of gRPC. All calls come from one thread at a time, `stop` from any."""

    def observe(self) -> Observation: ...

    def apply(self, action: np.ndarray) -> None:
        """Carry out one (8,) float32 action for one control period; returns when the period has passed."""

    def stop(self) -> None:
        """Zero velocity now, gripper holds; what moves, ends. Safe to call at any time, from any thread, any number of
        times. No latch: the next `apply` moves again. Whether there is one, the service decides."""

    def start(self, skill: Skill) -> None:
        """Called once before a skill runs (remember what `succeeded` needs)."""

    def perform(self, skill: Skill, canceled: Callable[[], bool]) -> None:
        """Run a scripted (not learnt) skill to its end, or raise ValueError saying why it cannot be run."""

    def succeeded(self, skill: Skill) -> bool | None:
        """Did the skill that just ended reach its goal? None when the robot cannot tell."""

    def finish(self, skill: Skill, canceled: Callable[[], bool]) -> None:
        """Called once after a learnt skill was judged, unless it was canceled: back to where the next one is decided
        from. The planner's affordances were learnt from there."""

    def satisfied(self, instruction: str) -> bool | None:
        """Does the world now meet the instruction's goal? None when the robot knows no goal for it."""

    def view(self, name: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB for people, from camera `name` ("head" or "room"); KeyError for an unknown one."""
