"""The table of an affordance evaluation: models side by side, beside calling everything possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import Any

from rich.table import Table

Row = tuple[str, list[str], str]  # what is measured, a cell for each model, calling everything possible
WIDE = 200  # [characters] of the table where no terminal limits it
SHOWN = {
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "auc": "ROC-AUC",
    "ap": "average precision",
    "ece": "calibration error",
}


def sections(models: Mapping[str, dict[str, Any]]) -> Iterator[list[Row]]:
    """The rows, section by section. models: as the JSON has them."""

    def figures(*path: str) -> list[dict[str, Any]]:
        return [reduce(getitem, path, model) for model in models.values()]

    def row(name: str, key: str, baseline: float | None, *path: str) -> Row:
        return name, [cell(of, key) for of in figures(*path)], "" if baseline is None else f"{baseline:.2f}"

    def thresholds(name: str, *path: str) -> Row:
        return name, [f"{of['threshold']:.2f}" for of in figures(*path)], ""

    first = next(iter(models.values()))
    always = {"f1": first["all_positive_f1"], "recall": 1.0, "precision": 1 / (2 / first["all_positive_f1"] - 1)}
    other = "fixed" if first["threshold"] == first["tuned"]["threshold"] else "tuned"
    yield [
        *(row(name, key, always.get(key)) for key, name in SHOWN.items()),
        thresholds("threshold"),
        row(f"F1, {other} threshold", "f1", always["f1"], other),
        thresholds(f"{other} threshold", other),
    ]
    for part, prefix in (("families", "F1, "), ("moments", "F1, arm ")):
        if len(first[part]) > 1:
            yield [row(prefix + name, "f1", of["all_positive_f1"], part, name) for name, of in first[part].items()]
    always_all = {"f1": first["all_pairs"]["all_positive_f1"]}
    if len(first["families"]) > 1:  # else the same again
        tuned = "all_pairs", "tuned"
        yield [
            *(row(f"all pairs: {name}", key, always_all.get(key), "all_pairs") for key, name in SHOWN.items()),
            row("all pairs: F1, tuned to them", "f1", always_all["f1"], *tuned),
            row("... precision", "precision", None, *tuned),
            row("... recall", "recall", None, *tuned),
            thresholds("... threshold", *tuned),
            *(row(f"... F1, {family}", "f1", None, *tuned, "families", family) for family in first["families"]),
        ]


def cell(figures: Mapping[str, Any], key: str) -> str:
    """A figure, with its interval where there is one."""
    if key not in figures:
        return "-"
    interval = figures.get("intervals", {}).get(key)
    return f"{figures[key]:.2f}" + (" ({:.2f} - {:.2f})".format(*interval) if interval else "")


def table(models: Mapping[str, dict[str, Any]], title: str) -> Table:
    """All sections, for a terminal."""
    grid = Table(title=title)
    grid.add_column("", no_wrap=True)
    for column in (*models, "all possible"):
        grid.add_column(column.replace(", ", "\n"), justify="right", min_width=18 if column in models else 0)
    for rows in sections(models):
        for name, cells, baseline in rows:
            grid.add_row(name, *cells, baseline)
        grid.add_section()
    return grid
