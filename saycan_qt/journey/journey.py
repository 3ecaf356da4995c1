"""One instruction, step by step: look, judge what is possible, ask what is sensible, act, write it down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.markup import escape

from planners import saycan
from planners.asking import Asking, Question, unserved
from planners.named import verbatim
from planners.prompts import Begun, one_line
from saycan_qt.journey.display import Display
from saycan_qt.journey.person import NO, YES, Answer, Person
from saycan_qt.journey.recording import Recorder
from saycan_qt.journey.results import Candidate, RunFolder, Step
from skills.client import Execution, RobotClient, SkillClient
from skills.errors import Busy, InvalidRequest, ServerFault, Stopped
from skills.library import Skill
from skills.types import Observation, Outcome, Status

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """Was the instruction carried out?"""

    success: bool | None  # None: nobody can tell
    reason: str
    ended: str  # "done", "refused", "max steps", "nothing possible" or "stopped"
    judge: str  # "goal": the robot's own check; "skill": the one that was asked for in its own words; "plan": it ended
    # before its end, or some skill's last try failed; "planner": it refused; "person": who ended it; "nobody"


class Over(Exception):
    """The run was ended from elsewhere."""


class Journey:
    def __init__(
        self,
        skills: SkillClient,
        robot: RobotClient,
        planner: saycan.SayCanPlanner,
        folder: RunFolder,
        recorder: Recorder,
        display: Display,
        max_control_steps: int,  # after which the robot ends a learnt skill
        unsure: float,  # confidence up to which the person is asked, where they want that
        person: Person,
        over: threading.Event,  # once it is set nothing is begun, and Over is raised
        stopped: threading.Event,  # once it is set nothing is begun, and the instruction ends as "stopped"
    ) -> None:
        self.skills, self.robot, self.planner = skills, robot, planner
        self.folder, self.recorder, self.display = folder, recorder, display
        self.feed, self.max_control_steps = folder.feed, max_control_steps
        self.unsure, self.person, self.over, self.stopped = unsure, person, over, stopped
        self.history: list[saycan.Step] = []
        self._begun = Begun()
        self._since = 0  # steps that were done for an earlier instruction
        self._met = False  # was its goal met before anything was done for it?
        self._questions: list[dict[str, Any]] = []
        self._execution: Execution | None = None

    def travel(self, instruction: str, max_steps: int) -> Verdict:
        ended, refused, number = "max steps", "", 1
        began: Observation | None = None  # the scene before the first step for these words
        self.take_up(instruction)
        while number <= max_steps:
            self.feed.now("thinking", f"step {number}: what is possible, what is sensible?", step=number)
            with self.display.thinking(number), self.folder.spent("thinking", step=number):
                step, decision, seen = self.decide(number, instruction)
            if self.over.is_set():
                raise Over
            if self.stopped.is_set():
                ended = "stopped"
                break
            if (refusal := decision.refusal) is None:
                self.display.candidates(step)
                self.folder.weigh(step)
            asking, done = Asking(self.person.when, self.unsure), self.history[self._since :]
            began = began if done else seen
            if (question := asking.question(instruction, decision, done, began)) is not None:
                answer = self.ask(step, question)
                if answer.instruction:
                    instruction, self._since = answer.instruction, len(self.history)
                    self.take_up(instruction)
                    continue
                if answer.skill is None and (refusal is None or self.stopped.is_set()):
                    ended = "stopped"
                    break
                if answer.skill is not None:
                    step = with_choice(step, answer.skill)
            if refusal is not None and (question is None or answer.skill is None):
                self.folder.note(refusal=asdict(refusal))
                ended, refused = "refused", refusal.reason
                break
            skill = next(one for one in self.planner.skills if one.name == step.skill)
            if step.score <= 0 and question is None:  # whom it asked knows better
                ended = "nothing possible"
                break
            self.folder.begin(step)
            if skill.name == saycan.DONE:
                self.folder.end(Outcome(Status.SUCCEEDED, "the planner finds nothing left to do"), 0.0)
                ended = "done"
                break
            try:
                outcome = self.execute(step, skill)
            except Stopped:  # before it began
                self.folder.end(Outcome(Status.CANCELED, "the robot was stopped"), 0.0)
                ended = "stopped"
                break
            self.history.append(saycan.Step(skill, outcome))
            if self.stopped.is_set() or (not outcome.succeeded and self.robot.info().stopped):
                ended = "stopped"
                break
            number += 1
        observation, jpegs = self.look()
        observed, views = self.folder.save_pictures("final", observation, jpegs)
        self.folder.note(final={"observation": observed, "views": views})
        satisfied = None if refused and not self.history else self.satisfied(instruction)
        read = self.read(instruction)
        places = {observation.place, *observation.objects.values()}
        found = verdict(
            read,
            satisfied,
            ended,
            self.history[self._since :],
            self.planner.skills,
            refused,
            places,
            instruction,
            met=self._met,
        )
        if found.success is None and self.person.when != "never":
            said = self.content(instruction, found.reason)
            found = found if said is None else replace(found, success=said, judge="person")
        return found

    def take_up(self, instruction: str) -> None:
        self.read(instruction)
        self._met = False
        try:
            self._met = bool(self.satisfied(instruction))
        except (ServerFault, Busy) as error:  # which is told at the end, where it matters
            log.info("whether the goal is met already is not known: %s", error)

    def satisfied(self, instruction: str) -> bool | None:
        """What the robot says. None: it does not know, or cannot be asked, as of words that are too long for it."""
        try:
            return self.robot.satisfied(instruction)
        except InvalidRequest as error:
            log.info("whether the goal is met is not known: %s", error)
            return None

    def read(self, instruction: str) -> str:
        """The instruction as the planner reads it, which is told where it is not what was said."""
        read = self.planner.prompt.read(instruction)
        told = read if read != one_line(instruction) else None
        if told != self.folder.plan["read"]:
            self.folder.note(read=told)
            if told:
                self.display.line(f"read as “{escape(told)}”")
        return read

    def look(self) -> tuple[Observation, dict[str, bytes]]:
        views = self.recorder.views
        observation, jpegs = self.robot.observe(views)
        self.feed.show(jpegs)
        return observation, {view: jpegs[view] for view in views}

    def decide(self, number: int, instruction: str) -> tuple[Step, saycan.Decision, Observation]:
        """The next step, with every candidate's scores, and what was seen."""
        stopwatch = Stopwatch()
        observation, jpegs = self.look()
        stopwatch.lap("observe")
        judged = {score.skill: score for score in self.skills.score([observation]) if score.skill != saycan.DONE}
        stopwatch.lap("affordance")
        affordances = {name: score.affordance for name, score in judged.items()}
        decision = self.planner.step(instruction, self.history[self._since :], affordances, observation, self._begun)
        stopwatch.lap("language")
        rows = [
            Candidate(
                row.skill.name,
                row.skill.text,
                None if row.language_score is None else short(row.language_score),
                short(row.affordance),
                short(row.score),
                row.lowered,
                judged[row.skill.name].model if row.skill.name in judged else "planner",
                short(judged[row.skill.name].raw) if row.skill.name in judged else None,
            )
            for row in decision.candidates
        ]
        observed, views = self.folder.save_pictures(f"step-{number:02d}", observation, jpegs)
        step = Step(
            number,
            rows[0].skill,
            rows[0].text,
            rows[0].language,
            rows[0].affordance,
            rows[0].score,
            rows[0].lowered,
            rows[0].raw,
            observation=observed,
            views=views,
            state=[round(float(number), 5) for number in observation.state],
            place=observation.place,
            held=observation.held,
            objects=dict(observation.objects),
            times=stopwatch.laps,
            candidates=rows,
        )
        if decision.refusal is None:
            self.recorder.add(jpegs, f"{number}. {step.text}", f"chosen from {len(rows)} skills", seconds=0.5)
        return step, decision, observation

    def ask(self, step: Step, question: Question) -> Answer:
        """What the person wants, written down beside what was asked; nothing once it is stopped."""
        if self.stopped.is_set():
            return Answer()
        number = step.step
        self.feed.now("asking", question.reason, step=number)
        with self.folder.spent("asking", step=number):
            answer = self.person.ask(question, lambda skill: self.folder.weigh(with_choice(step, skill)), self.stopped)
        self.keep(number, question, answer)
        return answer

    def content(self, instruction: str, reason: str) -> bool | None:
        """Is what was done what the person wanted? None: they do not say, or stopped it."""
        if self.stopped.is_set():
            return None
        question = Question(instruction, f"{reason}; is it what you wanted?", instructions=(YES, NO), other_words=False)
        self.feed.now("asking", "is it what you wanted?")
        with self.folder.spent("asking"):
            answer = self.person.judge(question)
        self.keep(None, question, answer)
        return {YES: True, NO: False}.get(answer.instruction)

    def keep(self, number: int | None, question: Question, answer: Answer) -> None:
        """Both in plan.json; number: of the step that it is about, None: about all of them."""
        said = answer.skill.text if answer.skill else answer.instruction or None
        asked: dict[str, Any] = {"step": number, "instruction": question.instruction, "reason": question.reason}
        asked |= {"confidence": short(question.confidence), "options": list(question.options), "answer": said}
        self._questions.append(asked)
        self.folder.note(questions=self._questions)

    def leave(self) -> None:
        """The skill that runs is cancelled, from whatever thread: the robot halts."""
        if self._execution is not None:
            self._execution.close()

    def correct(self, number: int, outcome: str) -> Step | None:
        """A person saw how a step really ended, "succeeded" or "failed", and the planner goes on from that. None: there
        is no such step, or it is not done."""
        step = self.folder.correct(number, outcome)
        if step is not None and number <= len(self.history):
            skill = self.history[number - 1].skill
            self.history[number - 1] = saycan.Step(skill, Outcome(Status(step.corrected or step.outcome), "so you say"))
        return step

    def execute(self, step: Step, skill: Skill) -> Outcome:
        """Dispatch the skill; record and show it while it runs."""
        began, filmed, most = time.monotonic(), self.recorder.seconds, self.max_control_steps if skill.learned else 0
        if self.over.is_set():
            raise Over
        if self.stopped.is_set():
            raise Stopped("the robot was stopped")
        outcome: Outcome | None = None
        where = {"step": step.step, "of": most} if most else {"step": step.step}
        self.feed.now("moving", step.text, **where)
        with (
            self.display.executing(most) as progress,
            self.folder.spent("moving", step.text, step.step),
            self.robot.execute(skill.name, self.recorder.views) as self._execution,
        ):
            step.goal = self._execution.goal_id
            for item in self._execution:
                if self.over.is_set():
                    raise Over
                if isinstance(item, Outcome):
                    outcome = item
                else:
                    progress(item.step)
                    self.feed.now("moving", step.text, control_step=item.step, **where)
                    self.feed.show(item.views)
                    note = f"control step {item.step}" if skill.learned else ""
                    self.recorder.add(item.views, f"{step.step}. {step.text}", note)
        assert outcome is not None, "the last item of execute is the outcome"
        seconds, end = time.monotonic() - began, self.recorder.seconds
        self.folder.end(outcome, seconds, [round(filmed, 3), round(end, 3)] if end > filmed else None)
        self.display.outcome(step, outcome, seconds)
        return outcome


def with_choice(step: Step, skill: Skill) -> Step:
    """The step with this of its candidates chosen."""
    row = next(row for row in step.candidates if row.skill == skill.name)
    scores = {
        name: getattr(row, name) for name in ("skill", "text", "language", "affordance", "score", "lowered", "raw")
    }
    return replace(step, **scores, candidates=[row, *(other for other in step.candidates if other is not row)])


def short(value: float) -> float:
    """Six significant digits: enough to compare, short enough to read."""
    return float(f"{value:.6g}")


class Stopwatch:
    """Seconds spent on each part of a step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._began = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._began, 3)
        self._began = now


def _why_nothing(history: Sequence[saycan.Step]) -> str:
    if history and not history[-1].outcome.succeeded:
        return f"“{history[-1].skill.text}” had failed too often or seemed impossible, and nothing else would do"
    return "no skill seemed possible"


def verdict(
    instruction: str,
    satisfied: bool | None,
    ended: str,
    history: Sequence[saycan.Step],
    skills: Sequence[Skill],
    refused: str = "",  # why the planner went no further
    places: Collection[str] = (),  # which are named to say where things are
    said: str = "",  # the instruction to the letter, where slips of the finger were read as what was meant
    met: bool = False,  # was the goal met before anything was done? Then that it is met tells nothing
) -> Verdict:
    """The robot's own check where it knows the goal, and it was not met before. Else what was left out or failed is no
    success; and what was done is one only where a single skill was asked for in its own words: that every skill
    succeeded does not say that the person got what was asked."""
    count = f"{len(history)} skill{'s' if len(history) != 1 else ''}"
    unfinished = {
        "max steps": f"the planner was not done after {count}",
        "nothing possible": f"after {count} {_why_nothing(history)}",
        "stopped": f"it was stopped by you after {count}",
        "refused": f"after {count}: {refused}" if history else refused,
    }.get(ended)
    named_only = [name for name in unserved(instruction, skills, history) if name not in places]
    left = f"; with the {' and the '.join(named_only)}, which you named: nothing" if named_only else ""
    before = "the goal was met before anything was done; " if met and satisfied else ""
    if satisfied is not None and not before:
        goal = "the goal is met" if satisfied else "the goal is not met"
        reason = f"{goal}; {unfinished}" if unfinished else f"{goal} after {count}"
        return Verdict(satisfied, reason + ("" if satisfied else left), ended, "goal")
    if unfinished:
        return Verdict(False, unfinished, ended, {"refused": "planner", "stopped": "person"}.get(ended, "plan"))
    if (failed := saycan.last_try_failed(history)) is not None:
        reason = f"the planner was done, but the last try of “{failed.skill.text}” {failed.outcome.status.value}"
        return Verdict(False, reason, ended, "plan")
    if (asked := verbatim(said or instruction, skills)) is not None:
        succeeded = any(step.skill.name == asked.name for step in history)
        if succeeded or not before:
            how = "succeeded" if succeeded else "was not carried out"
            return Verdict(succeeded, f"“{asked.text}” was asked for, and {how}", ended, "skill")
    done = ", ".join(f"“{step.skill.text}”" for step in history) or "nothing"
    return Verdict(
        None, f"{before}done: {done}{left}; whether that is what was asked, nobody here can judge", ended, "nobody"
    )
