"""Measure offline how well a value function tells what is possible: `python -m saycan_qt.evaluate affordance`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from saycan_qt import atomic
from saycan_qt.data.scenes import DatasetError
from saycan_qt.evaluation.affordance import judges as affordance_judges
from saycan_qt.evaluation.affordance import metrics as am
from saycan_qt.evaluation.affordance import report as affordance_report
from saycan_qt.evaluation.affordance.figures import FIXED, figures
from saycan_qt.evaluation.affordance.judges import Interrupted, Judge
from saycan_qt.evaluation.affordance.questions import Label, NotComparable, Questions, ask
from saycan_qt.evaluation.affordance.table import WIDE, table
from saycan_qt.options import Folder, require
from saycan_qt.services.access import ClientOptions, HowToCall


@dataclass(frozen=True)
class AffordanceConfig:
    """Precision, recall, F1, ROC-AUC, average precision and calibration error of affordances over labelled scenes.

    A model scores every learnt skill in every scene. Of some 200 skills a scene allows a dozen, and most others are
    impossible for the same dull reason, so the headline is over balanced pairs: every possible skill counts 1; the
    impossible ones of a scene and family together count one more than its possible ones (each at most 1), which is what
    drawing that many at random would give on average; then every family weighs the same. The figures over all pairs,
    each counting 1 as planners ask about all of them, stand below, also at a threshold that is tuned to them. Read F1
    beside the column "all possible", which calls every skill possible.

    "arm" rows tell scenes apart that are seen with the arm at rest, before any skill, from those that are seen
    afterwards: an expert has carried out some skill, and the arm is back in its carrying pose.

    --data may also be episodes, of ours or, with --mapping, of anybody's: then the first frame of each success counts
    as possible with its own task, and as impossible with another's, as in the paper.

    Every fourth scene tunes the threshold for the greatest F1, fits the calibration, and is used for nothing else.
    Intervals are 95 %, from drawing scenes again (bootstrap). With --out, scores are kept as they are computed and
    used again; the answer is in affordance.json and, with curves and the worst mistakes as pictures, in report.html."""

    data: Path  # scenes of `python -m saycan_qt.collect affordance`, or a dataset of episodes
    mapping: str = ""  # which of the episodes' columns mean what, as in training: a YAML file, "fractal" or "bridge"
    cache: Folder = None  # of the episodes' decoded frames, as `train --cache`
    rate: float = 0.0  # [Hz] of the episodes, as `train --rate`
    # Shipped checkpoints' names, or folders; all in one table. `affordance` where neither these nor servers are named
    checkpoint: tuple[str, ...] = ()
    server: tuple[str, ...] = ()  # HOST:PORT of running skill servers, in the same table
    credentials: HowToCall = field(default_factory=ClientOptions)
    # What counts as possible. Scenes: the precondition (the default), or that the expert succeeds. Episodes: relabelled
    # (the default), or recorded, which is each episode's own success at its task, or asked: each episode is what a
    # robot saw until the moment that is asked about, and its success whether its task was possible then
    label: Label = "auto"
    threshold: float | Literal["tuned"] = FIXED  # of the precision, recall and F1 that are shown
    # Fit a curve that makes a value a probability, keep it beside each checkpoint, and show both. Isotonic: any rising
    # curve; temperature: one number, for few scenes
    calibrate: Literal["none", "isotonic", "temperature"] = "none"
    # What the curve is fitted to: balanced pairs as in the headline, or all pairs, as planners ask, of which fewer are
    # possible. A value of 0.5 means an even chance among these
    calibrate_on: Literal["balanced", "all"] = "balanced"
    resamples: int = 500  # of the bootstrap
    threads: int = 2  # that the model may use
    json: bool = False  # print the result as JSON on standard output
    out: Path | None = None  # a folder for scores (delete them to score again), affordance.json and report.html


def calibrated(
    judge: Judge,
    questions: Questions,
    scores: np.ndarray,
    method: Literal["isotonic", "temperature"],
    pairs: Literal["balanced", "all"],
) -> tuple[np.ndarray, dict[str, Any]]:
    """The scores (S, N) as probabilities, by a curve that is fitted here and kept beside the checkpoint; and about it.

    A value of 0.5 then means an even chance among `pairs`."""
    from saycan_qt.learning import calibration

    assert judge.folder is not None
    labels, tuning = questions.labels, questions.tuning
    weights = am.balanced_weights(labels, questions.families)

    def weighed(part: np.ndarray) -> np.ndarray:
        return np.ones(labels[part].shape) if pairs == "all" else am.equal_families(weights[part], questions.families)

    curve = calibration.fit(method, labels[tuning], scores[tuning], weighed(tuning))
    after = curve.calibrated(scores)
    rest = labels[~tuning], weighed(~tuning)
    about = {
        "data": questions.digest,
        "label": questions.label,
        "pairs": pairs,
        "scenes": int(tuning.sum()),
        "ece_on_other_scenes": {
            "raw": am.calibration_error(rest[0], scores[~tuning], rest[1]),
            "calibrated": am.calibration_error(rest[0], after[~tuning], rest[1]),
        },
    }
    path = calibration.save(curve, judge.folder, about)
    return after, {"method": method, "file": str(path), **about}


@contextlib.contextmanager
def judges(config: AffordanceConfig) -> Iterator[list[Judge]]:
    """All that are named. Raises CheckpointError, NotComparable or SkillError."""
    from skills.client import SkillClient

    checkpoints = config.checkpoint or (() if config.server else ("affordance",))
    names: Sequence[str] = [*checkpoints, *config.server]
    if twice := [name for name in names if names.count(name) > 1]:
        raise NotComparable(f"{twice[0]!r} is named twice")
    if config.calibrate != "none" and not checkpoints:
        raise NotComparable("--calibrate keeps a curve beside a checkpoint; name the one that the server has loaded")
    with contextlib.ExitStack() as stack:
        found = [affordance_judges.of_checkpoint(name) for name in checkpoints]
        credentials = config.credentials.load() if config.server else None
        clients = [stack.enter_context(SkillClient(address, credentials=credentials)) for address in config.server]
        yield found + [affordance_judges.of_server(client) for client in clients]


def evaluate(config: AffordanceConfig, console: Console) -> tuple[dict[str, Any], Questions]:
    """The answer, as the JSON has it, and what was asked. Raises DatasetError, CheckpointError, NotComparable,
    WeightsError, CalibrationError, SkillError or Interrupted."""
    import torch

    torch.set_num_threads(config.threads)
    questions = ask(config.data, config.mapping, config.label, config.cache, config.rate)
    labels, tuning = questions.labels, questions.tuning
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("scenes"))
    models: dict[str, dict[str, Any]] = {}
    with judges(config) as found, Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for judge in found:
            if strange := [text for text in questions.instructions if not judge.knows(text)]:
                console.print(f"note: {judge.name} never met {len(strange)} of the skills, such as {strange[0]!r}")
            task = progress.add_task(f"scoring {judge.name}", total=len(labels))
            keep = config.out / "scores" / judge.keeps if config.out else None
            advance = partial(progress.advance, task)
            scores, again = affordance_judges.scored(judge, questions.parts, questions.texts, keep, advance)
            if again:  # a class of one's own and somebody's server have one name, whatever they compute
                console.print(
                    f"note: {judge.name}'s scores of {again} of {len(labels)} scenes are those kept in {keep}; delete "
                    "them to score again",
                    soft_wrap=True,
                )
            progress.update(task, description=f"measuring {judge.name}")

            def measured(scores: np.ndarray) -> dict[str, Any]:
                asked = labels, scores, questions.families, questions.moments, tuning
                return figures(*asked, config.threshold, config.resamples)

            models[judge.name] = mine = measured(scores)
            mine["mistakes"] = affordance_report.mistakes(questions, scores, mine["threshold"])
            if config.calibrate != "none" and judge.folder:
                after, about = calibrated(judge, questions, scores, config.calibrate, config.calibrate_on)
                models[f"{judge.name}, {config.calibrate}"] = {**measured(after), "calibration": about}
    answer = {
        "models": models,
        "all_positive_f1": next(iter(models.values()))["all_positive_f1"],
        "title": questions.title,
        "note": questions.note,
        "label": questions.label,
        "data": questions.digest,
        "scenes": int((~tuning).sum()),
        "tuning_scenes": int(tuning.sum()),
        "pairs": int(labels[~tuning].size),
        "positives": int(labels[~tuning].sum()),
    }
    return answer, questions


def affordance(config: AffordanceConfig) -> int:
    from planners.weights import WeightsError
    from saycan_qt.learning.calibration import CalibrationError
    from saycan_qt.learning.checkpoint import CheckpointError
    from skills.errors import SkillError

    console = Console(stderr=True)
    try:
        require(config, threads=1, resamples=1)
        if config.out and config.out.exists() and not config.out.is_dir():
            raise ValueError(f"--out {config.out} is a file; give a folder, which gets affordance.json and report.html")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ours = (
        DatasetError,
        CheckpointError,
        NotComparable,
        WeightsError,
        CalibrationError,
        SkillError,
        Interrupted,
        OSError,
    )
    try:
        answer, questions = evaluate(config, console)
        if config.out:
            atomic.write(config.out / "affordance.json", atomic.to_json(answer))
            atomic.write(config.out / "report.html", affordance_report.render(answer, questions).encode())
    except ours as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = sys.stderr if config.json else sys.stdout
    shown = Console(file=out, width=None if out.isatty() else WIDE)
    shown.print(
        table(answer["models"], f"{answer['title']} ({answer['scenes']}, and {answer['tuning_scenes']} to tune)")
    )
    if answer["note"]:
        shown.print(answer["note"])
    for name, model in answer["models"].items():
        if about := model.get("calibration"):
            raw, after = about["ece_on_other_scenes"].values()
            console.print(
                f"{name}: calibration error {raw:.3f} before, {after:.3f} after; {about['file']}", soft_wrap=True
            )
            if after > raw:
                console.print(
                    f"note: that is worse; {about['scenes']} scenes may be too few to fit it, or another method fits",
                    soft_wrap=True,
                )
    if config.out:
        console.print(f"report: {config.out / 'report.html'}", soft_wrap=True)
    if config.json:
        sys.stdout.write(atomic.to_json(answer).decode())
    return 0
