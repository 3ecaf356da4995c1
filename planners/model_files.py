"""What is wrong with the files of a language model that somebody names, seen before a library reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skills import files

GIVE = "give a model's folder as published (config.json, tokenizer, .safetensors), or a .gguf file"
CONFIG = "config.json"
LAYERS, MOST_LAYERS = ("num_hidden_layers", "n_layer", "num_layers"), 1000
GGUF = b"GGUF"  # how such a file begins
POINTER = b"version https://git-lfs"  # how a file begins whose content Git LFS did not fetch
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")  # any of these makes one


def fault(path: Path) -> str | None:
    """One clause, with what to do; None where there is nothing to be seen."""
    try:
        if path.is_dir():
            return _fault_of_folder(path)
        if path.is_file():
            return _fault_of_file(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return f"neither a folder nor a file; {GIVE}" if path.exists() else f"no language model there; {GIVE}"


def quantised(config: dict[str, Any]) -> str | None:
    """By which method the weights of this config.json are, such as "gptq, 4 bits"; None where they are plain."""
    given = config.get("quantization_config") or config.get("quantization")  # the latter is MLX's
    if not given:
        return None
    given = given if isinstance(given, dict) else {}
    bits = given.get("bits")
    return ", ".join([str(given.get("quant_method", "method unknown")), *([f"{bits} bits"] if bits else [])])


def _fault_of_folder(folder: Path) -> str | None:
    if not (folder / CONFIG).is_file():
        return f"no {CONFIG} in it, so it is not a language model's folder; {GIVE}"
    try:
        config = files.read_json(folder / CONFIG, files.SMALL)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        return f"its {CONFIG} is not a JSON object; fetch it again"
    if any(isinstance(size, int) and size > MOST_LAYERS for size in map(config.get, LAYERS)):
        return f"its {CONFIG} asks for more than {MOST_LAYERS} layers"
    if method := quantised(config):
        return (
            f"its weights are quantised ({method}), which is not read here; give the folder of the same model as "
            "published, not quantised, or a .gguf file of it, or the URL of a vLLM server that runs it"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return "no .safetensors in it, and weights in other forms (pickles) are never read; convert or fetch them"
    for file in weights:
        if _begins(file, POINTER):
            return _pointer(file)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return f"no tokenizer in it ({', '.join(TOKENIZERS)}); fetch the tokenizer's files of the same model, too"
    return None


def _fault_of_file(file: Path) -> str | None:
    if _begins(file, POINTER):
        return _pointer(file)
    return None if _begins(file, GGUF) else f"not a GGUF file; {GIVE}"


def _begins(file: Path, start: bytes) -> bool:
    with files.opened(file) as opened:
        return opened.read(len(start)) == start


def _pointer(file: Path) -> str:
    return f"{file.name} is a Git LFS pointer, not its content; `git lfs pull` in that folder fetches it"
