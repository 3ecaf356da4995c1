"""Our planner on Embodied Agent Interface, by its evaluator: `benchmarks/embodied_agent_interface.py`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("virtualhome_eval", reason='pip install --no-deps "eai-eval==1.0.5"')

import embodied_agent_interface as eai

from planners.prompts import Prompt
from planners.robot_language import DONE
from planners.saycan import SayCanConfig, SayCanPlanner

pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
PHONE, TELEVISION, TWO_RELATIONS = "474_2", "548_2", "27_2"  # tasks; of the last the evaluator sees no end


@pytest.fixture(scope="module")
def benchmark():
    return eai.Benchmark()


@pytest.fixture(scope="module")
def phone(benchmark):
    return eai.Home(benchmark, PHONE)


class Likes:
    """Stands in for a language model: the texts that it likes, the best first."""

    def __init__(self, *texts):
        self.texts = [f" {text}\n" for text in texts]

    def score(self, prompt, candidates):
        return np.array([-float(self.texts.index(c)) if c in self.texts else -20.0 for c in candidates])


class Blind:
    def encode(self, inputs, **options):
        return np.ones((len(inputs), 1))


def planner(home, *texts):
    return SayCanPlanner(Likes(*texts), Prompt(Blind(), [], []), home.skills, SayCanConfig(refuse=False))


def test_a_plan_that_the_benchmark_ships_succeeds_by_its_own_evaluator(benchmark, phone):
    assert eai.judge(benchmark, {PHONE: phone.shipped}) == {PHONE: True}
    assert eai.judge(benchmark, {PHONE: phone.shipped}, as_it_is=True) == {PHONE: False}  # equal to the letter
    assert eai.judge(benchmark, {PHONE: phone.shipped[:1]}) == {PHONE: False}


def test_a_task_whose_shipped_end_its_evaluator_does_not_see_is_left_out(benchmark):
    home = eai.Home(benchmark, TWO_RELATIONS)
    assert not home.evaluable and eai.judge(benchmark, {TWO_RELATIONS: home.shipped}) == {}


def test_skills_are_actions_that_its_evaluator_knows_on_things_that_it_tells(benchmark, phone):
    assert set(eai.ACTIONS) == set(benchmark.actions)
    every = benchmark.code.load_json_preserving_order(eai.to_answer(list(phone.lines.values())))
    assert len(every) == len(phone.lines) == len(phone.skills) - 1
    relevant = {f"{name}_{number}": number for number, name in phone.classes.items()}
    assert benchmark.code.check_no_hallucination_in_action(every)
    assert benchmark.code.check_no_hallucination_in_arg(every, relevant) and "character_65" not in relevant
    assert benchmark.code.check_action_grammar(every)[0]
    assert benchmark.code.json_to_action(every, relevant) == list(phone.lines.values())


def test_what_the_simulator_would_not_carry_out_is_not_possible(phone):
    phone.reset()
    assert "grab the phone" not in phone.possible() and "find the phone" in phone.possible()
    assert not phone.execute(phone.skills["grab the phone"]) and not phone.done
    assert phone.execute(phone.skills["find the phone"]) and "grab the phone" in phone.possible()
    assert not phone.satisfied()
    assert phone.execute(phone.skills["grab the phone"]) and phone.satisfied()


def test_the_product_plans_what_language_likes_and_affordance_allows(benchmark, phone, tmp_path):
    config = eai.Config(tmp_path)
    likes = planner(phone, "grab the phone", "find the phone", DONE)
    lines = eai.plan(phone, likes, replace(config, check=True))
    assert lines == [phone.lines["find the phone"], phone.lines["grab the phone"]] and phone.satisfied()


def test_goals_are_said_as_the_benchmark_tells_them_and_no_more(benchmark, phone):
    assert phone.said == "hold the phone"
    watching = eai.Home(benchmark, TELEVISION)
    assert watching.parts == [
        "the television on",
        "the television plugged in",
        "face the television",
        "look at or watch",
    ]
    watching.execute(watching.skills["find the television"])
    watching.execute(watching.skills["switch on the television"])
    assert watching.satisfied(1) and watching.satisfied(2) and not watching.satisfied(3)


def test_splits_share_no_category(benchmark):
    splits = {which: {benchmark.goals[n][0] for n in benchmark.split(which)} for which in eai.SPLITS}
    assert splits["tuning"] == set(eai.TUNING) and not splits["tuning"] & splits["held-out"]


# -- subgoals ----------------------------------------------------------------------------------------------------------

SLEEP, SEATED = "1027_2", "149_1"  # tasks; in the second the robot sits, and no subgoal makes it stand up


@pytest.fixture(scope="module")
def subgoals():
    pytest.importorskip("lark")
    import embodied_agent_subgoals

    return embodied_agent_subgoals.Subgoals()


def test_a_goals_parts_are_subgoals_word_for_word_and_a_list_of_them_is_judged(subgoals):
    home = subgoals.home(PHONE)
    assert home.as_told() == [home.lines["hold the phone"]] == home.shipped[-1:]
    assert subgoals.judge({PHONE: home.as_told()}) == {PHONE: True}
    assert subgoals.judge({PHONE: [home.lines["be near the phone"]]}) == {PHONE: False}
    assert subgoals.judge({PHONE: []}) == {PHONE: False}


def test_a_plan_that_the_evaluator_cannot_read_is_no_failed_plan(subgoals):
    with pytest.raises(ValueError, match=PHONE):
        subgoals.judge({PHONE: ["HOLDS(phone.1000)"]})


def test_a_subgoal_is_brought_about_in_every_way_in_which_the_evaluator_does(subgoals):
    home = subgoals.home(SLEEP)
    assert home.parts == ["be lying", "be on the bed", "sleep"]
    assert home.execute(home.skills["be on the bed"]) and home.satisfied(2)  # it sits, or it lies
    assert home.execute(home.skills["sleep"]) and home.satisfied()


def test_a_subgoal_is_possible_where_the_evaluators_actions_go(subgoals):
    home = subgoals.home(SEATED)
    assert "hold the phone" not in home.possible() and not home.execute(home.skills["hold the phone"])


def test_the_planner_plans_subgoals_as_it_plans_actions(subgoals, tmp_path):
    home = subgoals.home(PHONE)
    likes = planner(home, "hold the phone", DONE)
    assert eai.plan(home, likes, eai.Config(tmp_path, steps=3)) == [home.lines["hold the phone"]]
