"""At the rates robots run at: a chunk is carried out while the next is computed, and nothing is that is out of date."""

import queue
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from lossy import Lossy, Weather
from rates import Witness, body, drive, marked
from tiny_services import UNHURRIED, wait_until

from saycan_qt.data.recorder import EpisodeRecorder
from skills import robot as robot_service
from skills import server as skill_service
from skills.chunks.ahead import Ahead
from skills.chunks.schedule import Questions, Schedule
from skills.client import Chunk, RobotClient, SkillClient
from skills.embodiment import ActionDimension
from skills.errors import ServerFault
from skills.library import SkillLibrary
from skills.serving.streams import Newest
from skills.serving.terms import Terms
from skills.serving.watching import Watcher
from skills.types import Status
from skills.v1 import skills_pb2 as pb
from skills.wire.messages import write_observation, write_tensor

LIBRARY = SkillLibrary.load()
SKILL = "pick apple"
HZ = 30
PERIOD = 1 / HZ
BODY = body(HZ)
ENDING = replace(BODY, action=(*BODY.action, ActionDimension("terminate", kind="terminate")))


# ---- the schedule


def chunk(number, rows=8, ends=()):
    """Row i is (number, i)."""
    actions = np.stack([np.full(rows, number), np.arange(rows)], axis=1).astype(np.float32)
    return actions, [i in ends for i in range(rows)]


def taken(schedule, *times):
    rows = [schedule.take(now) for now in times]
    return [None if row is None else tuple(row.action) for row in rows]


@pytest.mark.parametrize("late", [0.0, 0.3, 0.98])
def test_a_row_is_due_for_one_period_and_taken_once(late):
    schedule = Schedule(period=1.0)
    schedule.add(10.0, *chunk(1), now=10.0)
    assert taken(schedule, 10 + late, 10 + late, 11 + late) == [(1, 0), None, (1, 1)]


def test_rows_whose_time_has_passed_are_dropped_and_at_the_end_there_is_none():
    schedule = Schedule(period=1.0)
    assert schedule.add(10.0, *chunk(1, rows=4), now=12.5)
    assert taken(schedule, 12.5, 14.0) == [(1, 2), None]


def test_a_chunk_that_comes_after_its_time_changes_nothing():
    schedule = Schedule(period=1.0)
    schedule.add(10.0, *chunk(1), now=10.0)
    assert not schedule.add(11.0, *chunk(2, rows=3), now=14.0)
    assert taken(schedule, 14.0) == [(1, 4)]


def test_the_newest_observation_wins_in_whatever_order_answers_come():
    schedule = Schedule(period=1.0)
    assert schedule.add(12.0, *chunk(2), now=13.0)
    assert not schedule.add(10.0, *chunk(1), now=13.0) and not schedule.add(12.0, *chunk(3), now=13.0)
    assert taken(schedule, 13.0) == [(2, 1)]


def test_blending_goes_over_in_equal_steps_and_never_blends_an_end():
    schedule = Schedule(period=1.0, rule="blend", kept=1)
    schedule.add(0.0, np.float32([[0, 0.2]] * 4), [False] * 4, now=0.0)
    schedule.add(1.0, np.float32([[4, 0.9]] * 4), [False] * 4, now=1.0)
    np.testing.assert_allclose(
        [schedule.take(t).action for t in (1, 2, 3, 4)], [[1, 0.9], [2, 0.9], [3, 0.9], [4, 0.9]]
    )


def test_what_is_committed_stays_where_a_policy_continues_from_it():
    schedule = Schedule(period=1.0, rule="continue")
    schedule.add(0.0, *chunk(1), now=0.0)
    assert [tuple(row.action) for row in schedule.ahead(2.0, 3)] == [(1, 2), (1, 3), (1, 4)]
    schedule.add(2.0, *chunk(2), now=3.0, committed=3)  # sooner than was thought
    assert taken(schedule, 3.0, 4.0, 5.0, 6.0) == [(1, 3), (1, 4), (2, 3), (2, 4)]


def test_an_end_that_is_committed_is_told_to_the_policy_and_stays_the_end():
    """Also of a policy that does not give it back, and where the robot knows of no end."""
    schedule = Schedule(period=1.0, rule="continue")
    schedule.add(0.0, *chunk(1, rows=3, ends=[2]), now=0.0)
    rows = schedule.ahead(1.0, 2)
    told = Terms(BODY, ENDING, chunk=4).told(np.stack([row.action for row in rows]), [row.ends for row in rows])
    np.testing.assert_array_equal(told, [[1, 1, 0], [1, 2, 1]])
    schedule.add(1.0, *chunk(2, rows=4), now=1.0, committed=2)
    assert not schedule.take(1.0).ends and schedule.take(2.0).ends and taken(schedule, 3.0) == [None]


def test_an_end_that_was_committed_and_missed_leaves_nothing_to_do():
    schedule = Schedule(1.0, "continue")
    schedule.add(0.0, *chunk(1, 3, ends=[2]), now=0.0)
    assert [row.ends for row in schedule.ahead(1.0, 2)] == [False, True]
    assert schedule.take(3.05) is None  # the robot was late
    assert schedule.add(1.0, *chunk(2, 5), now=3.06, committed=2) and schedule.over


def test_no_more_is_committed_than_is_known():
    schedule = Schedule(period=1.0)
    assert len(schedule.ahead(0.0, 3)) == 0
    schedule.add(0.0, *chunk(1, rows=4, ends=[2]), now=0.0)
    assert len(schedule.ahead(1.0, 9)) == 2


def test_a_row_that_ends_the_skill_is_the_last_and_ends_it_when_it_is_due():
    schedule = Schedule(period=1.0)
    schedule.add(0.0, *chunk(1, ends=[2]), now=1.0)
    assert not schedule.over and not schedule.take(1.0).ends
    assert schedule.take(2.0).ends and taken(schedule, 3.0) == [None]


def test_an_end_whose_time_has_passed_leaves_nothing_to_do():
    schedule = Schedule(period=1.0)
    schedule.add(0.0, *chunk(1), now=0.0)
    schedule.add(1.0, *chunk(2, ends=[0]), now=3.0)
    assert schedule.over and taken(schedule, 3.0) == [None]


@settings(max_examples=300, deadline=None)
@given(
    rule=some.sampled_from(["replace", "blend", "continue"]),
    events=some.lists(
        some.tuples(some.floats(0, 3), some.floats(0, 12), some.integers(1, 12), some.integers(0, 4)), max_size=30
    ),
)
def test_no_row_is_ever_taken_outside_its_time(rule, events):
    """Chunks of any age come at any time, in any order; each row's number says when it is for."""
    schedule, now = Schedule(1.0, rule), 100.0
    for passed, age, rows, committed in events:
        now += passed
        times = (now - age + np.arange(rows)).astype(np.float64)
        schedule.add(now - age, times[:, None] - 100, [False] * rows, now, committed)
        if (row := schedule.take(now)) is not None:
            assert row.begins - 0.02 <= now < row.until < row.begins + 1
            if rule == "replace":
                assert float(row.action[0]) + 100 == pytest.approx(row.begins, abs=1e-4)
            elif rule == "continue":  # what is committed keeps its own time
                assert now < float(row.action[0]) + 101
        assert schedule.take(now) is None or row is None


# ---- when to ask


def test_one_observation_is_under_way_and_the_next_goes_at_half_a_chunk():
    questions = Questions(period=0.1, chunk=20)
    assert questions.due_in(0.0, left=0) <= 0
    questions.asked(1, observed=0.0, now=0.0, committed=0)
    assert questions.due_in(0.1, left=0) > 0
    assert questions.answered(1, came=0.25) == (0.0, 0) and questions.latency == 3
    assert questions.due_in(0.3, left=17) == pytest.approx(0.7) and questions.due_in(1.0, left=10) <= 0


def test_an_answer_that_is_lost_is_asked_for_again_and_one_that_comes_late_still_counts():
    questions = Questions(period=0.1, chunk=20)
    questions.asked(1, 0.0, 0.0, 0)
    assert questions.due_in(0.6, left=5) <= 0
    questions.asked(2, 0.6, 0.6, 0)
    assert questions.answered(1, came=0.7) == (0.0, 0) and questions.due_in(0.7, left=0) > 0
    assert questions.answered(2, came=0.8) == (0.6, 0) and questions.answered(2, came=0.9) is None


# ---- over the wire


class Marker:
    """A chunked actor that takes `seconds`, and marks each row with what it is for. ends: number of a period."""

    def __init__(self, rows=20, seconds=0.0, embodiment=BODY, ends=None):
        self.chunk, self.seconds, self.embodiment, self.ends = rows, seconds, embodiment, ends
        self.committed = []

    def act(self, history, instruction):
        return self.act_chunk(history, instruction, np.zeros((0, 2)))[0]

    def act_chunk(self, history, instruction, committed):
        time.sleep(self.seconds)
        self.committed.append(committed)
        rows = marked(history[-1], self.chunk)
        if len(self.embodiment.action) > 2:
            rows = np.column_stack([rows, rows.sum(axis=1) >= self.ends]).astype(np.float32)
        return rows


class Batched(Marker):
    largest = 0

    def act_chunks(self, histories, instructions, committed):
        self.largest = max(self.largest, len(histories))
        time.sleep(self.seconds)
        return [marked(history[-1], self.chunk) for history in histories]


class Driver(Witness):
    """A witness with the rest of what a driver does."""

    def __init__(self, embodiment=BODY, takes=0.0):
        super().__init__(embodiment, takes=takes)
        self.stops, self.began = [], threading.Event()

    def apply(self, action):
        super().apply(action)
        self.began.set()

    def stale(self):
        return super().stale(grace=PERIOD / 2)  # rows are a whole period apart

    def stop(self):
        self.stops.append(time.monotonic())

    def start(self, skill): ...

    def succeeded(self, skill): ...

    def finish(self, skill, canceled): ...


@contextmanager
def skill_server(actor, **options):
    with skill_service.serve(LIBRARY, actor=actor, limits=UNHURRIED, **options) as server:
        yield server.address


@contextmanager
def service(address, robot, **options):
    with (
        SkillClient(address) as skills,
        robot_service.serve(robot, LIBRARY, skills, **options) as server,
        RobotClient(server.address) as client,
    ):
        yield client


def rows_of(robot):
    return [(number, row) for _, number, row in robot.begun]


@pytest.mark.parametrize(
    "rule", ["replace", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("blend", "continue"))]
)
def test_a_robot_at_30_hz_moves_on_while_its_model_takes_five_periods(rule, machine):
    robot, actor = Driver(), Marker(seconds=5 * PERIOD)
    with skill_server(actor) as address, service(address, robot, chunks=rule, max_steps=60) as client:
        *events, outcome = client.execute(SKILL)
    assert outcome.steps == len(events) == len(robot.begun) == 60
    assert len(robot.seen) > 60 and 3 <= len(actor.committed) <= 12
    assert rule == "blend" or robot.stale() == 0  # a blend's marks are blended
    first, last = robot.begun[0][0], robot.begun[-1][0]
    assert 58 * PERIOD < last - first < 64 * PERIOD + machine.lateness()
    assert (
        [len(each) for each in actor.committed[2:]] >= [5] if rule == "continue" else not any(map(len, actor.committed))
    )


def test_what_is_reported_is_what_was_carried_out():
    robot = Driver()
    with skill_server(Marker(seconds=0.05)) as address, service(address, robot, max_steps=20) as client:
        *events, _ = client.execute(SKILL)
    assert [tuple(map(int, event.action)) for event in events] == rows_of(robot)
    assert [event.step for event in events] == list(range(1, 21))


@pytest.mark.slow
def test_a_driver_that_takes_its_periods_itself_leaves_out_no_row():
    slow = body(10)  # in which what a busy machine takes beside is little
    robot, actor = Driver(slow, takes=0.1), Marker(seconds=0.05, embodiment=slow)
    with skill_server(actor) as address, service(address, robot, max_steps=20) as client:
        list(client.execute(SKILL))
    begun = robot.begun
    steps = [row - before for (_, n, before), (_, m, row) in pairwise(begun) if n == m]
    assert robot.stale() == 0 and steps.count(1) == len(steps) > 10


def test_a_skill_ends_with_the_row_that_ends_it_not_when_that_row_comes():
    robot, actor = Driver(ENDING), Marker(rows=12, embodiment=ENDING, ends=8)
    with skill_server(actor) as address, service(address, robot) as client:
        *_, outcome = client.execute(SKILL)
    assert outcome.status is Status.SUCCEEDED and sum(rows_of(robot)[-1]) == 8 and outcome.steps >= 6


def test_an_end_that_comes_too_late_to_be_carried_out_ends_the_skill_all_the_same():
    robot, actor = Driver(ENDING), Marker(rows=12, seconds=0.1, embodiment=ENDING, ends=0)
    with skill_server(actor) as address, service(address, robot) as client:
        *_, outcome = client.execute(SKILL)
    assert outcome.status is Status.SUCCEEDED and outcome.steps == 0 and not robot.begun and robot.stops


@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_a_chunk_is_broken_off_within_100_ms(how, machine):
    robot = Driver()
    with skill_server(Marker(rows=200)) as address, service(address, robot) as client:
        execution = client.execute(SKILL)
        assert robot.began.wait(10)
        time.sleep(0.2)
        machine.lateness()
        asked = time.monotonic()
        execution.cancel() if how == "cancel" else client.stop()
        told = time.monotonic()
        late = machine.lateness()
        *_, outcome = execution
        time.sleep(0.1)
    assert told - asked < 0.1 + late and outcome.status is Status.CANCELED
    assert robot.begun[-1][0] < told and any(asked < stop < told for stop in robot.stops)


def test_a_robot_whose_rows_run_out_is_stopped_and_goes_on_with_the_next_chunk(machine):
    robot, actor, thought = Driver(), Marker(rows=6), []

    def act_chunk(history, instruction, committed):
        if robot.begun and not thought:
            thought.append(time.sleep(0.7))
        return Marker.act_chunk(actor, history, instruction, committed)

    actor.act_chunk = act_chunk
    with skill_server(actor) as address, service(address, robot, max_steps=12) as client:
        *_, outcome = client.execute(SKILL)
    begun = [when for when, *_ in robot.begun]
    gap = int(np.argmax(np.diff(begun)))
    pause = min(stop for stop in robot.stops if stop > begun[gap]) - begun[gap]
    assert outcome.steps == 12 and begun[gap + 1] - begun[gap] > 0.3 and robot.stale() == 0
    assert pause < PERIOD + 0.05 + 0.05 + machine.lateness()  # what is promised, and what a busy machine takes


def test_a_model_that_hangs_leaves_the_robot_moving_to_its_chunks_end_and_no_longer():
    robot, actor, free = Driver(), Marker(rows=12), threading.Event()

    def act_chunk(history, instruction, committed):
        if robot.begun:
            free.wait(10)
        return Marker.act_chunk(actor, history, instruction, committed)

    actor.act_chunk = act_chunk
    with skill_server(actor) as address, service(address, robot, control_timeout=0.6) as client:
        *_, outcome = client.execute(SKILL)
        free.set()
    assert outcome.status is Status.ABORTED and "within 0.6 s" in outcome.message
    assert 0 < len(robot.begun) <= 12 and robot.stale() == 0 and robot.stops[-1] > robot.begun[-1][0]


def test_a_model_that_is_slower_than_its_chunks_last_is_said_not_waited_for():
    robot = Driver()
    with (
        skill_server(Marker(rows=2, seconds=0.2)) as address,
        service(address, robot, control_timeout=0.9) as client,
    ):
        *_, outcome = client.execute(SKILL)
    assert outcome.status is Status.ABORTED and not robot.begun
    assert "no action that was still valid came within 0.9 s; the last chunk was for 0.067 s" in outcome.message


def test_without_chunks_there_is_one_action_for_each_observation():
    robot = Driver(takes=0.01)
    with skill_server(Marker()) as address, service(address, robot, chunks="off", max_steps=5) as client:
        list(client.execute(SKILL))
    assert rows_of(robot) == [(number, 0) for number in range(5)]


def test_an_actor_of_one_action_says_so_and_its_robot_acts_in_turn():
    class One:
        embodiment = BODY

        def act(self, history, instruction):
            return marked(history[-1], 1)[0]

    robot = Driver(takes=0.01)
    with skill_server(One()) as address, SkillClient(address) as skills:
        assert skills.acting().chunk == 0
        with service(address, robot, max_steps=5) as client:
            list(client.execute(SKILL))
    assert rows_of(robot) == [(number, 0) for number in range(5)]


def test_a_policy_that_looks_back_is_shown_each_period_and_acts_in_turn_at_its_rate(caplog):
    """Its history was trained on consecutive periods; the driver returns as soon as the robot is commanded."""
    looks_back = replace(BODY, history=3)
    robot, actor, shown = Driver(), Marker(embodiment=looks_back), []
    actor.act = lambda history, instruction: shown.append([int(s.state[-1]) for s in history][-3:]) or np.zeros(2)
    with skill_server(actor) as address, service(address, robot, max_steps=5) as client:
        list(client.execute(SKILL))
    assert shown == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]] and not actor.committed
    assert "looks at the last 3 periods" in caplog.text
    assert robot.begun[-1][0] - robot.begun[0][0] > 3.5 * PERIOD


def test_robots_that_want_chunks_are_computed_together():
    actor = Batched(seconds=0.05)
    with skill_server(actor) as address:
        robots = [Driver() for _ in range(4)]
        threads = []
        for robot in robots:
            client = SkillClient(address)
            end = time.monotonic() + 1.5
            threads.append(threading.Thread(target=drive, args=(robot, client, SKILL, end, "replace")))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert actor.largest > 1 and not any(robot.stale() or robot.lost for robot in robots)
    assert all(len(robot.begun) > 15 for robot in robots)


# ---- networks that lose, repeat, reorder and delay


def test_through_a_network_at_its_worst_nothing_stale_is_done_and_the_skill_lives():
    robot, weather = Driver(), Weather(lost=0.2, repeated=0.2, reordered=0.2, delayed=0.2, spike=0.2)
    with (
        skill_server(Marker(rows=60)) as address,
        Lossy(address, weather, seed=1) as proxy,
        service(proxy.address, robot, max_steps=90, control_timeout=10) as client,
    ):
        *_, outcome = client.execute(SKILL)
    assert outcome.steps == len(robot.begun) == 90 and robot.stale() == 0
    assert min(proxy.met[kind] for kind in ("lost", "repeated", "delayed")) > 0


@pytest.mark.parametrize("faults", [{"repeated": 1.0}, {"reordered": 1.0}, {"delayed": 1.0}])
def test_each_fault_alone_is_lived_through(faults):
    robot = Driver()
    with (
        skill_server(Marker(rows=60)) as address,
        Lossy(address, Weather(**faults, spike=0.1)) as proxy,
        service(proxy.address, robot, max_steps=40, control_timeout=10) as client,
    ):
        *_, outcome = client.execute(SKILL)
    assert outcome.steps == 40 and robot.stale() == 0


def test_the_witness_sees_what_is_stale():
    robot = Driver()
    robot.observe()
    time.sleep(3 * PERIOD)
    robot.apply(np.float32([0, 1]))
    robot.apply(np.float32([0, 4]))
    assert robot.stale() == 1


# ---- the stream


def ask(client, *requests):
    return list(client._stub.Control(iter(requests), timeout=20))


def request(sequence, **fields):
    return pb.ControlRequest(sequence=sequence, observation=write_observation(Driver().observe()), **fields)


def test_who_does_not_ask_for_chunks_gets_one_action_and_must_count_upwards():
    with skill_server(Marker()) as address, SkillClient(address) as client:
        [reply] = ask(client, request(1, instruction=SKILL))
        assert not reply.HasField("chunk") and list(reply.action.shape) == [2]
        with pytest.raises(Exception, match="must grow"):
            ask(client, request(2, instruction=SKILL), request(1))


def test_who_asks_gets_a_chunk_with_its_first_row_beside_it_and_late_requests_are_not_answered():
    with skill_server(Marker(rows=5)) as address, SkillClient(address) as client:
        assert client.acting().chunk == 5
        first = {"instruction": SKILL, "chunks": True}
        replies = ask(client, request(2, **first), request(1, **first), request(2, **first), request(3, **first))
    assert [reply.sequence for reply in replies] == [2, 3]
    assert replies[0].chunk.actions.shape == [5, 2] and replies[0].chunk.period == pytest.approx(PERIOD)
    assert replies[0].chunk.actions.data[:8] == replies[0].action.data


class Codes(Watcher):
    def __init__(self):
        self.codes = []

    def ended(self, method, code, seconds):
        self.codes.append(code)


def test_what_breaks_requests_off_is_raised_when_the_newest_of_them_was_heard():
    def requests():
        yield from (1, 2, 3)
        raise OSError("the client died")

    heard = []
    with pytest.raises(OSError, match="died"):
        heard.extend(Newest(requests(), key=int))
    assert heard[-1] == 3


@pytest.mark.parametrize("last, code", [(b"\xff\xff\xff", "INVALID_ARGUMENT"), (None, "OK")])
def test_a_stream_of_chunks_is_told_to_have_ended_as_it_did(last, code):
    watcher = Codes()
    with skill_server(Marker(), watcher=watcher) as address, grpc.insecure_channel(address) as channel:
        requests = queue.SimpleQueue()
        call = channel.stream_stream("/skills.v1.SkillService/Control")(iter(requests.get, None), timeout=20)
        requests.put(request(1, instruction=SKILL, chunks=True).SerializeToString())
        next(call)
        requests.put(last)
        wait_until(lambda: watcher.codes)
        requests.put(None)
    assert watcher.codes == [code]


@pytest.mark.parametrize(
    "committed", [np.zeros((2, 3)), np.zeros(2), np.zeros((1025, 2)), np.full((1, 2), np.nan)], ids=str
)
def test_what_is_committed_is_checked(committed):
    with skill_server(Marker()) as address, SkillClient(address) as client, pytest.raises(Exception, match="committed"):
        ask(client, request(1, instruction=SKILL, chunks=True, committed=write_tensor(committed)))


@pytest.mark.parametrize("rows", [np.zeros((3, 5)), np.zeros(2), np.full((3, 2), np.inf), np.zeros((0, 2))], ids=str)
def test_a_chunk_that_cannot_be_is_the_servers_fault(rows):
    actor, robot = Marker(), Driver()
    actor.act_chunk = lambda history, instruction, committed: rows.astype(np.float32)
    with skill_server(actor) as address, service(address, robot) as client:
        *_, outcome = client.execute(SKILL)
    assert outcome.status is Status.ABORTED and "no valid chunk" in outcome.message and not robot.begun


def test_answers_to_what_was_never_asked_break_a_stream_of_chunks_too():
    with skill_server(Marker()) as address, SkillClient(address) as client:
        control = client.control(SKILL, chunks=True)
        control.ask(Driver().observe())
        assert control.poll(10).actions.shape == (20, 2)
        control._sequence = 0  # as if it had asked nothing
        control._requests.put(request(2))
        with pytest.raises(ServerFault, match="answered observation 2"):
            wait_until(lambda: control.poll(1))


def test_nothing_of_a_stream_of_chunks_is_recorded_and_the_log_says_why(tmp_path, caplog):
    """The server does not see which rows were carried out: what it would write down did not happen."""
    with EpisodeRecorder(tmp_path / "d") as recorder, skill_server(Marker(), recorder=recorder) as address:
        with service(address, Driver(), max_steps=10) as client:
            list(client.execute(SKILL))
        assert "not recorded" in caplog.text and "--chunks off" in caplog.text
        with service(address, Driver(takes=0.01), max_steps=10, chunks="off") as client:
            list(client.execute(SKILL))
    assert recorder.num_episodes == 1


def test_models_of_another_period_are_refused():
    ahead = Ahead(None, Terms(BODY, BODY, chunk=20))
    ahead._questions.asked(1, 0.0, 0.0, 0)
    with pytest.raises(ServerFault, match=r"period is 0\.1 s"):
        ahead._hear(Chunk(1, np.zeros((20, 2), np.float32), 0.1, 0.0, 0.0))
