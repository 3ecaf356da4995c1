"""What is measured by an affordance evaluation: checkpoints and running skill servers, and their scores.

A judge's scores are kept row by row, so that an evaluation which was interrupted goes on where it was.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saycan_qt import atomic
from saycan_qt.evaluation.affordance.questions import History, NotComparable, Part
from skills.errors import SkillError


class Interrupted(Exception):
    """A judge stopped answering: why, and after how many of how many scenes."""


@dataclass(frozen=True)
class Judge:
    """Anything with a value for an instruction."""

    name: str  # as people gave it
    digest: str  # of what judges: the manifest's SHA-256, or the server's id of its model
    value: Callable[[History, Sequence[str]], np.ndarray]  # affordances (N,) in [0, 1]
    knows: Callable[[str], bool]  # was it trained on this instruction?
    folder: Path | None = None  # a checkpoint's

    @property
    def keeps(self) -> str:
        """The folder's name under which its scores are kept."""
        return f"{re.sub(r'[^A-Za-z0-9-]+', '-', self.name)}-{atomic.sha256(self.digest.encode())[:12]}"


def of_checkpoint(name: str) -> Judge:
    """A shipped checkpoint's name, or a folder. Raises CheckpointError or NotComparable."""
    from saycan_qt.learning import checkpoint
    from saycan_qt.learning.algorithms import ALGORITHMS

    policy = checkpoint.load(name)
    if not hasattr(policy, "value"):
        judging = " or ".join(kind for kind, algorithm in ALGORITHMS.items() if hasattr(algorithm, "value"))
        raise NotComparable(f"checkpoint {name!r} only acts; this needs one that judges: {judging}")
    folder = checkpoint.resolve(name)
    return Judge(
        name,
        checkpoint.digest(folder)[:12],
        policy.value,
        lambda text: text in policy.texts.table,
        folder,
    )


def of_server(client) -> Judge:
    """A running skill server, through its SkillClient. An instruction is a skill's name or its text."""
    info = client.info()
    if not info.critic_id:
        raise NotComparable(f"the skill server at {client.address} judges nothing: it hosts no critic")
    library = client.list_skills()
    names = {skill.text: skill.name for skill in library} | {skill.name: skill.name for skill in library}

    def value(seen: History, texts: Sequence[str]) -> np.ndarray:
        scores = client.score(seen, [names.get(text, text) for text in texts])
        return np.array([score.affordance for score in scores], np.float32)

    return Judge(client.address, info.critic_id, value, names.__contains__)


def scored(
    judge: Judge,
    parts: Iterable[Part],
    texts: Sequence[Sequence[str]],
    keep: Path | None,
    progress: Callable[[int], None],
) -> tuple[np.ndarray, int]:
    """Affordances (S, N) of texts (S, N), and of how many scenes they were kept. keep: a folder in which every part's
    scores are kept, and found again. Raises NotComparable, or Interrupted where a server stops answering; what was
    scored is kept then, too."""
    done, first, again = [], 0, 0
    for part in parts:
        asked = texts[first : first + part.count]
        words = atomic.sha256("\n".join(text for row in asked for text in row).encode())[:8]
        kept = keep / f"{part.key}-{words}.npy" if keep else None
        rows = list(np.load(kept)) if kept is not None and kept.exists() else []
        progress(len(rows))
        again += (found := len(rows))
        try:
            for seen, wanted in zip(part.read()[found:] if found < part.count else (), asked[found:], strict=True):
                try:
                    rows.append(np.asarray(judge.value(seen, wanted), np.float32))
                except ValueError as error:
                    raise NotComparable(f"{part.key}, row {len(rows)}: {error}") from None
                except SkillError as error:
                    why = str(error) if judge.name in str(error) else f"{judge.name}: {error}"
                    kept_in = f"kept in {keep.parent.parent}; run again to go on" if keep else "lost; --out keeps them"
                    so_far = f"the scores of {first + len(rows)} of {len(texts)} scenes are {kept_in}"
                    raise Interrupted(f"{why}; {so_far}") from None
                progress(1)
        finally:
            if kept is not None and len(rows) > found:
                buffer = io.BytesIO()
                np.save(buffer, np.stack(rows))
                atomic.write(kept, buffer.getvalue())
        done += rows
        first += part.count
    return np.stack(done), again
