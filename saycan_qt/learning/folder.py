"""The folder of a training run has one writer, and says what the run was begun with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any

from saycan_qt import atomic
from skills import files

CONFIG = "config.json"  # a run's settings


def only_writer(out: Path) -> IO[str]:
    """A lock that is held until it is closed, or the process ends. Raises ValueError where another process has it."""
    try:
        return atomic.lock(out / ".lock", wait=False)
    except BlockingIOError:
        raise ValueError(f"{out}: another process trains here; choose another --out, or wait for it") from None


def as_json(settings: Any) -> dict[str, Any]:
    """As a file that was written with them gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def defaults_of(config: Any) -> dict[str, Any]:
    """As JSON has them."""
    return as_json({f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING})


def settings_in(out: Path, otherwise: str) -> dict[str, Any]:
    """What the run was begun with. Raises ValueError where that is damaged, with what to do otherwise."""
    path, why = out / CONFIG, "not a JSON object"
    try:
        if isinstance(settings := files.read_json(path), dict):
            return settings
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
    raise ValueError(f"{path}: damaged: {why}; {otherwise}")


def require_the_same(
    out: Path, settings: Mapping[str, Any], before: Mapping[str, Any], free: Collection[str] = ()
) -> None:
    """Raises ValueError where the run was begun with others, but for those that are free to change."""
    if changed := [key for key, value in settings.items() if key not in free and value != before.get(key)]:
        raise ValueError(f"{out} holds a run with another {', '.join(changed)}; choose another --out")


def write_settings(out: Path, settings: Mapping[str, Any]) -> None:
    atomic.write(out / CONFIG, (json.dumps(settings, indent=1) + "\n").encode())
