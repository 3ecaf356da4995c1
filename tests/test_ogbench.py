"""OGBench's data, made by its oracles, and its tasks, judged: `benchmarks/ogbench_*.py`, on tiny pieces."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest

with warnings.catch_warnings():  # what it imports warns of a display that is not there
    warnings.simplefilter("ignore")
    pytest.importorskip("ogbench.manipspace", reason="pip install 'saycan-qt[ogbench]'")

import ogbench_datasets
import ogbench_goals
import ogbench_tasks
from ogbench_goals import GoalEpisodes, Things
from ogbench_tasks import Config, PlayEpisodes

pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered.*")
TASK = "cube-single-singletask-task2-v0"  # the cube from (0.35, 0) to (0.50, 0)
GAMMA = 0.9
MAKE = gymnasium.make


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Episodes of 20 steps, and every environment made once: that takes seconds."""
    monkeypatch.setattr(ogbench_datasets, "LENGTH", 21)
    monkeypatch.setattr(gymnasium, "make", made_once)


@functools.cache
def made_once(name, **options):
    return MAKE(name, **options)


def made(folder, transitions=20, **fields):
    return ogbench_datasets.make(ogbench_datasets.Config("cube-single-play", transitions, folder, **fields))


@pytest.mark.slow
def test_data_is_made_in_parts_that_do_not_depend_on_how_many_there_are(tmp_path):
    first = dict(np.load(made(tmp_path)))
    assert len(first["terminals"]) == 21 and np.flatnonzero(first["terminals"]).tolist() == [20]
    assert (
        first["observations"].shape == (21, 28) and first["actions"].shape == (21, 5) and first["qpos"].shape[1] == 21
    )
    assert np.abs(first["actions"]).max() <= 1 and first["actions"].std() > 0.05
    more = dict(np.load(made(tmp_path, 40)))
    np.testing.assert_array_equal(more["actions"][:21], first["actions"])
    assert len(more["terminals"]) == 42 and (more["observations"][0] != more["observations"][21]).any()
    again = dict(np.load(made(tmp_path / "again")))
    np.testing.assert_array_equal(again["observations"], first["observations"])
    other = dict(np.load(made(tmp_path / "other", seed=1)))
    assert (other["observations"] != first["observations"]).any()


def test_a_dataset_of_another_seed_or_from_elsewhere_is_not_overwritten(tmp_path, monkeypatch):
    class Play:
        def __init__(self, name): ...

        def episode(self, seed, number):
            return {"actions": np.full((21, 5), 100 * seed + number), "terminals": np.arange(21) == 20}

    monkeypatch.setattr(ogbench_datasets, "Play", Play)
    path = made(tmp_path, seed=1)
    assert np.load(made(tmp_path, 40))["actions"][::21, 0].tolist() == [100, 101]
    mine = path.read_bytes()
    with pytest.raises(ValueError, match="made with seed 1, not with seed 0; another --out"):
        made(tmp_path, 60, seed=0)
    assert path.read_bytes() == mine
    told = dict(np.load(path))
    np.savez(path, **{key: told[key] for key in told if key != "seed"})  # as before there was one
    made(tmp_path, 40, seed=1)
    shutil.rmtree(path.with_suffix(".parts"))  # as a published one
    elsewhere = path.read_bytes()
    assert made(tmp_path, 40) == path
    with pytest.raises(ValueError, match="2 of 3 episodes, made elsewhere"):
        made(tmp_path, 60)
    with pytest.raises(ValueError, match="made elsewhere, not with seed 0"):
        made(tmp_path, 40, seed=0)
    assert path.read_bytes() == elsewhere


def test_only_play_is_made(tmp_path):
    with pytest.raises(ValueError, match="only datasets of the kind `play`"):
        ogbench_datasets.make(ogbench_datasets.Config("cube-single-noisy", 20, tmp_path))


def play(folder, done, length=10):
    """A recording of two episodes in which the cube lies at the goal in the rows `done`."""
    rows = 2 * (length + 1)
    qpos = np.zeros((rows, 21), np.float32)
    qpos[list(done), 14:17] = [0.5, 0, 0.02]
    ends = np.arange(rows) % (length + 1) == length
    states = np.arange(rows, dtype=np.float32)[:, None].repeat(28, axis=1)
    path = folder / "play.npz"
    np.savez(path, observations=states, actions=np.zeros((rows, 5)), terminals=ends, qpos=qpos, qvel=qpos)
    return path


def test_play_is_cut_where_the_task_is_done_and_what_breaks_off_counts_as_never_done(tmp_path):
    """Ten steps each: done at 4 and 5 of the first, and from 19 on, the eighth of the second."""
    found = PlayEpisodes(play(tmp_path, [4, 5, 19, 20, 21]), TASK, GAMMA, 100)
    lengths = np.diff(found.episode_start)
    assert lengths.tolist() == [4, 4, 8] and found.reached.tolist() == [True, False, True]
    assert found.states[:, 0].tolist() == [0, 1, 2, 3, 6, 7, 8, 9, *range(11, 19)]
    assert found.parts == 1 and found.worst == pytest.approx(-10)
    costs = [-1, -1, -1, -1, -1, -1, -1, -1 - 9, *[-1] * 8]
    np.testing.assert_allclose(found.rewards, costs, rtol=1e-6)
    to_go = sum(GAMMA**k * cost for k, cost in enumerate(costs[4:8]))
    assert to_go == pytest.approx(found.worst)  # as if it had gone on for ever


def test_only_the_last_steps_before_the_task_is_done_may_be_imitated_and_every_return_stays(tmp_path):
    """As above; of the eight steps to the second time that it is done five, of the first four none is cut off."""
    path = play(tmp_path, [4, 5, 19, 20, 21])
    found, whole = PlayEpisodes(path, TASK, GAMMA, 100, shown=5), PlayEpisodes(path, TASK, GAMMA, 100)
    assert np.diff(found.episode_start).tolist() == [4, 4, 3, 5] and found.states.tolist() == whole.states.tolist()
    assert found.success.tolist() == [True, False, False, True] and whole.success.all()

    def returns(data):
        parts = np.split(data.rewards, data.episode_start[1:-1])
        return [sum(GAMMA**k * r for k, r in enumerate(part[i:])) for part in parts for i in range(len(part))]

    np.testing.assert_allclose(returns(found), returns(whole), rtol=1e-5)


def test_no_more_transitions_are_taken_than_asked_for(tmp_path):
    found = PlayEpisodes(play(tmp_path, []), TASK, GAMMA, 13)
    assert len(found.rewards) == 13 and np.diff(found.episode_start).tolist() == [10, 3] and not found.reached.any()


def learnt(home, steps):
    config = ogbench_tasks.small(Config(home))
    settings = ogbench_tasks.settings_of(replace(config, steps=steps), "rt1-1", home / "cell", 0)
    rng, count = np.random.default_rng(0), 40
    numbers = [part.astype(np.float32) for part in (rng.normal(size=(count, 6)), rng.uniform(-1, 1, (count, 5)))]
    all_of = np.ones(4, bool)
    data = ogbench_tasks.StateEpisodes(*numbers, -np.ones(count), np.full(4, 10), all_of, all_of, "numbers")
    return ogbench_tasks.learn(config, "rt1-1", settings, data)


def test_a_policy_of_other_steps_is_not_judged_as_this_one(tmp_path):
    learnt(tmp_path, 10)
    with pytest.raises(ValueError, match=r"cell: trained for 10 steps, not 4; another --out, or delete it"):
        learnt(tmp_path, 4)
    result = tmp_path / "cell" / "judged-50.json"
    result.write_text(json.dumps({"steps": 10}))
    with pytest.raises(ValueError, match=rf"made with steps 10, not 4; another --out, or delete {tmp_path / 'cell'}, "):
        ogbench_tasks.kept(result, {"steps": 4})


def test_seconds_of_a_training_are_those_of_all_processes_that_had_a_part_in_it(tmp_path):
    learnt(tmp_path, 10)
    took = ogbench_tasks.cpu_seconds(tmp_path / "cell")
    assert took > 0
    (tmp_path / "cell" / ogbench_tasks.CPU_SECONDS).write_text("1000")
    learnt(tmp_path, 10)
    assert 1000 < ogbench_tasks.cpu_seconds(tmp_path / "cell") < 1000 + 10 * took


def test_where_a_cube_is_from_the_gripper_follows_from_what_is_observed():
    judged = ogbench_tasks.Judged(TASK, 1, lambda state, _: ogbench_tasks.with_relative(state, 1))
    judged.begin(0)
    info, more = judged.env.unwrapped.compute_ob_info(), judged.seen[-1].state[28:]
    away = info["privileged/block_0_pos"] - info["proprio/effector_pos"]
    np.testing.assert_allclose(more[:3], away * 10, atol=1e-5)  # OGBench's unit
    turned = 4 * (info["privileged/block_0_yaw"] - info["proprio/effector_yaw"])
    np.testing.assert_allclose(more[6:], [*np.cos(turned), *np.sin(turned)], atol=1e-5)
    judged.env.close()


def path_through(*stops, still=8, moving=4):
    """(T, D): from one stop to the next, resting at each."""
    rows = [np.repeat([stops[0]], still, axis=0)]
    for before, after in itertools.pairwise(stops):
        rows += [np.linspace(before, after, moving + 2)[1:], np.repeat([after], still, axis=0)]
    return np.concatenate(rows)


def test_a_deed_is_done_where_a_thing_comes_to_rest_elsewhere():
    """A cube and a button: the cube 1 along, back by less than OGBench tolerates, then up; the button before that."""
    cube = path_through([0, 0, 0.2], [1, 0, 0.2], [0.7, 0, 0.2], [0.7, 0, 0.6])
    button = (np.arange(len(cube)) >= 20).astype(float)[:, None]
    found = ogbench_goals.deeds(np.concatenate([cube, button], axis=1), Things(1, 1))
    rest_at = [8 + 13 * i + 4 for i in range(3)]
    assert [thing for _, thing in found] == [0, 1, 0]
    assert [step for step, _ in found] == pytest.approx([rest_at[0], 20, rest_at[2]], abs=1)


def test_what_a_drawer_takes_along_was_not_moved_by_itself():
    drawer = path_through([0], [2])
    cube = path_through([0, 0, 0], [1, 0, 0])
    assert [
        thing for _, thing in ogbench_goals.deeds(np.concatenate([cube, drawer], axis=1), Things(1, 0, (0.7,)))
    ] == [1]


def test_what_is_moved_twice_is_shown_only_where_it_was_put_back_and_something_else_moved_meanwhile():
    drawer = path_through([0], [2], [2], [0], [0], [2])
    cube = np.concatenate([path_through([0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]), np.zeros((26, 3)) + [1, 0, 0]])
    places, things = np.concatenate([cube, drawer], axis=1), Things(1, 0, (0.7,), {1: 0}, leaves=1)
    opened, put, closed, again = (step for step, _ in ogbench_goals.deeds(places, things))
    found = ogbench_goals.demonstrations(places, things, 5)
    assert (0, closed) in found and (opened + 1, closed) in found  # open, put in, close: the drawer as it was
    assert (0, again) not in found and (closed + 1, again) in found and (0, put) in found
    assert all(end != closed or start < closed for start, end in found)
    assert (0, closed) not in ogbench_goals.demonstrations(places, things, 2)  # of two deeds at most
    assert (0, closed) not in ogbench_goals.demonstrations(places, replace(things, opens={}), 5)  # it was in no way
    later = ogbench_goals.demonstrations(places, replace(things, leaves=5), 5)
    assert (closed + 5, again) in later  # the arm has left by then


def test_a_press_turns_neighbours_too_and_is_shown_where_no_button_was_pressed_twice():
    puzzle = replace(ogbench_goals.THINGS["puzzle-3x3-play"], leaves=1)
    places = np.zeros((50, 9))
    for step, turned in ((10, [0, 1, 3]), (20, [1, 3, 4, 5, 7]), (30, [5, 7, 8]), (40, [1, 3, 4, 5, 7])):
        places[step:, turned] = 1 - places[step:, turned]
    assert ogbench_goals.deeds(places, puzzle) == [(10, 0), (20, 4), (30, 8), (40, 4)]
    found = ogbench_goals.demonstrations(places, puzzle, 5)
    assert {end for start, end in found if start < 10} == {10, 20, 30} and (11, 40) not in found and (21, 40) in found
    state = np.zeros((2, 19 + 4 * 9))
    state[1, 20] = state[0, 20 + 4] = 1  # the first button is on; in the other state the second
    seen = puzzle.seen(state, places[[0, 10]])
    np.testing.assert_array_equal(seen[:, -9:], [[0, 1, *[0] * 7], [0, 1, 0, 1, *[0] * 5]])  # those that must turn


@pytest.mark.parametrize("name", ["cube-double", "scene", "puzzle-3x3"])
def test_where_things_are_is_read_from_the_state_as_ogbench_tells_it(name):
    env, things = gymnasium.make(f"{name}-v0", use_oracle_rep=True), ogbench_goals.THINGS[f"{name}-play"]
    state, info = env.reset(seed=0, options={"task_id": 4})
    np.testing.assert_allclose(things.places(state[None])[0], env.unwrapped.compute_oracle_observation(), atol=1e-5)
    seen = things.seen(state[None], info["goal"][None])
    assert seen.shape == (1, state.size + info["goal"].size + (8 + 6) * things.cubes)  # and cubes from the gripper


def test_hindsight_takes_what_was_reached_for_what_was_wanted(tmp_path):
    cube = path_through([0, 0, 0.2], [1, 0, 0.2], [1, 2, 0.2])
    states = np.zeros((len(cube), 28), np.float32)
    states[:, 19:22] = cube
    ends = np.arange(len(cube)) == len(cube) - 1
    np.savez(tmp_path / "play.npz", observations=states, actions=np.zeros((len(cube), 5)), terminals=ends)
    found = GoalEpisodes(tmp_path / "play.npz", Things(1, leaves=1), 1, 5, GAMMA, 0)
    lengths = np.diff(found.episode_start)
    assert len(lengths) == 2 and (found.rewards == -1).all() and found.success.all()
    missing = found.states[:, 36:39]  # after OGBench's 28 numbers, and 8 of the cube from the gripper
    first, second = missing[0], missing[lengths[0]]
    np.testing.assert_allclose(first, [1, 0, 0], atol=ogbench_goals.NEAR)
    np.testing.assert_allclose(second, [0, 2, 0], atol=ogbench_goals.NEAR)


@pytest.mark.slow
def test_a_policy_of_goals_is_trained_judged_and_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ogbench_datasets, "LENGTH", 201)
    config = ogbench_goals.GoalsConfig(tmp_path / "out", tmp_path, together=1, debug=True)
    assert ogbench_goals.main(config) == 0 and "29" in capsys.readouterr().out
    assert len(told := list(tmp_path.rglob("task*-judged-2.json"))) == 5
    assert json.loads(told[0].read_text())["episodes"] == 2
    for changed, said in (({"deeds": 2}, "made with deeds 5, not 2"), ({"tokens": 3}, "made with tokens 2, not 3")):
        assert ogbench_goals.main(replace(config, **changed)) == 2 and said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("row", ["q-transformer-5", "decision-transformer-1"])
def test_a_cell_is_trained_judged_and_kept(row, tmp_path, capsys):
    config = Config(tmp_path / "out", tmp_path, rows=(row,), together=1, debug=True)
    assert ogbench_tasks.main(config) == 0 and "97" in capsys.readouterr().out
    [path] = tmp_path.rglob("judged-2.json")
    told = json.loads(path.read_text())
    assert told["episodes"] == 2 == len(told["each"]) and told["successes"] == sum(told["each"])
    path.write_text(json.dumps(told | {"successes": 1}))
    assert ogbench_tasks.main(config) == 0 and "50 (9-91)" in capsys.readouterr().out
    assert ogbench_tasks.main(replace(config, more="--discount 0.9")) == 2
    assert "made with arguments" in capsys.readouterr().err


def test_what_there_is_not_is_said_in_one_line(tmp_path, capsys):
    for wrong in ({"rows": ("q-learning",)}, {"names": ("puzzle-4x4-play",)}, {"tasks": (6,)}):
        assert ogbench_tasks.main(replace(Config(Path(tmp_path)), **wrong)) == 2
        assert capsys.readouterr().err.count("\n") == 1
