"""Action bins: there and back, bounds, and bins that follow the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saycan_qt.networks.tokens import ActionTokenizer, bounds_of
from skills.embodiment import ActionDimension, Embodiment, StateNumber
from skills.robot_folder import default_robot

KITCHEN = default_robot().embodiment
LOW, HIGH = KITCHEN.low, KITCHEN.high
ARM = Embodiment(
    (ActionDimension("shoulder", -90, 90, "deg"), ActionDimension("grip", kind="fraction")), (), (StateNumber("x"),)
)

RNG = np.random.default_rng(0)
FINE = np.where(RNG.random((20_000, 8)) < 0.9, RNG.normal(0, 0.003, (20_000, 8)), RNG.normal(0, 0.05, (20_000, 8)))
FINE = np.clip(FINE, LOW, HIGH).astype(np.float32)


def test_a_uniform_bin_decodes_to_within_half_a_bin():
    tokenizer = ActionTokenizer.uniform(KITCHEN, 256)
    actions = torch.from_numpy(RNG.uniform(LOW, HIGH, (500, 8)).astype(np.float32))
    errors = (tokenizer.decode(tokenizer.encode(actions)) - actions).abs()[:, : KITCHEN.terminate]
    assert (errors <= torch.from_numpy(HIGH - LOW)[: KITCHEN.terminate] / 512 + 1e-6).all()
    assert torch.equal(tokenizer.encode(tokenizer.decode(tokenizer.encode(actions))), tokenizer.encode(actions))


def test_what_lies_beyond_the_range_falls_into_the_outer_bins_and_terminate_has_two():
    tokens = ActionTokenizer.uniform(KITCHEN, 16).encode(torch.tensor([[-9.0] * 8, [9.0] * 8]))
    assert tokens.tolist() == [[0] * 8, [15] * 8]


def test_adaptive_bins_resolve_frequent_motion_more_finely_and_stay_within_four_times_uniform():
    adaptive, uniform = ActionTokenizer.adaptive(FINE, KITCHEN, 64), ActionTokenizer.uniform(KITCHEN, 64)
    actions = torch.from_numpy(FINE)
    errors = [(t.decode(t.encode(actions)) - actions).abs()[:, 0].median() for t in (adaptive, uniform)]
    assert errors[0] < 0.5 * errors[1]
    widths = adaptive.edges.diff(dim=1) / uniform.edges.diff(dim=1)
    assert widths.max() <= 4.1 and torch.equal(adaptive.edges[:, [0, -1]], uniform.edges[:, [0, -1]])


def test_a_value_that_repeats_exactly_leaves_bins_for_the_others():
    still = np.zeros((1000, 8), np.float32)
    still[:100] = FINE[:100]
    widths = ActionTokenizer.adaptive(still, KITCHEN, 64).edges.diff(dim=1)
    assert (widths > 0).all() and (widths[0] < 0.5 * 0.16 / 64).sum() < 32


def test_bounds_of_the_data_ignore_single_outliers_and_keep_fractions():
    actions = FINE.copy()
    actions[0, 0] = 100.0
    found, still = bounds_of(actions, KITCHEN)
    assert found.high[0] < 1 and (found.low[6:] == 0).all() and (found.high[6:] == 1).all() and not still


def test_a_dimension_that_never_moves_has_a_narrow_range_around_its_value_and_is_named():
    found, still = bounds_of(FINE * [1, 1, 1, 1, 1, 0, 1, 1] + [0, 0, 0, 0, 40, 0, 0, 0], KITCHEN)
    assert still == ["dyaw"] and found.low[5] < 0 < found.high[5] < 0.01 and found.low[4] > 39
    tokenizer = ActionTokenizer.uniform(found)
    assert tokenizer.decode(tokenizer.encode(torch.zeros(1, 8)))[0, 5].abs() < 1e-4


def test_a_robot_without_an_end_has_bins_in_every_dimension():
    tokenizer = ActionTokenizer.uniform(ARM, 180)
    assert tokenizer.terminate is None and tokenizer.dims == 2
    assert tokenizer.decode(tokenizer.encode(torch.tensor([[44.7, 0.6]])))[0].tolist() == pytest.approx(
        [44.5, 0.6], abs=3e-3
    )
