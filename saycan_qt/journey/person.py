"""The person who gave the instruction, when the planner has a question: at a terminal, or at the other end of a pipe.

A pipe gets a line of JSON, {"question": {"instruction", "reason", "options", "confidence"}}, and answers in a line: the
number of an option, from 1; other words, which take the place of the instruction; or nothing, which ends the run.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from planners.asking import Question
from skills.library import Skill
from skills.wire.conventions import CONTROL, plain

YES, NO = "yes", "no"
STOP = ("", "s", "stop", "q", "quit")


@dataclass(frozen=True)
class Answer:
    """Either of the first two, or neither: then nothing more shall be done."""

    skill: Skill | None = None
    instruction: str = ""


class Person:
    def __init__(self, console: Console, piped: bool) -> None:
        self._console, self._piped = console, piped

    def ask(self, question: Question) -> Answer:
        """Waits for as long as it takes. Whoever closes their end wants nothing more."""
        while True:
            said = self._line(question)
            if said.casefold() in STOP:
                return Answer()
            if not said.isdecimal():
                return Answer(instruction=said)
            if 1 <= int(said) <= len(question.options):
                chosen = int(said) - 1
                if question.skills:
                    return Answer(skill=question.skills[chosen])
                return Answer(instruction=question.instructions[chosen])
            self._console.print(f"  there are {len(question.options)} to choose from", highlight=False)

    def content(self, reason: str) -> bool | None:
        """Is what was done what they wanted? None: they do not say."""
        said = self._line(Question("", f"{reason}; is it what you wanted?", instructions=(YES, NO))).casefold()
        return {YES: True, "y": True, "1": True, NO: False, "n": False, "2": False}.get(said)

    def _line(self, question: Question) -> str:
        if self._piped:
            told = {"instruction": question.instruction, "reason": question.reason, "options": list(question.options)}
            print(json.dumps({"question": {**told, "confidence": round(question.confidence, 4)}}), flush=True)
        else:
            self._console.print(f"\n[bold]?[/bold] {escape(plain(question.reason))}", highlight=False)
            for number, option in enumerate(question.options, 1):
                self._console.print(f"  {number}. {escape(plain(option))}", highlight=False)
            self._console.print("  a number, other words, or s to stop: ", end="", highlight=False)
        return " ".join(CONTROL.sub(" ", sys.stdin.readline()).split())
