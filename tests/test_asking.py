"""When the planner asks: the guarantee of its threshold, what it asks, and a person at the other end of a pipe."""

import io
import json
import os
import pty
import queue
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from tiny_services import wait_until

from planners.asking import Asking, Question, confidence, left_out, threshold
from planners.saycan import WORD_FOR_WORD, Candidate, Decision, Refusal, SayCanConfig, Step
from saycan_qt.evaluation import asking as evaluation
from saycan_qt.journey.journey import Journey, verdict
from saycan_qt.journey.person import REACTION, Left, Person
from saycan_qt.journey.results import RunFolder
from saycan_qt.kitchen.language.answers import right_next
from saycan_qt.kitchen.symbolic import SymbolicKitchen
from skills.library import Skill, SkillLibrary
from skills.types import Observation, Outcome, Status

LIBRARY = SkillLibrary.load()
SMALL = Path(__file__).with_name("small_services.py")
SUCCEEDED, FAILED = Outcome(Status.SUCCEEDED), Outcome(Status.FAILED)


def decision(because="", refusal=None, **scores):
    rows = [Candidate(LIBRARY[name.replace("_", " ")], score, 1.0, 1.0, score) for name, score in scores.items()]
    return Decision(tuple(rows), "", 0.0, refusal, because)


# ---- the guarantee


@pytest.mark.parametrize(("n", "coverage"), [(19, 0.95), (67, 0.95), (67, 0.8), (200, 0.9)])
def test_of_exchangeable_errands_the_stated_share_is_covered_and_hardly_more(n, coverage):
    rng = np.random.default_rng(0)
    draws = rng.beta(0.4, 2.0, (4000, n + 1)) * rng.uniform(0.2, 1.0, (4000, 1))  # errands of one day are alike
    covered = np.mean([new <= threshold(list(known), coverage) for *known, new in draws])
    assert coverage - 0.01 <= covered <= coverage + 1 / (n + 1) + 0.01


def test_where_few_go_wrong_nobody_need_be_asked():
    assert threshold([0.0] * 97 + [0.4, 0.5, 0.6], 0.95) == 0.0


@pytest.mark.parametrize(("n", "coverage", "said"), [(18, 0.95, "it takes 19"), (9, 1.0, "lies between 0 and 1")])
def test_a_coverage_that_cannot_be_promised_is_refused(n, coverage, said):
    with pytest.raises(ValueError, match=said):
        threshold([0.5] * n, coverage)


def test_sets_without_a_held_out_half_are_refused_before_anything_is_planned(capsys):
    sets = (Path(__file__).parents[1] / "saycan_qt" / "kitchen" / "language" / "development.yaml",)
    assert evaluation.asking(evaluation.AskingConfig(sets=sets)) == 2
    assert "no entry with `half: held out`" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"threads": 0}, "--threads 0: it must be at least 1"),
        ({"planner": SayCanConfig(max_steps=0)}, "--max-steps 0: it must be at least 1"),
        ({"seed": -1}, "--seed -1: it must be at least 0"),
        ({"out": Path(__file__).parent}, "is a folder; give a file's name"),
        ({"calibrate": Path(__file__).parent}, "is a folder; give a file's name"),
        ({"out": Path(__file__) / "asking.json"}, "cannot be written"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_planned(monkeypatch, capsys, option, said):
    monkeypatch.setattr(evaluation, "load_language", lambda *_: pytest.fail("it was loaded"))
    assert evaluation.asking(evaluation.AskingConfig(**option)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_where_one_file_cannot_be_written_the_other_is(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(evaluation, "load_language", lambda *_: SimpleNamespace(name="none"))
    monkeypatch.setattr(evaluation, "planner_of", lambda *_: None)
    monkeypatch.setattr(evaluation, "tried", lambda instruction, *_: evaluation.Errand(instruction, 0, 0.0, 2.0, True))
    out, kept = tmp_path / ("x" * 250), tmp_path / "asking.json"  # too long for the file that becomes it
    assert evaluation.asking(evaluation.AskingConfig(out=out, calibrate=kept, threads=1)) == 2
    assert "cannot be written: File name too long" in " ".join(capsys.readouterr().err.split())
    assert json.loads(kept.read_text())["threshold"] == 0


def test_what_a_threshold_covers_and_asks_about_is_told_by_errands_in_which_nothing_was_asked():
    errands = [evaluation.Errand(None, 0, wrong, least, not wrong) for wrong, least in ((0, 2), (0, 0.5), (0.7, 0.4))]
    assert [evaluation.at(errands, limit) for limit in (0.3, 0.45, 0.7)] == [
        pytest.approx(found) for found in ((2 / 3, 0), (2 / 3, 1 / 3), (1, 2 / 3))
    ]
    covered, helped = evaluation.over_splits(errands * 20, 0.95, splits=20)
    assert covered > 0.9 and 0.5 < helped < 0.8


# ---- what is asked


def test_two_skills_near_each_other_are_asked_about_and_a_sure_one_is_not():
    near, sure = decision(find_apple=0.4, find_orange=0.35, done=0.0), decision(find_apple=0.9, done=0.01)
    asking = Asking("when-unsure", 0.6)
    assert asking.question("fruit", near).options == ("find the apple", "find the orange")
    assert asking.question("fruit", near).confidence == pytest.approx(0.4 / 0.75)
    assert asking.question("fruit", sure) is None and Asking("always").question("fruit", sure).options
    assert Asking("never", 1.0).question("fruit", near) is None


def test_what_is_about_the_same_thing_is_no_doubt_and_words_that_fit_two_things_are():
    same = decision(find_apple=0.4, pick_apple=0.4, find_orange=0.2)
    assert confidence("fruit", same) == pytest.approx(0.8)
    cans = decision(find_coke_can=0.8, find_pepsi_can=0.2, find_apple=0.0, open_top_drawer=0.0, done=0.0)
    assert confidence("bring me the can", cans) == pytest.approx(0.8 / 3)
    assert confidence("bring me the coke can", cans) == pytest.approx(0.8)
    assert "fits “find the pepsi can” as well" in Asking("when-unsure", 0.6).question("a can", cans).reason


def test_things_that_go_into_one_drawer_are_not_the_same_and_a_remainder_is_not_sure():
    drawer = {f"place_{thing}_into_top_drawer": 0.3 for thing in ("apple", "sponge", "tea")}
    assert confidence("put it away in there", decision(**drawer)) == pytest.approx(1 / 3)
    failed, left = decision(find_apple=0.9, find_tea=0.1).candidates
    assert confidence("an apple", Decision((replace(failed, lowered=0.5, score=0.45),), "", 0.0)) == 1
    for lowered in (0.1, 0.0):
        rows = (left, replace(failed, lowered=lowered, score=0.9 * lowered))
        assert confidence("a drink", Decision(rows, "", 0.0)) == pytest.approx(0.1)


def test_a_number_may_have_signs_around_it_and_yes_is_no_instruction():
    options = tuple(LIBRARY[name] for name in ("find apple", "find tea"))
    question = Question("a drink", "which?", options)
    assert question.understand("2.").skill is question.understand("option 2").skill is options[1]
    assert question.understand("yes") is question.understand("OK!") is question.understand("3)") is None
    assert question.understand("the tea, please").instruction == "the tea, please"
    assert question.understand("-1").instruction == "-1" and question.understand("1" * 20) is None
    ways = Question("jog", "?", instructions=("jog x +", "jog x -"))
    assert ways.understand("jog x -").instruction == "jog x -"
    closing = Question("a drink", "is that it?", instructions=("yes", "no"))
    assert closing.understand("Yes!").instruction == "yes"


def test_the_cup_is_doubtful_also_where_all_that_the_robot_knows_are_cups():
    def push(colour, score):
        skill = Skill(f"push {colour}", "push", text=f"push the {colour} cup over", arguments={"cup": f"{colour} cup"})
        return Candidate(skill, score, 1.0, 1.0, score)

    cups = Decision((push("red", 0.95), push("blue", 0.03), push("green", 0.02)), "", 0.0)
    assert confidence("push the cup over", cups) < 0.4 < confidence("push the red cup over", cups)


def test_it_does_not_end_in_silence_where_something_that_was_named_is_left_out():
    ends = decision(done=0.9, find_orange=0.1)
    apple = [Step(LIBRARY["pick apple"], SUCCEEDED)]
    assert confidence("the apple", ends, apple) == pytest.approx(0.9)
    assert confidence("the apple and the orange", ends, apple) == pytest.approx(0.3)
    asked = Asking("when-unsure", 0.5).question("the apple and the orange", ends, apple)
    assert "nothing was done with the orange, which you named" in asked.reason
    began = Observation({}, np.zeros(0, np.float32), "operator", "7up can", {"orange": "table"})
    assert left_out("the apple from the table", ends, apple, began) == []
    assert left_out("put the 7up can down", ends, [Step(LIBRARY["put down"], SUCCEEDED)], began) == []


def test_what_was_said_word_for_word_is_sure_and_a_refusal_asks_for_other_words():
    asking = Asking("when-unsure", 1.0)
    assert asking.question("find the apple", decision(because=WORD_FOR_WORD, find_apple=1.0)) is None
    refusal = Refusal("no coke can here", nearest=("bring me the pepsi can",))
    assert asking.question("coke", decision(refusal=refusal, done=0.0)) == Question(
        "coke", "no coke can here", instructions=("bring me the pepsi can",)
    )


# ---- who knows the goal


def kitchen(place="table", opened=(), **where):
    return SymbolicKitchen({name.replace("_", " "): at for name, at in where.items()}, place, set(opened))


@pytest.mark.parametrize(
    ("here", "goal", "right"),
    [
        (kitchen(apple="table", tea="far counter"), [{"object": "apple", "at": "operator"}], {"pick apple"}),
        (kitchen("operator", apple="table", tea="table"), [{"object": "apple", "at": "operator"}],
         {"find apple", "go to table"}),
        (kitchen(apple="far counter", tea="table"), [{"one of": ["apple", "tea"], "at": "operator"}],
         {"find apple", "go to far counter", "pick tea"}),
        (kitchen(apple="operator"), [{"object": "apple", "at": "operator"}], {"done"}),
        (kitchen(apple="in hand"), [{"object": "apple", "at": "operator"}], {"bring it to you"}),
        (kitchen("far counter", ["top"], apple="far counter"), [{"object": "apple", "in": "top"}, {"closed": "top"}],
         {"pick apple", "place apple into top drawer"}),
        (kitchen(apple="trash can"), [{"object": "apple", "at": "operator"}], set()),
    ],
)  # fmt: skip
def test_a_person_who_knows_the_goal_answers_with_what_brings_it_nearer(here, goal, right):
    found = right_next(here, goal, LIBRARY)
    assert found == right


# ---- verdicts


def told(instruction, *steps, satisfied=None, ended="done", met=False):
    history = [Step(LIBRARY[name], outcome) for name, outcome in steps]
    found = verdict(instruction, satisfied, ended, history, list(LIBRARY), met=met)
    return found.success, found.judge, found.reason


def test_that_every_skill_succeeded_does_not_say_that_the_person_got_what_was_asked():
    success, judge, reason = told("the apple and the orange, in here", ("pick apple", SUCCEEDED))
    assert (success, judge) == (None, "nobody") and "with the orange, which you named: nothing" in reason


def test_what_was_named_and_left_out_is_said_where_the_goal_is_not_met():
    success, judge, reason = told("the apple and the orange, in here", ("pick apple", SUCCEEDED), satisfied=False)
    assert (success, judge) == (False, "goal") and "with the orange, which you named: nothing" in reason


def test_a_slip_that_was_read_as_a_skills_words_is_judged_by_nobody():
    steps, skills = [Step(LIBRARY["pick apple"], SUCCEEDED)], list(LIBRARY)
    assert verdict("pick apple", None, "done", steps, skills, said="pick apple").judge == "skill"
    assert verdict("pick apple", None, "done", steps, skills, said="pick maple").judge == "nobody"


def test_a_goal_that_was_met_before_anything_was_done_tells_nothing():
    """as in a session, where the snack of the instruction before still lies there"""
    success, judge, reason = told("a snack", ("pick apple", SUCCEEDED), satisfied=True, met=True)
    assert (success, judge) == (None, "nobody") and reason.startswith("the goal was met before anything was done; done")
    assert told("a snack", ("pick apple", FAILED), satisfied=True, met=True, ended="stopped")[0] is False
    assert told("pick up the apple", ("pick apple", SUCCEEDED), satisfied=True, met=True)[:2] == (True, "skill")
    assert told("a snack", ("pick apple", SUCCEEDED), satisfied=False, met=True)[:2] == (False, "goal")


def test_what_was_asked_for_word_for_word_and_never_done_is_not_carried_out():
    found = verdict("pick up the apple", None, "done", [Step(LIBRARY["find apple"], SUCCEEDED)], list(LIBRARY))
    assert found.success is False and found.reason == "“pick up the apple” was asked for, and was not carried out"


def test_a_verdict_is_the_robots_or_the_skills_own_where_they_know():
    assert told("x", ("pick apple", SUCCEEDED), satisfied=True)[:2] == (True, "goal")
    assert told("pick up the apple", ("find apple", SUCCEEDED), ("pick apple", SUCCEEDED))[:2] == (True, "skill")
    assert told("pick up the apple", ("pick apple", FAILED))[:2] == (False, "plan")
    assert told("x", ("pick apple", SUCCEEDED), ended="max steps")[:2] == (False, "plan")


# ---- at the other end of a pipe


def small_run(folder, said, *options, said_first="i am hungry"):
    command = [sys.executable, str(SMALL), "run", said_first, "--out", folder, "--json", *options]
    done = subprocess.run(command, input=said, capture_output=True, text=True, timeout=120)
    *questions, plan = map(json.loads, done.stdout.splitlines())
    return done.returncode, [line["question"] for line in questions], plan


def test_a_veto_proposes_the_next_and_any_skill_may_be_named():
    asked = Asking("always").question("fruit", decision(find_apple=0.5, find_orange=0.4, pick_apple=0.1, done=0.0))
    assert asked.understand("veto").veto and asked.understand("done").skill.name == "done"
    left = asked.vetoed()
    assert left.options[0] == "find the orange" and "not “find the apple”" in left.reason
    assert left.understand("find the apple").skill.name == "find apple"  # they may think again
    assert left.understand("Find the apple.").skill.name == "find apple"
    assert left.vetoed().vetoed().vetoed().options[0] == "find the apple"
    assert Question("x", "?", instructions=("yes", "no")).understand("veto") is None


def test_a_person_chooses_says_it_otherwise_and_judges(tmp_path):
    said = "2\nbring me the sponge\n1\nstop\n"
    code, questions, plan = small_run(tmp_path / "out", said, "--ask", "always")
    first, second, third, last = questions
    assert plan["steps"][0]["text"] == first["options"][1] and second["instruction"] == "i am hungry"
    assert third["instruction"] == last["instruction"] == "bring me the sponge"
    assert [asked["answer"] for asked in plan["questions"]] == [
        first["options"][1], "bring me the sponge", third["options"][0], None
    ]  # fmt: skip
    assert (code, plan["success"], plan["ended"], plan["judge"]) == (1, False, "stopped", "person")


@pytest.mark.parametrize(("said", "success"), [("Yes.", True), ("no!", False), ("1", True), ("stop", None)])
def test_whether_it_is_wanted_takes_yes_or_no_and_says_of_other_words_that_they_are_no_instruction(
    monkeypatch, capsys, tmp_path, said, success
):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"now bring the orange\n...\n{said}\n"))
    folder, person = RunFolder(tmp_path / "out", "fruit", None), Person(Console(stderr=True), piped=True)
    journey = Journey(None, None, None, folder, None, None, 0, 0.0, person, threading.Event(), threading.Event())
    assert journey.content("fruit", "done: nothing") is success
    first, again, _ = (json.loads(line)["question"] for line in capsys.readouterr().out.splitlines())
    assert "“now bring the orange” is no answer, and was not taken as an instruction; say yes or no" in again["reason"]
    [kept] = folder.plan["questions"]
    assert kept == {"step": None, "instruction": "fruit", "reason": first["reason"], "confidence": 0.0,
                    "options": ["yes", "no"], "answer": {True: "yes", False: "no", None: None}[success]}  # fmt: skip


def test_a_question_of_a_run_that_is_over_is_not_asked():
    person = Person(Console(file=io.StringIO()), piped=False)
    person.leave()
    with pytest.raises(Left):
        person.ask(Question("x", "?", instructions=("yes", "no")))


def test_after_a_stop_nothing_is_asked(tmp_path):
    stopped, screen = threading.Event(), io.StringIO()
    stopped.set()  # before the question was open
    folder, person = RunFolder(tmp_path / "out", "fruit", None), Person(Console(file=screen), piped=False)
    journey = Journey(None, None, None, folder, None, None, 0, 0.0, person, threading.Event(), stopped)
    answer = journey.ask(SimpleNamespace(step=1), Question("fruit", "?", instructions=("yes", "no")))
    assert not answer.instruction and journey.content("fruit", "done") is None and not screen.getvalue()
    assert not journey._questions  # nor told in plan.json


def test_what_was_typed_before_a_question_is_no_answer_to_it(monkeypatch):
    ours, theirs = pty.openpty()
    screen, answers = io.StringIO(), queue.SimpleQueue()
    with os.fdopen(theirs) as typed, os.fdopen(ours, "wb", buffering=0) as hands:
        monkeypatch.setattr(sys, "stdin", typed)
        person, question = Person(Console(file=screen), piped=False), Question("x", "?", instructions=("a", "b"))
        hands.write(b"1\n")
        asking = threading.Thread(target=lambda: answers.put(person.ask(question)), daemon=True)
        asking.start()
        wait_until(lambda: "typed before it was asked" in screen.getvalue())
        time.sleep(REACTION)
        hands.write(b"2\n")
        assert answers.get(timeout=5).instruction == "b"
        asking.join()


def test_a_browser_answers_where_there_is_no_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    person, answers = Person(Console(file=io.StringIO()), piped=False, elsewhere=True), queue.SimpleQueue()
    question = Question("x", "?", instructions=("a", "b"))
    threading.Thread(target=lambda: answers.put(person.ask(question)), daemon=True).start()
    wait_until(lambda: person.answer(1, "b"))
    assert answers.get(timeout=5).instruction == "b"


def test_what_is_too_long_for_the_robot_is_refused_as_ever(tmp_path):
    _, _, plan = small_run(tmp_path / "out", "", "--ask", "never", said_first="x " * 1250)
    assert plan["ended"] == "refused" and "at most 2,000 letters" in plan["reason"]


def test_a_refusal_that_is_not_answered_stays_one(tmp_path):
    code, _, plan = small_run(tmp_path / "out", "", "--ask", "when-unsure", said_first="make me a pizza")
    assert (code, plan["ended"], plan["judge"]) == (1, "refused", "planner") and plan["refusal"]["nearest"]


def test_other_words_are_judged_by_what_was_done_for_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALL_FAILS", "pick apple")
    said = "find the apple\npick up the apple\nlook for the sponge\nfind the sponge\ndone\nyes\n"
    code, _, plan = small_run(tmp_path / "out", said, "--ask", "always")
    assert [step["outcome"] for step in plan["steps"]] == ["succeeded", "failed", "succeeded", "succeeded"]
    assert (code, plan["judge"]) == (0, "person") and plan["reason"].startswith("done: “find the sponge”;")


def test_what_is_typed_as_a_browser_answers_is_no_answer_to_the_next_question(monkeypatch):
    end, typed = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(end))
    screen, answers = io.StringIO(), queue.SimpleQueue()
    person = Person(Console(file=screen), piped=False)
    question = Question("x", "?", instructions=("yes", "no"))
    threading.Thread(target=lambda: [answers.put(person.ask(question)) for _ in range(2)], daemon=True).start()
    wait_until(lambda: person.answer(1, "no"))
    wait_until(lambda: screen.getvalue().count("to stop") == 2)
    assert person._since > 0
    person._since += 60  # however slow this machine is
    os.write(typed, b"1\n")  # a moment too late
    wait_until(lambda: "say it again" in screen.getvalue())
    assert answers.get(timeout=10).instruction == "no"
    person._since = 0
    os.write(typed, b"2\n")
    assert answers.get(timeout=10).instruction == "no"
    os.close(typed)
    sys.stdin.close()
