"""AW-Opt: QT-Opt's critic, and an actor that is cloned from successes by their advantages [Lu et al. 2021,
arXiv 2111.05424].

Of the paper's three changes to AWAC (Nair et al. 2020, arXiv 2006.09359) these are here: the actor learns from
successes alone ("positive filtering"), and the critic's search tries the actor's action in each of its rounds. The
third, to explore with actor and critic in turns, is left out: nothing is collected while training from recorded data.
Nor are there phases of it (demonstrations first, then what was collected): all of the data is there from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from saycan_qt.learning.algorithms.policy import Batch, Metrics, advantage_weights, behavior_loss
from saycan_qt.learning.algorithms.qt_opt import JudgingNetwork, QTOpt, QTOptConfig
from saycan_qt.networks.backbone import Memory, PolicyNetwork


@dataclass(frozen=True)
class AWOptConfig(QTOptConfig):
    """AW-Opt: QT-Opt's settings, for its critic, and the actor's."""

    cql_weight: float = 0.0  # AW-Opt has no such penalty
    # lambda: successes count by exp(advantage / temperature), at most 100. Ours, of advantages as shares of the range
    # from value_low to value_high
    temperature: float = 0.1
    actor_weight: float = 1.0  # of the actor's loss beside the critic's
    acts: Literal["actor", "critic"] = "actor"  # "critic": with the best action of a search, the actor's among them
    label_deviation: float = 3.0  # [bins] labels are Gaussians of this width, as RT-1's here
    smoothing: float = 4.0  # [bins] probabilities are averaged over neighbours before the arg max

    def require_sound(self) -> None:
        super().require_sound()
        if not self.temperature > 0:
            raise ValueError(f"--temperature {self.temperature:g}: it must be above 0")


class AWOpt(QTOpt):
    """Judges with the greatest Q that the search finds, the actor's action included; acts with the actor.

    Departs: actor and critic are networks of their own in the paper, here two heads of one; the actor is the siblings'
    softmax over bins, one dimension after the other, where the paper's is a Gaussian."""

    name = "aw-opt"
    config_type = AWOptConfig
    network_type: ClassVar[type[JudgingNetwork]] = JudgingNetwork

    @classmethod
    def heads(cls, config: QTOptConfig) -> Sequence[str]:
        config.require_sound()
        return ["behavior"]

    def proposals(self, network: JudgingNetwork, memory: Memory) -> Tensor:
        """(B, 1, D) normalised: the actor's action."""
        return self.normalized(self.acted(network, memory))[:, None]

    def acted(self, network: PolicyNetwork, memory: Memory) -> Tensor:
        """The actor's actions (B, D) in physical units."""
        return self.tokenizer.decode(network.decode(memory, partial(self.likeliest, network)))

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Critic and actor; no gradient of the actor's reaches Q through its weights.

        The advantage is Q of the data's action above Q of the actor's own. Departs: AWAC draws that one from the actor,
        here it is the actor's likeliest. And, as with IQL, the loss is divided by the sum of its weights."""
        config, memory = self.config, self.network.encode(*batch.now())
        critic, logits, metrics = self.critic(batch, memory)
        with torch.no_grad():
            own = self.network.judge(memory, self.proposals(self.network, memory))[:, 0].sigmoid()
            weights = advantage_weights(logits.sigmoid() - own, config.temperature) * batch.demonstrates
        hidden, _ = self.network.read(memory, batch.tokens[:, :-1])
        bins, end = self.network.outputs["behavior"](hidden), self.tokenizer.terminate
        actor, more = behavior_loss(bins, batch.tokens, weights, config.label_deviation, end)
        loss = critic + config.actor_weight * actor
        return loss, metrics | more | {"loss": loss.detach(), "advantage_weight": weights.mean()}

    def choose(self, network: PolicyNetwork, hidden: Tensor, dim: int) -> Tensor:
        return self.likeliest(network, hidden, dim)

    def decide(self, network: PolicyNetwork, memory: Memory) -> Tensor:
        return self.acted(network, memory) if self.config.acts == "actor" else super().decide(network, memory)
