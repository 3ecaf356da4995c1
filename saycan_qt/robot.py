"""The kitchen robot: a simulated kitchen with a robot in it, served as a robot stack would serve its own.

    python -m saycan_qt.robot --seed 3 --skill-server 127.0.0.1:50051 --port 50052
    python -m saycan_qt.robot --release 127.0.0.1:50052      # let a robot that was stopped move again

It prints `kitchen robot listening on HOST:PORT` and then `kitchen robot ready: ...`. Without a skill server it can do the
scripted skills only. SIGTERM or Ctrl-C stops the robot, then it exits with 0.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from saycan_qt.services import ERROR, MISTAKE, EndWhenTold, announce, announce_ready

NAME = "kitchen robot"


@dataclass(frozen=True)
class RobotConfig:
    """The kitchen robot: a simulated kitchen with a robot in it, served as a robot stack would serve its own."""

    seed: int = 0  # which kitchen: the same seed gives the same kitchen
    skill_server: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None  # who acts when a learnt skill runs
    host: str = "127.0.0.1"  # address to listen on
    port: int = 0  # 0: a free one, which is printed
    release: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None  # reset a stopped robot and exit
    until_stdin_closes: bool = False  # end with the process that holds standard input; `saycan_qt.run` sets it
