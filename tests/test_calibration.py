"""A calibrated value is a probability in the raw values' order, and belongs to one checkpoint's weights."""

import json
import shutil

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from saycan_qt.evaluation.affordance.metrics import calibration_error
from saycan_qt.learning import calibration, checkpoint
from saycan_qt.learning.calibration import TIE_BREAK, CalibrationError
from saycan_qt.serve import ServeConfig, Unreadable, checkpoints

METHODS = ("isotonic", "temperature")


def pairs(seed, temperature=2.0, count=4000):
    """Values of a model that is sure of itself by a factor of `temperature`."""
    rng = np.random.default_rng(seed)
    values = rng.random(count)
    chance = 1 / (1 + ((1 - values) / values) ** (1 / temperature))
    return rng.random(count) < chance, values, rng.random(count)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(checkpoint.resolve("affordance"), tmp_path / "critic")


@pytest.mark.parametrize("method", METHODS)
def test_the_order_stays_and_everything_lies_between_0_and_1(method):
    curve = calibration.fit(method, *pairs(0))
    calibrated = curve.calibrated(np.linspace(0, 1, 1001))
    assert (np.diff(calibrated) > 0)[1:-1].all() and (np.diff(calibrated) >= 0).all()
    assert calibrated.min() >= 0 and calibrated.max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_the_error_falls_on_pairs_that_were_not_seen(method):
    curve = calibration.fit(method, *pairs(1))
    labels, values, weights = pairs(2)
    before = calibration_error(labels, values, weights)
    assert calibration_error(labels, curve.calibrated(values), weights) < 0.5 * before


def test_the_isotonic_curve_is_that_of_scikit_learn():
    labels, values, weights = pairs(3, count=200)
    theirs = IsotonicRegression(y_min=0, y_max=1).fit(values, labels, sample_weight=weights).predict(values)
    ours = calibration.fit("isotonic", labels, values, weights).calibrated(values)
    assert ours == pytest.approx(theirs, abs=TIE_BREAK)


def test_the_temperature_is_found():
    assert calibration.fit("temperature", *pairs(4)).temperature == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_it_comes_back_as_it_was_and_leaves_the_checkpoint_whole(method, folder):
    curve = calibration.fit(method, *pairs(5, count=300))
    path = calibration.save(curve, folder, {"data": "digest"})
    found, values = calibration.load(folder), np.linspace(0, 1, 50)
    assert path.parent == folder.parent and found.provenance["data"] == "digest"
    assert (found.calibrated(values) == curve.calibrated(values)).all()
    checkpoint.load_files(folder)


def test_beside_other_weights_it_is_refused(folder):
    calibration.save(calibration.Calibration("temperature", 2.0), folder, {})
    config, tensors, _ = checkpoint.load_files(folder)
    checkpoint.save(folder, config, tensors, {"trained": "again"})
    with pytest.raises(CalibrationError, match="other weights"):
        calibration.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0},
        {"temperature": "warm"},
        {"method": "guess"},
        {"method": "isotonic"},
        {"method": "isotonic", "knots": [[0.5, 0.9], [0.6, 0.1]]},
        {"method": "isotonic", "knots": [[0.5, 1.5]]},
        {"format": "saycan-qt calibration 0"},
    ],
)
def test_a_damaged_one_is_refused_in_one_line(change, folder):
    path = calibration.save(calibration.Calibration("temperature", 2.0), folder, {})
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CalibrationError, match=r"calibration\.json") as refused:
        calibration.load(folder)
    assert "\n" not in str(refused.value)


def test_where_there_is_none_the_command_is_named(folder):
    with pytest.raises(CalibrationError, match="evaluate affordance --calibrate"):
        calibration.load(folder)


@pytest.mark.parametrize("content", [None, "{", '{"format": "saycan-qt calibration 0"}', "of other weights"])
def test_the_skill_server_refuses_what_it_cannot_use_and_names_the_command_that_makes_it(content, folder):
    if content == "of other weights":
        content = calibration.beside(checkpoint.resolve("affordance")).read_text()
        config, tensors, _ = checkpoint.load_files(folder)
        checkpoint.save(folder, config, tensors, {"trained": "again"})
    if content is not None:
        calibration.beside(folder).write_text(content)
    with pytest.raises(Unreadable, match=f"affordance --calibrate isotonic --checkpoint {folder}"):
        checkpoints(ServeConfig(affordance=str(folder), calibrated=True, threads=1))


def test_the_shipped_calibration_is_of_the_shipped_weights():
    raw, calibrated = (checkpoints(ServeConfig(calibrated=on, threads=1)) for on in (False, True))
    assert raw.calibrate is None and calibrated.calibrate is not None
    assert calibrated.critic_id.startswith(f"{raw.critic_id}+isotonic@")


def test_a_server_that_is_calibrated_otherwise_has_another_id(folder):
    ids = set()
    for temperature in (2.0, 3.0):
        calibration.save(calibration.Calibration("temperature", temperature), folder, {})
        ids.add(checkpoints(ServeConfig(affordance=str(folder), calibrated=True, threads=1)).critic_id)
    assert len(ids) == 2
