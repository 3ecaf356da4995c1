"""Made-up robots, from which a language model learns to plan for robots that it never met."""

import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml
from unseen_robots import ROBOTS, Robot, Sentence, plan

from planners.asking import confidence
from planners.prompts import CANNOT, Begun, Example, Prompt, describe
from planners.robot_language import RobotLanguage, abilities, template
from planners.saycan import SayCanConfig, SayCanPlanner
from saycan_qt.kitchen.language import instructions
from saycan_qt.language import NEARNESS, UNSURE, LanguageConfig, load_language, planner_of
from saycan_qt.learning.pairs import Pair, Scene
from saycan_qt.made_up import robots, written
from saycan_qt.made_up.domains import load
from saycan_qt.made_up.pairs import HELD_OUT, _examples, made_up_pairs
from saycan_qt.made_up.sentences import KINDS, Sentences
from saycan_qt.made_up.wording import filled
from saycan_qt.made_up.world import Unsuitable, World
from skills.library import Skill, SkillLibrary


@pytest.fixture(scope="module")
def drawn():
    """Robots, each with things said to it."""
    rng = np.random.default_rng(0)
    found = [robots.draw(load(), rng) for _ in range(60)]
    return [(robot, [Sentences(robot, load(), rng).draw() for _ in range(8)]) for robot in found]


def test_the_same_seed_draws_the_same_rows():
    drawn = [made_up_pairs().training(np.random.default_rng(seed)) for seed in (7, 7, 8)]
    first, second, third = ((one.beginning, list(islice(one.pairs, 3))) for one in drawn)
    assert first == second != third


def test_a_plan_is_made_of_the_robots_skills_and_ends(drawn):
    for robot, said in drawn:
        texts = {skill.text for skill in robot.skills}
        assert all(one.plan == (CANNOT,) or (texts >= {*one.plan} and one.plan[-1] == robots.DONE) for one in said)


def test_a_plan_can_be_carried_out_in_the_scene_that_is_told(drawn):
    for robot, said in drawn:
        actions = {
            robot.text((family, values)): (family, values)
            for family, f in robot.families.items()
            for values in f.values
        }
        for one in said:
            world = one.world.copy()
            for step in one.plan[:-1]:
                world.do(actions[step])


def test_things_are_known_in_the_order_in_which_the_scene_tells_of_them():
    rng = np.random.default_rng(0)
    for _ in range(40):
        robot = robots.draw(load(), rng)
        for kind in ("counts", "sets"):
            said = Sentences(robot, load(), rng).draw(kind)
            told = said.world.objects
            assert list(told) == sorted(told, key=lambda thing: list(dict.fromkeys(told.values())).index(told[thing]))


def test_a_thing_that_is_elsewhere_cannot_be_picked(drawn):
    robot = next(robot for robot, _ in drawn if robot.can("go", "pick") and robot.sees)
    world = Sentences(robot, load(), np.random.default_rng(0)).draw("single").world
    world.held, world.place = "", robot.places[0]
    world.objects = {robot.movable[0]: robot.places[1]}
    with pytest.raises(Unsuitable):
        world.do(("pick", (robot.movable[0],)))


def test_robots_differ_in_size_and_all_kinds_of_things_are_said(drawn):
    sizes = [len(robot.skills) for robot, _ in drawn]
    assert min(sizes) < 10 and max(sizes) > 60 and max(sizes) <= robots.MOST_SKILLS
    assert len({one.kind for _, said in drawn for one in said}) > 0.7 * len(KINDS)
    assert 0.03 < np.mean([one.plan == (CANNOT,) for _, said in drawn for one in said]) < 0.3


def test_what_is_said_has_one_article_and_one_number(drawn):
    assert filled("put in some {ingredient}", "ingredient", "the butter") == "put in the butter"
    assert filled("give every pupil a {book}", "book", "my atlas") == "give every pupil my atlas"
    said, rng = [], np.random.default_rng(0)
    for robot, _ in drawn:
        sentences = Sentences(robot, load(), rng)
        said += [one.instruction for one in (sentences.draw("counts") for _ in range(20)) if one.kind == "counts"]
    wrong = re.compile(r"\b(any|just) a (couple|pair)\b|\bof of\b|\ba (couple|pair) of different\b", re.IGNORECASE)
    assert len(said) > 300 and not [one for one in said if wrong.search(one)]


def test_a_plan_that_is_shown_without_a_scene_is_that_of_a_robot_that_knows_of_none(monkeypatch):
    plan, tasks, rng = Sentences.plan, [], np.random.default_rng(1)
    monkeypatch.setattr(Sentences, "plan", lambda self, wanted, *_: tasks.append(wanted) or plan(self, wanted, *_))
    shown = 0
    for robot in (robots.draw(load(), rng) for _ in range(250)):
        if not robot.sees or robot.movable:  # it knows where it is itself, and of no things
            continue
        sentences = Sentences(robot, load(), rng)
        for one in (sentences.draw() for _ in range(20)):
            if one.plan != (CANNOT,) and not one.needs_scene:
                unseen = World(robot, "", "", {})
                assert plan(sentences, tasks[-1], unseen) == one.plan, one
                shown += 1
    assert shown > 200


def test_nothing_is_said_that_is_measured_with(drawn):
    """Neither in the kitchen's sets nor to the robots of benchmarks/unseen_robots.py."""
    kitchen, folder = SkillLibrary.load(), Path(instructions.__file__).parent
    sets = [folder / name for name in ("instructions.yaml", "development.yaml", "hard.yaml")]
    measured = {words(one.say) for file in sets for one in instructions.load(file, kitchen)}
    entries = [entry for file in ROBOTS.glob("*/sentences.yaml") for entry in yaml.safe_load(file.read_text())]
    measured |= (unseen := {words(entry["say"]) for entry in entries})
    assert len(measured) > 300
    wrote = {words(one.instruction) for robot in written.load() for one in robot.said}
    assert not measured & (wrote | {words(one.instruction) for _, said in drawn for one in said})
    assert not set().union(*map(in_a_row, unseen)) & set().union(*map(in_a_row, wrote))


def words(text):
    return tuple(re.findall(r"\w+", text.lower()))


def in_a_row(text, count=5):
    return {text[at : at + count] for at in range(len(text) - count + 1)}


def test_what_is_written_is_planned_with_the_robots_own_skills():
    assert len(written.training()) > 5 * len(written.held_out()) and len({robot.name for robot in written.load()}) > 50
    for robot in written.load():
        texts = {skill.text for skill in robot.skills}
        assert len(texts) == len(robot.skills) and robot.skills[-1].text == robots.DONE
        for one in robot.said:
            assert one.plan == (CANNOT,) or ({*one.plan} <= texts and one.plan[-1] == robots.DONE), one


def test_what_is_answered_in_the_order_of_a_list_is_said_where_the_list_stands_in_that_order():
    skills = [Skill(f"stop {b}", "stop {belt}", f"stop {b}", {"belt": b}) for b in ("belt A", "belt B", "belt C")]
    stops = tuple(skill.text for skill in skills)
    both = Pair("Belt B and then belt A.", ("stop belt B", "stop belt A", "done"))
    robot = written.Written("x", (*skills, Skill("done", "done")), (Pair("All belts.", (*stops, "done")), both))
    assert robot.ordered == (both,)
    drawn = [robot.draw(np.random.default_rng(seed)) for seed in range(40)]
    heads = {head: {one.instruction for one in islice(said, 6)} for head, said in drawn}
    assert len(heads) > 2
    for head, said in heads.items():
        assert ("belt A, belt B, belt C" in head) or said == {both.instruction}, head


def test_the_domains_near_to_measured_robots_and_some_written_robots_are_kept_from_training(monkeypatch):
    assert {domain.name for domain in load()} > set(HELD_OUT) and len(load()) >= 40
    draw, draw_written, given = robots.draw, written.Written.draw, []
    monkeypatch.setattr(robots, "draw", lambda domains, rng: given.extend(domains) or draw(domains, rng))
    monkeypatch.setattr(written.Written, "draw", lambda one, rng: given.append(one) or draw_written(one, rng))
    pairs, rng, drawn = made_up_pairs(), np.random.default_rng(0), []
    for source in (pairs.training, pairs.held_out):
        for _ in range(100):
            source(rng)
        drawn.append({one.name for one in given})
        given.clear()
    training, kept = drawn
    assert not training & kept and kept > set(HELD_OUT)
    assert len(training) > 100 and len(kept) > 10


# -- what a prompt tells ----------------------------------------------------------------------------------------------


def test_what_a_robot_can_do_is_told_in_a_few_lines():
    skills = [Skill(f"water {p}", "water", f"water the {p}", {"plant": p}) for p in ("fern", "wall fern")]
    told = "Skills: water the {plant}; fill the tank; done\nplant: fern, wall fern\n"
    assert abilities([*skills, Skill("fill the tank", "fill"), Skill("done", "done")]) == told
    assert abilities([]) == ""


@pytest.mark.parametrize("text", ["water the {plant}s", "go to{plant}", "stack {plant} on {other}", "拿{plant}"])
def test_a_slot_is_told_as_one_wherever_it_stands(text):
    filled = [{"plant": p, "other": o} for p in ("fern", "rose") for o in ("fern", "rose")]
    filled = [{k: v for k, v in one.items() if f"{{{k}}}" in text} for one in filled]
    skills = {text.format(**one): Skill(text.format(**one), "family", arguments=one) for one in filled}
    assert abilities(skills.values()).startswith(f"Skills: {text}\n")


def test_what_ends_a_plan_is_told_last_also_where_a_library_is_cut(caplog):
    many = [Skill("done", "done"), *(Skill(f"do task {n}", f"do task {n}") for n in range(65))]
    first, _ = abilities(many).split("\n")
    assert first.endswith("do task 58; ...; done") and abilities(many[:3]) == "Skills: do task 0; do task 1; done\n"
    language = RobotLanguage.read(SkillLibrary(many))
    language.prompt(Letters(), told=True)
    assert "of this robot's 66 skills the language model is not told all" in caplog.text
    assert language.of_these(many[:-1]).texts == {skill.text for skill in many[:-1]}


class Letters:
    """Embeds a text by its letters."""

    def encode(self, inputs, **options):
        counts = np.array([[text.count(letter) + 0.01 for letter in "abcdefghijklmnopqrstuvwxyz"] for text in inputs])
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_a_model_that_is_told_gets_the_skills_first_and_the_nearest_examples():
    examples = [Example("go to the sink", ("go to sink", "done")), Example("be quiet", ("done",))]
    prompt = Prompt(Letters(), examples, ["sink", "tub"], tuned=True, skills="Skills: go to {place}; done\n")
    built = prompt.build("go to the tub", [])
    assert built.startswith("Skills: go to {place}; done\n\nInstruction: ")
    assert "Instruction: go to the tub\n1. go to tub\n2. done\n\n" in built  # the example, about the same thing
    assert built.endswith("Instruction: go to the tub\n1.")


def test_an_example_is_never_about_other_things_where_the_robot_has_no_such_skill():
    examples, texts = [Example("go to the sink", ("go to sink", "done"))], ("go to sink", "lift cup", "done")
    prompt = Prompt(Letters(), examples, ["sink", "cup"], tuned=True, skills="Skills: ...; done\n", texts=texts)
    assert prompt.choose("go to the cup") == examples


def test_an_errand_that_is_taken_up_later_is_told_the_scene_that_it_began_with_or_none():
    prompt = Prompt(Letters(), [], [], tuned=True, skills="Skills: go to {place}; done\n")
    for began, told in ((None, ""), (Scene("tub", "", {"cup": "tub"}), "Scene: tub: cup; robot: tub; hand: empty")):
        prompt.take(Begun(began))
        built = prompt.build("go away", ["go to sink"], known=Scene("sink", "cup"))
        assert told in built and built.count("Scene") == bool(told)


def test_what_is_held_is_told_once_and_what_has_no_place_is_somewhere():
    held = Scene("tub", "cup", {"cup": "sink", "box": ""})
    assert describe(held) == "Scene: somewhere: box; robot: tub; hand: cup"


def test_the_examples_that_are_shown_in_training_are_the_nearest_of_some_and_never_what_is_asked():
    said = Pair("water the old fern", ("water fern", "done"))
    others = [Pair(f"water the {word}", ("x", "done")) for word in ("roses", "old fern", "fern", "moss", "old palm")]
    drawn = [_examples(said, iter(others * 2).__next__, np.random.default_rng(seed)) for seed in range(60)]
    shown = [re.findall("Instruction: (.*)", text) for text in drawn]
    assert {len(one) for one in shown} == {0, 1, 2, 3}
    assert all(one[-1] == "water the fern" and said.instruction not in one for one in shown if one)


def test_a_scene_of_which_nothing_is_known_is_not_told():
    prompt = Prompt(Letters(), [], [], tuned=True, skills="Skills: go to {place}; done\n")
    assert "Scene" not in prompt.build("go to the tub", [], known=Scene())
    assert "Scene: robot: tub; hand: empty\n" in prompt.build("go away", [], known=Scene(place="tub"))


def test_a_robot_whose_words_nothing_was_taught_is_planned_for_by_nearness_too():
    library = SkillLibrary([Skill("go home", "go"), Skill("beep", "beep"), Skill("done", "done")])
    for adapter, weight in (("", NEARNESS), ("none", 0.0)):
        language = load_language(LanguageConfig(adapter=adapter), RobotLanguage.read(library), library)
        planners = [planner_of("saycan", language, library, SayCanConfig(nearness=given)) for given in (None, 3.0)]
        assert [planner.config.nearness for planner in planners] == [weight, 3.0]
        assert planners[0].config.cannot is None  # it was measured with the kitchen's own


@pytest.mark.slow
def test_things_that_no_robot_was_told_of_are_refused_or_asked_about():
    rng, refused, sure = np.random.default_rng(0), 0, []
    strange = "umbrella violin zebra passport cucumber teapot bicycle pillow harmonica sandwich skateboard necklace"
    for folder in sorted(path for path in ROBOTS.iterdir() if path.is_dir()):
        robot = Robot.of(folder, 0)
        planner = planner_of(
            "saycan", load_language(LanguageConfig(), robot.language, robot.library), robot.library, SayCanConfig()
        )
        for family in [family for family in robot.library.families.values() if family[0].arguments][:6]:
            slots = dict(family[0].arguments)
            slots[next(iter(slots))] = str(rng.choice(strange.split()))
            say = template(list(family)).format(**slots)
            decision = planner.step(say, [], dict.fromkeys((skill.name for skill in robot.library), 1.0))
            refused += decision.refusal is not None
            sure += [] if decision.refusal else [confidence(say, decision)]
    assert refused >= 30 and len(sure) <= 9 and max(sure, default=0) < UNSURE, (refused, sure)


# -- the benchmark ----------------------------------------------------------------------------------------------------


class Listener:
    """Finds likeliest what the instruction names next."""

    def score(self, prompt, candidates):
        if candidates == [f" {CANNOT}\n"]:
            return np.array([-0.01 if "sing" in prompt else -10.0])
        said = prompt.rsplit("Instruction: ", 1)[1]
        left = said.split("\n")[0] if said.count("\n") == 1 else ""
        return np.array([0.0 if text.strip() in left or (not left and "done" in text) else -5.0 for text in candidates])


def test_the_benchmark_carries_a_plan_to_its_end_and_takes_a_refusal_for_one(tmp_path):
    library = SkillLibrary([Skill("go home", "go"), Skill("beep", "beep"), Skill("done", "done")])
    planner = SayCanPlanner(Listener(), RobotLanguage.read(library).prompt(Letters(), told=True), library)
    texts = {skill.text for skill in library}
    right = Sentence.parse({"say": "please beep", "plans": [["beep", "done"]]}, texts, tmp_path)
    never = Sentence.parse({"say": "sing", "impossible": True}, texts, tmp_path)
    assert plan(planner, right) in right.plans and plan(planner, never) in never.plans
    with pytest.raises(ValueError, match="'bep' is no skill's text"):
        Sentence.parse({"say": "please beep", "plans": [["bep", "done"]]}, texts, tmp_path)
