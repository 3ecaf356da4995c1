"""FiLM-EfficientNet with TokenLearner: the paper's image encoder, conditioned on the instruction throughout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM = nn.modules.batchnorm._BatchNorm  # of one process or synchronised among several
# EfficientNet-B0's stages [Tan and Le 2019, table 1]: expansion, channels, repeats, stride, kernel
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
CACHED = 2**22  # numbers of the largest map in a batch of instructions on a CPU
LIVING = 4  # maps of that size at one time, of float32


@dataclass(frozen=True)
class EfficientNetConfig:
    """Sizes of the FiLM-EfficientNet; B3 by default, as in RT-1."""

    image: tuple[int, int] = (256, 320)  # height, width [pixels]
    width_multiplier: float = 1.2
    depth_multiplier: float = 1.4
    film_from: int = 0  # first stage with FiLM; stages before it run once for all instructions

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EfficientNetConfig:
        """From JSON, which has no tuples."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


def rounded(channels: float) -> int:
    """To a multiple of 8, never more than a tenth below."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


class Film(nn.Module):
    """Scale and shift each channel as the instruction says; starts as the identity [RT-1, sec. 5.1]."""

    def __init__(self, text: int, channels: int) -> None:
        super().__init__()
        self.layer = nn.Linear(text, 2 * channels)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        scale, shift = self.layer(text)[:, :, None, None].chunk(2, dim=1)
        return x * (1 + scale) + shift


def through(layers: nn.Sequential, x: Tensor) -> Tensor:
    """What the layers make of (N, C, H, W). A norm that keeps its statistics is a factor and a term for each channel,
    which the convolution before it takes over: two passes over the maps less, and as many backward."""
    rest = list(layers)
    while rest:
        layer, *rest = rest
        if isinstance(layer, nn.Conv2d) and rest and isinstance(rest[0], NORM) and not rest[0].training:
            norm, *rest = rest
            x = folded(layer, norm, x)  # type: ignore[arg-type]
        else:
            x = layer(x)
    return x


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight, term = convolution.weight * factor[:, None, None, None], norm.bias - norm.running_mean * factor
    return F.conv2d(x, weight, term, convolution.stride, convolution.padding, groups=convolution.groups)  # type: ignore[arg-type]


def keep_statistics(network: nn.Module) -> None:
    """From here to the next `train`, batch norms normalise by their running statistics."""
    for module in network.modules():
        if isinstance(module, NORM):
            module.eval()


class MBConv(nn.Module):
    """Inverted residual with squeeze-and-excitation."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.SiLU()] if expansion > 1 else []
        depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.inner = nn.Sequential(*expand, depthwise, nn.BatchNorm2d(hidden), nn.SiLU())
        squeezed = max(1, inputs // 4)
        self.squeeze = nn.Sequential(
            nn.Conv2d(hidden, squeezed, 1), nn.SiLU(), nn.Conv2d(squeezed, hidden, 1), nn.Sigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        inner = through(self.inner, x)
        projected = through(self.project, inner * self.squeeze(inner.mean(dim=(2, 3), keepdim=True)))
        return x + projected if self.residual else projected


class TokenLearner(nn.Module):
    """Spatial attention maps pool a feature map into few tokens [Ryoo et al. 2021]."""

    def __init__(self, channels: int, tokens: int, hidden: int = 64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.maps = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, tokens))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, tokens, C)."""
        cells = x.flatten(2).transpose(1, 2)
        return self.maps(self.norm(cells)).softmax(dim=1).transpose(1, 2) @ cells


class FilmEfficientNet(nn.Module):
    """Images and an instruction -> tokens."""

    def __init__(self, config: EfficientNetConfig, tokens: int, width: int, text: int) -> None:
        super().__init__()
        self.config = config
        channels = rounded(32 * config.width_multiplier)
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.SiLU())
        self.shared, self.blocks, self.films = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        pixels, self.widest = math.prod(-(-side // 2) for side in config.image), width  # numbers of the largest map
        for stage, (expansion, base, repeats, stride, kernel) in enumerate(STAGES):
            outputs = rounded(base * config.width_multiplier)
            for i in range(math.ceil(repeats * config.depth_multiplier)):
                block = MBConv(channels, outputs, expansion, stride if i == 0 else 1, kernel)
                if self.blocks:  # the first one is passed once for all instructions, see `at_once`
                    self.widest = max(self.widest, expansion * channels * pixels)
                channels, pixels = outputs, pixels // stride**2 if i == 0 else pixels
                if stage < config.film_from:
                    self.shared.append(block)
                else:
                    self.blocks.append(block)
                    self.films.append(Film(text, channels))
        self.last = nn.Conv2d(channels, width, 1)
        self.last_film = Film(text, width)
        self.learner = TokenLearner(width, tokens)

    def at_once(self, device: torch.device, frames: int) -> int:
        """Instructions that images pass FiLM for in one batch, each with as many frames: on CUDA as half of the free
        memory holds; elsewhere as a cache does, since maps that lie in memory take twice as long."""
        if device.type != "cuda":
            return max(1, CACHED // (self.widest * frames))
        return max(1, torch.cuda.mem_get_info(device)[0] // 2 // (LIVING * 4 * self.widest * frames))

    def perceive(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> maps before the first FiLM."""
        x = images.permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous(memory_format=torch.channels_last)
        x = through(self.stem, x)
        for block in self.shared:
            x = block(x)
        return x

    def forward(self, frames: Tensor, states: Tensor, text: Tensor) -> Tensor:
        """frames (F, h, C, H, W), text (B, E), equally many for each of the F -> (B, h, tokens, width); states are not
        used."""
        history, each = frames.shape[1], len(text) // len(frames)
        tokens = self.tokens(frames.flatten(0, 1), text.repeat_interleave(history, dim=0), history, each)
        return tokens.unflatten(0, (-1, history))

    def tokens(self, x: Tensor, text: Tensor, history: int = 1, each: int = 1) -> Tensor:
        """(N, C, H, W) maps, text (N * each, E) -> (N * each, tokens, width). So many texts for each run of `history`
        maps; the first block comes before the first FiLM, and so passes the N alone."""
        for number, (block, film) in enumerate(zip(self.blocks, self.films, strict=True)):
            x = block(x)
            if number == 0 and each > 1:
                x = x.unflatten(0, (-1, history)).repeat_interleave(each, dim=0).flatten(0, 1)
            x = film(x, text)
        x = F.silu(self.last_film(self.last(x), text))
        return self.learner(x)
