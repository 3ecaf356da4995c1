"""The three commands with small parts: real processes and real gRPC, a kitchen of symbols, a scripted language model.

    python tests/small_services.py run "bring me an apple"        # as python -m saycan_qt.run; likewise serve and robot

Environment: SMALL_PERIOD [s] of a control step, SMALL_FAILS (this skill never succeeds), SMALL_PLAN (steps, by comma),
SMALL_THINKS [s] that the language model takes, SMALL_THOUGHT (a file that is there once it thinks), SMALL_BREAKS
("serve" or "robot" cannot start).
"""

import os
import re
import sys
import time
from pathlib import Path

import numpy as np

from planners.prompts import Example, Prompt
from saycan_qt import robot, run, serve, session
from saycan_qt.kitchen.symbolic import SymbolicKitchen
from saycan_qt.language import Language
from saycan_qt.options import parse
from skills.embodiment import ActionDimension, Camera, Embodiment, StateNumber
from skills.types import Observation, Status

COUNTER = Embodiment(
    action=(ActionDimension("count"), ActionDimension("terminate", kind="terminate")),
    cameras=(Camera("head", 8, 10),),
    state=(StateNumber("counted"),),
    control_hz=3,
    max_seconds=15,
)
SKILLS = Path(__file__).with_name("small_skills.yaml")
PLAN = "find the apple,pick up the apple,bring it to you,put it down,done"
CONTROL_STEPS = 5  # after which a learnt skill terminates


class ScriptedScorer:
    """Finds the next line of the plan sensible, by the number that the prompt ends with."""

    def score(self, prompt, candidates):
        if file := os.environ.get("SMALL_THOUGHT"):
            Path(file).touch()
        time.sleep(float(os.environ.get("SMALL_THINKS", "0")))
        plan = os.environ.get("SMALL_PLAN", PLAN).split(",")
        wanted = plan[min(int(re.findall(r"(\d+)\.", prompt)[-1]), len(plan)) - 1]
        return np.array([0.0 if text.strip() == wanted else -6.0 for text in candidates])


class WordsEmbedder:
    def encode(self, inputs, **options):
        """All sentences are alike, but those about pizza."""
        vectors = np.array([[0, 0, 1.0] if "pizza" in text else [len(text), 1.0, 0] for text in inputs])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class SmallPolicy:
    """Judges by the semantic map; acts until the robot's first number says that enough was done."""

    embodiment = COUNTER

    def value(self, history, instructions):
        seen = history[-1]
        return np.array([0.9 * (seen.objects.get(name.removeprefix("pick ")) == seen.place) for name in instructions])

    def act(self, history, instruction):
        return np.array([1, history[-1].state[0] >= CONTROL_STEPS - 1], np.float32)


class SmallRobot:
    """A kitchen of symbols with a clock; SMALL_LOG collects the calls to stop."""

    name, embodiment, views = "small robot", COUNTER, ("head", "room")

    def __init__(self, seed):
        self.kitchen = SymbolicKitchen({"apple": "close counter", "sponge": "table"}, place="table")
        self.seed, self.count, self.period = seed, 0, float(os.environ.get("SMALL_PERIOD", "0.01"))

    def observe(self):
        seen = self.kitchen.observe()
        image, state = np.full((8, 10, 3), self.seed, np.uint8), np.array([self.count], np.float32)
        return Observation({"head": image}, state, seen.place, seen.held, seen.objects)

    def apply(self, action):
        time.sleep(self.period)
        self.count += 1

    def stop(self):
        if log := os.environ.get("SMALL_LOG"):
            Path(log).touch()

    def start(self, skill):
        self.count, self.reached = 0, not skill.learned

    def perform(self, skill, canceled):
        for _ in range(3):
            time.sleep(self.period)
            canceled()
        if self.kitchen.execute(skill).status is not Status.SUCCEEDED:
            raise ValueError(f"{skill.name} is not possible here")

    def succeeded(self, skill):
        if skill.name == os.environ.get("SMALL_FAILS"):
            return False
        self.reached = self.reached or self.kitchen.execute(skill).succeeded
        return self.reached

    def finish(self, skill, canceled): ...

    def satisfied(self, instruction):
        return self.kitchen.where["apple"] == "operator" if instruction == "bring me an apple" else None

    def view(self, name):
        colour = {"head": (200, 0, 0), "room": (0, 0, 200)}[name]
        return np.broadcast_to(np.array(colour, np.uint8), (64, 80, 3))


def choose_models(config):
    def load():
        broken("serve")
        time.sleep(0.3)
        return SmallPolicy(), SmallPolicy()

    if config.calibrated:
        return serve.Models("small critic+square", "small actor", load, np.square)
    if config.affordance == "none":  # what a test calls a further model's checkpoint
        return serve.Models("small none", "small none", load)
    return serve.Models("small critic", "small actor", load)


def make_robot(config, library):
    broken("robot")
    return SmallRobot(config.seed)


def broken(name):
    if os.environ.get("SMALL_BREAKS") == name:
        raise RuntimeError("broken on purpose")


def load_language(config, skills, score_hopeless):
    examples = [Example("bring me a sponge", ("find the sponge", "done"))]
    return Language(ScriptedScorer(), Prompt(WordsEmbedder(), examples, things=["sponge"]), "scripted")


def main():
    command = sys.argv.pop(1)
    me = (sys.executable, __file__)
    parts = run.Parts(load_language, (*me, "serve", "--skills", str(SKILLS)), (*me, "robot"))
    match command:
        case "serve":
            config = parse(serve.ServeConfig, command, "")
            return serve.serve(config, choose_models)
        case "robot":
            config = parse(robot.RobotConfig, command, "")
            return robot.release(config) if config.release else robot.serve(config, make_robot)
        case "run":
            run.leave(run.run(parse(run.RunConfig, command, ""), parts))
        case "session":
            run.leave(session.session(parse(session.SessionConfig, command, ""), parts))


if __name__ == "__main__":
    sys.exit(main())
