"""Action bins: there and back, bounds, and bins that follow the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saycan_qt.networks.tokens import TERMINATE, ActionTokenizer, bounds_of
from skills.types import ACTION_HIGH, ACTION_LOW

RNG = np.random.default_rng(0)
FINE = np.where(RNG.random((20_000, 8)) < 0.9, RNG.normal(0, 0.003, (20_000, 8)), RNG.normal(0, 0.05, (20_000, 8)))
FINE = np.clip(FINE, ACTION_LOW, ACTION_HIGH).astype(np.float32)


def test_a_uniform_bin_decodes_to_within_half_a_bin():
    tokenizer = ActionTokenizer.uniform(256)
    actions = torch.from_numpy(RNG.uniform(ACTION_LOW, ACTION_HIGH, (500, 8)).astype(np.float32))
    errors = (tokenizer.decode(tokenizer.encode(actions)) - actions).abs()[:, :TERMINATE]
    assert (errors <= torch.from_numpy(ACTION_HIGH - ACTION_LOW)[:TERMINATE] / 512 + 1e-6).all()
    assert torch.equal(tokenizer.encode(tokenizer.decode(tokenizer.encode(actions))), tokenizer.encode(actions))


def test_what_lies_beyond_the_range_falls_into_the_outer_bins_and_terminate_has_two():
    tokens = ActionTokenizer.uniform(16).encode(torch.tensor([[-9.0] * 8, [9.0] * 8]))
    assert tokens.tolist() == [[0] * 8, [15] * 8]


def test_adaptive_bins_resolve_frequent_motion_more_finely_and_stay_within_four_times_uniform():
    adaptive, uniform = ActionTokenizer.adaptive(FINE, 64), ActionTokenizer.uniform(64)
    actions = torch.from_numpy(FINE)
    errors = [(t.decode(t.encode(actions)) - actions).abs()[:, 0].median() for t in (adaptive, uniform)]
    assert errors[0] < 0.5 * errors[1]
    widths = adaptive.edges.diff(dim=1) / uniform.edges.diff(dim=1)
    assert widths.max() <= 4.1 and torch.equal(adaptive.edges[:, [0, -1]], uniform.edges[:, [0, -1]])


def test_a_value_that_repeats_exactly_leaves_bins_for_the_others():
    still = np.zeros((1000, 8), np.float32)
    still[:100] = FINE[:100]
    widths = ActionTokenizer.adaptive(still, 64).edges.diff(dim=1)
    assert (widths > 0).all() and (widths[0] < 0.5 * 0.16 / 64).sum() < 32


def test_bounds_of_the_data_ignore_single_outliers_and_keep_fractions():
    actions = FINE.copy()
    actions[0, 0] = 100.0
    low, high = bounds_of(actions)
    assert high[0] < 1 and (low[6:] == 0).all() and (high[6:] == 1).all()
    with pytest.raises(ValueError, match="dyaw"):
        bounds_of(actions * [1, 1, 1, 1, 1, 0, 1, 1])
