"""A robot as a folder: what it is, what it can do, and what comes with it.

    robot = RobotFolder.load(Path("my_robot"))
    robot.embodiment, robot.library

robot.yaml       the embodiment (see skills.embodiment), and: driver (module:Class, or HOST:PORT of a robot that runs),
                 views (cameras for people, any names)
skills.yaml      what it can do (see skills.library)
examples.yaml    how people ask for it; adapter/ a language model's, fine-tuned for it (see planners.robot_language)
affordance/ execution/     checkpoints that judge and act
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from skills.embodiment import Embodiment
from skills.errors import EmbodimentError
from skills.library import SkillLibrary

KITCHEN = Path(__file__).with_name("kitchen")  # the one that ships
ROBOT, SKILLS = "robot.yaml", "skills.yaml"


@dataclass(frozen=True)
class RobotFolder:
    """One robot."""

    path: Path
    embodiment: Embodiment
    driver: str = ""  # "module:Class", or "HOST:PORT"; "": none is said
    views: tuple[str, ...] = ()  # cameras for people

    @classmethod
    def load(cls, path: Path) -> RobotFolder:
        """Reads robot.yaml. Raises EmbodimentError, which names the file."""
        file = path / ROBOT
        try:
            given = yaml.safe_load(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise EmbodimentError(f"{path}: no {ROBOT} in it, so it is not a robot's folder") from None
        except OSError as error:
            raise EmbodimentError(f"{file}: cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise EmbodimentError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(given, Mapping):
            raise EmbodimentError(f"{file}: it must be `key: value` lines")
        own = {key: value for key, value in given.items() if key not in ("driver", "views")}
        return cls(path, Embodiment.parse(own, str(file)), _text(given, "driver", file), _texts(given, "views", file))

    @cached_property
    def library(self) -> SkillLibrary:
        """Raises LibraryError."""
        return SkillLibrary.load(self.path / SKILLS)


@cache
def default_robot() -> RobotFolder:
    """The kitchen's, which everything is about where nobody names another robot."""
    return RobotFolder.load(KITCHEN)


def _text(given: Mapping[str, Any], key: str, file: Path) -> str:
    value = given.get(key) or ""
    if not isinstance(value, str):
        raise EmbodimentError(f"{file}: {key}: {value!r} is no text")
    return value


def _texts(given: Mapping[str, Any], key: str, file: Path) -> tuple[str, ...]:
    value = given.get(key) or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise EmbodimentError(f"{file}: {key}: write a list of names, such as `{key}: [front]`")
    return tuple(value)
