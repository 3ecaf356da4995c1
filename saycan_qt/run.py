"""From a sentence to a robot that carries it out, in the simulated kitchen or your own.

    python -m saycan_qt.run "bring me a snack"
    python -m saycan_qt.run "put the coke can in the top drawer" --seed 3 --out runs/coke
    python -m saycan_qt.run "throw away the apple" --explain      # why each skill was chosen
    python -m saycan_qt.run "water the plant" --robot-folder my_robot      # another robot, see python -m saycan_qt.new

Starts a skill server and a robot, plans with a language model and acts, one skill at a time. What happened is
left in a folder: plan.json, report.html, run.mp4 and the pictures. What nothing in the skill library serves is refused
at the first step; what is named and not there is said, and nothing else is brought in its place.

Exit code 0: the instruction was carried out, by the robot's own check of the goal, or as the skill says that it asks
for word for word; 1: it was not; 3: every skill succeeded, but nobody here can judge whether that is what was asked;
2: a mistake in use; 130: interrupted, the robot stopped.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import NoReturn

from rich.console import Console

from planners import saycan
from saycan_qt.journey.display import Display
from saycan_qt.journey.lifecycle import Parts, Run, RunConfig
from saycan_qt.journey.results import RunFolder, new_folder
from saycan_qt.language import Language, LanguageConfig, LanguageError, language_of, load_language, try_chat
from saycan_qt.options import parse
from saycan_qt.services.processes import MISTAKE, refuse
from skills.errors import SkillError
from skills.library import Skill, SkillLibrary
from skills.robot_folder import SKILLS, robot_of
from skills.wire.conventions import CONTROL, plain


def check(config: RunConfig) -> str | None:
    """What can be found wrong before anything is started, in one line; None when nothing is."""
    if CONTROL.search(config.instruction):  # of which lines and tabs are spaces by now
        return f"the instruction has a control character: {plain(config.instruction)!r}; it is one line of text"
    if not config.instruction.strip():
        return 'the instruction is empty; say what you want, for instance "bring me a snack"'
    if config.max_steps < 1:
        return f"--max-steps is {config.max_steps}; at least 1 is needed"
    if config.preselect < 0:
        return f"--preselect is {config.preselect}; 0 turns it off, else it is how many skills to keep"
    if config.out is not None and config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        return f"--out {config.out} is there already; choose a new folder, results are never overwritten"
    if config.skills is not None and config.server is not None:
        return "--skills is for the skill server that run starts; the one at --server brings its own skills"
    if config.calibrated and config.server is not None:
        return "--calibrated is for the skill server that run starts; the one at --server has an option of that name"
    if config.model and config.server is None:
        return "--model is for a skill server that already runs; name it with --server"
    if config.planner == "proposal" and (config.normalise != "sum" or config.explain):
        return "--normalise and --explain are about likelihoods, of which --planner proposal has none"
    if config.planner == "proposal" and config.language.remote:
        return "--planner proposal samples from a local model; a server's likelihoods are for --planner saycan"
    if config.language.chat and (config.normalise != "sum" or config.planner == "no-language"):
        return "--normalise and --planner no-language are about likelihoods of texts, of which a chat model tells none"
    try:
        remote = [address for address in (config.server, config.robot) if address is not None]
        if not remote and (flags := config.credentials.flags()):
            return f"{flags[0]} is for services that already run; name them with --server or --robot"
        credentials = config.credentials.load()
        for address in remote:
            credentials.check(address)
        file = config.skills or robot_of(config.robot_folder).path / SKILLS
        if config.server is None and saycan.DONE not in SkillLibrary.load(file):
            return f"{file}: a plan ends with the skill {saycan.DONE!r}, which this file lacks"
        if config.language.chat:
            try_chat(config.language)
    except (SkillError, LanguageError) as error:
        return str(error)
    return None


def run(config: RunConfig, parts: Parts) -> int:
    """Check, run, report; the exit code. A thread may still compute afterwards: end with `leave`."""
    try:
        body = robot_of(config.robot_folder)
    except SkillError as error:
        return refuse(str(error))
    config = replace(config, instruction=" ".join(config.instruction.split()))
    if config.robot is None and body.address:
        config = replace(config, robot=body.address)
    if (mistake := check(config)) is not None:
        return refuse(mistake)
    path, world = config.out or new_folder(config.instruction), "kitchen" if body.is_kitchen else body.name
    try:
        seed = config.seed if config.robot is None else None  # somebody else's robot has a world of its own
        folder = RunFolder(path, config.instruction, seed, world=world)
    except OSError as error:
        return refuse(f"results cannot be written to {path}: {error.strerror}")
    display = Display(Console(stderr=config.json), config.explain, world)
    display.title(config.instruction, str(path))
    code = Run(config, parts, display, folder, body).run()
    if config.json and code != MISTAKE:
        print(json.dumps(folder.content()), flush=True)
    return code


def leave(code: int) -> NoReturn:
    """End the process now: everything is written, a thread may still compute, and torch takes seconds to unload."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def parts_of(config: RunConfig) -> Parts:
    """The robot's own language; a mistake in it is told when the run has begun."""

    def load(chosen: LanguageConfig, skills: Iterable[Skill], score_hopeless: bool) -> Language:
        return load_language(chosen, language_of(robot_of(config.robot_folder)), skills, score_hopeless)

    return Parts(load)


def main() -> NoReturn:
    config = parse(RunConfig, "python -m saycan_qt.run", __doc__)
    leave(run(config, parts_of(config)))


if __name__ == "__main__":
    main()
