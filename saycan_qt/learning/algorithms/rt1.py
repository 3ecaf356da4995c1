"""Behaviour cloning of the same network on successful episodes [RT-1]: a softmax over the bins of each dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from saycan_qt.learning.algorithms.policy import Batch, Metrics, Policy, behavior_loss
from saycan_qt.networks.backbone import PolicyNetwork


@dataclass(frozen=True)
class RT1Config:
    """Behaviour cloning."""

    label_deviation: float = 3.0  # [bins] labels are Gaussians of this width; 0: the paper's single bin
    smoothing: float = 4.0  # [bins] probabilities are averaged over neighbours before the arg max
    pointing_weight: float = 4.0  # of how surprised eyes that point are (--preset compact). Departs (paper: 0)


class RT1(Policy):
    """Acts as the demonstrations did."""

    name = "rt1"
    config_type = RT1Config
    only_successes = True
    looks_ahead = False
    points = True
    chunked = True

    @classmethod
    def heads(cls, config: RT1Config) -> Sequence[str]:
        return ["behavior"]

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        memory, pointing, pointed = self.seen(batch)
        hidden, _ = self.network.read(memory, batch.tokens[:, :-1])
        logits = self.network.outputs["behavior"](hidden)
        loss, metrics = behavior_loss(
            logits, batch.tokens, batch.demonstrates, self.config.label_deviation, self.ends, batch.there
        )
        loss = loss + pointing
        return loss, {"loss": loss.detach(), **metrics, **pointed}

    def choose(self, network: PolicyNetwork, hidden: Tensor, dim: int) -> Tensor:
        return self.likeliest(network, hidden, dim)
