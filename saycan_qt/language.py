"""Which language model says what is sensible, and how it is asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from planners.prompts import Prompt
from planners.saycan import Scorer

KEY = "LANGUAGE_SERVER_KEY"  # environment variable
NONE = "none"


class LanguageError(Exception):
    """A language model that cannot be used: which one, why, and what to do."""


@dataclass(frozen=True)
class LanguageConfig:
    """Which language model; without options the one that comes with the project."""

    model: str = ""  # another one: a model folder, a GGUF file, or the URL of a server that scores texts, as vLLM does
    served: str = ""  # what that server calls the model; the server's key is taken from LANGUAGE_SERVER_KEY
    adapter: str = ""  # folder of an adapter that `saycan_qt.tune` left; "none": the shipped model as it was published


@dataclass(frozen=True)
class Language:
    """What is sensible: a language model and how it is asked."""

    scorer: Scorer
    prompt: Prompt
    name: str


def load_language(config: LanguageConfig, score_hopeless: bool = False) -> Language:
    """score_hopeless: candidates that have no chance get their score, too. Raises LanguageError."""
    from transformers.utils import logging as transformers_logging  # seconds, spent while the services start

    from planners.language import NEGLIGIBLE, LanguageScorer
    from planners.remote import RemoteError, RemoteScorer
    from planners.weights import ADAPTER, WeightsError, text_embedder

    transformers_logging.disable_progress_bar()  # we have our own
    negligible = 0.0 if score_hopeless else NEGLIGIBLE
    try:
        if config.model.startswith(("http://", "https://")):
            if not config.served:
                raise LanguageError(f"{config.model}: say what this server calls the model, as served")
            remote = RemoteScorer(config.model, config.served, os.environ.get(KEY))
            return Language(remote, Prompt(text_embedder()), config.served)
        adapter = Path(config.adapter) if config.adapter else None if config.model else ADAPTER
        if config.adapter == NONE:
            adapter = None
        scorer = LanguageScorer(config.model or None, adapter, negligible=negligible)
        name = scorer.path.stem + (f" + {adapter.name}" if adapter else "")
        return Language(scorer, Prompt(text_embedder(), tuned=adapter is not None), name)
    except (WeightsError, RemoteError, OSError, ValueError) as error:
        raise LanguageError(" ".join(str(error).split())) from error
