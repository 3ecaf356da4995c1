"""The commands on a network: TLS and tokens from the command line, with real processes."""

import certificates
import pytest
from test_run import INSTRUCTION, SKILLS, finish, nothing_left_running, service, start

from saycan_qt.grant import GrantConfig, grant
from saycan_qt.journey.config import RunConfig, check
from saycan_qt.journey.stack import SKILL_SERVICE
from saycan_qt.services.access import TOKEN, ClientOptions, ServerOptions
from saycan_qt.services.processes import SKILL_SERVER, RemoteService, StartFailed
from skills.errors import AccessError
from skills.library import SkillLibrary
from skills.server import serve

assert nothing_left_running  # ends what `start` and `service` started, after each test
ROLES = {"laptop": ("read", "score", "drive"), "robot": ("read", "drive"), "viewer": ("read", "score")}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Certificates and tokens: of a person, of the robot, which asks the skill server, and of one who may only look."""
    folder = certificates.make(tmp_path_factory.mktemp("network"))
    for name, roles in ROLES.items():
        grant(GrantConfig(name, roles, folder / "tokens.yaml", folder / f"{name}.token"))
    return folder


def on_localhost(address):
    return f"localhost:{address.rpartition(':')[2]}"


def test_exposed_services_are_reached_over_tls_with_a_token_and_refuse_a_role_that_it_lacks(files, tmp_path):
    shown = ("--certificate", files / "server.pem", "--key", files / "server.key")
    exposed = ("--host", "0.0.0.0", *shown, "--tokens", files / "tokens.yaml")
    trusting = ("--ca", files / "ca.pem")
    _, server = service("serve", "--skills", SKILLS, *exposed)
    there = ("--server", on_localhost(server), *trusting)
    asking = ("--skill-server", *there[1:], "--token-file", files / "robot.token")
    _, robot = service("robot", *exposed, *asking)
    own_robot = start(
        "run", INSTRUCTION, *there, "--out", tmp_path / "a", **{TOKEN: (files / "laptop.token").read_text()}
    )
    with_robot = (*there, "--robot", on_localhost(robot), "--token-file", files / "viewer.token")
    may_not_drive = start("run", INSTRUCTION, *with_robot, "--out", tmp_path / "b")
    code, _, err = finish(own_robot)
    assert code == 0, err
    code, _, err = finish(may_not_drive)
    assert code == 2 and "AcquireLease needs the role 'drive'; the token of 'viewer' has: read, score" in err


@pytest.mark.slow
def test_serve_and_robot_refuse_an_address_beyond_loopback_in_one_line(files):
    tls = ("--certificate", files / "server.pem", "--key", files / "server.key")
    for process, said in [
        (start("serve", "--host", "0.0.0.0"), "give --certificate and --key, or listen on 127"),
        (start("robot", "--host", "::"), "give --certificate and --key, or listen on 127"),
        (start("robot", "--host", "0.0.0.0", *tls), "whoever reaches 0.0.0.0 could call everything: give --tokens"),
        (start("serve", "--metrics-port", "0", "--metrics-host", "0.0.0.0", *tls), "could call everything"),
    ]:
        code, out, err = finish(process)
        assert (code, out, err.count("\n")) == (2, "", 1) and said in err


def test_a_run_tells_at_once_that_it_distrusts_a_services_certificate(files):
    access = ServerOptions(files / "server.pem", files / "server.key").load("127.0.0.1")
    distrusting = ClientOptions(files / "stranger.pem").load()
    with serve(SkillLibrary.load(), access=access) as server:
        service = RemoteService(SKILL_SERVER, server.address, SKILL_SERVICE, print, distrusting)
        with pytest.raises(StartFailed, match=r"skill server at .* a certificate that the given authority") as caught:
            service.wait_until_ready(30)
        service.close()
    assert caught.value.mistake


def test_options_that_do_not_go_together_name_the_next_move(files):
    key, certificate = files / "server.key", files / "server.pem"
    for load, said in [
        (lambda: ServerOptions(certificate).load("127.0.0.1"), "takes both --certificate and --key"),
        (lambda: ServerOptions(client_ca=certificate).load("127.0.0.1"), "--client-ca goes with them"),
        (lambda: ServerOptions(certificate, files / "client.key").load("::1"), "is not that of the certificate"),
        (lambda: ClientOptions(client_certificate=certificate).load(), "give --ca too"),
        (lambda: ClientOptions(certificate, client_key=key).load(), "go together"),
    ]:
        with pytest.raises(AccessError, match=said):
            load()
    token = ClientOptions(token_file=files / "robot.token")
    assert "name them with --server or --robot" in check(RunConfig(INSTRUCTION, credentials=token))
    assert "in plain text; give --ca" in check(RunConfig(INSTRUCTION, server="gpu-box:1", credentials=token))
