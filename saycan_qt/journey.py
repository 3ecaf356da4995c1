"""One instruction, step by step: look, judge what is possible, ask what is sensible, act, write down what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from planners.saycan import Decision, SayCanPlanner
from saycan_qt.display import Display
from saycan_qt.recording import VIEWS, Recorder
from saycan_qt.results import Candidate, RunFolder, Step
from skills.client import RobotClient, SkillClient
from skills.library import Skill
from skills.types import Observation, Outcome, Status

DONE = "done"  # the family of the skill with which the planner ends


@dataclass(frozen=True)
class Verdict:
    """Was the instruction carried out?"""

    success: bool
    reason: str
    ended: str  # "done", "max steps" or "nothing possible"
    judge: str  # "goal": the kitchen's own check; "plan": done, and the last try of every skill succeeded


class Journey:
    def __init__(
        self,
        skills: SkillClient,
        robot: RobotClient,
        planner: SayCanPlanner,
        folder: RunFolder,
        recorder: Recorder,
        display: Display,
    ) -> None:
        self.skills, self.robot, self.planner = skills, robot, planner
        self.folder, self.recorder, self.display = folder, recorder, display
        self.history: list[tuple[Skill, Outcome]] = []

    def travel(self, instruction: str, max_steps: int) -> Verdict:
        ended = "max steps"
        for number in range(1, max_steps + 1):
            with self.display.thinking(number):
                step, skill = self.decide(number, instruction)
            if skill is None:
                ended = "nothing possible"
                break
            self.folder.begin(step)
            self.display.candidates(step)
            if skill.family == DONE:
                self.folder.end(Outcome(Status.SUCCEEDED, "the planner finds that nothing is left to do"), 0.0)
                ended = "done"
                break
            self.history.append((skill, self.execute(step, skill)))
        observation, jpegs = self.robot.observe(VIEWS)
        observed, views = self.folder.save_pictures("final", observation, jpegs)
        self.folder.note(final={"observation": observed, "views": views})
        return verdict(self.robot.satisfied(instruction), ended, self.history)

    def decide(self, number: int, instruction: str) -> tuple[Step | None, Skill | None]:
        """The next step, with every candidate's scores; (None, None) where no skill seems possible."""
        stopwatch = Stopwatch()
        observation, jpegs = self.robot.observe(VIEWS)
        stopwatch.lap("observe")
        scores = self.skills.score([observation])
        stopwatch.lap("affordance")
        decision = self.planner.step(instruction, self.history, scores)
        stopwatch.lap("language")

    def execute(self, step: Step, skill: Skill) -> Outcome:
        """Dispatch the skill; record and show it while it runs."""
        began = time.monotonic()
        outcome: Outcome | None = None
        with self.display.executing(step) as progress:
            for item in self.robot.execute(skill.name, VIEWS):
                if isinstance(item, Outcome):
                    outcome = item
                else:
                    progress(item.step)
                    self.recorder.add(item.views, f"{step.step}. {step.text}", f"control step {item.step}")
        assert outcome is not None, "the last item of execute is the outcome"
        seconds = time.monotonic() - began
        self.folder.end(outcome, seconds)
        self.display.outcome(step, outcome, seconds)
        return outcome


class Stopwatch:
    """Seconds spent on each part of a step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._began = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._began, 3)
        self._began = now


def verdict(satisfied: bool | None, ended: str, history: Sequence[tuple[Skill, Outcome]]) -> Verdict:
    """The kitchen's own check where it knows the goal; else the plan must be done and every skill's last try good."""
    count = f"{len(history)} skill{'s' if len(history) != 1 else ''}"
    unfinished = {
        "max steps": f"the planner was not done after {count}",
        "nothing possible": f"after {count} no skill seemed possible",
    }.get(ended)
    if satisfied is not None:
        goal = "the goal is met" if satisfied else "the goal is not met"
        return Verdict(satisfied, f"{goal}; {unfinished}" if unfinished else f"{goal} after {count}", ended, "goal")
    if unfinished:
        return Verdict(False, unfinished, ended, "plan")
    last_tries = {skill.name: (skill, outcome) for skill, outcome in history}
    for skill, outcome in last_tries.values():
        if not outcome.succeeded:
            reason = f"the planner was done, but the last try of “{skill.text}” {outcome.status.value}"
            return Verdict(False, reason, ended, "plan")
    return Verdict(True, f"the plan is done after {count}, and the last try of each succeeded", ended, "plan")
