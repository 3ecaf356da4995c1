"""Slips of the finger are read as what was meant, and nothing else is read otherwise."""

from types import SimpleNamespace

import numpy as np
import pytest

from planners.prompts import Example, Prompt
from planners.spelling import Spelling, is_a_slip, words_of

OWN = ("bring me the apple", "put the sponge into the top drawer", "open the drawer", "take the coke")
ENGLISH = {"stop", "pan", "smash", "please", "cook", "in", *" ".join(OWN).split()}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("bring me the aple", "bring me the apple"),
        ("Brign me the apple!", "Bring me the apple!"),
        ("open the drawwer", "open the drawer"),
        (
            "please put teh spomge in the open drawer",
            "please put teh sponge in the open drawer",
        ),  # three letters are too few
        ("bring me the pans", "bring me the pans"),  # a known word with an ending
        ("smash the cook", "smash the cook"),  # known words, although the latter is a slip away from coke
        ("bring me the zebra", "bring me the zebra"),
        ("mach die opne schublade auf", "mach die opne schublade auf"),  # another language
        ("给我拿apples", "给我拿apples"),
        ("isn't the drawer open", "isn't the drawer open"),
    ],
)
def test_a_slip_is_read_as_the_robots_own_word_and_nothing_else_is(typed, meant):
    assert Spelling(OWN, ENGLISH).read(typed) == meant


def test_a_word_a_slip_away_from_two_is_left():
    assert Spelling(["take the tale"], {"the"}).read("the taje") == "the taje"


def test_without_a_languages_words_everything_is_left():
    assert Spelling(OWN).read("bring me the aple") == "bring me the aple"


@pytest.mark.parametrize(
    ("word", "other", "so"),
    [
        ("apple", "appel", True),
        ("apple", "aple", True),
        ("apple", "appple", True),
        ("apple", "spple", True),
        ("apple", "apple", False),
        ("apple", "elppa", False),
        ("apple", "ape", False),
        ("", "a", True),
    ],
)
def test_a_slip_is_one_letter_or_two_that_are_changed_over(word, other, so):
    assert is_a_slip(word, other) is is_a_slip(other, word) is so


def test_a_robot_that_is_spoken_to_in_another_language_is_read_as_it_was_typed():
    german = ["bring mir die Wanne", "hole die Flasche", "leere den Eimer"]
    assert Spelling(german, {"bring", "die", "den", *ENGLISH}).read("bring mir die Kanne") == "bring mir die Kanne"


class Embedder:
    tokenizer = SimpleNamespace(get_vocab=lambda: dict.fromkeys(["##ing", "[CLS]", *" ".join(OWN).split()], 1))

    def encode(self, inputs, **options):
        return np.ones((len(inputs), 1))


def test_prompts_hold_what_was_meant_and_a_robots_words_are_those_of_its_examples():
    embedder = Embedder()
    assert words_of(embedder) == {*" ".join(OWN).split()} and words_of(object()) == frozenset()
    examples = [Example("bring me the apple", ("done",))]
    prompt = Prompt(embedder, examples, ["apple"], spelling=Spelling(OWN, words_of(embedder)))
    assert prompt.build("bring me\nthe appel", []).endswith("Instruction: bring me the apple\n1.")
    assert Prompt(embedder, examples, ["apple"]).build("brnig it", []).endswith("Instruction: brnig it\n1.")
