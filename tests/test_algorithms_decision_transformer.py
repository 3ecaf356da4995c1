"""Decision Transformer: it does what it is asked to earn, and looks back on what was done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_policies import BODIES, TEXTS, at, batch_for, fit_to, make, recorded, walked, walker

from saycan_qt import train
from saycan_qt.learning.algorithms.decision_transformer import DecisionTransformerConfig
from saycan_qt.learning.batches import BatchConfig, Transitions
from skills.types import Observation

BODY = BODIES["OGBench"]


def started(context=3, **batches):
    """A policy and batches of 4 random episodes of 6 steps; the first and the third succeed."""
    config = train.TrainDecisionTransformer(
        data=(), out=None, algorithm=DecisionTransformerConfig(context=context), preset="debug"
    )
    data = recorded(BODY)
    policy, _ = train.new_policy(config, data)
    policy.texts.table |= make("rt1").texts.table
    return policy, Transitions(BatchConfig(**batches), data, [], policy)


def test_it_follows_the_return_that_it_is_asked_for():
    """A bandit: actions above 0 earned 1, others nothing."""
    policy = walker("decision-transformer")

    def bandit(seed):
        actions = torch.rand(64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        return walked(policy, torch.zeros(64), actions, torch.zeros(64), returns=(actions > 0).float())

    fit_to(policy, map(bandit, range(100)))
    for asked in (0.0, 1.0):
        policy.config = replace(policy.config, target_return=asked)
        assert (policy.act(at(0)[0], TEXTS[0])[0] > 0) == (asked == 1)


def test_it_goes_by_what_was_done_before():
    """Nothing but the last action tells which one is right: the same again."""
    policy = walker("decision-transformer")

    def again(seed):
        actions = torch.rand(64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        batch = walked(policy, torch.zeros(64), actions, torch.zeros(64), returns=torch.ones(64))
        return replace(batch, past_tokens=batch.tokens[:, None].expand(-1, 2, -1))

    fit_to(policy, map(again, range(100)))
    for done in (-0.6, 0.6):
        seen = Observation({}, np.zeros(1, np.float32), action=np.array([done], np.float32))
        assert policy.act([seen] * 3, TEXTS[0])[0] * done > 0


def test_a_window_tells_of_past_actions_and_of_what_was_still_to_be_earned():
    policy, batches = started()
    rows = np.array([0, 1, 4, 11])  # of episodes 0, 0, 0 and 1
    batch = batches.batch(rows, np.random.default_rng(0), augment=False)
    encoded = policy.tokenizer.encode(torch.from_numpy(batches.dataset.actions))
    nothing = torch.full((5,), -1)
    expected = [[nothing, nothing], [nothing, encoded[0]], [encoded[2], encoded[3]], [encoded[9], encoded[10]]]
    assert torch.equal(batch.past_tokens, torch.stack([torch.stack(row) for row in expected]))
    assert batch.past_returns.tolist() == [[1, 1], [1, 1], [1, 1], [0, 0]] and batch.returns.tolist() == [1, 1, 1, 0]
    _, relabelled = started(relabel=1.0)
    assert not relabelled.batch(rows, np.random.default_rng(0), augment=False).past_returns.any()


def test_recorded_rewards_are_taken_off_as_they_are_earned():
    _, batches = started(reward="dataset")
    batches.dataset.rewards[:6] = [0, 1, 2, 3, 4, 5]
    batch = batches.batch(np.array([1, 5]), np.random.default_rng(0), augment=False)
    assert batch.past_returns.tolist() == [[15, 15], [12, 9]] and batch.returns.tolist() == [15, 5]


def test_who_does_not_look_back_has_nothing_to_pay():
    policy = make("rt1")
    frames = [np.zeros((24, 27, 14), np.float16)]
    batch = Transitions(BatchConfig(batch_size=4), recorded(policy.embodiment), frames, policy).step_batch(0)
    assert batch.past_tokens is None and batch.past_returns is None


@pytest.mark.parametrize("row", [0, 1, 2, 5])
def test_it_acts_on_what_it_was_trained_on(row):
    """The same window, from a dataset and from a robot's observations."""
    policy, batches = started()
    data, batch = batches.dataset, batches.batch(np.array([row]), np.random.default_rng(0), augment=False)
    before = [None, *data.actions[:row]]
    history = [Observation({}, data.states[i], action=before[i]) for i in range(row + 1)][-3:]
    with torch.no_grad():
        seen = policy.remember(policy.acting, [history], [TEXTS[0]])
        returns = torch.ones(1, 3)
        expected = policy.acting.recall(batch.now(), batch.past_tokens, returns)
    for (keys, values), (other_keys, other_values) in zip(seen, expected, strict=True):
        torch.testing.assert_close(keys, other_keys)
        torch.testing.assert_close(values, other_values)


def test_observations_that_do_not_say_what_was_done_are_refused_in_one_line():
    policy, batches = started()
    history = [Observation({}, state) for state in batches.dataset.states[:2]]
    with pytest.raises(ValueError, match="looks back on its actions") as refusal:
        policy.act(history, TEXTS[0])
    assert "\n" not in str(refusal.value)
    policy.act(history[:1], TEXTS[0])  # the first one


@pytest.mark.parametrize("context", [0, 17])
def test_a_window_beyond_what_servers_keep_is_refused(context):
    with pytest.raises(ValueError, match=f"--context {context}: it must be 1 to 16"):
        train.check(train.TrainDecisionTransformer((), None, algorithm=DecisionTransformerConfig(context=context)))


def test_cached_decoding_equals_the_arg_max_without_a_cache():
    policy = make("decision-transformer")
    batch, network = batch_for(policy, 5), policy.network.eval()
    with torch.no_grad():
        memory = network.recall(batch.now(), batch.past_tokens, torch.ones(5, 3))
        decoded = network.decode(memory, lambda hidden, dim: policy.choose(network, hidden, dim))
        hidden, _ = network.read(memory, decoded[:, :-1])
        again = [policy.choose(network, hidden[:, dim], dim) for dim in range(network.dims)]
    assert torch.equal(decoded, torch.stack(again, dim=1))
