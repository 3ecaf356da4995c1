"""Stop gets through: each attack in earnest, with HTTP/2 frames that no honest client sends.

A Stop takes less than 100 ms by `benchmarks/serving.py --attack`. Machines that run tests are slow and shared, and here
the attacker shares the interpreter, too: so the median of several is held to 300 ms, and none is lost."""

import contextlib
import gzip
import logging
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attack
import grpc
import numpy as np
import pytest
from attack import HEALTH, ROBOT, SKILL, Targets, call_with, rapid_reset, resident, watches_opened_and_closed
from frames import Frames, message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tiny_services import UNHURRIED, LineRobot, Walker, wait_until

from skills.client import RobotClient, SkillClient
from skills.errors import InvalidRequest, Unavailable
from skills.library import SkillLibrary
from skills.robot import serve as serve_robot
from skills.security.access import Access, Holder, Tokens, digest
from skills.server import serve as serve_skills
from skills.serving.arrivals import Threads
from skills.serving.grpc_server import WATCHES
from skills.types import Observation

HERE = Path(__file__).parent
LIBRARY = SkillLibrary.load()
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def robot():
    with serve_robot(LineRobot(), LIBRARY) as server:
        yield server


@pytest.fixture
def skill_server():
    with serve_skills(LIBRARY, Walker(), Walker(), limits=UNHURRIED) as server:
        yield server


def stops(address, count=7):
    """[s] that each took, over a connection of its own; raises where one is lost."""
    took = []
    for _ in range(count):
        with RobotClient(address, timeout=5) as client:
            started = time.monotonic()
            client.stop()
            took.append(time.monotonic() - started)
    return took


def hold(address):
    """`benchmarks/serving.py --attack` has an interpreter of its own, and 100 ms."""
    assert np.median(stops(address)) < 0.3


def health(address, *metadata):
    with grpc.insecure_channel(address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status


@contextlib.contextmanager
def meanwhile(mount, server, seconds=2.0):
    """An attack in a thread, once it is under way."""
    end = time.monotonic() + seconds
    thread = threading.Thread(target=mount, args=(Targets(server.address, "", server.address), end))
    thread.start()
    time.sleep(0.3)
    yield
    thread.join()


def test_whoever_watches_health_and_takes_nothing_silences_nobody(robot):
    for _ in range(5):
        with Frames(robot.address) as one, Frames(robot.address, window=0) as other:
            for frames in (one, other):
                call_with(frames, HEALTH + "Watch")
            time.sleep(0.05)
            robot.set_ready()
    hold(robot.address)
    assert health(robot.address) == SERVING


def test_an_attack_that_breaks_is_not_held(robot, monkeypatch):
    """The guard has no address here, which the attack on it needs."""
    monkeypatch.setattr(attack, "LATE", 60.0)
    monkeypatch.setattr(attack, "ROADS", (attack.BOTH,))
    for name, broke in (("nothing", ""), ("connections to the guard", "the attack ended with exit code 1")):
        row = attack.measure(name, Targets(robot.address, "", ""), os.getpid(), 1.0)
        assert (row["broke"], row["held"]) == (broke, not broke) and row["answered"]


def test_the_size_of_a_dead_process_is_a_number():
    with subprocess.Popen(["true"]) as dead:
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
        assert resident(dead.pid) == np.inf
    assert resident(dead.pid) == np.inf > resident(os.getpid())


def test_480_watches_that_come_and_go_silence_nobody_and_leave_their_places(robot):
    with meanwhile(watches_opened_and_closed, robot):
        hold(robot.address)
    with grpc.insecure_channel(robot.address) as channel:
        wait_until(lambda: first_status(channel) == SERVING)


def first_status(channel, *metadata):
    try:
        return next(
            health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
        ).status
    except grpc.RpcError as error:
        return error.code()


def test_a_watch_tells_each_change_and_ends_with_the_server():
    server = serve_skills(LIBRARY, Walker(), Walker(), ready=False)
    with server, grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        assert next(watch).status == NOT_SERVING
        server.set_ready()
        assert next(watch).status == SERVING
        threading.Thread(target=server.stop).start()
        assert next(watch).status == NOT_SERVING
        with pytest.raises(grpc.RpcError):
            next(watch)


def test_strangers_who_watch_leave_places_for_those_with_a_token():
    tokens = Tokens([Holder("laptop", digest("secret"), frozenset({"read"}))])
    server = serve_robot(LineRobot(), LIBRARY, access=Access(tokens=tokens))
    with server, grpc.insecure_channel(server.address) as channel:
        stub, request = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest()
        watches = [stub.Watch(request) for _ in range(WATCHES)]
        assert [next(watch).status for watch in watches] == [SERVING] * WATCHES
        assert first_status(channel) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert first_status(channel, ("authorization", "Bearer wrong")) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert first_status(channel, ("authorization", "Bearer secret")) == SERVING
        watches[0].cancel()
        wait_until(lambda: first_status(channel) == SERVING)


def test_a_robot_halts_before_anybody_is_told_that_its_service_ends():
    said = []

    class Listening(LineRobot):
        def stop(self):
            said.append(health(server.address))

    with serve_robot(Listening(), LIBRARY) as server:
        server.stop()
    assert said[0] == SERVING


@pytest.mark.parametrize("path", [HEALTH + "Check", ROBOT + "Observe", SKILL + "ScoreSkills"])
def test_what_is_compressed_is_refused_unread(path, robot, skill_server):
    bomb, address = gzip.compress(bytes(64 * 2**20)), (skill_server if path.startswith(SKILL) else robot).address
    before = resident("self")
    with Frames(address) as frames:
        calls = [call_with(frames, path, bomb, ("grpc-encoding", "gzip"), compressed=True) for _ in range(20)]
        assert all(frames.ended(call, 5) for call in calls)
    hold(robot.address)
    assert resident("self") - before < 40  # [MB]; of 1,300


@pytest.mark.parametrize("taken", [False, True])
def test_a_skill_server_takes_what_is_compressed_where_it_is_told_to(taken):
    server, gzipped = serve_skills(LIBRARY, Walker(), Walker(), compression=taken), grpc.Compression.Gzip
    with server, grpc.insecure_channel(server.address, compression=gzipped) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        known = check.future(health_pb2.HealthCheckRequest(service=" " * 999), timeout=5).code()
    assert known is (grpc.StatusCode.NOT_FOUND if taken else grpc.StatusCode.UNIMPLEMENTED)


def test_a_robot_takes_64_kib_and_says_so(robot):
    with RobotClient(robot.address) as client, pytest.raises(InvalidRequest, match="larger than 64 KiB"):
        client.satisfied("x" * 70_000)
    hold(robot.address)


def test_calls_whose_message_never_comes_hold_no_stop_up(robot):
    with Frames(robot.address) as frames, Frames(robot.address) as more:
        calls = [one.call(ROBOT + method) for one in (frames, more) for method in ["Stop", "CancelSkill"] * 30]
        hold(robot.address)
        wait_until(lambda: all(frames.ended(call) for call in calls[:60]), 5)


def half_open(targets, end):
    while time.monotonic() < end:
        with Frames(targets.robot) as frames:
            for _ in range(60):
                frames.call(ROBOT + "Stop")
                time.sleep(0.002)


def test_a_stream_of_half_open_stops_holds_no_whole_one_up(robot):
    with meanwhile(half_open, robot):
        hold(robot.address)


def test_half_open_calls_hold_no_other_call_up(robot):
    with Frames(robot.address) as frames, RobotClient(robot.address, timeout=5) as client:
        for method in ("GetRobotInfo", "ExecuteSkill", "Observe") * 20:
            frames.call(ROBOT + method)
        started = time.monotonic()
        client.info()
        assert time.monotonic() - started < 0.9  # before the half-open ones are late


def test_a_request_that_comes_in_pieces_is_answered(robot):
    with Frames(robot.address) as frames:
        call = frames.call(ROBOT + "GetRobotInfo")
        time.sleep(0.3)
        frames.message(call, message(b"")[:3])
        time.sleep(0.3)
        frames.message(call, message(b"")[3:], end=True)
        assert frames.ended(call, 5) and frames.received(call) > 20


def test_a_request_that_never_comes_is_told_in_the_log_with_its_peer(robot, caplog):
    caplog.set_level(logging.INFO, "skills.calls")
    with Frames(robot.address) as frames:
        assert frames.ended(frames.call(ROBOT + "Stop"), 5)
    wait_until(lambda: caplog.records)
    assert (caplog.records[-1].code, caplog.records[-1].peer[:15]) == ("DEADLINE_EXCEEDED", "ipv4:127.0.0.1:")


@pytest.mark.slow
def test_unfinished_bodies_are_not_read_but_one_at_a_time(skill_server):
    half, before = message(bytes(20 * 2**20), size=60 * 2**20), resident("self")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Frames(skill_server.address)) for _ in range(6)]
        poured = [0] * len(connections)

        def pour(at):
            call = connections[at].call(SKILL + "ScoreSkills")
            poured[at] = connections[at].pour(call, half, 0.7)

        threads = [threading.Thread(target=pour, args=(at,)) for at in range(len(connections))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(poured)[-2] <= 2**17 < sorted(poured)[-1]  # [bytes]; one of them is read
        assert resident("self") - before < 100  # [MB], of which 20 are the test's own
    with SkillClient(skill_server.address, timeout=20) as client:
        seen = Observation({"front": np.zeros((4, 6, 3), np.uint8)}, np.zeros(1, np.float32))
        assert client.score([seen], ["pick apple"])


def test_calls_that_are_taken_back_at_once_hold_no_stop_up(robot):
    with meanwhile(rapid_reset, robot):
        hold(robot.address)


@pytest.mark.slow
def test_silent_connections_are_dropped_and_descriptors_left():
    """In a process of its own with 1,024 descriptors, which it may not raise."""
    server = subprocess.Popen(
        [sys.executable, HERE / "guarded_robot.py", "/dev/null"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024)),
    )
    try:
        address = server.stdout.readline().split()[0]
        host, _, port = address.rpartition(":")
        connections = []
        for _ in range(1100):
            with contextlib.suppress(OSError):
                connections.append(socket.create_connection((host, int(port)), timeout=1))
        time.sleep(4)
        hold(address)
        for connection in connections:
            connection.close()
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()


@pytest.fixture
def starved():
    """A robot's service in a process that gets no more threads, since its address space is used up, until it is fed."""
    with subprocess.Popen(
        [sys.executable, HERE / "starved_robot.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        address = process.stdout.readline().strip()

        def tell(what):
            process.stdin.write(f"{what}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        hold(address)
        assert tell("starve") == "can't start new thread"
        yield address, tell
        process.stdin.close()


def test_a_robot_that_gets_no_more_threads_is_stopped_and_begins_nothing(starved):
    address, tell = starved
    with ThreadPoolExecutor(12) as threads:  # more than it has used so far
        assert len(list(threads.map(lambda _: stops(address, 2), range(12)))) == 12
    hold(address)
    with RobotClient(address, timeout=5) as client:
        client.reset()
        with pytest.raises(Unavailable, match="no thread left for a goal"):
            list(client.execute("go to table"))
        hold(address)
        client.reset()
        tell("feed")
        with client.execute("go to table"):
            wait_until(lambda: client.info().executing)
            hold(address)


def test_a_machine_with_too_few_threads_is_told_at_the_start_and_the_process_ends():
    code = """if True:
        import threading
        from skills.errors import Unavailable
        from skills.serving.arrivals import Threads
        start, left = threading.Thread.start, iter(range(9))
        def starving(thread):
            if next(left, None) is None:
                raise RuntimeError("can't start new thread")
            start(thread)
        threading.Thread.start = starving
        Threads(3, "enough")
        try:
            Threads(8, "urgent")
        except Unavailable as error:
            print(error)
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=HERE.parent)
    assert ended.stdout.startswith("this machine gives no 9 threads for urgent; ") and not ended.returncode


def test_threads_are_all_started_at_once_and_submitting_to_them_never_raises():
    threads = Threads(5, "few")
    started = {thread.ident for thread in threading.enumerate()}
    done = [threads.submit(threading.get_ident) for _ in range(20)]
    assert {future.result(5) for future in done} <= started
    threads.shutdown()
    assert threads.submit(threading.get_ident).cancelled()
