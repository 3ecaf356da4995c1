"""Labelled scenes are what they say: impossible where they should be, tried where possible, the same every time."""

from collections import deque

import numpy as np
import pytest

from saycan_qt.data.scenes import HISTORY
from saycan_qt.kitchen.practice.affordances import Snapshot, attempt, label, labelled_scene, let_time_pass
from saycan_qt.kitchen.practice.disturbances import DISTURBANCES
from saycan_qt.kitchen.practice.rollouts import random_skill
from saycan_qt.kitchen.tasks import feasible, practice
from saycan_qt.kitchen.world import CARRY, World
from skills.library import SkillLibrary

LIBRARY = SkillLibrary.load()
SKILLS = [skill for skill in LIBRARY if skill.learned]


@pytest.mark.parametrize("name", ["pick apple", "place sponge into top drawer", "open middle drawer"])
def test_after_restoring_the_same_actions_give_the_same_bits(name):
    scene = practice(np.random.default_rng(3), LIBRARY[name])
    world, untouched = World(scene), World(scene)
    before = Snapshot(world)
    for _ in range(2):
        assert attempt(world, LIBRARY[name])
        assert (world.data.qpos != untouched.data.qpos).any()
        before.restore()
        assert (world.state() == untouched.state()).all()
        assert (world.observe().image == untouched.observe().image).all()
    for action in np.random.default_rng(0).uniform(-0.05, 0.05, (6, 8)):
        world.step(action)
        untouched.step(action)
    assert (world.data.qpos == untouched.data.qpos).all() and (world.data.qvel == untouched.data.qvel).all()


@pytest.mark.parametrize("kind", DISTURBANCES)
def test_a_disturbance_makes_the_skill_impossible(kind):
    rng, tried = np.random.default_rng(1), 0
    while tried < 6:
        skill = random_skill(rng, LIBRARY)
        if (scene := DISTURBANCES[kind](rng, skill, practice(rng, skill))) is not None:
            tried += 1
            assert not feasible(World(scene), skill), skill.name


def test_what_can_be_practised_is_labelled_so_and_labelling_leaves_the_world_alone():
    world = World(practice(np.random.default_rng(0), LIBRARY["close top drawer"]))
    before = world.observe()
    precondition, succeeds = label(world, SKILLS)
    at = SKILLS.index(LIBRARY["close top drawer"])
    assert precondition[at] and succeeds[at] and not (succeeds & ~precondition).any()
    assert (world.observe().image == before.image).all() and (world.state() == before.state).all()


def test_afterwards_the_arm_is_back_where_the_planner_looks_from():
    rng, moments = np.random.default_rng(5), set()
    while moments != {"at rest", "afterwards"}:
        world = World(practice(rng, LIBRARY["open top drawer"]))
        seen = deque(maxlen=HISTORY)
        moments.add(moment := let_time_pass(rng, world, SKILLS, seen))
        assert len(seen) == (HISTORY if moment == "afterwards" else 0)
        if moment == "afterwards":
            assert np.abs(world.tip() - CARRY).max() < 0.03


@pytest.mark.slow
def test_a_scene_follows_from_seed_and_number():
    one, again, other = (labelled_scene(0, number, LIBRARY) for number in (4, 4, 5))
    assert (one.images == again.images).all() and (one.succeeds == again.succeeds).all() and one.kind == again.kind
    assert one.images.shape[1:] == (80, 96, 3) and len(one.states) == len(one.images) <= HISTORY
    assert (one.images[-1] != other.images[-1]).any()
