"""What all algorithms share: a network and its moving average, and the way from observations to tensors."""

from __future__ import annotations

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saycan_qt.learning import fit
from saycan_qt.learning.distributed import shared_count
from saycan_qt.networks.backbone import KeypointEncoder, Memory, NetworkConfig, PolicyNetwork, Shared
from saycan_qt.networks.pointing import PointingEncoder
from saycan_qt.networks.tokens import ActionTokenizer, TextEncoder
from skills.embodiment import CLOSE, PROPORTIONS, Camera, Embodiment
from skills.robot_folder import default_robot
from skills.types import Observation

Metrics = dict[str, Tensor]
Seen = tuple[Tensor | Shared, Tensor, Tensor]  # frames, states and text, as `PolicyNetwork.encode` takes them
MOST_SEEN = 16  # observations that a skill server keeps of a control stream
MOST_WEIGHT = 100.0  # of one transition's advantage
NETWORK = "network."  # how the names of a network's tensors begin in a checkpoint


@dataclass
class Batch:
    """B transitions from t to t + n, by n actions: as many as the network's `chunk` says, mostly 1; D is of them all.
    Windows hold h + m times, m = min(n, h): the first h end at time t, the last h at t + n. The images of C cameras
    stand beside each other, those of one time together. Where the samples are stretches of episodes, their windows
    share frames: then `places` says which of U frames stand where."""

    # (B, (h + m) * C, K, 4 + F) perceived, or (B, (h + m) * C, H, W, 3) uint8; (B, 0) without cameras; shared:
    # (U, H, W, 3) uint8
    frames: Tensor
    states: Tensor  # (B, h + m, S)
    text: Tensor  # (B, E) instruction embeddings
    actions: Tensor  # (B, D) from t on, in physical units
    tokens: Tensor  # (B, D) their bins
    next_tokens: Tensor  # (B, D) from t + n on; of no meaning where terminated
    reward: Tensor  # (B,) of the n steps from t on, discounted
    terminated: Tensor  # (B,) in {0, 1}, within these steps; time-outs count, with reward 0 [Q-Transformer]
    returns: Tensor  # (B,) Monte-Carlo return-to-go from t
    demonstrates: Tensor  # (B,) in {0, 1}: from an episode that succeeded at this very instruction
    # Of the times t - h + 1 .. t - 1, for those whose `looks_back` asks for them: bins (B, h - 1, D) of the actions, -1
    # before the episode began; and returns-to-go (B, h - 1), there the first one's
    past_tokens: Tensor | None = None
    past_returns: Tensor | None = None
    # For eyes that point, of the episode's next events: the states (B, K, S) they happened at, and (B, K) in {0, 1},
    # whether there is one to come
    events: Tensor | None = None
    to_come: Tensor | None = None
    seed: int = 0  # of what an algorithm draws itself; follows from the run's seed and step
    cameras: int = 1  # C
    shift: int = 1  # m
    # (B, D) in {0, 1}: the episode goes on until this dimension's action; None: all do, as chunks of 1
    there: Tensor | None = None
    next_there: Tensor | None = None  # (B, D) of next_tokens
    places: Tensor | None = None  # (B, (h + m) * C) of shared frames
    spoken: Tensor | None = None  # (U,) a sample that has each shared frame, under the instruction it is seen with
    alone: tuple[int, int] = (0, 0)  # shared frames, the first ones, that windows at t alone hold; the last, at t + n

    def __len__(self) -> int:
        return len(self.tokens)

    def now(self) -> Seen:
        """What the policy sees at t, as networks encode it."""
        states = self.states[:, : self.states.shape[1] - self.shift]
        if self.places is None or self.spoken is None:
            return self.frames[:, : self.frames.shape[1] - self.shift * self.cameras], states, self.text
        held = slice(0, len(self.frames) - self.alone[1])
        places = self.places[:, : self.places.shape[1] - self.shift * self.cameras]
        return Shared(self.frames[held], self.text[self.spoken[held]], places), states, self.text

    def next(self) -> Seen:
        """At t + n. Raises ValueError where nothing of it was drawn."""
        if not self.shift:
            raise ValueError("this batch holds nothing that is seen after t; it is of who does not look ahead")
        states = self.states[:, self.shift :]
        if self.places is None or self.spoken is None:
            return self.frames[:, self.shift * self.cameras :], states, self.text
        held = slice(self.alone[0], len(self.frames))
        places = self.places[:, self.shift * self.cameras :] - self.alone[0]
        return Shared(self.frames[held], self.text[self.spoken[held]], places), states, self.text

    def seen_by(self, network: PolicyNetwork) -> Batch:
        """With its shared frames encoded, for who takes windows at t as at t + n from one network."""
        if self.places is None or self.spoken is None:
            return self
        return dataclasses.replace(self, frames=network.see(self.frames, self.text[self.spoken]))


Ends = slice | int | None  # which dimensions of (B, D) terminate


def smoothed_targets(tokens: Tensor, bins: int, deviation: float, terminate: Ends) -> Tensor:
    """(B, D) -> (B, D, bins) Gaussians around the dataset's bins; `terminate`, if there is one, stays a single bin."""
    hard = F.one_hot(tokens, bins).float()
    if deviation <= 0:
        return hard
    distance = torch.arange(bins, device=tokens.device) - tokens[..., None]
    soft = torch.exp(-0.5 * (distance / deviation).square())
    soft = soft / soft.sum(-1, keepdim=True)
    if terminate is not None:
        soft[:, terminate] = hard[:, terminate]
    return soft


def behavior_loss(
    logits: Tensor,
    tokens: Tensor,
    weight: Tensor,
    deviation: float,
    terminate: Ends,
    there: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Cross-entropy of the behaviour head (B, D, bins), mean over the dimensions that are `there` (B, D) and over rows
    of weight 1."""
    targets = smoothed_targets(tokens, logits.shape[-1], deviation, terminate)
    surprise = -(targets * logits.log_softmax(-1)).sum(-1)  # (B, D)
    count = shared_count(weight)
    rows, counts = weight[:, None], count
    if there is None:
        loss = (surprise.mean(-1) * weight).sum() / count
    else:
        loss = ((surprise * there).sum(-1) / there.sum(-1) * weight).sum() / count
        rows = there * rows
        counts = torch.stack([shared_count(dim) for dim in rows.unbind(1)])
    hit = ((logits.detach().argmax(-1) == tokens).float() * rows).sum(0) / counts
    each = (surprise.detach() * rows).sum(0) / counts
    return loss, {"behavior": loss.detach(), "behavior_of_each_dimension": each, "accuracy_of_each_dimension": hit}


def advantage_weights(advantages: Tensor, temperature: float) -> Tensor:
    """exp(A / temperature), (B,), at most MOST_WEIGHT [AWR; the limit is IQL's]."""
    return (advantages / temperature).clamp(max=math.log(MOST_WEIGHT)).exp()


def smooth_probabilities(probabilities: Tensor, deviation: float) -> Tensor:
    """(B, bins) averaged over neighbouring bins with a Gaussian; at the ends, over those there are."""
    if deviation <= 0:
        return probabilities
    return probabilities @ _neighbours(probabilities.shape[-1], deviation, probabilities.device)


@lru_cache(maxsize=16)
def _neighbours(bins: int, deviation: float, device: torch.device) -> Tensor:
    """(bins, bins): how much each one has of the average in each other's place."""
    with torch.inference_mode(False):
        places = torch.arange(bins, device=device)
        offsets = places[:, None] - places
        weights = torch.exp(-0.5 * (offsets / deviation).square()) * (offsets.abs() <= int(3 * deviation) + 1)
        return weights / weights.sum(0)  # farther away there is nothing


def embodiment_in(config: Mapping[str, Any]) -> Embodiment:
    """The robot of a checkpoint's config; of one that does not say, the default one with the images that it saw."""
    if "embodiment" in config:
        return Embodiment.parse(config["embodiment"], "the checkpoint's embodiment")
    robot, size = default_robot().embodiment, config["network"]["encoder"]["image"]
    return dataclasses.replace(robot, cameras=tuple(Camera(camera.name, *size) for camera in robot.cameras))


def tokenizer_of(tensors: Mapping[str, Tensor], embodiment: Embodiment) -> ActionTokenizer | None:
    """The action bins of a checkpoint; None for one that does not say, whose bins are the default ones."""
    return ActionTokenizer(tensors["action_edges"], embodiment.terminate) if "action_edges" in tensors else None


def within(embodiment: Embodiment, tokenizer: ActionTokenizer) -> Embodiment:
    """The embodiment with the range of the bins, which all actions lie in, where that is another. Fractions keep
    theirs."""
    dimensions = list(embodiment.action)
    for number, (dimension, edges) in enumerate(zip(dimensions, tokenizer.edges.tolist(), strict=True)):
        low, high = edges[0], edges[-1]
        if dimension.kind in ("fraction", "terminate"):
            continue
        if max(abs(low - dimension.low), abs(high - dimension.high)) > CLOSE * (high - low):
            dimensions[number] = dataclasses.replace(dimension, low=low, high=high)
    return dataclasses.replace(embodiment, action=tuple(dimensions))


class Policy(ABC):
    """An Actor with a `loss`. Exported, and acting while it trains, is the moving average of the weights."""

    name: ClassVar[str]
    config_type: ClassVar[type]
    network_type: ClassVar[type[PolicyNetwork]] = PolicyNetwork
    only_successes: ClassVar[bool] = False  # train on successful episodes alone
    looks_back: ClassVar[bool] = False  # its batches tell of past actions and returns
    looks_ahead: ClassVar[bool] = True  # its loss asks what is seen at t + n
    points: ClassVar[bool] = False  # it teaches eyes that point, see `Policy.seen`
    chunked: ClassVar[bool] = False  # can act in chunks

    def __init__(
        self,
        network: NetworkConfig,
        config: Any,
        texts: TextEncoder,
        tokenizer: ActionTokenizer | None = None,  # uniform bins over the embodiment's range when None
        embodiment: Embodiment | None = None,  # the default robot's when None
    ) -> None:
        if network.chunk > 1 and not self.chunked:
            raise ValueError(f"{self.name} acts step by step; leave out --chunk {network.chunk}")
        self.config, self.network_config, self.texts = config, network, texts
        embodiment = embodiment or default_robot().embodiment
        self.tokenizer = tokenizer or ActionTokenizer.uniform(embodiment, network.bins)
        self.embodiment = dataclasses.replace(within(embodiment, self.tokenizer), history=network.history)
        self.network = self.network_type(network, self.heads(config))
        self.target_network: PolicyNetwork | None = None  # the moving average; while training
        self.device = torch.device("cpu")
        self.bfloat16 = False  # act and judge under bfloat16 autocast

    @classmethod
    @abstractmethod
    def heads(cls, config: Any) -> Sequence[str]:
        """What the network puts out, see `PolicyNetwork`."""

    @property
    def discount(self) -> float:
        """Per time step, of Monte-Carlo returns."""
        return 1.0

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]: ...

    def choose(self, network: PolicyNetwork, hidden: Tensor, dim: int) -> Tensor:
        """Bins (B,) of one action dimension, from its hidden states (B, width); for those who act bin by bin."""
        raise NotImplementedError

    def likeliest(self, network: PolicyNetwork, hidden: Tensor, dim: int) -> Tensor:
        """As `choose`: where the behaviour head's probabilities, averaged over neighbours, are greatest."""
        probabilities = network.outputs["behavior"].one(hidden, dim).softmax(-1)  # type: ignore[operator]
        smoothing = 0.0 if self.terminates(dim) else self.config.smoothing
        return smooth_probabilities(probabilities, smoothing).argmax(-1)

    # Training

    def seen(self, batch: Batch) -> tuple[Memory, Tensor | float, Metrics]:
        """What the network remembers of the windows at t; and how much its eyes, if they point, were surprised by where
        the next events of successes happened."""
        frames, states, text = batch.now()
        eyes = self.network.encoder
        if batch.events is None or batch.to_come is None or not isinstance(eyes, PointingEncoder):
            return self.network.encode(frames, states, text), 0.0, {}
        maps = self.network.maps(frames)
        surprise = eyes.surprise(maps[:, -batch.cameras :], text, batch.events)
        weight = batch.to_come * batch.demonstrates[:, None]
        loss = (surprise * weight).sum() / shared_count(weight)
        return self.network.encode(maps, states, text), self.config.pointing_weight * loss, {"pointing": loss.detach()}

    def prepare(self, device: str, freeze_trunk: bool) -> None:
        """Call once before training."""
        self.to(device)
        if freeze_trunk and isinstance(self.network.encoder, KeypointEncoder):
            self.network.encoder.trunk.requires_grad_(False)
        eyes = self.network.encoder
        if isinstance(eyes, PointingEncoder) and eyes.errors is not None and not self.points:
            eyes.errors.requires_grad_(False)
        self.target_network = copy.deepcopy(self.network).requires_grad_(False).eval()

    def after_step(self, rate: float) -> None:
        """Move the average by `rate` towards the weights."""
        assert self.target_network is not None
        with torch.no_grad():
            pairs = list(zip(self.network.parameters(), self.target_network.parameters(), strict=True))
            trained = [(p, target) for p, target in pairs if p.requires_grad]
            torch._foreach_lerp_([target for _, target in trained], [p.detach() for p, _ in trained], rate)
            for target, buffer in zip(self.target_network.buffers(), self.network.buffers(), strict=True):
                target.copy_(buffer)

    def modules(self) -> dict[str, PolicyNetwork]:
        """What the state of a training run holds, to be resumed from."""
        assert self.target_network is not None
        return {"network": self.network, "target": self.target_network}

    def take_bins(self, edges: Tensor) -> None:
        """Those that the weights were trained with: (D, bins + 1) limits."""
        self.tokenizer = ActionTokenizer(edges, self.tokenizer.terminate)
        self.embodiment = within(self.embodiment, self.tokenizer)

    def to(self, device: str | torch.device) -> Policy:
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    # Acting

    @property
    def acting(self) -> PolicyNetwork:
        return self.network if self.target_network is None else self.target_network

    def hasten(self, bfloat16: bool | None = None) -> Policy:
        """Act and judge with products of bfloat16, or not; None: where the device gains. A CPU does not: scoring 100
        skills took 0.9 of the time, an action 1.4 times as long."""
        on_cuda = self.device.type == "cuda"
        self.bfloat16 = on_cuda and torch.cuda.is_bf16_supported() if bfloat16 is None else bfloat16
        return self

    @contextmanager
    def inferring(self) -> Iterator[None]:
        """Within it nothing is kept for gradients, and products are of bfloat16 where `bfloat16` says so."""
        fewer = torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()
        with torch.inference_mode(), fewer:
            yield

    def act_many(self, histories: Sequence[Sequence[Observation]], instructions: Sequence[str]) -> np.ndarray:
        """(N, D) actions, one for each history and instruction, in one batch."""
        network = self.acting.eval()
        with self.inferring():
            return self.decide(network, self.remember(network, histories, instructions)).float().cpu().numpy()

    def remember(
        self, network: PolicyNetwork, histories: Sequence[Sequence[Observation]], instructions: Sequence[str]
    ) -> Memory:
        """What it acts upon, of each history with its instruction."""
        frames, states = self.observe(histories)
        return network.encode(frames, states, self.texts.encode(instructions).to(self.device))

    def decide(self, network: PolicyNetwork, memory: Memory) -> Tensor:
        """Actions (N, D) in physical units."""
        choose = partial(self.choose, network)
        return self.tokenizer.decode(network.decode(memory, choose, self.tokenizer.dims))

    def act(self, history: Sequence[Observation], instruction: str) -> np.ndarray:
        """One action, (D,) float32 within the embodiment's bounds; history is oldest first."""
        return self.act_many([history], [instruction])[0]

    @property
    def chunk(self) -> int:
        """Actions chosen together, see `skills.types.ChunkedActor`."""
        return self.network_config.chunk

    def act_chunk(self, history: Sequence[Observation], instruction: str, committed: np.ndarray) -> np.ndarray:
        """(chunk, D) float32 actions for the periods to come, the first of which are `committed` (K, D): the others are
        chosen given these, as if they had been chosen too."""
        return self.act_chunks([history], [instruction], [committed])[0]

    def act_chunks(
        self,
        histories: Sequence[Sequence[Observation]],
        instructions: Sequence[str],
        committed: Sequence[np.ndarray],
    ) -> np.ndarray:
        """(N, chunk, D): what `act_chunk` gives for each, in one batch."""
        network, tokenizer = self.acting.eval(), self.tokenizer
        given = np.full((len(histories), self.chunk, tokenizer.dims), np.nan, np.float32)
        for row, told in zip(given, committed, strict=True):
            row[: len(told)] = told[: self.chunk]
        said = torch.from_numpy(given).to(self.device)
        known, bins = ~said.isnan().flatten(1), tokenizer.encode(said.nan_to_num()).flatten(1)

        def choose(hidden: Tensor, dim: int) -> Tensor:
            return torch.where(known[:, dim], bins[:, dim], self.choose(network, hidden, dim))

        with self.inferring():
            frames, states = self.observe(histories)
            memory = network.encode(frames, states, self.texts.encode(instructions).to(self.device))
            bins_chosen = network.decode(memory, choose)
        chosen = tokenizer.decode(bins_chosen.unflatten(1, (self.chunk, -1)))
        return torch.where(said.isnan(), chosen, said).cpu().numpy()

    @property
    def ends(self) -> Ends:
        """Which of the network's dimensions terminate."""
        end = self.tokenizer.terminate
        return None if end is None else slice(end, None, self.tokenizer.dims)

    def terminates(self, dim: int) -> bool:
        """Is it one of them?"""
        return dim % self.tokenizer.dims == self.tokenizer.terminate

    def know(self, instructions: Sequence[str]) -> None:
        """Embed them now. The first unknown words load the sentence model, which takes seconds."""
        self.texts.encode(instructions)

    def keep(self, instructions: Sequence[str]) -> None:
        """Know them for good, however many others come."""
        self.texts.keep(instructions)

    def observe(self, histories: Sequence[Sequence[Observation]]) -> tuple[Tensor, Tensor]:
        """Perceived frames (N, h * C, ...) and states (N, h, S); a short history is filled with its first observation.
        Images may be as the robot's cameras give them; they are then resized as the training's were. Raises ValueError
        for what this policy's robot does not observe."""
        length = self.network_config.history
        windows = []
        for history in histories:
            if not history:
                raise ValueError("the history is empty; it needs at least the present observation")
            recent = list(history)[-length:]
            windows.append([recent[0]] * (length - len(recent)) + recent)
        states = np.stack([np.stack([self._state(o) for o in window]) for window in windows])
        felt = torch.from_numpy(states).to(self.device)
        cameras = self.embodiment.cameras
        if not cameras:
            return torch.zeros(len(windows), 0, dtype=torch.uint8, device=self.device), felt
        seen = [self._image(o, camera) for window in windows for o in window for camera in cameras]
        frames = self.acting.perceive(torch.from_numpy(np.stack(seen)).to(self.device))
        return frames.unflatten(0, (len(windows), length * len(cameras))), felt

    def _state(self, observation: Observation) -> np.ndarray:
        """(S,) float32."""
        state, names = np.asarray(observation.state, np.float32), [number.name for number in self.embodiment.state]
        if state.shape != (len(names),):
            wanted = f"{len(names)} numbers ({', '.join(names)})" if names else "none"
            raise ValueError(f"the state has shape {state.shape}; this policy wants {wanted}")
        return state

    def _image(self, observation: Observation, camera: Camera) -> np.ndarray:
        """(H, W, 3) uint8 of the size that the network takes."""
        images, encoder = observation.images, self.network_config.encoder
        assert encoder is not None
        image = images.get(camera.name)
        if image is None and len(self.embodiment.cameras) == 1:
            image = images.get("")  # a camera without a name stands for any
        if image is None:
            there = ", ".join(name or "one without a name" for name in images) or "none"
            raise ValueError(f"this policy sees through a camera {camera.name!r}; the observation has {there}")
        sizes = [(height, width, 3) for height, width in {tuple(encoder.image), (camera.height, camera.width)}]
        if (image.shape not in sizes and not _larger(image.shape, camera, encoder.image)) or image.dtype != np.uint8:
            wanted = " or ".join(map(str, sorted(sizes)))
            raise ValueError(
                f"the image{f' of {camera.name}' if len(self.embodiment.cameras) > 1 else ''} is {image.shape} "
                f"{image.dtype}; this policy wants {wanted} uint8 (height, width, RGB)"
            )
        if image.shape[:2] == tuple(encoder.image):
            return image
        from saycan_qt.data.images import fit  # here, since who acts on images of the network's size needs no datasets

        return fit(image, *encoder.image)

    # Checkpoints

    def describe(self, texts: Sequence[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Config and tensors that `from_checkpoint` takes; `texts` are the instructions whose embeddings go along."""
        config = {
            "algorithm": self.name,
            "config": dataclasses.asdict(self.config),
            "network": self.network_config.to_dict(),
            "embodiment": self.embodiment.to_dict(),
            "texts": list(texts),
        }
        tensors = {f"{NETWORK}{key}": value.detach().cpu() for key, value in self.acting.state_dict().items()}
        return config, tensors | {"texts": self.texts.encode(texts), "action_edges": self.tokenizer.edges}

    @classmethod
    def require_fit(cls, config: Mapping[str, Any], shapes: fit.Shapes) -> None:
        """Raises, whatever is wrong, unless these are the tensors that `from_checkpoint` would build, and no more than
        a policy needs."""
        network, embodiment = fit.settled(NetworkConfig.from_dict(config["network"])), embodiment_in(config)
        settled = fit.settled(cls.config_type(**config["config"]))
        sizes = {
            "cameras": (network.cameras if network.encoder else 0, len(embodiment.cameras)),
            "action dimensions": (network.dims, len(embodiment.action)),
            "state numbers": (len(network.state), len(embodiment.state)),
        }
        for what, (wanted, there) in sizes.items():
            if wanted != there:
                raise ValueError(f"the network is for {wanted} {what}, the embodiment has {there}")
        network.require_sound()
        fit.require_texts(config, shapes, network.text_size)
        edges = (network.dims, network.bins + 1)
        if shapes.get("action_edges", edges) != edges:
            raise ValueError(f"action bins of shape {shapes['action_edges']}, the config has {edges}")
        fit.require_known(shapes, NETWORK, "texts", "action_edges")
        fit.require_fit(lambda: cls.network_type(network, cls.heads(settled)), shapes, NETWORK)

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Policy:
        network, embodiment = NetworkConfig.from_dict(config["network"]), embodiment_in(config)
        texts = TextEncoder(dict(zip(config["texts"], tensors["texts"].numpy(), strict=True)), network.text_model)
        tokenizer = tokenizer_of(tensors, embodiment)
        policy = cls(network, cls.config_type(**config["config"]), texts, tokenizer, embodiment)  # type: ignore[arg-type,call-arg]
        own = {key.removeprefix(NETWORK): value for key, value in tensors.items() if key.startswith(NETWORK)}
        policy.network.load_state_dict(own)
        policy.network.eval().requires_grad_(False)
        return policy

    def start_from(self, tensors: Mapping[str, Tensor], prefix: str, within: str = "") -> list[str]:
        """Copy another network's weights where name and shape agree; returns the names of ours that found none."""
        own = self.network.state_dict()
        found = {within + key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        found = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
        self.network.load_state_dict(found, strict=False)
        return [key for key in own if key.startswith(within) and key not in found]


def _larger(shape: Sequence[int], camera: Camera, least: Sequence[int]) -> bool:
    """Is this the camera's picture with more pixels? Of other sides it would be seen distorted, not as in training."""
    if len(shape) != 3 or shape[2] != 3 or shape[0] < least[0] or shape[1] < least[1]:
        return False
    return abs(shape[0] * camera.width / (shape[1] * camera.height) - 1) < PROPORTIONS


class Judge(Policy):
    """A policy that is a Critic, too: it knows what a state is worth under an instruction. Its Q is a sigmoid, whose 0
    and 1 stand for returns of `value_low` and `value_high`."""

    @property
    def discount(self) -> float:
        return self.config.discount

    def as_return(self, logits: Tensor) -> Tensor:
        low, high = self.config.value_low, self.config.value_high
        return low + (high - low) * logits.sigmoid()

    def as_q(self, returns: Tensor, monte_carlo: Tensor) -> Tensor:
        """Targets in [0, 1] from returns; at least the Monte-Carlo ones, where the config wants that."""
        if self.config.monte_carlo:
            returns = torch.maximum(returns, monte_carlo)
        low, high = self.config.value_low, self.config.value_high
        return ((returns - low) / (high - low)).clamp(0.0, 1.0)

    def mean_values(self, values: Tensor, batch: Batch) -> Metrics:
        """Of values (B,): their mean over what demonstrates its instruction, and over the rest."""
        groups = {"value_success": batch.demonstrates, "value_other": 1 - batch.demonstrates}
        return {name: (values * rows).sum() / shared_count(rows) for name, rows in groups.items()}

    @abstractmethod
    def values(self, network: PolicyNetwork, memory: Memory) -> Tensor:
        """(B,) in [0, 1], of the best action in each state."""

    def value(self, history: Sequence[Observation], instructions: Sequence[str]) -> np.ndarray:
        """Affordances (N,) float32 in [0, 1]. The image is perceived once for all instructions."""
        return self.value_many([history], [list(instructions)])[0]

    def value_many(
        self, histories: Sequence[Sequence[Observation]], instructions: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """Affordances of several histories, each with its own instructions."""
        counts = [len(texts) for texts in instructions]
        with self.inferring():
            values = self.judged(histories, instructions)
        return np.split(values, np.cumsum(counts)[:-1])

    def judged(self, histories: Sequence[Sequence[Observation]], instructions: Sequence[Sequence[str]]) -> np.ndarray:
        """Those affordances in one row."""
        network, counts = self.acting.eval(), [len(texts) for texts in instructions]
        frames, states = self.observe(histories)
        if not sum(counts):
            return np.zeros(0, np.float32)
        text = self.texts.encode([t for texts in instructions for t in texts]).to(self.device)
        if len(set(counts)) > 1:  # what is the same for all of a history's instructions is computed for each
            rows = torch.tensor([row for row, count in enumerate(counts) for _ in range(count)], device=self.device)
            frames, states = frames[rows], states[rows]
        values, each, most = [], len(text) // len(states), network.at_once()
        together = max(1, most // each)  # histories
        for i in range(0, len(states), together):
            asked = text[i * each : (i + together) * each]
            for some in asked.split(most) if each > most else [asked]:
                memory = network.encode(frames[i : i + together], states[i : i + together], some)
                values.append(self.values(network, memory))
        return torch.cat(values).float().cpu().numpy()
