"""A file of outcomes: which episodes of a dataset succeeded, where nobody wrote it into the dataset.

    {0: true, 1: false, 2: true}                      # YAML or JSON: episode_index -> did it succeed?
    [true, false, true]                               # or one after the other
    {shard-000: {0: true}, shard-001: [false]}        # of several datasets: by the names of their folders

    episode,success                                   # CSV; a column `dataset` where there are several
    0,true

An episode that the file does not name is left out. Where one is cut as its task changes, all parts have its outcome.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saycan_qt.data.lerobot import DatasetError
from skills import files

SUFFIXES = (".yaml", ".yml", ".json", ".csv")
MOST_BYTES, MOST = 16 * 2**20, 2_000_000  # of a file of them, and of the values in it
WORDS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
EXAMPLE = "write for instance `{0: true, 1: false}`"


@dataclass(frozen=True)
class Outcomes:
    """episode_index -> success, by the name of the dataset's folder; "" where there is one dataset."""

    file: str  # its name
    of_dataset: Mapping[str, Mapping[int, bool]]

    @classmethod
    def load(cls, path: Path) -> Outcomes:
        """Raises DatasetError."""
        try:
            text = files.read_text(path, MOST_BYTES)
            given = _rows(text, path) if path.suffix == ".csv" else files.from_yaml(text, MOST)  # JSON is YAML
        except (OSError, UnicodeDecodeError, yaml.YAMLError, csv.Error) as error:
            raise DatasetError(f"{path}: outcomes cannot be read: {' '.join(str(error).split())}") from None
        if isinstance(given, Mapping) and given and not any(str(name).isdecimal() for name in given):
            return cls(path.name, {str(name): _outcomes(part, path) for name, part in given.items()})
        return cls(path.name, {"": _outcomes(given, path)})

    def of(self, root: Path) -> Mapping[int, bool]:
        """Raises DatasetError for a dataset that the file does not name."""
        name = "" if "" in self.of_dataset else root.resolve().name
        if name not in self.of_dataset:
            there = ", ".join(self.of_dataset)
            raise DatasetError(f"{self.file} has outcomes of {there}, none of {name!r}, a dataset's folder")
        return self.of_dataset[name]


def _rows(text: str, path: Path) -> dict[Any, Any]:
    rows = list(csv.DictReader(text.splitlines(), skipinitialspace=True))
    if not rows or not {"episode", "success"} <= rows[0].keys():
        raise DatasetError(f"{path}: the first line of outcomes must be `episode,success`")
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        of, episode = found.setdefault(row.get("dataset", ""), {}), row["episode"]
        if episode in of:
            where = f" of {row['dataset']!r}" if "dataset" in row else ""
            raise DatasetError(f"{path}: episode {episode}{where} stands twice")
        of[episode] = row["success"]
    return found if "dataset" in rows[0] else found[""]


def _outcomes(given: Any, path: Path) -> dict[int, bool]:
    """Of one dataset."""
    if isinstance(given, list):
        given = dict(enumerate(given))
    if not isinstance(given, Mapping) or not given:
        raise DatasetError(f"{path}: no outcomes in it; {EXAMPLE}")
    found = {}
    for episode, success in given.items():
        success = WORDS.get(str(success).strip().lower())
        if isinstance(episode, bool) or not str(episode).isdecimal() or len(str(episode)) > 18 or success is None:
            said = f"{str(episode)[:50]!r}: {str(given[episode])[:50]!r}"
            raise DatasetError(f"{path}: {said} is no outcome of an episode; {EXAMPLE}")
        found[int(episode)] = success
    return found
