"""The user's own Critic and Actor: `module:Class`, imported and constructed without arguments."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skills.errors import Unreadable
from skills.robot_folder import RobotFolder

log = logging.getLogger(__name__)

OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_own(name: str) -> bool:
    """Is it a class's name, rather than a checkpoint's or a folder's?"""
    return OWN.fullmatch(name) is not None and not Path(name).exists()


def find(name: str, body: RobotFolder | None = None) -> Callable[[], Any]:
    """The class, imported from the working folder too; one that the robot's folder names, from there before all others.
    Raises Unreadable."""
    module, _, member = name.partition(":")
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        if body is not None and name in (body.affordance, body.execution):
            kind = getattr(body.module(module), member)
        else:
            kind = getattr(importlib.import_module(module), member)
    except ModuleNotFoundError as error:
        raise Unreadable(f"{name}: there is no module {error.name!r} in {here}, nor on PYTHONPATH") from None
    except AttributeError:
        raise Unreadable(f"{name}: the module {module!r} has no {member!r}") from None
    except Exception as error:  # somebody else's code: whatever it raises
        raise Unreadable(f"{name}: cannot be imported: {reason(error)}") from None
    if not callable(kind):
        raise Unreadable(f"{name}: it is no class, and cannot be called to make a model")
    return kind


def construct(name: str, body: RobotFolder | None = None) -> Any:
    """As `find`; where the fault is in the class, the log has the traceback."""
    kind = find(name, body)
    try:
        return kind()
    except Exception as error:
        log.exception("%s failed", name)
        raise Unreadable(f"{name}: cannot be constructed without arguments: {reason(error)}") from None


def reason(error: Exception) -> str:
    """In one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
