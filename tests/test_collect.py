"""Collecting is repeatable, resumable, and refuses to mix two collections."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from saycan_qt.collect import CollectConfig, episode, episodes, load_actor, main
from saycan_qt.data.episodes import DatasetError, EpisodeDataset, EpisodeWriter
from saycan_qt.data.scenes import HISTORY, SceneDataset
from saycan_qt.kitchen.practice.affordances import labelled_scene
from skills.library import SkillLibrary


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


def test_failures_fail_and_demonstrations_succeed():
    library = SkillLibrary.load()
    for number in range(6):
        found = episode(CollectConfig(Path("unused"), failures=0.5), number, library)
        assert found.success == (found.info["mode"] == "demonstration")
        assert len(found.images) == len(found.actions) <= 45


def test_a_skill_is_demonstrated_in_scenes_made_for_others_too():
    library, config = SkillLibrary.load(), CollectConfig(Path("unused"), failures=0.0, anywhere=1.0)
    found = [episode(config, number, library) for number in range(8)]
    assert all(e.success and e.info["mode"] == "demonstration" for e in found)
    assert len({e.task for e in found}) > 3


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


def test_only_the_families_asked_for_are_collected_anywhere_too():
    library = SkillLibrary.load()
    config = CollectConfig(Path("unused"), failures=0.0, anywhere=1.0, families=("close drawer",))
    assert {episode(config, number, library).task.split()[0] for number in range(3)} == {"close"}
