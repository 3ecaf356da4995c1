"""The skill server: judges which skills can succeed, and acts.

    python -m saycan_qt.serve                                       # the models that come with the project, on loopback
    python -m saycan_qt.serve --affordance runs/critic --port 50051
    python -m saycan_qt.serve --skills my_robot.yaml --affordance runs/mine --execution runs/mine

It prints `skill server listening on HOST:PORT` as soon as it can be reached and `skill server ready: ...` when its models
are warm; until then its health is NOT_SERVING. SIGTERM or Ctrl-C lets running skills end, then it exits with 0.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from saycan_qt.services import ERROR, MISTAKE, EndWhenTold, announce, announce_ready

NAME = "skill server"


@dataclass(frozen=True)
class ServeConfig:
    """The skill server: judges which skills can succeed, and acts."""

    affordance: Annotated[str | None, tyro.conf.arg(metavar="DIR|NAME")] = None  # checkpoint that judges; default: shipped
    execution: Annotated[str | None, tyro.conf.arg(metavar="DIR|NAME")] = None  # checkpoint that acts; default: shipped
    skills: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None  # what the robot can do (YAML); default: kitchen.yaml
    host: str = "127.0.0.1"  # address to listen on
    port: int = 0  # 0: a free one, which is printed
    threads: int = 2  # that the models may use
    until_stdin_closes: bool = False  # end with the process that holds standard input; `saycan_qt.run` sets it
