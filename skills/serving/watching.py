"""What a server tells whoever watches it: calls, batches, loaded models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skills.serving.batching import Line


class Watcher:
    """Override what you want to know. Called from the threads that serve, so it must not take long."""

    def began(self, method: str) -> None:
        """A call of this method, such as "ScoreSkills", was let in."""

    def ended(self, method: str, code: str, seconds: float) -> None:
        """It ended with this status code, such as "NOT_FOUND", after so long."""

    def refused(self, method: str, code: str) -> None:
        """A call was not let in."""

    def computed(self, line: str, size: int, seconds: float) -> None:
        """A batch of so many actions or values took the model so long."""

    def loaded(self, model: str, seconds: float, good: bool) -> None:
        """A model was loaded, or could not be."""

    def lines(self, lines: Mapping[str, Line[Any, Any]]) -> None:
        """Who waits for the models, by what they wait for; said once."""


NOBODY = Watcher()
