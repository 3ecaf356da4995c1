"""openpi's messages: msgpack, in which an array is a map of dtype, shape and bytes. Nothing is unpickled.

    data = pack({"observation/state": np.zeros(8), "prompt": "pick up the apple"})
    found = unpack(data)                    # raises InvalidRequest, which names what was wrong

What is read is bounded before memory is taken for it: bytes, parts, depth; arrays hold numbers or booleans only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from skills.errors import InvalidRequest

MAX_BYTES = 8 * 2**20  # of a message: four images of 800 x 800 pixels fit
MAX_PARTS = 20_000  # maps, lists, and what is in lists
MAX_LIST = 2000  # numbers that do not come as an array
MAX_KEYS = 1000  # of a map
MAX_DIMENSIONS = 8
DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")  # neither objects nor records nor text: numbers
ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"


def pack(message: Mapping[str, Any]) -> bytes:
    """Raises ValueError for what the protocol has no form for."""
    try:
        return msgpack.packb(message, default=_write)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"it cannot be sent: {error}") from None


def unpack(data: bytes) -> dict[str, Any]:
    """The message, a map of texts; arrays are read-only. Raises InvalidRequest."""
    if len(data) > MAX_BYTES:
        raise InvalidRequest(f"the message has {len(data)} bytes; at most {MAX_BYTES >> 20} MiB are taken")
    reader = _Reader()
    try:
        message = msgpack.unpackb(
            data,
            object_pairs_hook=reader.mapping,
            list_hook=reader.sequence,
            max_str_len=len(data),
            max_bin_len=len(data),
            max_array_len=MAX_LIST,
            max_map_len=MAX_KEYS,
            max_ext_len=0,
        )
    except InvalidRequest:
        raise
    except (msgpack.StackError, RecursionError):
        raise InvalidRequest("the message is nested too deeply") from None
    except (ValueError, TypeError, msgpack.UnpackException) as error:  # whatever bytes may be taken for
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise InvalidRequest(f"the message cannot be read as msgpack: {why}") from None
    if not isinstance(message, dict):
        raise InvalidRequest(f"the message is no map of names and values, but {_kind(message)}")
    return message


class _Reader:
    """Takes maps and lists as they become whole, and counts."""

    def __init__(self) -> None:
        self._parts = 0

    def sequence(self, values: list[Any]) -> list[Any]:
        self._count(len(values))
        return values

    def mapping(self, pairs: list[tuple[Any, Any]]) -> Any:
        self._count(1)
        found = dict(pairs)
        if len(found) < len(pairs):
            raise InvalidRequest("a map of the message has one key twice")
        if ARRAY in found or SCALAR in found:
            return _array(found) if ARRAY in found else _scalar(found)
        if odd := next((key for key in found if not isinstance(key, str)), None):
            raise InvalidRequest(f"a map of the message has a key that is no text: {str(odd)[:50]}")
        return found

    def _count(self, parts: int) -> None:
        self._parts += 1 + parts
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"the message has more than {MAX_PARTS} parts; send numbers as arrays")


def _dtype(found: Mapping[bytes, Any]) -> np.dtype[Any]:
    given = found.get(b"dtype")
    if not isinstance(given, str) or not DTYPE.fullmatch(given):
        raise InvalidRequest(f"an array is of dtype {str(given)[:50]!r}; it holds numbers or booleans, nothing else")
    return np.dtype(given)


def _array(found: Mapping[bytes, Any]) -> np.ndarray:
    dtype, shape, data = _dtype(found), found.get(b"shape"), found.get(b"data")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(side) is int and side >= 0 for side in shape)
    ):
        raise InvalidRequest(
            f"an array has the shape {str(shape)[:100]}; it is a list of at most {MAX_DIMENSIONS} sizes"
        )
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        has = f"{len(data)} bytes" if isinstance(data, bytes) else _kind(data)
        wants = str(math.prod(shape) * dtype.itemsize)[:50]
        raise InvalidRequest(
            f"an array of shape {str(shape)[:100]} and dtype {dtype.str} takes {wants} bytes, not {has}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(found: Mapping[bytes, Any]) -> np.generic:
    dtype, value = _dtype(found), found.get(b"data")
    if not isinstance(value, bool | int | float):
        raise InvalidRequest(f"a number of dtype {dtype.str} is {_kind(value)}")
    try:
        return dtype.type(value)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"a number of dtype {dtype.str} is none: {str(error)[:100]}") from None


def _write(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if not DTYPE.fullmatch(value.dtype.str):
            raise TypeError(f"an array of dtype {value.dtype} holds neither numbers nor booleans")
        if isinstance(value, np.ndarray):
            return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} has no form in msgpack")


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"of type {type(value).__name__}"
