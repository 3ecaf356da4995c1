"""QT-Opt: its search, its two targets, CQL's penalty; that it learns, and goes on as if never stopped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_policies import KITCHEN, TEXTS, batch_for, make, observation, recorded

from saycan_qt import train
from saycan_qt.learning.algorithms.qt_opt import QTOptConfig, clipped_double_target, cql_penalty, draw, maximize
from saycan_qt.learning.loop import Run

GOAL = torch.tensor([-0.5, 0.5, 0.2, 0.0, -0.3, 0.7, 1.0, -1.0])  # normalised; closed, not terminating
CPU = torch.device("cpu")


def prepared(**settings):
    policy = make("qt-opt")
    policy.config = replace(policy.config, **settings)
    policy.prepare("cpu", freeze_trunk=True)
    return policy


def steps(policy, batches, rate=3e-3):
    optimizer = torch.optim.AdamW([p for p in policy.network.parameters() if p.requires_grad], rate)
    for batch in batches:
        optimizer.zero_grad()
        policy.loss(batch)[0].backward()
        optimizer.step()
        policy.after_step(0.05)


def test_the_search_finds_the_greatest_value_of_a_quadratic():
    draws = draw(QTOptConfig(cem_iterations=12), KITCHEN, 0, CPU)
    best, score, elites = maximize(lambda actions: -(actions - GOAL).square().sum(-1), draws, KITCHEN, 6, 0.5)
    assert float((best - GOAL).norm()) < 0.2 and float(score) == -float((best - GOAL).square().sum())
    assert elites.shape == (1, 6, 8) and best[0, -1] == -1


def test_a_second_round_comes_closer_than_the_first_and_every_state_has_its_own_best():
    goals = torch.stack([GOAL, -GOAL])[:, None]

    def score(actions):
        return -(actions - goals).square().sum(-1)

    searches = [draw(QTOptConfig(cem_iterations=n), KITCHEN, 0, CPU) for n in (1, 2)]
    one, two = (maximize(score, draws, KITCHEN, 6, 0.5) for draws in searches)
    assert (two[1] > one[1]).all() and (two[0] * torch.stack([GOAL, -GOAL])).sum(-1).min() > 0


def test_targets_worked_by_hand_take_the_smaller_value_and_stop_at_the_end():
    one, two = torch.tensor([0.5, 0.9, 0.9]), torch.tensor([0.8, 0.6, 0.9])
    targets = clipped_double_target(one, two, torch.tensor([0.0, 0.1, 1.0]), torch.tensor([0.0, 0.0, 1.0]), 0.9)
    torch.testing.assert_close(targets, torch.tensor([0.45, 0.64, 1.0]))


@pytest.mark.parametrize("name", ["target_network", "lagged_network"])
def test_either_target_network_can_hold_a_target_down(name):
    policy = prepared()
    batch = batch_for(policy)
    before = policy.targets(batch, draw(policy.config, KITCHEN, 0, CPU))
    torch.nn.init.constant_(getattr(policy, name).q.bias, -50.0)
    after = policy.targets(batch, draw(policy.config, KITCHEN, 0, CPU))
    torch.testing.assert_close(after, batch.reward)
    assert (before > after)[batch.terminated == 0].all()


def test_monte_carlo_returns_lift_targets_only_when_asked_for():
    for asked in (False, True):
        policy = prepared(monte_carlo=asked)
        batch = batch_for(policy)
        lifted = policy.targets(batch, draw(policy.config, KITCHEN, 0, CPU)) >= batch.returns - 1e-6
        assert bool(lifted.all()) == asked


def test_the_second_target_follows_the_first_which_follows_the_weights():
    policy = prepared(target_lag=0.5)
    with torch.no_grad():
        policy.network.q.bias.add_(1.0)
    policy.after_step(0.1)
    moved = [float(network.q.bias.detach()) + 4 for network in (policy.target_network, policy.lagged_network)]
    assert moved == pytest.approx([0.1, 0.1 * 0.1 / 0.5], abs=1e-5)


def test_the_penalty_lifts_the_action_of_the_data_and_lowers_the_others():
    logits = torch.zeros(1, 4, requires_grad=True)
    gradient = torch.autograd.grad(cql_penalty(logits).sum(), logits)[0]
    torch.testing.assert_close(gradient, torch.tensor([[-0.75, 0.25, 0.25, 0.25]]))


def test_conservatism_lowers_actions_that_the_data_lacks():
    unseen = []
    for weight in (0.0, 1.0):
        policy = prepared(cql_weight=weight)
        batch = batch_for(policy)
        steps(policy, [batch] * 30)
        with torch.no_grad():
            memory = policy.network.encode(*batch.now())
            unseen.append(policy.network.judge(memory, draw(policy.config, KITCHEN, 7, CPU).anywhere).sigmoid().mean())
    assert unseen[1] < 0.5 * unseen[0]


@pytest.mark.slow
def test_on_a_one_step_bandit_values_rise_where_the_reward_is_and_actions_go_there():
    """Random actions; those near GOAL in dx and dy are rewarded, whatever the state."""
    policy, rng = prepared(cql_weight=0.0), np.random.default_rng(0)

    def bandit(seed):
        batch = batch_for(policy, 64, seed)
        batch.actions = torch.from_numpy(rng.uniform(KITCHEN.low, KITCHEN.high, (64, 8)).astype(np.float32))
        near = (policy.normalized(batch.actions) - GOAL)[:, :2].norm(dim=-1) < 0.4
        return replace(batch, reward=near.float(), terminated=torch.ones(64), seed=seed)

    def distance():
        actions = policy.act_many([[observation(policy, seed)] for seed in range(3)], TEXTS)
        return float((policy.normalized(torch.from_numpy(actions)) - GOAL)[:, :2].norm(dim=-1).max())

    before = distance()
    steps(policy, map(bandit, range(100)))
    test = bandit(1000)
    with torch.no_grad():
        q = policy.acting.judge(policy.acting.encode(*test.now()), policy.normalized(test.actions)[:, None]).sigmoid()
    assert q[test.reward == 1].mean() > q[test.reward == 0].mean() + 0.5
    assert distance() < 0.4 < before and policy.value([observation(policy)], TEXTS).min() > 0.6


def test_the_search_is_part_of_the_seed_and_of_nothing_else():
    policy = prepared()
    batch = batch_for(policy)
    losses = [float(policy.loss(replace(batch, seed=seed))[0].detach()) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_the_loss_of_a_batch_is_the_mean_of_its_halves():
    """Which is why processes can share a batch."""
    policy = prepared()
    batch = batch_for(policy)
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    halves = [replace(batch, **{k: v[part] for k, v in tensors.items()}) for part in (slice(0, 8), slice(8, 16))]
    whole, *parts = (float(policy.loss(each)[0].detach()) for each in (batch, *halves))
    assert whole == pytest.approx(np.mean(parts), abs=1e-5)


def test_in_bfloat16_every_weight_has_a_gradient_although_the_search_has_none():
    policy = prepared()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = policy.loss(batch_for(policy))
    loss.backward()
    assert all(p.grad is not None for p in policy.network.parameters() if p.requires_grad)


def test_values_of_many_histories_are_those_of_each():
    policy = make("qt-opt")
    histories, asked = [[observation(policy, seed)] for seed in range(3)], [TEXTS[:2], [], TEXTS]
    together = policy.value_many(histories, asked)
    assert [value.shape for value in together] == [(2,), (0,), (3,)] and together[2].dtype == np.float32
    np.testing.assert_allclose(together[2], policy.value(histories[2], TEXTS), atol=1e-6)


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path):
    """The second target and the search's random numbers included."""

    def run(name):
        config = train.TrainQTOpt(data=(tmp_path,), out=tmp_path / name, steps=6)
        config.out.mkdir(exist_ok=True)
        return Run(train.debug_config(config), recorded(KITCHEN, size=(80, 96)), make("qt-opt"), [])

    whole, stopped = run("whole"), run("stopped")
    whole.train()
    for _ in range(3):
        stopped.train_step()
    stopped.save()
    resumed = run("stopped")
    resumed.train()
    for name, module in whole.modules.items():
        pairs = zip(module.state_dict().values(), resumed.modules[name].state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert resumed.first == 3 and set(whole.modules) == {"network", "target", "lagged"}
