"""The kitchen robot's embodiment, as its folder says it, in the forms that the simulation uses."""

from __future__ import annotations

from skills.robot_folder import default_robot

EMBODIMENT = default_robot().embodiment
CONTROL_HZ = EMBODIMENT.control_hz
STATE_NAMES = tuple(number.name for number in EMBODIMENT.state)
ACTION_NAMES = tuple(dimension.name for dimension in EMBODIMENT.action)
ACTION_LOW, ACTION_HIGH = EMBODIMENT.low, EMBODIMENT.high  # [m] x3, [rad] x3, fractions
