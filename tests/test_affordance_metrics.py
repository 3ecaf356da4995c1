"""The figures agree with scikit-learn and with numbers worked by hand."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from saycan_qt.evaluation.affordance.metrics import (
    Ranked,
    all_positive_f1,
    balanced_weights,
    best_threshold,
    calibration_error,
    equal_families,
    intervals,
    metrics,
    precision_recall,
    reliability,
)

FAMILIES = np.array(["pick"] * 4 + ["open drawer"] * 2)


def random_pairs(seed: int, ties: bool = False):
    rng = np.random.default_rng(seed)
    labels, weights = rng.random((40, 6)) < 0.3, rng.random((40, 6))
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    return labels, np.round(scores, 1) if ties else scores, weights


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.0])
def test_ranking_once_gives_what_scikit_learn_gives(ties, threshold):
    labels, scores, weights = random_pairs(1, ties)
    assert Ranked(labels, scores, threshold)(weights) == pytest.approx(metrics(labels, scores, weights, threshold))


def test_calibration_error_by_hand():
    """Bin 0.2-0.3: mean score 0.25, none possible; bin 0.9-1.0: mean score 0.95, two of three weights possible."""
    labels = np.array([False, True, False])
    error = calibration_error(labels, np.array([0.25, 0.95, 0.95]), np.array([1.0, 2.0, 1.0]))
    assert error == pytest.approx((1 * 0.25 + 3 * (0.95 - 2 / 3)) / 4)


def test_reliability_adds_up_to_the_calibration_error():
    labels, scores, weights = random_pairs(6)
    bins = reliability(labels, scores, weights)
    assert sum(b["share"] for b in bins) == pytest.approx(1.0)
    error = sum(b["share"] * abs(b["score"] - b["possible"]) for b in bins)
    assert error == pytest.approx(calibration_error(labels, scores, weights))


@pytest.mark.parametrize("ties", [False, True])
def test_every_point_of_the_precision_recall_curve_is_what_its_threshold_gives(ties):
    labels, scores, weights = random_pairs(7, ties)
    curve = precision_recall(labels, scores, weights)
    recalls = [point["recall"] for point in curve]
    assert recalls == sorted(recalls) and recalls[-1] == pytest.approx(1.0)
    for point in curve[::5]:
        found = metrics(labels, scores, weights, point["threshold"])
        assert (point["precision"], point["recall"]) == pytest.approx((found["precision"], found["recall"]))


def test_negatives_of_a_scene_and_family_weigh_one_more_than_its_positives():
    labels = np.array([[1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
    assert balanced_weights(labels, FAMILIES) == pytest.approx(
        np.array([[1, 2 / 3, 2 / 3, 2 / 3, 1, 1], [0.25, 0.25, 0.25, 0.25, 0.5, 0.5]])
    )


def test_families_weigh_the_same():
    weights = equal_families(random_pairs(0)[2], FAMILIES)
    assert weights[:, :4].sum() == pytest.approx(1.0) == weights[:, 4:].sum()


def test_calling_everything_possible_has_the_f1_of_threshold_zero():
    labels, scores, weights = random_pairs(2)
    assert all_positive_f1(labels, weights) == pytest.approx(metrics(labels, scores, weights, 0.0)["f1"])


def test_no_threshold_beats_the_best():
    labels, scores, weights = (x.ravel() for x in random_pairs(3))
    best = f1_score(labels, scores >= best_threshold(labels, scores, weights), sample_weight=weights)
    grid = [f1_score(labels, scores >= t, sample_weight=weights, zero_division=0.0) for t in np.linspace(0, 1, 50)]
    assert best >= max(grid)


def test_intervals_hold_the_figure_and_shrink_with_more_scenes():
    labels, scores, weights = random_pairs(4)
    few = intervals(labels, scores, weights, 0.5, np.random.default_rng(0), 200)
    many = intervals(*(np.tile(x, (9, 1)) for x in (labels, scores, weights)), 0.5, np.random.default_rng(0), 200)
    for name, value in metrics(labels, scores, weights, 0.5).items():
        assert few[name][0] < value < few[name][1] or name == "ece"  # resampling adds to the error of calibration
        assert many[name][1] - many[name][0] < 0.6 * (few[name][1] - few[name][0])


def test_one_class_has_no_figures():
    labels, scores, weights = random_pairs(5)
    assert metrics(labels & False, scores, weights, 0.5) == {}
    assert intervals(labels & False, scores, weights, 0.5, np.random.default_rng(0), 3) == {}
