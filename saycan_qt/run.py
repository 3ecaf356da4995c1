"""From a sentence to a robot that carries it out, in the simulated kitchen.

    python -m saycan_qt.run "bring me a snack"
    python -m saycan_qt.run "put the coke can in the top drawer" --seed 3 --out runs/coke

Starts a skill server and a kitchen robot, plans with a language model and acts, one skill at a time. What happened is
left in a folder: plan.json, report.html, run.mp4 and the pictures. Exit code 0: the instruction was carried out; 1: it
was not; 2: a mistake in use; 130: interrupted, the robot stopped.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated

import tyro
from rich.console import Console

from saycan_qt.display import Display
from saycan_qt.recording import VIEWS, Recorder
from saycan_qt.report import write_report
from saycan_qt.results import REPORT, VIDEO, Candidate, RunFolder, Step, new_folder
from saycan_qt.services import ERROR, RemoteService, ServiceProcess, StartFailed
from skills.client import RobotClient, SkillClient
from skills.errors import SkillError, Unavailable
from skills.library import SkillLibrary
from skills.types import Observation, Outcome, Status

SKILL_SERVER, KITCHEN_ROBOT = "skill server", "kitchen robot"
START_TIMEOUT = 120.0  # [s] for a service to become ready; importing torch on a busy small machine takes a while
SUCCEEDED, NOT_DONE, MISTAKE, INTERRUPTED = 0, 1, 2, 130  # exit codes


@dataclass(frozen=True)
class RunConfig:
    """From a sentence to a robot that carries it out, in the simulated kitchen."""

    instruction: Annotated[str, tyro.conf.Positional]  # what you want, in your own words
    seed: int = 0  # which kitchen: the same seed gives the same kitchen
    server: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None  # use this running skill server
    robot: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None  # use this running robot
    skills: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None  # what the robot can do (YAML); default: kitchen.yaml
    max_steps: int = 15  # give up after this many skills
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None  # a new folder for the results; default: runs/<time>-<words>
    json: bool = False  # print plan.json's content as the last line of standard output


class Mistake(Exception):
    """The person asked for something impossible: one line, exit code 2."""


@dataclass(frozen=True)
class Ending:
    """Why a run is over."""

    code: int
    ended: str  # for plan.json: done, max steps, nothing possible, interrupted, died, error
    reason: str
    judge: str | None = None
    error: bool = False  # say the reason on standard error too


class Scorer(Protocol):
    """How sensible is each candidate as the next line after a prompt? (planners.language.LanguageScorer)"""

    def score(self, prompt: str, candidates: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True)
class Parts:
    """What a run is made of; tests put small ones in their place."""

    load_scorer: Callable[[], Scorer]
    serve: tuple[str, ...] = (sys.executable, "-m", "saycan_qt.serve")
    robot: tuple[str, ...] = (sys.executable, "-m", "saycan_qt.robot")


class Run:
    """One run. The work is done in a thread; the main thread waits for its end, a death or a signal, then tidies up.

    So a run ends at once, whatever the work is waiting for: a robot, a server, a language model that computes.
    """

    def __init__(self, config: RunConfig, parts: Parts, display: Display, folder: RunFolder) -> None:
        self.config, self.parts, self.display, self.folder = config, parts, display, folder
        self._endings: queue.SimpleQueue[Ending] = queue.SimpleQueue()
        self._services: list[Service] = []
        self._lock = threading.Lock()
        self._over = False
        self._robot: RobotClient | None = None
        self._recorder = Recorder(folder.path / VIDEO)
        self._worker = threading.Thread(target=self._work, name="run", daemon=True)

    def run(self) -> int:
        """Exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._worker.start()
        ending = self._endings.get()
        if ending.ended == "error":  # a broken call is often the first sign of a death: rather say who died
            try:
                other = self._endings.get(timeout=0.5)
                ending = other if other.ended == "died" else ending
            except queue.Empty:
                pass
        self._close(ending)
        return ending.code

    @property
    def still_working(self) -> bool:
        return self._worker.is_alive()

    # -- the end -----------------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._over:  # pressed again: do not wait for anything (the services end with this process)
            os._exit(INTERRUPTED)
        name = signal.Signals(number).name
        self._endings.put(Ending(INTERRUPTED, "interrupted", f"interrupted by {name}, the robot was stopped"))

    def _died(self, sentence: str) -> None:
        self._endings.put(Ending(NOT_DONE, "died", sentence))

    def _close(self, ending: Ending) -> None:
        with self._lock:
            self._over = True
        orderly = ending.judge is not None
        self.display.clear()
        if not orderly:
            self._stop_robot()
            print(ERROR + ending.reason, file=sys.stderr, flush=True)
        success = ending.code == SUCCEEDED
        self.folder.finish(success, ending.reason, ending.ended, ending.judge)
        if self._recorder.frames:
            self._recorder.add({}, "carried out" if success else "not carried out", ending.reason, seconds=2.0)
        self._recorder.close()
        for service in reversed(self._services):  # the robot before the server it leans on
            service.close(grace=5.0 if orderly else 0.6)
        if ending.code == MISTAKE:
            self.folder.discard()
            return
        files = ({"video": VIDEO} if self._recorder.frames else {}) | {"report": REPORT}
        self.folder.add_files(**files)
        write_report(self.folder.path)
        self.display.verdict(self.folder.steps, success, ending.reason, ending.judge)
        self.display.files(str(self.folder.path), ["plan.json", *files.values()])

    def _stop_robot(self) -> None:
        robot = self._robot
        if robot is not None:
            stopping = threading.Thread(target=_quietly, args=(robot.stop,), daemon=True)
            stopping.start()
            stopping.join(0.5)

    # -- the work, in a thread ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._endings.put(self._journey())
        except StartFailed as error:
            self._endings.put(Ending(MISTAKE if error.mistake else NOT_DONE, "error", str(error)))
        except SkillError as error:
            self._endings.put(Ending(NOT_DONE, "error", str(error)))
        except Exception as error:
            if not self._over:  # after the end everything may break, and nobody needs to know
                log.exception("the run broke")
            self._endings.put(Ending(NOT_DONE, "error", f"the run broke: {type(error).__name__}: {error}"))

    def _journey(self) -> Ending:
        scorer = in_background(self._load_scorer)
        server, robot = self._start_services()
        skills, self._robot = SkillClient(server.address), RobotClient(robot.address)
        planner = SayCanPlanner(scorer.result(), skills.list_skills())
        journey = Journey(skills, self._robot, planner, self.folder, self._recorder, self.display)
        found = journey.travel(self.config.instruction, self.config.max_steps)
        return Ending(SUCCEEDED if found.success else NOT_DONE, found.ended, found.reason, found.judge)

    def _load_scorer(self) -> Scorer:
        self.display.begin_loading("language model")
        scorer = self.parts.load_scorer()
        self.folder.note(models={"language": model_name(scorer)})
        self.display.loaded("language model", model_name(scorer))
        return scorer

    def _start_services(self) -> tuple[Service, Service]:
        """Both load at the same time: the robot needs the server's address, not yet its models."""
        config, folder = self.config, self.folder.path
        self.display.begin_loading(SKILL_SERVER)
        if config.server is not None:
            server: Service = self._add(RemoteService(SKILL_SERVER, config.server, SKILL_SERVICE, self._died))
        else:
            options = () if config.skills is None else ("--skills", str(config.skills))
            command = (*self.parts.serve, *options)
            server = self._add(ServiceProcess(SKILL_SERVER, command, folder / "skill-server.log", self._died))
        address = server.wait_for_address(START_TIMEOUT)
        self.display.begin_loading(KITCHEN_ROBOT)
        if config.robot is not None:
            robot: Service = self._add(RemoteService(KITCHEN_ROBOT, config.robot, ROBOT_SERVICE, self._died))
        else:
            command = (*self.parts.robot, "--seed", str(config.seed), "--skill-server", address)
            robot = self._add(ServiceProcess(KITCHEN_ROBOT, command, folder / "kitchen-robot.log", self._died))
        for service in (robot, server):
            service.wait_until_ready(START_TIMEOUT)
            self.display.loaded(service.name, f"{service.address} {service.detail}".strip())
        return server, robot

    def _add(self, service: Service) -> Service:
        with self._lock:
            self._services.append(service)
            over = self._over
        if over:
            service.close(grace=0)
            raise StartFailed("the run is over", mistake=False)
        return service


def in_background(work: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def check(config: RunConfig) -> None:
    """Everything that can be found wrong before anything is started."""
    if not config.instruction.strip():
        raise Mistake('the instruction is empty; say what you want, for instance "bring me a snack"')
    if config.max_steps < 1:
        raise Mistake(f"--max-steps is {config.max_steps}; at least 1 step is needed")
    if config.out is not None and config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise Mistake(f"{config.out} exists and is not an empty folder; choose another --out, results are never overwritten")
    for flag, address in (("--server", config.server), ("--robot", config.robot)):
        if address is not None and not re.fullmatch(r"\S+:\d{1,5}", address):
            raise Mistake(f"{flag} is {address!r}; give HOST:PORT, for instance 127.0.0.1:50051")
    if config.skills is not None:
        if config.server is not None:
            raise Mistake("--skills is for the skill server that run starts; the one at --server has its own skills")
        try:
            SkillLibrary.load(config.skills)
        except (OSError, ValueError) as error:
            raise Mistake(str(error)) from None


def load_language_model() -> Scorer:
    from planners.language import LanguageScorer  # torch and transformers: seconds, spent while the services start

    return LanguageScorer()


def run(config: RunConfig, parts: Parts) -> int:
    """Check, run, report; the exit code. Ends the process itself where a thread still computes."""
    console = Console(stderr=config.json)
    try:
        check(config)
        path = config.out or new_folder(config.instruction)
        folder = RunFolder(path, config.instruction, config.seed)
    except (Mistake, OSError) as error:
        print(f"{ERROR}{error}", file=sys.stderr)
        return MISTAKE
    display = Display(console)
    display.title(config.instruction, str(path))
    one = Run(config, parts, display, folder)
    code = one.run()
    if config.json and code != MISTAKE:
        print(json.dumps(folder.content()), flush=True)
    if one.still_working:  # it cannot be told to stop: a model computes, or a call waits
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def main() -> int:
    config = tyro.cli(RunConfig, description=__doc__)
    return run(config, Parts(load_language_model))


if __name__ == "__main__":
    sys.exit(main())
