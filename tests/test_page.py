"""The page's server: what it is told, whom it lets in, what it shows of folders that may be anybody's."""

import contextlib
import http.client
import json
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import certificates
import pytest
from played_run import PLAN, PlayedRun, jpeg, page_beside, step
from tiny_services import LineRobot, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from saycan_qt.journey.display import VERDICTS
from saycan_qt.journey.live import Hands
from saycan_qt.journey.report import write_report
from saycan_qt.journey.results import RunFolder
from saycan_qt.page import commands, server
from saycan_qt.page.document import template
from saycan_qt.page.hub import Hub
from saycan_qt.page.link import Link
from saycan_qt.page.runs import NoRun, Runs, inside, read_plan
from saycan_qt.page.server import PageServer
from saycan_qt.page.state import MOST_WAITING, Outbox, State
from saycan_qt.services.access import ClientOptions
from saycan_qt.view import shown
from skills.errors import AccessError
from skills.library import SkillLibrary
from skills.robot import serve
from skills.security.access import NEEDS, Access, Holder, Tokens, digest
from skills.security.tls import ServerTLS

HOLDERS = [Holder(f"the {role}er", digest(f"{role}-token"), frozenset({role})) for role in ("read", "stop", "drive")]
GUARDED = Access(tokens=Tokens(HOLDERS))


def ask(url, path="/", method="GET", body=None, context=None, **headers):
    """(status, headers, text)."""
    parts = urlsplit(url)
    if context is None:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    else:
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=10, context=context)
    with contextlib.closing(connection):
        connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode(errors="replace")


def boot(text):
    return json.loads(re.search(r'<script id="boot" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


class Looker:
    """A page without a browser."""

    def __init__(self, url, origin=None, hears=True, **headers):
        given = {"Origin": url.rstrip("/") if origin is None else origin, **headers}
        address = url.replace("http", "ws", 1) + "watch"
        self.socket = connect(address, additional_headers=given, max_size=None, proxy=None)
        self.hears, self.count, self.events, self.frames, self.replies = hears, 0, [], [], []

    def send(self, **command):
        self.socket.send(json.dumps(command))

    def until(self, true, seconds=10):
        deadline = time.monotonic() + seconds
        while not true(self):
            message = self.socket.recv(timeout=max(0.01, deadline - time.monotonic()))
            if isinstance(message, bytes):
                self.frames.append(message)
            elif "reply" in (message := json.loads(message)):
                self.replies.append(message["reply"])
                continue
            else:
                self.events += message["events"]
            self.count += 1
            if self.hears:
                self.send(seen=self.count)
        return self

    def told(self, kind):
        return [event[kind] for event in self.events if kind in event]

    def reply(self):
        return self.until(lambda self: self.replies).replies.pop()


@contextlib.contextmanager
def looking(run, **options):
    looker = Looker(run.server.url, **options)
    with looker.socket:
        yield looker


# -- the link --------------------------------------------------------------------------------------------------------


def test_messages_and_what_follows_them_arrive_as_they_were_sent():
    with PlayedRun() as run:
        other = Link(run.other).receive()
        run.tell(line="é “\n” <script>")
        run.show("head", b"\n{}\n")
        first, second = next(other), next(other)
        assert first == {"line": "é “\n” <script>"} and (second["view"], second["bytes"]) == ("head", b"\n{}\n")
        run.link.close()
        assert list(other) == []


def test_of_what_waits_only_the_newest_picture_of_a_view_and_the_newest_now_count():
    with PlayedRun() as run:
        run.link.send({"line": "long"}, bytes(4_000_000))  # which nobody reads yet
        for number in range(1000):
            run.show("head", b"%d" % number)
            run.show("room", b"%d" % number)
            run.tell(now={"control_step": number}, line=str(number))
        run.tell(line="over")
        threading.Thread(target=run.link.close).start()
        seen = list(Link(run.other).receive())
    assert [m["line"] for m in seen if "line" in m][1:-1] == [str(number) for number in range(1000)]
    assert [m["bytes"] for m in seen if "view" in m][-2:] == [b"999", b"999"] and len(
        [m for m in seen if "view" in m]
    ) < 9
    assert [m["now"]["control_step"] for m in seen if "now" in m][-1] == 999


def test_a_page_that_never_reads_is_given_up_once_and_sending_never_waits(caplog):
    began = time.monotonic()
    with PlayedRun() as run:
        for number in range(30_000):
            run.tell(line=f"{number} " + "x" * 100)
        assert time.monotonic() - began < 5
    assert [record.getMessage() for record in caplog.records] == [
        "the page has not read for too long, and is told nothing more"
    ]


def test_what_is_no_message_is_left_out_and_told(caplog):
    own, other = socket.socketpair()
    with own, other, caplog.at_level(logging.WARNING):
        own.sendall(b'nonsense\n[1]\n{"bytes": -1}\n{"line": NaN}\n{"line": "good"}\n{"bytes": 5}\nab')
        own.shutdown(socket.SHUT_WR)
        assert list(Link(other).receive()) == [{"line": None}, {"line": "good"}]
    assert len(caplog.records) == 3


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_who_joins_late_is_told_what_all_events_add_up_to():
    state = State()
    for event in (
        {"run": {"name": "first", "folder": "/a", "plan": PLAN}},
        {"facts": {"success": True, "reason": "good"}},
        {"run": {"name": "second", "folder": "/b", "plan": PLAN}},
        {"step": step(1, outcome="weighed")},
        {"step": step(1, "find the apple", "succeeded")},
        {"question": {"id": 1}},
        {"question": None},
        {"line": "told"},
        {"stopped": True},
        {"nonsense": 1},
    ):
        state.apply(event)
    whole = state.whole()
    assert [row["text"] for row in whole["run"]["steps"]] == ["find the apple"]
    assert (whole["question"], whole["lines"], whole["stopped"], "nonsense" in whole) == (None, ["told"], True, False)
    assert [(run["name"], run["success"]) for run in whole["earlier"]] == [("first", True)]
    assert "/b" not in json.dumps(whole)  # where it lies is nobody's business


def test_memory_is_flat_however_long_a_run_is_and_however_slowly_a_page_reads():
    state, outbox = State(), Outbox()
    outbox.take(state)
    state.apply({"run": {"name": "long", "folder": "/a", "plan": PLAN}})
    for number in range(10_000):
        for event in ({"step": step(number)}, {"line": "x"}, {"now": {"step": number}}):
            outbox.add(state.apply(event))
            assert len(outbox._events) <= MOST_WAITING
        outbox.show("head", b"frame")
    events, frames = outbox.take(state)
    assert [*events[0]] == ["state"] and len(events) == 1 and frames == [b"frame"]
    assert len(json.dumps(events)) < 3_000_000


# -- live, without a browser -----------------------------------------------------------------------------------------


def test_a_page_is_told_the_whole_state_and_then_events_and_frames():
    with page_beside() as run:
        run.begin()
        run.tell(step=step(1))
        run.show("head", jpeg("red"))
        wait_until(lambda: run.hub.state.whole()["run"] and run.hub._frames)
        with looking(run) as looker:
            looker.until(lambda own: own.frames and own.events)
            assert looker.events[0]["state"]["run"]["plan"]["instruction"] == "bring me an apple"
            run.tell(step=step(1, outcome="succeeded"))
            looker.until(lambda own: own.told("step"))
            assert looker.told("step")[0]["outcome"] == "succeeded"


def test_commands_arrive_as_they_were_given_and_nonsense_does_not():
    with page_beside() as run, looking(run) as looker:
        for command in (
            {"do": "instruct", "text": "bring me\n an apple "},
            {"do": "answer", "id": 7, "text": ""},
            {"do": "judge", "step": 3, "outcome": "failed", "more": 1},
            {"do": "asks", "when": "always"},
            {"do": "release"},
        ):
            looker.send(**command)
            assert looker.reply()["ok"]
        assert [run.heard() for _ in range(5)] == [
            {"do": "instruct", "text": "bring me an apple"},
            {"do": "answer", "id": 7, "text": ""},
            {"do": "judge", "step": 3, "outcome": "failed"},
            {"do": "asks", "when": "always"},
            {"do": "release"},
        ]
        looker.send(do="drop tables")
        assert looker.reply()["ok"] is False and run.commands.empty()


@pytest.mark.parametrize(
    "message",
    [
        *("", "[]", "{", "[" * 100_000, '"stop"', '{"do": "stop it"}', '{"do": "instruct"}', '{"seen": true}'),
        *('{"do": "instruct", "text": " \\n "}', '{"do": "answer", "id": "7", "text": "1"}', '{"seen": -1}'),
        *('{"do": "judge", "step": 3, "outcome": "great"}', '{"do": "asks", "when": "sometimes"}', '{"seen": 1e9}'),
        json.dumps({"do": "instruct", "text": "x" * 2001}),
        json.dumps({"do": "instruct", "text": "\ud800"}),
        json.dumps({"do": "answer", "id": True, "text": ""}),
        json.dumps({"do": "judge", "step": 1 << 60, "outcome": "failed"}),
    ],
)
def test_what_no_page_sends_is_no_command(message):
    with pytest.raises(commands.NoCommand):
        commands.read(message)


def test_a_page_that_does_not_say_that_it_hears_is_sent_no_more_and_frames_are_dropped():
    with page_beside() as run:
        run.begin()
        with looking(run, hears=False) as looker:
            looker.until(lambda own: own.events)
            for number in range(200):
                run.show("head", jpeg("red", (64, 64)) + b"%03d" % number)
                run.tell(now={"control_step": number})
                time.sleep(0.001)
            wait_until(lambda: run.hub._frames["head"].endswith(b"199"))
            with pytest.raises(TimeoutError):
                looker.until(lambda own: False, seconds=0.5)
            assert looker.count <= server.AHEAD + 1
            looker.hears, last = True, b"199"
            looker.send(seen=looker.count)
            looker.until(lambda own: own.frames[-1].endswith(last) and own.told("now")[-1]["control_step"] == 199)
            assert len(looker.frames) < 12


def test_where_no_robot_is_yet_stop_is_kept_for_it():
    with page_beside() as run, looking(run) as looker:
        looker.send(do="stop")
        assert "as soon as" in looker.reply()["text"] and run.hub._stop_it


def test_a_robot_that_the_run_started_is_stopped_also_where_the_skill_server_takes_tls(tmp_path):
    hub = Hub(None, ClientOptions(certificates.make(tmp_path) / "ca.pem").load())
    with serve(LineRobot(), SkillLibrary.load()) as robot, contextlib.closing(hub):
        hub.tell({"robot": {"name": "own", "address": robot.address, "guard": "", "own": True}})
        assert hub.stop() == "the robot is stopped" and hub.state.stopped


def test_a_stop_that_reached_nobody_is_told_as_that_to_the_run_too():
    with page_beside() as run, looking(run) as looker:
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            address = f"127.0.0.1:{nobody.getsockname()[1]}"
        looker.until(lambda own: own.events)
        run.tell(robot={"name": "gone", "address": address, "guard": ""})
        looker.until(lambda own: own.told("robot"))
        looker.send(do="stop")
        answer = looker.reply()
        assert not answer["ok"] and answer["text"].startswith("the robot is not stopped: ")
        assert not run.hub.state.stopped and run.heard() == {"do": "stop"}


def test_a_run_that_a_stop_did_not_reach_ends_all_the_same():
    said, stopped, over = [], threading.Event(), threading.Event()
    feed, run = SimpleNamespace(tell=lambda **event: said.append(event)), SimpleNamespace(stopped=stopped)
    person, stack = SimpleNamespace(when="never", give_up=over.set), SimpleNamespace(stop=lambda: "nobody heard it")
    Hands(feed, person, stack, lambda: run)({"do": "stop"})
    assert stopped.is_set() and over.is_set() and said[-1] == {"line": "nobody heard it"}


def test_of_what_shall_be_previewed_meanwhile_the_newest_is_next():
    with page_beside() as run, looking(run) as looker:
        looker.until(lambda own: own.events)
        free = threading.Event()
        run.hub.preview = lambda skill: free.wait(10) and {"skill": skill, "maps": {}}
        for skill in ("first", "second", "third"):
            looker.send(do="preview", skill=skill)
        looker.send(do="stop")
        assert looker.reply()["do"] == "stop"
        free.set()
        looker.until(lambda own: len(own.replies) == 2)
        assert [reply["skill"] for reply in looker.replies] == ["first", "third"]


def test_so_many_may_look_on_and_no_more(monkeypatch):
    monkeypatch.setattr(server, "MOST_PAGES", 1)
    with page_beside() as run, looking(run) as first:
        first.until(lambda own: own.events)
        with looking(run) as second, pytest.raises(ConnectionClosed, match="so many"):
            second.until(lambda own: False)


# -- whom it lets in -------------------------------------------------------------------------------------------------


def test_every_command_needs_a_role():
    assert {*commands.METHODS.values(), commands.WATCH} == {method for method in NEEDS if method.startswith("/page/")}


def test_a_name_of_somebody_elses_leads_nowhere():
    with page_beside() as run:
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "a b"):
            status, _, text = ask(run.server.url, Host=host)
            assert status in (400, 403) and "boot" not in text
        for own in ("localhost:1234", "[::1]:9", "192.168.1.7", socket.gethostname()):
            assert ask(run.server.url, Host=own)[0] == 200


def test_another_web_site_commands_nothing():
    with page_beside() as run:
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", run.server.url.replace("http", "https")):
            with pytest.raises(InvalidStatus), looking(run, origin=origin):
                pass
            assert ask(run.server.url, "/stop", "POST", Origin=origin)[0] == 403
            assert ask(run.server.url, "/", "GET", Origin=origin)[0] == 403
        assert ask(run.server.url, "/stop", "POST")[0] == 403  # says nothing of where it comes from
        assert ask(run.server.url, "/stop", "POST", Origin=run.server.url.rstrip("/"))[0] == 200


def test_a_browser_is_told_to_load_nothing_from_elsewhere():
    with page_beside() as run:
        _, headers, text = ask(run.server.url)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import""", text)


def test_where_other_machines_reach_it_it_asks_for_what_other_services_ask():
    for access in (Access(), GUARDED):
        with pytest.raises(AccessError, match="TLS"):
            PageServer(None, Path("."), "0.0.0.0", 0, access)


def test_a_token_is_shown_once_and_its_roles_hold_for_each_command():
    with page_beside(access=GUARDED) as run:
        url, origin = run.server.url, run.server.url.rstrip("/")
        status, _, text = ask(url)
        assert status == 401 and boot(text)["mode"] == "enter"
        with looking(run) as stranger, pytest.raises(ConnectionClosed, match="needs a token"):
            stranger.until(lambda own: False)
        assert ask(url, "/enter", "POST", "wrong-token", Origin=origin)[0] == 403
        status, headers, _ = ask(url, "/enter", "POST", "read-token\n", Origin=origin)
        cookie = headers["Set-Cookie"]
        assert status == 200 and "read-token" not in cookie
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Secure" not in cookie
        shown = cookie.split(";")[0]
        assert boot(ask(url, Cookie=shown)[2])["mode"] == "live"
        with looking(run, Cookie=shown) as reader:
            for do in ({"do": "stop"}, {"do": "release"}, {"do": "instruct", "text": "go"}):
                reader.send(**do)
                assert "needs the role" in reader.reply()["text"]
        refused = pytest.raises(ConnectionClosed, match="needs the role 'read'")
        with looking(run, Authorization="Bearer drive-token") as driver, refused:  # drive alone does not look on
            driver.until(lambda own: False)
        assert ask(url, "/stop", "POST", Origin=origin)[0] == 403
        assert ask(url, "/stop", "POST", Origin=origin, Authorization="Bearer stop-token")[0] == 200


def test_a_token_that_is_taken_back_ends_what_it_opened(monkeypatch):
    monkeypatch.setattr(server, "ADMIT_EVERY", 0.1)
    access = Access(tokens=Tokens(HOLDERS))
    with page_beside(access=access) as run, looking(run, Authorization="Bearer read-token") as reader:
        reader.until(lambda own: own.events)
        access.tokens = Tokens(HOLDERS[1:])
        with pytest.raises(ConnectionClosed, match="not known here"):
            reader.until(lambda own: False)


def test_over_tls_it_is_the_same_and_a_new_certificate_counts_from_the_next_connection(tmp_path):
    certificates.make(tmp_path)

    def read(name="server"):
        return ServerTLS.load(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")

    access = Access(tls=read(), tokens=GUARDED.tokens)
    trusting = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    with page_beside(access=access, host="0.0.0.0") as run:
        url = f"https://127.0.0.1:{run.server.address.rpartition(':')[2]}/"
        _, headers, _ = ask(url, "/enter", "POST", "read-token", trusting, Origin=url.rstrip("/"))
        assert headers["Set-Cookie"].startswith("__Host-") and "Secure" in headers["Set-Cookie"]
        access.tls = read("stranger")
        with pytest.raises(ssl.SSLError):
            ask(url, context=trusting)


# -- folders of anybody ----------------------------------------------------------------------------------------------


def some_runs(folder):
    """Two runs, and traps: links that lead elsewhere, a script."""
    root = folder / "runs"
    for name, started in (("first", "2026-11-01"), ("it's <b> # % ? é", "2026-11-02")):
        (root / name / "pictures").mkdir(parents=True)
        views = {"room": "pictures/a #1.jpg"}
        plan = {**PLAN, "instruction": name, "started": started, "steps": [step(1, outcome="failed", views=views)]}
        (root / name / "plan.json").write_text(json.dumps(plan))
        (root / name / "pictures" / "a #1.jpg").write_bytes(jpeg("red"))
    (folder / "secret.jpg").write_bytes(b"secret")
    (root / "first" / "pictures" / "link.jpg").symlink_to(folder / "secret.jpg")
    (root / "first" / "report.html").write_text("<script>fetch('/stop', {method: 'POST'})</script>")
    return root


@pytest.fixture
def runs(tmp_path):
    return some_runs(tmp_path)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    root = some_runs(folder := tmp_path_factory.mktemp("library"))
    (root / "linked").mkdir()
    (root / "linked" / "plan.json").symlink_to(folder / "secret.jpg")
    with PageServer(None, Runs(root), "127.0.0.1", 0) as server:
        yield server


def test_a_folder_of_runs_is_a_list_the_newest_first(runs):
    rows = Runs(runs).list()
    assert [row["name"] for row in rows] == ["it's <b> # % ? é", "first"]
    assert {"instruction", "success", "reason", "seconds", "picture"} <= rows[0].keys()


def test_the_runs_of_a_session_are_in_the_list_of_the_folder_above(runs):
    (runs / "a session").mkdir()
    (runs / "first").rename(runs / "a session" / "01")
    with PageServer(None, Runs(runs), "127.0.0.1", 0) as server:
        names = [row["name"] for row in boot(ask(server.url)[2])["runs"]]
        assert names == ["it's <b> # % ? é", "a session/01"]
        for path in ("", "plan.json", "pictures/a%20%231.jpg"):
            assert ask(server.url, f"/runs/a%20session/01/{path}")[0] == 200
        assert ask(server.url, "/runs/a%20session/")[0] == ask(server.url, "/runs/a%20session/01/../x.jpg")[0] == 404


@pytest.mark.parametrize("path", ["pictures/a%20%231.jpg", "plan.json", ""])
def test_of_a_run_its_pictures_and_its_plan_are_served(library, path):
    assert ask(library.url, f"/runs/first/{path}")[0] == 200
    assert ask(library.url, f"/runs/it's%20%3Cb%3E%20%23%20%25%20%3F%20%C3%A9/{path}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/runs/first/../../secret.jpg", "/runs/first/%2e%2e/%2e%2e/secret.jpg", "/runs/%2e%2e/secret.jpg"),
        *("/runs/first/pictures/link.jpg", "/runs/first/report.html", "/runs/first//etc/passwd", "/runs/first/%00.jpg"),
        *("/runs/..%2f..%2fsecret.jpg", "/runs/first%2f../plan.json", "/secret.jpg", "/runs//plan.json", "/runs/./"),
        *("/runs/linked/plan.json", "/runs/linked/"),
    ],
)
def test_nothing_else_is_served(library, path):
    status, _, text = ask(library.url, path)
    assert status in (404, 307) and "secret" not in text.replace(path, "")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[1, 2]", "is not what a run leaves"),
        (b'{"instruction": "x", "steps": [1]}', "is not what a run leaves"),
        (b'{"instruction": %s, "steps": []}' % (b"1" * 5000), "is damaged"),
        (b"[" * 200_000, "is damaged"),
        (None, "is larger than"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(runs, content, why):
    with (runs / "first" / "plan.json").open("wb") as file:
        file.truncate(65 << 20) if content is None else file.write(content)
    with pytest.raises(NoRun, match=why) as told:
        shown(runs / "first")
    assert "\n" not in str(told.value)
    with PageServer(None, Runs(runs), "127.0.0.1", 0) as server:
        status, _, text = ask(server.url, "/runs/first/")
        assert status == 404 and why in text and text.count("\n") == 1
        [row] = [row for row in boot(ask(server.url)[2])["runs"] if row["name"] == "first"]
        assert why in row["error"]


def test_a_plan_that_is_no_file_or_has_odd_numbers_harms_nobody(runs):
    os.mkfifo(runs / "pipe")
    (runs / "odd").mkdir()
    os.mkfifo(runs / "odd" / "plan.json")
    assert "is no file" in next(row for row in Runs(runs).list() if row["name"] == "odd")["error"]
    odd = b'{"instruction": ["x"], "seconds": 1e999, "seed": NaN, "steps": []}'
    (runs / "first" / "plan.json").write_bytes(odd)
    with PageServer(None, Runs(runs), "127.0.0.1", 0) as server:
        assert boot(ask(server.url, "/runs/first/")[2])["plan"] == json.loads(
            '{"instruction": ["x"], "seconds": null, "seed": null, "steps": [], "video": null}',
            parse_constant=pytest.fail,
        )


def test_a_plan_names_no_file_outside_its_folder(runs):
    for name in ("../../secret.jpg", "/etc/passwd", "pictures/link.jpg", "pictures", "\0.jpg", 7, None, "x" * 5000):
        assert inside(runs / "first", name) is None
    plan = read_plan(runs / "first")
    plan["steps"][0]["views"] = {"room": "../../secret.jpg", "head": "plan.json"}
    (runs / "first" / "plan.json").write_text(json.dumps(plan))
    assert boot(write_report(runs / "first").read_text())["files"] == {}


def test_a_folder_without_runs_and_one_that_is_not_there_are_told(tmp_path):
    for folder, why in ((tmp_path, "holds no run"), (tmp_path / "none", "there is no folder")):
        with pytest.raises(NoRun, match=why):
            shown(folder)


def test_view_says_what_is_wrong_in_one_line():
    command = [sys.executable, "-m", "saycan_qt.view", "--feed", "99"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and done.stderr == "error: --feed 99 is no end of a socket pair: Bad file descriptor\n"


# -- the report ------------------------------------------------------------------------------------------------------


def test_a_report_of_a_long_run_is_small(tmp_path):
    """20 steps, each with 227 candidates and two views as large as the kitchen's."""
    folder = RunFolder(tmp_path / "run", "put everything away", 3)
    steps = []
    for number in range(1, 21):
        views = {}
        for view in ("head", "room"):
            views[view] = f"pictures/{number}-{view}.jpg"
            (folder.path / "pictures").mkdir(exist_ok=True)
            (folder.path / views[view]).write_bytes(os.urandom(12_000))
        row = {"language": 0.000381657, "affordance": 0.272682, "score": 0.000104071, "lowered": 1.0, "raw": 0.272682}
        row |= {"model": "affordance@d8103e61"}
        rows = [
            {"skill": f"pick thing {i}", "text": f"pick up the green jalapeno thing {i}", **row} for i in range(227)
        ]
        steps.append(step(number, outcome="succeeded", views=views, candidates=rows))
    folder.finish(True, "the goal is met", "done", "goal")
    (folder.path / "plan.json").write_text(json.dumps({**folder.content(), "steps": steps}))
    assert 1_000_000 < write_report(folder.path).stat().st_size < 5_000_000


def test_the_page_speaks_of_verdicts_as_the_terminal_does():
    for words in VERDICTS.values():
        assert f'"{words}"' in template()
