"""Caches of decoded frames: within their size, made anew where they made way, and their making is told."""

import hashlib
import itertools
import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_data import write

from saycan_qt.data.cache import room
from saycan_qt.data.episodes import ColumnMapping, DatasetError, EpisodeDataset
from saycan_qt.learning.batches import cached_features
from saycan_qt.networks.keypoints import KeypointTrunk, TrunkConfig


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def entries(cache):
    return sorted(path.name for pattern in (room.FRAMES, room.FEATURES) for path in cache.glob(pattern))


def size(cache):
    return sum(path.stat().st_size for pattern in ("frames-*/*", room.FEATURES) for path in cache.glob(pattern)) / 1e9


def test_what_was_used_longest_ago_makes_way_and_is_made_again_when_it_is_needed(tmp_path, cache, caplog):
    caplog.set_level(logging.INFO)
    roots = [write(tmp_path / name, range(number, number + 4)) for number, name in enumerate("abc")]
    first, second = (EpisodeDataset(root, cache=cache) for root in roots[:2])
    bound = 1.4 * size(cache)
    os.utime(second.folder / room.INDEX, (1, 1))
    third = EpisodeDataset(roots[2], cache=cache, cache_size=bound)
    assert entries(cache) == sorted([first.folder.name, third.folder.name])
    assert f"{second.folder} makes way" in caplog.text
    assert second.images.max() > 0  # whoever reads it goes on reading it
    again = EpisodeDataset(roots[1], cache=cache, cache_size=bound)
    assert np.array_equal(again.images, second.images) and len(entries(cache)) == 2 and size(cache) <= bound


def test_a_dataset_that_does_not_fit_by_itself_is_refused_with_the_next_move(tmp_path, cache):
    root = write(tmp_path / "a", range(40))
    with pytest.raises(DatasetError, match=r"the decoded frames take .* GB, and --cache-size allows 1e-06; allow more"):
        EpisodeDataset(root, cache=cache, cache_size=1e-6)
    assert entries(cache) == []


def test_what_the_eyes_saw_is_kept_within_the_same_size(tmp_path, cache):
    mapping = ColumnMapping.parse({"image_size": [8, 8]}, "test")
    dataset = EpisodeDataset(write(tmp_path / "a", range(8)), cache=cache, mapping=mapping)
    config = TrunkConfig(keypoints=3, image=(8, 8), channels=(8, 8, 8, 8), blocks=(1, 1, 1), feature=2, hidden=8)

    def seen(seed, bound):
        torch.manual_seed(seed)
        return cached_features(cache, dataset, "head", KeypointTrunk(config).eval(), "cpu", False, bound)

    first, once = np.array(seen(0, 0)), size(cache)
    seen(1, once + 1e-9)  # there is room for one of them beside the frames, which are in use
    assert len(entries(cache)) == 2 and size(cache) <= once + 1e-9
    assert np.array_equal(seen(0, 0), first) and len(entries(cache)) == 3
    with pytest.raises(DatasetError, match=r"what the eyes saw in all frames take .* GB beside them, and --cache-size"):
        seen(2, 1e-9)


def test_what_the_eyes_saw_is_of_one_camera_and_one_precision(tmp_path):
    class Brightness(torch.nn.Module):
        config = SimpleNamespace(keypoints=1, outputs=1)

        def forward(self, images):
            return SimpleNamespace(numbers=lambda: images.float().mean(dim=(1, 2, 3))[:, None, None])

    wrist, head = (np.full((3, 4, 4, 3), value, np.uint8) for value in (10, 200))
    dataset = SimpleNamespace(cameras={"wrist": wrist, "head": head}, images=wrist, digest="0" * 64)

    def seen(camera, bfloat16):
        return cached_features(tmp_path, dataset, camera, Brightness(), "cpu", bfloat16).ravel().tolist()

    usual = f"features-{hashlib.sha256().hexdigest()[:12]}-{'0' * 12}.npy"  # as it has been called from the first
    for count, (camera, bfloat16) in enumerate(itertools.product(("wrist", "head"), (True, False)), start=1):
        assert seen(camera, bfloat16) == [10 if camera == "wrist" else 200] * 3
        assert len(entries(tmp_path)) == count and usual in entries(tmp_path)


def test_the_making_is_told_where_nobody_looks_on(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(room, "EVERY", 0.0)
    EpisodeDataset(write(tmp_path / "a", range(4)), cache=tmp_path / "cache")
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("decoding: ")]
    assert len(lines) == 4 and "18 of 18 frames" in lines[-1] and "min left" in lines[-1]
