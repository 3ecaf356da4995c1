"""A session: loaded once, one instruction after the other, whatever dies in between. Real processes, small parts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from test_run import (
    INSTRUCTION,
    SKILLS,
    acting,
    children_of,
    finish,
    nothing_left_running,
    plan_of,
    service,
    start,
    until,
)
from websockets.sync.client import connect

from saycan_qt import session as session_command
from saycan_qt.journey.config import SessionConfig
from saycan_qt.journey.lifecycle import NOT_DONE, Ending
from saycan_qt.journey.results import RunFolder
from saycan_qt.run import parts_of
from saycan_qt.session import FREE
from skills.client import RobotClient
from skills.errors import ServerFault
from skills.robot_folder import default_robot

__all__ = ["nothing_left_running"]


def session(*arguments, **environment):
    return start("session", *arguments, **environment)


def say(process, *lines):
    process.stdin.write("".join(f"{line}\n" for line in lines))
    process.stdin.flush()


def beside_others(folder):
    """A session with services of somebody else, after its first instruction; the robot, and both addresses."""
    _, where = service("serve", "--skills", SKILLS)
    robot, at = service("robot", "--skill-server", where)
    process = session("--server", where, "--robot", at, "--out", folder)
    say(process, "find the sponge")
    until(lambda: any(folder.glob("01-*/report.html")))
    return process, robot, where, at


def begun(folder, number):
    """The folder of the instruction of this number, once a skill runs."""
    found = list(folder.glob(f"{number:02d}-*"))
    return bool(found) and acting(found[0])


def test_a_pipe_gets_a_line_for_a_line_and_the_world_remembers(tmp_path):
    """And what is not carried out is told by the exit code."""
    process = session("--json", "--out", tmp_path / "s")
    said = f"{INSTRUCTION}\n\n{INSTRUCTION}\nfind the sponge\nmake me a pizza\n"
    out, err = process.communicate(said, timeout=120)
    first, again, third, fourth = map(json.loads, out.splitlines())
    assert [plan["success"] for plan in (first, again, third)] == [True, False, True], err
    assert "“pick up the apple” had failed too often" in again["reason"]  # the first one lies there still
    assert first["steps"][0]["place"] == "table" and again["steps"][0]["objects"] == {
        "apple": "operator",
        "sponge": "table",
    }
    assert third == plan_of(tmp_path / "s" / "03-find-the-sponge")
    assert fourth["ended"] == "refused" and process.returncode == 1
    assert err.count("loading the skill server") == 1


@pytest.mark.slow
def test_a_killed_skill_server_costs_an_instruction_and_one_line(tmp_path):
    process = session("--out", tmp_path / "s", SMALL_PERIOD="0.3")
    say(process, INSTRUCTION)
    until(lambda: begun(tmp_path / "s", 1))
    os.kill(children_of(process.pid)["serve"], signal.SIGKILL)
    say(process, "find the sponge", "quit")
    code, out, err = finish(process)
    first, second = (plan_of(folder) for folder in sorted((tmp_path / "s").glob("0*")))
    assert (first["ended"], second["success"], code) == ("died", True, 1), err
    assert len(re.findall("skill server .*died", err)) == 1 and out.count("it is there again") == 1


@pytest.mark.slow
def test_a_killed_robot_is_started_again(tmp_path):
    process = session("--out", tmp_path / "s", SMALL_PERIOD="0.3")
    say(process, INSTRUCTION)
    until(lambda: begun(tmp_path / "s", 1))
    os.kill(children_of(process.pid)["robot"], signal.SIGKILL)
    say(process, "find the sponge", "quit")
    _, out, err = finish(process)
    assert [plan_of(f)["success"] for f in sorted((tmp_path / "s").glob("0*"))] == [False, True], out + err


@pytest.mark.slow
def test_somebody_elses_robot_is_waited_for(tmp_path):
    process, robot, where, at = beside_others(tmp_path / "s")
    robot.kill()
    say(process, "find the apple")
    until(lambda: any((tmp_path / "s").glob("02-*")) or robot.poll() is not None)
    service("robot", "--skill-server", where, "--port", at.rpartition(":")[2])
    until(lambda: any((tmp_path / "s").glob("0*-find-the-apple/report.html")))
    say(process, "find the apple", "quit")
    _, out, err = finish(process)
    assert plan_of(sorted((tmp_path / "s").glob("0*"))[-1])["success"], out + err


def test_stop_halts_the_robot_until_it_is_released(tmp_path):
    process = session("--out", tmp_path / "s", SMALL_PERIOD="0.5", SMALL_LOG=str(tmp_path / "stopped"))
    say(process, INSTRUCTION)
    until(lambda: begun(tmp_path / "s", 1))
    (tmp_path / "stopped").unlink(missing_ok=True)
    say(process, "stop")
    until(lambda: any((tmp_path / "s").glob("01-*/report.html")))
    assert (tmp_path / "stopped").exists()
    say(process, "find the sponge")
    until(lambda: any((tmp_path / "s").glob("02-*/report.html")))
    say(process, "release", "find the sponge", "quit")
    _, out, err = finish(process)
    plans = [plan_of(folder) for folder in sorted((tmp_path / "s").glob("0*"))]
    assert [plan["ended"] for plan in plans] == ["stopped", "error", "done"], out + err
    assert plans[0]["steps"][-1]["outcome"] == "canceled" and "say `release`" in plans[1]["reason"]


def test_what_was_stopped_while_it_decided_does_not_go_on_once_released(tmp_path):
    """And the next instruction does."""
    process = session("--out", tmp_path / "s", SMALL_THINKS="1")
    say(process, INSTRUCTION)
    until(lambda: begun(tmp_path / "s", 1))
    [folder] = (tmp_path / "s").glob("01-*")
    until(lambda: not acting(folder))
    say(process, "stop", "release", "find the sponge", "quit")
    _, out, err = finish(process)
    plans = [plan_of(folder) for folder in sorted((tmp_path / "s").glob("0*"))]
    assert [(plan["ended"], plan["judge"]) for plan in plans] == [("stopped", "goal"), ("done", "skill")], out + err
    assert len(plans[0]["steps"]) == 1 and FREE in out


def test_what_waited_when_the_robot_was_stopped_is_not_begun(tmp_path):
    process = session("--out", tmp_path / "s", SMALL_PERIOD="0.5")
    say(process, INSTRUCTION)
    until(lambda: begun(tmp_path / "s", 1))
    say(process, "find the sponge", "stop", "release", "find the apple", "quit")
    _, out, err = finish(process)
    plans = [plan_of(folder) for folder in sorted((tmp_path / "s").glob("0*"))]
    assert [plan["instruction"] for plan in plans] == [INSTRUCTION, "find the apple"], out + err
    assert plans[1]["success"] and "“find the sponge” was said before the robot was stopped" in out


@pytest.mark.parametrize("end", [lambda one: one.hear("stop"), lambda one: one.on_signal(signal.SIGINT, None)])
def test_a_stop_that_comes_while_an_instruction_is_taken_up_ends_it(tmp_path, monkeypatch, end):
    begun, config = [], SessionConfig(out=tmp_path / "s")
    one = session_command.Session(config, parts_of(config), default_robot(), tmp_path / "s")

    def made(*given, **options):
        end(one)
        return RunFolder(*given, **options)

    class Taken:
        def __init__(self, *given, **options):
            self.stopped = threading.Event()
            begun.append(self)

        def carry_out(self):
            one._ended = True  # nothing is started
            return Ending(NOT_DONE, "stopped", "it was stopped by you")

        def wait(self): ...

    monkeypatch.setattr(session_command, "RunFolder", made)
    monkeypatch.setattr(session_command, "Run", Taken)
    one._carry_out("find the apple", one.stack.stops)
    assert begun[0].stopped.is_set()


def test_what_waits_when_an_interrupt_ends_the_session_is_not_begun(tmp_path, monkeypatch):
    config, begun = SessionConfig(out=tmp_path / "s"), []
    one = session_command.Session(config, parts_of(config), default_robot(), tmp_path / "s")
    monkeypatch.setattr(one, "_begin", lambda: None)
    monkeypatch.setattr(one.person, "listen", lambda: one.hear("find the apple"))
    monkeypatch.setattr(one, "_mend", lambda: one.on_signal(signal.SIGINT, None))  # while a service is started again
    monkeypatch.setattr(one, "_carry_out", lambda *given: begun.append(given))
    assert one.go_on() == 130 and not begun


def test_what_is_said_after_a_release_waits_for_it(tmp_path, monkeypatch):
    config, done = SessionConfig(out=tmp_path / "s"), []
    one = session_command.Session(config, parts_of(config), default_robot(), tmp_path / "s")
    monkeypatch.setattr(one, "_begin", lambda: None)
    monkeypatch.setattr(one.person, "listen", lambda: [one.hear(line) for line in ("release", "find it", "quit")])
    monkeypatch.setattr(one, "_mend", lambda: None)
    monkeypatch.setattr(one.stack, "release", lambda: (time.sleep(0.2), done.append("released")))
    monkeypatch.setattr(one, "_carry_out", lambda text, stops: done.append(text))
    assert one.go_on() == 0 and done == ["released", "find it"]


def test_without_standard_input_it_is_as_if_that_had_ended(tmp_path, monkeypatch):
    """as after `session <&-`"""
    monkeypatch.setattr(sys, "stdin", None)
    config = SessionConfig(out=tmp_path / "s")
    one = session_command.Session(config, parts_of(config), default_robot(), tmp_path / "s")
    monkeypatch.setattr(one, "_begin", lambda: None)
    monkeypatch.setattr(one, "_mend", lambda: None)
    assert one.go_on() == 0 and one.person.when == "never"


def test_a_stop_that_halted_nothing_says_what_to_do(tmp_path):
    config, said = SessionConfig(out=tmp_path / "s"), []
    one = session_command.Session(config, parts_of(config), default_robot(), tmp_path / "s")

    class Stuck:
        def stop(self):
            raise ServerFault("the robot is latched; use the hardware's stop")

    one.stack.robot, one._say = Stuck(), said.append
    one.hear("stop")
    assert said == ["the robot is latched; use the hardware's stop"] and one.stack._stopped


@pytest.mark.slow
def test_what_was_stopped_on_the_page_does_not_go_on_once_released(tmp_path):
    process = session("--live", "--ask", "never", "--out", tmp_path / "s", SMALL_THINKS="1")
    address, _ = page_of(process)
    say(process, INSTRUCTION)
    until(lambda: begun(tmp_path / "s", 1))
    [folder] = (tmp_path / "s").glob("01-*")
    until(lambda: not acting(folder))
    with connect(address.replace("http", "ws") + "watch", origin=address.rstrip("/")) as page:
        for do in ("stop", "release"):
            page.send(json.dumps({"do": do}))
            assert any(isinstance(told, str) and "reply" in json.loads(told) for told in page)
        say(process, "quit")
        _, out, err = finish(process)
    assert plan_of(folder)["ended"] == "stopped", out + err


@pytest.mark.slow
def test_a_stop_by_somebody_else_is_told_between_instructions_too(tmp_path):
    process, _, _, at = beside_others(tmp_path / "s")
    with RobotClient(at) as other:
        other.stop()
    assert any("is stopped" in line for line in iter(process.stdout.readline, ""))
    say(process, "release", "find the apple", "quit")
    code, out, err = finish(process)
    assert code == 0, out + err


@pytest.mark.slow
def test_the_first_interrupt_ends_the_instruction_and_the_next_the_session(tmp_path):
    process = session("--out", tmp_path / "s", SMALL_PERIOD="0.5")
    say(process, INSTRUCTION)
    until(lambda: begun(tmp_path / "s", 1))
    process.send_signal(signal.SIGINT)
    until(lambda: any((tmp_path / "s").glob("01-*/report.html")))
    assert process.poll() is None and plan_of(next((tmp_path / "s").glob("01-*")))["ended"] == "interrupted"
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert (code, "Traceback" in err) == (130, False)


@pytest.mark.slow
@pytest.mark.parametrize("last", ["", "quit\n"])
def test_a_pipe_that_ends_at_a_question_ends_the_session(tmp_path, last):
    process = session("--json", "--ask", "always", "--out", tmp_path / "s")
    out, err = process.communicate(f"{INSTRUCTION}\n{last}", timeout=120)
    asked, answered = map(json.loads, out.splitlines())
    assert "question" in asked and answered["ended"] == "stopped" and process.returncode == 1
    assert "say `release`" not in err


@pytest.mark.slow
def test_stop_and_release_are_heard_at_a_question(tmp_path):
    process = session("--json", "--ask", "always", "--out", tmp_path / "s")
    say(process, INSTRUCTION)
    assert "question" in json.loads(process.stdout.readline())
    out, err = process.communicate("release\nstop\nfind the sponge\nquit\n", timeout=120)
    plans = [json.loads(line) for line in out.splitlines()]
    assert [plan["ended"] for plan in plans] == ["stopped", "error"] and plans[0]["instruction"] == INSTRUCTION, err


@pytest.mark.slow
def test_a_line_that_is_no_instruction_gets_a_line_that_says_so(tmp_path):
    said = b"find \xff it\nfind \x1b it\nfind the sponge\n"
    process = session("--json", "--out", tmp_path / "s", PYTHONIOENCODING="utf-8")
    process.stdin.buffer.write(said)
    out, _ = process.communicate(timeout=120)
    answers = [json.loads(line) for line in out.splitlines()]
    assert ["error" in answer for answer in answers] == [True, True, False] and process.returncode == 1


@pytest.mark.slow
def test_a_folder_that_is_taken_away_costs_nothing(tmp_path):
    process = session("--out", tmp_path / "s")
    say(process, "find the sponge")
    until(lambda: any((tmp_path / "s").glob("01-*/report.html")))
    shutil.rmtree(tmp_path / "s")
    os.kill(children_of(process.pid)["serve"], signal.SIGKILL)
    say(process, "find the sponge", "quit")
    _, out, err = finish(process)
    assert plan_of(tmp_path / "s" / "02-find-the-sponge")["success"], out + err


@pytest.mark.slow
def test_what_is_killed_while_it_starts_again_is_started_once_more_and_not_before_a_release(tmp_path):
    process = session("--out", tmp_path / "s")
    say(process, "find the sponge")
    until(lambda: any((tmp_path / "s").glob("01-*/report.html")))
    first = children_of(process.pid)
    for pid in first.values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: children_of(process.pid).get("serve", first["serve"]) != first["serve"])
    say(process, "stop")
    os.kill(children_of(process.pid)["serve"], signal.SIGKILL)
    say(process, "find the sponge")
    until(lambda: any((tmp_path / "s").glob("02-*/report.html")))
    say(process, "release", "find the sponge", "quit")
    _, out, err = finish(process)
    plans = [plan_of(folder) for folder in sorted((tmp_path / "s").glob("0*"))]
    assert [plan["ended"] for plan in plans] == ["done", "error", "done"], out + err


@pytest.mark.slow
def test_nobody_waits_for_a_dead_robot_after_the_end_of_the_input(tmp_path):
    process, robot, _, _ = beside_others(tmp_path / "s")
    robot.kill()
    robot.wait()
    code, out, _ = finish(process)
    assert code == 0 and out.count("loading the kitchen robot") <= 2


def test_an_interrupt_while_it_loads_ends_it_at_once(tmp_path):
    process = session("--out", tmp_path / "s")
    until(lambda: "serve" in children_of(process.pid))
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, err) == (130, "") and "✓ skill server" not in out


@pytest.mark.slow
def test_a_folder_in_which_nothing_happened_is_not_left(tmp_path):
    for _ in range(2):
        code, _, err = finish(session("--server", "127.0.0.1:1", "--out", tmp_path / "s"))
        assert code == 2 and "nothing listens there" in err and not (tmp_path / "s").exists()


def page_of(process):
    """The address of a live page, and its process."""
    address = next(line for line in process.stdout if "Watch it at" in line).split()[-1]
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)]
    rows = subprocess.run(command, capture_output=True, text=True).stdout
    return address, next(int(row.split()[0]) for row in rows.splitlines() if "saycan_qt.view" in row)


@pytest.mark.slow
def test_without_its_page_a_session_ends_with_the_input(tmp_path):
    process = session("--live", "--out", tmp_path / "s")
    _, page = page_of(process)
    say(process, "find the sponge")
    until(lambda: any((tmp_path / "s").glob("01-*/report.html")))
    process.stdin.close()
    os.kill(page, signal.SIGKILL)
    assert process.wait(60) == 0


@pytest.mark.slow
def test_what_is_said_of_a_step_after_the_end_is_in_the_report(tmp_path):
    process = session("--live", "--ask", "never", "--out", tmp_path / "s")
    address, _ = page_of(process)
    say(process, INSTRUCTION)
    until(lambda: any((tmp_path / "s").glob("01-*/report.html")))
    with connect(address.replace("http", "ws") + "watch", origin=address.rstrip("/")) as page:
        page.send(json.dumps({"do": "judge", "step": 2, "outcome": "failed"}))
        [folder] = (tmp_path / "s").glob("01-*")
        until(lambda: '"corrected":"failed"' in (folder / "report.html").read_text())
    assert plan_of(folder)["steps"][1]["corrected"] == "failed"
    say(process, "quit")
    assert finish(process)[0] == 0
