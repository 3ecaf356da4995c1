"""Training runs: repeatable, resumable, exported; and the perception that comes before them."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_policies import KITCHEN, TEXTS, make, save_perception

from planners.weights import WeightsError, sentence_model_path
from saycan_qt import figures, pretrain, train
from saycan_qt.data.episodes import Episode, EpisodeDataset, EpisodeWriter
from saycan_qt.learning import checkpoint, start
from saycan_qt.learning.batches import BatchConfig, Shuffle, Transitions
from saycan_qt.networks.keypoints import Grounding
from skills.library import SkillLibrary


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 random episodes of 5 to 8 steps; half succeed."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("learning") / "data"
    with EpisodeWriter(folder, image_size=(80, 96)) as writer:
        for number in range(24):
            steps = int(rng.integers(5, 9))
            writer.add(
                Episode(
                    images=rng.integers(0, 255, (steps, 80, 96, 3), dtype=np.uint8),
                    states=rng.normal(0, 0.3, (steps, 8)).astype(np.float32),
                    actions=rng.uniform(KITCHEN.low, KITCHEN.high, (steps, 8)).astype(np.float32),
                    task=TEXTS[number % 3],
                    success=number % 2 == 0 or number == 19,
                )
            )
    return folder


@pytest.fixture(scope="module")
def perception(tmp_path_factory):
    return save_perception(tmp_path_factory.mktemp("learning") / "perception")


def run_command(algorithm, data, perception, out, *more):
    flags = ["--data", data, "--perception", perception, "--out", out, "--debug", *more]
    return [algorithm, *map(str, flags)]


def curve(out):
    """The metrics of a run, without the clock's."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_second")} for row in rows]


def weights(out):
    return checkpoint.read(out / "checkpoint")[1]


def test_a_killed_run_continues_as_if_nothing_had_happened(data, perception, tmp_path):
    settings = ("--relabel", "0.5", "--behavior-weight", "1.0")
    train.train(train.command(run_command("q-transformer", data, perception, tmp_path / "whole", *settings)))
    killed = run_command("q-transformer", data, perception, tmp_path / "killed", *settings)
    for wait in np.random.default_rng().uniform(0, 0.3, 2):  # [s] after something new lies on the disk
        manifest, before = tmp_path / "killed" / "state" / "manifest.json", b""
        if manifest.exists():
            before = manifest.read_bytes()
        process = subprocess.Popen([sys.executable, "-m", "saycan_qt.train", *killed], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
            with contextlib.suppress(OSError):
                if manifest.read_bytes() != before:
                    break
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0)
    train.train(train.command(killed))
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    whole, continued = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[key], continued[key]) for key in whole)


def test_two_processes_train_as_one_does(data, perception, tmp_path):
    """Half a batch each, gradients averaged: the same weights but for rounding."""
    settings = ("--relabel", "0.5", "--behavior-weight", "1.0", "--steps", "6")
    train.train(train.command(run_command("q-transformer", data, perception, tmp_path / "one", *settings)))
    command = run_command("q-transformer", data, perception, tmp_path / "two", *settings)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "saycan_qt.train"]
    finished = subprocess.run([sys.executable, *torchrun, *command], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key in one:
        if key.endswith(
            "qkv.bias"
        ):  # a key's bias changes no attention: its gradient is rounding, which Adam scales up
            one[key][32:64] = two[key][32:64] = 0
        torch.testing.assert_close(two[key], one[key], atol=1e-6, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    losses = [[row["loss"] for row in curve(tmp_path / run) if "loss" in row] for run in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=2e-6) and len(losses[0]) == 3


def test_finetuning_goes_on_with_a_checkpoint_its_settings_and_its_bins(data, perception, tmp_path):
    before = ("--steps", "4", "--bins", "adaptive", "--discount", "0.9")
    train.train(train.command(run_command("q-transformer", data, perception, tmp_path / "old", *before)))
    init = ("--init", tmp_path / "old" / "checkpoint")
    config = train.debug_config(train.command(run_command("finetune", data, perception, tmp_path / "new", *init)))
    policy, _ = train.new_policy(config, EpisodeDataset(data))
    tensors = policy.describe(sorted(TEXTS))[1]
    assert policy.config.discount == 0.9
    assert all(torch.equal(tensors[key], value) for key, value in weights(tmp_path / "old").items())
    train.train(config)
    assert not torch.equal(weights(tmp_path / "new")["network.outputs.q.bias"], tensors["network.outputs.q.bias"])


def test_finetuning_without_a_checkpoint_says_what_to_give(data, perception, tmp_path):
    with pytest.raises(ValueError, match="--init"):
        train.train(train.command(run_command("finetune", data, perception, tmp_path / "new")))


def test_bounds_come_from_a_file_and_a_wrong_one_is_named(data, perception, tmp_path):
    (tmp_path / "good.yaml").write_text("low: [-2, -2, -2, -1, -1, -1, 0, 0]\nhigh: [2, 2, 2, 1, 1, 1, 1, 1]\n")
    (tmp_path / "bad.yaml").write_text("low: [0, 0]\nhigh: [1, 1]\n")
    run = (data, perception, tmp_path / "run", "--steps", "2", "--bounds")
    train.train(train.command(run_command("rt1", *run, tmp_path / "good.yaml")))
    assert weights(tmp_path / "run")["action_edges"][:, -1].tolist() == [2, 2, 2, 1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"bad\.yaml.*8 numbers"):
        config = train.command(run_command("rt1", *run, tmp_path / "bad.yaml"))
        start.new_tokenizer(config, 256, KITCHEN, np.zeros((9, 8)))


def test_another_preset_takes_the_size_of_the_data_and_any_sentence_model(data, tmp_path):
    names = ("--preset", "compact", "--text-model", str(sentence_model_path()))
    config = train.command(["rt1", "--data", str(data), "--out", str(tmp_path), *names])
    network = train.new_policy(config, EpisodeDataset(data))[0].network_config
    assert network.encoder.image == (80, 96) and network.text_size == 384 and network.text_model == names[-1]
    with pytest.raises(WeightsError, match="no sentence model 'nowhere'"):
        train.new_policy(replace(config, text_model="nowhere"), EpisodeDataset(data))


def test_images_of_another_size_are_refused_with_what_to_write(data, perception, tmp_path):
    dataset = EpisodeDataset(data)
    dataset.images = np.zeros((dataset.num_frames, 64, 64, 3), np.uint8)
    dataset.cameras = {"head": dataset.images}
    with pytest.raises(ValueError, match=r"64 pixels high.*image_size: \[80, 96\]"):
        train.new_policy(train.command(run_command("rt1", data, perception, tmp_path)), dataset)


def test_the_best_checkpoint_is_kept_when_the_held_out_loss_rises(data, perception, tmp_path):
    high = ("--learning-rate", "0.3", "--keep", "best")
    train.train(train.command(run_command("rt1", data, perception, tmp_path / "run", *high)))
    rows = {row["step"]: row["held_out_loss"] for row in curve(tmp_path / "run") if "held_out_loss" in row}
    kept = json.loads((tmp_path / "run" / "checkpoint" / "provenance.json").read_text())["step"]
    assert rows[kept] == min(rows.values()) and len(rows) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_a_compiled_loss_is_the_same_loss(data, perception, tmp_path):
    for name in ("plain", "compiled"):
        more = ("--steps", "2", *(["--compile"] if name == "compiled" else []))
        train.train(train.command(run_command("rt1", data, perception, tmp_path / name, *more)))
    plain, compiled = (
        [row["loss"] for row in curve(tmp_path / name) if "loss" in row] for name in ("plain", "compiled")
    )
    assert plain == pytest.approx(compiled, abs=1e-5)


def test_a_picture_shows_every_number_of_a_run(data, perception, tmp_path, capsys):
    train.train(train.command(run_command("rt1", data, perception, tmp_path / "run", "--steps", "4")))
    assert figures.main(["training", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "training.png").stat().st_size > 10_000
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert figures.main(["training", str(tmp_path)]) == 2 and "metrics.jsonl" in capsys.readouterr().err


def test_a_run_is_not_continued_under_other_settings(data, perception, tmp_path):
    train.train(train.command(run_command("rt1", data, perception, tmp_path / "run", "--steps", "2")))
    with pytest.raises(ValueError, match="learning_rate"):
        train.train(train.command(run_command("rt1", data, perception, tmp_path / "run", "--learning-rate", "0.1")))


def test_a_q_transformer_starts_from_a_clone(data, perception, tmp_path):
    """Every weight but the Q-head's, which the clone has not."""
    train.train(train.command(run_command("rt1", data, perception, tmp_path / "clone", "--steps", "4")))
    init = ("--init", tmp_path / "clone" / "checkpoint", "--behavior-weight", "1.0")
    config = train.command(run_command("q-transformer", data, perception, tmp_path / "q", *init))
    network, clone = (
        train.new_policy(train.debug_config(config), EpisodeDataset(data))[0].network,
        weights(tmp_path / "clone"),
    )
    own = network.state_dict()
    same = {key for key in own if f"network.{key}" in clone and torch.equal(own[key], clone[f"network.{key}"])}
    assert own.keys() - same == {"outputs.q.weight", "outputs.q.bias"}


def test_an_exported_run_judges_and_acts_without_a_sentence_model(data, perception, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "planners.weights", None)
    train.train(train.command(run_command("q-transformer", data, perception, tmp_path / "run", "--steps", "2")))
    policy = checkpoint.load(tmp_path / "run" / "checkpoint")
    dataset = EpisodeDataset(data)
    policy.observe = lambda histories: (
        torch.zeros(1, 1, 27, policy.network_config.encoder.outputs),
        torch.zeros(1, 1, 8),
    )
    assert policy.value([None], dataset.tasks).shape == (3,) and policy.act([None], dataset.tasks[0]).shape == (8,)


def transitions(data, kind="q-transformer", **settings):
    dataset = EpisodeDataset(data)
    frames = np.zeros((dataset.num_frames, 27, 14), np.float16)
    return dataset, Transitions(BatchConfig(batch_size=8, **settings), dataset, [frames], make(kind))


def test_reward_and_return_to_go_come_from_the_last_step_of_a_success(data):
    dataset, batches = transitions(data)
    start, end = dataset.episode_start[0], dataset.episode_start[1]
    batch = batches.batch(np.arange(start, end), np.random.default_rng(0), augment=False)
    steps = end - start
    assert batch.reward.tolist() == batch.terminated.tolist() == [0.0] * (steps - 1) + [1.0]
    np.testing.assert_allclose(batch.returns, 0.98 ** np.arange(steps - 1, -1, -1), rtol=1e-6)
    failed = batches.batch(np.arange(*dataset.episode_start[1:3]), np.random.default_rng(0), augment=False)
    assert failed.reward.sum() == failed.returns.sum() == 0 and failed.terminated[-1] == 1


def test_a_relabelled_transition_has_another_instruction_and_no_reward(data):
    dataset, batches = transitions(data, relabel=1.0)
    rows = np.arange(*dataset.episode_start[0:2])
    batch = batches.batch(rows, np.random.default_rng(0), augment=False)
    own = batches.text[dataset.episode_task[0]]
    assert batch.reward.sum() == batch.returns.sum() == batch.demonstrates.sum() == 0
    assert not any(torch.equal(text, own) for text in batch.text)


def test_recorded_rewards_give_returns_to_go_and_relabelling_leaves_their_costs(data):
    dataset, batches = transitions(data, reward="dataset")
    steps = np.arange(*dataset.episode_start[0:2])
    dataset.rewards = np.full(dataset.num_frames, -0.1, np.float32)
    dataset.rewards[steps[-1]] = 1.0
    batch = batches.batch(steps, np.random.default_rng(0), augment=False)
    assert batch.reward.tolist() == pytest.approx([-0.1] * (len(steps) - 1) + [1.0])
    assert float(batch.returns[-3]) == pytest.approx(-0.1 - 0.98 * 0.1 + 0.98**2)
    batches.config = replace(batches.config, relabel=1.0)
    batch = batches.batch(steps, np.random.default_rng(0), augment=False)
    assert batch.reward[-1] == 0 and float(batch.returns[-3]) == pytest.approx(-0.1 - 0.98 * 0.1)


@pytest.mark.parametrize("count", [1, 2, 7, 1000, 4097])
def test_a_shuffle_is_a_permutation_that_mixes(count):
    order = Shuffle(count, [3, 1])(np.arange(count))
    assert sorted(order) == list(range(count))
    if count >= 1000:
        assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.1
        assert not np.array_equal(order, Shuffle(count, [3, 2])(np.arange(count)))


def test_an_epoch_passes_every_training_transition_once_and_none_held_out(data):
    dataset, batches = transitions(data)
    count = len(batches.train)
    rows = np.concatenate([batches.rows(step) for step in range(count // 8 + 1)])
    assert sorted(rows[:count]) == sorted(batches.train[np.arange(count)])
    assert not set(rows) & set(range(*dataset.episode_start[19:21])) and len(batches.validation) > 0


def test_a_share_of_transitions_can_come_from_where_episodes_start(data):
    dataset, batches = transitions(data, starts=1.0)
    states = batches.step_batch(0).states[:, 0].numpy()
    starts = dataset.states[dataset.episode_start[dataset.frame_episode[batches.rows(0)]]]
    np.testing.assert_array_equal(states, starts)


def test_cloning_uses_successful_episodes_alone(data):
    dataset, batches = transitions(data, kind="rt1")
    assert dataset.success[dataset.frame_episode[batches.train[np.arange(len(batches.train))]]].all()


def fake_frames(count, seed):
    """Two squares, a red and a green one; where one is in the image tells its position."""
    rng = np.random.default_rng(seed)
    frames = {
        "images": np.zeros((count, 40, 48, 3), np.uint8),
        "heatmaps": np.zeros((count, 2, 10, 12), np.uint8),
        "positions": np.zeros((count, 2, 3), np.float32),
        "headings": np.zeros((count, 2, 2), np.float32),
        "visible": np.ones((count, 2), bool),
    }
    for i in range(count):
        for k in range(2):
            y, x = rng.integers(0, 9), rng.integers(0, 11)
            frames["images"][i, 4 * y : 4 * y + 8, 4 * x : 4 * x + 8, k] = 255
            frames["heatmaps"][i, k, y : y + 2, x : x + 2] = 255
            frames["positions"][i, k] = [x / 50, y / 50, 0.0]
    return frames


def test_pretraining_finds_things_and_continues_after_a_kill(tmp_path):
    config = pretrain.debug_config(pretrain.PretrainConfig(out=tmp_path))
    config = replace(config, epochs=10, learning_rate=5e-3)
    frames = pretrain.gather(tmp_path / "frames", 512, 0, 1, fake_frames)
    small = replace(config.trunk, keypoints=2, image=(40, 48), channels=(8, 16, 8, 8))
    torch.manual_seed(0)
    trunk, again = pretrain.KeypointTrunk(small), pretrain.KeypointTrunk(small)
    pretrain.train_trunk(config, frames, trunk)
    report = pretrain.figures(trunk, frames, ["red", "green"], 2, "cpu")
    assert report["objects"]["median_cm"] < 2.0 and report["objects"]["presence_f1"] > 0.9
    pretrain.train_trunk(config, frames, again)  # nothing is left to do
    assert all(torch.equal(a, b) for a, b in zip(trunk.parameters(), again.parameters(), strict=True))


def test_grounding_learns_which_things_a_skill_names():
    names = ["coke can", "apple", "top handle"]
    library = [skill for skill in SkillLibrary.load() if skill.arguments.get("object") in names[:2]][:12]
    targets = torch.tensor([pretrain.named_keypoints(skill, names) for skill in library])
    texts = torch.nn.functional.normalize(torch.randn(len(library), 384), dim=-1)
    assert pretrain.teach_grounding(Grounding(3), texts, targets, seed=0, steps=150) == 1.0
    by_name = {skill.name: tuple(row) for skill, row in zip(library, targets.tolist(), strict=True)}
    assert by_name["pick coke can"] == (0, 3)
