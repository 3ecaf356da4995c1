"""Generated instructions and plans: what they are made from, and that the plans can be carried out."""

import re

import numpy as np
import pytest

from planners.prompts import CANNOT
from saycan_qt.kitchen.language import instructions
from saycan_qt.kitchen.language.pairs import PairGenerator, text_of
from saycan_qt.kitchen.language.phrases import PHRASES, Phrases, is_held_out
from saycan_qt.kitchen.language.sources import SOURCES
from saycan_qt.kitchen.symbolic import SymbolicKitchen
from skills.library import SkillLibrary
from skills.types import Status

LIBRARY = SkillLibrary.load()
BY_TEXT = {skill.text: skill for skill in LIBRARY}


@pytest.fixture(scope="module")
def generator():
    return PairGenerator(LIBRARY)


def words(text):
    return " ".join(re.findall(r"\w+", re.sub(r"\{.*?\}", "", text).lower()))


def phrases_of(node):
    match node:
        case str():
            yield node
        case dict():
            for value in node.values():
                yield from phrases_of(value)
        case list():
            for value in node:
                yield from phrases_of(value)


def test_every_plan_can_be_carried_out_where_it_is_asked_for(generator):
    rng, sources = np.random.default_rng(0), set()
    for _ in range(600):
        pair = generator.generate(rng)
        sources.add(pair.source)
        kitchen = SymbolicKitchen(dict(pair.kitchen.where), pair.kitchen.place, set(pair.kitchen.open_drawers))
        if pair.plan != (CANNOT,):
            *steps, last = pair.plan
            assert last == "done" and steps
            for step in steps:
                assert kitchen.execute(BY_TEXT[step]).status is Status.SUCCEEDED, (pair, step)
        assert not re.search(r"[{}]", pair.instruction)
    assert sources == set(SOURCES)


def test_pairs_follow_from_the_seed_and_wording_kept_to_validate_on_is_not_trained_on(generator):
    first, again = ([generator.generate(np.random.default_rng(s)) for s in range(50)] for _ in range(2))
    assert first == again
    kept = {p for p in Phrases.load().impossible if is_held_out(p) and "{" not in p}
    assert len(kept) > 20
    rng = np.random.default_rng(1)
    said = {words(generator.generate(rng).instruction) for _ in range(2000)}
    assert not said & {words(phrase) for phrase in kept}


def test_no_sentence_of_the_instruction_set_is_among_the_phrases():
    found = {words(phrase) for phrase in phrases_of(vars(Phrases.load()))}
    assert len(found) > 5000 and PHRASES.is_dir()
    sets = [instructions.load(path, LIBRARY) for path in (instructions.INSTRUCTIONS, instructions.DEVELOPMENT)]
    asked = {words(entry.say) for entries in sets for entry in entries}
    long = {say for say in asked if len(say.split()) > 4}  # "pick up the orange" has no other words
    assert not long & found


def test_what_is_learnt_is_the_steps_from_their_blank_to_their_lines_end(generator):
    rng = np.random.default_rng(2)
    for _ in range(50):
        text, spans = text_of(generator, rng)
        assert {text[start:end].strip() for start, end in spans} <= {*BY_TEXT, CANNOT}
        assert all(text[start] == " " and text[end - 1] == "\n" for start, end in spans)
        assert text.endswith(text[slice(*spans[-1])])
