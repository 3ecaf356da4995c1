"""What holds for every robot: any number of cameras, state numbers and action dimensions, with an end or without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_policies import BODIES, KITCHEN, TEXTS, recorded, seen_by, texts

from saycan_qt import train
from saycan_qt.data.images import fit
from saycan_qt.learning import checkpoint
from saycan_qt.learning.algorithms import ALGORITHMS
from saycan_qt.learning.algorithms.policy import Judge
from saycan_qt.learning.batches import terminal_scale
from saycan_qt.learning.loop import Run
from saycan_qt.learning.start import new_tokenizer, state_config, stretched
from saycan_qt.networks.pointing import PointingConfig
from saycan_qt.networks.tokens import ActionTokenizer
from skills.embodiment import ActionDimension
from skills.types import Observation

every_body = pytest.mark.parametrize("name", BODIES)


def started(folder, name, algorithm="rt1", *more, **dataset):
    """A run on random episodes of a robot, before its first step."""
    robot = BODIES[name]
    command = [algorithm, "--data", str(folder), "--out", str(folder), "--debug", "--steps", "2", *more]
    config, data = train.debug_config(train.command(command)), recorded(robot, **dataset)
    policy, _ = train.new_policy(config, data)
    policy.texts.table |= texts().table
    return Run(config, data, policy, [])


ALL = [  # the plain run has every robot and every algorithm, not each with each
    pytest.param(name, algorithm, marks=[] if algorithm == "q-transformer" or name == "PushT" else pytest.mark.slow)
    for name in BODIES
    for algorithm in ALGORITHMS
]


@pytest.mark.parametrize("name, algorithm", ALL)
def test_every_algorithm_trains_acts_within_bounds_and_acts_alike_after_loading(name, algorithm, tmp_path):
    run, robot = started(tmp_path, name, algorithm), BODIES[name]
    run.train()
    loaded = checkpoint.load(tmp_path / "checkpoint")
    histories = [[seen_by(robot, seed)] for seed in range(3)]
    actions = loaded.act_many(histories, TEXTS)
    assert actions.shape == (3, len(robot.action)) and ((actions >= robot.low) & (actions <= robot.high)).all()
    np.testing.assert_array_equal(actions, [run.policy.act(h, t) for h, t in zip(histories, TEXTS, strict=True)])
    seen = run.policy.network_config.history
    assert loaded.embodiment == replace(robot, history=seen) == run.policy.embodiment
    if isinstance(run.policy, Judge):
        values = loaded.value(histories[0], TEXTS)
        np.testing.assert_array_equal(values, run.policy.value(histories[0], TEXTS))
        assert ((values > 0) & (values < 1)).all()


@every_body
def test_losses_reach_every_weight(name, tmp_path):
    run = started(tmp_path, name)
    run.loss(run.transitions.step_batch(0))[0].backward()
    assert not [key for key, p in run.policy.network.named_parameters() if p.requires_grad and p.grad is None]


def test_a_window_holds_each_cameras_images_at_each_time_and_moves_by_one_time(tmp_path):
    run = started(tmp_path, "LIBERO", "q-transformer")
    data, rows = run.dataset, np.array([2, 5, 8])
    batch = run.transitions.batch(rows, np.random.default_rng(0), augment=False)
    for frames, at in ((batch.now()[0], rows), (batch.next()[0], np.array([3, 5, 9]))):
        for number, images in enumerate(data.cameras.values()):
            np.testing.assert_array_equal(frames[:, number], images[at])
    assert batch.next()[0].shape == (3, 2, 20, 24, 3)


@pytest.mark.parametrize("name", ["rt1", "decision-transformer"])
def test_who_clones_is_shown_nothing_that_comes_after(name, tmp_path):
    run = started(tmp_path, "LIBERO", name, "--stretch", "1")
    rows, seen = np.array([2, 5, 8]), run.policy.network_config.history
    batch = run.transitions.batch(rows, np.random.default_rng(0), augment=False)
    assert batch.frames.shape[1] == 2 * seen and batch.states.shape[1] == seen
    np.testing.assert_array_equal(batch.now()[0][:, -2], run.dataset.cameras["a"][rows])


class Brightness(torch.nn.Module):
    """An eye whose two tokens tell how bright an image is."""

    def perceive(self, images):
        return images.float().mean(dim=(1, 2))

    def forward(self, frames, states, text):
        return frames.mean(dim=-1)[..., None, None].expand(-1, -1, 2, 32)


def test_every_camera_and_every_moment_of_a_history_is_seen(tmp_path):
    """None of them changes the tokens of another."""
    run = started(tmp_path, "SO-101")
    network = run.policy.network_type(replace(run.policy.network_config, history=3), ["behavior"]).eval()
    encoded: list[torch.Tensor] = []
    network.encoder = Brightness()
    network.layers[0].register_forward_hook(lambda layer, given, found: encoded.append(given[0].detach()))
    frames, states, text = torch.zeros(1, 6, 20, 24, 3, dtype=torch.uint8), torch.zeros(1, 3, 6), torch.zeros(1, 384)
    places = [slice(1 + 5 * time + 2 * camera, 3 + 5 * time + 2 * camera) for time in range(3) for camera in range(2)]
    for changed in range(7):
        seen = frames.clone()
        seen[:, changed : changed + 1] = 9  # the last one: none
        network.encode(seen, states, text)
    for number, tokens in enumerate(encoded[:-1]):
        differs = (tokens != encoded[-1]).any(dim=(0, 2))
        expected = torch.zeros_like(differs)
        expected[places[number]] = True
        assert torch.equal(differs, expected)


def test_images_of_the_robots_own_size_are_resized_as_those_it_was_trained_on(tmp_path):
    policy, seen = started(tmp_path, "SO-101").policy, seen_by(BODIES["SO-101"])
    small = Observation({name: fit(image, 20, 24) for name, image in seen.images.items()}, seen.state)
    frames = [policy.observe([[observation]])[0] for observation in (seen, small)]
    assert torch.equal(*frames)
    np.testing.assert_array_equal(policy.act([seen], TEXTS[0]), policy.act([small], TEXTS[0]))


def test_images_with_more_pixels_than_those_it_was_trained_on_are_resized(tmp_path):
    policy, seen = started(tmp_path, "SO-101").policy, seen_by(BODIES["SO-101"])
    large = {name: image.repeat(5, axis=0).repeat(5, axis=1) for name, image in seen.images.items()}
    frames = [policy.observe([[Observation(images, seen.state)]])[0].float() for images in (seen.images, large)]
    assert (frames[0] - frames[1]).abs().max() <= 1  # rounded once more
    square = Observation(large | {"wrist": np.zeros((300, 300, 3), np.uint8)}, seen.state)
    with pytest.raises(ValueError, match=r"image of wrist is \(300, 300, 3\)"):
        policy.act([square], TEXTS[0])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda o: Observation({"front": o.images["front"]}, o.state), "camera 'wrist'; the observation has front"),
        (lambda o: Observation({}, o.state), "camera 'front'; the observation has none"),
        (lambda o: Observation(o.images["front"], o.state), "camera 'front'; the observation has one without a name"),
        (lambda o: Observation(o.images, o.state[:4]), r"\(4,\); this policy wants 6 numbers \(joint_0, joint_1"),
        (
            lambda o: Observation(o.images | {"wrist": np.zeros((9, 9, 3), np.uint8)}, o.state),
            r"image of wrist is \(9, 9, 3\) uint8; this policy wants \(20, 24, 3\) or \(30, 40, 3\) uint8",
        ),
    ],
)
def test_what_the_robot_does_not_observe_is_named_in_one_line(wrong, said, tmp_path):
    policy = started(tmp_path, "SO-101").policy
    with pytest.raises(ValueError, match=said) as refusal:
        policy.act([wrong(seen_by(BODIES["SO-101"]))], TEXTS[0])
    assert "\n" not in str(refusal.value)


def test_a_camera_without_a_name_stands_for_the_only_one(tmp_path):
    policy, seen = started(tmp_path, "PushT").policy, seen_by(BODIES["PushT"])
    np.testing.assert_array_equal(
        policy.act([Observation(seen.image, seen.state)], TEXTS[0]), policy.act([seen], TEXTS[0])
    )


def test_the_size_of_the_state_comes_from_the_data_and_stays_with_the_network(tmp_path):
    data = recorded(BODIES["OGBench"])
    data.states = data.states * 50 + 200
    data.states[:, 3] = 7
    state = state_config(data)
    np.testing.assert_allclose(state.mean, data.states.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.delete(state.scale, 3), np.delete(data.states.std(axis=0), 3), rtol=1e-4)
    assert state.scale[3] == 1 and not state.position and state.yaw is None
    kitchen = state_config(recorded(KITCHEN))
    assert kitchen.scale == (0.3, 0.3, 0.3, 1.0, 1.0, 1.0, 0.5, 0.5) and (kitchen.position, kitchen.yaw) == (
        (0, 1, 2),
        5,
    )


def test_bounds_of_the_data_travel_with_the_policy(tmp_path):
    run = started(tmp_path, "PushT", "rt1", "--bounds", "data")
    run.train()
    robot = checkpoint.load(tmp_path / "checkpoint").embodiment
    assert (robot.low > 0).all() and (robot.high < 512).all() and robot.cameras == BODIES["PushT"].cameras


def test_a_range_that_single_outliers_stretch_is_told_with_the_option(tmp_path):
    actions = recorded(BODIES["PushT"], length=1000).actions
    actions[0], actions[1] = [0, 0], [512, 512]
    assert stretched(actions, BODIES["PushT"]) == []
    actions[2:, 1] = 250 + actions[2:, 1] / 100
    assert stretched(actions, BODIES["PushT"]) == ["y"]


def test_an_action_that_hardly_moves_gets_a_range_that_bins_can_divide_and_is_told(tmp_path, caplog):
    robot = BODIES["SO-101"]
    held = replace(robot.action[1], low=179.999, high=180.001)
    config = train.command(["rt1", "--data", str(tmp_path), "--out", str(tmp_path)])
    data = recorded(replace(robot, action=(robot.action[0], held, *robot.action[2:])))
    edges = new_tokenizer(config, 256, data.embodiment, data.actions).edges
    assert edges[1, 0] < 179.9 and edges[1, -1] > 180.1 and edges[0, 0] == robot.low[0]
    assert caplog.messages == ["the actions hardly move in joint_1; --bounds FILE gives them a range"]
    narrow = replace(robot.action[1], low=2000.0, high=2000.15)  # for which float32 has numbers
    data = recorded(replace(robot, action=(robot.action[0], narrow, *robot.action[2:])))
    edges = new_tokenizer(config, 256, data.embodiment, data.actions).edges
    assert edges[1, [0, -1]].tolist() == pytest.approx([2000.0, 2000.15], rel=1e-7)
    with pytest.raises(ValueError, match="edges must rise"):
        ActionTokenizer(torch.tensor([[0.0, float("nan"), 1.0]]), None)
    data = recorded(replace(robot, action=(robot.action[0], held, *robot.action[2:])))
    with pytest.raises(ValueError, match=r"of action number 1, 179\.999 to 180\.001, do not"):
        ActionTokenizer.uniform(data.embodiment)


def test_going_on_with_actions_that_a_checkpoints_bins_do_not_reach_is_told(tmp_path, caplog):
    started(tmp_path, "PushT").train()
    config = train.command(["finetune", "--init", str(tmp_path / "checkpoint"), "--data", ".", "--out", str(tmp_path)])
    train.new_policy(config, data := recorded(BODIES["PushT"]))
    assert not [message for message in caplog.messages if "beyond" in message]
    data.actions *= 3
    train.new_policy(config, data)
    assert "values lie beyond the range of" in caplog.text and "without --init, --bounds data" in caplog.text


def test_only_changes_get_noise_where_a_skill_ends_in_their_own_size():
    sizes = [terminal_scale(dimension) for dimension in KITCHEN.action[:6]]
    assert sizes == [1, 1, 1, 6, 6, 6] and terminal_scale(ActionDimension("dx", -1, 1, "", "delta")) == 12
    assert terminal_scale(ActionDimension("turn", -10, 10, "deg", "delta")) == 120


@pytest.mark.parametrize("algorithm", ["rt1", "q-transformer"])
def test_terminating_motion_is_left_alone_where_it_is_absolute(algorithm, tmp_path):
    for name, moves in (("DROID", False), ("LIBERO", True)):
        (tmp_path / name).mkdir()
        batches = started(tmp_path / name, name, algorithm).transitions
        batches.dataset.actions[:, batches.policy.tokenizer.terminate] = 1
        acted = batches.actions(np.arange(6), np.random.default_rng(0)).numpy()
        assert (acted != batches.dataset.actions[:6]).any() == moves


def test_the_preset_follows_the_robot_and_the_small_one_says_what_to_take_instead(tmp_path):
    chosen = {name: train.preset_for(None, body) for name, body in (BODIES | {"kitchen": KITCHEN}).items()}
    assert chosen.pop("kitchen") == "small" and set(chosen.values()) == {"compact"}
    two = replace(KITCHEN, cameras=(*KITCHEN.cameras, *BODIES["PushT"].cameras))
    for body in (BODIES["PushT"], BODIES["OGBench"], two):
        with pytest.raises(ValueError, match=r"small preset wants one camera.*--preset compact") as refusal:
            train.preset_for("small", body)
        assert "\n" not in str(refusal.value)


def test_the_compact_preset_sees_every_camera_in_the_datas_size(tmp_path):
    config = train.command(["rt1", "--data", str(tmp_path), "--out", str(tmp_path)])
    network = train.new_policy(config, recorded(BODIES["DROID"]))[0].network_config
    assert isinstance(network.encoder, PointingConfig) and network.encoder.image == (20, 24)
    assert (network.cameras, network.dims, len(network.state)) == (3, 8, 8)
    alone = train.new_policy(config, recorded(BODIES["OGBench"]))[0].network_config
    assert alone.encoder is None and alone.state_token and alone.text_token


def test_a_policy_goes_on_with_data_of_its_own_robot_alone(tmp_path):
    started(tmp_path, "SO-101").train()
    config = train.command(["finetune", "--init", str(tmp_path / "checkpoint"), "--data", ".", "--out", str(tmp_path)])
    policy, _ = train.new_policy(config, recorded(BODIES["SO-101"]))
    assert policy.embodiment == BODIES["SO-101"]
    with pytest.raises(ValueError, match="another robot than the data: the policy has 6 action") as refusal:
        train.new_policy(config, recorded(BODIES["ALOHA"]))
    assert "\n" not in str(refusal.value)
