"""What a language model is fine-tuned on for a robot: what people say, where the robot is then, and the plan.

Three sources: the examples of the robot's folder, its skills asked for by their own texts, and a file of more pairs,
YAML (a list) or JSON lines, each

    {instruction: water the fern, plan: [fill the tank, water the fern, done]}
    {instruction: sing a song, plan: [cannot]}                      # what the robot cannot do; it then refuses the like
    {instruction: water it, plan: [water the fern, done], scene: {place: tap, held: "", objects: {fern: bed}}}

A plan is in the skills' texts and ends with that of "done". A pair without a scene gets scenes drawn at random.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from planners.prompts import CANNOT, describe, one_line, shown, to_learn
from planners.robot_language import DONE, RobotLanguage, by_their_texts, named_in
from saycan_qt.learning.tuning import Pairs, endless
from skills import files
from skills.errors import SkillError
from skills.library import Skill, SkillLibrary
from skills.robot_folder import RobotFolder
from skills.rules import ANYTHING, NOTHING, Known

MOST_BYTES, MOST = 64 * 2**20, 1_000_000  # of a file of pairs, and of the values in one of YAML
HELD_OUT = 10  # one in so many ways to say things is kept from training, and validated on
SCENELESS = 0.2  # the share of pairs without a scene, as a planner may not know it
TOLD = 0.3  # ... that stand behind themselves, as the prompt's example does where something is said as it says it
MOST_SHOWN = 2  # other examples before a pair, less those with a scene and those that cannot be served


class PairsError(SkillError):
    """Pairs that cannot be used: file, which one, why."""


@dataclass(frozen=True)
class Scene:
    """What the robot knows, see planners.prompts.Known."""

    place: str = ""
    held: str = ""
    objects: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Something that a person says, and the plan that answers it."""

    instruction: str
    plan: tuple[str, ...]  # in skill texts
    scene: Scene | None = None  # None: it is the same in all

    @property
    def needs_scene(self) -> bool:
        return self.scene is not None


def load(file: Path, library: SkillLibrary) -> list[Pair]:
    """Of a file with a list in YAML, or with lines of JSON. Raises PairsError."""
    try:
        text = files.read_text(file, MOST_BYTES)
        if file.suffix in (".jsonl", ".ndjson"):
            entries: Any = [files.from_json(line.encode()) for line in text.splitlines() if line.strip()]
        else:
            entries = files.from_yaml(text, MOST)
    except OSError as error:
        raise PairsError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise PairsError(f"{file}: neither YAML nor, in a .jsonl, JSON lines: {' '.join(str(error).split())}") from None
    if not isinstance(entries, list) or not entries:
        raise PairsError(f"{file}: it must be a list of pairs that is not empty")
    return [_read(entry, f"{file}, pair {number}", library) for number, entry in enumerate(entries, 1)]


def _read(entry: Any, where: str, library: SkillLibrary) -> Pair:
    match entry:
        case {"instruction": str(instruction), "plan": [*plan]} if entry.keys() <= {"instruction", "plan", "scene"}:
            pair = Pair(one_line(instruction), tuple(map(str, plan)), _scene(entry.get("scene"), where))
        case _:
            raise PairsError(f"{where}: it needs `instruction` (text) and `plan` (a list), and may have `scene`")
    check(pair, where, library)
    return pair


def _scene(given: Any, where: str) -> Scene | None:
    if given is None:
        return None
    if not isinstance(given, dict) or not given.keys() <= {"place", "held", "objects"}:
        raise PairsError(f"{where}: a scene may have `place`, `held` and `objects` (thing: place)")
    objects = given.get("objects") or {}
    if not isinstance(objects, dict):
        raise PairsError(f"{where}: `objects` of a scene are things with their places, not {objects!r}")
    return Scene(
        str(given.get("place") or ""),
        str(given.get("held") or ""),
        {str(thing): str(place) for thing, place in objects.items()},
    )


def check(pair: Pair, where: str, library: SkillLibrary) -> None:
    """Raise PairsError for a plan that the robot cannot follow."""
    if pair.plan == (CANNOT,):
        return
    texts = {skill.text for skill in library}
    if unknown := [step for step in pair.plan if step not in texts]:
        raise PairsError(f"{where} ({pair.instruction!r}): {unknown[0]!r} is no skill's text")
    end = library[DONE].text
    if pair.plan[-1:] != (end,):
        raise PairsError(f"{where} ({pair.instruction!r}): a plan ends with {end!r}, or is [{CANNOT}]")


def is_held_out(instruction: str) -> bool:
    return hashlib.sha256(instruction.lower().encode()).digest()[0] % HELD_OUT == 0


class Scenes:
    """Scenes as they may be: things and places that the robot's skills and their rules name, at random. Where rules
    name what may be held, nothing else is. Which thing lies where is a guess."""

    def __init__(self, library: SkillLibrary) -> None:
        at = {word for skill in library for word in _words_of(skill, "place")}
        self.places = tuple(dict.fromkeys([*library.values("place"), *sorted(at)]))
        self.things = tuple(value for value in named_in(library) if value not in self.places)
        held = {word for skill in library for word in _words_of(skill, "held")}
        self.holdable = tuple(sorted(held - {NOTHING, ANYTHING}))

    def draw(self, rng: np.random.Generator) -> Scene:
        here = str(rng.choice(self.places)) if self.places else ""
        things = [str(thing) for thing in rng.permutation(self.things)[: rng.integers(0, 8)]]
        held = ""
        if rng.random() < 0.2:
            held = str(rng.choice(self.holdable)) if self.holdable else things.pop() if len(things) > 1 else ""
        things = [thing for thing in things if thing != held]
        where = [str(rng.choice(self.places)) if self.places else "" for _ in things]
        return Scene(here, held, dict(zip(things, where, strict=True)))


def _words_of(skill: Skill, key: str) -> list[str]:
    """Where its rule wants the robot to be ("place"), or what to hold ("held"), or not."""
    cases = skill.rule.cases if skill.rule else ()
    words = (word for case in cases for one in case.conditions if one.key == key for word in one.words)
    return [word.format(**skill.arguments) for word in words]


def text_of(pairs: Sequence[Pair], scenes: Scenes, rng: np.random.Generator) -> tuple[str, list[tuple[int, int]]]:
    """One of the pairs as the model reads it, and where the steps are: from a number's blank to the line's end."""
    pair = pairs[int(rng.integers(len(pairs)))]
    known: Known = pair.scene or scenes.draw(rng)
    told, sceneless = rng.random() < TOLD, rng.random() < SCENELESS
    others = [pairs[int(rng.integers(len(pairs)))] for _ in range(int(rng.integers(MOST_SHOWN + 1)))]
    examples = [one for one in others if not one.needs_scene and one.plan != (CANNOT,)] + [pair] * told
    before = "".join(shown(one.instruction, one.plan) for one in examples)
    scene = "" if sceneless and not pair.scene else describe(known) + "\n"
    return to_learn(before + scene, _said(pair, rng), pair.plan)


def _said(pair: Pair, rng: np.random.Generator) -> str:
    """With a capital, in small letters, with a full stop, or as it stands."""
    text = pair.instruction
    said = (text, text[:1].upper() + text[1:], text.lower())[rng.integers(3)]
    return said + "." if said[-1:].isalnum() and rng.random() < 0.3 else said


def pairs_of(body: RobotFolder, file: Path | None = None) -> Pairs:
    """Of a robot's folder and perhaps a file of more. Raises PairsError, LibraryError, and ExamplesError of prompts."""
    library, language = body.library, RobotLanguage.of(body)
    if DONE not in library:
        raise PairsError(f"{body.path}: a plan ends with the skill {DONE!r}, which its skills lack")
    examples = dict.fromkeys([*language.examples, *by_their_texts(library)])
    pairs = [Pair(one_line(example.instruction), example.plan) for example in examples]
    for pair in pairs:
        check(pair, f"{body.path}, an example", library)
    pairs += load(file, library) if file else []
    training = [pair for pair in pairs if not is_held_out(pair.instruction)] or pairs
    held_out = [pair for pair in pairs if is_held_out(pair.instruction)] or pairs
    scenes = Scenes(library)
    first, second = (endless(partial(text_of, drawn, scenes), language.skills + "\n") for drawn in (training, held_out))
    texts = tuple(sorted(skill.text for skill in library))
    drawn = repr((language.skills, texts, [(pair.instruction, pair.plan, pair.scene) for pair in pairs]))
    source = hashlib.sha256(drawn.encode(errors="replace")).hexdigest()[:16]
    return Pairs(first, second, told=True, source=source, taught=texts)
