"""The skill server under many robots: batches, limits, deadlines, and clients that do not keep up."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tiny_policies import TEXTS, make
from tiny_policies import observation as tiny_observation
from tiny_services import LINE, UNHURRIED, Walker, wait_until

from saycan_qt.learning import checkpoint
from saycan_qt.learning.algorithms.policy import Judge
from skills.client import SkillClient
from skills.errors import Busy, DeadlineExceeded, InvalidRequest, Unavailable
from skills.library import SkillLibrary
from skills.server import Limits, serve
from skills.serving import arrivals
from skills.serving.batching import Inference
from skills.types import Observation
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire.messages import write_observation

LIBRARY = SkillLibrary.load()
GOOD, BAD = (8, 10, 3), (4, 4, 3)


def seen(*numbers, image=GOOD):
    return Observation(np.zeros(image, np.uint8), np.array(numbers, np.float32))


class Sums:
    """Acts with the sum of the states it has seen and the length of its instruction; remembers how it was asked."""

    def __init__(self, seconds=0.0):
        self.seconds, self.batches, self.judged = seconds, [], 0
        self.free = threading.Event()
        self.free.set()

    def act(self, history, instruction):
        return self.act_many([history], [instruction])[0]

    def act_many(self, histories, instructions):
        self.batches.append(len(histories))
        time.sleep(self.seconds)
        if any(history[-1].image.shape != GOOD for history in histories):
            raise ValueError("the image has another size")
        sums = [sum(o.state for o in history) for history in histories]
        return np.array(sums, np.float32) + [[len(text)] for text in instructions]

    def value(self, history, instructions):
        self.judged += 1
        assert self.free.wait(10)
        return np.full(len(instructions), 0.5, np.float32)


def at_once(count, call):
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(call, range(count)))


SHIPPED = ("execution", "affordance", "execution-pixels")


@pytest.mark.parametrize("name", [*SHIPPED, "rt1", "q-transformer", "q-transformer, pointing"])
def test_a_batch_answers_what_each_question_is_answered_alone(name):
    """Histories of different lengths, each robot with its own instruction; the first three are the shipped models."""
    policy = checkpoint.load(name) if name in SHIPPED else make(name)
    texts = [s.name for s in LIBRARY if s.learned][::20] if name in SHIPPED else TEXTS
    histories = [[tiny_observation(policy, 3 * i + j) for j in range(1 + i % 3)] for i in range(8)]
    instructions = [texts[i % len(texts)] for i in range(8)]
    alone = [policy.act(*question) for question in zip(histories, instructions, strict=True)]
    np.testing.assert_allclose(policy.act_many(histories, instructions), alone, atol=1e-5, rtol=0)
    if isinstance(policy, Judge):
        asked = [[*texts[: 1 + i % 3]] for i in range(8)]
        for together, *question in zip(policy.value_many(histories, asked), histories, asked, strict=True):
            np.testing.assert_allclose(together, policy.value(*question), atol=1e-5, rtol=0)


def test_no_robot_ever_gets_anothers_action():
    model, robots, steps = Sums(0.002), 32, 10

    def drive(robot):
        text = "x" * (robot + 1)
        with SkillClient(server.address) as client, client.control(text, timeout=20) as control:
            actions = [control.act(seen(robot, step)) for step in range(steps)]
        counts = np.arange(1, steps + 1)
        np.testing.assert_array_equal(np.array(actions)[:, 0], robot * counts + len(text))
        np.testing.assert_array_equal(np.array(actions)[:, 1], np.cumsum(counts - 1) + len(text))

    with serve(LIBRARY, actor=model, limits=UNHURRIED) as server:
        at_once(robots, drive)
    assert sum(model.batches) == robots * steps and max(model.batches) > 4


def test_a_robot_with_words_that_are_slow_to_read_holds_up_no_other():
    model, read = Sums(), threading.Event()
    model.know = lambda texts: texts == ["go"] or read.wait(10)
    with (
        serve(LIBRARY, actor=model, limits=UNHURRIED) as server,
        ThreadPoolExecutor(1) as thread,
        SkillClient(server.address) as client,
        client.control("arise, go forth", timeout=10) as slow,
        client.control("go") as quick,
    ):
        action = thread.submit(slow.act, seen(1))
        assert [quick.act(seen(step))[0] for step in (2, 3)] == [4, 7]
        assert not action.done()
        read.set()
        assert action.result(5)[0] == 1 + len("arise, go forth")


class Marks:
    """Judges by the state's first number and the skill's name; remembers how it was asked."""

    def __init__(self):
        self.batches = []

    def value(self, history, instructions):
        time.sleep(0.01)  # others come meanwhile, and then wait together
        return np.array([mark(history[-1].state[0], name) for name in instructions], np.float32)

    def value_many(self, histories, instructions):
        self.batches.append(sum(map(len, instructions)))
        return [self.value(*question) for question in zip(histories, instructions, strict=True)]


def mark(number, name):
    return (float(number) * 31 + sum(map(ord, name))) % 97 / 97


def test_no_planner_ever_gets_anothers_scores_and_batches_keep_their_limit():
    model, names = Marks(), [skill.name for skill in LIBRARY if skill.learned]

    def ask(planner):
        with SkillClient(server.address) as client:
            for turn in range(4):
                asked = names[planner :: 1 + planner + turn]
                for score in client.score([seen(planner)], asked):
                    assert score.raw == pytest.approx(mark(planner, score.skill))

    with serve(LIBRARY, critic=model, limits=Limits(values=120)) as server:
        at_once(16, ask)
    assert model.batches and max(model.batches) <= 120


def test_a_robot_whose_image_the_model_refuses_costs_no_other_its_action():
    model = Sums(0.05)

    def drive(robot):
        with SkillClient(server.address) as client, client.control("go", timeout=20) as control:
            if robot == 3:
                with pytest.raises(InvalidRequest, match="another size"):
                    control.act(seen(robot, image=BAD))
            else:
                assert control.act(seen(robot))[0] == robot + 2

    with serve(LIBRARY, actor=model, limits=UNHURRIED) as server:
        at_once(8, drive)
    assert max(model.batches) > 1


def test_a_model_that_exits_leaves_nobody_without_an_answer():
    inference, asked = Inference(), []

    def leave(questions):
        asked.append(len(questions))
        raise SystemExit("no memory left")

    line = inference.line(lambda question: question, lambda: leave, callers=9, largest=9, patience=5)
    with line.caller(), line.caller():
        answers = [line.ask(text) for text in "ab"]
        assert [answer.result(5)[0] for answer in answers] == ["a", "b"] and asked == [2]
    inference.close()


def test_one_robot_alone_does_not_wait_for_company():
    limits = Limits(patience=60, stream_timeout=10)
    with serve(LIBRARY, actor=Sums(), limits=limits) as server, SkillClient(server.address) as client:
        started = time.monotonic()
        with client.control("go", timeout=90) as control:
            control.act(seen(1))
        assert time.monotonic() - started < 10


def test_lines_take_turns_and_are_computed_in_the_order_they_came():
    inference, began, go_on, order = Inference(), threading.Event(), threading.Event(), []

    def compute(questions):
        began.set()
        assert go_on.wait(10)
        order.append(list(questions))
        return questions

    many = inference.line(lambda q: compute([q])[0], lambda: compute, callers=9, largest=4, size=lambda _: 2)
    few = inference.line(lambda q: compute([q])[0], lambda: None, callers=9, largest=4)
    answers = [many.ask("a")]
    assert began.wait(5)
    answers += [line.ask(text) for line, texts in [(many, "bcdef"), (few, "xyz")] for text in texts]
    go_on.set()
    assert [answer.result(5)[0] for answer in answers] == [*"abcdefxyz"]
    assert order == [["a"], ["x"], ["b", "c"], ["y"], ["d", "e"], ["z"], ["f"]]
    inference.close()


def test_two_threads_share_what_waits_and_no_line_waits_for_both():
    inference, go_on, began, batches = Inference(threads=2), threading.Semaphore(0), threading.Semaphore(0), []

    def compute(questions):
        batches.append(list(questions))
        began.release()
        assert go_on.acquire(timeout=10)
        return questions

    many = inference.line(lambda q: compute([q])[0], lambda: compute, callers=9, largest=4)
    few = inference.line(lambda q: compute([q])[0], lambda: compute, callers=9, largest=4)
    answers = [many.ask("a"), many.ask("b")]
    assert began.acquire(timeout=5) and began.acquire(timeout=5)  # two at a time
    assert sorted(batches) == [["a"], ["b"]]
    answers += [line.ask(text) for line, texts in [(many, "cdefgh"), (few, "x")] for text in texts]
    for _ in range(2):  # one thread becomes free after the other, so each takes all that it may
        go_on.release()
        assert began.acquire(timeout=5)
    assert batches[2:] == [["x"], ["c", "d", "e", "f"]]
    inference.close()
    go_on.release(2)
    assert [answer.result(5)[0] for answer in answers[:6] + answers[-1:]] == [*"abcdefx"]
    with pytest.raises(Unavailable, match="shutting down"):  # gh, which waited when it closed
        answers[6].result(5)


def test_a_batch_whose_model_is_missing_is_not_asked_again_one_by_one():
    inference, asked = Inference(), []

    def missing(questions):
        asked.append(len(questions))
        raise Unavailable("nobody computes here")

    line = inference.line(lambda q: missing([q]), lambda: missing, callers=9, largest=9, patience=5)
    with line.caller(), line.caller(), line.caller():
        answers = [line.ask(text) for text in "abc"]
        assert all(isinstance(answer.exception(5), Unavailable) for answer in answers)
    assert asked == [3]
    inference.close()


def test_what_is_too_much_is_refused_at_once_and_told_when_to_come_again():
    line = Inference().line(lambda question: question, lambda: None, callers=1, largest=1, retry_after=0.5, full="full")
    with line.caller(), pytest.raises(Busy, match="full") as caught, line.caller():
        pass
    assert caught.value.retry_after == 0.5
    with line.caller():  # the place is free again
        pass


def test_the_served_kitchen_has_a_stream_timeout_of_its_own():
    small = Path(__file__).with_name("small_services.py")
    command = [sys.executable, str(small), "serve", "--stream-timeout", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split()[-1]
            process.stdout.readline()  # ready
            with SkillClient(address) as client, client.control("pick apple") as control:
                control.act(seen(1))
                with pytest.raises(DeadlineExceeded, match=r"no observation came for 0\.2 s"):
                    raise control._replies.get(timeout=30)
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.fixture
def busy():
    """A model that judges until it is set free, and its server with little room."""
    model, limits = Sums(), Limits(streams=2, scorings=2, stream_timeout=10)
    model.free.clear()
    with (
        serve(LIBRARY, model, model, limits=limits) as server,
        ThreadPoolExecutor(2) as threads,
        SkillClient(server.address) as client,
    ):
        yield model, server.address, client, lambda: threads.submit(client.score, [seen(1)], ["pick apple"])
        model.free.set()


def test_a_full_method_refuses_at_once_while_health_and_other_methods_answer(busy):
    model, address, client, score = busy
    scores, took = [score(), score()], []
    wait_until(lambda: model.judged)
    time.sleep(0.5)  # the other one waits by now
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(20):
            started = time.monotonic()
            health.Check(health_pb2.HealthCheckRequest(), timeout=30)
            took.append(time.monotonic() - started)
            with pytest.raises(Busy, match="2 requests for scores") as caught:
                client.score([seen(1)], ["pick apple"])
    assert caught.value.retry_after > 0
    assert np.median(took) < 0.5
    model.free.set()
    assert [answer.result(5)[0].raw for answer in scores] == [0.5, 0.5]
    with client.control("go") as one:
        one.act(seen(1))
        with client.control("go") as two:
            two.act(seen(1))
            with client.control("go") as three, pytest.raises(Busy, match="controls 2 robots"):
                three.act(seen(1))


def matrices():
    torch.randn(600, 600) @ torch.randn(600, 600)


def python():
    for number in range(100_000):
        number += 1


class Heavy:
    """Computes for as long as it is told to."""

    def __init__(self, compute):
        self.compute, self.over, self.began = compute, threading.Event(), threading.Event()

    def value(self, history, instructions):
        self.began.set()
        while not self.over.is_set():
            self.compute()
        return np.full(len(instructions), 0.5, np.float32)


@pytest.mark.parametrize("compute", [matrices, pytest.param(python, marks=pytest.mark.slow)])
def test_health_answers_while_the_model_computes(compute):
    """Within 0.1 s on a machine like those that serve, by `benchmarks/serving.py --health`; others may be slow."""
    model, took = Heavy(compute), []
    with (
        serve(LIBRARY, critic=model) as server,
        ThreadPoolExecutor(1) as thread,
        SkillClient(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        scores, health = thread.submit(client.score, [seen(1)], ["pick apple"]), health_pb2_grpc.HealthStub(channel)
        try:
            assert model.began.wait(10)
            for _ in range(100):
                started = time.monotonic()
                health.Check(health_pb2.HealthCheckRequest(), timeout=30)
                took.append(time.monotonic() - started)
        finally:
            model.over.set()
        assert scores.result(30)
    assert np.percentile(took, 99) < 1


def test_a_large_request_that_has_come_is_answered_though_another_one_waits(monkeypatch):
    """Both are of one host. What comes slowly gives way to another; what is being computed does not."""
    monkeypatch.setattr(arrivals, "SLOW", 0.1)
    begun = threading.Event()

    class Slow(Walker):
        def value(self, history, instructions):
            begun.set()
            time.sleep(0.4)
            return np.full(len(instructions), 0.5)

    large = Observation({"front": np.zeros((600, 900, 3), np.uint8)}, np.zeros(1, np.float32))  # of 1.6 MB
    with (
        serve(LIBRARY, Slow()) as server,
        SkillClient(server.address) as one,
        SkillClient(server.address) as two,
        ThreadPoolExecutor(1) as threads,
    ):
        first = threads.submit(one.score, [large], ["pick apple"])
        assert begun.wait(10)
        [second] = two.score([large], ["pick apple"])
        assert first.result(10)[0].affordance == second.affordance == 0.5


def test_health_answers_though_calls_that_never_send_their_request_hold_every_thread(busy):
    _, address, *_ = busy
    over = threading.Event()

    def silence():
        over.wait(60)
        yield from ()

    with grpc.insecure_channel(address) as attacker, grpc.insecure_channel(address) as channel:
        half_sent = attacker.stream_unary("/skills.v1.SkillService/ScoreSkills")
        _calls = [half_sent.future(silence()) for _ in range(30)]
        wait_until(lambda: sum("SkillService" in thread.name for thread in threading.enumerate()) >= 20)
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        over.set()


def test_what_nobody_waits_for_any_more_is_not_computed(busy):
    model, address, client, score = busy
    first = score()
    wait_until(lambda: model.judged)
    with SkillClient(address, timeout=0.2) as hasty, pytest.raises(DeadlineExceeded):
        hasty.score([seen(2)], ["pick apple"])
    with client.control("go", timeout=0.2) as control, pytest.raises(DeadlineExceeded):
        control.act(seen(3))  # and leaves
    time.sleep(1)  # until the server has heard of it
    model.free.set()
    first.result(5)
    client.score([seen(4)], ["pick apple"])
    assert model.judged == 2 and model.batches == []


def test_a_robot_that_stops_observing_loses_its_stream_within_a_period_and_is_told_why():
    slow = replace(LINE, control_hz=1)
    assert Limits().stream_timeout_of(LINE) == 0.4 and Limits().stream_timeout_of(slow) == 1.05  # for real robots
    limits = Limits(streams=1, stream_timeout=1.0)
    with serve(LIBRARY, actor=Sums(), limits=limits) as server, SkillClient(server.address) as client:
        threads = threading.active_count()
        with client.control("go") as control:
            for step in range(3):
                control.act(seen(step))
                time.sleep(0.4)  # a robot that keeps its period is served
            control.act(seen(4))
            acted = time.monotonic()
            with pytest.raises(DeadlineExceeded, match=r"no observation came for 1 s"):
                raise control._replies.get(timeout=30)
            assert 0.9 < time.monotonic() - acted < 10
        with client.control("go") as control:  # the place is free
            control.act(seen(5))
        wait_until(lambda: threading.active_count() <= threads + 1)  # nobody reads an ended stream


class Deaf:
    """A client that sends observations of 250 kB as fast as it may, and never reads an action."""

    def __init__(self, address, *options):
        self.sent, self._over = 0, threading.Event()
        self._channel = grpc.insecure_channel(address, options=options)
        self.call = skills_pb2_grpc.SkillServiceStub(self._channel).Control(self.observations())

    def observations(self):
        message = write_observation(seen(0, image=(256, 320, 3)))
        while not self._over.wait(0.001):
            self.sent += 1
            yield pb.ControlRequest(sequence=self.sent, instruction="pick apple", observation=message)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._over.set()
        self._channel.close()


def resident():
    """[MB] of memory that this process uses."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("VmRSS"))


def test_a_client_that_does_not_read_costs_no_memory():
    with serve(LIBRARY, actor=Walker(), limits=UNHURRIED) as server, Deaf(server.address) as client:
        wait_until(lambda: client.sent > 100)
        before = resident()
        wait_until(lambda: client.sent > 500)
        assert resident() - before < 30  # of 100 that came


def test_a_client_that_has_no_room_for_the_next_action_loses_its_stream():
    little = ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)
    limits = Limits(streams=1, stream_timeout=1)
    with serve(LIBRARY, actor=Walker(), limits=limits) as server, SkillClient(server.address) as client:

        def served():
            try:
                with client.control("go") as control:
                    return control.act(seen(1)) is not None
            except Busy:
                return False

        with Deaf(server.address, *little) as deaf:
            wait_until(lambda: deaf.sent > 1)
            assert not served()
            wait_until(served)
