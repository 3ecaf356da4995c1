"""Stop always gets through: the guard beside a robot's service, with faults made for real."""

import contextlib
import http.client
import http.server
import json
import os
import pty
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from certificates import make
from tiny_services import LineRobot, wait_until

from saycan_qt import robot as robot_command
from saycan_qt.services.access import ServerOptions
from skills import robot as robot_service
from skills.client import RobotClient
from skills.errors import InvalidRequest, ServerFault, Stopped, Unavailable
from skills.guard.client import stop_robot
from skills.guard.link import Guard
from skills.guard.process import CONNECTIONS
from skills.latch import Latch
from skills.library import SkillLibrary
from skills.security.access import Access, Holder, Tokens, digest
from skills.security.channel import Credentials
from skills.security.tls import ClientTLS, ServerTLS
from skills.types import Status

LIBRARY = SkillLibrary.load()
HERE = Path(__file__).parent
SCRIPTED = "go to table"


class Roamer(LineRobot):
    """Moves about until it is told not to."""

    def perform(self, skill, canceled):
        while not canceled():
            self.applied += 1
            self.moving.set()
            time.sleep(0.005)

    def succeeded(self, skill):
        return None


@pytest.fixture
def robot():
    return Roamer()


@pytest.fixture
def server(robot):
    with robot_service.serve(robot, LIBRARY) as server:
        yield server


@pytest.fixture
def client(server):
    with RobotClient(server.address) as client:
        yield client


def post(address, path="/stop", method="POST", **headers):
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def client_of(files):
    return Credentials(ClientTLS.load(*(files / name for name in ("ca.pem", "client.pem", "client.key"))))


def moves(client, robot):
    before = robot.applied
    with client.execute(SCRIPTED):
        wait_until(lambda: robot.applied > before)
    return True


def outcome_of(events):
    *_, outcome = events
    return outcome


class Process:
    """tests/guarded_robot.py, moving."""

    def __init__(self, folder, *fault, **options):
        self.notes = folder / "notes"
        (folder / "stop_command.py").write_text(
            f"import time\ndef halt():\n    open({str(self.notes)!r}, 'a').write(f'command {{time.monotonic()}}\\n')\n"
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, str(HERE / "guarded_robot.py"), str(self.notes), *fault]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes | options)
        self.address, self.guard = self.process.stdout.readline().split()
        self.client = RobotClient(self.address)
        self.execution = self.client.execute(SCRIPTED)
        wait_until(lambda: "moves" in self.read())

    def read(self):
        return self.notes.read_text() if self.notes.exists() else ""

    def when(self, what):
        return [float(line.split()[1]) for line in self.read().splitlines() if line.startswith(what)]

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        time.sleep(0.1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.process.kill()
        self.process.communicate()


# ---- Stop by its own road


def test_anybody_stops_the_robot_with_a_plain_http_request(server, client, robot, machine):
    execution = client.execute(SCRIPTED)
    assert robot.moving.wait(10)
    machine.lateness()
    asked = time.monotonic()
    assert post(server.guard.address) == (200, {"stopped": True, "halted": True})
    assert time.monotonic() - asked < 0.1 + machine.lateness()
    assert outcome_of(execution).status is Status.CANCELED and robot.stops and client.info().stopped
    with pytest.raises(Stopped):
        outcome_of(client.execute(SCRIPTED))
    client.reset()
    assert moves(client, robot)


def test_a_client_stops_by_either_road(server, robot):
    """The first knows no service, the second no guard."""
    for address in (server.guard.address, server.address):
        with RobotClient(address, stop_address=address) as client:
            stops = robot.stops
            client.stop()
            assert robot.stops > stops
        server.guard.reset()


@pytest.mark.parametrize("fail", [lambda: 1 / 0, sys.exit])
def test_a_stop_that_the_driver_fails_to_carry_out_is_no_success_by_either_road(server, client, robot, capsys, fail):
    client.info()  # both roads
    stop, robot.stop = robot.stop, fail
    server.guard._stop = robot.stop
    with pytest.raises(ServerFault):
        client.stop()
    assert server.guard.stopped
    assert robot_command.stop(robot_command.RobotConfig(stop=server.guard.address)) == 2
    assert "has not said that it halted" in capsys.readouterr().err
    robot.stop = stop


def test_the_guard_lets_in_whom_the_service_lets_in(tmp_path):
    tokens = Tokens([Holder(role, digest(role), frozenset({role})) for role in ("read", "stop", "drive")])
    with robot_service.serve(LineRobot(), LIBRARY, access=Access(tokens=tokens)) as server:
        address = server.guard.address
        assert post(address)[0] == post(address, authorization="Bearer nobody")[0] == 401
        assert post(address, authorization="Bearer read")[0] == 403 and not server.guard.stopped
        assert post(address, authorization="Bearer stop")[0] == 200 and server.guard.stopped
        server.guard.reset()
        assert post(address, authorization="bearer drive")[0] == 200


def test_the_guard_refuses_a_token_that_expired_and_hears_of_new_ones(tmp_path):
    line = "- {{name: {0}, sha256: {1}, roles: [stop], expires: {2}}}\n"
    (file := tmp_path / "tokens.yaml").write_text(line.format("old", digest("old"), "2026-01-31T18:00:00Z"))
    access = ServerOptions(tokens=file).load("127.0.0.1")
    with robot_service.serve(LineRobot(), LIBRARY, access=access) as server:
        assert post(server.guard.address, authorization="Bearer old")[0] == 401 and not server.guard.stopped
        file.write_text(line.format("new", digest("new"), "2199-01-31T18:00:00Z"))
        assert access.reload()
        wait_until(lambda: post(server.guard.address, authorization="Bearer new")[0] == 200)
        file.write_text(line.format("newer", digest("newer"), "2199-01-31T18:00:00Z"))
        assert access.reload()
        wait_until(lambda: post(server.guard.address, authorization="Bearer newer")[0] == 200)
        assert post(server.guard.address, authorization="Bearer new")[0] == 401


def test_the_guard_trusts_renewed_authorities_and_no_former_ones(tmp_path):
    now, later = make(tmp_path), make(tmp_path / "later")
    access = ServerOptions(*(now / name for name in ("server.pem", "server.key", "ca.pem"))).load("127.0.0.1")
    former, other = (
        Credentials(ClientTLS.load(now / "ca.pem", folder / "client.pem", folder / "client.key"))
        for folder in (now, later)
    )
    with robot_service.serve(LineRobot(), LIBRARY, access=access) as server:
        with pytest.raises(Unavailable):
            stop_robot(server.guard.address, other)
        shutil.copy(later / "ca.pem", now / "ca.pem")
        assert access.reload()
        time.sleep(0.2)
        with pytest.raises(Unavailable):
            stop_robot(server.guard.address, former)
        assert not server.guard.stopped and stop_robot(server.guard.address, other) and server.guard.stopped


def test_the_guard_speaks_tls_where_the_service_does(tmp_path):
    files = make(tmp_path)
    tls = ServerTLS.load(*(files / name for name in ("server.pem", "server.key", "ca.pem")))
    ours = client_of(files)
    without = Credentials(ClientTLS.load(files / "ca.pem"))
    with robot_service.serve(LineRobot(), LIBRARY, access=Access(tls)) as server:
        for refused in (Credentials(), without):
            with pytest.raises(Unavailable):
                stop_robot(server.guard.address, refused)
        assert server.guard.url.startswith("https:") and not server.guard.stopped
        assert stop_robot(server.guard.address, ours) and server.guard.stopped


def test_a_guard_that_cannot_read_a_renewed_certificate_keeps_the_one_before(tmp_path, monkeypatch, capfd):
    files = make(tmp_path / "files")
    (folder := tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    access = ServerOptions(files / "server.pem", files / "server.key", files / "ca.pem").load("127.0.0.1")
    with robot_service.serve(LineRobot(), LIBRARY, access=access) as server:
        folder.rmdir()
        assert access.reload()
        wait_until(lambda: "its certificate stays as it was: " in capfd.readouterr().err)
        assert not server.guard.lost and stop_robot(server.guard.address, client_of(files))


@pytest.mark.parametrize("encoding", ["utf-8", "latin2"])
def test_authorities_are_read_whatever_the_comments_beside_them(tmp_path, encoding):
    files = make(tmp_path)
    (files / "ca.pem").write_bytes("# Főtanúsítvány\n".encode(encoding) + (files / "ca.pem").read_bytes())
    access = ServerOptions(files / "server.pem", files / "server.key", files / "ca.pem").load("127.0.0.1")
    with robot_service.serve(LineRobot(), LIBRARY, access=access) as server:
        for _ in range(2):
            assert stop_robot(server.guard.address, client_of(files))
            assert access.reload()
            time.sleep(0.2)
        assert not server.guard.lost


def test_authorities_that_grpc_trusts_are_trusted_by_a_python_that_is_stricter(tmp_path, monkeypatch):
    """3.13 and later want what an authority made as in docs/services.md does not say."""
    files, default = make(tmp_path), ssl.create_default_context

    def strict(*arguments, **more):
        context = default(*arguments, **more)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr("ssl.create_default_context", strict)
    access = Access(ServerTLS.load(files / "server.pem", files / "server.key"))
    with robot_service.serve(LineRobot(), LIBRARY, access=access) as server:
        assert stop_robot(server.guard.address, Credentials(ClientTLS.load(files / "ca.pem")))


def test_a_guard_at_a_name_tells_the_name_that_its_certificate_is_for(tmp_path, monkeypatch):
    monkeypatch.setattr("certificates.SERVER", "subjectAltName=DNS:localhost")
    files = make(tmp_path)
    access = Access(ServerTLS.load(files / "server.pem", files / "server.key"))
    with robot_service.serve(LineRobot(), LIBRARY, address="localhost:0", access=access) as server:
        assert server.guard.address.startswith("localhost:")
        assert stop_robot(server.guard.address, Credentials(ClientTLS.load(files / "ca.pem")))
    everywhere = Guard(lambda: None, address="0:0")  # of which clients make the service's host
    assert everywhere.address.startswith("0.0.0.0:")
    everywhere.close()


class Listening(http.server.HTTPServer):
    """What is asked of it; answers with a list."""

    def __init__(self):
        self.asked = asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                asked.append(self.path)
                self.send_response(500)
                self.end_headers()
                self.wfile.write(b"[1]")

            def log_message(self, *_): ...

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def test_a_stop_command_goes_to_its_robot_and_not_through_a_proxy(monkeypatch):
    with Listening() as arm, Listening() as proxy:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        command = f"http://127.0.0.1:{arm.server_port}/halt"
        with robot_service.serve(LineRobot(), LIBRARY, stop_command=command) as server:
            assert stop_robot(server.guard.address)
            wait_until(lambda: arm.asked or proxy.asked)
        assert {*arm.asked} == {"/halt"} and not proxy.asked


def test_a_stop_that_cannot_be_said_is_unavailable(tmp_path, monkeypatch):
    files = make(tmp_path)
    with Listening() as other, pytest.raises(Unavailable, match="does not answer"):
        stop_robot(f"127.0.0.1:{other.server_port}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(Unavailable, match="No such file"):
        stop_robot("127.0.0.1:1", client_of(files))


@pytest.mark.parametrize(
    "path, method, status", [("/stop", "GET", 405), ("/halt", "POST", 404), ("/healthz", "GET", 200)]
)
def test_other_requests_stop_nothing(server, path, method, status):
    assert post(server.guard.address, path, method)[0] == status and not server.guard.stopped


def test_silent_connections_do_not_keep_a_stop_out(server, machine):
    host, port = server.guard.address.split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(CONNECTIONS + 100)]
    for each in silent[::2]:
        each.send(b"POST /stop HTTP/1.1\r\nx: ")
    took = []
    for _ in range(3):
        machine.lateness()
        asked = time.monotonic()
        assert post(server.guard.address)[0] == 200
        took.append(time.monotonic() - asked - machine.lateness())
    for each in silent:
        each.close()
    assert sorted(took)[1] < 0.1


# ---- what Stop promises


def test_a_reset_and_a_goal_while_stop_waits_for_the_driver_move_nothing(server, client, robot):
    told, stop = threading.Event(), robot.stop

    def slow_stop():
        told.set()
        time.sleep(0.3)
        stop()

    robot.stop = server.guard._stop = slow_stop
    stopping = threading.Thread(target=client._stub.Stop, args=(robot_service.pb.StopRequest(),))
    stopping.start()
    assert told.wait(10)
    with pytest.raises(Stopped, match="at this moment"):
        client.reset()
    with pytest.raises(Stopped):
        outcome_of(client.execute(SCRIPTED))
    stopping.join()
    with pytest.raises(Stopped):
        outcome_of(client.execute(SCRIPTED))
    assert not robot.applied and client.info().stopped


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP])
def test_without_its_guard_the_robot_does_not_move(server, client, robot, machine, death):
    execution = client.execute(SCRIPTED)
    assert robot.moving.wait(10)
    machine.lateness()
    os.kill(server.guard._process.pid, death)
    killed = time.monotonic()
    outcome = outcome_of(execution)
    assert time.monotonic() - killed < (0.1 if death == signal.SIGKILL else 1.3) + machine.lateness()
    assert outcome.status is Status.CANCELED and "guard" in outcome.message and robot.stops
    with pytest.raises(Unavailable, match="guard"):
        outcome_of(client.execute(SCRIPTED))
    os.kill(server.guard._process.pid, signal.SIGCONT) if death == signal.SIGSTOP else None
    if death == signal.SIGSTOP:
        wait_until(lambda: not server.guard.refusal())
        assert moves(client, robot)


# ---- a service that does not answer


@pytest.mark.parametrize("fault", ["hold", "deafen", "freeze"])
def test_a_service_that_does_not_answer_is_halted_and_ended_within_a_second(tmp_path, machine, fault):
    """The interpreter's lock is held; gRPC's serving thread is stuck; the process is frozen."""
    with Process(tmp_path, fault) as service:
        machine.lateness()
        begun = time.monotonic()
        service.process.send_signal(signal.SIGSTOP) if fault == "freeze" else service.go()
        _, said = service.process.communicate(timeout=20)
        took = time.monotonic() - begun
    assert service.process.returncode == -signal.SIGKILL and "has not answered" in said
    assert took < 1.8 + machine.lateness() and service.when("command")[0] - begun < 1.5 + machine.lateness()
    assert max(service.when("moves")) < begun + 1.5 + machine.lateness()


def test_a_guard_that_is_starved_itself_still_ends_a_service_that_does_not_answer(tmp_path):
    """Each of its looks is late, as on a machine with far too much to do: then it judges later, not never."""
    with Process(tmp_path) as service:
        tasks = Path(f"/proc/{service.process.pid}/task").glob("*/children")
        (guard,) = (int(pid) for task in tasks for pid in task.read_text().split())
        service.process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        while service.process.poll() is None and time.monotonic() - begun < 15:
            for asked, pause in ((signal.SIGSTOP, 0.3), (signal.SIGCONT, 0.03)):
                os.kill(guard, asked)
                time.sleep(pause)
        assert service.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("fault", ["hold", "deafen"])
def test_stop_gets_through_to_a_service_that_hangs(tmp_path, machine, fault):
    with Process(tmp_path, fault) as service:
        service.go()
        machine.lateness()
        asked = time.monotonic()
        assert stop_robot(service.guard)
        assert time.monotonic() - asked < 0.15 + machine.lateness()
        assert service.when("command")[0] < asked + 0.1 + machine.lateness()


def test_a_service_that_is_killed_leaves_the_robot_halted_by_its_command(tmp_path, machine):
    with Process(tmp_path, "command") as service:
        service.process.kill()
        wait_until(lambda: service.when("command"), 5)


def test_a_service_that_is_killed_before_it_has_read_all_that_its_guard_said_is_no_different(tmp_path):
    with Process(tmp_path, "command") as service:
        service.process.send_signal(signal.SIGSTOP)
        assert post(service.guard)[0] == 200
        halted = len(service.when("command"))
        service.process.kill()
        wait_until(lambda: len(service.when("command")) > halted, 5)
        assert "Traceback" not in service.process.stderr.read()


# ---- signals


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGTERM] * 2, [signal.SIGINT, signal.SIGTERM]])
def test_a_signal_halts_the_robot_first(tmp_path, signals):
    with Process(tmp_path) as service:
        for number in signals:
            service.process.send_signal(number)
        assert service.process.wait(10) in {0, *(128 + number for number in signals[1:] and signals)}
        assert service.when("stop")


def test_a_closed_terminal_halts_the_robot_first(tmp_path):
    ours, theirs = pty.openpty()
    leads = {"start_new_session": True, "preexec_fn": lambda: os.close(os.open(os.ttyname(theirs), os.O_RDWR))}
    with Process(tmp_path, stdin=theirs, **leads) as service:
        service.process.send_signal(signal.SIGHUP)  # the terminal is there: nothing ends
        time.sleep(0.3)
        assert service.process.poll() is None
        os.close(theirs)
        os.close(ours)
        assert service.process.wait(10) == 0 and service.when("stop")


# ---- beginning


@pytest.mark.parametrize(
    "command", ["nowhere:halt", "json:nothing", "json:__name__", "halt", "ftp://x/halt", "http://"]
)
def test_a_stop_command_that_is_none_is_told_at_the_start(command):
    with pytest.raises(Unavailable, match=f"stop command {command}"):
        robot_service.serve(LineRobot(), LIBRARY, stop_command=command)


def test_what_is_no_port_is_told_at_the_start_and_leaves_no_guard(capfd):
    with pytest.raises(InvalidRequest, match=r"70000. is not an address"):
        robot_service.serve(LineRobot(), LIBRARY, stop_address="127.0.0.1:70000")
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_told_at_the_start():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Unavailable, match="in use"):
        robot_service.serve(LineRobot(), LIBRARY, stop_address=f"127.0.0.1:{taken.getsockname()[1]}")


# ---- faults at the worst moment


def test_a_guard_that_dies_while_it_halts_the_robot_leaves_nothing_moving(server, client, robot):
    """It is killed by the very `stop` that it asked for."""
    lost, stop = threading.Event(), robot.stop
    server.guard.on_loss = lost.set

    def deadly_stop():
        stop()
        server.guard._process.kill()
        server.guard._process.wait()

    robot.stop = server.guard._stop = deadly_stop
    execution = client.execute(SCRIPTED)
    assert robot.moving.wait(10)
    with pytest.raises(OSError):
        post(server.guard.address)
    assert outcome_of(execution).status is Status.CANCELED and lost.wait(10)


def test_a_slow_stop_keeps_no_skill_going(server, client, robot):
    execution = client.execute(SCRIPTED)
    assert robot.moving.wait(10)
    server.guard._stop = lambda: time.sleep(3)
    asked = time.monotonic()
    assert post(server.guard.address) == (200, {"stopped": True, "halted": False})
    assert outcome_of(execution).status is Status.CANCELED and time.monotonic() - asked < 2


class frozen:
    """A guard, meanwhile."""

    def __init__(self, guard):
        self.pid = guard._process.pid

    def __enter__(self):
        os.kill(self.pid, signal.SIGSTOP)
        time.sleep(0.05)

    def __exit__(self, *_):
        os.kill(self.pid, signal.SIGCONT)


def stop_in_vain(guard, done=lambda: None):
    with pytest.raises(ServerFault, match="not answer"), guard.stopping():
        done()


def test_a_reset_that_the_guard_hears_together_with_a_later_stop_releases_nothing(server):
    guard, ends = server.guard, []

    def reset():
        with pytest.raises(ServerFault, match="stays stopped"):
            guard.reset()
        ends.append("stopped")

    def stop():
        with guard.stopping():
            pass

    with frozen(guard):
        threads = []
        for work in (reset, stop):
            threads.append(threading.Thread(target=work))
            threads[-1].start()
            time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert ends and guard.stopped and not guard._stops


@pytest.mark.parametrize("begin", [Guard.reset, stop_in_vain])
def test_what_a_frozen_guard_has_not_answered_leaves_the_robot_stopped_when_it_thaws(server, begin):
    guard = server.guard
    if begin == Guard.reset:
        stop_robot(guard.address)
    with frozen(guard):
        if begin == Guard.reset:
            with pytest.raises(ServerFault, match="stays stopped"):
                begin(guard)
        else:
            begin(guard)
        assert guard.stopped
    wait_until(lambda: not guard._stops)
    assert guard.stopped
    guard.reset()


def test_many_stops_to_a_frozen_guard_all_halt_the_driver(server):
    """More than its socket takes."""
    begun = []
    with frozen(server.guard):
        threads = [threading.Thread(target=stop_in_vain, args=(server.guard, lambda: begun.append(1)))]
        for _ in range(400):
            server.guard._begin_stop()
        threads[0].start()
        wait_until(lambda: begun, 1)
        threads[0].join()


def test_a_service_with_many_files_open_hears_its_guard():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with robot_service.serve(LineRobot(), LIBRARY) as server:
            assert stop_robot(server.guard.address)
    finally:
        for file in files:
            os.close(file)


def test_a_robot_that_cannot_be_stopped_at_the_end_is_halted_by_its_command_and_leaves_no_guard(tmp_path, monkeypatch):
    (tmp_path / "last_halt.py").write_text(f"def halt():\n    open({str(tmp_path / 'halted')!r}, 'a').write('.')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for fails in (False, True):
        robot = LineRobot()
        server = robot_service.serve(robot, LIBRARY, stop_command="last_halt:halt")
        robot.stop = (lambda: 1 / 0) if fails else robot.stop
        with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
            server.stop()
        assert server.guard._process.returncode == 0 and (tmp_path / "halted").exists() == fails


@pytest.mark.parametrize("halt", ["time.sleep(60)", "sys.exit(1)"])
def test_a_stop_command_that_hangs_or_exits_keeps_no_stop_from_the_latch(tmp_path, monkeypatch, halt):
    (tmp_path / f"bad_{len(halt)}.py").write_text(f"import sys, time\ndef halt():\n    {halt}\n")
    monkeypatch.syspath_prepend(tmp_path)
    latch = Latch(tmp_path / "latch")
    with robot_service.serve(LineRobot(), LIBRARY, latch=latch, stop_command=f"bad_{len(halt)}:halt") as server:
        for _ in range(6):
            assert stop_robot(server.guard.address)
        assert latch.file.exists()
    assert server.guard._process.returncode == 0


def test_nobody_who_reads_the_errors_keeps_no_stop_out(tmp_path):
    pipe = os.pipe()
    os.set_blocking(pipe[1], False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe[1], b"x" * size)
    os.set_blocking(pipe[1], True)
    errors = os.dup(2)
    os.dup2(pipe[1], 2)  # which the guard inherits
    try:
        server = robot_service.serve(LineRobot(), LIBRARY, latch=Latch(tmp_path / "latch"))
    finally:
        os.dup2(errors, 2)
    for _ in range(6):
        assert stop_robot(server.guard.address)
    server.stop()
    assert server.guard._process.returncode == 0
    for descriptor in (*pipe, errors):
        os.close(descriptor)


def test_a_service_that_is_killed_before_it_reads_its_guard_is_halted_by_its_command_still(tmp_path):
    with Process(tmp_path, "command") as service:
        service.process.send_signal(signal.SIGSTOP)
        stop_robot(service.guard)
        commands = len(service.when("command"))
        service.process.kill()
        wait_until(lambda: len(service.when("command")) > commands, 5)


def test_a_temporary_folder_with_a_long_path_is_no_matter(tmp_path, monkeypatch):
    (long := tmp_path / ("x" * 100)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with robot_service.serve(LineRobot(), LIBRARY) as server:
        assert not server.guard.refusal()
