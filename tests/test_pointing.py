"""Eyes that learn from pixels to point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_policies import BODIES, TEXTS, batch_for, fit_to, make, recorded, seen_by, texts
from torch import nn

from saycan_qt import collect, figures, train
from saycan_qt.data.episodes import Episode, EpisodeDataset, EpisodeWriter
from saycan_qt.evaluation.skills import roll_out, starts_of
from saycan_qt.learning import checkpoint
from saycan_qt.learning.batches import next_events
from saycan_qt.learning.loop import Run
from saycan_qt.networks.hand_eye import places_of_states
from saycan_qt.networks.pointing import PointingConfig, PointingEncoder
from skills.library import SkillLibrary

HEIGHT, WIDTH, SIDE = 32, 40, 4
TINY = PointingConfig((HEIGHT, WIDTH), channels=(8, 16), blocks=1, keys=16, hidden=32)


def squares(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise with a red and a green square, which of the two is asked for, and where that one is, in [-1, 1]."""
    images = torch.randint(0, 120, (count, HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8)
    xs, ys = (torch.randint(0, length - SIDE, (count, 2), generator=generator) for length in (WIDTH, HEIGHT))
    for number in range(count):
        for colour in (0, 1):
            x, y = int(xs[number, colour]), int(ys[number, colour])
            images[number, y : y + SIDE, x : x + SIDE] = 0
            images[number, y : y + SIDE, x : x + SIDE, colour] = 255
    asked = torch.randint(0, 2, (count,), generator=generator)
    where = torch.stack([xs, ys], dim=-1)[torch.arange(count), asked] + SIDE / 2
    return images, nn.functional.one_hot(asked, 16).float(), where / torch.tensor([WIDTH, HEIGHT]) * 2 - 1


def moving_hand(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Images in which a white square moves alone, and where it is, in [-1, 1]."""
    random = np.random.default_rng(0)
    images = np.repeat(random.integers(0, 120, (1, HEIGHT, WIDTH, 3), np.uint8), frames, axis=0)
    corners = np.column_stack([random.integers(0, length - SIDE, frames) for length in (WIDTH, HEIGHT)])
    for image, (x, y) in zip(images, corners, strict=True):
        image[y : y + SIDE, x : x + SIDE] = 255
    return images, (corners + SIDE / 2) / [WIDTH, HEIGHT] * 2 - 1


def test_what_moves_tells_which_state_belongs_to_which_place():
    images, places = moving_hand(400)
    states = np.column_stack([3 + 2 * places[:, 0], -places[:, 1], np.zeros(400)])  # as a camera sees a table
    found = places_of_states({"a": images, "still": images[:1].repeat(400, 0)}, states, np.arange(400) // 20)
    assert found.shape == (2, 3, 3)
    np.testing.assert_allclose(found[0], [[3, 2, 0], [0, 0, -1], [0, 0, 0]], atol=0.25)
    np.testing.assert_allclose(found[1, :, 1:], 0, atol=1e-6)  # what never moves tells nothing


def test_eyes_learn_in_seconds_from_where_a_hand_went_to_point_to_a_pixel_at_what_the_words_name():
    torch.manual_seed(0)
    images, places = moving_hand(100)
    eyes = PointingEncoder(TINY, 1, (0.0, 0.0), (0.5, 0.5), tokens=4, width=32, text=16)
    eyes.calibrate(torch.from_numpy(places_of_states({"a": images}, places / 0.5, np.zeros(100, int))))
    optimizer = torch.optim.AdamW(eyes.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        images, text, where = squares(64, generator)
        optimizer.zero_grad()
        eyes.surprise(eyes.perceive(images)[:, None], text, where[:, None].expand(-1, 3, -1)).mean().backward()
        optimizer.step()
    images, text, where = squares(200, generator)
    with torch.no_grad():
        foretold = eyes.point(eyes.perceive(images)[:, None], text)[1][:, 0, 0, :3] * 0.5
    errors = (foretold - where[:, None]).abs().median(0).values * torch.tensor([WIDTH, HEIGHT]) / 2
    assert errors.max() < 1.0  # [pixels]; who guesses the middle is 8 away


def test_events_are_where_a_gripper_is_told_to_close_or_open_and_the_end():
    data = recorded(BODIES["DROID"], count=2, length=6)
    data.actions[:, 7] = [0.1, 0.2, 0.9, 0.8, 0.0, 0.0] + [1.0] * 6  # of the second episode, nothing; nor between them
    data.actions[3, 7] = 0.45  # not yet: commands are noisy
    closing, opening, end = next_events(data).T.tolist()
    assert closing == [2, 2, 2, -1, -1, -1] + [-1] * 6 and opening == [4, 4, 4, 4, 4, -1] + [-1] * 6
    assert end == [5] * 6 + [11] * 6
    absolute = replace(data.embodiment.action[7], name="gripper.pos", low=0.0, high=6.0, kind="absolute")
    data.embodiment = replace(data.embodiment, action=(*data.embodiment.action[:7], absolute))
    data.actions[:, 7] = 3 + 2 * data.actions[:, 7]  # in whatever unit
    assert next_events(data).T.tolist() == [closing, opening, end]
    data.actions[:, 7] = np.random.default_rng(0).normal(3, 0.05, 12)  # never closed
    assert (next_events(data)[:, :2] == -1).all()
    no_gripper = next_events(recorded(BODIES["SO-101"], count=2, length=3))
    assert (no_gripper[:, :2] == -1).all() and no_gripper[:, 2].tolist() == [2, 2, 2, 5, 5, 5]


def test_what_is_pointed_at_comes_from_successes_and_from_events_to_come_alone():
    policy = make("rt1, pointing")
    policy.prepare("cpu", freeze_trunk=True)
    batch = batch_for(policy)
    counts = (batch.demonstrates[:, None] * batch.to_come)[..., None] > 0
    told = replace(batch, events=torch.where(counts, torch.full((8,), 0.2), torch.full((8,), -0.1)))
    fit_to(policy, [told] * 150)
    with torch.no_grad():
        frames, _, text = batch.now()
        eyes = policy.network.encoder
        foretold = eyes.point(policy.network.maps(frames)[:, -1:], text)[1][:, 0, 0, :3] * eyes.scale
    assert (foretold - 0.2).abs().median() < 0.03


def started(folder, name, *more, algorithm="rt1", data=None):
    """A run of the compact preset, on these or random episodes of a robot."""
    folder.mkdir(exist_ok=True)
    config = train.command([algorithm, "--data", str(folder), "--out", str(folder), "--preset", "compact", *more])
    config = replace(config, steps=2, bfloat16=False, batches=replace(config.batches, batch_size=8))
    data = data or recorded(BODIES[name])
    policy, _ = train.new_policy(config, data)
    policy.texts.table |= texts().table
    return Run(config, data, policy, [])


@pytest.mark.parametrize("name", ["SO-101", "LIBERO", "PushT"])
def test_two_cameras_and_no_state_are_pointed_in_too_and_what_is_loaded_acts_alike(name, tmp_path):
    run, robot = started(tmp_path, name, "--history", "2"), BODIES[name]
    taught = run.policy.network.encoder.errors is not None
    assert taught == (len(robot.state) > 0)
    metrics = run.policy.loss(run.transitions.step_batch(0))[1]
    assert ("pointing" in metrics) == taught
    run.train()
    loaded, histories = checkpoint.load(tmp_path / "checkpoint"), [[seen_by(robot, seed)] for seed in range(3)]
    actions = loaded.act_many(histories, TEXTS)
    np.testing.assert_array_equal(actions, run.policy.act_many(histories, TEXTS))
    np.testing.assert_array_equal(actions, [loaded.act(h, t) for h, t in zip(histories, TEXTS, strict=True)])


def test_who_does_not_teach_to_point_has_nothing_that_is_not_learnt(tmp_path):
    run = started(tmp_path / "a", "SO-101", algorithm="iql")
    assert run.policy.network.encoder.errors is None and run.transitions.events is None
    started(tmp_path / "taught", "SO-101").train()
    went_on = started(tmp_path / "b", "SO-101", "--init", str(tmp_path / "taught/checkpoint"), algorithm="iql")
    for found in (run, went_on, started(tmp_path / "c", "PushT")):  # processes that share a batch would wait for it
        found.loss(found.transitions.step_batch(0))[0].backward()
        left = [key for key, p in found.policy.network.named_parameters() if p.requires_grad and p.grad is None]
        assert not left


def test_who_was_never_taught_is_taught_from_there(tmp_path):
    started(tmp_path / "a", "SO-101", algorithm="iql").train()
    run = started(tmp_path / "b", "SO-101", "--init", str(tmp_path / "a/checkpoint"))
    assert "pointing" in run.policy.loss(run.transitions.step_batch(0))[1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--data", "nowhere"), "nowhere"),
        (("--data", "d", "--episodes", "0"), "--episodes 0"),
        (("--data", "d", "--pictures", "-1"), "--pictures -1"),
        (("--data", "d", "--out", "nowhere/a.png"), "--out nowhere/a.png"),
        (("--data", "d", "--checkpoint", "execution"), "were not taught to point"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(given, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    collect.main(["--out", "d", "--episodes", "2", "--failures", "0", "--workers", "1"])
    capsys.readouterr()
    assert figures.main(["pointing", *given]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said and "\n" not in said


def test_data_of_a_higher_rate_is_brought_to_the_checkpoints(tmp_path, capsys):
    robot = replace(BODIES["DROID"], control_hz=30)
    data = recorded(robot, size=(30, 40))
    with EpisodeWriter(tmp_path / "data", robot) as writer:
        for number in range(4):
            rows = slice(6 * number, 6 * number + 6)
            images = {name: camera[rows] for name, camera in data.cameras.items()}
            writer.add(Episode(images, data.states[rows], data.actions[rows], TEXTS[0], True))
    cache = tmp_path / "cache"
    started(tmp_path / "run", "DROID", data=EpisodeDataset(tmp_path / "data", cache=cache, rate=15)).train()
    command = ["pointing", "--data", str(tmp_path / "data"), "--checkpoint", str(tmp_path / "run/checkpoint")]
    command += ["--cache", str(cache), "--out", str(tmp_path / "a.png")]
    assert figures.main(command) == 2 and "; --rate 15 brings the data to its rate" in capsys.readouterr().err
    assert figures.main([*command, "--rate", "15"]) == 0 and (tmp_path / "a.png").exists()
    assert not (tmp_path / "data" / ".cache").exists()


@pytest.mark.parametrize(("image", "rows"), [((20, 24), 10), ((80, 96), 20), ((240, 320), 30), ((480, 640), 30)])
def test_a_map_has_enough_rows_to_find_things_in_and_few_enough_to_look_through(image, rows):
    with torch.device("meta"):
        eyes = PointingEncoder(PointingConfig(image), 1, (0.0,), (1.0,), tokens=1, width=8, text=4)
        assert eyes.perceive(torch.zeros(1, *image, 3, dtype=torch.uint8)).shape[2] == rows


def test_the_shipped_one_opens_drawers_and_picks_from_images_alone():
    policy = checkpoint.load("execution-pixels")
    assert not any("trunk" in name for name, _ in policy.network.named_parameters())
    library = SkillLibrary.load()
    drawers, things = (
        [found.success for found in roll_out(policy, starts_of(family, 0, range(8), library))]
        for family in ("open drawer", "pick")
    )
    assert sum(drawers) >= 7 and sum(things) >= 4  # 1.00 and 0.76 of 80 in other scenes
