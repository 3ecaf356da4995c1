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
from saycan_qt.journey.results import NotWritten
from saycan_qt.options import parse
from saycan_qt.page.runs import NoRun
from saycan_qt.services.processes import refuse


@dataclass(frozen=True)
class ReportConfig:
    """Make report.html again from a run's folder."""

    folder: Annotated[Path, tyro.conf.Positional]  # a folder that `saycan_qt.run` left


def main() -> int:
    config = parse(ReportConfig, "python -m saycan_qt.report", __doc__)
    try:
        print(write_report(config.folder))
    except NoRun as error:
        return refuse(str(error))
    except NotWritten as error:
        return refuse(f"{error.filename} cannot be written: {error.strerror}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
