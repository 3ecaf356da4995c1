"""Who may call what: tokens and roles, from the file to the refusal, with real servers."""

import threading
from datetime import UTC, datetime, timedelta

import certificates
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tiny_services import UNHURRIED, LineRobot, Walker

from saycan_qt.grant import GrantConfig, grant
from saycan_qt.services.access import TOKEN, ClientOptions, ServerOptions
from skills import robot as robot_service
from skills import server as skill_service
from skills.client import RobotClient, SkillClient
from skills.errors import AccessError, PermissionDenied, Stopped, Unauthenticated
from skills.library import SkillLibrary
from skills.security.access import NEEDS, ROLES, Access, Holder, Tokens, digest
from skills.security.channel import Credentials
from skills.security.tls import ClientTLS, ServerTLS
from skills.v1 import skills_pb2 as pb

LIBRARY = SkillLibrary.load()
METHODS = {
    f"/{service.full_name}/{method.name}"
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
# Each role's token is its name: "read-token", ...
TOKENS = Tokens(Holder(f"the {role}er", digest(f"{role}-token"), frozenset({role})) for role in ROLES)
GUARDED = Access(tokens=TOKENS)


@pytest.fixture(scope="module")
def skill_server():
    with skill_service.serve(LIBRARY, Walker(), Walker(), access=GUARDED) as server:
        yield server


@pytest.fixture
def robot_server():
    with robot_service.serve(LineRobot(), LIBRARY, access=GUARDED) as server:
        yield server


def holding(role):
    return Credentials(token=f"{role}-token")


def answer(address, method, *authorization):
    """The status of a call without any message, by stock gRPC."""
    with grpc.insecure_channel(address) as channel:
        metadata = [("authorization", value) for value in authorization]
        call = channel.stream_stream(method)(iter(()), metadata=metadata, timeout=5)
        return call.code(), call.details()


def test_every_method_has_one_role():
    others = {method for method in set(NEEDS) - METHODS if not method.startswith("/page/")}  # see test_page.py
    assert others == {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/metrics"}
    assert set(NEEDS) >= METHODS and set(NEEDS.values()) == set(ROLES)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_call_is_let_in_by_its_own_role_alone_but_whoever_may_drive_may_stop(
    skill_server, robot_server, method, role
):
    server = skill_server if "SkillService" in method else robot_server
    code, details = answer(server.address, method, f"Bearer {role}-token")
    if NEEDS[method] == role or (role, NEEDS[method]) == ("drive", "stop"):
        assert code not in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
    else:
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert f"needs the role '{NEEDS[method]}'; the token of 'the {role}er' has: {role}" in details
        assert "-token" not in details


@pytest.mark.parametrize(
    ("authorization", "said"),
    [
        ((), "came without one"),
        (("read-token",), "came without one"),
        (("Basic read-token",), "came without one"),
        (("Bearer ",), "came without one"),
        (("Bearer read-token", "Bearer drive-token"), "came without one"),
        (("Bearer guessed",), "the one shown is not known here"),
        ((f"Bearer {digest('read-token')}",), "the one shown is not known here"),  # the file's content lets nobody in
    ],
)
def test_strangers_are_unauthenticated_and_told_the_role(skill_server, authorization, said):
    code, details = answer(skill_server.address, "/skills.v1.SkillService/ListSkills", *authorization)
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "ListSkills needs a token with the role 'read'" in details and said in details
    assert not any(word in details for word in ("read-token", "guessed"))


def test_a_method_that_the_table_does_not_know_is_nobodys():
    with pytest.raises(PermissionDenied, match="no role allows Explode"):
        GUARDED.admit("/skills.v1.RobotService/Explode", [("authorization", "Bearer drive-token")])


def test_health_is_open_to_all(skill_server):
    with grpc.insecure_channel(skill_server.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("method", ["/skills.v1.SkillService/ScoreSkills", "/grpc.health.v1.Health/Check"])
def test_strangers_who_keep_calls_open_hold_up_nobody(skill_server, method):
    """A call whose message never comes would take one of the server's 32 threads."""
    never = threading.Event()
    with grpc.insecure_channel(skill_server.address) as channel:
        begin = channel.stream_unary(method)
        calls = [begin.future(iter(lambda: never.wait(30), True), timeout=30) for _ in range(40)]
        with SkillClient(skill_server.address, timeout=15, credentials=holding("read")) as client:
            assert client.info().skills == len(LIBRARY)
        for call in calls:
            call.cancel()
        never.set()


def test_clients_show_their_token_in_every_kind_of_call(skill_server, robot_server):
    with SkillClient(skill_server.address, credentials=holding("drive")) as skills:
        with skills.control("pick apple") as control:
            assert control.act(LineRobot().observe()).shape == (2,)
        with pytest.raises(
            PermissionDenied, match=f"skill server at {skill_server.address}: ListSkills needs .* 'read'"
        ):
            skills.list_skills()
    with RobotClient(robot_server.address, credentials=holding("stop")) as robot:
        robot.stop()
        with pytest.raises(PermissionDenied, match="Reset needs the role 'drive'"):
            robot.reset()
    with RobotClient(robot_server.address, credentials=holding("drive")) as robot, pytest.raises(Stopped):
        list(robot.execute("put down"))
    with RobotClient(robot_server.address) as robot, pytest.raises(Unauthenticated, match="came without one"):
        list(robot.execute("put down"))


def test_a_token_never_travels_in_plain_text_nor_shows_in_a_repr():
    secret = Credentials(token="secret")
    with pytest.raises(AccessError, match=r"gpu-box:50051 in plain text; give --ca") as caught:
        SkillClient("gpu-box:50051", credentials=secret)
    assert "secret" not in str(caught.value) + repr(secret)
    SkillClient("localhost:50051", credentials=secret).close()
    SkillClient("gpu-box:50051").close()


def test_a_command_takes_the_token_from_a_file_or_else_from_the_environment(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(TOKEN, "from-the-environment")
    (file := tmp_path / "token").write_text("from-the-file\n")
    file.chmod(0o600)
    assert ClientOptions().load().token == "from-the-environment"
    assert ClientOptions(token_file=file).load().token == "from-the-file" and not caplog.text
    file.chmod(0o644)
    ClientOptions(token_file=file).load()
    assert f"{file} can be read or changed by others; `chmod 600 {file}`" in caplog.text
    for content in ("", "two\nlines", "café"):
        file.write_text(content)
        with pytest.raises(AccessError, match=r"is empty|has characters that no token has"):
            ClientOptions(token_file=file).load()


def test_a_granted_token_lets_in_and_its_file_does_not_hold_it(tmp_path, capsys):
    tokens, out = tmp_path / "tokens.yaml", tmp_path / "laptop.token"
    assert grant(GrantConfig("laptop", ("read", "score"), tokens, out)) == 0
    assert grant(GrantConfig("pad", ("stop",), tokens)) == 0
    token, printed = out.read_text().strip(), capsys.readouterr().out
    assert tokens.stat().st_mode & 0o777 == out.stat().st_mode & 0o777 == 0o600
    assert token not in tokens.read_text() + printed
    (shown,) = printed.splitlines()
    assert Tokens.load(tokens).holder(token).name == "laptop"
    assert Tokens.load(tokens).holder(shown.rpartition(" ")[2]).roles == {"stop"}


def test_a_token_is_printed_with_the_line_that_a_server_reads(tmp_path, capsys):
    assert grant(GrantConfig("lab pc: 'left'", ("drive",))) == 0
    token, line = (part.partition(": ")[2] for part in capsys.readouterr().out.splitlines())
    (file := tmp_path / "tokens.yaml").write_text(line)
    assert Tokens.load(file).holder(token).name == "lab pc: 'left'"


def test_granting_overwrites_nothing(tmp_path, capsys):
    tokens, out = tmp_path / "tokens.yaml", tmp_path / "token"
    grant(GrantConfig("laptop", ("read",), tokens, out))
    before = tokens.read_text(), out.read_text()
    assert grant(GrantConfig("laptop", ("drive",), tokens)) == 2
    assert grant(GrantConfig("other", ("drive",), tokens, out)) == 2
    assert (tokens.read_text(), out.read_text()) == before
    said = capsys.readouterr().err.splitlines()
    assert "has a token of 'laptop'; delete its line first" in said[0] and "File exists" in said[1]


def test_a_file_whose_last_token_was_taken_back_takes_another(tmp_path):
    (tokens := tmp_path / "tokens.yaml").write_text("# who may call\n\n")
    assert grant(GrantConfig("laptop", ("read",), tokens)) == 0
    assert [holder.name for holder in Tokens.load(tokens).holders] == ["laptop"]


def test_a_token_that_no_service_will_know_is_not_left_behind(tmp_path, capsys):
    out = tmp_path / "token"
    assert grant(GrantConfig("laptop", ("read",), tmp_path / "nowhere" / "tokens.yaml", out)) == 2
    assert not out.exists() and "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "lists no token; `python -m saycan_qt.grant NAME --tokens"),
        ("laptop: abc", "lists no token"),
        ("- {name: a", "is not YAML"),
        ("- {name: a, token: my-own-secret, roles: [read]}", "entry 1: a token has a name, its sha256, its roles"),
        ("- {name: a, sha256: my-own-secret, roles: [read]}", r"entry 1 \(a\): sha256 is not the 64 hex"),
        (f"- {{name: a, sha256: {digest('a')}, roles: [admin]}}", "some of read, score, drive, stop, operate, not"),
        (f"- {{name: a, sha256: {digest('a')}, roles: read}}", "some of read, score, drive, stop, operate, not 'read'"),
        (f"- {{name: a, sha256: {digest('a')}, roles: [read], expires: soon}}", r"\(a\): expires is a time such"),
        (f"- {{name: a, sha256: {digest('a')}, roles: [read], expires: 2027-01-31}}", "expires is a time such as"),
        (f"- {{name: a, sha256: {digest('a')}, roles: [read], expires: 2027-01-31T18:00:00}}", "not say its time zone"),
        (
            f"- {{name: a, sha256: {digest('a')}, roles: [read], expires: 2027-02-30T18:00:00Z}}",
            "is not YAML: ValueError: day is",
        ),
        (f'- {{name: "a\\nb", sha256: {digest("a")}, roles: [read]}}', "characters that cannot be printed"),
        (f"- {{name: '', sha256: {digest('a')}, roles: [read]}}", "the name '' is empty"),
        (f"- {{name: a, sha256: {digest('a')}, roles: [read], roles: [drive]}}", "'roles' stands there twice"),
        (f"- &a {{name: a, sha256: {digest('a')}, roles: [read]}}\n- *a", "name 'a' is there twice"),
    ],
)
def test_a_tokens_file_that_will_not_do_says_where_and_why(tmp_path, content, said):
    (file := tmp_path / "tokens.yaml").write_text(content)
    with pytest.raises(AccessError, match=said) as caught:
        Tokens.load(file)
    assert "\n" not in str(caught.value) and "my-own-secret" not in str(caught.value)


# Tokens that change, and that expire


def test_a_token_that_expired_is_refused_and_told_since_when(tmp_path, caplog):
    past, future = "2026-01-31T18:00:00+01:00", f"{datetime.now(UTC) + timedelta(days=3):%Y-%m-%d %H:%M:%S}Z"
    lines = [("gone", past), ("guest", future), ("lab", "2199-01-01T00:00:00Z")]
    entry = "- {{name: {0}, sha256: {1}, roles: [read], expires: {2}}}\n"
    (file := tmp_path / "tokens.yaml").write_text("".join(entry.format(n, digest(n), t) for n, t in lines))
    method = "/skills.v1.SkillService/ListSkills"
    with skill_service.serve(LIBRARY, access=Access(tokens=Tokens.load(file))) as server:
        found = {name: answer(server.address, method, f"Bearer {name}") for name, _ in lines}
    code, details = found.pop("gone")
    assert code is grpc.StatusCode.UNAUTHENTICATED and "that of 'gone' expired on 2026-01-31 17:00 UTC" in details
    assert grpc.StatusCode.UNAUTHENTICATED not in [code for code, _ in found.values()]
    told = [record.getMessage() for record in caplog.records if "the token of" in record.getMessage()]
    assert len(told) == 2 and "'gone' in" in told[0] and "expired on" in told[0] and "in 2 days" in told[1]


def test_a_granted_token_expires_when_it_was_said_to(tmp_path, capsys):
    tokens = tmp_path / "tokens.yaml"
    assert grant(GrantConfig("guest", ("read",), days=7, tokens=tokens)) == 0
    assert grant(GrantConfig("lab", ("read",), expires="2199-01-31T18:00:00+01:00", tokens=tokens)) == 0
    assert "it expires on 2199-01-31 17:00 UTC" in capsys.readouterr().out
    guest, lab = Tokens.load(tokens).holders
    assert abs(guest.expires - datetime.now(UTC) - timedelta(days=7)) < timedelta(minutes=1)
    assert lab.expires == datetime(2199, 1, 31, 17, tzinfo=UTC)
    for wrong in ({"expires": "tomorrow"}, {"expires": "2199-01-31T18:00"}, {"days": -1}, {"days": float("nan")}):
        assert grant(GrantConfig("other", ("read",), tokens=tokens, **wrong)) == 2
    assert grant(GrantConfig("other", ("read",), days=1, expires="2199-01-31T18:00Z", tokens=tokens)) == 2
    assert len(Tokens.load(tokens).holders) == 2 and capsys.readouterr().err.count("\n") == 5


def test_tokens_read_again_hold_for_the_next_call_and_a_bad_file_changes_nothing(tmp_path, caplog):
    line = "- {{name: {0}, sha256: {1}, roles: [read, drive]}}\n"
    (file := tmp_path / "tokens.yaml").write_text(line.format("old", digest("old")))
    access = ServerOptions(tokens=file).load("127.0.0.1")
    with (
        skill_service.serve(LIBRARY, Walker(), Walker(), limits=UNHURRIED, access=access) as server,
        SkillClient(server.address, credentials=Credentials(token="old")) as old,
        SkillClient(server.address, credentials=Credentials(token="new")) as new,
        old.control("pick apple") as control,
    ):
        control.act(LineRobot().observe())
        for bad in ("", "- {name: x", "- {name: new}\n"):
            file.write_text(bad)
            caplog.clear()
            assert not access.reload() and old.info().skills == len(LIBRARY)
            assert caplog.text.count("\n") == 1 and f"who may call stays as it was: {file}" in caplog.text
        file.write_text(line.format("new", digest("new")))
        assert access.reload() and new.info().skills == len(LIBRARY)
        with pytest.raises(Unauthenticated):
            old.info()
        control.act(LineRobot().observe())  # what runs comes to its end


def test_tokens_work_over_tls(tmp_path):
    files = certificates.make(tmp_path)
    tls = ServerTLS.load(files / "server.pem", files / "server.key")
    with skill_service.serve(LIBRARY, address="0.0.0.0:0", access=Access(tls, TOKENS)) as server:
        address, trusted = f"localhost:{server.port}", ClientTLS.load(files / "ca.pem")
        with SkillClient(address, credentials=Credentials(trusted, "read-token")) as client:
            assert client.info().skills == len(LIBRARY)
        with SkillClient(address, credentials=Credentials(trusted)) as client, pytest.raises(Unauthenticated):
            client.info()
