"""How well do scores tell what is possible from what is not? Pure functions of labels, scores and weights.

Pairs of S scenes and N skills come as (S, N) arrays: labels bool, scores and weights float; families (N,) text. Every
metric is weighted. scikit-learn computes them, except on bootstrap resamples, for which `Ranked` sorts only once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, precision_recall_fscore_support
from sklearn.metrics import roc_auc_score as area_under_roc

Metrics = dict[str, float]
Intervals = dict[str, tuple[float, float]]
BINS = 10  # of equal width, for the calibration error
CURVE = 101  # points of a precision-recall curve, evenly over recall


def balanced_weights(labels: np.ndarray, families: np.ndarray) -> np.ndarray:
    """(S, N): positives count 1; negatives of a scene and family together one more than its positives, each at most 1.

    Of some 200 skills a scene allows a dozen, and most others are impossible for the same dull reason: the object is
    absent. On average, drawing as many negatives as positives and one more gives the same; here nothing is drawn."""
    weights = np.ones(labels.shape)
    for family in np.unique(families):
        mine = families == family
        positives = labels[:, mine].sum(axis=1)
        negatives = np.maximum(mine.sum() - positives, 1)
        share = np.minimum(1.0, (positives + 1) / negatives)
        weights[:, mine] = np.where(labels[:, mine], 1.0, share[:, None])
    return weights


def equal_families(weights: np.ndarray, families: np.ndarray) -> np.ndarray:
    """The weights (S, N), scaled so that every family weighs the same."""
    scale = np.ones(len(families))
    for family in np.unique(families):
        mine = families == family
        scale[mine] = 1.0 / max(float(weights[:, mine].sum()), 1e-12)
    return weights * scale


def all_positive_f1(labels: np.ndarray, weights: np.ndarray) -> float:
    """F1 of calling everything possible: recall is 1, precision the share of positives."""
    share = float(weights[labels].sum() / weights.sum())
    return 2 * share / (1 + share)


def calibration_error(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """Expected calibration error: |mean score - share of positives| over BINS bins, weighted by what lies in them."""
    (gaps,) = _binned(scores, weights * (scores - labels))
    return float(np.abs(gaps).sum() / weights.sum())


def _binned(scores: np.ndarray, *amounts: np.ndarray) -> list[np.ndarray]:
    """Each amount's sum over the pairs of every bin of scores, (BINS,) each."""
    bins = np.minimum((scores * BINS).astype(int), BINS - 1).ravel()
    return [np.bincount(bins, amount.ravel(), BINS) for amount in amounts]


def metrics(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, threshold: float) -> Metrics:
    """precision, recall, f1 of score >= threshold, and auc, ap, ece of the scores. Empty where one class is missing."""
    if not (labels.any() and not labels.all()):
        return {}
    y, s, w = labels.ravel(), scores.ravel(), weights.ravel()
    precision, recall, f1, _ = precision_recall_fscore_support(
        y, s >= threshold, average="binary", sample_weight=w, zero_division=0.0
    )
    auc, ap = area_under_roc(y, s, sample_weight=w), average_precision_score(y, s, sample_weight=w)
    values = (precision, recall, f1, auc, ap, calibration_error(y, s, w))
    return dict(zip(("precision", "recall", "f1", "auc", "ap", "ece"), map(float, values), strict=True))


def best_threshold(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The threshold of the greatest F1; without weights every pair counts 1."""
    precision, recall, thresholds = precision_recall_curve(
        labels.ravel(), scores.ravel(), sample_weight=None if weights is None else weights.ravel()
    )
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[f1[:-1].argmax()])


def reliability(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> list[dict[str, float]]:
    """Of each of BINS bins that holds any pair: mean score, share of positives, and the bin's share of all weight."""
    total, score, possible = _binned(scores, weights, weights * scores, weights * labels)
    return [
        {"score": float(score[i] / total[i]), "possible": float(possible[i] / total[i]), "share": float(share)}
        for i, share in enumerate(total / total.sum())
        if share > 0
    ]


def precision_recall(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> list[dict[str, float]]:
    """The curve from the highest threshold to the lowest, at CURVE recalls the points where they begin and end."""
    precision, recall, thresholds = precision_recall_curve(
        labels.ravel(), scores.ravel(), sample_weight=weights.ravel()
    )
    rows = np.stack([thresholds, precision[:-1], recall[:-1]], axis=1)[::-1]  # without the last, of no threshold
    begin = np.searchsorted(rows[:, 2], np.linspace(0, 1, CURVE)).clip(max=len(rows) - 1)
    end = np.searchsorted(rows[:, 2], rows[begin, 2], "right") - 1
    chosen = rows[np.unique(np.concatenate([begin, end]))].tolist()
    return [dict(zip(("threshold", "precision", "recall"), row, strict=True)) for row in chosen]


class Ranked:
    """Pairs in the order of their scores; called with other weights, it gives what `metrics` gives."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray, threshold: float) -> None:
        s = scores.ravel()
        self.order = np.argsort(-s, kind="stable")
        self.labels, self.scores = labels.ravel()[self.order], s[self.order]
        self.ends = np.flatnonzero(np.append(np.diff(self.scores) != 0, True))  # the last of each run of equal scores
        self.chosen = int((self.scores >= threshold).sum())

    def __call__(self, weights: np.ndarray) -> Metrics:
        w = weights.ravel()[self.order]
        hits, misses = np.cumsum(w * self.labels), np.cumsum(w * ~self.labels)
        if hits[-1] <= 0 or misses[-1] <= 0:
            return {}
        tp, fp = (float(sums[self.chosen - 1]) if self.chosen else 0.0 for sums in (hits, misses))
        tps, fps = hits[self.ends], misses[self.ends]
        area = np.trapezoid(np.append(0.0, tps), np.append(0.0, fps)) / (tps[-1] * fps[-1])
        ap = (np.diff(tps, prepend=0.0) * tps / np.maximum(tps + fps, 1e-12)).sum() / tps[-1]
        return {
            "precision": tp / (tp + fp) if tp else 0.0,
            "recall": tp / float(hits[-1]),
            "f1": 2 * tp / (tp + fp + float(hits[-1])),
            "auc": float(area),
            "ap": float(ap),
            "ece": calibration_error(self.labels, self.scores, w),
        }


def intervals(
    labels: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray,
    threshold: float,
    rng: np.random.Generator,
    resamples: int,
    reweigh: Callable[[np.ndarray], np.ndarray] = lambda weights: weights,
) -> Intervals:
    """95 % bootstrap intervals of all metrics. Whole scenes are drawn again, since a scene's pairs hang together.

    `reweigh` is applied to the weights (S, N) of each resample."""
    ranked, count = Ranked(labels, scores, threshold), len(labels)
    found = []
    for _ in range(resamples):
        drawn = np.bincount(rng.integers(count, size=count), minlength=count)
        if values := ranked(reweigh(weights * drawn[:, None])):
            found.append(list(values.values()))
            names = list(values)
    if not found:
        return {}
    low, high = np.percentile(np.array(found), [2.5, 97.5], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
