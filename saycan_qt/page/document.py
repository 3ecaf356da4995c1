"""page.html with something to show in it, and what a browser may do with it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

SLOT = '<script id="boot" type="application/json"></script>'
POLICY_SLOT = "<!-- policy -->"


def page(boot: dict[str, Any], alone: bool = False) -> str:
    """boot: {"mode": "live" | "replay" | "report" | "index" | "enter", ...}. alone: no server says what it may do."""
    data = json.dumps(boot, separators=(",", ":")).replace("<", r"\u003c")
    text = template().replace(SLOT, f"{SLOT.removesuffix('</script>')}{data}</script>")
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy(alone=True)}">'
    return text.replace(POLICY_SLOT, meta if alone else "")


@cache
def template() -> str:
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8")


@cache
def policy(alone: bool = False) -> str:
    """Nothing from elsewhere, and no script or style but the page's own, which are told by their hashes."""
    [style] = re.findall("<style>(.*?)</style>", template(), re.DOTALL)
    [script] = re.findall("<script>(.*?)</script>", template(), re.DOTALL)
    rules = ["default-src 'none'", f"script-src {_hash(script)}", f"style-src {_hash(style)}", "base-uri 'none'"]
    rules += ["form-action 'none'", "img-src 'self' data: blob:"]
    rules += ["media-src 'self' data: blob: file:"] if alone else ["media-src 'self'"]
    rules += [] if alone else ["connect-src 'self'", "frame-ancestors 'none'"]
    return "; ".join(rules)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
