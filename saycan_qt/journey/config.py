"""The options of `run` and `session`, and what can be found wrong with them before anything is started."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, TypeVar

import tyro

from planners import named, saycan
from planners.asking import When
from saycan_qt.journey.person import is_terminal
from saycan_qt.language import Language, LanguageConfig, LanguageError, check_timeout, try_chat
from saycan_qt.options import Address, File, Folder, Instruction
from saycan_qt.services.access import ClientOptions, HowToCall, ServerOptions
from skills.errors import SkillError
from skills.library import Skill, SkillLibrary
from skills.robot_folder import SKILLS, RobotFolder, robot_of
from skills.wire.conventions import CONTROL, is_loopback, plain

WITHOUT: dict[str, Literal["affordance", "language"]] = {"no-affordance": "affordance", "no-language": "language"}


@dataclass(frozen=True)
class LiveOptions:
    """A page in the browser, while it goes on."""

    # Serve a page that shows what the robot sees, does and why, stops it, takes answers and, in a session, what you say
    live: bool = False
    live_host: str = "127.0.0.1"  # its address; one that other machines can reach takes TLS, and tokens
    live_port: int = 0  # 0: a free one, which is printed
    # Further names that browsers may find it by, beside its address and this machine's own
    live_name: tuple[str, ...] = ()
    live_certificate: File = None  # as `serve` takes them
    live_key: File = None
    live_tokens: File = None  # looking takes the role "read", stopping "stop", all else "drive"

    @property
    def access(self) -> ServerOptions:
        return ServerOptions(self.live_certificate, self.live_key, tokens=self.live_tokens)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `run` and `session` share."""

    robot_folder: Folder = None  # your own robot, see `python -m saycan_qt.new`; by default the simulated kitchen's
    seed: int = 0  # which kitchen: the same seed gives the same kitchen
    server: Address = None  # use this skill server, which already runs
    model: str = ""  # which of that server's models judges and acts; "": its first
    robot: Address = None  # use this robot, which already runs
    credentials: HowToCall = field(default_factory=ClientOptions)
    skills: File = None  # what the robot can do (YAML); by default skills.yaml of the robot's folder
    calibrated: bool = False  # plan with calibrated affordances in place of raw Q-values, see `serve --help`
    # Keep every learnt skill as an episode to train on, see `serve --record`, and beside them what you say of how one
    # really ended
    record: Folder = None
    # saycan: likelihood x affordance; proposal: the language model says what it would do, skills near to that are
    # looked up, and the affordance picks. Ablations of saycan: the language model alone, or the affordance and how near
    # a skill's text is to the instruction
    planner: Literal["saycan", "proposal", "no-affordance", "no-language"] = "saycan"
    # A skill's log-likelihood: sum over its tokens, their mean, or (prior) the sum less that after a content-free
    # prompt
    normalise: Literal["sum", "mean", "prior"] = "sum"
    preselect: int = 0  # let the language model score only this many skills, the nearest by sentence embedding; 0: all
    explain: bool = False  # print why each skill was chosen, and what language and affordance vetoed (slower)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    anyway: bool = False  # try even what seems to be nothing that the robot can do
    # ask the person: never; where it is unsure, or cannot serve the instruction; always, before every skill. By default
    # when-unsure in a terminal or with --live, and else never. With --json the question is a line of JSON, answered by
    # a line
    ask: When | None = None
    ask_before_acting: bool = False  # the same as --ask always: approve each skill, veto it, or choose another
    max_steps: int = 40  # give up after this many skills
    mcap: File = None  # write what happens to this new file, for Foxglove, Rerun and what else reads MCAP
    live: Annotated[LiveOptions, tyro.conf.arg(name="")] = field(default_factory=LiveOptions)
    json: bool = False  # print plan.json's content as a line of standard output when an instruction is over

    @property
    def when_to_ask(self) -> When:
        if self.ask is not None or self.ask_before_acting:
            return self.ask or "always"
        attended = self.live.live or (is_terminal(sys.stdin) and is_terminal(sys.stdout))
        return "when-unsure" if attended and not self.json else "never"

    @property
    def saycan(self) -> saycan.SayCanConfig:
        return saycan.SayCanConfig(
            max_steps=self.max_steps,
            normalise=self.normalise,
            without=WITHOUT.get(self.planner, ""),
            preselect=self.preselect,
            score_all=self.explain,
            refuse=not self.anyway,
        )


@dataclass(frozen=True)
class RunConfig(Options):
    """From a sentence to a robot that carries it out, in the simulated kitchen or your own."""

    instruction: Instruction  # what you want, in your own words
    out: Folder = None  # a new folder for the results; by default runs/<time>-<words>


@dataclass(frozen=True)
class SessionConfig(Options):
    """One instruction after the other, with everything loaded once."""

    out: Folder = None  # a new folder, with one in it for each instruction; by default runs/<time>-session


@dataclass(frozen=True)
class Parts:
    """What it is made of; tests put small ones in their place."""

    # given, too, the skills to plan with, and whether even hopeless ones are scored
    load_language: Callable[[LanguageConfig, Iterable[Skill], bool], Language]
    serve: tuple[str, ...] = (sys.executable, "-m", "saycan_qt.serve")
    robot: tuple[str, ...] = (sys.executable, "-m", "saycan_qt.robot")
    page: tuple[str, ...] = (sys.executable, "-m", "saycan_qt.view")


Config = TypeVar("Config", RunConfig, SessionConfig)


def said(text: str) -> str:
    """An instruction in one line. Raises ValueError for what is none."""
    text = " ".join(text.split())
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # as Python reads bytes that are no UTF-8
        raise ValueError(f"the instruction is no text: {text.encode(errors='replace').decode()!r}; UTF-8 is read")
    if CONTROL.search(text):  # lines and tabs are spaces by now
        raise ValueError(f"the instruction has a control character: {plain(text)!r}; it is one line of text")
    if not named.plain(text):
        raise ValueError('the instruction has no words; say what you want, for instance "bring me a snack"')
    return text


def prepared(config: Config) -> tuple[Config, RobotFolder]:
    """With the address that the robot's folder gives, and that folder. Raises ValueError for what is wrong."""
    try:
        body = robot_of(config.robot_folder)
    except SkillError as error:
        raise ValueError(str(error)) from None
    if config.robot is None and body.address:
        config = replace(config, robot=body.address)
    if (mistake := check(config)) is not None:
        raise ValueError(mistake)
    return config, body


def check(config: RunConfig | SessionConfig) -> str | None:
    """What can be found wrong before anything is started, in one line; None when nothing is."""
    try:
        if isinstance(config, RunConfig):
            said(config.instruction)
    except ValueError as error:
        return str(error)
    if config.max_steps < 1:
        return f"--max-steps is {config.max_steps}; at least 1 is needed"
    if config.ask_before_acting and config.ask not in (None, "always"):
        return f"--ask-before-acting asks always, and --ask {config.ask} does not; give one of them"
    if config.preselect < 0:
        return f"--preselect is {config.preselect}; 0 turns it off, else it is how many skills to keep"
    if config.explain and config.preselect:
        return "--explain scores every skill, --preselect only some; give one of them"
    if config.out is not None and config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        return f"--out {config.out} is there already; choose a new folder, results are never overwritten"
    if config.mcap is not None:
        from saycan_qt.journey import mcap  # makes messages, which few runs need

        if (mistake := mcap.mistake(config.mcap)) is not None:
            return mistake
    if config.skills is not None and config.server is not None:
        return "--skills is for the skill server that run starts; the one at --server brings its own skills"
    for option in ("calibrated", "record"):
        if getattr(config, option) and config.server is not None:
            return f"--{option} is for the skill server that run starts; the one at --server has an option of that name"
    if config.record is not None and config.robot is not None:
        told = "--record keeps what the skill server that run starts is asked"
        return f"{told}; a robot that already runs asks its own: give that one `serve --record`"
    if config.model and config.server is None:
        return "--model is for a skill server that already runs; name it with --server"
    if config.planner == "proposal" and (config.normalise != "sum" or config.explain or config.preselect):
        return "--normalise, --explain and --preselect are about likelihoods, of which --planner proposal has none"
    if config.planner == "proposal" and config.language.remote:
        return "--planner proposal samples from a local model; a server's likelihoods are for --planner saycan"
    if config.language.chat and (config.normalise != "sum" or config.planner == "no-language"):
        return "--normalise and --planner no-language are about likelihoods of texts, of which a chat model tells none"
    live = config.live
    if not live.live and live != LiveOptions():
        return "--live-host, --live-port and so on are for the page of --live"
    try:
        if live.live and not (
            is_loopback(live.live_host) or (live.live_certificate and live.live_key and live.live_tokens)
        ):
            needed = "--live-certificate, --live-key and --live-tokens (see `python -m saycan_qt.grant --help`)"
            return f"--live-host {live.live_host} can be reached from other machines: give {needed}"
        if live.live:
            live.access.load(live.live_host)
        remote = [address for address in (config.server, config.robot) if address is not None]
        if not remote and (flags := config.credentials.flags()):
            return f"{flags[0]} is for services that already run; name them with --server or --robot"
        credentials = config.credentials.load()
        for address in remote:
            credentials.check(address)
        file = config.skills or robot_of(config.robot_folder).path / SKILLS
        if config.server is None and saycan.DONE not in SkillLibrary.load(file):
            return f"{file}: a plan ends with the skill {saycan.DONE!r}, which this file lacks"
        if config.language.remote:
            check_timeout(config.language)
        if config.language.chat:
            try_chat(config.language)
    except (SkillError, LanguageError) as error:
        return str(error)
    return None
