"""Whose turn it is to move a robot, who may, what it would do, and what it sees meanwhile."""

import logging
import subprocess
import sys
import threading
import time
import urllib.request
from io import BytesIO
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from tiny_services import LINE, UNHURRIED, LineRobot, Walker, wait_until

from skills import robot as robot_service
from skills import server as skill_service
from skills.client import RobotClient, SkillClient
from skills.embodiment import ActionDimension, Embodiment, StateNumber
from skills.errors import (
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    LeaseLost,
    PermissionDenied,
    ServerFault,
    Stopped,
    UnknownSkill,
)
from skills.library import SkillLibrary
from skills.security.lease import Lease, Leases
from skills.serving.admission import MOST_WAITING
from skills.serving.looking import MOST_PATIENT
from skills.types import Mapper, Status
from skills.v1 import skills_pb2 as pb

LIBRARY = SkillLibrary.load()
LONG, SHORT = "go to table", "find apple"  # scripted; the first takes until it is canceled
HERE = Path(__file__).parent


class Mapping(Walker):
    """Sees value where the picture is bright."""

    def value_maps(self, history, instruction):
        return {"brightness": np.repeat(history[-1].image, 4, axis=1)}


class WatchfulRobot(LineRobot):
    """Counts its looks, and how many skills it carries out at a time; `hang` keeps the driver from returning."""

    def __init__(self):
        super().__init__()
        self.looks, self.now, self.most, self.done = 0, 0, 0, []
        self.hang, self.pause = threading.Event(), 0.005
        self.hang.set()

    def observe(self):
        self.looks += 1
        return super().observe()

    def perform(self, skill, canceled):
        self.now += 1
        self.most = max(self.most, self.now)
        self.moving.set()
        deadline = time.monotonic() + (30 if skill.name == LONG else 0)
        while time.monotonic() < deadline and not canceled():
            time.sleep(self.pause)
        self.hang.wait(20)
        self.now -= 1
        self.done.append(skill.name)

    def satisfied(self, instruction):
        return True


@pytest.fixture
def robot():
    robot = WatchfulRobot()
    yield robot
    robot.hang.set()


@pytest.fixture
def server(robot):
    with robot_service.serve(robot, LIBRARY) as server:
        yield server


@pytest.fixture
def client(server):
    with RobotClient(server.address) as client:
        yield client


@pytest.fixture
def running(client, robot):
    """A skill that takes until it is canceled."""
    execution = client.execute(LONG, goal_id="first")
    assert robot.moving.wait(10)
    return execution


def outcome_of(events):
    *_, outcome = events
    return outcome


def queue(client, count, skill=SHORT):
    """So many goals, each in the queue when the next one comes; and how many were ahead of each."""
    waiting = [(each := client.execute(skill, when_busy="queue"), each.ahead()) for _ in range(count)]
    return [each for each, _ in waiting], [ahead for _, ahead in waiting]


# ---- preempt


def test_a_goal_that_preempts_cancels_the_one_that_runs_and_those_that_wait(client, robot, running):
    waiting, _ = queue(client, 2)
    after = client.execute(SHORT, goal_id="after", when_busy="preempt")
    assert outcome_of(after).succeeded
    for canceled in (running, *waiting):
        outcome = outcome_of(canceled)
        assert (outcome.status, outcome.message) == (Status.CANCELED, "goal 'after' took its turn")
    assert robot.done == [LONG, SHORT] and robot.most == 1


def test_a_goal_that_preempts_begins_when_the_driver_has_returned(client, robot, running):
    robot.hang.clear()
    after = client.execute(SHORT, when_busy="preempt")
    time.sleep(0.2)
    assert client.info().executing == "first" and robot.stops and robot.now == 1
    robot.hang.set()
    assert outcome_of(after).succeeded and robot.most == 1


def test_a_goal_that_preempts_a_driver_that_hangs_ends_with_the_reason_at_its_deadline(client, robot, running):
    robot.hang.clear()
    with pytest.raises(DeadlineExceeded, match=r"held by 'go to table' .* told to stop, and its driver has not return"):
        outcome_of(client.execute(SHORT, goal_id="late", when_busy="preempt", timeout=0.8))
    assert client.result("late").status is Status.ABORTED and client.info().queued == 0
    robot.hang.set()
    assert outcome_of(running).status is Status.CANCELED
    assert outcome_of(client.execute(SHORT)).succeeded and robot.done == [LONG, SHORT]


def test_many_who_preempt_each_other_never_run_at_the_same_time(client, robot):
    executions = [client.execute(LONG, when_busy="preempt") for _ in range(12)]
    for execution in executions:
        execution._call.initial_metadata()  # the robot knows of it
    last = client.execute(SHORT, when_busy="preempt")
    assert {outcome_of(execution).status for execution in executions} == {Status.CANCELED}
    assert outcome_of(last).succeeded and robot.most == 1 and not client.info().executing


# ---- queue


def test_goals_wait_for_their_turn_first_come_first_served(client, robot, running):
    skills = ["find apple", "find sponge", "find 7up can"]
    waiting = []
    for number, skill in enumerate(skills, 1):
        waiting.append(client.execute(skill, when_busy="queue"))
        assert waiting[-1].ahead() == number
    assert client.info().queued == 3
    running.cancel()
    assert [outcome_of(each).status for each in waiting] == [Status.SUCCEEDED] * 3
    assert robot.done == [LONG, *skills] and robot.most == 1 and client.info().queued == 0
    at_once = client.execute(SHORT, when_busy="queue")
    assert at_once.ahead() == 0 and outcome_of(at_once).succeeded


def test_what_is_no_way_to_wait_is_told(client):
    with pytest.raises(InvalidRequest, match="one of refuse, preempt, queue, not 'wait'"):
        client.execute(SHORT, when_busy="wait")


def test_by_default_a_robot_that_is_busy_refuses(client, running):
    waiting, _ = queue(client, 1)
    with pytest.raises(Busy, match=r"still executes 'go to table' \(goal 'first'\), and 1 more wait") as busy:
        outcome_of(client.execute(SHORT))
    assert busy.value.retry_after
    request = pb.ExecuteSkillRequest(goal_id="x", skill=SHORT, when_busy=9)
    with pytest.raises(grpc.RpcError, match="no way 9"):
        list(client._stub.ExecuteSkill(request, timeout=5))
    assert waiting[0].cancel()


def test_a_queue_is_bounded_and_its_goals_hold_no_threads_but_their_calls(client, robot, running):
    before = {thread.name for thread in threading.enumerate()}
    waiting, ahead = queue(client, MOST_WAITING)
    started = {thread.name for thread in threading.enumerate()} - before
    assert ahead == list(range(1, MOST_WAITING + 1)) and not [n for n in started if n.startswith(("goal", "motion"))]
    with pytest.raises(Busy, match="16 goals wait"):
        outcome_of(client.execute(SHORT, when_busy="queue"))
    assert client.info().queued == MOST_WAITING and client.observe()[0].place  # others are served
    client.stop()
    assert {outcome_of(each).status for each in waiting} == {Status.CANCELED}


def test_a_goal_leaves_the_queue_when_it_is_canceled_or_its_client_leaves(client, robot, running):
    (canceled, left, stays), _ = queue(client, 3)
    assert client.result(canceled.goal_id) is None and canceled.cancel() and not canceled.cancel()
    assert outcome_of(canceled).message == "canceled by the client"
    left.close()
    wait_until(lambda: client.info().queued == 1)
    wait_until(lambda: client.result(left.goal_id))
    assert client.result(left.goal_id).message == "the client left"
    running.cancel()
    assert outcome_of(stays).succeeded and robot.done == [LONG, SHORT]


@pytest.mark.parametrize("road", ["service", "guard"])
def test_stop_empties_the_queue_and_nothing_starts_by_itself_after_reset(client, server, robot, running, road):
    waiting, _ = queue(client, 3)
    if road == "service":
        client._stub.Stop(pb.StopRequest(), timeout=5)
    else:
        urllib.request.urlopen(urllib.request.Request(f"http://{server.guard.address}/stop", method="POST"), timeout=5)
    ends = [outcome_of(each) for each in (running, *waiting)]
    assert {end.status for end in ends} == {Status.CANCELED} and all("stop" in end.message for end in ends)
    with pytest.raises(Stopped):
        outcome_of(client.execute(SHORT, when_busy="queue"))
    client.reset()
    time.sleep(0.1)
    assert robot.done == [LONG] and not client.info().executing
    assert outcome_of(client.execute(SHORT)).succeeded


def test_a_server_that_shuts_down_tells_those_who_wait(client, server, running):
    waiting, _ = queue(client, 2)
    server.stop()
    assert {outcome_of(each).message for each in (running, *waiting)} == {"the robot's server is shutting down"}


# ---- leases


def test_only_the_owner_of_a_lease_starts_cancels_and_resets_and_anybody_stops(client, server, robot):
    with RobotClient(server.address) as other, client.lease("my stack"):
        execution = client.execute(LONG, goal_id="mine")
        assert robot.moving.wait(10) and other.info().leased_to == "my stack"
        for refused in (lambda: outcome_of(other.execute(SHORT)), lambda: other.cancel("mine"), other.reset):
            with pytest.raises(PermissionDenied, match=r"leased to 'my stack', for [45]\.\d s more at most"):
                refused()
        with pytest.raises(Busy, match="my stack") as busy:
            other.lease("another")
        assert 0 < busy.value.retry_after <= 5
        other.stop()
        assert outcome_of(execution).status is Status.CANCELED
        with pytest.raises(PermissionDenied):
            other.reset()
        client.reset()
        assert outcome_of(client.execute(SHORT)).succeeded
    with RobotClient(server.address) as other:
        assert not other.info().leased_to and outcome_of(other.execute(SHORT)).succeeded
        assert outcome_of(client.execute(SHORT)).succeeded  # it asks without the one that it gave back


def test_a_lease_is_kept_alive_beyond_its_seconds(client):
    with client.lease("my stack", 0.5):
        time.sleep(1.2)
        assert outcome_of(client.execute(SHORT)).succeeded


def test_a_lease_that_runs_out_cancels_what_it_had_begun_and_empties_its_queue(client, robot):
    found = client._stub.AcquireLease(pb.AcquireLeaseRequest(owner="gone", seconds=1.5), timeout=5)
    own = Lease(found.lease_id, 60, time.monotonic(), "here", lambda within: None, lambda: None)  # says nothing
    running = client.execute(LONG, lease=own)
    assert robot.moving.wait(10)  # calls that are under way at once come in any order
    waiting = client.execute(LONG, when_busy="queue", lease=own)
    assert waiting.ahead() == 1
    for each in (running, waiting):
        outcome = outcome_of(each)
        assert (outcome.status, outcome.message) == (Status.CANCELED, "the lease of 'gone' ran out")
    wait_until(lambda: not client.info().leased_to)
    with pytest.raises(LeaseLost, match="over"):
        outcome_of(client.execute(SHORT, lease=own))
    assert outcome_of(client.execute(SHORT)).succeeded
    own.close()


def test_an_owner_that_is_killed_holds_the_robot_no_longer_than_its_seconds(client, robot):
    code = """if True:
        import sys
        from skills.client import RobotClient
        robot = RobotClient(sys.argv[1])
        robot.lease("mortal", 1.0)
        print("here", flush=True)
        list(robot.execute("go to table"))
    """
    command = [sys.executable, "-c", code, client.address]
    with subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE) as owner:
        try:
            owner.stdout.readline()
            assert robot.moving.wait(10)
            time.sleep(1.2)
            assert client.info().leased_to == "mortal"
        finally:
            owner.kill()
    killed = time.monotonic()
    wait_until(lambda: not client.info().executing)
    with pytest.raises(PermissionDenied):
        outcome_of(client.execute(SHORT))
    wait_until(lambda: not client.info().leased_to)
    assert time.monotonic() - killed < 1.5 and outcome_of(client.execute(SHORT)).succeeded


def test_an_owner_whose_lease_is_lost_is_told_by_its_calls(client):
    with client.lease("my stack", 0.5) as lease:
        client._stub.ReleaseLease(pb.ReleaseLeaseRequest(lease_id=lease.id), timeout=5)
        wait_until(lambda: lease.lost)
        for call in (lambda: client.execute(SHORT), lambda: client.cancel("x"), client.reset):
            with pytest.raises(LeaseLost, match=f"on the robot at {client.address} is lost: this lease is over"):
                call()
        client.stop()


def test_a_client_asks_without_a_lease_that_it_lost_and_closed(client):
    with client.lease("my stack", 0.5) as lease:
        client._stub.ReleaseLease(pb.ReleaseLeaseRequest(lease_id=lease.id), timeout=5)
        wait_until(lambda: lease.lost)
        with client.lease("my stack again"):
            lease.close()
            assert client.info().leased_to == "my stack again"
            client.reset()  # the newer one goes with it
    lost = client.lease("once more", 0.5)
    client._stub.ReleaseLease(pb.ReleaseLeaseRequest(lease_id=lost.id), timeout=5)
    wait_until(lambda: lost.lost)
    lost.close()
    client.reset()
    assert outcome_of(client.execute(SHORT)).succeeded


def test_a_robot_that_executes_for_somebody_is_not_leased_meanwhile(client, running):
    with pytest.raises(Busy, match="executes goal 'first' of somebody without a lease"):
        client.lease("my stack")
    running.cancel()
    outcome_of(running)
    for owner, seconds in (("", 5), ("two\nlines", 5), ("x" * 101, 5), ("me", 0.1), ("me", 61), ("me", float("nan"))):
        with pytest.raises(InvalidRequest):
            client.lease(owner, seconds)
    assert not client.info().leased_to


def test_the_id_of_a_lease_is_never_logged_nor_told(client, caplog):
    caplog.set_level(logging.DEBUG)
    with client.lease("my stack") as lease, RobotClient(client.address) as other:
        secret = lease.id
        for refused in (lambda: other.lease("x"), other.reset):
            with pytest.raises((Busy, PermissionDenied)) as error:
                refused()
            assert secret not in str(error.value)
        outcome_of(client.execute(SHORT))
        assert secret not in str(client._stub.GetRobotInfo(pb.GetRobotInfoRequest(), timeout=5))
    assert len(secret) >= 43 and secret not in caplog.text


def test_a_failure_to_end_what_a_lease_left_behind_ends_the_lease_all_the_same(caplog):
    def fail(owner):
        raise RuntimeError("broken")

    leases = Leases(fail)
    for _ in range(2):
        leases.acquire("me", 0.5)
        wait_until(lambda: not leases.owner)
    leases.close()
    assert "could not be ended" in caplog.text


# ---- previews


def test_a_scripted_skill_is_previewed_by_its_rule_and_what_its_successes_took(client, robot):
    first = client.preview("put down")
    assert (first.score.affordance, first.score.model, first.expected_seconds) == (0.0, "analytic", None)
    assert first.action is None and not first.value_maps
    took = [outcome_of(client.execute(SHORT)).seconds for _ in range(3)]
    assert client.preview(SHORT).expected_seconds == pytest.approx(np.mean(took))
    outcome_of(client.execute("put down"))  # which cannot be done
    with pytest.raises(UnknownSkill, match="pick apple"):
        client.preview("pick aple")


def test_a_scripted_skill_that_came_over_the_wire_is_previewed_as_it_is_scored():
    """Its rule stays with the skill server."""
    library, robot = SkillLibrary.load(HERE.parent / "examples" / "watering" / "skills.yaml"), LineRobot()
    robot.held = "water"
    with (
        skill_service.serve(library, limits=UNHURRIED) as skills,
        SkillClient(skills.address) as skill_client,
        robot_service.serve(robot, listed := skill_client.list_skills(), skill_client) as server,
        RobotClient(server.address) as client,
    ):
        names = [skill.name for skill in listed if not skill.learned]
        scores = [score.affordance for score in skill_client.score([robot.observe()], names)]
        assert [client.preview(name).score.affordance for name in names] == scores and {0.0, 1.0} <= {*scores}


def test_a_learnt_skill_is_previewed_by_its_models_and_nothing_moves():
    robot, policy = LineRobot(), Mapping()
    assert isinstance(policy, Mapper)
    with (
        skill_service.serve(LIBRARY, policy, policy, model_id="walker", limits=UNHURRIED) as skills,
        SkillClient(skills.address) as skill_client,
        robot_service.serve(robot, LIBRARY, skill_client) as server,
        RobotClient(server.address) as client,
    ):
        asked, seen = skill_client.preview("pick apple", [robot.observe()]), client.preview("pick apple")
        (score,) = skill_client.score([robot.observe()], ["pick apple"])
        for preview in (asked, seen):
            assert (preview.score.affordance, preview.score.model) == (score.affordance, "walker")
            assert preview.action == pytest.approx([0.08, 0.0]) and preview.expected_seconds is None
            assert preview.value_maps["brightness"].startswith(b"\xff\xd8")
        assert not robot.applied and not client.info().executing
        took = outcome_of(client.execute("pick apple")).seconds
        assert client.preview("pick apple").expected_seconds == pytest.approx(took)


def test_a_driver_that_imagines_gets_the_values_of_what_it_would_see():
    class Imagining(LineRobot):
        def imagine(self, skill):
            return lambda value: np.full((8, 8, 3), round(255 * value(self.observe())), np.uint8)

    robot, policy = Imagining(), Walker()
    with (
        skill_service.serve(LIBRARY, policy, policy, limits=UNHURRIED) as skills,
        SkillClient(skills.address) as skill_client,
        robot_service.serve(robot, LIBRARY, skill_client) as server,
        RobotClient(server.address) as client,
    ):
        (score,) = skill_client.score([robot.observe()], ["pick apple"])
        picture = Image.open(BytesIO(client.preview("pick apple").value_maps["over the camera"]))
        assert np.abs(np.asarray(picture) - 255.0 * score.affordance).max() < 4


def test_what_only_acts_is_previewed_without_a_score_and_what_does_neither_is_refused():
    robot = LineRobot()
    with skill_service.serve(LIBRARY, None, Walker()) as skills, SkillClient(skills.address) as client:
        preview = client.preview("pick apple", [robot.observe()])
        assert preview.score is None and preview.action is not None and not preview.value_maps
        assert client.preview("find apple", [robot.observe()]).score.model == "analytic"
    with skill_service.serve(LIBRARY) as skills, SkillClient(skills.address) as client:
        with pytest.raises(InvalidRequest, match="no critic"):
            client.preview("pick apple", [robot.observe()])
        with pytest.raises(InvalidRequest, match="history"):
            client.preview("pick apple", [])


def test_a_value_map_that_is_no_picture_is_the_critics_fault():
    policy, robot = Mapping(), LineRobot()
    policy.value_maps = lambda history, instruction: {"broken": np.zeros((4, 4))}
    with (
        skill_service.serve(LIBRARY, policy, policy) as skills,
        SkillClient(skills.address) as client,
        pytest.raises(ServerFault, match="no valid value map for 'pick apple'"),
    ):
        client.preview("pick apple", [robot.observe()])


def test_a_preview_by_a_model_for_another_robot_names_the_difference():
    other, robot = Walker(), LineRobot()
    other.embodiment = Embodiment(
        action=(ActionDimension("torque", -1, 1, "Nm"),), state=(StateNumber("x", "m"),), cameras=LINE.cameras
    )
    with (
        skill_service.serve(LIBRARY, other, other) as skills,
        SkillClient(skills.address) as skill_client,
        robot_service.serve(robot, LIBRARY, skill_client) as server,
        RobotClient(server.address) as client,
        pytest.raises(ServerFault, match="action dimension 1 is 'torque'"),
    ):
        client.preview("pick apple")


# ---- looking while a skill runs


def test_a_dashboard_at_5_hz_sees_a_scripted_skill_as_it_is(client, robot, running, machine):
    for step in range(6):
        robot.x = step / 10
        machine.lateness()
        asked = time.monotonic()
        look = client.look(["head"])
        assert look.age == 0 and look.observation.state[0] == np.float32(step / 10) and look.views["head"]
        assert client.info().executing == "first" and client.result("first") is None
        assert time.monotonic() - asked < 0.3 + machine.lateness()
        time.sleep(0.2)
    assert running.cancel()


def test_a_driver_that_asks_all_the_time_draws_its_views_ten_times_a_second(client, robot):
    """And ten more, for simulations."""
    drawn, took = [], []

    def perform(skill, canceled):
        begun = time.monotonic()
        while time.monotonic() < begun + 0.5:
            canceled()
        took.append(time.monotonic() - begun)

    view, robot.perform = robot.view, perform
    robot.view = lambda name: drawn.append(name) or view(name)
    *events, outcome = client.execute(LONG, views=["head"])
    assert outcome.succeeded and events and all(event.views for event in events)
    assert len(drawn) <= 13 + 10 * took[0]  # one before it begins, one at its end


def test_a_driver_that_never_asks_is_seen_as_it_was_with_the_age(client, robot, running):
    client.look(["head"])
    robot.hang.clear()
    running.cancel()  # from now on the driver asks for nothing
    time.sleep(0.2)
    for _ in range(3):
        asked = time.monotonic()
        look = client.look(["head"])
        assert look.observation.place and look.views["head"] and look.age > 0.2
        client.info()
        assert time.monotonic() - asked < 0.8
    with pytest.raises(Busy, match="view 'room' was not seen yet") as busy:
        client.look(["room"])
    assert busy.value.retry_after
    with pytest.raises(Busy, match="carries out a skill and cannot tell"):
        client.satisfied("walk")
    robot.hang.set()
    outcome_of(running)
    assert client.look(["room"]).age == 0 and client.satisfied("walk")


def test_many_who_look_at_the_same_time_share_a_look_and_hold_up_nobody(client, robot, running):
    robot.hang.clear()
    running.cancel()
    looks, asked = robot.looks, time.monotonic()
    calls = [client._stub.Observe.future(pb.ObserveRequest(), timeout=10) for _ in range(24)]
    client.info()
    assert time.monotonic() - asked < 0.8
    assert all(call.result().age > 0 for call in calls)
    robot.hang.set()
    outcome_of(running)
    assert robot.looks <= looks + 2


def test_a_look_that_begins_after_it_was_asked_for_is_shared_and_one_before_is_not(client, robot):
    slow, begun = threading.Event(), threading.Event()

    def observe():
        robot.looks += 1
        seen = LineRobot.observe(robot)
        begun.set()
        slow.wait(10)
        return seen

    robot.observe = observe
    first = client._stub.Observe.future(pb.ObserveRequest(), timeout=10)
    assert begun.wait(10)
    robot.x = 1.0
    later = [client._stub.Observe.future(pb.ObserveRequest(), timeout=10) for _ in range(5)]
    time.sleep(0.3)
    slow.set()
    assert np.frombuffer(first.result().observation.state.data, "<f4")[0] == 0
    assert {np.frombuffer(each.result().observation.state.data, "<f4")[0] for each in later} == {1}
    assert robot.looks == 2


def test_a_camera_that_fails_for_a_dashboard_does_not_end_the_skill(client, robot, running):
    see, robot.observe = robot.observe, lambda: 1 / 0
    with pytest.raises(ServerFault):
        client.observe()
    robot.observe = see
    assert client.observe()[0].place and client.info().executing == "first"
    running.cancel()
    assert outcome_of(running).status is Status.CANCELED


def test_a_camera_that_hangs_holds_only_so_many_of_the_servers_threads(client, robot, machine):
    hang = threading.Event()
    robot.observe = lambda: hang.wait(10) and LineRobot.observe(robot)
    calls = [client._stub.Observe.future(pb.ObserveRequest(), timeout=10) for _ in range(24)]
    wait_until(lambda: sum(call.done() for call in calls) == 24 - MOST_PATIENT, 2)
    assert {call.code() for call in calls if call.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    machine.lateness()
    asked = time.monotonic()
    assert client.info().name and time.monotonic() - asked < 0.3 + machine.lateness()
    hang.set()
    assert sum(call.code() is grpc.StatusCode.OK for call in calls) == MOST_PATIENT
