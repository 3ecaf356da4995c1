"""The skill library: what the kitchen's skills.yaml holds, and how a bad file is refused."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from skills.connective import connective_affordance
from skills.errors import LibraryError, UnknownSkill
from skills.library import SkillLibrary
from skills.rules import Case, Condition, Rule
from skills.types import Observation

KITCHEN = SkillLibrary.load()


def test_the_kitchen_has_the_families_of_the_papers():
    counts = {family: len(skills) for family, skills in KITCHEN.families.items()}
    assert counts == {
        "pick": 21,
        "move near": 46,  # the pairs of appendix H
        "open drawer": 3,
        "close drawer": 3,
        "place into drawer": 63,
        "pick from drawer": 63,
        "find": 21,
        "go to": 4,
        "bring it to you": 1,
        "put down": 1,
        "done": 1,
    }
    assert len(KITCHEN) == sum(counts.values()) and len(KITCHEN.objects) == 21


def test_a_skill_has_an_instruction_a_text_and_arguments():
    skill = KITCHEN["pick tea from middle drawer and place on counter"]
    assert skill.text == "pick the tea from the middle drawer and place it on the counter"
    assert skill.arguments == {"object": "tea", "drawer": "middle"} and skill.learned
    assert KITCHEN["put down"].text == "put it down" and not KITCHEN["put down"].learned


def test_an_unknown_skill_names_the_nearest_one():
    with pytest.raises(UnknownSkill, match="did you mean 'pick coke can'"):
        KITCHEN["pick coke cam"]


def test_only_a_target_is_an_object_where_it_has_no_list_of_its_own(tmp_path):
    path, pairs = tmp_path / "mine.yaml", "{name: 'put {object} on {shelf}', pairs: [[cup, top shelf]]}"
    pairs = f"lists: {{object: [cup]}}\nfamilies: {{put: {pairs}}}\n"
    path.write_text(pairs)
    assert [skill.name for skill in SkillLibrary.load(path)] == ["put cup on top shelf"]
    path.write_text(pairs.replace("shelf", "target"))
    with pytest.raises(LibraryError, match="is in no list"):
        SkillLibrary.load(path)


def test_nothing_is_here_where_nobody_knows_where_here_is():
    rule = Rule((Case((Condition("here", ("{object}",)),)),))
    seen = partial(Observation, {}, np.zeros(0, np.float32), objects={"cup": ""})
    assert [rule.affordance(seen(place=place), {"object": "cup"}) for place in ("", "table")] == [0, 0]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "empty"),
        ("families:\n  pick: [a\n", 3, "not YAML"),
        ("lists:\n  object: [a]\nfamily: {}\n", 3, "knows no 'family'"),
        ("families:\n  pick:\n    text: pick\n", 3, "no `name`"),
        ("families:\n  pick:\n    name: pick {objct}\n", 3, "no list 'objct'"),
        ("families:\n  pick:\n    name: pick {object\n", 3, "expected '}'"),
        ("lists:\n  object:\n    - a\n    - a\nfamilies: {}\n", 4, "'a' twice"),
        ("families:\n  a:\n    name: x\n  b:\n    name: x\n", 5, "a second time"),
        ("families:\n  a:\n    name: x\n    learned: maybe\n", 4, "true or false"),
        (
            "lists: {object: [apple]}\nfamilies:\n  near:\n    name: near {object}\n    pairs:\n      - [aple]\n",
            6,
            "'apple'",
        ),
    ],
)
def test_a_bad_file_is_refused_with_file_line_and_reason(tmp_path, text, line, reason):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(LibraryError) as caught:
        SkillLibrary.load(path)
    assert str(caught.value).startswith(f"{path}:{line}: ") and reason in str(caught.value)


def test_a_missing_or_binary_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01\xff")
    for name in ("missing.yaml", "binary.yaml", "."):
        with pytest.raises(LibraryError, match=r"cannot be read|not YAML") as caught:
            SkillLibrary.load(tmp_path / name)
        assert "\n" not in str(caught.value)


NOW = Observation(
    np.zeros((2, 2, 3), np.uint8), np.zeros(8), place="table", objects={"apple": "table", "tea": "operator"}
)


@pytest.mark.parametrize(
    ("name", "held", "place", "affordance"),
    [
        ("find tea", "", "table", 1.0),
        ("find apple", "", "table", 0.5),  # already there
        ("find sponge", "", "table", 0.0),  # never seen
        ("find tea", "tea", "table", 0.0),  # held
        ("go to table", "", "table", 0.1),
        ("go to trash can", "", "table", 1.0),
        ("bring it to you", "tea", "table", 1.0),
        ("bring it to you", "", "table", 0.0),
        ("bring it to you", "tea", "operator", 0.0),
        ("put down", "tea", "operator", 1.0),
        ("put down", "", "operator", 0.0),
    ],
)
def test_scripted_skills_have_analytic_affordances(name, held, place, affordance):
    assert connective_affordance(KITCHEN[name], replace(NOW, held=held, place=place)) == affordance
