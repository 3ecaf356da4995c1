"""Collecting is repeatable, resumable, and refuses to mix two collections."""

import contextlib
import errno
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from saycan_qt import atomic, collect
from saycan_qt.collect import CollectConfig, _in_parallel, episode, episodes, load_actor, main
from saycan_qt.data import scenes
from saycan_qt.data.episodes import DatasetError, EpisodeDataset, EpisodeWriter
from saycan_qt.data.scenes import HISTORY, LabelledScene, SceneDataset
from saycan_qt.kitchen.practice import collection
from saycan_qt.kitchen.practice.affordances import labelled_scene
from saycan_qt.kitchen.practice.collection import begin
from saycan_qt.learning import checkpoint
from skills.library import SkillLibrary

PICKING = ("--families", "pick", "--failures", "0", "--workers", "1")


def test_a_collection_continues_where_it_was_and_refuses_other_settings(tmp_path, capsys):
    command = ["--out", str(tmp_path / "data"), "--workers", "1", "--families", "open drawer", "--episodes"]
    assert main([*command, "2"]) == 0
    more = CollectConfig(tmp_path / "data", episodes=4, workers=1, families=("open drawer",))
    assert episodes(more) == 0
    dataset = EpisodeDataset(tmp_path / "data")
    assert dataset.num_episodes == 4
    fresh = episode(more, 3, SkillLibrary.load())
    assert (dataset.images[dataset.frames(3)] == fresh.images).all()
    assert np.allclose(dataset.actions[dataset.frames(3)], fresh.actions)
    assert main([*command, "4", "--seed", "1"]) == 2
    assert "--seed 0" in capsys.readouterr().err


def test_workers_end_when_their_parent_is_killed(tmp_path):
    """They would write beside the next collection; their lock on the shard shows that they are gone."""
    command = ["--out", str(tmp_path), "--workers", "1", "--families", "open drawer", "--episodes", "10000"]
    parent = subprocess.Popen([sys.executable, "-m", "saycan_qt.collect", *command], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "shard-00" / "meta" / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while time.monotonic() < deadline:
        try:
            EpisodeWriter(tmp_path / "shard-00").close()
        except DatasetError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the worker still writes")


def full_at_the_end(config, worker, done):
    """Of a worker: all is done, and cannot be written."""
    for _ in range(3):
        done.put(1)
    raise OSError(errno.ENOSPC, "No space left on device")


def killed(config, worker, done):
    done.put(1)
    raise SystemExit(9)


def test_what_was_done_and_could_not_be_written_was_not_collected(tmp_path, capsys):
    with pytest.raises(ValueError, match="No space left on device"):
        _in_parallel(full_at_the_end, None, 1, 3, "episodes", tmp_path)
    assert _in_parallel(killed, None, 1, 1, "episodes", tmp_path) == 1
    told = capsys.readouterr()
    assert "exit code 9; run again" in told.err and "episodes in" not in told.out


def test_a_worker_killed_before_its_dataset_was_described_costs_nothing(tmp_path):
    config = CollectConfig(tmp_path, episodes=1, workers=1, families=("open drawer",))
    begin(config)
    (tmp_path / "shard-00").mkdir()
    assert collection.collected(tmp_path) == 0
    assert episodes(config) == 0 and collection.collected(tmp_path) == 1


@contextlib.contextmanager
def interrupted(*_):
    """Ctrl-C once something has been made."""

    def advance(count):
        if count:
            raise KeyboardInterrupt

    yield advance


@pytest.mark.parametrize(
    "command", [("--episodes", "1000", "--families", "open drawer"), ("affordance", "--scenes", "1000")]
)
def test_after_ctrl_c_all_that_was_made_is_there(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(collect, "_bar", interrupted)
    assert main([*command, "--out", str(tmp_path), "--workers", "1"]) == 130
    there = collection.collected(tmp_path) or len(SceneDataset.open(tmp_path).numbers)
    assert 1 <= there < 20 and "goes on" in capsys.readouterr().err


def test_scenes_are_collected_by_one_process_at_a_time_and_stand_there_once(tmp_path, capsys):
    with atomic.lock(tmp_path / ".lock", wait=False):
        assert main(["affordance", "--out", str(tmp_path)]) == 2
    assert "another process collects here" in capsys.readouterr().err

    def some(*numbers):
        image, state, labels = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8), np.float32), np.ones(2, bool)
        return [LabelledScene(number, image, state, labels, labels, *"abcde") for number in numbers]

    for numbers in ((0, 1), (1, 2), (0, 2)):
        scenes.extend(scenes.path(tmp_path, 0), some(*numbers))
    assert SceneDataset(tmp_path, {}, (scenes.path(tmp_path, 0),)).numbers.tolist() == [0, 1, 2]


def test_failures_fail_and_demonstrations_succeed():
    library = SkillLibrary.load()
    for number in range(6):
        found = episode(CollectConfig(Path("unused"), failures=0.5), number, library)
        assert found.success == (found.info["mode"] == "demonstration")
        assert len(found.images) == len(found.actions) <= 45


@pytest.mark.parametrize("family", ["open drawer", "close drawer"])
def test_where_a_kind_of_failure_never_fails_an_episode_ends_too_early(family, monkeypatch):
    """Beside the object grasps nobody at a drawer."""
    monkeypatch.setattr(collection, "TRIES", 2)
    config = CollectConfig(Path("unused"), families=(family,))
    run, steps = collection.carried_out(config, 32, SkillLibrary.load(), observing=False)  # "offset" is drawn
    assert steps and not run.success and run.mode == "early"


@pytest.mark.slow
def test_a_skill_is_demonstrated_in_scenes_made_for_others_too():
    library, config = SkillLibrary.load(), CollectConfig(Path("unused"), failures=0.0, anywhere=1.0)
    found = [episode(config, number, library) for number in range(8)]
    assert all(e.success and e.info["mode"] == "demonstration" for e in found)
    assert len({e.task for e in found}) > 3


def test_what_was_possible_where_an_episode_began_is_noted(tmp_path):
    config = CollectConfig(tmp_path, failures=0.0, impossible=0.5, anywhere=1.0, possible=True)
    found = [episode(config, number, SkillLibrary.load()) for number in range(3)]
    assert {e.info["mode"] for e in found} == {"demonstration", "impossible"}
    assert all((e.task in e.info["possible"].split("\n")) == e.success for e in found)
    plain = episode(CollectConfig(tmp_path, failures=0.0, impossible=0.5, anywhere=1.0), 1, SkillLibrary.load())
    assert "possible" not in plain.info and (plain.images == found[1].images).all()  # noting changes nothing else


@pytest.mark.slow
def test_scenes_do_not_depend_on_workers_and_a_collection_continues(tmp_path, capsys):
    command = ["affordance", "--out", str(tmp_path / "scenes"), "--seed", "7", "--scenes"]
    assert main([*command, "1", "--workers", "1"]) == 0
    assert main([*command, "3", "--workers", "2"]) == 0
    dataset = SceneDataset.open(tmp_path / "scenes")
    fresh = labelled_scene(7, 2, SkillLibrary.load())
    seen = dataset.histories(dataset.files[0])
    assert dataset.numbers.tolist() == [0, 1, 2] and max(map(len, seen)) <= HISTORY
    assert all((o.image == image).all() for o, image in zip(seen[2], fresh.images, strict=True))
    assert all((o.state == state).all() for o, state in zip(seen[2], fresh.states, strict=True))
    assert (dataset.labels("succeeds")[2] == fresh.succeeds).all() and dataset.labels("precondition").any()
    assert main(["affordance", "--out", str(tmp_path / "scenes"), "--seed", "8"]) == 2
    assert "--seed 7" in capsys.readouterr().err


@pytest.mark.slow
def test_a_policy_collects_its_own_episodes_successes_and_failures_alike(tmp_path):
    command = ["--policy", "execution", "--families", "open drawer", "--episodes", "2", "--workers", "1"]
    assert main([*command, "--out", str(tmp_path / "own")]) == 0
    dataset = EpisodeDataset([tmp_path / "own"])
    assert len(dataset.success) == 2 and all(task.startswith("open") for task in dataset.tasks)
    library = SkillLibrary.load()
    again = episode(CollectConfig(tmp_path, families=("open drawer",)), 1, library, load_actor("execution"))
    last = dataset.images[dataset.episode_start[1] :]
    assert again.info["mode"] == "autonomous" and (again.images == last).all()
    assert main(["--policy", "nobody", "--out", str(tmp_path / "none")]) == 2
    assert main(["--policy", "execution", "--impossible", "0.5", "--out", str(tmp_path / "none")]) == 2
    assert main(["--policy", "execution", "--pace", "0.02", "--out", str(tmp_path / "none")]) == 2


@pytest.mark.slow
def test_a_collection_is_of_one_policy_and_replays_are_of_the_same_demonstrations(tmp_path, capsys):
    """Whatever lies under their names by now; collections of before this was noted go on."""
    shutil.copytree(checkpoint.SHIPPED / "execution", tmp_path / "policy")
    command = ["--out", str(tmp_path / "own"), "--episodes", "1", "--workers", "1", "--families", "open drawer"]
    command += ["--policy", str(tmp_path / "policy")]
    assert main(command) == 0 == main(command)
    shutil.rmtree(tmp_path / "policy")
    shutil.copytree(checkpoint.SHIPPED / "affordance", tmp_path / "policy")
    assert main(command) == 2 and "made with another policy of that name" in capsys.readouterr().err
    settings = json.loads((tmp_path / "own" / "collect.json").read_text())
    del settings["weights"]
    (tmp_path / "own" / "collect.json").write_text(json.dumps(settings))
    assert main(command) == 0
    assert main(["--out", str(tmp_path / "shown"), "--episodes", "1", *PICKING]) == 0
    replays = CollectConfig(tmp_path / "replays", replay=tmp_path / "shown", seed=1)
    begin(replays)
    shown = json.loads((tmp_path / "shown" / "collect.json").read_text())
    (tmp_path / "shown" / "collect.json").write_text(json.dumps(shown | {"pace": 0.03}))
    with pytest.raises(ValueError, match="made with other demonstrations in --replay"):
        begin(replays)


def test_a_collection_goes_on_with_the_same_policy_under_another_name_and_with_no_other(tmp_path):
    begin(CollectConfig(tmp_path, policy="runs/a"), weights="1")
    begin(CollectConfig(tmp_path, policy="/home/me/runs/a"), weights="1")
    with pytest.raises(ValueError, match="made with another policy"):
        begin(CollectConfig(tmp_path, policy="runs/a"), weights="2")


def test_what_a_collection_was_made_with_is_told_as_it_would_be_given(tmp_path):
    begin(CollectConfig(tmp_path, families=("pick", "open drawer"), possible=True))
    with pytest.raises(ValueError, match="made with --families pick 'open drawer', no --policy, --possible; use"):
        begin(CollectConfig(tmp_path, policy="runs/a"), weights="1")


@pytest.mark.slow
def test_what_no_expert_can_show_ends_in_one_line(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--episodes", "1", *PICKING, "--pace", "0.005"]) == 2
    told = capsys.readouterr().err
    assert "error: no episode of mode 'demonstration'" in told and "0.005 m an action may be too slow" in told


@pytest.mark.slow
def test_only_the_families_asked_for_are_collected_anywhere_too():
    library = SkillLibrary.load()
    config = CollectConfig(Path("unused"), failures=0.0, anywhere=1.0, families=("close drawer",))
    assert {episode(config, number, library).task.split()[0] for number in range(3)} == {"close"}


def test_replays_follow_a_demonstrations_path_by_chance_worse_and_say_of_which(tmp_path, capsys):
    shown, again = tmp_path / "shown", tmp_path / "again"
    assert main(["--out", str(shown), "--episodes", "2", *PICKING, "--pace", "0.05"]) == 0
    command = ["--out", str(again), "--replay", str(shown), "--workers", "1", "--episodes"]
    assert main([*command, "1", "--seed", "0"]) == 2 and "--seed 0, too" in capsys.readouterr().err
    assert main([*command, "3", "--seed", "1"]) == 0
    teacher, replays = EpisodeDataset([shown]), EpisodeDataset([again])
    order = [list(teacher.info["number"]).index(number) for number in replays.info["demonstration"]]
    assert list(replays.info["demonstration"]) == [0, 1, 0] and set(replays.info["mode"]) == {"replay"}
    for mine, theirs in enumerate(order):
        here, there = replays.frames(mine), teacher.frames(theirs)
        assert replays.episode(mine).task == teacher.episode(theirs).task
        assert (replays.images[here.start] == teacher.images[there.start]).all()
        gaps = replays.states[here, :3] - teacher.states[there, :3]
        assert 0 < np.abs(gaps).max() < 0.12 and (replays.actions[here, 6:] == teacher.actions[there, 6:]).all()


def test_a_replay_without_noise_is_the_demonstration(tmp_path):
    shown = tmp_path / "shown"
    assert (
        main(["--out", str(shown), "--episodes", "1", "--failures", "0", "--families", "pick", "--workers", "1"]) == 0
    )
    again = episode(CollectConfig(tmp_path, replay=shown, noise=0.0, seed=1), 0, SkillLibrary.load())
    there = EpisodeDataset([shown])
    assert again.success and np.abs(again.states[:, :3] - there.states[:, :3]).max() < 0.01


def test_only_demonstrations_are_replayed(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "b"), "--replay", str(tmp_path / "a"), "--seed", "1"]) == 2
    assert "no collection" in capsys.readouterr().err
    assert (
        main(["--out", str(tmp_path / "mixed"), "--episodes", "1", "--families", "open drawer", "--workers", "1"]) == 0
    )
    capsys.readouterr()
    assert main(["--out", str(tmp_path / "b"), "--replay", str(tmp_path / "mixed"), "--seed", "1"]) == 2
    assert "--failures 0" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "c"), "--noise", "0.1"]) == 2
