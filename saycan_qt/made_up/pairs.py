"""Rows that a language model learns from: what a made-up robot can do, then things said to it and their plans."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from planners.prompts import describe, numbered, to_learn
from saycan_qt.learning.tuning import Draw, Pairs
from saycan_qt.made_up import robots
from saycan_qt.made_up.domains import Domain, load
from saycan_qt.made_up.sentences import Said, Sentences
from saycan_qt.made_up.world import World

# Domains that are kept from training, and validated on: those near to a robot of benchmarks/unseen_robots.py
HELD_OUT = ("chemistry laboratory", "farm", "library", "observatory", "theatre", "warehouse")
BLOCKS = (0.2, 0.25, 0.25, 0.2, 0.1)  # shares of rows with one thing said, two, ...
TAUGHT, AGAIN = 0.05, 0.05  # shares of rows in which made-up words are explained before; in which the same was said
SCENELESS = 0.25  # share of plans that follow from no scene, and are shown none
UNSEEN = 0.5  # share of things said earlier that are shown without their scene, as examples are; they are not learnt
MOST_LETTERS = 1500  # of a row; the training reads no more
LETTERS = "aabcdeefghiijklmnoopqrstuuvwxyz"


def made_up_pairs(kitchen: Pairs | None = None, share: float = 0.0) -> Pairs:
    """kitchen: pairs of another robot, and how large their share is."""
    training = [domain for domain in load() if not is_held_out(domain)]
    held_out = [domain for domain in load() if is_held_out(domain)]
    drawn = partial(text_of, training, training)
    mixed = partial(mix, drawn, kitchen.training, share) if kitchen else drawn
    return Pairs(mixed, partial(text_of, held_out, load()), told=True, pool=192)


def is_held_out(domain: Domain) -> bool:
    return domain.name in HELD_OUT


def mix(one: Draw, other: Draw, share: float, rng: np.random.Generator) -> tuple[str, list[tuple[int, int]]]:
    return other(rng) if rng.random() < share else one(rng)


def text_of(
    domains: Sequence[Domain], all_domains: Sequence[Domain], rng: np.random.Generator
) -> tuple[str, list[tuple[int, int]]]:
    """A row, and where the steps that are learnt are in it."""
    robot = robots.draw(domains, rng)
    sentences = Sentences(robot, all_domains, rng)
    last, luck = sentences.draw(), rng.random()
    text, spans = _block(last, rng, scene=True, words=_words(rng) if luck < TAUGHT else "")
    head, before = robot.head + "\n", ""
    if luck < TAUGHT + AGAIN:
        instruction = text[: spans[0][0]].split("Instruction: ")[1].split("\n")[0]
        before = numbered(instruction, last.plan) + "\n\n"
        spans = [(start + len(before), end + len(before)) for start, end in spans]
        text = before + text
    for _ in range(int(rng.choice(len(BLOCKS), p=BLOCKS))):
        earlier = sentences.draw(last.kind if rng.random() < 0.4 else "")
        seen = rng.random() > UNSEEN
        block, its = _block(earlier, rng, scene=seen)
        if len(head) + len(block) + len(text) > MOST_LETTERS:
            break
        its = its if seen or not earlier.needs_scene else []
        spans = [*its, *((start + len(block) + 1, end + len(block) + 1) for start, end in spans)]
        text = block + "\n" + text
    return head + text, [(start + len(head), end + len(head)) for start, end in spans]


def _block(said: Said, rng: np.random.Generator, scene: bool, words: str = "") -> tuple[str, list[tuple[int, int]]]:
    hidden = not scene or (not said.needs_scene and rng.random() < SCENELESS)
    world = said.world
    if not world.robot.sees:
        world, hidden = World(world.robot, "", "", {}), hidden or rng.random() < 0.7
    before = "" if hidden else describe(world) + "\n"
    return to_learn(before, words or said.instruction, said.plan)


def _words(rng: np.random.Generator) -> str:
    """That mean nothing."""
    return " ".join("".join(rng.choice(list(LETTERS), rng.integers(3, 8))) for _ in range(rng.integers(1, 4)))
