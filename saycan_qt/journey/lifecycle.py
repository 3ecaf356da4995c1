"""One run from its start to its end: services started, the work in a thread, deaths and signals, tidying up."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from types import FrameType
from typing import Literal, TypeVar

from planners import saycan
from planners.asking import Asking, When
from planners.servers.remote import RemoteError
from saycan_qt.journey.display import VERDICTS, Display
from saycan_qt.journey.journey import Journey
from saycan_qt.journey.person import Person
from saycan_qt.journey.recording import Recorder
from saycan_qt.journey.report import write_report
from saycan_qt.journey.results import REPORT, VIDEO, NotWritten, RunFolder, slug
from saycan_qt.language import NONE, Language, LanguageConfig, LanguageError, planner_of
from saycan_qt.options import Address, File, Folder, Instruction
from saycan_qt.services.access import ClientOptions, HowToCall
from saycan_qt.services.processes import (
    ERROR,
    MISTAKE,
    SKILL_SERVER,
    RemoteService,
    Service,
    ServiceProcess,
    StartFailed,
    one_line,
)
from skills.client import RobotClient, RobotInfo, SkillClient
from skills.errors import (
    AccessError,
    InvalidRequest,
    PermissionDenied,
    ServerFault,
    SkillError,
    Stopped,
    Unauthenticated,
    UnknownSkill,
    Unsupported,
)
from skills.library import Skill, SkillLibrary
from skills.robot_folder import RobotFolder, default_robot
from skills.security.lease import Lease

log = logging.getLogger(__name__)
T = TypeVar("T")

SKILL_SERVICE, ROBOT_SERVICE = "skills.v1.SkillService", "skills.v1.RobotService"
LANGUAGE_MODEL = "language model"
MAX_VIEWS = 8  # that a robot shows at a time
START_TIMEOUT = 120.0  # [s] for a service to become ready; importing torch on a busy small machine takes a while
WITHOUT: dict[str, Literal["affordance", "language"]] = {"no-affordance": "affordance", "no-language": "language"}
LEASE = 10.0  # [s] that the robot waits for a word from this process, whose threads may stand still while it loads
QUIET = ("--log-level", "warning")  # the run's own folder tells what was called
SUCCEEDED, NOT_DONE, UNKNOWN, INTERRUPTED = 0, 1, 3, 130  # exit codes, besides MISTAKE
CODES = {True: SUCCEEDED, False: NOT_DONE, None: UNKNOWN}  # of what came of it


@dataclass(frozen=True)
class RunConfig:
    """From a sentence to a robot that carries it out, in the simulated kitchen or your own."""

    instruction: Instruction  # what you want, in your own words
    robot_folder: Folder = None  # your own robot, see `python -m saycan_qt.new`; by default the simulated kitchen's
    seed: int = 0  # which kitchen: the same seed gives the same kitchen
    server: Address = None  # use this skill server, which already runs
    model: str = ""  # which of that server's models judges and acts; "": its first
    robot: Address = None  # use this robot, which already runs
    credentials: HowToCall = field(default_factory=ClientOptions)
    skills: File = None  # what the robot can do (YAML); by default skills.yaml of the robot's folder
    calibrated: bool = False  # plan with calibrated affordances in place of raw Q-values, see `serve --help`
    # saycan: likelihood x affordance; proposal: the language model says what it would do, skills near to that are
    # looked up, and the affordance picks. Ablations of saycan: the language model alone, or the affordance and how near
    # a skill's text is to the instruction
    planner: Literal["saycan", "proposal", "no-affordance", "no-language"] = "saycan"
    normalise: Literal["sum", "mean", "prior"] = "sum"  # a skill's log-likelihood: sum over its tokens, their mean, or
    # the sum less that after a content-free prompt
    preselect: int = 0  # let the language model score only this many skills, the nearest by sentence embedding; 0: all
    explain: bool = False  # print why each skill was chosen, and what language and affordance vetoed (slower)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    anyway: bool = False  # try even what seems to be nothing that the robot can do
    # ask the person: never; where it is unsure, or cannot serve the instruction; always, before every skill. By default
    # when-unsure in a terminal, and else never. With --json the question is a line of JSON, answered by a line
    ask: When | None = None
    max_steps: int = 40  # give up after this many skills
    out: Folder = None  # a new folder for the results; by default runs/<time>-<words>
    json: bool = False  # print plan.json's content as the last line of standard output


@dataclass(frozen=True)
class Parts:
    """What a run is made of; tests put small ones in their place."""

    # given, too, the skills to plan with, and whether even hopeless ones are scored
    load_language: Callable[[LanguageConfig, Iterable[Skill], bool], Language]
    serve: tuple[str, ...] = (sys.executable, "-m", "saycan_qt.serve")
    robot: tuple[str, ...] = (sys.executable, "-m", "saycan_qt.robot")


@dataclass(frozen=True)
class Ending:
    """Why a run is over."""

    code: int
    ended: str  # for plan.json: done, refused, max steps, nothing possible, interrupted, died, error
    reason: str
    judge: str | None = None  # None: it did not come to its end


class Run:
    """One run. The work is done in a thread; the main thread waits for its end, a death or a signal, then tidies up.

    So a run ends at once, whatever the work is waiting for: a robot, a server, a language model that computes.
    """

    def __init__(
        self, config: RunConfig, parts: Parts, display: Display, folder: RunFolder, body: RobotFolder | None = None
    ) -> None:
        """body: what moves; None: the kitchen's."""
        self.config, self.parts, self.display, self.folder = config, parts, display, folder
        self.body = body or default_robot()
        self._endings: queue.SimpleQueue[Ending] = queue.SimpleQueue()
        self._services: list[Service] = []
        self._lock = threading.Lock()
        self._over = False
        self._ending: Ending | None = None  # once it is over
        self._told_again = self._hurried = False  # to end, when it was over: once, and more than once
        self._robot: RobotClient | None = None
        self._lease: Lease | None = None  # None: the robot's service is older
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
        self._ending = ending
        self._close(ending)
        return ending.code

    # -- the end -----------------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if (ending := self._ending) is not None:  # it is over, and how it ended stays true
            if self._told_again or ending.ended == "interrupted":  # wait for no more: services end with it
                if self.folder.finished:
                    os._exit(ending.code)
                self._hurried = True
            self._told_again = True
            return
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
            tell(ending.reason)
            for service in self._services:
                service.end()
        if self._lease is not None:
            wait([in_background(self._lease.close)], 0.5)
        success = {SUCCEEDED: True, UNKNOWN: None}.get(ending.code, False)
        try:
            self.folder.finish(success, ending.reason, ending.ended, ending.judge)
        except NotWritten as error:
            tell(f"plan.json tells nothing of the end, which cannot be written: {error.strerror}")
        if self._hurried:
            os._exit(ending.code)
        if self._recorder.frames:
            self._recorder.add({}, VERDICTS[success].lower(), ending.reason, seconds=2.0)
        self._recorder.close()
        for service in reversed(self._services):  # the robot before the server it leans on
            service.close(grace=5.0 if orderly else 0.3)
        if ending.code == MISTAKE:
            self.folder.discard()
            return
        files = {}
        try:
            if self._recorder.frames:
                self.folder.add_files(video=VIDEO)
                files["video"] = VIDEO
            write_report(self.folder.path)
            self.folder.add_files(report=REPORT)
            files["report"] = REPORT
        except NotWritten as error:
            tell(f"results are missing in {self.folder.path}: {error.strerror}")
        self.display.verdict(self.folder.steps, success, ending.reason, ending.judge)
        self.display.files(str(self.folder.path), ["plan.json", *files.values()])

    def _stop_robot(self) -> None:
        robot = self._robot
        if robot is not None:
            stopping = threading.Thread(target=stop_quietly, args=(robot,), daemon=True)
            stopping.start()
            stopping.join(0.5)

    # -- the work, in a thread ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._endings.put(self._journey())
        except StartFailed as error:
            self._endings.put(Ending(MISTAKE if error.mistake else NOT_DONE, "error", str(error)))
        except LanguageError as error:
            self._endings.put(Ending(MISTAKE, "error", str(error)))
        except ServerFault as error:
            self._endings.put(Ending(NOT_DONE, "error", f"{error} (logs: {self.folder.path}/*.log)"))
        except (AccessError, Unauthenticated, PermissionDenied, UnknownSkill) as error:  # at the first step, or later
            self._endings.put(Ending(NOT_DONE if self.folder.steps else MISTAKE, "error", str(error)))
        except SkillError as error:
            self._endings.put(Ending(NOT_DONE, "error", str(error)))
        except NotWritten as error:
            reason = f"the results cannot be written to {self.folder.path}: {error.strerror}"
            self._endings.put(Ending(NOT_DONE, "error", reason))
        except RemoteError as error:  # a language server, or a chat model
            self._endings.put(Ending(NOT_DONE, "error", str(error)))
        except SystemExit:  # so rich tells that the pipe it writes to was closed
            self._endings.put(Ending(NOT_DONE, "error", "nobody reads the output any more"))
        except Exception as error:
            if not self._over:  # after the end everything may break, and nobody needs to know
                log.exception("the run broke")
            self._endings.put(Ending(NOT_DONE, "error", f"the run broke: {type(error).__name__}: {error}"))

    def _journey(self) -> Ending:
        server = self._start_server()
        address, credentials = server.wait_for_address(START_TIMEOUT), server.credentials
        skills = SkillClient(address, credentials=credentials, model=self.config.model)
        if self.config.model:
            skills.info().hosted(self.config.model)  # an unknown one is told before anything else is started
        loading = in_background(partial(self._load_language, skills))
        robot = self._start_robot(server)
        self._robot = RobotClient(robot.address, credentials=robot.credentials)
        with contextlib.suppress(Unsupported):
            self._lease = self._robot.lease(f"a run on {socket.gethostname()}", LEASE)
        (language, listed), body = loading.result(), self._robot.info()
        hosted = skills.info().hosted(self.config.model)
        models = {"language": language.name, "affordance": hosted.critic_id, "execution": hosted.actor_id}
        multiplied = "calibrated" if hosted.calibrated else "raw"
        self.folder.note(models=models, affordances=multiplied, robot={"name": body.name, "address": robot.address})
        settings = saycan_config(self.config)
        self.folder.note(planner={"kind": self.config.planner, **asdict(settings)})
        if body.stopped:
            flags = self.config.credentials.flags()
            command = shlex.join(("python", "-m", "saycan_qt.robot", "--release", robot.address, *flags))
            raise Stopped(f"the robot at {robot.address} is stopped; when it is safe, release it with: {command}")
        planner = planner_of(self.config.planner, language, listed, settings)
        self._recorder.begin(self._views(self._robot, body), body.control_hz)
        asking = Asking(when_to_ask(self.config), language.unsure)
        person = Person(self.display.console, self.config.json)
        journey = Journey(
            skills, self._robot, planner, self.folder, self._recorder, self.display, body.max_steps, asking, person
        )
        found = journey.travel(self.config.instruction, self.config.max_steps)
        return Ending(CODES[found.success], found.ended, found.reason, found.judge)

    def _views(self, robot: RobotClient, info: RobotInfo) -> tuple[str, ...]:
        """The cameras for people: those that the robot tells, else those of its folder; a robot of somebody else, which
        tells none, may have the kitchen's."""
        views = (info.views or self.body.views)[:MAX_VIEWS]
        if self.config.robot is not None and self.config.robot_folder is None:
            try:
                robot.observe(views)
            except InvalidRequest as error:
                log.info("nothing is filmed: %s", error)
                return ()
        return views

    def _load_language(self, skills: SkillClient) -> tuple[Language, SkillLibrary]:
        """The skill server tells its skills before its models are loaded."""
        self.display.begin_loading(LANGUAGE_MODEL)
        listed, config = skills.list_skills(), self.config.language
        if self.config.planner == "proposal" and not config.adapter and not config.chat:
            config = replace(config, adapter=NONE)  # what was tuned on plans alone has one idea where eight are wanted
        language = self.parts.load_language(config, listed, self.config.explain)
        self.display.loaded(LANGUAGE_MODEL, language.name)
        return language, listed

    def _remote(self, name: str, address: str, service: str) -> Service:
        return self._add(RemoteService(name, address, service, self._died, self.config.credentials.load()))

    def _start_server(self) -> Service:
        config = self.config
        self.display.begin_loading(SKILL_SERVER)
        if config.server is not None:
            server = self._remote(SKILL_SERVER, config.server, SKILL_SERVICE)
            server.wait_until_ready(START_TIMEOUT)  # a wrong address is told before anything else is started
            return server
        given = self._folder_option() + (() if config.skills is None else ("--skills", str(config.skills)))
        command = (*self.parts.serve, *QUIET, *given, *(("--calibrated",) if config.calibrated else ()))
        return self._add(ServiceProcess(SKILL_SERVER, command, self.folder.path / "skill-server.log", self._died))

    def _start_robot(self, server: Service) -> Service:
        """Returns when both are ready. They load at the same time: the robot needs the server's address, not yet its
        models."""
        config, address, name = self.config, server.wait_for_address(START_TIMEOUT), self.body.name
        self.display.begin_loading(name)
        if config.robot is not None:
            robot = self._remote(name, config.robot, ROBOT_SERVICE)
        else:
            command = (*self.parts.robot, *QUIET, *self._folder_option(), "--seed", str(config.seed))
            command += ("--skill-server", address)
            command += ("--model", config.model, *config.credentials.flags()) if config.server is not None else ()
            told = self.folder.path / f"{slug(name) or 'robot'}.log"
            robot = self._add(ServiceProcess(name, command, told, self._died))
        for service in (robot, server):
            service.wait_until_ready(START_TIMEOUT)
            self.display.loaded(service.name, f"{service.address} {service.detail}".strip())
        return robot

    def _folder_option(self) -> tuple[str, ...]:
        return () if self.config.robot_folder is None else ("--robot-folder", str(self.config.robot_folder))

    def _add(self, service: Service) -> Service:
        with self._lock:
            self._services.append(service)
            over = self._over
        if over:
            service.close(grace=0)
            raise StartFailed("the run is over", mistake=False)
        return service


def tell(reason: str) -> None:
    """In one line, which nobody may read."""
    with contextlib.suppress(OSError):
        print(ERROR + one_line(reason), file=sys.stderr, flush=True)


def stop_quietly(robot: RobotClient) -> None:
    try:
        robot.stop()
    except SkillError as error:
        log.info("the robot could not be told to stop: %s", error)  # it is dead, or stops by itself


def in_background(work: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def when_to_ask(config: RunConfig) -> When:
    if config.ask is not None:
        return config.ask
    return "when-unsure" if sys.stdin.isatty() and sys.stdout.isatty() and not config.json else "never"


def saycan_config(config: RunConfig) -> saycan.SayCanConfig:
    return saycan.SayCanConfig(
        max_steps=config.max_steps,
        normalise=config.normalise,
        without=WITHOUT.get(config.planner, ""),
        preselect=config.preselect,
        score_all=config.explain,
        refuse=not config.anyway,
    )
