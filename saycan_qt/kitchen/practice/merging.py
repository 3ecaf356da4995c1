"""Collections made in pieces become one dataset, the one that a single worker would have written."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from saycan_qt import atomic
from saycan_qt.data import lerobot
from saycan_qt.data.episodes import DatasetError, Episode, Quarantined
from saycan_qt.data.reader import Shard
from saycan_qt.kitchen.practice.collection import MERGED, SETTINGS, datasets, differing, shard_in, told, writer

WHERE = ("workers", "shard", MERGED)  # settings that say which episodes lie where, and nothing about them
NUMBER = "number"  # of an episode, in its info
SHOWN = 5  # numbers that are named


@dataclass(frozen=True)
class MergeConfig:
    """Make one dataset of a collection's pieces, in the order of the episodes' numbers: the same bits as if one worker
    had collected them all. Interrupted, or with pieces that have grown, it goes on where it was."""

    collections: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR...", help_behavior_hint="")
    ]
    out: Path  # folder of the dataset


@dataclass(frozen=True)
class Piece:
    """A dataset of a collection, and which episodes it holds."""

    shard: Shard
    numbers: np.ndarray  # (E,) rising


def pieces(config: MergeConfig) -> tuple[list[Piece], dict[str, Any]]:
    """The datasets, which together hold each episode once, and the settings that they share. ValueError."""
    if not config.collections:
        raise ValueError("name the folders of all pieces, as in `collect merge --out data/kitchen data/kitchen-*`")
    described = {folder: _settings(folder) for folder in config.collections}
    (first, settings), *others = described.items()
    for other, theirs in others:
        if unlike := [key for key in differing(settings, theirs) if key not in WHERE]:
            said = dict.fromkeys(told(unlike[0], their.get(unlike[0])) for their in (settings, theirs))
            raise ValueError(f"{first} and {other} are of different collections: {' and '.join(said)}")
    roots = [root for folder in described for root in datasets(folder)]
    found = [Piece(shard, shard.noted(NUMBER)) for shard in map(Shard, roots)]
    for piece in found:
        if (np.diff(piece.numbers) <= 0).any():
            raise ValueError(f"{piece.shard.root}: its episodes' numbers do not rise; it is no piece of a collection")
    numbers = np.sort(np.concatenate([piece.numbers for piece in found])) if found else np.zeros(0, np.int64)
    if not len(numbers):
        raise ValueError(f"{first} holds no episode yet")
    if twice := _some(numbers[1:][np.diff(numbers) == 0]):
        raise ValueError(f"episodes {twice} are there twice; name each piece once")
    missing = np.setdiff1d(np.arange(numbers[-1] + 1), numbers)
    if text := _some(missing):
        of = {shard_in(str(theirs.get("shard", "")))[1] for theirs in described.values()}
        which = f" of --shard {missing[0] % max(of) + 1}/{max(of)}" if max(of) > 1 else ""
        raise ValueError(f"episodes {text} are missing, the first{which}; collect them, and name all pieces")
    return found, {key: value for key, value in settings.items() if key not in WHERE} | {MERGED: True}


def merge(
    config: MergeConfig, found: Sequence[Piece], settings: Mapping[str, Any], advance: Callable[[int], None]
) -> None:
    """Write the pieces' episodes to one dataset. Raises DatasetError for one that is damaged; ValueError."""
    path = config.out / SETTINGS
    if path.exists() and lerobot.read_json(path) != settings:
        raise ValueError(f"{config.out} holds another collection, or one that was not merged; choose another --out")
    if not path.exists() and config.out.is_dir() and any(config.out.iterdir()):
        raise ValueError(f"{config.out} holds something else; choose another --out")
    atomic.write(path, atomic.to_json(settings))
    with writer(config.out) as out:
        advance(done := out.num_episodes)
        each = (_episodes(piece, int(np.searchsorted(piece.numbers, done))) for piece in found)
        for _, episode in heapq.merge(*each, key=lambda numbered: numbered[0]):
            out.add(episode)
            advance(1)


def _episodes(piece: Piece, first: int) -> Iterator[tuple[int, Episode]]:
    for found in piece.shard.episodes(first):
        if isinstance(found, Quarantined):
            raise DatasetError(f"{found}; remove {piece.shard.root} and collect it again")
        episode, _ = found
        yield int(episode.info[NUMBER]), episode


def _settings(folder: Path) -> dict[str, Any]:
    if not (folder / SETTINGS).exists():
        raise ValueError(f"{folder}: no collection of `python -m saycan_qt.collect` (it has no {SETTINGS})")
    return lerobot.read_json(folder / SETTINGS)


def _some(numbers: np.ndarray) -> str:
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return ", ".join(map(str, numbers[:SHOWN].tolist())) + more
