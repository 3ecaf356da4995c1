"""Make a token that lets somebody call a service, and the line that tells the service of it.

    python -m saycan_qt.grant laptop --roles read score                       # prints both, the token never again
    python -m saycan_qt.grant laptop --roles read score --tokens tokens.yaml --out laptop.token
    python -m saycan_qt.grant guest --roles read --days 7 --tokens tokens.yaml --out guest.token

Services read the second command's tokens.yaml when they start (--tokens), and again on SIGHUP; it holds the token's
SHA-256, not the token. To take a token back, delete its line and send SIGHUP (`kill -HUP PID`): calls from then on are
refused, those that run come to their end.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import tyro
import yaml

from saycan_qt.options import File, parse
from saycan_qt.services.processes import refuse
from skills.errors import AccessError, SkillError
from skills.security.access import Role, Tokens, digest, new_token, time_of
from skills.security.tls import read_file, when

MODE = 0o600  # the owner's business alone


@dataclass(frozen=True)
class GrantConfig:
    """Make a token that lets somebody call a service, and the line that tells the service of it."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]  # of its holder
    # read: what there is, and what the robot sees; score: affordances; drive: actions and skills, and to halt and
    # release the robot; stop: to halt it and nothing else; operate: to have a server read its models again
    roles: tuple[Role, ...]
    tokens: File = None  # add the line to this file (made if need be) instead of printing it
    out: File = None  # write the token to this new file instead of printing it
    days: float | None = None  # that it is valid from now on; by default it does not expire
    expires: str = ""  # when it expires, in place of --days: such as 2027-01-31T18:00:00Z, or +01:00 in place of Z


def grant(config: GrantConfig) -> int:
    token = new_token()
    entry = {"name": config.name, "sha256": digest(token), "roles": list(dict.fromkeys(config.roles))}
    try:
        check(config)
        expires = end_of(config)
        if expires is not None:
            entry["expires"] = expires.strftime("%Y-%m-%dT%H:%M:%SZ")
        line = "- " + yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=10_000)
        if config.out is not None:
            append(config.out, token + "\n", os.O_EXCL)
        if config.tokens is not None:
            try:
                append(config.tokens, line)
            except AccessError:
                if config.out is not None:  # a token that nobody knows
                    config.out.unlink(missing_ok=True)
                raise
    except SkillError as error:
        return refuse(str(error))
    if config.out is None:
        print(f"token (shown this once): {token}")
    if config.tokens is None:
        print(f"line for --tokens: {line.strip()}")
    if expires is not None:
        print(f"it expires on {when(expires)}")
    return 0


def check(config: GrantConfig) -> None:
    """Raises AccessError before anything is written."""
    if not config.name.strip() or not config.name.isprintable():
        raise AccessError(f"{config.name!r} is no name")
    if not config.roles:
        raise AccessError("a token without roles may do nothing; give --roles")
    path = config.tokens
    if path is not None and path.exists() and path.stat().st_size:
        if lists(path) and config.name in (holder.name for holder in Tokens.load(path).holders):
            raise AccessError(f"{path} has a token of {config.name!r}; delete its line first, or choose another name")
        if not path.read_bytes().endswith(b"\n"):
            append(path, "\n")


def lists(path: Path) -> bool:
    """Is there anything in this file but comments?"""
    lines = read_file(path, "tokens file").splitlines()
    return any(line.strip() and not line.strip().startswith(b"#") for line in lines)


def end_of(config: GrantConfig) -> datetime | None:
    """Until when the token is valid; None: it does not expire. Raises AccessError for what is no time to come."""
    if config.days is None and not config.expires:
        return None
    if config.days is not None and config.expires:
        raise AccessError("--days and --expires both say when the token expires; give one of them")
    now = datetime.now(UTC)
    try:
        expires = now + timedelta(days=config.days) if config.days is not None else time_of(config.expires)
    except (ValueError, OverflowError) as error:
        raise AccessError(
            f"no time to expire at: {error}; give --days, or --expires such as 2027-01-31T18:00:00Z"
        ) from None
    if expires <= now:
        raise AccessError(f"a token that expires on {when(expires)} lets nobody in; that is over")
    return expires


def append(path: Path, text: str, flags: int = 0) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | flags, MODE), "w") as file:
            file.write(text)
    except OSError as error:
        raise AccessError(f"cannot write {path}: {error.strerror}") from None


def main() -> int:
    return grant(parse(GrantConfig, "python -m saycan_qt.grant", __doc__))


if __name__ == "__main__":
    sys.exit(main())
