"""What a person sees in the terminal while a run goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status as Spinner
from rich.table import Table

from saycan_qt.journey.results import Step, vetoes
from skills.types import Outcome, Status
from skills.wire.conventions import plain

SHOWN_CANDIDATES = 8
EXPLAINED_CANDIDATES, SHOWN_VETOES = 10, 5  # with --explain
VERDICTS = {True: "Carried out", False: "Not carried out", None: "Not known whether carried out"}
COLOURS = {"succeeded": "green", "failed": "yellow", "canceled": "yellow", "aborted": "red"}


def print_json(content: Mapping[str, Any]) -> bool:
    """In a line; False where nobody reads it any more."""
    try:
        print(json.dumps(content), flush=True)
    except OSError:
        return False
    return True


class Display:
    def __init__(self, console: Console, explain: bool = False, world: str = "kitchen") -> None:
        self.console, self.explain, self.world = console, explain, world
        self._loading: dict[str, float] = {}
        self._lock = threading.Lock()
        self._spinner: Spinner | None = None
        self._moving: Spinner | Progress | None = None

    def title(self, instruction: str, folder: str) -> None:
        self.line(f"[bold]“{escape(instruction)}”[/bold]   [dim]{escape(folder)}[/dim]")

    def line(self, text: str) -> None:
        self.console.print("\n".join(map(plain, text.split("\n"))), highlight=False, soft_wrap=True)

    # -- starting ----------------------------------------------------------------------------------------------------

    def begin_loading(self, name: str) -> None:
        with self._lock:
            self._loading[name] = time.monotonic()
            if not self.console.is_terminal:
                self.console.print(f"[dim]  loading the {name} ...[/dim]", highlight=False)
            self._spin()

    def loaded(self, name: str, detail: str) -> None:
        with self._lock:
            seconds = time.monotonic() - self._loading.pop(name, time.monotonic())
            self.line(f"[green]✓[/green] {name} [dim]{escape(detail)} ({seconds:.1f} s)[/dim]")
            self._spin()

    def _spin(self) -> None:
        if self._loading and self.console.is_terminal:
            text = "loading " + ", ".join(f"the {name}" for name in self._loading)
            if self._spinner is None:
                self._spinner = self.console.status(text)
                self._spinner.start()
            self._spinner.update(text)
        elif self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    # -- one step ----------------------------------------------------------------------------------------------------

    @contextmanager
    def thinking(self, number: int) -> Iterator[None]:
        with self._live(self.console.status(f"step {number}: what is possible, what is sensible?")):
            yield

    def candidates(self, step: Step) -> None:
        """The best candidates, the chosen one first."""
        where = f" at the {step.place}" if step.place else ""
        holding = f", holding the {step.held}" if step.held else ""
        table = Table(box=SIMPLE_HEAD, show_edge=False)
        shown = step.candidates[: EXPLAINED_CANDIDATES if self.explain else SHOWN_CANDIDATES]
        best = [row for row in shown if self.explain or row.score > 0 or row.skill == step.skill]
        columns = ["language", "affordance", "product"]
        if any(row.lowered < 1 for row in best):  # the product is lowered for what has just failed or was just done
            columns.insert(2, "lowered")
        table.add_column("skill", min_width=32)
        for name in columns:
            table.add_column(name, justify="right")
        for row in best:
            values = {
                "language": row.language,
                "affordance": row.affordance,
                "product": row.score,
                "lowered": row.lowered,
            }
            cells = [number(values[name]) for name in columns]
            table.add_row(escape(plain(row.text)), *cells, style="bold" if row.skill == step.skill else "dim")
        self.line(f"\n[bold]Step {step.step}[/bold]{escape(where + holding)}")
        self.console.print(table)
        self.line(f"  → {escape(step.text)}")
        if self.explain:
            self.vetoes(step)

    def vetoes(self, step: Step) -> None:
        """What stood against the other skills."""
        by_affordance, by_language = vetoes(step.candidates)
        for who, why, rows in (
            ("affordance", "more sensible than the chosen one, but less possible", by_affordance),
            ("language", "as possible as the chosen one, but less sensible", by_language),
        ):
            self.line(f"  [bold]{who} vetoed[/bold] [dim]({why})[/dim]: {'' if rows else 'nothing'}")
            for row in rows[:SHOWN_VETOES]:
                scores = f"language {number(row.language)}, affordance {number(row.affordance)}"
                self.line(f"    {escape(row.text)} [dim]{scores}[/dim]")
            if len(rows) > SHOWN_VETOES:
                self.line(f"    [dim]and {len(rows) - SHOWN_VETOES} more[/dim]")

    @contextmanager
    def executing(self, control_steps: int) -> Iterator[Callable[[int], None]]:
        """Live progress of a skill, by calling what this yields; control_steps: at most, 0 for a scripted skill."""
        progress = Progress(
            TextColumn("   "),
            BarColumn(bar_width=24),
            *([MofNCompleteColumn()] if control_steps else []),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        task = progress.add_task("", total=control_steps or None)
        with self._live(progress):
            yield lambda done: progress.update(task, completed=done)

    def outcome(self, step: Step, outcome: Outcome, seconds: float) -> None:
        colour = COLOURS.get(outcome.status.value, "white")
        mark = "✓" if outcome.status is Status.SUCCEEDED else "✗"
        steps = f", {outcome.steps} control steps" if outcome.steps else ""
        said = f": {escape(outcome.message)}" if outcome.message else ""
        self.line(f"  [{colour}]{mark} {outcome.status.value}[/{colour}]{said} [dim]({seconds:.1f} s{steps})[/dim]")

    # -- the end -----------------------------------------------------------------------------------------------------

    def verdict(self, steps: list[Step], success: bool | None, reason: str, judge: str | None) -> None:
        self.console.print()
        for step in steps:
            colour = COLOURS.get(step.outcome, "white")
            self.line(f"  {step.step:2d}. {escape(step.text)}  [{colour}]{step.outcome}[/{colour}]")
        style = {True: "bold green", False: "bold red", None: "bold yellow"}[success]
        word = f"[{style}]{VERDICTS[success]}[/{style}]"
        judges = {
            "goal": f"judged by the {escape(self.world)}'s own check of the goal",
            "skill": "judged by the skill",
            "plan": "judged by the plan",
            "planner": "refused by the planner",
            "person": "judged by you",
        }
        by = f" [dim]({judges[judge]})[/dim]" if judge in judges else ""
        self.line(f"{word}: {escape(reason)}{by}")

    def files(self, folder: str, names: list[str]) -> None:
        self.line(f"[dim]Results:[/dim] {escape(folder)}/ [dim]({', '.join(names)})[/dim]")

    # -- what moves on the screen --------------------------------------------------------------------------------------

    @contextmanager
    def _live(self, moving: Spinner | Progress) -> Iterator[None]:
        """Shown in a terminal only."""
        if not self.console.is_terminal:
            yield
            return
        self._moving = moving
        moving.start()
        try:
            yield
        finally:
            self._moving = None
            moving.stop()

    def clear(self) -> None:
        """Take away what moves, whichever thread shows it, so that what is printed next stands alone."""
        with self._lock:
            self._loading.clear()
            self._spin()
            if self._moving is not None:
                self._moving.stop()


def number(value: float | None) -> str:
    """Three significant digits, short enough for a column: 0.873, 0.0125, 3.1e-05."""
    return "-" if value is None else f"{value:.3g}"
