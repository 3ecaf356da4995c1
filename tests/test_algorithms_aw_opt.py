"""AW-Opt: its actor learns from successes, by the critic; its critic's search tries what the actor would do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_policies import KITCHEN, TEXTS, at, batch_for, fit_to, make, steps_on_a_chain, walked, walker

from saycan_qt.learning.algorithms.qt_opt import QTOptConfig, draw, maximize

FEW = {"cem_samples": 16, "cem_elites": 4}


def bandit(policy, seed):
    """Actions anywhere, all of episodes that succeeded; those from 0.2 to 0.6 earn 1, others 0.2."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.rand(64, generator=generator) * 2 - 1
    reward = torch.where((actions > 0.2) & (actions < 0.6), 1.0, 0.2)
    here = torch.zeros(64)
    return walked(policy, here, actions, here, reward=reward, terminated=here + 1, demonstrates=here + 1)


def test_the_actor_climbs_the_critic():
    found = []
    for temperature, count in ((0.1, 70), (1e6, 30)):
        policy = walker("aw-opt", temperature=temperature, label_deviation=0.0, **FEW)
        fit_to(policy, (bandit(policy, seed) for seed in range(count)), rate=1e-2)
        density = policy.acting.outputs["behavior"]
        with torch.no_grad():
            hidden, _ = policy.acting.read(policy.remember(policy.acting, at(0), TEXTS[:1]), torch.zeros(1, 0).long())
            likely = density(hidden)[0, 0].softmax(-1)
        middles = policy.tokenizer.decode(torch.arange(256)[:, None])[:, 0]
        found.append(float(likely[(middles > 0.2) & (middles < 0.6)].sum()))
    assert found[0] > 0.8 and found[1] == pytest.approx(0.2, abs=0.1)


@pytest.mark.slow
def test_on_a_chain_values_are_near_those_of_value_iteration_and_the_actor_goes_forwards():
    policy = walker("aw-opt", discount=0.7, **FEW)
    fit_to(policy, (steps_on_a_chain(policy, seed) for seed in range(90)), rate=1e-2)
    values = [float(policy.value(history, TEXTS[:1])[0]) for history in at(-3, -1, 1, 3)]
    assert values == pytest.approx([0.7**3, 0.7**2, 0.7, 1.0], abs=0.1)
    assert (policy.act_many(at(-3, -1, 1, 3), TEXTS[:1] * 4) > 0).all()


def test_failures_teach_the_actor_nothing_and_the_critic_something():
    policy = make("aw-opt")
    policy.prepare("cpu", freeze_trunk=True)
    policy.loss(replace(batch_for(policy), demonstrates=torch.zeros(16)))[0].backward()
    assert not policy.network.outputs["behavior"].weight.grad.any() and policy.network.q.weight.grad.any()


def test_a_proposal_is_tried_in_every_round_and_taken_where_it_is_best():
    goal = torch.tensor([0.99, -0.99, 0.99, -0.99, 0.99, -0.99, 0.5, -1.0])
    draws = draw(QTOptConfig(), KITCHEN, 0, torch.device("cpu"))
    tried = []

    def score(actions):
        tried.append(actions)
        return -(actions - goal).square().sum(-1)

    best, value, _ = maximize(score, draws, KITCHEN, 6, 0.5, goal.expand(2, 1, -1))
    assert torch.equal(best, goal.expand(2, -1)) and (value == 0).all()
    assert [candidates.shape for candidates in tried] == [(2, 65, 8)] * 2


def test_the_search_acts_where_it_is_asked_to_and_finds_no_less_than_the_actors_action():
    policy = make("aw-opt")
    memory = policy.network.encode(*batch_for(policy, 3).now())
    with torch.no_grad():
        actor = policy.decide(policy.network, memory)
        own = policy.network.judge(memory, policy.normalized(actor)[:, None])[:, 0].sigmoid()
        assert (policy.values(policy.network, memory) >= own).all()
        policy.config = replace(policy.config, acts="critic")
        assert not np.array_equal(policy.decide(policy.network, memory), actor)
