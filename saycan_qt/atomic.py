"""Files and folders that appear whole or not at all, and their SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from skills import files


def sha256(data: bytes | Path) -> str:
    """Hex digest of bytes, or of a regular file's content; OSError for any other."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with files.opened(data) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; after the block it has become `path`, and the disk has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder to fill; after the block it has become `folder`.

    No system call swaps two folders everywhere, so for an instant only `<folder>.old` exists: read with `newest`.
    For one writer at a time.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        old = _old(folder)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        temporary.rename(folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def newest(folder: Path) -> Path:
    """`folder`, or what it was before a swap that was interrupted."""
    return _old(folder) if not folder.exists() and _old(folder).exists() else folder


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def sync(path: Path) -> None:
    """Wait until the disk has a file's content or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path, wait: bool) -> IO[str]:
    """An exclusive lock, held until the returned file is closed or the process dies. BlockingIOError if not `wait`.
    Somebody else's link or pipe of that name is an OSError: it is neither followed nor waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | careful, 0o666), "w")
    try:
        import fcntl
    except ImportError:  # Windows: two writers are not kept apart
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        file.close()
        raise
    return file
