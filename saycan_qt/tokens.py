"""Numbers to tokens: action dimensions to bins and back, instructions to embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skills.types import ACTION_HIGH, ACTION_LOW, ACTION_NAMES, TERMINATE_THRESHOLD

TEXT_SIZE = 384  # of an all-MiniLM-L6-v2 embedding
TERMINATE = ACTION_NAMES.index("terminate")


@dataclass(frozen=True)
class ActionTokenizer:
    """Each dimension in uniform bins over its range [Q-Transformer, app. D.3]; a bin decodes to its centre.

    The binary terminate action is padded to the same number of bins and uses the first and the last."""

    bins: int = 256

    @property
    def dims(self) -> int:
        return len(ACTION_NAMES)

    def encode(self, actions: Tensor) -> Tensor:
        """(..., 8) in physical units -> (..., 8) int64 bins; values beyond the range fall into the outer bins."""
        low, high = (torch.from_numpy(bound).to(actions) for bound in (ACTION_LOW, ACTION_HIGH))
        tokens = ((actions - low) / (high - low) * self.bins).floor().clamp(0, self.bins - 1).long()
        tokens[..., TERMINATE] = (actions[..., TERMINATE] > TERMINATE_THRESHOLD).long() * (self.bins - 1)
        return tokens

    def decode(self, tokens: Tensor) -> Tensor:
        """(..., 8) bins -> (..., 8) float32 in physical units."""
        low, high = (torch.from_numpy(bound).to(tokens.device) for bound in (ACTION_LOW, ACTION_HIGH))
        return low + (tokens.float() + 0.5) / self.bins * (high - low)


class TextEncoder:
    """Instruction -> unit embedding. Known texts come from a table; MiniLM is loaded for the first unknown one."""

    def __init__(self, table: Mapping[str, np.ndarray] | None = None) -> None:
        self.table: dict[str, np.ndarray] = dict(table or {})

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(N, 384) float32."""
        unknown = sorted({text for text in texts if text not in self.table})
        if unknown:
            from planners.weights import text_embedder

            vectors = text_embedder().encode(unknown, normalize_embeddings=True, show_progress_bar=False)
            self.table.update(zip(unknown, np.asarray(vectors, np.float32), strict=True))
        return torch.from_numpy(np.stack([self.table[text] for text in texts]))
