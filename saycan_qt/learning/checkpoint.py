"""Checkpoints: a folder with config.json, model.safetensors, provenance.json and a manifest of their SHA-256.

    checkpoint.save("runs/q/checkpoint", config, tensors, {"command": "...", "data": dataset.digest})
    policy = checkpoint.load("execution")             # a shipped one by name, or a folder; an Actor, often a Critic

Written whole or not at all; read only if every byte is as it was written. No pickle, in either direction.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

from saycan_qt import atomic

SHIPPED = Path(__file__).parent.parent / "checkpoints"
CONFIG, MODEL, PROVENANCE, MANIFEST = "config.json", "model.safetensors", "provenance.json", "manifest.json"
FORMAT = "saycan-qt checkpoint 1"
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
Generator = torch.Generator | np.random.Generator


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: file and reason."""


def save(folder: str | Path, config: Any, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
    """Replace `folder` as a whole. config: a dataclass tree or a dict, its "algorithm" says who can load it."""
    with atomic.replacing_folder(Path(folder)) as temporary:
        (temporary / CONFIG).write_bytes(atomic.to_json(plain(config)))
        (temporary / PROVENANCE).write_bytes(atomic.to_json(plain(provenance)))
        # copies, because safetensors refuses tensors that share memory
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        save_file(copies, temporary / MODEL)
        files = {
            name: {"sha256": atomic.sha256(temporary / name), "bytes": (temporary / name).stat().st_size}
            for name in (CONFIG, MODEL, PROVENANCE)
        }
        (temporary / MANIFEST).write_bytes(atomic.to_json({"format": FORMAT, "files": files}))


def load_files(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Config, tensors (on the CPU) and provenance, verified. Raises CheckpointError."""
    folder = atomic.newest(Path(folder))
    _refuse_pickles(folder)
    files = _read_manifest(folder / MANIFEST)
    content = {name: _verified(folder / name, files[name]) for name in (CONFIG, MODEL, PROVENANCE)}
    try:
        tensors = tensors_from_bytes(content[MODEL])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:  # KeyError: of a type that torch has not
        raise CheckpointError(f"{folder / MODEL}: not safetensors: {error}") from None
    return (
        _json_object(folder / CONFIG, content[CONFIG]),
        tensors,
        _json_object(folder / PROVENANCE, content[PROVENANCE]),
    )


def read(name_or_path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a shipped checkpoint or a folder."""
    return load_files(resolve(name_or_path))[:2]


def load(name_or_path: str | Path, device: str | torch.device = "cpu") -> Any:
    """The policy of a shipped checkpoint or a folder, ready to act. Raises CheckpointError."""
    folder = resolve(name_or_path)
    config, tensors, _ = load_files(folder)
    # here, so that reading needs none of them
    algorithms = importlib.import_module("saycan_qt.learning.algorithms").ALGORITHMS
    name = str(config.get("algorithm"))
    if name not in algorithms:
        known = ", ".join(sorted(algorithms))
        raise CheckpointError(f"{folder / CONFIG}: unknown algorithm {name!r}; known are {known}")
    for key, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise CheckpointError(f"{folder / MODEL}: {key} has numbers that are not finite; did its training diverge?")
    try:
        policy = algorithms[name].from_checkpoint(config, tensors)
    except Exception as error:  # each constructor has its own word for what it cannot be built from
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"{folder}: does not fit this version of {name}: {reason}") from error
    return policy.to(device)


def exists(folder: Path) -> bool:
    """Is there something that `save` wrote, whole?"""
    return (atomic.newest(folder) / MANIFEST).exists()


def resolve(name_or_path: str | Path) -> Path:
    """The folder of a checkpoint: a path, or the name of one that ships."""
    try:
        return _resolve(Path(name_or_path))
    except OSError as error:
        raise CheckpointError(f"{name_or_path}: cannot be read: {error.strerror}") from None


def _resolve(path: Path) -> Path:
    if len(path.parts) == 1 and exists(SHIPPED / path):
        return SHIPPED / path
    if exists(path):
        return path
    if atomic.newest(path).exists():
        _refuse_pickles(path)
        raise CheckpointError(f"{path}: no {MANIFEST} in it, so it is not a checkpoint folder")
    shipped = sorted(manifest.parent.name for manifest in SHIPPED.glob(f"*/{MANIFEST}"))
    nearest = difflib.get_close_matches(str(path), shipped, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise CheckpointError(f"no checkpoint {str(path)!r}: {hint}shipped are {', '.join(shipped) or 'none'}")


# The state of a training run: the same folder, with an optimiser, generators and a position in place of a config


def save_training_state(
    folder: str | Path,
    modules: Mapping[str, nn.Module],  # weights, target, ...
    optimizer: torch.optim.Optimizer,
    position: Mapping[str, Any],  # JSON: the step and whatever else says where the run stands
    generators: Mapping[str, Generator] | None = None,
    kept: Mapping[str, Tensor] | None = None,  # what else a run is to go on with, see `kept_in`
) -> None:
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    tensors |= {f"kept/{name}": tensor for name, tensor in (kept or {}).items()}
    state = optimizer.state_dict()
    scalars: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                scalars[f"{index}/{key}"] = value
    bits: dict[str, Any] = {}
    for name, generator in (generators or {}).items():
        if isinstance(generator, torch.Generator):
            tensors[f"generator/{name}"] = generator.get_state()
        else:
            bits[name] = generator.bit_generator.state
    config = {"position": position, "groups": state["param_groups"], "scalars": scalars, "generators": bits}
    save(folder, {"training": config}, tensors, {})


def load_training_state(
    folder: str | Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, Generator] | None = None,
) -> dict[str, Any]:
    """Fill modules, optimizer and generators in place; returns the position."""
    config, tensors, _ = load_files(folder)
    if "training" not in config:
        raise CheckpointError(f"{Path(folder) / CONFIG}: a checkpoint, not the state of a training run")
    training = config["training"]
    states: dict[int, dict[str, Any]] = {}
    entries = _below("optimizer/", tensors) | training["scalars"]
    for path, value in entries.items():
        index, key = path.split("/", 1)
        states.setdefault(int(index), {})[key] = value
    try:
        for name, module in modules.items():
            module.load_state_dict(_below(f"{name}/", tensors))
        optimizer.load_state_dict({"state": states, "param_groups": training["groups"]})
        for name, generator in (generators or {}).items():
            if isinstance(generator, torch.Generator):
                generator.set_state(tensors[f"generator/{name}"])
            else:
                generator.bit_generator.state = training["generators"][name]
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: the state of a run with other settings: {error}") from error
    return dict(training["position"])


def kept_in(folder: str | Path) -> dict[str, Tensor]:
    """What a training state holds beside modules and optimiser."""
    return _below("kept/", load_files(folder)[1])


def plain(value: Any) -> Any:
    """Dataclasses, tuples, paths and numpy values as JSON has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, Path | torch.device | torch.dtype) else value


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _refuse_pickles(path: Path) -> None:
    alone = path.is_dir() and not (path / MANIFEST).exists()
    for offered in path.iterdir() if alone else [path] if path.is_file() else []:
        if offered.suffix in PICKLES:
            raise CheckpointError(f"{offered}: a pickle can run any code, so none is read; save it as safetensors")
    if path.is_file():
        raise CheckpointError(f"{path}: a file; a checkpoint is the folder around {MANIFEST}")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = _json_object(path, path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    files = manifest.get("files")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {manifest.get('format')!r}, only {FORMAT!r} is read")
    if not isinstance(files, dict) or files.keys() != {CONFIG, MODEL, PROVENANCE}:
        raise CheckpointError(f"{path}: damaged, it does not list {CONFIG}, {MODEL} and {PROVENANCE}")
    return files


def _verified(path: Path, entry: Any) -> bytes:
    try:
        size, digest = entry["bytes"], entry["sha256"]
    except (KeyError, TypeError):
        raise CheckpointError(f"{path.with_name(MANIFEST)}: damaged at its entry for {path.name}") from None
    try:
        if (found := path.stat().st_size) != size:
            raise CheckpointError(f"{path}: {found} bytes, {size} were written; it is truncated or overwritten")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if atomic.sha256(content) != digest:
        raise CheckpointError(f"{path}: altered, its SHA-256 is not the one in {MANIFEST}")
    return content


def _json_object(path: Path, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: damaged: not a JSON object")
    return value
