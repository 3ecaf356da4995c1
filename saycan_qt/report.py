"""Turn a run's folder into one HTML page that needs nothing else: no server, no network, no other file.

    python -m saycan_qt.report runs/20261121-101500-bring-me-a-snack

`saycan_qt.run` writes it by itself; the command makes it again from plan.json and the pictures.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from saycan_qt.journey.report import write_report
from saycan_qt.journey.results import PLAN
from saycan_qt.options import parse
from saycan_qt.services.processes import refuse


@dataclass(frozen=True)
class ReportConfig:
    """Make report.html again from a run's folder."""

    folder: Annotated[Path, tyro.conf.Positional]  # a folder that `saycan_qt.run` left


def main() -> int:
    config = parse(ReportConfig, "python -m saycan_qt.report", __doc__)
    if not (config.folder / PLAN).is_file():
        return refuse(f"{config.folder} holds no {PLAN}; give a folder that `python -m saycan_qt.run` left")
    print(write_report(config.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
