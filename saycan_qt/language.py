"""Which language model says what is sensible, and how it is asked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from planners.prompts import ExamplesError, Prompt
from planners.robot_language import RobotLanguage, tells_states
from planners.saycan import Scorer
from skills.library import Skill
from skills.robot_folder import RobotFolder

KEY = "LANGUAGE_SERVER_KEY"  # environment variable
NONE = "none"
UNSURE = 0.6  # a guess, for what `evaluate asking` has not measured


class LanguageError(Exception):
    """A language model that cannot be used: which one, why, and what to do."""


@dataclass(frozen=True)
class LanguageConfig:
    """Which language model; without options the one that comes with the project."""

    model: str = ""  # another one: a model folder, a GGUF file, or the URL of a server that scores texts, as vLLM does
    served: str = ""  # what that server calls the model; the server's key is taken from LANGUAGE_SERVER_KEY
    # A folder that `saycan_qt.tune` left; "none": the model as published, which needs examples. By default the shipped
    # model plans with the adapter that comes with the robot's language, where it was taught all of the robot's skills
    adapter: str = ""

    @property
    def remote(self) -> bool:
        return self.model.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Language:
    """What is sensible: a language model and how it is asked."""

    scorer: Scorer
    prompt: Prompt
    name: str
    unsure: float = UNSURE  # confidence up to which it asks, where it may, see planners.asking


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
    from transformers.utils import logging as transformers_logging  # seconds, spent while the services start

    from planners.language import NEGLIGIBLE, LanguageScorer
    from planners.remote import RemoteError, RemoteScorer
    from planners.weights import WeightsError, text_embedder

    transformers_logging.disable_progress_bar()  # we have our own
    negligible = 0.0 if score_hopeless else NEGLIGIBLE
    try:
        if config.remote:
            if not config.served or config.adapter not in ("", NONE):
                raise LanguageError(
                    f"{config.model}: a server needs the name of its model (--language.served) and takes no adapter"
                )
            remote = RemoteScorer(config.model, config.served, os.environ.get(KEY))
            return Language(remote, robot.prompt(text_embedder()), config.served)
        adapter = _adapter(config, robot, skills)
        scorer = LanguageScorer(config.model or None, adapter, negligible=negligible)
        name = scorer.path.stem + (f" + {adapter.name}" if adapter else "")
        prompt = robot.prompt(text_embedder(), tuned=adapter is not None, states=tells_states(adapter))
        measured = adapter is not None and adapter == robot.adapter and not config.model
        unsure = robot.unsure if measured and robot.unsure is not None else UNSURE
        return Language(scorer, prompt, name, unsure)
    except (WeightsError, RemoteError, OSError, ValueError) as error:
        raise LanguageError(" ".join(str(error).split())) from error


def _adapter(config: LanguageConfig, robot: RobotLanguage, skills: Iterable[Skill]) -> Path | None:
    if config.adapter:
        return None if config.adapter == NONE else Path(config.adapter)
    return None if config.model else robot.adapter_for(skills)
