"""See in a browser what runs left: what was chosen, what against, and what came of it.

    python -m saycan_qt.view                                          # the runs in runs/, the newest first
    python -m saycan_qt.view runs/20261121-101500-bring-me-a-snack    # one run
    python -m saycan_qt.view --host 0.0.0.0 --port 8443 --certificate server.pem --key server.key --tokens tokens.yaml

It prints the address to open and serves until Ctrl-C. `run --live` and `session --live` start it by themselves, beside
the run: the page then shows what goes on, and the robot can be stopped from it. Nothing is fetched from elsewhere.

On an address that other machines can reach it asks what other services ask: TLS, and tokens (see `grant --help`) that
each browser shows once. The role "read" looks on, which "stop" (the robot) and "drive" (that and all the rest) add to.
A token file is read again on SIGHUP. Exit code 2: a mistake in use.
"""

from __future__ import annotations

import socket
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from saycan_qt.options import parse
from saycan_qt.page.hub import Hub
from saycan_qt.page.link import Link
from saycan_qt.page.runs import PLAN, NoRun, Runs, read_plan
from saycan_qt.page.server import PageServer
from saycan_qt.services.access import ClientOptions, HowToCall, ServerOptions, WhoMayCall
from saycan_qt.services.processes import EndWhenTold, announce, announce_ready, refuse
from skills.errors import SkillError

PAGE = "page"


@dataclass(frozen=True)
class ViewConfig:
    """See in a browser what runs left."""

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs")  # a run's folder, or a folder of them
    host: str = "127.0.0.1"  # address to listen on
    port: int = 0  # 0: a free one, which is printed
    name: tuple[str, ...] = ()  # names by which browsers may call this machine, besides its host name and its numbers
    access: WhoMayCall = field(default_factory=ServerOptions)
    credentials: HowToCall = field(default_factory=ClientOptions)
    # a run's end of a socket pair, as this process inherited it: show that run, which goes on, in place of a folder
    feed: Annotated[int | None, tyro.conf.arg(metavar="FD", help_behavior_hint="")] = None
    until_stdin_closes: bool = False  # end when standard input closes: with the process that started this one


def shown(folder: Path) -> Runs | Path:
    """A folder of runs, or a run. Raises NoRun."""
    folder = folder.resolve()
    if not folder.is_dir():
        raise NoRun(f"there is no folder {folder}; `python -m saycan_qt.run` leaves runs in runs/")
    if (folder / PLAN).exists():
        read_plan(folder)
        return folder
    runs = Runs(folder)
    if not runs.list():
        raise NoRun(f"{folder} holds no run; give a folder that `python -m saycan_qt.run` left, or one of them")
    return runs


def view(config: ViewConfig) -> int:
    end = EndWhenTold(config.until_stdin_closes)
    hub, runs = None, None
    try:
        access = config.access.load(config.host)
        if config.feed is None:
            runs = shown(config.folder)
        else:
            link = Link(socket.socket(fileno=config.feed))
            hub = Hub(link, config.credentials.load())
            threading.Thread(target=hub.follow, name="feed", daemon=True).start()
        server = PageServer(hub, runs, config.host, config.port, access, config.name)
    except (SkillError, NoRun) as error:
        return refuse(str(error))
    except OSError as error:
        return refuse(f"--feed {config.feed} is no end of a socket pair: {error.strerror}")

    def renew() -> None:
        access.reload()

    end.arm(renew=renew)
    announce(PAGE, server.address)
    announce_ready(PAGE, server.url)
    end.wait()
    server.close()
    if hub is not None:
        hub.close()
    return 0


def main() -> int:
    return view(parse(ViewConfig, "python -m saycan_qt.view", __doc__))


if __name__ == "__main__":
    sys.exit(main())
