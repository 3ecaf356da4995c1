"""How a causal language model reads many candidates after one prompt: the fastest way that agrees with the model's own.

    reader = Reader(model, probes)          # raises Unscorable
    reader.log_likelihoods(prompt_ids, candidate_ids)

Three ways, each of which is seen to give the likelihoods of a plain pass over the whole text before it is used:

- Packed: the prompt's keys and values are kept and reused as it grows, and all candidates go through in one pass over
  their token trie. Fits models whose layers do nothing but attend to what a mask lets them.
- Shared: candidates in batches, each row with a copy of the model's own cache of the prompt, and the model's own masks.
- Whole: batches of whole texts, padded on the right. Fits whatever is causal: layers with a state, for one.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol, cast

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from planners.saycan import TooLong

log = logging.getLogger(__name__)

HEAD_CHUNK = 256  # trie nodes whose logits over the whole vocabulary are held at once
SUM_CHUNK = 2  # nodes that are normalised at once: few stay in the processor's cache, which halves the head's time
MOST_LOGITS = 2**26  # numbers, of one pass
MOST_TOKENS = 2**12  # read in one pass by Shared and Whole
MOST_CACHE = 2**30  # [bytes] of the prompt's cache, copied for every row of a pass
# From how many tokens on a layer of a model may no longer see all of them, or rotates them by another angle
WINDOWS = (
    *("sliding_window", "sliding_window_size", "window_size", "attention_window_size", "keep_window_size"),
    *("local_attention", "local_attention_window_len", "attention_chunk_size", "index_topk", "index_block_size"),
    "original_max_position_embeddings",
)
POSITIONS = ("max_position_embeddings", "max_seq_len", "context_length")  # the most tokens that a model can read
NEAR = 1024  # tokens; a window that prompts are longer than is tried out when the model is loaded
# [nats a token] between a way and a plain pass; or half of the last digit of the logits' range, if that is more: in
# bfloat16 .15 for the shipped model, which is off by .03
TOLERANCE = 1e-3
CHECKED = 2  # candidates of a probe
ROWS_APART = 8  # see `_rows_apart`


class Unscorable(ValueError):
    """No way of reading a model gives its own likelihoods: why."""


class Way(Protocol):
    def __call__(self, prompt: list[int], candidates: Sequence[list[int]]) -> np.ndarray:
        """Log-likelihoods (N,) float64 of each candidate's tokens after the prompt's, which are one or more."""
        ...


Probe = tuple[list[int], list[list[int]]]  # a prompt's tokens, and those of some candidates


def most_tokens(model: Any) -> float:
    """That a model can read at once, by its config; inf: it names no end."""
    config = model.config.get_text_config(decoder=True)
    return min((getattr(config, name, None) or inf for name in POSITIONS), default=inf)


class Reader:
    """A model and the ways that agree with it. Caches are kept; not for use from two threads at once."""

    def __init__(self, model: Any, probes: Sequence[Probe]) -> None:
        """probes: three prompts to try the ways with. The second differs from the first late; its last two candidates
        begin alike, are of two lengths and stand behind long ones; the third goes on from it. Raises Unscorable."""
        config = model.config.get_text_config(decoder=True)
        self.longest = most_tokens(model)
        window = min((size for name, size in _numbers(config.to_dict()) if name in WINDOWS), default=inf)
        self._ways: list[tuple[float, Way]] = []  # up to how many tokens a way is right; the faster first
        near = _Trial(model, probes[:2])
        apart = _rows_apart(TokenTrie.build(probes[1][1]))  # else it would not be seen who takes rows for places
        for packed in (Packed(model, True, window), Packed(model, False, window)) if apart >= ROWS_APART else ():
            if near.length <= window and near.agrees(packed):
                self._ways.append((window, packed))
                break
        if self._ways and window == inf:
            return
        seen = inf if window <= NEAR or window == inf else window
        far = _Trial(model, _behind(probes, window if window <= NEAR else 0)[1:])
        if (not self._ways or seen == inf) and far.agrees(shared := Shared(model)):
            self._ways.append((seen, shared))
            if seen == inf:
                return
        if not far.agrees(whole := Whole(model)):
            raise Unscorable(
                f"what it reads beside a text changes its likelihoods, as no causal model's are changed ({far.said})"
            )
        self._ways.append((inf, whole))

    @property
    def ways(self) -> list[str]:
        """Their names, the fastest first."""
        return [type(way).__name__.lower() for _, way in self._ways]

    def log_likelihoods(self, prompt: list[int], candidates: Sequence[list[int]]) -> np.ndarray:
        """(N,) float64. Raises TooLong."""
        length = len(prompt) + max(map(len, candidates))
        if length > self.longest:
            raise TooLong(f"prompt and candidate have {length} tokens, and the model reads at most {self.longest}")
        with torch.inference_mode():
            return next(way for reach, way in self._ways if length <= reach)(prompt, candidates)


class _Trial:
    """Likelihoods of each probe's last candidates by plain passes over whole texts, and whether a way finds the same.
    Raises Unscorable."""

    def __init__(self, model: Any, probes: Sequence[Probe]) -> None:
        self._model, self._probes, self._options = model, probes, _without_cache(model)
        self._range = 0.0  # between the highest and the lowest logit of one place
        self.said = ""  # of the last way that did not agree
        self.length = max(len(prompt) + len(tokens) for prompt, candidates in probes for tokens in candidates)
        try:
            with torch.inference_mode():
                self._expected = [np.array([self._plain(p, tokens) for tokens in c[-CHECKED:]]) for p, c in probes]
        except Exception as error:  # of somebody else's model
            raise Unscorable(f"it cannot read a text by itself: {_line(error)}") from error
        if not all(np.isfinite(expected).all() for expected in self._expected):
            raise Unscorable("its likelihoods are no numbers (NaN or infinite)")

    def _plain(self, prompt: list[int], tokens: list[int]) -> float:
        ids = torch.tensor([prompt + tokens], device=self._model.device)
        logits = self._model(input_ids=ids, **self._options).logits[0, len(prompt) - 1 : -1]
        self._range = max(self._range, float((logits.amax(-1) - logits.amin(-1)).max()))
        return float(_chosen(logits, ids[0, len(prompt) :]).double().sum())

    def agrees(self, way: Way) -> bool:
        each = max(TOLERANCE, torch.finfo(self._model.dtype).eps / 2 * self._range)
        try:
            for (prompt, candidates), expected in zip(self._probes, self._expected, strict=True):
                with torch.inference_mode():
                    off = np.abs(way(prompt, candidates)[-CHECKED:] - expected)
                if not (off <= each * np.array([len(tokens) for tokens in candidates[-CHECKED:]])).all():
                    self.said = f"off by {off.max():.2g} nats"
                    break
            else:
                return True
        except Exception as error:  # of somebody else's model, asked for what it may not know
            self.said = _line(error)
        log.debug("%s is not read %s: %s", type(self._model).__name__, type(way).__name__.lower(), self.said)
        return False


# -- packed ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenTrie:
    """Candidates' tokens with shared beginnings merged. Node 0 is the last token of the prompt."""

    tokens: np.ndarray  # (nodes,) token ids; node 0's is unused
    parents: np.ndarray  # (nodes,) parents[0] is -1; a parent comes before its children
    inner: np.ndarray  # (nodes,) bool: has children, so the model must read it
    leaves: np.ndarray  # (candidates,) the node at which each candidate ends

    @staticmethod
    def build(candidates: Sequence[Sequence[int]]) -> TokenTrie:
        children: list[dict[int, int]] = [{}]
        tokens, parents, leaves = [0], [-1], []
        for candidate in candidates:
            node = 0
            for token in candidate:
                if token not in children[node]:
                    children[node][token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                    children.append({})
                node = children[node][token]
            leaves.append(node)
        inner = np.array([bool(c) for c in children])
        return TokenTrie(np.array(tokens), np.array(parents), inner, np.array(leaves))


class Packed:
    """One pass over the candidates' token trie: a shared beginning is computed once, a mask lets each token see its own
    ancestors only.

    In bfloat16 a likelihood depends on what else is in the pass: matrix products of another shape add in another order,
    and every layer rounds. It moves as far as it is from float32's: by .1 nats a token, or a probability of .4 by .04
    (the most seen in 16 sentences and ten packings, shipped model). float32 holds it to 3e-6, in 2.7 times the time.
    """

    def __init__(self, model: Any, plain_head: bool, window: float = inf) -> None:
        """plain_head: logits are the output embedding of what the layers give; else the model's own forward makes them,
        all at once. window: tokens in one pass, the prompt's included."""
        self._body = model.base_model if plain_head else model
        self._head: Callable[[torch.Tensor], torch.Tensor] = model.get_output_embeddings() if plain_head else _as_it_is
        self._plain_head, self._window = plain_head, window
        self._keeps = not plain_head and _takes(model, "logits_to_keep")
        self._nodes = inf if plain_head else MOST_LOGITS // _vocabulary(model)
        self._device, self._dtype = model.device, model.dtype
        self._cache = (
            DynamicCache()
        )  # never of the model's own kind: layers with a window forget, and cannot be cropped
        self._cached: list[int] = []  # the tokens whose keys and values are in the cache

    def __call__(self, prompt: list[int], candidates: Sequence[list[int]]) -> np.ndarray:
        trie = TokenTrie.build(candidates)
        inner = trie.inner.sum()
        if len(candidates) > 1 and (inner > self._nodes or len(prompt) + inner > self._window):
            half = len(candidates) // 2
            return np.concatenate([self(prompt, candidates[:half]), self(prompt, candidates[half:])])
        return self._log_likelihoods(self._read(prompt, trie), trie)[trie.leaves]

    def _read(self, prompt: list[int], trie: TokenTrie) -> torch.Tensor:
        """Last hidden states (inner nodes, width), or logits (inner nodes, vocabulary) unless the head is plain; node 0
        first. Leaves the prompt, less its last token, cached."""
        kept = shared_beginning([self._cached, prompt[:-1]])
        self._cache.crop(kept - len(self._cached))
        new = np.array(prompt[kept:])  # at least one token, the last of them being node 0
        inner = np.flatnonzero(trie.inner)[1:] if len(trie.tokens) > 1 else np.zeros(0, int)
        count = len(new) + len(inner)
        row = np.full(len(trie.tokens), -1)  # node -> its row in this pass
        row[0] = len(new) - 1
        row[inner] = len(new) + np.arange(len(inner))

        visible = np.zeros((count, kept + count), bool)
        visible[:, :kept] = True
        visible[: len(new), kept : kept + len(new)] = np.tri(len(new), dtype=bool)
        depth = np.zeros(len(trie.tokens), int)
        for node in inner:
            parent = trie.parents[node]
            depth[node] = depth[parent] + 1
            visible[row[node]] = visible[row[parent]]
            visible[row[node], kept + row[node]] = True

        positions = np.concatenate([kept + np.arange(len(new)), len(prompt) - 1 + depth[inner]])
        mask = torch.zeros(visible.shape, dtype=self._dtype).masked_fill_(
            torch.from_numpy(~visible), torch.finfo(self._dtype).min
        )
        self._cached = []  # what is in the cache is unknown should the pass be interrupted
        cache, self._cache = self._cache, DynamicCache()
        read = self._body(
            input_ids=torch.from_numpy(np.concatenate([new, trie.tokens[inner]]))[None].to(self._device),
            attention_mask=mask[None, None].to(self._device),
            position_ids=torch.from_numpy(positions)[None].to(self._device),
            past_key_values=cache,
            use_cache=True,
            **({"logits_to_keep": len(inner) + 1} if self._keeps else {}),
        )
        cache.crop(-(len(inner) + 1))
        self._cache, self._cached = cache, prompt[:-1]
        return (read.last_hidden_state if self._plain_head else read.logits)[0, -(len(inner) + 1) :]

    def _log_likelihoods(self, read: torch.Tensor, trie: TokenTrie) -> np.ndarray:
        """(nodes,) float64: log-likelihood of the path from the prompt to each node."""
        inner_index = np.cumsum(trie.inner) - 1  # node -> its row in what was read
        of_parent = inner_index[trie.parents[1:]]
        order = np.argsort(of_parent, kind="stable")
        edge = np.zeros(len(trie.tokens))
        bounds = np.searchsorted(of_parent[order], np.arange(0, len(read) + HEAD_CHUNK, HEAD_CHUNK))
        for start, first, last in zip(range(0, len(read), HEAD_CHUNK), bounds, bounds[1:], strict=False):
            nodes = order[first:last] + 1
            rows = torch.from_numpy(of_parent[order[first:last]] - start).to(self._device)
            logits = self._head(read[start : start + HEAD_CHUNK])
            edge[nodes] = _chosen(logits, torch.from_numpy(trie.tokens[nodes]).to(self._device), rows).double().cpu()
        path = np.zeros(len(trie.tokens))
        for node in range(1, len(path)):
            path[node] = path[trie.parents[node]] + edge[node]
        return path


# -- the model's own forward -------------------------------------------------------------------------------------------


class Whole:
    """Batches of whole texts."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._keeps = _takes(model, "logits_to_keep")
        self._options = _without_cache(model)

    def __call__(self, prompt: list[int], candidates: Sequence[list[int]]) -> np.ndarray:
        return self._batched(candidates, prompt)

    def _batched(self, candidates: Sequence[list[int]], before: list[int], most: int = MOST_TOKENS) -> np.ndarray:
        """Log-likelihoods (N,). before: what stands in each row before the candidate; most: rows in one pass."""
        found: dict[tuple[int, ...], float] = {(): 0.0}  # a beginning is glanced at once
        distinct = sorted({tuple(tokens) for tokens in candidates}, key=lambda tokens: (len(tokens), tokens))
        while distinct:
            longest = len(distinct[-1])
            logits = _vocabulary(self._model) * (longest if self._keeps else len(before) + longest)
            size = max(1, min(most, MOST_TOKENS // (len(before) + longest), MOST_LOGITS // max(1, logits)))
            some, distinct = distinct[-size:], distinct[:-size]
            if not longest:
                break
            # What follows a token changes nothing, so that any will do; the pad token would be warned of
            rows = [[*before, *tokens, *([(*before, *tokens)[-1]] * (longest - len(tokens)))] for tokens in some]
            ids = torch.tensor(rows, device=self._model.device)
            read = self._forward(ids[:, :-1], longest)[:, -longest:]
            edges = _chosen(read.flatten(0, 1), ids[:, len(before) :].flatten()).view(len(some), longest)
            sums = edges.double().cumsum(1).cpu().numpy()
            found |= {tokens: float(sums[i, len(tokens) - 1]) for i, tokens in enumerate(some) if tokens}
        return np.array([found[tuple(tokens)] for tokens in candidates])

    def _forward(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Logits (B, at least `keep`, vocabulary), the last of each row among them."""
        return self._model(input_ids=ids, **self._options, **({"logits_to_keep": keep} if self._keeps else {})).logits


class Shared(Whole):
    """Batches of candidates, each with a copy of the model's own cache of the prompt."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._cache: Any = None
        self._cached: list[int] = []  # the tokens that the cache has read

    def __call__(self, prompt: list[int], candidates: Sequence[list[int]]) -> np.ndarray:
        if len(prompt) == 1:
            return super().__call__(prompt, candidates)
        most = max(1, MOST_CACHE // max(1, _bytes(self._read(prompt[:-1]))))
        return self._batched(candidates, prompt[-1:], most)

    def _read(self, tokens: list[int]) -> Any:
        """The cache of these tokens; what it has read before is kept where they go on from there."""
        cache, cached = (self._cache, self._cached) if tokens[: len(self._cached)] == self._cached else (None, [])
        self._cache, self._cached = None, []  # unknown should the pass be interrupted
        if len(tokens) > len(cached):
            ids = torch.tensor([tokens[len(cached) :]], device=self._model.device)
            options = {"past_key_values": cache} if cached else {}
            cache = self._model(
                input_ids=ids, use_cache=True, **options, **({"logits_to_keep": 1} if self._keeps else {})
            )
            cache = cache.past_key_values
        self._cache, self._cached = cache, tokens
        return cache

    def _forward(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        if not self._cached:
            return super()._forward(ids, keep)
        cache = copy.deepcopy(self._cache)
        spread(cache, len(ids), ids.device)
        options = {"logits_to_keep": keep} if self._keeps else {}
        return self._model(input_ids=ids, past_key_values=cache, use_cache=True, **options).logits


# --


def _chosen(logits: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Log-likelihoods (M,) float32 of tokens (M,), each by its own row of logits (n, vocabulary)."""
    total = torch.cat([some.float().logsumexp(dim=-1) for some in logits.split(SUM_CHUNK)])
    rows = torch.arange(len(tokens), device=logits.device) if rows is None else rows
    return logits[rows, tokens].float() - total[rows]


def spread(cache: Cache, count: int, device: torch.device) -> None:
    """Make each of `count` rows the first: keys, values and states alike."""
    cache.reorder_cache(cast(torch.LongTensor, torch.zeros(count, dtype=torch.long, device=device)))


def shared_beginning(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with in common."""
    columns = zip(*sequences, strict=False)
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), min(map(len, sequences)))


def _as_it_is(read: torch.Tensor) -> torch.Tensor:
    return read


def _takes(model: Any, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _without_cache(model: Any) -> dict[str, Any]:
    return {"use_cache": False} if _takes(model, "use_cache") else {}


def _vocabulary(model: Any) -> int:
    return int(getattr(model.config.get_text_config(decoder=True), "vocab_size", 2**18))


def _numbers(within: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The positive numbers of a configuration, however deep, and their names."""
    if isinstance(within, dict):
        for key, value in within.items():
            yield from _numbers(value, str(key))
    elif isinstance(within, list | tuple):
        for value in within:
            yield from _numbers(value, name)
    elif isinstance(within, int | float) and within > 0:
        yield name, within


def _bytes(within: Any) -> int:
    """How much the tensors of a cache take, or of a part of one."""
    if isinstance(within, torch.Tensor):
        return within.nbytes
    if isinstance(within, dict):
        return sum(map(_bytes, within.values()))
    parts = getattr(within, "layers", within)
    return sum(_bytes(vars(layer)) for layer in parts) if isinstance(parts, list) else 0


def _behind(probes: Sequence[Probe], length: float) -> list[Probe]:
    """The probes with those candidates alone that are checked, behind so many tokens of the first's prompt."""
    before = (probes[0][0] * (int(length) // len(probes[0][0]) + 1))[: int(length)]
    return [(before + prompt, candidates[-CHECKED:]) for prompt, candidates in probes]


def _rows_apart(trie: TokenTrie) -> int:
    """Between a token of the last candidate and the one before it, less one: 0 where the trie is a single line."""
    inner, row = np.flatnonzero(trie.inner), np.cumsum(trie.inner) - 1
    return int((row[inner[1:]] - row[trie.parents[inner[1:]]]).max(initial=1)) - 1


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
