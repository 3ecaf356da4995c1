"""The flywheel keeps what a paired test shows to be better, goes on where it was killed, and mixes nothing."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_policies import KITCHEN, TEXTS, make

from saycan_qt import collect, figures, improve, train
from saycan_qt.data.episodes import Episode, EpisodeDataset, EpisodeWriter
from saycan_qt.evaluation import skills
from saycan_qt.evaluation.rates import mcnemar
from saycan_qt.kitchen.practice import rollouts
from saycan_qt.kitchen.practice.collection import CollectConfig, episode
from saycan_qt.learning import checkpoint
from saycan_qt.learning.divergence import require_finite
from skills.library import SkillLibrary

FAMILY = "open drawer"


class Killed(Exception):
    """Stands for SIGKILL."""


def write(folder, count, seed=0):
    """Random episodes of 5 steps, every other one a success, the last one too; goes on where it was."""
    with EpisodeWriter(folder, image_size=(80, 96)) as writer:
        for number in range(writer.num_episodes, count):
            rng = np.random.default_rng([seed, number])
            writer.add(
                Episode(
                    images=rng.integers(0, 255, (5, 80, 96, 3), dtype=np.uint8),
                    states=rng.normal(0, 0.3, (5, 8)).astype(np.float32),
                    actions=rng.uniform(KITCHEN.low, KITCHEN.high, (5, 8)).astype(np.float32),
                    task=TEXTS[number % 3],
                    success=number % 2 == 0 or number == count - 1,
                    info={"mode": "autonomous"},
                )
            )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """`start`, a tiny policy, and `shown`, demonstrations."""
    folder = tmp_path_factory.mktemp("improve")
    described, tensors = make("q-transformer, constrained").describe(sorted(TEXTS))
    checkpoint.save(folder / "start", described, tensors, {})
    write(folder / "shown", 4)
    return folder


class World:
    """Stands for the simulator, where it takes long: what was done, in order, and where the next one is killed."""

    def __init__(self, monkeypatch, better=("q-001",)):
        self.did, self.kill, self.better, self.really = [], "", better, train.train
        monkeypatch.setattr(collect, "episodes", self.episodes)
        monkeypatch.setattr(train, "train", self.train)
        monkeypatch.setattr(skills, "results", self.results)

    def told(self, what):
        if what == self.kill:
            self.kill = ""
            raise Killed
        self.did.append(what)

    def episodes(self, config):
        write(config.out / "shard-00", config.episodes - 1, config.seed)
        self.told(f"act {config.out.name}")
        write(config.out / "shard-00", config.episodes, config.seed)
        return 0

    def train(self, config):
        self.really(config)
        self.told(f"train {config.out.name}")

    def results(self, config):
        name = Path(config.checkpoint).parent.name if Path(config.checkpoint).name == "checkpoint" else "start"
        for number in reversed(range(config.episodes)):
            if number == 0:
                self.told(f"judge {name} {config.seed}")
            wins = number % 10 < (9 if name in self.better else 5)
            yield skills.Result(config.families[0], "", wins, True, 3, number)


def run(home, out, *more, tiny="--debug"):
    given = ["--out", out, "--start", home / "start", "--data", home / "shown", "--families", FAMILY, tiny]
    small = ["--rounds", 2, "--episodes", 6, "--trials", 50, "--steps", 2, "--threads", 1]
    return improve.main([str(word) for word in (*given, *small, *more)])


@pytest.fixture(scope="module")
def whole(home):
    """An undisturbed run of two rounds, with clones beside it: its folder, and what was done."""
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch)
        assert run(home, home / "whole", "--clone") == 0
    return home / "whole", world.did


def rounds(out):
    rows = json.loads((out / "rounds.json").read_text())["rounds"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_the_paired_test_is_mcnemars_exact_one():
    """Sums of binomial coefficients over powers of two, by hand."""
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 0) == 1 / 32 and mcnemar(4, 0) == 1 / 16 and mcnemar(0, 4) == 1
    assert mcnemar(8, 2) == (45 + 10 + 1) / 1024
    assert mcnemar(2, 8) == 1 - (1 + 10) / 1024
    assert mcnemar(15, 5) == (15504 + 4845 + 1140 + 190 + 20 + 1) / 2**20


def test_what_is_better_is_kept_and_acts_in_the_next_round(whole):
    out, did = whole
    first, second = (row for row in rounds(out) if row["arm"] == "q")
    assert (first["acted"], first["kept"], second["acted"], second["kept"]) == ("start", True, "q-001", False)
    assert (first["won"], first["lost"], first["p"]) == (20, 0, 2**-20)  # 9 of 10 against 5 of 10, of 50
    assert (second["won"], second["lost"], second["p"]) == (0, 20, 1.0)
    assert (first["own_episodes"], second["own_episodes"], second["own_successes"]) == (6, 12, 4)
    assert len({line.split()[2] for line in did if line.startswith("judge")}) == 2  # a round's scenes are its own
    described = json.loads((out / "q-002" / "config.json").read_text())
    assert described["init"].endswith("q-001/checkpoint") and len(described["data"]) == 3
    assert described["algorithm"]["behavior_threshold"] == 0.5  # of the policy that it starts from


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_and_does_nothing_twice(home, whole, tmp_path, monkeypatch):
    (out, did), world = whole, World(monkeypatch)
    for step in did:
        world.kill = step
        with pytest.raises(Killed):
            run(home, tmp_path / "out", "--clone")
    assert run(home, tmp_path / "out", "--clone") == 0
    assert world.did == did and rounds(tmp_path / "out") == rounds(out)
    for name in ("q-002", "clone-002"):
        one, other = (checkpoint.read(folder / name / "checkpoint")[1] for folder in (out, tmp_path / "out"))
        assert all((one[key] == other[key]).all() for key in one)
    assert run(home, tmp_path / "out", "--clone") == 0 and world.did == did  # nothing is left to do


def test_rounds_go_on_where_their_folder_has_moved(home, tmp_path, monkeypatch):
    world = World(monkeypatch)
    world.kill = "train q-002"  # which started from q-001, in the same folder
    with pytest.raises(Killed):
        run(home, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    with pytest.MonkeyPatch.context() as patch:  # and --start is spelled otherwise
        patch.chdir(home)
        again = run(home, tmp_path / "moved", "--start", "start")
    assert again == 0 and len(rounds(tmp_path / "moved")) == 2


def test_a_clone_beside_it_shares_what_the_same_policy_did_and_has_rounds_of_its_own(whole):
    out, did = whole
    acted = [line.split()[1] for line in did if line.startswith("act")]
    assert acted == ["round-001-start", "round-002-q-001", "round-002-start"]
    assert did.count(did[2]) == 1 and did[2].startswith("judge start")
    assert [row["acted"] for row in rounds(out) if row["number"] == 2] == ["q-001", "start"]
    assert checkpoint.read(out / "clone-002" / "checkpoint")[0]["algorithm"] == "rt1"


def test_the_curve_is_of_the_policy_in_use_and_can_be_drawn(whole, tmp_path, capsys):
    out, _ = whole
    points = json.loads((out / "curve.json").read_text())["curves"]["q"]
    assert [(p["own_episodes"], p["policy"], p["in_use"]["rate"]) for p in points] == [
        (0, "start", 0.5),
        (6, "q-001", 0.9),
        (12, "q-001", 0.9),
    ]
    assert points[2]["candidate"]["rate"] == 0.5 and points[2]["kept"] is False
    assert figures.main(["improve", str(out), "--out", str(tmp_path / "curve.png")]) == 0
    assert (tmp_path / "curve.png").stat().st_size > 5_000
    assert figures.main(["improve", str(out / "own")]) == 2 and "curve.json" in capsys.readouterr().err


@pytest.mark.slow
def test_exit_codes_and_refusals_are_told_in_one_line(home, tmp_path, monkeypatch, capsys):
    world = World(monkeypatch, better=())
    assert run(home, tmp_path / "out", "--rounds", 1) == 1
    done = len(world.did)
    for more, said in (
        (("--episodes", 7), "made with --episodes 6;"),
        (("--discount", 0.5), "made with --discount 0.98;"),
        (("--families", "pick"), "made with --families open drawer;"),
        (("--start", "execution"), "made with "),
        (("--level", 0.7), "between 0 and 0.5"),
        (("--families", "juggle"), "no family ['juggle']"),
        (("--start", "nobody"), "no checkpoint 'nobody'"),
        (("--data", tmp_path / "none"), "not a folder"),
    ):
        capsys.readouterr()
        assert run(home, tmp_path / "out", "--rounds", 1, *more) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ") and said in told and told.count("\n") == 1
    path = tmp_path / "out" / "rounds.json"
    older = json.loads(path.read_text())
    del older["settings"]["anew"], older["settings"]["acting_deviation"]  # of before there were such settings
    path.write_text(json.dumps(older))
    assert run(home, tmp_path / "out", "--rounds", 1) == 1 and len(world.did) == done
    write(tmp_path / "grown", 4)
    assert run(home, tmp_path / "more", "--data", tmp_path / "grown", "--rounds", 1) == 1
    write(tmp_path / "grown", 5)
    assert run(home, tmp_path / "more", "--data", tmp_path / "grown", "--rounds", 1) == 2
    assert f"made with --data {tmp_path / 'grown'} (" in capsys.readouterr().err
    done = len(world.did)
    assert run(home, tmp_path / "out", "--trials", 20, tiny="--clone") == 2
    assert "20 pairs of episodes keep nothing; give 50" in capsys.readouterr().err
    assert len(world.did) == done
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    assert run(home, tmp_path / "mine") == 2 and "letter" in capsys.readouterr().err


def test_what_cannot_be_learnt_with_is_refused_before_anything_is_done(home, tmp_path, monkeypatch, capsys):
    world = World(monkeypatch)
    (tmp_path / "empty").mkdir()
    for more, said in (
        (("--discount", 2), "--discount 2.0"),
        (("--behavior-weight", 0), "--behavior-threshold"),
        (("--behavior-weight", 0, "--behavior-threshold", 0, "--circles", 2), "needs a behaviour head"),
        (("--learning-rate", 0), "--learning-rate"),
        (("--data", home / "shown", tmp_path / "empty"), f"no dataset in {tmp_path / 'empty'}"),
    ):
        assert run(home, tmp_path / "out", *more) == 2 and said in capsys.readouterr().err
    assert not world.did and not (tmp_path / "out").exists()


def test_until_something_is_learnt_what_is_learnt_with_may_change(home, tmp_path, monkeypatch, capsys):
    world = World(monkeypatch)
    monkeypatch.setattr(train, "train", interrupted)
    assert run(home, tmp_path / "out", "--rounds", 1) == 130
    assert run(home, tmp_path / "out", "--rounds", 1, "--seed", 1) == 2 and "--seed 0" in capsys.readouterr().err
    monkeypatch.setattr(train, "train", world.train)
    assert run(home, tmp_path / "out", "--rounds", 1, "--discount", 0.9) == 0
    assert [line for line in world.did if line.startswith("act")] == ["act round-001-start"]


def interrupted(config):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_own_episodes_go_on_with_as_many_workers_as_they_began_with(home, tmp_path):
    """Which decides where each of them lies."""
    given = ["--out", tmp_path, "--start", home / "start", "--families", FAMILY, "--episodes", 2, "--debug"]
    flywheel = improve.Flywheel(improve.command([*map(str, given), "--workers", "1"]))
    one = CollectConfig(tmp_path / "own" / "round-001-start", 1, seed=1_000_001, policy=str(home / "start"), workers=1)
    assert collect.episodes(dataclasses.replace(one, families=(FAMILY,))) == 0
    flywheel.config = dataclasses.replace(flywheel.config, workers=2)
    assert flywheel.act(flywheel.of("q", 1))[0] == "own/round-001-start" and len(list(one.out.glob("shard-*"))) == 1


@pytest.mark.slow
def test_a_clone_that_is_kept_is_named_and_counts(home, tmp_path, monkeypatch, capsys):
    World(monkeypatch, better=("clone-001",))
    assert run(home, tmp_path / "out", "--rounds", 1, "--clone") == 0
    assert f"{tmp_path / 'out' / 'clone-001' / 'checkpoint'} is the last policy of clone" in capsys.readouterr().out


def test_a_smaller_learning_rate_goes_on_where_training_diverged(home, tmp_path, monkeypatch, capsys):
    world = World(monkeypatch)
    world.really = lambda config: require_finite("the loss", float(config.learning_rate < 1e-4 or "nan"), 1, config.out)
    assert run(home, tmp_path, "--rounds", 1) == 2 and "smaller --learning-rate" in capsys.readouterr().err
    assert run(home, tmp_path, "--rounds", 1, "--learning-rate", 1e-5, "--steps", 3) == 2
    assert "made with --steps 2;" in capsys.readouterr().err
    assert run(home, tmp_path, "--rounds", 1, "--learning-rate", 1e-5) == 0


def test_qs_settings_are_those_of_the_checkpoint_unless_given(home):
    config = improve.command(["--out", "x", "--start", str(home / "start"), "--behavior-threshold", "0.9"])
    assert (config.q.behavior_weight, config.q.behavior_threshold) == (1.0, 0.9)
    assert improve.command(["--out", "x"]).q == improve.settings_of("execution")


class Idler:
    """Acts like nobody else, never well; ends by itself where asked to."""

    embodiment = KITCHEN

    def __init__(self, ends):
        self.ends, self.asked = ends, 0

    def act(self, history, instruction):
        self.asked += 1
        return np.array([0, 0, 0, 0, 0, 0, 0.123, float(self.ends)])


class Rocker(Idler):
    def __init__(self, step):
        super().__init__(ends=False)
        self.step = step

    def act(self, history, instruction):
        return super().act(history, instruction) + np.array([0, 0, self.step * (-1) ** self.asked, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("ends", [False, True])
def test_the_expert_finishes_what_the_policy_began_and_only_its_part_is_kept(ends):
    config = CollectConfig(Path("unused"), help_by_expert=1.0, policy="x", families=(FAMILY,), seed=5)
    found = episode(config, 0, SkillLibrary.load(), Idler(ends))
    assert found.success and found.info["mode"] == rollouts.HELPED and len(found.actions) > 2
    assert not np.isclose(found.actions[:, 6], 0.123).any() and found.actions[-1, 7] > 0.5


@pytest.mark.parametrize(("step", "period"), [(0.0, 1), (0.04, 2)])
def test_the_expert_takes_over_where_the_policy_stands_still_or_goes_up_and_down(step, period):
    library = SkillLibrary.load()
    for seed in range(4):
        rocker = Rocker(step)
        run = rollouts.start(np.random.default_rng(seed), library["pick apple"], library, rollouts.HELPED, actor=rocker)
        assert list(run) and run.success and 0 < rocker.asked <= rollouts.AGAIN + period


def test_without_a_policy_there_is_nothing_to_help_with(tmp_path, capsys):
    assert collect.main(["--out", str(tmp_path), "--help-by-expert", "0.5"]) == 2
    assert "--policy" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_round_killed_at_each_step_comes_to_its_end(home, tmp_path):
    given = ["--start", home / "start", "--data", home / "shown", "--families", FAMILY, "--help-by-expert", 0.5]
    tiny = ["--rounds", 1, "--episodes", 4, "--trials", 2, "--workers", 1, "--threads", 1, "--debug"]
    line = [sys.executable, "-m", "saycan_qt.improve", *map(str, ("--out", tmp_path / "out", *given, *tiny))]
    shown = (
        "own/round-001-start/shard-00/meta/manifest.json",
        "q-001/state/manifest.json",
        "held-out/round-001-start.json",
    )
    for sign in shown:
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / sign).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        time.sleep(3)  # its workers notice
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    (this,) = rounds(tmp_path / "out")
    assert this["held_out"][FAMILY]["episodes"] == 2 and this["kept"] is (this["p"] < 0.05)
    own = EpisodeDataset(tmp_path / "out" / this["own"], cache=tmp_path / "cache")
    assert own.num_episodes == 4 and own.info["mode"].count("helped") == this["helped"]
