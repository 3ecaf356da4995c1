"""Rows that a language model learns from: what a made-up robot can do, then things said to it and their plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count

import numpy as np

from planners.prompts import CANNOT, describe, shown, to_learn
from saycan_qt.learning.pairs import Pair as Told
from saycan_qt.learning.tuning import Draw, Drawn, Pair, Pairs
from saycan_qt.made_up import robots, written
from saycan_qt.made_up.domains import Domain, load
from saycan_qt.made_up.sentences import Said, Sentences
from saycan_qt.made_up.written import Written, spoken

# Domains that are kept from training, and validated on: those near to a robot of benchmarks/unseen_robots.py
HELD_OUT = ("chemistry laboratory", "farm", "library", "observatory", "theatre", "warehouse")
WRITTEN = 0.7  # share of robots that were written, see `written`
SHOWN = (0.7, 0.1, 0.08, 0.12)  # shares of pairs with none, up to one, ... of the robot's examples before them
EXAMPLES = 10  # that such a robot has, of which the nearest are shown
TAUGHT, AGAIN = 0.05, 0.05  # shares of pairs in which made-up words are explained before; in which the same was said
SCENELESS = 0.25  # share of plans that follow from no scene, and are shown none
LETTERS = "aabcdeefghiijklmnoopqrstuuvwxyz"


def made_up_pairs(kitchen: Pairs | None = None, share: float = 0.0) -> Pairs:
    """kitchen: pairs of another robot, told as these are, and which share of the rows is theirs."""
    domains = [domain for domain in load() if not is_held_out(domain)]
    kept = [domain for domain in load() if is_held_out(domain)]
    training = mixed(partial(draw, domains, domains), partial(draw_written, written.training()), WRITTEN)
    held_out = mixed(partial(draw, kept, load()), partial(draw_written, written.held_out()), WRITTEN)
    training = mixed(training, kitchen.training, share) if kitchen else training
    return Pairs(training, held_out, told=True, any_robot=True, source=f"made up, {share:g} kitchen")


def is_held_out(domain: Domain) -> bool:
    return domain.name in HELD_OUT


def mixed(one: Draw, other: Draw, share: float) -> Draw:
    return lambda rng: (other if rng.random() < share else one)(rng)


def draw(domains: Sequence[Domain], all_domains: Sequence[Domain], rng: np.random.Generator) -> Drawn:
    """A robot: what it can do, then things said to it."""
    robot = robots.draw(domains, rng)
    sentences = Sentences(robot, all_domains, rng)
    return Drawn(robot.head + "\n", (_pair(sentences, rng) for _ in count()))


def draw_written(robots: Sequence[Written], rng: np.random.Generator) -> Drawn:
    """A robot that was written, not drawn."""
    head, said = robots[int(rng.integers(len(robots)))].draw(rng)
    return Drawn(head + "\n", (_written(said, rng) for _ in count()))


def _examples(said: Told | Said, another: Callable[[], Told | Said], rng: np.random.Generator) -> str:
    """Those that stand before what is said, the nearest last, less what needs a scene or cannot be served. Nearness is
    that of words here, as it costs no model."""
    if not (most := int(rng.choice(len(SHOWN), p=SHOWN))):
        return ""
    drawn = (another() for _ in range(EXAMPLES))
    usable = [e for e in drawn if not e.needs_scene and e.plan != (CANNOT,) and e.instruction != said.instruction]
    usable.sort(key=lambda example: _alike(example.instruction, said.instruction))
    return "".join(shown(e.instruction, e.plan) for e in usable[-most:])


def _alike(one: str, other: str) -> float:
    """Of the words of both the share that they have in common."""
    first, second = set(one.lower().split()), set(other.lower().split())
    return len(first & second) / max(1, len(first | second))


def _written(sentences: Iterator[Told], rng: np.random.Generator) -> Pair:
    said = next(sentences)
    before = _examples(said, partial(next, sentences), rng)
    scene = describe(said.scene) + "\n" if said.scene else ""
    return to_learn(before + scene, spoken(said.instruction, rng), said.plan)


def _pair(sentences: Sentences, rng: np.random.Generator) -> Pair:
    said, luck = sentences.draw(), rng.random()
    before = _examples(said, lambda: sentences.draw(said.kind if rng.random() < 0.4 else ""), rng)
    words = _words(rng) if luck < TAUGHT else said.instruction
    if luck < TAUGHT + AGAIN:
        before += shown(words, said.plan)
    return _block(said, rng, before, words)


def _block(said: Said, rng: np.random.Generator, before: str, words: str) -> Pair:
    hidden = not said.world.robot.sees or (not said.needs_scene and rng.random() < SCENELESS)
    scene = "" if hidden else describe(said.world) + "\n"
    return to_learn(before + scene, words, said.plan)


def _words(rng: np.random.Generator) -> str:
    """That mean nothing."""
    return " ".join("".join(rng.choice(list(LETTERS), rng.integers(3, 8))) for _ in range(rng.integers(1, 4)))
