"""Facts about checkpoints: the same bytes back or a clear refusal, and never half of anything."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from saycan_qt import checkpoint
from saycan_qt.checkpoint import CheckpointError


@dataclasses.dataclass(frozen=True)
class Encoder:
    widths: tuple[int, ...] = (8, 16)


@dataclasses.dataclass(frozen=True)
class Config:
    algorithm: str = "q-transformer"
    encoder: Encoder = Encoder()


@pytest.fixture
def folder(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    tensors = {"weight": weight.T, "tied": weight, "half": torch.ones(3, dtype=torch.bfloat16)}
    checkpoint.save(tmp_path / "policy", Config(), tensors, {"command": "train", "loss": np.float32(0.5)})
    return tmp_path / "policy"


def test_what_is_saved_comes_back_identical(folder):
    config, tensors, provenance = checkpoint.load_files(folder)
    assert config == {"algorithm": "q-transformer", "encoder": {"widths": [8, 16]}}
    assert provenance == {"command": "train", "loss": 0.5}
    assert torch.equal(tensors["weight"], torch.arange(6.0).reshape(2, 3).T)
    assert tensors["half"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "provenance.json", "manifest.json"])
def test_a_flipped_bit_is_refused(folder, name):
    rng, content = np.random.default_rng(0), (folder / name).read_bytes()
    for position in rng.choice(len(content), 20, replace=False):
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(flipped)
        with pytest.raises(CheckpointError, match=folder.name):
            checkpoint.load_files(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "manifest.json"])
def test_a_missing_or_truncated_file_is_named(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load_files(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}.*No such file"):
        checkpoint.load_files(folder)


@pytest.mark.parametrize("name", ["policy.pt", "pytorch_model.bin", "weights.pkl"])
def test_a_pickle_is_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04")
    for offered in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match=f"{name}: a pickle can run any code"):
            checkpoint.resolve(offered)


def test_a_wrong_name_suggests_the_nearest_shipped_one(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHIPPED", folder.parent)
    assert checkpoint.resolve("policy") == folder
    with pytest.raises(CheckpointError, match="no checkpoint 'polciy': did you mean 'policy'"):
        checkpoint.resolve("polciy")


def test_an_unknown_algorithm_is_named(folder, monkeypatch):
    monkeypatch.setattr("saycan_qt.algorithms.ALGORITHMS", {"rt1": None}, raising=False)
    with pytest.raises(CheckpointError, match="unknown algorithm 'q-transformer'; known are rt1"):
        checkpoint.load(folder)


def test_a_policy_is_built_by_its_algorithm(folder, monkeypatch):
    class Algorithm(torch.nn.Linear):
        @classmethod
        def from_checkpoint(cls, config, tensors):
            policy = cls(2, 3, bias=False)
            policy.load_state_dict({"weight": tensors["weight"]})
            return policy

    monkeypatch.setattr("saycan_qt.algorithms.ALGORITHMS", {"q-transformer": Algorithm}, raising=False)
    assert torch.equal(checkpoint.load(folder, device="cpu").weight, torch.arange(6.0).reshape(2, 3).T)


KILL = """
import os, pathlib, signal, sys, time, torch
from saycan_qt import checkpoint
torch.set_num_threads(1)
state, number = pathlib.Path(sys.argv[1]), 0
for delay in (0.0, 0.001, 0.002, 0.003, 0.005, 0.008, 0.013, 0.021):
    seen, say = os.pipe()
    if (child := os.fork()) == 0:
        while True:
            checkpoint.save(state, {"number": number}, {"weight": torch.full((50_000,), float(number))}, {})
            number += 1
            os.write(say, b".")
    os.read(seen, 1)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    config, tensors, _ = checkpoint.load_files(state)
    assert torch.all(tensors["weight"] == config["number"]) and config["number"] >= number
    number = config["number"] + 1
"""


def test_a_kill_while_writing_leaves_the_last_complete_state(tmp_path):
    subprocess.run([sys.executable, "-c", KILL, str(tmp_path / "state")], check=True)
    checkpoint.save(tmp_path / "state", {}, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["state"]  # nothing of the killed ones is left


def test_a_swap_interrupted_between_its_two_renames_is_still_readable(folder):
    folder.rename(folder.with_name("policy.old"))
    assert checkpoint.load_files(folder)[0]["algorithm"] == "q-transformer"
    checkpoint.save(folder, {"algorithm": "rt1"}, {}, {})
    assert checkpoint.load_files(folder)[0]["algorithm"] == "rt1"
    assert not folder.with_name("policy.old").exists()


class Training:
    """A run of 3 random steps at a time."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.generators = {"noise": torch.Generator().manual_seed(seed), "rows": np.random.default_rng(seed)}

    def run(self, steps=3):
        for _ in range(steps):
            rows = torch.from_numpy(self.generators["rows"].normal(size=(8, 4))).float()
            loss = self.model(rows + torch.randn(8, 4, generator=self.generators["noise"])).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def arguments(self):
        return {"modules": {"model": self.model}, "optimizer": self.optimizer, "generators": self.generators}


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path):
    first, second = Training(0), Training(1)
    first.run()
    checkpoint.save_training_state(tmp_path / "state", position={"step": 3}, **first.arguments())
    assert checkpoint.load_training_state(tmp_path / "state", **second.arguments()) == {"step": 3}
    assert torch.equal(first.run(), second.run())


def test_nothing_is_written_by_pickle(tmp_path, folder):
    run = Training(0)
    run.run()
    checkpoint.save_training_state(tmp_path / "state", position={}, **run.arguments())
    names = {path.name for path in [*folder.iterdir(), *(tmp_path / "state").iterdir()]}
    assert names == {"config.json", "model.safetensors", "provenance.json", "manifest.json"}
    assert json.loads((folder / "manifest.json").read_text())["files"].keys() == names - {"manifest.json"}
