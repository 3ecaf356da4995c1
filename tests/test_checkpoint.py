"""Facts about checkpoints: the same bytes back or a clear refusal, and never half of anything."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save_file
from tiny_policies import TEXTS, make

from saycan_qt import atomic
from saycan_qt.learning import checkpoint
from saycan_qt.learning.checkpoint import CheckpointError
from skills.robot_folder import default_robot
from skills.types import Observation


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


def test_the_checkpoint_in_a_run_s_folder_is_named(tmp_path):
    shutil.copytree(checkpoint.SHIPPED / "execution", tmp_path / "run" / "checkpoint")
    with pytest.raises(CheckpointError, match=r"run is a run's folder; its checkpoint is .*run/checkpoint$"):
        checkpoint.resolve(tmp_path / "run")


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
    monkeypatch.setattr("saycan_qt.learning.algorithms.ALGORITHMS", {"rt1": None}, raising=False)
    with pytest.raises(CheckpointError, match="unknown algorithm 'q-transformer'; known are rt1"):
        checkpoint.load(folder)


def test_a_policy_is_built_by_its_algorithm(folder, monkeypatch):
    class Algorithm(torch.nn.Linear):
        @classmethod
        def from_checkpoint(cls, config, tensors):
            policy = cls(2, 3, bias=False)
            policy.load_state_dict({"weight": tensors["weight"]})
            return policy

        @classmethod
        def require_fit(cls, config, shapes):
            assert shapes["weight"] == (3, 2)

    monkeypatch.setattr("saycan_qt.learning.algorithms.ALGORITHMS", {"q-transformer": Algorithm}, raising=False)
    assert torch.equal(checkpoint.load(folder, device="cpu").weight, torch.arange(6.0).reshape(2, 3).T)


# What the shipped models gave when they were new, the first before any robot could be trained, on noise of seed 0 for
# image and state
ACTIONS = {
    "pick apple": [0.0003125, -0.0003125, -0.0796875, -0.0332031, 0.2089844, 0.0136719, 0.0019531, 0.0019531],
    "open top drawer": [-0.0796875, 0.0384375, -0.0196875, -0.1230469, 0.0097656, 0.0019531, 0.9980469, 0.0019531],
}
VALUES = {"execution": [0.17767255, 0.25689349], "affordance": [0.03706767, 0.47533652]}


def test_the_shipped_models_judge_and_act_as_they_did():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (80, 96, 3), dtype=np.uint8)
    seen = [Observation(image, rng.normal(0, 0.3, 8).astype(np.float32))]
    for name, values in VALUES.items():
        policy = checkpoint.load(name)
        np.testing.assert_allclose(policy.value(seen, list(ACTIONS)), values, atol=2e-6)
        for instruction, action in ACTIONS.items() if name == "execution" else ():
            np.testing.assert_allclose(policy.act(seen, instruction), action, atol=1e-6)
        there = dataclasses.replace(policy.embodiment, history=1)  # which the older one does not say
        assert there == default_robot().embodiment and policy.embodiment.history == (7 if name == "execution" else 1)


def test_a_checkpoint_says_its_robot_in_words_of_its_own(policy_folder):
    config = json.loads((policy_folder / "config.json").read_bytes())
    assert [part["name"] for part in config["embodiment"]["action"]][::7] == ["dx", "terminate"]
    assert config["network"]["state"]["position"] == [0, 1, 2] and config["network"]["dims"] == 8


# ---- what can be wrong with a whole policy's folder


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "policy"
    policy = make("q-transformer")
    checkpoint.save(folder, *policy.describe(TEXTS), {})
    return folder


def seal(folder):
    """Make the manifest agree with the files, as somebody would who altered them on purpose."""
    files = {
        name: {"sha256": atomic.sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in ("config.json", "model.safetensors", "provenance.json")
    }
    (folder / "manifest.json").write_text(json.dumps({"format": checkpoint.FORMAT, "files": files}))


def manifest(**changes):
    """Damage: entries of the manifest replaced; of `files`, those of model.safetensors."""

    def damage(folder):
        content = json.loads((folder / "manifest.json").read_bytes())
        if isinstance(changes.get("files"), dict):
            content["files"]["model.safetensors"] |= changes["files"]
        else:
            content |= changes
        (folder / "manifest.json").write_text(json.dumps(content))

    return damage


def tensors(change):
    """Damage: the tensors changed and everything sealed again."""

    def damage(folder):
        held = tensors_from_bytes((folder / "model.safetensors").read_bytes())
        change(held)
        save_file(held, folder / "model.safetensors")
        seal(folder)

    return damage


def content(name, change, sealed=True):
    """Damage: a file's bytes changed."""

    def damage(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        if sealed:
            seal(folder)

    return damage


def flip(data):
    return data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]


def pickled(folder):
    torch.save(tensors_from_bytes((folder / "model.safetensors").read_bytes()), folder / "model.safetensors")


def pickled_and_sealed(folder):
    pickled(folder)
    seal(folder)


def outside(folder):
    """The manifest names a file that is not in the folder, by a path that leads there."""
    found = json.loads((folder / "manifest.json").read_bytes())
    found["files"]["../../etc/passwd"] = found["files"].pop("model.safetensors")
    (folder / "manifest.json").write_text(json.dumps(found))


DAMAGES = {
    "a pickle in place of the weights": (pickled, "model.safetensors: .* truncated or overwritten"),
    "a pickle that is sealed": (pickled_and_sealed, "model.safetensors: not safetensors"),
    "truncated": (content("model.safetensors", lambda b: b[:-100], False), "model.safetensors: .* truncated"),
    "one bit": (content("model.safetensors", flip, False), "model.safetensors: altered, its SHA-256 is not"),
    "another SHA-256": (manifest(files={"sha256": "0" * 64}), "model.safetensors: altered"),
    "another size": (manifest(files={"bytes": 7}), "model.safetensors: .* bytes, 7 were written"),
    "no size": (manifest(files={"bytes": None}), "model.safetensors: .* bytes, None were written"),
    "an endless size": (manifest(files={"bytes": float("inf")}), "model.safetensors: .* inf were written"),
    "no such file": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: .*No such file"),
    "a folder for a file": (
        lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").mkdir()),
        "config.json: ",
    ),
    "a newer format": (manifest(format="saycan-qt checkpoint 2"), "manifest.json: format 'saycan-qt checkpoint 2'"),
    "no files": (manifest(files=[]), "manifest.json: damaged, it does not list config.json"),
    "a path out of the folder": (outside, "manifest.json: damaged, it does not list config.json"),
    "brackets without end": (content("manifest.json", lambda _: b"[" * 100_000, False), "manifest.json: damaged"),
    "a list for a manifest": (
        content("manifest.json", lambda _: b"[]", False),
        "manifest.json: damaged: not a JSON obj",
    ),
    "no tensors": (content("model.safetensors", lambda _: b""), "model.safetensors: not safetensors"),
    "a header without end": (
        content("model.safetensors", lambda b: b"\xff" * 8 + b[8:]),
        "model.safetensors: not safetensors",
    ),
    "an unknown type": (
        content(
            "model.safetensors", lambda _: safetensors_of('{"x":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}')
        ),
        "model.safetensors: not safetensors",
    ),
    "a missing tensor": (tensors(lambda held: held.pop(last(held))), "policy: does not fit .* Missing key"),
    "an extra tensor": (
        tensors(lambda held: held.update({"network.more": torch.ones(1)})),
        "does not fit .* Unexpected key",
    ),
    "a tensor of another shape": (
        tensors(lambda held: held.update({last(held): torch.ones(1, 2, 3)})),
        "does not fit .* size mismatch",
    ),
    "no texts": (tensors(lambda held: held.pop("texts")), "does not fit .* KeyError: 'texts'"),
    "weights that are not numbers": (
        tensors(lambda held: held[last(held)].fill_(float("nan"))),
        "model.safetensors: network.* not finite",
    ),
    "an unknown algorithm": (
        content("config.json", lambda b: b.replace(b'"q-transformer"', b'["evil"]')),
        "config.json: unknown algorithm",
    ),
    "no robot": (
        content("config.json", lambda b: b.replace(b'"dyaw"', b'"dx"')),
        "policy: does not fit .* EmbodimentError: the checkpoint's embodiment: action: 'dx' stands there twice",
    ),
    "a setting of another type": (
        content("config.json", lambda b: b.replace(b'"history"', b'"hysteria"')),
        "policy: does not fit this version of q-transformer",
    ),
}


def last(held):
    return max(name for name in held if name.startswith("network.") and held[name].is_floating_point())


def safetensors_of(header):
    return len(header).to_bytes(8, "little") + header.encode() + b"\0"


@pytest.fixture
def damaged(policy_folder, tmp_path):
    def make_folder(name):
        folder = shutil.copytree(policy_folder, tmp_path / name.replace(" ", "-") / "policy")
        DAMAGES[name][0](folder)
        return folder

    return make_folder


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_policy_is_refused_in_one_line_with_file_and_reason(damaged, name):
    folder = damaged(name)
    with pytest.raises(CheckpointError, match=DAMAGES[name][1]) as refusal:
        checkpoint.load(folder)
    assert str(folder) in str(refusal.value) and "\n" not in str(refusal.value)


SERVE = """
import sys
from saycan_qt import serve
for folder in sys.argv[1:]:
    sys.argv[1:] = ["--affordance", folder]
    print("exit code", serve.main())
"""


@pytest.mark.slow
def test_the_skill_server_says_in_one_line_which_checkpoint_it_refuses(damaged):
    names = ["a pickle in place of the weights", "one bit", "brackets without end", "a tensor of another shape"]
    folders = [str(damaged(name)) for name in names]
    command = [sys.executable, "-c", SERVE, *folders, "x" * 5000]
    served = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert served.stdout.count("exit code 2") == 5 and served.returncode == 0
    *lines, nameless = served.stderr.splitlines()
    for line, name, folder in zip(lines, names, folders, strict=True):
        assert re.match(f"error: {re.escape(folder)}.*{DAMAGES[name][1].removeprefix('policy')}", line)
    assert nameless.startswith("error: xxx") and nameless.endswith("cannot be read: File name too long")


KILL = """
import os, pathlib, signal, sys, time, torch
from saycan_qt.learning import checkpoint
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
