"""A robot moves only while fresh actions come and nobody has told it to stop: with faults made for real."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from proxy import Proxy
from tiny_services import UNHURRIED, LineRobot, Walker, wait_until

from skills import robot as robot_service
from skills import server as skill_service
from skills.client import Execution, RobotClient, SkillClient
from skills.errors import ServerFault, Stopped, Unavailable
from skills.latch import Latch
from skills.library import SkillLibrary
from skills.serving.grpc_server import Server
from skills.serving.motion import PERIOD, Motion, Permit
from skills.types import Outcome, Status
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire.messages import write_tensor

LIBRARY = SkillLibrary.load()
ENDLESS = "open top drawer"  # the policy never ends it
PROMISE = PERIOD + 0.05  # [s] after an action was begun, the robot is stopped unless the next one has come
HERE = Path(__file__).parent


class TimedRobot(LineRobot):
    """Writes down when it was told what; `stop` interrupts the action."""

    def __init__(self, period=0.02):
        super().__init__(period)
        self.applies, self.halts = [], []  # [s] of time.monotonic
        self._halted = threading.Event()

    def apply(self, action):
        self.applies.append(time.monotonic())
        self.applied += 1
        self.moving.set()
        self._halted.clear()
        self._halted.wait(self.period)
        self.x += float(action[0])

    def stop(self):
        self.halts.append(time.monotonic())
        self._halted.set()
        super().stop()

    def pauses(self):
        """[s] from each action's begin until the robot was next told to stop."""
        return [min(halt for halt in self.halts if halt >= begun) - begun for begun in self.applies]


class Thinker(Walker):
    """A Walker whose every action takes `seconds`."""

    def __init__(self, seconds):
        self.seconds = seconds

    def act(self, history, instruction):
        time.sleep(self.seconds)
        return super().act(history, instruction)


class Answers(skills_pb2_grpc.SkillServiceServicer):
    """A skill server that answers the first observation with these sequence numbers, and no other one."""

    def __init__(self, *sequences):
        self.sequences = sequences

    def Control(self, requests, context):
        next(requests)
        for sequence in self.sequences:
            yield pb.ControlResponse(sequence=sequence, action=write_tensor(np.zeros(2, np.float32)))
        yield from (pb.ControlResponse() for _ in requests if False)

    def GetServerInfo(self, request, context):
        return pb.GetServerInfoResponse()


@pytest.fixture
def robot():
    return TimedRobot()


@pytest.fixture
def serve(robot):
    """Serves the robot with the skill server at an address; a client of it."""
    opened = []

    def start(skill_server, **options):
        skills = SkillClient(skill_server)
        server = robot_service.serve(robot, LIBRARY, skills, **options)
        client = RobotClient(server.address)
        opened.extend((client, server, skills))
        return client

    yield start
    for each in opened:
        (each.stop if isinstance(each, Server) else each.close)()


@pytest.fixture
def walker():
    with skill_service.serve(LIBRARY, Walker(), Walker(), limits=UNHURRIED) as server:
        yield server.address


@pytest.fixture
def skill_process():
    command = [sys.executable, str(HERE / "tiny_services.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


def outcome_of(events) -> Outcome:
    *_, outcome = events
    return outcome


# ---- actions that do not come


@pytest.mark.parametrize("death", [signal.SIGSTOP, signal.SIGKILL])
def test_a_skill_server_that_freezes_or_dies_stops_the_robot_in_time(serve, robot, skill_process, machine, death):
    process, address = skill_process
    robot.period = PERIOD
    execution = serve(address).execute(ENDLESS)
    next(execution)
    machine.lateness()
    os.kill(process.pid, death)
    outcome = outcome_of(execution)
    assert outcome.status is Status.ABORTED and f"skill server at {address}" in outcome.message
    assert robot.pauses()[-1] < PROMISE + machine.lateness() and not robot.moving.is_set()


def test_a_robot_that_was_halted_between_two_actions_goes_on_with_the_next(serve, robot, walker, machine):
    robot.x = 0.4  # two actions from the goal
    with Proxy(walker) as proxy:
        execution = serve(proxy.address).execute("pick apple")
        next(execution)
        proxy.flows.clear()
        wait_until(lambda: robot.halts)
        assert robot.pauses()[0] < PROMISE + machine.lateness()
        proxy.flows.set()
        assert outcome_of(execution).succeeded and robot.applied == 2


def test_bytes_cut_in_the_middle_of_an_action_stop_the_robot(serve, robot, walker, machine):
    with Proxy(walker) as proxy:
        execution = serve(proxy.address).execute(ENDLESS)
        next(execution)
        proxy.left = 20  # a message is longer
        outcome = outcome_of(execution)
    assert outcome.status is Status.ABORTED and proxy.address in outcome.message
    assert robot.applied < 45 and robot.pauses()[-1] < PROMISE + machine.lateness()


@pytest.mark.parametrize(
    "sequences", [(2,), (0,), (1, 1), (1, 3), (1, 2)], ids=["early", "late", "repeated", "skipped", "unasked"]
)
def test_answers_out_of_order_end_the_skill(serve, robot, sequences):
    def add(server):
        skills_pb2_grpc.add_SkillServiceServicer_to_server(Answers(*sequences), server)

    robot.period = 0.1
    with Server(add, skill_service.SERVICE) as server:
        outcome = outcome_of(serve(server.address).execute(ENDLESS))
    assert outcome.status is Status.ABORTED and f"answered observation {sequences[-1]} where" in outcome.message
    assert robot.applied == len(sequences) - 1 and robot.halts


def test_a_robot_that_observes_too_late_for_its_skill_server_is_stopped_and_told_why(serve, robot):
    robot.period = 1
    limits = skill_service.Limits(stream_timeout=0.3)
    with skill_service.serve(LIBRARY, Walker(), Walker(), limits=limits) as server:
        outcome = outcome_of(serve(server.address).execute(ENDLESS))
    assert outcome.status is Status.ABORTED and "no observation came for 0.3 s" in outcome.message
    assert robot.halts and not robot.moving.is_set()


def test_a_robot_whose_skill_server_has_no_place_for_it_is_stopped_and_told_why(serve, robot):
    limits = skill_service.Limits(streams=1, stream_timeout=10)
    with (
        skill_service.serve(LIBRARY, Walker(), Walker(), limits=limits) as server,
        SkillClient(server.address) as other,
        other.control(ENDLESS) as control,
    ):
        control.act(robot.observe())
        outcome = outcome_of(serve(server.address).execute(ENDLESS))
    assert outcome.status is Status.ABORTED and "already controls 1 robots" in outcome.message
    assert robot.halts and not robot.applied


def test_a_robot_server_that_was_frozen_applies_no_old_action():
    code = """if True:
        from tiny_services import *
        from skills import robot
        from skills.client import SkillClient
        line_robot = LineRobot(0.05)
        server = robot.serve(line_robot, SkillLibrary.load(), SkillClient(sys.argv[1]), control_timeout=1.2)
        print(server.address, flush=True)
        sys.stdin.read()
        print(line_robot.applied)
    """
    with skill_service.serve(LIBRARY, Walker(), Thinker(0.5), limits=UNHURRIED) as server:
        command = [sys.executable, "-c", code, server.address]
        with subprocess.Popen(command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            with RobotClient(process.stdout.readline().strip()) as client:
                execution = client.execute(ENDLESS)
                steps = next(execution).step
                time.sleep(0.1)  # the next observation is on its way
                process.send_signal(signal.SIGSTOP)
                time.sleep(1.5)  # its action comes meanwhile, and grows old; a link is dead after 2 s
                process.send_signal(signal.SIGCONT)
                outcome = outcome_of(execution)
            applied, _ = process.communicate()
    assert outcome.status in (Status.ABORTED, Status.CANCELED)  # too old an action, or the guard noticed first
    assert steps == outcome.steps == int(applied) == 1


# ---- drivers that fail


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError])
def test_a_driver_that_exits_leaves_the_robot_stopped_and_free(serve, robot, walker, error):
    """Neither is an Exception; vendors' code raises the first, a coroutine that `stop` cancels the second."""

    def perform(skill, canceled):
        robot.moving.set()
        raise error("gripper lost")

    driven, robot.perform = robot.perform, perform
    client = serve(walker)
    with pytest.raises(ServerFault, match="driver failed in 'go to table'"):
        outcome_of(client.execute("go to table", timeout=10))
    assert robot.halts and not robot.moving.is_set() and not client.info().executing
    robot.perform = driven
    assert outcome_of(client.execute("find apple")).succeeded


def test_a_driver_that_exits_when_it_is_asked_leaves_nobody_without_an_answer(serve, robot, walker):
    client = serve(walker)
    robot.satisfied = robot.observe = lambda *_: sys.exit("camera lost")
    for ask in (client.observe, lambda: client.satisfied("walk")):
        with pytest.raises(ServerFault, match="its log has the reason"):
            ask()
    del robot.satisfied, robot.observe
    assert client.observe() and client.satisfied("walk") is False


class Due(Permit):
    due = 0.0

    def expect(self, due):
        self.due = due


def unreliable(robot, fails, error=OSError, note=lambda: None):
    """So many of its next calls of `stop` raise; what was noted at each call."""
    notes, stop = [], robot.stop

    def unreliable_stop():
        notes.append(note())
        if len(notes) <= fails:
            raise error("no answer")
        stop()

    robot.stop = unreliable_stop
    return notes


@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_a_late_robot_that_was_not_stopped_is_told_again_and_stays_due_for_its_guard(robot, caplog, error):
    permit = Due()
    dues = unreliable(robot, 3, error, lambda: permit.due)
    motion = Motion(robot, permit, period=0.05)
    motion.apply(np.zeros(2, np.float32))
    wait_until(lambda: robot.halts)
    assert len(dues) == 4 and 0 not in dues and dues[1] == dues[3] and not robot.moving.is_set()
    wait_until(lambda: permit.due == 0)
    assert motion.apply(np.zeros(2, np.float32)) and motion.end()
    assert caplog.text.count("could not be stopped") == 1


def test_a_halt_that_fails_between_two_actions_is_repeated(robot):
    motion = Motion(robot, period=60)
    motion.apply(np.zeros(2, np.float32))
    unreliable(robot, 3)
    with pytest.raises(ServerFault, match="failed to stop"):
        motion.halt()
    wait_until(lambda: robot.halts)
    assert not robot.moving.is_set() and motion.end()


@pytest.mark.parametrize("seconds", [0, 0.15])
def test_a_skill_whose_last_stop_fails_is_stopped_by_the_next(serve, robot, walker, seconds):
    unreliable(robot, 1, note=lambda: time.sleep(seconds))
    assert outcome_of(serve(walker).execute("find apple")).succeeded
    assert robot.halts and not robot.moving.is_set()


def test_a_robot_that_cannot_be_stopped_at_a_skills_end_has_not_succeeded_and_its_guard_is_asked(
    serve, robot, walker, tmp_path, monkeypatch
):
    (tmp_path / "my_halt.py").write_text(f"def halt():\n    open({str(tmp_path / 'halted')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    client, stop = serve(walker, stop_command="my_halt:halt"), robot.stop
    unreliable(robot, 10**6)
    execution = client.execute("find apple")
    with pytest.raises(ServerFault, match="failed to stop it"):
        outcome_of(execution)
    assert client.result(execution.goal_id).status is Status.ABORTED
    assert (tmp_path / "halted").exists()  # before anything else can begin
    robot.stop = stop
    with pytest.raises(Stopped, match="reset"):
        outcome_of(client.execute("find apple"))
    client.reset()
    assert outcome_of(client.execute("find apple")).succeeded


def test_who_waits_for_a_turn_gets_none_on_a_robot_that_cannot_be_stopped(serve, robot, walker):
    client, stop, go_on = serve(walker), robot.stop, threading.Event()
    robot.finish = lambda skill, canceled: go_on.wait(20)
    with ThreadPoolExecutor() as aside:
        first = client.execute("pick apple")
        assert robot.moving.wait(20)
        second = aside.submit(outcome_of, client.execute("find apple", when_busy="queue"))
        wait_until(lambda: client.info().queued)
        unreliable(robot, 10**6)
        go_on.set()
        with pytest.raises(ServerFault, match="failed to stop it"):
            outcome_of(first)
        assert second.result(20).status is Status.CANCELED and client.info().stopped
    robot.stop = stop


def test_a_halt_that_fails_while_the_driver_moves_is_the_guards_too(robot):
    permit, let_go = Due(), threading.Event()
    stop, motion = robot.stop, Motion(robot, permit)
    unreliable(robot, 10**6)
    moving = threading.Thread(target=motion.run, args=(let_go.wait, 20))
    moving.start()
    wait_until(lambda: motion._moving)
    with pytest.raises(ServerFault):
        motion.halt()
    assert permit.due
    robot.stop = stop
    wait_until(lambda: not permit.due)
    let_go.set()
    moving.join()
    assert motion.end()


def test_no_action_is_applied_that_grew_too_old_while_a_slow_stop_was_waited_for(robot):
    motion = Motion(robot, period=0.05)
    assert motion.apply(np.zeros(2, np.float32), time.monotonic() + 20)
    assert motion.apply(np.zeros(2, np.float32), time.monotonic()) is None and robot.applied == 1
    assert motion.end()


# ---- being told to end


def test_cancels_are_acknowledged_within_100_ms_and_no_action_follows(serve, robot, machine):
    """Whatever happens at that moment: the goal is on its way, the model computes, the robot moves."""
    generator, delays = random.Random(0), []
    with skill_service.serve(LIBRARY, Walker(), Thinker(0.03), limits=UNHURRIED) as server:
        client = serve(server.address)
        machine.lateness()
        for number in range(100):
            before, execution = robot.applied, client.execute(ENDLESS)
            if number % 4 == 3:  # it moves already, however slow this machine is
                wait_until(lambda before=before: robot.applied > before)
            time.sleep(generator.uniform(0, 0.04))
            asked = time.monotonic()
            assert execution.cancel(), outcome_of(execution)
            acknowledged = time.monotonic()
            delays.append(acknowledged - asked)
            assert outcome_of(execution).status is Status.CANCELED
            assert not robot.applies or robot.applies[-1] < acknowledged
    assert sorted(delays)[98] < 0.1 + machine.lateness()


def test_cancelling_works_while_the_model_is_stuck(serve, robot, walker, machine):
    execution = serve(walker).execute("close top drawer")  # for 3 s
    time.sleep(0.1)
    machine.lateness()
    asked = time.monotonic()
    assert execution.cancel() and time.monotonic() - asked < 0.1 + machine.lateness()
    assert outcome_of(execution).status is Status.CANCELED and not robot.applied and not execution.cancel()


def test_an_action_that_overtakes_the_halt_is_halted_too(robot):
    """The driver was about to move when it was told to stop, and then forgets that it was."""
    about_to_move, told = threading.Event(), threading.Event()

    def apply(action):
        about_to_move.set()
        told.wait(30)
        TimedRobot.apply(robot, action)  # for a minute, unless it is told again

    robot.period, robot.apply = 60, apply
    motion = Motion(robot)
    thread = threading.Thread(target=motion.apply, args=(np.zeros(2, np.float32),))
    thread.start()
    assert about_to_move.wait(20)
    motion.halt()
    told.set()
    thread.join(20)
    assert not thread.is_alive() and not motion.apply(np.zeros(2, np.float32))
    motion.end()


def test_stop_and_cancel_work_within_100_ms_when_every_thread_waits_for_the_driver(serve, robot, walker, machine):
    hang = threading.Event()
    robot.perform = lambda skill, canceled: hang.wait(30)
    client = serve(walker)
    execution = client.execute("go to table")
    waiting = [client._stub.Observe.future(pb.ObserveRequest(), timeout=10) for _ in range(40)]
    time.sleep(0.2)
    machine.lateness()
    for call in (client.stop, execution.cancel):
        asked = time.monotonic()
        call()
        assert time.monotonic() - asked < 0.1 + machine.lateness() and robot.halts
    hang.set()
    assert outcome_of(execution).status is Status.CANCELED
    assert all(each.result().observation.place for each in waiting)


def test_stop_outlives_the_server_that_has_a_file_for_it(serve, robot, walker, tmp_path):
    latches = []

    def start():
        for latch in latches:
            latch.close()  # as the end of a process does
        latches.append(Latch(tmp_path / "stopped"))
        return serve(walker, latch=latches[-1])

    start().stop()
    again = start()
    with pytest.raises(Unavailable, match="stopped is that of another robot, which runs; give each its own"):
        Latch(tmp_path / "stopped")
    assert again.info().stopped
    with pytest.raises(Stopped, match="reset"):
        outcome_of(again.execute("pick apple"))
    again.reset()
    assert outcome_of(start().execute("pick apple")).succeeded
    with pytest.raises(Unavailable, match="No such file"):
        Latch(tmp_path / "nowhere" / "stopped")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Unavailable, match="no file"):
        Latch(tmp_path / "folder")


def test_a_latch_that_is_given_to_the_next_server_tells_of_the_stop_before(robot, tmp_path):
    latch = Latch(tmp_path / "stopped")
    with robot_service.serve(robot, LIBRARY, latch=latch) as server, RobotClient(server.address) as client:
        client.stop()
    with robot_service.serve(robot, LIBRARY, latch=latch) as server, RobotClient(server.address) as client:
        with pytest.raises(Stopped):
            outcome_of(client.execute("find apple"))
        with pytest.raises(Unavailable, match="of another robot"):
            Latch(latch.file)
        client.reset()
    with Latch(latch.file)._lock, pytest.raises(Unavailable, match="of another robot"):
        robot_service.serve(robot, LIBRARY, latch=latch)
    with robot_service.serve(robot, LIBRARY, latch=latch) as server, RobotClient(server.address) as client:
        assert outcome_of(client.execute("find apple")).succeeded


def test_stop_outlives_a_robots_server_that_is_killed(tmp_path):
    @contextmanager
    def started():
        command = [sys.executable, str(HERE / "small_services.py"), "robot", "--latch", str(tmp_path / "stopped")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                with RobotClient(process.stdout.readline().split()[-1]) as client:
                    yield client
            finally:
                process.kill()

    with started() as client:
        client.stop()
    for _ in range(2):  # being started anew is no release, however often
        with started() as client:
            assert client.info().stopped
            with pytest.raises(Stopped, match="reset"):
                outcome_of(client.execute("find apple"))
    with started() as client:
        client.reset()
    with started() as client:
        assert not client.info().stopped and outcome_of(client.execute("find apple")).succeeded


# ---- clients that go


@pytest.mark.parametrize("death", [signal.SIGSTOP, signal.SIGKILL])
def test_a_client_that_freezes_or_is_killed_in_a_skill_leaves_the_robot_stopped_and_free(serve, robot, walker, death):
    robot.period = PERIOD  # the skill takes 15 s
    client = serve(walker)
    code = f"from skills.client import RobotClient; list(RobotClient({client.address!r}).execute({ENDLESS!r}))"
    with subprocess.Popen([sys.executable, "-c", code], cwd=HERE.parent) as process:
        try:
            assert robot.moving.wait(20)
            process.send_signal(death)
            wait_until(lambda: not client.info().executing, 5)
        finally:
            process.kill()
    assert not robot.moving.is_set() and robot.applied < 45
    robot.period = 0.02
    assert outcome_of(client.execute("pick apple")).succeeded


def test_a_client_whose_connection_is_cut_leaves_the_robot_stopped_and_free(serve, robot, walker):
    client = serve(walker)
    with Proxy(client.address) as proxy, RobotClient(proxy.address) as far:
        execution = far.execute(ENDLESS)
        next(execution)
        proxy.left = 20
        with pytest.raises(Unavailable):
            outcome_of(execution)
        wait_until(lambda: client.result(execution.goal_id))
    assert client.result(execution.goal_id).status is Status.CANCELED
    assert not robot.moving.is_set() and robot.applied < 45
    again = client.execute("pick apple")
    wait_until(lambda: client.info().executing == again.goal_id)
    assert client.result(again.goal_id) is None and outcome_of(again) == client.result(again.goal_id)


def test_an_execution_that_is_forgotten_stops_the_robot(serve, robot, walker):
    client = serve(walker)
    for leave in (Execution.close, lambda execution: None):
        leave(client.execute(ENDLESS))
        wait_until(lambda: not client.info().executing)
        assert not robot.moving.is_set()
