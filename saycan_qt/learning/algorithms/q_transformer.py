"""Q-Transformer: offline Q-learning with one autoregressive token per action dimension.

The losses are pure functions of Q-values, so that a table can take the network's place (and does, in the tests).
Equations, sections and appendices are the paper's (arXiv 2309.10150).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saycan_qt.learning.algorithms.policy import (
    MOST_SEEN,
    Batch,
    Judge,
    Metrics,
    behavior_loss,
    smooth_probabilities,
)
from saycan_qt.learning.distributed import shared_count
from saycan_qt.networks.backbone import Memory, NetworkConfig, PolicyNetwork
from skills.types import Observation

Conservatism = Literal["paper", "softmax", "none"]
Loss = Literal["squared", "cross_entropy"]
NEAR = 0.07  # of each state number's typical deviation: two states no further apart are one place in a circle
STRIP, MAP_WIDTH = 16, 512  # [pixels] of a value map: the height of a dimension, and its width at least
RAMPS = ((68, 33, 253), (1, 145, 231), (84, 140, 37))  # red, green and blue of Q = 0, 1/2, 1


@dataclass(frozen=True)
class QTransformerConfig:
    """Q-learning. The defaults are the paper's."""

    discount: float = 0.98  # per time step [D.1]
    # The returns that the sigmoid's 0 and 1 stand for. Unseen actions are pulled towards 0, which has to be the
    # smallest possible return, R_min * T [4.2]; with rewards beyond {0, 1}, give an episode's smallest and largest
    value_low: float = 0.0
    value_high: float = 1.0
    conservative_weight: float = 1.0  # alpha, pull of the bins absent from the data towards 0 [4.2, D.2]
    conservatism: Conservatism = "paper"  # "softmax" is CQL's, "none" leaves it out [ablations, 5.3]
    monte_carlo: bool = True  # targets are at least the return-to-go [4.3]
    n_step: bool = True  # every dimension's target is that of the last one [4.3]; false: Eq. 1
    # [bins] The target is that of the data's action and, less and less, of its neighbours: a Gaussian in place of D.2's
    # Dirac, in dimensions of motion. Departs (paper: 0): Q over 256 independent bins is jagged where data is scarce,
    # and its arg max picks noise. About 3 is of use
    td_deviation: float = 0.0
    # [bins] Acting takes the arg max of Q averaged over neighbouring bins of motion, by a Gaussian. Departs (paper: 0,
    # each bin's own), for the same reason: the differences between neighbours are noise, those between hills are not
    acting_deviation: float = 0.0
    loss: Loss = "squared"  # "cross_entropy" departs: per-bin, its gradient does not vanish where the sigmoid saturates
    behavior_weight: float = 0.0  # of a second, softmax head that clones successes. Departs (paper: 0), see below
    behavior_threshold: float = 0.0  # tau: act with the best Q among bins of at least tau times the likeliest's density
    # Both together are discrete batch-constrained Q-learning [Fujimoto et al. 2019]. Departs, because after CPU-hours
    # rather than months of training the arg max over many bins of nearly equal value picks noise.
    label_deviation: float = 3.0  # [bins] width of the behaviour head's labels
    smoothing: float = 4.0  # [bins] behaviour densities are averaged over neighbours before they are compared
    # [steps] of the longest circle that is noticed: where the states of the last steps are those of so many before, or
    # of fewer, the action is drawn from the behaviour head. Departs (paper: 0, the arg max throughout): that sees the
    # present alone where the history is short, and then lets go and grasps again, or hovers, until its time is up
    circles: int = 0
    # Of how surprised eyes that point are (--preset compact), on successes. Departs (paper: 0)
    pointing_weight: float = 4.0


def dimension_targets(
    q_best: Tensor,
    next_value: Tensor,
    reward: Tensor,
    terminated: Tensor,
    discount: float,
    n_step: bool,
    there: Tensor | None = None,
) -> Tensor:
    """Targets (B, D) for each action dimension of one transition [Eq. 1, sec. 4.3].

    q_best (B, D): max Q over each dimension's bins, given the dataset's earlier dimensions; next_value (B,): max Q over
    the next observation's first dimension, or over its last with n_step; reward, terminated (B,). Only the last
    dimension crosses time, and only there are reward and discount applied; with n_step all dimensions jump there.

    The dimensions of a chunk of actions are one action's: reward and discount are those of all its steps. Where the
    episode ends within it, the last dimension is the last that is `there` (B, D)."""
    across = (reward + discount * (1 - terminated) * next_value)[:, None]
    if n_step:
        return across.expand_as(q_best)
    targets = torch.cat([q_best[:, 1:], across], dim=1)
    return targets if there is None else torch.where(is_last(there), across, targets)


def is_last(there: Tensor) -> Tensor:
    """(B, D) in {0, 1}, of which each row begins with ones -> (B, D) of bool, true at the last of them."""
    return (there > 0) & (F.pad(there[:, 1:], (0, 1)) == 0)


def shares(tokens: Tensor, bins: int, deviations: Tensor) -> Tensor:
    """How much each bin is the data's action, (B, D, bins) in [0, 1]: 1 at tokens (B, D), and around them a Gaussian of
    deviations (D,) [bins], or nothing where that is 0."""
    distance = torch.arange(bins, device=tokens.device) - tokens[..., None]
    narrow = torch.where(deviations > 0, deviations, 1e-6)[:, None]  # so narrow that the neighbours get 0
    return torch.exp(-0.5 * (distance / narrow).square())


def q_loss(
    logits: Tensor,
    tokens: Tensor,
    targets: Tensor,
    weight: float,
    conservatism: Conservatism,
    loss: Loss,
    share: Tensor | None = None,
    there: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """TD error on the dataset's bins, pull towards 0 on all others [Eq. 2, D.2, algorithm 1]; mean over B and D, of
    those that are `there` (B, D).

    logits (B, D, bins), their sigmoid is Q; tokens (B, D); targets (B, D) in [0, 1]; share (B, D, bins): see `shares`;
    None: the paper's, all of the data's bin. A bin with a part of it is drawn to the target by that part, and to 0 by
    the rest."""
    chosen = logits.gather(-1, tokens[..., None])[..., 0]
    others = logits.shape[-1] - 1
    if share is None:
        if loss == "squared":
            q = logits.sigmoid()
            q_chosen = chosen.sigmoid()
            td = 0.5 * (q_chosen - targets).square()
            pull = 0.5 * (q.square().sum(-1) - q_chosen.square()) / others
        else:
            td = F.binary_cross_entropy_with_logits(chosen, targets, reduction="none")
            pull = (F.softplus(logits).sum(-1) - F.softplus(chosen)) / others
    else:
        wanted = targets[..., None].expand_as(logits)
        if loss == "squared":
            q = logits.sigmoid()
            error, height = 0.5 * (q - wanted).square(), 0.5 * q.square()
        else:
            error = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            height = F.softplus(logits)
        td = (share * error).sum(-1) / share.sum(-1)
        pull = ((1 - share) * height).sum(-1) / (1 - share).sum(-1)
    if conservatism == "softmax":
        pull = F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none").view_as(td)
    elif conservatism == "none":
        pull = torch.zeros_like(td)
    mean = Tensor.mean if there is None else partial(mean_there, there)
    return mean(td + weight * pull), {
        "td": mean(td.detach()),
        "conservative": mean(pull.detach()),
        "q_data": mean(chosen.detach().sigmoid()),
        "q_target": mean(targets),
    }


def mean_there(there: Tensor, values: Tensor) -> Tensor:
    """Of values (B, D), over those that are there."""
    return (values * there).sum() / shared_count(there)


class QTransformer(Judge):
    """Judges with the value of the first dimension, acts with the arg max of each."""

    name = "q-transformer"
    config_type = QTransformerConfig
    chunked = True
    points = True

    def __init__(self, network: NetworkConfig, config: QTransformerConfig, *rest: Any, **more: Any) -> None:
        super().__init__(network, config, *rest, **more)
        if config.circles:
            if config.behavior_weight <= 0 or not self.embodiment.state or network.chunk > 1:
                raise ValueError(
                    f"circles {config.circles} needs a behaviour head, which --behavior-weight trains, a state, and "
                    "single actions"
                )
            if (seen := 2 * config.circles + 1) > MOST_SEEN:
                raise ValueError(
                    f"circles {config.circles}: {(MOST_SEEN - 1) // 2} at most, of which a server sees all"
                )
            seen = max(network.history, seen)
            self.embodiment = dataclasses.replace(self.embodiment, history=seen)

    @classmethod
    def heads(cls, config: QTransformerConfig) -> Sequence[str]:
        return ["q", "behavior"] if config.behavior_weight > 0 else ["q"]

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """(B, D) in [0, 1], from the target network; returns, put between value_low and value_high."""
        network, config = self.target_network, self.config
        assert network is not None

        def best(hidden: Tensor, first: int) -> Tensor:
            return self.as_return(network.outputs["q"](hidden, first).amax(-1))

        if not config.n_step:
            batch = batch.seen_by(network)  # once, now and next
        after = network.encode(*batch.next())
        if config.n_step:  # the dataset's next action leads to its last dimension
            hidden, _ = network.read(after, batch.next_tokens[:, :-1])
            if batch.next_there is None:
                next_value = best(hidden[:, -1:], network.dims - 1)[:, 0]
            else:
                next_value = (best(hidden, 0) * is_last(batch.next_there)).sum(1)
            q_best = batch.reward[:, None].expand(-1, network.dims)  # not used
        else:
            hidden, _ = network.read(after, batch.next_tokens[:, :0])
            next_value = best(hidden, 0)[:, 0]
            hidden, _ = network.read(network.encode(*batch.now()), batch.tokens[:, :-1])
            q_best = best(hidden, 0)
        discount = config.discount**self.chunk
        targets = dimension_targets(
            q_best, next_value, batch.reward, batch.terminated, discount, config.n_step, batch.there
        )
        return self.as_q(targets, batch.returns[:, None])

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        config = self.config
        targets = self.targets(batch)
        memory, pointing, pointed = self.seen(batch)
        hidden, _ = self.network.read(memory, batch.tokens[:, :-1])
        logits = self.network.outputs["q"](hidden)
        share = None
        if config.td_deviation > 0:
            share = shares(batch.tokens, logits.shape[-1], self.deviations)
        weight, kind = config.conservative_weight, config.conservatism
        loss, metrics = q_loss(logits, batch.tokens, targets, weight, kind, config.loss, share, batch.there)
        metrics |= self.mean_values(logits.detach()[:, 0].amax(-1).sigmoid(), batch)
        if config.behavior_weight > 0:
            behavior = self.network.outputs["behavior"](hidden)
            clone, clone_metrics = behavior_loss(
                behavior, batch.tokens, batch.demonstrates, config.label_deviation, self.ends, batch.there
            )
            loss, metrics = loss + config.behavior_weight * clone, metrics | clone_metrics
        loss = loss + pointing
        return loss, {"loss": loss.detach(), **metrics, **pointed}

    @property
    def deviations(self) -> Tensor:
        """(D,) [bins] of the TD label."""
        motion = [self.moves(dim) for dim in range(self.network.dims)]
        return self.config.td_deviation * torch.tensor(motion, dtype=torch.float32, device=self.device)

    def moves(self, dim: int) -> bool:
        """Fractions and ends keep single bins: between a gripper's open and shut, and between going on and ending, lies
        nothing that the data holds."""
        action = self.embodiment.action
        return action[dim % len(action)].kind not in ("fraction", "terminate")

    def choose(self, network: PolicyNetwork, hidden: Tensor, dim: int) -> Tensor:
        q_values, ends = network.outputs["q"].one(hidden, dim), self.terminates(dim)  # type: ignore[operator]
        if self.config.acting_deviation > 0 and self.moves(dim):
            q_values = smooth_probabilities(q_values.sigmoid(), self.config.acting_deviation)
        if self.config.behavior_threshold > 0 and "behavior" in network.outputs:
            density = network.outputs["behavior"].one(hidden, dim).softmax(-1)  # type: ignore[operator]
            density = smooth_probabilities(density, 0.0 if ends else self.config.smoothing)
            rare = density < self.config.behavior_threshold * density.amax(-1, keepdim=True)
            q_values = q_values.masked_fill(rare, -torch.inf)
        if ends:  # padded to all bins; only the first and the last mean anything [D.3]
            last = self.network_config.bins - 1
            return last * (q_values[:, last] > q_values[:, 0])
        return q_values.argmax(-1)

    def act_many(self, histories: Sequence[Sequence[Observation]], instructions: Sequence[str]) -> np.ndarray:
        lost = np.array([self.in_circles(history) for history in histories])
        if not lost.any():
            return super().act_many(histories, instructions)
        network = self.acting.eval()
        shares = torch.from_numpy(np.stack([self.drawn(history[-1]) for history in histories])).to(self.device)
        rows = torch.from_numpy(lost).to(self.device)

        def choose(hidden: Tensor, dim: int) -> Tensor:
            return torch.where(rows, self.draw(network, hidden, dim, shares[:, dim]), self.choose(network, hidden, dim))

        with self.inferring():
            bins = network.decode(self.remember(network, histories, instructions), choose, self.tokenizer.dims)
            return self.tokenizer.decode(bins).float().cpu().numpy()

    def in_circles(self, history: Sequence[Observation]) -> bool:
        """Were the last states, of a circle and one step more, those of as many steps before?"""
        recent = list(history)[-2 * self.config.circles - 1 :] if self.config.circles else []
        states = np.array([self._state(observation) for observation in recent])
        near = NEAR * np.array(self.network_config.state.scale)
        return any(
            bool((np.abs(states[period:] - states[:-period])[-period - 1 :] < near).all())
            for period in range(1, (len(states) - 1) // 2 + 1)
        )

    def drawn(self, observation: Observation) -> np.ndarray:
        """(D,) float32 in [0, 1): the same for the same state, in whatever batch."""
        seed = np.frombuffer(self._state(observation).tobytes(), np.uint32)
        return np.random.default_rng(seed).random(self.tokenizer.dims, np.float32)

    def draw(self, network: PolicyNetwork, hidden: Tensor, dim: int, shares: Tensor) -> Tensor:
        """(N,) bins: where so much of the behaviour head's distribution lies below."""
        density = network.outputs["behavior"].one(hidden, dim).float().softmax(-1)  # type: ignore[operator]
        last = self.network_config.bins - 1
        if self.terminates(dim):
            ends = density[:, last] / (density[:, 0] + density[:, last])
            return last * (shares < ends)
        return (density.cumsum(-1) <= shares[:, None]).sum(-1).clamp(max=last)

    def values(self, network: PolicyNetwork, memory: Memory) -> Tensor:
        """The maximum over the first action dimension. By Eq. 1 that is the value of the whole action; with `n_step`,
        of its first dimension followed by what the data does next."""
        return network.outputs["q"].one(network.first(memory), 0).amax(-1).sigmoid()  # type: ignore[operator]

    def value_maps(self, history: Sequence[Observation], instruction: str) -> dict[str, np.ndarray]:
        """One picture, (D * STRIP, bins * w, 3) uint8: a strip for each dimension of the next action, its bins from the
        lowest action to the highest, from dark for Q = 0 to bright for Q = 1, given the dimensions above it; the chosen
        bin is white. A dimension that terminates has two, no and yes."""
        network, strips = self.acting.eval(), []
        wide = -(-MAP_WIDTH // self.network_config.bins)  # [pixels] of a bin

        def choose(hidden: Tensor, dim: int) -> Tensor:
            chosen = self.choose(network, hidden, dim)
            q_values = network.outputs["q"](hidden[:, None], dim)[0, 0].sigmoid().float().cpu().numpy()
            strip = np.stack([np.interp(q_values, (0.0, 0.5, 1.0), ramp) for ramp in RAMPS], axis=1)
            strip[int(chosen[0])] = 255
            strip = np.repeat(strip, wide, axis=0)
            if self.terminates(dim):  # padded to all bins; only the first and the last mean anything [D.3]
                half = len(strip) // 2
                strip[:half], strip[half:] = strip[0], strip[-1]
            strips.append(np.broadcast_to(strip, (STRIP, *strip.shape)))
            return chosen

        with self.inferring():
            network.decode(self.remember(network, [history], [instruction]), choose, self.tokenizer.dims)
        return {"action": np.concatenate(strips).round().astype(np.uint8)}
