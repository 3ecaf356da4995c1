"""Generated instructions and plans: what they are made from, and that the plans can be carried out."""

import re
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from planners.prompts import CANNOT, describe
from saycan_qt.kitchen.language import instructions, wording, written
from saycan_qt.kitchen.language.errands import Unsuitable
from saycan_qt.kitchen.language.intricate import Asked, Part, in_view
from saycan_qt.kitchen.language.pairs import LONGEST_PLAN, PairGenerator, text_of
from saycan_qt.kitchen.language.phrases import PHRASES, Phrases, is_held_out
from saycan_qt.kitchen.language.slips import with_a_slip
from saycan_qt.kitchen.language.sources import INTRICATE, MEMBER, SOURCES, WRITTEN
from saycan_qt.kitchen.symbolic import SymbolicKitchen
from skills.library import SkillLibrary
from skills.robot_folder import KITCHEN
from skills.types import Status

LIBRARY = SkillLibrary.load()
PICKS = re.compile("^(bring|pick up|open|close) (me )?(a|an|the) ", re.I)  # and nothing that is held already
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
            for step in steps:
                assert kitchen.execute(BY_TEXT[step]).status is Status.SUCCEEDED, (pair, step)
            if last not in ("done", CANNOT):  # what is asked for is not there, and looked for in vain
                assert pair.by_scene and not kitchen.affordance(BY_TEXT[last]), pair
            assert steps or last != "done" or pair.source in (*INTRICATE, WRITTEN), pair
        assert len(pair.plan) <= LONGEST_PLAN + 1
        assert not re.search(r"[{}]", pair.instruction)
    assert sources == {*SOURCES, WRITTEN}


def test_all_of_a_kind_are_taken_in_the_order_of_the_scenes_line(generator):
    rng, several = np.random.default_rng(0), 0
    for _ in range(300):
        with suppress(Unsuitable):
            wanted = generator.sources.draw("sets", rng)
            pair = generator._pair(wanted, "sets", rng)
            there = [thing for thing in in_view(pair.kitchen) if thing in wanted.values.values()]
            taken = [v for name, v in wanted.values.items() if name.startswith(MEMBER) and v in there]
            assert taken == sorted(taken, key=there.index), pair
            several += len(taken) > 1
    assert several > 50


def test_all_bottles_and_all_cans_are_all_that_are_in_one(generator):
    for one in generator.written:
        if re.search(r"bottles|every bottle", one.say, re.IGNORECASE):
            assert all("tea" in (*case.start.objects, *case.start.absent) for case in one.cases), one
    rng, every = np.random.default_rng(0), generator.sources.phrases.categories["can"]["all"]
    cans = []
    for _ in range(2500):
        with suppress(Unsuitable):
            wanted = generator.sources.draw("sets", rng)
            if wanted.words.get("all") in every:
                cans.append(generator._pair(wanted, "sets", rng).kitchen.where)
    assert len(cans) > 20 and not [where for where in cans if {"lime soda", "grapefruit soda"} & where.keys()]


def test_of_things_of_which_any_will_do_the_one_in_hand_is_taken_or_the_first_of_the_scenes_line(generator):
    rng, several = np.random.default_rng(0), 0
    for _ in range(400):
        with suppress(Unsuitable):
            wanted = generator.sources.draw("wish", rng)
            pair = generator._pair(wanted, "wish", rng)
            untouched = wanted.values.get("other")
            here = (thing for thing in (pair.kitchen.held, *in_view(pair.kitchen)) if thing != untouched)
            fitting = [thing for thing in here if thing in wanted.any_of]
            assert wanted.values["object"] == fitting[0], pair
            several += len(fitting) > 1
    assert several > 40


@pytest.mark.parametrize("source", ["sets", "held", "frame", "wish"])
def test_what_the_robot_holds_is_none_of_those_that_are_meant_and_left_out(generator, source):
    rng, full = np.random.default_rng(0), 0
    for _ in range(600):
        with suppress(Unsuitable):
            wanted = generator.sources.draw(source, rng)
            pair = generator._pair(wanted, source, rng)
            assert pair.kitchen.held not in wanted.absent - set(wanted.values.values()), pair
            full += bool(pair.kitchen.held)
    assert full > 50


def test_a_wish_in_another_language_is_not_met_by_what_is_held_already(generator):
    wishes = {
        wish: generator.intricate.members(category)
        for language in generator.sources.phrases.foreign.values()
        for category, ways in language["wish"].items()
        for wish in ways
    }
    rng, asked = np.random.default_rng(0), []
    for _ in range(1500):
        with suppress(Unsuitable):
            asked.append(generator.intricate.foreign(rng))
    wished = [(one.kitchen.held, wishes[one.say]) for one in asked if one.say in wishes]
    assert len(wished) > 60 and not [held for held, members in wished if held in members]


def test_where_any_one_of_a_kind_is_meant_no_other_is_a_landmark(generator, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(wording, "ONE_OF_A_KIND", 0.5)
    monkeypatch.setattr(wording, "BY_NEIGHBOUR", 0.5)
    for _ in range(400):
        with suppress(Unsuitable):
            wanted = generator.sources.draw("frame", rng)
            pair = generator._pair(wanted, "frame", rng)
            assert not (wanted.absent - set(wanted.values.values())) & pair.kitchen.where.keys(), pair


def test_what_lies_in_a_drawer_is_called_by_its_name_as_no_scene_tells_of_it(generator, monkeypatch):
    one_of_a_kind, rng, kinds = wording._Binding.one_of_a_kind, np.random.default_rng(0), []
    monkeypatch.setattr(wording, "ONE_OF_A_KIND", 0.5)
    monkeypatch.setattr(
        wording._Binding, "one_of_a_kind", lambda self, thing: kinds.append(thing) or one_of_a_kind(self, thing)
    )
    for source in ("clause", "frame"):
        for _ in range(250):
            kinds.clear()
            with suppress(Unsuitable):
                pair = generator._pair(generator.sources.draw(source, rng), source, rng)
                assert not [thing for thing in kinds if pair.kitchen.where.get(thing, "").endswith("drawer")], pair


def test_pairs_follow_from_the_seed(generator):
    first, again = ([generator.generate(np.random.default_rng(s)) for s in range(50)] for _ in range(2))
    assert first == again


def test_wording_kept_to_validate_on_is_not_trained_on_nor_the_other_way_round(generator, monkeypatch):
    pick, picked = Phrases.pick, []

    def watched(phrases, ways, rng):
        if len({*map(is_held_out, ways)}) == 2:
            picked.append(is_held_out(found := pick(phrases, ways, rng)))
            return found
        return pick(phrases, ways, rng)

    monkeypatch.setattr(Phrases, "pick", watched)
    held_out = PairGenerator(LIBRARY, held_out=True)
    for pairs, kept in ((generator, False), (held_out, True)):
        picked.clear()
        for seed in range(200):
            pairs.generate(np.random.default_rng(seed))
        assert {*picked} == {kept} and len(picked) > 200
    assert not {one.say for one in generator.written} & {one.say for one in held_out.written}


def test_no_sentence_of_the_instruction_set_is_among_the_phrases():
    found = {words(phrase) for phrase in phrases_of(vars(Phrases.load()))}
    assert f"{len(found):,} phrases" in (KITCHEN / "adapter" / "MODEL_CARD.md").read_text() and PHRASES.is_dir()
    paths = (instructions.INSTRUCTIONS, instructions.DEVELOPMENT, instructions.HARD, instructions.UNKNOWN)
    sets = [instructions.load(path, LIBRARY) for path in paths]
    asked = {words(entry.say) for entries in sets for entry in entries}
    long = {say for say in asked if len(say.split()) > 4}  # "pick up the orange" has no other words
    assert not long & found


def test_what_was_written_is_planned_where_it_is_said_and_follows_from_what_is_seen(generator):
    rng, kept = np.random.default_rng(0), PairGenerator(LIBRARY, held_out=True)
    assert len(generator.written) > 5 * len(kept.written) > 400
    for one in written.load():
        for case in one.cases:
            plans = []
            for _ in range(4):
                with suppress(Unsuitable):  # as to bring what it holds to where it is
                    asked = written.Written(one.say, (case,)).draw(LIBRARY.objects, rng)
                    plans.append(generator.pair_of(asked, WRITTEN, rng).plan)
            assert plans, one
        told = [(replace(case.start, objects={}), outside_drawers(case)) for case in one.cases]
        assert len(set(map(str, told))) == len(one.cases), one


def outside_drawers(case):
    return sorted((thing, place) for thing, place in case.start.objects.items() if "drawer" not in place)


def test_what_was_written_is_not_what_is_measured_with():
    sets = ("INSTRUCTIONS", "HARD", "DEVELOPMENT", "UNKNOWN")
    measured = [e.say for name in sets for e in instructions.load(getattr(instructions, name), LIBRARY)]
    assert not set().union(*map(in_a_row, measured)) & set().union(*(in_a_row(one.say) for one in written.load()))


def in_a_row(text, count=6):
    said = words(text).split()
    return {tuple(said[at : at + count]) for at in range(len(said) - count + 1)}


def test_what_is_done_in_any_order_is_taught_in_that_of_the_scenes_line():
    kitchen = SymbolicKitchen({"orange": "table", "apple": "table"})
    apple, orange = (Part("bring", {"object": thing}, {}, "") for thing in ("apple", "orange"))
    away = Part("go", {"place": "table"}, {}, "")
    assert written.as_in_view([apple, orange, away], kitchen) == [orange, apple, away]


@pytest.mark.parametrize("source", INTRICATE)
def test_intricate_sentences_can_be_said_and_their_plans_carried_out(generator, source):
    rng, said = np.random.default_rng(3), set()
    while len(said) < 60:
        try:
            pair = generator.intricate_pair(source, rng)
        except Unsuitable:
            continue
        said.add(pair.instruction)
        kitchen = SymbolicKitchen(dict(pair.kitchen.where), pair.kitchen.place, set(pair.kitchen.open_drawers))
        assert not re.search(r"[{}]", pair.instruction), pair
        assert all(kitchen.execute(BY_TEXT[step]).succeeded for step in pair.plan[:-1]), pair


def planned(generator, say, parts, **kitchen):
    where = kitchen.pop("where", {"apple": "table", "tea": "far counter", "coke can": "table"})
    asked = Asked(SymbolicKitchen(where, **kitchen), say, parts)
    return generator.pair_of(asked, "condition", np.random.default_rng(0)).plan


def test_where_nothing_is_to_be_done_the_plan_is_to_be_done(generator):
    assert planned(generator, "close the top drawer if it is open", []) == ("done",)


def test_what_is_not_there_is_looked_for_after_what_comes_before(generator):
    bring, gone = (Part("bring", {"object": thing}, {}, "") for thing in ("apple", "orange"))
    assert planned(generator, "", [gone]) == ("find the orange",)
    assert planned(generator, "", [bring, gone], place="table") == (
        "pick up the apple", "bring it to you", "put it down", "find the orange"
    )  # fmt: skip


def test_before_what_nothing_serves_the_rest_is_done(generator):
    kitchen = SymbolicKitchen({"apple": "table"}, place="table")
    bring = Part("bring", {"object": "apple"}, {}, "")
    asked = Asked(kitchen, "the apple, and a hammer", [bring], serves=False)
    plan = generator.pair_of(asked, "unknown", np.random.default_rng(0)).plan
    assert plan == ("pick up the apple", "bring it to you", "put it down", CANNOT)


def test_nothing_unknown_is_a_name_for_what_the_robot_knows(generator):
    phrases = generator.sources.phrases
    which = ("things", "stuff", "places", "containers")
    unknown = {one.removeprefix("the ") for name in which for row in phrases.unknown[name] for one in row}
    known = {*phrases_of(phrases.nouns), *LIBRARY.objects}
    assert len(unknown) > 400 and not unknown & {re.sub(r"^(the|an?|some) ", "", text.lower()) for text in known}


def test_things_are_taken_in_the_order_of_the_scenes_line(generator):
    kitchen = SymbolicKitchen({"tea": "table", "apple": "close counter", "coke can": "table", "orange": "top drawer"})
    assert in_view(kitchen) == ["tea", "coke can", "apple"]
    assert describe(kitchen.observe()).startswith("Scene: table: tea, coke can; close counter: apple; robot")


def test_one_is_no_plural_and_several_are_no_singular(generator):
    rng, said = np.random.default_rng(0), []
    wrong = re.compile(
        r"\b(1|one) (different \w+|kinds of|things|items|drinks|cans|snacks|bars|bags)\b|\bno (the|my|an?) "
        r"|\b(an?|that|this) (?!\S+ of |\S+ \S+ of )[\w-]+( [\w-]+)? (chips|crisps)$"
        r"|\bsome (bag|pack|sack) of"
    )
    for source in ("count", "unknown", "absent"):
        for _ in range(800):
            with suppress(Unsuitable):
                said.append(generator.intricate.draw(source, rng).say)
    chips = [name for name in LIBRARY.objects if "chip" in name]
    said += [generator.wording.noun(thing, 0.5, rng) for thing in chips for _ in range(200)]
    said += [generator.intricate.a(thing, rng) for thing in chips for _ in range(100)]
    assert len(said) > 3000 and not [one for one in said if wrong.search(one)]


def test_a_slip_changes_a_letter_or_two():
    text, rng = "bring me the apple", np.random.default_rng(0)
    slips = {with_a_slip(text, rng) for _ in range(300)}
    assert len(slips) > 40 and all(abs(len(slip) - len(text)) <= 1 for slip in slips)
    assert with_a_slip("是 a", rng) == "是 a"
    assert all(with_a_slip("all", np.random.default_rng(seed)) != "all" for seed in range(200))


def test_what_only_the_scene_tells_is_taught_with_a_scene(generator):
    """All of a kind, one of a kind, two that change places, the drawer that is open, and whichever are."""
    rng, pairs, without = np.random.default_rng(0), [], 0
    kept = SimpleNamespace(generate=lambda rng: pairs.append(generator.generate(rng)) or pairs[-1])
    by_scene = re.compile(
        r"open drawer|drawer (that|standing|hanging|you opened)|(whatever|whichever|all|every) .*drawer"
    )
    for _ in range(2000):
        pairs.clear()
        text, _ = text_of(kept, rng)
        if pairs[0].source in ("sets", "swap", "wish") or by_scene.search(pairs[0].instruction):
            assert "Scene:" in text, pairs[0]
        if "Scene:" not in text:
            without += 1
            for drawer in pairs[0].kitchen.open_drawers:
                about = [step for step in pairs[0].plan if f"{drawer} drawer" in step]
                assert about[:1] in ([], [f"close the {drawer} drawer"]), pairs[0]
            assert pairs[0].plan[0] != "put it down" or not PICKS.search(pairs[0].instruction), pairs[0]
    assert without > 40


def test_what_is_learnt_is_the_steps_from_their_blank_to_their_lines_end(generator):
    rng = np.random.default_rng(2)
    for _ in range(50):
        text, spans = text_of(generator, rng)
        assert {text[start:end].strip() for start, end in spans} <= {*BY_TEXT, CANNOT}
        assert all(text[start] == " " and text[end - 1] == "\n" for start, end in spans)
        assert text.endswith(text[slice(*spans[-1])])
