"""How people speak to the kitchen robot: the language that a planner is given."""

from __future__ import annotations

from functools import cache

from planners.robot_language import RobotLanguage
from skills.robot_folder import default_robot


@cache
def kitchen_language() -> RobotLanguage:
    return RobotLanguage.of(default_robot())
