"""Loopback without further ado, everywhere else TLS: real servers, real certificates, and every way to get it wrong."""

import shutil
import time

import certificates
import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tiny_services import LineRobot, Walker

from skills import robot as robot_service
from skills import server as skill_service
from skills.client import RobotClient, SkillClient
from skills.errors import AccessError, Unavailable
from skills.library import SkillLibrary
from skills.security.access import Access
from skills.security.channel import Credentials, open_channel
from skills.security.tls import ClientTLS, ServerTLS
from skills.wire.conventions import is_loopback

LIBRARY = SkillLibrary.load()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return certificates.make(tmp_path_factory.mktemp("certificates"))


def pair(folder, name):
    return folder / f"{name}.pem", folder / f"{name}.key"


@pytest.fixture(scope="module")
def tls(files):
    return Access(ServerTLS.load(*pair(files, "server")))


@pytest.fixture(scope="module")
def mutual(files):
    return Access(ServerTLS.load(*pair(files, "server"), files / "ca.pem"))


@pytest.fixture(scope="module")
def trusting(files):
    return Credentials(ClientTLS.load(files / "ca.pem"))


@pytest.fixture(scope="module")
def known(files):
    return Credentials(ClientTLS.load(files / "ca.pem", *pair(files, "client")))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LocalHost"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.0.7", "::ffff:192.168.0.7", "gpu-box", "localhost.evil.org", "127.evil.org"]
)
def test_not_loopback(host):
    assert not is_loopback(host)
    with pytest.raises(AccessError, match="--certificate and --key, or listen on 127"):
        Access().check(host)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_both_services_refuse_other_addresses_without_tls_in_one_line(address):
    for serve in (
        lambda: skill_service.serve(LIBRARY, address=address),
        lambda: robot_service.serve(LineRobot(), LIBRARY, address=address),
    ):
        with pytest.raises(AccessError, match="can be reached from other machines") as caught:
            serve()
        assert "\n" not in str(caught.value)


def test_a_skill_runs_over_mutual_tls_from_client_to_robot_to_skill_server(mutual, known):
    with (
        skill_service.serve(LIBRARY, Walker(), Walker(), access=mutual) as server,
        SkillClient(server.address, credentials=known) as skills,
        robot_service.serve(LineRobot(), LIBRARY, skills, access=mutual) as body,
        RobotClient(body.address, credentials=known) as robot,
    ):
        *_, outcome = robot.execute("pick apple")
    assert outcome.succeeded


@pytest.mark.parametrize(
    ("server", "shown", "said"),
    [
        ("tls", ("stranger",), "does not vouch for: unable to get local issuer certificate"),
        ("tls", None, "hangs up at once: does it want TLS"),
        ("plain", ("ca",), "does not speak TLS"),
        ("mutual", ("ca",), "hangs up at once: .* or a client certificate that it trusts"),
        ("mutual", ("ca", "stranger"), "hangs up at once: .* or a client certificate that it trusts"),
    ],
)
def test_who_does_not_fit_is_told_at_once_in_one_line(files, request, server, shown, said):
    access = request.getfixturevalue(server) if server != "plain" else None
    credentials = Credentials()
    if shown:
        own = pair(files, shown[1]) if shown[1:] else ()
        credentials = Credentials(ClientTLS.load(files / f"{shown[0]}.pem", *own))
    with (
        skill_service.serve(LIBRARY, access=access) as running,
        SkillClient(running.address, credentials=credentials) as client,
    ):
        started = time.monotonic()
        with pytest.raises(Unavailable, match=f"the skill server at {running.address} .*{said}") as caught:
            client.info()
    assert time.monotonic() - started < 10 and "\n" not in str(caught.value)


def test_a_certificate_for_another_host_is_told(tls, trusting):
    with (
        skill_service.serve(LIBRARY, address="127.0.0.2:0", access=tls) as server,
        SkillClient(server.address, credentials=trusting) as client,
        pytest.raises(Unavailable, match="a certificate that is not for this host name"),
    ):
        client.info()


def test_an_exposed_server_tells_no_methods_unless_asked_to_and_warns_that_it_is_open_to_all(tls, trusting, caplog):
    asked = Access(tls.tls, reflection=True)
    with (
        skill_service.serve(LIBRARY, address="0.0.0.0:0", access=tls) as silent,
        skill_service.serve(LIBRARY, address="0.0.0.0:0", access=asked) as telling,
        open_channel(f"localhost:{silent.port}", trusting) as one,
        open_channel(f"localhost:{telling.port}", trusting) as other,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ProtoReflectionDescriptorDatabase(one).get_services()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "skills.v1.SkillService" in ProtoReflectionDescriptorDatabase(other).get_services()
    assert "whoever reaches 0.0.0.0:0 may call everything; give --tokens or --client-ca" in caplog.text


def test_a_second_server_on_the_same_port_is_refused_with_tls_too(tls):
    with skill_service.serve(LIBRARY, access=tls) as server:
        with pytest.raises(Unavailable, match="Address already in use"):
            skill_service.serve(LIBRARY, address=server.address, access=tls)
        with pytest.raises(Unavailable, match="Address already in use"):
            skill_service.serve(LIBRARY, address=f"0.0.0.0:{server.port}", access=tls)


def test_files_that_will_not_do_are_named_with_the_reason(files, tmp_path):
    server, key = pair(files, "server")
    (garbage := tmp_path / "garbage.pem").write_text("not a certificate")
    (damaged := tmp_path / "damaged.pem").write_text(server.read_text().replace("M", "!"))
    certificates.openssl(files, "pkey", "-in", "server.key", "-aes256", "-passout", "pass:x", "-out", "locked.key")
    for given, said in [
        ((tmp_path / "none.pem", key), r"the certificate .*none.pem cannot be read: No such file or directory"),
        ((server, tmp_path), r"the key .* cannot be read: Is a directory"),
        ((server, files / "client.key"), r"client.key is not that of the certificate .*server.pem"),
        ((garbage, key), r"garbage.pem holds no certificate in PEM form"),
        ((server, garbage), r"garbage.pem holds no private key in PEM form"),
        ((damaged, key), r"damaged.pem and .* cannot be used"),
        ((server, files / "locked.key"), r"has a passphrase; `openssl pkey"),
        ((server, key, garbage), r"garbage.pem holds no certificate of an authority"),
    ]:
        with pytest.raises(AccessError, match=said) as caught:
            ServerTLS.load(*given)
        assert "\n" not in str(caught.value)
    with pytest.raises(AccessError, match="go together"):
        ClientTLS.load(files / "ca.pem", server)


def test_a_key_that_others_may_read_is_warned_of(files, tmp_path, caplog):
    shared = shutil.copy(files / "server.key", tmp_path)
    (tmp_path / "server.key").chmod(0o640)
    ServerTLS.load(files / "server.pem", tmp_path / "server.key")
    assert f"chmod 600 {shared}" in caplog.text


def test_keys_are_not_shown(tls, known):
    assert "PRIVATE" not in repr(tls) and "PRIVATE" not in repr(known)
