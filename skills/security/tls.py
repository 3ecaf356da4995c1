"""TLS: certificates, keys and authorities from PEM files, checked before a port or a channel is opened with them."""

from __future__ import annotations

import logging
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from skills.errors import AccessError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerTLS:
    """What a server shows, and whom it lets in; all PEM."""

    certificate: bytes  # the server's own, then those between it and its authority
    key: bytes = field(repr=False)
    client_ca: bytes | None = None  # authorities that sign clients' certificates; None: clients need none

    @classmethod
    def load(cls, certificate: Path, key: Path, client_ca: Path | None = None) -> ServerTLS:
        """Raises AccessError for files that cannot be read, are no PEM, or do not belong together."""
        return cls(*_pair(certificate, key), client_ca=None if client_ca is None else _authorities(client_ca))

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)],
            root_certificates=self.client_ca,
            require_client_auth=self.client_ca is not None,
        )


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
            return cls(_authorities(ca))
        return cls(_authorities(ca), *_pair(certificate, key))

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


def read_file(path: Path, what: str) -> bytes:
    """The file's content; AccessError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise AccessError(f"the {what} {path} cannot be read: {error.strerror}") from None


def warn_if_shared(path: Path) -> None:
    """Says in the log when others than the owner may read or write a file that is nobody else's business."""
    if os.name == "posix" and path.stat().st_mode & 0o077:
        log.warning("warning: %s can be read or changed by others; `chmod 600 %s` keeps it to you", path, path)


def _pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    shown, secret = read_file(certificate, "certificate"), read_file(key, "key")
    if b"-----BEGIN CERTIFICATE-----" not in shown:
        raise AccessError(f"{certificate} holds no certificate in PEM form")
    if b"PRIVATE KEY-----" not in secret:
        raise AccessError(f"{key} holds no private key in PEM form")
    if b"ENCRYPTED" in secret:
        raise AccessError(f"the key {key} has a passphrase; `openssl pkey -in {key} -out KEY` writes it without")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise AccessError(f"the key {key} is not that of the certificate {certificate}") from None
        raise AccessError(f"{certificate} and {key} cannot be used: {error.reason or 'damaged PEM'}") from None
    warn_if_shared(key)
    return shown, secret


def _authorities(path: Path) -> bytes:
    content = read_file(path, "certificate authority")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise AccessError(f"{path} holds no certificate of an authority in PEM form") from None
    return content
