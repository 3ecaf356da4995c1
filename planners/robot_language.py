"""A robot's language: how people ask it for what it can do, and what a language model was taught of that.

language = RobotLanguage.of(RobotFolder.load(folder))        # examples.yaml and adapter/, where they are there
language.prompt(text_embedder()).build("bring me the red block", steps_done=[])
"""

from __future__ import annotations

import difflib
import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from planners.prompts import CANNOT, Example, ExamplesError, Prompt, TextEmbedder, load_examples, load_words
from planners.spelling import Spelling, words_of
from skills import files
from skills.library import MAX_COMPARED, Skill, SkillLibrary
from skills.robot_folder import RobotFolder

log = logging.getLogger(__name__)

EXAMPLES, ADAPTER = "examples.yaml", "adapter"  # in a robot's folder
GENERAL = Path(__file__).with_name("general")  # the shipped language model's adapter for robots that none was taught
DONE = "done"  # the skill that ends a plan
ASKING = "asking.json"  # in a robot's folder: `python -m saycan_qt.evaluate asking --calibrate` writes it
SCENES = "scenes.json"  # in an adapter's folder: what the prompts told that it was taught with
TAUGHT = "taught.json"  # in an adapter's folder: texts of the skills that it was taught
LARGE = 2**24  # [bytes] of that
MOST_FAMILIES, MOST_VALUES = 60, 40  # that are told; of a larger library the rest is left out
CUT = re.compile(r"[;,] \.\.\.(;|$)", re.MULTILINE)
COMPARED = 30  # skills of a family from which its template is found


@dataclass(frozen=True)
class RobotLanguage:
    """What comes in with a robot, so that planners need to know none."""

    examples: tuple[Example, ...]  # what people say, and the plans that answer it
    things: tuple[str, ...]  # names that are masked when ways to ask are compared
    about: str = "a robot"  # whom a chat model is told that it plans for
    adapter: Path | None = None  # of the shipped language model, fine-tuned by `python -m saycan_qt.tune`
    taught: frozenset[str] = frozenset()  # texts of the skills that the adapter was fine-tuned on
    unsure: float | None = None  # confidence up to which a planner with the adapter asks; None: not measured
    by_text: tuple[Example, ...] = ()  # skills that no example shows, asked for by their own text
    skills: str = ""  # what it can do, in a few lines
    texts: frozenset[str] = frozenset()  # of its skills

    @staticmethod
    def of(robot: RobotFolder) -> RobotLanguage:
        """Raises ExamplesError for an examples.yaml that cannot be used, LibraryError for skills that cannot.

        examples.yaml may be short, or absent: unless an adapter was taught them, skills that no example shows get one
        in which they are asked for by their own text."""
        file, adapter = robot.path / EXAMPLES, robot.path / ADAPTER
        about = robot.about or f"a robot called {robot.name}"
        given = file if file.exists() else None
        language = RobotLanguage.read(robot.library, given, adapter if adapter.is_dir() else None, about)
        return replace(language, unsure=unsure_in(robot.path / ASKING))

    @staticmethod
    def read(
        library: SkillLibrary, file: Path | None = None, adapter: Path | None = None, about: str = "a robot"
    ) -> RobotLanguage:
        """file: of examples. An adapter that was not taught all of the skills is left out. Raises ExamplesError."""
        examples = load_examples(file) if file else []
        if file:
            _check(examples, [skill.text for skill in library], file)
        words, texts = load_words(file) if file else {}, frozenset(skill.text for skill in library)
        if adapter and (missing := texts - taught_to(adapter, texts)):
            some = f"“{min(missing)}”" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            log.warning("%s was not taught %s, and is left out; `saycan_qt.tune` teaches anew", adapter, some)
            adapter = None
        return RobotLanguage(
            examples=tuple(examples),
            things=tuple(map(str, words["thing"])) if "thing" in words else named_in(library),
            about=about,
            adapter=adapter,
            taught=texts if adapter else frozenset(),
            by_text=() if adapter else tuple(by_their_texts(library, examples)),
            skills=abilities(library),
            texts=texts,
        )

    def of_these(self, skills: Iterable[Skill]) -> RobotLanguage:
        """As its robot is spoken to, where that has other skills than it was read for: of its examples those whose
        plans they can follow, and what they can do in place of what it could."""
        library = SkillLibrary(skills)
        texts, told = frozenset(skill.text for skill in library), abilities(library)
        same = texts == self.texts and sorted(told.splitlines()) == sorted(self.skills.splitlines())
        if same or not self.skills or not len(library):
            return self
        examples = tuple(example for example in self.examples if (texts | {CANNOT}).issuperset(example.plan))
        by_text = () if self.adapter_for(library) else tuple(by_their_texts(library, examples))
        things = tuple(dict.fromkeys([*self.things, *named_in(library)]))
        return replace(self, examples=examples, by_text=by_text, things=things, skills=told, texts=texts)

    def adapter_for(self, skills: Iterable[Skill]) -> Path | None:
        """The adapter, if it was taught all of these skills."""
        return self.adapter if {skill.text for skill in skills} <= self.taught else None

    def prompt(
        self,
        embedder: TextEmbedder,
        tuned: bool = False,  # for a language model with an adapter
        states: bool = False,  # for one that was taught with scenes that tell them
        scene: bool = False,  # tell it to one that was not, too
        told: bool = False,  # for one that was taught to be told what the robot can do
    ) -> Prompt:
        examples = self.examples if told else (*self.examples, *self.by_text)
        if told and CUT.search(self.skills):
            most = f"at most {MOST_FAMILIES} kinds with {MOST_VALUES} things each"
            log.warning("of this robot's %d skills the language model is not told all: %s", len(self.texts), most)
        said = (text for e in (*self.examples, *self.by_text) for text in (e.instruction, *e.plan))
        return Prompt(
            embedder,
            examples,
            self.things,
            about=self.about,
            spelling=Spelling((*said, *self.things, *self.taught), words_of(embedder)),
            tuned=tuned or told,
            states=states,
            scene=scene,
            skills=self.skills if told else "",
            texts=self.texts,
        )


def adapter_folder(given: str | Path) -> Path:
    """Of an adapter: the one that is given, or the general one by its name; another of that name is given by its whole
    path. Raises ValueError where there is no general one."""
    if str(given) != GENERAL.name:
        return Path(given)
    if not GENERAL.is_dir():
        raise ValueError(f"{GENERAL.name}: no such adapter came with this installation")
    return GENERAL


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


def taught_to(adapter: Path, skills: frozenset[str]) -> frozenset[str]:
    """Texts of the skills that an adapter was taught; all of these where it does not tell. Raises ExamplesError."""
    if not (adapter / TAUGHT).is_file():
        return skills
    try:
        return frozenset(files.read_json(adapter / TAUGHT, LARGE)["skills"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ExamplesError(f"{adapter / TAUGHT}: no skills can be read from it: {error}") from None


def tells_states(adapter: Path | None) -> bool:
    """Was this adapter taught with scenes that tell what is open? Raises ValueError for a file that cannot be read."""
    return _taught_with(adapter, "states")


def tells_skills(adapter: Path | None) -> bool:
    """Was it taught with prompts that tell what the robot can do? Raises ValueError for a file that cannot be read."""
    return _taught_with(adapter, "skills")


def plans_for_any(adapter: Path | None) -> bool:
    """Was it taught with robots that do not exist, for those that nothing was taught? Raises ValueError for a file that
    cannot be read."""
    return _taught_with(adapter, "any_robot")


def _taught_with(adapter: Path | None, what: str) -> bool:
    if adapter is None or not (adapter / SCENES).is_file():
        return False
    told = files.read_json(adapter / SCENES, files.SMALL)
    if not isinstance(told, dict) or not isinstance(told.get(what, False), bool):
        raise ValueError(f'{adapter / SCENES}: it must be {{"{what}": true}} or false')
    return bool(told.get(what, False))


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


def abilities(skills: Iterable[Skill]) -> str:
    """What a robot can do, in a few lines, for a language model that was not taught it; "" without skills. What ends a
    plan is told last, where such a model has always met it, also where a large library is cut.

    Skills: fill the tank; water the {plant}; done
    plant: fern, cactus, basil
    """
    families: dict[str, list[Skill]] = {}
    values: dict[str, dict[str, None]] = {}
    for skill in skills:
        families.setdefault(DONE if skill.name == DONE else skill.family, []).append(skill)
        for slot, value in skill.arguments.items():
            values.setdefault(slot, {})[value] = None
    if not families:
        return ""
    end = [template(families.pop(DONE))] if DONE in families else []
    told = [template(family) for family in islice(families.values(), MOST_FAMILIES - len(end))]
    lines = ["Skills: " + "; ".join([*told, *(["..."] if len(families) > len(told) else []), *end])]
    alike: dict[tuple[str, ...], list[str]] = {}  # placeholders that take the same things share a line
    for slot, found in values.items():
        alike.setdefault(tuple(found), []).append(slot)
    for taken, slots in alike.items():
        more = ["..."] if len(taken) > MOST_VALUES else []
        lines.append(f"{', '.join(slots)}: {', '.join([*taken[:MOST_VALUES], *more])}")
    return "\n".join(lines) + "\n"


def template(family: list[Skill]) -> str:
    """How the texts of a family's skills are made: one of them, with slots in the place of its arguments. That which
    most of the skills agree on, as an argument may also stand in a text by chance; of two those in which all slots
    are, as two of a skill's arguments may be the same."""
    found = [_template(skill) for skill in family[:COMPARED]]
    whole = [text for text in found if _has_all(text, family[0].arguments)]
    return Counter(whole or found).most_common(1)[0][0]


def _template(skill: Skill) -> str:
    """Arguments are whole words, but where a slot touches a letter: "bay{number}", "the {plant}s"."""
    slots = {value: slot for slot, value in skill.arguments.items()}
    names = "|".join(re.escape(value) for value in sorted(slots, key=len, reverse=True))
    text = skill.text
    for edge in (r"(?<!\w)({})(?!\w)", r"({})") if slots else ():
        text = re.sub(edge.format(names), lambda found: f"{{{slots[found[0]]}}}", skill.text)
        if _has_all(text, skill.arguments):
            break
    return text


def _has_all(text: str, slots: Iterable[str]) -> bool:
    return all(f"{{{slot}}}" in text for slot in slots)
