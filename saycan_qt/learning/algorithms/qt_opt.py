"""QT-Opt: Q-learning over continuous actions, whose best one the cross-entropy method looks for.

Encoder and Transformer are those of the siblings, so that a comparison is one of algorithms; the whole action enters
as a single token. QT-Opt is Kalashnikov et al. 2018 (arXiv 1806.10293), CQL is Kumar et al. 2020 (arXiv 2006.04779).
Inside this file actions are normalised: each dimension's range is [-1, 1], and terminate is -1 or 1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saycan_qt.learning.algorithms.policy import Batch, Judge, Metrics
from saycan_qt.networks.backbone import LOW_Q, Memory, NetworkConfig, PolicyNetwork
from saycan_qt.networks.tokens import ActionTokenizer
from skills.embodiment import TERMINATE_THRESHOLD, Embodiment

WAVES = (0.5, 1.0, 2.0, 4.0)  # of a sine over an action dimension's range
MOST_ROUNDS, MOST_SAMPLES = 100, 10_000  # of a search; more are a mistake
STATES_AT_ONCE = 64  # whose candidates are compared together on a CPU: more do not fit into its cache


@dataclass(frozen=True)
class QTOptConfig:
    """QT-Opt, with CQL's penalty as an option. The defaults of the search are QT-Opt's. It knows no action bins: of
    --bounds and --bins it takes each dimension's range."""

    discount: float = 0.98  # per time step, as Q-Transformer's
    # The returns that the sigmoid's 0 and 1 stand for: with rewards beyond {0, 1}, an episode's smallest and largest
    value_low: float = 0.0
    value_high: float = 1.0
    cem_iterations: int = 2  # rounds of the cross-entropy method
    cem_samples: int = 64  # actions tried in each
    cem_elites: int = 6  # of them, the best, to which the next round's distribution is fitted
    cem_deviation: float = 0.5  # of the first round's Gaussian, in halves of a dimension's range
    # Age of the second target network, in averaging times of the first (1 / --average steps). QT-Opt: 6000 of 10 000
    target_lag: float = 0.6
    # Pull of actions absent from the data below those in it [CQL, Eq. 4]. 0 is QT-Opt as published, which collects its
    # own data; on recorded data the paper compares with "QT-Opt with CQL" [Q-Transformer, 5.2]
    cql_weight: float = 1.0
    cql_samples: int = 16  # random actions that it pulls at, beside the elites of the cross-entropy method
    monte_carlo: bool = False  # targets are at least the return-to-go, as Q-Transformer's. QT-Opt has nothing like it

    def require_sound(self) -> None:
        """Raises ValueError for a search that does not end, or finds nothing."""
        if not 1 <= self.cem_iterations <= MOST_ROUNDS:
            raise ValueError(f"cem_iterations is {self.cem_iterations}; it must be 1 to {MOST_ROUNDS}")
        if not 1 <= self.cem_elites <= self.cem_samples <= MOST_SAMPLES:
            given = f"cem_elites is {self.cem_elites} of {self.cem_samples} cem_samples"
            raise ValueError(f"{given}; of at most {MOST_SAMPLES}, some must be elites")
        if not 0 <= self.cql_samples <= MOST_SAMPLES:
            raise ValueError(f"cql_samples is {self.cql_samples}; it must be 0 to {MOST_SAMPLES}")


def waves(actions: Tensor) -> Tensor:
    """(..., D) -> (..., 9 D): the numbers and their Fourier features. Departs: QT-Opt takes the numbers alone, from
    which a small network hardly learns a peak in hundreds of steps; the siblings have an embedding for every bin."""
    phase = (actions[..., None] * (math.pi * torch.tensor(WAVES, device=actions.device))).flatten(-2)
    return torch.cat([actions, phase.sin(), phase.cos()], dim=-1)


def normalized(actions: Tensor, tokenizer: ActionTokenizer) -> Tensor:
    """(..., D) in physical units -> in [-1, 1]; what lies beyond the tokenizer's range is clipped."""
    edges = tokenizer.edges.to(actions.device)
    low, high = edges[:, 0], edges[:, -1]
    result = ((actions - low) / (high - low) * 2 - 1).clamp(-1, 1)
    if (end := tokenizer.terminate) is not None:
        result[..., end] = torch.where(actions[..., end] > TERMINATE_THRESHOLD, 1.0, -1.0)
    return result


@dataclass(frozen=True)
class Draws:
    """Random numbers of one search. All states share them, so that a batch acts as its rows do, on one process or two.

    Departs: QT-Opt draws for each state anew."""

    normal: Tensor  # (iterations, samples, D), without the dimension that terminates
    uniform: Tensor  # (iterations, samples, 1) in [0, 1)
    anywhere: Tensor  # (1, random actions, D)


def draw(config: QTOptConfig, embodiment: Embodiment, seed: int, device: torch.device) -> Draws:
    generator, dims = torch.Generator().manual_seed(seed), len(embodiment.action)
    rounds = config.cem_iterations, config.cem_samples
    normal = torch.randn(*rounds, dims - (embodiment.terminate is not None), generator=generator)
    uniform = torch.rand(*rounds, 1, generator=generator)
    anywhere = torch.rand(1, config.cql_samples, dims, generator=generator) * 2 - 1
    binary = [dimension.kind in ("fraction", "terminate") for dimension in embodiment.action]
    anywhere[..., binary] = anywhere[..., binary].sign()
    return Draws(normal.to(device), uniform.to(device), anywhere.to(device))


def maximize(
    score: Callable[[Tensor], Tensor],
    draws: Draws,
    embodiment: Embodiment,
    elites: int,
    deviation: float,
    proposals: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The cross-entropy method [QT-Opt, 4.2]: the best actions (B, D) of all rounds, their scores (B,), and the last
    round's elites (B, elites, D). score: (B or 1, n, D) -> (B, n).

    A Gaussian for each dimension, clipped to the range, and a coin for what terminates, both fitted to the elites.
    proposals (B, n, D) are candidates in each round."""
    end = embodiment.terminate
    motions = [number for number in range(len(embodiment.action)) if number != end]
    mean = torch.zeros(1, 1, draws.normal.shape[-1], device=draws.normal.device)
    spread = torch.full_like(mean, deviation)
    fractions = [embodiment.action[number].kind == "fraction" for number in motions]
    spread[..., fractions] = 1e6  # clipped: fully open or fully closed, as grippers mostly are. QT-Opt: discrete
    ends = torch.full_like(mean[..., :1], 0.5)  # share of terminating actions
    actions, scores = [], []
    for normal, uniform in zip(draws.normal, draws.uniform, strict=True):
        candidates = (mean + spread * normal).clamp(-1, 1)
        if end is not None:
            terminate = torch.where(uniform < ends, 1.0, -1.0)
            candidates = torch.cat([candidates[..., :end], terminate, candidates[..., end:]], dim=-1)
        if proposals is not None:
            candidates = torch.cat([candidates.expand(len(proposals), -1, -1), proposals], dim=1)
        found = score(candidates)
        top = found.topk(elites, dim=1)
        rows = top.indices[..., None].expand(-1, -1, candidates.shape[-1])
        best = candidates.expand(len(found), -1, -1).gather(1, rows)
        moving = best[..., motions]
        mean, spread = moving.mean(1, keepdim=True), moving.std(1, correction=0, keepdim=True)
        if end is not None:
            ends = (best[..., end : end + 1] > 0).float().mean(1, keepdim=True)
        actions.append(best[:, 0])
        scores.append(top.values[:, 0])
    score_best, round_best = torch.stack(scores).max(dim=0)
    return torch.stack(actions)[round_best, torch.arange(len(round_best))], score_best, best


def clipped_double_target(one: Tensor, two: Tensor, reward: Tensor, terminated: Tensor, discount: float) -> Tensor:
    """r + gamma min(Q1, Q2)(s', a*), where the episode goes on [QT-Opt, 4.2]. All (B,)."""
    return reward + discount * (1 - terminated) * torch.minimum(one, two)


def cql_penalty(logits: Tensor) -> Tensor:
    """(B, 1 + n) logits of the data's action and of n others -> (B,), 0 where the data's action stands far above.

    CQL(H) [Eq. 4], of logits, as Q-Transformer's ablation with a softmax is: Q itself is held within [0, 1], where a
    log-sum-exp hardly tells actions apart. Departs from CQL: the data's action is among those summed, so the
    penalty has a floor; and the others are not weighted by the density that they were drawn with."""
    return logits.logsumexp(-1) - logits[:, 0]


class JudgingNetwork(PolicyNetwork):
    """The siblings' network with one more token, for a whole action, and one output for it."""

    def __init__(self, config: NetworkConfig, heads: Sequence[str] = ()) -> None:
        super().__init__(config, heads)
        width = config.width
        self.action = nn.Sequential(
            nn.Linear(self.dims * (1 + 2 * len(WAVES)), width), nn.GELU(), nn.Linear(width, width)
        )
        self.q = nn.Linear(width, 1)
        nn.init.constant_(self.q.bias, LOW_Q)

    def judge(self, memory: Memory, actions: Tensor) -> Tensor:
        """actions (B or 1, n, D) -> logits (B, n), whose sigmoid is Q. The state is not encoded again for each."""
        return (self.consider(memory, actions) * self.q.weight).sum(-1) + self.q.bias

    def consider(self, memory: Memory, actions: Tensor) -> Tensor:
        """Hidden states (B, n, width) of whole actions; float32, under autocast too."""
        x = self.action(waves(actions))
        for layer, past in zip(self.layers, memory, strict=True):
            x = layer.look(x, past)  # type: ignore[operator]
        return self.norm(x).float()


class ActionValueNetwork(JudgingNetwork):
    """It has that token in place of one for each dimension."""

    def __init__(self, config: NetworkConfig, heads: Sequence[str] = ()) -> None:
        super().__init__(config, heads)
        del self.dimensions, self.actions, self.outputs, self.mask  # of acting bin by bin


class QTOpt(Judge):
    """Judges with the greatest Q that the cross-entropy method finds, and acts with its action."""

    name = "qt-opt"
    config_type = QTOptConfig
    network_type: ClassVar[type[JudgingNetwork]] = ActionValueNetwork
    network: JudgingNetwork
    target_network: JudgingNetwork | None
    lagged_network: JudgingNetwork | None = None  # the second target; while training

    @classmethod
    def heads(cls, config: QTOptConfig) -> Sequence[str]:
        config.require_sound()
        return ()

    def prepare(self, device: str, freeze_trunk: bool) -> None:
        super().prepare(device, freeze_trunk)
        self.lagged_network = copy.deepcopy(self.target_network)

    def after_step(self, rate: float) -> None:
        """Departs: the second target is an average of the first, with a mean age of `target_lag`, where QT-Opt's is a
        snapshot as old: it needs no store of snapshots, nor does it jump."""
        super().after_step(rate)
        assert self.target_network is not None and self.lagged_network is not None
        networks = self.network, self.target_network, self.lagged_network
        parameters = [row for row in zip(*(n.parameters() for n in networks), strict=True) if row[0].requires_grad]
        with torch.no_grad():
            _, targets, lagged = map(list, zip(*parameters, strict=True))
            torch._foreach_lerp_(lagged, targets, rate / max(rate, self.config.target_lag))
            for behind, buffer in zip(self.lagged_network.buffers(), self.target_network.buffers(), strict=True):
                behind.copy_(buffer)

    def modules(self) -> dict[str, PolicyNetwork]:
        assert self.lagged_network is not None
        return super().modules() | {"lagged": self.lagged_network}

    def normalized(self, actions: Tensor) -> Tensor:
        return normalized(actions, self.tokenizer)

    def physical(self, actions: Tensor) -> Tensor:
        """(..., D) in [-1, 1] -> in physical units."""
        edges = self.tokenizer.edges.to(self.device)
        return torch.lerp(edges[:, 0], edges[:, -1], (actions + 1) / 2)

    @torch.no_grad()
    def search(self, network: JudgingNetwork, memory: Memory, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Best actions (B, D), their logits (B,), and elites (B, elites, D) of the states in `memory`."""
        config, count, proposed = self.config, len(memory[0][0]), self.proposals(network, memory)
        step = STATES_AT_ONCE if self.device.type == "cpu" else count
        found = []
        for i in range(0, count, step):
            some = [(k[i : i + step], v[i : i + step]) for k, v in memory]
            score, part = partial(network.judge, some), None if proposed is None else proposed[i : i + step]
            found.append(maximize(score, draws, self.embodiment, config.cem_elites, config.cem_deviation, part))
        actions, logits, elites = (torch.cat(parts) for parts in zip(*found, strict=True))
        return actions, logits, elites

    def proposals(self, network: JudgingNetwork, memory: Memory) -> Tensor | None:
        """Actions (B, n, D) that the search tries in each round, beside those that it draws."""
        return None

    @torch.no_grad()
    def targets(self, batch: Batch, draws: Draws) -> Tensor:
        """(B,) in [0, 1]: returns, put between value_low and value_high."""
        one, two = self.target_network, self.lagged_network
        assert one is not None and two is not None
        actions, logits, _ = self.search(one, one.encode(*batch.next()), draws)
        second = two.judge(two.encode(*batch.next()), actions[:, None])[:, 0]
        first, other = self.as_return(logits), self.as_return(second)
        targets = clipped_double_target(first, other, batch.reward, batch.terminated, self.discount)
        return self.as_q(targets, batch.returns)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        loss, _, metrics = self.critic(batch, self.network.encode(*batch.now()))
        return loss, metrics

    def critic(self, batch: Batch, memory: Memory) -> tuple[Tensor, Tensor, Metrics]:
        """Cross-entropy of the logit and its target [QT-Opt, Eq. 1], and the penalty. Also the logits (B,) of the
        data's actions."""
        config, draws = self.config, draw(self.config, self.embodiment, batch.seed, self.device)
        targets = self.targets(batch, draws)
        actions = self.normalized(batch.actions)[:, None]
        metrics: Metrics = {}
        if config.cql_weight > 0:
            _, best, elites = self.search(self.network, memory, draws)
            actions = torch.cat([actions, elites, draws.anywhere.expand(len(batch), -1, -1)], dim=1)
            metrics = self.mean_values(best.sigmoid(), batch)
        logits = self.network.judge(memory, actions)
        td = F.binary_cross_entropy_with_logits(logits[:, 0], targets)
        penalty = cql_penalty(logits).mean()  # 0 where there are no others
        loss = td + config.cql_weight * penalty
        return (
            loss,
            logits[:, 0],
            {
                "loss": loss.detach(),
                "td": td.detach(),
                "conservative": penalty.detach(),
                "q_data": logits.detach()[:, 0].sigmoid().mean(),
                "q_target": targets.mean(),
                **metrics,
            },
        )

    def decide(self, network: PolicyNetwork, memory: Memory) -> Tensor:
        return self.physical(self.found(network, memory)[0])

    def values(self, network: PolicyNetwork, memory: Memory) -> Tensor:
        return self.found(network, memory)[1].sigmoid()

    def found(self, network: PolicyNetwork, memory: Memory) -> tuple[Tensor, Tensor]:
        """Best actions (B, D) and their logits (B,), with the same draws every time."""
        assert isinstance(network, JudgingNetwork)
        return self.search(network, memory, draw(self.config, self.embodiment, 0, self.device))[:2]
