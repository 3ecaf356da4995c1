"""On the command line: whom a service lets in, and how a command connects to services elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Annotated

import tyro

from saycan_qt.options import File
from skills.errors import AccessError
from skills.security.access import Access, Tokens
from skills.security.channel import Credentials, read_token
from skills.security.tls import ClientTLS, ServerTLS

TOKEN = "SAYCAN_QT_TOKEN"  # environment variable; a command line is for everybody on the machine to see


@dataclass(frozen=True)
class ServerOptions:
    """Whom a service lets in; on an address that other machines can reach it takes a certificate and a key, and
    tokens or the authorities of clients. SIGHUP has it read them all again."""

    certificate: File = None  # PEM file that the service shows, for TLS; it names the host that clients connect to
    key: File = None  # PEM file with the certificate's key
    client_ca: File = None  # PEM file with the authorities that must have signed a client's certificate (mutual TLS)
    tokens: File = None  # who may call what (YAML), see `python -m saycan_qt.grant --help`; health checks are open
    open_to_all: bool = False  # let whoever can connect call everything, from other machines too
    reflection: bool = False  # tell callers which methods there are on any address; on loopback they are told anyway

    def load(self, host: str) -> Access:
        """What the service asks of whoever calls; raises AccessError for files or a host that will not do."""
        if (self.certificate is None) != (self.key is None) or (self.client_ca and not self.certificate):
            raise AccessError("TLS takes both --certificate and --key; --client-ca goes with them")
        access = Access.load(self._read, self.reflection, self.open_to_all)
        access.check(host)
        return access

    def _read(self) -> tuple[ServerTLS | None, Tokens | None]:
        tls = ServerTLS.load(self.certificate, self.key, self.client_ca) if self.certificate and self.key else None
        return tls, None if self.tokens is None else Tokens.load(self.tokens)


@dataclass(frozen=True)
class ClientOptions:
    """How services elsewhere are reached."""

    ca: File = None  # connect over TLS: PEM file with the authorities that sign services' certificates
    client_certificate: File = None  # PEM file to show to services that ask for a certificate
    client_key: File = None  # PEM file with that certificate's key
    token_file: File = None  # holds the token to show to services; else the variable SAYCAN_QT_TOKEN may hold it

    def load(self) -> Credentials:
        """What is shown, and who is trusted; raises AccessError for files that will not do."""
        token = os.environ.get(TOKEN, "").strip() if self.token_file is None else read_token(self.token_file)
        if self.ca is not None:
            return Credentials(ClientTLS.load(self.ca, self.client_certificate, self.client_key), token)
        if self.client_certificate or self.client_key:
            raise AccessError("--client-certificate and --client-key are for TLS; give --ca too")
        return Credentials(None, token)

    def flags(self) -> tuple[str, ...]:
        """The same on another command's line."""
        given = ((option.name, getattr(self, option.name)) for option in fields(self))
        return tuple(
            word for name, path in given if path is not None for word in (f"--{name.replace('_', '-')}", str(path))
        )


WhoMayCall = Annotated[ServerOptions, tyro.conf.arg(name="")]
HowToCall = Annotated[ClientOptions, tyro.conf.arg(name="")]
