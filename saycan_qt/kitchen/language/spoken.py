"""How people speak to the kitchen robot: the language that a planner is given."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from planners.robot_language import RobotLanguage
from skills.library import SkillLibrary

FOLDER = Path(__file__).parent


@cache
def kitchen_language() -> RobotLanguage:
    return RobotLanguage.load(FOLDER, "a robot in a kitchen", SkillLibrary.load())
