"""What a person sees in the terminal while a run goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status as Spinner
from rich.table import Table

from saycan_qt.results import Step
from skills.types import Outcome, Status

SHOWN_CANDIDATES = 8
COLOURS = {"succeeded": "green", "failed": "yellow", "canceled": "yellow", "aborted": "red"}


class Display:
    def __init__(self, console: Console) -> None:
        self.console = console
        self._loading: dict[str, float] = {}
        self._lock = threading.Lock()
        self._spinner: Spinner | None = None

    def title(self, instruction: str, folder: str) -> None:
        self.console.print(f"[bold]“{escape(instruction)}”[/bold]   [dim]{escape(folder)}[/dim]")

    def line(self, text: str) -> None:
        self.console.print(text, highlight=False)

    # -- starting ----------------------------------------------------------------------------------------------------

    def begin_loading(self, name: str) -> None:
        with self._lock:
            self._loading[name] = time.monotonic()
            if not self.console.is_terminal:
                self.console.print(f"[dim]  loading the {name} ...[/dim]", highlight=False)
            self._spin()

    def loaded(self, name: str, detail: str) -> None:
        with self._lock:
            seconds = time.monotonic() - self._loading.pop(name)
            self.console.print(f"[green]✓[/green] {name} [dim]{escape(detail)} ({seconds:.1f} s)[/dim]", highlight=False)
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
        if not self.console.is_terminal:
            yield
            return
        with self.console.status(f"step {number}: looking, judging what can be done, asking the language model"):
            yield

    def candidates(self, step: Step) -> None:
        """The best candidates, the chosen one first."""
        where = f" at the {step.place}" if step.place else ""
        holding = f", holding the {step.held}" if step.held else ""
        table = Table(title=f"Step {step.step}{where}{holding}", title_justify="left", title_style="bold")
        best = step.candidates[:SHOWN_CANDIDATES]
        columns = ["language", "affordance", "product"]
        if any(row.lowered < 1 for row in best):  # the product is lowered for what has just failed or was just done
            columns.insert(2, "lowered")
        table.add_column("skill", min_width=32)
        for name in columns:
            table.add_column(name, justify="right")
        for row in best:
            values = {"language": row.language, "affordance": row.affordance, "product": row.score, "lowered": row.lowered}
            cells = [number(values[name]) for name in columns]
            table.add_row(escape(row.text), *cells, style="bold" if row.skill == step.skill else "dim")
        self.console.print()
        self.console.print(table)

    @contextmanager
    def executing(self, step: Step) -> Iterator[Callable[[int], None]]:
        """Live progress, by calling what this yields; without a terminal nothing is drawn until the outcome."""
        with Progress(
            TextColumn("  → {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as progress:
            task = progress.add_task(escape(step.text), total=MAX_CONTROL_STEPS)
            yield lambda control_step: progress.update(task, completed=control_step)

    def outcome(self, step: Step, outcome: Outcome, seconds: float) -> None:
        colour = COLOURS.get(outcome.status.value, "white")
        mark = "✓" if outcome.status is Status.SUCCEEDED else "✗"
        steps = f", {outcome.steps} control steps" if outcome.steps else ""
        said = f": {escape(outcome.message)}" if outcome.message else ""
        self.line(
            f"  [{colour}]{mark} {escape(step.text)} {outcome.status.value}[/{colour}]{said} [dim]({seconds:.1f} s{steps})[/dim]"
        )

    # -- the end -----------------------------------------------------------------------------------------------------

    def verdict(self, steps: list[Step], success: bool, reason: str, judge: str | None) -> None:
        self.console.print()
        for step in steps:
            colour = COLOURS.get(step.outcome, "white")
            self.line(f"  {step.step:2d}. {escape(step.text)}  [{colour}]{step.outcome}[/{colour}]")
        word = "[bold green]Carried out[/bold green]" if success else "[bold red]Not carried out[/bold red]"
        by = {"goal": " [dim](judged by the kitchen's own check of the goal)[/dim]"}.get(
            judge or "", " [dim](judged by the plan)[/dim]" if judge else ""
        )
        self.line(f"{word}: {escape(reason)}{by}")

    def files(self, folder: str, names: list[str]) -> None:
        self.line(f"[dim]Results:[/dim] {escape(folder)}/ [dim]({', '.join(names)})[/dim]")

    def clear(self) -> None:
        """Take the spinner away, so that what is printed next stands alone."""
        with self._lock:
            self._loading.clear()
            self._spin()


def number(value: float | None) -> str:
    """Three significant digits, short enough for a column: 0.873, 0.0125, 3.1e-05."""
    return "-" if value is None else f"{value:.3g}"
