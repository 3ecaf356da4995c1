"""Evaluation counts honestly and refuses what it cannot measure."""

import json

import numpy as np
import pytest
import tiny_policies

from saycan_qt import affordance, checkpoint
from saycan_qt.data import scenes
from saycan_qt.evaluate import main, run_episode, wilson
from skills.library import SkillLibrary


class Quitter:
    """Terminates at once."""

    def act(self, history, instruction):
        return np.array([0, 0, 0, 0, 0, 0, 0, 1], np.float32)


class Idler:
    """Never terminates."""

    def act(self, history, instruction):
        return np.zeros(8, np.float32)


def test_wilson_interval_matches_the_textbook():
    """Agresti and Coull (1998): 0 of 10 gives 0 to 0.278; 5 of 10 is symmetric about one half."""
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-3))
    low, high = wilson(5, 10)
    assert low + high == pytest.approx(1.0)
    assert wilson(0, 0) == (0.0, 1.0)


def test_terminating_at_once_and_never_terminating_both_fail():
    library = SkillLibrary.load()
    quick = run_episode(Quitter(), "pick", np.random.default_rng(0), library)
    assert (quick.success, quick.terminated, quick.steps) == (False, True, 1)
    slow = run_episode(Idler(), "open drawer", np.random.default_rng(0), library)
    assert (slow.success, slow.terminated, slow.steps) == (False, False, 45)


@pytest.mark.parametrize(("flag", "value"), [("--checkpoint", "nowhere"), ("--families", "juggle")])
def test_a_mistake_is_one_line_and_exit_code_2(flag, value, capsys):
    assert main(["skills", flag, value]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and value in error


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
                rng.integers(0, 255, (*side, 3), dtype=np.uint8),
                rng.normal(0, 0.1, 8).astype(np.float32),
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
    monkeypatch.setattr(scenes.SceneDataset, "observations", None)  # scoring again would need them
    assert main([*command, "--threshold", "tuned"]) == 0
    tuned = json.loads(capsys.readouterr().out)["models"]["affordance"]
    assert tuned["f1"] == tuned["tuned"]["f1"] and tuned["fixed"] == found["fixed"]


def test_a_perfect_judge_scores_one_and_a_constant_one_scores_the_baseline():
    labels = np.random.default_rng(0).random((40, 4)) < 0.4
    families, tuning = np.array(list(SKILLS.values())), np.arange(40) % 4 == 0
    moments = np.array(["at rest", "afterwards"] * 20)
    perfect = affordance.figures(labels, labels * 0.9, families, moments, tuning, 0.5, 10)
    assert perfect["f1"] == 1.0 == perfect["auc"] == perfect["moments"]["afterwards"]["f1"] and perfect["intervals"][
        "f1"
    ] == (1.0, 1.0)
    constant = affordance.figures(labels, np.full(labels.shape, 0.7), families, moments, tuning, 0.5, 10)
    assert constant["f1"] == pytest.approx(constant["all_positive_f1"]) and constant["auc"] == 0.5


def test_a_model_that_only_acts_is_refused(tmp_path, capsys):
    config, tensors = tiny_policies.make("rt1").describe(["pick apple"])
    checkpoint.save(tmp_path / "actor", config, tensors, {})
    data = make_scenes(tmp_path / "scenes")
    assert main(["affordance", "--data", data, "--threads", "1", "--checkpoint", str(tmp_path / "actor")]) == 2
    assert "only acts" in capsys.readouterr().err


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
    ],
)
def test_what_cannot_be_measured_is_one_line_and_exit_code_2(options, scene, said, tmp_path, capsys):
    data = make_scenes(tmp_path / "scenes", **scene)
    assert main(["affordance", "--data", data, "--threads", "1", *options]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
