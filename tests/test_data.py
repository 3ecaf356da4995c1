"""Facts about episodes on disk: back as they were, whole after a kill, and never silently wrong."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace as but

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from saycan_qt.data import lerobot
from saycan_qt.data.cache import frames
from saycan_qt.data.episodes import DatasetError, Episode, EpisodeDataset, EpisodeWriter
from saycan_qt.data.relabel import lines, meanings, possible_tasks, relabel, relabel_impossible
from skills.library import Skill

SIZE = (8, 10)
HEAD = "observation.images.head"
DATA = "data/chunk-000/file-000.parquet"


def episode(number: int) -> Episode:
    rng = np.random.default_rng(number)
    steps = 3 + number % 4
    return Episode(
        images=rng.integers(0, 256, (steps, *SIZE, 3), np.uint8),
        states=rng.normal(size=(steps, 8)).astype(np.float32),
        actions=rng.normal(size=(steps, 8)).astype(np.float32),
        task=f"pick thing {number % 3}",
        success=number % 2 == 0,
        info={"seed": number, "mode": "expert", "noise": 0.5, "truncated": int(number == 1)},
    )


def write(root, numbers, per_file=4):
    with EpisodeWriter(root, image_size=SIZE, episodes_per_file=per_file) as writer:
        for number in numbers:
            writer.add(episode(number))
    return root


def edit(root, change):
    """Change the frames of the first data file, as someone else's dataset: one without our manifest."""
    (root / lerobot.MANIFEST).unlink(missing_ok=True)
    pq.write_table(change(pq.read_table(root / DATA)), root / DATA)


def replace(table, column, values):
    return table.set_column(table.column_names.index(column), column, values)


def same(a: Episode, b: Episode) -> bool:
    arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("states", "actions"))
    arrays = arrays and all(np.array_equal(x, y) for x, y in zip(a.views.values(), b.views.values(), strict=True))
    return arrays and (a.task, a.success, dict(a.info)) == (b.task, b.success, dict(b.info))


def test_episodes_come_back_identical(tmp_path):
    dataset = EpisodeDataset(write(tmp_path / "d", range(10)))
    assert dataset.num_episodes == 10 and dataset.num_frames == len(dataset.images) == len(dataset.states)
    assert all(same(dataset.episode(i), episode(i)) for i in range(10))
    assert dataset.truncated.tolist() == [i == 1 for i in range(10)]
    assert dataset.frame_episode.tolist() == np.repeat(np.arange(10), np.diff(dataset.episode_start)).tolist()


def test_shards_are_read_in_order(tmp_path):
    for shard in range(2):
        write(tmp_path / f"shard-{shard:02d}", range(shard * 5, shard * 5 + 5))
    together = EpisodeDataset(tmp_path)
    assert all(same(together.episode(i), episode(i)) for i in range(10))
    assert EpisodeDataset([tmp_path / "shard-00", tmp_path / "shard-01"]).digest == together.digest


def test_png_decodes_to_the_same_pixels():
    image = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(lerobot.encode_png(image)))), image)


def test_an_interrupted_collection_equals_an_uninterrupted_one(tmp_path):
    write(tmp_path / "a", range(12))
    for start in (0, 4, 8):
        write(tmp_path / "b", range(start, start + 4))
    for name in [DATA, lerobot.EPISODES_PATH.format(chunk_index=0, file_index=2), lerobot.INFO, lerobot.TASKS]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_statistics_are_those_of_all_frames(tmp_path):
    dataset = EpisodeDataset(write(tmp_path / "d", range(10)))
    stats = json.loads((tmp_path / "d" / lerobot.STATS).read_text())
    assert np.allclose(stats["action"]["mean"], dataset.actions.mean(0)) and stats["action"]["count"] == [
        len(dataset.actions)
    ]
    assert np.allclose(stats["observation.state"]["std"], dataset.states.std(0))
    assert np.shape(stats[HEAD]["mean"]) == (3, 1, 1)


def test_the_layout_is_lerobots(tmp_path):
    root = write(tmp_path / "d", range(5))
    info, data = json.loads((root / lerobot.INFO).read_text()), pq.read_table(root / DATA)
    assert info["codebase_version"] == "v3.0" and (info["total_episodes"], info["total_tasks"]) == (5, 3)
    assert list(info["features"]) == data.column_names
    assert data.schema.field(HEAD).type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert data.schema.field("action").type == pa.list_(pa.float32(), 8)
    assert b"huggingface" in data.schema.metadata
    assert data.column("index").to_pylist() == list(range(len(data)))
    assert json.loads(pq.read_schema(root / lerobot.TASKS).metadata[b"pandas"])["index_columns"] == ["task"]


KILL = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[2])
from test_data import SIZE, EpisodeDataset, EpisodeWriter, episode, same
root, done = sys.argv[1], 0
for delay in (0.0, 0.001, 0.003, 0.005, 0.008, 0.013):
    seen, say = os.pipe()
    if (child := os.fork()) == 0:
        with EpisodeWriter(root, image_size=SIZE, episodes_per_file=2) as writer:
            while True:
                writer.add(episode(writer.num_episodes))
                os.write(say, bytes([writer.num_episodes]))
    written = os.read(seen, 1)[0]
    while written < done + 4:
        written = os.read(seen, 1)[0]
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    dataset = EpisodeDataset(root, max_bad_share=0.0)
    assert dataset.num_episodes >= written - 1, (dataset.num_episodes, written)
    assert all(same(dataset.episode(i), episode(i)) for i in range(done, dataset.num_episodes))
    done = dataset.num_episodes
"""


def test_a_kill_while_writing_loses_only_what_was_not_flushed(tmp_path, request):
    root = tmp_path / "d"
    subprocess.run([sys.executable, "-c", KILL, str(root), str(request.path.parent)], check=True)
    done = EpisodeDataset(root).num_episodes
    write(root, range(done, done + 4), per_file=2)
    write(tmp_path / "e", range(done + 4), per_file=2)
    files = {path.relative_to(root): path.read_bytes() for path in root.glob("[dm]*/**/*.parquet")}
    assert files == {
        path.relative_to(tmp_path / "e"): path.read_bytes() for path in (tmp_path / "e").glob("[dm]*/**/*.parquet")
    }
    assert not list(root.glob("[dm]*/**/*.tmp"))


ORDER = (lerobot.MANIFEST, lerobot.INFO, lerobot.STATS, lerobot.TASKS)  # in which a flush replaces them


@pytest.mark.parametrize("name", ORDER)
def test_a_flush_cut_off_before_any_of_its_renames_is_whole_or_void(tmp_path, name):
    root = write(tmp_path / "d", range(4))
    before = {file: (root / file).read_bytes() for file in ORDER}
    write(root, range(4, 9), per_file=5)
    after = {file: (root / file).read_bytes() for file in ORDER}
    for file in ORDER[ORDER.index(name) :]:
        (root / file).write_bytes(before[file])
    dataset = EpisodeDataset(root, max_bad_share=0.0)
    assert dataset.num_episodes == (4 if name == lerobot.MANIFEST else 9)
    write(root, range(dataset.num_episodes, 9), per_file=5)
    assert all((root / file).read_bytes() == after[file] for file in ORDER[1:])


def test_a_second_writer_is_refused(tmp_path):
    with EpisodeWriter(tmp_path, image_size=SIZE), pytest.raises(DatasetError, match="another process is writing here"):
        EpisodeWriter(tmp_path, image_size=SIZE)


def test_an_episode_that_does_not_belong_is_refused(tmp_path):
    good = episode(0)
    bad = {
        "actions are not finite at step 1": Episode(
            good.images, good.states, np.where(np.arange(3)[:, None] == 1, np.nan, good.actions), "t", True, good.info
        ),
        "this dataset's are": Episode(good.images[:, :4], good.states, good.actions, "t", True, good.info),
        "not \\(3, D\\)": Episode(good.images, good.states[:2], good.actions, "t", True, good.info),
        "the same in all": Episode(good.images, good.states, good.actions, "t", True, {"seed": "one"}),
    }
    with EpisodeWriter(tmp_path, image_size=SIZE) as writer:
        writer.add(good)
        for reason, wrong in bad.items():
            with pytest.raises(ValueError, match=f"episode 1 .*{reason}"):
                writer.add(wrong)
    assert EpisodeDataset(tmp_path).num_episodes == 1


def test_a_stale_cache_is_rebuilt_and_a_fresh_one_is_kept(tmp_path):
    root = write(tmp_path / "d", range(4))
    first = EpisodeDataset(root)
    built = [path.stat().st_ino for path in root.glob(".cache/*/images.bin")]
    assert EpisodeDataset(root).digest == first.digest
    assert [path.stat().st_ino for path in root.glob(".cache/*/images.bin")] == built
    second = EpisodeDataset(write(root, range(4, 8)))
    assert second.num_episodes == 8 and second.digest != first.digest
    assert len(list(root.glob(".cache/frames-*"))) == 1
    (states,) = root.glob(".cache/*/states.bin")
    whole = states.read_bytes()
    states.write_bytes(whole[:-1])
    assert EpisodeDataset(root).states.tobytes() == whole


def noted(root, *infos):
    with EpisodeWriter(root, image_size=SIZE) as writer:
        for number, info in enumerate(infos):
            writer.add(but(episode(number), info=info))
    return root


def test_notes_stay_with_their_episodes_where_many_others_have_none(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "TOGETHER", 2)
    roots = noted(tmp_path / "a", *[{}] * 4), noted(tmp_path / "b", {"outcome": "lost"})
    for _ in range(2):
        dataset = EpisodeDataset(roots)
        assert dataset.finished.tolist() == [True] * 4 + [False] and dataset.info == {"outcome": [None] * 4 + ["lost"]}
        assert (dataset.episode(0).info, dataset.episode(4).info) == ({}, {"outcome": "lost"})
        pq.write_table(pa.table({"outcome": ["lost"]}), dataset.folder / frames.INFO)  # as caches had it
    assert EpisodeDataset(roots[0]).finished.tolist() == [True] * 4


@pytest.mark.parametrize("together", [1, 1000])
def test_notes_of_several_types_are_brought_to_one_or_refused_in_a_line(tmp_path, together, monkeypatch):
    monkeypatch.setattr(frames, "TOGETHER", together)
    roots = [noted(tmp_path / str(n), {"truncated": value}) for n, value in enumerate((True, 0, "no"))]
    assert EpisodeDataset(roots[:2]).info == {"truncated": [1, 0]}
    with pytest.raises(DatasetError, match=r"0 and 2 more: their episodes' notes differ in type .*write them alike$"):
        EpisodeDataset(roots)


def test_a_flipped_bit_or_a_truncated_file_is_quarantined(tmp_path):
    root = write(tmp_path / "d", range(20))
    content = (root / DATA).read_bytes()
    for damaged in (content[:-100], content[:900] + bytes([content[900] ^ 4]) + content[901:]):
        (root / DATA).write_bytes(damaged)
        dataset = EpisodeDataset(root, max_bad_share=0.2)
        assert [(q.file, q.episode) for q in dataset.quarantined] == [(str(root / DATA), i) for i in range(4)]
        assert "truncated or altered" in str(dataset.quarantined[0]) and same(dataset.episode(0), episode(4))
        shutil.rmtree(root / ".cache")
    with pytest.raises(DatasetError, match="4 of 20 episodes cannot be used, above the allowed share of 5%"):
        EpisodeDataset(root)


def test_a_damaged_list_of_episodes_costs_those_it_lists(tmp_path):
    root = write(tmp_path / "d", range(20))
    path = root / lerobot.EPISODES_PATH.format(chunk_index=0, file_index=1)
    path.write_bytes(path.read_bytes()[:-9])
    dataset = EpisodeDataset(root, max_bad_share=0.2)
    assert [q.episode for q in dataset.quarantined] == [4, 5, 6, 7] and dataset.quarantined[0].file == str(path)


def nan(table):
    values = table.column("action").combine_chunks().flatten().to_numpy().copy()
    values[4 * 8] = np.nan  # episode 1, step 1
    return replace(table, "action", lerobot.vectors(values.reshape(-1, 8)))


def no_label(table):
    mine = pc.equal(table.column("episode_index"), 1)
    for name in ("next.success", "next.reward"):
        table = replace(table, name, pc.if_else(mine, None, table.column(name)))
    return table


def small_image(table):
    images = table.column(HEAD).to_pylist()
    images[3] = {"bytes": lerobot.encode_png(np.zeros((4, 4, 3), np.uint8)), "path": ""}
    return replace(table, HEAD, pa.array(images))


def no_png(table):
    images = table.column(HEAD).to_pylist()
    images[3]["bytes"] = images[3]["bytes"][:40]
    return replace(table, HEAD, pa.array(images))


def with_image(table, row, data):
    images = table.column(HEAD).to_pylist()
    images[row]["bytes"] = data
    return replace(table, HEAD, pa.array(images))


def turned_image(table):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
    return with_image(table, 3, buffer.getvalue())


def deep_image(table):
    Image.new("I;16", (8, 8)).save(buffer := io.BytesIO(), "PNG")
    return with_image(table, 3, buffer.getvalue())


def lost_frame(table):
    return pa.concat_tables([table.slice(0, 3), table.slice(4)])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (nan, "actions are not finite at step 1"),
        (no_label, "no success label"),
        (small_image, r"image at step 0 has shape \(4, 4, 3\)"),
        (no_png, "image at step 0 cannot be decoded"),
        (turned_image, r"image at step 0 is stored turned \(EXIF orientation 6\)"),
        (deep_image, "image at step 0 is a 16-bit PNG"),
        (lost_frame, "3 frames in a row, 4 are listed"),
    ],
)
def test_a_bad_episode_is_named_with_its_file_and_left_out(tmp_path, damage, reason):
    root = write(tmp_path / "d", range(10), per_file=10)
    edit(root, damage)
    dataset = EpisodeDataset(root, max_bad_share=0.1)
    (bad,) = dataset.quarantined
    assert (bad.file, bad.episode) == (str(root / DATA), 1)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(str(bad))
    assert same(dataset.episode(1), episode(2))


def test_a_vector_of_another_size_spoils_its_file(tmp_path):
    root = write(tmp_path / "d", range(10), per_file=10)
    edit(root, lambda table: replace(table, "action", lerobot.vectors(np.zeros((len(table), 7), np.float32))))
    with pytest.raises(DatasetError, match=r"10 of 10 .* action holds 21 numbers in 3 frames, not 8 in each"):
        EpisodeDataset(root)


def test_a_dataset_without_outcome_columns_says_so(tmp_path):
    root = write(tmp_path / "d", range(4))
    edit(root, lambda table: table.drop_columns(["next.success", "next.reward"]))
    with pytest.raises(DatasetError, match=r"episode 0: no success label"):
        EpisodeDataset(root)


def test_a_folder_without_a_dataset_names_the_command(tmp_path):
    with pytest.raises(DatasetError, match=r"python -m saycan_qt\.collect"):
        EpisodeDataset(tmp_path / "nothing")
    write(tmp_path / "some", range(4))
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match=f"no dataset in {tmp_path / 'none'};"):
        EpisodeDataset([tmp_path / "some", tmp_path / "none"])


def test_relabelled_episodes_have_another_task_and_no_reward():
    rng = np.random.default_rng(0)
    tasks, success = rng.integers(7, size=5000), rng.random(5000) < 0.5
    new_tasks, new_success = relabel(tasks, success, np.random.default_rng(1), 0.4, 7)
    changed = new_tasks != tasks
    assert abs(changed.mean() - 0.4) < 0.03
    assert not new_success[changed].any() and np.array_equal(new_success[~changed], success[~changed])
    pairs = np.bincount(tasks[changed] * 7 + new_tasks[changed], minlength=49).reshape(7, 7)
    assert np.all(np.diag(pairs) == 0) and pairs[~np.eye(7, dtype=bool)].min() > 20  # every other task is drawn


def test_words_that_mean_the_same_have_one_meaning():
    tasks = [
        "pick coke can",
        "Pick up the coke can.",
        "grab coke can",
        "pick apple",
        "move apple near tea",
        "tea apple",
    ]
    skill = Skill("pick coke can", "pick", "grab a coke can")
    assert meanings(tasks, [skill]).tolist() == [0, 0, 0, 1, 2, 3]


def test_a_task_of_equal_meaning_is_no_negative():
    meanings = np.array([0, 1, 0, 2, 1])
    tasks = np.repeat(np.arange(5), 400)
    new_tasks, success = relabel(tasks, np.ones(2000, bool), np.random.default_rng(0), 1.0, 5, meanings)
    assert np.all(meanings[new_tasks] != meanings[tasks]) and not success.any()
    assert {int(t) for t in new_tasks[tasks == 0]} == {1, 3, 4}
    with pytest.raises(ValueError, match="more than one meaning"):
        relabel(tasks, success, np.random.default_rng(0), 1.0, 5, np.zeros(5))


def test_relabelling_from_a_pool_draws_each_task_as_often_as_it_occurs():
    tasks, pool = np.zeros(20_000, int), [0, 0, 0, 1, 2, 2, 2]
    new_tasks, _ = relabel(tasks, np.ones(20_000, bool), np.random.default_rng(0), 1.0, 3, pool=pool)
    assert np.bincount(new_tasks, minlength=3) / 20_000 == pytest.approx([0, 0.25, 0.75], abs=0.02)


def test_relabelling_with_the_impossible_draws_each_such_task_alike_and_leaves_the_omnipotent_alone():
    names = ["pick tea", "pick apple", "Pick up the tea.", "open drawer", "close drawer"]
    notes = np.array([lines(["pick tea", "open drawer"]), lines([]), lines(names)])
    possible = possible_tasks(notes, names)
    assert possible.tolist() == [[1, 0, 0, 1, 0], [0] * 5, [1] * 5]
    episode = np.arange(9000) % 3
    tasks, success = np.zeros(9000, int), np.ones(9000, bool)
    rng = np.random.default_rng(0)
    new, kept = relabel_impossible(tasks, success, rng, 1.0, possible[episode], meanings(names))
    for number, drawn in enumerate(([0, 0.5, 0, 0, 0.5], [0, 1 / 3, 0, 1 / 3, 1 / 3], [1, 0, 0, 0, 0])):
        assert np.bincount(new[episode == number], minlength=5) / 3000 == pytest.approx(drawn, abs=0.03)
    assert kept.tolist() == (episode == 2).tolist() and success.all()
    assert (relabel_impossible(tasks, success, rng, 0.3, possible[episode], meanings(names))[0] > 0).mean() < 0.25


def test_relabelling_follows_from_the_generator_alone():
    tasks, success = np.arange(50) % 5, np.ones(50, bool)
    a, b = (relabel(tasks, success, np.random.default_rng(3), 0.5, 5) for _ in range(2))
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
    assert success.all()  # the arrays passed in are left alone
