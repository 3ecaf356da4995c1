"""A folder for a robot of your own, which works as it is and says in its files what to change.

    python -m saycan_qt.new my_robot
    python -m saycan_qt.run --robot-folder my_robot "have a look at the door and come back"

What is there already is never written over.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import skills.robot_folder
from saycan_qt.options import parse
from saycan_qt.services.processes import refuse
from skills.errors import EmbodimentError
from skills.robot_folder import ROBOT, RobotFolder

TEMPLATE = Path(skills.robot_folder.__file__).with_name("new_robot")
NAMED = "name: new robot "  # in its robot.yaml
NEXT = """\
{folder}/ is a robot, simulated as yet:
  robot.yaml      what it is: cameras, state, action, rate
  skills.yaml     what it can do
  examples.yaml   how people ask for it
  driver.py       what moves it
try it:           python -m saycan_qt.run --robot-folder {folder} "have a look at the door and come back"
then edit them, record demonstrations (saycan_qt.data.writer.EpisodeWriter, or LeRobot's own), and
train:            python -m saycan_qt.train rt1 --data DATA --out runs/{name}
                  cp -rL runs/{name}/checkpoint/. {folder}/execution
teach words:      python -m saycan_qt.tune --robot-folder {folder} --init general --out runs/{words}
                  cp -rL runs/{words}/adapter/. {folder}/adapter
"""


@dataclass(frozen=True)
class NewConfig:
    """A folder for a robot of your own."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]  # to make


def make(folder: Path) -> None:
    """Raises OSError, FileExistsError where something is there that would be lost."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already, and is not written over; choose another name")
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = " ".join(folder.resolve().name.replace("_", " ").replace("-", " ").split())
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as scratch:
        made = Path(scratch) / "robot"
        made.mkdir()
        for file in TEMPLATE.iterdir():
            if file.is_file():
                shutil.copyfile(file, made / file.name)
        described = (made / ROBOT).read_text(encoding="utf-8")
        (made / ROBOT).write_text(
            described.replace(NAMED, f"name: {json.dumps(name, ensure_ascii=False)} ", 1), encoding="utf-8"
        )
        RobotFolder.load(made)  # a name that YAML cannot hold is refused before anything is there
        if not folder.exists():
            os.rename(made, folder)
            return
        for file in made.iterdir():  # an empty folder, in which somebody may stand
            os.rename(file, folder / file.name)


def main() -> int:
    config = parse(NewConfig, "python -m saycan_qt.new", __doc__)
    try:
        make(config.folder)
    except (OSError, EmbodimentError) as error:
        return refuse(str(error))
    name = config.folder.resolve().name
    given = {"folder": str(config.folder), "name": name, "words": f"{name}-words"}
    print(NEXT.format_map({key: shlex.quote(value) for key, value in given.items()}), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
