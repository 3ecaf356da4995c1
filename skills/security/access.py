"""Who may call what: bearer tokens with roles. A server knows the tokens' hashes only.

    - {name: laptop, sha256: 0b1f..., roles: [read, score]}       # one line of a file, for Tokens.load
    - {name: guest, sha256: 77e0..., roles: [read], expires: 2027-01-31T18:00:00Z}

`python -m saycan_qt.grant NAME --roles read score` makes a token and its line. Health checks need no token.
`Access.reload` reads tokens and certificates anew while a server runs.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import grpc
import yaml

from skills import files
from skills.errors import AccessError, PermissionDenied, Unauthenticated
from skills.security.tls import ServerTLS, read_file, warn_if_over, warn_if_shared, when
from skills.wire.conventions import is_loopback, join_address, split_address

log = logging.getLogger(__name__)

Role = Literal["read", "score", "drive", "stop", "operate"]
ROLES: tuple[Role, ...] = get_args(Role)
IMPLIED: Mapping[Role, frozenset[Role]] = {"drive": frozenset({"stop"})}  # whoever may move it may halt it
HEALTH = "/grpc.health.v1.Health/"
NEEDS: Mapping[str, Role] = {  # a method that is not here is nobody's
    "/skills.v1.SkillService/ListSkills": "read",
    "/skills.v1.SkillService/GetServerInfo": "read",
    "/skills.v1.SkillService/ScoreSkills": "score",
    "/skills.v1.SkillService/PreviewSkill": "score",
    "/skills.v1.SkillService/Control": "drive",
    "/skills.v1.SkillService/ReloadModel": "operate",
    "/skills.v1.RobotService/GetRobotInfo": "read",
    "/skills.v1.RobotService/Observe": "read",
    "/skills.v1.RobotService/JudgeInstruction": "read",
    "/skills.v1.RobotService/GetGoal": "read",
    "/skills.v1.RobotService/PreviewGoal": "read",
    "/skills.v1.RobotService/AcquireLease": "drive",
    "/skills.v1.RobotService/KeepLease": "drive",
    "/skills.v1.RobotService/ReleaseLease": "drive",
    "/skills.v1.RobotService/ExecuteSkill": "drive",
    "/skills.v1.RobotService/CancelSkill": "drive",
    "/skills.v1.RobotService/Reset": "drive",
    "/skills.v1.RobotService/Stop": "stop",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "read",
    "/metrics": "read",  # over HTTP, see `saycan_qt.services.exposition`
    "/page/Watch": "read",  # of the page in a browser, see `saycan_qt.page.commands`
    "/page/Preview": "read",
    "/page/Instruct": "drive",
    "/page/Answer": "drive",
    "/page/Judge": "drive",
    "/page/SetAsking": "drive",
    "/page/Release": "drive",
    "/page/Stop": "stop",
}


@dataclass(frozen=True)
class Holder:
    """Whoever has the token with this hash."""

    name: str
    sha256: str  # of the token, 64 hexadecimal digits
    roles: frozenset[Role]
    expires: datetime | None = None  # aware; None: never

    @property
    def expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)

    def may(self, role: Role) -> bool:
        return role in self.roles or any(role in IMPLIED.get(own, ()) for own in self.roles)


def new_token() -> str:
    """43 characters with 256 random bits: too many to guess, so a plain hash is enough to keep."""
    return secrets.token_urlsafe(32)


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """The holders that a server lets in."""

    def __init__(self, holders: Iterable[Holder]) -> None:
        self.holders = tuple(holders)

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """Raises AccessError with file, entry and reason. Who has expired, or soon does, is told in the log."""
        try:
            entries = files.from_yaml(read_file(path, "tokens file"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of the 30th of February, too
            raise AccessError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(entries, list) or not entries:
            raise AccessError(f"{path} lists no token; `python -m saycan_qt.grant NAME --tokens {path}` adds one")
        holders = [_holder(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)]
        for what in ("name", "sha256"):
            values = [getattr(holder, what) for holder in holders]
            if twice := [value for value in values if values.count(value) > 1]:
                raise AccessError(f"{path}: {what} {twice[0]!r} is there twice")
        warn_if_shared(path)
        for holder in holders:
            if holder.expires is not None:
                warn_if_over(f"the token of {holder.name!r} in {path}", None, holder.expires)
        return cls(holders)

    def holder(self, token: str) -> Holder | None:
        """Takes equally long whether, and at which place, the token is known."""
        shown, found = digest(token), None
        for holder in self.holders:
            if hmac.compare_digest(holder.sha256, shown):
                found = holder
        return found


def time_of(given: Any) -> datetime:
    """When a token expires, from ISO 8601; without an offset nobody knows when that is. Raises ValueError."""
    time = given if isinstance(given, datetime) else datetime.fromisoformat(str(given))
    if time.tzinfo is None:
        raise ValueError(f"{given} does not say its time zone")
    return time.astimezone(UTC)


def _holder(entry: Any, where: str) -> Holder:
    if not isinstance(entry, dict) or set(entry) - {"expires"} != {"name", "sha256", "roles"}:
        raise AccessError(f"{where}: a token has a name, its sha256, its roles, perhaps `expires`, and nothing else")
    name, sha256, roles = str(entry["name"]), str(entry["sha256"]).lower(), entry["roles"]
    if not name.strip() or not name.isprintable():  # it is written into logs
        raise AccessError(f"{where}: the name {name!r} is empty, or has characters that cannot be printed")
    if not re.fullmatch("[0-9a-f]{64}", sha256):  # do not repeat it: it may be the token itself
        raise AccessError(f"{where} ({name}): sha256 is not the 64 hexadecimal digits of a SHA-256")
    if not isinstance(roles, list) or not roles or not set(map(str, roles)) <= set(ROLES):
        raise AccessError(f"{where} ({name}): roles is a list of some of {', '.join(ROLES)}, not {roles!r}")
    try:
        expires = time_of(entry["expires"]) if "expires" in entry else None
    except (ValueError, OverflowError) as error:
        raise AccessError(f"{where} ({name}): expires is a time such as 2027-01-31T18:00:00Z: {error}") from None
    return Holder(name, sha256, frozenset(roles), expires)


@dataclass(eq=False)
class Access:
    """What a server asks of whoever calls; by default nothing, which is for loopback alone."""

    tls: ServerTLS | None = None  # None: plain text
    tokens: Tokens | None = None  # None: whoever can connect may call everything
    reflection: bool = False  # tell callers the services' methods on any address; on loopback they are told anyway
    open_to_all: bool = False  # whoever can connect may call everything even where other machines can
    source: Callable[[], tuple[ServerTLS | None, Tokens | None]] | None = None  # what `reload` reads; None: nothing

    def __post_init__(self) -> None:
        self._reloading = threading.Lock()
        self._listeners: list[Callable[[Access], object]] = []

    @classmethod
    def load(
        cls,
        source: Callable[[], tuple[ServerTLS | None, Tokens | None]],
        reflection: bool = False,
        open_to_all: bool = False,
    ) -> Access:
        """From files, which `reload` reads again. Raises AccessError where the source does."""
        return cls(*source(), reflection, open_to_all, source)

    @classmethod
    def at(cls, host: str, port: int, given: Access | None) -> Access:
        """Of a service that listens there; None: nothing is asked. Raises AccessError as `check` does, InvalidRequest
        for what is no port."""
        access = given or cls()
        access.check(host)
        split_address(join_address(host, port))
        return access

    def reload(self) -> bool:
        """What the files say now holds for each call and each connection from now on; those that run go on. A file that
        will not do changes nothing, and the log says why: False."""
        if self.source is None:
            return False
        with self._reloading:
            try:
                tls, tokens = self.source()
            except AccessError as error:
                log.warning("who may call stays as it was: %s", error)
                return False
            if (tls is None, tokens is None) != (self.tls is None, self.tokens is None):
                log.warning("who may call stays as it was: TLS and tokens are there or not from a server's start")
                return False
            self.tls, self.tokens = tls, tokens
            for listener in list(self._listeners):
                listener(self)
        read = [] if tls is None else ["the certificate"]
        if tokens is not None:
            read.append(f"the tokens of {len(tokens.holders)} holders")
        if read:
            log.info("read again: %s", " and ".join(read))
        return True

    def listen(self, listener: Callable[[Access], object]) -> Callable[[], None]:
        """Each `reload` that succeeds calls it, in order: for whoever keeps a copy. Returns what ends that."""
        self._listeners.append(listener)
        return partial(self._listeners.remove, listener)

    def credentials(self) -> grpc.ServerCredentials:
        """Of a port of gRPC with TLS: each new connection is made with what was read last."""
        assert self.tls is not None, "a server without TLS has none"
        given = self.tls

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if self.tls is None or self.tls is given:
                return None
            given = self.tls
            return given.configuration()

        return grpc.dynamic_ssl_server_credentials(
            given.configuration(), renewed, require_client_authentication=given.client_ca is not None
        )

    def check(self, host: str) -> None:
        """Raises AccessError for an address that other machines can reach, unless there is TLS, and something that
        tells callers apart or `open_to_all`."""
        if is_loopback(host):
            return
        if self.tls is None:
            raise AccessError(
                f"{host} can be reached from other machines, so it takes TLS: give --certificate and --key, "
                "or listen on 127.0.0.1"
            )
        if self.everybody and not self.open_to_all:
            raise AccessError(
                f"whoever reaches {host} could call everything: give --tokens (see `python -m saycan_qt.grant --help`) "
                "or --client-ca, or, if that is meant, --open-to-all"
            )

    @property
    def everybody(self) -> bool:
        """May all who can connect call everything?"""
        return self.tokens is None and (self.tls is None or self.tls.client_ca is None)

    def admit(self, method: str, metadata: Iterable[tuple[str, Any]]) -> str:
        """The name of the token's holder, "" where none is asked for. Raises Unauthenticated or PermissionDenied unless
        the call's token has the role that the method needs."""
        if self.tokens is None or method.startswith(HEALTH):
            return ""
        role, call = NEEDS.get(method), method.rpartition("/")[2]
        if role is None:
            raise PermissionDenied(f"no role allows {call}")
        shown = [str(value) for key, value in metadata if key == "authorization"]
        scheme, _, token = shown[0].partition(" ") if len(shown) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated(f"{call} needs a token with the role {role!r}, and the call came without one")
        holder = self.tokens.holder(token)
        if holder is None:
            raise Unauthenticated(f"{call} needs a token with the role {role!r}, and the one shown is not known here")
        if holder.expired:
            assert holder.expires is not None, "it has expired"
            since = when(holder.expires)
            raise Unauthenticated(f"{call} needs a token that is valid, and that of {holder.name!r} expired on {since}")
        if not holder.may(role):
            has = ", ".join(own for own in ROLES if own in holder.roles)
            raise PermissionDenied(f"{call} needs the role {role!r}; the token of {holder.name!r} has: {has}")
        return holder.name

    def known(self, metadata: Iterable[tuple[str, Any]]) -> str:
        """The name of the holder of the token that a call shows which needs none; "" for strangers."""
        shown = [str(value) for key, value in metadata if key == "authorization"]
        if self.tokens is None or len(shown) != 1:
            return ""
        holder = self.tokens.holder(shown[0].partition(" ")[2])
        return holder.name if holder and not holder.expired else ""
