"""What holds for every algorithm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_policies import AUTOREGRESSIVE, KINDS, KITCHEN, TEXTS, batch_for, make, observation

from saycan_qt.learning import checkpoint

SLOW = ("qt-opt, efficientnet", "iql, efficientnet", "q-transformer, efficientnet")
every_algorithm = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else []) for kind in KINDS]
)


def train(policy, steps, rate=3e-3):
    policy.prepare("cpu", freeze_trunk=True)
    batch = batch_for(policy)
    optimizer = torch.optim.AdamW([p for p in policy.network.parameters() if p.requires_grad], rate)
    losses = []
    for _ in range(steps):
        loss, metrics = policy.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        policy.after_step(0.01)
        losses.append(float(metrics["loss"]))
    return losses


@every_algorithm
def test_loss_falls_when_one_batch_is_repeated(kind):
    losses = train(make(kind), 15, rate=1e-2)
    assert losses[-1] < 0.9 * losses[0], losses


@every_algorithm
def test_same_seed_gives_the_same_weights(kind):
    runs = [make(kind), make(kind)]
    assert train(runs[0], 3) == train(runs[1], 3)
    pairs = zip(runs[0].acting.state_dict().values(), runs[1].acting.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@every_algorithm
def test_a_policy_acts_alike_after_saving_and_loading(kind, tmp_path):
    policy = make(kind)
    train(policy, 2)
    checkpoint.save(tmp_path / "policy", *policy.describe(TEXTS), provenance={})
    loaded = checkpoint.load(tmp_path / "policy")
    history = [observation(policy)]
    np.testing.assert_array_equal(policy.act(history, TEXTS[0]), loaded.act(history, TEXTS[0]))
    if hasattr(policy, "value"):
        np.testing.assert_array_equal(policy.value(history, TEXTS), loaded.value(history, TEXTS))


@every_algorithm
def test_actions_stay_in_range_and_a_batch_acts_as_its_rows_do(kind):
    policy = make(kind)
    histories = [[observation(policy, seed)] for seed in range(3)]
    actions = policy.act_many(histories, TEXTS)
    assert ((actions >= KITCHEN.low) & (actions <= KITCHEN.high)).all()
    for history, text, action in zip(histories, TEXTS, actions, strict=True):
        np.testing.assert_array_equal(policy.act(history, text), action)


@pytest.mark.parametrize("kind", AUTOREGRESSIVE)
def test_cached_decoding_equals_the_arg_max_without_a_cache(kind):
    policy = make(kind)
    train(policy, 3)
    network, batch = policy.acting, batch_for(policy, 5)
    with torch.no_grad():
        memory = network.encode(*batch.now())
        decoded = network.decode(memory, lambda hidden, dim: policy.choose(network, hidden, dim))
        hidden, _ = network.read(memory, decoded[:, :-1])  # all dimensions at once
        again = [policy.choose(network, hidden[:, dim], dim) for dim in range(network.dims)]
    assert torch.equal(decoded, torch.stack(again, dim=1))


def test_an_image_of_another_size_is_refused_with_both_sizes():
    policy = make("rt1")
    wrong = observation(make("q-transformer, efficientnet"))
    with pytest.raises(ValueError, match=r"\(32, 32, 3\).*\(80, 96, 3\)"):
        policy.act([wrong], TEXTS[0])


def test_later_action_dimensions_do_not_change_earlier_outputs():
    policy = make("rt1")
    batch = batch_for(policy, 2)
    with torch.no_grad():
        memory = policy.network.encode(*batch.now())
        hidden, _ = policy.network.read(memory, batch.tokens[:, :-1])
        changed = batch.tokens.clone()
        changed[:, 4] = (changed[:, 4] + 100) % 256
        other, _ = policy.network.read(memory, changed[:, :-1])
    torch.testing.assert_close(hidden[:, :5], other[:, :5])
    assert not torch.allclose(hidden[:, 5], other[:, 5])


def test_film_starts_as_the_identity_and_text_enters_through_it():
    policy = make("q-transformer, efficientnet")
    batch, encoder = batch_for(policy, 2), policy.network.eval().encoder
    maps = encoder.perceive(batch.frames[:, 0])[:, None]
    with torch.no_grad():
        fresh = [encoder(maps, batch.states, text) for text in (batch.text, -batch.text)]
        torch.nn.init.normal_(encoder.films[0].layer.weight)
        moved = [encoder(maps, batch.states, text) for text in (batch.text, -batch.text)]
    assert torch.equal(*fresh) and not torch.equal(*moved)
