"""The symbolic kitchen: what is possible there, and what it takes for a goal to be reached."""

import itertools
from unittest.mock import Mock

import numpy as np
import pytest

from saycan_qt.evaluation.worlds import LearntWorld
from saycan_qt.kitchen import goals, tasks
from saycan_qt.kitchen.objects import THINGS
from saycan_qt.kitchen.physics import Unstable
from saycan_qt.kitchen.robot import KitchenRobot
from saycan_qt.kitchen.staging import Stage
from saycan_qt.kitchen.symbolic import SymbolicKitchen
from skills.library import SkillLibrary
from skills.types import Status

LIBRARY = SkillLibrary.load()


def carried_out(kitchen, *names):
    for name in names:
        assert kitchen.execute(LIBRARY[name]).succeeded, name
    return kitchen


@pytest.fixture
def kitchen():
    where = {"tea": "bottom drawer", "sponge": "far counter", "water bottle": "far counter", "apple": "table"}
    return SymbolicKitchen(where, place="far counter")


def test_an_open_drawer_covers_those_below(kitchen):
    carried_out(kitchen, "open bottom drawer", "open top drawer")
    for name in ("open middle drawer", "pick tea from bottom drawer and place on counter"):
        assert not kitchen.affordance(LIBRARY[name])
    carried_out(kitchen, "close top drawer", "pick tea from bottom drawer and place on counter")
    assert kitchen.where["tea"] == "far counter"


def test_a_drawer_is_opened_and_closed_with_an_empty_hand(kitchen):
    carried_out(kitchen, "pick sponge")
    assert not kitchen.affordance(LIBRARY["open top drawer"])
    assert not kitchen.execute(LIBRARY["open top drawer"]).succeeded and not kitchen.open_drawers


def test_the_robot_does_not_know_what_drawers_hold(kitchen):
    assert "tea" not in kitchen.observe().objects and not kitchen.affordance(LIBRARY["find tea"])


def test_nearness_ends_when_either_of_the_two_is_taken_away(kitchen):
    carried_out(kitchen, "move sponge near water bottle")
    assert kitchen.holds({"object": "water bottle", "near": "sponge"})
    assert not carried_out(kitchen, "pick water bottle").holds({"object": "sponge", "near": "water bottle"})


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"object": "apple", "at": "table"}, True),
        ({"object": "orange", "at": "table"}, False),
        ({"one of": ["orange", "apple"], "at": "table"}, True),
        ({"one of": ["orange", "sponge"], "at": "table"}, False),
        ({"one of": ["sponge", "tea"], "in": "bottom"}, True),
        ({"object": "tea", "in": "top"}, False),
        ({"count": 2, "at": "far counter"}, True),
        ({"count": 1, "at": "far counter"}, False),
        ({"count": 0, "at": "operator"}, True),
        ({"holding": "nothing"}, True),
        ({"holding": "apple"}, False),
        ({"robot": "far counter"}, True),
        ({"robot": "operator"}, False),
        ({"open": "top"}, False),
        ({"closed": "top"}, True),
        ({"object": "apple", "at": ["operator", "table"]}, True),
        ({"object": "apple", "at": ["operator", "far counter"]}, False),
        ({"object": "tea", "in": ["top", "bottom"]}, True),
        ({"one of": ["tea", "apple"], "in": ["top", "middle"]}, False),
        ({"count": 1, "in": "bottom"}, True),
        ({"count": 3, "at": ["far counter", "table"]}, True),
        ({"count": 1, "one of": ["sponge", "apple", "orange"], "at": "far counter"}, True),
        ({"count": 1, "one of": ["sponge", "water bottle"], "at": "far counter"}, False),
        ({"count": 0, "one of": ["sponge", "apple"], "in": ["top", "bottom"]}, True),
        ({"not": {"object": "apple", "at": "table"}}, False),
        ({"not": {"holding": "tea"}}, True),
        ({"visited": "far counter"}, False),
        ({"not": {"visited": "table"}}, True),
    ],
)
def test_a_condition_means_the_same_in_symbols_and_in_mujoco(kitchen, condition, holds):
    assert kitchen.holds(condition) is holds
    assert goals.holds(Stage(np.random.default_rng(0)).world(kitchen), condition) is holds


def test_a_place_is_visited_by_coming_there_and_stays_so(kitchen):
    carried_out(kitchen, "find sponge", "pick sponge", "go to table")
    assert kitchen.visited == {"table"}
    carried_out(kitchen, "go to far counter", "put down")
    assert kitchen.visited == {"table", "far counter"}


def test_a_robot_that_acts_in_mujoco_has_visited_where_it_came_to():
    kitchen = SymbolicKitchen({"apple": "far counter"}, "far counter")
    world = LearntWorld(KitchenRobot(scene=Stage(np.random.default_rng(0)).scene(kitchen)), actor=None)
    for name in ("go to table", "find apple"):
        assert world.execute(LIBRARY[name]).succeeded
        assert world.reached([{"visited": "table"}, {"not": {"visited": "operator"}}])
    assert world.reached([{"visited": "far counter"}])


def test_a_simulation_that_gives_up_is_a_skill_that_was_aborted(monkeypatch):
    kitchen = SymbolicKitchen({"apple": "far counter"}, "far counter")
    world = LearntWorld(KitchenRobot(scene=Stage(np.random.default_rng(0)).scene(kitchen)), actor=None)
    monkeypatch.setattr(world.robot, "perform", Mock(side_effect=Unstable("huge value")))
    outcome = world.execute(LIBRARY["go to table"])
    assert (outcome.status, outcome.message) == (Status.ABORTED, "huge value")


PLAN = (
    "place sponge into top drawer",  # with the drawer open at the start
    "close top drawer",
    "open bottom drawer",
    "pick tea from bottom drawer and place on counter",
    "move redbull can near water bottle",
    "pick tea",
    "bring it to you",
    "put down",
    "find apple",
    "pick apple",
    "go to trash can",
    "put down",
)


def test_symbols_and_mujoco_agree_all_along_a_plan():
    """On what the robot knows, on the precondition of every learnt skill, and on where everything is."""
    where = {"tea": "bottom drawer", "sponge": "far counter", "water bottle": "far counter"}
    kitchen = SymbolicKitchen({**where, "redbull can": "far counter", "apple": "table"}, "far counter", {"top"})
    stage, places = Stage(np.random.default_rng(0)), (*tasks.WORKTOPS, "operator", "trash can")
    for name in ("", *PLAN):
        if name:
            carried_out(kitchen, name)
        world = stage.world(kitchen)
        seen, known = world.observe(), kitchen.observe()
        assert (seen.place, seen.held) == (known.place, known.held), name
        assert {o: place for o, place in seen.objects.items() if o != seen.held} == known.objects, name
        assert seen.states == known.states == {f"{drawer} drawer": "open" for drawer in kitchen.open_drawers}, name
        learned = [skill for skill in LIBRARY if skill.learned]
        possible = [skill.name for skill in learned if tasks.feasible(world, skill)]
        assert possible == [skill.name for skill in learned if kitchen.affordance(skill)], name
        for condition in ({"object": o, "at": p} for o in kitchen.where for p in places):
            assert goals.holds(world, condition) == kitchen.holds(condition), (name, condition)
        pair = {"object": "water bottle", "near": "redbull can"}
        assert goals.holds(world, pair) == kitchen.holds(pair), name


def test_seven_things_with_the_operator_stand_apart_and_three_where_they_always_did():
    there = dict.fromkeys(list(THINGS)[4:11], "operator")
    found = [(p.x, p.y) for p in Stage(np.random.default_rng(0)).scene(SymbolicKitchen(there)).objects.values()]
    assert found[:3] == [(0.2, 0.0), (0.2, 0.13), (0.2, -0.13)]
    assert min(np.hypot(x - u, y - v) for (x, y), (u, v) in itertools.combinations(found, 2)) > 0.12
    world = Stage(np.random.default_rng(0)).world(SymbolicKitchen(there))
    world.rest(300)
    assert all(goals.holds(world, {"object": name, "at": "operator"}) for name in there)


def test_what_does_not_move_stays_where_it_was():
    kitchen, stage = SymbolicKitchen({"apple": "table", "tea": "table"}), Stage(np.random.default_rng(0))
    before = stage.scene(kitchen).objects["apple"]
    carried_out(kitchen, "pick tea", "bring it to you", "put down")
    after = stage.scene(kitchen).objects
    assert after["apple"] == before and after["tea"].place == "operator"
