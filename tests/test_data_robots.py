"""Datasets of any robot say what is what: cameras, names, rates, tasks, and what is odd about them."""

import io
import json
import logging
from dataclasses import replace as but

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_data import HEAD, episode, write
from test_data_rlds import jpeg, save

from saycan_qt import atomic
from saycan_qt.data import lerobot
from saycan_qt.data.episodes import ColumnMapping, DatasetError, Episode, EpisodeDataset, EpisodeWriter
from saycan_qt.data.layout.settle import Contents, kind_of, settle
from saycan_qt.data.recorder import EpisodeRecorder
from skills.embodiment import ActionDimension, Camera, Embodiment, StateNumber
from skills.robot_folder import default_robot
from skills.types import Observation, Outcome, Status

SO101 = [
    f"{joint}.pos" for joint in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
]
ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
ALOHA = [f"{side}_{joint}" for side in ("left", "right") for joint in ARM]
POSE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
SIZE = (12, 16)

# robot: (names of the action, names of the state, cameras, rate, what its action is)
ROBOTS = {
    "so101": (SO101, SO101, ["observation.images.front", "observation.images.wrist"], 30, "absolute"),
    "aloha": (
        {"motors": ALOHA},
        {"motors": ALOHA},
        [f"observation.images.cam_{place}" for place in ("high", "low", "left_wrist", "right_wrist")],
        50,
        "absolute",
    ),
    "pusht": (
        {"motors": ["motor_0", "motor_1"]},
        {"motors": ["motor_0", "motor_1"]},
        ["observation.image"],
        10,
        "absolute",
    ),
    "droid": ({"axes": [f"joint_{i}" for i in range(7)] + ["gripper"]}, None, ["a", "b", "wrist"], 15, "absolute"),
    "libero": (
        {"delta_" + name: place for place, name in enumerate(POSE)},
        POSE,
        ["observation.images.image", "observation.images.wrist_image"],
        20,
        "delta",
    ),
    "ogbench": (None, None, [], 20, "absolute"),
}
DIMENSIONS = {"so101": 6, "aloha": 14, "pusht": 2, "droid": 8, "libero": 7, "ogbench": 5}


def png(value) -> bytes:
    buffer = io.BytesIO()
    picture = np.random.default_rng(value).integers(0, 255, (*SIZE, 3), np.uint8) if np.isscalar(value) else value
    Image.fromarray(picture).save(buffer, "png")
    return buffer.getvalue()


def made(root, actions, cameras=("observation.images.front",), fps=10, names=None, state_names=None, frame_tasks=None,
         episodes=2, picture=png, **columns):  # fmt: skip
    """A LeRobotDataset v3 as the official library lays it out; actions (T, D), those of each episode and its state."""
    length, size = actions.shape
    total, frame = episodes * length, np.tile(np.arange(length), episodes)
    tasks = frame_tasks or ["pick up the cube"] * length
    listed = sorted(set(tasks))
    vectors = lerobot.vectors(np.tile(actions, (episodes, 1)).astype(np.float32))
    table = {
        "observation.state": vectors,
        "action": vectors,
        "timestamp": pa.array((frame / fps).astype(np.float32)),
        "episode_index": pa.array(np.repeat(np.arange(episodes), length)),
        "task_index": pa.array(np.tile([listed.index(task) for task in tasks], episodes)),
        **{key: pa.array(np.tile(values, episodes)) for key, values in columns.items()},
    }
    features = {key: {"dtype": "float32", "shape": [1], "names": None} for key in columns}
    features |= {key: {"dtype": "image", "shape": [*SIZE, 3], "names": None} for key in cameras}
    for key, given in (("observation.state", state_names), ("action", names)):
        features[key] = {"dtype": "float32", "shape": [size], "names": given}
    for camera in cameras:
        images = [{"bytes": picture(i), "path": f"{i}.png"} for i in range(total)]
        table[camera] = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    rows = {
        "episode_index": np.arange(episodes),
        "tasks": [listed[::-1]] * episodes,
        "length": [length] * episodes,
        "data/chunk_index": [0] * episodes,
        "data/file_index": [0] * episodes,
    }
    for name, content in (
        ("data/chunk-000/file-000.parquet", table),
        ("meta/episodes/chunk-000/file-000.parquet", rows),
        (lerobot.TASKS, {"task_index": range(len(listed)), "__index_level_0__": listed}),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(content), root / name)
    info = {
        "codebase_version": "v3.0",
        "fps": fps,
        "robot_type": root.name,
        "total_frames": total,
        "features": features,
    }
    (root / lerobot.INFO).write_text(json.dumps(info | {"data_path": lerobot.DATA_PATH, "video_path": None}))
    return root


def some(dimensions, length=10, scale=1.0):
    return np.random.default_rng(0).normal(0, scale, (length, dimensions)).astype(np.float32)


@pytest.mark.parametrize("name", ROBOTS)
def test_a_dataset_that_says_what_is_what_needs_no_mapping(tmp_path, name):
    names, state_names, cameras, fps, kind = ROBOTS[name]
    actions = some(DIMENSIONS[name])
    dataset = EpisodeDataset(made(tmp_path / name, actions, cameras, fps, names, state_names))
    robot = dataset.embodiment
    assert (
        [camera.name for camera in robot.cameras] == [key.rpartition(".")[2] for key in cameras] == [*dataset.cameras]
    )
    assert all((camera.height, camera.width) == SIZE for camera in robot.cameras)
    assert all(images.shape == (20, *SIZE, 3) for images in dataset.cameras.values())
    assert dataset.images.shape == ((20, *SIZE, 3) if cameras else (20, 0, 0, 3))
    *acting, last = robot.action
    assert (robot.control_hz, len(acting), last.kind, robot.name) == (fps, DIMENSIONS[name], "terminate", name)
    assert {dimension.kind for dimension in acting if "gripper" not in dimension.name} == {kind}
    assert np.allclose([d.low for d in acting], actions.min(axis=0)) and np.allclose(
        robot.high[:-1], actions.max(axis=0)
    )
    assert np.array_equal(dataset.actions[:10, :-1], actions) and np.array_equal(dataset.states[:10], actions)
    assert np.flatnonzero(dataset.actions[:, -1]).tolist() == [9, 19]
    if names is SO101:
        assert [dimension.name for dimension in acting] == [number.name for number in robot.state] == SO101


def bridge(number, cameras=4):
    steps = 6
    last = np.arange(steps) == steps - 1
    pictures = {
        f"steps/observation/image_{i}": [jpeg(number + i, step) for step in range(steps)] for i in range(cameras)
    }
    return pictures | {
        "steps/action": np.random.default_rng(number).normal(size=(steps, 7)).astype(np.float32),
        "steps/observation/state": np.random.default_rng(number).normal(size=(steps, 7)).astype(np.float32),
        "steps/language_instruction": [b"put the carrot on the plate"] * steps,
        "steps/reward": last.astype(np.float32),
        "steps/is_first": np.arange(steps) == 0,
        "steps/is_last": last,
        "steps/is_terminal": last,
    }


def test_an_rlds_dataset_of_four_cameras_needs_no_mapping(tmp_path):
    dataset = EpisodeDataset(save(tmp_path / "bridge", [bridge(number) for number in range(3)]))
    assert [*dataset.cameras] == [f"image_{i}" for i in range(4)] and dataset.success.all()
    assert (len(dataset.embodiment.action), len(dataset.embodiment.state), dataset.embodiment.control_hz) == (8, 7, 0)
    assert np.array_equal(dataset.states[:6], bridge(0)["steps/observation/state"])


def robot_of(cameras=(), state=3, hz=20.0, kinds=("delta", "absolute", "fraction"), name="arm"):
    action = [
        ActionDimension(f"a_{i}", -0.5 if kind != "fraction" else 0, 1, "m", kind) for i, kind in enumerate(kinds)
    ]
    numbers = tuple(StateNumber(f"s_{i}", "m") for i in range(state))
    return Embodiment(tuple(action), tuple(Camera(*c) for c in cameras), numbers, hz, 12.0, 2, name)


def try_of(robot, length=8, seed=0, success=True):
    rng = np.random.default_rng(seed)
    images = {c.name: rng.integers(0, 255, (length, c.height, c.width, 3), np.uint8) for c in robot.cameras}
    states = rng.normal(size=(length, len(robot.state))).astype(np.float32)
    return Episode(images, states, rng.uniform(0, 1, (length, len(robot.action))).astype(np.float32), "lift", success)


@pytest.mark.parametrize("cameras", [(), (("front", 12, 16), ("wrist", 8, 8))])
@pytest.mark.parametrize("video", [False, ["wrist"]])
def test_what_was_written_for_a_robot_comes_back_with_it(tmp_path, cameras, video):
    robot = robot_of(cameras)
    if video and not cameras:
        with pytest.raises(ValueError, match="no camera 'wrist' to be a video; there are none"):
            EpisodeWriter(tmp_path, robot, video=video)
        return
    with EpisodeWriter(tmp_path, robot, video=video) as writer:
        writer.add(try_of(robot))
    EpisodeWriter(tmp_path, robot, video=video).close()  # goes on
    dataset = EpisodeDataset(tmp_path)
    ending = ActionDimension("terminate", kind="terminate")
    assert dataset.embodiment == but(robot, action=(*robot.action, ending))
    assert all(images.shape[1:] == (12, 16, 3) for images in dataset.cameras.values())
    there = dataset.episode(0)
    assert np.array_equal(there.states, try_of(robot).states) and dataset.image_size == (
        (12, 16) if cameras else (0, 0)
    )
    if cameras:
        assert np.array_equal(there.views["front"], try_of(robot).views["front"])
    with pytest.raises(DatasetError, match=r"begun for another robot, see .*embodiment.json|with other features"):
        EpisodeWriter(tmp_path, robot_of(cameras, kinds=("delta", "delta", "fraction")), video=video)


def test_a_kitchen_dataset_of_before_embodiments_is_the_kitchens(tmp_path):
    root = write(tmp_path / "d", range(4))
    manifest = json.loads((root / lerobot.MANIFEST).read_text())
    del manifest["derived"][lerobot.EMBODIMENT]
    (root / lerobot.MANIFEST).write_text(json.dumps(manifest))
    (root / lerobot.EMBODIMENT).unlink()
    dataset = EpisodeDataset(root)
    kitchen = default_robot().embodiment
    assert dataset.embodiment == but(kitchen, cameras=(Camera("head", 8, 10),)) and dataset.actions.shape[1] == 8
    assert np.array_equal(dataset.episode(1).actions, episode(1).actions)


def test_a_mapping_chooses_cameras_names_kinds_and_ends(tmp_path):
    cameras = ["observation.images.front", "observation.images.wrist"]
    root = made(tmp_path / "arm", some(4), cameras)
    text = {
        "cameras": {"hand": "wrist"},
        "state": None,
        "names": ["x", "y", "z", "done"],
        "kinds": {"done": "terminate"},
    }
    with pytest.raises(DatasetError, match=r"done is .* not within 0 to 1; does the mapping lack `terminate`"):
        EpisodeDataset(root, mapping=ColumnMapping.parse(text, "m"))
    text |= {"kinds": "delta", "terminate": "none"}
    dataset = EpisodeDataset(root, mapping=ColumnMapping.parse(text, "m"))
    assert [*dataset.cameras] == ["hand"] and dataset.states.shape == (20, 0) and dataset.embodiment.terminate is None
    assert [(d.name, d.kind) for d in dataset.embodiment.action] == [
        (name, "delta") for name in ("x", "y", "z", "done")
    ]
    base = ColumnMapping.parse({"base": "bridge", "action": "steps/action"}, "m")
    assert base.names is None and not base.kinds and base.rate == 5


MISTAKES = {
    'action: ["action[0:7]"]': r'action has 6 numbers, `action` wants 0:7(.|\n)*action: \["action\[0:6\]"\]',
    'state: "observation.state[4:9]"': r'`state` wants 4:9(.|\n)*state: \["observation.state\[4:6\]"\]',
    "terminate: action": r'`terminate` takes one number, not 6(.|\n)*terminate: "action\[0\]"',
    "image: wrst": r"it has no image 'wrst'(.|\n)*image: observation.images.front",
    "names: [x, y]": "the action has 6 numbers, the mapping 2 `names`: x, y",
    "kinds: {actoin_0: delta}": "kinds: no key 'actoin_0'; did you mean 'action_0'",
    "kinds: fast": r"kinds is 'fast'; write for instance `kinds: {x: delta",
    "image: front\ncameras: [front]": "`image` is one camera alone, `cameras` are several",
    "terminate: last\nkinds: {action_5: terminate}": r"has 'action_5' already(.|\n)*`action: \[\"action\[0:5\]\"\]`",
    "reward: next.rewrd": r"no column 'next.rewrd' of one number a step, wanted for `reward`(.|\n)*reward: ",
    "cameras: []\nstate: null": "neither a camera nor a state",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_hint_can_work(tmp_path, text):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(DatasetError, match=MISTAKES[text]):
        EpisodeDataset(made(tmp_path / "d", some(6)), mapping=tmp_path / "m.yaml")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("shoulder_pan.pos", "absolute"),
        ("left_wrist_angle", "absolute"),
        ("joint_3", "absolute"),
        ("dx", "delta"),
        ("droll", "delta"),
        ("delta_x_ee", "delta"),
        ("ee.rel.z", "delta"),
        ("terminate", "terminate"),
        ("x", None),
        ("door", None),
        ("action_2", None),
    ],
)
def test_a_name_tells_its_kind(name, kind):
    assert kind_of(name) == kind


def test_one_kind_for_all_is_said_and_comes_before_what_names_tell():
    contents = Contents(
        *("d", {}, {"state": 1, "action": 3}, (), ("task",), (), "state", "action", (), "next.reward", "task"),
        names={"action": ["shoulder_pan.pos", "x", "dz"]},
    )
    found = settle(ColumnMapping.parse({"kinds": "absolute"}, "m"), contents)
    assert [dimension.kind for dimension in found.embodiment.action[:3]] == ["absolute"] * 3


def test_a_lower_rate_adds_changes_up_and_takes_the_rest_at_the_steps_end(tmp_path):
    robot = robot_of((("front", 12, 16),), hz=30.0)
    with EpisodeWriter(tmp_path / "d", robot) as writer:
        writer.add(given := but(try_of(robot, length=7), rewards=np.arange(7, dtype=np.float32)))
    dataset = EpisodeDataset(tmp_path / "d", rate=10)
    assert dataset.embodiment.control_hz == 10 and dataset.num_frames == 3
    sums = [given.actions[:3, 0].sum(), given.actions[3:6, 0].sum(), given.actions[6, 0]]
    assert np.allclose(dataset.actions[:, 0], sums) and dataset.actions[:, 3].tolist() == [0, 0, 1]
    assert np.array_equal(dataset.actions[:, 1:3], given.actions[[2, 5, 6], 1:3])
    assert np.array_equal(dataset.states, given.states[::3]) and dataset.rewards.tolist() == [3, 12, 6]
    assert np.array_equal(dataset.images, given.views["front"][::3]) and dataset.return_range == (21, 21)
    assert (dataset.embodiment.low[0], dataset.embodiment.high[0]) == (-1.5, 3)  # as many changes add up
    assert dataset.digest != EpisodeDataset(tmp_path / "d").digest
    with pytest.raises(DatasetError, match=r"has 30 frames a second, of which none are 12; .* 30, 15, 10, 7.5, 6"):
        EpisodeDataset(tmp_path / "d", rate=12)


def test_a_lower_rate_needs_to_know_what_adds_up(tmp_path):
    root = made(tmp_path / "d", some(3), names=["x", "y", "gripper"])
    with pytest.raises(
        DatasetError, match=r"nobody says which x, y are(.|\n)*kinds: {x: delta, y: delta}   # or absolute"
    ):
        EpisodeDataset(root, rate=5)
    kinds = ColumnMapping.parse({"kinds": {"x": "delta", "y": "absolute"}}, "m")
    assert EpisodeDataset(root, rate=5, mapping=kinds).num_frames == 10
    with pytest.raises(DatasetError, match="does not say its rate; a mapping's line `rate: HZ` does"):
        EpisodeDataset(save(tmp_path / "bridge", [bridge(0)]), rate=5)


def test_rates_are_not_mixed_unless_brought_to_one(tmp_path):
    for fps in (20, 30):
        made(tmp_path / f"at{fps}", some(2), fps=fps, names=["joint_0", "joint_1"])
    with pytest.raises(DatasetError, match=r"at20 has 20 .*at30 30 .*; `rate=` .* such as 10, 5"):
        EpisodeDataset(tmp_path)
    assert EpisodeDataset(tmp_path, rate=10).num_frames == 2 * 5 + 2 * 4
    made(tmp_path / "other", some(2), fps=20, names=["joint_0", "hip"])
    with pytest.raises(DatasetError, match=r"of different robots: action joint_0 absolute .*hip absolute"):
        EpisodeDataset([tmp_path / "at20", tmp_path / "other"])


def test_an_episode_is_cut_where_its_task_changes(tmp_path):
    tasks = ["open the drawer"] * 4 + ["take the cup"] * 6
    good = (np.arange(10) == 3).astype(np.float32)
    dataset = EpisodeDataset(made(tmp_path / "d", some(3), frame_tasks=tasks, **{"next.success": good}))
    assert [dataset.tasks[task] for task in dataset.episode_task] == ["open the drawer", "take the cup"] * 2
    assert dataset.episode_start.tolist() == [0, 4, 10, 14, 20] and dataset.success.tolist() == [True, False] * 2
    assert np.flatnonzero(dataset.actions[:, -1]).tolist() == [3, 9, 13, 19]
    record = bridge(0, 1) | {"steps/language_instruction": [b"open the door"] * 2 + [b""] + [b"take the cup"] * 3}
    steps = EpisodeDataset(save(tmp_path / "r", [record]))
    assert steps.tasks == ["open the door", "take the cup"] and steps.episode_start.tolist() == [0, 3, 6]


def test_where_nobody_labelled_it_success_is_told_or_taken_for_granted(tmp_path, caplog):
    root = made(tmp_path / "d", some(3), episodes=3)
    assert EpisodeDataset(root).success.all()
    (warning,) = [r.getMessage() for r in caplog.records]
    assert "counts as a demonstration" in warning and "`success:`" in warning
    (tmp_path / "o.csv").write_text("episode,success\n0,true\n1,false\n2,1\n")
    (tmp_path / "o.yaml").write_text("[true, false, true]")
    (tmp_path / "o.json").write_text('{"d": {"0": true, "1": false, "2": true}}')
    for name in ("o.csv", "o.yaml", "o.json"):
        assert EpisodeDataset(root, success=str(tmp_path / name)).success.tolist() == [True, False, True]
    (tmp_path / "o.csv").write_text("episode,success\n0,true\n")
    with pytest.raises(DatasetError, match=r"2 of 3 .* the file of outcomes does not name it"):
        EpisodeDataset(root, success=str(tmp_path / "o.csv"))
    (tmp_path / "o.csv").write_text("episode,success\n0,maybe\n")
    with pytest.raises(DatasetError, match="'0': 'maybe' is no outcome"):
        EpisodeDataset(root, success=str(tmp_path / "o.csv"))
    made(tmp_path / "e", some(3))
    with pytest.raises(DatasetError, match=r"o.yaml: of which of 2 datasets \(d, e, ...\)"):
        EpisodeDataset([root, tmp_path / "e"], success=str(tmp_path / "o.yaml"))
    caplog.clear()
    EpisodeDataset(root, success="all")
    assert not caplog.records


def test_outcomes_are_not_shared_by_datasets_of_one_name_and_each_is_said_once(tmp_path):
    days, file = [tmp_path / "monday", tmp_path / "tuesday"], tmp_path / "o.csv"
    for day in days:
        made(day / "shard", some(3), episodes=2)
    file.write_text("dataset,episode,success\nshard,0,true\nshard,1,false\n")
    assert EpisodeDataset(days[0], success=str(file)).success.tolist() == [True, False]
    with pytest.raises(DatasetError, match=r"o.csv: 'shard' is the folder of several datasets; rename one"):
        EpisodeDataset(days, success=str(file))
    for heading, row, of in (("", "", ""), ("dataset,", "shard,", " of 'shard'")):
        file.write_text(f"{heading}episode,success\n{row}0,true\n{row}1,true\n{row}0,false\n")
        with pytest.raises(DatasetError, match=f"o.csv: episode 0{of} stands twice"):
            EpisodeDataset(days[0], success=str(file))


def test_what_never_changes_is_named_once_with_the_line_that_leaves_it_out(tmp_path, caplog):
    actions = some(3)
    actions[:, 1] = 0.25
    black = np.zeros((*SIZE, 3), np.uint8)
    root = made(
        tmp_path / "d",
        actions,
        ["observation.images.front"],
        picture=lambda i: png(black),
        **{"next.success": np.ones(10)},
    )
    dataset = EpisodeDataset(root)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "camera 'front' is black in every frame" in dataset.warnings[0] and "`cameras: []`" in dataset.warnings[0]
    assert "action 'action_1' is 0.25 in every frame" in dataset.warnings[1]
    assert '`action: ["action[0]", "action[2]"]`' in dataset.warnings[1]
    assert dataset.embodiment.low[1] < 0.25 < dataset.embodiment.high[1]
    assert EpisodeDataset(root).warnings == dataset.warnings  # from the cache


@pytest.mark.slow
def test_a_picture_of_900_megapixels_costs_its_episode(tmp_path):
    buffer = io.BytesIO()
    Image.new("1", (30000, 30000)).save(buffer, "png")
    root = made(tmp_path / "d", some(2), picture=lambda i: buffer.getvalue() if i == 5 else png(i))
    dataset = EpisodeDataset(root, max_bad_share=0.5)
    assert len(dataset) == 1 and "image at step 5 has 30000 x 30000 pixels" in dataset.quarantined[0].reason


def test_files_that_git_left_out_are_named_as_such(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"):
        (made(tmp_path / name[:4] / "d", some(2)) / name).write_bytes(pointer)
        with pytest.raises(DatasetError, match="Git-LFS pointer, not the file itself; run `git lfs pull`"):
            EpisodeDataset(tmp_path / name[:4] / "d")
    (save(tmp_path / "r", [bridge(0)]) / "some_data-train.tfrecord-00000-of-00001").write_bytes(pointer)
    with pytest.raises(DatasetError, match="Git-LFS pointer"):
        EpisodeDataset(tmp_path / "r")


def edit(root, **changes):
    info = json.loads((root / lerobot.INFO).read_text())
    (root / lerobot.INFO).write_text(json.dumps(info | changes))
    return root


def test_what_is_not_read_is_told_with_what_is(tmp_path, monkeypatch):
    root = edit(made(tmp_path / "pusht", some(2)), codebase_version="v2.1")
    command = rf"python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=pusht --root={tmp_path} "
    with pytest.raises(DatasetError, match=command):
        EpisodeDataset(root)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=r"hf download lerobot/pusht --repo-type dataset --local-dir data/pusht"):
        EpisodeDataset("lerobot/pusht")
    (tmp_path / "h").mkdir()
    (tmp_path / "h/episodes.hdf5").touch()
    for path in ("h", "h/episodes.hdf5", "replay.zarr"):
        with pytest.raises(DatasetError, match=r"(HDF5|Zarr) is not read; a LeRobotDataset v3 or a folder of RLDS's"):
            EpisodeDataset(path)
    with pytest.raises(DatasetError, match="fps is 0; it must be frames a second"):
        EpisodeDataset(edit(made(tmp_path / "f", some(2)), fps=0))
    features = {"observation.images.front": {"dtype": "video", "shape": [*SIZE, 3]}}
    features["action"] = {"dtype": "float32", "shape": [2], "names": None}
    with pytest.raises(DatasetError, match=r"observation.images.front is a video, and there is no video_path"):
        EpisodeDataset(edit(made(tmp_path / "v", some(2)), features=features))


def test_a_dataset_that_cannot_be_written_beside_is_read_through_another_cache(tmp_path, monkeypatch):
    root, lock = made(tmp_path / "d", some(2)), atomic.lock

    def refuse(path, wait):
        if root in path.parents:
            raise OSError(30, "Read-only file system")
        return lock(path, wait)

    monkeypatch.setattr(atomic, "lock", refuse)
    with pytest.raises(DatasetError, match=r"d/.cache: cannot be written to \(Read-only file system\); .* --cache DIR"):
        EpisodeDataset(root)
    assert EpisodeDataset(root, cache=tmp_path / "c").num_frames == 20
    (tmp_path / "c").rename(root / ".cache")  # as one who may write there left it
    assert EpisodeDataset(root).num_frames == 20


def test_cameras_of_different_sizes_are_brought_to_the_first_ones(tmp_path):
    robot = robot_of((("front", 12, 16), ("wrist", 24, 24)))
    with EpisodeWriter(tmp_path, robot) as writer:
        writer.add(try_of(robot))
    dataset = EpisodeDataset(tmp_path)
    assert [images.shape[1:3] for images in dataset.cameras.values()] == [(12, 16)] * 2
    assert dataset.embodiment.cameras == robot.cameras


def test_a_robots_steps_are_recorded_within_its_own_bounds(tmp_path, caplog):
    robot = robot_of((("front", 48, 64), ("wrist", 8, 8)), kinds=("absolute", "absolute", "absolute"))
    robot = but(robot, action=tuple(but(d, low=-90.0, high=90.0) for d in robot.action))
    images = {"front": np.ones((12, 16, 3), np.uint8), "wrist": np.ones((8, 8, 3), np.uint8)}
    with EpisodeRecorder(tmp_path) as recorder:
        recording = recorder.begin("g", "water the plant", "m", robot)
        for angle in (75, -61, 120):
            recording.add(Observation(images, np.zeros(3, np.float32)), np.full(3, angle, np.float32))
        recording.end(Outcome(Status.SUCCEEDED))
        other = recorder.begin("g", "water the plant", "m")
        other.add(Observation(images, np.zeros(3, np.float32)), np.zeros(3, np.float32))
        other.end(None)
    dataset = EpisodeDataset(tmp_path)
    assert dataset.actions[:, 0].tolist() == [75, -61, 90] and dataset.truncated.tolist() == [False]
    assert dataset.embodiment.control_hz == 20 and [*dataset.cameras] == ["front", "wrist"]
    assert "the model says no embodiment" in caplog.text
    with EpisodeRecorder(tmp_path) as recorder:
        assert not recorder.misfit(robot) and "another action" in recorder.misfit(robot_of(robot_cameras(robot)))


def robot_cameras(robot):
    return [(camera.name, camera.height, camera.width) for camera in robot.cameras]


def test_the_head_of_the_kitchen_keeps_its_column(tmp_path):
    root = write(tmp_path / "d", range(2))
    assert HEAD in json.loads((root / lerobot.INFO).read_text())["features"]
    assert Embodiment.parse(json.loads((root / lerobot.EMBODIMENT).read_text()), "e").cameras == (
        Camera("head", 8, 10),
    )
