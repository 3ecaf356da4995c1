"""The kitchen keeps its promises: repeatable, honest about success, solvable by its experts."""

import gymnasium.utils.env_checker
import numpy as np
import pytest

from saycan_qt.kitchen import goals
from saycan_qt.kitchen.camera import HEAD
from saycan_qt.kitchen.embodiment import ACTION_HIGH, ACTION_LOW
from saycan_qt.kitchen.env import KitchenEnv
from saycan_qt.kitchen.objects import THINGS
from saycan_qt.kitchen.physics import Unstable
from saycan_qt.kitchen.practice.disturbances import absent
from saycan_qt.kitchen.practice.experts import Expert
from saycan_qt.kitchen.practice.perception import KEYPOINTS, STRIDE, labelled_frames
from saycan_qt.kitchen.robot import KitchenRobot
from saycan_qt.kitchen.scene import WORKTOPS
from saycan_qt.kitchen.tasks import FAMILIES, feasible, practice, random_kitchen
from saycan_qt.kitchen.world import CARRY, Placement, Scene, World
from skills.library import SkillLibrary
from skills.types import Robot

LIBRARY = SkillLibrary.load()
EXAMPLES = {
    "pick": "pick coke can",
    "move near": "move sponge near water bottle",
    "open drawer": "open middle drawer",
    "close drawer": "close bottom drawer",
    "place into drawer": "place apple into top drawer",
    "pick from drawer": "pick coke can from middle drawer and place on counter",
}


def run_skill(robot: KitchenRobot, name: str) -> bool | None:
    """Carry out one skill by expert (learnt ones) or as scripted, through the Robot protocol."""
    skill = LIBRARY[name]
    robot.start(skill)
    if not skill.learned:
        robot.perform(skill, lambda: False)
    else:
        expert = Expert(robot.world, skill)
        for _ in range(45):
            action = expert.act()
            robot.apply(action)
            if action[7] > 0.5:
                break
    return robot.succeeded(skill)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expert_solves_what_the_precondition_calls_feasible(family):
    wins = 0
    for seed in range(4):
        env = KitchenEnv(LIBRARY[EXAMPLES[family]])
        env.reset(seed=seed)
        assert feasible(env.world, env.skill)
        expert, reward, over = Expert(env.world, env.skill), 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(expert.act())
            over = terminated or truncated
        wins += int(reward)
    assert wins == 4


def test_same_seed_and_actions_give_the_same_pixels():
    def film(seed: int) -> np.ndarray:
        env = KitchenEnv(LIBRARY["pick apple"])
        frames = [env.reset(seed=seed)[0]["image"]]
        for action in np.random.default_rng(0).uniform(-0.05, 0.05, (4, 8)):
            frames.append(env.step(action)[0]["image"])
        return np.stack(frames)

    assert (film(3) == film(3)).all()
    assert (film(3) != film(4)).any()


def test_observations_do_not_alias_the_simulator():
    world = World(practice(np.random.default_rng(0), LIBRARY["pick apple"]))
    before = world.observe()
    kept = before.image.copy(), before.state.copy()
    world.step(np.array([0.05, 0, -0.05, 0, 0, 0, 1, 0]))
    assert (before.image == kept[0]).all() and (before.state == kept[1]).all()
    assert (world.observe().image != kept[0]).any()


def test_a_training_scene_looks_like_the_whole_kitchen():
    """Training builds only the worktop in view: the head camera must not see the difference."""
    for place in WORKTOPS:
        objects = {"coke can": Placement(place, 0.2, 0.1)}
        part, whole = (World(Scene(objects, place, places=p)).observe().image for p in ((place,), Scene({}).places))
        assert (part == whole).mean() > 0.97


def test_env_follows_gymnasiums_api():
    gymnasium.utils.env_checker.check_env(KitchenEnv(LIBRARY["open top drawer"]), skip_render_check=True)


def test_reward_needs_both_success_and_termination():
    env = KitchenEnv(LIBRARY["close top drawer"])
    shut = Scene({"apple": Placement("far counter", 0.2, 0.0)}, places=("far counter",))
    for terminate, reward in ((1.0, 1.0), (0.0, 0.0)):
        env.reset(seed=0, options={"scene": shut})
        assert env.step(np.array([0, 0, 0, 0, 0, 0, 0, terminate]))[1] == reward


def test_preconditions_tell_absent_held_and_closed():
    skill = LIBRARY["pick coke can"]
    scene = practice(np.random.default_rng(1), skill)
    assert feasible(World(scene), skill)
    assert not feasible(World(absent(np.random.default_rng(0), skill, scene)), skill)
    drawers = practice(np.random.default_rng(1), LIBRARY["close top drawer"])
    assert not feasible(World(drawers), LIBRARY["open top drawer"])
    held = Scene({"apple": Placement("table", 0.2, 0.0)}, "table", held="apple")
    assert World(held).held() == "apple"
    assert not feasible(World(held), LIBRARY["pick apple"])


def test_driving_keeps_what_the_gripper_holds():
    robot = KitchenRobot(scene=Scene({"tea": Placement("table", 0.2, 0.0)}, "table", held="tea"))
    for place in ("far counter", "trash can", "close counter"):
        assert run_skill(robot, f"go to {place}")
        assert robot.observe().held == "tea"


def test_what_is_let_go_of_where_a_drive_was_stopped_is_not_put_down():
    robot = KitchenRobot(scene=Scene({"tea": Placement("table", 0.2, 0.0)}, "table", held="tea"))
    robot.world.drive("far counter", canceled=lambda: True)
    robot.perform(LIBRARY["put down"], lambda: False)
    assert robot.world.place == "" and robot.succeeded(LIBRARY["put down"]) is False


def test_the_tray_takes_a_fourth_thing_and_keeps_the_others():
    there = {"apple": (0.2, 0.0), "coke can": (0.2, 0.13), "water bottle": (0.2, -0.13), "rxbar blueberry": (0.2, 0.0)}
    things = {name: Placement("operator", *at) for name, at in there.items()}
    robot = KitchenRobot(scene=Scene(things, "operator", held="rxbar blueberry"))
    assert run_skill(robot, "put down")
    robot.world.rest(300)
    assert all(goals.holds(robot.world, {"object": name, "at": "operator"}) for name in things)


@pytest.mark.parametrize(
    ("instruction", "plan"),
    [
        ("Bring me a coke can!", ["find coke can", "pick coke can", "bring it to you", "put down"]),
        ("throw away the apple", ["find apple", "pick apple", "go to trash can", "put down"]),
        (
            "put the coke can in the top drawer",
            ["go to far counter", "open top drawer", "find coke can", "pick coke can", "go to far counter"]
            + ["place coke can into top drawer"],
        ),
        (
            "move the sponge near the water bottle",
            ["find sponge", "pick sponge", "find water bottle", "move sponge near water bottle"],
        ),
    ],
)
def test_a_right_plan_meets_the_instructions_goal(instruction, plan):
    robot = KitchenRobot(seed=5)
    assert isinstance(robot, Robot)
    assert robot.satisfied(instruction) is False
    assert [run_skill(robot, name) for name in plan] == [True] * len(plan)
    assert robot.satisfied(instruction) is True


def test_goals_are_found_by_wording_and_unknown_ones_are_none():
    assert goals.find("Bring me a snack.") and goals.find("please open the top drawer")
    assert goals.find("make me a pizza") is None


def test_a_random_kitchen_holds_a_snack_a_drink_and_what_requests_name():
    for seed in range(20):
        scene = random_kitchen(np.random.default_rng(seed))
        uses = {THINGS[name].use for name in scene.objects}
        assert {"snack", "drink"} <= uses
        assert {"coke can", "apple", "sponge", "water bottle"} <= set(scene.objects)


def test_perception_labels_agree_with_the_image():
    frames, away = labelled_frames(30, seed=0), []
    assert frames["positions"].shape == (30, len(KEYPOINTS), 3)
    rows, columns = np.indices(frames["heatmaps"].shape[2:])
    for heatmaps, where, visible in zip(frames["heatmaps"], frames["positions"], frames["visible"], strict=True):
        for heat, pixel in zip(heatmaps[visible], HEAD.project(where[visible]), strict=True):
            centre = np.average(columns, weights=heat), np.average(rows, weights=heat)
            away.append(np.linalg.norm(STRIDE * (np.array(centre) + 0.5) - pixel))
    assert max(away) < 8 and np.median(away) < 1 and len(away) > 100  # [px]; what is half hidden is off its middle
    hidden = frames["heatmaps"][~frames["visible"]]
    assert hidden.sum(axis=(1, 2)).max(initial=0) < 3 * 255 / 16 + 1
    cells = frames["images"].reshape(30, len(rows), STRIDE, len(rows[0]), STRIDE, 3).mean(axis=(2, 4))
    for name in ("orange", "blue plastic bottle"):  # of one colour
        shown = cells[frames["heatmaps"][:, KEYPOINTS.index(name)] == 255]
        color = np.array(THINGS[name].color)
        assert len(shown) and np.allclose(shown / shown.sum(1, keepdims=True), color / color.sum(), atol=0.03)


def test_perception_looks_where_planners_ask_too():
    asked = labelled_frames(3, seed=0, asked=1.0)
    assert np.abs(asked["states"][:, :3] - CARRY).max() < 0.15  # the arm is at rest
    assert (asked["images"][0] != asked["images"][1]).any() and asked["visible"].any()


def test_perception_goes_on_in_another_kitchen_where_one_gives_up(monkeypatch):
    step, steps = World.step, []

    def gives_up_once(world, action):
        steps.append(world)
        if len(steps) == 2:
            raise Unstable("huge value")
        step(world, action)

    monkeypatch.setattr(World, "step", gives_up_once)
    assert len(labelled_frames(2, seed=0)["images"]) == 2 and steps[1] is not steps[2]


@pytest.fixture
def robot(tmp_path, monkeypatch):
    """In an empty folder, which nothing may be written to."""
    monkeypatch.chdir(tmp_path)
    yield KitchenRobot(scene=Scene({"apple": Placement("table", 0.2, 0.0)}, "table"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ([0, 0, np.nan, 0, 0, 0, 0, 0], "dz is nan"),
        ([0, 0, 0, 0, 0, -np.inf, np.inf, 0], "dyaw is -inf, closedness is inf"),
        ([0, 0, 0, 0, 0, 0, 0, np.nan], "terminate is nan"),
        ([0] * 7, r"8 numbers \(dx, dy, .*terminate\), not \(7,\)"),
        ([[0] * 8], r"not \(1, 8\)"),
    ],
)
def test_an_action_that_is_no_action_is_refused_and_nothing_moves(action, said, robot):
    env, up = KitchenEnv(LIBRARY["pick apple"]), np.array([0, 0, 0.05, 0, 0, 0, 0, 0])
    env.reset(seed=0, options={"scene": robot.world.scene})
    for world, act in ((robot.world, robot.apply), (env.world, env.step)):
        before = world.data.time, world.state()
        with pytest.raises(ValueError, match=said):
            act(np.array(action, np.float32))
        assert world.data.time == before[0] and (world.state() == before[1]).all()
        act(up)
        assert world.tip()[2] > before[1][2] + 0.02  # it still obeys
    assert env.steps == 1


def test_an_action_out_of_range_counts_as_the_nearest_in_range(robot):
    other = World(robot.world.scene)
    robot.apply(np.full(8, 1e30))
    other.step(ACTION_HIGH)
    assert (robot.world.state() == other.state()).all()


def test_a_simulation_that_gives_up_says_so(robot, caplog):
    robot.world.data.qvel[:] = 1e12
    for _ in range(2):  # and does not come back
        with pytest.raises(Unstable, match=r"huge value in QVEL at DOF 0"):
            robot.apply(np.zeros(8))
    assert "huge value in QVEL" in caplog.text


@pytest.mark.parametrize(
    ("scene", "said"),
    [
        (Scene({}, tip=(0.0, np.nan, 0.2)), r"tip: \(0.0, nan, 0.2\)"),
        (Scene({"apple": Placement("table", np.inf, 0.0)}), r"apple: \(inf, 0.0, 0.0\)"),
        (Scene({}, drawers={"top": np.nan}), r"top drawer: \(nan,\)"),
    ],
)
def test_a_scene_with_a_number_that_is_not_finite_is_refused(scene, said):
    with pytest.raises(ValueError, match=said):
        World(scene)


def test_a_look_changes_what_is_seen_and_nothing_that_happens():
    scene = practice(np.random.default_rng(0), LIBRARY["pick apple"])
    target, source = World(scene), World(scene, "source")
    for action in np.random.default_rng(1).uniform(ACTION_LOW, ACTION_HIGH, (4, 8)):
        target.step(action)
        source.step(action)
    seen, other = target.observe(), source.observe()
    assert (seen.state == other.state).all() and seen.objects == other.objects
    assert 8 < np.abs(seen.image.astype(float) - other.image).mean() < 60
