"""Instruction files are checked, and plans are counted as right where the goal holds, however it was reached."""

import json
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import yaml

from planners.prompts import Example, Prompt
from planners.saycan import SayCanConfig
from saycan_qt.evaluate import main
from saycan_qt.evaluation import plans
from saycan_qt.evaluation.plans import PlansConfig
from saycan_qt.kitchen.language.instructions import (
    DEVELOPMENT,
    FAMILIES,
    HARD,
    HELD_OUT,
    INSTRUCTIONS,
    TUNING,
    UNKNOWN,
    InstructionsError,
    load,
)
from saycan_qt.language import Language
from skills.library import SkillLibrary

LIBRARY = SkillLibrary.load()
BRING = {
    "say": "bring me the tea",
    "family": "single primitive",
    "half": "tuning",
    "start": {"objects": {"tea": "anywhere"}},
    "goal": [{"object": "tea", "at": "operator"}, {"count": 1, "at": "operator"}],
}
TIDY = {
    "say": "tidy the apple away",
    "family": "long horizon",
    "half": "held out",
    "start": {"robot": "table", "objects": {"apple": "far counter"}, "open": ["top"], "absent": ["orange"]},
    "goal": [{"object": "apple", "in": "top"}, {"closed": "top"}],
}
PIZZA = {"say": "make me a pizza", "family": "crowd-sourced", "half": "held out", "impossible": True}
BRINGING = ("find the tea", "pick up the tea", "bring it to you", "put it down", "done")
TIDYING = ("go to the far counter", "place the apple into the top drawer", "close the top drawer", "done")


@dataclass
class Words:
    """A sentence model that tells nothing apart."""

    def encode(self, inputs, **options):
        return np.ones((len(inputs), 1))


class Script:
    """A scorer that follows a plan for each instruction, by the number of the step that the prompt asks for."""

    def __init__(self, **scripts):
        self.scripts = {say.replace("_", " "): texts for say, texts in scripts.items()}

    def score(self, prompt, candidates):
        *_, asked = prompt.split("Instruction: ")
        say, *done = asked.splitlines()
        texts = self.scripts.get(say) or self.scripts[""]
        wanted = texts[min(len(done), len(texts)) - 1]
        return np.array([0.0 if candidate.strip() == wanted else -50.0 for candidate in candidates])


@pytest.fixture
def evaluated(tmp_path, capsys):
    """Runs the command with a scripted language model; the exit code, and the answer where there is one."""

    def evaluate(entries, script, **options):
        path = tmp_path / "set.yaml"
        path.write_text(yaml.safe_dump({"instructions": entries}))
        prompt = Prompt(Words(), [Example("hello", ("done",))], things=["tea"])
        language = Language(Script(**script), prompt, "script")
        code = plans.plans(PlansConfig(set=path, json=True, threads=1, **options), lambda *_: language)
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else said.err

    return evaluate


def loaded(tmp_path, *entries):
    path = tmp_path / "set.yaml"
    path.write_text(yaml.safe_dump({"instructions": list(entries)}))
    return load(path, LIBRARY)


def mistakes(tmp_path, *entries):
    with pytest.raises(InstructionsError) as raised:
        loaded(tmp_path, *entries)
    return str(raised.value).splitlines()


CLOSE = {
    "say": "if the top drawer is open, close it",
    "family": "single primitive",
    "half": "tuning",
    "cases": [
        {"start": {"robot": "far counter", "open": ["top"]}, "goal": [{"closed": "top"}]},
        {"start": {"robot": "far counter", "open": ["bottom"]}, "goal": [{"open": "bottom"}, {"closed": "top"}]},
    ],
}


def test_the_sets_have_all_families_and_what_is_held_out_is_in_one_of_them_alone():
    measured, development = load(INSTRUCTIONS, LIBRARY), load(DEVELOPMENT, LIBRARY)
    for entries in (measured, development):
        assert len(entries) >= 100 and {entry.family for entry in entries} == set(FAMILIES)
    assert abs(sum(1 if entry.half == HELD_OUT else -1 for entry in measured)) <= 1
    assert not any(entry.half == HELD_OUT for entry in development)
    assert not {entry.say.lower() for entry in measured} & {entry.say.lower() for entry in development}


@pytest.mark.parametrize(("path", "families"), [(HARD, 10), (UNKNOWN, 4)])
def test_half_of_the_sentences_of_each_family_is_held_out(path, families):
    halves = Counter(
        (entry.family, entry.half) for entry in {entry.number: entry for entry in load(path, LIBRARY)}.values()
    )
    assert sum(halves.values()) == 120 and len({family for family, _ in halves}) == families
    assert all(0 <= halves[family, TUNING] - halves[family, HELD_OUT] <= 1 for family, _ in halves)


def test_goals_decide_and_halves_and_families_are_counted_apart(evaluated):
    scripts = {
        "bring_me_the_tea": BRINGING,
        "tidy_the_apple_away": TIDYING[:2] + TIDYING[3:],
        "make_me_a_pizza": ("done",),
    }
    code, found = evaluated([BRING, TIDY, PIZZA], scripts, layouts=2)
    assert code == 0
    assert (found["planned"]["n"], found["planned"]["right"]) == (6, 4)  # the drawer was left open
    assert found["planned"]["rate"] == pytest.approx(4 / 6)
    assert found["planned"]["low"] < 4 / 6 < found["planned"]["high"]
    assert found["tuning"]["planned"]["rate"] == 1 and found["held_out"]["planned"]["rate"] == 0.5
    assert found["families"]["long horizon"]["planned"]["rate"] == 0
    assert found["held_out"]["families"]["crowd-sourced"]["planned"]["n"] == 2
    tidied = found["instructions"][1]["plans"][0]["planned"]
    assert tidied["done"] and [step["skill"] for step in tidied["steps"]][-1] == "place apple into top drawer"
    assert "executed" not in found and found["seconds"]["median"] > 0


@pytest.mark.parametrize(
    "order",
    [TIDYING, ("go to the far counter", "pick up the apple", *TIDYING[1:]), ("find the apple", *TIDYING[1:])],
)
def test_any_order_that_reaches_the_goal_is_right(evaluated, order):
    _, found = evaluated([TIDY], {"tidy_the_apple_away": order})
    assert found["planned"]["rate"] == 1


def test_a_plan_that_never_ends_is_not_right(evaluated):
    endless = (*BRINGING[:-1], *["go to the table", "go to the far counter"] * 20)
    _, found = evaluated([BRING], {"bring_me_the_tea": endless})
    plan = found["instructions"][0]["plans"][0]["planned"]
    assert not plan["right"] and not plan["done"] and len(plan["steps"]) == SayCanConfig().max_steps


def test_every_case_of_a_sentence_is_a_plan_of_its_own(evaluated):
    say, tidying = "if_the_top_drawer_is_open,_close_it", {"tidy_the_apple_away": TIDYING}
    code, found = evaluated([CLOSE, TIDY], {say: ("done",), **tidying}, layouts=2)
    assert code == 0 and (found["planned"]["n"], found["planned"]["right"]) == (6, 4)
    row = found["instructions"][0]
    assert [(plan["case"], plan["planned"]["right"]) for plan in row["plans"]] == [(1, False)] * 2 + [(2, True)] * 2
    assert row["planned"] == 2 and "case" not in found["instructions"][1]["plans"][0]


def test_acting_on_what_nothing_serves_is_not_right(evaluated):
    _, found = evaluated([PIZZA], {"make_me_a_pizza": ("go to the table", "go to the far counter", "done")})
    assert found["planned"]["rate"] == 0


def test_a_slip_in_each_sentence_is_drawn_with_its_seed_and_told(evaluated):
    slips = [evaluated([BRING], {"": BRINGING}, typos=seed, layouts=3)[1] for seed in (1, 1, 2)]
    said = [[plan["said"] for plan in found["instructions"][0]["plans"]] for found in slips]
    assert said[0] == said[1] != said[2] and len({*said[0], *said[2], BRING["say"]}) > 4
    assert slips[0]["typos"] == 1 and slips[0]["instructions"][0]["say"] == BRING["say"]


def test_blurred_affordances_and_failing_picks_are_planned_around(evaluated):
    _, found = evaluated([BRING], {"bring_me_the_tea": BRINGING}, noisy=True, pick_fails=0.5, layouts=4)
    steps = [s for tried in found["instructions"][0]["plans"] for s in tried["planned"]["steps"]]
    assert found["planned"]["rate"] == 1 and not all(s["succeeded"] for s in steps)


def test_the_same_seed_gives_the_same_plans_and_layouts_differ(evaluated, tmp_path):
    answers = [evaluated([BRING], {"bring_me_the_tea": BRINGING}, seed=seed, layouts=3)[1] for seed in (0, 0)]
    assert answers[0]["instructions"] == answers[1]["instructions"]
    (entry,) = loaded(tmp_path, BRING)
    kitchens = [entry.kitchen(np.random.default_rng([0, layout]), LIBRARY.objects) for layout in range(3)]
    assert len({str(kitchen) for kitchen in kitchens}) == 3


def test_the_start_is_as_told_and_what_is_drawn_leaves_the_goal_alone(tmp_path):
    start = {"robot": "trash can", "holds": "sponge", "objects": {"tea": "anywhere", "apple": "top drawer"}}
    goal = [{"object": "tea", "at": "table"}, {"count": 1, "at": "table"}, {"robot": "operator"}]
    (entry,) = loaded(tmp_path, {**BRING, "start": {**start, "open": ["top"], "absent": ["orange"]}, "goal": goal})
    for seed in range(50):
        kitchen = entry.kitchen(np.random.default_rng(seed), LIBRARY.objects)
        assert (kitchen.place, kitchen.held, kitchen.open_drawers) == ("trash can", "sponge", {"top"})
        assert kitchen.where["apple"] == "top drawer" and "orange" not in kitchen.where
        assert "table" not in kitchen.where.values() and 3 + 2 <= len(kitchen.where) <= 3 + 6
    anywhere = replace(entry, start=replace(entry.start, robot=""))
    assert all(anywhere.kitchen(np.random.default_rng(s), LIBRARY.objects).place != "operator" for s in range(50))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"goal": [{"object": "teh", "at": "operator"}]}, "no object 'teh'; did you mean 'tea'?"),
        ({"goal": [{"object": "tea", "at": "operators"}]}, "no place 'operators'; did you mean 'operator'?"),
        ({"goal": [{"object": "tea", "in": "botom"}]}, "no drawer 'botom'; did you mean 'bottom'?"),
        ({"goal": [{"object": "tea", "on": "table"}]}, "no key of a condition: 'on'; did you mean"),
        ({"goal": [{"object": "tea", "open": "top"}]}, "no condition is made of object + open"),
        ({"goal": [{"count": "two", "at": "operator"}]}, "`count` must be a whole number, not 'two'"),
        ({"goal": [{"object": "apple", "at": "operator"}]}, "`start` does not say where the apple is"),
        ({"goal": []}, "no condition is made of nothing"),
        ({"goal": [{"closed": "top"}]}, "its goal is met at the start already"),
        ({"goal": [{"not": {"object": "teh", "at": "table"}}]}, "no object 'teh'; did you mean 'tea'?"),
        ({"goal": [{"not": {"open": "top"}}]}, "its goal is met at the start already"),
        ({"goal": [{"not": "tea"}]}, "a condition must be `key: value` lines"),
        ({"goal": [{"visited": "tabel"}]}, "no place 'tabel'; did you mean 'table'?"),
        ({"goal": [{"object": "tea", "in": ["top", "botom"]}]}, "no drawer 'botom'; did you mean 'bottom'?"),
        ({"goal": [{"object": "tea", "at": []}]}, "no place []"),
        ({"goal": [{"count": 2, "one of": ["tea", "apple"], "at": "table"}]}, "does not say where 2 of the tea or the"),
        ({"cases": CLOSE["cases"]}, "`start` stands in each of the `cases`, and not beside them"),
        ({"impossible": True}, "it needs a `goal`, or `impossible: true`, and not both"),
        ({"family": "noun synonym"}, "no family 'noun synonym'; did you mean 'noun synonyms'?"),
        ({"half": "held-out"}, "no half 'held-out'; did you mean 'held out'?"),
        ({"say": 7}, "`say` must be the sentence"),
        ({"start": {"objects": {"tea": "desk"}}}, "no spot for the tea: 'desk'; did you mean"),
        ({"start": {"objects": {"tee": "table"}}}, "no key of `objects`: 'tee'; did you mean 'tea'?"),
        ({"start": {"objects": {"tea": "table"}, "open": "top"}}, "`open` must be a list, such as [top]"),
        ({"start": {"objects": {"tea": "table"}, "holds": "tea"}}, "the tea is in the hand"),
        ({"start": {"objects": {"tea": "table"}, "absent": ["tea"]}}, "the tea is `absent`"),
    ],
)
def test_a_mistake_in_an_entry_is_one_line_that_names_it(tmp_path, change, words):
    (line,) = mistakes(tmp_path, TIDY, {**BRING, **change})
    assert line.startswith(f"{tmp_path / 'set.yaml'}: entry 2") and words in line


def test_objects_are_brought_near_each_other_only_where_a_skill_does_it(tmp_path):
    start = {"objects": {"sponge": "table", "water bottle": "table", "tea": "table"}}
    entry = {**BRING, "start": start, "goal": [{"object": "sponge", "near": "tea"}]}
    (line,) = mistakes(tmp_path, entry)
    assert "no skill moves the sponge near 'tea'; did you mean" in line
    assert loaded(tmp_path, {**entry, "goal": [{"object": "sponge", "near": "water bottle"}]})


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        (CLOSE["cases"][:1], "`cases` are two or more"),
        ({"start": {}}, "`cases` must be a list"),
        ([CLOSE["cases"][1], CLOSE["cases"][1]], "its goal is met at the start already, in all of the cases"),
        ([CLOSE["cases"][0], {"goal": [{"closed": "top"}], "say": "x"}], "no key of a case: 'say'"),
        ([CLOSE["cases"][0], {"start": {}}], "it needs a `goal`, or `impossible: true`"),
    ],
)
def test_a_mistake_in_a_case_is_one_line_that_names_it(tmp_path, cases, words):
    (line,) = mistakes(tmp_path, {**CLOSE, "cases": cases})
    assert "entry 1" in line and words in line


def test_a_file_may_have_families_of_its_own(tmp_path):
    path = tmp_path / "set.yaml"
    entries = [{**BRING, "family": "count"}, {**TIDY, "family": "negatoin"}]
    path.write_text(yaml.safe_dump({"families": ["negation", "count"], "instructions": entries}))
    with pytest.raises(InstructionsError, match="no family 'negatoin'; did you mean 'negation'"):
        load(path, LIBRARY)
    path.write_text(yaml.safe_dump({"families": "count", "instructions": entries}))
    with pytest.raises(InstructionsError, match="`families` must be a list of names"):
        load(path, LIBRARY)


def test_every_mistaken_entry_gets_its_line_and_a_sentence_is_said_once(tmp_path):
    lines = mistakes(tmp_path, {**BRING, "family": "x"}, TIDY, {**PIZZA, "say": "Tidy the apple away!"})
    assert [line.split("entry ")[1][0] for line in lines] == ["1", "3"] and "entry 2 says the same" in lines[1]


@pytest.mark.parametrize("text", ["", "instructions: []", "instructions: {a: 1}", "- [", "instructions: [7]"])
def test_what_is_no_instruction_file_is_refused_in_one_line(tmp_path, text, capsys):
    (tmp_path / "set.yaml").write_text(text)
    assert main(["plans", "--set", str(tmp_path / "set.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "set.yaml" in error


@pytest.mark.parametrize(
    "options",
    [
        {"layouts": 0},
        {"pick_fails": 1.5},
        {"typos": -1},
        {"only": "pizza"},
        {"half": "held-out"},
        {"noisy": True, "affordance": "model"},
        {"calibrated": True},
        {"affordance": "model", "critic": "nowhere"},
        {"execute": True, "actor": "nowhere"},
    ],
)
def test_a_mistaken_use_is_one_line_and_exit_code_2(evaluated, options):
    code, error = evaluated([BRING], {}, **options)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1


def test_a_missing_file_is_exit_code_2(tmp_path, capsys):
    assert main(["plans", "--set", str(tmp_path / "nothing.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_shipped_models_plan_and_execute_in_the_same_kitchen(evaluated):
    """The critic looks at MuJoCo kitchens in the plan's states; then the robot opens the drawer for real."""
    entry = {
        "say": "open the top drawer",
        "family": "single primitive",
        "half": "tuning",
        "start": {"robot": "far counter"},
        "goal": [{"open": "top"}],
    }
    script = {"open_the_top_drawer": ("open the top drawer", "done")}
    _, found = evaluated([entry], script, affordance="model", execute=True)
    assert found["planned"]["rate"] == 1 and found["executed"]["rate"] == 1
    assert found["models"]["affordance"].startswith("affordance@")
    assert [s["skill"] for s in found["instructions"][0]["plans"][0]["executed"]["steps"]] == ["open top drawer"]


@pytest.mark.slow
def test_the_command_measures_the_shipped_language_model(tmp_path, capsys):
    path, out = tmp_path / "set.yaml", tmp_path / "results" / "plans.json"
    path.write_text(yaml.safe_dump({"instructions": [BRING, TIDY]}))
    code = main(["plans", "--set", str(path), "--only", "tea", "--threads", "1", "--verbose", "--out", str(out)])
    shown = capsys.readouterr().out
    assert code == 0 and "held out" not in shown and "oracle" in shown and "in the median" in shown
    assert json.loads(out.read_text())["planned"] == {**json.loads(out.read_text())["tuning"]["planned"], "right": 1}
