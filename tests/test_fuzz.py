"""Whatever bytes a method is sent, its service lives, says what is wrong in one line, and hardly grows.

    pytest tests/test_fuzz.py             # thirty requests for each method
    pytest tests/test_fuzz.py -m slow     # ten thousand for each: some 20 minutes

Requests are made from the methods' descriptors, so that a new field or method is covered as soon as it is there: from
nothing, from valid ones with fields dropped, swapped or replaced, and from the bytes of either, flipped, cut, spliced.
"""

import contextlib
import functools
import io
import logging
import socket
import struct
import subprocess
import sys
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bombs
import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_services import LINE, UNHURRIED, LineRobot, Walker, wait_until

from skills import robot as robot_service
from skills import server as skill_service
from skills.client import RobotClient, SkillClient
from skills.errors import SkillError
from skills.library import SkillLibrary
from skills.robot_folder import default_robot
from skills.security.lease import LONGEST
from skills.types import Observation
from skills.v1 import skills_pb2 as pb
from skills.wire import messages
from skills.wire.messages import JPEG, PNG, RAW, compress, write_embodiment, write_image, write_observation, write_skill

LIBRARY = SkillLibrary.load()
HERE = Path(__file__).parent
SERVICES = {"SkillService": skill_service.SkillServicer, "RobotService": robot_service.RobotServicer}
METHODS = [  # all that a service has
    method
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.name in vars(SERVICES[service.name])
]
SCORE = next(method for method in METHODS if method.name == "ScoreSkills")
GROWTH = (
    4  # [MB] that a server may grow by in the second half of the requests; it takes about 1 MB, also of ten thousand
)
TIMEOUT = 20  # [s] for one call; it takes milliseconds
FINE = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
INNER_WORDS = ("Traceback", ".py", str(HERE.parent), sys.prefix, "/usr/", "Error(", "object at 0x")


class QuickRobot(LineRobot):
    """Whatever it does, it does at once."""

    def perform(self, skill, canceled):
        canceled()


class QuickPolicy(Walker):
    def act(self, history, instruction):
        return super().act(history, instruction.replace("close", "open"))


def host():
    """A process: both services; prints their addresses."""
    policy = QuickPolicy()
    with (
        skill_service.serve(LIBRARY, policy, policy, model_id="walker", limits=UNHURRIED) as server,
        SkillClient(server.address) as skills,
        robot_service.serve(QuickRobot(period=0), LIBRARY, skills, max_steps=3) as robot,
    ):
        print(server.address, robot.address, flush=True)
        sys.stdin.read()


# ---- what is sent

PICTURE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
SEEN = write_observation(LineRobot().observe())
TWO_CAMERAS = write_observation(Observation(dict.fromkeys(("front", "wrist"), PICTURE), np.zeros(1, np.float32)))
BODY = write_embodiment(LINE)
DONE = pb.Outcome(status=pb.STATUS_SUCCEEDED, steps=2, seconds=0.5)
STATES = [np.full(1, number, "<f4").tobytes() for number in (0, np.nan, np.inf, -np.inf, 3e38, -0.0)]
PICTURES = [PICTURE.tobytes(), compress(PICTURE, PNG), compress(PICTURE, JPEG)]
HUGE = struct.pack(">II", 65535, 65535)  # width and height
HUGE_PNG = PICTURES[1][:16] + HUGE + PICTURES[1][24:29]
HUGE_PNG += struct.pack(">I", zlib.crc32(HUGE_PNG[12:])) + PICTURES[1][33:]
HUGE_JPEG = PICTURES[2].replace(struct.pack(">HH", 4, 6), struct.pack(">HH", 65535, 65535), 1)
BYTES = [b"", b"\0", *STATES, *PICTURES, HUGE_PNG, HUGE_JPEG, *(picture[:-20] for picture in PICTURES)]
TEXTS = ["", " ", "pick apple", "pick aple", "go to table", "put down", "done", "table", "apple", "head", "walker"]
TEXTS += ["x" * 64, "x" * 65, "x" * 1001, "🤖" * 1000, "a\0b", "line\nbreak", "../../etc/passwd", "%s{0}", "\u202e"]
TEXTS += ["front", "wrist"]
INTEGERS = {Field.CPPTYPE_INT32: (-(2**31), 2**31 - 1), Field.CPPTYPE_UINT32: (0, 2**32 - 1)}
INTEGERS |= {Field.CPPTYPE_INT64: (-(2**63), 2**63 - 1), Field.CPPTYPE_UINT64: (0, 2**64 - 1)}
SEEDS = {
    "Image": [write_image(PICTURE, encoding) for encoding in (RAW, PNG, JPEG)],
    "Observation": [SEEN, TWO_CAMERAS],
    "Embodiment": [BODY, write_embodiment(default_robot().embodiment)],
    "ScoreSkillsRequest": [
        pb.ScoreSkillsRequest(history=[SEEN]),
        pb.ScoreSkillsRequest(history=[SEEN] * 3, names=["pick apple", "done"]),
        pb.ScoreSkillsRequest(history=[TWO_CAMERAS] * 2),
    ],
    "ControlRequest": [
        pb.ControlRequest(sequence=1, instruction="pick apple", observation=SEEN),
        pb.ControlRequest(sequence=2, observation=SEEN),
        pb.ControlRequest(sequence=1, instruction="pick apple", observation=TWO_CAMERAS),
        pb.ControlRequest(sequence=3, outcome=DONE),
    ],
    "ExecuteSkillRequest": [
        pb.ExecuteSkillRequest(goal_id=f"goal {number}", skill=skill, views=["room"])
        for number, skill in enumerate(["pick apple", "open top drawer", "go to table", "put down"] * 250)
    ],
    "CancelSkillRequest": [pb.CancelSkillRequest(goal_id="goal 0")],
    "GetGoalRequest": [pb.GetGoalRequest(goal_id="goal 0")],
    "JudgeInstructionRequest": [pb.JudgeInstructionRequest(instruction="walk")],
    "Outcome": [DONE],
    "ListSkillsResponse": [pb.ListSkillsResponse(skills=map(write_skill, LIBRARY[:2]))],
    "ScoreSkillsResponse": [
        pb.ScoreSkillsResponse(scores=[pb.SkillScore(skill="done", affordance=0.5, raw=0.5, seconds=0.1)])
    ],
    "ControlResponse": [pb.ControlResponse(sequence=1, action=SEEN.state)],
    "Model": [pb.Model(name="walker", embodiment=BODY)],
    "GetServerInfoResponse": [pb.GetServerInfoResponse(embodiment=BODY, models=[pb.Model(embodiment=BODY)])],
    "GetRobotInfoResponse": [pb.GetRobotInfoResponse(embodiment=BODY, views=["head"])],
    "ObserveResponse": [pb.ObserveResponse(observation=SEEN)],
    "ExecuteSkillResponse": [
        pb.ExecuteSkillResponse(feedback=pb.Feedback(step=1, state=SEEN.state)),
        pb.ExecuteSkillResponse(result=DONE),
    ],
    "GetGoalResponse": [pb.GetGoalResponse(result=DONE)],
    "ObserveRequest": [pb.ObserveRequest(views=["head", "room"])],
}


@functools.cache
def values(field):
    """One value of a field; of a repeated one, an element."""
    match field.cpp_type:
        case Field.CPPTYPE_MESSAGE:
            return st.deferred(lambda: any_message(field.message_type))
        case Field.CPPTYPE_STRING if field.type == Field.TYPE_BYTES:
            return st.sampled_from(BYTES) | st.binary(max_size=40)
        case Field.CPPTYPE_STRING:
            return st.sampled_from(TEXTS) | st.text(max_size=20)
        case Field.CPPTYPE_BOOL:
            return st.booleans()
        case Field.CPPTYPE_ENUM:
            return st.sampled_from([*field.enum_type.values_by_number, 99, -1])
        case Field.CPPTYPE_FLOAT | Field.CPPTYPE_DOUBLE:
            return st.floats()
        case _:
            low, high = INTEGERS[field.cpp_type]
            return st.sampled_from([0, 1, 2, 4, 6, 8, 4096, 4097, low, high]) | st.integers(low, high)


@functools.cache
def contents(field):
    """All that a field can hold."""
    if field.message_type and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return st.dictionaries(values(key), values(value), max_size=3)
    return st.lists(values(field), max_size=3) if field.is_repeated else values(field)


def put(message, field, content):
    """Replace what a field of the message holds."""
    message.ClearField(field.name)
    if isinstance(content, dict):
        for key, value in content.items():
            if isinstance(value, Message):
                getattr(message, field.name)[key].CopyFrom(value)
            else:
                getattr(message, field.name)[key] = value
    elif isinstance(content, list):
        getattr(message, field.name).extend(content)
    elif isinstance(content, Message):
        getattr(message, field.name).CopyFrom(content)
    else:
        setattr(message, field.name, content)


@functools.cache
def any_message(descriptor):
    seeds = st.sampled_from(SEEDS.get(descriptor.name, [GetMessageClass(descriptor)()]))
    return seeds | changed(seeds) | made(descriptor)


@st.composite
def made(draw, descriptor):
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if draw(st.booleans()):
            put(message, field, draw(contents(field)))
    return message


@st.composite
def changed(draw, seeds):
    """A valid message with up to three fields dropped, replaced, or holding what a field of the same type holds."""
    message = GetMessageClass((seed := draw(seeds)).DESCRIPTOR)()
    message.CopyFrom(seed)
    for _ in range(draw(st.integers(1, 3))):
        places = [(part, field) for part in parts(message) for field in part.DESCRIPTOR.fields]
        if not places:
            return message
        part, field = draw(st.sampled_from(places))
        match draw(st.sampled_from(["drop", "replace", "swap"])):
            case "drop":
                part.ClearField(field.name)
            case "replace":
                put(part, field, draw(contents(field)))
            case "swap":
                alike = [place for place in places if kind(place[1]) == kind(field) and not field.message_type]
                if alike:
                    other, its = draw(st.sampled_from(alike))
                    held = getattr(other, its.name)
                    put(part, field, list(held) if field.is_repeated else held)
    return message


def kind(field):
    return field.type, field.is_repeated


def parts(message):
    """The message and all messages in it."""
    yield message
    for field, content in message.ListFields():
        if field.message_type and not field.message_type.GetOptions().map_entry:
            for part in content if field.is_repeated else [content]:
                yield from parts(part)


@st.composite
def corrupted(draw, descriptor):
    """The bytes of a message, flipped, cut, repeated and spliced."""
    data = draw(any_message(descriptor)).SerializeToString()
    for _ in range(draw(st.integers(1, 3))):
        at, to = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        match draw(st.sampled_from(["flip", "cut", "remove", "repeat", "splice"])):
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case "cut":
                data = data[:at]
            case "remove":
                data = data[:at] + data[to:]
            case "repeat":
                data = data[:to] + data[at:]
            case "splice":
                data = data[:at] + draw(any_message(descriptor)).SerializeToString()[at:]
    return data


def requests(descriptor):
    """The bytes of one message."""
    whole = any_message(descriptor).map(lambda message: message.SerializeToString())
    return whole | corrupted(descriptor) | st.binary(max_size=200)


@st.composite
def calls(draw, method):
    """The bytes of each message of a call."""
    sent = [draw(requests(method.input_type))]
    if method.client_streaming:
        valid = st.sampled_from(SEEDS[method.input_type.name]).map(lambda message: message.SerializeToString())
        sent = draw(st.lists(valid, max_size=2)) + sent + draw(st.lists(valid, max_size=1))
    return sent


# ---- and what comes of it


class Host:
    """The process that is sent all this."""

    def __init__(self, process):
        self.process = process
        self.addresses = dict(zip(SERVICES, process.stdout.readline().split(), strict=True))
        options = [("grpc.max_send_message_length", -1)]
        self.channels = {name: grpc.insecure_channel(address, options) for name, address in self.addresses.items()}

    def memory(self, what="VmRSS"):
        """[MB] of memory that it has; VmHWM: has ever had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1e3 for line in status if line.startswith(what))

    def send(self, method, sent):
        """The status of a call."""
        channel = self.channels[method.containing_service.name]
        path = f"/{method.containing_service.full_name}/{method.name}"
        if method.client_streaming:
            answers = channel.stream_stream(path)(iter(sent), timeout=TIMEOUT)
        else:
            answers = channel.unary_stream(path)(sent[0], timeout=TIMEOUT)
        with contextlib.suppress(grpc.RpcError):
            list(answers)
        return answers.code(), answers.details()

    def check(self):
        """Does it still do all its work?"""
        with (
            SkillClient(self.addresses["SkillService"]) as skills,
            RobotClient(self.addresses["RobotService"]) as robot,
        ):
            wait_until(lambda: not robot.info().leased_to, LONGEST + 5)  # what was sent may have leased it
            robot.reset()
            *_, outcome = robot.execute("pick apple", when_busy="preempt")
            here, _ = robot.observe(["room"])
            assert outcome.steps and len(skills.score([here])) == len(LIBRARY)
        assert self.process.poll() is None


@pytest.fixture(scope="module")
def server():
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        host = Host(process)
        yield host
        for channel in host.channels.values():
            channel.close()
        process.kill()


@pytest.mark.parametrize("cases", [30, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_whatever_is_sent_is_answered_or_refused_in_plain_words(server, method, cases):
    codes, half = Counter(), []
    if method.name == "ExecuteSkill":
        server.check()  # which resets the robot

    @settings(max_examples=cases, derandomize=True, database=None, deadline=None, suppress_health_check=[*HealthCheck])
    @given(calls(method))
    def fuzz(call):
        code, words = server.send(method, call)
        shown = f"{method.name}: {code} {words!r} for {[data.hex() for data in call]}"
        assert code in FINE and "\n" not in words and not any(inner in words for inner in INNER_WORDS), shown
        codes[code.name] += 1
        if codes.total() == cases // 2:
            half.append(server.memory())

    fuzz()
    server.check()
    grown = server.memory() - half[0]
    print(f"{method.name}: {dict(codes)}, grown by {grown:.1f} MB")
    assert codes.total() >= cases and grown < GROWTH


# ---- what is small on the wire, and large or long in the making


def black(side, encoding, **options):
    """An observation of a picture that compresses well."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, messages.FORMATS[encoding], **options)
    seen = pb.Observation(state=SEEN.state)
    seen.image.CopyFrom(pb.Image(encoding=encoding, width=side, height=side, data=file.getvalue()))
    return seen


def many_pictures():
    return pb.ScoreSkillsRequest(history=[black(2048, PNG)] * 8)


def many_scans():
    seen = black(2048, JPEG, progressive=True)
    picture, last = seen.image.data, seen.image.data.rindex(b"\xff\xda")
    seen.image.data = picture[:last] + picture[last:-2] * 5000 + picture[-2:]  # each takes milliseconds
    return pb.ScoreSkillsRequest(history=[seen])


def many_sequential_scans():
    seen = pb.Observation(state=SEEN.state)
    seen.image.CopyFrom(pb.Image(encoding=JPEG, width=2048, height=2048, data=bombs.many_scans(2048, 3000)))
    return pb.ScoreSkillsRequest(history=[seen])


def long_name():
    return pb.ScoreSkillsRequest(history=[SEEN], names=["a" * 20_000_000])


def too_much():
    return pb.ScoreSkillsRequest(names=["a" * 100_000_000])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (many_pictures, "more than 64 MiB once decoded"),
        (many_scans, "progressive JPEG"),
        (many_sequential_scans, "JPEG of 3000 scans"),
        (long_name, "no skill 'aaaa"),
        (too_much, "larger than max"),
    ],
)
def test_a_bomb_is_refused_before_it_goes_off(server, make, words):
    sent, before = make().SerializeToString(), server.memory()
    code, said = server.send(SCORE, [sent])
    assert code in FINE and words in said
    assert server.memory("VmHWM") - before < 250  # [MB]
    server.check()


def frame(kind, flags, data):
    """Of HTTP/2, for stream 1, or for the connection."""
    return struct.pack(">I", len(data))[1:] + bytes([kind, flags]) + struct.pack(">I", int(kind < 2)) + data


def header(name, value):
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, b"")
ASK = {":method": "POST", ":scheme": "http", ":path": "/skills.v1.SkillService/ScoreSkills", ":authority": "x"}
ASK |= {"te": "trailers", "content-type": "application/grpc", "grpc-encoding": "gzip"}
CALL = HELLO + frame(1, 4, b"".join(header(name.encode(), value.encode()) for name, value in ASK.items()))


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(100_000),
        b"\x16\x03\x01" + bytes(500),  # as TLS begins
        HELLO + np.random.default_rng(0).bytes(10_000),
        CALL + frame(0, 1, b"\1" + struct.pack(">I", 5) + b"bogus"),  # compressed, it says
        CALL + frame(0, 1, b"\0" + struct.pack(">I", 1000) + b"short"),
        CALL + frame(0, 1, b"\0" + struct.pack(">I", 2**32 - 1) + bytes(1000)),
        CALL + frame(0, 0, b"\0\0"),
    ],
)
def test_bytes_that_are_no_grpc_cost_a_server_nothing(server, sent):
    for address in server.addresses.values():
        host, port = address.split(":")
        connection = socket.create_connection((host, int(port)), timeout=TIMEOUT)
        with connection, contextlib.suppress(OSError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    server.check()


# ---- the same for clients


class Answers(grpc.GenericRpcHandler):
    """A server that answers every call with these bytes."""

    def __init__(self):
        self.sent = []

    def service(self, details):
        def answer(requests, context):
            for _ in requests:
                break  # one was asked
            yield from self.sent

        return grpc.stream_stream_rpc_method_handler(answer)


@pytest.fixture(scope="module")
def liar():
    """A server, what it answers, and its clients."""
    answers = Answers()
    server = grpc.server(ThreadPoolExecutor(4), [answers])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    log = logging.getLogger("grpc._common")  # it has a page to say about every answer that is no message
    with SkillClient(f"127.0.0.1:{port}") as skills, RobotClient(f"127.0.0.1:{port}") as robot:
        log.disabled = True
        yield answers, skills, robot
        log.disabled = False
    server.stop(0)


HERE_NOW = LineRobot().observe()


def control(skills):
    with skills.control("pick apple") as stream:
        return stream.act(HERE_NOW)


ASKED = {
    "ListSkills": lambda skills, robot: skills.list_skills(),
    "GetServerInfo": lambda skills, robot: skills.info(),
    "ScoreSkills": lambda skills, robot: [score.affordance for score in skills.score([HERE_NOW])],
    "Control": lambda skills, robot: control(skills),
    "Observe": lambda skills, robot: robot.observe()[0].state,
    "ExecuteSkill": lambda skills, robot: [getattr(event, "seconds", 0.0) for event in robot.execute("pick apple")],
    "GetGoal": lambda skills, robot: robot.result("goal"),
    "JudgeInstruction": lambda skills, robot: robot.satisfied("walk"),
    "GetRobotInfo": lambda skills, robot: robot.info(),
}


@pytest.mark.parametrize("cases", [30, pytest.param(2_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", [m for m in METHODS if m.name in ASKED], ids=lambda method: method.name)
def test_whatever_a_server_answers_is_read_or_an_error_of_ours(liar, method, cases):
    answers, *clients = liar

    @settings(max_examples=cases, derandomize=True, database=None, deadline=None, suppress_health_check=[*HealthCheck])
    @given(st.lists(requests(method.output_type), min_size=0 if method.server_streaming else 1, max_size=2))
    def fuzz(sent):
        answers.sent = sent if method.server_streaming else sent[:1]
        try:
            found = ASKED[method.name](*clients)
        except SkillError as error:
            assert "\n" not in str(error) and "Traceback" not in str(error)
        else:
            numbers = found if isinstance(found, list | np.ndarray) else []
            assert np.isfinite(np.array(numbers)).all(), f"{[data.hex() for data in sent]}"

    fuzz()


if __name__ == "__main__":
    host()
