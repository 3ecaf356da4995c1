"""Robots of other bodies than the kitchen's, over gRPC: what they are sent, how their skills end, what is refused."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import yaml
from tiny_services import UNHURRIED

from skills import robot as robot_service
from skills import server as skill_service
from skills.client import Feedback, RobotClient, SkillClient
from skills.embodiment import ActionDimension, Camera, Embodiment, StateNumber
from skills.errors import EmbodimentError, InvalidRequest
from skills.library import Skill, SkillLibrary
from skills.robot_folder import default_robot
from skills.serving.execution import agree
from skills.serving.hosting import Hosting, Model
from skills.types import Observation, Status, blank

LIBRARY = SkillLibrary([Skill("reach", "reach"), Skill("water the plant", "water")])
TABLE = Embodiment(  # it ends skills itself
    action=(
        ActionDimension("shoulder", -90, 90, "deg", "absolute"),
        ActionDimension("slide", -0.05, 0.05, "m", "delta"),
        ActionDimension("terminate", kind="terminate"),
    ),
    cameras=(Camera("front", 12, 16), Camera("wrist", 8, 10)),
    state=(StateNumber("shoulder", "deg"), StateNumber("slide", "m"), StateNumber("force", "N"), StateNumber("on")),
    control_hz=20,
    max_seconds=2,
    name="table arm",
)
SIDES = [f"{side}_{joint}" for side in ("left", "right") for joint in ("1", "2", "3", "4", "5", "6", "grip")]
BIMANUAL = Embodiment(  # it does not
    action=tuple(ActionDimension(name, -3.1, 3.1, "rad", "absolute") for name in SIDES),
    cameras=tuple(Camera(name, 6, 8) for name in ("high", "low", "left wrist", "right wrist")),
    state=tuple(StateNumber(name, "rad") for name in SIDES),
    control_hz=50,
    max_seconds=0.5,
    name="bimanual",
)
BODIES = {"3-D, two cameras, 20 Hz": TABLE, "14-D, four cameras, 50 Hz": BIMANUAL}


class Body:
    """A driver of any embodiment, whose state counts its actions; it has reached its goal after `reached` of them."""

    def __init__(self, embodiment, reached=3):
        self.body, self.reached, self.sent, self.seen, self.stops, self.starts = embodiment, reached, [], [], 0, 0

    @property
    def embodiment(self):
        return self.body

    @property
    def applied(self):
        return len(self.sent)

    def observe(self):
        there = blank(self.body)
        state = np.full(there.state.shape, self.applied, np.float32)
        images = {name: np.full_like(image, 10 * i + 1) for i, (name, image) in enumerate(there.images.items())}
        self.seen.append(Observation(images, state))
        return self.seen[-1]

    def apply(self, action):
        self.sent.append(action.copy())

    def stop(self):
        self.stops += 1

    def start(self, skill):
        self.starts += 1

    def perform(self, skill, canceled): ...

    def succeeded(self, skill):
        return None if self.reached is None else np.bool_(self.applied >= self.reached)  # as a comparison of arrays is

    def finish(self, skill, canceled): ...

    def satisfied(self, instruction):
        return None

    def view(self, name):
        raise KeyError(name)


class Mute(Body):
    """Says nothing of its body."""

    embodiment = None


class Acts:
    """A model of an embodiment: always the same action, with an end after `ends` observations."""

    def __init__(self, embodiment, action, ends=3):
        self.embodiment, self.action, self.ends, self.seen = embodiment, np.array(action, np.float32), ends, []

    def act(self, history, instruction):
        self.seen.append(history[-1])
        action = self.action.copy()
        if self.embodiment is not None and self.embodiment.terminate is not None:
            action[self.embodiment.terminate] = len(history) >= self.ends
        return action

    def value(self, history, instructions):
        return np.full(len(instructions), 0.5, np.float32)


class Kept:
    """A recorder of all that it is told."""

    def __init__(self):
        self.begun, self.steps, self.outcome = None, [], None

    def begin(self, goal_id, instruction, model_id, embodiment=None):
        self.begun = model_id, embodiment
        return self

    def add(self, observation, action):
        self.steps.append((observation, action))

    def end(self, outcome):
        self.outcome = outcome


def action_of(embodiment):
    """In the middle of the upper half of each range."""
    return embodiment.low + 0.75 * (embodiment.high - embodiment.low)


@contextmanager
def services(body, model=None, models=None, **options):
    """A client of the robot and one of its skill server."""
    kept = Kept()
    with (
        skill_service.serve(
            LIBRARY, model, model, model_id="tiny", models=models, limits=UNHURRIED, recorder=kept
        ) as server,
        SkillClient(server.address) as skills,
        robot_service.serve(body, LIBRARY, skills, **options) as robot,
        RobotClient(robot.address) as client,
    ):
        yield client, skills, kept


def run(client, skill="reach"):
    *feedback, outcome = client.execute(skill)
    return feedback, outcome


@pytest.mark.parametrize("embodiment", BODIES.values(), ids=BODIES)
def test_a_robot_of_any_body_is_driven_told_of_and_recorded(embodiment):
    body, model = Body(embodiment), Acts(embodiment, action_of(embodiment))
    with services(body, model) as (client, skills, kept):
        feedback, outcome = run(client)
        told = skills.info()
        assert told.embodiment == told.models[0].embodiment == client.info().embodiment == rounded(embodiment)
        assert told.control_hz == client.info().control_hz == embodiment.control_hz
        assert client.info().max_steps == embodiment.max_steps
        assert skills.score([body.observe()])[0].affordance == 0.5
    assert outcome.status is Status.SUCCEEDED and outcome.steps == body.applied == 3 and body.stops
    assert all(isinstance(event, Feedback) and len(event.action) == len(embodiment.action) for event in feedback)
    np.testing.assert_array_equal(body.sent[0], model.act(body.seen[:1], "reach"))
    for seen, sent in zip(model.seen[:3], body.seen[:3], strict=True):
        assert list(seen.images) == [camera.name for camera in embodiment.cameras]
        assert all(np.array_equal(seen.images[name], sent.images[name]) for name in sent.images)
        np.testing.assert_array_equal(seen.state, sent.state)
    assert kept.begun == ("tiny", embodiment) and kept.outcome.succeeded and len(kept.steps) == 3
    np.testing.assert_array_equal([action for _, action in kept.steps], body.sent)


def rounded(embodiment):
    """As the wire has it: bounds in 32 bits."""
    action = tuple(replace(d, low=float(np.float32(d.low)), high=float(np.float32(d.high))) for d in embodiment.action)
    return replace(embodiment, action=action)


@pytest.mark.parametrize("body", [Body, Mute], ids=["a robot that says what it is", "one that does not"])
def test_what_a_robot_is_sent_lies_within_its_embodiment_and_nothing_else(body):
    wild, exact = np.full(14, 100.0), np.full(14, 3.0)
    for action, right in ((wild, np.full(14, 3.1, np.float32)), (exact, exact)):
        robot = body(BIMANUAL)
        with services(robot, Acts(BIMANUAL, action)) as (client, _, kept):
            run(client)
        np.testing.assert_array_equal(robot.sent[0], right)
        np.testing.assert_array_equal(kept.steps[0][1], action)  # what the model said


def test_where_nobody_says_what_it_is_the_robot_is_sent_and_told_exactly_what_the_model_gave():
    degrees = np.array([75, -61, -86, -76, -53, -63, 0.2, 0], np.float32)
    robot = Mute(TABLE, reached=None)
    with services(robot, Acts(None, degrees), max_steps=2) as (client, skills, kept):
        feedback, outcome = run(client)
        info, told = client.info(), skills.info()
    assert (info.embodiment, info.control_hz, told.embodiment, told.control_hz) == (None, 0.0, None, 0.0)
    for given in (robot.sent[0], feedback[0].action, kept.steps[0][1]):
        np.testing.assert_array_equal(given, degrees)
    assert outcome.status is Status.FAILED and "the driver cannot tell" in outcome.message and outcome.steps == 2


def test_where_no_dimension_terminates_a_skill_ends_by_success_or_by_time():
    with services(Body(BIMANUAL, reached=5), Acts(BIMANUAL, action_of(BIMANUAL))) as (client, *_):
        _, outcome = run(client)
    assert outcome.succeeded and outcome.steps == 5
    with services(Body(BIMANUAL, reached=99), Acts(BIMANUAL, action_of(BIMANUAL))) as (client, *_):
        _, outcome = run(client)
    assert outcome.status is Status.FAILED and outcome.steps == BIMANUAL.max_steps == 25
    unclocked = replace(BIMANUAL, control_hz=0, max_seconds=0.3)
    with services(Body(unclocked, reached=10**9), Acts(unclocked, action_of(BIMANUAL))) as (client, *_):
        _, outcome = run(client)
    assert outcome.status is Status.FAILED and 0.3 <= outcome.seconds < 5 and outcome.steps > 1


def test_an_end_that_the_model_knows_and_the_robot_does_not_is_read_and_not_sent():
    robot = Body(TABLE.without_terminate())
    with services(robot, Acts(TABLE, action_of(TABLE), ends=2)) as (client, *_):
        feedback, outcome = run(client)
    assert outcome.status is Status.FAILED and outcome.message == "the goal was not reached" and outcome.steps == 2
    assert [len(action) for action in robot.sent] == [2, 2] and len(feedback[-1].action) == 2
    with services(Body(TABLE.without_terminate(), reached=3), Acts(TABLE, action_of(TABLE), ends=9)) as (client, *_):
        _, outcome = run(client)
    assert outcome.succeeded and outcome.steps == 3  # the driver can tell, before the model does


def test_the_robots_bounds_and_its_time_come_before_the_models():
    narrow = replace(TABLE, action=(replace(TABLE.action[0], high=10), *TABLE.action[1:]), max_seconds=0.2)
    robot = Body(narrow, reached=99)
    with services(robot, Acts(TABLE, [80, 0, 0], ends=99)) as (client, *_):
        _, outcome = run(client)
    assert robot.sent[0][0] == 10 and outcome.steps == 4


def test_a_robot_whose_skills_may_last_for_ever_says_so_as_far_as_can_be_told():
    for embodiment in (replace(TABLE, max_seconds=1e9), replace(TABLE, max_seconds=1e9, control_hz=10_000)):
        with robot_service.serve(Body(embodiment), LIBRARY) as server, RobotClient(server.address) as client:
            assert client.info().max_steps == 2**32 - 1


def test_numbers_with_an_exponent_are_read_as_people_write_them():
    """YAML 1.1, which PyYAML reads, takes those without a point or a sign for texts."""
    text = "{control_hz: 2e1, state: {x: m}, action: {dx: {low: -1e-2, high: .5e0}, grip: [-1.5E3, 1e+1]}}"
    found = Embodiment.parse(yaml.safe_load(text), "robot.yaml")
    assert found.control_hz == 20 and [(d.low, d.high) for d in found.action] == [(-0.01, 0.5), (-1500, 10)]
    with pytest.raises(EmbodimentError, match=r"robot.yaml: action: dx: low: '1e' is no number"):
        Embodiment.parse(yaml.safe_load("{state: {x: m}, action: {dx: [1e, 2]}}"), "robot.yaml")


def test_further_cameras_do_not_travel_to_a_model_that_sees_through_one():
    wrist = replace(TABLE, cameras=TABLE.cameras[1:])
    robot, model = Body(TABLE), Acts(wrist, action_of(TABLE))
    with services(robot, model) as (client, _, kept):
        assert run(client)[1].succeeded
    assert list(model.seen[0].images) == ["wrist"] == list(kept.steps[0][0].images)


MISFITS = {
    "a camera's proportions": (
        {"cameras": (replace(TABLE.cameras[0], width=2 * TABLE.cameras[0].width), *TABLE.cameras[1:])},
        f"the images of camera {TABLE.cameras[0].name!r} are",
    ),
    "a name": (
        {"action": (replace(TABLE.action[0], name="elbow"), *TABLE.action[1:])},
        "action dimension 1 is 'elbow' for the policy, 'shoulder' for the robot",
    ),
    "a unit": (
        {"action": (replace(TABLE.action[0], unit="rad"), *TABLE.action[1:])},
        "shoulder is in rad for the policy, in deg for the robot",
    ),
    "a kind": (
        {"action": (replace(TABLE.action[0], kind="delta"), *TABLE.action[1:])},
        "shoulder is a delta for the policy, an absolute for the robot",
    ),
    "a count": ({"action": TABLE.action[:1]}, "the policy has 1 action dimensions, the robot 2"),
    "a state": ({"state": TABLE.state[:3]}, "the policy has 3 state numbers, the robot 4"),
    "a rate": ({"control_hz": 10}, "the policy acts 10 times a second, the robot 20 times"),
    "a camera": ({"cameras": (Camera("roof", 4, 4),)}, "a camera 'roof', the robot has front, wrist"),
}


@pytest.mark.parametrize(("change", "said"), MISFITS.values(), ids=MISFITS)
def test_a_policy_for_another_robot_is_refused_in_one_line_before_anything_moves(change, said):
    other = replace(TABLE, **change)
    robot = Body(TABLE if other.terminate is not None else TABLE.without_terminate())
    with services(robot, Acts(other, action_of(other))) as (client, skills, _):
        _, outcome = run(client)
        with pytest.raises(EmbodimentError) as refused:  # what `python -m saycan_qt.robot` asks when it starts
            agree(robot, skills)
    assert outcome.status is Status.ABORTED and said in outcome.message and "\n" not in outcome.message
    assert str(refused.value) == outcome.message and f"tiny of the skill server at {skills.address}" in outcome.message
    assert (robot.starts, robot.applied) == (0, 0)


def test_a_model_that_is_loaded_anew_for_another_robot_is_refused_from_then_on():
    robot, ours = Body(TABLE), Acts(TABLE, action_of(TABLE))
    other = replace(TABLE, control_hz=5)
    hosted = Hosting({"": Model(ours, ours)}, {"": lambda: Model(*[Acts(other, action_of(other))] * 2)})
    with (
        skill_service.serve(LIBRARY, models=hosted, limits=UNHURRIED) as server,
        SkillClient(server.address) as skills,
        robot_service.serve(robot, LIBRARY, skills) as service,
        RobotClient(service.address) as client,
    ):
        assert run(client)[1].succeeded
        hosted.reload("")
        assert "5 times a second" in run(client)[1].message and robot.applied == 3


def test_a_model_that_changes_as_a_skill_begins_moves_no_robot_of_another_body():
    """After it was agreed upon, before the stream has one."""
    robot, ours = Body(TABLE), Acts(TABLE, action_of(TABLE))
    other = replace(TABLE, action=(replace(TABLE.action[0], unit="rad"), *TABLE.action[1:]))  # as many numbers
    hosted = Hosting({"": Model(ours, ours)}, {"": lambda: Model(*[Acts(other, action_of(other))] * 2)})
    robot.start = lambda skill: hosted.reload("")
    with services(robot, models=hosted) as (client, *_):
        _, outcome = run(client)
    assert outcome.status is Status.ABORTED and "another model while the skill began" in outcome.message
    assert robot.applied == 0


def seen_by(*cameras):
    return replace(blank(TABLE), images={name: np.zeros((4, 4, 3), np.uint8) for name in cameras})


@pytest.mark.parametrize(
    ("seen", "field", "said"),
    [
        (seen_by("front"), "images", "no image of camera 'wrist', which this model looks at; sent: 'front'"),
        (seen_by(), "images", "no image of camera 'front', which this model looks at; sent: none"),
        (replace(blank(TABLE), state=np.zeros(7, np.float32)), "state", "the state has 7 numbers; this model takes 4"),
    ],
)
def test_an_observation_of_another_robot_is_refused_before_the_model_sees_it(seen, field, said):
    model = Acts(TABLE, action_of(TABLE))
    with services(Body(TABLE), model) as (_, skills, _kept):
        with pytest.raises(InvalidRequest, match=said) as judged:
            skills.score([seen])
        with skills.control("reach") as control, pytest.raises(InvalidRequest, match=said) as acted:
            control.act(seen)
    assert (judged.value.field, acted.value.field) == (f"history[0].{field}", f"observation.{field}")
    assert not model.seen


def test_one_image_without_a_name_is_that_of_an_only_camera():
    alone = replace(TABLE, cameras=TABLE.cameras[:1])
    model = Acts(alone, action_of(alone))
    with services(Body(alone), model) as (_, skills, _kept), skills.control("reach") as control:
        control.act(Observation(np.ones((12, 16, 3), np.uint8), np.zeros(4, np.float32)))
    assert list(model.seen[0].images) == ["front"]


@pytest.mark.parametrize("action", [np.zeros(2), np.zeros((1, 3)), np.array([0, np.nan, 0])])
def test_an_action_of_another_shape_or_that_is_not_finite_never_reaches_the_robot(action):
    robot, model = Body(TABLE), Acts(TABLE, action_of(TABLE))
    model.act = lambda history, instruction: action
    with services(robot, model) as (client, *_):
        _, outcome = run(client)
    assert outcome.status is Status.ABORTED and "no valid action" in outcome.message and not robot.applied


def test_the_kitchens_embodiment_fits_itself_and_is_bounded_as_ever():
    kitchen = default_robot().embodiment
    robot = Body(kitchen)
    with services(robot, Acts(kitchen, np.full(8, 0.3))) as (client, *_):
        assert run(client)[1].succeeded
        assert client.info().max_steps == 45
    np.testing.assert_array_equal(robot.sent[0], np.float32([0.08] * 3 + [0.3] * 4 + [0]))


def test_a_policy_whose_range_is_far_beyond_the_robots_is_told():
    first, *others = BIMANUAL.action
    degrees = replace(BIMANUAL, action=(replace(first, low=-180, high=180, unit=""), *others))
    assert BIMANUAL.beyond(BIMANUAL) == "" == degrees.misfit(BIMANUAL)
    said = "left_1 is -180 to 180 (of no unit) for the policy, -3.1 to 3.1 rad for the robot"
    assert degrees.beyond(BIMANUAL) == said
