"""How recorded episodes really ended, where a person saw it otherwise than the robot told.

{"goal_id": "3f0c...", "succeeded": false}      a line of corrections.jsonl, beside the recordings; the last counts
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from saycan_qt.data.lerobot import DatasetError
from skills import files

FILE = "corrections.jsonl"
MOST_BYTES = 16 << 20


def add(folder: Path, goal_id: str, succeeded: bool) -> None:
    """Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"goal_id": goal_id, "succeeded": succeeded}) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def read(folder: Path) -> dict[str, bool]:
    """goal_id -> did it succeed? Nothing where there is no such file. Raises DatasetError."""
    path, found, number = folder / FILE, {}, 0
    if not path.is_file():
        return {}
    try:
        for line in files.read_text(path, MOST_BYTES).splitlines():
            number += 1
            entry = json.loads(line)
            goal_id, succeeded = entry["goal_id"], entry["succeeded"]
            if not (isinstance(goal_id, str) and goal_id and isinstance(succeeded, bool)):
                raise ValueError("a goal_id is text, and `succeeded` true or false")
            found[goal_id] = succeeded
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: corrections cannot be read: {' '.join(str(error).split())}") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DatasetError(f"{path}, line {number}: {' '.join(str(error).split())}; mend it, or take it out") from None
    return found
