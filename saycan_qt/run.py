"""From a sentence to a robot that carries it out, in the simulated kitchen or your own.

    python -m saycan_qt.run "bring me a snack"
    python -m saycan_qt.run "put the coke can in the top drawer" --seed 3 --out runs/coke
    python -m saycan_qt.run "throw away the apple" --explain      # why each skill was chosen
    python -m saycan_qt.run "bring me a snack" --live              # watch it think, in a browser
    python -m saycan_qt.run "bring me a snack" --mcap snack.mcap   # for Foxglove, Rerun and others
    python -m saycan_qt.run "water the plant" --robot-folder my_robot      # another robot, see python -m saycan_qt.new

Starts a skill server and a robot, plans with a language model and acts, one skill at a time. What happened is
left in a folder: plan.json, report.html, run.mp4 and the pictures. What nothing in the skill library serves is refused
at the first step; what is named and not there is said, and nothing else is brought in its place. Several instructions
after each other: python -m saycan_qt.session.

Exit code 0: the instruction was carried out, by the robot's own check of the goal, or as the skill says that it asks
for word for word; 1: it was not; 3: every skill succeeded, but nobody here can judge whether that is what was asked;
2: a mistake in use; 130: interrupted, the robot stopped.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from saycan_qt.journey.config import Options, Parts, RunConfig, prepared, said
from saycan_qt.journey.display import Display, print_json
from saycan_qt.journey.feed import Feed
from saycan_qt.journey.lifecycle import ENDINGS, NOT_DONE, Run, tell
from saycan_qt.journey.live import Hands, Page
from saycan_qt.journey.person import Person
from saycan_qt.journey.results import RunFolder, new_folder
from saycan_qt.journey.stack import Stack
from saycan_qt.language import Language, LanguageConfig, language_of, load_language
from saycan_qt.options import parse
from saycan_qt.services.processes import MISTAKE, StartFailed, refuse
from skills.library import Skill
from skills.robot_folder import robot_of


def run(config: RunConfig, parts: Parts) -> int:
    """Check, run, report; the exit code. A thread may still compute afterwards: end with `leave`."""
    try:
        config, body = prepared(config)
    except ValueError as error:
        return refuse(str(error))
    instruction = said(config.instruction)
    world = "kitchen" if body.is_kitchen else body.name
    seed = config.seed if config.robot is None else None  # somebody else's robot has a world of its own
    display, feed = Display(Console(stderr=config.json), config.explain, world), Feed()
    try:
        path = config.out or new_folder(instruction)
        folder = RunFolder(path, instruction, seed, feed, made=config.out is None, world=world)
    except OSError as error:
        return refuse(f"results cannot be written to {config.out or error.filename}: {error.strerror}")
    person = Person(display.console, config.json, config.when_to_ask, feed, elsewhere=config.live.live)
    stack = Stack(config, parts, body, display, feed, path, lambda sentence: one.died(sentence))
    one = Run(instruction, config, stack, folder, person, alone=True)
    try:
        page = watch(config, parts, path, feed, display, person.alone)
    except StartFailed as error:
        if error.mistake:
            folder.discard()
            return refuse(str(error))
        with suppress(OSError):
            folder.finish(False, str(error), "error")  # and the log that it names stays
        tell(str(error))
        return _told(config, folder, NOT_DONE)
    display.title(instruction, str(path))
    if page is not None:
        page.listen(Hands(feed, person, stack, lambda: one))
    for number in ENDINGS:
        signal.signal(number, one.on_signal)
    code = one.carry_out().code
    feed.close()
    return _told(config, folder, code)


def _told(config: RunConfig, folder: RunFolder, code: int) -> int:
    """A program's line, of all but a mistake in use; the exit code."""
    if config.json and code != MISTAKE:
        print_json(folder.content())
    return code


def watch(
    config: Options, parts: Parts, logs: Path, feed: Feed, display: Display, gone: Callable[[], None]
) -> Page | None:
    """Whoever is asked for: the live page, and an MCAP file. gone: told when the page has died. Raises StartFailed."""

    def died(sentence: str) -> None:
        display.line(f"{sentence}; it goes on without")
        gone()

    page = None
    if config.live.live:
        page = Page(config, parts, logs, died)
        feed.add(page)
        display.line(f"[bold]Watch it at[/bold] {page.url}")
    if config.mcap is not None:
        from saycan_qt.journey import mcap

        try:
            feed.add(mcap.watcher(config.mcap))
        except OSError as error:
            feed.close()
            raise StartFailed(f"--mcap {config.mcap} cannot be written: {error.strerror}", mistake=True) from None
    return page


def leave(code: int) -> NoReturn:
    """End the process now: everything is written, a thread may still compute, and torch takes seconds to unload."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def parts_of(config: Options) -> Parts:
    """The robot's own language; a mistake in it is told when the run has begun."""

    def load(chosen: LanguageConfig, skills: Iterable[Skill], score_hopeless: bool) -> Language:
        return load_language(chosen, language_of(robot_of(config.robot_folder)), skills, score_hopeless)

    return Parts(load)


def main() -> NoReturn:
    config = parse(RunConfig, "python -m saycan_qt.run", __doc__)
    leave(run(config, parts_of(config)))


if __name__ == "__main__":
    main()
