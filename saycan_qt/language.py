"""Which language model says what is sensible, and how it is asked."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import TIMEOUT_MAX  # [s]; no socket waits longer
from typing import TYPE_CHECKING, cast

from planners.prompts import ExamplesError, Prompt
from planners.robot_language import GENERAL, RobotLanguage, adapter_folder, plans_for_any, tells_skills, tells_states
from planners.saycan import SayCanConfig, SayCanPlanner, Scorer
from skills.library import Skill
from skills.robot_folder import RobotFolder

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from planners.proposal import Proposer

KEY = "LANGUAGE_SERVER_KEY"  # environment variable
CHAT_RETRIES = 2  # of LangChain's models, which know when to try again
NONE, CPU = "none", "cpu"
UNSURE = 0.6  # a guess, for what `evaluate asking` has not measured
CANNOT = 0.25  # of an adapter that was taught one robot's words: how likely it finds that nothing serves, to refuse
NEARNESS = 6.0  # for an adapter that was taught no robot's words; chosen on robots kept from its training


class LanguageError(Exception):
    """A language model that cannot be used: which one, why, and what to do."""


@dataclass(frozen=True, kw_only=True)  # many texts in a row, which are easily mistaken for one another
class LanguageConfig:
    """Which language model; without options the one that comes with the project."""

    # Another one: a model folder, a GGUF file, a name on the Hugging Face hub such as Qwen/Qwen3-0.6B (its safetensors
    # are fetched, and no code of it is run), or the URL of a server that scores texts, as vLLM does
    model: str = ""
    served: str = ""  # what that server calls the model; the server's key is taken from LANGUAGE_SERVER_KEY
    # The folder `adapter` of what `saycan_qt.tune` left; "none": the model as published, which needs examples;
    # "general": the shipped adapter that is told what a robot can do. By default the shipped model plans with the
    # adapter that comes with the robot's language, where it was taught all of the robot's skills, and for other robots
    # with the general one
    adapter: str = ""
    device: str = CPU  # where it computes, as PyTorch says: cpu, cuda, cuda:1
    # A model that only chats: the URL of a server that does so as OpenAI's (with --language.served), or a name as
    # LangChain's init_chat_model takes it, such as openai:gpt-5 or anthropic:claude-sonnet-4-5 (pip install
    # langchain-openai, ...). It chooses among lettered skills where it tells how likely its letters are, else proposes
    chat: str = ""
    max_tokens: int = 1024  # of one answer of a chat model, what it says to itself included
    timeout: float = 60.0  # [s] for one answer of a server or a chat model, further tries included

    @property
    def remote(self) -> bool:
        return _is_url(self.model)


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Language:
    """What is sensible: a language model and how it is asked."""

    scorer: Scorer
    prompt: Prompt
    name: str
    unsure: float = UNSURE  # confidence up to which it asks, where it may, see planners.asking
    proposer: Proposer | None = None  # which proposes steps, where it cannot score them
    preselect: int = 0  # score only this many skills, unless told otherwise; 0: all
    nearness: float = 0.0  # weight of sentence embedding beside it, unless told otherwise
    cannot: float | None = None  # as SayCanConfig has it, unless told otherwise


def language_of(robot: RobotFolder) -> RobotLanguage:
    """How people speak to a robot. Raises LanguageError."""
    try:
        return RobotLanguage.of(robot)
    except ExamplesError as error:
        raise LanguageError(str(error)) from None


def load_language(
    config: LanguageConfig, robot: RobotLanguage, skills: Iterable[Skill], score_hopeless: bool = False
) -> Language:
    """robot: how people speak to it. skills: those to plan with. score_hopeless: candidates that have no chance get
    their score, too. Raises LanguageError."""
    skills = list(skills)
    robot = robot.of_these(skills)
    if config.chat:
        return _chatting(config, robot)
    if config.remote:
        check_timeout(config)
    from transformers.utils import logging as transformers_logging  # seconds, spent while the services start

    from planners.language import NEGLIGIBLE, LanguageScorer
    from planners.servers.remote import RemoteError, RemoteScorer
    from planners.weights import WeightsError, text_embedder

    transformers_logging.disable_progress_bar()  # we have our own
    negligible = 0.0 if score_hopeless else NEGLIGIBLE
    try:
        if config.remote:
            if not config.served or config.adapter not in ("", NONE) or config.device != CPU:
                raise LanguageError(
                    f"{config.model}: a server needs the name of its model (--language.served), and takes neither an "
                    "adapter nor a device"
                )
            remote = RemoteScorer(
                config.model, config.served, os.environ.get(KEY), config.timeout, negligible=negligible
            )
            return Language(remote, robot.prompt(text_embedder()), config.served)
        adapter = _adapter(config, robot, skills)
        for_any = plans_for_any(adapter)
        nearness = NEARNESS if for_any else 0.0  # which may make up for some of what is given up else
        scorer = LanguageScorer(
            config.model or None, adapter, negligible=negligible * math.exp(-nearness), device=config.device
        )
        name = scorer.name + (f" + {adapter.name}" if adapter else "")
        tells = {"states": tells_states(adapter), "told": tells_skills(adapter)}
        prompt = robot.prompt(text_embedder(), tuned=adapter is not None, **tells)
        measured = adapter is not None and adapter == robot.adapter and not config.model
        unsure = robot.unsure if measured and robot.unsure is not None else UNSURE
        cannot = CANNOT if prompt.tuned and not for_any else None
        return Language(scorer, prompt, name, unsure, nearness=nearness, cannot=cannot)
    except (WeightsError, RemoteError, OSError, ValueError) as error:
        raise LanguageError(" ".join(str(error).split())) from error


def _chatting(config: LanguageConfig, robot: RobotLanguage) -> Language:
    from planners.proposal import ChatProposer
    from planners.servers.chat import OPTIONS, LetteredScorer
    from planners.weights import WeightsError, text_embedder

    chat, top = try_chat(config)
    name = config.served or config.chat
    try:
        prompt = robot.prompt(text_embedder(), scene=True)
    except (WeightsError, OSError, ValueError) as error:
        raise LanguageError(" ".join(str(error).split())) from error
    scorer = LetteredScorer(chat, top, prompt.about)
    if top:
        return Language(scorer, prompt, f"{name}, by letters", preselect=OPTIONS)
    return Language(scorer, prompt, f"{name}, by proposals", proposer=ChatProposer(chat, prompt))


@cache
def try_chat(config: LanguageConfig) -> tuple[BaseChatModel, int]:
    """The chat model, and how many of an answer's likeliest tokens it tells; 0: none. It has answered a question by
    then. Raises LanguageError."""
    from pydantic import SecretStr

    from planners.servers.chat import ServerChat, tells_letters
    from planners.servers.remote import LanguageServer, RemoteError

    if config.model or config.adapter not in ("", NONE) or config.device != CPU:
        raise LanguageError(
            "--language.chat names a model of its own, which runs elsewhere; leave --language.model, "
            "--language.adapter and --language.device"
        )
    key, shown = os.environ.get(KEY), config.chat.rpartition("@")[2]  # what stands before an @ may be a password
    if config.max_tokens < 1:
        raise LanguageError(f"--language.max-tokens {config.max_tokens}: it must be at least 1")
    check_timeout(config)
    try:
        if _is_url(config.chat):
            if not config.served:
                raise LanguageError(f"{shown}: a server needs the name of its model (--language.served)")
            LanguageServer(config.chat, config.served, key)  # raises ValueError
            chat: BaseChatModel = ServerChat(
                url=config.chat,
                served=config.served,
                api_key=SecretStr(key) if key else None,
                timeout=config.timeout,
                max_tokens=config.max_tokens,
            )
        else:
            chat = _named_chat(config)
        return chat, tells_letters(chat)
    except (RemoteError, ValueError) as error:
        raise LanguageError(f"--language.chat {shown}: {' '.join(str(error).split())}") from None


def check_timeout(config: LanguageConfig) -> None:
    """Of a server. Raises LanguageError."""
    if not 0 < config.timeout <= TIMEOUT_MAX:
        raise LanguageError(f"--language.timeout {config.timeout:g}: it must be above 0, and at most {TIMEOUT_MAX:g}")


def _named_chat(config: LanguageConfig) -> BaseChatModel:
    from langchain.chat_models import init_chat_model

    try:
        return init_chat_model(
            config.chat, timeout=config.timeout, max_tokens=config.max_tokens, max_retries=CHAT_RETRIES
        )
    except ImportError as error:  # which says what to install
        raise LanguageError(f"--language.chat {config.chat}: {' '.join(str(error).split())}") from None
    except Exception as error:  # somebody else's library: a key that is missing, a name that it does not know
        raise LanguageError(f"--language.chat {config.chat}: {' '.join(str(error).split())[:400]}") from None


def planner_of(kind: str, language: Language, skills: Iterable[Skill], settings: SayCanConfig) -> SayCanPlanner:
    """kind: "proposal" samples proposals from a local model; a chat model that cannot score proposes anyway."""
    if kind != "proposal" and language.proposer is None:
        nearness = language.nearness if settings.nearness is None else settings.nearness
        cannot = language.cannot if settings.cannot is None else settings.cannot
        preselect = settings.preselect or language.preselect
        settings = replace(settings, preselect=preselect, nearness=nearness, cannot=cannot)
        return SayCanPlanner(language.scorer, language.prompt, skills, settings)
    from planners.proposal import ChatProposer, LocalModel, ProposalPlanner, SampledProposer
    from planners.servers.chat import LetteredScorer

    proposer = language.proposer
    if proposer is None and isinstance(language.scorer, LetteredScorer):
        proposer = ChatProposer(language.scorer.chat, language.prompt)
    proposer = proposer or SampledProposer(cast(LocalModel, language.scorer), language.prompt)
    return ProposalPlanner(proposer, language.prompt, skills, settings)


def _adapter(config: LanguageConfig, robot: RobotLanguage, skills: Iterable[Skill]) -> Path | None:
    if config.adapter:
        return None if config.adapter == NONE else adapter_folder(config.adapter)
    return None if config.model else robot.adapter_for(skills) or (GENERAL if GENERAL.is_dir() else None)
