"""TLS: certificates, keys and authorities from PEM files, checked before a port or a channel is opened with them."""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc

from skills.errors import AccessError

log = logging.getLogger(__name__)

SOON = timedelta(days=14)  # before a certificate or a token expires, whoever reads it is told
LARGEST_FILE = 1 << 20  # [bytes] of PEM or YAML; a system's file of all authorities is a quarter of that
FEW = 4  # authorities in a file; of more, as all that a system trusts, some are over without harm
PEM = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class ServerTLS:
    """What a server shows, and whom it lets in; all PEM."""

    certificate: bytes  # the server's own, then those between it and its authority
    key: bytes = field(repr=False)
    context: ssl.SSLContext = field(repr=False, compare=False)  # with all of this, for others than gRPC
    client_ca: bytes | None = None  # authorities that sign clients' certificates; None: clients need none

    @classmethod
    def load(cls, certificate: Path, key: Path, client_ca: Path | None = None) -> ServerTLS:
        """Raises AccessError for files that cannot be read, are no PEM, or do not belong together. What has expired, or
        soon does, is told in the log."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        shown, secret = _pair(certificate, key, context)
        if client_ca is None:
            return cls(shown, secret, context)
        context.verify_mode = ssl.CERT_REQUIRED
        return cls(shown, secret, context, _authorities(client_ca, context))

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What a connection of gRPC is made with."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


@dataclass(frozen=True)
class ClientTLS:
    """Whom a client trusts, and what it shows; all PEM."""

    ca: bytes  # authorities that sign servers' certificates
    certificate: bytes | None = None  # the client's own, for servers that ask for one
    key: bytes | None = field(default=None, repr=False)

    @classmethod
    def load(cls, ca: Path, certificate: Path | None = None, key: Path | None = None) -> ClientTLS:
        """Raises AccessError for files that cannot be read, are no PEM, or do not belong together."""
        if certificate is None or key is None:
            if certificate or key:
                raise AccessError(f"{certificate or key}: a client's certificate and its key go together")
            return cls(_authorities(ca, _client_context()))
        return cls(_authorities(ca, _client_context()), *_pair(certificate, key, _client_context()))

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


def read_file(path: Path, what: str) -> bytes:
    """The file's content; AccessError where it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise AccessError(f"the {what} {path} cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise AccessError(f"the {what} {path} is larger than {LARGEST_FILE >> 20} MiB")
    return content


def warn_if_shared(path: Path) -> None:
    """Says in the log when others than the owner may read or write a file that is nobody else's business."""
    if os.name == "posix" and path.stat().st_mode & 0o077:
        log.warning("warning: %s can be read or changed by others; `chmod 600 %s` keeps it to you", path, path)


def warn_if_over(what: str, begins: datetime | None, ends: datetime) -> None:
    """Says in the log when something is valid no more, not yet, or for less than two weeks; of aware times."""
    now = datetime.now(UTC)
    if begins is not None and now < begins:
        log.warning("warning: %s is not valid before %s; is this machine's clock right?", what, when(begins))
    elif ends <= now:
        log.warning("warning: %s expired on %s", what, when(ends))
    elif ends - now < SOON:
        log.warning("warning: %s expires on %s, in %d days", what, when(ends), (ends - now).days)


def when(time: datetime) -> str:
    """2026-11-21 18:00 UTC."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def validity(certificate: bytes) -> tuple[datetime, datetime]:
    """From when until when a certificate in DER is valid [RFC 5280, 4.1]: the fifth field of what is signed, or the
    fourth where no version is told. The ssl module reads it of none but authorities and peers."""
    signed = next(_fields(next(_fields(certificate))[1]))[1]
    fields = [content for kind, content in _fields(signed) if kind != 0xA0]  # without the version
    begins, ends = (_time(kind, text.decode()) for kind, text in _fields(fields[3]))
    return begins, ends


def _fields(der: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, content) of one after the other."""
    while der:
        length, start = der[1], 2
        if length > 0x80:  # so many bytes hold it
            start += length - 0x80
            length = int.from_bytes(der[2:start])
        yield der[0], der[start : start + length]
        der = der[start + length :]


def _time(kind: int, text: str) -> datetime:
    """UTCTime, of 1950 to 2049, or GeneralizedTime."""
    if kind == 0x17:
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _warn_if_expired(path: Path, content: bytes) -> None:
    certificates = PEM.findall(content.decode(errors="replace"))
    for number, certificate in enumerate(certificates, 1):
        which = "" if len(certificates) == 1 else f", number {number} in it,"
        try:
            begins, ends = validity(ssl.PEM_cert_to_DER_cert(certificate))
        except (ValueError, IndexError, StopIteration):  # odd, but not for OpenSSL
            log.warning("warning: until when the certificate %s%s is valid cannot be read", path, which)
        else:
            warn_if_over(f"the certificate {path}{which}", begins, ends)


def _client_context() -> ssl.SSLContext:
    """To check files with."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _pair(certificate: Path, key: Path, context: ssl.SSLContext) -> tuple[bytes, bytes]:
    """Both files' content, which the context has then, too."""
    shown, secret = read_file(certificate, "certificate"), read_file(key, "key")
    if b"-----BEGIN CERTIFICATE-----" not in shown:
        raise AccessError(f"{certificate} holds no certificate in PEM form")
    if b"PRIVATE KEY-----" not in secret:
        raise AccessError(f"{key} holds no private key in PEM form")
    if b"ENCRYPTED" in secret:
        raise AccessError(f"the key {key} has a passphrase; `openssl pkey -in {key} -out KEY` writes it without")
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise AccessError(f"the key {key} is not that of the certificate {certificate}") from None
        raise AccessError(f"{certificate} and {key} cannot be used: {error.reason or 'damaged PEM'}") from None
    if (shown, secret) != (read_file(certificate, "certificate"), read_file(key, "key")):
        raise AccessError(f"{certificate} or {key} changed while it was read; try again")
    warn_if_shared(key)
    _warn_if_expired(certificate, shown)
    return shown, secret


def _authorities(path: Path, context: ssl.SSLContext) -> bytes:
    """The file's content, which the context trusts then."""
    content = read_file(path, "certificate authority")
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise AccessError(f"{path} holds no certificate of an authority in PEM form") from None
    if len(PEM.findall(content.decode(errors="replace"))) <= FEW:
        _warn_if_expired(path, content)
    return content
