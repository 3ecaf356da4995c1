"""A server may be silent for as long as it likes; one that died or froze is noticed within seconds."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from signal import SIGSTOP
from types import SimpleNamespace

import grpc
import pytest
from proxy import Proxy
from stock_server import serve_stock
from tiny_services import LineRobot, Walker

from saycan_qt.journey.stack import ROBOT_SERVICE
from saycan_qt.services.processes import RemoteService
from skills import robot as robot_service
from skills import server as skill_service
from skills.client import RobotClient, SkillClient
from skills.errors import DeadlineExceeded, Unavailable
from skills.library import SkillLibrary
from skills.security.channel import Credentials
from skills.types import Status
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire import link
from skills.wire.conventions import PING_EVERY, PING_INTERVAL

LIBRARY = SkillLibrary.load()
HERE = Path(__file__).parent
NOTICED = link.SILENCE + link.PATIENCE + 2 * link.LOOK  # [s] from the last word
LAXLY = NOTICED + 2  # on a busy machine
ROBOTS = {
    "ours": "import sys, tiny_services as t; from skills import robot, library\n"
    "with robot.serve(t.LineRobot(), library.SkillLibrary.load()) as s: print(s.address, flush=True); sys.stdin.read()",
    "stock": "import runpy; runpy.run_module('stock_server', run_name='__main__')",
}


@pytest.fixture
def robot_process(request):
    """A robot's service in a process of its own, and its address."""
    command = [sys.executable, "-c", ROBOTS[request.param]]
    with subprocess.Popen(command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


@pytest.fixture
def robot():
    with robot_service.serve(LineRobot(), LIBRARY) as server:
        yield server.address


def breaks(execution):
    """[s] until it breaks."""
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"the robot at \S+ has stopped responding$"):
        list(execution)
    return time.monotonic() - started


@pytest.mark.slow
def test_a_stock_server_may_be_silent_for_longer_than_it_bears_pings():
    """A client that pinged each second was told to go away after three: GOAWAY, too_many_pings."""
    with serve_stock(seconds=4.5) as address, RobotClient(address) as client:
        assert [each.status for each in client.execute("go to table")] == [Status.SUCCEEDED]
        assert client.info().name == "theirs"


@pytest.mark.parametrize("robot_process", ["ours", pytest.param("stock", marks=pytest.mark.slow)], indirect=True)
def test_a_robot_that_freezes_in_silence_is_noticed(robot_process):
    process, address = robot_process
    with RobotClient(address) as client:
        client.info()
        with client.execute("go to table") as execution:
            time.sleep(0.5)
            process.send_signal(SIGSTOP)
            assert breaks(execution) < LAXLY


def test_a_link_that_swallows_all_is_noticed_by_every_call_on_it_and_comes_back(robot):
    """Nothing is reset: the bytes just never arrive, as behind a router that was switched off."""
    died = threading.Event()
    with Proxy(robot) as proxy, RobotClient(proxy.address) as client:
        watched = RemoteService("robot", proxy.address, ROBOT_SERVICE, lambda _: died.set(), Credentials())
        watched.wait_until_ready(5)
        client.info()
        with client.execute("go to table") as execution:
            time.sleep(0.2)
            proxy.flows.clear()
            asked = time.monotonic()
            with pytest.raises(Unavailable, match="has stopped responding"):
                client.observe()
            assert time.monotonic() - asked < LAXLY
            assert breaks(execution) < 1  # at once, too
            assert died.wait(2)
        proxy.flows.set()
        assert client.info().name == LineRobot.name
        watched.close()


@pytest.mark.parametrize("timeout", [0.5, 2.0])
def test_a_link_that_swallows_all_is_noticed_though_no_call_waits_for_so_long(robot, timeout):
    with Proxy(robot) as proxy, RobotClient(proxy.address, timeout) as client:
        client.info()
        proxy.flows.clear()
        cut = time.monotonic()
        with pytest.raises(Unavailable, match="has stopped responding"):
            while time.monotonic() - cut < LAXLY:
                with suppress(DeadlineExceeded):
                    client.observe()
        proxy.flows.set()
        assert client.info().name == LineRobot.name


def test_a_link_that_came_back_while_nobody_called_cuts_no_call(robot):
    with Proxy(robot) as proxy, RobotClient(proxy.address, link.SILENCE + link.PATIENCE / 2) as client:
        client.info()
        proxy.flows.clear()
        with pytest.raises(DeadlineExceeded):
            client.observe()
        time.sleep(link.PATIENCE)
        proxy.flows.set()
        with client.execute("go to table") as execution:
            assert execution.ahead() == 0
            time.sleep(2 * link.LOOK)
            assert client.info().executing


def test_calls_that_give_up_do_not_keep_a_stream_from_breaking(robot):
    with Proxy(robot) as proxy, RobotClient(proxy.address, 0.8) as client:
        client.info()
        with client.execute("go to table") as execution, ThreadPoolExecutor() as aside:
            time.sleep(0.2)
            proxy.flows.clear()
            broken = aside.submit(breaks, execution)
            cut = time.monotonic()
            while not broken.done() and time.monotonic() - cut < LAXLY:
                with suppress(DeadlineExceeded, Unavailable):
                    client.observe()
            proxy.flows.set()
            execution.cancel()
            assert broken.result(20) < LAXLY


@pytest.mark.slow
def test_a_first_call_may_wait_for_a_connection_that_takes_its_time():
    with serve_stock(seconds=0) as robot, Proxy(robot) as proxy, RobotClient(proxy.address) as client:
        proxy.flows.clear()
        threading.Timer(NOTICED + 0.5, proxy.flows.set).start()
        assert client.info().name == "theirs"


@pytest.mark.slow
def test_the_watch_asks_about_once_a_second_in_silence_and_never_where_messages_come(robot, monkeypatch):
    asked = []
    monkeypatch.setattr(
        link, "NOBODYS", type("Counted", (str,), {"__format__": lambda *_: asked.append(1) or "Alive"})()
    )
    with RobotClient(robot) as client:
        client.info()
        with client.execute("go to table"):
            time.sleep(3.2)
    assert 2 <= len(asked) <= 3
    asked.clear()
    limits = skill_service.Limits(stream_timeout=10)
    with (
        skill_service.serve(LIBRARY, Walker(), Walker(), limits=limits) as server,
        SkillClient(server.address) as skills,
        skills.control("open top drawer") as control,
    ):
        for _ in range(8):
            control.act(LineRobot().observe())
            time.sleep(0.3)
    assert not asked


def test_all_clients_of_a_process_are_watched_by_one_thread(robot):
    def theirs():
        names = [thread.name for thread in threading.enumerate()]
        return sorted(name for name in names if not name.startswith("skills.v1."))  # the server's

    clients = [RobotClient(robot) for _ in range(5)]
    for client in clients:
        client.info()
    before = theirs()
    for client in 10 * clients:
        client.info()
    assert theirs() == before and before.count("links") == 1
    for client in clients:
        client.close()


def test_without_a_thread_to_watch_calls_are_made_all_the_same(robot, monkeypatch):
    def scarce(**_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(link, "_watch", link._Watch())
    monkeypatch.setattr(link, "threading", SimpleNamespace(Thread=scarce))
    with RobotClient(robot) as client:
        client.info()
        client.stop()


@pytest.mark.parametrize(
    "pings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"grpc.keepalive_time_ms": PING_INTERVAL, "grpc.http2.max_pings_without_data": 0},
    ],
)
def test_our_services_bear_pings_of_stock_clients_as_they_say(robot, pings):
    """Every client answers their own pings, each second; those of clients they take as often as they say."""
    request = pb.ExecuteSkillRequest(goal_id="1", skill="go to table")
    with grpc.insecure_channel(robot, options=list(pings.items())) as channel:
        stub = skills_pb2_grpc.RobotServiceStub(channel)
        assert stub.GetRobotInfo(pb.GetRobotInfoRequest()).ping_interval_ms == PING_INTERVAL
        events = stub.ExecuteSkill(request)
        next(events)
        time.sleep(3.5 * PING_EVERY / 1000)
        assert events.is_active() and not stub.GetGoal(pb.GetGoalRequest(goal_id="1")).HasField("result")
        events.cancel()
    with skill_service.serve(LIBRARY) as server, grpc.insecure_channel(server.address) as channel:
        info = skills_pb2_grpc.SkillServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest())
        assert info.ping_interval_ms == PING_INTERVAL


def test_a_method_that_nobody_has_is_answered_while_all_threads_are_taken(robot):
    """As `Link` asks; the server's threads are not needed for that."""
    with grpc.insecure_channel(robot) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{ROBOT_SERVICE}/{link.NOBODYS}")(b"", timeout=2)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
