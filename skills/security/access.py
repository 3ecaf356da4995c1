"""Who may call what: bearer tokens with roles. A server knows the tokens' hashes only.

    - {name: laptop, sha256: 0b1f..., roles: [read, score]}       # one line of a file, for Tokens.load

`python -m saycan_qt.grant NAME --roles read score` makes a token and its line. Health checks need no token.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from skills.errors import AccessError, PermissionDenied, Unauthenticated
from skills.security.tls import ServerTLS, read_file, warn_if_shared
from skills.wire.conventions import is_loopback

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
}


@dataclass(frozen=True)
class Holder:
    """Whoever has the token with this hash."""

    name: str
    sha256: str  # of the token, 64 hexadecimal digits
    roles: frozenset[Role]

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
        """Raises AccessError with file, entry and reason."""
        try:
            entries = yaml.safe_load(read_file(path, "tokens file"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise AccessError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(entries, list) or not entries:
            raise AccessError(f"{path} lists no token; `python -m saycan_qt.grant NAME --tokens {path}` adds one")
        holders = [_holder(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)]
        for what in ("name", "sha256"):
            values = [getattr(holder, what) for holder in holders]
            if twice := [value for value in values if values.count(value) > 1]:
                raise AccessError(f"{path}: {what} {twice[0]!r} is there twice")
        warn_if_shared(path)
        return cls(holders)

    def holder(self, token: str) -> Holder | None:
        """Takes equally long whether, and at which place, the token is known."""
        shown, found = digest(token), None
        for holder in self.holders:
            if hmac.compare_digest(holder.sha256, shown):
                found = holder
        return found


def _holder(entry: Any, where: str) -> Holder:
    if not isinstance(entry, dict) or set(entry) != {"name", "sha256", "roles"}:
        raise AccessError(f"{where}: a token has a name, its sha256 and its roles, nothing else")
    name, sha256, roles = str(entry["name"]), str(entry["sha256"]).lower(), entry["roles"]
    if not re.fullmatch("[0-9a-f]{64}", sha256):  # do not repeat it: it may be the token itself
        raise AccessError(f"{where} ({name}): sha256 is not the 64 hexadecimal digits of a SHA-256")
    if not isinstance(roles, list) or not roles or not set(map(str, roles)) <= set(ROLES):
        raise AccessError(f"{where} ({name}): roles is a list of some of {', '.join(ROLES)}, not {roles!r}")
    return Holder(name, sha256, frozenset(roles))


@dataclass(frozen=True)
class Access:
    """What a server asks of whoever calls; by default nothing, which is for loopback alone."""

    tls: ServerTLS | None = None  # None: plain text
    tokens: Tokens | None = None  # None: whoever can connect may call everything
    reflection: bool = False  # tell callers the services' methods on any address; on loopback they are told anyway

    def check(self, host: str) -> None:
        """Raises AccessError for an address that other machines can reach, unless there is TLS."""
        if self.tls is None and not is_loopback(host):
            raise AccessError(
                f"{host} can be reached from other machines, so it takes TLS: give --certificate and --key, "
                "or listen on 127.0.0.1"
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
        return holder.name if holder else ""
