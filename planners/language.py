"""LanguageScorer: how likely a language model finds each candidate text after a prompt.

The numbers are the model's own, whatever its family: when it is loaded, the ways of reading many candidates at once
(`planners.reading.passes`) are held against plain passes, and the fastest that agrees is used.
Of a large library most candidates are hopeless from their first words; those are given up after a glance.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from planners.model_files import fault
from planners.reading.passes import Reader, Unscorable, shared_beginning
from planners.weights import WeightsError, file_sha256, from_hub, language_model_path, quietly
from skills import files

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
ADAPTER, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_ADAPTER, MOST_RANK = 2**30, 1024  # [bytes]; a larger one is no adapter
NEGLIGIBLE = 1e-5  # no affordance makes up for so small a share of the likeliest candidate's probability
GLANCES = (1, 4)  # tokens after which negligible candidates are given up: the verb, the object
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # how transformers reads: nothing is run
FEW = 16  # candidates that are scored at once without a glance at their beginnings
INSTEAD = "give a decoder such as Llama, Qwen or Mistral, or the URL of a vLLM server that runs this one"
COUNTED = "Count: one\n1. two\n2. three\n3."
PROBES = (  # what a model is tried with, see `Reader`
    ("Count: one\n1. one\n2.", [" two\n"]),
    (
        COUNTED,
        [
            " one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen\n",
            " twelve, eleven, ten, nine, eight, seven, six, five, four, three, two, one, none at all\n",
            " four hundred\n",
            " four thousand and one\n",
        ],
    ),
    (f"{COUNTED} four\n4.", [" five\n"]),
)


class LanguageScorer:
    """A causal language model of any family that scores texts. What it has read of the prompt is kept. Threads that ask
    it take turns."""

    def __init__(
        self,
        path: str | Path | None = None,  # a model folder, a GGUF file or a name on the hub; by default the pinned model
        adapter: str | Path | None = None,  # a folder in PEFT's format, as `python -m saycan_qt.tune` leaves it
        dtype: torch.dtype | None = None,  # see `fast_dtype`
        negligible: float = NEGLIGIBLE,  # see `score`
        device: str = "cpu",  # as PyTorch calls it
    ) -> None:
        """Raises WeightsError for what is no model, and for one that cannot be scored with."""
        require(device)
        fetched = from_hub(str(path)) if path is not None else None
        self.path = language_model_path() if path is None else fetched or Path(path)
        self.name = str(path) if fetched else self.path.stem if self.path.is_file() else self.path.name
        self.dtype = dtype or fast_dtype(device)
        self.negligible = negligible
        self._turn = threading.Lock()
        self.model, self.tokenizer = load(self.path, self.dtype)
        if adapter is not None:
            self.model = adapted(self.model, Path(adapter))
        self.model = self.model.to(device)
        self._first = special_first(self.tokenizer)
        try:
            self._readable()
            with quietly():
                self.reader = Reader(self.model, [self._tokenize(prompt, texts) for prompt, texts in PROBES])
        except Unscorable as error:
            kind = type(self.model).__name__
            raise WeightsError(f"{self.path}: a {kind} that cannot be scored with: {error}; {INSTEAD}") from error

    def score(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        """Log-likelihoods (N,) float32: the sum over each candidate's tokens, given the prompt.

        A candidate brings its own blank and its own end ("\\n"): without an end, "find the red block" would also be
        credited with all that goes to "find the red block tower".

        -inf for a candidate given up early: one whose beginning is less than `negligible` times as likely as the
        likeliest beginning of that length. With `negligible` 0 every candidate is scored, in a single pass.
        """
        if not candidates:
            return np.zeros(0, np.float32)
        with self._turn:
            return self._score(prompt, candidates)

    def _score(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        prompt_ids, candidate_ids = self._tokenize(prompt, candidates)
        scores = np.full(len(candidates), -np.inf, np.float32)
        alive = np.arange(len(candidates))
        for length in GLANCES if self.negligible else ():
            if len(alive) <= FEW:
                break
            beginnings = self.reader.log_likelihoods(prompt_ids, [candidate_ids[i][:length] for i in alive])
            alive = alive[beginnings >= beginnings.max() + np.log(self.negligible)]
        scores[alive] = self.reader.log_likelihoods(prompt_ids, [candidate_ids[i] for i in alive])
        return scores

    def count_tokens(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        """(N,) how many tokens `score` sums over for each candidate."""
        return np.array([len(ids) for ids in self._tokenize(prompt, candidates)[1]]) if candidates else np.zeros(0, int)

    # -- tokens ------------------------------------------------------------------------------------------------------

    def _tokenize(self, prompt: str, candidates: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Tokens of the prompt, and of each candidate after it, cut where a whole text's tokens are cut."""
        texts = [prompt, *(prompt + candidate for candidate in candidates)]
        line_start = prompt.rfind("\n") + 1
        head, line = prompt[:line_start], prompt[line_start:]
        whole = self._ids([prompt, texts[-1]])
        head_ids, lines = self._ids([head])[0], self._ids([text[line_start:] for text in texts])
        if line and [head_ids + lines[0], head_ids + lines[-1]] == whole:  # the head is read once
            shared = shared_beginning(lines)
            prompt_ids, rows = self._first + head_ids + lines[0][:shared], [ids[shared:] for ids in lines[1:]]
        else:  # a tokenizer that puts a blank before what it is given, or whose tokens cross the start of a line
            full = self._ids(texts)
            shared = shared_beginning(full)  # shorter where a candidate merges with the prompt
            prompt_ids, rows = self._first + full[0][:shared], [ids[shared:] for ids in full[1:]]
        if not prompt_ids:
            raise ValueError("the prompt is empty; a candidate is scored given at least one token")
        return prompt_ids, rows

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False).input_ids

    def _readable(self) -> None:
        """Raises Unscorable where lines would run into one another."""
        one, two, apart = self._ids(["1 2", "1 2\n", "1\n2"])
        if two == one or apart == one:
            raise Unscorable("its tokenizer drops the ends of lines, which tell where a step ends")


def special_first(tokenizer: Any) -> list[int]:
    """The tokens with which a tokenizer begins every text. Those with which some end one are never wanted."""
    with_special, without = (tokenizer("1", add_special_tokens=special).input_ids for special in (True, False))
    for start in range(len(with_special) - len(without) + 1):
        if with_special[start : start + len(without)] == without:
            return list(with_special[:start])
    return []


def require(device: str) -> None:
    """Raises WeightsError where PyTorch cannot use it."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"the device {device!r} cannot be used here, cpu can: {why}") from None


def fast_dtype(device: str = "cpu") -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device != "cpu":
        return torch.float32
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
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        parent, gguf_file=name, dtype=torch.float32, output_loading_info=True, **LOCAL
    )
    read, found = loaded
    if missing := sorted(found["missing_keys"]):  # transformers would go on with random numbers in their place
        raise WeightsError(
            f"{path}: {missing[0]} and {len(missing) - 1} more weights are not in it; is it one part of several? "
            "Give all of them in one file (llama-gguf-split --merge)"
        )
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
        below = folder / "adapter"  # where a run leaves it, and a robot's folder has it
        what = f"its adapter is {below}" if (below / WEIGHTS).is_file() else "so it is not an adapter's folder"
        raise WeightsError(f"{folder}: no {WEIGHTS} in it, {what}")
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
