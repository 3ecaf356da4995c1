"""The page of an affordance evaluation: figures, curves and the worst mistakes as pictures, in one self-contained file.

`python -m saycan_qt.evaluate affordance --out DIR` writes it as DIR/report.html.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from saycan_qt.evaluation.affordance.questions import Questions
from saycan_qt.evaluation.affordance.table import sections

WORST = 12  # mistakes of either kind that are shown
WIDTH = 384  # [px] small images are enlarged to about as much, by a whole factor: 80 x 96 by 4
SIDE = 300  # [px] of a plot
COLORS = 6  # that the template names; more models begin anew


def mistakes(questions: Questions, scores: np.ndarray, threshold: float) -> dict[str, list[dict[str, Any]]]:
    """What is called possible with the highest values and is not, and the other way round: the worst one of each scene,
    from scenes that tune nothing."""
    labels, tuning, called = questions.labels, questions.tuning, scores >= threshold

    def worst(wrong: np.ndarray, badness: np.ndarray) -> list[dict[str, Any]]:
        badness = np.where(wrong & ~tuning[:, None], badness, -np.inf)
        columns = badness.argmax(axis=1)
        values = badness[np.arange(len(badness)), columns]
        rows = [int(r) for r in np.argsort(-values, kind="stable")[:WORST] if values[r] > -np.inf]
        return [
            {
                "row": row,
                "scene": int(questions.numbers[row]),
                "instruction": questions.texts[row][columns[row]],
                "value": float(scores[row, columns[row]]),
                **{key: str(words[row]) for key, words in questions.about.items()},
            }
            for row in rows
        ]

    return {"false_positives": worst(~labels & called, scores), "false_negatives": worst(labels & ~called, -scores)}


def render(answer: Mapping[str, Any], questions: Questions) -> str:
    """answer: what affordance.json holds, about these questions."""
    models = list(answer["models"].items())
    wrong = {row["row"] for _, model in models for kind in model.get("mistakes", {}).values() for row in kind}
    last = {row: seen[-1] for row, seen in questions.histories(sorted(wrong)).items()}  # some robots have no camera
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["points"] = points
    template = Path(__file__).with_name("report_template.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        answer=answer,
        models=[(f"c{i % COLORS}", name, model) for i, (name, model) in enumerate(models)],
        sections=sections(answer["models"]),
        families=bars(answer["models"]),
        pictures={row: picture(seen.image) for row, seen in last.items() if seen.images},
        side=SIDE,
    )


def points(rows: Iterable[Mapping[str, float]], x: str, y: str) -> str:
    """An SVG polyline's points of two numbers in [0, 1] of each row; y grows upwards."""
    return " ".join(f"{SIDE * row[x]:.1f},{SIDE * (1 - row[y]):.1f}" for row in rows)


def bars(models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """F1 of each family, model by model, as percentages; none where there is only one family."""
    first = next(iter(models.values()))["families"]
    return [
        {
            "name": name,
            "baseline": 100 * of["all_positive_f1"],
            "pairs": of["pairs"],
            "positives": of["positives"],
            "models": [
                {"f1": 100 * mine["f1"], "interval": [100 * x for x in mine["intervals"].get("f1", ())]}
                if "f1" in (mine := model["families"][name])
                else None
                for model in models.values()
            ],
        }
        for name, of in first.items()
        if len(first) > 1
    ]


def picture(image: np.ndarray) -> str:
    """A PNG's data URI; small images are enlarged without blurring."""
    factor = max(1, round(WIDTH / image.shape[1]))
    buffer = io.BytesIO()
    enlarged = Image.fromarray(image).resize(
        (factor * image.shape[1], factor * image.shape[0]), Image.Resampling.NEAREST
    )
    enlarged.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
