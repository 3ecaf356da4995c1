"""From a dataset of any robot, as it is, to a policy that acts for it: no mapping, no option that says what it is."""

import numpy as np
import pytest
from test_data_rlds import save
from test_data_robots import DIMENSIONS, ROBOTS, bridge, made, some

from saycan_qt import train
from saycan_qt.data.episodes import EpisodeDataset
from saycan_qt.learning import checkpoint
from skills.types import blank


@pytest.mark.parametrize("algorithm", [pytest.param("rt1", marks=pytest.mark.slow), "q-transformer"])
@pytest.mark.parametrize("name", [*ROBOTS, "bridge"])
def test_a_robots_own_dataset_trains_a_policy_that_acts_for_it(tmp_path, name, algorithm):
    if name == "bridge":
        root = save(tmp_path / name, [bridge(number) for number in range(3)])
    else:
        names, state_names, cameras, fps, _ = ROBOTS[name]
        root = made(tmp_path / name, some(DIMENSIONS[name]), cameras, fps, names, state_names)
    out = tmp_path / "run"
    train.train(train.command([algorithm, "--data", str(root), "--out", str(out), "--debug", "--steps", "2"]))
    policy, told = checkpoint.load(out / "checkpoint"), EpisodeDataset(root).embodiment
    robot = policy.embodiment
    action = policy.act([blank(robot)], "pick up the cube")
    assert action.shape == (len(told.action),) and ((action >= robot.low) & (action <= robot.high)).all()
    assert (robot.cameras, robot.state, robot.control_hz) == (told.cameras, told.state, told.control_hz)
    assert np.array_equal(robot.clipped(action), action) and not robot.misfit(told.without_terminate())
