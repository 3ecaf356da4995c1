"""Files that harm who reads them: pipes and devices, sizes that lie, a line that stands for gigabytes. Each is refused
in one line, at once, and changes nothing."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from bombs import many_scans
from test_checkpoint import safetensors_of, seal
from test_data import write
from test_data_rlds import bridge, framed, masked
from test_data_rlds import save as rlds
from test_data_robots import made, png, some
from tiny_policies import TEXTS, make

from planners.prompts import ExamplesError, load_examples
from saycan_qt import atomic, collect, train
from saycan_qt.data import images, lerobot, video
from saycan_qt.data.episodes import ColumnMapping, DatasetError, EpisodeDataset
from saycan_qt.data.lerobot import BadEpisode
from saycan_qt.data.tfrecord import Damaged, read_records
from saycan_qt.evaluate import main as evaluate
from saycan_qt.learning import calibration, checkpoint, fit
from saycan_qt.learning.checkpoint import CheckpointError
from saycan_qt.services.models import checkpoints
from skills import files
from skills.client import SkillClient
from skills.embodiment import Embodiment
from skills.errors import EmbodimentError, LibraryError, UnknownSkill, Unreadable
from skills.library import MAX_SKILLS, SkillLibrary, placeholders
from skills.robot_folder import RobotFolder

ROOT = Path(__file__).parent.parent
SECONDS = 5  # that saying no may take, on a machine that does other things
BAD = 10**10


@pytest.fixture(autouse=True)
def no_waiting():
    """A test that hangs fails."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)


@contextmanager
def refused(kind, *words):
    """In one line that says these words, soon."""
    began = time.monotonic()
    with pytest.raises(kind) as refusal:
        yield
    said = str(refusal.value)
    assert all(word in said for word in words), said
    assert "\n" not in said and len(said) < 2000 and time.monotonic() - began < SECONDS, said


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def link(target):
    def replace(path):
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return replace


def folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def endless(path):
    """100 GB that take no room."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(10**11)


NO_FILES = {
    "a pipe": (pipe, "a pipe, not a file"),
    "zeros": (link("/dev/zero"), "a device, not a file"),
    "noise": (link("/dev/random"), "a device, not a file"),
    "a terminal": (link("/dev/ptmx"), "a device, not a file"),
    "a folder": (folder, "a folder, not a file"),
    "too large": (endless, "GiB"),
}


# Files


@pytest.mark.parametrize("name", NO_FILES)
def test_only_regular_files_of_bounded_size_are_read(tmp_path, name):
    make_it, why = NO_FILES[name]
    make_it(tmp_path / "file")
    with pytest.raises(OSError) as refusal:
        files.read(tmp_path / "file")
    assert why in refusal.value.strerror


def test_what_does_not_say_its_size_is_no_file(tmp_path):
    with pytest.raises(OSError, match="does not say its size"):
        files.read("/proc/self/status")


def laughs(levels=9):
    """A billion values in some 500 bytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


YAML = {
    "a billion laughs": (laughs(), "more than 100000 values"),
    "laughs in merges": ("a: &a {x: 1}\n" + "b: &b [*a]\n" * 1 + "c: &c {<<: [*a, *a], d: *c}", "within itself"),
    "a circle": ("&a [*a]", "within itself"),
    "deep": ("[" * 100_000, "levels"),
    "deep without brackets": ("- " * 100_000 + "x", "levels"),
    "many": ("[" + "0," * 101_000 + "]", "more than 100000 values"),
    "a long text named often": (f"a: &a {'x' * 10_000}\nb: [{', '.join(['*a'] * 1000)}]", "more than 100000 values"),
    "a number without end": ("x: " + "9" * 10_000, ""),
    "hexadecimal digits without end": ("x: 0x" + "f" * 6000, ""),
    "minutes of minutes": ("x: 1" + ":59" * 1000, "too many digits"),
    "no day": ("x: 2001-99-99", "month"),
    "no number": ("x: !!int seven", ""),
    "code": ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "a key twice": ("a: 1\na: 2", "stands there twice"),
    "bytes": (b"\xff\xfe\x00\xd8\xff", ""),
    "control characters": (b"a: \x1b[2J", ""),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "many" else ()) for n in YAML])
def test_yaml_is_read_within_bounds(name):
    text, why = YAML[name]
    began = time.monotonic()
    with pytest.raises(yaml.YAMLError) as refusal:
        files.from_yaml(text)
    assert why in str(refusal.value) and time.monotonic() - began < 2 * SECONDS


def test_yaml_may_use_anchors():
    assert files.from_yaml("a: &a {x: [1]}\nb: *a\nc: {<<: *a, y: 2}")["c"] == {"x": [1], "y": 2}


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10**6,
        b'{"a":' * 60 + b"1" + b"}" * 60,
        b"[" + b"0," * 5_000_000 + b"0]",
        b"1" * 5000,
        b'{"a": 1, "a": 2}',
    ],
    ids=["brackets", "levels", "values", "digits", "a key twice"],
)
def test_json_is_read_within_bounds(content):
    with refused(ValueError):
        files.from_json(content)


def test_a_lock_follows_no_link_and_waits_for_no_pipe(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(OSError):
            atomic.lock(tmp_path / name, wait=True)
    assert (tmp_path / "precious").read_text() == "kept"


# Checkpoints


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """kind -> a policy's folder."""
    home = tmp_path_factory.mktemp("policies")
    for kind in (
        "q-transformer",
        "q-transformer, efficientnet",
        "q-transformer, pointing",
        "qt-opt",
        "iql",
        "aw-opt",
        "decision-transformer",
        "rt1",
    ):
        policy = make(kind)
        checkpoint.save(home / kind, *policy.describe(TEXTS), {})
    return home


@pytest.fixture
def copied(policies, tmp_path):
    return lambda kind: shutil.copytree(policies / kind, tmp_path / "policy")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "provenance.json", "manifest.json"])
@pytest.mark.parametrize("name", NO_FILES)
def test_a_checkpoint_is_made_of_files(copied, name, file):
    policy = copied("rt1")
    NO_FILES[name][0](policy / file)
    with refused(CheckpointError, file):
        checkpoint.load(policy)
    with refused(Unreadable, file):
        checkpoints(str(policy), str(policy)).load()
    for damage in ("a pipe", "zeros"):  # beside it, what it says of itself
        NO_FILES[damage][0](calibration.beside(policy))
        with pytest.raises((calibration.CalibrationError, CheckpointError)):
            calibration.load(policy)


def change(policy, changes):
    """Config entries by their path, and a manifest that agrees."""
    config = json.loads((policy / "config.json").read_bytes())
    for path, value in changes.items():
        *way, last = path.split("/")
        entry = config
        for key in way:
            entry = entry[key]
        entry[last] = value
    (policy / "config.json").write_text(json.dumps(config))
    seal(policy)


CAMERAS = [{"name": f"c{number}", "height": 4096, "width": 4096} for number in range(5000)]
CONFIGS = {
    "wide": ("q-transformer", {"network/width": 40000, "network/layers": 100}),
    "long": ("q-transformer", {"network/layers": 10**7}),
    "without end": ("q-transformer", {"network/layers": 10**30}),
    "negative": ("q-transformer", {"network/width": -32}),
    "a fraction": ("q-transformer", {"network/width": 32.0}),
    "no number": ("q-transformer", {"network/width": float("nan")}),
    "a text": ("q-transformer", {"network/layers": "2"}),
    "true": ("q-transformer", {"network/layers": True}),
    "nothing": ("q-transformer", {"network": None}),
    **{
        key: ("q-transformer", {f"network/{key}": BAD})
        for key in ("bins", "tokens", "history", "cameras", "dims", "text_size", "mlp", "heads")
    },
    "many parts": ("q-transformer", {"network/encoder/blocks": [10**7, 1, 1]}),
    "many channels": ("q-transformer", {"network/encoder/channels": [10**6] * 4}),
    "many keypoints": ("q-transformer", {"network/encoder/keypoints": BAD}),
    "a large image": ("q-transformer", {"network/encoder/image": [10**6, 10**6]}),
    "a scale of 0": ("q-transformer", {"network/state/scale": [0] * 8}),
    "no such number": ("q-transformer", {"network/state/position": [0, 1, 99]}),
    "a kernel without end": ("q-transformer", {"config/smoothing": 1e300}),
    "a setting that is none": ("q-transformer", {"config/smoothing": float("nan")}),
    "many texts": ("q-transformer", {"texts": ["a"] * 100_000}),
    "texts that are none": ("q-transformer", {"texts": [1, 2, 3]}),
    "many cameras": ("q-transformer", {"embodiment/cameras": CAMERAS}),
    "a rate that is none": ("q-transformer", {"embodiment/control_hz": float("nan")}),
    "digits without end": ("q-transformer", {"embodiment/control_hz": 10**39}),
    "deep": ("q-transformer, efficientnet", {"network/encoder/depth_multiplier": 1e8}),
    "a wide eye": ("q-transformer, efficientnet", {"network/encoder/width_multiplier": 1e8}),
    "infinitely deep": ("q-transformer, efficientnet", {"network/encoder/depth_multiplier": float("inf")}),
    "more pixels than memory": ("q-transformer, efficientnet", {"network/encoder/image": [4096, 4096]}),
    "many blocks": ("q-transformer, pointing", {"network/encoder/blocks": 10**8}),
    "blocks that none can count": ("q-transformer, pointing", {"network/encoder/blocks": 1.5}),
    "one scale": ("q-transformer, pointing", {"network/encoder/channels": [8]}),
    "wide cells": ("q-transformer, pointing", {"network/encoder/hidden": 10**9}),
    "events that are none": ("q-transformer, pointing", {"network/encoder/taught": -1}),
    "bins that nobody has": ("qt-opt", {"network/bins": 60_000}),
    "many samples": ("qt-opt", {"config/cem_samples": 10**8}),
    "many rounds": ("qt-opt", {"config/cem_iterations": 10**8}),
    "more elites than samples": ("qt-opt", {"config/cem_elites": 100}),
    "an actor's many samples": ("aw-opt", {"config/cem_samples": 10**8}),
    "a temperature of 0": ("aw-opt", {"config/temperature": 0.0}),
    "an expectile that is none": ("iql", {"config/expectile": 2.0}),
    "a window beyond all histories": ("decision-transformer", {"config/context": 10**8}),
    "a longer window than its tensors": ("decision-transformer", {"network/history": 6}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_not_its_tensors_is_refused_before_anything_is_built(copied, name):
    kind, changes = CONFIGS[name]
    policy = copied(kind)
    change(policy, changes)
    with refused(CheckpointError, "does not fit this version of"):
        checkpoint.load(policy)
    with refused(CheckpointError, "does not fit this version of"):
        checkpoint.read(policy)  # as `train --init` does


def header(**tensors):
    return json.dumps(
        {name: dict(zip(("dtype", "shape", "data_offsets"), t, strict=True)) for name, t in tensors.items()}
    )


SAFETENSORS = {
    "2^60 bytes of header": struct.pack("<Q", 2**60) + b"{}",
    "2^60 numbers": safetensors_of(header(a=("F32", [2**60], [0, 2**62]))),
    "a product that overflows": safetensors_of(header(a=("F32", [2**33, 2**33], [0, 1]))),
    "a negative side": safetensors_of(header(a=("F32", [-1, -1], [0, 4]))),
    "half a side": safetensors_of(header(a=("U8", [1.0], [0, 1]))),
    "a name twice": safetensors_of('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":null}'),
    "the same bytes twice": safetensors_of(header(a=("U8", [1], [0, 1]), b=("U8", [1], [0, 1]))),
    "bytes of nobody": safetensors_of("{}"),
    "deep": safetensors_of("[" * 100_000),
    "many": safetensors_of(header(**{f"t{n}": ("U8", [0], [0, 0]) for n in range(fit.TENSORS + 1)})),
    "no tensor": safetensors_of('{"a": 1}'),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_header_that_lies_is_refused(copied, name):
    policy = copied("rt1")
    (policy / "model.safetensors").write_bytes(SAFETENSORS[name])
    seal(policy)
    with refused(CheckpointError, "model.safetensors: not safetensors"):
        checkpoint.load(policy)


def test_eyes_of_another_size_are_refused_before_they_are_built(tmp_path):
    shipped = shutil.copytree(checkpoint.SHIPPED / "perception", tmp_path / "policy")
    checkpoint.read(shipped)
    for changes in ({"trunk/blocks": [10**7, 1, 1]}, {"trunk/image": [10**6, 10**6]}, {"trunk/keypoints": BAD}):
        change(shipped, changes)
        with refused(CheckpointError, "does not fit"):
            checkpoint.read(shipped)


def test_building_on_paper_leaves_random_numbers_and_other_threads_alone(copied):
    policy = copied("q-transformer")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    checkpoint.read(policy)
    assert torch.equal(torch.rand(3), expected) and torch.nn.Linear(2, 2).weight.device.type == "cpu"


@pytest.mark.slow
def test_a_live_server_serves_on_after_reloading_hostile_checkpoints(copied, tmp_path):
    policy = copied("q-transformer")
    skills = tmp_path / "skills.yaml"
    skills.write_text("families:\n" + "".join(f"  f{i}: {{name: {text}}}\n" for i, text in enumerate(TEXTS)))
    command = [sys.executable, "-m", "saycan_qt.serve", "--affordance", str(policy), "--execution", str(policy)]
    command += ["--skills", str(skills), "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            address = server.stdout.readline().split()[-1]
            assert server.stdout.readline()  # ready
            with SkillClient(address) as client:
                before = client.info()
                size = memory(server.pid)
                for changes in ({"network/width": 40000, "network/layers": 100}, {"network/layers": 10**7}):
                    change(policy, changes)
                    with refused(Unreadable, "'default' stays as it was"):
                        client.reload()
                for name in ("a pipe", "zeros", "too large"):
                    NO_FILES[name][0](policy / "config.json")
                    with refused(Unreadable, "config.json: cannot be read"):
                        client.reload()
                assert client.info() == before and memory(server.pid) < size + 100e6
            server.send_signal(signal.SIGTERM)
            assert server.wait(20) == 0
        finally:
            server.kill()


def memory(pid):
    """[bytes] resident."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Datasets


def info(**changes):
    def damage(root):
        path = root / lerobot.INFO
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def table(name, change):
    """Columns of a Parquet file changed."""

    def damage(root):
        held = pq.read_table(root / name)
        pq.write_table(change(held), root / name)

    return damage


def column(name, key, values):
    return table(name, lambda held: held.set_column(held.column_names.index(key), key, [values]))


def no_file(name, kind):
    return lambda root: NO_FILES[kind][0](root / name)


def elsewhere(root):
    """A file of the dataset lies beside it, and is linked to."""
    (root / FRAMES).rename(root.parent / "frames.parquet")
    (root / FRAMES).symlink_to(root.parent / "frames.parquet")


def linked_folder(root):
    (root / "data").rename(root.parent / "moved")
    (root / "data").symlink_to(root.parent / "moved")


def inflated(root):
    """Some kilobytes that become 8 GB."""
    repeated = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int32)), pa.array(["x" * 8000]))
    tasks = pa.table({"task_index": np.arange(10**6), "task": repeated})
    pq.write_table(tasks, root / lerobot.TASKS, store_schema=False)  # so that it is read as text
    assert (root / lerobot.TASKS).stat().st_size < 10 * 2**20


def many_rows(root):
    zeros = pa.array(np.zeros(2 * 10**6, np.int64))
    pq.write_table(pa.table(dict.fromkeys(pq.read_schema(root / ROWS).names, zeros)), root / ROWS)


def many_frames(root):
    """10^8 of them, as runs of zeros."""
    table = pa.table(dict.fromkeys(pq.read_schema(root / FRAMES).names, pa.array(np.zeros(10**6, np.int64))))
    with pq.ParquetWriter(root / FRAMES, table.schema) as writer:
        for _ in range(100):
            writer.write_table(table)
    assert (root / FRAMES).stat().st_size < 10 * 2**20


FRAMES, ROWS = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
FRONT = "observation.images.front"
HUGE = {"dtype": "image", "shape": [10**6, 10**6, 3], "names": None}
VECTOR = {"dtype": "float32", "shape": [2], "names": None}
DATASETS = {
    "a path out of it": (info(data_path="../{chunk_index}{file_index}.parquet"), "leads out of the dataset's folder"),
    "an absolute path": (info(data_path="/etc/passwd{chunk_index}"), "leads out of the dataset's folder"),
    "a width of 10^10": (info(data_path="data/{episode_index:010000000000d}"), "names no file"),
    "a width that exists": (info(data_path="data/{chunk_index:010000000000d}"), "names no file"),
    "an attribute": (info(data_path="data/{chunk_index.__class__}"), "names no file"),
    "an index": (info(data_path="data/{chunk_index[0]}"), "names no file"),
    "a conversion": (info(data_path="data/{chunk_index!r}"), "names no file"),
    "nested": (info(data_path="data/{chunk_index:{file_index}}"), "names no file"),
    "a path that is none": (info(data_path=["data"]), "names no file"),
    "a path of no letters": (info(data_path="data/\0{chunk_index}"), "is no path"),
    "fps 0": (info(fps=0), "fps is 0"),
    "fps below 0": (info(fps=-3), "fps is -3"),
    "fps not a number": (info(fps=float("nan")), "fps is nan"),
    "fps infinite": (info(fps=float("inf")), "fps is inf"),
    "fps a text": (info(fps="ten"), "fps is 'ten'"),
    "fps next to nothing": (info(fps=1e-300), "fps is 1e-300"),
    "frames in words": (info(total_frames="many"), "total_frames is 'many'"),
    "frames below 0": (info(total_frames=-1), "total_frames is -1"),
    "frames without end": (info(total_frames=10**15), "total_frames is"),
    "no features": (info(features=[]), "features"),
    "a feature that is none": (info(features={"action": 3}), "feature 'action'"),
    "a picture of a terapixel": (info(features={"action": VECTOR, FRONT: HUGE}), "feature 'observation.images.front'"),
    "a side below 0": (info(features={"action": {"dtype": "float32", "shape": [-2]}}), "of shape [-2]"),
    "a side in words": (info(features={"action": {"dtype": "float32", "shape": ["2"]}}), "of shape ['2']"),
    "a shape in words": (info(features={"action": {"dtype": "float32", "shape": "2"}}), "of shape"),
    "a type of numbers": (info(features={"action": {"dtype": 7, "shape": [2]}}), "feature 'action'"),
    "deep info": (lambda root: (root / lerobot.INFO).write_text('{"a":' * 500 + "1" + "}" * 500), "damaged"),
    "info as a pipe": (no_file(lerobot.INFO, "a pipe"), "a pipe, not a file"),
    "info of zeros": (no_file(lerobot.INFO, "zeros"), "a device, not a file"),
    "info too large": (no_file(lerobot.INFO, "too large"), "are read"),
    "frames as a pipe": (no_file(FRAMES, "a pipe"), "a pipe, not a file"),
    "frames of zeros": (no_file(FRAMES, "zeros"), "leads out of the dataset's folder"),
    "rows as a pipe": (no_file(ROWS, "a pipe"), "a pipe, not a file"),
    "tasks as a pipe": (no_file(lerobot.TASKS, "a pipe"), "a pipe, not a file"),
    "a link out of it": (elsewhere, "leads out of the dataset's folder"),
    "a linked folder": (linked_folder, "leads out of the dataset's folder"),
    "tasks that inflate": (inflated, "it inflates to over"),
    "two million rows": (many_rows, "rows, at most"),
    "a hundred million frames": (many_frames, "it inflates to"),
    "a length below 0": (column(ROWS, "length", pa.array([-1, 10])), "-1 are listed"),
    "a length without end": (column(ROWS, "length", pa.array([2**62, 10])), "are listed"),
    "a length in words": (column(ROWS, "length", pa.array(["a", "b"])), "length is not a whole number"),
    "no length": (column(ROWS, "length", pa.array([None, 10], pa.int64())), "length is not a whole number"),
    "a place below 0": (column(ROWS, "data/chunk_index", pa.array([-1, 0])), "names no file"),
    "a place of infinity": (column(ROWS, "data/chunk_index", pa.array([np.inf, 0])), "data/chunk_index is not a whole"),
    "actions of 3e38": (
        column(FRAMES, "action", lerobot.vectors(np.full((20, 2), 3e38, np.float32))),
        "no measurement",
    ),
    "actions of 1e300": (column(FRAMES, "action", lerobot.vectors(np.full((20, 2), 1e300))), "not finite"),
    "actions in words": (column(FRAMES, "action", pa.array(["a"] * 20)), "holds no numbers"),
    "episodes in words": (column(FRAMES, "episode_index", pa.array(["a"] * 20)), "episode_index is not a whole number"),
    "tasks by name": (column(FRAMES, "task_index", pa.array([[0]] * 20)), "task_index is no whole number"),
    "pictures of numbers": (column(FRAMES, FRONT, pa.array([3] * 20)), "no bytes of PNG or JPEG"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "a hundred million frames" else []) for n in DATASETS]
)
def test_a_hostile_dataset_is_refused_in_one_line(tmp_path, name, capsys):
    damage, why = DATASETS[name]
    root = made(tmp_path / "data", some(2))
    damage(root)
    began = time.monotonic()
    with pytest.raises(DatasetError) as refusal:
        EpisodeDataset(root, cache=tmp_path / "cache")
    said = str(refusal.value).splitlines()[0]
    assert why in said and len(said) < 2000 and time.monotonic() - began < 2 * SECONDS
    assert not list((tmp_path / "cache").glob("frames-*"))


@pytest.mark.parametrize(
    "name", ["a width of 10^10", "fps a text", "info as a pipe", "frames as a pipe", "actions of 3e38"]
)
def test_commands_say_so_in_one_line_with_exit_code_2(tmp_path, name, capsys, monkeypatch):
    root = made(tmp_path / "data", some(2))
    DATASETS[name][0](root)
    monkeypatch.setattr(sys, "argv", ["train", "rt1", "--data", str(root), "--out", str(tmp_path / "run"), "--debug"])
    assert train.main() == 2 and evaluate(["affordance", "--data", str(root)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(line.startswith("error: ") and DATASETS[name][1] in line for line in said)


def test_a_collection_whose_settings_are_a_pipe_is_not_continued(tmp_path, capsys):
    os.mkfifo(tmp_path / "collect.json")
    assert collect.main(["--out", str(tmp_path), "--episodes", "1", "--workers", "1"]) == 2
    assert "a pipe, not a file" in capsys.readouterr().err


def test_the_hubs_cache_is_one_folder(tmp_path):
    """There a snapshot's files are links to blobs beside it."""
    home = tmp_path / "datasets--me--pusht"
    root = made(home / "snapshots" / ("0" * 40), some(2))
    (home / "blobs").mkdir()
    for number, path in enumerate(path for path in sorted(root.rglob("*")) if path.is_file()):
        path.rename(home / "blobs" / str(number))
        path.symlink_to(home / "blobs" / str(number))
    assert len(EpisodeDataset(root, cache=tmp_path / "cache")) == 2


def test_a_manifest_that_leads_elsewhere_or_lies_is_refused(tmp_path):
    root = tmp_path / "ours"
    write(root, range(2))
    path = root / lerobot.MANIFEST
    sound = json.loads(path.read_text())
    data = next(name for name in sound["files"] if name.startswith("data/"))
    rows = next(name for name in sound["files"] if name.startswith("meta/episodes/"))
    wrong = [("derived", {"../../etc/passwd": []}), ("files", {rows: {"sha256": "0", "episodes": BAD}})]
    wrong += [("files", {data: 3}), ("tasks", [1]), ("derived", 3), ("stats", None), ("files", [])]
    for key, entry in wrong:
        merged = sound[key] | entry if isinstance(entry, dict) else entry
        path.write_text(json.dumps(sound | {key: merged}))
        with refused(DatasetError):
            EpisodeDataset(root, cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["index.json", "digests.json", ".lock", "states.bin"])
def test_a_cache_that_came_with_the_data_is_not_waited_for(tmp_path, name):
    root = made(tmp_path / "data", some(2))
    EpisodeDataset(root)
    (path,) = (root / ".cache").rglob(name)
    pipe(path)
    if name == ".lock":  # nothing is written, and the finished cache serves
        assert len(EpisodeDataset(root)) == 2
        return
    assert len(EpisodeDataset(root)) == 2 and path.is_file()


def test_a_record_of_2_to_the_60_bytes_ends_the_file(tmp_path):
    length = struct.pack("<Q", 2**60)
    (tmp_path / "a.tfrecord").write_bytes(framed(b"one") + length + masked(length) + b"x" * 100)
    first, second = read_records(tmp_path / "a.tfrecord")
    assert first == b"one" and isinstance(second, Damaged) and second.ends
    os.mkfifo(tmp_path / "b.tfrecord")
    assert "a pipe" in next(read_records(tmp_path / "b.tfrecord")).reason
    with refused(DatasetError):
        EpisodeDataset(tmp_path)


@pytest.mark.parametrize("lengths", [["1000000000000"], [-1], [1e400], ["a"]])
def test_a_list_of_records_without_end_is_refused(tmp_path, lengths):
    root = rlds(tmp_path / "rlds", [bridge(0)])
    (file,) = root.glob("*.tfrecord*")
    file.rename(root / "x-train.tfrecord-00000-of-00001")
    (root / "dataset_info.json").write_text(json.dumps({"splits": [{"name": "train", "shardLengths": lengths}]}))
    began = time.monotonic()
    if lengths in (["a"], [1e400]):  # it says nothing then
        assert len(EpisodeDataset(root, cache=tmp_path / "cache", mapping="bridge")) == 1
    else:
        with refused(DatasetError, "dataset_info.json: a file of", "records"):
            EpisodeDataset(root, cache=tmp_path / "cache", mapping="bridge")
    assert time.monotonic() - began < SECONDS


MAPPINGS = {
    "no rate": "rate: .nan",
    "next to no rate": "rate: 1.0e-300",
    "a large image": "image_size: [1000000, 1000000]",
    "a far place": "action: 'action[0:99999999999999]'",
    "a large scale": "action: {column: action, scale: 1.0e+300}",
    "many frames": "skip_first: 0x" + "f" * 6000,
    "deep": "[" * 10_000,
    "laughs": laughs(),
}


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_hostile_mapping_is_refused(tmp_path, name):
    (tmp_path / "mapping.yaml").write_text(MAPPINGS[name])
    began = time.monotonic()
    with pytest.raises(DatasetError):
        EpisodeDataset(made(tmp_path / "data", some(2)), mapping=tmp_path / "mapping.yaml")
    assert time.monotonic() - began < SECONDS


def test_a_mapping_or_outcomes_that_are_a_pipe_are_refused(tmp_path):
    for name in ("mapping.yaml", "outcomes.csv"):
        os.mkfifo(tmp_path / name)
    with refused(DatasetError, "a pipe, not a file"):
        ColumnMapping.load(tmp_path / "mapping.yaml")
    with refused(DatasetError, "a pipe, not a file"):
        ColumnMapping().with_success(str(tmp_path / "outcomes.csv"))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (many_scans(4096, 3000), "3000 scans"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be decoded"),
        (png(np.zeros((4, 4), np.uint16)), "is a 16-bit PNG"),
    ],
    ids=["3000 scans", "a program", "depth"],
)
def test_a_picture_that_is_none_costs_its_episode(data, why):
    with refused(BadEpisode, why):
        images.decode(data, "at step 0")


def test_pictures_that_no_memory_holds_cost_their_episode():
    with refused(BadEpisode, "more than half of the memory here"):
        images.stack(iter(()), 10**6, None, (4096, 4096))


@pytest.mark.parametrize("times", [[np.nan], [np.inf], [-5.0], [1e300]], ids=str)
def test_times_that_are_none_and_files_that_are_no_videos_cost_their_episode(tmp_path, times):
    with refused(BadEpisode, "are no times in a video"):
        next(iter(video.read_frames(tmp_path / "v.mp4", np.array(times), 10.0)))
    os.mkfifo(tmp_path / "v.mp4")
    with refused(BadEpisode, "a pipe, not a file"):
        next(iter(video.read_frames(tmp_path / "v.mp4", np.zeros(1), 10.0)))
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/other.mp4\n")
    with refused(BadEpisode, "cannot be decoded"):
        next(iter(video.read_frames(tmp_path / "list.mp4", np.zeros(1), 10.0)))


# Robots' folders and skills


def skills(lists, name="go {a}", **keys):
    return yaml.safe_dump({"lists": lists, "families": {"go": {"name": name, **keys}}})


WORDS = [f"word {number}" for number in range(100)]
SLOTS = "abcdefghij"
SKILLS = {
    "10 slots of 100 values": (
        skills(dict.fromkeys(SLOTS, WORDS), " ".join(f"{{{slot}}}" for slot in SLOTS)),
        f"at most {MAX_SKILLS} are read",
    ),
    "a long template": (skills({"a": ["x"]}, "x" * 2000), "2000 characters"),
    "a template that grows": (skills({"a": ["x" * 900]}, "{a}" * 300), "above 1000 characters"),
    "a long word": (skills({"a": ["x" * 100_000]}), "100000 characters"),
    "a wide slot": (skills({"a": ["x"]}, "{a:1000000000}"), "plain word in braces"),
    "an attribute": (skills({"a": ["x"]}, "{a.__class__}"), "plain word in braces"),
    "an escape": ('lists: {a: ["\\e[2J"]}\nfamilies: {go: {name: "go {a}"}}', "cannot be read"),
    "half a letter": ('lists: {a: ["\\ud800"]}\nfamilies: {go: {name: "go {a}"}}', ""),
    "letters that turn round": ('lists: {a: ["\\u202egnp"]}\nfamilies: {go: {name: "go {a}"}}', "cannot be read"),
    "a billion laughs": (laughs(), "more than 100000 values"),
    "a circle": ("families: &a {go: *a}", "within itself"),
    "deep": ("[" * 10_000, "levels"),
}


@pytest.mark.parametrize("name", SKILLS)
def test_a_hostile_skill_file_is_refused_in_one_line(tmp_path, name):
    text, why = SKILLS[name]
    (tmp_path / "skills.yaml").write_text(text)
    with refused(LibraryError, str(tmp_path / "skills.yaml"), why):
        SkillLibrary.load(tmp_path / "skills.yaml")


def test_a_newline_in_a_name_is_a_blank(tmp_path):
    (tmp_path / "skills.yaml").write_text('lists: {a: ["x\\n1. done\\ty"]}\nfamilies: {go: {name: "go {a}"}}')
    assert [skill.name for skill in SkillLibrary.load(tmp_path / "skills.yaml")] == ["go x 1. done y"]


def test_thousands_of_words_are_read_soon_and_a_wrong_one_is_told_soon(tmp_path):
    """To look for each word among those before it would take minutes."""
    began = time.monotonic()
    (tmp_path / "skills.yaml").write_text(
        "lists:\n  a:\n" + "".join(f"    - {n}\n" for n in range(20_000)) + "families:\n  go:\n    name: go {a}\n"
    )
    library = SkillLibrary.load(tmp_path / "skills.yaml")
    assert len(library) == 20_000 and time.monotonic() - began < 2 * SECONDS
    began = time.monotonic()
    with pytest.raises(UnknownSkill, match="did you mean"):
        library["x" * 10_000]
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize(
    "views", [["a", "a"], [""], ["a\x1b[2J"], ["x" * 10**6]], ids=["twice", "none", "bell", "endless"]
)
def test_views_are_names_that_can_be_read(tmp_path, views):
    from skills import robot_folder

    robot = shutil.copytree(robot_folder.KITCHEN, tmp_path / "robot")
    said = yaml.safe_load((robot / "robot.yaml").read_text()) | {"views": views}
    (robot / "robot.yaml").write_text(yaml.safe_dump(said))
    with refused(EmbodimentError, "robot.yaml: views"):
        RobotFolder.load(robot)


@pytest.mark.parametrize("file", ["robot.yaml", "skills.yaml", "examples.yaml"])
@pytest.mark.parametrize("name", NO_FILES)
def test_a_robots_folder_is_made_of_files(tmp_path, name, file):
    from skills import robot_folder

    robot = shutil.copytree(robot_folder.KITCHEN, tmp_path / "robot")
    NO_FILES[name][0](robot / file)
    with refused((EmbodimentError, LibraryError, ExamplesError), file, "cannot be read"):
        assert RobotFolder.load(robot).library and load_examples(robot / "examples.yaml")


EXAMPLES = {
    "10 slots of 100 values": ({**dict.fromkeys(SLOTS, WORDS), "plan": ["go"], "say": ["go"]}, "at most"),
    "an attribute": ({"a": ["x"], "plan": ["go"], "say": ["{a.__class__.__mro__}"]}, "plain word in braces"),
    "a width": ({"a": ["x"], "plan": ["go"], "say": ["{a:10000000000}"]}, "plain word in braces"),
    "a template that grows": ({"a": ["x" * 900], "plan": ["go"], "say": ["{a}" * 300]}, "above 1000 characters"),
    "an escape": ({"a": ["\x1b[2J"], "plan": ["go"], "say": ["go {a}"]}, "cannot be read"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_hostile_examples_are_refused_in_one_line(tmp_path, name):
    entry, why = EXAMPLES[name]
    (tmp_path / "examples.yaml").write_text(yaml.safe_dump({"examples": [entry]}))
    with refused(ExamplesError, why):
        load_examples(tmp_path / "examples.yaml")


@pytest.mark.parametrize("template", ["{a.b}", "{a[0]}", "{a!r}", "{a:9}", "{}", "{0}", "{a"])
def test_a_template_is_filled_with_plain_words_alone(template):
    with pytest.raises(ValueError):
        placeholders(template)


ROBOTS = {
    "hz: digits": {"control_hz": 10**400},
    "seconds: endless": {"max_seconds": float("inf")},
    "history: digits": {"history": 10**400},
    "bounds that overflow": {"action": [{"name": "x", "low": -1e300, "high": 1e300}]},
    "a rate of next to nothing": {"control_hz": 1e-300},
    "more pixels than a robot has": {"cameras": CAMERAS[:10]},
    "more cameras than a robot has": {"cameras": [camera | {"height": 9, "width": 9} for camera in CAMERAS]},
    "a name without end": {"state": [{"name": "x" * 10**6}]},
    "a robot's name of two lines": {"name": "arm\nready: yes"},
    "a robot's name without end": {"name": "x" * 10**6},
}


@pytest.mark.parametrize("name", ROBOTS)
def test_an_embodiment_that_no_robot_has_is_refused_in_one_line(name):
    sound = {"action": [{"name": "x", "low": 0, "high": 1}], "state": [{"name": "s"}]}
    with refused(EmbodimentError):
        Embodiment.parse(sound | ROBOTS[name], "robot.yaml")
