"""Facts about RLDS episodes in TFRecord files, written here by hand: framing, check-sums, protobuf; no TensorFlow."""

import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from saycan_qt.data.episodes import DatasetError, EpisodeDataset
from saycan_qt.data.layout.columns import closedness_after
from saycan_qt.data.layout.mapping import ColumnMapping
from saycan_qt.data.tfrecord import Damaged, masked_crc, read_records

SIZE = (24, 32)
STEPS = 6


def crc32c(data: bytes) -> int:
    """Castagnoli's, bit by bit, as RFC 3720 defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def varint(number: int) -> bytes:
    number, out = number % 2**64, b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def message(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def feature(values) -> bytes:
    """tf.train.Feature of bytes, floats or whole numbers."""
    if isinstance(values[0], bytes):
        return message(1, b"".join(message(1, value) for value in values))
    array = np.asarray(values).reshape(-1)
    if array.dtype.kind == "f":
        return message(2, message(1, array.astype("<f4").tobytes()))
    return message(3, message(1, b"".join(varint(int(value)) for value in array)))


def example(features) -> bytes:
    entries = (message(1, message(1, name.encode()) + message(2, feature(v))) for name, v in features.items())
    return message(1, b"".join(entries))


def jpeg(number: int, step: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((*SIZE, 3), 20 * number + 15 * step, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def steps_of(number: int, instruction: str) -> dict:
    """What fractal and bridge have in common."""
    rng = np.random.default_rng(number)
    last = np.arange(STEPS) == STEPS - 1
    return {
        "steps/observation/image": [jpeg(number, step) for step in range(STEPS)],
        "steps/observation/natural_language_instruction": [instruction.encode()] * STEPS,
        "steps/observation/natural_language_embedding": rng.normal(size=(STEPS, 512)).astype(np.float32),
        "steps/action/world_vector": rng.uniform(-0.05, 0.05, (STEPS, 3)).astype(np.float32),
        "steps/action/rotation_delta": rng.uniform(-0.3, 0.3, (STEPS, 3)).astype(np.float32),
        "steps/reward": last.astype(np.float32) * (number % 2 == 0),
        "steps/is_first": np.arange(STEPS) == 0,
        "steps/is_last": last,
        "steps/is_terminal": last,
    }


def fractal(number: int) -> dict:
    ends = np.arange(STEPS) == STEPS - 2
    goes_on = np.arange(STEPS) < STEPS - 2
    return steps_of(number, f"pick coke can {number % 2}") | {
        "aspects/has_aspects": [True],
        "aspects/success": [number != 1],
        "steps/action/gripper_closedness_action": np.array([0, 0, 1, 0, 0, 0], np.float32),
        "steps/action/terminate_episode": np.stack([ends, goes_on, 0 * ends], axis=1).astype(np.int32),
        "steps/observation/base_pose_tool_reached": np.zeros((STEPS, 7), np.float32),
    }


def bridge(number: int) -> dict:
    return steps_of(number, f"put carrot on plate {number % 2}") | {
        "steps/action/open_gripper": np.array([True, True, True, False, False, True]),
        "steps/action/terminate_episode": np.zeros(STEPS, np.float32),
        "steps/observation/state": np.zeros((STEPS, 7), np.float32),
    }


def save(folder, records, files=1, counts=True):
    """`records` in TFDS's files, with its count of them."""
    folder.mkdir(parents=True)
    parts = np.array_split(np.arange(len(records)), files)
    for i, part in enumerate(parts):
        data = b"".join(framed(example(records[number])) for number in part)
        (folder / f"some_data-train.tfrecord-{i:05d}-of-{files:05d}").write_bytes(data)
    if counts:
        split = {"name": "train", "shardLengths": [str(len(part)) for part in parts]}
        (folder / "dataset_info.json").write_text(json.dumps({"splits": [split]}))
    return folder


def test_check_sums_are_those_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    data = bytes(range(200))
    assert struct.pack("<I", masked_crc(data)) == masked(data)


def test_fractal_is_read_with_absolute_closedness_up_to_the_terminating_step(tmp_path):
    save(tmp_path / "fractal/0.1.0", [fractal(number) for number in range(4)], files=2)
    dataset = EpisodeDataset(tmp_path / "fractal", mapping="fractal")
    there, wanted = dataset.episode(2), fractal(2)
    assert len(there) == STEPS - 1  # RLDS's last step has no action
    assert np.array_equal(there.actions[:, :3], wanted["steps/action/world_vector"][:-1])
    assert np.array_equal(there.actions[:, 3:6], wanted["steps/action/rotation_delta"][:-1])
    assert there.actions[:, 6].tolist() == [0, 0, 1, 1, 1] and there.actions[:, 7].tolist() == [0, 0, 0, 0, 1]
    assert np.abs(there.views["image"].mean((1, 2, 3)) - (40 + 15 * np.arange(STEPS - 1))).max() < 2
    assert there.states.shape == (STEPS - 1, 0) and there.rewards.tolist() == [0, 0, 0, 0, 1]
    assert dataset.success.tolist() == [True, False, True, True] and not dataset.truncated.any()
    assert dataset.tasks == ["pick coke can 0", "pick coke can 1"]
    assert there.info == {"record": "some_data-train.tfrecord-00001-of-00002:0"}


def test_bridge_is_read_with_closedness_for_opening_and_without_its_first_step(tmp_path):
    save(tmp_path / "bridge", [bridge(number) for number in range(3)])
    dataset = EpisodeDataset(tmp_path / "bridge", mapping="bridge")
    there, wanted = dataset.episode(0), bridge(0)
    assert np.array_equal(there.actions[:, :3], wanted["steps/action/world_vector"][1:])
    assert there.actions[:, 6].tolist() == [0, 0, 1, 1, 0] and there.actions[:, 7].tolist() == [0, 0, 0, 0, 1]
    assert dataset.images.shape == (15, *SIZE, 3) and dataset.success.tolist() == [True, False, True]


def test_an_episode_that_was_not_rated_goes_by_its_reward(tmp_path):
    records = [fractal(number) | {"aspects/has_aspects": [False], "aspects/success": [False]} for number in range(2)]
    assert EpisodeDataset(save(tmp_path / "d", records), mapping="fractal").success.tolist() == [True, False]


def test_an_episode_that_never_terminates_was_cut_by_the_time_limit(tmp_path):
    record = fractal(0) | {"steps/action/terminate_episode": np.zeros((STEPS, 3), np.int32)}
    cut = bridge(1) | {"steps/is_terminal": np.zeros(STEPS, bool)}
    first = EpisodeDataset(save(tmp_path / "a", [record]), mapping="fractal")
    second = EpisodeDataset(save(tmp_path / "b", [cut]), mapping="bridge")
    assert first.truncated.all() and first.num_frames == STEPS and not first.actions[:, 7].any()
    assert second.truncated.all() and not second.actions[:, 7].any()


def test_a_flipped_bit_costs_one_record(tmp_path):
    folder = save(tmp_path / "d", [bridge(number) for number in range(4)])
    (path,) = folder.glob("*.tfrecord*")
    content = bytearray(path.read_bytes())
    content[len(content) // 4 + 200] ^= 4
    path.write_bytes(content)
    dataset = EpisodeDataset(folder, mapping="bridge", max_bad_share=0.25)
    (bad,) = dataset.quarantined
    assert (bad.file, bad.episode, bad.reason) == (str(path), 1, "record 1 is corrupt") and len(dataset) == 3


@pytest.mark.parametrize("counts", [True, False])
def test_a_truncated_file_costs_what_follows_the_cut(tmp_path, counts):
    folder = save(tmp_path / "d", [bridge(number) for number in range(6)], files=2, counts=counts)
    path = min(folder.glob("*.tfrecord*"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    dataset = EpisodeDataset(folder, mapping="bridge", max_bad_share=0.4)
    assert [bad.episode for bad in dataset.quarantined] == ([1, 2] if counts else [1]) and len(dataset) == 4
    assert dataset.quarantined[0].reason == "record 1 is truncated"
    assert json.loads((folder / ".cache/quarantined.json").read_text())["used"] == 4
    with pytest.raises(DatasetError, match=r"cannot be used, above the allowed share of 5%.*quarantined.json"):
        EpisodeDataset(folder, mapping="bridge")


def test_a_corrupt_length_ends_the_file(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(framed(b"one") + b"\7" + framed(b"two")[1:] + framed(b"three"))
    assert list(read_records(path)) == [b"one", Damaged(1, "the length of record 1 is corrupt", ends=True)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"steps/action/world_vector": np.full((STEPS, 3), np.nan, np.float32)}, "actions are not finite at step 0"),
        ({"steps/action/world_vector": np.zeros(17, np.float32)}, "holds 17 numbers in 6 steps"),
        ({"steps/observation/image": [b"\xff\xd8no jpeg"] * STEPS}, "image at step 1 cannot be decoded"),
        ({"steps/observation/image": [jpeg(0, 0)] * 4}, "4 images for 6 steps"),
        ({"steps/observation/natural_language_instruction": [b""] * STEPS}, "no instruction"),
        ({"steps/reward": [b"?"]}, "steps/reward is a bytes_list"),
        ({"steps/action/open_gripper": np.full(STEPS, -1.0, np.float32)}, r"closedness is 2 at step 0.*invert: true"),
    ],
)
def test_a_bad_episode_is_named_with_its_file_and_record(tmp_path, change, reason):
    folder = save(tmp_path / "d", [bridge(0), bridge(1) | change, bridge(2)])
    dataset = EpisodeDataset(folder, mapping="bridge", max_bad_share=0.5)
    (bad,) = dataset.quarantined
    assert bad.episode == 1 and bad.file.endswith(".tfrecord-00000-of-00001") and len(dataset) == 2
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.reason)


def test_without_a_mapping_the_dataset_says_what_it_has_and_which_line_to_write(tmp_path):
    folder = save(tmp_path / "d", [bridge(0)])
    with pytest.raises(DatasetError) as caught:
        EpisodeDataset(folder)
    message = str(caught.value)
    assert "images: steps/observation/image" in message and "steps/action/world_vector (3)" in message
    assert (
        "action: [steps/action/open_gripper, steps/action/rotation_delta, steps/action/world_vector]" in message
        and "fractal, bridge" in message
    )
    with pytest.raises(DatasetError, match=r"no column 'steps/action/gripper_closedness_action'"):
        EpisodeDataset(folder, mapping="fractal")


def test_a_number_of_the_whole_episode_is_no_state(tmp_path):
    mapping = ColumnMapping.parse({"base": "fractal", "state": "aspects/success"}, "test")
    with pytest.raises(DatasetError, match=r"aspects/success is a number an episode; state and action have one a step"):
        EpisodeDataset(save(tmp_path / "d", [fractal(0)]), mapping=mapping)


def test_the_newest_version_of_a_tfds_dataset_is_read(tmp_path):
    save(tmp_path / "bridge/0.9.0", [bridge(0)])
    save(tmp_path / "bridge/0.10.0", [bridge(0), bridge(1)])
    assert len(EpisodeDataset(tmp_path, mapping="bridge")) == 2


def test_relative_commands_become_the_closedness_they_lead_to():
    commands = np.array([[0, 0.05, 1, 0, -1, 0], [0, 0, -0.5, 0, 0, 1], [0] * 6], np.float32).T
    assert closedness_after(commands).T.tolist() == [[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 1], [0] * 6]


MISTAKES = {
    "imge: x": "no key 'imge'; did you mean 'image'",
    "action: 3": "action: 3 names no column; write for instance",
    "action: [{column: a, invrt: true}]": "no key 'invrt'; did you mean 'invert'",
    "action: [{column: a, invert: 1}]": "invert is 1; write for instance `invert: true`",
    "image_size: [80]": r"image_size is \[80\]; write for instance `image_size: \[80, 96\]`",
    "base: brige": "no built-in mapping 'brige'",
    "- a": "not a mapping",
    "action: [action[0:6]]": "cannot be read as YAML .names with brackets stand in quotes",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_a_mapping_is_named_with_what_to_write(tmp_path, text):
    path = tmp_path / "mapping.yaml"
    path.write_text(text)
    with pytest.raises(DatasetError, match=f"mapping.yaml: .*{MISTAKES[text]}"):
        ColumnMapping.load(path)


def test_a_mapping_is_loaded_by_name_or_from_a_file_that_may_start_from_one(tmp_path):
    path = tmp_path / "mapping.yaml"
    path.write_text("base: bridge\nimage_size: [80, 96]\nstate: steps/observation/state[0:7]\nsuccess: all\n")
    mapping = ColumnMapping.load(path)
    assert (mapping.cameras[0][1], mapping.image_size, mapping.success) == (
        "steps/observation/image",
        (80, 96),
        ("all",),
    )
    dataset = EpisodeDataset(save(tmp_path / "d", [bridge(0), bridge(1)]), mapping=path)
    assert dataset.images.shape[1:] == (80, 96, 3) and dataset.success.all()
    with pytest.raises(DatasetError, match="no mapping 'fractl'; did you mean 'fractal'"):
        ColumnMapping.load("fractl")
