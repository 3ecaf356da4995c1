"""Pulse: a service proves to its guard that it still answers, by calling itself."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

import grpc

from skills.guard.link import Guard

EVERY = 0.2  # [s]
TIMEOUT = 0.5  # [s]
CALL = "/skills.v1.RobotService/Pulse"  # there is none: the thread that serves all calls says so by itself


class Pulse:
    """Of a server that listens on `address`, too: a socket in a folder that nobody else may enter."""

    def __init__(self, guard: Guard) -> None:
        self._guard, self._over = guard, threading.Event()
        self._folder = Path(tempfile.mkdtemp(prefix="robot-"))
        self.address = f"unix:{self._folder / 'pulse'}"

    def start(self) -> None:
        """The server is up."""
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
