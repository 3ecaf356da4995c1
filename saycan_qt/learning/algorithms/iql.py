"""Implicit Q-learning: what the best of the data's own actions are worth, and a policy that leans towards these.

No action outside the data is ever judged: V is an expectile of Q over the data's actions, Q's target is V of the next
state, and the policy is cloned from the data by its advantages [Kostrikov et al. 2021, arXiv 2110.06169]. All three
read the siblings' network: V where the first action dimension is chosen, Q with a token for a whole action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saycan_qt.learning.algorithms.policy import Batch, Judge, Metrics, advantage_weights, behavior_loss
from saycan_qt.learning.algorithms.qt_opt import JudgingNetwork, normalized
from saycan_qt.networks.backbone import LOW_Q, Memory, NetworkConfig, PolicyNetwork

TWINS = 2  # Q-functions, of which the lower one is believed, as in the paper's code


@dataclass(frozen=True)
class IQLConfig:
    """Implicit Q-learning. Expectile and temperature are the paper's for AntMaze, whose rewards are as sparse."""

    discount: float = 0.98  # per time step, as Q-Transformer's
    # The returns that the sigmoid's 0 and 1 stand for: with rewards beyond {0, 1}, an episode's smallest and largest
    value_low: float = 0.0
    value_high: float = 1.0
    expectile: float = 0.9  # tau: 0.5 is the mean over the data's actions, 1 would be the best of them [Eq. 5]
    # 1 / beta: actions count by exp(advantage / temperature), at most 100 [Eq. 7]; of advantages as shares of the range
    # from value_low to value_high
    temperature: float = 0.1
    policy_weight: float = 1.0  # of the policy's loss beside those of Q and V
    monte_carlo: bool = False  # targets are at least the return-to-go, as Q-Transformer's. IQL has nothing like it
    label_deviation: float = 3.0  # [bins] labels are Gaussians of this width, as RT-1's here
    smoothing: float = 4.0  # [bins] probabilities are averaged over neighbours before the arg max

    def require_sound(self) -> None:
        """Raises ValueError for settings with which nothing is learnt."""
        if not 0 < self.expectile < 1:
            raise ValueError(f"--expectile {self.expectile:g}: it must be between 0 and 1")
        if not self.temperature > 0:
            raise ValueError(f"--temperature {self.temperature:g}: it must be above 0")


def expectile_loss(logits: Tensor, q_values: Tensor, expectile: float) -> Tensor:
    """|tau - 1(Q < V)| times what is lost with V in place of Q in [0, 1] [IQL, Eq. 5]; V is the logits' sigmoid. Keeps
    the shape.

    Departs: that is the cross-entropy, as QT-Opt's, rather than the square. Its minimum is the same expectile, and its
    gradient does not vanish where the sigmoid saturates, as it does at the start."""
    weights = torch.where(q_values < logits.detach().sigmoid(), 1 - expectile, expectile)
    return weights * F.binary_cross_entropy_with_logits(logits, q_values, reduction="none")


class ImplicitNetwork(JudgingNetwork):
    """The siblings' network with V and twins of Q. Departs: in the paper each is a network of its own."""

    def __init__(self, config: NetworkConfig, heads: Sequence[str]) -> None:
        super().__init__(config, heads)
        self.q = nn.Linear(config.width, TWINS)
        nn.init.constant_(self.q.bias, LOW_Q)
        self.v = nn.Linear(config.width, 1)
        nn.init.constant_(self.v.bias, LOW_Q)

    def judged(self, memory: Memory, actions: Tensor) -> Tensor:
        """Logits (B, TWINS) of Q of normalised actions (B, D)."""
        return (self.consider(memory, actions[:, None]) * self.q.weight).sum(-1) + self.q.bias

    def worth(self, hidden: Tensor) -> Tensor:
        """Logits (B,) of V; hidden (B, k, width), of which the first knows of no action."""
        return (hidden[:, 0].float() * self.v.weight).sum(-1) + self.v.bias  # float32 under autocast too

    def before(self, memory: Memory) -> Tensor:
        """Hidden state (B, 1, width) that knows of no action."""
        return self.read(memory, torch.empty(len(memory[0][0]), 0, dtype=torch.long, device=memory[0][0].device))[0]


class IQL(Judge):
    """Judges with V, acts with the arg max of its policy."""

    name = "iql"
    config_type = IQLConfig
    network_type: ClassVar[type[ImplicitNetwork]] = ImplicitNetwork
    network: ImplicitNetwork
    target_network: ImplicitNetwork | None

    @classmethod
    def heads(cls, config: IQLConfig) -> Sequence[str]:
        config.require_sound()
        return ["behavior"]

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """(B,) in [0, 1]: r + gamma V(s') [IQL, Eq. 6], put between value_low and value_high. V is the present one:
        only Q has a target network."""
        after = self.as_return(self.network.worth(self.network.before(self.network.encode(*batch.next()))))
        return self.as_q(batch.reward + self.discount * (1 - batch.terminated) * after, batch.returns)

    @torch.no_grad()
    def believed(self, batch: Batch) -> Tensor:
        """(B,) in [0, 1]: the target network's Q of the data's actions, the lower of the twins."""
        network = self.target_network
        assert network is not None
        return network.judged(network.encode(*batch.now()), self.normalized(batch)).amin(-1).sigmoid()

    def normalized(self, batch: Batch) -> Tensor:
        """The data's actions (B, D) in [-1, 1]."""
        return normalized(batch.actions, self.tokenizer)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The sum of all three: targets and advantages carry no gradient, so one optimiser does.

        Departs: the policy's loss is divided by the sum of its weights, lest a few of 100 drown Q and V in the shared
        network, and in the clipping of its gradient."""
        config, believed = self.config, self.believed(batch)
        batch = batch.seen_by(self.network)  # once, now and next
        targets = self.targets(batch)
        memory = self.network.encode(*batch.now())
        hidden, _ = self.network.read(memory, batch.tokens[:, :-1])
        q, worth = self.network.judged(memory, self.normalized(batch)), self.network.worth(hidden)
        td = F.binary_cross_entropy_with_logits(q, targets[:, None].expand_as(q))
        expectile = expectile_loss(worth, believed, config.expectile).mean()
        value = worth.detach().sigmoid()
        weights = advantage_weights(believed - value, config.temperature)
        logits, end = self.network.outputs["behavior"](hidden), self.tokenizer.terminate
        policy, metrics = behavior_loss(logits, batch.tokens, weights, config.label_deviation, end)
        loss = td + expectile + config.policy_weight * policy
        return loss, {
            "loss": loss.detach(),
            "td": td.detach(),
            "expectile": expectile.detach(),
            "q_data": q.detach().sigmoid().mean(),
            "q_target": targets.mean(),
            "advantage_weight": weights.mean(),
            **self.mean_values(value, batch),
            **metrics,
        }

    def choose(self, network: PolicyNetwork, hidden: Tensor, dim: int) -> Tensor:
        return self.likeliest(network, hidden, dim)

    def values(self, network: PolicyNetwork, memory: Memory) -> Tensor:
        assert isinstance(network, ImplicitNetwork)
        return network.worth(network.first(memory)[:, None]).sigmoid()
