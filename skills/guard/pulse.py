"""Pulse: a service proves to its guard that it still answers, by calling itself."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

import grpc

from skills.errors import Unavailable
from skills.guard.link import Guard

EVERY = 0.2  # [s]
TIMEOUT = 0.5  # [s]
LONGEST = 80  # [characters] of a folder for sockets, whose paths have 107 at most
CALL = "/skills.v1.RobotService/Pulse"  # there is none: the thread that serves all calls says so by itself


class Pulse:
    """Of a server that listens on `address`, too: a socket in a folder that nobody else may enter."""

    def __init__(self) -> None:
        """Raises Unavailable where there can be no such folder."""
        self._over = threading.Event()
        try:
            parent = tempfile.gettempdir()
            self._folder = Path(tempfile.mkdtemp(prefix="robot-", dir=parent if len(parent) < LONGEST else "/tmp"))
        except OSError as error:
            raise Unavailable(f"no temporary folder for the robot's pulse: {error}; set TMPDIR to one") from None
        self.address = f"unix:{self._folder / 'pulse'}"

    def start(self, guard: Guard) -> None:
        """The server is up."""
        self._guard = guard
        channel = grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._guard.watch()
        threading.Thread(target=self._beat, args=(channel,), name="pulse", daemon=True).start()

    def close(self) -> None:
        self._over.set()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _beat(self, channel: grpc.Channel) -> None:
        call = channel.unary_unary(CALL, lambda nothing: b"", bytes)
        with channel:
            while not self._over.wait(EVERY):
                try:
                    call(None, timeout=TIMEOUT)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                        self._guard.pulse()
                except ValueError:  # the channel was closed with the interpreter
                    return
