"""Both services on loopback with the tiny robot: what calls do, and how each mistake is answered."""

import contextlib
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import bombs
import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tiny_policies import make
from tiny_services import LINE, UNHURRIED, LineRobot, Walker, wait_until

from skills import robot as robot_service
from skills import server as skill_service
from skills.client import Feedback, RobotClient, SkillClient
from skills.errors import (
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    ServerFault,
    Stopped,
    Unavailable,
    UnknownSkill,
)
from skills.library import Skill, SkillLibrary
from skills.types import Observation, Outcome, Status
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire.messages import JPEG, write_observation

LIBRARY = SkillLibrary.load()


@pytest.fixture
def skill_client():
    with (
        skill_service.serve(LIBRARY, Walker(), Walker(), model_id="walker", limits=UNHURRIED) as server,
        SkillClient(server.address) as client,
    ):
        yield client


@pytest.fixture
def line_robot():
    return LineRobot()


@pytest.fixture
def robot_client(line_robot, skill_client):
    server = robot_service.serve(line_robot, LIBRARY, skill_client, control_timeout=2)
    with server, RobotClient(server.address) as client:
        yield client


def finish(events) -> Outcome:
    *_, outcome = events
    assert isinstance(outcome, Outcome)
    return outcome


def test_the_library_arrives_whole(skill_client):
    assert list(skill_client.list_skills()) == list(LIBRARY)
    assert skill_client.info().actor_id == "walker" and skill_client.info().skills == len(LIBRARY)


def test_scores_come_in_the_order_asked_from_critic_and_rules(skill_client, line_robot):
    here = line_robot.observe()
    scores = skill_client.score([here] * 3, ["find tea", "pick apple", "put down", "pick tea"])
    assert [s.skill for s in scores] == ["find tea", "pick apple", "put down", "pick tea"]
    assert [s.affordance for s in scores] == pytest.approx([1.0, 0.3, 0.0, 0.301])
    assert [s.model for s in scores] == ["analytic", "walker", "analytic", "walker"]
    assert len(skill_client.score([here])) == len(LIBRARY)


def test_a_calibrated_server_answers_the_value_and_its_probability(skill_client, line_robot):
    here = [line_robot.observe()] * 3
    with (
        skill_service.serve(LIBRARY, Walker(), model_id="walker", calibrate=np.square) as server,
        SkillClient(server.address) as client,
    ):
        find, pick = client.score(here, ["find tea", "pick apple"])
        assert client.info().calibrated and not skill_client.info().calibrated
    assert (find.raw, find.affordance) == (1.0, 1.0)
    assert (pick.raw, pick.affordance) == pytest.approx((0.3, 0.09))


def test_a_control_stream_answers_each_observation(skill_client, line_robot):
    with skill_client.control("pick apple") as control:
        for _ in range(3):
            np.testing.assert_array_equal(control.act(line_robot.observe()), np.float32([0.08, 0.0]))


def test_an_observation_of_a_control_stream_says_what_was_done_before_it(line_robot):
    told = []

    class Counting(Walker):
        def act(self, history, instruction):
            told[:] = [None if seen.action is None else float(seen.action[0]) for seen in history]
            return np.float32([len(history) / 100, 0])

    with skill_service.serve(LIBRARY, None, Counting()) as server, SkillClient(server.address) as client:
        for _ in range(2):  # streams
            with client.control("pick apple") as control:
                for _ in range(3):
                    control.act(line_robot.observe())
            assert told == [None, pytest.approx(0.01), pytest.approx(0.02)]


def test_an_actor_sees_as_many_observations_as_its_embodiment_says(line_robot):
    class Remembering(Walker):
        embodiment = replace(LINE, history=20)

        def act(self, history, instruction):
            return np.float32([len(history) / 1000, 0])

    with (
        skill_service.serve(LIBRARY, None, Remembering(), limits=UNHURRIED) as server,
        SkillClient(server.address) as client,
        client.control("pick apple") as control,
    ):
        seen = [round(1000 * float(control.act(line_robot.observe())[0])) for _ in range(21)]
    assert seen == [*range(1, 21), 20]


def test_a_learned_skill_runs_to_its_end(robot_client, line_robot):
    *feedback, outcome = robot_client.execute("pick apple", views=["room"])
    assert outcome.status is Status.SUCCEEDED and outcome.steps == 7 == line_robot.applied
    assert all(isinstance(f, Feedback) and f.views["room"][:2] == b"\xff\xd8" for f in feedback)
    assert [f.step for f in feedback] == [1, 2, 3, 4, 5, 6, 7] and feedback[-1].action[1] == 1
    assert line_robot.stops and len(line_robot.threads) == 1  # the driver is called from one thread


def test_a_skill_that_reaches_nothing_has_failed(robot_client):
    outcome = finish(robot_client.execute("open top drawer"))
    assert outcome.status is Status.FAILED and outcome.steps == 45


def test_a_scripted_skill_that_cannot_run_is_aborted_with_the_robots_reason(robot_client):
    outcome = finish(robot_client.execute("put down"))
    assert outcome.status is Status.ABORTED and outcome.message == "the gripper holds nothing to put down"


def test_the_robot_answers_what_it_sees_and_knows(robot_client):
    observation, views = robot_client.observe(["head", "room"])
    assert observation.place == "table" and observation.image.shape == (4, 6, 3) and set(views) == {"head", "room"}
    assert robot_client.satisfied("walk") is False and robot_client.satisfied("sing") is None
    assert robot_client.info().name == "line robot" and not robot_client.info().stopped


@pytest.mark.parametrize("skill", ["pick apple", "go to trash can"])
def test_cancelling_a_skill_stops_the_robot(robot_client, line_robot, skill):
    line_robot.period = 0.05
    events = robot_client.execute(skill, goal_id="walk")
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(finish(events)))
    thread.start()
    assert line_robot.moving.wait(20)
    assert robot_client.cancel("walk")
    thread.join(20)
    assert outcome[0].status is Status.CANCELED and not line_robot.moving.is_set()
    assert not robot_client.cancel("walk")  # it has ended


@pytest.mark.parametrize("skill", ["pick apple", "go to trash can"])
def test_a_driver_that_was_never_started_is_not_asked_how_it_ended(robot_client, line_robot, monkeypatch, skill):
    picture = np.zeros((8, 12, 3), np.uint8)
    monkeypatch.setattr(line_robot, "view", lambda name: robot_client.cancel("early") and picture)
    monkeypatch.setattr(line_robot, "start", lambda skill: pytest.fail("it was canceled before"))
    monkeypatch.setattr(line_robot, "succeeded", lambda skill: line_robot.knows_its_skill)
    outcome = finish(robot_client.execute(skill, goal_id="early", views=["head"]))
    assert (outcome.status, outcome.message) == (Status.CANCELED, "canceled by the client")


def test_a_client_that_leaves_stops_the_robot(robot_client, line_robot):
    line_robot.period = 0.05
    events = robot_client.execute("pick apple")
    next(events)
    events.close()
    wait_until(lambda: not robot_client.info().executing)
    assert line_robot.stops and line_robot.applied < 7


def test_stop_is_latched_until_reset(robot_client, line_robot):
    line_robot.period = 0.05
    events = robot_client.execute("pick apple")
    next(events)
    robot_client.stop()
    assert finish(events).status is Status.CANCELED
    with pytest.raises(Stopped, match="reset"):
        finish(robot_client.execute("pick apple"))
    robot_client.reset()
    assert finish(robot_client.execute("pick apple")).succeeded


def test_one_goal_at_a_time(robot_client, line_robot):
    line_robot.period = 0.05
    running = robot_client.execute("pick apple")
    next(running)
    with pytest.raises(Busy, match="pick apple"):
        finish(robot_client.execute("pick tea"))
    assert finish(running).succeeded


def test_a_goal_runs_at_most_once(robot_client, line_robot):
    assert finish(robot_client.execute("pick apple", goal_id="one")).succeeded
    with pytest.raises(InvalidRequest, match="at most once"):
        finish(robot_client.execute("pick apple", goal_id="one"))
    assert line_robot.applied == 7


def test_a_policy_that_gives_no_action_in_time_aborts_the_skill(robot_client, line_robot):
    outcome = finish(robot_client.execute("close top drawer"))
    assert outcome.status is Status.ABORTED and "no action within 2 s" in outcome.message
    assert line_robot.stops and not line_robot.applied


def test_a_driver_that_crashes_is_a_server_fault_without_its_inner_words(robot_client, line_robot, monkeypatch):
    monkeypatch.setattr(line_robot, "apply", lambda action: 1 / 0)
    with pytest.raises(ServerFault, match="driver failed in 'pick apple'") as caught:
        finish(robot_client.execute("pick apple"))
    assert "ZeroDivision" not in str(caught.value) and line_robot.stops
    assert robot_client.info().executing == ""


def test_mistakes_are_named(robot_client, skill_client, line_robot):
    with pytest.raises(UnknownSkill, match="did you mean 'pick apple'"):
        finish(robot_client.execute("pick aple"))
    with pytest.raises(UnknownSkill, match="did you mean 'pick apple'"):
        skill_client.score([line_robot.observe()], ["pick aple"])
    with pytest.raises(InvalidRequest, match="no view 'back'"):
        robot_client.observe(["back"])
    with pytest.raises(InvalidRequest, match="history"):
        skill_client.score([])
    with pytest.raises(InvalidRequest, match="HOST:PORT"):
        SkillClient("somewhere")


def test_bytes_that_are_no_message_are_an_invalid_argument(skill_client):
    """Stock gRPC answers them with INTERNAL or UNKNOWN and the exception's text."""
    with grpc.insecure_channel(skill_client.address) as channel:
        with pytest.raises(grpc.RpcError) as unary:
            channel.unary_unary("/skills.v1.SkillService/ScoreSkills")(b"\xff\xff\xff", timeout=5)
        with pytest.raises(grpc.RpcError) as stream:
            list(channel.stream_stream("/skills.v1.SkillService/Control")(iter([b"\xff\xff\xff"]), timeout=5))
    assert unary.value.code() is stream.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_broken_image_never_reaches_the_policy(skill_client, line_robot):
    broken = line_robot.observe()
    object.__setattr__(broken, "state", np.full(1, np.inf, np.float32))
    with pytest.raises(InvalidRequest, match="not finite"):
        skill_client.score([broken])
    with skill_client.control("pick apple") as control, pytest.raises(InvalidRequest, match="not finite"):
        control.act(broken)


def test_bombs_hold_up_no_other_scoring_and_fill_no_memory():
    """16 at once of a JPEG of 33 kB that takes half a minute to decode, and of the dearest that is taken; a process of
    its own, whose memory is measured."""
    command = [sys.executable, str(Path(__file__).with_name("tiny_services.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        here, bomb = LineRobot().observe(), seen_as(bombs.many_scans(4096, 3000))
        dear = seen_as(bombs.many_scans(2048, 4))
        assert len(bomb.history[0].image.data) < 40_000

        def peak():
            status = Path(f"/proc/{process.pid}/status").read_text()
            return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3  # [MB]

        with SkillClient(address) as client, ThreadPoolExecutor(16) as attackers:
            client.score([here])
            before, waits = peak(), []
            for request, said in ((bomb, "pixels, and this model takes 6x4"), (dear, "")):
                attacks = [attackers.submit(answer_to, address, request) for _ in range(16)]
                while not all(attack.done() for attack in attacks):
                    started = time.monotonic()
                    while not scores(client, here):
                        time.sleep(0.01)
                    waits.append(time.monotonic() - started)
                assert {said in attack.result() for attack in attacks} == {True}
            print(f"scored {len(waits)} times, the slowest {max(waits):.2f} s; {peak() - before:.0f} MB more")
            assert max(waits) < 2 and peak() - before < 400
        process.stdin.close()


def scores(client, here):
    """False while all places are taken."""
    with contextlib.suppress(Busy):
        return client.score([here])


def seen_as(jpeg):
    """A request whose image is this JPEG."""
    observation = write_observation(LineRobot().observe())
    height, width = struct.unpack(">HH", jpeg[(size := jpeg.index(b"\xff\xc0") + 5) : size + 4])
    observation.image.CopyFrom(pb.Image(encoding=JPEG, width=width, height=height, data=jpeg))
    return pb.ScoreSkillsRequest(history=[observation])


def answer_to(address, request):
    """What went wrong."""
    with grpc.insecure_channel(address) as channel:
        try:
            skills_pb2_grpc.SkillServiceStub(channel).ScoreSkills(request, timeout=60)
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
            return error.details()
        return ""


def test_a_critic_beyond_0_to_1_is_told_once_by_the_name_of_its_model(line_robot, caplog):
    class Wild(Walker):
        def value(self, history, instructions):
            return np.full(len(instructions), 1.7)

    with skill_service.serve(LIBRARY, Wild(), model_id="wild@1") as server, SkillClient(server.address) as client:
        for _ in range(3):
            (score,) = client.score([line_robot.observe()], ["pick apple"])
            assert (score.raw, score.affordance) == (pytest.approx(1.7), 1)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["the critic 'wild@1' gives 1.7; affordances are 0 to 1, and what lies beyond is cut"]


@pytest.mark.parametrize("goal_id", ["a\nWARNING forged", "\x1b[31mred"])
def test_a_goal_id_of_several_lines_is_refused(robot_client, goal_id):
    with pytest.raises(InvalidRequest, match="the goal id has a control character") as caught:
        list(robot_client.execute("put down", goal_id=goal_id))
    assert caught.value.field == "goal_id" and str(caught.value).isprintable()


def test_an_image_of_another_size_than_the_policys_is_an_invalid_request_with_its_reason():
    policy, here = make("q-transformer"), Observation(np.zeros((4, 6, 3), np.uint8), np.zeros(8, np.float32))
    with skill_service.serve(LIBRARY, policy, policy) as server, SkillClient(server.address) as client:
        with pytest.raises(InvalidRequest, match=r"\(4, 6, 3\)") as judged:
            client.score([here], ["pick apple"])
        with client.control("pick apple") as control, pytest.raises(InvalidRequest) as acted:
            control.act(here)
    assert str(acted.value) == str(judged.value) and "\n" not in str(judged.value)


def test_an_occupied_port_is_refused_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"cannot listen on {address}: Address already in use"):
            skill_service.serve(LIBRARY, address=address)


@pytest.mark.parametrize("host", ["a..b", "a" * 64])
def test_what_cannot_be_the_name_of_a_host_is_no_address(host):
    with pytest.raises(InvalidRequest, match=f"'{host}:0' is not an address"):
        skill_service.serve(LIBRARY, address=f"{host}:0")


def test_a_second_server_on_the_same_port_is_refused():
    with skill_service.serve(LIBRARY) as server, pytest.raises(Unavailable, match="Address already in use"):
        skill_service.serve(LIBRARY, address=server.address)


def test_a_scripted_skill_of_any_family_is_always_possible_where_it_has_no_rule(line_robot):
    library = SkillLibrary([Skill("dance", "dance", learned=False)])
    with skill_service.serve(library) as server, SkillClient(server.address) as client:
        assert [score.affordance for score in client.score([line_robot.observe()])] == [1.0]


def test_health_and_reflection_are_served(skill_client, robot_client):
    for address, service in [
        (skill_client.address, "skills.v1.SkillService"),
        (robot_client.address, "skills.v1.RobotService"),
    ]:
        with grpc.insecure_channel(address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert check.status == health_pb2.HealthCheckResponse.SERVING
            assert service in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_a_slow_model_does_not_hold_up_other_calls(skill_client, line_robot):
    with skill_client.control("close top drawer", timeout=0.05) as control, pytest.raises(DeadlineExceeded):
        control.act(line_robot.observe())  # the model now computes for 3 s
    started = time.monotonic()
    skill_client.info()
    assert time.monotonic() - started < 2.5
