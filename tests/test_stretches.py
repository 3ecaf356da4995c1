"""Batches of stretches of episodes, whose windows share frames: the same numbers from fewer passes of the encoder."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from tiny_policies import KINDS, KITCHEN, PAPER_LIKE, TEXTS, make, recorded, texts
from torch import Tensor

from saycan_qt.learning.batches import APART, STRETCH, BatchConfig, Transitions
from saycan_qt.learning.loop import LoopConfig, Run
from saycan_qt.learning.stretches import Order
from saycan_qt.networks import backbone, efficientnet
from saycan_qt.networks.augment import Augmentation, augmented
from saycan_qt.networks.efficientnet import keep_statistics

EYES = replace(KITCHEN, cameras=(KITCHEN.cameras[0], replace(KITCHEN.cameras[0], name="wrist")))
NETWORK = replace(PAPER_LIKE, history=6, cameras=2, layers=1)
CHUNKS = "q-transformer, in chunks"


def policy_of(kind):
    """Its instructions change what is seen, its batch norms have statistics of their own, and so has its target."""
    torch.manual_seed(0)
    algorithm, config, _ = KINDS["q-transformer" if kind == CHUNKS else kind]
    policy = algorithm(replace(NETWORK, chunk=2 if kind == CHUNKS else 1), config, texts(), embodiment=EYES)
    generator = torch.Generator().manual_seed(1)
    for film in (*policy.network.encoder.films, policy.network.encoder.last_film):
        film.layer.weight.data.normal_(0, 0.2, generator=generator)
    for norm in policy.network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
    policy.prepare("cpu", freeze_trunk=True)
    return policy


def drawn(policy, stretch, batch_size=12, **settings):
    data = recorded(EYES, count=8, length=7, size=(32, 32))
    return Transitions(BatchConfig(batch_size, stretch=stretch, **settings), data, list(data.cameras.values()), policy)


def singly(batch):
    """The same samples, each with frames of its own."""
    return replace(batch, frames=batch.frames[batch.places], places=None, spoken=None, alone=(0, 0))


def loss_and_gradients(policy, batch):
    policy.network.zero_grad()
    loss, _ = policy.loss(batch)
    loss.backward()
    return loss.detach(), {key: p.grad for key, p in policy.network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "kind",
    ["q-transformer", CHUNKS, "q-transformer, one-step", "iql", "decision-transformer"]
    + [pytest.param(kind, marks=pytest.mark.slow) for kind in ("rt1", "qt-opt", "aw-opt")],
)
def test_shared_frames_give_the_same_loss_and_the_same_gradients(kind):
    """Where batch norms keep their statistics. Where they take a batch's own, a frame counts once, and otherwise as
    often as windows hold it: nearly the same."""
    policy = policy_of(kind)
    batch = drawn(policy, 4, relabel=0.5, starts=0.2, random_shift=0.1).step_batch(1)
    assert len(batch.frames) < 0.6 * batch.places.numel()
    policy.network.train()
    keep_statistics(policy.network)
    (loss, found), (expected, wanted) = (loss_and_gradients(policy, each) for each in (batch, singly(batch)))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for key in wanted.keys() | found.keys():
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-3, atol=1e-5 * largest)
    policy.network.train()
    with torch.no_grad():
        torch.testing.assert_close(policy.loss(batch)[0], policy.loss(singly(batch))[0], rtol=0.02, atol=0)


def test_a_stretch_holds_what_the_same_samples_drawn_singly_would():
    policy = policy_of("q-transformer")
    stretches, alone = drawn(policy, 4), drawn(policy, 1)

    def batch_of(transitions, mine=slice(None)):
        return transitions.batch(stretches.rows(3), np.random.default_rng(0), augment=False, mine=mine)

    expected, whole = batch_of(alone), singly(batch_of(stretches))
    parts = [singly(batch_of(stretches, mine)) for mine in (slice(6), slice(6, 12))]  # as two processes share it
    for name in (field.name for field in fields(expected) if isinstance(getattr(expected, field.name), Tensor)):
        wanted = getattr(expected, name)
        assert torch.equal(getattr(whole, name), wanted), name
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), wanted), name


@pytest.mark.parametrize(("count", "length"), [(1, 8), (7, 8), (64, 8), (1003, 8), (1003, 1)])
def test_an_epoch_is_whole_and_its_stretches_lie_apart(count, length):
    order = Order(count, length, [3, 1])(np.arange(count))
    assert sorted(order) == list(range(count))
    jumps = (np.diff(order) % count != 1).sum()
    if count == 1003:
        assert jumps >= count // length - 2 - (count // length) // 20
        assert not np.array_equal(order, Order(count, length, [3, 2])(np.arange(count)))
    assert length == 1 or jumps <= -(-count // length)


def test_a_stretch_has_one_instruction_and_the_share_of_those_relabelled_is_as_asked_for():
    batches = drawn(policy_of("rt1"), 4, batch_size=24, relabel=0.5)
    own, others = 0, 0
    for step in range(30):
        batch = batches.step_batch(step)
        episode = batches.dataset.frame_episode[batches.rows(step)]
        told = batches.text[batches.dataset.episode_task[episode]]
        same = (batch.text == told).all(dim=1).numpy()
        own, others = own + same.sum(), others + (~same).sum()
        assert (np.diff(same)[np.diff(episode) == 0] == 0).all()
    assert others / (own + others) == pytest.approx(0.5, abs=0.1)


def test_stretches_are_taken_where_windows_share_what_is_learnt_from_and_are_refused_elsewhere():
    policy = policy_of("rt1")
    assert drawn(policy, 0, batch_size=512).stretch == STRETCH
    assert drawn(policy, 0, batch_size=4 * APART).stretch == 4 and drawn(policy, 0, batch_size=4).stretch == 1
    policy.network_config = replace(policy.network_config, history=1)
    assert drawn(policy, 0, batch_size=512).stretch == 1
    data = recorded(KITCHEN)
    for asked in ({"stretch": 8}, {"random_shift": 0.1}, {"colour_jitter": 0.1}):
        with pytest.raises(ValueError, match="--no-freeze-trunk, or --preset compact"):
            Transitions(BatchConfig(**asked), data, [np.zeros((24, 27, 14), np.float16)], make("rt1"))


@pytest.mark.parametrize("stretch", [1, 4])
def test_frames_of_a_window_move_and_are_recoloured_together(stretch):
    policy = policy_of("q-transformer")
    still, moved = (drawn(policy, stretch, random_shift=share).step_batch(0) for share in (0.0, 0.2))
    before, after = (batch.frames if stretch == 1 else batch.frames[batch.places] for batch in (still, moved))
    assert torch.equal(still.tokens, moved.tokens) and torch.equal(still.states, moved.states)  # no other draw changes
    shifts = set()
    for one, other in zip(before, after, strict=True):
        found = [
            (y, x)
            for y in range(-6, 7)
            for x in range(-6, 7)
            if torch.equal(one.roll((y, x), (1, 2))[:, 6:-6, 6:-6], other[:, 6:-6, 6:-6])
        ]
        assert len(found) == 1
        shifts |= set(found)
    assert len(shifts) > 1


def test_edges_are_repeated_and_colours_are_multiplied():
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 4, 1, 3).expand(-1, -1, 4, -1).contiguous()
    down = augmented(image, np.array([[0.25, 0, 1, 1, 1]], np.float32))
    assert torch.equal(down[0, 1:], image[0, :-1]) and torch.equal(down[0, 0], image[0, 0])
    grey = torch.full((1, 2, 2, 3), 100, dtype=torch.uint8)
    assert (augmented(grey, np.array([[0, 0, 1.2, 1, 0.5]], np.float32)) == 120).all()
    assert (augmented(grey, np.array([[0, 0, 1, 2, 1]], np.float32)) == 72).all()
    red = torch.tensor([200, 0, 0], dtype=torch.uint8).expand(1, 2, 2, 3)
    assert (augmented(red, np.array([[0, 0, 1, 1, 0]], np.float32)) == 60).all()  # its own grey [BT.601]
    halved = augmented(red, np.array([[0, 0, 0.5, 1, 0.5]], np.float32))[0, 0, 0]
    assert halved.tolist() == [65, 15, 15]  # of 100, 0, 0 half way to their grey, 30
    assert not Augmentation() and Augmentation(colour=0.1)


def test_a_norm_that_keeps_its_statistics_is_folded_into_the_convolution_before_it(monkeypatch):
    policy = policy_of("q-transformer")
    batch = drawn(policy, 4).step_batch(0)
    with torch.no_grad():
        found = policy.network.eval().prefix(*batch.now())
        monkeypatch.setattr(efficientnet, "folded", lambda convolution, norm, x: norm(convolution(x)))
        torch.testing.assert_close(found, policy.network.prefix(*batch.now()), rtol=1e-4, atol=1e-5)
        monkeypatch.setattr(backbone, "AT_ONCE", 5)  # more than fit pass in parts
        torch.testing.assert_close(found, policy.network.prefix(*batch.now()), rtol=1e-4, atol=1e-5)


def test_norms_keep_their_statistics_from_the_step_on_that_is_asked_for(tmp_path):
    config = LoopConfig(data=(tmp_path,), out=tmp_path, batches=BatchConfig(batch_size=4), freeze_norm=1)
    run = Run(config, recorded(EYES, count=4, length=7, size=(32, 32)), policy_of("rt1"), TEXTS)
    means = []
    for _ in range(3):
        means.append(run.policy.network.encoder.stem[1].running_mean.clone())
        run.train_step()
    assert not torch.equal(means[0], means[1]) and torch.equal(means[1], means[2])


def test_keypoints_that_are_learnt_share_frames_too():
    policy, data = make("decision-transformer"), recorded(KITCHEN, size=(80, 96))
    batch = Transitions(BatchConfig(batch_size=6, stretch=3), data, [data.images], policy).step_batch(0)
    with torch.no_grad():
        found, expected = (policy.network.eval().prefix(*each.now()) for each in (batch, singly(batch)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
