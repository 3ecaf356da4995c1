"""The journey from a sentence to a result: real processes, real gRPC, and the small parts of small_services.py."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import small_disk
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mcap.reader import make_reader

from saycan_qt.journey.config import LiveOptions, Parts, RunConfig, SessionConfig
from saycan_qt.learning.checkpoint import SHIPPED
from saycan_qt.robot import check
from saycan_qt.run import run
from saycan_qt.services.processes import LISTENING
from saycan_qt.session import session
from skills.client import RobotClient
from skills.errors import LibraryError
from skills.library import Skill, SkillLibrary

SMALL = Path(__file__).with_name("small_services.py")
SKILLS = SMALL.with_name("small_skills.yaml")
INSTRUCTION = "bring me an apple"
STARTED = []  # processes, ended after each test


def start(*arguments, **environment):
    command = [sys.executable, str(SMALL), *map(str, arguments)]
    pipe, settings = subprocess.PIPE, {**os.environ, **environment}
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=settings)
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_left_running():
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):
                stream.close()


def finish(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def run_small(*arguments, **environment):
    return finish(start("run", *arguments, **environment))


def service(*arguments, **environment):
    """A running skill server or robot: the process and its address."""
    process = start(*arguments, **environment)
    match = LISTENING.search(process.stdout.readline().strip())
    assert match, process.communicate()
    assert " ready" in process.stdout.readline()
    return process, match["address"]


def plan_of(folder):
    return json.loads((folder / "plan.json").read_text())


def reported(folder):
    """What the report was given to show, see test_browser.py."""
    page = (folder / "report.html").read_text()
    return json.loads(re.search(r'<script id="boot" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def until(condition, timeout=90):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def acting(folder):
    """A skill is running, as plan.json tells."""
    plan = folder / "plan.json"
    return plan.exists() and any(step["outcome"] == "running" for step in plan_of(folder)["steps"])


def children_of(pid):
    """Its services that run: name -> process id."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)]  # -ww: long paths are not cut off
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return {name: int(line.split()[0]) for line in lines for name in ("serve", "robot") if f" {name} " in line}


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    code, out, err = run_small(
        INSTRUCTION, "--out", folder, "--json", "--seed", 7, "--mcap", folder.with_suffix(".mcap")
    )
    assert code == 0, err
    return folder, out, err


def test_a_sentence_is_carried_out_and_judged_by_the_goal(finished):
    plan = plan_of(finished[0])
    done = ["find apple", "pick apple", "bring it to you", "put down", "done"]
    assert [step["skill"] for step in plan["steps"]] == done
    assert {step["outcome"] for step in plan["steps"]} == {"succeeded"}
    assert (plan["instruction"], plan["seed"], plan["success"], plan["judge"]) == (INSTRUCTION, 7, True, "goal")


def test_with_json_the_last_line_is_plan_json_and_people_read_the_other_stream(finished):
    folder, out, err = finished
    assert json.loads(out) == plan_of(folder) and out.count("\n") == 1
    for said in ("language", "affordance", "product", "find the apple", "Carried out", str(folder)):
        assert said in err


def test_every_candidate_is_kept_with_its_product(finished):
    for step in plan_of(finished[0])["steps"]:
        assert len(step["candidates"]) == 7
        assert step["score"] == max(row["score"] for row in step["candidates"])
        for row in step["candidates"]:
            assert row["score"] == pytest.approx((row["language"] or 0) * row["affordance"] * row["lowered"], rel=1e-4)


def test_the_mcap_file_has_the_whole_run(finished):
    folder = finished[0]
    with folder.with_suffix(".mcap").open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        topics = [channel.topic for _, channel, _ in reader.iter_messages()]
        [attached] = reader.iter_attachments()
    assert json.loads(attached.data) == plan_of(folder)
    assert topics.count("/saycan/decision") == len(plan_of(folder)["steps"]) == 5
    assert min(map(topics.count, ("/camera/head", "/camera/room"))) > 5, "not only those of the decisions"


def test_the_folder_holds_pictures_video_and_report(finished):
    folder, plan = finished[0], plan_of(finished[0])
    for step in plan["steps"]:
        assert all((folder / file).is_file() for file in [step["observation"], *step["views"].values()])
    assert (folder / plan["video"]).stat().st_size > 1000
    shown = reported(folder)
    assert shown["plan"]["steps"] == plan["steps"] and shown["plan"]["success"] is True
    assert {file for step in plan["steps"] for file in step["views"].values()} | {plan["video"]} < set(shown["files"])


@pytest.mark.slow
def test_a_calibrated_run_keeps_the_raw_value_of_every_candidate_too(finished, tmp_path):
    code, _, err = run_small(INSTRUCTION, "--out", tmp_path / "out", "--calibrated")
    assert code == 0, err
    raw, calibrated = plan_of(finished[0]), plan_of(tmp_path / "out")
    assert (raw["affordances"], calibrated["affordances"]) == ("raw", "calibrated")
    for plan, critic, power in ((raw, "small critic", 1), (calibrated, "small critic+square", 2)):
        rows = [row for step in plan["steps"] for row in [step, *step["candidates"]]]
        assert plan["models"]["affordance"] == critic and any(row.get("model") == critic for row in rows)
        for row in rows:
            if row["skill"] == "done":  # the planner's own: no critic judges it
                assert row["raw"] is None
            else:
                learned = row["skill"].startswith("pick")
                assert row["affordance"] == pytest.approx(row["raw"] ** (power if learned else 1))
    assert reported(tmp_path / "out")["plan"]["affordances"] == "calibrated"


def test_what_the_robot_cannot_serve_ends_before_anything_moves(tmp_path):
    folder = tmp_path / "out"
    code, out, _ = run_small("make me a pizza", "--out", folder)
    plan = plan_of(folder)
    assert (code, plan["success"], plan["ended"], plan["judge"], plan["steps"]) == (1, False, "refused", "planner", [])
    assert plan["refusal"]["nearest"] == ["bring me a sponge"] and plan["refusal"]["similarity"] < 0.42
    assert "nothing that the robot can do serves this" in out and "“bring me a sponge”" in out
    assert reported(folder)["plan"]["refusal"] == plan["refusal"]


def test_explain_scores_every_skill_and_tells_what_was_vetoed(tmp_path):
    folder = tmp_path / "out"
    scripted = "pick up the apple,pick up the apple,done"  # at first out of reach
    _, out, _ = run_small("i am hungry", "--out", folder, "--explain", "--max-steps", 1, SMALL_PLAN=scripted)
    (step,) = plan_of(folder)["steps"]
    assert all(row["language"] is not None for row in step["candidates"]) and step["skill"] != "pick apple"
    assert re.search(r"affordance vetoed .*\n +pick up the apple language 0\.9\d+, affordance 0\n", out)
    assert "language vetoed" in out


@pytest.mark.slow
def test_of_an_unknown_goal_nobody_says_that_it_was_met(tmp_path):
    code, _, err = run_small("i am hungry", "--out", tmp_path / "out")
    plan = plan_of(tmp_path / "out")
    assert (code, plan["success"], plan["judge"]) == (3, None, "nobody"), err


@pytest.mark.slow
def test_a_last_try_that_failed_is_no_success(tmp_path):
    fails = {"SMALL_FAILS": "pick apple", "SMALL_PLAN": "find the apple,pick up the apple,done"}
    code, _, _ = run_small("i am hungry", "--out", tmp_path / "out", "--max-steps", 3, **fails)
    plan = plan_of(tmp_path / "out")
    assert [step["outcome"] for step in plan["steps"]] == ["succeeded", "failed", "failed"]
    assert (code, plan["success"], plan["judge"]) == (1, False, "plan")


@pytest.mark.slow
def test_max_steps_ends_a_run_without_success(tmp_path):
    code, out, _ = run_small(INSTRUCTION, "--out", tmp_path / "out", "--max-steps", 2)
    plan = plan_of(tmp_path / "out")
    assert (code, plan["success"], plan["ended"], len(plan["steps"])) == (1, False, "max steps", 2)
    assert "Not carried out" in out


@pytest.mark.parametrize(
    "victim, name", [("serve", "skill server"), pytest.param("robot", "kitchen robot", marks=pytest.mark.slow)]
)
def test_a_killed_service_ends_the_run_within_two_seconds_and_is_named(tmp_path, machine, victim, name):
    folder = tmp_path / "out"
    process = start("run", INSTRUCTION, "--out", folder, SMALL_PERIOD="3", SMALL_LOG=str(tmp_path / "stopped"))
    until(lambda: acting(folder))
    services = children_of(process.pid)
    (tmp_path / "stopped").unlink(missing_ok=True)
    machine.lateness()
    os.kill(services[victim], signal.SIGKILL)
    killed = time.monotonic()
    code, _, err = finish(process, 60)
    assert time.monotonic() - killed < 2 + machine.lateness()
    assert code == 1
    assert f"the {name} (pid {services[victim]}, 127.0.0.1:" in err and "died: killed by SIGKILL" in err
    plan = plan_of(folder)
    assert (plan["ended"], plan["success"], plan["steps"][-1]["outcome"]) == ("died", False, "aborted")
    assert (folder / "report.html").is_file()
    assert not any(alive(pid) for pid in services.values())
    assert victim == "robot" or (tmp_path / "stopped").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim, name", [("serve", "the skill server at"), ("robot", "guard of the")])
def test_a_frozen_service_ends_the_run_and_leaves_nothing_behind(tmp_path, victim, name):
    process = start("run", INSTRUCTION, "--out", tmp_path / "out", SMALL_PERIOD="0.2")
    until(lambda: acting(tmp_path / "out"))
    services = children_of(process.pid)
    os.kill(services[victim], signal.SIGSTOP)
    code, _, err = finish(process, 60)
    assert code == 1 and name in plan_of(tmp_path / "out")["reason"] and name in err
    assert not any(alive(pid) for pid in services.values())


@pytest.mark.slow
def test_a_death_is_noticed_while_the_language_model_thinks(tmp_path, machine):
    thinks = tmp_path / "thinks"
    process = start("run", INSTRUCTION, "--out", tmp_path / "out", SMALL_THINKS="60", SMALL_THOUGHT=str(thinks))
    until(thinks.exists)
    machine.lateness()
    os.kill(children_of(process.pid)["robot"], signal.SIGKILL)
    killed = time.monotonic()
    code, _, err = finish(process, 60)
    assert (code, time.monotonic() - killed < 2 + machine.lateness()) == (1, True)
    assert "kitchen robot" in err


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupting_stops_the_robot_and_ends_cleanly(tmp_path, number):
    folder = tmp_path / "out"
    process = start("run", INSTRUCTION, "--out", folder, SMALL_PERIOD="3", SMALL_LOG=str(tmp_path / "stopped"))
    until(lambda: acting(folder))
    services = children_of(process.pid)
    assert set(services) == {"serve", "robot"}
    process.send_signal(number)
    code, _, err = finish(process, 60)
    assert (code, "Traceback" in err) == (130, False)
    assert (tmp_path / "stopped").exists()
    assert plan_of(folder)["ended"] == "interrupted"
    assert not any(alive(pid) for pid in services.values())


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_while_a_finished_run_tidies_up_makes_nothing_of_it_untrue(tmp_path, times):
    folder = tmp_path / "out"
    process = start("run", INSTRUCTION, "--out", folder)
    until(lambda: (folder / "plan.json").exists() and plan_of(folder)["ended"])
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    code, _, err = finish(process, 60)
    plan = plan_of(folder)
    assert (code, plan["success"], plan["ended"], "Traceback" in err) == (0, True, "done", False)
    assert times > 1 or (folder / plan["report"]).exists()


@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_one_line_and_its_plan_is_whole(tmp_path):
    with small_disk.mounted(tmp_path / "disk", 3_000_000) as disk:
        process = start("run", INSTRUCTION, "--out", disk / "out", SMALL_PERIOD="0.3")
        until(lambda: acting(disk / "out"))
        small_disk.fill(disk)
        code, _, err = finish(process, 60)
        plan = plan_of(disk / "out")
        told = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, plan["ended"], plan["success"], "Traceback" in err) == (1, "error", False, False), err
        assert "the results cannot be written to" in told[0] and "No space left on device" in told[0]
        assert plan["reason"] in told[0] and "running" not in [step["outcome"] for step in plan["steps"]]
        assert all((disk / "out" / step["observation"]).exists() for step in plan["steps"])
        started = start("run", INSTRUCTION, "--out", disk / "another")
        code, _, err = finish(started, 60)
    assert (code, err.count("\n")) == (2, 1) and "cannot be written" in err and "No space left" in err


def test_a_control_character_in_an_instruction_is_refused_and_lines_become_one():
    code, _, err = run_small("bring me\x1b[2J an apple")
    assert (code, err.count("\n")) == (2, 1) and "control character" in err and "\x1b" not in err


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_run(tmp_path):
    """As in `python -m saycan_qt.run ... | head`; rich raises SystemExit then, in the thread that works."""
    process = start("run", INSTRUCTION, "--out", tmp_path / "out", SMALL_PERIOD="3")
    process.stdout.readline()
    services = children_of(process.pid)
    process.stdout.close()
    assert process.wait(90) == 1
    assert plan_of(tmp_path / "out")["reason"] == "nobody reads the output any more"
    assert not any(alive(pid) for pid in services.values())


@pytest.mark.slow
def test_services_end_when_the_run_is_killed(tmp_path):
    folder = tmp_path / "out"
    process = start("run", INSTRUCTION, "--out", folder, SMALL_PERIOD="3")
    until(lambda: acting(folder))
    services = children_of(process.pid)
    assert set(services) == {"serve", "robot"}
    process.kill()
    process.communicate()
    until(lambda: not any(alive(pid) for pid in services.values()))
    assert plan_of(folder)["steps"][0]["skill"] == "find apple"


@pytest.mark.slow
def test_running_services_are_used_and_left_running(tmp_path):
    server, where = service("serve", "--skills", SKILLS)
    robot, at = service("robot", "--skill-server", where)
    for name in ("first", "second"):
        code, _, err = run_small(INSTRUCTION, "--server", where, "--robot", at, "--out", tmp_path / name)
        assert code == 0 or name == "second", err  # the apple is with the operator by then
    assert server.poll() is None and robot.poll() is None


@pytest.mark.slow
def test_a_run_is_judged_and_done_by_the_model_that_it_names(tmp_path):
    _, where = service("serve", "--skills", SKILLS, "--also", "night=none")
    code, _, err = run_small(INSTRUCTION, "--server", where, "--model", "noon", "--out", tmp_path / "noon")
    assert code == 2 and "no model 'noon'; this skill server hosts default, night" in one_line(err)
    code, _, err = run_small(INSTRUCTION, "--server", where, "--model", "night", "--out", tmp_path / "night")
    assert code == 0, err
    assert {plan_of(tmp_path / "night")["models"][role] for role in ("affordance", "execution")} == {"small none"}


@pytest.mark.slow
def test_a_death_of_somebody_elses_robot_is_noticed_too(tmp_path):
    _, where = service("serve", "--skills", SKILLS)
    robot, at = service("robot", "--skill-server", where, SMALL_PERIOD="3")
    folder = tmp_path / "out"
    process = start("run", INSTRUCTION, "--server", where, "--robot", at, "--out", folder)
    until(lambda: acting(folder))
    robot.kill()
    killed = time.monotonic()
    code, _, err = finish(process, 60)
    assert (code, time.monotonic() - killed < 2) == (1, True)
    assert f"the kitchen robot ({at}) is gone" in err


@pytest.mark.parametrize("command", ["serve", "robot"])
def test_a_service_drains_on_sigterm(command):
    process, _ = service(command, *(["--skills", SKILLS] if command == "serve" else []))
    process.send_signal(signal.SIGTERM)
    assert finish(process, 60)[0] == 0


def test_the_skill_server_is_not_serving_before_its_models_are_warm():
    process = start("serve", "--skills", SKILLS)
    address = LISTENING.search(process.stdout.readline().strip())["address"]
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="skills.v1.SkillService")
        assert health.Check(request, timeout=5).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert " ready" in process.stdout.readline()
        assert health.Check(request, timeout=5).status == health_pb2.HealthCheckResponse.SERVING


def one_line(err):
    """Everything said for people about a mistake, which has to be one line."""
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.strip() == line
    return line


def test_mistakes_are_told_in_one_line_with_exit_code_2(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("families:\n  pick: {nme: pick}\n")
    (tmp_path / "endless.yaml").write_text("families:\n  wait: {name: wait}\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        cases = [
            ({"skills": tmp_path / "none.yaml"}, "none.yaml"),
            ({"skills": tmp_path / "bad.yaml"}, "bad.yaml:2"),
            ({"skills": tmp_path / "endless.yaml"}, "'done'"),
            ({"out": tmp_path / "full"}, "already"),
            ({"max_steps": 0}, "--max-steps"),
            ({"preselect": -1}, "--preselect"),
            ({"server": "nowhere"}, "HOST:PORT"),
            ({"server": nobody, "calibrated": True}, "--calibrated is for the skill server that run starts"),
            ({"robot": nobody, "record": tmp_path / "data"}, "a robot that already runs asks its own"),
            ({"explain": True, "preselect": 20}, "--explain scores every skill"),
            ({"model": "night"}, "--model is for a skill server that already runs"),
        ]
        for options, told in cases:
            code, err = run(RunConfig(INSTRUCTION, **options), Parts(load_language=None)), capsys.readouterr().err
            assert (code, told in one_line(err)) == (2, True), err
        code, _, err = run_small(INSTRUCTION, "--server", nobody, "--out", tmp_path / "out")
        assert code == 2 and f"skill server at {nobody} cannot be reached" in one_line(err), err
    assert {path.name for path in tmp_path.iterdir()} == {"bad.yaml", "endless.yaml", "full"}


@pytest.mark.parametrize("command, config", [(run, RunConfig), (session, SessionConfig)])
def test_a_page_that_cannot_start_is_no_mistake_and_leaves_its_log(tmp_path, capsys, command, config):
    words = {"instruction": INSTRUCTION} if config is RunConfig else {}
    broken = Parts(load_language=None, page=(sys.executable, "-c", "raise RuntimeError"))
    assert command(config(**words, live=LiveOptions(live=True), out=tmp_path / "out"), broken) == 1
    assert "out/page.log" in one_line(capsys.readouterr().err)
    assert "RuntimeError" in (tmp_path / "out" / "page.log").read_text()


def test_a_missing_instruction_is_a_mistake():
    code, _, err = run_small()
    assert code == 2 and "INSTRUCTION" in err


def test_an_occupied_port_is_a_mistake():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = finish(start("robot", "--port", port))
        assert code == 2 and f"cannot listen on 127.0.0.1:{port}" in one_line(err)


@pytest.mark.slow
def test_an_address_of_the_wrong_service_is_a_mistake(tmp_path):
    _, at = service("robot")
    code, _, err = run_small(INSTRUCTION, "--server", at, "--out", tmp_path / "out")
    assert code == 2 and f"what answers at {at} is not a skill server" in one_line(err)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_a_mistake(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("{")
    command = [sys.executable, "-m", "saycan_qt.serve", "--affordance", str(tmp_path / "mine")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2 and "manifest.json: damaged" in one_line(found.stderr)


@pytest.mark.parametrize(
    "skill, told",
    [
        (Skill("juggle apple", "juggle", arguments={"object": "apple"}), "of learnt skills it knows the families pick"),
        (Skill("pick unicorn", "pick", arguments={"object": "unicorn"}), "it knows no object 'unicorn'"),
        (Skill("go to moon", "go to", arguments={"place": "moon"}, learned=False), "it knows no place 'moon'"),
    ],
)
def test_the_kitchen_refuses_skills_that_it_has_no_way_to_do(skill, told):
    with pytest.raises(LibraryError, match=told):
        check(skill)


def test_the_kitchen_can_do_every_skill_of_its_own_file():
    for skill in SkillLibrary.load():
        check(skill)


@pytest.mark.slow
def test_a_service_that_breaks_while_starting_is_named_with_its_log(tmp_path):
    code, _, err = run_small(INSTRUCTION, "--out", tmp_path / "out", SMALL_BREAKS="robot")
    assert code == 1 and "kitchen robot could not start" in err
    (log,) = re.findall(r"its log: (\S+)", err)
    assert "broken on purpose" in Path(log).read_text()


@pytest.mark.slow
def test_a_stopped_robot_has_to_be_released_first(tmp_path):
    _, where = service("serve", "--skills", SKILLS)
    _, at = service("robot", "--skill-server", where)
    with RobotClient(at) as client:
        client.stop()
    code, _, err = run_small(INSTRUCTION, "--server", where, "--robot", at, "--out", tmp_path / "out")
    assert code == 1 and f"--release {at}" in err
    assert finish(start("robot", "--release", at))[0] == 0
    code, _, err = run_small(INSTRUCTION, "--server", where, "--robot", at, "--out", tmp_path / "again")
    assert code == 0, err


@pytest.mark.slow
def test_a_robot_that_is_leased_to_somebody_else_is_told_before_anything_moves(tmp_path):
    _, where = service("serve", "--skills", SKILLS)
    _, at = service("robot", "--skill-server", where)
    with RobotClient(at) as client, client.lease("the night shift"):
        code, _, err = run_small(INSTRUCTION, "--server", where, "--robot", at, "--out", tmp_path / "out")
        assert code == 1 and "leased to 'the night shift'" in one_line(err)
        assert not plan_of(tmp_path / "out")["steps"]


@pytest.mark.slow
@pytest.mark.skipif(not (SHIPPED / "affordance").exists(), reason="the trained models are not there")
def test_the_real_kitchen_takes_a_sentence(tmp_path):
    command = [sys.executable, "-m", "saycan_qt.run", "bring me a snack", "--seed", "0", "--max-steps", "8", "--json"]
    found = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=400)
    assert found.returncode in (0, 1), found.stderr
    plan = json.loads(found.stdout.splitlines()[-1])
    assert plan == plan_of(tmp_path / "out") and plan["judge"] == "goal" and plan["steps"]
    assert plan["success"] == (found.returncode == 0)


def test_the_commands_import_torch_late_enough_to_set_how_its_threads_wait():
    code = "import sys, saycan_qt.run, saycan_qt.serve, saycan_qt.robot; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
