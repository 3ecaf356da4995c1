"""Loopback without further ado, everywhere else TLS: real servers, real certificates, and every way to get it wrong."""

import re
import shutil
import ssl
import time
import urllib.parse
from datetime import UTC, datetime, timedelta

import certificates
import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tiny_services import UNHURRIED, LineRobot, Walker

from saycan_qt.services.access import ServerOptions
from saycan_qt.services.exposition import Endpoint, Metrics
from skills import robot as robot_service
from skills import server as skill_service
from skills.client import RobotClient, SkillClient
from skills.errors import AccessError, Unavailable
from skills.library import SkillLibrary
from skills.security.access import Access
from skills.security.channel import Credentials, open_channel
from skills.security.tls import ClientTLS, ServerTLS, validity, warn_if_over
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


def test_an_exposed_server_that_tells_nobody_apart_does_not_start_unless_it_is_meant_to(tls, mutual):
    for host in ("0.0.0.0", "::"):
        with pytest.raises(AccessError, match=r"whoever reaches .* --tokens .* --client-ca, or, .* --open-to-all"):
            tls.check(host)
        mutual.check(host)
        Access(tls.tls, open_to_all=True).check(host)
    with pytest.raises(AccessError, match="takes TLS"):
        Access(open_to_all=True).check("0.0.0.0")


def test_an_exposed_server_tells_no_methods_unless_asked_to_and_warns_that_it_is_open_to_all(tls, trusting, caplog):
    meant, asked = Access(tls.tls, open_to_all=True), Access(tls.tls, reflection=True, open_to_all=True)
    with (
        skill_service.serve(LIBRARY, address="0.0.0.0:0", access=meant) as silent,
        skill_service.serve(LIBRARY, address="0.0.0.0:0", access=asked) as telling,
        open_channel(f"localhost:{silent.port}", trusting) as one,
        open_channel(f"localhost:{telling.port}", trusting) as other,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ProtoReflectionDescriptorDatabase(one).get_services()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "skills.v1.SkillService" in ProtoReflectionDescriptorDatabase(other).get_services()
    assert "whoever reaches 0.0.0.0:0 may call everything, as --open-to-all says" in caplog.text


def test_a_second_server_on_the_same_port_is_refused_with_tls_too(tls):
    with skill_service.serve(LIBRARY, access=tls) as server:
        with pytest.raises(Unavailable, match="Address already in use"):
            skill_service.serve(LIBRARY, address=server.address, access=tls)
        with pytest.raises(Unavailable, match="Address already in use"):
            skill_service.serve(LIBRARY, address=f"0.0.0.0:{server.port}", access=Access(tls.tls, open_to_all=True))


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


# Certificates that change, and that expire


def renew(folder, source, *names):
    for name in names:
        for file in pair(source, name):
            shutil.copy(file, folder / file.name)


def presented(port):
    """The certificate that a new connection is shown."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=5)


def test_a_renewed_certificate_is_shown_to_new_connections_and_old_ones_go_on(tmp_path):
    now, later = certificates.make(tmp_path), certificates.make(tmp_path / "later")
    access = ServerOptions(*pair(now, "server")).load("127.0.0.1")
    old, new = (Credentials(ClientTLS.load(folder / "ca.pem")) for folder in (now, later))
    certificate, renewed = ((folder / "server.pem").read_text() for folder in (now, later))
    with (
        skill_service.serve(LIBRARY, Walker(), Walker(), limits=UNHURRIED, access=access) as server,
        Endpoint(Metrics(), "127.0.0.1", 0, access) as endpoint,
        SkillClient(server.address, credentials=old) as client,
        client.control("pick apple") as control,
    ):
        metrics = urllib.parse.urlsplit(endpoint.url).port
        control.act(LineRobot().observe())
        assert presented(server.port) == presented(metrics) == certificate
        shutil.copy(later / "server.pem", now / "server.pem")  # half of a renewal
        assert not access.reload() and presented(server.port) == certificate
        renew(now, later, "server")
        assert access.reload() and presented(server.port) == presented(metrics) == renewed
        control.act(LineRobot().observe())
        assert client.info().skills == len(LIBRARY)  # the connection of before
        with SkillClient(server.address, credentials=new) as another:
            assert another.info().skills == len(LIBRARY)
        with SkillClient(server.address, credentials=old) as late, pytest.raises(Unavailable, match="not vouch for"):
            late.info()


def test_other_authorities_of_clients_hold_for_new_connections(tmp_path):
    now, later = certificates.make(tmp_path), certificates.make(tmp_path / "later")
    access = ServerOptions(*pair(now, "server"), now / "ca.pem").load("127.0.0.1")
    known, other = (ClientTLS.load(tmp_path / "ca.pem", *pair(folder, "client")) for folder in (now, later))
    with (
        skill_service.serve(LIBRARY, access=access) as server,
        SkillClient(server.address, credentials=Credentials(known)) as client,
    ):
        assert client.info().skills == len(LIBRARY)
        shutil.copy(later / "ca.pem", now / "ca.pem")
        assert access.reload()
        assert client.info().skills == len(LIBRARY)
        with SkillClient(server.address, credentials=Credentials(other)) as another:
            assert another.info().skills == len(LIBRARY)
        with SkillClient(server.address, credentials=Credentials(known)) as late, pytest.raises(Unavailable):
            late.info()


@pytest.mark.parametrize(
    ("days", "said"), [(-1, r"expired on \d{4}-"), (3, r"expires on \d{4}-.* UTC, in 2 days"), (15, "")]
)
def test_a_certificate_that_is_over_or_soon_is_told_at_the_start_and_on_reload(tmp_path, caplog, days, said):
    files = certificates.make(tmp_path, max(days, 1))
    for name in ("server", "ca") if days < 0 else ():
        certificates.expire(files, name)
    for read in (ServerOptions(*pair(files, "server"), files / "ca.pem").load("127.0.0.1").reload, lambda: None):
        told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        for name in ("server", "ca") if said else ():
            assert any(re.search(f"the certificate .*{name}.pem {said}", line) for line in told)
        assert said or not told
        caplog.clear()
        read()


def test_a_certificate_is_dated_as_openssl_reads_it(files):
    for name in ("ca", "server"):
        text = (files / f"{name}.pem").read_text()
        found = validity(ssl.PEM_cert_to_DER_cert(text))
        dates = certificates.openssl(files, "x509", "-in", f"{name}.pem", "-noout", "-dates").stdout.decode()
        told = [ssl.cert_time_to_seconds(line.partition("=")[2]) for line in dates.splitlines()]
        assert [time.timestamp() for time in found] == told


def test_a_certificate_of_tomorrow_or_of_long_ago_is_dated_too():
    """RFC 5280: years from 2050 have four digits, those before two."""

    def certificate(*times):
        def field(kind, content):
            length = len(content)
            return bytes([kind, *([length] if length < 128 else [0x82, *divmod(length, 256)])]) + content

        validity = field(0x30, b"".join(field(kind, text.encode()) for kind, text in times))
        signed = field(0x02, b"7") + field(0x30, b"") + field(0x30, bytes(200)) + validity
        return field(0x30, field(0x30, signed) + field(0x30, b""))

    begins, ends = validity(certificate((0x17, "990102030405Z"), (0x18, "20500102030405Z")))
    assert (begins.year, ends.year, ends.hour, ends.second) == (1999, 2050, 3, 5)


def test_what_is_not_valid_yet_is_told(caplog):
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    warn_if_over("the certificate host.pem", tomorrow, tomorrow + timedelta(days=99))
    assert "host.pem is not valid before" in caplog.text and "clock" in caplog.text


def test_keys_are_not_shown(tls, known):
    assert "PRIVATE" not in repr(tls) and "PRIVATE" not in repr(known)
