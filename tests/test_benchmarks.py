"""Benchmarks that run other commands: what was made otherwise is not taken for this, and what breaks is no result."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import deliveries
import fleet
import learning
import pytest
import session
import table1
from learning import LearningConfig
from table1 import Table1Config

import saycan_qt


@pytest.fixture
def commands(monkeypatch):
    """Those of Table 1, which are not run; each judgement is 0.5."""
    told = []
    found = {"fixed": dict.fromkeys(("precision", "recall", "f1", "auc"), 0.5), "tuned": {"f1": 0.5}}

    def run(log, *arguments):
        told.append(" ".join(map(str, arguments)))
        log.parent.mkdir(parents=True, exist_ok=True)
        return json.dumps({"models": {"one": found}})

    monkeypatch.setattr(table1, "run", run)
    return told


def test_table_1_goes_on_only_from_what_the_same_settings_made(tmp_path, commands):
    assert table1.main(Table1Config(tmp_path, rows=(2,), debug=True)) == 0
    done = len(commands)
    assert table1.main(Table1Config(tmp_path, rows=(2,), workers=1, debug=True)) == 0 and len(commands) == done == 5
    with pytest.raises(table1.Failed, match=r"--scenes 8`, not `.* --scenes 400`; another --out"):
        table1.main(Table1Config(tmp_path, rows=(2,)))
    for mark in tmp_path.rglob("*.done"):
        mark.write_text("")  # as they were before they held words
    with pytest.raises(table1.Failed, match="made with --anywhere 20; another --out"):
        table1.main(Table1Config(tmp_path, rows=(2,), debug=True))
    assert table1.main(Table1Config(tmp_path, rows=(2,), seeds=1)) == 0 and len(commands) == done


def test_rows_of_table_1_that_were_not_asked_for_stay(tmp_path, commands):
    for rows in ((0, 1), (2,)):
        assert table1.main(Table1Config(tmp_path, seeds=1, rows=rows)) == 0
    with pytest.raises(table1.Failed, match="--rows 7: there are 0 to 4"):
        table1.main(Table1Config(tmp_path, rows=(7,)))
    assert list(json.loads((tmp_path / "table1.json").read_text())) == [row.name for row in table1.ROWS[:3]]


@pytest.mark.parametrize(
    ("code", "plan", "said"),
    [
        (1, {"ended": "died", "success": False, "reason": "the skill server ended"}, "runs/0.*the skill server ended"),
        (2, None, "ended with 2: error: no seed"),
        (1, None, "ended with 1: error: no seed"),
        (1, {"ended": "max steps", "success": False, "reason": "12 steps"}, None),
    ],
)
def test_a_run_that_broke_is_not_counted_as_a_failed_delivery(code, plan, said, monkeypatch):
    done = subprocess.CompletedProcess([], code, "" if plan is None else json.dumps(plan), "loading\nerror: no seed\n")
    monkeypatch.setattr(subprocess, "run", lambda *command, **how: done)
    if said is None:
        assert deliveries.one("bring me a snack", 0, Path("runs/0")) == plan
        return
    with pytest.raises(SystemExit, match=said) as ending:
        deliveries.one("bring me a snack", 0, Path("runs/0"))
    assert "\n" not in str(ending.value)


def test_another_checkout_is_not_measured_against_this_one(tmp_path, monkeypatch):
    here, there = Path(saycan_qt.__file__), SimpleNamespace(process=SimpleNamespace(kill=lambda: None))
    there.answer = lambda: {"package": str(here), "rows": []}
    monkeypatch.setattr(learning, "Elsewhere", lambda *command: there)
    monkeypatch.setattr(learning, "measure", lambda *what: pytest.fail("measured"))
    with pytest.raises(SystemExit, match=r"no saycan_qt/__init__.py there"):
        learning.main(LearningConfig(before=tmp_path))
    with pytest.raises(RuntimeError, match=f"what was measured there is {here}"):
        learning.before("small", [], LearningConfig(before=tmp_path), tmp_path)
    assert learning.before("small", [], LearningConfig(before=here.parent.parent), tmp_path) == (there, [])


def test_a_fleet_s_second_run_is_not_measured_by_the_work_of_the_first(tmp_path):
    config = fleet.FleetConfig(episodes=4, shards=2, home=tmp_path)
    assert [fleet.write(config, tmp_path) for _ in range(2)] == [4, 0]
    with pytest.raises(SystemExit, match="data of an earlier run there; another --home, or delete them"):
        fleet.main(config)


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"runs": 11}, {"seeds": 0}])
def test_sentences_there_are_not_are_refused_before_anything_runs(wrong, monkeypatch):
    monkeypatch.setattr(session, "carried_out", lambda *command: pytest.fail("it ran"))
    with pytest.raises(SystemExit, match=r"error: --(runs|seeds) \d+: "):
        session.main(session.BenchmarkConfig(**wrong))
