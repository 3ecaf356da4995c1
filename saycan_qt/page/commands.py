"""What a page asks for, checked before anything is done about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from skills.wire.conventions import CONTROL

LONGEST_TEXT = 2000  # letters
WHENS, OUTCOMES = ("never", "when-unsure", "always"), ("succeeded", "failed")
LARGEST_ID = 1 << 53  # what a browser counts to
METHODS: Mapping[str, str] = {  # what a caller must be allowed, see skills.security.access
    "instruct": "/page/Instruct",
    "answer": "/page/Answer",
    "judge": "/page/Judge",
    "asks": "/page/SetAsking",
    "release": "/page/Release",
    "stop": "/page/Stop",
    "preview": "/page/Preview",
}
WATCH = "/page/Watch"


class NoCommand(ValueError):
    """It is none, and why, in a line."""


def read(message: str) -> dict[str, Any]:
    """With "do" and what belongs to it, no more; {"seen": n} says that n messages have come. Raises NoCommand."""
    try:
        given = json.loads(message)
    except (ValueError, RecursionError):
        raise NoCommand("that is no JSON") from None
    match given:
        case {"seen": int(count)}:
            return {"seen": _whole(count)}
        case {"do": "stop" | "release" as do}:
            return {"do": do}
        case {"do": "instruct", "text": str(text)}:
            if not (said := _text(text)):
                raise NoCommand("there are no words in it; say what you want")
            return {"do": "instruct", "text": said}
        case {"do": "answer", "id": int(number), "text": str(text)}:
            return {"do": "answer", "id": _whole(number), "text": _text(text)}
        case {"do": "judge", "step": int(step), "outcome": str(outcome)} if outcome in OUTCOMES:
            return {"do": "judge", "step": _whole(step), "outcome": outcome}
        case {"do": "asks", "when": str(when)} if when in WHENS:
            return {"do": "asks", "when": when}
        case {"do": "preview", "skill": str(skill)}:
            return {"do": "preview", "skill": _text(skill)}
    raise NoCommand("this page's server knows no such command; is the page older than it? Load it again")


def _text(text: str) -> str:
    if len(text) > LONGEST_TEXT:
        raise NoCommand(f"{len(text)} letters are too many; {LONGEST_TEXT} are the most")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise NoCommand("it has halves of letters, which no encoding has")
    return " ".join(CONTROL.sub(" ", text).split())


def _whole(number: int) -> int:
    if isinstance(number, bool) or not 0 <= number < LARGEST_ID:
        raise NoCommand("a number in it is none that this page gives")
    return number
