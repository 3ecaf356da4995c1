"""The small preset's eye: an image becomes one token of numbers for each thing it may show, without the instruction.

It takes the place of the paper's FiLM-EfficientNet: no text enters here, so one pass serves every skill and every
epoch. Its maps are TokenLearner's spatial attention maps, except that each is taught (by `saycan_qt.pretrain`) to
follow one named thing, and that each also tells where its thing is in space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skills.embodiment import MAX_SIDE

POSITION_UNIT = 0.1  # [m] the position head works in decimetres
ROLES = ("acted on", "brought to")
PRESENCE, POSITION, HEADING, FEATURE = (
    slice(0, 1),
    slice(1, 4),
    slice(4, 6),
    slice(6, None),
)  # the layout of a keypoint's numbers


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of the keypoint trunk."""

    keypoints: int = 27  # things it tells apart
    image: tuple[int, int] = (80, 96)  # height, width [pixels]
    channels: tuple[int, int, int, int] = (32, 48, 96, 128)  # at strides 2, 4, 8, 16
    blocks: tuple[int, int, int] = (2, 2, 1)  # residual blocks at strides 4, 8, 16
    feature: int = 32  # appearance numbers pooled under each map
    hidden: int = 192  # of the position head

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrunkConfig:
        """From JSON, which has no tuples."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    @property
    def outputs(self) -> int:
        """Numbers per keypoint: presence, x, y, z [m, base frame], cosine and sine of twice the yaw, appearance."""
        return 6 + self.feature


def require_sides(image: Any) -> None:
    """Raises ValueError unless it is a height and a width [pixels]."""
    if len(image) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in image):
        raise ValueError(f"an image of {str(image)[:50]} pixels; each of its two sides is 1 to {MAX_SIDE}")


class Block(nn.Module):
    """Two 3x3 convolutions beside an identity. It starts as the identity, which makes a norm (a quarter of the time)
    unnecessary."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


@dataclass
class Keypoints:
    """What the trunk sees in N images."""

    heatmaps: Tensor  # (N, K, H/4, W/4) logits: share of a cell that shows the thing
    pixels: Tensor  # (N, K, 2) centre of the visible part, both in [-1, 1], x to the right, y downwards
    presence: Tensor  # (N, K) in [0, 1]
    positions: Tensor  # (N, K, 3) [m, base frame]
    headings: Tensor  # (N, K, 2) cosine and sine of twice the yaw of what is long
    features: Tensor  # (N, K, F) appearance

    def numbers(self) -> Tensor:
        """(N, K, 6 + F) as policies take them: presence, position, heading, appearance."""
        return torch.cat([self.presence[..., None], self.positions, self.headings, self.features], dim=-1)


class KeypointTrunk(nn.Module):
    """Images -> heatmaps -> where each thing is. The coordinates are the expectation under a sharpened softmax."""

    grid: Tensor

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        c2, c4, c8, c16 = config.channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, c2, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(c2, c4, 3, stride=2, padding=1), nn.ReLU()
        )
        n4, n8, n16 = config.blocks
        self.at4 = nn.Sequential(*[Block(c4) for _ in range(n4)])
        self.to8 = nn.Sequential(nn.Conv2d(c4, c8, 3, stride=2, padding=1), nn.ReLU())
        self.at8 = nn.Sequential(*[Block(c8) for _ in range(n8)])
        self.to16 = nn.Sequential(nn.Conv2d(c8, c16, 3, stride=2, padding=1), nn.ReLU())
        self.at16 = nn.Sequential(*[Block(c16) for _ in range(n16)])
        self.lateral4, self.lateral8, self.lateral16 = (nn.Conv2d(c, c4, 1) for c in (c4, c8, c16))
        self.mix = Block(c4)
        self.heatmap = nn.Conv2d(c4, config.keypoints, 1)
        assert self.heatmap.bias is not None
        nn.init.constant_(self.heatmap.bias, -4.0)  # most cells show none of the things
        self.sharpness = nn.Parameter(torch.tensor(1.5))
        self.appearance = nn.Conv2d(c4, config.feature, 1)
        self.feature_norm = nn.LayerNorm(config.feature)
        self.identity = nn.Parameter(torch.randn(config.keypoints, 16) * 0.3)
        self.position = nn.Sequential(
            nn.Linear(7 + config.feature + 16, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, 5),
        )
        h, w = config.image[0] // 4, config.image[1] // 4
        ys, xs = (torch.arange(n, dtype=torch.float32).add(0.5).div(n).mul(2).sub(1) for n in (h, w))
        grid = torch.stack([xs.expand(h, w), ys[:, None].expand(h, w)], dim=-1).reshape(h * w, 2)
        self.register_buffer("grid", grid, persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Keypoints:
        """images (N, H, W, 3) uint8."""
        x = images.permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous(memory_format=torch.channels_last)
        x4 = self.at4(self.stem(x))
        x8 = self.at8(self.to8(x4))
        x16 = self.at16(self.to16(x8))
        up8 = self.lateral8(x8) + F.interpolate(self.lateral16(x16), size=x8.shape[-2:], mode="nearest")
        shared = F.relu(self.mix(self.lateral4(x4) + F.interpolate(up8, size=x4.shape[-2:], mode="nearest")))
        heatmaps, appearance = self.heatmap(shared).float(), self.appearance(shared).float()
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 would round positions to centimetres
            return self.read(heatmaps, appearance)

    def read(self, heatmaps: Tensor, appearance: Tensor) -> Keypoints:
        """heatmaps (N, K, h, w), appearance (N, F, h, w), both float32."""
        flat = heatmaps.flatten(2)  # (N, K, cells)
        attention = (flat * self.sharpness).softmax(dim=-1)
        pixels = attention @ self.grid
        spread = (attention @ self.grid.square() - pixels.square()).clamp_min(0.0).add(1e-4).sqrt()
        skew = attention @ self.grid.prod(dim=-1, keepdim=True) - pixels.prod(dim=-1, keepdim=True)
        features = self.feature_norm(attention @ appearance.flatten(2).transpose(1, 2))
        cover = flat.sigmoid()
        area = cover.sum(dim=-1, keepdim=True)  # [cells] how much of it shows: its apparent size, less what hides it
        presence = cover.amax(dim=-1, keepdim=True)
        identity = self.identity.expand(len(heatmaps), -1, -1)
        known = torch.cat([pixels, 10 * spread, 100 * skew, presence, area.add(0.1).log(), features, identity], dim=-1)
        place = self.position(known)
        positions, headings = place[..., :3] * POSITION_UNIT, place[..., 3:]
        return Keypoints(heatmaps, pixels, presence[..., 0], positions, headings, features)


class Grounding(nn.Module):
    """Which keypoints does an instruction name? Two roles: what is acted on (an object or a drawer's handle) and what
    it is brought to. Taught in seconds on the library's names and texts; policies start from it and train it on."""

    def __init__(self, keypoints: int, text: int = 384, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(text, hidden), nn.GELU(), nn.Linear(hidden, len(ROLES) * (keypoints + 1)))

    def forward(self, text: Tensor) -> Tensor:
        """(N, text) -> logits (N, roles, keypoints + 1); the last one says that the role is not filled."""
        return self.layers(text).unflatten(-1, (len(ROLES), -1))
