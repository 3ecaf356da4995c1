"""Benchmarks of the paper's figures: cells are made once, and what a table says of them follows from their numbers."""

import dataclasses
import json
from pathlib import Path

import cells
import figure4
import figure5
import numpy as np
import pytest
from cells import CellsConfig, Rate
from tiny_policies import KITCHEN, TEXTS, save_perception

from saycan_qt.data.episodes import Episode, EpisodeWriter
from saycan_qt.evaluation.skills import Result, Start
from saycan_qt.learning import checkpoint
from saycan_qt.learning.loop import Run, snapshot
from skills.library import SkillLibrary

CONFIG = {"seeds": (0,), "debug": True, "steps": 20, "at": (10, 20), "batch_size": 32}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Random episodes under the names of Figure 5's datasets, and eyes that know their instructions."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("cells")
    for name in figure5.ALL:
        with EpisodeWriter(folder / name, image_size=(80, 96)) as writer:
            for number in range(6):
                images = rng.integers(0, 255, (5, 80, 96, 3), dtype=np.uint8)
                states = rng.normal(0, 0.3, (5, 8)).astype(np.float32)
                actions = rng.uniform(KITCHEN.low, KITCHEN.high, (5, 8)).astype(np.float32)
                writer.add(Episode(images, states, actions, TEXTS[number % 3], number != 2))
    save_perception(folder / "perception")
    return folder


def job(home, out, name="rt1"):
    variant = next(variant for variant in figure5.VARIANTS if variant.name == name)
    config = figure5.PickingConfig(out, data=home, **CONFIG)
    found = cells.job(figure5.FIGURE, config, variant, 0)
    start = Start(SkillLibrary.load()["pick coke can"], 7)
    train = dataclasses.replace(found.train, perception=home / "perception")
    return dataclasses.replace(found, train=train, measured=((10, (start,)), (20, (start,))))


@pytest.mark.slow
def test_a_cell_that_is_interrupted_does_nothing_twice(home, tmp_path, monkeypatch):
    """While training it goes on from its state, then at the checkpoint that is measured next; finished, it stands."""
    steps, measured = [], []
    train_step, measure = Run.train_step, cells.measure

    def train_until_killed(run):
        if len(steps) == 15:
            steps.append("killed")
            raise KeyboardInterrupt
        train_step(run)
        steps.append(run.step)

    def measure_until_killed(job, folder, starts):
        measured.append(folder.name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(job, folder, starts)

    monkeypatch.setattr(Run, "train_step", train_until_killed)
    monkeypatch.setattr(cells, "measure", measure_until_killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            cells.make(job(home, tmp_path))
    cells.make(job(home, tmp_path))
    assert steps == [*range(1, 16), "killed", *range(15, 21)]  # the last state was written after step 14
    assert measured == ["checkpoint-10", "checkpoint-20", "checkpoint-20"]
    found = json.loads((tmp_path / "cells" / "rt1-0.json").read_text())
    assert [(row["step"], row["groups"]["pick"][1]) for row in found["rates"]] == [(10, 1), (20, 1)]
    assert found["training_episodes"] == 6 and found["settings"]["steps"] == 20 and len(found["data_digest"]) == 64
    assert job(home, tmp_path).done() and cells.make_all([job(home, tmp_path)], workers=1) == []


def test_a_cell_made_with_other_settings_is_not_taken_for_this_one(home, tmp_path):
    mine = job(home, tmp_path)
    mine.run.mkdir(parents=True)
    (mine.run / "settings.json").write_text(json.dumps({"settings": {**mine.settings, "warmup": 7}}))
    with pytest.raises(ValueError, match=r"made with warmup 7, not 200; another --out, or delete \S+/runs/rt1-0 and "):
        mine.done()
    (mine.run / "settings.json").write_text(json.dumps({"settings": {**mine.settings, "replays": 50}}))
    with pytest.raises(ValueError, match=r"made with replays 50, not as usual;"):
        mine.done()
    learner = next(variant for variant in figure5.VARIANTS if variant.name == "q-transformer")
    older = cells.job(figure5.FIGURE, figure5.PickingConfig(tmp_path / "older"), learner, 0)
    older.result.parent.mkdir(parents=True)
    known = {key: value for key, value in older.settings.items() if key != "acting_deviation"}
    older.result.write_text(json.dumps({"settings": known}))
    assert older.done()  # of before there was such a setting
    config = figure5.PickingConfig(tmp_path, demonstrations=50)
    assert cells.job(figure5.FIGURE, config, figure5.RT1, 0).settings["demonstrations"] == 50


def test_what_an_error_says_to_delete_is_made_again_with_the_new_settings(home, tmp_path, monkeypatch):
    trained, provenance = [], {"step": 20, "seconds": 1, "data_digest": "a", "episodes": 6}

    def train(job):
        trained.append(job.settings["learning_rate"])
        snapshot(job.train.out, 20).mkdir(parents=True)

    monkeypatch.setattr(cells, "train", train)
    monkeypatch.setattr(cells, "measure", lambda job, folder, starts: {"pick": (len(trained), 2)})
    monkeypatch.setattr(checkpoint, "exists", Path.exists)
    monkeypatch.setattr(checkpoint, "load_files", lambda folder: ({}, {}, provenance))
    first = job(home, tmp_path)
    second = dataclasses.replace(first, settings={**first.settings, "learning_rate": 1e-4})
    cells.make(first)
    for _ in range(2):
        with pytest.raises(ValueError, match="another --out") as error:
            second.done()
        Path(str(error.value).partition(": ")[0]).unlink()
    assert not second.done()
    cells.make(second)
    assert trained == [1e-3, 1e-4] and json.loads(second.result.read_text())["rates"][0]["groups"]["pick"] == [2, 2]


def test_data_made_otherwise_is_not_taken_for_this(tmp_path):
    assert not figure5.there(tmp_path / "clone", "800 steps")
    figure5.mark(tmp_path / "clone", "800 steps")
    assert figure5.there(tmp_path / "clone", "800 steps")
    with pytest.raises(ValueError, match=r"made with `800 steps`, not `900 steps`"):
        figure5.there(tmp_path / "clone", "900 steps")
    figure5.mark(tmp_path / "replays", "--replay runs/picking/data/demonstrations --seed 1")
    assert figure5.there(tmp_path / "replays", f"--replay {tmp_path}/demonstrations --seed 1")  # named otherwise
    with pytest.raises(ValueError, match="not `--replay failures --seed 1`"):
        figure5.there(tmp_path / "replays", "--replay failures --seed 1")


def cell(name, seed, wins, digest="a"):
    rows = [{"step": step, "groups": {"pick": [n, 100]}} for step, n in zip((400, 800), wins, strict=True)]
    return {"cell": name, "seed": seed, "rates": rows, "settings": {}, "data_digest": digest}


def write(out, *found):
    (out / "cells").mkdir(exist_ok=True)
    for one in found:
        (out / "cells" / f"{one['cell']}-{one['seed']}.json").write_text(json.dumps(one))


def test_a_table_pools_episodes_and_tells_how_seeds_differ(tmp_path, capsys):
    """30 and 50 of 100 after the last step: 80 of 200, Wilson .335 to .469; deviation sqrt(2 * .1**2)."""
    write(tmp_path, cell("rt1", 0, (90, 30)), cell("rt1", 1, (90, 50)))
    assert cells.main(figure5.FIGURE, ["--out", str(tmp_path), "--draw", "--markdown"]) == 0
    (row,) = capsys.readouterr().out.splitlines()[2:]
    numbers = [number.strip() for number in row.strip("|").split("|")]
    assert numbers[:6] == ["RT-1, demonstrations", "800", "2", "80 of 200", "0.40", "0.33 - 0.47"]
    assert numbers[7:] == ["0.40 ± 0.14", "0.14"] and (tmp_path / "figure5.png").stat().st_size > 1000


def test_seeds_that_differ_leave_more_open_than_their_episodes_do():
    alike, unlike = Rate((40, 40, 40), (100, 100, 100)), Rate((10, 40, 70), (100, 100, 100))
    assert alike.interval == unlike.interval
    low, high = unlike.over_seeds()
    assert low < unlike.interval[0] - 0.05 and high > unlike.interval[1] + 0.05
    assert alike.over_seeds() == pytest.approx(alike.interval, abs=0.02)
    assert Rate((0, 0), (50, 50)).over_seeds()[1] == pytest.approx(0.04, abs=0.02)


def test_families_are_averaged_evenly_however_many_episodes_they_have(tmp_path):
    rates = {"iql": {9: {group: Rate((n,), (40,)) for group, n in zip(figure4.GROUPS, (4, 8, 30), strict=True)}}}
    average = cells.rows(figure4.VARIANTS, figure4.GROUPS, rates)[-1]
    assert average[:2] == ["IQL", "average"] and (average[5], average[-1]) == ("0.35", "0.27")  # as the paper's 27 %


def test_cells_of_different_data_make_no_table(tmp_path, capsys):
    write(tmp_path, cell("q-transformer", 0, (1, 1), "a"), cell("iql", 0, (1, 1), "b"))
    assert cells.main(figure5.FIGURE, ["--out", str(tmp_path), "--draw"]) == 2
    assert "q-transformer-0 and iql-0 differ in their data digest; of one of them delete" in capsys.readouterr().err


def test_cells_that_were_trained_or_measured_otherwise_make_no_table(tmp_path, capsys):
    write(tmp_path, cell("rt1", 0, (1, 1)), cell("iql", 0, (1, 1)) | {"settings": {"scenes": 60_000}})
    assert cells.main(figure5.FIGURE, ["--out", str(tmp_path), "--draw"]) == 2
    assert "iql-0 and rt1-0 cannot stand in one table: scenes 60000 and None" in capsys.readouterr().err
    assert cells.main(figure5.FIGURE, ["--out", str(tmp_path), "--draw", "--cells", "rt1"]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cells", "ddpg"], "--cells ddpg: there are q-transformer"),
        (["--at", "200", "400"], "must end with the last step, 800"),
        (["--draw"], "no cells of figure5 yet"),
        (["--workers", "0"], "--workers 0"),
        (["--debug", "--steps", "400", "--at", "400"], "--debug trains 20 steps of 32 at most"),
        (["--draw", "--seeds", "0", "0"], "each once"),
    ],
)
def test_a_mistake_is_one_line(options, said, tmp_path, capsys):
    assert cells.main(figure5.FIGURE, ["--out", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_what_is_there_can_be_listed(tmp_path, capsys):
    write(tmp_path, cell("rt1", 0, (1, 1)))
    config = CellsConfig(tmp_path)
    mine = cells.job(figure5.FIGURE, config, figure5.RT1, 0)
    write(tmp_path, cell("rt1", 0, (1, 1)) | {"settings": dict(mine.settings)})
    assert cells.main(figure5.FIGURE, ["--out", str(tmp_path), "--list", "--cells", "rt1", "--seeds", "0", "1"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["rt1-0", "done"], ["rt1-1", "to", "do"]]


def test_figure_4_measures_each_of_appendix_h_s_tasks_in_its_group():
    tasks = figure4.tasks()
    assert [len(names) for names in tasks.values()] == [18, 6, 46]
    starts = figure4.starts(seed=3, count=46)
    assert len(starts) == 3 * 46 and {start.skill.name for start in starts} == {t for n in tasks.values() for t in n}
    found = cells.counted([Result(s.skill.family, s.skill.name, True, True, 5) for s in starts], figure4.GROUPS)
    assert found == {group: (46, 46) for group in figure4.GROUPS}
