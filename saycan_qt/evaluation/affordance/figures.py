"""Everything an affordance evaluation says about one model: over balanced pairs, family by family, moment by moment,
and over all pairs, as planners ask."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np

from saycan_qt.evaluation.affordance import metrics as am

FIXED = 0.5  # the threshold beside a tuned one
EVERY = slice(None)


def figures(
    labels: np.ndarray,
    scores: np.ndarray,
    families: np.ndarray,
    moments: np.ndarray,
    tuning: np.ndarray,
    threshold: float | Literal["tuned"],
    resamples: int,
) -> dict[str, Any]:
    """As the JSON has it. labels, scores (S, N); families (N,); moments, tuning (S,)."""
    balanced = am.balanced_weights(labels, families)
    equal = partial(am.equal_families, families=families)
    tuned = am.best_threshold(labels[tuning], scores[tuning], equal(balanced[tuning]))
    fixed = FIXED if threshold == "tuned" else threshold
    chosen = tuned if threshold == "tuned" else fixed
    y, s, w, moments = labels[~tuning], scores[~tuning], balanced[~tuning], moments[~tuning]

    def measured(value: float, rows: Any = EVERY, columns: Any = EVERY) -> dict[str, Any]:
        """At a threshold: of all pairs, or of some scenes (rows) or skills (columns)."""
        labels, scores, weights = (x[rows][:, columns] for x in (y, s, w))
        equal = partial(am.equal_families, families=families[columns])
        rng = np.random.default_rng(0)
        return {
            **am.metrics(labels, scores, equal(weights), value),
            "intervals": am.intervals(labels, scores, weights, value, rng, resamples, equal),
            "all_positive_f1": am.all_positive_f1(labels, equal(weights)),
        }

    def of(family: str) -> dict[str, Any]:
        mine = families == family
        return {
            **measured(chosen, columns=mine),
            "positives": int(y[:, mine].sum()),
            "pairs": y[:, mine].size,
        }

    def during(moment: str) -> dict[str, Any]:
        now = moments == moment
        return {**measured(chosen, rows=now), "scenes": int(now.sum())}

    def of_all(value: float) -> dict[str, Any]:
        """At a threshold, of all pairs, each counting 1."""
        ones, rng = np.ones_like(w), np.random.default_rng(0)
        return {
            "threshold": value,
            **am.metrics(y, s, ones, value),
            "intervals": am.intervals(y, s, ones, value, rng, resamples),
            "all_positive_f1": am.all_positive_f1(y, ones),
            "families": {
                family: am.metrics(
                    y[:, families == family], s[:, families == family], ones[:, families == family], value
                )
                for family in dict.fromkeys(families)
            },
        }

    both = {
        "fixed": {"threshold": fixed, **measured(fixed)},
        "tuned": {"threshold": tuned, **measured(tuned)},
    }
    return {
        **both["tuned" if threshold == "tuned" else "fixed"],
        **both,
        "families": {family: of(family) for family in dict.fromkeys(families)},
        "moments": {str(moment): during(moment) for moment in np.unique(moments)},
        "all_pairs": {**of_all(chosen), "tuned": of_all(am.best_threshold(labels[tuning], scores[tuning]))},
        "reliability": am.reliability(y, s, equal(w)),
        "precision_recall": am.precision_recall(y, s, equal(w)),
    }
