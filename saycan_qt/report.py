"""Turn a run's folder into one HTML page that needs nothing else: no server, no network, no other file.

    python -m saycan_qt.report runs/20261121-101500-bring-me-a-snack
    python -m saycan_qt.report runs/20261121-101500-bring-me-a-snack --mcap snack.mcap    # a file for Foxglove, too

`saycan_qt.run` writes the page by itself; the command makes it again from plan.json and the pictures.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from saycan_qt.journey import mcap
from saycan_qt.journey.replay import replay
from saycan_qt.journey.report import write_report
from saycan_qt.journey.results import PLAN, NotWritten
from saycan_qt.options import File, parse
from saycan_qt.page.runs import NoRun
from saycan_qt.services.processes import refuse


@dataclass(frozen=True)
class ReportConfig:
    """Make report.html again from a run's folder."""

    folder: Annotated[Path, tyro.conf.Positional]  # a folder that `saycan_qt.run` left
    mcap: File = None  # write what happened to this new file, too, with the pictures of the decisions


def main() -> int:
    config = parse(ReportConfig, "python -m saycan_qt.report", __doc__)
    if config.mcap is not None and (mistake := mcap.mistake(config.mcap)) is not None:
        return refuse(mistake)
    try:
        print(write_report(config.folder))
    except NoRun as error:
        return refuse(str(error))
    except NotWritten as error:
        return refuse(f"{error.filename} cannot be written: {error.strerror}")
    if config.mcap is not None:
        try:
            write_mcap(config.folder, config.mcap)
        except OSError as error:
            return refuse(f"{config.mcap} cannot be written: {error.strerror or error}")
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:  # the page is lenient
            why = f"{type(error).__name__}: {str(error)[:200]}"
            return refuse(f"{config.mcap} cannot be made: {config.folder / PLAN} is not as a run leaves it: {why}")
        print(config.mcap)
    return 0


def write_mcap(folder: Path, path: Path) -> None:
    """Raises OSError, and leaves no half of a file."""
    file = mcap.McapFile(path)
    try:
        replay(folder, file.event, file.views)
        file.end()
    except BaseException:
        file.discard()
        raise


if __name__ == "__main__":
    sys.exit(main())
