"""What a skill server lets be recorded: each control stream's observations, the actions it answered, how it ended."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from skills.embodiment import Embodiment
from skills.types import Observation, Outcome

log = logging.getLogger(__name__)


class Recording(Protocol):
    """One skill that a robot executes. Robots wait for these calls: they return at once, and raise nothing."""

    def add(self, observation: Observation, action: np.ndarray) -> None:
        """One step: what the robot saw, and the (D,) float32 action that it was given."""

    def end(self, outcome: Outcome | None) -> None:
        """Called once, after the last step. None: the robot left without a word, or was let down by the server."""


class Recorder(Protocol):
    """Keeps what robots do."""

    def begin(self, goal_id: str, instruction: str, model_id: str, embodiment: Embodiment | None = None) -> Recording:
        """goal_id: "" where the robot named none; model_id: who acts, on robots of which embodiment; None: it does not
        say. Returns at once, and raises nothing."""
        ...


class Take:
    """One control stream's recording, if anybody records. It ends when the stream does, however that ends."""

    def __init__(self, recorder: Recorder | None) -> None:
        self.outcome: Outcome | None = None  # as the robot told it
        self._recorder = recorder
        self._recording: Recording | None = None

    def begin(self, goal_id: str, instruction: str, model_id: str, embodiment: Embodiment | None) -> None:
        if self._recorder is not None:
            self._recording = self._recorder.begin(goal_id, instruction, model_id, embodiment)

    def leave_out(self, goal_id: str, instruction: str, why: str) -> None:
        """Nothing of this stream is recorded."""
        if self._recorder is not None:
            log.warning("not recorded: %r (goal %s): %s", instruction, goal_id or "unknown", why)

    def add(self, observation: Observation, action: np.ndarray) -> None:
        if self._recording is not None:
            self._recording.add(observation, action)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._recording is not None:
            self._recording.end(self.outcome)
