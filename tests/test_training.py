"""Training runs: repeatable, resumable, exported; and the perception that comes before them."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_policies import KITCHEN, TEXTS, make, recorded, save_perception

from planners.weights import WeightsError, sentence_model_path
from saycan_qt import figures, pretrain, train
from saycan_qt.data.episodes import Episode, EpisodeDataset, EpisodeWriter
from saycan_qt.data.relabel import lines
from saycan_qt.learning import calibration, checkpoint, metrics, start
from saycan_qt.learning import perception as perceiving
from saycan_qt.learning.batches import BatchConfig, Transitions, kept_from_training, return_range
from saycan_qt.learning.divergence import Diverged
from saycan_qt.learning.folder import only_writer
from saycan_qt.learning.loop import Run
from saycan_qt.learning.stretches import Frames, Shuffle
from saycan_qt.networks.keypoints import Grounding
from skills.errors import SkillError
from skills.library import SkillLibrary

KITCHEN_LOSSES = {
    "rt1": [5.547345, 5.542212, 5.531671, 5.513824, 5.509332, 5.50198],
    "q-transformer, constrained": [5.768543, 5.754148, 5.754107, 5.714697, 5.706839, 5.74146],
    "qt-opt": [3.664639, 3.666453, 3.492169, 3.586623, 3.38157, 3.626288],
}


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_the_same_weights_act_otherwise_in_a_checkpoint_of_their_own(tmp_path, monkeypatch, capsys):
    def command(init, *settings, out="straight"):
        told = ["train", "acting", "--init", init, "--out", str(tmp_path / out), *settings]
        monkeypatch.setattr(sys, "argv", told)
        return train.main(), capsys.readouterr().err

    assert command("execution", "--circles", "0", "--acting-deviation", "6")[0] == 0
    shipped, straight = checkpoint.read("execution"), checkpoint.read(tmp_path / "straight" / "checkpoint")
    assert {**shipped[0]["config"], "circles": 0, "acting_deviation": 6.0}.items() <= straight[0]["config"].items()
    assert all(torch.equal(straight[1][name], tensor) for name, tensor in shipped[1].items())
    policies = [checkpoint.load(made) for made in ("execution", tmp_path / "straight" / "checkpoint")]
    assert [policy.embodiment.history for policy in policies] == [7, 1]  # circles are told from seven observations
    assert command("execution", "--circles", "2") == (
        2,
        f"error: {tmp_path / 'straight' / 'checkpoint'} is there; choose another --out\n",
    )
    for given, said in {
        ("execution",): "acts so already",
        ("execution", "--circles", "3"): "acts so already",
        ("execution", "--circles", "8"): "7 at most",
        ("execution", "--smoothing", "nan"): "must be at least 0",
        ("execution", "--behavior-threshold", "2"): "must lie within 0 to 1",
        ("affordance", "--circles", "3"): "needs a behaviour head",
        ("perception", "--circles", "3"): "is no policy",
    }.items():
        code, error = command(*given, out="none")
        assert code == 2 and said in error and not (tmp_path / "none").exists()
    assert command("affordance", "--acting-deviation", "3", out="judge")[0] == 0
    judge, kept = tmp_path / "judge" / "checkpoint", calibration.load("affordance")
    assert calibration.load(judge).knots == kept.knots  # values are what they were
    assert command(str(judge), "--acting-deviation", "4", out="again")[0] == 0
    acting = checkpoint.load_files(tmp_path / "again" / "checkpoint")[2]["acting"]
    assert ["--acting-deviation 3" in acting[0], "--acting-deviation 4" in acting[1]] == [True, True]
    assert command("execution", "--circles", "2", out="judge/checkpoint")[0] == 2  # a checkpoint itself


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


def test_eyes_that_a_network_does_not_take_are_refused(data, perception, tmp_path):
    config = train.command(["rt1", "--data", str(data), "--out", str(tmp_path), "--perception", str(perception)])
    for other in (replace(config, preset="compact"), replace(config, init=checkpoint.SHIPPED / "execution-pixels")):
        with pytest.raises(ValueError, match="--perception has the small preset's eyes, which this network does not"):
            train.new_policy(other, EpisodeDataset(data))


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
    kept = json.loads((tmp_path / "run" / "checkpoint" / "provenance.json").read_text())
    assert rows[kept["step"]] == min(rows.values()) and len(rows) == 2
    assert kept["machine"] == checkpoint.machine() and torch.__version__ in kept["machine"]


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


def test_the_best_checkpoint_is_that_of_the_lowest_loss_to_the_last_digit(data, perception, tmp_path, monkeypatch):
    config = train.debug_config(train.command(run_command("rt1", data, perception, tmp_path, "--keep", "best")))
    dataset = EpisodeDataset(data)
    run, kept = Run(config, dataset, train.new_policy(config, dataset)[0], []), []
    monkeypatch.setattr(checkpoint, "exists", lambda folder: bool(kept))
    monkeypatch.setattr(Run, "export", lambda self, folder: kept.append(loss))
    for loss in (1.00001, 1.00003, 1.00001, 1.0):
        monkeypatch.setattr(run.policy, "loss", lambda batch, loss=loss: (None, {"loss": torch.tensor(loss)}))
        run.validate_and_export()
    assert kept == [1.00001, 1.0]


def test_the_numbers_of_a_report_are_means_of_the_steps_since_the_last(data, perception, tmp_path, monkeypatch):
    def step(self):
        self.policy.loss = lambda batch: (self.parameters[0].sum(), {"loss": torch.tensor(float(self.step))})
        train_step(self)

    train_step = Run.train_step
    monkeypatch.setattr(Run, "train_step", step)
    for steps in ("3", "6"):  # a report every two
        train.train(train.command(run_command("rt1", data, perception, tmp_path / "run", "--steps", steps)))
    assert {row["step"]: row["loss"] for row in curve(tmp_path / "run") if "loss" in row} == {2: 0.5, 4: 3, 6: 4.5}


def test_a_run_sees_through_the_camera_that_its_eyes_know(data, perception, tmp_path):
    dataset, config = EpisodeDataset(data), train.command(run_command("rt1", data, perception, tmp_path / "run"))
    config, head = train.debug_config(replace(config, cache=tmp_path)), dataset.cameras["head"]
    alone = np.array(Run(config, dataset, train.new_policy(config, dataset)[0], []).transitions.frames[0])
    policy = train.new_policy(config, dataset)[0]
    dataset.images = np.zeros_like(head)
    dataset.cameras = {"wrist": dataset.images, "head": head}
    assert np.array_equal(Run(config, dataset, policy, []).transitions.frames[0], alone)


def test_a_picture_shows_every_number_of_a_run(data, perception, tmp_path, capsys):
    train.train(train.command(run_command("rt1", data, perception, tmp_path / "run", "--steps", "4")))
    assert figures.main(["training", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "training.png").stat().st_size > 10_000
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert figures.main(["training", str(tmp_path)]) == 2 and "metrics.jsonl" in capsys.readouterr().err
    assert figures.main(["training"]) == 2 and "one or more" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart_in_a_picture(tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    runs = [tmp_path / cell / "training" for cell in ("iql-0", "rt1-0")]
    for run in runs:
        run.mkdir(parents=True)
        (run / metrics.FILE).write_text('{"step": 1, "loss": 2.0}\n')
    assert figures.main(["training", *map(str, runs), "--out", str(tmp_path / "curves.svg")]) == 0
    assert all(f">{run}<" in (tmp_path / "curves.svg").read_text() for run in runs)


def test_a_run_is_not_continued_under_other_settings(data, perception, tmp_path):
    train.train(train.command(run_command("rt1", data, perception, tmp_path / "run", "--steps", "2")))
    with pytest.raises(ValueError, match="learning_rate"):
        train.train(train.command(run_command("rt1", data, perception, tmp_path / "run", "--learning-rate", "0.1")))


def test_a_runs_settings_are_replaced_as_a_whole_and_damaged_ones_are_told_with_what_to_do(tmp_path, monkeypatch):
    config = train.command(["rt1", "--data", "x", "--out", str(tmp_path)])
    train.remember(config, "RT1Config", "digest")
    metrics.MetricsLog(tmp_path, 0).write(1, {"loss": 2.0})
    before = [(tmp_path / name).read_bytes() for name in ("config.json", "metrics.jsonl")]

    def full(path, data):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))  # as a full disk does
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        patch.setattr(Path, "write_text", full)
        for begin in (partial(train.remember, config, "RT1Config", "digest"), partial(metrics.MetricsLog, tmp_path, 1)):
            with pytest.raises(OSError, match="No space left"):
                begin()
    assert [(tmp_path / name).read_bytes() for name in ("config.json", "metrics.jsonl")] == before
    checkpoint.save_training_state(tmp_path / "state", {}, torch.optim.SGD([torch.zeros(1)]), {"step": 1})
    for content in ("", "[]", '{"kind'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json: damaged: .*another --out, with `finetune --init"):
            train.remember(config, "RT1Config", "digest")


def test_a_run_is_not_continued_on_other_data(data, perception, tmp_path):
    grown = shutil.copytree(data, tmp_path / "data")
    run = ("rt1", grown, perception, tmp_path / "run", "--bounds", "data", "--steps")
    train.train(train.command(run_command(*run, "2")))
    edges = weights(tmp_path / "run")["action_edges"]
    moved = run_command("rt1", data, *run[2:], "4")  # the same data under another name
    train.train(train.command(moved))
    assert torch.equal(weights(tmp_path / "run")["action_edges"], edges)
    with EpisodeWriter(grown) as writer:
        writer.add(EpisodeDataset(data).episode(0))
    with pytest.raises(ValueError, match=r"run holds a run on other data.*finetune --init"):
        train.train(train.command(run_command(*run, "6")))


def test_a_loss_that_is_not_finite_ends_a_run_which_goes_on_from_before_it(data, perception, tmp_path, monkeypatch):
    run = ("rt1", data, perception, tmp_path / "run")
    step = Run.train_step

    def poisoned(self):
        if self.step == 6:
            self.policy.network.text.weight.data[0, 0] = float("inf")
        step(self)

    monkeypatch.setattr(Run, "train_step", poisoned)
    with pytest.raises(Diverged, match=r"step 6: training has diverged.*smaller --learning-rate") as refusal:
        train.train(train.command(run_command(*run)))
    assert "\n" not in str(refusal.value)
    left = checkpoint.load_files(tmp_path / "run" / "state")
    assert left[0]["training"]["position"]["step"] == 6
    assert all(tensor.float().isfinite().all() for tensor in left[1].values())

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):  # before its first step: then a third rate may be chosen
        train.train(train.command(run_command(*run, "--learning-rate", "1e-5")))
    monkeypatch.setattr(Run, "train_step", step)
    train.train(train.command(run_command(*run, "--learning-rate", "1e-4")))
    assert curve(tmp_path / "run")[-1]["step"] == 20
    with pytest.raises(ValueError, match="another learning_rate"):  # it has led on
        train.train(train.command(run_command(*run)))


def test_an_absurd_learning_rate_leaves_a_state_of_finite_numbers(data, perception, tmp_path):
    run = run_command("q-transformer", data, perception, tmp_path / "run", "--learning-rate", "1e30")
    for _ in range(2):
        with pytest.raises(Diverged):
            train.train(train.command(run))
    tensors = checkpoint.load_files(tmp_path / "run" / "state")[1]
    assert all(tensor.float().isfinite().all() for tensor in tensors.values())


def test_a_folder_has_one_run_at_a_time(data, perception, tmp_path):
    (tmp_path / "run").mkdir()
    with only_writer(tmp_path / "run"), pytest.raises(ValueError, match="run: another process trains here"):
        train.train(train.command(run_command("rt1", data, perception, tmp_path / "run", "--steps", "2")))


@pytest.mark.slow
def test_processes_that_somebody_else_starts_join_a_group_or_are_refused(data, perception, tmp_path, monkeypatch):
    command = run_command("rt1", data, perception, tmp_path / "run", "--steps", "4")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen([sys.executable, "-m", "saycan_qt.train", *command], env={**os.environ, **group, "RANK": rank})
        for rank in "01"
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    steps = [row["step"] for row in curve(tmp_path / "run") if "loss" in row]
    assert steps == [2, 4]
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"WORLD_SIZE 2 asks for a group.*MASTER_ADDR.*torchrun"):
        train.train(train.command(command))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--steps", "0", "at least 1"),
        ("--log-every", "0", "at least 1"),
        ("--validate-every", "0", "at least 1"),
        ("--threads", "0", "at least 1"),
        ("--batch-size", "0", "at least 1"),
        ("--warmup", "-1", "at least 0"),
        ("--rate", "-3", "at least 0"),
        ("--learning-rate", "nan", "above 0"),
        ("--relabel", "2", "within 0 to 1"),
        ("--relabel-with", "impossible", "nothing is relabelled without --relabel"),
        ("--discount", "1.5", "within 0 to 1"),
        ("--value-low", "3", "below --value-high 1"),
        ("--behavior-threshold", "2", "within 0 to 1"),
        ("--snapshots", "0", "from 1 to --steps"),
        ("--device", "cuda:99", "cannot be used here"),
    ],
)
def test_a_number_that_makes_no_run_is_one_line(option, value, said, data, perception, tmp_path):
    config = train.command(
        ["q-transformer", "--data", str(data), "--perception", str(perception), "--out", str(tmp_path), option, value]
    )
    with pytest.raises(ValueError, match=f"{option} {value}.*{said}") as refusal:
        train.train(config)
    assert "\n" not in str(refusal.value)


def test_what_comes_with_a_checkpoint_is_not_asked_for_beside_it(data, tmp_path):
    given = ["--data", str(data), "--out", str(tmp_path), "--init", "execution"]
    for more in (("--bins", "adaptive"), ("--bounds", "data"), ("--preset", "paper"), ("--text-model", "some")):
        with pytest.raises(ValueError, match=f"{' '.join(more)}: that comes with --init execution"):
            train.train(train.command(["rt1", *given, *more]))


def test_a_checkpoint_that_no_run_says_it_made_is_not_overwritten(data, perception, tmp_path):
    shutil.copytree(checkpoint.SHIPPED / "execution", tmp_path / "run" / "checkpoint")
    with pytest.raises(ValueError, match=r"no config\.json says of what run"):
        train.train(train.command(run_command("rt1", data, perception, tmp_path / "run")))


def test_a_command_that_cannot_be_done_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    for command in (
        ["train", "rt1", "--data", "x", "--out", tmp_path, "--steps", "0"],
        ["pretrain", "--out", tmp_path, "--epochs", "0"],
        ["tune", "--out", tmp_path, "--threads", "0"],
        ["collect", "--out", tmp_path, "--workers", "0"],
    ):
        monkeypatch.setattr(sys, "argv", [command[0], *map(str, command[1:])])
        assert importlib.import_module(f"saycan_qt.{command[0]}").main() == 2, command
        assert re.fullmatch(r"error: --\w+ 0: it must be at least 1\n", capsys.readouterr().err)


def test_a_run_begun_before_a_setting_was_there_goes_on_with_its_default_and_with_nothing_else(tmp_path):
    def command(*more):
        return train.command(["q-transformer", "--data", "x", "--out", str(tmp_path), *more])

    train.remember(command(), "QTransformerConfig", "digest")
    (tmp_path / "state").mkdir()
    checkpoint.save_training_state(tmp_path / "state", {}, torch.optim.SGD([torch.zeros(1)]), {"step": 1})
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    del written["chunk"], written["algorithm"]["td_deviation"], written["batches"]["unfinished"]
    path.write_text(json.dumps(written))
    for more, refused in ((["--td-deviation", "3"], "algorithm"), (["--chunk", "2"], "chunk")):
        with pytest.raises(ValueError, match=f"a run with another {refused};"):
            train.remember(command(*more), "QTransformerConfig", "digest")
    path.write_text(json.dumps(written | {"batches": written["batches"] | {"relabel_with": "impossible"}}))
    train.remember(command(), "QTransformerConfig", "digest")  # with a --relabel of 0, as it was once taken
    with pytest.raises(ValueError, match="--td-deviation -1"):
        train.check(command("--td-deviation", "-1"))


def test_a_run_goes_on_from_the_same_weights_under_another_name_and_from_no_other(tmp_path):
    def command(init):
        return train.command(["rt1", "--data", "x", "--out", str(tmp_path / "run"), "--init", str(init)])

    shutil.copytree(checkpoint.SHIPPED / "execution", tmp_path / "moved")
    train.remember(command("execution"), "RT1Config", "digest")
    checkpoint.save_training_state(tmp_path / "run" / "state", {}, torch.optim.SGD([torch.zeros(1)]), {"step": 1})
    for init in (tmp_path / "moved", "execution"):
        train.remember(command(init), "RT1Config", "digest")
    with pytest.raises(ValueError, match="a run with another init;"):
        train.remember(command("affordance"), "RT1Config", "digest")


def test_without_a_warm_up_the_first_step_has_the_whole_rate(data, perception, tmp_path):
    config = train.debug_config(train.command(run_command("rt1", data, perception, tmp_path)))
    dataset = EpisodeDataset(data)
    rates = [
        Run(replace(config, warmup=warmup), dataset, train.new_policy(config, dataset)[0], []).learning_rate
        for warmup in (0, 1, 4)
    ]
    assert rates == [config.learning_rate, config.learning_rate, config.learning_rate / 4]


def test_where_nothing_succeeded_there_is_no_q_to_learn(data, perception, tmp_path):
    dataset = EpisodeDataset(data)
    dataset.success[:] = False
    config = train.command(run_command("q-transformer", data, perception, tmp_path))
    policy, _ = train.new_policy(config, dataset)
    with pytest.raises(ValueError, match=r"0 % of 24 episodes succeeded.*--success all.*--reward dataset"):
        train.require_returns(policy, config, dataset)


@pytest.mark.parametrize(("size", "warned"), [(1.0, ""), (100.0, "from 0 to 100.*--value-low 0 --value-high 100")])
def test_returns_beyond_the_range_of_values_are_told_with_the_options(size, warned, data, perception, tmp_path, caplog):
    dataset = EpisodeDataset(data)
    dataset.rewards = dataset.rewards * np.float32(size)
    config = train.command(run_command("q-transformer", data, perception, tmp_path, "--reward", "dataset"))
    train.require_returns(train.new_policy(config, dataset)[0], config, dataset)
    assert len(caplog.messages) == bool(warned) and re.search(warned, "".join(caplog.messages))


def test_the_range_of_returns_is_that_of_every_step_of_every_episode():
    data = recorded(KITCHEN, count=3, length=5)
    data.rewards = np.random.default_rng(1).normal(size=15).astype(np.float32)
    each = [
        sum(0.9**k * float(data.rewards[t + k]) for k in range(end - t))
        for end in (5, 10, 15)
        for t in range(end - 5, end)
    ]
    assert return_range(data, 0.9) == pytest.approx((min(each), max(each)))


def test_data_that_cannot_be_written_to_is_decoded_beside_the_run(tmp_path, monkeypatch):
    config = train.command(["rt1", "--data", str(tmp_path), "--out", str(tmp_path / "run")])
    assert train.cache_for(config) is None and train.cache_for(replace(config, cache=tmp_path / "x")) == tmp_path / "x"
    monkeypatch.setattr(start.os, "access", lambda path, mode: False)
    assert train.cache_for(config) == tmp_path / "run" / ".cache"


def test_a_run_says_its_robot_and_how_far_its_values_look(data, perception, tmp_path, capsys):
    settings = ("--steps", "2", "--discount", "0.9")
    train.train(train.command(run_command("q-transformer", data, perception, tmp_path / "run", *settings)))
    said = capsys.readouterr().out
    assert "8 action dimensions, cameras: head 80 x 96, 8 state numbers, 3 Hz" in said
    assert "values look 10 steps (3.3 s) ahead" in said


@pytest.mark.parametrize("kind", KITCHEN_LOSSES)
def test_the_kitchens_losses_are_those_that_they_were(kind, tmp_path):
    """Computed before any robot could be trained, with the same seeds."""
    config, dataset = (
        train.debug_config(train.TrainRT1(data=(tmp_path,), out=tmp_path)),
        recorded(KITCHEN, size=(80, 96)),
    )
    run = Run(replace(config, steps=6), dataset, make(kind), [])
    run.transitions.train = Frames(dataset.episode_start, np.array([0, 2] if kind == "rt1" else [0, 1, 2, 3]))
    losses = []
    for _ in range(6):
        with torch.no_grad():
            losses.append(float(run.loss(run.transitions.step_batch(run.step))[0]))
        run.train_step()
    assert losses == pytest.approx(KITCHEN_LOSSES[kind], abs=2e-5)


def test_a_few_episodes_are_validated_too(data):
    for kind, count in (("q-transformer", 2), ("q-transformer", 7), ("rt1", 7)):
        dataset = recorded(KITCHEN, count=count, size=(80, 96))
        batches = Transitions(
            BatchConfig(batch_size=8), dataset, [np.zeros((count * 6, 27, 14), np.float16)], make(kind)
        )
        episodes = [
            set(dataset.frame_episode[part[np.arange(len(part))]]) for part in (batches.train, batches.validation)
        ]
        usable = set(np.flatnonzero(dataset.success)) if kind == "rt1" else set(range(count))
        assert episodes == [usable - {max(usable)}, {max(usable)}]


def test_the_only_successes_are_not_all_held_out_and_who_learns_from_failures_alone_is_told(caplog):
    dataset = recorded(KITCHEN, count=20, length=2, size=(80, 96))
    dataset.success = np.arange(20) == 19
    frames = [np.zeros((40, 27, 14), np.float16)]
    clone = Transitions(BatchConfig(batch_size=8), dataset, frames, make("rt1"))
    assert clone.train[np.arange(2)].tolist() == [38, 39] and not len(clone.validation) and not caplog.messages
    usable = np.arange(40) % 20 == 19
    assert np.flatnonzero(kept_from_training(usable) & usable).tolist() == [39]
    Transitions(BatchConfig(batch_size=8), dataset, frames, make("q-transformer"))
    assert "learns from failures alone: the only successes, 1, are kept for validation" in caplog.text


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


def test_a_network_begins_anew_with_the_eyes_and_the_bins_of_another(data, perception, tmp_path):
    run = run_command("rt1", data, perception, tmp_path / "clone", "--steps", "4", "--bounds", "data")
    train.train(train.command(run))
    before = weights(tmp_path / "clone")
    there = ("--data", data, "--out", tmp_path / "q", "--init", tmp_path / "clone" / "checkpoint", "--seed", 7)
    config = train.command(["q-transformer", *map(str, there), "--anew", "--behavior-weight", "1.0"])
    policy = train.new_policy(train.debug_config(config), EpisodeDataset(data))[0]
    weight = "weight"  # a bias begins at 0 or 1 whatever the chance
    own = {key: value for key, value in policy.network.state_dict().items() if key.endswith(weight) and value.ndim > 1}
    same = {key for key, value in own.items() if torch.equal(value, before.get(f"network.{key}", torch.empty(0)))}
    assert same == {key for key in own if key.startswith("encoder.")} != set()
    assert torch.equal(policy.tokenizer.edges, before["action_edges"])
    with pytest.raises(ValueError, match="--anew is about --init"):
        train.check(train.command(["rt1", "--data", str(data), "--out", str(tmp_path), "--anew"]))


def test_a_network_goes_on_with_more_frames_and_with_fewer(data, perception, tmp_path):
    """Where the newest stood in the tokens it stays, the text before them; all other weights are as they were."""

    def begun(init, history):
        run = run_command("q-transformer", data, perception, tmp_path / "on", "--init", init, "--history", history)
        return train.new_policy(train.debug_config(train.command(run)), EpisodeDataset(data))[0]

    train.train(train.command(run_command("rt1", data, perception, tmp_path / "clone", "--steps", "2")))
    before = begun(tmp_path / "clone" / "checkpoint", 1)
    more = begun(tmp_path / "clone" / "checkpoint", 3)
    own, was = more.network.state_dict(), before.network.state_dict()
    text, frame = was["places"].split([1, 9])
    assert torch.equal(own["places"], torch.cat([text, frame, frame, frame]))
    assert more.embodiment.history == more.network_config.history == 3
    own["places"] += torch.arange(len(own["places"]))[:, None]
    checkpoint.save(tmp_path / "three", *more.describe(sorted(TEXTS)), {})
    fewer = begun(tmp_path / "three", 2)
    assert torch.equal(fewer.network.places, torch.cat([own["places"][:1], own["places"][10:]]))


def test_a_network_goes_on_with_other_eyes(data, perception, tmp_path):
    train.train(train.command(run_command("rt1", data, perception, tmp_path / "clone", "--steps", "2")))
    described, seen = checkpoint.read(perception)
    seen = {key: value + 1 if value.is_floating_point() else value for key, value in seen.items()}
    checkpoint.save(tmp_path / "other", described, seen, {})
    init = ("--init", tmp_path / "clone" / "checkpoint")
    config = train.debug_config(train.command(run_command("rt1", data, tmp_path / "other", tmp_path / "again", *init)))
    own, before = train.new_policy(config, EpisodeDataset(data))[0].network.state_dict(), weights(tmp_path / "clone")
    trunk = "encoder.trunk."
    for key, value in own.items():
        wanted = seen[key.removeprefix("encoder.")] if key.startswith(trunk) else before[f"network.{key}"]
        assert torch.equal(value, wanted), key


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


def test_relabelling_with_the_impossible_spares_what_the_data_notes_as_possible(data):
    with pytest.raises(ValueError, match="collect --possible"):
        transitions(data, relabel=1.0, relabel_with="impossible")
    dataset = EpisodeDataset(data)
    only = int(dataset.episode_task[dataset.episode_task != dataset.episode_task[0]][0])
    rest = [task for number, task in enumerate(dataset.tasks) if number != only]
    dataset.info = {"possible": [lines(rest)] * len(dataset)}
    frames = [np.zeros((dataset.num_frames, 27, 14), np.float16)]
    batches = Transitions(BatchConfig(relabel=1.0, relabel_with="impossible"), dataset, frames, make("q-transformer"))
    batch = batches.batch(np.arange(*dataset.episode_start[0:2]), np.random.default_rng(0), augment=False)
    assert batch.reward.sum() == 0 and all(torch.equal(text, batches.text[only]) for text in batch.text)
    assert batch.terminated.tolist() == [1.0] + [0.0] * (len(batch.reward) - 2) + [1.0]  # for certain, and at its end


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


def test_a_share_of_transitions_can_come_from_successes(data):
    _, batches = transitions(data, successes=1.0)
    assert batches.step_batch(0).demonstrates.all()
    _, batches = transitions(data, successes=0.5)
    shares = [batches.step_batch(step).demonstrates.mean() for step in range(40)]
    assert np.mean(shares) == pytest.approx(0.5 + 0.5 * float(np.mean(usual_share(data))), abs=0.05)


def usual_share(data):
    _, batches = transitions(data)
    return [batches.step_batch(step).demonstrates.mean() for step in range(40)]


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


@pytest.mark.slow
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
    (tmp_path / "state").rename(tmp_path / "state.old")  # as a kill between two states leaves it
    pretrain.train_trunk(config, frames, again)  # nothing is left to do
    assert all(torch.equal(a, b) for a, b in zip(trunk.parameters(), again.parameters(), strict=True))


def killed(count, seed):
    os._exit(1)


def test_a_killed_process_that_makes_frames_is_told_in_a_line(tmp_path):
    with pytest.raises(SkillError, match="run again with fewer --workers"):
        perceiving.gather(tmp_path, perceiving.SHARD + 1, 0, 2, killed)


def test_frames_are_those_of_the_seed_and_as_many_as_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(perceiving, "SHARD", 4)
    made = []

    def gathered(count, seed, folder):
        def make(count, seed):
            made.append(count)
            return fake_frames(count, seed)

        return pretrain.gather(folder, count, seed, 1, make)["images"]

    for count, seed in ((6, 0), (11, 0), (11, 1)):
        fresh = gathered(count, seed, tmp_path / f"{count}-{seed}")
        assert np.array_equal(gathered(count, seed, tmp_path / "all"), fresh) and len(fresh) == count
    made.clear()
    assert len(gathered(11, 0, tmp_path / "all")) == 11 and not made


def test_pretraining_goes_on_with_its_own_settings_and_begins_with_eyes_that_fit(tmp_path, monkeypatch):
    monkeypatch.delattr(pretrain, "labelled_frames")  # nothing is rendered before all this is known
    config = pretrain.debug_config(pretrain.PretrainConfig(out=tmp_path / "run"))
    for init, said in (
        ("execution", "execution has no eyes"),
        ("perception", r"its trunk has channels .*--trunk\.cha"),
    ):
        with pytest.raises(ValueError, match=said):
            pretrain.run(replace(config, init=Path(init)))
    pretrain.remember(config)
    pretrain.remember(replace(config, seed=1))  # nothing was learnt yet
    checkpoint.save_training_state(tmp_path / "run" / "state", {}, torch.optim.SGD([torch.zeros(1)]), {"epoch": 1})
    for name, other in {"look": "source", "seed": 0, "frames": 32, "asked": 0.5, "batch_size": 8, "init": "x"}.items():
        with pytest.raises(ValueError, match=f"holds a run with another {name};"):
            pretrain.remember(replace(config, **{"seed": 1, name: other}))
    (tmp_path / "run" / "config.json").unlink()
    pretrain.remember(config)  # one of before there was such a file
    pretrain.remember(replace(config, epochs=9, threads=1))
    checkpoint.save(tmp_path / "run" / "checkpoint", {}, {}, {})
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint is there, and no config\.json says"):
        pretrain.remember(config)


@pytest.mark.parametrize("name", ["pretrain", "tune"])
def test_ctrl_c_ends_in_a_line_that_says_how_to_go_on(name, tmp_path, monkeypatch, capsys):
    def interrupted(*given):
        raise KeyboardInterrupt

    command = importlib.import_module(f"saycan_qt.{name}")
    monkeypatch.setattr(command, {"pretrain": "run", "tune": "pairs"}[name], interrupted)
    monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path), "--threads", str(torch.get_num_threads())])
    assert command.main() == 130 and capsys.readouterr().err.startswith("interrupted; the same command goes on")


def test_grounding_learns_which_things_a_skill_names():
    names = ["coke can", "apple", "top handle"]
    library = [skill for skill in SkillLibrary.load() if skill.arguments.get("object") in names[:2]][:12]
    targets = torch.tensor([pretrain.named_keypoints(skill, names) for skill in library])
    texts = torch.nn.functional.normalize(torch.randn(len(library), 384), dim=-1)
    assert pretrain.teach_grounding(Grounding(3), texts, targets, seed=0, steps=150) == 1.0
    by_name = {skill.name: tuple(row) for skill, row in zip(library, targets.tolist(), strict=True)}
    assert by_name["pick coke can"] == (0, 3)
