"""Q-values over the scene: drawn where they belong, and higher where a robot can reach."""

import numpy as np
import pytest
import torch

from saycan_qt import figures
from saycan_qt.evaluation.value_map import swept
from saycan_qt.kitchen.camera import HEAD
from saycan_qt.kitchen.robot import KitchenRobot
from saycan_qt.kitchen.tasks import practice
from saycan_qt.kitchen.world import World
from saycan_qt.learning import checkpoint
from saycan_qt.learning.algorithms.q_transformer import STRIP
from skills.library import Skill, SkillLibrary
from skills.types import Mapper

LIBRARY = SkillLibrary.load()


def test_what_a_ray_hits_is_projected_to_the_ray_s_own_pixel():
    points = np.array(HEAD.position) + HEAD.rays * np.random.default_rng(0).uniform(0.3, 2, (len(HEAD.rays), 1))
    rows, columns = np.divmod(np.arange(len(points)), HEAD.width)
    assert np.allclose(HEAD.project(points), np.column_stack([columns, rows]) + 0.5)


@pytest.mark.slow
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
    for wrong in (["--threads", "0"], ["--spacing", "0"], ["--spacing", "nan"]):
        assert figures.main(["values", *wrong]) == 2 and capsys.readouterr().err.startswith(f"error: {' '.join(wrong)}")


def test_what_is_imagined_of_a_skill_is_drawn_over_the_camera_and_moves_nothing():
    robot = KitchenRobot(0)
    near = [name for name in robot.world.names if robot.world.where(name) == robot.world.place]
    before, looks = robot.world.data.qpos.copy(), []
    draw = robot.imagine(LIBRARY[f"pick {near[0]}"])

    def value(seen):
        looks.append(seen.images["head"])
        return 0.5

    picture = draw(value)
    assert np.array_equal(robot.world.data.qpos, before) and picture.shape == robot.view("head").shape
    assert len(looks) > 40 and len({look.tobytes() for look in looks}) > 0.8 * len(looks)
    assert (picture == (1, 145, 231)).all(-1).sum() == 0 and (picture == (33, 145, 140)).all(-1).sum() > 500
    for name in ("open top drawer", "pick unicorn"):
        skill = LIBRARY["open top drawer"] if name in LIBRARY else Skill(name, "pick", arguments={"object": "unicorn"})
        assert robot.imagine(skill) is None


def test_a_preview_shows_q_over_the_bins_of_each_dimension_and_which_bins_are_chosen():
    policy, skill = checkpoint.load("affordance"), LIBRARY["pick coke can"]
    assert isinstance(policy, Mapper)
    history = [World(practice(np.random.default_rng(1), skill)).observe()]
    picture = policy.value_maps(history, skill.name)["action"]
    bins, terminate = policy.network_config.bins, policy.embodiment.terminate
    assert picture.shape == (STRIP * len(policy.embodiment.action), 2 * bins, 3) and picture.dtype == np.uint8
    chosen = [int(np.flatnonzero((row == 255).all(-1))[0]) // 2 for row in picture[STRIP // 2 :: STRIP]]
    chosen[terminate] *= bins - 1  # its two bins are half the picture each
    assert np.array_equal(policy.tokenizer.decode(torch.tensor([chosen]))[0], policy.act(history, skill.name))
    first = np.where((picture[0] == 255).all(-1), 0, picture[0, :, 1])  # green grows with Q
    assert first.max() > first.min() + 50
