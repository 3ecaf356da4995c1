"""Decision Transformer: cloning of all episodes, given the return that each of them went on to earn.

Asked for a high return, it acts as those episodes did that earned one [Chen et al. 2021, arXiv 2106.01345]. The network
is the siblings', with a token more for each action of the window and for each time's return-to-go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from saycan_qt.learning.algorithms.policy import MOST_SEEN, Batch, Metrics, Policy, Seen, behavior_loss
from saycan_qt.networks.backbone import Memory, NetworkConfig, PolicyNetwork
from skills.types import Observation


@dataclass(frozen=True)
class DecisionTransformerConfig:
    """Cloning of all episodes, by their returns."""

    # Observations, actions and returns that it sees, the present ones included. DT: 20 to 50, of smaller observations
    context: int = 6
    # The return that it is asked for, undiscounted as DT's; with --reward success, 1 is to succeed
    target_return: float = 1.0
    return_scale: float = 1.0  # returns are divided by it; with other rewards, about the largest of them
    label_deviation: float = 3.0  # [bins] labels are Gaussians of this width, as RT-1's here
    smoothing: float = 4.0  # [bins] probabilities are averaged over neighbours before the arg max

    def require_sound(self) -> None:
        """Raises ValueError for a window that is none."""
        if not 1 <= self.context <= MOST_SEEN:
            raise ValueError(f"--context {self.context}: it must be 1 to {MOST_SEEN}")
        if not self.return_scale > 0:
            raise ValueError(f"--return-scale {self.return_scale:g}: it must be above 0")


class DecisionNetwork(PolicyNetwork):
    """Departs from DT, whose tokens see earlier ones alone and which learns all of a window's actions at once: here the
    tokens of the past see each other, as the siblings' do, and the window's last action is learnt; each action of an
    episode is the last one of some window. Nor is a time's number within the episode told, as a server that keeps the
    last observations does not know it; how long ago a token was is, and whether the episode had begun."""

    def __init__(self, config: NetworkConfig, heads: Sequence[str]) -> None:
        super().__init__(config, heads)
        seen, more = len(self.places), 2 * config.history - 1
        self.taken = nn.Embedding(self.dims * config.bins, config.width)
        nn.init.normal_(self.taken.weight, std=0.2)
        self.to_go = nn.Linear(1, config.width)
        self.moments = nn.Parameter(torch.randn(more, config.width) * 0.1)  # of returns, then of actions
        mask = torch.ones(self.dims, seen + more + self.dims, dtype=torch.bool).tril(seen + more)
        self.register_buffer("mask", mask, persistent=False)

    def recall(self, now: Seen, past_tokens: Tensor, returns: Tensor) -> Memory:
        """now: frames, states and text as `encode` takes them; past_tokens (B, h - 1, D), -1 where there was no action;
        returns (B, h), scaled."""
        bins = past_tokens.clamp_min(0) + self.config.bins * torch.arange(self.dims, device=past_tokens.device)
        actions = self.taken(bins).sum(2) * (past_tokens[..., :1] >= 0)
        decisions = torch.cat([self.to_go(returns[..., None]), actions], dim=1) + self.moments
        return self.remember(torch.cat([self.prefix(*now), decisions], dim=1))


class DecisionTransformer(Policy):
    """Acts as those did that earned `target_return`."""

    name = "decision-transformer"
    config_type = DecisionTransformerConfig
    network_type: ClassVar[type[DecisionNetwork]] = DecisionNetwork
    looks_back = True
    looks_ahead = False
    network: DecisionNetwork

    @classmethod
    def heads(cls, config: DecisionTransformerConfig) -> Sequence[str]:
        config.require_sound()
        return ["behavior"]

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        assert batch.past_tokens is not None and batch.past_returns is not None
        returns = torch.cat([batch.past_returns, batch.returns[:, None]], dim=1) / self.config.return_scale
        memory = self.network.recall(batch.now(), batch.past_tokens, returns)
        hidden, _ = self.network.read(memory, batch.tokens[:, :-1])
        logits, everything = self.network.outputs["behavior"](hidden), torch.ones_like(batch.returns)
        end = self.tokenizer.terminate
        loss, metrics = behavior_loss(logits, batch.tokens, everything, self.config.label_deviation, end)
        return loss, {"loss": loss.detach(), **metrics}

    def choose(self, network: PolicyNetwork, hidden: Tensor, dim: int) -> Tensor:
        return self.likeliest(network, hidden, dim)

    def remember(
        self, network: PolicyNetwork, histories: Sequence[Sequence[Observation]], instructions: Sequence[str]
    ) -> Memory:
        """DT takes what was earned off the return that it asks for. Where the reward is success nothing is earned
        before the end, so the target stands at every time. Departs with recorded rewards, of which an observation says
        nothing: the target is then what is asked for from now on, whenever that is."""
        assert isinstance(network, DecisionNetwork)
        frames, states = self.observe(histories)
        text = self.texts.encode(instructions).to(self.device)
        returns = torch.full(states.shape[:2], self.config.target_return / self.config.return_scale).to(self.device)
        return network.recall((frames, states, text), self.taken(histories), returns)

    def taken(self, histories: Sequence[Sequence[Observation]]) -> Tensor:
        """Bins (N, h - 1, D) of what was done between the observations; -1 before the first one.

        They are the observations' own word: what this policy would have chosen is not what was done where somebody
        disturbs it, and would have to be computed anew from the episode's beginning, which a window does not hold.
        Raises ValueError where an observation does not say."""
        count, dims = self.network_config.history - 1, len(self.embodiment.action)
        found = torch.full((len(histories), count, dims), -1)
        for row, history in enumerate(histories):
            later = list(history)[1:][-count:] if count else []
            for place, observation in enumerate(later, count - len(later)):
                if observation.action is None:
                    raise ValueError(
                        "this policy looks back on its actions, of which an observation says none (`action`)"
                    )
                done = torch.from_numpy(self.embodiment.clipped(observation.action))
                found[row, place] = self.tokenizer.encode(done)
        return found.to(self.device)
