"""Evaluation counts honestly and refuses what it cannot measure."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import tiny_policies
from test_data_rlds import fractal, save

from saycan_qt import collect
from saycan_qt.data import scenes
from saycan_qt.data.episodes import Episode, EpisodeDataset, EpisodeWriter
from saycan_qt.evaluate import main
from saycan_qt.evaluation import skills
from saycan_qt.evaluation.affordance import measure as affordance
from saycan_qt.evaluation.affordance.figures import figures
from saycan_qt.evaluation.affordance.judges import Judge
from saycan_qt.evaluation.rates import wilson
from saycan_qt.evaluation.skills import run_episode
from saycan_qt.evaluation.worlds import LearntWorld
from saycan_qt.kitchen.practice import rollouts
from saycan_qt.kitchen.robot import KitchenRobot
from saycan_qt.kitchen.staging import Stage
from saycan_qt.kitchen.symbolic import SymbolicKitchen
from saycan_qt.learning import checkpoint
from saycan_qt.learning.algorithms.q_transformer import QTransformer
from saycan_qt.options import dispatch
from skills.embodiment import ActionDimension, Camera, Embodiment, StateNumber
from skills.library import SkillLibrary
from skills.robot_folder import default_robot
from skills.server import serve


class Quitter:
    """Terminates at once."""

    def act(self, history, instruction):
        return np.array([0, 0, 0, 0, 0, 0, 0, 1], np.float32)


class Idler:
    """Never terminates."""

    def act(self, history, instruction):
        return np.zeros(8, np.float32)


class Historian:
    """Notes how much it is shown, and ends at the sixth step."""

    embodiment = replace(default_robot().embodiment, history=4)

    def __init__(self):
        self.lengths, self.seen, self.told, self.given = [], [], [], []

    def act(self, history, instruction):
        self.lengths.append(len(history))
        self.seen.append(history[-1].state)
        assert all((a.state == b).all() for a, b in zip(history, self.seen[-len(history) :], strict=True))
        self.told.append(history[-1].action)
        self.given.append(np.array([0.01 * len(self.lengths), 0, 0, 0, 0, 0, 0, len(self.lengths) >= 6], np.float32))
        return self.given[-1]


@pytest.mark.parametrize("where", ["evaluation", "collection"])
def test_a_policy_with_a_history_is_shown_its_history_and_what_was_carried_out(where):
    actor, library, rng = Historian(), SkillLibrary.load(), np.random.default_rng(0)
    if where == "evaluation":
        run_episode(actor, "open drawer", rng, library)
        done = actor.given
    else:
        steps = rollouts.start(rng, library["open top drawer"], library, rollouts.AUTONOMOUS, actor=actor)
        done = [step.action for step in steps]  # also where it was disturbed
    assert actor.lengths == [1, 2, 3, 4, 4, 4] and actor.told[0] is None
    np.testing.assert_array_equal(actor.told[1:], done[:-1])


def test_a_policy_is_shown_what_was_carried_out_where_plans_are_tried_too():
    actor, kitchen = Historian(), SymbolicKitchen({"apple": "far counter"}, "far counter")
    robot = KitchenRobot(scene=Stage(np.random.default_rng(0)).scene(kitchen))
    assert LearntWorld(robot, actor).execute(SkillLibrary.load()["open top drawer"]).steps == 6
    assert actor.told[0] is None
    np.testing.assert_array_equal(actor.told[1:], actor.given[:-1])


def test_a_checkpoint_of_another_robot_is_refused_before_anything_moves(tmp_path, capsys):
    policy = tiny_policies.make("q-transformer")
    policy.embodiment = replace(policy.embodiment, control_hz=30)
    checkpoint.save(tmp_path / "other", *policy.describe(tiny_policies.TEXTS), {})
    assert main(["skills", "--checkpoint", str(tmp_path / "other")]) == 2
    assert "acts 30 times a second, the robot 3 times" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"other is of another robot than the kitchen's: .* 30 times"):
        collect.load_actor(str(tmp_path / "other"))


def test_episodes_that_act_in_one_batch_end_as_those_that_act_alone():
    actor, sizes = checkpoint.load("execution"), []

    class Watched:
        embodiment = actor.embodiment

        def act(self, history, instruction):
            return self.act_many([history], [instruction])[0]

        def act_many(self, histories, instructions):
            sizes.append(len(histories))
            return actor.act_many(histories, instructions)

    starts = skills.starts_of("pick", 10_000, range(4), SkillLibrary.load())
    together = sorted(skills.roll_out(Watched(), starts, together=2), key=lambda result: result.number)
    assert together == [result for start in starts for result in skills.roll_out(actor, [start])]
    assert max(sizes) == 2 and any(result.success for result in together)
    assert len({result.steps for result in together}) > 1  # so that some began when others had ended


def test_an_episode_whose_simulation_gives_up_has_failed_and_the_others_go_on(monkeypatch, caplog):
    starts = skills.starts_of("pick", 10_000, range(2), SkillLibrary.load())
    episodes = [skills._Episode(start, history=1) for start in starts]
    monkeypatch.setattr(skills, "_Episode", lambda start, history: episodes[start.number])
    episodes[0].env.world.data.qvel[:] = 1e12
    gave_up, other = skills.roll_out(Idler(), starts)
    assert (gave_up.number, gave_up.success, gave_up.terminated, gave_up.steps) == (0, False, False, 0)
    assert other.steps == 45 and "episode 0 of 'pick" in caplog.text


def test_wilson_interval_matches_the_textbook():
    """Agresti and Coull (1998): 0 of 10 gives 0 to 0.278; 5 of 10 is symmetric about one half."""
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-3))
    low, high = wilson(5, 10)
    assert low + high == pytest.approx(1.0)
    assert wilson(0, 0) == (0.0, 1.0)
    for n in range(1, 1000):  # whatever the rounding, the rate lies within
        assert wilson(0, n)[0] == 0 and wilson(n, n)[1] == 1


def test_terminating_at_once_and_never_terminating_both_fail():
    library = SkillLibrary.load()
    quick = skills.run_episode(Quitter(), "pick", np.random.default_rng(0), library)
    assert (quick.success, quick.terminated, quick.steps) == (False, True, 1)
    slow = skills.run_episode(Idler(), "open drawer", np.random.default_rng(0), library)
    assert (slow.success, slow.terminated, slow.steps) == (False, False, 45)


@pytest.mark.parametrize(
    ("flag", "value"), [("--checkpoint", "nowhere"), ("--families", "juggle"), ("--episodes", "0"), ("--workers", "0")]
)
def test_a_mistake_is_one_line_and_exit_code_2(flag, value, capsys):
    assert main(["skills", flag, value]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and value in error


def test_a_cluster_without_a_port_is_a_mistake_too(capsys):
    assert main(["skills", "--ray", "ray://head"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: 'head' is not an address")


def ended(checkpoint):
    os._exit(1)


def test_a_killed_worker_is_one_line_and_nobody_waits_for_its_episodes(monkeypatch, capsys):
    monkeypatch.setattr(skills, "_prepare", ended)
    assert main(["skills", "--families", "pick", "--episodes", "2"]) == 2
    assert "error: a worker ended, out of memory perhaps; run again with fewer --workers" in capsys.readouterr().err


@pytest.mark.parametrize("families", [(), ("pick", "pick")])
def test_families_are_counted_once_each(families, capsys):
    assert main(["skills", "--families", *families]) == 2 and "each once" in capsys.readouterr().err


def test_the_answer_is_the_same_json_on_standard_output_and_in_the_file(tmp_path, capsys, monkeypatch):
    episodes = [skills.Result("pick", "pick apple", success=n < 3, terminated=True, steps=9) for n in range(4)]
    monkeypatch.setattr(skills, "results", lambda config: iter(episodes))
    out = tmp_path / "new folder" / "skills.json"
    assert main(["skills", "--families", "pick", "--episodes", "4", "--json", "--out", str(out)]) == 0
    shown, written = capsys.readouterr().out, out.read_text()
    assert shown == written == json.dumps(json.loads(shown), indent=2) + "\n"
    assert json.loads(shown)["families"]["pick"]["rate"] == json.loads(shown)["average"] == 0.75
    assert main(["skills", "--out", str(tmp_path)]) == 2 and "is a folder" in capsys.readouterr().err


def test_rolling_out_does_not_pay_for_the_modules_of_other_commands():
    code = "import sys, saycan_qt.evaluation.skills; print({'torch', 'sklearn'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@dataclass(frozen=True)
class Pay:
    """A bill."""

    euros: int = 0


@pytest.mark.parametrize(("named", "result"), [([], 3), (["twice"], 6)])
def test_the_first_argument_names_the_command_or_an_unnamed_one_runs(named, result):
    commands = {"": lambda: (Pay, lambda bill: bill.euros), "twice": lambda: (Pay, lambda bill: 2 * bill.euros)}
    assert dispatch("python -m bills", None, commands, [*named, "--euros", "3"]) == result


def test_a_command_that_does_not_exist_gets_the_names_of_those_that_do(capsys):
    assert (main(["juggle"]), main([]), main(["--help"])) == (2, 2, 0)
    shown = capsys.readouterr()
    assert [text.count("{skills,affordance,plans,asking}") for text in (shown.err, shown.out)] == [2, 1]


SKILLS = {
    "pick apple": "pick",
    "pick sponge": "pick",
    "open top drawer": "open drawer",
    "close top drawer": "close drawer",
}


def make_scenes(folder, side=(80, 96), chance=0.5, count=25):
    """Noise for images and chance for labels: enough to measure, without a simulator."""
    rng = np.random.default_rng(0)
    scenes.begin(folder, 0, SKILLS)
    for first in range(0, count, scenes.PER_FILE):
        rows = [
            scenes.LabelledScene(
                number,
                rng.integers(0, 255, (1, *side, 3), dtype=np.uint8),
                rng.normal(0, 0.1, (1, 8)).astype(np.float32),
                rng.random(4) < chance,
                np.zeros(4, bool),
                "table",
                "",
                "pick apple",
                "practised",
                "at rest",
            )
            for number in range(first, min(first + scenes.PER_FILE, count))
        ]
        scenes.extend(scenes.path(folder, first // scenes.PER_FILE), rows)
    return str(folder)


def test_affordances_are_measured_family_by_family_and_scores_are_kept(tmp_path, capsys, monkeypatch):
    data, out = make_scenes(tmp_path / "scenes"), str(tmp_path / "out")
    command = ["affordance", "--data", data, "--out", out, "--json", "--resamples", "20", "--threads", "1"]
    assert main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    found = answer["models"]["affordance"]
    assert {"precision", "recall", "f1", "threshold", "auc", "ap", "ece", "intervals", "families"} <= found.keys()
    assert set(found["families"]) == set(SKILLS.values()) and answer["scenes"] + answer["tuning_scenes"] == 25
    monkeypatch.setattr(QTransformer, "value_many", None)  # scoring again would need it
    assert main([*command, "--threshold", "tuned"]) == 0
    said = capsys.readouterr()
    assert f"affordance's scores of 25 of 25 scenes are those kept in {out}/scores/affordance-" in said.err
    tuned = json.loads(said.out)["models"]["affordance"]
    assert tuned["f1"] == tuned["tuned"]["f1"] and tuned["fixed"] == found["fixed"]


def test_scores_are_not_kept_as_those_of_a_model_with_a_longer_name():
    judges = [Judge("host:50051", f"{'long' * 8}@{end}", None, None) for end in ("0fd3a1b2", "0fd3a1b2+isotonic")]
    assert len({judge.keeps for judge in judges}) == 2


def test_a_perfect_judge_scores_one_and_a_constant_one_scores_the_baseline():
    labels = np.random.default_rng(0).random((40, 4)) < 0.4
    families, tuning = np.array(list(SKILLS.values())), np.arange(40) % 4 == 0
    moments = np.array(["at rest", "afterwards"] * 20)
    perfect = figures(labels, labels * 0.9, families, moments, tuning, 0.5, 10)
    assert perfect["f1"] == 1.0 == perfect["auc"] == perfect["moments"]["afterwards"]["f1"] and perfect["intervals"][
        "f1"
    ] == (1.0, 1.0)
    assert perfect["all_pairs"]["tuned"]["f1"] == 1.0 == perfect["all_pairs"]["tuned"]["families"]["pick"]["f1"]
    constant = figures(labels, np.full(labels.shape, 0.7), families, moments, tuning, 0.5, 10)
    assert constant["f1"] == pytest.approx(constant["all_positive_f1"]) and constant["auc"] == 0.5


def test_a_model_that_only_acts_is_refused(tmp_path, capsys):
    config, tensors = tiny_policies.make("rt1").describe(["pick apple"])
    checkpoint.save(tmp_path / "actor", config, tensors, {})
    data = make_scenes(tmp_path / "scenes")
    assert main(["affordance", "--data", data, "--threads", "1", "--checkpoint", str(tmp_path / "actor")]) == 2
    error = capsys.readouterr().err
    assert "only acts" in error and "q-transformer or qt-opt" in error


@pytest.mark.parametrize(
    ("options", "scene", "said"),
    [
        (["--checkpoint", "nowhere"], {}, "no checkpoint 'nowhere'"),
        (["--checkpoint", "affordance", "affordance"], {}, "twice"),
        (["--data", "nowhere"], {}, "saycan_qt.collect affordance --out nowhere"),
        (["--label", "succeeds"], {}, "impossible"),
        ([], {"chance": 1.0}, "possible"),
        ([], {"side": (40, 40)}, "(80, 96, 3)"),
        ([], {"count": 1}, "collect more scenes"),
        (["--label", "recorded"], {}, "precondition or succeeds"),
        (["--server", "127.0.0.1:1"], {}, "nothing listens"),
        (["--server", "somewhere"], {}, "HOST:PORT"),
        (["--server", "127.0.0.1:1", "--calibrate", "isotonic"], {}, "beside a checkpoint"),
        (["--out", __file__], {}, "is a file; give a folder"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_exit_code_2(options, scene, said, tmp_path, capsys):
    data = make_scenes(tmp_path / "scenes", **scene)
    assert main(["affordance", "--data", data, "--threads", "1", *options]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]


def test_calibration_stays_beside_the_checkpoint_and_both_figures_are_given(tmp_path, capsys):
    critic = str(shutil.copytree(checkpoint.resolve("affordance"), tmp_path / "critic"))
    command = ["affordance", "--data", make_scenes(tmp_path / "scenes"), "--checkpoint", critic, "--threads", "1"]
    assert main([*command, "--json", "--resamples", "5", "--calibrate", "isotonic"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    raw, after = models[critic], models[f"{critic}, isotonic"]
    assert after["auc"] == pytest.approx(raw["auc"])
    assert after["calibration"]["ece_on_other_scenes"] == pytest.approx({"raw": raw["ece"], "calibrated": after["ece"]})
    assert (tmp_path / "critic.calibration.json").exists()
    assert main([*command, "--json", "--resamples", "5", "--calibrate", "isotonic", "--calibrate-on", "all"]) == 0
    after = json.loads(capsys.readouterr().out)["models"][f"{critic}, isotonic"]
    assert after["calibration"]["pairs"] == "all"
    assert after["calibration"]["ece_on_other_scenes"]["calibrated"] == pytest.approx(after["all_pairs"]["ece"])


class Tiring:
    """A critic that fails at its call number `last`, once; values follow from the image."""

    def __init__(self, last):
        self.last, self.calls = last, 0

    def value(self, history, instructions):
        self.calls += 1
        if self.calls == self.last:
            raise RuntimeError("out of memory")
        return np.linspace(0.1, 0.9, len(instructions)) * history[-1].image.mean() / 255


def test_a_server_that_stops_answering_is_one_line_and_what_was_scored_is_kept(tmp_path, capsys):
    data, out, critic = make_scenes(tmp_path / "scenes"), str(tmp_path / "out"), Tiring(last=23)
    with serve(SkillLibrary.load(), critic, model_id="tiring") as server:
        command = ["affordance", "--data", data, "--out", out, "--server", server.address, "--resamples", "5"]
        assert main([*command, "--json"]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "22 of 25 scenes" in errors[0] and out in errors[0]
        assert main([*command, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["models"]) == [server.address]
    assert critic.calls == 25 + 1


@pytest.mark.slow
def test_a_frozen_server_is_one_line_too(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as frozen:  # its connections are made, and nobody answers
        address = f"127.0.0.1:{frozen.getsockname()[1]}"
        assert main(["affordance", "--data", make_scenes(tmp_path / "scenes"), "--server", address]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"the skill server at {address}" in errors[0] and "frozen" in errors[0]


TASKS = ("pick apple", "pick up the apple", "open top drawer")


def make_episodes(folder):
    """Two frames each; every fourth is a failure."""
    rng = np.random.default_rng(0)
    with EpisodeWriter(folder, image_size=(80, 96)) as writer:
        for number in range(24):
            images = rng.integers(0, 255, (2, 80, 96, 3), dtype=np.uint8)
            zeros = np.zeros((2, 8), np.float32)
            writer.add(Episode(images, zeros, zeros, TASKS[number % 3], number % 4 < 3))
    return folder


def test_episodes_are_asked_for_their_own_task_and_for_one_of_another_meaning(tmp_path):
    questions = affordance.ask(make_episodes(tmp_path / "episodes"), "", "auto")
    assert questions.labels.tolist() == [[True, False]] * 18
    for own, other in questions.texts:
        assert (own == "open top drawer") != (other == "open top drawer")
    first = questions.histories([0, 17])
    assert set(first) == {0, 17} and [len(seen) for seen in first.values()] == [1, 1]


def test_episodes_of_several_cameras_are_asked_with_the_image_of_each(tmp_path):
    two = Embodiment(
        action=(ActionDimension("x", -1, 1),), cameras=(Camera("front", 8, 8), Camera("wrist", 8, 8)), control_hz=10
    )
    still = np.zeros((2, 0), np.float32), np.zeros((2, 1), np.float32)
    with EpisodeWriter(tmp_path / "episodes", two) as writer:
        for number in range(8):
            front, wrist = (np.full((2, 8, 8, 3), value + number, np.uint8) for value in (1, 101))
            writer.add(Episode({"front": front, "wrist": wrist}, *still, TASKS[number % 3], True))
    (seen,) = affordance.ask(tmp_path / "episodes", "", "auto").histories([3])[3]
    assert {name: int(image.max()) for name, image in seen.images.items()} == {"front": 4, "wrist": 104}


def test_an_episode_can_be_one_question_with_what_was_seen_before_it(tmp_path):
    questions = affordance.ask(make_episodes(tmp_path / "episodes"), "", "asked")
    seen = questions.histories([5])[5]
    dataset = EpisodeDataset(tmp_path / "episodes")
    assert [(o.image == dataset.images[10 + i]).all() for i, o in enumerate(seen)] == [True, True]
    assert questions.labels[:, 0].tolist() == [n % 4 < 3 for n in range(24)]


def test_the_episodes_own_success_can_be_the_label(tmp_path):
    questions = affordance.ask(make_episodes(tmp_path / "episodes"), "", "recorded")
    assert questions.labels[:, 0].tolist() == [n % 4 < 3 for n in range(24)] and questions.texts[2] == [TASKS[2]]


def test_a_robot_without_a_camera_gets_a_report_without_pictures(tmp_path, monkeypatch):
    blind, still = Embodiment((ActionDimension("x"),), state=(StateNumber("x"),)), np.zeros((2, 1), np.float32)
    with EpisodeWriter(tmp_path / "episodes", blind, fps=10) as writer:
        for number in range(24):
            writer.add(Episode({}, still, still, TASKS[0], number % 3 > 0))
    judge = Judge("blind", "1", lambda seen, texts: np.full(len(texts), 0.4), lambda text: True)
    monkeypatch.setattr(affordance.affordance_judges, "of_checkpoint", lambda name: judge)
    command = ["affordance", "--data", str(tmp_path / "episodes"), "--label", "recorded", "--resamples", "5"]
    cache = tmp_path / "elsewhere"
    assert main([*command, "--cache", str(cache), "--rate", "5", "--out", str(tmp_path)]) == 0
    assert [json.loads(path.read_text())["rate"] for path in cache.glob("*/index.json")] == [5.0]
    assert not (tmp_path / "episodes" / ".cache").exists()
    assert (page := (tmp_path / "report.html").read_text()).count("<figure>") > 3 and "<img" not in page


def test_a_label_of_feasibility_in_tfrecords_is_read_through_the_mapping(tmp_path):
    records = [fractal(n) | {"aspects/feasible": [n in (0, 3)]} for n in range(4)]
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("base: fractal\nsuccess: aspects/feasible\n")
    questions = affordance.ask(save(tmp_path / "data", records), str(mapping), "recorded")
    assert questions.labels[:, 0].tolist() == [True, False, False, True]
    assert questions.instructions == ["pick coke can 0", "pick coke can 1"]


def test_the_report_needs_no_other_file_and_shows_each_mistake_once(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["affordance", "--data", str(make_episodes(tmp_path / "episodes")), "--out", str(out), "--threads", "1"]
    assert main([*command, "--resamples", "5"]) == 0
    page, answer = (out / "report.html").read_text(), json.loads((out / "affordance.json").read_text())
    wrong = answer["models"]["affordance"]["mistakes"]
    assert page.count("data:image/png") == len(wrong["false_positives"]) + len(wrong["false_negatives"]) > 0
    assert "http" not in page and "as in the paper" in page.lower() and 'src="data' in page
    values = [row["value"] for row in wrong["false_negatives"]]
    assert values == sorted(values) and max(values) < 0.5
