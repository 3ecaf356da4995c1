"""Numbers to tokens: action dimensions to bins and back, instructions to embeddings."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from skills.embodiment import TERMINATE_THRESHOLD, ActionDimension, Embodiment

TEXT_SIZE = 384  # numbers of an all-MiniLM-L6-v2 embedding
REMEMBERED = 4096  # texts beyond a table's: 6 MB of embeddings
STILL, STILL_SHARE = 1e-6, 1e-4  # an action dimension that spans less, or less of its value, does not move
NARROW = 1e-3  # half the range that it gets, relative to its value


class ActionTokenizer:
    """Each action dimension in bins; a bin decodes to its middle.

    Uniform over the dimension's range by default [Q-Transformer, app. D.3]. A binary terminate action is padded to
    the same number of bins and uses the first and the last."""

    def __init__(self, edges: Tensor, terminate: int | None) -> None:
        """edges (D, bins + 1) float32, rising: the limits of every dimension's bins, in the action's units; terminate:
        which dimension ends a skill, None where none does."""
        if edges.ndim != 2:
            raise ValueError(f"edges are a row for each action dimension; they are {tuple(edges.shape)}")
        if level := (~(edges.diff(dim=1) > 0)).any(dim=1).nonzero().flatten().tolist():
            low, high = edges[level[0], [0, -1]].tolist()
            raise ValueError(f"edges must rise; those of action number {level[0]}, {low:.7g} to {high:.7g}, do not")
        self.edges, self.terminate = edges.float(), terminate
        self._inner = self.edges[:, 1:-1].contiguous()
        self._middles = (self.edges[:, 1:] + self.edges[:, :-1]) / 2

    @classmethod
    def uniform(cls, embodiment: Embodiment, bins: int = 256) -> ActionTokenizer:
        steps = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        bounds = (embodiment.low, embodiment.high)
        begin, end = (torch.from_numpy(bound.astype(np.float64))[:, None] for bound in bounds)
        return cls((begin + steps * (end - begin)).float(), embodiment.terminate)

    @classmethod
    def adaptive(
        cls,
        actions: np.ndarray,
        embodiment: Embodiment,
        bins: int = 256,
        finest: float = 4.0,
        coarsest: float = 4.0,
    ) -> ActionTokenizer:
        """Bins that hold about equally many of `actions` (N, D): narrow where motion is fine, wide where it is rare.

        Beyond the paper, which names it among its limitations [sec. 6]. The density that bins follow is held between
        1 / coarsest and `finest` times the uniform one, since an exactly repeated value (standing still, a limit of
        the arm) would otherwise take most bins for itself."""
        edges, low, high = cls.uniform(embodiment, bins).edges, embodiment.low, embodiment.high
        cells = 16 * bins
        for dim in range(len(edges)):
            if dim == embodiment.terminate:
                continue
            grid = np.linspace(low[dim], high[dim], cells + 1)
            counts, _ = np.histogram(np.clip(actions[:, dim], low[dim], high[dim]), grid)
            density = np.clip(counts / max(counts.sum(), 1), 1 / (coarsest * cells), finest / cells)
            cumulative = np.concatenate([[0.0], np.cumsum(density)])
            inner = np.interp(np.linspace(0, 1, bins + 1)[1:-1], cumulative / cumulative[-1], grid)
            edges[dim, 1:-1] = torch.from_numpy(inner.astype(np.float32))
        return cls(edges, embodiment.terminate)

    @property
    def bins(self) -> int:
        return self.edges.shape[1] - 1

    @property
    def dims(self) -> int:
        return len(self.edges)

    def encode(self, actions: Tensor) -> Tensor:
        """(..., D) in physical units -> (..., D) int64 bins; values beyond the range fall into the outer bins."""
        rows = actions.detach().cpu().float().reshape(-1, self.dims).T.contiguous()
        tokens = torch.searchsorted(self._inner, rows, right=True).T.reshape(actions.shape)
        if (end := self.terminate) is not None:
            tokens[..., end] = (actions[..., end] > TERMINATE_THRESHOLD).long() * (self.bins - 1)
        return tokens.to(actions.device)

    def decode(self, tokens: Tensor) -> Tensor:
        """(..., D) bins -> (..., D) float32 in physical units."""
        middles = self._middles.to(tokens.device)
        return middles[torch.arange(self.dims, device=tokens.device), tokens]


def bounds_of(actions: np.ndarray, embodiment: Embodiment) -> tuple[Embodiment, list[str]]:
    """The embodiment with the range that each dimension of actions (N, D) has: from the 0.1st to the 99.9th percentile,
    since single outliers would waste the bins; and the names of those dimensions that never move, whose range is narrow
    around their value. Fractions and ends keep theirs."""
    low, high = np.percentile(actions, [0.1, 99.9], axis=0).astype(np.float32)
    found, still = list[ActionDimension](), list[str]()
    for number, dimension in enumerate(embodiment.action):
        if dimension.kind in ("fraction", "terminate"):
            found.append(dimension)
            continue
        first, last = float(low[number]), float(high[number])
        if _is_still(first, last):  # it moves in a few frames alone, or never
            first, last = float(actions[:, number].min()), float(actions[:, number].max())
        if _is_still(first, last):
            still.append(dimension.name)
            half = NARROW * max(1.0, abs(first))
            first, last = first - half, last + half
        found.append(replace(dimension, low=first, high=last))
    return replace(embodiment, action=tuple(found)), still


def _is_still(low: float, high: float) -> bool:
    return high - low < max(STILL, STILL_SHARE * abs(low))


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
