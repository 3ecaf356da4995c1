"""Facts about LeRobotDataset v3 as others write it: videos, any image key, other columns, a mapping."""

import io
import json
import shutil
from types import SimpleNamespace

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_data import DATA, HEAD, episode, replace, write

from saycan_qt import atomic
from saycan_qt.data import images, lerobot
from saycan_qt.data.episodes import ColumnMapping, DatasetError, Episode, EpisodeDataset, EpisodeWriter

FRONT = "observation.images.front"
STEPS = (5, 4, 7)
MAPPING = {
    "image": FRONT,
    "state": "observation.state",
    "action": ["action[0:6]", {"column": "action[6]", "invert": True}],
    "terminate": "last",
}


def picture(number: int, step: int) -> np.ndarray:
    """(48, 64, 3): a gray that tells the frame, which video coding keeps."""
    return np.full((48, 64, 3), 20 + 60 * number + 8 * step, np.uint8)


def numbers(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A state of 6 joints and an action of 7 numbers, the last the gripper's opening."""
    rng = np.random.default_rng(number)
    action = rng.uniform(-0.05, 0.05, (STEPS[number], 7)).astype(np.float32)
    action[:, 6] = rng.random(STEPS[number])
    return rng.normal(size=(STEPS[number], 6)).astype(np.float32), action


def theirs(root, video=True, success=True):
    """A dataset as lerobot 0.4 writes it, without our manifest; all episodes in one video of 10 frames a second."""
    steps = np.array(STEPS)
    frame_index = np.concatenate([np.arange(count) for count in steps])
    states, actions = (np.concatenate(part) for part in zip(*map(numbers, range(3)), strict=True))
    table = {
        "observation.state": lerobot.vectors(states),
        "action": lerobot.vectors(actions),
        "timestamp": pa.array((frame_index / 10).astype(np.float32)),
        "frame_index": pa.array(frame_index),
        "episode_index": pa.array(np.repeat(np.arange(3), steps)),
    }
    if success:
        table["next.success"] = pa.array(np.repeat([True, False, True], steps))
    pictures = [picture(number, step) for number in range(3) for step in range(STEPS[number])]
    ends = np.cumsum(steps)
    rows = {
        "episode_index": [0, 1, 2],
        "tasks": [["pick"], ["pick"], ["push"]],
        "length": list(STEPS),
        "data/chunk_index": [0] * 3,
        "data/file_index": [0] * 3,
        "quality": [1.0, 0.0, 0.0],
    }
    features = {
        "observation.state": {"dtype": "float32", "shape": [6], "names": None},
        "action": {"dtype": "float32", "shape": [7], "names": None},
        **({"next.success": {"dtype": "bool", "shape": [1], "names": None}} if success else {}),
    }
    names = ["channels", "height", "width"]
    features |= {"observation.images.wrist": {"dtype": "image", "shape": [3, 4, 4], "names": names}}
    features |= {FRONT: {"dtype": "video" if video else "image", "shape": [3, 48, 64], "names": names}}
    if video:
        path = root / f"videos/{FRONT}/chunk-000/file-000.mp4"
        path.parent.mkdir(parents=True)
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264", rate=10, width=64, height=48, options={"g": "100", "bf": "2"})
            for image in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
            container.mux(stream.encode(None))
        rows |= {f"videos/{FRONT}/{key}": [0] * 3 for key in ("chunk_index", "file_index")}
        rows |= {f"videos/{FRONT}/from_timestamp": (ends - steps) / 10, f"videos/{FRONT}/to_timestamp": ends / 10}
    else:
        png = [{"bytes": lerobot.encode_png(image), "path": None} for image in pictures]
        table[FRONT] = pa.array(png, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    info = {"codebase_version": "v3.0", "fps": 10, "total_frames": int(steps.sum()), "features": features}
    info |= {"data_path": lerobot.DATA_PATH, "video_path": lerobot.VIDEO_PATH}
    for path, content in ((DATA, table), ("meta/episodes/chunk-000/file-000.parquet", rows)):
        (root / path).parent.mkdir(parents=True)
        pq.write_table(pa.table(content), root / path)
    (root / lerobot.INFO).write_text(json.dumps(info))
    return root


def mapped(**changes) -> ColumnMapping:
    return ColumnMapping.parse(MAPPING | changes, "test")


@pytest.mark.parametrize("video", [True, False])
def test_images_and_videos_of_others_are_read_under_any_key(tmp_path, video):
    dataset = EpisodeDataset(theirs(tmp_path / "d", video), mapping=mapped())
    assert np.diff(dataset.episode_start).tolist() == list(STEPS)
    for number in range(3):
        frames = dataset.images[dataset.frames(number)]
        expected = np.stack([picture(number, step) for step in range(STEPS[number])])
        assert np.abs(frames.astype(int) - expected).max() <= (3 if video else 0)
    assert dataset.tasks == ["pick", "push"] and dataset.success.tolist() == [True, False, True]


def test_a_mapping_arranges_state_and_action_in_our_order(tmp_path):
    dataset = EpisodeDataset(theirs(tmp_path / "d"), mapping=mapped())
    state, action = numbers(1)
    there = dataset.episode(1)
    assert np.array_equal(there.states, state)
    assert np.array_equal(there.actions[:, :6], action[:, :6]) and np.allclose(there.actions[:, 6], 1 - action[:, 6])
    assert there.actions[:, 7].tolist() == [0, 0, 0, 1]
    assert there.rewards.tolist() == [0, 0, 0, 0] and dataset.episode(2).rewards.tolist() == [0] * 6 + [1]


def test_success_can_be_a_column_of_the_episodes_or_all(tmp_path):
    root = theirs(tmp_path / "d", success=False)
    assert EpisodeDataset(root, mapping=mapped(success="quality")).success.tolist() == [True, False, False]
    assert EpisodeDataset(root, mapping=mapped(success="all")).success.all()
    with pytest.raises(DatasetError, match=r"none of the success labels(.|\n)*success: all"):
        EpisodeDataset(root, mapping=mapped(success="next.success"))


def test_two_mappings_of_one_dataset_have_caches_of_their_own(tmp_path):
    root = theirs(tmp_path / "d")
    first, second = (EpisodeDataset(root, mapping=mapped(image_size=size)) for size in ([24, 32], [12, 16]))
    assert first.digest != second.digest and len(list(root.glob(".cache/frames-*"))) == 2
    assert first.images.shape[1:] == (24, 32, 3) and second.images.shape[1:] == (12, 16, 3)


def test_shrinking_takes_the_mean_of_an_area():
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    mean = image.reshape(4, 2, 4, 3, 3).mean((1, 3))
    assert np.abs(images.fit(image, 4, 4) - mean).max() <= 1
    assert images.fit(image, 16, 24).shape == (16, 24, 3) and images.fit(image, 8, 12) is image


def test_a_damaged_or_missing_video_quarantines_its_episodes(tmp_path):
    root = theirs(tmp_path / "d")
    (video,) = root.glob("videos/**/*.mp4")
    video.write_bytes(video.read_bytes()[:-400])
    with pytest.raises(DatasetError, match=r"3 of 3 .*file-000.mp4 cannot be decoded"):
        EpisodeDataset(root, mapping=mapped())
    listed = json.loads((root / ".cache/quarantined.json").read_text())
    assert listed["left_out"] == 3 and [entry["episode"] for entry in listed["episodes"]] == [0, 1, 2]
    video.unlink()
    with pytest.raises(DatasetError, match=r"3 of 3 .*cannot be decoded"):
        EpisodeDataset(root, mapping=mapped())


def test_a_frame_that_the_video_lacks_is_named(tmp_path):
    root = theirs(tmp_path / "d")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    key = f"videos/{FRONT}/from_timestamp"
    pq.write_table(replace(pq.read_table(path), key, pa.array([0.0, 0.55, 1.1])), path)
    dataset = EpisodeDataset(root, max_bad_share=0.8, mapping=mapped())
    assert [entry.episode for entry in dataset.quarantined] == [1, 2]
    assert "no frame at 0.5500 s" in dataset.quarantined[0].reason
    assert "ends before 1.6000 s (step 5)" in dataset.quarantined[1].reason


@pytest.mark.parametrize("drift", [1e-4, -3e-4, 0.02])
def test_recorders_errors_of_time_cost_nothing(tmp_path, drift):
    root = theirs(tmp_path / "d")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    key = f"videos/{FRONT}/from_timestamp"
    table = pq.read_table(path)
    pq.write_table(replace(table, key, pa.array(np.array(table[key]) + drift * np.arange(3))), path)
    dataset = EpisodeDataset(root, max_bad_share=0, mapping=mapped())
    expected = [picture(number, step)[0, 0, 0] for number in range(3) for step in range(STEPS[number])]
    assert np.abs(dataset.images[:, 0, 0, 0].astype(int) - expected).max() <= 3


def test_frames_written_as_video_come_back_nearly_the_same(tmp_path):
    steps = 6
    smooth = np.linspace(0, 255, 16 * 24 * 3).reshape(16, 24, 3)
    wanted = [np.stack([np.roll(smooth, 2 * t + n, 1) for t in range(steps)]).astype(np.uint8) for n in range(5)]
    with EpisodeWriter(tmp_path, image_size=(16, 24), episodes_per_file=2, video=True) as writer:
        for number, pictures in enumerate(wanted):
            vectors = np.zeros((steps, 8), np.float32)
            writer.add(Episode(pictures, vectors, vectors, f"pick {number}", True))
    dataset = EpisodeDataset(tmp_path, max_bad_share=0)
    assert dataset.tasks == [f"pick {number}" for number in range(5)]
    for number, pictures in enumerate(wanted):
        assert np.abs(dataset.images[dataset.frames(number)].astype(int) - pictures).mean() < 8
    video = tmp_path / lerobot.VIDEO_PATH.format(video_key=HEAD, chunk_index=0, file_index=1)
    video.write_bytes(video.read_bytes()[:-1] + b"\0")
    shutil.rmtree(tmp_path / ".cache")
    assert [q.episode for q in EpisodeDataset(tmp_path, max_bad_share=0.5).quarantined] == [2, 3]


def test_recorded_rewards_come_back_and_others_are_the_success(tmp_path):
    given = episode(0)
    shaped = Episode(given.images, given.states, given.actions, "t", True, rewards=np.array([-1, 0.5, 2], np.float32))
    with EpisodeWriter(tmp_path / "d", image_size=(8, 10)) as writer:
        writer.add(shaped)
        writer.add(Episode(given.images, given.states, given.actions, "t", True))
    assert EpisodeDataset(tmp_path / "d").rewards.tolist() == [-1, 0.5, 2, 0, 0, 1]


def test_opening_again_reads_no_file_of_frames(tmp_path, monkeypatch):
    root = theirs(tmp_path / "d")
    first = EpisodeDataset(root, mapping=mapped())
    whole = atomic.sha256
    refuse = lambda data: whole(data) if isinstance(data, bytes) else pytest.fail(f"{data} was read")  # noqa: E731
    monkeypatch.setattr(atomic, "sha256", refuse)
    assert EpisodeDataset(root, mapping=mapped()).digest == first.digest


def test_a_changed_file_is_noticed_and_decoded_anew(tmp_path):
    root = theirs(tmp_path / "d")
    first = EpisodeDataset(root, mapping=mapped())
    table = pq.read_table(root / DATA)
    pq.write_table(replace(table, "next.success", pa.array([False] * len(table))), root / DATA)
    second = EpisodeDataset(root, mapping=mapped())
    assert second.digest != first.digest and not second.success.any()


def test_frames_that_do_not_fit_on_the_disk_are_refused_beforehand(tmp_path, monkeypatch):
    root = write(tmp_path / "d", range(4))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DatasetError, match=r"about 0.0 GB are needed .*image_size"):
        EpisodeDataset(root)
    assert not list(root.glob(".cache/frames-*"))


def test_jpegs_are_read_too():
    buffer = io.BytesIO()
    Image.fromarray(picture(0, 0)).save(buffer, "JPEG")
    assert np.abs(images.decode(buffer.getvalue(), 0).astype(int) - picture(0, 0)).max() <= 2
