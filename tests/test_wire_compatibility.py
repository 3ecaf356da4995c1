"""The wire as it was released never changes: names, numbers and types stay; new ones may come."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from tiny_services import UNHURRIED

from skills import robot as robot_service
from skills import server as skill_service
from skills.client import RobotClient, SkillClient
from skills.library import SkillLibrary
from skills.robot_folder import default_robot
from skills.types import Observation
from skills.v1 import skills_pb2

RELEASED = Path(__file__).parent.parent / "protos" / "released.binpb"  # protos/buf.yaml says how it is written


def current() -> FileDescriptorProto:
    file = FileDescriptorProto()
    skills_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def facts(file: FileDescriptorProto) -> set[tuple]:
    """Everything that a client made from this file relies on."""
    found = {("package", file.package)}
    for service in file.service:
        for m in service.method:
            streams = (m.client_streaming, m.server_streaming)
            found.add(("method", service.name, m.name, m.input_type, m.output_type, *streams))
    for enum in file.enum_type:
        found |= {("value", enum.name, value.name, value.number) for value in enum.value}
    messages = [(message.name, message) for message in file.message_type]
    for name, message in messages:
        found.add(("message", name))
        messages += [(f"{name}.{nested.name}", nested) for nested in message.nested_type]  # how maps are kept
        for f in message.field:
            oneof = message.oneof_decl[f.oneof_index].name if f.HasField("oneof_index") else ""
            found.add(("field", name, f.name, f.number, f.type, f.type_name, f.label, oneof))
    return found


def test_everything_released_is_still_there_and_means_the_same():
    [released] = FileDescriptorSet.FromString(RELEASED.read_bytes()).file
    gone = facts(released) - facts(current())
    assert not gone, "clients that are out there would misread this; add a new field beside it instead"
    assert len(facts(released)) > 100


def rename(file):
    file.message_type[0].field[0].name += "s"


def renumber(file):
    file.message_type[0].field[0].number = 99


def retype(file):
    file.message_type[0].field[1].type = FieldDescriptorProto.TYPE_INT64


def remove(file):
    del file.message_type[0].field[0]


def stream(file):
    file.service[0].method[0].server_streaming = True


def leave_the_oneof(file):
    [message] = [message for message in file.message_type if message.name == "ExecuteSkillResponse"]
    message.field[0].ClearField("oneof_index")


@pytest.mark.parametrize("change", [rename, renumber, retype, remove, stream, leave_the_oneof])
def test_a_change_that_breaks_clients_is_seen(change):
    changed = current()
    change(changed)
    assert facts(current()) - facts(changed)


def test_a_new_field_breaks_nobody():
    grown = current()
    grown.message_type[0].field.add(name="depth", number=5, type=FieldDescriptorProto.TYPE_BYTES)
    assert not facts(current()) - facts(grown)


# ---- a client and a server of the version before, with the kitchen


LIBRARY, KITCHEN = SkillLibrary.load(), default_robot().embodiment


@cache
def pool_of_before():
    pool = DescriptorPool()
    pool.Add(FileDescriptorSet.FromString(RELEASED.read_bytes()).file[0])
    return pool


def before(name):
    """A message class of the wire as it was released, which knows of no cameras' names and no embodiments."""
    return GetMessageClass(pool_of_before().FindMessageTypeByName(f"skills.v1.{name}"))


def observation_of_before():
    image = before("Image")(encoding=1, width=96, height=80, data=bytes(80 * 96 * 3))
    state = before("Tensor")(dtype=1, shape=[8], data=bytes(32))
    return before("Observation")(image=image, state=state, place="table")


def numbers(tensor):
    return np.frombuffer(tensor.data, "<f4").tolist()


class KitchenModel:
    embodiment = KITCHEN

    def act(self, history, instruction):
        assert list(history[-1].images) == ["head"] and len(history[-1].state) == 8
        return np.float32([0.01, 0, 0, 0, 0, 0, 1, len(history) > 1])

    def value(self, history, instructions):
        assert list(history[-1].images) == ["head"]
        return np.full(len(instructions), 0.5, np.float32)


class KitchenLike:
    """A robot of that embodiment, whose driver gives one image, without a name."""

    embodiment, applied, stopped = KITCHEN, (), False

    def observe(self):
        return Observation(np.zeros((80, 96, 3), np.uint8), np.zeros(8, np.float32), "table")

    def apply(self, action):
        self.applied = (*self.applied, action)

    def stop(self):
        self.stopped = True

    def start(self, skill): ...

    def succeeded(self, skill):
        return True

    def finish(self, skill, canceled): ...


@pytest.fixture
def new_server():
    model = KitchenModel()
    with skill_service.serve(LIBRARY, model, model, model_id="kitchen", limits=UNHURRIED) as server:
        yield server.address


def test_a_client_of_before_is_judged_for_moved_and_informed_by_a_new_server(new_server):
    score, control = before("ScoreSkillsRequest"), before("ControlRequest")
    seen = observation_of_before()
    with grpc.insecure_channel(new_server) as channel:

        def ask(method, answer, kind=channel.unary_unary):
            send = before(f"{method}Request").SerializeToString
            return kind(f"/skills.v1.SkillService/{method}", send, before(answer).FromString)

        info = ask("GetServerInfo", "GetServerInfoResponse")(before("GetServerInfoRequest")(), timeout=10)
        scores = ask("ScoreSkills", "ScoreSkillsResponse")(score(history=[seen], names=["pick apple"]), timeout=10)
        requests = [control(sequence=1, instruction="pick apple", observation=seen)]
        requests.append(control(sequence=2, observation=seen))
        actions = list(ask("Control", "ControlResponse", channel.stream_stream)(iter(requests), timeout=10))
    assert [dimension.name for dimension in info.action] == [dimension.name for dimension in KITCHEN.action]
    np.testing.assert_array_equal([dimension.high for dimension in info.action], KITCHEN.high)
    assert list(info.state) == [number.name for number in KITCHEN.state] and info.control_hz == 3
    assert [one.affordance for one in scores.scores] == [0.5]
    assert [numbers(reply.action)[-1] for reply in actions] == [0, 1]
    assert len(numbers(actions[0].action)) == 8


class SkillServerOfBefore(grpc.GenericRpcHandler):
    """Speaks the released wire; knows one robot, and ends a skill with its second action."""

    def service(self, details):
        method = details.method.rpartition("/")[2]
        if method == "GetServerInfo":
            names = [before("ActionDimension")(name=dimension.name) for dimension in KITCHEN.action]
            reply = before("GetServerInfoResponse")(schema_version=1, actor_id="old", action=names, control_hz=3)
            return grpc.unary_unary_rpc_method_handler(lambda request, context: reply.SerializeToString())

        def answer(requests, context):
            for data in requests:
                request = before("ControlRequest").FromString(data)
                if not request.HasField("observation"):  # a last word, which it does not know
                    return
                assert request.observation.image.width == 96 and len(request.observation.state.data) == 32
                action = np.float32([0.5, 0, 0, 0, 0, 0, 1, request.sequence > 1])  # 0.5 m: the robot's bounds are less
                tensor = before("Tensor")(dtype=1, shape=[8], data=action.tobytes())
                yield before("ControlResponse")(sequence=request.sequence, action=tensor).SerializeToString()

        return grpc.stream_stream_rpc_method_handler(answer)


def test_a_new_robot_is_moved_by_a_skill_server_of_before_within_its_own_bounds():
    server = grpc.server(ThreadPoolExecutor(4), [SkillServerOfBefore()])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    robot = KitchenLike()
    with (
        SkillClient(address) as skills,
        robot_service.serve(robot, LIBRARY, skills) as service,
        RobotClient(service.address) as client,
    ):
        *_, outcome = client.execute("pick apple")
        assert skills.info().embodiment is None and skills.info().control_hz == 3
    server.stop(0)
    assert outcome.succeeded and outcome.steps == len(robot.applied) == 2 and robot.stopped
    np.testing.assert_array_equal(robot.applied[1], np.float32([0.08, 0, 0, 0, 0, 0, 1, 1]))


def test_a_client_of_before_drives_and_sees_a_new_robot(new_server):
    robot, execute = KitchenLike(), before("ExecuteSkillRequest")
    with (
        SkillClient(new_server) as skills,
        robot_service.serve(robot, LIBRARY, skills) as service,
        grpc.insecure_channel(service.address) as channel,
    ):

        def ask(method, request, kind=channel.unary_unary):
            send, read = before(f"{method}Request").SerializeToString, before(f"{method}Response").FromString
            return kind(f"/skills.v1.RobotService/{method}", send, read)(request, timeout=10)

        info = ask("GetRobotInfo", before("GetRobotInfoRequest")())
        seen = ask("Observe", before("ObserveRequest")()).observation
        events = list(ask("ExecuteSkill", execute(goal_id="1", skill="pick apple"), channel.unary_stream))
    assert (info.control_hz, info.max_steps) == (3, 45)
    assert (seen.image.width, seen.image.height, len(numbers(seen.state))) == (96, 80, 8)
    assert [event.WhichOneof("event") for event in events] == ["accepted", "feedback", "feedback", "result"]
    assert len(numbers(events[1].feedback.action)) == 8 and events[-1].result.status == 1
