"""What a program can read of a mistake: BadRequest and RetryInfo, with stock gRPC and with our clients."""

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_status import rpc_status
from tiny_services import UNHURRIED, LineRobot, Walker

from skills import robot as robot_service
from skills import server as skill_service
from skills.client import RobotClient, SkillClient
from skills.errors import Busy, InvalidRequest, UnknownSkill
from skills.library import SkillLibrary
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire.messages import write_observation

LIBRARY = SkillLibrary.load()
HERE = LineRobot().observe()


@pytest.fixture
def skill_server():
    with skill_service.serve(LIBRARY, Walker(), Walker(), limits=UNHURRIED) as server:
        yield server


@pytest.fixture
def line_robot():
    return LineRobot(period=0.05)


@pytest.fixture
def robot_server(line_robot, skill_server):
    with (
        SkillClient(skill_server.address) as skills,
        robot_service.serve(line_robot, LIBRARY, skills) as server,
    ):
        yield server


def detail(error, kind):
    """The one detail of a stock gRPC error, whose code and text the rich status must repeat (else ValueError)."""
    (found,) = rpc_status.from_call(error).details
    assert found.Unpack(kind)
    return kind


def test_a_malformed_request_names_the_field_and_what_is_wrong_with_it(skill_server):
    broken = write_observation(HERE)
    broken.state.shape[:] = [7]
    request = pb.ScoreSkillsRequest(history=[write_observation(HERE), broken])
    with grpc.insecure_channel(skill_server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        skills_pb2_grpc.SkillServiceStub(channel).ScoreSkills(request, timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = detail(caught.value, BadRequest()).field_violations
    assert violation.field == "history[1].state"
    assert violation.description == caught.value.details() == "the state: shape (7,) takes 28 bytes, not 4"


def test_a_busy_robot_says_when_to_try_again(robot_server):
    with RobotClient(robot_server.address) as robot, grpc.insecure_channel(robot_server.address) as channel:
        events = robot.execute("pick apple")
        next(events)
        second = pb.ExecuteSkillRequest(goal_id="second", skill="pick tea")
        with pytest.raises(grpc.RpcError) as caught:
            list(skills_pb2_grpc.RobotServiceStub(channel).ExecuteSkill(second, timeout=5))
        with pytest.raises(Busy, match="still executes") as ours:
            list(robot.execute("pick tea"))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail(caught.value, RetryInfo()).retry_delay.ToMilliseconds() == 1000
    assert ours.value.retry_after == 1.0


def test_a_service_chooses_the_seconds_and_the_client_reads_them(robot_server, line_robot, monkeypatch):
    monkeypatch.setattr(line_robot, "observe", lambda: raises(Busy("the camera starts", retry_after=2.5)))
    with RobotClient(robot_server.address) as robot, pytest.raises(Busy, match="the camera starts") as caught:
        robot.observe()
    assert caught.value.retry_after == 2.5


def raises(error):
    raise error


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (lambda robot: list(robot.execute("pick tea", goal_id="x" * 65)), "goal_id"),
        (lambda robot: list(robot.execute(" ")), "skill"),
        (lambda robot: robot.cancel("never given"), "goal_id"),
        (lambda robot: robot.observe(["back"]), "views"),
        (lambda robot: robot.satisfied(""), "instruction"),
    ],
)
def test_the_robot_names_the_field(robot_server, ask, field):
    with RobotClient(robot_server.address) as robot, pytest.raises(InvalidRequest) as caught:
        ask(robot)
    assert caught.value.field == field


def test_a_control_stream_names_the_field(skill_server):
    wrong = LineRobot().observe()
    object.__setattr__(wrong, "place", "x" * 1001)
    with (
        SkillClient(skill_server.address) as client,
        client.control("pick apple") as control,
        pytest.raises(InvalidRequest) as caught,
    ):
        control.act(wrong)
    assert caught.value.field == "observation.place"


def test_a_mistake_in_a_thousand_long_letters_still_arrives(robot_server):
    """Every letter of these takes 12 bytes of a header, and gRPC drops headers of more than 8 kB."""
    with RobotClient(robot_server.address) as robot:
        with pytest.raises(UnknownSkill, match="🤖"):
            list(robot.execute("🤖" * 1000))
        with pytest.raises(InvalidRequest, match="🤖"):
            robot.observe(["🤖" * 1000])
