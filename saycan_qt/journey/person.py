"""The person who gave the instruction, when the planner has a question: at a terminal, or at the other end of a pipe.

A pipe gets a line of JSON, {"question": {"instruction", "reason", "options", "confidence"}}, and answers in a line: the
number of an option, from 1; other words, which take the place of the instruction; or nothing, which ends the run.
"""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.markup import escape

from planners.asking import Answer, Question
from skills.wire.conventions import CONTROL, plain

YES, NO = "yes", "no"


class Person:
    def __init__(self, console: Console, piped: bool) -> None:
        self._console, self._piped = console, piped

    def ask(self, question: Question) -> Answer:
        """Waits for as long as it takes. Whoever closes their end wants nothing more."""
        while True:
            if (answer := question.understand(self._line(question))) is not None:
                return answer
            self._console.print(f"  there are {len(question.options)} to choose from", highlight=False)

    def content(self, reason: str) -> bool | None:
        """Is what was done what they wanted? None: they do not say."""
        said = self._line(Question("", f"{reason}; is it what you wanted?", instructions=(YES, NO))).casefold()
        return {YES: True, "y": True, "1": True, NO: False, "n": False, "2": False}.get(said)

    def _line(self, question: Question) -> str:
        if self._piped:
            print(json.dumps({"question": question.told}), flush=True)
        else:
            self._console.print(f"\n[bold]?[/bold] {escape(plain(question.reason))}", highlight=False)
            for number, option in enumerate(question.options, 1):
                self._console.print(f"  {number}. {escape(plain(option))}", highlight=False)
            self._console.print("  a number, other words, or s to stop: ", end="", highlight=False)
        return " ".join(CONTROL.sub(" ", sys.stdin.readline()).split())
