"""A robot's language: how people ask it for what it can do, and what a language model was taught of that.

language = RobotLanguage.load(folder)                # examples.yaml, and adapter/ where there is one
language.prompt(text_embedder()).build("bring me the red block", steps_done=[])
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from planners.prompts import Example, Prompt, TextEmbedder, load_examples, load_words
from skills.library import Skill

EXAMPLES, ADAPTER = "examples.yaml", "adapter"  # in a robot's folder


@dataclass(frozen=True)
class RobotLanguage:
    """What comes in with a robot, so that planners need to know none."""

    examples: tuple[Example, ...]  # what people say, and the plans that answer it
    things: tuple[str, ...]  # names that are masked when ways to ask are compared
    about: str = "a robot"  # whom a chat model is told that it plans for
    adapter: Path | None = None  # of the shipped language model, fine-tuned by `python -m saycan_qt.tune`
    taught: frozenset[str] = frozenset()  # texts of the skills that the adapter was fine-tuned on

    @staticmethod
    def load(folder: Path, about: str = "a robot", taught: Iterable[Skill] = ()) -> RobotLanguage:
        """Of a folder with examples.yaml and perhaps an adapter, which was taught these skills."""
        examples, adapter = folder / EXAMPLES, folder / ADAPTER
        return RobotLanguage(
            examples=tuple(load_examples(examples)),
            things=tuple(load_words(examples)["thing"]),
            about=about,
            adapter=adapter if adapter.is_dir() else None,
            taught=frozenset(skill.text for skill in taught),
        )

    def adapter_for(self, skills: Iterable[Skill]) -> Path | None:
        """The adapter, if it was taught all of these skills."""
        return self.adapter if {skill.text for skill in skills} <= self.taught else None

    def prompt(self, embedder: TextEmbedder, tuned: bool = False) -> Prompt:
        """tuned: for a language model with the adapter."""
        return Prompt(embedder, self.examples, self.things, about=self.about, tuned=tuned)
