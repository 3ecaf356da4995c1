"""The paper's equations: Eq. 1 and 2, sections 4.1-4.3, appendices A-D, on numbers worked by hand and on tables."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_policies import KINDS, TEXTS, at, batch_for, body, fit_to, make, observation, texts, walked, walker

from saycan_qt.learning.algorithms.policy import smooth_probabilities
from saycan_qt.learning.algorithms.q_transformer import QTransformerConfig, dimension_targets, q_loss, shares
from saycan_qt.networks.backbone import BinHead

GAMMA = 0.9
Q_BEST = torch.tensor([[0.2, 0.5, 0.4], [0.3, 0.1, 0.6]])  # two transitions, three action dimensions
NEXT = torch.tensor([0.7, 0.8])


def test_targets_of_each_dimension_worked_by_hand():
    """The first row goes on, the second one ends in success."""
    targets = dimension_targets(Q_BEST, NEXT, torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]), GAMMA, n_step=False)
    torch.testing.assert_close(targets, torch.tensor([[0.5, 0.4, 0.63], [0.1, 0.6, 1.0]]))


def test_only_the_last_action_dimension_sees_the_next_step_and_the_reward():
    one = dimension_targets(Q_BEST, NEXT, torch.zeros(2), torch.zeros(2), GAMMA, n_step=False)
    two = dimension_targets(Q_BEST, NEXT / 2, torch.full((2,), 0.1), torch.zeros(2), GAMMA, n_step=False)
    assert torch.equal(one[:, :-1], two[:, :-1]) and (one[:, -1] != two[:, -1]).all()


def test_termination_masks_the_bootstrap_so_a_timed_out_failure_is_worth_nothing():
    for n_step in (False, True):
        targets = dimension_targets(Q_BEST, NEXT, torch.zeros(2), torch.ones(2), GAMMA, n_step)
        assert torch.equal(targets[:, -1], torch.zeros(2))


def test_n_step_gives_every_dimension_the_target_of_the_last():
    targets = dimension_targets(Q_BEST, NEXT, torch.zeros(2), torch.zeros(2), GAMMA, n_step=True)
    torch.testing.assert_close(targets, (GAMMA * NEXT)[:, None].expand(2, 3))


# A chain of four states; an action has two dimensions of three bins, and its pair decides where it leads.


def chain(state, first, second):
    """(next state, reward, terminated). (2, 0) goes right, (0, 1) back, others stay; right of the last is success."""
    if (first, second) == (2, 0):
        return (state, 1.0, 1.0) if state == 3 else (state + 1, 0.0, 0.0)
    return (max(state - 1, 0) if (first, second) == (0, 1) else state), 0.0, 0.0


EVERY = [(s, a, b, *chain(s, a, b)) for s in range(4) for a in range(3) for b in range(3)]
STATE, FIRST, SECOND, AFTER = (torch.tensor([row[i] for row in EVERY]) for i in range(4))
REWARD, ENDS = (torch.tensor([row[i] for row in EVERY]) for i in (4, 5))


def backed_up(q_first, q_second, gamma):
    """One sweep of Eq. 1 over tables Q(s, a1) and Q(s, a1, a2)."""
    q_best = torch.stack([q_first.amax(-1)[STATE], q_second.amax(-1)[STATE, FIRST]], dim=1)
    targets = dimension_targets(q_best, q_first.amax(-1)[AFTER], REWARD, ENDS, gamma, n_step=False)
    return targets[:, 0].view(4, 3, 3)[:, :, 0], targets[:, 1].view(4, 3, 3)


def test_values_match_value_iteration_on_a_four_state_chain():
    """Appendix A: the best value over the first dimension is the value of the whole action."""
    q_first, q_second = torch.rand(4, 3), torch.rand(4, 3, 3)
    values = np.zeros(4)
    for _ in range(300):
        q_first, q_second = backed_up(q_first, q_second, GAMMA)
        outcomes = [[chain(s, a, b) for a in range(3) for b in range(3)] for s in range(4)]
        values = np.array([max(r + GAMMA * (1 - end) * values[after] for after, r, end in row) for row in outcomes])
    np.testing.assert_allclose(q_first.amax(-1), values, atol=1e-6)
    np.testing.assert_allclose(values, [GAMMA**3, GAMMA**2, GAMMA, 1.0])


def test_the_backup_is_a_contraction_after_as_many_sweeps_as_dimensions():
    """Appendix B: never an expansion, and by gamma once every dimension has been passed."""
    torch.manual_seed(0)
    one, two = ((torch.rand(4, 3), torch.rand(4, 3, 3)) for _ in range(2))
    distances = []
    for _ in range(7):
        distances.append(max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True)))
        one, two = backed_up(*one, GAMMA), backed_up(*two, GAMMA)
    for now, later, after_both in zip(distances, distances[1:], distances[2:], strict=False):
        assert later <= now + 1e-6 and after_both <= GAMMA * now + 1e-6


@pytest.mark.parametrize("alpha", [0.3, 1.0, 20.0])
def test_the_tabular_fixed_point_is_the_behaviour_weighted_backup(alpha):
    """Appendix C, Eq. 4: Q = m B*Q with m = pi / (pi + alpha pi~), pi~ = (1 - pi) / (N - 1)."""
    tokens = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)[:, None]  # behaviour .5, .3, .2
    pi, backup = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.9, 0.5, 1.0])
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss, _ = q_loss(logits.expand(10, 1, 3), tokens, backup[tokens], alpha, "paper", "squared")
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = pi / (pi + alpha * (1 - pi) / 2) * backup
    torch.testing.assert_close(logits.detach().sigmoid(), expected, atol=1e-3, rtol=0)


def test_the_loss_worked_by_hand():
    """Algorithm 1: half the squared error at the dataset's bin, half the mean square of the N - 1 others."""
    q = torch.tensor([[[0.5, 0.2, 0.4]]])
    loss, _ = q_loss(q.logit(), torch.tensor([[0]]), torch.tensor([[0.8]]), 1.0, "paper", "squared")
    assert float(loss) == pytest.approx(0.5 * 0.3**2 + 0.5 * (0.2**2 + 0.4**2) / 2)


def test_a_label_spread_over_neighbours_draws_each_bin_by_its_part_and_pulls_it_by_the_rest():
    q, tokens, targets = torch.tensor([[[0.5, 0.2, 0.4]]]), torch.tensor([[0]]), torch.tensor([[0.8]])
    share = shares(tokens, 3, torch.tensor([2.0]))
    near, far = math.exp(-1 / 8), math.exp(-4 / 8)
    torch.testing.assert_close(share[0, 0], torch.tensor([1.0, near, far]))
    loss, _ = q_loss(q.logit(), tokens, targets, 0.3, "paper", "squared", share)
    td = 0.5 * (0.3**2 + near * 0.6**2 + far * 0.4**2) / (1 + near + far)
    pull = 0.5 * ((1 - near) * 0.2**2 + (1 - far) * 0.4**2) / (2 - near - far)
    assert float(loss) == pytest.approx(td + 0.3 * pull)


@pytest.mark.parametrize("kind", ["squared", "cross_entropy"])
def test_a_label_that_is_not_spread_is_the_papers(kind):
    logits, tokens, targets = torch.randn(5, 3, 7), torch.randint(7, (5, 3)), torch.rand(5, 3)
    share = shares(tokens, 7, torch.zeros(3))
    (spread, _), (plain, _) = (q_loss(logits, tokens, targets, 0.7, "paper", kind, each) for each in (share, None))
    torch.testing.assert_close(spread, plain)


def test_grippers_and_ends_keep_single_bins_and_motion_does_not():
    policy = make("q-transformer")
    policy.config = replace(policy.config, td_deviation=3.0)
    kinds = [dimension.kind for dimension in policy.embodiment.action]
    assert policy.deviations.tolist() == [0.0 if kind in ("fraction", "terminate") else 3.0 for kind in kinds]
    assert kinds.count("delta") == 6


def test_densities_are_averaged_over_the_bins_there_are():
    kernel = [math.exp(-0.5 * distance**2) for distance in range(3)]
    smooth = smooth_probabilities(torch.tensor([[1.0, 0.0, 0.0]]), 1.0)[0]
    masses = [sum(kernel[abs(i - j)] for j in range(3)) for i in range(3)]
    torch.testing.assert_close(smooth, torch.tensor([kernel[i] / masses[i] for i in range(3)]))


def test_values_are_summed_over_bins_in_float32_whatever_the_rest_is_computed_in():
    head = BinHead(2, 8, 5)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = torch.randn(3, 2, 8, dtype=torch.bfloat16)
        assert head(hidden).dtype == head.one(hidden[:, 1], 1).dtype == torch.float32
        torch.testing.assert_close(head.one(hidden[:, 1], 1), head(hidden)[:, 1], rtol=0, atol=0)


def test_without_conservatism_other_bins_are_left_alone_and_softmax_lifts_the_dataset_bin():
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    for kind in ("none", "softmax"):
        loss, _ = q_loss(logits, torch.tensor([[1]]), torch.tensor([[0.5]]), 1.0, kind, "squared")
        gradient = torch.autograd.grad(loss, logits)[0][0, 0]
        assert gradient[1] <= 0 and (gradient[[0, 2, 3]].abs().sum() == 0) == (kind == "none")


def test_reward_moves_the_loss():
    policy = make("q-transformer")
    policy.prepare("cpu", freeze_trunk=True)
    batch = replace(batch_for(policy), returns=torch.zeros(16), reward=torch.zeros(16), terminated=torch.ones(16))
    rewarded = replace(batch, reward=torch.ones(16))
    assert policy.targets(batch).max() == 0 and policy.targets(rewarded).min() == 1
    assert policy.loss(rewarded)[0] > policy.loss(batch)[0] + 0.3


def test_with_other_rewards_the_pull_is_towards_the_smallest_possible_return():
    """Section 4.2: R_min * T. A step costs 1 and success brings 10 within ten steps; Q is the sigmoid between."""
    policy = make("q-transformer")
    policy.prepare("cpu", freeze_trunk=True)
    policy.config = replace(policy.config, value_low=-10.0, value_high=10.0)
    ends = replace(
        batch_for(policy), reward=torch.full((16,), -1.0), returns=torch.full((16,), -1.0), terminated=torch.ones(16)
    )
    torch.testing.assert_close(policy.targets(ends), torch.full((16, 8), 0.45))
    going = replace(ends, terminated=torch.zeros(16), returns=torch.full((16,), -99.0))
    network, batch = policy.target_network, going
    with torch.no_grad():
        hidden, _ = network.read(network.encode(*batch.next()), batch.next_tokens[:, :-1])
        after = -10 + 20 * network.outputs["q"](hidden)[:, -1].amax(-1).sigmoid()
    expected = ((-1 + 0.98 * after + 10) / 20).clamp(0, 1)
    torch.testing.assert_close(policy.targets(going)[:, 0], expected)


def test_targets_are_at_least_the_monte_carlo_return():
    policy = make("q-transformer")
    policy.prepare("cpu", freeze_trunk=True)
    batch = batch_for(policy)
    assert (policy.targets(batch) >= batch.returns[:, None]).all()
    policy.config = replace(policy.config, monte_carlo=False)
    assert (policy.targets(batch) < batch.returns[:, None]).any()


@pytest.mark.parametrize("kind", ["q-transformer", "q-transformer, efficientnet"])
def test_values_lie_in_0_to_1_and_do_not_depend_on_company(kind):
    policy = make(kind)
    histories = [[observation(policy, seed)] for seed in range(2)]
    together = policy.value(histories[0], TEXTS)
    assert ((together >= 0) & (together <= 1)).all() and together.dtype == np.float32
    alone = [policy.value(histories[0], [text])[0] for text in TEXTS]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    many = policy.value_many(histories, [TEXTS, TEXTS[:1]])
    np.testing.assert_allclose(many[0], together, atol=1e-6)
    assert len(many[1]) == 1 and policy.value(histories[0], []).shape == (0,)


def test_the_value_is_the_best_q_of_the_first_dimension():
    policy = make("q-transformer")
    batch = batch_for(policy, 1)
    with torch.no_grad():
        hidden, _ = policy.network.read(policy.network.encode(*batch.now()), batch.tokens[:, :-1])
        expected = policy.network.outputs["q"](hidden)[0, 0].max().sigmoid()
        policy.observe = lambda histories: batch.now()[:2]
        value = policy.value([None], [TEXTS[0]])
    np.testing.assert_allclose(value, [expected], atol=1e-6)


@pytest.mark.parametrize("n_step", [False, True])
def test_by_eq_1_the_value_is_of_the_best_action_and_with_n_step_of_what_the_data_does_next(n_step):
    """A bandit: the first dimension is always 0; the second earns 1 where it is above that, as in half of the data."""
    robot = body({"dx": (-1, 1, "", "delta"), "dy": (-1, 1, "", "delta")}, states=1)
    policy = walker("q-transformer", robot, n_step=n_step, conservative_weight=0.0, loss="cross_entropy")

    def bandit(seed):
        actions = torch.rand(64, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        actions[:, 0] = 0
        won, zeros = (actions[:, 1] > 0).float(), torch.zeros(64)
        return walked(policy, zeros, actions, zeros, reward=won, returns=zeros, terminated=torch.ones(64))

    fit_to(policy, map(bandit, range(300)))
    value = policy.value(at(0)[0], TEXTS[:1])[0]
    assert 0.4 < value < 0.6 if n_step else value > 0.8


def test_constrained_acting_picks_the_best_q_among_likely_bins():
    """Batch-constrained: the best bin of all is unlikely, so the second best is taken."""
    policy = make("q-transformer, constrained")
    policy.config = replace(policy.config, smoothing=0.0)
    q_values, density = torch.zeros(1, 256), torch.full((1, 256), -9.0)
    q_values[..., [10, 20, 30]] = torch.tensor([3.0, 2.0, 1.0])
    density[..., [20, 30]] = torch.tensor([1.0, 1.2])
    network = make("q-transformer, constrained").network
    network.outputs["q"].one = lambda hidden, dim: q_values
    network.outputs["behavior"].one = lambda hidden, dim: density
    assert policy.choose(network, torch.zeros(1, 32), dim=0).item() == 20
    policy.config = QTransformerConfig()
    assert policy.choose(network, torch.zeros(1, 32), dim=0).item() == 10


def test_smoothed_acting_takes_the_hill_and_not_the_spike_and_leaves_the_gripper_its_bins():
    policy, q_values = make("q-transformer"), torch.full((1, 256), -4.0)
    q_values[..., 200], q_values[..., 50:71] = 2.0, 1.0
    network = make("q-transformer").network
    network.outputs["q"].one = lambda hidden, dim: q_values

    def chosen(dim):
        return policy.choose(network, torch.zeros(1, 32), dim=dim).item()

    closedness = next(i for i, dimension in enumerate(policy.embodiment.action) if dimension.kind == "fraction")
    assert chosen(0) == chosen(closedness) == 200
    policy.config = replace(policy.config, acting_deviation=6.0)
    assert (chosen(0), chosen(closedness)) == (60, 200)


def circling(circles=3):
    algorithm, config, network = KINDS["q-transformer, constrained"]
    torch.manual_seed(0)
    return algorithm(network, replace(config, circles=circles), texts())


def test_circles_are_states_that_recur_for_one_step_more_than_they_are_long():
    policy = circling()
    here, there, elsewhere = (observation(policy, seed) for seed in range(3))
    for path in (
        [here] * 3,
        [here, there] * 3,
        [elsewhere, here, there, here, there, here],
        [here, there, elsewhere] * 3,
    ):
        assert policy.in_circles(path) and not circling(0).in_circles(path)
    for path in ([here] * 2, [here, there] * 2, [here, there, there], [here, here, here, there], [elsewhere]):
        assert not policy.in_circles(path)
    assert policy.embodiment.history == 7 and circling(0).embodiment.history == 1


def test_in_a_circle_the_action_is_drawn_from_the_behaviour_head_alike_in_every_batch():
    policy, network = circling(), circling().acting
    here, there = (observation(policy, seed) for seed in range(2))
    lost, well = [here, there, here, there, here], [there, here]
    one, two = policy.act(lost, TEXTS[0]), policy.act(well, TEXTS[0])
    np.testing.assert_array_equal(policy.act_many([well, lost], [TEXTS[0]] * 2), [two, one])
    np.testing.assert_array_equal(two, policy.act([here], TEXTS[0]))  # as without circles
    assert not np.array_equal(one, two)
    hidden = torch.randn(1, network.config.width).expand(10_000, -1)
    drawn = policy.draw(network, hidden, 0, torch.rand(10_000))
    density = network.outputs["behavior"].one(hidden[:1], 0).softmax(-1)[0]
    assert abs(drawn.float().mean() - (density * torch.arange(len(density))).sum()) < 0.02 * len(density)


def test_circles_need_a_behaviour_head_to_draw_from():
    algorithm, _, network = KINDS["q-transformer"]
    with pytest.raises(ValueError, match="behaviour head"):
        algorithm(network, QTransformerConfig(circles=3), texts())
