"""What instructions are carried out with: a skill server, a robot and a planner, started or joined once.

stack.ready() starts what is not there, or is there no more. A service that was started and died is started again, one
of somebody else is waited for by whoever asks again.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from planners.saycan import SayCanPlanner
from saycan_qt.journey.config import Options, Parts
from saycan_qt.journey.display import Display
from saycan_qt.journey.feed import Feed
from saycan_qt.journey.results import slug
from saycan_qt.language import NONE, Language, planner_of
from saycan_qt.services.processes import SKILL_SERVER, RemoteService, Service, ServiceProcess, StartFailed
from skills.client import RobotClient, RobotInfo, SkillClient
from skills.errors import InvalidRequest, ServerFault, Stopped, Unsupported
from skills.library import SkillLibrary
from skills.robot_folder import RobotFolder
from skills.security.lease import Lease

log = logging.getLogger(__name__)
T = TypeVar("T")

SKILL_SERVICE, ROBOT_SERVICE = "skills.v1.SkillService", "skills.v1.RobotService"
LANGUAGE_MODEL = "language model"
MAX_VIEWS = 8  # that a robot shows at a time
SOON = 0.5  # [s] for a robot to answer somebody who waits for it
START_TIMEOUT = 120.0  # [s] for a service to become ready; importing torch on a busy small machine takes a while
LEASE = 10.0  # [s] that the robot waits for a word from this process, whose threads may stand still while it loads
QUIET = ("--log-level", "warning")  # the folder of results tells what was called


class Stack:
    def __init__(
        self,
        config: Options,
        parts: Parts,
        body: RobotFolder,  # what moves
        display: Display,
        feed: Feed,
        logs: Path,  # folder for the services' logs
        died: Callable[[str], None],  # told from a thread, with a sentence, when a service dies after it was ready
        release: str = "",  # what to do to release a robot that is stopped; "": the command
    ) -> None:
        self.config, self.parts, self.body, self.logs = config, parts, body, logs
        self.display, self.feed = display, feed
        self.loading: list[tuple[str, float, float]] = []  # what took from when to when, of time.monotonic [s]
        self.facts: dict[str, Any] = {}  # for plan.json
        self.views: tuple[str, ...] = ()
        self.info: RobotInfo
        self.language: Language
        self.planner: SayCanPlanner
        self.skills: SkillClient
        self.robot: RobotClient | None = None
        self._died, self._release = died, release
        self._lock = threading.Lock()
        self._services: list[Service] = []  # all that were started or joined
        self._server: Service | None = None  # None: not there yet, or no more
        self._robot: Service | None = None
        self._began: dict[str, float] = {}  # what loads, since when
        self._address = ""  # of the skill server, which the robot was told
        self._planned: tuple[Language, SkillLibrary] | None = None
        self._lease: Lease | None = None  # None: the robot's service is older
        self._failing: set[str] = set()  # what could not be started the last time
        self._halted = False  # a robot that is started now is one that was told to stop
        self.stops = 0  # how often it was told to from here
        self._stopped = False  # as was told last
        self._over = False

    def ready(self) -> None:
        """Start what is missing. Raises StartFailed, LanguageError or SkillError; Stopped for a robot that has to be
        released first."""
        if not self.whole:
            self._start()
        assert self.robot is not None, "it was just started"
        if self._lease is not None and self._lease.lost:
            self._take(self.robot)
        self.info = self.robot.info()
        self._tell_stopped(self.info.stopped)
        if self.info.stopped:
            raise Stopped(f"the robot at {self.robot.address} is stopped; when it is safe, {self._how(self.robot)}")

    @property
    def whole(self) -> bool:
        """Is all of it there?"""
        return None not in (self._server, self._robot, self.robot)

    def _how(self, robot: RobotClient) -> str:
        flags = self.config.credentials.flags()
        command = shlex.join(("python", "-m", "saycan_qt.robot", "--release", robot.address, *flags))
        return self._release or f"release it with: {command}"

    def halted(self) -> None:
        """It was told to stop by another road, and so is one that takes its place."""
        self._halted, self.stops = True, self.stops + 1
        self._tell_stopped(True)

    def stop(self) -> str:
        """By both roads; waits for half a second. "": it was halted, else what to say. A robot that is dead stops by
        itself; the one in its place is stopped before it moves."""
        self._halted, self.stops = True, self.stops + 1
        if (robot := self.robot) is None:
            return "no robot heard it; one that is started now is stopped at once"
        done = in_background(robot.stop)
        wait([done], SOON)
        if not done.done():
            latched = "the robot is latched, but" if self.look() else "the robot"
            return f"{latched} has not said within {SOON} s that it halted; if it moves, use its own stop"
        if (error := done.exception()) is None or isinstance(error, ServerFault):  # it is latched at least
            self._tell_stopped(True)
        if error is not None:
            log.info("the robot could not be told to stop: %s", error)
        return "" if error is None else str(error)

    def look(self) -> bool | None:
        """Is its latch set? None: it does not say within half a second. Whoever watches is told."""
        if (robot := self.robot) is None:
            return None
        asked = in_background(robot.info)
        wait([asked], SOON)
        if not asked.done() or asked.exception() is not None:
            return None
        self._tell_stopped(asked.result().stopped)
        return self._stopped

    def news(self) -> bool | None:
        """What somebody else has made of its latch since it was last told of here; None: nothing."""
        before, now = self._stopped, self.look()
        if now is None or now is before:
            return None
        self._halted = now
        return now

    def release(self) -> None:
        """Raises SkillError."""
        self._halted = False
        if self.robot is not None:
            self.robot.reset()
            self._tell_stopped(False)

    def _tell_stopped(self, stopped: bool) -> None:
        self._stopped = stopped
        self.feed.tell(stopped=stopped)

    def end(self) -> None:
        """Services are told to end; nothing is started any more."""
        with self._lock:
            self._over = True
            services = list(self._services)
        for service in services:
            service.end()

    def give_back(self) -> None:
        """The lease."""
        if self._lease is not None:
            wait([in_background(self._lease.close)], 0.5)

    def close(self, grace: float) -> None:
        """grace: [s] that services have to end. The robot goes before the server that it leans on."""
        with self._lock:
            self._over = True
            services = list(self._services)
        for service in reversed(services):
            service.close(grace=grace)

    # -- starting ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.feed.now("loading", "starting")
        old, self.robot, self._lease = self.robot, None, None
        if old is not None:
            old.close()
        server = self._start_server()
        address, credentials = self._address_of(server), server.credentials
        self.skills = SkillClient(address, credentials=credentials, model=self.config.model)
        if self.config.model:
            self.skills.info().hosted(self.config.model)  # an unknown one is told before anything else is started
        loading = in_background(self._load_language)
        robot = self._start_robot(server)
        self.robot = client = RobotClient(robot.address, credentials=robot.credentials)
        try:
            self._take(client)
            if self._halted:
                client.stop()
            self._join(client, *loading.result())
        except BaseException:
            self.robot = None
            client.close()
            raise

    def _join(self, client: RobotClient, language: Language, listed: SkillLibrary) -> None:
        """The robot, and who plans for it."""
        self.language, self.info = language, client.info()
        hosted = self.skills.info().hosted(self.config.model)
        self.planner = planner_of(self.config.planner, self.language, listed, self.config.saycan)
        self.facts = {
            "models": {"language": self.language.name, "affordance": hosted.critic_id, "execution": hosted.actor_id},
            "affordances": "calibrated" if hosted.calibrated else "raw",
            "robot": {"name": self.info.name, "address": client.address, "state": self._state_names()},
            "planner": {"kind": self.config.planner, **asdict(self.planner.config)},
        }
        self.views = self._views(client)
        where = {"address": client.address, "guard": self.info.stop_address, "own": self.config.robot is None}
        self.feed.tell(robot={"name": self.info.name, **where})

    def _state_names(self) -> list[str]:
        """What the numbers of a state are; [] where the robot does not say."""
        return [number.name for number in self.info.embodiment.state] if self.info.embodiment else []

    def _take(self, robot: RobotClient) -> None:
        """Nobody else moves it from now on."""
        with contextlib.suppress(Unsupported):
            self._lease = robot.lease(f"a run on {socket.gethostname()}", LEASE)

    def _views(self, robot: RobotClient) -> tuple[str, ...]:
        """The cameras for people: those that the robot tells, else those of its folder; a robot of somebody else, which
        tells none, may have the kitchen's."""
        views = self.info.views or self.body.views
        if left := views[MAX_VIEWS:]:
            log.warning("%d of the robot's views are filmed; not %s", MAX_VIEWS, ", ".join(left))
            views = views[:MAX_VIEWS]
        if self.config.robot is not None and self.config.robot_folder is None:
            try:
                robot.observe(views)
            except InvalidRequest as error:
                log.info("nothing is filmed: %s", error)
                return ()
        return views

    def _load_language(self) -> tuple[Language, SkillLibrary]:
        """The skill server tells its skills before its models are loaded."""
        if self._planned is None:
            self._begin(LANGUAGE_MODEL)
            listed, config = self.skills.list_skills(), self.config.language
            if self.config.planner == "proposal" and not config.adapter and not config.chat:
                config = replace(config, adapter=NONE)  # tuned on plans alone it has one idea where eight are wanted
            language = self.parts.load_language(config, listed, self.config.explain)
            self._ready(LANGUAGE_MODEL, language.name)
            self._planned = language, listed
        return self._planned

    def _start_server(self) -> Service:
        config = self.config
        if self._server is not None:
            return self._server
        self._begin(SKILL_SERVER)
        if config.server is not None:
            self._server = self._remote(SKILL_SERVER, config.server, SKILL_SERVICE)
            self._await(self._server)  # a wrong address is told before anything else is started
            return self._server
        command = (*self.parts.serve, *QUIET, *self._folder_option())
        command += () if config.skills is None else ("--skills", str(config.skills))
        command += ("--calibrated",) if config.calibrated else ()
        command += () if config.record is None else ("--record", str(config.record))
        if self._address:  # which the robot knows
            command += ("--port", self._address.rpartition(":")[2])
        self._server = self._process(SKILL_SERVER, command)
        return self._server

    def _start_robot(self, server: Service) -> Service:
        """Returns when both are ready. They load at the same time: the robot needs the server's address, not yet its
        models."""
        config, name = self.config, self.body.name
        self._address = self._address_of(server)
        robot = self._robot
        if robot is None:
            self._begin(name)
            if config.robot is not None:
                robot = self._remote(name, config.robot, ROBOT_SERVICE)
            else:
                command = (*self.parts.robot, *QUIET, *self._folder_option(), "--seed", str(config.seed))
                command += ("--skill-server", self._address)
                if config.server is not None:
                    command += ("--model", config.model, *config.credentials.flags())
                robot = self._process(name, command)
            self._robot = robot
        for service in (robot, server):
            self._await(service)
        return robot

    def _address_of(self, service: Service) -> str:
        """Raises StartFailed, and then it is not there."""
        try:
            return service.wait_for_address(START_TIMEOUT)
        except StartFailed:
            self._drop(service)
            raise

    def _await(self, service: Service) -> None:
        """Raises StartFailed, and then it is not there."""
        try:
            service.wait_until_ready(START_TIMEOUT)
        except StartFailed:
            self._drop(service)
            raise
        self._ready(service.name, f"{service.address} {service.detail}".strip())

    def _drop(self, service: Service) -> None:
        self._began.pop(service.name, None)
        self._failing.add(service.name)
        self._server = None if service is self._server else self._server
        self._robot = None if service is self._robot else self._robot
        with self._lock:
            self._services.remove(service)
        service.close(grace=0)

    def _folder_option(self) -> tuple[str, ...]:
        return () if self.config.robot_folder is None else ("--robot-folder", str(self.config.robot_folder))

    def _process(self, name: str, command: Sequence[str]) -> Service:
        stem, number, last = slug(name) or "robot", 1, None
        while (told := self.logs / f"{stem}{f'-{number}' if number > 1 else ''}.log").exists():
            number, last = number + 1, told
        if name in self._failing and last is not None:  # tried over and over, of which the last time tells enough
            told = last
        try:
            self.logs.mkdir(parents=True, exist_ok=True)  # somebody may have taken it away
            service = ServiceProcess(name, command, told, partial(self._lost, name))
        except OSError as error:
            why = f"the {name} could not start: {error.filename}: {error.strerror}"
            raise StartFailed(why, mistake=False) from None
        return self._add(service)

    def _remote(self, name: str, address: str, service: str) -> Service:
        credentials = self.config.credentials.load()
        return self._add(RemoteService(name, address, service, partial(self._lost, name), credentials))

    def _add(self, service: Service) -> Service:
        with self._lock:
            if not self._over:
                self._services.append(service)
                return service
        service.close(grace=0)
        raise StartFailed("the run is over", mistake=False)

    def _lost(self, name: str, sentence: str) -> None:
        """It is missing from now on."""
        if name == SKILL_SERVER:
            self._server = None
        else:
            self._robot = None
        self._died(sentence)

    # -- what takes how long -----------------------------------------------------------------------------------------

    def _begin(self, name: str) -> None:
        self._began[name] = time.monotonic()
        if name not in self._failing:  # else it is tried over and over
            self.display.begin_loading(name)
        self.feed.now("loading", "loading " + ", ".join(f"the {one}" for one in self._began))

    def _ready(self, name: str, detail: str) -> None:
        if (began := self._began.pop(name, None)) is not None:  # else it was there
            self._failing.discard(name)
            self.loading.append((name, began, time.monotonic()))
            self.display.loaded(name, detail)


def in_background(work: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
