"""Collecting is repeatable, resumable, and refuses to mix two collections."""

from pathlib import Path

import numpy as np

from saycan_qt.collect import CollectConfig, episode, main
from saycan_qt.data.episodes import EpisodeDataset
from skills.library import SkillLibrary


def test_a_collection_continues_where_it_was_and_refuses_other_settings(tmp_path, capsys):
    config = CollectConfig(tmp_path / "data", episodes=2, workers=1, families=("open drawer",))
    assert main(config) == 0
    more = CollectConfig(tmp_path / "data", episodes=4, workers=1, families=("open drawer",))
    assert main(more) == 0
    dataset = EpisodeDataset(tmp_path / "data")
    assert dataset.num_episodes == 4
    fresh = episode(more, 3, SkillLibrary.load())
    assert (dataset.images[dataset.frames(3)] == fresh.images).all()
    assert np.allclose(dataset.actions[dataset.frames(3)], fresh.actions)
    assert main(CollectConfig(tmp_path / "data", episodes=4, workers=1, seed=1, families=("open drawer",))) == 2
    assert "--seed 0" in capsys.readouterr().err


def test_failures_fail_and_demonstrations_succeed():
    library = SkillLibrary.load()
    for number in range(6):
        found = episode(CollectConfig(Path("unused"), failures=0.5), number, library)
        assert found.success == (found.info["mode"] == "demonstration")
        assert len(found.images) == len(found.actions) <= 45
