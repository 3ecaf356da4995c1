"""Frames, a state and an instruction -> one decoder-only Transformer -> an output for every bin of every action
dimension. Any number of cameras, which share an encoder, or none; any state, or none; any number of dimensions.

Every algorithm uses this network; they differ in the heads they ask for and in their losses. `SMALL` trains on two CPU
cores, `PAPER` has the paper's sizes. Where SMALL departs from the paper, the field's comment says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saycan_qt.networks import decoding
from saycan_qt.networks.efficientnet import EfficientNetConfig, FilmEfficientNet
from saycan_qt.networks.keypoints import (
    FEATURE,
    HEADING,
    POSITION,
    PRESENCE,
    ROLES,
    Grounding,
    KeypointTrunk,
    TrunkConfig,
    require_sides,
)
from saycan_qt.networks.pointing import PointingConfig, PointingEncoder
from saycan_qt.networks.tokens import TEXT_SIZE
from skills.embodiment import Embodiment
from skills.robot_folder import default_robot

POSITION_NAMES, YAW_NAME = ("gripper_x", "gripper_y", "gripper_z"), "gripper_yaw"  # of a state that says where it is
TYPICAL = {"m": 0.3, "rad": 1.0}  # a typical deviation of the default robot's state numbers, by unit
TYPICAL_FRACTION = 0.5  # and of those without one
FAR = 10.0  # [deviations] beyond which a state number says no more
STATE_WAVES = (0.5, 1.0, 2.0, 4.0)  # [deviations] wavelengths of the Fourier features where the state is all there is
AT_ONCE = 64  # shared images that pass the encoder together where nothing is learnt: all maps of more fill the memory
MOST_PIXELS = 2**24  # that are looked at together, through all cameras and in all of the history
TOKENS_CPU, ROWS_CUDA = 512, 4096  # judged in one batch: on a CPU what its cache holds, with what is made of it
MOST_TOKENS, MOST_DIMENSIONS, MOST_BINS = 2048, 512, 65_536
WAVELENGTHS = (0.03, 0.08, 0.2, 0.5, 1.2)  # [m] of the Fourier features of positions
KNEES = (0.01, 0.03, 0.1)  # [m] where tanh features of relative positions saturate; unlike sines they do not repeat


@dataclass(frozen=True)
class StateConfig:
    """The numbers of the state as the network takes them."""

    mean: tuple[float, ...]  # of each, in its unit
    scale: tuple[float, ...]  # its typical deviation
    position: tuple[int, ...] = ()  # which are the gripper's x, y and z [m]; none where the state does not say
    yaw: int | None = None  # which is its yaw [rad]

    @classmethod
    def typical(cls, embodiment: Embodiment) -> StateConfig:
        """By the units alone, whatever the data."""
        scale = tuple(TYPICAL.get(number.unit, TYPICAL_FRACTION) for number in embodiment.state)
        return cls.of(embodiment, (0.0,) * len(scale), scale)

    @classmethod
    def of(cls, embodiment: Embodiment, mean: Sequence[float], scale: Sequence[float]) -> StateConfig:
        units = {number.name: number.unit for number in embodiment.state}
        names = list(units)
        placed = all(units.get(name) in ("m", "") for name in POSITION_NAMES)  # "": it was not written down
        return cls(
            mean=tuple(float(number) for number in mean),
            scale=tuple(float(number) for number in scale),
            position=tuple(names.index(name) for name in POSITION_NAMES) if placed else (),
            yaw=names.index(YAW_NAME) if units.get(YAW_NAME) in ("rad", "") else None,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StateConfig:
        """From JSON, which has no tuples."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    def require_sound(self) -> None:
        """Raises ValueError for what describes no state."""
        if len(self.scale) != len(self.mean) or not all(map(math.isfinite, (*self.mean, *self.scale))):
            raise ValueError("the state's mean and scale are not as many finite numbers")
        if not all(scale > 0 for scale in self.scale):
            raise ValueError("the state's scale is not above 0")
        places = (*self.position, *(() if self.yaw is None else (self.yaw,)))
        if len(self.position) not in (0, 3) or not all(place in range(len(self.mean)) for place in places):
            raise ValueError(f"the gripper's place is in the numbers {places} of {len(self.mean)}")

    @property
    def has_gripper(self) -> bool:
        """Does it say where the gripper is, and how it is turned?"""
        return bool(self.position) and self.yaw is not None

    def __len__(self) -> int:
        return len(self.mean)


def _default_state() -> StateConfig:
    return StateConfig.typical(default_robot().embodiment)


def _default_dims() -> int:
    return len(default_robot().embodiment.action)


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes and parts of the network."""

    # None: there is no camera
    encoder: TrunkConfig | EfficientNetConfig | PointingConfig | None = field(default_factory=TrunkConfig)
    # Departs in SMALL: a keypoint trunk without FiLM, so that all skills and all epochs share one pass over an image
    tokens: int = 8  # per image, from TokenLearner or its text-conditioned counterpart; of the state if it is alone
    history: int = 1  # frames seen. Departs in SMALL (paper: 6): a kitchen step shows nearly all that matters
    width: int = 128  # of a token
    layers: int = 3  # paper: 8
    heads: int = 4
    mlp: int = 4  # hidden width of a layer's MLP in widths
    state_token: bool = True  # proprioception as a token. Departs: the paper sees the gripper in the image alone
    text_token: bool = True  # the instruction as a token too. Departs: in the paper it enters by FiLM alone
    bins: int = 256  # per action dimension
    text_size: int = TEXT_SIZE  # numbers of an instruction's embedding
    text_model: str = ""  # a sentence-transformers model by name or folder; "" is the pinned MiniLM
    # What follows from the robot; networks of before it was said are the default robot's
    cameras: int = 1  # images at each time
    dims: int = field(default_factory=_default_dims)  # of an action
    # Consecutive actions that are chosen together, the later ones as further autoregressive dimensions. Departs (paper:
    # 1): values travel so many steps at once [Q-chunking, Li et al. 2025, arXiv 2507.07969]
    chunk: int = 1
    state: StateConfig = field(default_factory=_default_state)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        fields = dict(values)
        if (encoder := fields["encoder"]) is not None:
            fields["encoder"] = encoder_of(encoder)
        if "state" in fields:
            fields["state"] = StateConfig.from_dict(fields["state"])
        return cls(**fields)

    def fitted(self, embodiment: Embodiment, state: StateConfig) -> NetworkConfig:
        """The same sizes for another robot; `state` says how its state is taken. Without a camera the instruction and
        the state become tokens, since nothing else could tell of them."""
        found = dataclasses.replace(self, cameras=len(embodiment.cameras), dims=len(embodiment.action), state=state)
        if embodiment.cameras:
            return found
        return dataclasses.replace(found, encoder=None, state_token=True, text_token=True)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def require_sound(self) -> None:
        """Raises ValueError for what no network of ours is: a file may say anything."""
        least = {"tokens": 1, "history": 1, "width": 1, "layers": 1, "heads": 1, "mlp": 1, "bins": 2, "text_size": 1}
        least |= {"chunk": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        dims = self.dims * self.chunk
        if self.bins > MOST_BINS or dims > MOST_DIMENSIONS:
            raise ValueError(f"{dims} dimensions of {self.bins} bins; at most {MOST_DIMENSIONS} of {MOST_BINS}")
        if (tokens := self.history * (self.cameras * self.tokens + 1)) > MOST_TOKENS:
            raise ValueError(f"{tokens} tokens that attend to each other; at most {MOST_TOKENS}")
        if self.encoder is not None:
            require_sides(self.encoder.image)
            if (pixels := self.history * self.cameras * math.prod(self.encoder.image)) > MOST_PIXELS:
                raise ValueError(f"{pixels} pixels at a time; at most {MOST_PIXELS}")
        self.state.require_sound()


def encoder_of(described: Mapping[str, Any]) -> TrunkConfig | EfficientNetConfig | PointingConfig:
    """By the settings that it has."""
    if "keypoints" in described:
        return TrunkConfig.from_dict(described)
    return PointingConfig.from_dict(described) if "taught" in described else EfficientNetConfig.from_dict(described)


SMALL = NetworkConfig()
PAPER = NetworkConfig(
    encoder=EfficientNetConfig(), history=6, width=512, layers=8, heads=8, state_token=False, text_token=False
)
# Departs from the paper, where FiLM conditions every block: here the last two stages alone, so that one pass through
# the others, which are most of the work, serves every skill that is scored
PAPER_SHARED = dataclasses.replace(PAPER, encoder=EfficientNetConfig(film_from=5))
COMPACT = NetworkConfig(encoder=PointingConfig())  # for what learns from pixels on two CPU cores
DEBUG = NetworkConfig(
    encoder=TrunkConfig(channels=(8, 8, 8, 8), blocks=(1, 1, 1), hidden=16, feature=8), width=32, layers=2, heads=2
)
DEBUG_FILM = dataclasses.replace(  # for robots whom a keypoint trunk does not fit
    DEBUG, encoder=EfficientNetConfig(image=(32, 32), width_multiplier=0.1, depth_multiplier=0.1, film_from=2), tokens=2
)
PRESETS = {"small": SMALL, "compact": COMPACT, "paper": PAPER, "paper-shared": PAPER_SHARED, "debug": DEBUG}


def frequencies(wavelengths: Sequence[float]) -> Tensor:
    """What `sines` takes."""
    return 2 * math.pi / torch.tensor(wavelengths)


def sines(numbers: Tensor, frequencies: Tensor) -> Tensor:
    """(..., n) -> (..., 2 n * frequencies) sines and cosines."""
    phase = (numbers[..., None] * frequencies).flatten(-2)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


def places(numbers: Sequence[int]) -> slice | list[int]:
    """Where these numbers of a state are; a slice is read several times as fast as a list."""
    following = list(range(numbers[0], numbers[0] + len(numbers))) if numbers else []
    return slice(numbers[0], numbers[0] + len(numbers)) if list(numbers) == following != [] else list(numbers)


def turned(heading: Tensor, yaw: Tensor) -> Tensor:
    """Cosine and sine of twice an angle (..., 2), seen from a gripper turned by yaw (...,) [rad]."""
    c, s = (2 * yaw).cos(), (2 * yaw).sin()
    return torch.stack([heading[..., 0] * c + heading[..., 1] * s, heading[..., 1] * c - heading[..., 0] * s], dim=-1)


class StateEncoder(nn.Module):
    """The state -> one token beside those of the images, or several where it is all there is."""

    mean: Tensor
    scale: Tensor
    waves: Tensor
    own_waves: Tensor

    def __init__(self, config: StateConfig, width: int, tokens: int = 1, alone: bool = False) -> None:
        super().__init__()
        self.position, self.tokens, self.alone = places(config.position), tokens, alone
        numbers = len(config) + 2 * len(config.position) * len(WAVELENGTHS)
        if alone:  # no image tells where things are: finer features, one layer more
            numbers += 2 * len(config) * len(STATE_WAVES)
        self.placed = bool(config.position)
        deeper = [nn.Linear(width, width), nn.GELU()] if alone else []
        self.layers = nn.Sequential(nn.Linear(numbers, width), nn.GELU(), *deeper, nn.Linear(width, tokens * width))
        self.register_buffer("mean", torch.tensor(config.mean, dtype=torch.float32), persistent=False)
        self.register_buffer("scale", torch.tensor(config.scale, dtype=torch.float32), persistent=False)
        self.register_buffer("waves", frequencies(WAVELENGTHS), persistent=False)
        self.register_buffer("own_waves", frequencies(STATE_WAVES), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """(B, h, S) -> (B, h, tokens, width)."""
        normal = ((states - self.mean) / self.scale).clamp(-FAR, FAR)
        numbers = [normal]
        if self.placed:
            numbers.append(sines(states[..., self.position], self.waves))
        if self.alone:
            numbers.append(sines(normal, self.own_waves))
        return self.layers(torch.cat(numbers, dim=-1)).unflatten(-1, (self.tokens, -1))


class KeypointEncoder(nn.Module):
    """Keypoint numbers -> tokens: a TokenLearner whose queries come from the instruction.

    The first tokens start with their attention on the keypoints that the instruction names (`Grounding`); the others
    learn where to look. Departs from the paper, and says the policy a lot: its attention is over named things."""

    waves: Tensor
    knees: Tensor

    def __init__(self, config: TrunkConfig, state: StateConfig, tokens: int, width: int, text: int) -> None:
        super().__init__()
        if not state.has_gripper:
            raise ValueError(f"keypoints are seen from the gripper; the state has no {', '.join(POSITION_NAMES)}")
        self.position, self.yaw = places(state.position), state.yaw
        self.tokens, self.key_size = tokens, 32
        self.trunk = KeypointTrunk(config)
        self.grounding = Grounding(config.keypoints, text)
        self.feature_norm = nn.LayerNorm(config.feature)
        numbers = 1 + 3 + 3 + 2 + 3 * len(KNEES) + 6 * len(WAVELENGTHS) + config.feature
        self.content = nn.Linear(numbers, width)
        self.identity = nn.Parameter(torch.randn(config.keypoints, width) * 0.3)
        self.keys = nn.Linear(width, self.key_size)
        self.identity_keys = nn.Parameter(torch.randn(config.keypoints, self.key_size) * 0.3)
        self.queries = nn.Linear(text, tokens * self.key_size)
        self.nothing_key = nn.Parameter(torch.randn(self.key_size) * 0.3)
        self.nothing = nn.Parameter(torch.randn(width) * 0.3)
        self.output = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.register_buffer("waves", frequencies(WAVELENGTHS), persistent=False)
        self.register_buffer("knees", torch.tensor(KNEES), persistent=False)
        with torch.no_grad():  # the grounded tokens begin with the grounding alone
            self.queries.weight[: len(ROLES) * self.key_size].zero_()
            self.queries.bias[: len(ROLES) * self.key_size].zero_()

    def perceive(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, K, 6 + F), without the instruction."""
        return self.trunk(images).numbers()

    def forward(self, frames: Tensor, states: Tensor, text: Tensor) -> Tensor:
        """frames (F, h, K, 6 + F), states (F, h, S), text (B, E), equally many for each of the F -> (B, h, tokens,
        width)."""
        keys, content = self.contents(frames, states)
        queries = self.queries(text).view(len(keys), 1, -1, self.key_size)  # (F, 1, B / F * tokens, key)
        scores = (queries @ keys.transpose(-1, -2)).float() / math.sqrt(self.key_size)  # (F, h, B / F * T, K + 1)
        named = F.pad(self.grounding(text).float().log_softmax(-1), (0, 0, 0, self.tokens - len(ROLES)))
        attention = attention_of(scores + named.view(len(keys), 1, -1, named.shape[-1]))
        tokens = self.output(attention.to(content.dtype) @ content)
        return tokens.unflatten(2, (-1, self.tokens)).transpose(1, 2).flatten(0, 1)

    def contents(self, frames: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """What the keypoints are, whatever the instruction: keys (F, h, K + 1, key) and contents (F, h, K + 1, width),
        the last of them nothing."""
        position = frames[..., POSITION]
        relative = position - states[..., None, self.position]  # to the gripper
        knees = torch.tanh(relative[..., None] / self.knees).flatten(-2)
        numbers = [frames[..., PRESENCE] * 2 - 1, position / 0.3, relative / 0.2, knees, sines(relative, self.waves)]
        numbers += [turned(frames[..., HEADING], states[..., None, self.yaw]), self.feature_norm(frames[..., FEATURE])]
        content = F.gelu(self.content(torch.cat(numbers, dim=-1)) + self.identity)  # (F, h, K, width)
        keys = self.keys(content) + self.identity_keys
        nothing_key = self.nothing_key.to(keys.dtype).expand(*keys.shape[:2], 1, -1)
        nothing = self.nothing.to(content.dtype).expand(*content.shape[:2], 1, -1)
        return torch.cat([keys, nothing_key], dim=2), torch.cat([content, nothing], dim=2)


def attention_of(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, by the faster way where no gradient is asked for."""
    return scores.softmax(-1) if torch.is_grad_enabled() else decoding.softmax(scores)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention. For two dozen tokens on a CPU, plain products are several times faster than the
    fused kernel, whose backward pass took two thirds of a training step."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    return attention_of(scores).to(v.dtype) @ v


class Layer(nn.Module):
    """Pre-norm Transformer layer over new tokens, which also see the keys and values of earlier ones."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp * width), nn.GELU(), nn.Linear(mlp * width, width))

    def weights(self) -> tuple[tuple[Any, ...], ...]:
        """Of its parts, in `forward`'s order: what norms take beside their inputs, and products' factors (inputs,
        outputs) and biases; for `decoding`."""
        norms = [(n.normalized_shape, n.weight, n.bias, n.eps) for n in (self.norm1, self.norm2)]
        parts: tuple[Any, ...] = (self.qkv, self.out, self.mlp[0], self.mlp[2])
        qkv, out, wide, narrow = ((part.weight.t(), part.bias) for part in parts)
        return norms[0], qkv, out, norms[1], wide, narrow

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens whose own output nobody needs."""
        width = x.shape[-1]
        k, v = F.linear(self.norm1(x), self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, dim=-1)
        return self.split(k), self.split(v)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = map(self.split, self.qkv(self.norm1(x)).chunk(3, dim=-1))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        attended = attend(q, k, v, mask)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), (k, v)

    def look(self, x: Tensor, past: tuple[Tensor, Tensor]) -> Tensor:
        """New tokens that see the earlier ones alone, neither each other nor themselves. x (B or 1, n, width)"""
        width = x.shape[-1]
        q = self.split(F.linear(self.norm1(x), self.qkv.weight[:width], self.qkv.bias[:width]))
        attended = attend(q.expand(len(past[0]), -1, -1, -1), *past, None)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class BinHead(nn.Module):
    """Outputs for each bin of each action dimension, from that dimension's hidden state."""

    def __init__(self, dims: int, width: int, bins: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dims, width, bins) * 0.02)
        self.bias = nn.Parameter(torch.full((dims, 1, bins), bias))

    def forward(self, hidden: Tensor, first: int = 0) -> Tensor:
        """hidden (B, k, width) of dimensions first .. first + k -> (B, k, bins) logits, float32."""
        rows = slice(first, first + hidden.shape[1])
        with torch.autocast(hidden.device.type, enabled=False):  # it would round what is summed over all bins
            return torch.baddbmm(self.bias[rows], hidden.float().transpose(0, 1), self.weight[rows]).transpose(0, 1)

    def one(self, hidden: Tensor, dim: int) -> Tensor:
        """hidden (B, width) of one dimension -> (B, bins), as `forward` gives them."""
        if torch.is_autocast_enabled(hidden.device.type):
            return self(hidden[:, None], dim)[:, 0]
        return torch.addmm(self.bias[dim], hidden, self.weight[dim])


@dataclass
class Shared:
    """Frames that are there once for all windows that hold them."""

    frames: Tensor  # (U, H, W, 3) uint8, or what `PolicyNetwork.see` made of them
    text: Tensor  # (U, E) the instruction that each is seen under
    places: Tensor  # (B, h * cameras) which of them each window holds


Memory = decoding.Memory
LOW_Q = -4.0  # a Q-head's first bias: sigmoid(-4) = 0.018, near the value of what never succeeded


class PolicyNetwork(nn.Module):
    """Frame tokens attend to each other fully (nothing there is predicted), action tokens to them and backwards."""

    mask: Tensor

    def __init__(self, config: NetworkConfig, heads: Sequence[str]) -> None:
        """heads: "q" (sigmoid) and "behavior" (softmax)."""
        super().__init__()
        self.config, self.dims = config, config.dims * config.chunk
        width, seen = config.width, config.cameras * config.tokens
        self.encoder: KeypointEncoder | FilmEfficientNet | PointingEncoder | None
        match config.encoder:
            case TrunkConfig() as trunk:
                if config.cameras != 1:
                    raise ValueError(f"keypoints are seen by one camera, not by {config.cameras}")
                self.encoder = KeypointEncoder(trunk, config.state, config.tokens, width, config.text_size)
            case EfficientNetConfig() as efficientnet:
                self.encoder = FilmEfficientNet(efficientnet, config.tokens, width, config.text_size)
            case PointingConfig() as eyes:
                state = (config.state.mean, config.state.scale)
                self.encoder = PointingEncoder(eyes, config.cameras, *state, config.tokens, width, config.text_size)
            case None:
                self.encoder = None
        alone = self.encoder is None
        felt = 0 if not (config.state_token and len(config.state)) else config.tokens if alone else 1
        self.state = StateEncoder(config.state, width, felt, alone) if felt else None
        self.text = nn.Linear(config.text_size, width) if config.text_token else None
        prefix = int(config.text_token) + config.history * (seen + felt)
        self.places = nn.Parameter(torch.randn(prefix, width) * 0.1)
        self.dimensions = nn.Parameter(torch.randn(self.dims, width) * 0.1)
        self.actions = nn.Embedding(max(1, self.dims - 1) * config.bins, width)
        nn.init.normal_(self.actions.weight, std=0.2)
        self.layers = nn.ModuleList(Layer(width, config.heads, config.mlp) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.ModuleDict(
            {name: BinHead(self.dims, width, config.bins, LOW_Q if name == "q" else 0.0) for name in heads}
        )
        mask = torch.ones(self.dims, prefix + self.dims, dtype=torch.bool).tril(prefix)
        self.register_buffer("mask", mask, persistent=False)

    def at_once(self) -> int:
        """Instructions that are encoded in one batch, as suits the device."""
        device = self.places.device
        if isinstance(self.encoder, FilmEfficientNet):
            return self.encoder.at_once(device, self.config.history * self.config.cameras)
        return ROWS_CUDA if device.type == "cuda" else max(1, TOKENS_CPU // len(self.places))

    def perceive(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> what an image says whatever the instruction; shared by all of them."""
        assert self.encoder is not None
        return self.encoder.perceive(images)

    def see(self, images: Tensor, text: Tensor) -> Tensor:
        """(U, H, W, 3) uint8, text (U, E) -> (U, ...) as far as an image and its instruction alone say it."""
        if torch.is_grad_enabled() or self.training:  # batch norm wants all of them
            return self._see(images, text)
        return torch.cat([self._see(*some) for some in zip(images.split(AT_ONCE), text.split(AT_ONCE), strict=True)])

    def _see(self, images: Tensor, text: Tensor) -> Tensor:
        perceived = self.perceive(images)
        return self.encoder.tokens(perceived, text) if isinstance(self.encoder, FilmEfficientNet) else perceived

    def maps(self, frames: Tensor | Shared) -> Tensor:
        """(F, h * cameras, ...) perceived, of what `encode` takes; for eyes that look at images before they are told
        an instruction."""
        if isinstance(frames, Shared):
            once = frames.frames
            return (self.perceive(once) if once.dtype == torch.uint8 else once)[frames.places]
        if frames.dtype == torch.uint8:
            return self.perceive(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return frames

    def encode(self, frames: Tensor | Shared, states: Tensor, text: Tensor) -> Memory:
        """frames (F, h * cameras, ...) perceived, or images as uint8, those of one time beside each other, or shared;
        states (F, h, S); text (B, E), where B is F or a multiple of it: the first B / F are about the first frames, and
        so on. What does not depend on the text is computed once for each of the F."""
        return self.remember(self.prefix(frames, states, text))

    def prefix(self, frames: Tensor | Shared, states: Tensor, text: Tensor) -> Tensor:
        """Tokens (B, P, width) of what `encode` takes."""
        parts, each = [], len(text) // len(states)
        if self.encoder is not None:
            if isinstance(frames, Shared):
                seen = frames.frames if frames.frames.dtype != torch.uint8 else self.see(frames.frames, frames.text)
                tokens = seen[frames.places]
                if not isinstance(self.encoder, FilmEfficientNet):
                    tokens = self.encoder(tokens, states, text)
            else:
                tokens = self.encoder(self.maps(frames), states, text)
            parts.append(tokens.unflatten(1, (-1, self.config.cameras)).flatten(2, 3))
        if self.state is not None:
            felt = self.state(states)
            parts.append(felt if each == 1 else felt.repeat_interleave(each, dim=0))
        x = torch.cat(parts, dim=2).flatten(1, 2)
        if self.text is not None:
            x = torch.cat([self.text(text)[:, None] * math.sqrt(text.shape[-1]) / 4, x], dim=1)
        return x + self.places

    def remember(self, x: Tensor) -> Memory:
        """Tokens (B, P, width), each of which sees all of them."""
        if not torch.is_grad_enabled():
            return decoding.remember(self, x)
        memory: Memory = []
        for layer in self.layers[:-1]:
            x, past = layer(x)
            memory.append(past)
        return [*memory, self.layers[-1].keys_values(x)]  # type: ignore[operator]

    def read(self, memory: Memory, previous: Tensor, first: int = 0) -> tuple[Tensor, Memory]:
        """Hidden states (B, k, width) of dimensions first .. first + k.

        previous (B, k or k - 1) are the bins of the dimensions before each of them (dimension 0 has none); memory
        holds the frames' tokens and those of the dimensions before `first`."""
        count = previous.shape[1] + (first == 0)
        x = self.dimensions[first : first + count].expand(len(memory[0][0]), -1, -1)
        if previous.shape[1]:
            offsets = self.config.bins * torch.arange(max(first - 1, 0), first + count - 1, device=previous.device)
            chosen = self.actions(previous + offsets)
            x = x + (F.pad(chosen, (0, 0, 1, 0)) if first == 0 else chosen)
        seen = memory[0][0].shape[2] + count
        mask = None if count == 1 else self.mask[first : first + count, :seen]
        grown: Memory = []
        for layer, past in zip(self.layers, memory, strict=True):
            x, both = layer(x, past, mask)
            grown.append(both)
        return self.norm(x), grown

    def decode(self, memory: Memory, choose: Callable[[Tensor, int], Tensor], dims: int | None = None) -> Tensor:
        """Bins (B, D) of the first `dims` dimensions, or of all, one after the other, each token computed once
        (key-value cache).

        choose(hidden (B, width), dimension) -> (B,) bins."""
        dims = self.dims if dims is None else dims
        steps, bins = decoding.Decoding(self, memory, dims), list[Tensor]()
        for dim in range(dims):
            bins.append(choose(steps.step(bins[-1] if dim else None), dim))
        return torch.stack(bins, dim=1)

    def first(self, memory: Memory) -> Tensor:
        """Hidden states (B, width) of the first dimension, before anything is chosen; without gradient."""
        return decoding.first(self, memory)
