"""What a sentence names is what is done: skills word for word, things that are there, and no other in silence."""

from dataclasses import replace

import numpy as np
import pytest

from planners.asking import Asking
from planners.named import named, renamed, verbatim
from planners.prompts import Begun, Example, Prompt
from planners.saycan import LAST_RESORT, WORD_FOR_WORD, SayCanConfig, SayCanPlanner, Step
from planners.spelling import Spelling
from skills.library import Skill, SkillLibrary
from skills.types import Observation, Outcome, Status

THINGS, PLACES = ("cube", "red cube", "ball", "cone"), ("shelf", "crate")
LIBRARY = SkillLibrary(
    [
        *(Skill(f"grip {thing}", "grip", f"grip the {thing}", {"object": thing}) for thing in THINGS),
        *(Skill(f"push {thing} {way}", "push", f"push the {thing} to the {way}", {"object": thing, "way": way})
          for thing in THINGS for way in ("left", "right")),
        *(Skill(f"go to {place}", "go", f"go to the {place}", {"place": place}, learned=False) for place in PLACES),
        Skill("done", "done", learned=False),
    ]
)  # fmt: skip
SUCCEEDED, FAILED = Outcome(Status.SUCCEEDED), Outcome(Status.FAILED)


class Letters:
    def encode(self, inputs, **options):
        counts = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in inputs], float)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


class Likes:
    """Gives these texts these probabilities."""

    def __init__(self, **shares):
        self.shares = {text.replace("_", " "): share for text, share in shares.items()}

    def score(self, prompt, candidates):
        return np.log([self.shares.get(text.strip(), 1e-4) for text in candidates])


LAX = SayCanConfig(unlike=0.0, alike=0.0, cannot=2.0)


def planner(scorer, tuned=False, **config):
    prompt = Prompt(Letters(), [], THINGS, tuned=tuned)
    return SayCanPlanner(scorer, prompt, LIBRARY, replace(LAX, **config))


def possible(*names, **values):
    return dict.fromkeys(names, 1.0) | {name.replace("_", " "): value for name, value in values.items()}


def seen(**objects):
    objects = {name.replace("_", " "): place for name, place in objects.items()}
    return Observation({}, np.zeros(0, np.float32), "table", "", objects)


# ---- words


def test_names_are_whole_words_the_longest_first_in_any_number_and_case():
    assert named("The red cubes, a Ball and conehead", THINGS) == ["red cube", "ball"]
    assert named("anything", []) == []


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("feed the cow and the hen", ["cows", "hens"]),
        ("pick the berries with the knives", ["berry", "knife"]),
        ("look at the moon", ["the moon"]),
        ("the cup (red), not the cup", ["cup (red)", "cup"]),
        ("Hole die tasse", ["Tasse"]),
        ("go by bus with a glass", ["bus", "glass"]),
    ],
)
def test_one_is_named_by_several_and_several_by_one(said, names):
    assert named(said, names) == names
    assert named("gas, bu, glas", ["gas", "bus", "glass"]) == ["gas"]


def test_names_with_a_dotless_i_are_found_with_and_without_the_dot():
    for said, name in (("kap\u0131 a\u00e7", "kapi"), ("kapi ac", "kap\u0131"), ("I\u015eIK", "\u0131\u015f\u0131k")):
        assert named(said, [name, "lid"]) == [name]


def test_another_takes_the_place_of_what_is_named_in_its_number():
    assert renamed("Bring the Cups", "cup", "plate") == "Bring the plates"
    assert renamed("feed the hen", "hens", "cows") == "feed the cows"


@pytest.mark.parametrize("said", ["push the cube to the left", "Push the cube  to the LEFT!", "push cube left"])
def test_a_skills_own_words_are_that_skill(said):
    assert verbatim(said, LIBRARY).name == "push cube left"


@pytest.mark.parametrize("said", ["push the cube to the left and go to the shelf", "...", "push it to the left"])
def test_more_or_other_words_are_none(said):
    assert verbatim(said, LIBRARY) is None


def test_skills_that_differ_in_signs_alone_are_told_apart_and_a_sign_is_no_sentence():
    signs = [Skill(f"jog {n}", "jog", text) for n, text in enumerate(("jog x +", "jog x -", "↑", "कि", "का"))]
    assert [verbatim(skill.text, signs) for skill in signs] == signs
    assert verbatim("Jog X  -", signs) is signs[1] and verbatim("कि.", signs) is signs[3]
    assert [verbatim(said, signs) for said in ("jog x", "jog x +!", "?", "क")] == [None] * 4


# ---- word for word


def test_what_is_asked_for_word_for_word_is_done_whatever_the_model_likes():
    scorer = Likes(push_the_cube_to_the_right=0.9)
    decision = planner(scorer).step("push the cube to the left", [], possible("push cube left", "push cube right"))
    assert decision.skill.name == "push cube left" and decision.because == WORD_FOR_WORD
    after = [Step(decision.skill, SUCCEEDED)]
    assert planner(scorer).step("push the cube to the left", after, possible("push cube left")).done


def test_what_is_read_as_a_skills_words_is_not_said_word_for_word():
    chooser = planner(Likes(grip_the_cone=0.9))
    chooser.prompt.spelling = Spelling(["push the cube to the left"], ["push", "the", "cube", "to", "left", "grip"])
    decision = chooser.step("push the tube to the left", [], possible("push cube left", "grip cone"))
    assert chooser.prompt.read("push the tube to the left") in [skill.text for skill in LIBRARY]
    assert decision.skill.name == "grip cone" and not decision.because


def test_a_skill_asked_for_word_for_word_is_tried_three_times_and_prepared_by_the_model():
    chooser, asked = planner(Likes(go_to_the_shelf=0.9)), "push the cube to the left"
    assert chooser.step(asked, [], possible("go to shelf")).skill.name == "go to shelf"
    failed = [Step(LIBRARY["push cube left"], FAILED)] * 3
    assert chooser.step(asked, failed[:2], possible("push cube left", "go to shelf")).skill.name == "push cube left"
    assert chooser.step(asked, failed, possible("push cube left", "go to shelf")).skill.name == "go to shelf"


def test_of_two_skills_with_one_text_affordance_chooses():
    two = [
        Skill(f"grasp cup {way}", "grasp", "pick up the cup", {"object": "cup", "way": way}) for way in ("high", "low")
    ]
    assert verbatim("pick up the cup", two) is None and verbatim("grasp cup low", two) is two[1]
    chooser = SayCanPlanner(Likes(pick_up_the_cup=0.5), Prompt(Letters(), [], ["cup"]), [*two, LIBRARY["done"]], LAX)
    decision = chooser.step("pick up the cup", [], {"grasp cup high": 0.95, "grasp cup low": 0.06})
    assert decision.skill is two[0] and not decision.because


def test_a_name_of_one_letter_is_no_article():
    assert named("move a pallet to zone B, as fast as you can", "ABC") == ["B"]
    assert named("Zone A and zone c", "ABC") == ["A", "C"]
    assert renamed("bring a pallet to zone A", "A", "C") == "bring a pallet to zone C"


# ---- what is not there


def test_a_robot_is_where_it_is_also_where_it_tells_of_no_things():
    asked = "go to the shelf and then to the crate"
    decision = planner(Likes(go_to_the_shelf=0.9, go_to_the_crate=0.05)).step(
        asked, [], possible("go to crate"), Observation({}, np.zeros(0, np.float32), "shelf")
    )
    assert decision.refusal is None and decision.skill.name == "go to crate"


def test_where_nobody_tells_what_is_there_what_seems_hardly_possible_is_tried_by_its_name_too():
    hardly = possible("go to shelf", grip_cube=0.04)
    decision = planner(Likes(grip_the_cube=0.95)).step("please grip the cube", [], hardly)
    assert decision.skill.name == "grip cube" and decision.because == LAST_RESORT
    ruled_out = planner(Likes(grip_the_cube=0.95)).step("please grip the cube", [], possible("go to shelf"))
    assert ruled_out.refusal.reason.startswith("“grip the cube” would come next, which is not possible now")


def test_what_is_asked_for_word_for_word_may_be_looked_for_elsewhere():
    scene = seen(ball="shelf")
    decision = planner(Likes(go_to_the_crate=0.9)).step(
        "grip the cube", [], possible("go to crate", "grip ball"), scene
    )
    assert decision.skill.name == "go to crate"
    decision = planner(Likes(grip_the_ball=0.9)).step("grip the cube", [], possible("go to crate", "grip ball"), scene)
    assert "knows of no cube here" in decision.refusal.reason


def test_what_is_held_is_put_down_before_what_is_asked_for_word_for_word():
    put = Skill("put ball", "put", "put the ball on the table", {"object": "ball"})
    chooser = SayCanPlanner(Likes(put_the_ball_on_the_table=0.6), Prompt(Letters(), [], THINGS), [*LIBRARY, put], LAX)
    scene = Observation({}, np.zeros(0, np.float32), "table", "ball", {"cone": "shelf"})
    assert chooser.step("grip the cube", [], possible("put ball"), scene).skill is put


def test_a_model_that_finds_all_skills_unlikely_may_go_and_look_all_the_same():
    scene, likes = seen(ball="shelf"), Likes(grip_the_cube=0.004, go_to_the_crate=0.04)
    chosen = planner(likes).step("grip the cube", [], possible("go to crate", "grip ball"), scene)
    assert chosen.skill.name == "go to crate"


def test_what_was_begun_is_ended_only_by_a_model_that_is_sure_that_nothing_serves():
    for cannot, refused in ((0.3, False), (0.7, True)):
        likes = Likes(done=1 - cannot, cannot=cannot)
        chooser = SayCanPlanner(likes, Prompt(Letters(), [], THINGS, tuned=True), LIBRARY, replace(LAX, cannot=0.25))
        decision = chooser.step("the cube", [Step(LIBRARY["grip cube"], SUCCEEDED)], possible(), seen(cube="shelf"))
        assert decision.done and (decision.refusal is not None) is refused
    assert chooser.step("the cube", [], possible(), seen(cube="shelf")).refusal


def test_a_place_is_no_missing_thing_where_a_slot_takes_both():
    stack = Skill("put ball on shelf", "put", "put the ball on the shelf", {"object": "ball", "target": "shelf"})
    onto = Skill("put ball on cube", "put", "put the ball on the cube", {"object": "ball", "target": "cube"})
    chooser = SayCanPlanner(Likes(grip_the_ball=0.9), Prompt(Letters(), [], THINGS), [*LIBRARY, stack, onto], LAX)
    scene = seen(ball="shelf", cube="shelf")
    assert chooser.step("put the ball on the shelf", [], possible("grip ball"), scene).skill.name == "grip ball"


def test_a_thing_that_is_not_there_is_said_and_not_replaced():
    scorer = Likes(grip_the_red_cube=0.8, grip_the_cube=0.15)
    decision = planner(scorer).step("give me the red cube", [], possible("grip cube", "grip ball"), seen(cube="table"))
    assert decision.done and decision.refusal.missing == "grip the red cube"
    assert decision.refusal.nearest == ("give me the cube", "give me the ball")
    assert decision.refusal.reason.startswith("the robot knows of no red cube here; “grip the red cube” would come")


def test_what_the_model_does_not_name_any_thing_may_serve():
    """An untuned model is not told what is there: of what it likes, what is possible is taken, as SayCan does."""
    scorer = Likes(grip_the_red_cube=0.8, grip_the_cube=0.15)
    assert planner(scorer).step("give me a toy", [], possible("grip cube")).skill.name == "grip cube"
    chat = planner(scorer)
    chat.prompt.scene = True  # is told it, too
    assert chat.step("give me the crimson one", [], possible("grip cube"), seen(cube="table")).refusal is not None
    told = planner(scorer, tuned=True).step("give me the crimson one", [], possible("grip cube"), seen(cube="table"))
    assert told.refusal.missing == "grip the red cube"


def test_what_brings_the_thing_nearer_is_done_first_and_not_twice():
    scorer, can, here = Likes(grip_the_ball=0.9), possible("push ball left", "grip cone"), seen(cone="table")
    decision = planner(scorer).step("grab the ball", [], can, here)
    assert decision.refusal is None and decision.skill.name == "push ball left"
    assert planner(scorer).step("grab the ball", [Step(decision.skill, SUCCEEDED)], can, here).refusal is not None


def test_after_something_was_done_the_rest_is_refused_too():
    done, scorer = [Step(LIBRARY["grip cube"], SUCCEEDED)], Likes(grip_the_cone=0.99)
    decision = planner(scorer).step("the cube and the cone", done, possible("grip ball"), seen(cube="table"))
    assert decision.refusal.missing == "grip the cone"


@pytest.mark.parametrize("known", [seen(cone="shelf"), None])
def test_what_is_there_and_not_possible_just_now_is_worked_towards(known):
    """A robot that knows nothing of where things are cannot tell the one from the other once something was done."""
    done, scorer = [Step(LIBRARY["grip cube"], SUCCEEDED)], Likes(grip_the_cone=0.99, go_to_the_shelf=0.01)
    decision = planner(scorer).step("the cube and the cone", done, possible("go to shelf"), known)
    assert decision.refusal is None and decision.skill.name == "go to shelf"


def test_what_is_there_and_not_possible_is_not_replaced_either():
    """It fell over, or was missed too often: no other thing is gripped in its place, but for another that is named."""
    scorer, here = Likes(grip_the_ball=0.8, grip_the_cone=0.1, go_to_the_shelf=0.05), seen(ball="table", cone="table")
    done = [Step(LIBRARY["grip ball"], FAILED)] * 3
    decision = planner(scorer).step("the ball, onto the shelf", done, possible("grip cone", "go to shelf"), here)
    assert decision.refusal is None and decision.skill.name == "go to shelf"
    assert {row.skill.name: row.lowered for row in decision.candidates}["grip cone"] == 0
    both = planner(scorer).step("the ball and the cone", done, possible("grip cone", "go to shelf"), here)
    assert both.skill.name == "grip cone"


def test_where_refusing_is_off_the_next_best_is_tried():
    decision = planner(Likes(grip_the_cone=0.99), refuse=False).step("the cone", [], possible("grip ball"))
    assert decision.refusal is None and decision.skill.name in ("grip ball", "done")


def test_what_seems_hardly_possible_is_tried_once_where_nothing_else_would_serve():
    def step(history=(), affordance=0.01, there="ball"):
        here = possible("grip cone", "push ball left", grip_ball=affordance)
        return planner(Likes(grip_the_ball=0.9)).step("the ball please", history, here, seen(**{there: "table"}))

    tried = step()
    assert tried.skill.name == "grip ball" and tried.because == LAST_RESORT
    assert "hardly possible" in Asking("when-unsure", 0.0).question("the ball please", tried).reason
    for other in (step([Step(tried.skill, FAILED)]), step(affordance=0.0), step(there="cone")):
        assert other.because == "" and other.skill.name not in ("grip ball", "grip cone")


@pytest.mark.parametrize("said", ["", "???", "...", "\u200b", "🙂", "-"])
def test_what_has_no_word_moves_nothing(said):
    refused = planner(Likes(grip_the_ball=0.9)).step(said, [], possible("grip ball"))
    assert refused.done and refused.refusal.reason == "there is no word in the instruction"


def test_what_is_given_up_is_not_replaced_by_what_nobody_asked_for():
    here, failed = possible("grip ball", "grip cone"), Step(LIBRARY["grip ball"], FAILED)
    sure, torn = Likes(grip_the_ball=0.99), Likes(grip_the_ball=0.6, grip_the_cone=0.3)
    assert planner(sure).step("a toy please", [failed] * 4, here).skill.name == "grip ball"
    assert planner(sure).step("a toy please", [failed] * 5, here).stuck
    assert planner(torn).step("a toy please", [failed] * 5, here).skill.name == "grip cone"
    assert planner(sure, failures=0).step("a toy please", [failed] * 9, here).skill.name == "grip ball"


# ---- what is there


def test_a_named_thing_that_is_hard_to_get_is_not_replaced_by_an_easy_one():
    scorer, hard = Likes(grip_the_ball=0.5, grip_the_cone=0.4), possible(grip_ball=0.1, grip_cone=1.0)
    decision = planner(scorer).step("the ball please", [], hard)
    assert decision.skill.name == "grip ball"
    assert {row.skill.name: row.lowered for row in decision.candidates}["grip cone"] == 0
    assert planner(scorer).step("a toy please", [], hard).skill.name == "grip cone"


def test_what_the_model_likes_better_than_what_is_named_is_an_exception_it_understood():
    scorer = Likes(grip_the_ball=0.1, grip_the_cone=0.8)
    can = possible("grip ball", "grip cone")
    assert planner(scorer).step("anything but the ball", [], can).skill.name == "grip cone"


# ---- errands and examples


@pytest.mark.parametrize("config", [{"affordance_floor": 0.3}, {"done_affordance": 0.01}])
def test_a_plan_may_end_whatever_the_floor(config):
    decision = planner(Likes(done=0.9), refuse=False, **config).step("stop there", [], possible())
    assert decision.done and decision.candidates[0].score > 0 and not decision.stuck


def test_where_nothing_may_be_done_nothing_is_and_no_number_is_missing():
    decision = planner(Likes(), refuse=False, done_affordance=0.0).step("stop there", [], possible())
    assert decision.done and decision.stuck and [row.score for row in decision.candidates] == [0.0] * len(LIBRARY)


def test_nobody_is_offered_to_end():
    refused = planner(Likes(cannot=0.9), tuned=True)
    refused.config = SayCanConfig(cannot=0.5)
    refusal = refused.step("sing a song", [], possible()).refusal
    assert refusal.nearest and "done" not in refusal.nearest


def test_errands_with_the_same_words_keep_their_own_scenes():
    chooser, words, after = planner(Likes(), tuned=True), "the ball please", [Step(LIBRARY["go to shelf"], SUCCEEDED)]
    one, other, can = Begun(), Begun(), possible("grip ball")
    first = chooser.step(words, [], can, seen(ball="shelf"), one).prompt
    chooser.step(words, [], can, seen(ball="crate"), other)
    then = chooser.step(words, after, can, seen(ball="table"), one).prompt
    assert "shelf: ball" in first and "shelf: ball" in then and "crate" not in then


def test_things_with_capitals_are_masked_and_the_one_that_is_asked_for_is_shown():
    examples = [Example(f"Hole die {thing}", (f"greife die {thing}", "done")) for thing in ("Tasse", "Gabel")]
    prompt = Prompt(Letters(), examples, ["Tasse", "Gabel", "Kanne"])
    assert prompt.build("hole die kanne", []).count("Instruction: Hole die Kanne\n1. greife die Kanne\n") == 1


# ---- near to what is said


class Undecided:
    """Likes all alike."""

    def score(self, prompt, candidates):
        return np.full(len(candidates), -1.0)

    def count_tokens(self, prompt, candidates):
        return np.array([len(text) for text in candidates])


NEAR = possible("grip cone", "grip ball", "go to shelf")


def likely(history=(), **config):
    decision = planner(Undecided(), **config).step("give the cone a grip", history, NEAR)
    return {row.skill.name: row.language_score for row in decision.candidates if row.affordance}


def test_of_what_is_likely_alike_the_nearest_to_the_words_comes_first_and_once():
    first = likely(nearness=10.0)
    assert max(first, key=first.get) == "grip cone" and first["done"] > first["go to shelf"]
    then = likely([Step(LIBRARY["grip cone"], SUCCEEDED)], nearness=10.0)
    assert then["grip cone"] == then["done"]  # no more than the end, which no words ask for
    assert set(likely(nearness=0.0).values()) == {0.25}
    assert len(set(likely(nearness=10.0, without="affordance").values())) == 1  # the language model alone


@pytest.mark.parametrize("config", [{"score_all": True}, {"normalise": "mean"}, {"normalise": "prior"}])
def test_how_much_nearness_weighs_does_not_hang_on_other_settings(config):
    def odds(**settings):
        found = likely(nearness=10.0, **settings)
        return np.log(found["grip cone"] / found["go to shelf"])

    assert odds(**config) == pytest.approx(odds(), abs=0.1)
