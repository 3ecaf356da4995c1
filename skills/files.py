"""Files that somebody else may have written, read with care: regular files of bounded size, YAML and JSON of bounded
content.

    files.read(path)                       # bytes, or an OSError whose `strerror` says why not
    files.from_yaml(files.read(path))      # plain values, or a yaml.YAMLError
    files.from_json(files.read(path))      # plain values, or a ValueError

Nothing here waits, as opening a pipe or reading a device does, and nothing takes more memory than the bounds allow.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

SMALL = 2**20  # [bytes] of a file that people write
MANY = 100_000  # values in one, however often it names them: a list behind an anchor counts wherever it is named
LONG = 64  # characters of a text that count as one value
DEEP = 50  # values within values
JSON_BYTES, JSON_MANY, JSON_DIGITS = 64 * 2**20, 2_000_000, 40  # of what programs write
LARGEST_WHOLE = 2**63  # whole numbers in YAML are smaller
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def opened(path: str | Path, most: int | None = None) -> Iterator[io.BufferedReader]:
    """A regular file of at most `most` bytes (None: of any size), open to be read; links are followed. Raises OSError
    at once for anything else."""
    _check(path, os.stat(path), most)  # before it is opened, which alone makes some devices do something
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, os.O_RDONLY | flags), "rb") as file:
        _check(path, os.fstat(file.fileno()), most)
        yield file


def check(path: str | Path, most: int | None = None) -> int:
    """Its bytes, if it is a regular file of at most `most` of them; OSError for anything else. For those who leave the
    reading to a library."""
    with opened(path, most) as file:
        return os.fstat(file.fileno()).st_size


def read(path: str | Path, most: int = SMALL) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises OSError."""
    with opened(path, most) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1) or b""
    if len(content) > size:
        raise OSError(errno.EFBIG, "it grows while it is read, or does not say its size", str(path))
    return content


def read_text(path: str | Path, most: int = SMALL) -> str:
    """The same of text in UTF-8, with any line ends. Raises OSError and UnicodeDecodeError."""
    return io.TextIOWrapper(io.BytesIO(read(path, most)), encoding="utf-8").read()


def _check(path: str | Path, status: os.stat_result, most: int | None) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"{KINDS.get(kind, 'something else')}, not a file", str(path))
    if most is not None and status.st_size > most:
        raise OSError(errno.EFBIG, f"{_size(status.st_size)}, at most {_size(most)} are read", str(path))


def _size(count: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"


# YAML


class _Careful(yaml.SafeLoader):
    """SafeLoader within bounds, which refuses a key that stands twice: YAML would keep the last without a word."""

    def __init__(self, content: bytes | str, many: int) -> None:
        super().__init__(content)
        self._many, self._depth = many, 0
        self._values = 0  # so far, of the collection that is being read
        self._sizes: dict[int, int] = {}  # node -> values in it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The only way to a node, which an alias gives again."""
        event, before = self.peek_event(), self._values
        self._values, self._depth = 0, self._depth + 1
        if self._depth > DEEP:
            raise yaml.MarkedYAMLError(problem=f"more than {DEEP} levels", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        size = 1 + self._values + (len(node.value) // LONG if isinstance(node, yaml.ScalarNode) else 0)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise yaml.MarkedYAMLError(problem=f"*{event.anchor} is within itself", problem_mark=event.start_mark)
            size = self._sizes[id(node)]
        self._sizes[id(node)], self._values, self._depth = size, before + size, self._depth - 1
        if self._values > self._many:
            raise yaml.MarkedYAMLError(problem=f"more than {self._many} values", problem_mark=event.start_mark)
        return node

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        value = self.construct_yaml_int(node)
        if abs(value) >= LARGEST_WHOLE:
            raise yaml.MarkedYAMLError(problem="a whole number of too many digits", problem_mark=node.start_mark)
        return value

    def construct_mapping_once(self, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} stands there twice")
                seen.add(key.value)
        self.flatten_mapping(node)
        return self.construct_mapping(node, deep=True)


_Careful.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _Careful.construct_mapping_once)
_Careful.add_constructor("tag:yaml.org,2002:int", _Careful.construct_whole)


def compose_yaml(content: bytes | str, many: int = MANY) -> yaml.Node | None:
    """The node at the root, each with its line; None of nothing. Raises yaml.YAMLError alone."""
    try:
        return _Careful(content, many).get_single_node()
    except yaml.YAMLError:
        raise
    except (UnicodeDecodeError, ValueError) as error:
        raise yaml.YAMLError(str(error)) from None


def from_yaml(content: bytes | str, many: int = MANY) -> Any:
    """Plain values, as yaml.safe_load gives them. Raises yaml.YAMLError alone; for a key that stands twice, too."""
    try:
        return _Careful(content, many).get_single_data()
    except yaml.YAMLError:
        raise
    except Exception as error:  # dates of no calendar, numbers that are none: its constructors raise anything
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None


# JSON


def read_json(path: str | Path, most: int = JSON_BYTES) -> Any:
    """Raises OSError and ValueError."""
    return from_json(read(path, most))


def from_json(content: bytes) -> Any:
    """Plain values; ValueError for anything else, for more than a program has reason to write, and for a key that
    stands twice."""
    if sum(map(content.count, (b",", b"[", b"{"))) > JSON_MANY:
        raise ValueError(f"more than {JSON_MANY} values")
    try:
        value = json.loads(content, parse_int=_whole, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"more than {DEEP} levels") from None
    level, depth = [value], 0
    while level := [part for parent in level for part in _parts(parent)]:
        depth += 1
        if depth > DEEP:
            raise ValueError(f"more than {DEEP} levels")
    return value


def _whole(digits: str) -> int:
    if len(digits) > JSON_DIGITS:
        raise ValueError("a whole number of too many digits")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _parts(value: Any) -> list[Any]:
    """The lists and mappings in a list or mapping."""
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [part for part in held if isinstance(part, dict | list)]
