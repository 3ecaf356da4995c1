"""What several commands' command lines share: options, how one is parsed, and how one of several commands is chosen."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

# Options: what their values are called, and no default worth showing
Address = Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Checkpoint = Annotated[str, tyro.conf.arg(metavar="NAME|DIR")]  # a shipped one, or a folder
Instruction = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INSTRUCTION", help_behavior_hint="")]
Command = tuple[type, Callable[[Any], int]]  # a config, and what is done with it: its exit code
T = TypeVar("T")


def called(module: str) -> str:
    """What a command is called in its help: "python -m saycan_qt.serve", or "saycan-qt serve" if started so."""
    return sys.argv[0] if sys.argv[0].endswith(f" {module.rpartition('.')[2]}") else module


def require(config: Any, **least: float) -> None:
    """Raises ValueError for the first option below its least value: require(config, episodes=1, workers=1)."""
    for name, smallest in least.items():
        value = getattr(config, name)
        if not smallest <= value < math.inf:  # a NaN is not, either
            raise ValueError(f"--{name.replace('_', '-')} {value}: it must be at least {smallest}")


def require_share(config: Any, *names: str) -> None:
    """Raises ValueError for the first option that does not lie within 0 to 1."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)}: it must lie within 0 to 1")


def require_files(config: Any, *names: str) -> None:
    """Raises ValueError for the first option, of those that are given, whose file cannot be written: it names a folder,
    or a file in none that is there or can be made."""
    for name in names:
        if (path := getattr(config, name)) is None:
            continue
        try:
            if path.is_dir():
                raise ValueError(f"--{name.replace('_', '-')} {path} is a folder; give a file's name")
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise ValueError(f"--{name.replace('_', '-')} {path} cannot be written: {error.strerror}") from None


def parse(kind: type[T], command: str, teaches: str | None) -> T:
    """The command line as a dataclass; prints help and ends where it is asked for or wrong (exit code 2)."""
    return tyro.cli(kind, prog=called(command), description=teaches, config=(tyro.conf.FlagCreatePairsOff,))


def dispatch(
    program: str, teaches: str | None, commands: Mapping[str, Callable[[], Command]], arguments: Sequence[str] | None
) -> int:
    """Runs the command that the first argument names, else the one called "" where there is one. A command is given as
    a function, so that only the chosen one's modules need be imported. arguments: those of the process if None."""
    program = called(program)
    given = sys.argv[1:] if arguments is None else list(arguments)
    name, rest = (given[0], given[1:]) if given and given[0] in commands else ("", given)
    if name not in commands:
        asked = given[:1] in (["-h"], ["--help"])
        usage = f"usage: {program} {{{','.join(commands)}}} [--help]"
        print(f"{teaches}\n{usage}", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    config, command = commands[name]()
    description = None if name else teaches  # None: the config's own
    return command(tyro.cli(config, prog=f"{program} {name}".strip(), description=description, args=rest))
