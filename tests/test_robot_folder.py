"""A robot as a folder: made new, read, driven, planned for, with nothing of the kitchen's."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_services import WordsEmbedder

from planners.prompts import ExamplesError, load_examples
from planners.robot_language import RobotLanguage
from saycan_qt import new
from saycan_qt.journey.config import RunConfig, check
from saycan_qt.journey.stack import Stack
from saycan_qt.kitchen.language.spoken import kitchen_language
from saycan_qt.robot import RobotConfig, robot_in_folder
from saycan_qt.serve import BY_RULE, Nobody, ServeConfig, checkpoints, models_of
from saycan_qt.services.models import Models
from skills.connective import Rules
from skills.errors import EmbodimentError, Unreadable
from skills.guard.client import stop_robot
from skills.library import Skill, SkillLibrary
from skills.robot import serve
from skills.robot_folder import AFFORDANCE, EXECUTION, KITCHEN, RobotFolder, default_robot, robot_of
from skills.types import Robot

WATERING = Path(__file__).parent.parent / "examples" / "watering"
KITCHEN_WORDS = ("kitchen", "coke", "drawer", "counter", "apple", "sponge")


@pytest.fixture
def robot(tmp_path):
    new.make(tmp_path / "my_robot")
    return RobotFolder.load(tmp_path / "my_robot")


def told(robot, text):
    """The folder with this at the end of its robot.yaml."""
    with (robot.path / "robot.yaml").open("a") as file:
        file.write(text + "\n")
    return RobotFolder.load(robot.path)


def driver(robot, text):
    (robot.path / "driver.py").write_text(text)
    return RobotFolder.load(robot.path)


# -- the folder -------------------------------------------------------------------------------------------------------


def test_a_new_folder_has_its_own_name_and_nothing_is_written_over(robot):
    assert robot.name == "my robot" and {p.name for p in robot.path.iterdir()} >= {"robot.yaml", "driver.py"}
    before = (robot.path / "robot.yaml").read_bytes()
    with pytest.raises(FileExistsError, match="is not written over"):
        new.make(robot.path)
    assert (robot.path / "robot.yaml").read_bytes() == before


@pytest.mark.parametrize("name", ['my "first" robot', "a\\b: {c}", "Ünïcode"])
def test_a_new_folder_may_have_any_name(tmp_path, name):
    new.make(tmp_path / name)
    assert RobotFolder.load(tmp_path / name).name == name


def test_a_new_robot_may_be_made_in_the_empty_folder_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "arm").mkdir()
    monkeypatch.chdir(tmp_path / "arm")
    new.make(Path("."))
    assert RobotFolder.load(Path(".")).name == "arm" and not list(tmp_path.glob(".new-*"))


@pytest.mark.slow
def test_a_new_robot_does_each_of_its_skills(robot):
    moved = robot.drive()
    assert isinstance(moved, Robot)
    assert (moved.embodiment, moved.name, moved.views) == (robot.embodiment, "my robot", ("front",))
    seen = moved.observe()
    assert seen.images["front"].shape == (48, 64, 3) and seen.state.shape == (2,)
    for skill in robot.library:
        moved.perform(skill, lambda: False)
        assert moved.succeeded(skill) is not False, skill


def test_a_driver_to_start_from_refuses_a_scripted_skill_that_it_has_nothing_for(robot, watering):
    for folder in (robot, RobotFolder.load(WATERING)):
        with pytest.raises(ValueError, match="performs no 'wave' yet"):
            folder.drive().perform(Skill("wave", "wave", learned=False), lambda: False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("driver: gone:Robot", "no module 'gone'|no installed module 'gone'"),
        ("driver: driver:Gone", "has no 'Gone'"),
        ("driver: ''", "it has no driver"),
        ("driver: driver:HERE", "is a int; name its class"),
        ("driver: driver.Robot", "give module:Class, or HOST:PORT"),
        ("driver: driver:Robot()", "give module:Class, or HOST:PORT"),
    ],
)
def test_a_driver_that_is_not_there_is_named(robot, text, reason):
    file = robot.path / "robot.yaml"
    file.write_text(file.read_text().replace("driver: driver:Robot", text))
    with (robot.path / "driver.py").open("a") as code:
        code.write("\nHERE = 1\n")
    with pytest.raises(EmbodimentError, match=reason):
        RobotFolder.load(robot.path).drive()


@pytest.mark.parametrize(
    ("written", "instead", "reason"),
    [
        ("dx: {low: -0.05, high: 0.05, ", "dx: {", "action: dx: it has no `low`; give both bounds"),
        ("dx: {low: -0.05, high: 0.05, ", "dx: {low: -0.05, ", "action: dx: it has no `high`; give both bounds"),
        ("  dy: {low", "  dx: {low", "'dx' stands there twice"),
        ("{x: m, y: m}", "{x: m, x: m}", "'x' stands there twice"),
        ("history: 1", "control_hz: 5", "'control_hz' stands there twice"),
        ("dx: {low", "dx: {lowe", "no key 'lowe'; it may have: name, low, high, unit, kind$"),
    ],
)
def test_what_the_file_does_not_say_of_an_action_or_says_twice_is_refused(robot, written, instead, reason):
    file = robot.path / "robot.yaml"
    assert written in file.read_text()
    file.write_text(file.read_text().replace(written, instead))
    with pytest.raises(EmbodimentError, match=reason):
        RobotFolder.load(robot.path)


def test_more_cameras_than_an_observation_carries_are_refused(robot):
    file = robot.path / "robot.yaml"
    file.write_text(
        file.read_text().replace("cameras: {", "cameras: {" + "".join(f"c{n}: [9, 9], " for n in range(16)))
    )
    with pytest.raises(EmbodimentError, match="17 cameras; an observation carries 16"):
        RobotFolder.load(robot.path)


def test_views_that_are_not_filmed_are_named(robot, caplog):
    views = tuple("abcdefghij")
    seen = SimpleNamespace(info=SimpleNamespace(views=views), body=robot, config=RunConfig(instruction="x"))
    assert Stack._views(seen, None) == views[:8] and "8 of the robot's views are filmed; not i, j" in caplog.text


def test_a_driver_gets_what_its_constructor_names(robot):
    made = driver(robot, "class Robot:\n    def __init__(self, folder, seed=0): self.given = (folder, seed)\n")
    assert made.drive(seed=3, real_time=True).given == (robot.path, 3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("class Robot(:", r"cannot be imported: .*driver\.py:1: invalid syntax"),
        ("import serial_of_nobody", r"cannot be imported: .*driver\.py:1: ModuleNotFoundError: .*serial_of_nobody"),
        ("class Robot:\n    def __init__(self): raise OSError('no port')", r"made: .*driver\.py:2: OSError: no port"),
        ("class Robot:\n    def __init__(self, port): ...", "cannot be made: TypeError: .*'port'"),
        ("class Robot:\n    def observe(self): ...", "lacks apply, stop, .*, see skills.types.Robot"),
    ],
)
def test_a_driver_that_cannot_be_made_is_refused_in_one_line(robot, text, reason):
    driver(robot, text)
    with pytest.raises(EmbodimentError, match=reason) as refusal:
        robot_in_folder(RobotConfig(robot_folder=robot.path), robot.library)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("own", ["embodiment = 'so101'", "__slots__ = ('x',)"])
def test_a_driver_that_would_be_served_without_an_embodiment_is_refused(robot, own):
    """As no policy would be refused, and nothing bound what it is sent."""
    made = driver(robot, f"class Robot:\n    {own}\n")
    with pytest.raises(EmbodimentError, match=r"robot.yaml: driver 'driver:Robot' has an `embodiment` that is no"):
        made.drive()


def test_a_driver_imports_its_neighbours(robot):
    (robot.path / "my_neighbour.py").write_text("SIZE = 7\n")
    made = driver(robot, "import my_neighbour\nclass Robot: size = my_neighbour.SIZE\n")
    assert made.drive().size == 7


def test_an_address_in_place_of_a_driver_is_a_robot_that_runs(robot):
    file = robot.path / "robot.yaml"
    for address in ("127.0.0.1:50052", "gpu-box:50052", "robot:50052"):
        file.write_text(file.read_text().replace("driver: driver:Robot", f"driver: {address}"))
        assert RobotFolder.load(robot.path).address == address
        with pytest.raises(EmbodimentError, match="runs already"):
            robot_in_folder(RobotConfig(robot_folder=robot.path), robot.library)
        file.write_text(file.read_text().replace(f"driver: {address}", "driver: driver:Robot"))


def test_what_is_no_robots_folder_is_told_with_the_next_move(tmp_path, robot):
    with pytest.raises(EmbodimentError, match=r"saycan_qt\.new"):
        RobotFolder.load(tmp_path / "gone")
    with pytest.raises(EmbodimentError, match=r"no key 'drver'; it may have: .*driver"):
        told(robot, "drver: x")


# -- rules ------------------------------------------------------------------------------------------------------------


def test_in_a_robots_folder_a_scripted_skill_without_a_rule_is_always_of_use(robot):
    (robot.path / "skills.yaml").write_text(
        "families:\n  put down: {name: put down, learned: false}\n  done: {name: done, learned: false}\n"
    )
    library = RobotFolder.load(robot.path).library
    nothing_held = robot.drive().observe()
    np.testing.assert_array_equal(Rules(library).value([nothing_held], ["put down"]), [1.0])


# -- what judges and acts ---------------------------------------------------------------------------------------------


def test_where_no_skill_is_learnt_rules_judge_and_nothing_need_act(robot):
    models = models_of(ServeConfig(robot_folder=robot.path), robot, robot.library, checkpoints)
    critic, actor = models.load()
    assert (models.critic_id, models.actor_id) == (BY_RULE, "") and isinstance(actor, Nobody)
    seen = robot.drive().observe()
    assert critic.value([seen], ["go to dock", "go to door"]).tolist() == [0.0, 1.0]  # it is at the dock


def test_a_learnt_skill_needs_something_that_acts():
    robot = RobotFolder.load(WATERING)
    if robot.model(EXECUTION):
        pytest.skip("somebody trained it")
    with pytest.raises(Unreadable, match=r"'water fern' is learnt, and nothing acts: put a checkpoint"):
        models_of(ServeConfig(robot_folder=WATERING), robot, robot.library, checkpoints)


def test_models_are_those_of_the_folder_unless_others_are_asked_for(robot):
    (robot.path / "execution").mkdir()
    asked = []

    def choose(config):
        asked.append((config.affordance, config.execution))
        return Models("c", "a", lambda: (None, None))

    own = told(robot, "affordance: my_models:Critic")
    for config in (ServeConfig(), ServeConfig(execution="runs/mine"), ServeConfig(affordance="runs/judge")):
        models_of(config, own, own.library, choose)
    inside = str(robot.path / "execution")
    assert asked == [("my_models:Critic", inside), ("my_models:Critic", "runs/mine"), ("runs/judge", inside)]


def test_what_robot_yaml_names_is_the_folders_own_whatever_else_has_its_name(robot, tmp_path, monkeypatch, capfd):
    for folder, whose in ((tmp_path, "stranger"), (robot.path, "own")):
        act, halt = f"    def act(self, *_): return {whose!r}", f"def halt(): os.write(2, b'halted: {whose}')"
        (folder / "my_own_names.py").write_text(f"import os\nclass Actor:\n{act}\n{halt}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    body = told(robot, "execution: my_own_names:Actor\nstop_command: my_own_names:halt")
    try:
        _, actor = models_of(ServeConfig(robot_folder=robot.path), body, body.library, checkpoints).load()
        assert actor.act() == "own"
        with serve(body.drive(), body.library, stop_command=body.halting) as server:
            stop_robot(server.guard.address)
        assert "halted: own" in capfd.readouterr().err
    finally:
        sys.modules.pop("my_own_names", None)


def test_the_kitchen_in_this_form_is_the_default():
    kitchen = RobotFolder.load(KITCHEN)
    assert kitchen.is_kitchen and kitchen == default_robot() == robot_of(None)
    assert (kitchen.model(AFFORDANCE), kitchen.model(EXECUTION)) == ("affordance", "execution")
    assert RobotLanguage.of(kitchen) == kitchen_language() and kitchen_language().about == "a robot in a kitchen"
    assert kitchen.name == "kitchen robot" and kitchen.views == ("head", "room")


# -- its words --------------------------------------------------------------------------------------------------------


def test_the_prompt_holds_the_robots_own_words_alone(robot):
    language = RobotLanguage.of(robot)
    prompt = language.prompt(WordsEmbedder()).build("go to the window", [], {s.text for s in robot.library})
    assert "1. go to the window" in prompt and prompt.endswith("Instruction: go to the window\n1.")
    assert not [word for word in KITCHEN_WORDS if word in prompt]
    assert language.about == "a robot called my robot" and language.adapter is None


def test_a_planner_is_told_the_skills_that_it_plans_with_whosever_words_it_has(robot):
    """as where a robot and a skill server of its own are named, and no folder"""
    kitchen = kitchen_language()
    assert kitchen.of_these(SkillLibrary.load()) is kitchen
    own = RobotLanguage.of(robot)  # in whatever order a skill's arguments came over the wire
    assert own.of_these(replace(s, arguments=dict([*s.arguments.items()][::-1])) for s in robot.library) is own
    theirs = kitchen.of_these(robot.library)
    assert theirs.skills == RobotLanguage.of(robot).skills and not theirs.examples
    assert "look around" in {example.instruction for example in theirs.by_text}


@pytest.mark.parametrize("examples", [None, "", "examples: []\n", "examples:\n  - {plan: [done], say: [be still]}\n"])
def test_few_examples_or_none_are_helped_out_by_the_skills_own_texts(robot, examples):
    file = robot.path / "examples.yaml"
    file.unlink() if examples is None else file.write_text(examples)
    prompt = RobotLanguage.of(robot).prompt(WordsEmbedder())
    assert "Instruction: look around\n1. look around\n2. done" in prompt.build("look around", [])
    assert set(RobotLanguage.of(robot).things) == {"dock", "window", "door"}


def test_a_prompt_without_examples_is_the_instruction_alone():
    prompt = RobotLanguage((), ()).prompt(WordsEmbedder())
    assert prompt.build("dance", ["turn"]) == "Instruction: dance\n1. turn\n2."
    assert prompt.familiarity("dance") == 0 and prompt.suggestions("dance", ["turn"], [], 3) == []


def test_an_example_of_what_no_skill_says_is_named_with_the_nearest_skill(robot):
    file = robot.path / "examples.yaml"
    file.write_text(file.read_text().replace("plan: [look around, done]", "plan: [look arund, done]"))
    with pytest.raises(ExamplesError, match="'look arund', no skill's text; did you mean 'look around'") as caught:
        RobotLanguage.of(robot)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("examples: [", "not YAML"),
        ("sentences: []", "`words` and `examples`"),
        ("examples:\n  - {plan: [done]}", "entry 1 of `examples`: nothing fills 'say'"),
        ("examples:\n  - {plan: [done], say: ['bring {thing}']}", "nothing fills 'thing'"),
        ("examples:\n  - {plan: done, say: [x]}", "no list"),
        ("words: [a]", "`words` are lists"),
    ],
)
def test_examples_that_cannot_be_used_are_refused_in_one_line(tmp_path, text, reason):
    (tmp_path / "examples.yaml").write_text(text)
    with pytest.raises(ExamplesError, match=reason) as caught:
        load_examples(tmp_path / "examples.yaml")
    assert "\n" not in str(caught.value)


# -- the commands -----------------------------------------------------------------------------------------------------


def test_a_folder_without_done_is_refused_before_anything_starts(robot):
    (robot.path / "skills.yaml").write_text("families: {wave: {name: wave, learned: false}}\n")
    assert "lacks" in check(RunConfig("wave", robot_folder=robot.path))


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from small_services import ScriptedScorer, WordsEmbedder
from saycan_qt import run
from saycan_qt.journey.config import RunConfig
from saycan_qt.language import Language, language_of
from skills.robot_folder import RobotFolder

body = RobotFolder.load(Path({folder!r}))
def load(config, skills, hopeless):
    return Language(ScriptedScorer(), language_of(body).prompt(WordsEmbedder()), "scripted")
code = run.run(RunConfig("look around at the door", robot_folder=body.path, out=Path({out!r})), run.Parts(load))
mine = {{name for name in sys.modules if name.startswith(("mujoco", "saycan_qt.kitchen"))}}
print("foreign:", sorted(mine - {{"saycan_qt.kitchen.symbolic", "saycan_qt.kitchen"}}))  # which small_services imports
run.leave(code)
"""


def test_a_sentence_is_carried_out_by_a_robot_of_ones_own(robot, tmp_path):
    code = RUN.format(tests=str(Path(__file__).parent), folder=str(robot.path), out=str(tmp_path / "out"))
    environment = {"SMALL_PLAN": "go to the door,look around,done"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env={**os.environ, **environment}
    )
    assert found.returncode == 3, found.stdout + found.stderr  # it knows no goals of whole instructions
    assert "my robot" in found.stdout and "foreign: []" in found.stdout
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert [step["skill"] for step in plan["steps"]] == ["go to door", "look around", "done"]
    assert (plan["world"], plan["models"]["affordance"], plan["robot"]["name"]) == ("my robot", "rules", "my robot")
    assert set(plan["steps"][0]["views"]) == {"front"} and (tmp_path / "out" / "run.mp4").stat().st_size > 1000
    page = (tmp_path / "out" / "report.html").read_text()
    told = page.partition('id="boot"')[2].partition("</script>")[0]  # the rest is the same for all robots
    assert told and not [word for word in KITCHEN_WORDS if word in found.stdout + json.dumps(plan) + told.lower()]


@pytest.mark.parametrize("command", ["serve", "robot", "run"])
def test_no_command_for_ones_own_robot_imports_the_kitchen(robot, command):
    code = f"""
import sys
from pathlib import Path
import saycan_qt.{command}
from skills.robot_folder import robot_of
robot_of(Path({str(robot.path)!r})).drive()
print([name for name in sys.modules if name.startswith(("mujoco", "saycan_qt.kitchen"))])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_model_for_another_robot_in_a_robots_folder_ends_its_server(robot):
    """The kitchen's checkpoints, which ship, act for a robot of eight numbers."""
    with (robot.path / "skills.yaml").open("a") as file:
        file.write("  reach:\n    name: reach {place}\n")
    command = [sys.executable, "-m", "saycan_qt.serve", "--robot-folder", str(robot.path)]
    told(robot, "affordance: affordance\nexecution: execution")
    found = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert found.returncode == 2 and "ready" not in found.stdout
    assert "its model is for another robot: the policy has 7 action dimensions, the robot 2" in found.stderr


# -- the example ------------------------------------------------------------------------------------------------------


@pytest.fixture
def watering(monkeypatch):
    monkeypatch.syspath_prepend(str(WATERING))
    for name in ("driver", "collect"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import collect

    yield collect
    for name in ("driver", "collect"):
        sys.modules.pop(name, None)


def test_the_watering_expert_waters_each_plant_wherever_it_stands(watering):
    for seed in range(30):
        for skill in watering.learnt():
            episode = watering.demonstrate(skill, seed, noise=0.3)
            assert episode.success and not episode.problem() and 5 <= len(episode) <= 40
    assert set(episode.images) == {"top", "nozzle"} and episode.actions.shape[1] == 3
    robot = RobotFolder.load(WATERING)
    assert not (episode.actions < robot.embodiment.low).any() and not (episode.actions > robot.embodiment.high).any()


def test_the_watering_rules_say_what_is_possible(watering):
    robot = RobotFolder.load(WATERING)
    gantry, names = robot.drive(), [skill.name for skill in robot.library]

    def possible():
        values = Rules(robot.library).value([gantry.observe()], names)
        return {name for name, value in zip(names, values, strict=True) if value and name != "done"}

    assert possible() == {"fill the tank"}
    gantry.perform(robot.library["fill the tank"], lambda: False)
    assert possible() == {"water fern", "water cactus", "water basil", "go home"}
    while not gantry.succeeded(robot.library["water fern"]):
        gantry.apply(gantry.expert("fern"))
    assert "water fern" not in possible() and gantry.observe().place == "fern"


def test_the_gantry_keeps_the_rate_that_its_folder_says(watering):
    robot, periods = RobotFolder.load(WATERING), []
    gantry, began = robot.drive(real_time=True), time.monotonic()
    gantry.perform(robot.library["fill the tank"], lambda: periods.append(1))
    assert (time.monotonic() - began) * robot.embodiment.control_hz < 1.5 * len(periods)


def test_recorded_demonstrations_say_themselves_what_robot_they_are_of(watering, tmp_path):
    from saycan_qt.data.episodes import EpisodeDataset

    watering.main(watering.Config(out=tmp_path / "data", episodes=6))
    found = EpisodeDataset([tmp_path / "data"])
    assert found.embodiment.without_terminate().misfit(RobotFolder.load(WATERING).embodiment) == ""
    assert set(found.cameras) == {"top", "nozzle"} and found.success.all()
