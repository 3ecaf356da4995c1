"""IQL: its expectile, its targets, and what they come to on a chain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_policies import TEXTS, at, batch_for, fit_to, make, steps_on_a_chain, walker

from saycan_qt.learning.algorithms.iql import expectile_loss
from saycan_qt.learning.algorithms.policy import advantage_weights


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_the_value_of_a_state_is_the_expectile_of_its_actions_values(expectile):
    """A table: of ten actions three are worth 0.9, the others 0.2. tau p (0.9 - v) = (1 - tau)(1 - p)(v - 0.2)."""
    q_values, above = torch.tensor([0.9] * 3 + [0.2] * 7), 0.3 * expectile
    logit = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([logit], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = expectile_loss(logit.expand(10), q_values, expectile).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    below = 0.7 * (1 - expectile)
    expected = (above * 0.9 + below * 0.2) / (above + below)
    assert float(logit.detach().sigmoid()) == pytest.approx(expected, abs=1e-3)


def test_targets_are_the_reward_and_the_present_value_of_what_comes_next():
    policy = make("iql")
    policy.prepare("cpu", freeze_trunk=True)
    batch, network = batch_for(policy), policy.network
    torch.nn.init.zeros_(network.v.weight)
    torch.nn.init.constant_(network.v.bias, 0.0)  # V is one half
    expected = batch.reward + 0.98 * 0.5 * (1 - batch.terminated)
    torch.testing.assert_close(policy.targets(batch), expected)
    policy.config = replace(policy.config, monte_carlo=True)
    torch.testing.assert_close(policy.targets(batch), torch.maximum(expected, batch.returns))


def test_the_lower_twin_is_believed():
    policy = make("iql")
    policy.prepare("cpu", freeze_trunk=True)
    batch = batch_for(policy)
    before = policy.believed(batch)
    with torch.no_grad():
        policy.target_network.q.bias[0] += 5
    lifted = policy.believed(batch)
    with torch.no_grad():
        policy.target_network.q.bias[1] -= 5
    assert (lifted < 0.1).all() and (lifted >= before).all() and (policy.believed(batch) < lifted).all()


def test_weights_of_advantages_are_exponential_and_at_most_100():
    weights = advantage_weights(torch.tensor([-0.1, 0.0, 0.1, 3.0]), 0.1)
    torch.testing.assert_close(weights, torch.tensor([0.36788, 1.0, 2.71828, 100.0]), atol=1e-3, rtol=0)


def test_on_a_chain_values_are_near_those_of_value_iteration_and_the_policy_goes_forwards():
    """With the expectile of forwards and backwards, which the data does equally often, in place of the best."""
    policy = walker("iql", discount=0.7)
    fit_to(policy, (steps_on_a_chain(policy, seed) for seed in range(120)), rate=1e-2)
    found = [float(policy.value(history, TEXTS[:1])[0]) for history in at(-3, -1, 1, 3)]
    values = np.zeros(4)
    for _ in range(50):
        ways = np.append(0.7 * values[1:], 1.0), 0.7 * np.append(values[0], values[:-1])
        values = 0.9 * np.maximum(*ways) + 0.1 * np.minimum(*ways)
    assert found == pytest.approx(values.tolist(), abs=0.08)
    assert (policy.act_many(at(-3, -1, 1, 3), TEXTS[:1] * 4) > 0).all()
