"""Continuation: what may come next in texts that go on from one prompt, whatever the model keeps of it."""

from __future__ import annotations

import inspect
import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from planners.reading.passes import spread

log = logging.getLogger(__name__)

CACHES = ("past_key_values", "cache_params")  # what families call it
APART = {torch.float32: 1e-3}  # how far a cache may move the probabilities of the next token (total variation)
COARSE = 0.1  # ... where numbers have 16 bits
_trusted: WeakKeyDictionary[torch.nn.Module, bool] = (
    WeakKeyDictionary()
)  # models whose cache was seen to be right, or not


class Continuation:
    """The prompt is read once and then token after token, if the model keeps a cache and says by it what it says of the
    whole text, which is seen at its first token; else whole texts are read for every token."""

    def __init__(self, model: Any, prompt: list[int], count: int) -> None:
        self._model, self._texts = model, [prompt] * count
        parameters = inspect.signature(model.forward).parameters
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._name = next((name for name in CACHES if name in parameters), "")
        self._cache: Any = None

    def begin(self) -> Tensor:
        """Logits (count, vocabulary) of the token after the prompt."""
        keep = bool(self._name) and _trusted.get(self._model, True)
        read = self._read([self._texts[0]], use_cache=True) if keep else self._read([self._texts[0]])
        cache = getattr(read, self._name, None) if keep else None
        if isinstance(cache, Cache):
            self._cache = cache
            spread(cache, len(self._texts), self._model.device)
        return read.logits[:, -1].repeat_interleave(len(self._texts), dim=0)

    def go_on(self, tokens: list[int]) -> Tensor:
        """Logits (count, vocabulary) of the token after these, one for each text."""
        self._texts = [text + [token] for text, token in zip(self._texts, tokens, strict=True)]
        if self._cache is None:
            return self._read(self._texts).logits[:, -1]
        if _trusted.get(self._model):
            return self._step(tokens)
        exact = self._read(self._texts[:1]).logits[:, -1]
        try:
            step = self._step(tokens)
            off = float((step[:1].float().softmax(-1) - exact.float().softmax(-1)).abs().sum()) / 2
        except Exception as error:  # of somebody else's model, asked for what it may not know
            step, off = exact, 1.0
            log.debug("%s does not go on from its cache: %s", type(self._model).__name__, error)
        _trusted[self._model] = off <= APART.get(self._model.dtype, COARSE)
        if _trusted[self._model]:
            return step
        self._cache = None
        return self._read(self._texts).logits[:, -1]

    def _step(self, tokens: list[int]) -> Tensor:
        return self._read([[token] for token in tokens], use_cache=True, **{self._name: self._cache}).logits[:, -1]

    def _read(self, rows: list[list[int]], **options: Any) -> Any:
        with torch.inference_mode():
            return self._model(input_ids=torch.tensor(rows, device=self._model.device), **options, **self._last)
