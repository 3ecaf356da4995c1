"""How often is a robot planned for that neither the language model nor anybody's examples knew? Plans, and compares.

    python benchmarks/unseen_robots.py                                        # every robot of benchmarks/unseen_robots
    python benchmarks/unseen_robots.py --examples 10 --out runs/unseen.json   # with ten of its examples
    python benchmarks/unseen_robots.py --language.adapter none                # the model as published
    python benchmarks/unseen_robots.py --robots some/folder --show
    python benchmarks/unseen_robots.py --kept 25                              # robots kept from training, to choose by

Each robot is a folder with `skills.yaml` (as skills/new_robot has it), `examples.yaml` (as examples/watering), and
`sentences.yaml`, a list of what somebody says:

    - say: water the fern, then go home
      scene: {place: home, held: "", objects: {fern: bed}}      # what the robot knows; may be absent
      plans: [[fill the tank, water the fern, go home, done]]   # all that are right, in the skills' texts
    - {say: sing a song, impossible: true}                      # the robot must refuse

Every skill is possible at any time and succeeds, so that language alone decides. A sentence counts where the whole plan
is one of the right ones, to the letter. Prints a rate for each robot and for all, with 95 % Wilson intervals.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from planners.prompts import CANNOT
from planners.robot_language import EXAMPLES, RobotLanguage
from planners.saycan import SayCanConfig, SayCanPlanner, Step
from saycan_qt.evaluation.rates import wilson
from saycan_qt.language import LanguageConfig, load_language, planner_of
from saycan_qt.learning.pairs import Scene
from saycan_qt.made_up import written
from saycan_qt.made_up.written import Written
from skills import files
from skills.library import SkillLibrary
from skills.types import Outcome, Status

ROBOTS = Path(__file__).with_name("unseen_robots")
NAME = 40  # letters of a robot's name that are printed
IMPOSSIBLE = "impossible"  # stands for the plan of what is refused


@dataclass(frozen=True)
class UnseenConfig:
    """Plan for robots never met."""

    robots: Path = ROBOTS  # a folder of robots, or one robot's
    kept: int = 0  # instead: so many sentences, drawn at random, of each written robot that is kept from training
    examples: int = 0  # of the robot's examples, the first so many ways to ask; 0: none, as of a robot without any
    language: LanguageConfig = field(default_factory=LanguageConfig)
    planner: SayCanConfig = field(default_factory=SayCanConfig)
    show: bool = False  # each plan that is wrong
    threads: int = 0  # 0: as many as torch finds
    out: Path | None = None  # results as JSON


@dataclass(frozen=True)
class Sentence:
    say: str
    plans: tuple[tuple[str, ...], ...]  # all that are right
    scene: Scene | None

    @staticmethod
    def parse(entry: Mapping[str, Any], texts: set[str], file: Path) -> Sentence:
        """Raises ValueError."""
        plans = [(IMPOSSIBLE,)] if entry.get("impossible") else [tuple(map(str, plan)) for plan in entry["plans"]]
        if unknown := {step for plan in plans for step in plan} - texts - {IMPOSSIBLE}:
            raise ValueError(f"{file}: {entry['say']!r}: {min(unknown)!r} is no skill's text")
        given = entry.get("scene")
        scene = Scene(**{k: v or ({} if k == "objects" else "") for k, v in given.items()}) if given else None
        return Sentence(str(entry["say"]), tuple(plans), scene)


def plan(planner: SayCanPlanner, sentence: Sentence) -> tuple[str, ...]:
    possible = dict.fromkeys((skill.name for skill in planner.skills), 1.0)
    history: list[Step] = []
    while len(history) < planner.config.max_steps:
        decision = planner.step(sentence.say, history, possible, sentence.scene)
        if decision.refusal is not None:
            return (IMPOSSIBLE,)
        if decision.stuck:
            break
        history.append(Step(decision.skill, Outcome(Status.SUCCEEDED)))
        if decision.done:
            break
    return tuple(step.skill.text for step in history)


@dataclass(frozen=True)
class Robot:
    """One that is planned for, and what is said to it."""

    name: str
    library: SkillLibrary
    language: RobotLanguage
    sentences: tuple[Sentence, ...]

    @staticmethod
    def of(folder: Path, examples: int) -> Robot:
        library = SkillLibrary.load(folder / "skills.yaml")
        language = RobotLanguage.read(library, folder / EXAMPLES if examples else None)
        file, texts = folder / "sentences.yaml", {skill.text for skill in library}
        said = tuple(Sentence.parse(entry, texts, file) for entry in files.from_yaml(files.read(file)))
        return Robot(folder.name, library, replace(language, examples=language.examples[:examples]), said)

    @staticmethod
    def kept(robot: Written, count: int) -> Robot:
        drawn = np.random.default_rng(0).permutation(len(robot.said))[:count]
        said = (robot.said[i] for i in sorted(drawn))
        plans = ((one, (IMPOSSIBLE,) if one.plan == (CANNOT,) else one.plan) for one in said)
        library = SkillLibrary(robot.skills)
        sentences = tuple(Sentence(one.instruction, (plan,), one.scene) for one, plan in plans)
        return Robot(robot.name, library, RobotLanguage.read(library), sentences)


def one(robot: Robot, config: UnseenConfig) -> list[dict[str, Any]]:
    """A row for each of the robot's sentences."""
    loaded = load_language(config.language, robot.language, robot.library)
    planner = planner_of("saycan", loaded, robot.library, config.planner)
    rows = []
    for sentence in robot.sentences:
        began = time.monotonic()
        chosen = plan(planner, sentence)
        right = chosen in sentence.plans
        rows.append({"say": sentence.say, "plan": chosen, "right": right, "seconds": time.monotonic() - began})
        if config.show and not right:
            print(f"  {sentence.say!r}: {', '.join(chosen)}; right: {', '.join(sentence.plans[0])}", flush=True)
    return rows


def told(name: str, rows: list[dict[str, Any]]) -> str:
    right = sum(row["right"] for row in rows)
    low, high = wilson(right, len(rows))
    return f"{name:{NAME}s} {right:3d} of {len(rows):3d}   {low:.2f} - {high:.2f}"


def main(config: UnseenConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    single = (config.robots / "sentences.yaml").is_file()
    folders = [config.robots] if single else sorted(path.parent for path in config.robots.glob("*/sentences.yaml"))
    if config.kept:
        robots = [Robot.kept(robot, config.kept) for robot in written.held_out()]
    elif folders:
        robots = [Robot.of(folder, config.examples) for folder in folders]
    else:
        raise SystemExit(f"{config.robots}: no robot with sentences.yaml in it")
    found = {}
    for robot in robots:
        found[robot.name] = one(robot, config)
        print(told(robot.name[:NAME], found[robot.name]), flush=True)
    print(told("all", [row for rows in found.values() for row in rows]))
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps({"config": asdict(config), "robots": found}, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main(tyro.cli(UnseenConfig, description=__doc__))
