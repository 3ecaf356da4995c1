"""LanguageScorer: how likely a language model finds each candidate text after a prompt.

The prompt's keys and values are kept and reused as it grows, and all candidates go through the model in one packed
pass over their token trie: a shared beginning is computed once, a mask lets each token see its own ancestors only.
Of a large library most candidates are hopeless from their first words; those are given up after a glance.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from planners.model_files import fault
from planners.weights import WeightsError, file_sha256, language_model_path, quietly
from skills import files

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
ADAPTER, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_ADAPTER, MOST_RANK = 2**30, 1024  # [bytes]; a larger one is no adapter
HEAD_CHUNK = 256  # trie nodes whose logits over the whole vocabulary are held at once
SUM_CHUNK = 2  # nodes that are normalised at once: few stay in the processor's cache, which halves the head's time
NEGLIGIBLE = 1e-5  # no affordance makes up for so small a share of the likeliest candidate's probability
GLANCES = (1, 4)  # tokens after which negligible candidates are given up: the verb, the object
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # how transformers reads: nothing is run
FEW = 16  # candidates that are scored at once without a glance at their beginnings


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


class LanguageScorer:
    """A causal language model that scores texts. One prompt's cache is kept; not for use from two threads at once."""

    def __init__(
        self,
        path: str | Path | None = None,  # a model folder or a GGUF file; by default the pinned model
        adapter: str | Path | None = None,  # a folder in PEFT's format, as `python -m saycan_qt.tune` leaves it
        dtype: torch.dtype | None = None,  # see `fast_dtype`
        negligible: float = NEGLIGIBLE,  # see `score`
    ) -> None:
        self.path = Path(path) if path is not None else language_model_path()
        self.dtype = dtype or fast_dtype()
        self.negligible = negligible
        self.model, self.tokenizer = load(self.path, self.dtype)
        if adapter is not None:
            self.model = adapted(self.model, Path(adapter))
        self._cache = DynamicCache(config=self.model.config)
        self._cached: list[int] = []  # the tokens whose keys and values are in the cache

    def score(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        """Log-likelihoods (N,) float32: the sum over each candidate's tokens, given the prompt.

        A candidate brings its own blank and its own end ("\\n"): without an end, "find the red block" would also be
        credited with all that goes to "find the red block tower".

        -inf for a candidate given up early: one whose beginning is less than `negligible` times as likely as the
        likeliest beginning of that length. With `negligible` 0 every candidate is scored, in a single pass.
        """
        if not candidates:
            return np.zeros(0, np.float32)
        prompt_ids, candidate_ids = self._tokenize(prompt, candidates)
        scores = np.full(len(candidates), -np.inf, np.float32)
        alive = np.arange(len(candidates))
        for length in GLANCES if self.negligible else ():
            if len(alive) <= FEW:
                break
            beginnings = self._score_tokens(prompt_ids, [candidate_ids[i][:length] for i in alive])
            alive = alive[beginnings >= beginnings.max() + np.log(self.negligible)]
        scores[alive] = self._score_tokens(prompt_ids, [candidate_ids[i] for i in alive])
        return scores

    def count_tokens(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        """(N,) how many tokens `score` sums over for each candidate."""
        return np.array([len(ids) for ids in self._tokenize(prompt, candidates)[1]]) if candidates else np.zeros(0, int)

    def _score_tokens(self, prompt_ids: list[int], candidate_ids: list[list[int]]) -> np.ndarray:
        """Log-likelihoods (N,) float64 in one packed pass."""
        trie = TokenTrie.build(candidate_ids)
        with torch.inference_mode():
            return self._log_likelihoods(self._read(prompt_ids, trie), trie)[trie.leaves]

    def _tokenize(self, prompt: str, candidates: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Tokens of the prompt, and of each candidate after it, cut where a whole text's tokens would be cut."""
        line_start = prompt.rfind("\n") + 1  # tokens do not cross the start of a line, so the head is read once
        head, line = prompt[:line_start], prompt[line_start:]
        head_ids = self.tokenizer(head, add_special_tokens=True).input_ids if head else []
        texts = [line, *(line + candidate for candidate in candidates)]
        line_ids, *full_ids = self.tokenizer(texts, add_special_tokens=not head).input_ids
        shared = _shared([line_ids, *full_ids])  # shorter where a candidate merges with the prompt
        prompt_ids = head_ids + line_ids[:shared]
        if not prompt_ids:
            raise ValueError("the prompt is empty; a candidate is scored given at least one token")
        return prompt_ids, [ids[shared:] for ids in full_ids]

    def _read(self, prompt_ids: list[int], trie: TokenTrie) -> torch.Tensor:
        """Last hidden states (inner nodes, width), node 0 first; leaves the prompt, less its last token, cached."""
        kept = _shared([self._cached, prompt_ids[:-1]])
        self._cache.crop(kept - len(self._cached))
        new = np.array(prompt_ids[kept:])  # at least one token, the last of them being node 0
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

        positions = np.concatenate([kept + np.arange(len(new)), len(prompt_ids) - 1 + depth[inner]])
        mask = torch.zeros(visible.shape, dtype=self.dtype).masked_fill_(
            torch.from_numpy(~visible), torch.finfo(self.dtype).min
        )
        self._cached = []  # what is in the cache is unknown should the pass be interrupted
        cache, self._cache = self._cache, DynamicCache(config=self.model.config)
        hidden = self.model.model(
            input_ids=torch.from_numpy(np.concatenate([new, trie.tokens[inner]]))[None],
            attention_mask=mask[None, None],
            position_ids=torch.from_numpy(positions)[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0, len(new) - 1 :]
        cache.crop(-(len(inner) + 1))
        self._cache, self._cached = cache, prompt_ids[:-1]
        return hidden

    def _log_likelihoods(self, hidden: torch.Tensor, trie: TokenTrie) -> np.ndarray:
        """(nodes,) float64: log-likelihood of the path from the prompt to each node."""
        inner_index = np.cumsum(trie.inner) - 1  # node -> its row in hidden
        of_parent = inner_index[trie.parents[1:]]
        order = np.argsort(of_parent, kind="stable")
        edge = np.zeros(len(trie.tokens))
        bounds = np.searchsorted(of_parent[order], np.arange(0, len(hidden) + HEAD_CHUNK, HEAD_CHUNK))
        for start, first, last in zip(range(0, len(hidden), HEAD_CHUNK), bounds, bounds[1:], strict=False):
            logits = self.model.lm_head(hidden[start : start + HEAD_CHUNK])
            total = torch.cat([some.float().logsumexp(dim=-1) for some in logits.split(SUM_CHUNK)])
            nodes = order[first:last] + 1
            rows = torch.from_numpy(of_parent[order[first:last]] - start)
            chosen = logits[rows, torch.from_numpy(trie.tokens[nodes])]
            edge[nodes] = (chosen.float() - total[rows]).double().numpy()
        path = np.zeros(len(trie.tokens))
        for node in range(1, len(path)):
            path[node] = path[trie.parents[node]] + edge[node]
        return path


def _shared(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with in common."""
    columns = zip(*sequences, strict=False)
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), min(map(len, sequences)))


def fast_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32."""
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return torch.bfloat16 if native else torch.float32


def load(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer from a folder or a GGUF file; a GGUF file is converted once and kept in the cache folder.
    Raises WeightsError, in one line, for what is none or cannot be scored with."""
    if problem := fault(path):
        raise WeightsError(f"{path}: {problem}")
    try:
        with quietly():
            model, tokenizer = _load_gguf(path, dtype) if path.is_file() else _load_folder(path, dtype)
    except WeightsError:
        raise
    except Exception as error:  # somebody else's files in somebody else's libraries: they raise anything
        reason = shorten(str(error), 400, placeholder=" ...") or type(error).__name__
        raise WeightsError(f"{path}: cannot be read as a language model: {reason}") from error
    if not (hasattr(model, "model") and hasattr(model, "lm_head")):
        kind = type(model).__name__
        raise WeightsError(f"{path}: a {kind} cannot be scored with; give a decoder such as Llama, Qwen or Mistral")
    return model, tokenizer


def cache_folder() -> Path:
    """Where converted models are kept: $SAYCAN_QT_CACHE, else saycan-qt in the user's cache folder."""
    if chosen := os.environ.get("SAYCAN_QT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saycan-qt"


def _load_folder(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    read: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **LOCAL
    )
    model, found = read
    unfit = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    if unfit:  # transformers would go on with random numbers in their place
        raise WeightsError(
            f"{folder}: its weights are not those that its config.json speaks of: {unfit[0]} and {len(unfit) - 1} more "
            "are missing or of another shape; fetch the folder again"
        )
    return model.eval(), AutoTokenizer.from_pretrained(folder, **LOCAL)


def _load_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """transformers reads a GGUF file thrice, in 17 s for 135 M parameters; the converted folder loads in 2 s."""
    folder = cache_folder() / f"{path.stem}-{file_sha256(path)[:16]}"
    if is_whole(folder):
        return _load_folder(folder, dtype)
    log.info("converting %s, once; the result is kept in %s", path.name, folder)
    parent, name = str(path.parent), path.name
    tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=name, **LOCAL)
    read = AutoModelForCausalLM.from_pretrained(parent, gguf_file=name, dtype=torch.float32, **LOCAL)
    config = read.config
    del config.quantization_config  # the weights are plain numbers now; transformers saves no model read from GGUF
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # 4-bit weights lose nothing that matters
    model.load_state_dict(read.state_dict())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            whole = Path(temporary) / "model"
            tokenizer.save_pretrained(whole)
            model.save_pretrained(whole)
            seal(whole)
            if folder.exists():
                folder.rename(Path(temporary) / "damaged")
            whole.rename(folder)
    except OSError as error:
        log.warning("%s cannot hold the converted language model (%s): each start converts it anew", folder, error)
    return model.to(dtype).eval(), tokenizer


def adapted(model: Any, folder: Path) -> Any:
    """The model with an adapter added to its weights: as fast as without. Raises WeightsError."""
    if not (folder / WEIGHTS).is_file():  # PEFT would also read a pickle
        raise WeightsError(f"{folder}: no adapter_model.safetensors in it, so it is not an adapter's folder")
    if not is_whole(folder):
        raise WeightsError(f"{folder}: damaged, its files are not those that {MANIFEST} names")
    if problem := _fault_of_adapter(folder):
        raise WeightsError(f"{folder / ADAPTER}: {problem}")
    try:
        with peft() as package:
            tuned = package.PeftModel.from_pretrained(model, str(folder), local_files_only=True)
        return tuned.merge_and_unload().eval()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise WeightsError(f"{folder}: does not fit this language model: {' '.join(str(error).split())}") from error


def _fault_of_adapter(folder: Path) -> str:
    """What keeps an adapter from being built, which is as large as its config says; "" where nothing does."""
    try:
        files.check(folder / WEIGHTS, MOST_ADAPTER)
        config = files.read_json(folder / ADAPTER, files.SMALL)
        kind, ranks = config["peft_type"], [config["r"], *(config.get("rank_pattern") or {}).values()]
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"damaged: {type(error).__name__}: {error}"
    if kind != "LORA" or config.get("layer_replication") or config.get("auto_mapping"):
        return f"{str(kind)[:50]}; LORA alone is read, on the model as it is"
    if not all(isinstance(rank, int) and 1 <= rank <= MOST_RANK for rank in ranks):
        return f"a rank of {str(max(ranks, key=str))[:50]}; it is 1 to {MOST_RANK}"
    return ""


@contextmanager
def peft() -> Iterator[Any]:
    """The package, asking transformers by a name that transformers 5.23 deprecates and peft 0.21 still uses."""
    import peft as package  # seconds

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield package


def _digests(folder: Path) -> dict[str, str]:
    return {f.name: file_sha256(f) for f in sorted(folder.iterdir()) if f.name != MANIFEST and f.suffix != ".md"}


def seal(folder: Path) -> None:
    """Note the SHA-256 of every file, for `is_whole`."""
    (folder / MANIFEST).write_text(json.dumps(_digests(folder), indent=2) + "\n")


def is_whole(folder: Path) -> bool:
    """Are the files of a folder those that `seal` saw?"""
    try:
        return files.read_json(folder / MANIFEST, files.SMALL) == _digests(folder)
    except (OSError, ValueError):
        return False
