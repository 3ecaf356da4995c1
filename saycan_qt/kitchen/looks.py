"""How the kitchen appears. What happens in it is the same in every look; colours, light and camera are not.

"target" is the kitchen that everything is measured in. "source" stands in for a simulator that resembles it: what is
learnt there meets a gap, as from simulation to a real robot [Table 1: QT-Opt, sim-to-real].
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Literal

import numpy as np

from saycan_qt.kitchen.camera import HEAD, LAMP, Camera, Lamp

LookName = Literal["target", "source"]


@dataclass(frozen=True)
class Look:
    """Colours, in HSV, are turned and stretched; the lamp and the head camera stand elsewhere."""

    hue: float = 0.0  # added, in whole turns
    saturation: float = 1.0  # factor
    brightness: float = 1.0  # factor
    lamp: Lamp = LAMP
    head: Camera = HEAD

    def painted(self, colors: np.ndarray) -> np.ndarray:
        """RGB (N, 3) in [0, 1] in this look."""
        if (self.hue, self.saturation, self.brightness) == (0.0, 1.0, 1.0):
            return colors
        changed = []
        for color in colors.tolist():
            hue, saturation, value = colorsys.rgb_to_hsv(*color)
            part = (hue + self.hue) % 1, min(1.0, saturation * self.saturation), min(1.0, value * self.brightness)
            changed.append(colorsys.hsv_to_rgb(*part))
        return np.array(changed)


LOOKS: dict[LookName, Look] = {
    "target": Look(),
    "source": Look(
        hue=0.03,
        saturation=0.8,
        brightness=1.06,
        lamp=Lamp((0.5, -0.3, 0.81), ambient=0.4, headlight=0.2, diffuse=0.5),
        head=Camera(HEAD.width, HEAD.height, (-0.50, 0.02, 0.89), (0.01, 0.0, 0.0), 47.5),
    ),
}
