"""Have a running skill server read a model's checkpoints again, without dropping a call.

    python -m saycan_qt.reload 127.0.0.1:50051              # its first model
    python -m saycan_qt.reload 127.0.0.1:50051 night        # the one of that name

Calls that run end on the old model; where the new one is bad, the old one stays and the reason is said (exit code 2).
SIGHUP makes a skill server do so with all its models. With tokens it takes one with the role "operate".
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from saycan_qt.options import parse
from saycan_qt.services.access import ClientOptions, HowToCall
from saycan_qt.services.processes import refuse
from skills.client import SkillClient
from skills.errors import SkillError
from skills.wire.conventions import plain


@dataclass(frozen=True)
class ReloadConfig:
    """Have a running skill server read a model's checkpoints again, without dropping a call."""

    server: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")]
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]", help_behavior_hint="")] = ""
    credentials: HowToCall = field(default_factory=ClientOptions)


def reload(config: ReloadConfig) -> int:
    try:
        with SkillClient(config.server, credentials=config.credentials.load()) as client:
            model = client.reload(config.model)
    except SkillError as error:
        return refuse(str(error))
    print(plain(f"model {model.name!r} is now judged by {model.critic_id}, done by {model.actor_id}"))
    return 0


def main() -> int:
    return reload(parse(ReloadConfig, "python -m saycan_qt.reload", __doc__))


if __name__ == "__main__":
    sys.exit(main())
