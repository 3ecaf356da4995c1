"""Measure offline how well a value function tells what is possible: `python -m saycan_qt.evaluate affordance`."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from saycan_qt import atomic
from saycan_qt.data.scenes import DatasetError, SceneDataset

FIXED = 0.5  # the threshold beside a tuned one
TUNING = 4  # every fourth scene, by its number, serves to tune the threshold and nothing else
SHOWN = {
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "auc": "ROC-AUC",
    "ap": "average precision",
    "ece": "calibration error",
}


@dataclass(frozen=True)
class AffordanceConfig:
    """Precision, recall, F1, ROC-AUC, average precision and calibration error of affordances over labelled scenes.

    A model scores every learnt skill in every scene. Of some 200 skills a scene allows a dozen, and most others are
    impossible for the same dull reason, so the headline is over balanced pairs: every possible skill counts 1; the
    impossible ones of a scene and family together count one more than its possible ones (each at most 1), which is what
    drawing that many at random would give on average; then every family weighs the same. The figures over all pairs,
    each counting 1, stand below. Read F1 beside the column "all possible", which calls every skill possible.

    "arm" rows tell scenes apart in which the arm rests, is on its way to some skill, or has just ended one. Training
    with relabelled tasks teaches that an arm on its way to one skill fails at the others, whatever is possible.

    Every fourth scene tunes the threshold for the greatest F1 and is used for nothing else. Intervals are 95 %, from
    drawing scenes again (bootstrap). With --out, scores are kept as they are computed, and used again."""

    data: Path  # scenes of `python -m saycan_qt.collect affordance`
    checkpoint: tuple[str, ...] = ("affordance",)  # shipped checkpoints' names, or folders; all in one table
    label: Literal["precondition", "succeeds"] = "precondition"  # what counts as possible; the expert's success
    threshold: float | Literal["tuned"] = FIXED  # of the precision, recall and F1 that are shown
    resamples: int = 500  # of the bootstrap
    threads: int = 2  # that the model may use
    json: bool = False  # print the result as JSON on standard output
    out: Path | None = None  # a folder: keep scores there (delete them to score again), and write affordance.json


class NotComparable(ValueError):
    """The scenes or the model do not allow the measurement: what and why, in one line."""


# ---- scores -----------------------------------------------------------------------------------------------------


def critic(name: str) -> tuple[Any, str]:
    """A checkpoint's model and the first digits of its SHA-256. Raises CheckpointError or NotComparable."""
    from saycan_qt import checkpoint

    policy = checkpoint.load(name)
    if not hasattr(policy, "value_many"):
        raise NotComparable(f"checkpoint {name!r} only acts; this needs one that judges, a q-transformer")
    folder = atomic.newest(checkpoint.resolve(name))
    return policy, atomic.sha256(folder / checkpoint.MANIFEST)[:12]


def scored(policy: Any, dataset: SceneDataset, keep: Path | None, progress: Callable[[int], None]) -> np.ndarray:
    """Affordances (S, N). keep: a folder in which every file's scores are kept, and found again."""
    from skills.types import Observation

    names, parts = list(dataset.skills), []
    for file in dataset.files:
        kept = keep / f"{file.stem}-{atomic.sha256(file)[:12]}.npy" if keep else None
        if kept is None or not kept.exists():
            images, states = dataset.observations(file)
            parts.append(np.empty((len(images), len(names)), np.float32))
            for row, (image, state) in enumerate(zip(images, states, strict=True)):
                try:
                    parts[-1][row] = policy.value([Observation(image, state)], names)
                except ValueError as error:
                    raise NotComparable(f"{file}, row {row}: {error}") from None
                progress(1)
            if kept is not None:
                buffer = io.BytesIO()
                np.save(buffer, parts[-1])
                atomic.write(kept, buffer.getvalue())
        else:
            parts.append(np.load(kept))
            progress(len(parts[-1]))
    return np.concatenate(parts)


# ---- figures ----------------------------------------------------------------------------------------------------


def split(dataset: SceneDataset, labels: np.ndarray) -> np.ndarray:
    """(S,) bool, the scenes that tune the threshold. Raises NotComparable where a part has one class only."""
    tuning = dataset.numbers % TUNING == 0
    for part in (labels, labels[tuning], labels[~tuning]):
        if part.all() or not part.any():
            which = "possible" if part.size and part.all() else "impossible"
            raise NotComparable(
                f"{dataset.folder}: every skill is {which} in {'all' if part is labels else 'one part of the'} "
                f"{len(labels)} scenes; both classes are needed, so collect more scenes"
            )
    return tuning


def figures(
    labels: np.ndarray,
    scores: np.ndarray,
    families: np.ndarray,
    moments: np.ndarray,
    tuning: np.ndarray,
    threshold: float | Literal["tuned"],
    resamples: int,
) -> dict[str, Any]:
    """Everything about one model, as the JSON has it. labels, scores (S, N); families (N,); moments, tuning (S,)."""
    from saycan_qt import affordance_metrics as am

    equal = partial(am.equal_families, families=families)
    balanced = am.balanced_weights(labels, families)
    tuned = am.best_threshold(labels[tuning], scores[tuning], equal(balanced[tuning]))
    fixed = FIXED if threshold == "tuned" else threshold
    chosen = tuned if threshold == "tuned" else fixed
    y, s, w, moments = labels[~tuning], scores[~tuning], balanced[~tuning], moments[~tuning]

    def at(value: float) -> dict[str, Any]:
        found = am.intervals(y, s, w, value, np.random.default_rng(0), resamples, equal)
        return {"threshold": value, **am.metrics(y, s, equal(w), value), "intervals": found}

    def of(family: str) -> dict[str, Any]:
        mine = families == family
        part = y[:, mine], s[:, mine], w[:, mine], chosen
        return {
            **am.metrics(*part),
            "intervals": am.intervals(*part, np.random.default_rng(0), resamples),
            "all_positive_f1": am.all_positive_f1(part[0], part[2]),
            "positives": int(part[0].sum()),
            "pairs": part[0].size,
        }

    def during(moment: str) -> dict[str, Any]:
        now = moments == moment
        part = y[now], s[now], w[now]
        found = am.intervals(*part, chosen, np.random.default_rng(0), resamples, equal)
        weights = equal(part[2])
        values = am.metrics(*part[:2], weights, chosen)
        return {
            **values,
            "intervals": found,
            "all_positive_f1": am.all_positive_f1(y[now], weights),
            "scenes": len(part[0]),
        }

    both = {"fixed": at(fixed), "tuned": at(tuned)}
    return {
        **both["tuned" if threshold == "tuned" else "fixed"],
        **both,
        "families": {family: of(family) for family in dict.fromkeys(families)},
        "moments": {str(moment): during(moment) for moment in np.unique(moments)},
        "all_pairs": {
            **am.metrics(y, s, np.ones_like(w), chosen),
            "all_positive_f1": am.all_positive_f1(y, np.ones_like(w)),
        },
        "all_positive_f1": am.all_positive_f1(y, equal(w)),
    }


def table(models: Mapping[str, dict[str, Any]], title: str) -> Table:
    """The models side by side, and what calling everything possible would give."""

    def cell(found: Mapping[str, Any], key: str) -> str:
        if key not in found:
            return "-"
        low, high = found.get("intervals", {}).get(key, (None, None))
        return f"{found[key]:.2f}" + (f" ({low:.2f} - {high:.2f})" if low is not None else "")

    grid = Table(title=title)
    for column in ("", *models, "all possible"):
        grid.add_column(column, justify="right" if column else "left", no_wrap=not column)
    first = next(iter(models.values()))
    always = {"f1": first["all_positive_f1"], "recall": 1.0, "precision": 1 / (2 / first["all_positive_f1"] - 1)}
    for key, name in SHOWN.items():
        baseline = f"{always[key]:.2f}" if key in always else ""
        grid.add_row(name, *(cell(m, key) for m in models.values()), baseline)
    grid.add_row("threshold", *(f"{m['threshold']:.2f}" for m in models.values()), "")
    other = "fixed" if first["threshold"] == first["tuned"]["threshold"] else "tuned"
    grid.add_row(f"F1, {other} threshold", *(cell(m[other], "f1") for m in models.values()), f"{always['f1']:.2f}")
    grid.add_row(f"{other} threshold", *(f"{m[other]['threshold']:.2f}" for m in models.values()), "")
    grid.add_section()
    for part, prefix in (("families", "F1, "), ("moments", "F1, arm ")):
        for name, of in first[part].items():
            cells = [cell(m[part][name], "f1") for m in models.values()]
            grid.add_row(prefix + name, *cells, f"{of['all_positive_f1']:.2f}")
        grid.add_section()
    for key, name in SHOWN.items():
        baseline = f"{first['all_pairs']['all_positive_f1']:.2f}" if key == "f1" else ""
        grid.add_row(f"all pairs: {name}", *(cell(m["all_pairs"], key) for m in models.values()), baseline)
    return grid


# ---- the command ------------------------------------------------------------------------------------------------


def evaluate(config: AffordanceConfig, console: Console) -> dict[str, Any]:
    """The answer, as the JSON has it. Raises DatasetError, CheckpointError, NotComparable or WeightsError."""
    import torch

    torch.set_num_threads(config.threads)
    if twice := [name for name in config.checkpoint if config.checkpoint.count(name) > 1]:
        raise NotComparable(f"--checkpoint names {twice[0]!r} twice")
    dataset = SceneDataset.open(config.data)
    labels, families = dataset.labels(config.label), np.array(list(dataset.skills.values()))
    moments = dataset.words("moment")
    tuning = split(dataset, labels)
    critics = {name: critic(name) for name in config.checkpoint}
    for name, (policy, _) in critics.items():
        if strange := [skill for skill in dataset.skills if skill not in policy.texts.table]:
            console.print(f"note: {name} was not trained on {len(strange)} of the skills, such as {strange[0]!r}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("scenes"))
    models = {}
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for name, (policy, digest) in critics.items():
            task = progress.add_task(f"scoring {name}", total=len(labels))
            keep = config.out / "scores" / f"{re.sub(r'[^A-Za-z0-9-]+', '-', name)}-{digest}" if config.out else None
            scores = scored(policy, dataset, keep, partial(progress.advance, task))
            progress.update(task, description=f"measuring {name}")
            models[name] = figures(labels, scores, families, moments, tuning, config.threshold, config.resamples)
    return {
        "models": models,
        "all_positive_f1": next(iter(models.values()))["all_positive_f1"],
        "label": config.label,
        "scenes": int((~tuning).sum()),
        "tuning_scenes": int(tuning.sum()),
        "pairs": int(labels[~tuning].size),
        "positives": int(labels[~tuning].sum()),
    }


def affordance(config: AffordanceConfig) -> int:
    from planners.weights import WeightsError
    from saycan_qt.checkpoint import CheckpointError

    console = Console(stderr=True)
    try:
        answer = evaluate(config, console)
    except (DatasetError, CheckpointError, NotComparable, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    title = f"{config.label}: balanced pairs of {answer['scenes']} scenes of {config.data}"
    (console if config.json else Console()).print(table(answer["models"], title))
    if config.out:
        atomic.write(config.out / "affordance.json", atomic.to_json(answer))
    if config.json:
        sys.stdout.write(atomic.to_json(answer).decode())
    return 0
