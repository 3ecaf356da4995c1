"""Checkpoints: a folder with config.json, model.safetensors, provenance.json and a manifest of their SHA-256.

    checkpoint.save("runs/q/checkpoint", config, tensors, {"command": "...", "data": dataset.digest})
    policy = checkpoint.load("execution")             # a shipped one by name, or a folder; an Actor, often a Critic

Written whole or not at all; read only if every byte is as it was written. No pickle, in either direction.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

from saycan_qt import atomic
from saycan_qt.learning import fit
from skills import files

SHIPPED = Path(__file__).parent.parent / "checkpoints"
CONFIG, MODEL, PROVENANCE, MANIFEST = "config.json", "model.safetensors", "provenance.json", "manifest.json"
FORMAT = "saycan-qt checkpoint 1"
PERCEPTION = "perception"  # the algorithm of a checkpoint of eyes alone
SAID = 500  # [characters] of what a damaged file holds that are repeated
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
Generator = torch.Generator | np.random.Generator


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: file and reason."""


def machine(device: str = "cpu") -> str:
    """What a run's sums depend on beside its seed: on another kind of processor the same command ends with others."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    native = [name for name in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(name)]
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *native, f"torch {torch.__version__}"])


def save(folder: str | Path, config: Any, tensors: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
    """Replace `folder` as a whole. config: a dataclass tree or a dict, its "algorithm" says who can load it."""
    with atomic.replacing_folder(Path(folder)) as temporary:
        (temporary / CONFIG).write_bytes(atomic.to_json(plain(config)))
        (temporary / PROVENANCE).write_bytes(atomic.to_json(plain(provenance)))
        # copies, because safetensors refuses tensors that share memory
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        save_file(copies, temporary / MODEL)
        entries = {
            name: {"sha256": atomic.sha256(temporary / name), "bytes": (temporary / name).stat().st_size}
            for name in (CONFIG, MODEL, PROVENANCE)
        }
        (temporary / MANIFEST).write_bytes(atomic.to_json({"format": FORMAT, "files": entries}))


def load_files(
    folder: str | Path, fits: Callable[[dict[str, Any], fit.Shapes], None] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Config, tensors (on the CPU) and provenance, verified. Raises CheckpointError.

    fits(config, shapes) is called before the tensors are read, and raises where they are not the config's."""
    folder = atomic.newest(Path(folder))
    _refuse_pickles(folder)
    entries = _read_manifest(folder / MANIFEST)
    config, provenance = (
        _json_object(folder / name, _verified(folder / name, entries[name], files.JSON_BYTES))
        for name in (CONFIG, PROVENANCE)
    )
    content = _verified(folder / MODEL, entries[MODEL], 4 * fit.WEIGHTS, partial(_look, folder, config, fits))
    try:
        tensors = tensors_from_bytes(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:  # KeyError: of a type that torch has not
        raise CheckpointError(f"{folder / MODEL}: not safetensors: {error}") from None
    return config, tensors, provenance


def read(name_or_path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a shipped checkpoint or a folder, which fit each other."""

    def fits(config: dict[str, Any], shapes: fit.Shapes) -> None:
        kind = algorithms().get(str(config.get("algorithm")))
        if kind is not None:
            kind.require_fit(config, shapes)
        elif config.get("algorithm") == PERCEPTION:
            fit.require_eyes(config, shapes)

    return load_files(resolve(name_or_path), fits)[:2]


def algorithms() -> dict[str, Any]:
    """Name -> class; imported here, so that reading needs none of them."""
    return importlib.import_module("saycan_qt.learning.algorithms").ALGORITHMS


def load(name_or_path: str | Path, device: str | torch.device = "cpu") -> Any:
    """The policy of a shipped checkpoint or a folder, ready to act. Raises CheckpointError."""
    folder, known = resolve(name_or_path), algorithms()

    def fits(config: dict[str, Any], shapes: fit.Shapes) -> None:
        name = str(config.get("algorithm"))
        if name not in known:
            raise CheckpointError(
                f"{folder / CONFIG}: unknown algorithm {name!r}; known are {', '.join(sorted(known))}"
            )
        known[name].require_fit(config, shapes)

    config, tensors, _ = load_files(folder, fits)
    name = str(config["algorithm"])
    for key, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise CheckpointError(f"{folder / MODEL}: {key} has numbers that are not finite; did its training diverge?")
    try:
        policy = known[name].from_checkpoint(config, tensors)
    except Exception as error:  # each constructor has its own word for what it cannot be built from
        raise _misfit(folder, name, error) from error
    return policy.to(device)


def _misfit(folder: Path, name: str, error: Exception) -> CheckpointError:
    reason = shorten(f"{type(error).__name__}: {error}", SAID, placeholder=" ...")
    return CheckpointError(f"{folder}: does not fit this version of {name}: {reason}")


def _look(
    folder: Path,
    config: dict[str, Any],
    fits: Callable[[dict[str, Any], fit.Shapes], None] | None,
    start: bytes,
    size: int,
) -> None:
    """At the beginning of the file of tensors, before the rest is read. Raises CheckpointError."""
    try:
        shapes = fit.shapes_in(start, size)
    except ValueError as error:
        raise CheckpointError(f"{folder / MODEL}: not safetensors: {error}") from None
    if fits is None:
        return
    if size > fit.WEIGHTS:
        raise CheckpointError(f"{folder / MODEL}: {size} bytes, at most {fit.WEIGHTS} are loaded")
    try:
        fits(config, shapes)
    except CheckpointError:
        raise
    except Exception as error:  # a config may hold anything
        raise _misfit(folder, str(config.get("algorithm")), error) from error


def exists(folder: Path) -> bool:
    """Is there something that `save` wrote, whole?"""
    return (atomic.newest(folder) / MANIFEST).exists()


def digest(folder: Path) -> str:
    """Which checkpoint it is: the manifest's SHA-256, and with it that of every file. Raises OSError."""
    return atomic.sha256(files.read(atomic.newest(folder) / MANIFEST))


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
        if exists(path / "checkpoint"):
            raise CheckpointError(f"{path} is a run's folder; its checkpoint is {path / 'checkpoint'}")
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
    try:
        training = config["training"]
        states: dict[int, dict[str, Any]] = {}
        entries = _below("optimizer/", tensors) | training["scalars"]
        for path, value in entries.items():
            index, key = path.split("/", 1)
            states.setdefault(int(index), {})[key] = value
        for name, module in modules.items():
            module.load_state_dict(_below(f"{name}/", tensors))
        optimizer.load_state_dict({"state": states, "param_groups": training["groups"]})
        for name, generator in (generators or {}).items():
            if isinstance(generator, torch.Generator):
                generator.set_state(tensors[f"generator/{name}"])
            else:
                generator.bit_generator.state = training["generators"][name]
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
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
        manifest = _json_object(path, files.read(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    entries = manifest.get("files")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {str(manifest.get('format'))[:SAID]!r}, only {FORMAT!r} is read")
    if not isinstance(entries, dict) or entries.keys() != {CONFIG, MODEL, PROVENANCE}:
        raise CheckpointError(f"{path}: damaged, it does not list {CONFIG}, {MODEL} and {PROVENANCE}")
    return entries


def _verified(path: Path, entry: Any, most: int, look: Callable[[bytes, int], None] | None = None) -> bytes:
    """The content of a file of at most `most` bytes, which is as the manifest has it. look(beginning, bytes) raises for
    what need not be read whole."""
    try:
        size, digest = entry["bytes"], entry["sha256"]
        altered = f"{path}: altered, its SHA-256 is not the one in {MANIFEST}"
    except (KeyError, TypeError):
        raise CheckpointError(f"{path.with_name(MANIFEST)}: damaged at its entry for {path.name}") from None
    try:
        with files.opened(path, most) as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                written = str(size)[:SAID]
                raise CheckpointError(f"{path}: {found} bytes, {written} were written; it is truncated or overwritten")
            if look is not None:
                start = file.read(8)
                start += file.read(min(int.from_bytes(start, "little"), fit.HEADER))
                try:
                    look(start, found)
                except CheckpointError:  # for what was altered there is a better word
                    file.seek(0)
                    if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                        raise
                    raise CheckpointError(altered) from None
                file.seek(0)
            content = file.read(found)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if atomic.sha256(content) != digest:
        raise CheckpointError(altered)
    return content


def _json_object(path: Path, content: bytes) -> dict[str, Any]:
    try:
        value = files.from_json(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: damaged: not a JSON object")
    return value
