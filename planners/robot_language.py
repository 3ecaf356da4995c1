"""A robot's language: how people ask it for what it can do, and what a language model was taught of that.

language = RobotLanguage.of(RobotFolder.load(folder))        # examples.yaml and adapter/, where they are there
language.prompt(text_embedder()).build("bring me the red block", steps_done=[])
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from planners.prompts import Example, ExamplesError, Prompt, TextEmbedder, load_examples, load_words
from planners.spelling import Spelling, words_of
from skills import files
from skills.library import MAX_COMPARED, Skill, SkillLibrary
from skills.robot_folder import RobotFolder

EXAMPLES, ADAPTER = "examples.yaml", "adapter"  # in a robot's folder
DONE = "done"  # the skill that ends a plan
ASKING = "asking.json"  # in a robot's folder: `python -m saycan_qt.evaluate asking --calibrate` writes it
SCENES = "scenes.json"  # in an adapter's folder: what the scenes told that it was taught with


@dataclass(frozen=True)
class RobotLanguage:
    """What comes in with a robot, so that planners need to know none."""

    examples: tuple[Example, ...]  # what people say, and the plans that answer it
    things: tuple[str, ...]  # names that are masked when ways to ask are compared
    about: str = "a robot"  # whom a chat model is told that it plans for
    adapter: Path | None = None  # of the shipped language model, fine-tuned by `python -m saycan_qt.tune`
    taught: frozenset[str] = frozenset()  # texts of the skills that the adapter was fine-tuned on
    unsure: float | None = None  # confidence up to which a planner with the adapter asks; None: not measured

    @staticmethod
    def of(robot: RobotFolder) -> RobotLanguage:
        """Raises ExamplesError for an examples.yaml that cannot be used, LibraryError for skills that cannot.

        examples.yaml may be short, or absent: unless an adapter was taught them, skills that no example shows get one
        in which they are asked for by their own text."""
        file, adapter, library = robot.path / EXAMPLES, robot.path / ADAPTER, robot.library
        examples = load_examples(file) if file.exists() else []
        _check(examples, [skill.text for skill in library], file)
        words = load_words(file) if file.exists() else {}
        taught = adapter.is_dir()
        return RobotLanguage(
            examples=(*examples, *([] if taught else by_their_texts(library, examples))),
            things=tuple(words["thing"]) if "thing" in words else named_in(library),
            about=robot.about or f"a robot called {robot.name}",
            adapter=adapter if taught else None,
            taught=frozenset(skill.text for skill in library) if taught else frozenset(),
            unsure=unsure_in(robot.path / ASKING),
        )

    def adapter_for(self, skills: Iterable[Skill]) -> Path | None:
        """The adapter, if it was taught all of these skills."""
        return self.adapter if {skill.text for skill in skills} <= self.taught else None

    def prompt(self, embedder: TextEmbedder, tuned: bool = False, states: bool = False, scene: bool = False) -> Prompt:
        """tuned: for a language model with the adapter. states: for one that was taught with scenes that tell them.
        scene: tell it to one that was not, too."""
        said = (text for example in self.examples for text in (example.instruction, *example.plan))
        spelling = Spelling((*said, *self.things, *self.taught), words_of(embedder))
        told = {"tuned": tuned, "states": states, "scene": scene}
        return Prompt(embedder, self.examples, self.things, about=self.about, spelling=spelling, **told)


def unsure_in(file: Path) -> float | None:
    """Confidence up to which to ask, by a file of `evaluate asking`; None where there is none. Raises ExamplesError."""
    if not file.is_file():
        return None
    try:
        found = files.read_json(file, files.SMALL)["threshold"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ExamplesError(f"{file}: no threshold can be read from it: {error}") from None
    if not (isinstance(found, int | float) and 0 <= found <= 1):
        raise ExamplesError(f"{file}: a threshold lies within 0 to 1, not {str(found)[:50]}")
    return float(found)


def tells_states(adapter: Path | None) -> bool:
    """Was this adapter taught with scenes that tell what is open? Raises ValueError for a file that cannot be read."""
    if adapter is None or not (adapter / SCENES).is_file():
        return False
    told = files.read_json(adapter / SCENES, files.SMALL)
    if not isinstance(told, dict) or not isinstance(told.get("states"), bool):
        raise ValueError(f'{adapter / SCENES}: it must be {{"states": true}} or false')
    return bool(told["states"])


def _check(examples: Iterable[Example], texts: list[str], file: Path) -> None:
    """Raises ExamplesError for a plan that this robot cannot carry out, which would teach nothing that it can."""
    known = set(texts)
    for example in examples:
        for step in example.plan:
            if step not in known:
                near = difflib.get_close_matches(step, texts[:MAX_COMPARED], 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ExamplesError(f"{file}: the plan for {example.instruction!r} has {step!r}, no skill's text{hint}")


def by_their_texts(library: SkillLibrary, examples: Iterable[Example] = ()) -> list[Example]:
    """Each skill that none of these shows, asked for by its own text."""
    shown = {step for example in examples for step in example.plan}
    end = (library[DONE].text,) if DONE in library else ()
    return [Example(s.text, (s.text, *end)) for s in library if s.name != DONE and s.text not in shown]


def named_in(library: SkillLibrary) -> tuple[str, ...]:
    """Whatever fills a placeholder of some skill, each once."""
    return tuple(dict.fromkeys(value for skill in library for value in skill.arguments.values()))
