"""Images moved and recoloured at random, alike for all frames that belong together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # of red, green and blue [ITU-R BT.601]


@dataclass(frozen=True)
class Augmentation:
    """How far images are changed at most."""

    shift: float = 0.0  # share of the sides
    colour: float = 0.0  # of brightness, contrast and saturation

    def __bool__(self) -> bool:
        return self.shift > 0 or self.colour > 0

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, 5) of changes: down and to the right as shares of the sides, brightness, contrast, saturation."""
        limits = np.array([self.shift] * 2 + [self.colour] * 3)
        return (rng.uniform(-1, 1, (count, 5)) * limits + [0, 0, 1, 1, 1]).astype(np.float32)


def augmented(images: Tensor, changes: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 and changes (N, 5) -> the same; at the edges, what stood there is repeated [DrQ, Kostrikov et
    al. 2020, arXiv 2004.13649]."""
    height, width = images.shape[1:3]
    said = torch.from_numpy(changes)
    sides = torch.tensor([height, width])
    down, right = (said[:, :2] * sides).round().long().unbind(1)
    rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) - right[:, None]).clamp(0, width - 1)
    moved = images[torch.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None]]
    if bool((said[:, 2:] == 1).all()):
        return moved
    brightness, contrast, saturation = said[:, 2:].unbind(1)
    # All of it is one linear map of a pixel: brightness; contrast about the middle grey, lest a frame's content tell
    # how far; and saturation, away from its own grey
    factor = (brightness * contrast)[:, None, None]
    away = saturation[:, None, None] * torch.eye(3) + (1 - saturation[:, None, None]) * torch.tensor(GREY)[:, None]
    pixels = moved.flatten(1, 2).float()
    coloured = torch.baddbmm(127.5 * (1 - contrast)[:, None, None], pixels, factor * away)
    return coloured.round_().clamp_(0, 255).to(torch.uint8).view_as(moved)
