"""Does a config fit the tensors beside it? Found out from their shapes alone, before anything is built or read.

A config of one line can ask for more layers than a day builds, or more weights than there is memory. So the network is
first built on torch's meta device, which holds no numbers, and no longer than the file's tensors can account for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from saycan_qt.networks.keypoints import Grounding, KeypointTrunk, TrunkConfig, require_sides
from skills import files

Shapes = Mapping[str, tuple[int, ...]]
SIZES = {  # [bits] of a number, by the name that safetensors has for its type
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F16": 16, "BF16": 16, "I16": 16, "U16": 16},
    **{"F32": 32, "I32": 32, "U32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64},
}
HEADER, TENSORS = 4 * 2**20, 20_000  # [bytes] of a file's names and shapes, and how many at most
WEIGHTS = 2 * 2**30  # [bytes] of a file that is served; the state of a training run may have four times as many
PER_TENSOR, SPARE = 16, 500  # operations that building takes: for each tensor of the file, and besides
BESIDES = 2**24  # numbers in a tensor that building makes and the file has not, such as a mask
LARGEST = 1e9  # a setting beyond it is none


def shapes_in(start: bytes, size: int) -> Shapes:
    """The tensors of a file in the format of safetensors, of `size` bytes and with `start` at its beginning, which
    holds at least the header. Raises ValueError where the header is not about exactly these bytes."""
    length = int.from_bytes(start[:8], "little")
    if size < 8 or length > min(HEADER, size - 8):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    header = files.from_json(start[8 : 8 + length])
    if not isinstance(header, dict) or len(header) > TENSORS:
        raise ValueError(f"the header is no JSON object of at most {TENSORS} tensors")
    header.pop("__metadata__", None)
    shapes, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(item[1])):
        begins, ends = _offsets(entry)
        shape, bits = entry.get("shape"), SIZES.get(str(entry.get("dtype")))
        if bits is None:
            raise ValueError(f"{name!r} is of the type {str(entry.get('dtype'))[:50]!r}, which is not read")
        if not isinstance(shape, list) or len(shape) > 8 or not all(_is_whole(side) for side in shape):
            raise ValueError(f"{name!r} has no shape")
        if begins != end or (ends - begins) * 8 != math.prod(shape) * bits:
            raise ValueError(f"{name!r} of shape {tuple(shape)} is not the bytes {begins} to {ends}")
        shapes[name], end = tuple(shape), ends
    if end != size - 8 - length:
        raise ValueError(f"{size - 8 - length} bytes of numbers, the header is about {end}")
    return shapes


def _is_whole(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 2**48


def _offsets(entry: Any) -> tuple[int, int]:
    match entry:
        case {"data_offsets": [begins, ends]} if _is_whole(begins) and _is_whole(ends) and begins <= ends:
            return begins, ends
    raise ValueError("a tensor without a place in the file")


class _Counted(TorchDispatchMode):
    """Within it, at most so many operations, none of whose results has more than so many numbers. Of this thread."""

    def __init__(self, operations: int, numbers: int) -> None:
        super().__init__()
        self.left, self.numbers = operations, numbers

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.left -= 1
        result = function(*arguments, **(named or {}))
        if self.left < 0:
            raise ValueError("the config asks for more parts than the file has tensors for")
        if isinstance(result, Tensor) and result.numel() > self.numbers:
            raise ValueError(f"the config asks for a tensor of shape {tuple(result.shape)}, which the file has not")
        return result


def require_fit(build: Callable[[], nn.Module], shapes: Shapes, prefix: str) -> None:
    """Raises ValueError unless the module's tensors are exactly those of the file whose names begin so; whatever
    building raises goes on."""
    there = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    largest = max(map(math.prod, there.values()), default=0)
    with torch.device("meta"), _Counted(PER_TENSOR * len(there) + SPARE, largest + BESIDES):
        wanted = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(f"Missing key {prefix}{missing[0]}: the config asks for it, the file has it not")
    if more := [name for name in there if name not in wanted]:
        raise ValueError(f"Unexpected key {prefix}{more[0]}: the file has it, the config does not ask for it")
    for name, shape in wanted.items():
        if there[name] != shape:
            raise ValueError(
                f"size mismatch: {prefix}{name} has the shape {there[name]} in the file, {shape} by the config"
            )


def require_texts(config: Mapping[str, Any], shapes: Shapes, size: int) -> None:
    """Raises ValueError unless the instructions are texts, with an embedding each of `size` numbers."""
    texts = config["texts"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("`texts` is no list of texts")
    if shapes["texts"] != (len(texts), size):
        raise ValueError(f"{len(texts)} texts with {size} numbers each, and embeddings of shape {shapes['texts']}")


def settled(config: Any) -> Any:
    """The dataclass itself, if each of its values is of the kind of its default: whole, finite, a text, true or false.
    Raises ValueError."""
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), _default(field)
        if isinstance(default, bool) or isinstance(value, bool):
            fits = isinstance(default, bool) and isinstance(value, bool)
        elif isinstance(default, int):
            fits = isinstance(value, int) and 0 <= value <= LARGEST
        elif isinstance(default, float):
            fits = isinstance(value, int | float) and abs(value) <= LARGEST
        elif isinstance(default, tuple):
            numbers = value if isinstance(value, tuple) else (None,)
            fits = all(isinstance(number, int | float) and abs(number) <= LARGEST for number in numbers)
        else:
            fits = not isinstance(default, str) or isinstance(value, str)
        if not fits:
            raise ValueError(f"{field.name} is {str(value)[:50]!r}")
    return config


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def require_eyes(config: Mapping[str, Any], shapes: Shapes) -> None:
    """`require_fit` of a checkpoint of `saycan_qt.pretrain`."""
    trunk = settled(TrunkConfig.from_dict(config["trunk"]))
    require_sides(trunk.image)
    require_texts(config, shapes, shapes["texts"][-1])
    require_known(shapes, "trunk.", "grounding.", "texts")
    require_fit(lambda: KeypointTrunk(trunk), shapes, "trunk.")
    require_fit(lambda: Grounding(trunk.keypoints, shapes["texts"][-1]), shapes, "grounding.")


def require_known(shapes: Shapes, *beginnings: str) -> None:
    """Raises ValueError for a tensor that nobody would use."""
    if unknown := [name for name in shapes if not name.startswith(beginnings)]:
        raise ValueError(f"Unexpected key {unknown[0]}")
