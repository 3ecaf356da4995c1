"""Several actions chosen together: what is learnt of them, where an episode ends within, and how robots get them."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_algorithms_bodies import started
from test_chunks import Driver, rows_of, service, skill_server
from tiny_policies import BODIES, TEXTS, batch_for, body, make, recorded, seen_by, texts

from saycan_qt import train
from saycan_qt.learning import checkpoint
from saycan_qt.learning.algorithms.policy import behavior_loss
from saycan_qt.learning.algorithms.q_transformer import (
    QTransformer,
    QTransformerConfig,
    dimension_targets,
    is_last,
    q_loss,
)
from saycan_qt.learning.batches import BatchConfig, Transitions
from saycan_qt.networks.backbone import DEBUG_FILM, StateConfig
from skills.types import BatchedChunkedActor, Observation, gives_chunks

CART = body({"push": (-1, 1, "", "delta"), "lift": (0, 1, "", "delta")}, "", 9, 30)
CHUNKED = ("rt1", "q-transformer")
GAMMA = 0.5


@pytest.fixture(autouse=True)
def cart(monkeypatch):
    monkeypatch.setitem(BODIES, "cart", CART)


def transitions(chunk, history=1, robot=CART, reward="dataset", **data):
    """Of two episodes of five and of three steps, the second of which succeeds; action i is i / 10, and costs i."""
    start, frames = np.array([0, 5, 8]), np.arange(8)
    given = SimpleNamespace(**vars(recorded(robot, 1, 8)))
    given.episode_start, given.frame_episode = start, np.repeat([0, 1], [5, 3])
    given.episode_task, given.success, given.finished = np.array([0, 1]), np.array([False, True]), np.ones(2, bool)
    given.actions = np.stack([frames / 10] * len(robot.action), axis=1).astype(np.float32)
    given.states = np.repeat(frames[:, None], len(robot.state), axis=1).astype(np.float32)
    given.rewards = -frames.astype(np.float32)
    network = replace(DEBUG_FILM, history=history, chunk=chunk).fitted(robot, StateConfig.typical(robot))
    policy = QTransformer(network, QTransformerConfig(discount=GAMMA), texts(), embodiment=robot)
    frames = list(given.cameras.values())
    return Transitions(BatchConfig(reward=reward, stretch=1), given, frames, policy)


def batch(rows, *arguments, **options):
    found = transitions(*arguments, **options)
    return found.batch(np.array(rows), np.random.default_rng(0), augment=False)


# ---- what is learnt


def test_rewards_add_up_over_a_chunk_and_an_end_within_ends_it():
    found = batch([0, 2, 3, 5], 3)
    assert found.reward.tolist() == [-(0 + 0.5 + 0.5), -(2 + 1.5 + 1), -(3 + 2), -(5 + 3 + 1.75)]
    assert found.terminated.tolist() == [0, 1, 1, 1]
    assert found.there[:, ::2].tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]]
    assert found.next_there[0].tolist() == [1, 1, 1, 1, 0, 0]
    assert torch.equal(found.there[:, ::2], found.there[:, 1::2])


def test_success_is_worth_1_at_the_step_where_it_comes():
    found = batch([4, 5, 6, 7], 2, reward="success")
    assert found.reward.tolist() == [0, 0, GAMMA, 1] and found.returns.tolist() == [0, GAMMA**2, GAMMA, 1]


def test_a_chunk_holds_the_actions_that_follow_and_after_the_end_the_last_again():
    found = batch([1, 3], 3)
    np.testing.assert_allclose(found.actions[:, ::2], [[0.1, 0.2, 0.3], [0.3, 0.4, 0.4]], atol=1e-6)
    policy = transitions(3).policy
    acted = policy.tokenizer.decode(found.tokens.unflatten(1, (3, 2)))
    np.testing.assert_allclose(acted.flatten(1), found.actions, atol=0.5 * 2 / 256 + 1e-6)
    np.testing.assert_allclose(policy.tokenizer.decode(found.next_tokens.unflatten(1, (3, 2)))[0, :, 0], 0.4, atol=0.01)


@pytest.mark.parametrize(("chunk", "history"), [(1, 1), (1, 3), (2, 3), (2, 2), (4, 2), (3, 1)])
def test_the_next_window_ends_a_chunk_later(chunk, history):
    found = batch([0, 1], chunk, history)
    for (_, states, _), at in ((found.now(), 0), (found.next(), chunk)):
        expected = [np.clip(row + at + np.arange(1 - history, 1), 0, 4) for row in (0, 1)]
        np.testing.assert_array_equal(states[..., 0], expected)


def test_the_images_of_all_cameras_move_with_the_window():
    given = transitions(2, 2, BODIES["SO-101"])
    found = given.batch(np.array([1]), np.random.default_rng(0), augment=False)
    for (frames, _, _), times in ((found.now(), (0, 1)), (found.next(), (2, 3))):
        assert frames.shape[1] == 4
        for number, images in enumerate(given.dataset.cameras.values()):
            np.testing.assert_array_equal(frames[0, number::2], images[list(times)])


# A chain of five states: a push goes one to the right, nothing else moves. It costs 1, and beyond the last it is over.


def test_targets_of_chunks_on_a_chain_worked_by_hand():
    """Two steps of one dimension each, from states 0, 3 and 4; the last chunk ends after its first step. A return to go
    of n steps is 1 + 1/2 + ... less than nothing."""
    value = torch.tensor([-(2 - 0.5 ** (4 - s)) for s in range(5)] + [0.0])
    there = torch.tensor([[1.0, 1], [1, 1], [1, 0]])
    q_best = torch.tensor([[value[0], -9], [value[3], -9], [value[4], -9]])  # -9: of no meaning, or of no such step
    reward, ends = torch.tensor([-1.5, -1.5, -1]), torch.tensor([0.0, 1, 1])
    after = value[[2, 0, 0]]  # of the last two there is none
    for n_step in (False, True):
        targets = dimension_targets(q_best, after, reward, ends, GAMMA**2, n_step, there)
        assert targets[:, 0].tolist() == ([-9, -9, -1] if not n_step else [-1.5 + 0.25 * float(value[2]), -1.5, -1])
        assert targets[:2, 1].tolist() == [-1.5 + 0.25 * float(value[2]), -1.5]
    assert is_last(there).tolist() == [[False, True], [False, True], [True, False]]


def chain(state, push):
    """(next state, reward, terminated)."""
    after = state + push
    return min(after, 3), -1.0, float(after > 3)


def test_values_of_chunks_match_value_iteration_on_a_four_state_chain():
    """Q over two steps by Eq. 1 and over one step at a time agree, where the best thing is to go on."""
    plans = [(s, a, b) for s in range(4) for a in range(2) for b in range(2)]
    first, second = torch.zeros(4, 2), torch.zeros(4, 2, 2)
    rows = []
    for s, a, b in plans:
        middle, reward, over = chain(s, a)
        after, more, end = (middle, 0.0, 1.0) if over else chain(middle, b)
        rows.append((after, reward + GAMMA * more, max(over, end), [1.0, 1 - over]))
    after, reward, ends, there = (torch.tensor(column) for column in zip(*rows, strict=True))
    s, a, b = torch.tensor(plans).T
    for _ in range(60):
        known = torch.where(is_last(there)[:, 0], first[s, a], second.amax(-1)[s, a])  # an end leaves no second step
        q_best = torch.stack([known, second.amax(-1)[s, a]], dim=1)
        targets = dimension_targets(q_best, first.amax(-1)[after], reward, ends, GAMMA**2, False, there)
        first, second = first.index_put((s, a), targets[:, 0]), second.index_put((s, a, b), targets[:, 1])
    values = torch.zeros(5)
    for _ in range(60):
        values[:4] = torch.tensor(
            [max(r + GAMMA * (1 - e) * float(values[n]) for n, r, e in map(chain, [i] * 2, (0, 1))) for i in range(4)]
        )
    torch.testing.assert_close(first.amax(-1), values[:4])


def test_what_comes_after_an_end_changes_no_loss():
    logits, tokens = torch.randn(2, 4, 8), torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])
    other, there = tokens.clone(), torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    other[1, 2:] = 7
    for loss in (
        lambda t: q_loss(logits, t, torch.full((2, 4), 0.5), 1.0, "paper", "squared", there=there)[0],
        lambda t: behavior_loss(logits, t, torch.ones(2), 1.0, slice(1, None, 2), there)[0],
    ):
        assert torch.equal(loss(tokens), loss(other))


def test_a_mask_of_ones_is_no_mask():
    for kind in ("q-transformer", "q-transformer, one-step", "rt1", "q-transformer, constrained"):
        policy = make(kind)
        policy.prepare("cpu", freeze_trunk=True)
        given, ones = batch_for(policy), torch.ones(16, 8)
        torch.testing.assert_close(policy.loss(given)[0], policy.loss(replace(given, there=ones, next_there=ones))[0])


def test_a_next_chunk_that_is_cut_is_judged_at_its_last_action():
    policy = transitions(2).policy
    policy.prepare("cpu", freeze_trunk=True)
    found = batch([2], 2)
    assert found.terminated.tolist() == [0] and found.next_there.tolist() == [[1, 1, 0, 0]]
    policy.config = replace(policy.config, value_low=-40.0, value_high=0.0, monte_carlo=False)
    with torch.no_grad():
        network = policy.target_network
        hidden, _ = network.read(network.encode(*found.next()), found.next_tokens[:, :-1])
        best = policy.as_return(network.outputs["q"](hidden).amax(-1))[0, 1]
    expected = policy.as_q(-3.5 + GAMMA**2 * best, torch.tensor(0.0))
    torch.testing.assert_close(policy.targets(found), expected.expand(1, 4))


# ---- training and acting


@pytest.mark.parametrize("algorithm", CHUNKED)
@pytest.mark.parametrize("name", ["cart", "LIBERO"])
def test_chunks_are_trained_saved_and_acted_alike(algorithm, name, tmp_path):
    run, robot = started(tmp_path, name, algorithm, "--chunk", "3"), BODIES[name]
    run.train()
    policy = checkpoint.load(tmp_path / "checkpoint")
    history, nothing = [seen_by(robot)], np.zeros((0, len(robot.action)), np.float32)
    rows = policy.act_chunk(history, TEXTS[0], nothing)
    assert isinstance(policy, BatchedChunkedActor) and policy.chunk == 3 and rows.dtype == np.float32
    assert rows.shape == (3, len(robot.action)) and ((rows >= robot.low) & (rows <= robot.high)).all()
    np.testing.assert_array_equal(rows, run.policy.act_chunk(history, TEXTS[0], nothing))
    np.testing.assert_array_equal(rows[0], policy.act(history, TEXTS[0]))
    many = policy.act_chunks([history, [seen_by(robot, 1)]], TEXTS[:2], [nothing, nothing])
    np.testing.assert_array_equal(many[0], rows)


def test_committed_actions_stay_and_the_others_follow_them(tmp_path):
    policy = started(tmp_path, "cart", "q-transformer", "--chunk", "3").policy
    torch.nn.init.normal_(policy.acting.outputs["q"].weight)
    history = [seen_by(CART)]
    free = policy.act_chunk(history, TEXTS[0], np.zeros((0, 2)))
    np.testing.assert_array_equal(policy.act_chunk(history, TEXTS[0], free[:2]), free)
    committed = np.float32([[0.123, 0.9], [-0.5, 0.2], [1, 1], [0, 0]])
    bound = policy.act_chunks([history] * 3, TEXTS, [committed[:1], committed[:2], committed])
    np.testing.assert_array_equal(bound[0][:1], committed[:1])
    np.testing.assert_array_equal(bound[1][:2], committed[:2])
    np.testing.assert_array_equal(bound[2], committed[:3])
    others = [policy.act_chunk(history, TEXTS[0], np.float32([[push, 0.5]]))[1:] for push in np.linspace(-1, 1, 9)]
    assert any(not np.array_equal(others[0], other) for other in others)


def test_every_step_of_a_chunk_ends_on_its_own(tmp_path):
    policy = started(tmp_path, "LIBERO", "rt1", "--chunk", "2").policy
    assert [dim for dim in range(14) if policy.terminates(dim)] == [6, 13] == list(range(14))[policy.ends]
    head, last = policy.acting.outputs["behavior"], policy.network_config.bins - 1
    for dim, chosen in ((6, 0), (13, last)):
        torch.nn.init.zeros_(head.weight[dim])
        head.bias.data[dim, 0, chosen] = 9.0
    rows = policy.act_chunk([seen_by(BODIES["LIBERO"])], TEXTS[0], np.zeros((0, 7)))
    assert [policy.embodiment.ends(row) for row in rows] == [False, True]


def test_checkpoints_of_before_there_were_chunks_act_as_they_did(tmp_path):
    run = started(tmp_path, "cart", "q-transformer")
    described, tensors = run.policy.describe(TEXTS)
    assert described["network"].pop("chunk") == 1
    checkpoint.save(tmp_path / "old", described, tensors, {})
    old = checkpoint.load(tmp_path / "old")
    assert old.chunk == 1 and not gives_chunks(old)
    np.testing.assert_array_equal(old.act([seen_by(CART)], TEXTS[0]), run.policy.act([seen_by(CART)], TEXTS[0]))


def test_a_run_of_before_goes_on_and_one_with_another_chunk_does_not(tmp_path):
    config = train.command(["rt1", "--data", ".", "--out", str(tmp_path), "--chunk", "3"])
    train.remember(replace(config, chunk=1), "RT1Config", "")
    started(tmp_path, "cart", "rt1").save()
    told = json.loads((tmp_path / "config.json").read_text())
    del told["chunk"]
    (tmp_path / "config.json").write_text(json.dumps(told))
    train.remember(replace(config, chunk=1), "RT1Config", "")
    with pytest.raises(ValueError, match="a run with another chunk"):
        train.remember(config, "RT1Config", "")


def test_who_cannot_act_in_chunks_says_so_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"qt-opt acts step by step; leave out --chunk 3"):
        started(tmp_path, "cart", "qt-opt", "--chunk", "3")
    with pytest.raises(ValueError, match="chunk"):
        train.check(train.command(["rt1", "--data", ".", "--out", str(tmp_path), "--chunk", "0"]))
    started(tmp_path, "cart", "rt1", "--chunk", "3").train()
    with pytest.raises(ValueError, match=r"acts in chunks of 3, not of --chunk 2"):
        started(tmp_path / "2", "cart", "rt1", "--chunk", "2", "--init", str(tmp_path / "checkpoint"))


# ---- served


class Cart(Driver):
    """A driver of a body whose actions mean something."""

    def observe(self):
        super().observe()
        return Observation({}, np.append(self._state, np.float32(0)))

    def apply(self, action):
        self.applied = [*getattr(self, "applied", []), action]
        super().apply(np.zeros(2))


@pytest.mark.parametrize("rule", ["replace", "continue"])
def test_a_trained_policy_is_served_in_chunks_at_30_hz(rule, tmp_path):
    started(tmp_path, "cart", "q-transformer", "--chunk", "8").train()
    robot, policy = Cart(CART), checkpoint.load(tmp_path / "checkpoint")
    policy.know(["pick apple"])
    asked, act_chunk = [], policy.act_chunk
    policy.act_chunk = lambda *question: asked.append(act_chunk(*question)) or asked[-1]
    with skill_server(policy) as address, service(address, robot, chunks=rule, max_steps=30) as client:
        *_, outcome = client.execute("pick apple")
    assert outcome.steps == 30 == len(rows_of(robot)) and 3 <= len(asked) < 30
    given = {tuple(row) for chunk in asked for row in chunk}
    assert all(tuple(action) in given for action in robot.applied)
