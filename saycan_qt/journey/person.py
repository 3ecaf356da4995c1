"""The person who gives the instructions, and answers what the planner asks: at a terminal, at the other end of a pipe,
in a browser; whoever answers first.

A pipe gets a line of JSON, {"question": {"instruction", "reason", "options", "confidence", "skills", "other_words"}},
and answers in a line: the number of an option, from 1; where they are skills any skill's text, or "veto" for another
one to be proposed; where other words may take the place of the instruction, such words; or nothing, which ends the run.
Whether it is what they wanted is the last question: of other words than yes and no it says that they are no answer, and
asks again.
"""

from __future__ import annotations

import io
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from typing import TextIO

from rich.console import Console
from rich.markup import escape

from planners.asking import Answer, Question, When
from saycan_qt.journey.display import print_json
from saycan_qt.journey.feed import Feed
from skills.library import Skill
from skills.wire.conventions import CONTROL, plain

YES, NO = "yes", "no"
REACTION = 0.7  # [s] nobody reads a question and types an answer in less


def word_of(line: str) -> str:
    """A line as words are compared."""
    return " ".join(line.split()).casefold()


def is_terminal(file: TextIO | None) -> bool:
    return file is not None and not file.closed and file.isatty()


class Left(Exception):
    """The question is of no use any more: the run is over."""


class Person:
    def __init__(
        self,
        console: Console,
        piped: bool,
        when: When = "never",  # they are asked; it may be changed at any time
        feed: Feed | None = None,
        hear: Callable[[str | None], None] | None = None,  # what is said while nothing is asked; None: the end of it.
        # Without it standard input is read only while something is asked
        elsewhere: bool = False,  # can they answer in a browser, too? Then the end of standard input is no answer
        apart: Collection[str] = (),  # words that are heard as such also while something is asked
    ) -> None:
        self.when = when
        self._console, self._piped, self._feed = console, piped, feed or Feed()
        self._hear, self._elsewhere, self._apart = hear, elsewhere, apart
        self._lock = threading.Lock()
        self._reading = False
        self._closed = False  # standard input
        self._number = 0
        self._overtaken = False  # the question before was answered elsewhere, and a line of the terminal's may be of it
        self._since = 0.0  # [s] of time.monotonic, before it no line can be meant for the open question
        self._why_missed = ""  # a line before that
        self._left = False  # nobody needs an answer any more
        self._open: queue.SimpleQueue[str | None] | None = None  # where answers to the open question go
        if isinstance(sys.stdin, io.TextIOWrapper):
            with suppress(OSError):  # it was read before
                sys.stdin.reconfigure(errors="surrogateescape")  # one line that is no UTF-8 is not the end of all

    def listen(self) -> None:
        """Standard input is read from now on, whether something is asked or not."""
        assert self._hear is not None, "somebody hears it"
        self._read()

    def ask(
        self,
        question: Question,
        proposed: Callable[[Skill], None] = lambda skill: None,  # told of each skill that comes after a veto
        stopped: threading.Event | None = None,  # once it is set nothing is asked; whoever sets it says `give_up`, too
    ) -> Answer:
        """Waits for as long as it takes. Whoever closes their end wants nothing more. Raises Left."""
        while True:
            other = "veto for another, " if question.skills else ""
            how = f"a number, {other}other words, or s to stop"
            answer = question.understand(self._ask(question, how, stopped))
            if answer is None:
                self._console.print(f"  there are {len(question.options)} to choose from", highlight=False)
            elif answer.veto:
                question = question.vetoed()
                proposed(question.skills[0])
            else:
                return answer

    def judge(self, question: Question) -> Answer:
        """YES, NO or nothing; who says something else, such as the next instruction, is asked again. Raises Left."""
        asked = question
        while True:
            said = self._ask(asked, f"{YES}, {NO}, or s to leave it open")
            word = re.sub(r"\W+", " ", said).strip().casefold() or said
            answer = question.understand({"y": YES, "n": NO}.get(word, word))
            if answer is not None and answer.instruction in (YES, NO, ""):
                return answer
            told = f"“{said}” is no answer, and was not taken as an instruction; say {YES} or {NO} first"
            asked = replace(question, reason=f"{told}: {question.reason}")

    def answer(self, number: int, text: str) -> bool:
        """From elsewhere, of a question by its number. False: that one is not open any more."""
        with self._lock:
            if number != self._number or not self._close(text):
                return False
            self._overtaken = not self._piped
        if not self._piped:
            self._console.print(escape(plain(text)), highlight=False)
        return True

    def alone(self) -> None:
        """Nobody can answer in a browser any more: the end of standard input counts."""
        with self._lock:
            self._elsewhere, over = False, self._closed
        if over:
            self.give_up()
            if self._hear is not None:
                self._hear(None)

    def give_up(self) -> None:
        """What is asked is answered by nothing, which ends the run."""
        with self._lock:
            self._close("")

    def leave(self) -> None:
        """Nobody needs an answer any more, until somebody says `stay`."""
        with self._lock:
            self._left = True
            self._close(None)

    def stay(self) -> None:
        """Another run begins."""
        with self._lock:
            self._left = False

    def _close(self, text: str | None) -> bool:
        """Answer the open question: what is said next is said of something else. False: there is none."""
        answers, self._open = self._open, None
        if answers is not None:
            answers.put(text)
        return answers is not None

    def _ask(self, question: Question, how: str, stopped: threading.Event | None = None) -> str:
        """how: to answer it at a terminal."""
        answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with self._lock:
            if self._left:
                raise Left
            if stopped is not None and stopped.is_set():  # one that comes later finds the question open
                return ""
            self._number += 1
            self._open = answers
            typed = not self._piped and is_terminal(sys.stdin)  # perhaps before this was asked
            self._since = time.monotonic() + REACTION if self._overtaken or typed else 0.0
            why = (
                "the question before was answered elsewhere"
                if self._overtaken
                else "that was typed before it was asked"
            )
            self._why_missed, self._overtaken = why, False
        if self._piped:
            if not print_json({"question": question.told}):
                raise SystemExit  # nobody reads it
        else:
            self._console.print(f"\n[bold]?[/bold] {escape(plain(question.reason))}", highlight=False)
            for number, option in enumerate(question.options, 1):
                self._console.print(f"  {number}. {escape(plain(option))}", highlight=False)
            self._console.print(f"  {how}: ", end="", highlight=False)
        self._feed.tell(question={"id": self._number, **question.told})
        try:
            if self._closed and not self._elsewhere:
                return ""
            self._read()
            if (said := answers.get()) is None:
                raise Left
            return " ".join(CONTROL.sub(" ", said.encode(errors="replace").decode()).split())
        finally:
            with self._lock:
                self._open = None
            self._feed.tell(question=None)

    def _read(self) -> None:
        """One line more is wanted, or all of them."""
        with self._lock:
            if self._reading or self._closed:
                return
            self._reading = True
        threading.Thread(target=self._lines, name="standard input", daemon=True).start()

    def _lines(self) -> None:
        while True:
            try:
                line = sys.stdin.readline()
            except (OSError, ValueError, AttributeError):  # closed, or there never was one
                line = ""
            apart = self._hear is not None and word_of(line) in self._apart
            with self._lock:
                self._closed = not line
                missed = bool(line) and not apart and self._open is not None and time.monotonic() < self._since
                reads_on = self._hear is not None or missed  # else whoever asks next reads
                more = self._reading = reads_on and not self._closed
                asked = not apart and not missed and not (self._closed and self._elsewhere) and self._close(line)
            if missed:
                self._console.print(f"  {self._why_missed}; say it again", highlight=False)
                continue
            if not asked and line and self._hear is None:
                self._console.print("  nothing is asked just now", highlight=False)
            if self._hear is not None and (self._closed or not asked):
                self._hear(line or None)
            if not more:
                return
