"""A skill server in operation: models by name, loaded again under load; metrics, logs and traces of what happened."""

import contextlib
import json
import logging
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import certificates
import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tiny_policies import TEXTS, make
from tiny_policies import observation as tiny_observation
from tiny_services import LineRobot, Walker, wait_until

from planners import weights
from saycan_qt import serve as command
from saycan_qt.learning import checkpoint
from saycan_qt.networks.tokens import TextEncoder
from saycan_qt.services import logs
from saycan_qt.services.access import TOKEN, ServerOptions
from saycan_qt.services.exposition import Endpoint, Metrics
from saycan_qt.services.operation import OperationOptions
from saycan_qt.services.processes import ServiceProcess
from skills import robot as robot_service
from skills.client import RobotClient, SkillClient
from skills.errors import AccessError, Busy, InvalidRequest, Unauthenticated, UnknownSkill, Unreadable
from skills.library import Skill, SkillLibrary
from skills.security.access import Access, Holder, Tokens, digest
from skills.security.channel import Credentials
from skills.server import Limits, serve
from skills.serving.calls import Seldom
from skills.serving.hosting import Hosting, Model
from skills.types import Outcome, Status

LIBRARY = SkillLibrary(Skill(text, "pick") for text in TEXTS)
UNHURRIED = Limits(stream_timeout=10)
ROOT = Path(__file__).parent.parent
TOKENS = Tokens([Holder("laptop", digest("laptop-token"), frozenset({"read", "score", "drive"}))])


def save(folder, seed):
    """A tiny real checkpoint; returns its policy."""
    policy = make("q-transformer", seed)
    checkpoint.save(folder, *policy.describe(TEXTS), {})
    return checkpoint.load(folder)


def host(**folders):
    """As the command hosts checkpoints."""
    loads = {
        name: lambda folder=str(folder): command.load(
            lambda: command.checkpoints(command.ServeConfig(affordance=folder, execution=folder, threads=1)), LIBRARY
        )
        for name, folder in folders.items()
    }
    return Hosting({name: load() for name, load in loads.items()}, loads)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "policy"


@pytest.fixture
def traced(monkeypatch):
    """Spans that ended, in the process-wide provider's place."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield spans
    provider.shutdown()


@pytest.fixture
def told(caplog):
    """What the log says of calls."""
    caplog.set_level(logging.INFO, "skills.calls")
    return lambda: [record for record in caplog.records if record.name == "skills.calls"]


# Models by name


def test_each_call_is_answered_by_the_model_that_it_names_and_by_the_first_where_it_names_none(tmp_path):
    day, night = save(tmp_path / "day", 0), save(tmp_path / "night", 1)
    here = [tiny_observation(day)]
    models = host(day=tmp_path / "day", night=tmp_path / "night")
    with serve(LIBRARY, models=models, limits=UNHURRIED) as server, SkillClient(server.address) as client:
        for model, policy in {"": day, "day": day, "night": night}.items():
            scores = client.score(here, model=model)
            np.testing.assert_allclose([s.raw for s in scores], policy.value(here, TEXTS), atol=1e-5)
            with client.control(TEXTS[0], timeout=20, model=model) as control:
                np.testing.assert_allclose(control.act(here[0]), policy.act(here, TEXTS[0]), atol=1e-5)
        first, second = client.info().models
        assert (first.name, second.name) == ("day", "night") and first.actor_id == client.info().actor_id
        assert second.critic_id.startswith("night@") and second.critic_id != first.critic_id


def test_an_unknown_model_is_not_found_and_those_there_are_are_named():
    models = Hosting({"day": Model(Walker(), Walker()), "night": Model(Walker(), Walker())})
    here = LineRobot().observe()
    with serve(LIBRARY, models=models) as server, SkillClient(server.address, model="noon") as client:
        said = "no model 'noon'; this skill server hosts day, night"
        with pytest.raises(UnknownSkill, match=said):
            client.score([here])
        with client.control("pick apple") as control, pytest.raises(UnknownSkill, match=said):
            control.act(here)
        with pytest.raises(UnknownSkill, match=said):
            client.reload()


def test_robots_of_different_models_are_never_computed_in_one_batch():
    class Constant:
        def __init__(self, number):
            self.number, self.batches = number, []

        def act(self, history, instruction):
            return self.act_many([history], [instruction])[0]

        def act_many(self, histories, instructions):
            self.batches.append(len(histories))
            time.sleep(0.01)
            return np.full((len(histories), 8), self.number, np.float32)

    actors = {"one": Constant(1), "two": Constant(2)}
    models, here = Hosting({name: Model(actor=actor) for name, actor in actors.items()}), LineRobot().observe()

    def drive(robot):
        name = ("one", "two")[robot % 2]
        with SkillClient(server.address) as client, client.control("go", timeout=20, model=name) as control:
            return {control.act(here)[0] for _ in range(10)} == {actors[name].number}

    with serve(LIBRARY, models=models, limits=UNHURRIED) as server, ThreadPoolExecutor(12) as threads:
        assert all(threads.map(drive, range(12)))
    assert all(sum(actor.batches) == 60 and max(actor.batches) > 1 for actor in actors.values())


def test_the_command_line_names_further_models():
    also = ("night=runs/night", "lab=runs/critic:runs/actor", "own=my.models:Both", "mixed=my_models:critic,runs/actor")
    config = command.ServeConfig(also=also)
    found = {name: (one.affordance, one.execution) for name, one in command.configs(config).items()}
    assert found == {
        "default": ("affordance", "execution"),
        "night": ("runs/night", "runs/night"),
        "lab": ("runs/critic", "runs/actor"),
        "own": ("my.models:Both", "my.models:Both"),
        "mixed": ("my_models:critic", "runs/actor"),
    }
    for wrong in ("runs/night", "=runs/night", "night="):
        with pytest.raises(Unreadable, match="NAME=MODEL"):
            command.configs(command.ServeConfig(also=(wrong,)))
    with pytest.raises(Unreadable, match="two models 'default'"):
        command.configs(command.ServeConfig(also=("default=runs/night",)))


# Reloading


def test_a_reload_under_load_drops_no_call_and_each_answer_is_the_old_models_or_the_new_ones(folder):
    old = save(folder, 0)
    here, over = [tiny_observation(old)], threading.Event()

    def plan():
        answers = []
        with SkillClient(server.address) as client:
            while not over.is_set():
                scores = client.score(here)
                answers.append((scores[0].model, [score.raw for score in scores]))
        return answers

    def drive():
        """Many short streams, and the first action of each beside its last."""
        answers = []
        with SkillClient(server.address) as client:
            while not over.is_set():
                with client.control(TEXTS[0], timeout=20) as control:
                    answers.append([control.act(here[0]) for _ in range(3)])
        return answers

    with (
        serve(LIBRARY, models=host(only=folder), limits=UNHURRIED) as server,
        ThreadPoolExecutor(4) as threads,
        SkillClient(server.address) as client,
        client.control(TEXTS[0], timeout=20) as long,
    ):
        before = client.info().critic_id
        np.testing.assert_allclose(long.act(here[0]), old.act(here, TEXTS[0]), atol=1e-5)
        busy = [threads.submit(call) for call in (plan, plan, drive, drive)]
        time.sleep(0.3)
        new = save(folder, 1)
        after = client.reload()
        time.sleep(0.3)
        over.set()
        planned = [answer for call in busy[:2] for answer in call.result(60)]
        driven = [answer for call in busy[2:] for answer in call.result(60)]
        np.testing.assert_allclose(long.act(here[0]), old.act(here * 2, TEXTS[0]), atol=1e-5)  # to its end
    values = {before: old.value(here, TEXTS), after.critic_id: new.value(here, TEXTS)}
    assert {model for model, _ in planned} == set(values) and len(values) == 2
    for model, raw in planned:
        np.testing.assert_allclose(raw, values[model], atol=1e-5)
    expected = [np.array([policy.act(here * n, TEXTS[0]) for n in (1, 2, 3)]) for policy in (old, new)]
    by = [[np.allclose(actions, one, atol=1e-5) for one in expected] for actions in driven]
    assert all(sum(which) == 1 for which in by) and {tuple(which) for which in by} == {(True, False), (False, True)}


def test_a_bad_checkpoint_changes_nothing_and_the_reason_is_said_without_where_it_lies(folder):
    old = save(folder, 0)
    here, metrics = [tiny_observation(old)], Metrics()
    with serve(LIBRARY, models=host(only=folder), watcher=metrics) as server, SkillClient(server.address) as client:
        before = client.info()
        save(folder, 1)
        weights_file = folder / checkpoint.MODEL
        weights_file.write_bytes(weights_file.read_bytes()[:-100])
        with pytest.raises(Unreadable, match=r"'only' stays as it was: model.safetensors: .* is truncated") as caught:
            client.reload("only")
        assert str(folder.parent) not in str(caught.value) and "\n" not in str(caught.value)
        assert client.info() == before
        np.testing.assert_allclose([s.raw for s in client.score(here)], old.value(here, TEXTS), atol=1e-5)
        new = save(folder, 1)
        assert client.reload("only").critic_id != before.critic_id
        np.testing.assert_allclose([s.raw for s in client.score(here)], new.value(here, TEXTS), atol=1e-5)


def test_while_a_model_loads_others_answer_and_a_second_reload_is_told_to_come_later():
    loading, go_on = threading.Event(), threading.Event()

    def load():
        loading.set()
        assert go_on.wait(20)
        return Model(Walker(), Walker(), "new", "new")

    models = Hosting({"walker": Model(Walker(), Walker(), "old", "old")}, {"walker": load})
    with (
        serve(LIBRARY, models=models) as server,
        SkillClient(server.address) as client,
        ThreadPoolExecutor(1) as thread,
        grpc.insecure_channel(server.address) as channel,
    ):
        reloaded = thread.submit(client.reload)
        assert loading.wait(10)
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert client.score([LineRobot().observe()])[0].model == "old"
        with pytest.raises(Busy) as caught:
            client.reload("walker")
        assert caught.value.retry_after > 0
        go_on.set()
        assert reloaded.result(10).critic_id == client.info().critic_id == "new"


def test_a_model_whose_loading_breaks_stays_and_its_inner_words_are_for_the_log(caplog):
    models = Hosting({"walker": Model(Walker(), critic_id="old")}, {"walker": lambda: 1 / 0})
    with serve(LIBRARY, models=models) as server, SkillClient(server.address) as client:
        with pytest.raises(Unreadable, match="the server's log has the reason") as caught:
            client.reload()
        assert "ZeroDivision" not in str(caught.value) and "ZeroDivision" in caplog.text
        assert client.info().critic_id == "old"


def test_models_that_came_as_objects_cannot_be_loaded_again():
    with serve(LIBRARY, Walker()) as server, SkillClient(server.address) as client:
        assert client.info().models[0].name == "default"
        with pytest.raises(Unreadable, match="not loaded from a checkpoint"):
            client.reload()


@pytest.mark.slow
def test_a_served_process_reloads_on_command_and_on_sighup_and_shows_its_metrics(tmp_path):
    """The real commands. `night` has one checkpoint for both; a bad one is told with exit code 2."""
    for seed, name in enumerate(("day", "night")):
        save(tmp_path / name, seed)
    skills = tmp_path / "skills.yaml"
    skills.write_text("families:\n" + "".join(f"  f{i}: {{name: {text}}}\n" for i, text in enumerate(TEXTS)))
    day = str(tmp_path / "day")
    flags = ["--affordance", day, "--execution", day, "--also", f"night={tmp_path / 'night'}", "--skills", str(skills)]
    line = "- {{name: {0}, sha256: {1}, roles: [read, operate]}}\n"
    (tokens := tmp_path / "tokens.yaml").write_text(line.format("boss", digest("boss")))
    tokens.chmod(0o600)
    flags += ["--metrics-port", "0", "--log-format", "json", "--threads", "1", "--tokens", str(tokens)]
    arguments = [sys.executable, "-m", "saycan_qt.serve", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), TOKEN: "boss"}

    def reload(*names):
        told = [sys.executable, "-m", "saycan_qt.reload", address, *names]
        return subprocess.run(told, capture_output=True, text=True, env=environment)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with (
        subprocess.Popen(arguments, text=True, env=environment, cwd=tmp_path, **pipes) as process,
        contextlib.ExitStack() as last,
    ):
        last.callback(process.kill)  # where something below fails, nobody waits for a server that goes on
        url, address = process.stdout.readline().split()[-1], process.stdout.readline().split()[-1]
        process.send_signal(signal.SIGHUP)  # heeded when there is something to reload
        assert "night: judged by night@" in process.stdout.readline()
        guest, boss = Credentials(token="guest"), Credentials(token="boss")
        with SkillClient(address, credentials=boss) as client, SkillClient(address, credentials=guest) as another:
            before = [model.critic_id for model in client.info().models]
            with pytest.raises(Unauthenticated):
                another.info()
            save(tmp_path / "night", 2)
            assert reload("night").stdout.startswith("model 'night' is now judged by night@")
            save(tmp_path / "day", 3)
            tokens.write_text(line.format("boss", digest("boss")) + line.format("guest", digest("guest")))
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: client.info().models[0].critic_id != before[0], 30)
            assert another.info().models[1].critic_id != before[1]
        (tmp_path / "day" / checkpoint.MODEL).write_bytes(b"")
        bad = reload()
        assert bad.returncode == 2 and bad.stderr.startswith("error: model 'default' stays as it was")
        shown = scrape(url, "guest")
        assert shown['saycan_qt_model_loads_total{model="default",result="bad"}'] == 1
        assert shown['saycan_qt_model_loads_total{model="night",result="good"}'] >= 2
        assert shown["process_resident_memory_bytes"] > 1e7
        process.terminate()
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
        assert process.wait(30) == 0
    assert ("ReloadModel", "FAILED_PRECONDITION") in {(line.get("method"), line.get("code")) for line in lines}


def test_a_service_may_be_closed_by_two_at_once(tmp_path):
    """as where a start is interrupted: its owner and the thread that starts it both end what was begun"""
    together = threading.Barrier(8)

    def close(service):
        together.wait()
        service.close()

    with ThreadPoolExecutor(8) as several:
        for _ in range(10):
            service = ServiceProcess("nothing", ["true"], tmp_path / "nothing.log", print)
            assert list(several.map(close, [service] * 8)) == [None] * 8 and not service.log.exists()


def test_what_a_service_prints_of_other_things_is_not_where_it_listens_or_that_it_is_ready(tmp_path):
    said = ["camera listening on 10.0.0.5:9", "camera ready", "arm listening on 127.0.0.1:7", "arm ready: /x/get ready"]
    code = "import sys, time\nfor line in sys.argv[1:]: print(line, flush=True); time.sleep(0.1)\ntime.sleep(60)"
    service = ServiceProcess("arm", [sys.executable, "-c", code, *said], tmp_path / "arm.log", print)
    service.wait_until_ready(20)
    assert (service.address, service.detail) == ("127.0.0.1:7", "/x/get ready")
    service.close(grace=0)


def test_what_a_driver_prints_that_is_no_text_hides_nothing_that_comes_after_it(tmp_path):
    said = r"b'arm listening on 127.0.0.1:7\n20 \xb0C\narm ready\n'"
    code = f"import sys, time; sys.stdout.buffer.write({said}); sys.stdout.flush(); time.sleep(60)"
    service = ServiceProcess("arm", [sys.executable, "-c", code], tmp_path / "arm.log", print)
    with contextlib.closing(service):
        service.wait_until_ready(20)


def test_a_sighup_that_comes_while_a_service_starts_is_heeded_when_it_has_started():
    code = (
        "import os, signal, time\nfrom saycan_qt.services.processes import EndWhenTold\n"
        "end = EndWhenTold(False)\nos.kill(os.getpid(), signal.SIGHUP)\ntime.sleep(0.1)\n"
        "end.arm(halt=lambda: None)\ntime.sleep(0.1)\n"
        "end.arm(renew=lambda: print('renewed', flush=True))\ntime.sleep(0.2)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, start_new_session=True).stdout == "renewed\n"


# Metrics


def scrape(url, token="", context=None):
    """Samples by name and labels."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_metrics_show_what_happened_and_two_servers_count_apart():
    here, metrics, others = LineRobot().observe(), Metrics(), Metrics()
    models = Hosting({"walker": Model(Walker(), Walker())}, {"walker": Walker}, metrics)
    with (
        serve(LIBRARY, models=models, limits=UNHURRIED, watcher=metrics) as server,
        serve(LIBRARY, Walker(), watcher=others),
        Endpoint(metrics, "127.0.0.1", 0) as endpoint,
        SkillClient(server.address) as client,
    ):
        client.score([here])
        client.score([here])
        with pytest.raises(UnknownSkill):
            client.score([here], ["pick apples"])
        with client.control("pick apple") as control:
            control.act(here)
            shown = scrape(endpoint.url)
            assert shown['saycan_qt_open_calls{method="Control"}'] == 1
            assert shown['saycan_qt_callers{of="actions"}'] == 1 and shown['saycan_qt_waiting{of="actions"}'] == 0
            control.end(Outcome(Status.SUCCEEDED))
        wait_until(lambda: scrape(endpoint.url)['saycan_qt_open_calls{method="Control"}'] == 0, 10)
        shown = scrape(endpoint.url)
    assert shown['saycan_qt_calls_total{code="OK",method="ScoreSkills"}'] == 2
    assert shown['saycan_qt_calls_total{code="NOT_FOUND",method="ScoreSkills"}'] == 1
    assert shown['saycan_qt_calls_total{code="OK",method="Control"}'] == 1
    assert shown['saycan_qt_call_seconds_count{method="ScoreSkills"}'] == 3
    assert shown['saycan_qt_batch_size_sum{of="values"}'] == 2 * len(LIBRARY)
    assert shown['saycan_qt_batch_seconds_count{of="actions"}'] == 1
    assert others.registry.get_sample_value("saycan_qt_batch_size_count", {"of": "values"}) is None


def test_metrics_take_the_services_own_token_and_count_who_was_refused():
    metrics, access = Metrics(), Access(tokens=TOKENS)
    with (
        serve(LIBRARY, Walker(), access=access, watcher=metrics) as server,
        Endpoint(metrics, "127.0.0.1", 0, access) as endpoint,
        SkillClient(server.address) as stranger,
    ):
        with pytest.raises(Unauthenticated):
            stranger.info()
        with pytest.raises(urllib.error.HTTPError, match="401") as caught:
            scrape(endpoint.url)
        caught.value.close()
        shown = scrape(endpoint.url, "laptop-token")
    assert shown['saycan_qt_refused_total{code="UNAUTHENTICATED",method="GetServerInfo"}'] == 1


def test_metrics_are_never_open_to_other_machines_in_plain_text(tmp_path):
    with pytest.raises(AccessError, match="takes TLS"):
        OperationOptions(metrics_port=0, metrics_host="0.0.0.0").start("test", Access())
    with pytest.raises(InvalidRequest, match=r"70000. is not an address"):
        OperationOptions(metrics_port=70000).start("test", Access())
    files = certificates.make(tmp_path)
    access = ServerOptions(files / "server.pem", files / "server.key").load("127.0.0.1")
    trusting = ssl.create_default_context(cafile=str(files / "ca.pem"))
    with Endpoint(Metrics(), "127.0.0.1", 0, access) as endpoint:
        with pytest.raises(OSError):
            scrape(endpoint.url.replace("https", "http"))
        assert scrape(endpoint.url, context=trusting)


# Logs


def test_each_calls_end_is_a_line_of_json_with_its_goal_its_caller_and_its_code(told):
    robot, access = LineRobot(), Access(tokens=TOKENS)
    laptop = Credentials(token="laptop-token")
    with (
        serve(LIBRARY, Walker(), Walker(), limits=UNHURRIED, access=access) as server,
        SkillClient(server.address, credentials=laptop) as skills,
        robot_service.serve(robot, LIBRARY, skills, access=access) as robot_server,
        RobotClient(robot_server.address, credentials=laptop) as client,
    ):
        with pytest.raises(InvalidRequest, match="control character"):
            list(client.execute("pick apple", goal_id="g 0\nforged line"))
        list(client.execute("pick apple", goal_id="g 1"))
        wait_until(
            lambda: (
                {("Control", "g 1"), ("ExecuteSkill", "g 1")} <= {(r.method, vars(r).get("goal_id")) for r in told()}
            )
        )
    lines = [logs.JsonFormatter().format(record) for record in told()]
    assert all("\n" not in line and "laptop-token" not in line for line in lines)
    assert all("\n" not in logging.Formatter(logs.TEXT).format(record) for record in told())
    by_method = {line["method"]: line for line in map(json.loads, lines)}
    assert by_method["ExecuteSkill"]["goal_id"] == by_method["Control"]["goal_id"] == "g 1"
    assert by_method["ExecuteSkill"]["code"] == "OK" and by_method["Control"]["code"] in ("OK", "CANCELLED")
    assert by_method["Control"]["caller"] == "laptop" and by_method["Control"]["seconds"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", by_method["Control"]["time"])


def test_what_callers_send_writes_no_line_of_its_own():
    for form, formatter in (("text", logs.TextFormatter(logs.TEXT)), ("json", logs.JsonFormatter())):
        name, forged = "goal\n2026-01-01 INFO skills.calls: forged", "\x1b[2J\u2028\x85"
        record = logging.LogRecord("skills", logging.INFO, "", 0, "%s of %s", (name, forged), None)
        line = formatter.format(record)
        assert line.isprintable() and "forged" in line and "goal" in line, form


def test_a_stranger_cannot_fill_the_disk_with_refusals(told):
    with (
        serve(LIBRARY, Walker(), access=Access(tokens=TOKENS)) as server,
        SkillClient(server.address) as stranger,
        SkillClient(server.address, credentials=Credentials(token="laptop-token")) as laptop,
    ):
        for _ in range(200):
            with pytest.raises(Unauthenticated):
                stranger.info()
        laptop.info()
    refused = [record for record in told() if record.code == "UNAUTHENTICATED"]
    assert 20 <= len(refused) <= 40 and told()[-1].code == "OK"


def test_a_log_that_nobody_reads_holds_up_nobody():
    code = """
import logging, os
from saycan_qt.services import logs
logs.configure("json", "info")
for number in range(20_000):
    logging.getLogger("skills").info("a line of some length, of which a pipe takes few")
print("still here", flush=True)
os._exit(0)
"""
    environment, pipe = os.environ | {"PYTHONPATH": str(ROOT)}, subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "still here\n"
        assert json.loads(process.stderr.readline())["level"] == "info"


def test_what_was_held_back_is_counted_in_the_next_line():
    seldom = Seldom(at_once=1, every=1.0)
    assert [seldom.unsaid() for _ in range(3)] == [0, None, None]
    time.sleep(1.1)
    assert seldom.unsaid() == 2


# Traces


def test_a_calls_span_belongs_to_the_clients_and_a_skill_is_one_trace_from_plan_to_policy(traced):
    robot, tracer = LineRobot(), trace.get_tracer("planner")
    with (
        serve(LIBRARY, Walker(), Walker(), limits=UNHURRIED) as server,
        SkillClient(server.address) as skills,
        robot_service.serve(robot, LIBRARY, skills) as robot_server,
        RobotClient(robot_server.address) as client,
    ):
        with tracer.start_as_current_span("step") as step:
            list(client.execute("pick apple", goal_id="g1"))
        with pytest.raises(UnknownSkill):
            skills.score([robot.observe()], ["pick apples"])
        wait_until(lambda: len(traced.get_finished_spans()) == 5, 10)
    spans = {span.name.rpartition("/")[2]: span for span in traced.get_finished_spans()}
    execute, control, score = spans["ExecuteSkill"], spans["Control"], spans["ScoreSkills"]
    assert spans["GetServerInfo"].parent.span_id == execute.context.span_id  # the robot compares itself with the model
    assert execute.name == "skills.v1.RobotService/ExecuteSkill" and execute.kind is trace.SpanKind.SERVER
    assert execute.parent.span_id == step.get_span_context().span_id
    assert control.parent.span_id == execute.context.span_id and control.context.trace_id == step.context.trace_id
    assert control.attributes["skills.goal_id"] == execute.attributes["skills.goal_id"] == "g1"
    assert execute.attributes["rpc.grpc.status_code"] == 0
    assert score.parent is None and score.attributes["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]


def test_without_opentelemetry_calls_work_and_none_of_it_is_imported():
    code = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
from tiny_services import LineRobot, Walker
from skills.client import SkillClient
from skills.library import SkillLibrary
from skills.server import serve
with serve(SkillLibrary.load(), Walker()) as server, SkillClient(server.address) as client:
    assert client.score([LineRobot().observe()])
found = {name.split(".")[0] for name, module in sys.modules.items() if module is not None}
print(found & {"opentelemetry", "prometheus_client", "torch"})
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, Path(__file__).parent)))}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "set()", run.stderr


# Words


def test_new_words_are_forgotten_but_never_the_librarys(monkeypatch):
    read = []

    class Embedder:
        def encode(self, texts, **options):
            read.extend(texts)
            return np.array([[len(text), 1.0] for text in texts], np.float32)

    monkeypatch.setattr(weights, "text_embedder", lambda model: Embedder())
    encoder = TextEncoder({"trained": np.zeros(2, np.float32)}, remembered=3)
    encoder.keep(["of the library"])
    for number in range(10):
        encoder.encode([f"new {number}", "new 0", "trained", "of the library"])
    assert len(encoder._recent) == 3 and set(encoder.table) == {"trained", "of the library"}
    assert read.count("of the library") == read.count("new 0") == 1  # the latter was always asked for again
    assert encoder.encode(["new 1"])[0, 0] == 5 and read.count("new 1") == 2
    many = [f"word {number}" for number in range(9)]
    assert encoder.encode(many).shape == (9, 2)  # more than are remembered
