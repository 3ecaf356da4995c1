"""How a client connects: over TLS or in plain text, with a token or without."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import grpc

from skills.errors import AccessError
from skills.security.tls import ClientTLS, read_file, warn_if_shared
from skills.wire.conventions import CLIENT_OPTIONS, is_loopback, split_address
from skills.wire.link import Link


@dataclass(frozen=True)
class Credentials:
    """What a client shows, and whom it trusts; by default nothing and everybody."""

    tls: ClientTLS | None = None  # None: plain text
    token: str = field(default="", repr=False)  # "": none

    def __post_init__(self) -> None:
        if self.token and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise AccessError("the token has characters that no token has (two lines in its file?)")

    def check(self, address: str) -> None:
        """Raises AccessError where the token would travel in plain text, InvalidRequest for what is no HOST:PORT."""
        host, _ = split_address(address)
        if self.token and self.tls is None and not is_loopback(host):
            raise AccessError(f"the token would travel to {address} in plain text; give --ca to connect over TLS")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """To be sent with each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def read_token(path: Path) -> str:
    """The token that a file holds; AccessError where it holds none."""
    token = read_file(path, "token file").decode(errors="replace").strip()
    if not token:
        raise AccessError(f"the token file {path} is empty")
    warn_if_shared(path)
    return token


def open_channel(address: str, credentials: Credentials) -> Link:
    """Nothing is sent before the first call."""
    credentials.check(address)
    proxy = [("grpc.enable_http_proxy", 0)] if is_loopback(split_address(address)[0]) else []
    options = CLIENT_OPTIONS + proxy
    if credentials.tls is None:
        return Link(lambda: grpc.insecure_channel(address, options=options))
    shown = credentials.tls.credentials()
    return Link(lambda: grpc.secure_channel(address, shown, options=options))
