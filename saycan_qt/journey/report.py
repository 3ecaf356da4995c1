"""Turn a run's folder into one HTML page that needs nothing else: no server, no network, no other file.

`saycan_qt.run` writes it; `python -m saycan_qt.report DIR` makes it again from plan.json and the pictures.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2

from saycan_qt.journey.display import VERDICTS
from saycan_qt.journey.results import PLAN, REPORT, Candidate, vetoes, write_atomically

SHOWN_CANDIDATES, SHOWN_VETOES = 10, 5
INLINED_VIDEO = 8_000_000  # [bytes]; a larger video is linked
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".mp4": "video/mp4"}


def data_uri(path: Path) -> str:
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def pictures(folder: Path, row: dict[str, Any]) -> list[tuple[str, str]]:
    """(caption, data URI) of each view of a step; the policies' own small picture where there is no view."""
    files = row.get("views") or ({"camera": row["observation"]} if row.get("observation") else {})
    return [(name, data_uri(folder / file)) for name, file in files.items() if (folder / file).is_file()]


def bars(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best candidates, with the length of three bars in percent: the affordance is a probability and shown as it
    is, the language model's and the product are relative to their greatest in this step."""
    kinds = ("language", "affordance", "score")
    longest = {kind: max((row[kind] or 0.0 for row in candidates), default=0.0) or 1.0 for kind in kinds}
    longest["affordance"] = 1.0
    return [
        {"raw": None, **row, "width": {kind: 100 * (row[kind] or 0.0) / longest[kind] for kind in kinds}}
        for row in candidates[:SHOWN_CANDIDATES]
    ]


def vetoed(candidates: list[dict[str, Any]]) -> list[tuple[str, str, list[Candidate], int]]:
    """(who vetoed, of what kind, the first of them, how many more) for affordance and for language."""
    by_affordance, by_language = vetoes([Candidate(**row) for row in candidates])
    return [
        (who, kind, rows[:SHOWN_VETOES], max(0, len(rows) - SHOWN_VETOES))
        for who, kind, rows in (
            ("Affordance", "more sensible than the chosen skill, but less possible", by_affordance),
            ("Language", "as possible as the chosen skill, but less sensible", by_language),
        )
    ]


def render(folder: Path) -> str:
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    video = folder / plan["video"] if plan.get("video") else None
    inline = video is not None and video.is_file() and video.stat().st_size < INLINED_VIDEO
    template = Path(__file__).with_name("report_template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template).render(
        verdict=VERDICTS[plan["success"]],
        plan={
            "affordances": None,
            "refusal": None,
            "planner": {},
            "world": "kitchen",
            **plan,
        },  # runs of earlier versions lack them
        steps=[
            {
                **step,
                "pictures": pictures(folder, step),
                "bars": bars(step["candidates"]),
                "vetoes": vetoed(step["candidates"]),
                "unscored": sum(row["language"] is None for row in step["candidates"]),
            }
            for step in plan["steps"]
        ],
        final=pictures(folder, plan.get("final", {})),
        video_uri=data_uri(video) if inline and video else None,
        video_link=plan["video"] if video is not None and video.is_file() and not inline else None,
    )


def write_report(folder: Path) -> Path:
    write_atomically(folder / REPORT, render(folder))
    return folder / REPORT
