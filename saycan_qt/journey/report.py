"""Turn a run's folder into one HTML page that needs nothing else: no server, no network, no other file.

It is the page of `saycan_qt.page` with the run inside. `saycan_qt.run` writes it; `python -m saycan_qt.report DIR`
makes it again from plan.json and the pictures.
"""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

from saycan_qt.journey.results import REPORT, write_atomically
from saycan_qt.page.document import page
from saycan_qt.page.runs import TYPES, inside, pictures, read_plan

INLINED_VIDEO = 8_000_000  # [bytes]; a larger video is linked


def data_uri(path: Path) -> str:
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def render(folder: Path) -> str:
    """Raises NoRun for a folder whose plan.json is missing or damaged."""
    plan = read_plan(folder)
    files = {name: data_uri(path) for name in pictures(plan) if (path := inside(folder, name))}
    if video := inside(folder, plan.get("video")):
        files[plan["video"]] = data_uri(video) if video.stat().st_size < INLINED_VIDEO else quote(plan["video"])
    return page({"mode": "report", "plan": plan, "files": files}, alone=True)


def write_report(folder: Path) -> Path:
    write_atomically(folder / REPORT, render(folder))
    return folder / REPORT
