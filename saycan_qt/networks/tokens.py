"""Numbers to tokens: action dimensions to bins and back, instructions to embeddings."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from skills.types import ACTION_HIGH, ACTION_LOW, ACTION_NAMES, TERMINATE_THRESHOLD

TEXT_SIZE = 384  # numbers of an all-MiniLM-L6-v2 embedding
REMEMBERED = 4096  # texts beyond a table's: 6 MB of embeddings
TERMINATE = ACTION_NAMES.index("terminate")


class ActionTokenizer:
    """Each action dimension in bins; a bin decodes to its middle.

    Uniform over the dimension's range by default [Q-Transformer, app. D.3]. The binary terminate action is padded to
    the same number of bins and uses the first and the last."""

    def __init__(self, edges: Tensor) -> None:
        """edges (D, bins + 1) float32, rising: the limits of every dimension's bins, in the action's units."""
        if edges.ndim != 2 or len(edges) != len(ACTION_NAMES) or not bool((edges.diff(dim=1) > 0).all()):
            raise ValueError(f"edges must rise along each of the {len(ACTION_NAMES)} rows; they are {edges.shape}")
        self.edges = edges.float()
        self._inner = self.edges[:, 1:-1].contiguous()
        self._middles = (self.edges[:, 1:] + self.edges[:, :-1]) / 2

    @classmethod
    def uniform(cls, bins: int = 256, low: np.ndarray = ACTION_LOW, high: np.ndarray = ACTION_HIGH) -> ActionTokenizer:
        steps = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        begin, end = (torch.from_numpy(np.asarray(bound, np.float64))[:, None] for bound in (low, high))
        return cls((begin + steps * (end - begin)).float())

    @classmethod
    def adaptive(
        cls,
        actions: np.ndarray,
        bins: int = 256,
        low: np.ndarray = ACTION_LOW,
        high: np.ndarray = ACTION_HIGH,
        finest: float = 4.0,
        coarsest: float = 4.0,
    ) -> ActionTokenizer:
        """Bins that hold about equally many of `actions` (N, D): narrow where motion is fine, wide where it is rare.

        Beyond the paper, which names it among its limitations [sec. 6]. The density that bins follow is held between
        1 / coarsest and `finest` times the uniform one, since an exactly repeated value (standing still, a limit of
        the arm) would otherwise take most bins for itself."""
        edges = cls.uniform(bins, low, high).edges
        cells = 16 * bins
        for dim in range(len(edges)):
            if dim == TERMINATE:
                continue
            grid = np.linspace(low[dim], high[dim], cells + 1)
            counts, _ = np.histogram(np.clip(actions[:, dim], low[dim], high[dim]), grid)
            density = np.clip(counts / max(counts.sum(), 1), 1 / (coarsest * cells), finest / cells)
            cumulative = np.concatenate([[0.0], np.cumsum(density)])
            inner = np.interp(np.linspace(0, 1, bins + 1)[1:-1], cumulative / cumulative[-1], grid)
            edges[dim, 1:-1] = torch.from_numpy(inner.astype(np.float32))
        return cls(edges)

    @property
    def bins(self) -> int:
        return self.edges.shape[1] - 1

    @property
    def dims(self) -> int:
        return len(self.edges)

    def encode(self, actions: Tensor) -> Tensor:
        """(..., 8) in physical units -> (..., 8) int64 bins; values beyond the range fall into the outer bins."""
        rows = actions.detach().cpu().float().reshape(-1, self.dims).T.contiguous()
        tokens = torch.searchsorted(self._inner, rows, right=True).T.reshape(actions.shape)
        tokens[..., TERMINATE] = (actions[..., TERMINATE] > TERMINATE_THRESHOLD).long() * (self.bins - 1)
        return tokens.to(actions.device)

    def decode(self, tokens: Tensor) -> Tensor:
        """(..., 8) bins -> (..., 8) float32 in physical units."""
        middles = self._middles.to(tokens.device)
        return middles[torch.arange(self.dims, device=tokens.device), tokens]


def bounds_of(actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest (8,) value of each dimension of actions (N, 8): the 0.1st and 99.9th percentile, since single
    outliers would waste the bins. The fractions, closedness and terminate, keep 0 to 1."""
    low, high = np.percentile(actions, [0.1, 99.9], axis=0).astype(np.float32)
    low[6:], high[6:] = ACTION_LOW[6:], ACTION_HIGH[6:]
    if still := [name for name, a, b in zip(ACTION_NAMES, low, high, strict=True) if b - a < 1e-6]:
        raise ValueError(f"the actions never move in {', '.join(still)}; give the bounds in a file")
    return low, high


class TextEncoder:
    """Instruction -> unit embedding. Known texts come from a table; the sentence model is loaded for the first unknown
    one: MiniLM as it ships, or any that sentence-transformers opens by name or folder. The table is for good; of other
    texts those are remembered that were asked for last."""

    def __init__(
        self, table: Mapping[str, np.ndarray] | None = None, model: str = "", remembered: int = REMEMBERED
    ) -> None:
        self.table: dict[str, np.ndarray] = dict(table or {})
        self.model, self._remembered = model, remembered
        self._recent: OrderedDict[str, np.ndarray] = OrderedDict()  # the one asked for last comes last
        self._reading, self._turning = threading.Lock(), threading.Lock()

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(N, E) float32; E is 384 for MiniLM."""
        found = self._find(texts)
        if len(found) < len(set(texts)):
            with self._reading:  # one thread loads the model; those who know their words do not wait
                found = self._find(texts)
                found |= self._read(sorted(set(texts) - found.keys()))
        return torch.from_numpy(np.stack([found[text] for text in texts]))

    def keep(self, texts: Sequence[str]) -> None:
        """Embed them now, and never forget them."""
        self.table |= zip(texts, self.encode(texts).numpy(), strict=True)

    def _find(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Those that are known."""
        found = {text: self.table[text] for text in texts if text in self.table}
        with self._turning:
            for text in (set(texts) - found.keys()) & self._recent.keys():
                self._recent.move_to_end(text)
                found[text] = self._recent[text]
        return found

    def _read(self, unknown: Sequence[str]) -> dict[str, np.ndarray]:
        if not unknown:
            return {}
        from planners.weights import text_embedder

        vectors = text_embedder(self.model).encode(unknown, normalize_embeddings=True, show_progress_bar=False)
        read = dict(zip(unknown, np.asarray(vectors, np.float32), strict=True))
        with self._turning:
            self._recent |= read
            while len(self._recent) > self._remembered:
                self._recent.popitem(last=False)
        return read
