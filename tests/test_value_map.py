"""Q-values over the scene: drawn where they belong, and higher where a robot can reach."""

import numpy as np

from saycan_qt import figures
from saycan_qt.evaluation.value_map import swept
from saycan_qt.kitchen.camera import HEAD
from saycan_qt.kitchen.tasks import practice
from saycan_qt.learning import checkpoint
from skills.library import SkillLibrary

LIBRARY = SkillLibrary.load()


def test_what_a_ray_hits_is_projected_to_the_ray_s_own_pixel():
    points = np.array(HEAD.position) + HEAD.rays * np.random.default_rng(0).uniform(0.3, 2, (len(HEAD.rays), 1))
    rows, columns = np.divmod(np.arange(len(points)), HEAD.width)
    assert np.allclose(HEAD.project(points), np.column_stack([columns, rows]) + 0.5)


def test_an_object_within_reach_is_worth_more_than_one_beyond_it():
    skill = LIBRARY["pick coke can"]
    scene = practice(np.random.default_rng(1), skill)
    found = swept(checkpoint.load("affordance"), scene, skill, 0.09)
    assert found.values[found.possible].mean() > found.values[~found.possible].mean() + 0.2
    near, *_, far = found.bands()
    assert near[1] > far[1] and near[3] == 1.0 > far[3]


def test_the_picture_is_drawn_and_skills_without_an_object_are_refused(tmp_path, capsys):
    out = tmp_path / "values.png"
    options = ["--skill", "move apple near 7up can", "--spacing", "0.2", "--threads", "1", "--out", str(out)]
    assert figures.main(["values", *options]) == 0
    assert out.stat().st_size > 10_000 and "possible" in capsys.readouterr().out
    assert figures.main(["values", "--skill", "open top drawer"]) == 2
    assert "pick or a move near" in capsys.readouterr().err
    assert figures.main(["values", "--skill", "pick aple"]) == 2
    assert "pick apple" in capsys.readouterr().err
