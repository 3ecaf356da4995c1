"""A collection made in pieces, by several machines or by a Ray cluster, is the one that a single process makes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from saycan_qt.collect import main
from saycan_qt.data import lerobot
from saycan_qt.data.episodes import Episode, EpisodeDataset
from saycan_qt.data.statistics import QUANTILES, Bins, Summary
from saycan_qt.kitchen.practice.collection import SETTINGS, CollectConfig, begin, collected, writer


def episode(number: int) -> Episode:
    rng = np.random.default_rng(number)
    images = np.broadcast_to(rng.integers(0, 256, (2, 1, 96, 3), np.uint8), (2, 80, 96, 3))
    states, actions = rng.normal(size=(2, 2, 8)).astype(np.float32)
    return Episode(images, states, actions, f"pick {number % 3}", number % 2 == 0, {"number": number, "seed": 0})


def piece(out: Path, episodes: int, shard: str = "", workers: int = 1) -> Path:
    """What `collect` would write, with episodes that take no simulation."""
    config = CollectConfig(out, episodes=episodes, shard=shard, workers=workers)
    begin(config)
    for worker in range(workers):
        with writer(out / f"shard-{worker:02d}") as there:
            for number in config.numbers[worker::workers][there.num_episodes :]:
                there.add(episode(number))
    return out


def content(root: Path) -> dict[str, bytes]:
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*") if path.is_file()}
    return {name: data for name, data in found.items() if name not in (".lock", SETTINGS)}


def merge(out: Path, *pieces: Path) -> int:
    return main(["merge", "--out", str(out), *map(str, pieces)])


def test_pieces_merge_into_the_very_bits_that_one_worker_writes(tmp_path):
    pieces = [piece(tmp_path / f"p{k}", 11, f"{k}/3", workers=k % 2 + 1) for k in (3, 1, 2)]
    assert merge(tmp_path / "merged", *pieces) == 0
    assert content(tmp_path / "merged") == content(piece(tmp_path / "whole", 11) / "shard-00")
    assert EpisodeDataset(tmp_path / "merged").info["number"] == list(range(11))
    assert collected(tmp_path / "merged") == 11


def test_a_merge_goes_on_where_it_was_and_takes_what_pieces_have_grown_by(tmp_path):
    for episodes in (51, 103):
        assert merge(tmp_path / "merged", *(piece(tmp_path / f"p{k}", episodes, f"{k}/2") for k in (1, 2))) == 0
    whole = piece(piece(tmp_path / "whole", 51), 103)  # likewise
    assert content(tmp_path / "merged") == content(whole / "shard-00")


def test_what_is_missing_or_twice_or_of_another_collection_is_said_before_anything_is_written(tmp_path, capsys):
    first, second = (piece(tmp_path / f"p{k}", 7, f"{k}/2") for k in (1, 2))
    assert merge(tmp_path / "merged", first) == 2
    assert "episodes 1, 3, 5 are missing, the first of --shard 2/2" in capsys.readouterr().err
    assert merge(tmp_path / "merged", first, second, shutil.copytree(first, tmp_path / "again")) == 2
    assert "episodes 0, 2, 4, 6 are there twice" in capsys.readouterr().err
    settings = json.loads((second / SETTINGS).read_text())
    (second / SETTINGS).write_text(json.dumps(settings | {"seed": 1}))
    assert merge(tmp_path / "merged", first, second) == 2
    assert "of different collections: --seed 0 and --seed 1" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"possible": True}, {}, "--possible and no --possible"),
        ({"families": ["pick", "move near"]}, {"families": []}, "--families pick 'move near' and no --families"),
        ({"policy": "a", "weights": "1"}, {"policy": "a", "weights": "2"}, "another policy of that name"),
        ({"policy": "a", "weights": "1"}, {"policy": "b", "weights": "2"}, "--policy a and --policy b"),
        ({"replay": "a", "of": 3}, {"replay": "a", "of": 4}, "another number of demonstrations in --replay"),
    ],
)
def test_pieces_of_different_collections_are_told_apart_by_options_that_there_are(tmp_path, capsys, one, other, said):
    first, second = (piece(tmp_path / f"p{k}", 7, f"{k}/2") for k in (1, 2))
    for folder, more in ((first, one), (second, other)):
        (folder / SETTINGS).write_text(json.dumps(json.loads((folder / SETTINGS).read_text()) | more))
    assert merge(tmp_path / "merged", first, second) == 2
    assert capsys.readouterr().err == f"error: {first} and {second} are of different collections: {said}\n"


def test_a_damaged_piece_ends_the_merge(tmp_path, capsys):
    first = piece(tmp_path / "p", 3)
    data = first / "shard-00" / lerobot.DATA_PATH.format(chunk_index=0, file_index=0)
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    assert merge(tmp_path / "merged", first) == 2
    assert "collect it again" in capsys.readouterr().err


def test_what_is_asked_of_a_piece_and_makes_no_sense_is_refused(tmp_path, capsys):
    first = piece(tmp_path / "p", 4, "1/1")
    assert main(["--out", str(first), "--shard", "2/3", "--workers", "1"]) == 2
    assert "made with --shard 1/1" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "q"), "--shard", "4/3"]) == 2
    assert "--shard 4/3: which of how many" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "q"), "--replay", str(first), "--seed", "1", "--ray", "local"]) == 2
    assert "use --shard K/N" in capsys.readouterr().err
    assert merge(tmp_path / "merged", first) == 0 and main(["--out", str(tmp_path / "merged")]) == 2
    assert "was merged" in capsys.readouterr().err


def test_quantiles_are_within_a_hundredth_of_the_true_ones_however_the_values_were_added_up():
    rng = np.random.default_rng(0)
    columns = rng.normal(size=4000), -3 * rng.exponential(size=4000), rng.integers(0, 2, 4000), np.full(4000, 0.05)
    values = np.stack(columns, axis=1).astype(np.float32)
    parts = [Summary.of(part) for part in np.split(values, [7, 1000])]
    found = parts[0].plus(parts[1]).plus(parts[2]).to_json()
    for name, share in QUANTILES.items():
        true = np.quantile(values, share, axis=0, method="nearest")
        np.testing.assert_allclose(found[name], true, rtol=0.008, atol=1e-30)
        assert found[name] == Summary.of(values).to_json()[name]
    assert all(Bins.parse(bins.to_text()).to_text() == bins.to_text() for bins in Summary.of(values).bins)


@pytest.mark.slow
def test_lerobots_own_reader_opens_what_was_merged(tmp_path):
    reader = pytest.importorskip(
        "lerobot.datasets.lerobot_dataset", reason="needs lerobot, in an environment of its own"
    )
    merge(tmp_path / "merged", *(piece(tmp_path / f"p{k}", 9, f"{k}/2") for k in (1, 2)))
    theirs, ours = reader.LeRobotDataset("local/merged", root=tmp_path / "merged"), EpisodeDataset(tmp_path / "merged")
    assert (theirs.num_episodes, theirs.num_frames) == (ours.num_episodes, ours.num_frames) == (9, 18)
    assert theirs.meta.stats["action"].keys() >= QUANTILES.keys()
    for row in (0, 17):
        item = theirs[row]
        assert (item["observation.images.head"].numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0).tolist() == (
            ours.images[row].tolist()
        )
        assert item["action"].tolist() == ours.actions[row].tolist()
        assert item["task"] == ours.tasks[ours.episode_task[ours.frame_episode[row]]]
