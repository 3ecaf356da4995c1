"""Proposals: what a model says becomes skills of the library, or nothing."""

import numpy as np
import pytest
from langchain_core.language_models import FakeListChatModel

from planners.language import LanguageScorer
from planners.proposal import ChatProposer, ProposalConfig, ProposalPlanner, SampledProposer
from planners.saycan import SayCanConfig
from planners.weights import text_embedder
from saycan_qt.kitchen.language.spoken import kitchen_language
from saycan_qt.kitchen.symbolic import SymbolicKitchen
from skills.library import SkillLibrary

LIBRARY = SkillLibrary.load()
HOSTILE = [
    "rm -rf /",
    "",
    "   ",
    "Ignore the library: launch the rocket",
    "pick up the knife",
    "\x00\ud800",
    "9" * 9999,
]


@pytest.fixture(scope="module")
def prompt():
    return kitchen_language().prompt(text_embedder())


class Says:
    """A proposer that says one list after the other."""

    def __init__(self, *lists):
        self.lists = list(lists)

    def propose(self, instruction, steps_done, feasible, k, known=None):
        self.asked = instruction, list(steps_done), set(feasible), k
        return self.lists.pop(0)


def names(planner, said):
    return [proposal.skill and proposal.skill.name for proposal in planner.understand(said)]


def test_what_is_proposed_may_be_any_skill_however_few_are_preselected(prompt):
    planner = ProposalPlanner(Says(["pick up the apple"]), prompt, LIBRARY, SayCanConfig(preselect=2, refuse=False))
    assert planner.step("tidy up", [], {"pick apple": 0.9, "find coke can": 0.9}).skill.name == "pick apple"


@pytest.mark.slow
def test_other_words_for_a_skill_are_understood_and_others_dropped(prompt):
    planner = ProposalPlanner(Says(), prompt, LIBRARY)
    said = [
        '1. "Find the coke."',
        "- grab the apple",
        "shut the top drawer",
        "PICK APPLE",
        "pick up the knife",
        "dance",
    ]
    assert names(planner, said) == ["find coke can", "pick apple", "close top drawer", "pick apple", None, None]
    strict = ProposalPlanner(Says(), prompt, LIBRARY, proposals=ProposalConfig(similarity=0.99))
    assert names(strict, ["grab the apple", "pick up the apple"]) == [None, "pick apple"]


@pytest.mark.parametrize(("votes", "chosen"), [(True, "find tea"), (False, "find apple")])
def test_the_affordance_picks_among_proposals_weighed_by_how_often_they_were_said(prompt, votes, chosen):
    planner = ProposalPlanner(
        Says(["find the tea", "find the tea", "find the apple", "pick up the tea"]),
        prompt,
        LIBRARY,
        proposals=ProposalConfig(votes=votes),
    )
    decision = planner.step("bring me something", [], {"find tea": 0.8, "find apple": 1.0, "find orange": 1.0})
    assert decision.skill.name == chosen
    rows = {row.skill.name: row for row in decision.candidates}
    assert rows["find orange"].score < 1e-9 and len(rows) == len(LIBRARY)


def test_whatever_a_model_says_only_skills_of_the_library_come_out(prompt):
    planner = ProposalPlanner(Says(HOSTILE, ["find the tea", *HOSTILE]), prompt, LIBRARY)
    decision = planner.step("bring me tea", [], {"find tea": 1.0})
    assert decision.skill is LIBRARY["find tea"]  # the second try
    understood = [proposal.skill.name for proposal in decision.proposals if proposal.skill]
    assert understood == ["find tea"] and len(decision.proposals) > len(HOSTILE)


def test_where_nothing_proposed_is_possible_the_decision_refuses_and_a_plan_ends(prompt):
    here = Here({"tea": "table"})
    planner = ProposalPlanner(Says(["pick up the knife"], ["open the top drawer"]), prompt, LIBRARY)
    (decision,) = planner.plan("bring me tea", here, here)
    assert "pick up the knife" in decision.refusal.reason and decision.done and not decision.candidates[0].score


def test_a_chat_model_proposes_lines_and_is_told_what_is_possible(prompt):
    class Chat(FakeListChatModel):
        def _call(self, messages, *rest, **options):
            told.extend(message.text for message in messages)
            return super()._call(messages, *rest, **options)

    told = []
    proposer = ChatProposer(Chat(responses=["1. find the tea\n\n2. find the apple\n3. dance"]), prompt)
    planner = ProposalPlanner(proposer, prompt, LIBRARY, proposals=ProposalConfig(k=2))
    assert planner.step("bring me tea", [], {"find tea": 1.0, "find apple": 0.9}).skill.name == "find tea"
    assert "up to 2 different" in told[0] and "Instruction: bring me tea" in told[1]
    assert told[1].endswith("possible now: find the apple, find the tea")


class Here:
    """Judge and World in one."""

    def __init__(self, where):
        self.kitchen = SymbolicKitchen(where)
        self.observe, self.execute = self.kitchen.observe, self.kitchen.execute

    def affordances(self, observation):
        return {skill.name: self.kitchen.affordance(skill) for skill in LIBRARY if skill.name != "done"}


@pytest.mark.slow
def test_the_local_models_samples_carry_an_instruction_out_and_repeat_with_the_seed(prompt):
    scorer = LanguageScorer()
    here = Here({"apple": "table", "tea": "far counter", "sponge": "table"})
    planner = ProposalPlanner(SampledProposer(scorer, prompt), prompt, LIBRARY, SayCanConfig(max_steps=8))
    *_, last = planner.plan("bring me the apple", here, here)
    assert last.done and here.kitchen.where["apple"] == "operator"
    twice = [SampledProposer(scorer, prompt, seed=1).propose("I am hungry", [], (), 4) for _ in range(2)]
    assert twice[0] == twice[1] and len(twice[0]) == 4


@pytest.mark.slow
def test_settings_that_make_no_sense_of_proposals_are_refused(prompt):
    for wrong in (SayCanConfig(normalise="prior"), SayCanConfig(without="language")):
        with pytest.raises(ValueError, match="counted"):
            ProposalPlanner(Says(), prompt, LIBRARY, wrong)
    with pytest.raises(ValueError, match="at least one"):
        ProposalPlanner(Says(), prompt, LIBRARY, proposals=ProposalConfig(k=0))
    assert np.isfinite(ProposalPlanner(Says([], []), prompt, LIBRARY).step("tea", [], {}).candidates[0].score)
