"""Evaluation counts honestly and refuses what it cannot measure."""

import numpy as np
import pytest

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
