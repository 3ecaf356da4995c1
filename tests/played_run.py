"""The run's end of a page's feed, played by a test: its socket, its events, and what pages ask of it."""

import contextlib
import io
import queue
import socket
import subprocess
import sys
import threading
import time

from PIL import Image

from saycan_qt.page.hub import Hub
from saycan_qt.page.link import Link
from saycan_qt.page.server import PageServer

PLAN = {
    "instruction": "bring me an apple",
    "world": "kitchen",
    "seed": 3,
    "success": False,
    "reason": "the run is still going on",
    "judge": None,
    "ended": None,
    "started": "2026-11-27T20:00:00+00:00",
    "seconds": 0.0,
    "models": {"language": "scripted"},
    "planner": {"kind": "saycan"},
    "affordances": "raw",
    "final": {},
}
SKILLS = ("pick up the apple", "find the apple", "pick up the sponge", "go to the table", "put it down", "done", "wait")


def candidates(chosen, skills=SKILLS, language=0.9):
    """The chosen one first; the second is more sensible and less possible, the last one was not scored."""
    others = [text for text in skills if text != chosen]
    rows = [(chosen, language / 2, 0.8), (others[0], language, 0.1)]
    rows += [(text, 0.01, 0.9) for text in others[1:-1]] + [(others[-1], None, 0.0)]
    return [
        {"skill": text, "text": text, "language": said, "affordance": able, "score": (said or 0) * able, "lowered": 1.0}
        for text, said, able in rows
    ]


def step(number, chosen="pick up the apple", outcome="running", **facts):
    rows = candidates(chosen)
    first = {key: rows[0][key] for key in ("skill", "text", "language", "affordance", "score", "lowered")}
    told = {"step": number, **first, "outcome": outcome, "message": "", "seconds": 0.0, "control_steps": 0, "views": {}}
    told |= {"place": "table", "held": "", "objects": {"apple": "table", "sponge": "far counter"}, "times": {}}
    return told | {"candidates": rows, "started": "", **facts}


def jpeg(colour, size=(320, 256)):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "JPEG")
    return data.getvalue()


class PlayedRun:
    """Tells events and hears commands over one end of a socket pair; `other` is the page's."""

    def __init__(self):
        own, self.other = socket.socketpair()
        self.link, self.commands = Link(own), queue.Queue()
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._hearing.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.link.close()
        self.other.close()
        self._hearing.join(5)

    def _hear(self):
        for command in self.link.receive():
            self.commands.put(command)

    def tell(self, **events):
        for kind, value in events.items():
            self.link.send({kind: value})

    def begin(self, folder="/nowhere", name="a run", **plan):
        self.tell(session=True, run={"name": name, "folder": str(folder), "plan": {**PLAN, **plan}})

    def show(self, view, picture):
        self.link.send({"view": view, "at": time.time()}, picture)

    def heard(self, seconds=5):
        return self.commands.get(timeout=seconds)


@contextlib.contextmanager
def page_beside(access=None, credentials=None, **options):
    """A run that is played, and the server of its page."""
    with PlayedRun() as run:
        run.hub = Hub(Link(run.other), credentials)
        following = threading.Thread(target=run.hub.follow, daemon=True)
        following.start()
        with PageServer(run.hub, None, options.pop("host", "127.0.0.1"), 0, access, **options) as run.server:
            yield run
        run.hub.close()
        following.join(5)


@contextlib.contextmanager
def page_process(*options):
    """A run that is played, and its page in a process of its own, as `run --live` starts it."""
    with PlayedRun() as run:
        end = run.other.fileno()
        command = [sys.executable, "-m", "saycan_qt.view", "--feed", str(end), "--until-stdin-closes", *options]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[end])
        with process:
            lines = iter(process.stdout)
            run.address = next(lines).removeprefix("page listening on ").strip()
            run.url, run.pid = next(lines).removeprefix("page ready: ").strip(), process.pid
            yield run
            process.stdin.close()
            process.wait(10)
