"""Command-line options that several commands share: what their values are called, and no default worth showing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import tyro

Address = Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Checkpoint = Annotated[str, tyro.conf.arg(metavar="NAME|DIR")]  # a shipped one, or a folder
Instruction = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INSTRUCTION", help_behavior_hint="")]
T = TypeVar("T")


def parse(kind: type[T], command: str, teaches: str | None) -> T:
    """The command line as a dataclass; prints help and ends where it is asked for or wrong (exit code 2)."""
    return tyro.cli(kind, prog=command, description=teaches, config=(tyro.conf.FlagCreatePairsOff,))
