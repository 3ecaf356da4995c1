"""openpi's protocol, with its own client: robots that ask us, our Actor that asks others, and messages sent to harm."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import certificates
import msgpack
import numpy as np
import pytest
import websockets.sync.client
import websockets.sync.server
from openpi_client import image_tools, msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from tiny_services import GOAL, LINE, UNHURRIED, LineRobot, Walker, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus

from saycan_qt.data.images import fit
from saycan_qt.learning import checkpoint
from saycan_qt.services import models
from saycan_qt.services.access import ServerOptions
from skills import robot as robot_service
from skills.client import RobotClient, SkillClient
from skills.embodiment import ActionDimension, Camera, Embodiment, StateNumber
from skills.errors import AccessError, EmbodimentError, InvalidRequest, ServerFault, SkillError, Unavailable
from skills.library import Skill, SkillLibrary
from skills.openpi.actor import API_KEY, PROBE, connect
from skills.openpi.codec import MAX_BYTES, MAX_LIST, pack, unpack
from skills.openpi.endpoint import SPARE, Endpoint
from skills.openpi.keys import Keys
from skills.robot_folder import RobotFolder, default_robot
from skills.security.access import Access, Holder, Tokens, digest, new_token
from skills.security.tls import ServerTLS
from skills.server import Limits, serve
from skills.serving.hosting import Hosting, Model
from skills.serving.terms import Terms
from skills.types import ChunkedActor, Observation, blank

pytestmark = pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager")  # openpi's client
HERE = Path(__file__).parent
LIBRARY = SkillLibrary(
    [Skill("pick apple", "pick"), Skill("open drawer", "open"), Skill("find table", "find", learned=False)]
)
SEEN = {
    "observation/image": np.full((4, 6, 3), 7, np.uint8),
    "observation/state": np.array([0.25]),  # float64, as robots have it
    "prompt": "pick apple",
}
ARM = Embodiment(
    action=(ActionDimension("dx", -1, 1), ActionDimension("grip", kind="fraction")),
    cameras=(Camera("front", 300, 400), Camera("left_wrist", 200, 200), Camera("side", 60, 80)),
    state=(StateNumber("q1"), StateNumber("q2"), StateNumber("grip")),
    control_hz=10,
    name="arm",
)
ARM_YAML = """
name: arm
control_hz: 10
cameras: {front: [300, 400], left_wrist: [200, 200], side: [60, 80]}
state: {q1: "", q2: "", grip: ""}
action: {dx: [-1, 1], grip: {kind: fraction}}
"""


class Remembering(Walker):
    """Answers how many observations it was shown; and each but the first says that."""

    embodiment = Embodiment(LINE.action, LINE.cameras, LINE.state, control_hz=3, history=4)

    def act(self, history, instruction):
        said = [observation.action for observation in history]
        assert all(action is not None and 0.01 <= action[0] <= 0.04 for action in said[1:])
        return np.array([len(history) / 100, 0], np.float32)


class Chunky(Walker):
    chunk = 5

    def act_chunk(self, history, instruction, committed):
        assert committed.shape == (0, 2)
        return np.tile(self.act(history, instruction), (5, 1))


class Long(Chunky):
    chunk = 1024

    def act_chunk(self, history, instruction, committed):
        return np.zeros((1024, 2), np.float32)


class Flaky(Walker):
    def act(self, history, instruction):
        if instruction == "break":
            raise RuntimeError("broken on purpose")
        if instruction == "leave":
            raise SystemExit("no memory left")
        raise ValueError("nothing is seen\nin the dark")


@contextlib.contextmanager
def endpoint(actor=None, limits=UNHURRIED, access=None, keys=None, hosted=None):
    own = Endpoint(access=access, keys=keys)
    actor = actor or Walker()
    with serve(LIBRARY, actor, actor, model_id="walker", limits=limits, models=hosted) as server:
        own.start(server.servicer)
        try:
            yield own
        finally:
            own.stop()


@contextlib.contextmanager
def asking(own, **options):
    policy = WebsocketClientPolicy(own.url, **options)
    try:
        yield policy
    finally:
        policy._ws.close()


@contextlib.contextmanager
def policy_server(infer, metadata=None):
    """As openpi's own: metadata first, tracebacks as text after which it hangs up."""
    seen = []

    def handle(connection):
        connection.send(msgpack_numpy.packb(metadata or {}))
        with contextlib.suppress(ConnectionClosed):
            for data in connection:
                seen.append(msgpack_numpy.unpackb(data))
                try:
                    connection.send(msgpack_numpy.packb(infer(seen[-1])))
                except Exception as error:
                    connection.send(f"Traceback (most recent call last):\n  ...\n{type(error).__name__}: {error}\n")
                    connection.close(1011)

    with websockets.sync.server.serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"openpi://127.0.0.1:{server.socket.getsockname()[1]}", seen
        finally:
            server.shutdown()
            thread.join()


def raw(own, **options):
    return websockets.sync.client.connect(own.url, compression=None, max_size=None, **options)


# A robot written for openpi


def test_a_robot_written_for_openpi_is_given_the_models_actions():
    with endpoint() as own, asking(own) as policy:
        said = policy.get_server_metadata()
        assert Embodiment.parse(said["embodiment"], "metadata") == LINE
        assert said["model"] == "walker" and said["skills"] == ["pick apple", "open drawer"]
        assert said["keys"] == {"observation/image": "front", "observation/state": ["x"]}
        answer = policy.infer(SEEN)
        assert answer["actions"].shape == (1, 2) and answer["actions"].dtype == np.float32
        seen = Observation(SEEN["observation/image"], np.float32([0.25]))
        np.testing.assert_array_equal(answer["actions"][0], Walker().act([seen], "pick apple"))
        assert answer["server_timing"]["infer_ms"] >= 0
        assert policy.infer(SEEN | {"prompt": "open drawer"})["server_timing"]["prev_total_ms"] > 0


def test_a_q_transformers_actions_are_the_same_as_without_the_protocol():
    policy_here, body = checkpoint.load("execution"), default_robot()
    random = np.random.default_rng(0)
    with endpoint(policy_here, keys=Keys.of(body.embodiment)) as own, asking(own) as policy:
        for instruction in ("pick apple", "open top drawer"):
            image, state = random.integers(256, size=(80, 96, 3), dtype=np.uint8), random.uniform(size=8).astype("f4")
            message = {"observation/image": image, "observation/state": state, "prompt": instruction}
            expected = policy_here.act([Observation({"head": image}, state)], instruction)
            np.testing.assert_array_equal(policy.infer(message)["actions"], expected[None])


def test_a_chunked_actor_answers_a_chunk():
    with endpoint(Chunky()) as own, asking(own) as policy:
        assert policy.get_server_metadata()["action_horizon"] == 5
        assert policy.infer(SEEN)["actions"].shape == (5, 2)


def test_the_history_lives_with_the_connection_until_another_prompt_or_a_reset():
    def lengths(policy, *messages):
        return [round(100 * float(policy.infer(SEEN | more)["actions"][0, 0])) for more in messages]

    with endpoint(Remembering()) as own, asking(own) as one, asking(own) as other:
        assert lengths(one, *[{}] * 5) == [1, 2, 3, 4, 4]
        assert lengths(other, {}) == [1]
        assert lengths(
            one, {"prompt": "open drawer"}, {"prompt": "open drawer"}, {"prompt": "open drawer", "reset": True}
        ) == [1, 2, 1]


def test_a_silence_costs_the_place_and_the_history_and_the_connection_stays():
    limits = Limits(streams=1, stream_timeout=0.2)
    with endpoint(Remembering(), limits) as own, asking(own) as one, asking(own) as other:
        one.infer(SEEN)
        with pytest.raises(RuntimeError, match="already controls 1 robots"):
            other.infer(SEEN)
        time.sleep(0.4)
        assert other.infer(SEEN)["actions"][0, 0] == np.float32(0.01)
        time.sleep(0.4)
        assert one.infer(SEEN)["actions"][0, 0] == np.float32(0.01)


@pytest.mark.parametrize(
    ("without", "more", "said"),
    [
        ("observation/image", {"observation/img": 1}, "no image of camera 'front', which is 'observation/image' or "),
        ("observation/image", {"observation/img": 1}, "sent: observation/img, observation/state, prompt"),
        ("observation/state", {}, "no state, which is 'observation/state' or 'state'"),
        ("prompt", {}, "no 'prompt', which says what to do"),
        ("", {"prompt": " "}, "the prompt is empty"),
        ("", {"prompt": np.zeros(2)}, r"prompt is of shape \(2,\) and float64; it is a text"),
        ("", {"observation/state": np.zeros(7)}, "observation/state has 7 numbers, not 1; the state is x"),
        ("", {"observation/state": np.array([np.nan])}, "observation/state has a number that is not finite"),
        ("", {"observation/state": np.array([1e300])}, "observation/state has a number that is not finite"),
        (
            "",
            {"observation/image": np.zeros((224, 224, 3), np.uint8)},
            "224 x 224 pixels, and camera 'front' sees 4 x 6",
        ),
        ("", {"observation/image": np.zeros((4, 6), np.uint8)}, r"of shape \(4, 6\) and uint8; an image is"),
        ("", {"observation/image": np.zeros((4, 6, 3), np.int32)}, "int32; an image is uint8"),
        ("", {"observation/image": np.full((4, 6, 3), 9.0)}, "beyond 0 to 1; send uint8"),
    ],
)
def test_an_observation_that_lacks_something_is_refused_by_name_and_the_next_is_answered(without, more, said):
    with endpoint() as own, asking(own) as policy:
        message = {key: value for key, value in SEEN.items() if key != without} | more
        with pytest.raises(RuntimeError, match=said) as refused:
            policy.infer(message)
        assert len(str(refused.value).splitlines()) == 2  # openpi's own line, and ours
        assert policy.infer(SEEN)["actions"].shape == (1, 2)


def test_images_may_be_float_or_channels_first_or_in_maps_and_other_cameras_do_no_harm():
    image = np.random.default_rng(0).integers(256, size=(4, 6, 3), dtype=np.uint8)
    keys = Keys.of(LINE)
    for message in (
        {"observation/front": image, "observation/wrist_image": image},
        {"observation": {"image": image.transpose(2, 0, 1)}},
        {"images": {"front": image}},
        {"observation/image": (image / 255).astype(np.float32)},
    ):
        seen, prompt = keys.read({"state": [0.5], "prompt": b"pick apple"} | message)
        np.testing.assert_allclose(seen.images["front"].astype(int), image, atol=1)
        assert prompt == "pick apple" and seen.state == [0.5]


def test_a_server_with_more_skills_than_a_list_may_have_names_the_first_of_them(monkeypatch):
    many = SkillLibrary(Skill(f"pick {n}", "pick") for n in range(MAX_LIST + 1))
    monkeypatch.setitem(globals(), "LIBRARY", many)
    with endpoint() as own:
        with asking(own) as policy:
            said = policy.get_server_metadata()
            assert said["skills"][-1] == f"pick {MAX_LIST - 1}" and said["skills_total"] == MAX_LIST + 1
        assert connect(own.url.replace("ws", "openpi")).act([blank(LINE)], "pick 2000").shape == (2,)


def test_images_that_are_larger_than_a_servers_model_sees_are_sent_in_its_size():
    """As they are, two of such cameras are above what a message may have."""
    seen = replace(LINE, cameras=(Camera("front", 270, 480), Camera("side", 270, 480)))
    large = np.random.default_rng(0).integers(256, size=(1080, 1920, 3), dtype=np.uint8)

    class Looking(Walker):
        embodiment = seen

        def act(self, history, instruction):
            self.images = history[-1].images
            return super().act(history, instruction)

    with endpoint(looking := Looking()) as own:
        actor = connect(own.url.replace("ws", "openpi"))
        actor.act([Observation({"front": large, "side": large}, np.float32([0]))], "pick apple")
        np.testing.assert_array_equal(looking.images["side"], fit(large, 270, 480))  # as the model would have done


def test_an_observation_above_what_a_message_may_have_is_refused_before_it_is_sent():
    huge = replace(LINE, cameras=(Camera("front", 1080, 1920), Camera("side", 1080, 1920)))
    said = "takes 11.9 MiB, at most 8 are sent; send smaller images"
    with (
        endpoint(hosted=Hosting({"default": Model(None, Walker(), embodiment=huge)})) as own,
        pytest.raises(InvalidRequest, match=said),
    ):
        connect(own.url.replace("ws", "openpi"))


def test_a_models_refusal_is_told_and_its_failure_is_not():
    with endpoint(Flaky()) as own, asking(own) as policy:
        with pytest.raises(RuntimeError, match="nothing is seen in the dark"):
            policy.infer(SEEN)
        for prompt in ("break", "leave"):
            with pytest.raises(RuntimeError, match="the service failed; its log has the reason"):
                policy.infer(SEEN | {"prompt": prompt})


def test_a_path_names_one_of_several_models():
    hosted = {
        "default": Model(Walker(), Walker()),
        "arm": Model(None, Walker(), embodiment=ARM),
        "judge": Model(Walker()),
    }
    with endpoint(hosted=Hosting(hosted)) as own:
        with asking(own) as policy, websockets.sync.client.connect(f"{own.url}/arm") as arm:
            assert policy.get_server_metadata()["models"] == ["default", "arm", "judge"]
            assert msgpack_numpy.unpackb(arm.recv())["embodiment"]["name"] == "arm"
        for path, said in (("/night", "no model 'night'; this"), ("/judge", "hosts no actor")):
            with pytest.raises(InvalidStatus) as refused:
                websockets.sync.client.connect(own.url + path)
            assert refused.value.response.status_code == 404 and said in refused.value.response.body.decode()


def test_a_model_that_is_loaded_anew_acts_for_those_that_are_connected():
    found = [Walker(), Remembering()]
    hosted = Hosting({"default": Model(None, found[0])}, {"default": lambda: Model(None, found.pop(), embodiment=LINE)})
    with endpoint(hosted=hosted) as own, asking(own) as policy:
        assert policy.infer(SEEN)["actions"][0, 0] == np.float32(0.08)
        hosted.reload()
        assert policy.infer(SEEN)["actions"][0, 0] == np.float32(0.01)
        found.append(Chunky())
        hosted.reload()
        with pytest.raises(RuntimeError, match=r"the model has changed, .* connect again"):
            policy.infer(SEEN)


# Who may


def test_a_token_with_the_role_drive_is_asked_for_and_health_is_open():
    driver, reader = new_token(), new_token()
    tokens = Tokens(
        [Holder("arm", digest(driver), frozenset({"drive"})), Holder("eye", digest(reader), frozenset({"read"}))]
    )
    with endpoint(access=Access(tokens=tokens)) as own:
        with asking(own, api_key=driver) as policy:
            assert policy.infer(SEEN)["actions"].shape == (1, 2)
        with raw(own, additional_headers={"Authorization": f"Bearer {driver}"}) as connection:
            assert connection.recv()
        for key, code in ((None, 401), ("guessed", 401), (reader, 403)):
            with pytest.raises(InvalidStatus) as refused:
                WebsocketClientPolicy(own.url, api_key=key)
            assert refused.value.response.status_code == code
        with socket.create_connection(("127.0.0.1", own.port)) as health:
            health.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
            assert health.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_web_page_is_refused():
    with endpoint() as own, pytest.raises(InvalidStatus) as refused:
        raw(own, origin="https://somewhere.example")
    assert refused.value.response.status_code == 403


def test_other_machines_are_served_over_tls_only():
    with pytest.raises(AccessError, match="takes TLS"):
        Endpoint("0.0.0.0")


def test_an_actor_asks_over_tls_with_its_key(tmp_path, monkeypatch):
    folder, token = certificates.make(tmp_path), new_token()
    tls = ServerTLS.load(folder / "server.pem", folder / "server.key")
    with endpoint(access=Access(tls, Tokens([Holder("planner", digest(token), frozenset({"drive"}))]))) as own:
        name = own.url.replace("wss", "openpis")
        with pytest.raises(Unavailable, match="certificate that is not trusted"):
            connect(name)
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
        with pytest.raises(Unavailable, match="HTTP 401, Control needs a token with the role 'drive'"):
            connect(name)
        monkeypatch.setenv(API_KEY, token)
        assert connect(name).embodiment == LINE
        with pytest.raises(Unavailable, match="openpi://127"):
            connect(name.replace("openpis", "openpi"))


def test_a_certificate_that_is_read_again_is_shown_from_then_on(tmp_path):
    folder = certificates.make(tmp_path)
    access = ServerOptions(folder / "server.pem", folder / "server.key").load("127.0.0.1")
    trusting = ssl.create_default_context(cafile=folder / "ca.pem")

    def shown(own):
        with raw(own, ssl=trusting) as connection:
            return connection.socket.getpeercert()["subject"][0][0][1]

    with endpoint(access=access) as own:
        assert shown(own) == "server"
        for kind in ("pem", "key"):
            (folder / f"client.{kind}").replace(folder / f"server.{kind}")
        assert access.reload() and shown(own) == "client"


# Messages sent to harm

NESTED = b"\x91" * MAX_BYTES
MAPS = b"\xdc\x07\xd0" + (b"\xdc\x07\xd0" + b"\x80" * 2000) * 2000  # four million of them in four megabytes


def array(dtype="<f4", shape=(1,), data=b"1234"):
    return msgpack.packb({"a": {b"__ndarray__": True, b"dtype": dtype, b"shape": shape, b"data": data}})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (NESTED, "nested too deeply"),
        (MAPS, "more than 20000 parts"),
        (b"\xdd\x7f\xff\xff\xff", "cannot be read as msgpack: 2147483647 exceeds"),
        (b"\xc6\x7f\xff\xff\xff", "cannot be read as msgpack"),
        (b"\xc1", "cannot be read as msgpack"),
        (b"", "cannot be read as msgpack"),
        (b"\x80\x80", "cannot be read as msgpack"),
        (b"\x93\x01\x02\x03", "is no map of names"),
        (msgpack.packb({"a": msgpack.ExtType(1, b"x")}), "cannot be read as msgpack"),
        (msgpack.packb({1: 2}), "cannot be read as msgpack: int is not allowed"),
        (msgpack.packb({b"a": 2}), "a key that is no text"),
        (b"\x82\xa1a\x01\xa1a\x02", "one key twice"),
        (array("|O"), "of dtype '|O'; it holds numbers or booleans"),
        (array("|V4"), "of dtype '|V4'"),
        (array("<U1"), "of dtype '<U1'"),
        (array("f4,f4"), "of dtype 'f4,f4'"),
        (array(shape=(2**62, 2**62)), "takes 85070591730234615865843651857942052864 bytes, not 4"),
        (array(shape=(-1,)), "has the shape"),
        (array(shape=(1,) * 9), "has the shape"),
        (array(data="1234"), "bytes, not of type str"),
        (msgpack.packb({"a": {b"__npgeneric__": True, b"dtype": "|i1", b"data": 300}}), "of dtype |i1 is none"),
        ("a text", "cannot be read as msgpack"),
        (b"\x80" + b"\x00" * MAX_BYTES, None),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_message_that_would_do_harm_is_refused_at_once_and_others_are_served(data, said):
    with endpoint() as own, raw(own) as connection, asking(own) as policy:
        connection.recv()
        began = time.monotonic()
        connection.send(data)
        if said is None:
            with pytest.raises(ConnectionClosed):
                connection.recv(5)
            assert connection.close_code == 1009  # too big
        else:
            answer = connection.recv(5)
            assert said in answer and "\n" not in answer and len(answer) < 400
        assert time.monotonic() - began < 1
        assert policy.infer(SEEN)["actions"].shape == (1, 2)


def test_what_openpis_own_packer_sends_is_read_and_what_we_send_is_the_same():
    message = {
        "a": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "n": {"b": np.float32(2.5)},
        "l": [1, 2.5, None, True],
        "t": "ä",
    }
    assert pack(message) == msgpack_numpy.packb(message)
    assert str(unpack(msgpack_numpy.packb(message))) == str(msgpack_numpy.unpackb(pack(message)))
    for odd in (np.array([None]), np.array(["x"]), np.array([1j]), object()):
        with pytest.raises(ValueError, match="it cannot be sent"):
            pack({"a": odd})


def frame(opcode, data=b"", fin=True, rsv1=False, length=None):
    """One masked with zeros, as a client sends it."""
    size = len(data) if length is None else length
    return bytes([fin << 7 | rsv1 << 6 | opcode, 0x80 | 127]) + size.to_bytes(8, "big") + bytes(4) + data


@contextlib.contextmanager
def by_hand(own):
    """A socket on which a websocket has begun."""
    with socket.create_connection(("127.0.0.1", own.port), timeout=20) as sent:
        sent.sendall(
            b"GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += sent.recv(1)
        assert head.startswith(b"HTTP/1.1 101")
        yield sent


def hung_up(sent, within):
    """Does the server end the connection in time, whatever it says before?"""
    sent.settimeout(within)
    with contextlib.suppress(ConnectionResetError):
        while sent.recv(65536):
            pass
    return True


@pytest.mark.parametrize(
    "frames",
    [
        frame(2, b"x", rsv1=True),  # compressed, which nobody agreed to
        frame(2, length=2**40),
        frame(2, b"x", fin=False) + frame(0, b"x", fin=False) * 1000,
        frame(0, b"x"),
        frame(2, b"x", fin=False),  # its rest never comes
    ],
    ids=["compressed", "endless", "crumbs", "no beginning", "no end"],
)
def test_frames_that_would_do_harm_end_their_connection_and_no_others(frames, monkeypatch):
    monkeypatch.setattr("skills.openpi.endpoint.FRAGMENTS", 1.0)
    with endpoint() as own, by_hand(own) as sent, asking(own) as policy:
        sent.sendall(frames)
        assert policy.infer(SEEN)["actions"].shape == (1, 2)
        assert hung_up(sent, 3)
        assert policy.infer(SEEN)["actions"].shape == (1, 2)


@pytest.mark.slow
def test_a_frame_whose_rest_never_comes_ends_with_its_connection():
    with endpoint() as own, by_hand(own) as sent:
        sent.sendall(frame(2, bytes(1000), length=MAX_BYTES))
        assert hung_up(sent, 25)


def test_a_client_that_does_not_read_is_left(monkeypatch):
    monkeypatch.setattr("skills.openpi.endpoint.FRAGMENTS", 0.5)
    with endpoint(Long()) as own, by_hand(own) as sent:
        asked = frame(2, pack(SEEN))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while True:  # a thousand answers or so fill what lies between
                sent.sendall(asked * 100)
        with asking(own) as policy:
            assert policy.infer(SEEN)["actions"].shape == (1024, 2)


@pytest.mark.slow
def test_silent_connections_are_few_and_leave():
    with endpoint(limits=Limits(streams=2, stream_timeout=10)) as own, contextlib.ExitStack() as held:
        silent = [held.enter_context(socket.create_connection(("127.0.0.1", own.port))) for _ in range(2 * SPARE + 10)]
        wait_until(lambda: own._connected <= 2 + SPARE)
        assert all(hung_up(sent, 6) for sent in silent)
        with asking(own) as policy:
            assert policy.infer(SEEN)["actions"].shape == (1, 2)


def test_it_ends_while_robots_are_connected_and_a_model_computes():
    with endpoint() as own, asking(own) as policy, raw(own) as stuck:
        policy.infer(SEEN)
        stuck.recv()
        stuck.send(pack(SEEN | {"prompt": "close drawer"}))  # three seconds
        began = time.monotonic()
        own.stop()
        assert time.monotonic() - began < 4
        with pytest.raises(ConnectionClosed):
            policy.infer(SEEN)


# An Actor that asks others


def constant(actions):
    return lambda seen: {"actions": actions, "policy_timing": {"infer_ms": 1.0}}


def arm_folder(path, text=""):
    (path / "robot.yaml").write_text(ARM_YAML + text)
    return RobotFolder.load(path)


def test_somebodys_policy_acts_and_is_asked_as_openpis_robots_ask(tmp_path):
    body, seen = arm_folder(tmp_path), blank(ARM)
    noise = np.random.default_rng(0).integers(256, size=(300, 400, 3), dtype=np.uint8)
    seen = Observation(seen.images | {"front": noise}, np.float32([1, 2, 3]))
    with policy_server(constant(np.array([[0.5, 2.0]]))) as (name, asked):
        actor = connect(name, body.embodiment, body.openpi)
        assert not isinstance(actor, ChunkedActor) and actor.embodiment == ARM
        np.testing.assert_array_equal(actor.act([seen], "pick apple"), np.float32([0.5, 1]))  # within its bounds
    sent = asked[-1]
    assert sent["prompt"] == "pick apple" and sent["observation/state"].tolist() == [1, 2, 3]
    assert sent["observation/wrist_image"].shape == (200, 200, 3) and sent["observation/side"].shape == (60, 80, 3)
    np.testing.assert_array_equal(sent["observation/image"], image_tools.resize_with_pad(noise, 224, 224))


def test_a_policy_that_answers_chunks_is_a_chunked_actor():
    chunk = np.linspace(-2, 1, 100).reshape(50, 2)
    with policy_server(constant(chunk)) as (name, _):
        actor = connect(name, ARM)
        assert isinstance(actor, ChunkedActor) and actor.chunk == 50
        found = actor.act_chunk([blank(ARM)], "pick apple", np.zeros((3, 2), np.float32))
        np.testing.assert_array_equal(found, np.clip(chunk, [-1, 0], 1).astype(np.float32))
        np.testing.assert_array_equal(actor.act([blank(ARM)], "pick apple"), found[0])


def test_a_robots_folder_says_under_which_keys_a_policy_is_asked(tmp_path):
    droid = """
openpi:
  observation/exterior_image_1_left: front
  observation/joint_position: [q1, q2]
  observation/gripper_position: [grip]
  images.cam_left_wrist: left_wrist
"""
    body, seen = arm_folder(tmp_path, droid), Observation(blank(ARM).images, np.float32([1, 2, 3]))
    with policy_server(constant(np.zeros((8, 2)))) as (name, asked):
        connect(name, body.embodiment, body.openpi).act([seen], "pick apple")
    assert set(asked[-1]) == {"prompt", "images", *list(body.openpi)[:3]}
    assert asked[-1]["observation/joint_position"].tolist() == [1, 2] and asked[-1]["observation/gripper_position"] == [
        3
    ]
    assert asked[-1]["images"]["cam_left_wrist"].shape == (3, 200, 200)
    read, _ = (
        Keys.of(ARM, body.openpi)
        .narrowed(Embodiment(ARM.action, ARM.cameras[:2], ARM.state))
        .read(asked[-1] | {"observation/exterior_image_1_left": seen.images["front"]})
    )
    assert read.state.tolist() == [1, 2, 3]


@pytest.mark.parametrize("names", [("front", "image"), ("left_wrist", "wrist_image"), ("front", "state")])
def test_cameras_that_are_called_as_openpis_keys_are_lose_no_image(names):
    """One of two under the same key was sent twice."""
    body = replace(ARM, cameras=tuple(Camera(name, 4, 6) for name in names))
    seen = Observation({name: np.full((4, 6, 3), n, np.uint8) for n, name in enumerate(names)}, np.float32([1, 2, 3]))
    keys = Keys.of(body)
    found, _ = keys.read(keys.write(seen, "pick apple"))
    assert [found.images[name][0, 0, 0] for name in names] == [0, 1] and found.state.tolist() == [1, 2, 3]
    assert Keys.of(body, keys.describe()).describe() == keys.describe()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("openpi: [front]", "openpi: write keys and their cameras"),
        ("openpi: {observation/image: top}", "openpi: observation/image: 'top' is none of this robot's 'front', "),
        ("openpi: {a: front, b: front}", "openpi: camera 'front' has two keys, 'a' and 'b'"),
        ("openpi: {a: [q1, q2]}", "openpi: the state's 'grip' stands under 0 keys"),
        ("openpi: {a: 3}", "openpi: a: 3 is neither a camera nor numbers"),
        ("openpi: {a.b: front, a/b: side}", "openpi: camera 'front' and camera 'side' both have the key 'a/b'"),
        ("openpi: {prompt: front}", "openpi: 'prompt' is no key of an observation"),
    ],
)
def test_keys_that_are_no_such_robots_are_refused_with_the_file(tmp_path, text, said):
    with pytest.raises(EmbodimentError, match=f"robot.yaml: {said}".replace("[", r"\[")):
        arm_folder(tmp_path, text)


def test_a_policy_that_does_not_fit_the_robot_or_says_no_robot_is_refused_in_one_line():
    with policy_server(constant(np.zeros((10, 7)))) as (name, _):
        with pytest.raises(EmbodimentError, match=r"actions have 7 numbers, and this robot takes 2: dx, grip"):
            connect(name, ARM)
        with pytest.raises(EmbodimentError, match=r"does not say for which robot it acts; give the robot's folder"):
            connect(name)
    said = r"answers no `actions` of shape \(N, D\); it sent: action"
    with policy_server(lambda seen: {"action": 1}) as (name, _), pytest.raises(ServerFault, match=said):
        connect(name, ARM)
    with endpoint(Remembering()) as own, pytest.raises(EmbodimentError, match=r"looks at 4 observations, .* sends one"):
        connect(own.url.replace("ws", "openpi"))


@pytest.mark.parametrize("at", [0, 1])
def test_a_policy_that_knows_nothing_of_ends_ends_no_skill_of_a_robot_that_is_told_of_them(at):
    robot = replace(LINE, action=LINE.action[::-1] if at == 0 else LINE.action)
    with policy_server(constant(np.full((3, 1), 0.05))) as (name, _):
        actor = connect(name, robot)
        action, ended = Terms(robot, actor.embodiment).read(actor.act([blank(robot)], "pick apple"))
        assert action.tolist() == np.insert(np.float32([0.05]), at, 0).tolist() and not ended
        assert actor.act_chunk([blank(robot)], "pick apple", np.zeros((0, 2)))[:, at].tolist() == [0, 0, 0]


def test_a_policy_that_knows_nothing_of_ends_and_then_of_even_less_is_refused():
    robot = replace(ARM, action=(*ARM.action, LINE.action[-1]))
    with policy_server(lambda seen: {"actions": np.zeros((3, 1 + (seen["prompt"] == PROBE)))}) as (name, _):
        actor = connect(name, robot)
        with pytest.raises(ServerFault, match="out of bounds"):
            actor.act([blank(robot)], "pick apple")


def test_somebodys_policy_keeps_its_chunks_where_others_see_several_observations():
    """It is sent one."""
    with policy_server(constant(np.zeros((5, 2)))) as (name, _):
        embodiment = connect(name, replace(ARM, history=4)).embodiment
        assert embodiment.history == 1 and not embodiment.misfit(replace(ARM, history=4))


def test_what_a_policy_answers_wrongly_is_said_in_one_line_and_the_next_question_is_asked_anew():
    answers = {
        "break": ZeroDivisionError("on purpose"),
        "nan": np.full((5, 2), np.nan),
        "few": np.zeros((2, 2)),
        "text": "none",
        "fine": np.zeros((9, 2)),
    }

    def infer(seen):
        answer = answers.get(seen["prompt"], np.zeros((5, 2)))
        if isinstance(answer, Exception):
            raise answer
        return {"actions": answer}

    with policy_server(infer) as (name, _):
        actor = connect(name, ARM)
        said = {
            "break": "failed: ZeroDivisionError: on purpose",
            "nan": "dx is nan",
            "few": "gave 2 actions, not 5",
            "text": "answers no",
        }
        for prompt, reason in said.items():
            with pytest.raises(ServerFault, match=f"the openpi server at {name}.*{reason}") as failed:
                actor.act([blank(ARM)], prompt)
            assert "\n" not in str(failed.value)
        assert actor.act([blank(ARM)], "fine").shape == (2,)


def test_a_server_that_goes_and_comes_back_is_asked_again_and_in_between_it_is_named():
    with endpoint() as own:
        actor, port = connect(own.url.replace("ws", "openpi")), own.port
        assert actor.act([blank(LINE)], "pick apple").shape == (2,)
    with pytest.raises(Unavailable, match=f"openpi://127.0.0.1:{port} cannot be reached: nothing listens there"):
        actor.act([blank(LINE)], "pick apple")
    with serve(LIBRARY, Walker(), Walker()) as server:
        again = Endpoint(port=port)
        again.start(server.servicer)
        assert actor.act([blank(LINE)], "pick apple").shape == (2,)
        again.stop()
    with serve(LIBRARY, None, Walker(), embodiment=ARM) as server:
        other = Endpoint(port=port)
        other.start(server.servicer)
        with pytest.raises(Unavailable, match="for another robot now than when it was asked first"):
            actor.act([blank(LINE)], "pick apple")
        other.stop()


def test_a_server_that_freezes_is_named_after_the_time_for_an_answer(monkeypatch):
    monkeypatch.setattr("skills.openpi.actor.ANSWER", 0.5)
    release = threading.Event()
    with policy_server(
        lambda seen: (release.wait(10 * (seen["prompt"] == "slow")) and {}) or {"actions": np.zeros((1, 2))}
    ) as (name, _):
        actor = connect(name, ARM)
        with pytest.raises(Unavailable, match=r"did not answer within 0.5 s"):
            actor.act([blank(ARM)], "slow")
        release.set()
        assert actor.act([blank(ARM)], "pick apple").shape == (2,)


@pytest.mark.parametrize(
    "name", ["openpi://", "openpi://gpu", "openpi://gpu:port", "openpi://gpu:80 00", "openpis:///gpu:8000"]
)
def test_a_name_that_is_no_address_is_refused(name):
    with pytest.raises(InvalidRequest, match="is no openpi server; write openpi://HOST:PORT"):
        connect(name)


def test_a_server_that_says_too_much_is_not_taken_for_another_protocols():
    said = "says what it is in a form that cannot be read: the message cannot be read as msgpack: 2001 exceeds"
    metadata = {"skills": ["pick"] * (MAX_LIST + 1)}
    with policy_server(constant(np.zeros((1, 2))), metadata) as (name, _), pytest.raises(Unavailable, match=said):
        connect(name, ARM)


def test_whatever_else_listens_there_is_named():
    with serve(LIBRARY, Walker(), Walker()) as server, pytest.raises(Unavailable, match="is that the right address"):
        connect(f"openpi://{server.address}")


# As commands


def test_a_model_that_is_a_server_is_loaded_as_any_other(tmp_path):
    body = arm_folder(tmp_path)
    with policy_server(constant(np.zeros((3, 2)))) as (name, _):
        choice = models.checkpoints("skills.connective:Rules", name, body=body)
        assert choice.actor_id == name and choice.embodiment is None
        with pytest.raises(SkillError, match="only acts; one that judges is needed"):
            models.checkpoints(name, name, body=body).load()
    with pytest.raises(SkillError, match="is a server, and --calibrated takes a checkpoint"):
        models.checkpoints(name, name, True)


ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE)))}
SERVE = (sys.executable, "-m", "saycan_qt.serve")


@contextlib.contextmanager
def running(*arguments):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*SERVE, *map(str, arguments)], env=ENVIRONMENT, **pipes) as process:
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def line_folder(path):
    path.mkdir()
    (path / "robot.yaml").write_text(
        "name: line robot\ncontrol_hz: 3\nmax_seconds: 15\ncameras: {front: [4, 6]}\nstate: {x: m}\n"
        "action: {dx: {low: -0.1, high: 0.1, unit: m, kind: delta}, terminate: {kind: terminate}}\n"
    )
    (path / "skills.yaml").write_text("families: {pick: {name: pick apple}, done: {name: done, learned: false}}\n")
    return path


def test_a_robot_does_a_skill_that_an_openpi_server_acts_out_from_end_to_end(tmp_path):
    """RobotService -> skill server (a process, --execution openpi://) -> another one's endpoint (--openpi-port)."""
    folder = line_folder(tmp_path / "line")
    own = ("--affordance", "tiny_services:Walker", "--execution", "tiny_services:Walker")
    with running("--robot-folder", folder, *own, "--openpi-port", 0) as acts:
        assert "listening on" in acts.stdout.readline()
        url = acts.stdout.readline().split()[-1]
        assert url.startswith("ws://127.0.0.1:") and "ready" in acts.stdout.readline()
        name = url.replace("ws", "openpi")
        with running("--robot-folder", folder, "--execution", name) as asks:
            address = asks.stdout.readline().split()[-1]
            assert f"done by {name}" in asks.stdout.readline()
            robot, library = LineRobot(), RobotFolder.load(folder).library
            with (
                SkillClient(address) as skills,
                robot_service.serve(robot, library, skills) as service,
                RobotClient(service.address) as client,
            ):
                *_, outcome = client.execute("pick apple")
                assert outcome.succeeded
            assert robot.x >= GOAL and robot.applied == 7


def test_a_server_that_is_not_there_is_one_line_and_exit_code_2(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    folder, name = line_folder(tmp_path / "line"), f"openpi://127.0.0.1:{port}"
    done = subprocess.run(
        [*SERVE, "--robot-folder", folder, "--execution", name], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == f"error: the openpi server at {name} cannot be reached: nothing listens there\n"
