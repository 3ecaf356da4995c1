"""Eyes that learn from pixels to point: each token says what the instruction looks for, and where the hand would go.

They stand where the paper has FiLM-EfficientNet with TokenLearner, at a size that two CPU cores train. Departs from the
paper: a cell of the map sees no further than some ten cells, so that things are learnt and not whole scenes, which a
deep network knows by heart after a few thousand episodes; the instruction enters as queries against the map, so that
one pass over an image serves all skills; and each cell foretells the state that the robot would have if it went for
what is seen there.

The first tokens are taught by that: the next events of an episode (a gripper is told to close, to open; the end) are
recorded with the state they happened at, and one cell or the other must have foretold it. It is a mixture density
network [Bishop 1994] whose components are the cells, as keyframes of C2F-ARM [James et al. 2022, arXiv 2106.12534].
Nobody labels anything, and no camera needs to be calibrated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saycan_qt.networks.keypoints import Block

ROWS = 20  # of a map, at least, and below twice as many; small images have half as many rows as pixels
EVENTS = 3  # closing, opening, the end
WAVELENGTHS = (0.1, 0.25, 0.6, 1.5)  # [half an image's side] of the Fourier features of a cell's place
KNEES = (0.03, 0.1, 0.3)  # [typical deviations] where tanh features of what is left to go saturate
SURELY = 0.98  # of what is foretold, some cell did; the rest is anywhere
WIDE = 6.0  # [typical deviations] of anywhere
LEAST = 0.02  # [typical deviations] the least error of what is foretold


@dataclass(frozen=True)
class PointingConfig:
    """Sizes of the eyes."""

    image: tuple[int, int] = (128, 160)  # height, width [pixels]
    channels: tuple[int, int] = (32, 64)  # of the stem, and of the map
    blocks: int = 2  # residual ones
    keys: int = 64  # numbers that a cell is looked for by
    hidden: int = 128  # numbers that a cell is told by
    taught: int = EVENTS  # tokens that are taught by events; 0: none

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PointingConfig:
        """From JSON, which has no tuples."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    @property
    def halvings(self) -> int:
        """Of an image's sides until the map's."""
        return max(1, int(math.log2(max(1, min(self.image) / ROWS))))


def grid(height: int, width: int) -> Tensor:
    """(h * w, 2) of the cells' centres, x to the right and y downwards, both in [-1, 1]."""
    ys, xs = (torch.arange(n, dtype=torch.float32).add(0.5).div(n).mul(2).sub(1) for n in (height, width))
    return torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)], dim=-1).reshape(-1, 2)


class PointingEncoder(nn.Module):
    """Images, states and an instruction -> tokens."""

    where: Tensor
    knees: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        config: PointingConfig,
        cameras: int,
        mean: Sequence[float],
        scale: Sequence[float],
        tokens: int,
        width: int,
        text: int,
    ) -> None:
        """mean, scale: (S,) of the state's numbers; text: numbers of an instruction's embedding."""
        super().__init__()
        self.config, self.cameras, self.count = config, cameras, tokens
        states, channels, hidden = len(mean), config.channels[1], config.hidden
        stem: list[nn.Module] = []
        sizes = [3, *[config.channels[0]] * (config.halvings - 1), channels]
        for inputs, outputs in pairwise(sizes):
            stem += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
        self.map = nn.Sequential(*stem, *(Block(channels) for _ in range(config.blocks)), nn.ReLU())
        self.map.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        cells = grid(*(-(-side // 2**config.halvings) for side in config.image))
        phases = (cells[..., None] * (2 * math.pi / torch.tensor(WAVELENGTHS))).flatten(1)
        where = torch.cat([cells, phases.sin(), phases.cos()], dim=1)
        self.register_buffer("where", where, persistent=False)
        self.keys = nn.Linear(channels, config.keys)
        self.queries = nn.Sequential(
            nn.Linear(text, 4 * config.keys), nn.GELU(), nn.Linear(4 * config.keys, tokens * config.keys)
        )
        self.told = nn.Linear(channels + where.shape[1], hidden)
        self.through = nn.Parameter(torch.zeros(cameras, hidden))  # which camera
        # What a cell foretells: by its place, as `calibrate` begins with; by what is seen there; and as each token asks
        self.camera = nn.Parameter(torch.zeros(cameras, states, 3))
        self.states = nn.Parameter(torch.zeros(states, hidden))
        self.own = nn.Parameter(torch.zeros(tokens, states, hidden))
        numbers = hidden + (2 + len(KNEES)) * states
        self.output = nn.Sequential(nn.Linear(numbers, width), nn.GELU(), nn.Linear(width, width))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32), persistent=False)
        self.register_buffer("knees", torch.tensor(KNEES), persistent=False)
        if not states:  # nothing is foretold
            for part in (self.camera, self.states, self.own):
                part.requires_grad_(False)
        taught = min(config.taught, tokens)
        self.errors = nn.Parameter(torch.full((taught, states), math.log(0.5))) if taught and states else None

    def calibrate(self, maps: Tensor) -> None:
        """Begin with (cameras, S, 3), the state in deviations as 1, x and y of the place where the hand is seen tell
        it. Without, nothing is pointed at before it is known where things are, and nothing tells where they are."""
        with torch.no_grad():
            self.camera.copy_(maps)

    def perceive(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, C, h, w), whatever the instruction."""
        x = images.permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous(memory_format=torch.channels_last)
        return self.map(x)

    def forward(self, frames: Tensor, states: Tensor, text: Tensor) -> Tensor:
        """frames (F, h * c, C, H, W), those of one time beside each other, states (F, h, S), text (B, E), equally many
        for each of the F -> (B, h * c, tokens, width)."""
        seen, foretold = self.point(frames, text)
        numbers = [seen]
        if len(self.mean):
            now = self.normal(states).repeat_interleave(self.cameras, dim=1)
            left = foretold - now[:, :, None, None]
            numbers += [foretold, left, torch.tanh(left[..., None] / self.knees).flatten(-2)]
        return self.output(torch.cat(numbers, dim=-1)).transpose(1, 2).flatten(0, 1)

    def point(self, frames: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(F, h * c, C, H, W) -> what each token sees where it looks, (F, h * c, B / F, tokens, hidden), and the state
        that it foretells, (..., tokens, S), in deviations."""
        scores, cells, means = self.look(frames, text)
        with torch.autocast(frames.device.type, enabled=False):  # bfloat16 would round places to centimetres
            found = scores.softmax(-1) @ torch.cat([cells.float(), means], dim=-1)
            found = found.unflatten(2, (-1, self.count))
            seen, foretold = found.split([cells.shape[-1], means.shape[-1]], dim=-1)
            foretold = foretold + torch.einsum("...nh,nsh->...ns", seen, self.own)
        return seen, foretold

    def look(self, frames: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(F, m, C, H, W) of some times -> how well each cell is what is looked for, (F, m, B / F * tokens, cells);
        what a cell tells, (F, m, cells, hidden); and what it foretells whatever is looked for, (F, m, cells, S)."""
        x, times = frames.flatten(3).transpose(2, 3), frames.shape[1] // self.cameras
        text = text * (math.sqrt(text.shape[-1]) / 4)  # embeddings have unit norm, and those of like skills are near
        queries = self.queries(text).view(len(x), 1, -1, self.config.keys)
        scores = (queries @ self.keys(x).transpose(2, 3)).float() / math.sqrt(self.config.keys)
        where = self.where.to(x.dtype).expand(*x.shape[:2], -1, -1)
        through = self.through.repeat(times, 1)[:, None]
        cells = F.gelu(self.told(torch.cat([x, where], dim=-1)) + through)
        with torch.autocast(x.device.type, enabled=False):
            places = F.pad(self.where[:, :2], (1, 0), value=1.0) @ self.camera.transpose(1, 2)  # (c, cells, S)
            means = F.linear(cells.float(), self.states) + places.repeat(times, 1, 1)
        return scores, cells, means

    def surprise(self, frames: Tensor, text: Tensor, states: Tensor) -> Tensor:
        """-log of the density, for each number of it, that one time's images (B, c, C, H, W) give to the states at the
        next events, (B, K, S) -> (B, K)."""
        assert self.errors is not None
        count = len(self.errors)
        scores, cells, means = self.look(frames, text)
        likely = scores[:, :, :count].transpose(1, 2).flatten(2).log_softmax(-1)  # (B, K, c * cells)
        errors = self.errors.exp() + LEAST
        with torch.autocast(cells.device.type, enabled=False):
            own = F.linear(cells.flatten(1, 2).float(), self.own[:count].flatten(0, 1)).unflatten(-1, (count, -1))
            away = (means.flatten(1, 2)[:, :, None] + own - self.normal(states)[:, None]) / errors
            density = -0.5 * away.square().sum(-1) - errors.log().sum(-1) - 0.5 * math.log(2 * math.pi) * away.shape[-1]
            found = torch.logsumexp(likely + density.transpose(1, 2), dim=-1)
            anywhere = torch.full_like(found, math.log(1 - SURELY) - away.shape[-1] * math.log(WIDE))
            return -torch.logaddexp(found + math.log(SURELY), anywhere) / away.shape[-1]

    def normal(self, states: Tensor) -> Tensor:
        """In deviations."""
        return (states - self.mean) / self.scale
